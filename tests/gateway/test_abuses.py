"""What others plant on purpose, against the real gateway over real sockets: it is refused, and nobody else notices."""

import logging
from collections.abc import Iterator

import httpx
import pytest

from tests.fakes.gateway_rig import CHAT, HI, MESSAGES
from tests.fakes.host_double import HostDouble
from tests.fakes.live_gateway import LiveGateway, live_gateway
from tests.fakes.waiting import until_sync

EVIL = "https://evil.example"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[LiveGateway, HostDouble]]:
    host = HostDouble(models=["demo"], sizes={"demo": 100, "other": 100}, loaded=["demo"])
    with live_gateway({"one": host}, {"max_body_mb": 8}) as it:
        yield it, host


@pytest.mark.parametrize("path", ["/admin/unload", "/admin/load"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": EVIL, **JSON}, 403),
        ({"origin": "null", **JSON}, 403),
        ({"origin": EVIL, "content-type": "text/plain"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({}, 415),
        ({"host": "evil.example", **JSON}, 403),
        ({"host": "evil.example:31313", "origin": "http://evil.example:31313", **JSON}, 403),
        ({"sec-fetch-site": "cross-site", **JSON}, 403),
    ],
)
def test_a_page_of_another_site_unloads_and_loads_nothing(
    both: tuple[LiveGateway, HostDouble], path: str, headers: dict[str, str], status: int
) -> None:
    """Whatever its browser tells of it, and by whatever name it has the gateway called."""
    it, host = both
    model = "demo" if path == "/admin/unload" else "other"
    answer = httpx.post(it.url + path, content=f'{{"model":"{model}"}}', headers=headers)

    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]
    assert host.done == []
    assert httpx.post(it.url + CHAT, json={"model": "demo", "messages": HI}).status_code == 200


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_page_of_another_site_has_nothing_computed(both: tuple[LiveGateway, HostDouble], path: str) -> None:
    """Nor does it learn what models there are."""
    it, host = both
    before = len(host.asked)
    answer = httpx.post(
        it.url + path, json={"model": "demo", "messages": HI, "max_tokens": 1}, headers={"origin": EVIL}
    )
    models = httpx.get(f"{it.url}/v1/models", headers={"origin": EVIL})

    assert (answer.status_code, models.status_code) == (403, 403)
    assert len(host.asked) == before


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/admin/load"])
def test_a_body_over_the_cap_reaches_nobody(both: tuple[LiveGateway, HostDouble], path: str) -> None:
    """Announced or in chunks."""
    it, host = both
    before = len(host.seen)
    large = b'{"model":"demo","messages":"' + b"x" * (12 << 20) + b'"}'
    for content in (large, iter([large[at : at + 65536] for at in range(0, len(large), 65536)])):
        answer = httpx.post(it.url + path, content=content, headers=JSON, timeout=30)

        assert answer.status_code == 413
    assert not [seen for seen in host.seen[before:] if len(seen.raw) > 1000]


def test_no_line_of_the_log_is_forged(both: tuple[LiveGateway, HostDouble], caplog: pytest.LogCaptureFixture) -> None:
    """One request, one line, in which what the client wrote is one word."""
    it, _ = both

    def said() -> list[str]:
        told = [one.getMessage() for one in caplog.records if one.name == "cortex.access"]
        return [line for line in told if line.startswith(("GET", "POST /v1"))]  # an earlier test's may come late

    with caplog.at_level(logging.INFO, logger="cortex.access"):
        httpx.get(f"{it.url}/%0a2026-01-01%2000:00:00%20POST%20/admin/unload%20200%201%20ms")
        httpx.post(f"{it.url}{CHAT}", json={"model": "x\n2026-01-01 POST /admin/unload 200 1 ms", "messages": HI})
        until_sync(lambda: len(said()) == 2, 20)  # it is written after the answer

    first, second = said()
    assert first.startswith("GET /%0a2026-01-01%2000:00:00%20POST%20/admin/unload%20200%201%20ms 404 ")
    assert second.startswith("POST /v1/chat/completions [chat] unknown on no node 404 error ")
    assert "\n" not in first + second
