"""What comes before any route: heads without an end, what is no HTTP, and offers of another protocol."""

import asyncio
import json
from pathlib import Path
from urllib.parse import urlsplit

from tests.fakes.live_neuron import config_for, running

CALL = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def answers(tmp_path: Path, *sent: bytes) -> list[tuple[int, dict[str, object]]]:
    """Status and body of the answer to each, on a connection of its own."""

    async def ask(url: str, data: bytes) -> tuple[int, dict[str, object]]:
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(data)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        writer.close()
        return int(head.split(b" ")[1]), json.loads(body)["error"]

    async def run() -> list[tuple[int, dict[str, object]]]:
        async with running(config_for(tmp_path / "none", tmp_path / "cache")) as (url, _), asyncio.timeout(60):
            return [await ask(url, one) for one in sent]

    return asyncio.run(run())


def test_a_head_without_an_end_is_refused(tmp_path: Path) -> None:
    """It was kept, of whatever size, before anybody was asked for the secret."""
    endless = CALL + b"X-Long: " + b"a" * 100_000
    many = CALL + b"".join(b"X-%d: a\r\n" % number for number in range(10_000)) + b"\r\n"

    for status, error in answers(tmp_path, endless, many):
        assert (status, error["code"]) == (431, "head_too_large")


def test_what_is_no_http_gets_the_envelope(tmp_path: Path) -> None:
    """Half of TLS, and two lengths."""
    for status, error in answers(tmp_path, b"\x16\x03\x01\x02\x00" * 9, CALL + b"Content-Length: -5\r\n\r\n"):
        assert (status, error["code"]) == (400, "bad_http")


def test_an_offer_of_http_2_leaves_the_body_whole(tmp_path: Path) -> None:
    """As Java's HttpClient makes it with its first request: the answer is about the model, not about JSON."""
    offer = CALL + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    body = b'{"model": "nobody\'s", "prompt": "a"}'

    ((status, error),) = answers(tmp_path, offer + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    assert (status, error["code"]) == (404, "model_not_found")
