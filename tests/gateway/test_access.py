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
