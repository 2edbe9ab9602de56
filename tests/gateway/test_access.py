"""The line per request: what it says, and that it is about the right request."""

import asyncio
import logging
from typing import Any

import attrs
import httpx
import pytest

from cortex_gateway.access import AccessLog, line
from cortex_gateway.metrics import Metrics, RequestRecord

RECORD = RequestRecord(
    model="m", node="a", dialect="chat", outcome="ok", status=200, seconds=1.0, prompt_tokens=36, completion_tokens=8
)


@pytest.mark.parametrize(
    ("status", "records", "said"),
    [
        (200, [], "GET /x 200 812 ms"),
        (200, [RECORD], "GET /x [chat] m on a 200 ok 812 ms 36+8 tokens"),
        (200, [attrs.evolve(RECORD, request_id="req_7")], "GET /x [chat] m on a 200 ok 812 ms 36+8 tokens req_7"),
        (
            200,
            [attrs.evolve(RECORD, outcome="cancelled", prompt_tokens=None)],
            "GET /x [chat] m on a 200 cancelled 812 ms ?+8 tokens",
        ),
        (
            503,
            [attrs.evolve(RECORD, node="", status=503, outcome="error", completion_tokens=None)],
            "GET /x [chat] m on no node 503 error 812 ms",
        ),
    ],
)
def test_the_line(status: int, records: list[RequestRecord], said: str) -> None:
    """What is not known is left out."""
    assert line("GET", "/x", status, 0.812, records) == said


@pytest.mark.parametrize(
    ("path", "model", "said"),
    [
        ("/\nfake", "m", r"GET /\nfake [chat] m on a"),
        ("/x 200 ok 1 ms", "m", r"GET /x\x20200\x20ok\x201\x20ms [chat] m on a"),
        ("/", "m on b\r\n\x1b[2K", r"GET / [chat] m\x20on\x20b\r\n\x1b[2K on a"),
    ],
)
def test_no_client_can_forge_a_line(path: str, model: str, said: str) -> None:
    """Nor a word of one."""
    assert line("GET", path, 200, 1.0, [attrs.evolve(RECORD, model=model)]).startswith(said)


def test_the_path_is_logged_as_it_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    """`curl :31313/%0afake` is one line, and one can see what was asked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        transport = httpx.ASGITransport(AccessLog(app, Metrics()))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            await http.get("/%0afake")

    with caplog.at_level(logging.INFO, logger="cortex.access"):
        asyncio.run(main())

    said = [record.getMessage() for record in caplog.records if record.name == "cortex.access"]
    assert said[0].startswith("GET /%0afake 404 ")


def test_each_request_gets_its_own_record(caplog: pytest.LogCaptureFixture) -> None:
    """Two at the same time, the first to come being the last to end; one whose client left has no status."""
    metrics = Metrics()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        model = scope["path"].strip("/")
        await asyncio.sleep(0.01 if model == "slow" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        metrics.observe_request(attrs.evolve(RECORD, model=model))

    async def main() -> None:
        transport = httpx.ASGITransport(AccessLog(app, metrics))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            await asyncio.gather(http.get("/slow"), http.get("/quick"))

    with caplog.at_level(logging.INFO, logger="cortex.access"):
        asyncio.run(main())

    said = [record.getMessage() for record in caplog.records if record.name == "cortex.access"]
    assert [text.split()[3] for text in said] == ["quick", "slow"]
    assert [text.split()[1] for text in said] == ["/quick", "/slow"]


def test_a_failure_of_the_app_is_logged_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """499: nothing was sent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("bug")

    async def main() -> None:
        await AccessLog(app, Metrics())({"type": "http", "method": "GET", "path": "/"}, None, None)  # type: ignore[arg-type]

    with caplog.at_level(logging.INFO, logger="cortex.access"), pytest.raises(RuntimeError, match="bug"):
        asyncio.run(main())

    assert caplog.records[0].getMessage().startswith("GET / 499 ")
