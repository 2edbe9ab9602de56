"""Clients that stand still, send what is no HTTP, or take no answer, over real sockets: each ends, and nobody else notices."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from cortex_gateway import serving
from cortex_gateway.connection import KEEP_SECS, IdleTimeouts
from neuron_jax.common.connection import MOST_HEAD_BYTES
from tests.fakes.gateway_rig import CHAT, COMPLETIONS, HI, MESSAGES
from tests.fakes.live_gateway import LiveGateway, live_gateway
from tests.fakes.neuron_double import Answer, NeuronDouble

SOON = {"read_timeout_secs": 0.8, "write_timeout_secs": 1.5}
# 20 MB: more than any socket takes by itself
LONG = Answer(deltas=({"content": "word " * 20_000},) * 200)
LONG_WHOLE = Answer(deltas=({"content": "word " * 4_000_000},))


@contextlib.contextmanager
def gateway(*answers: Answer, **settings: Any) -> Iterator[tuple[LiveGateway, NeuronDouble]]:
    neuron = NeuronDouble(answers=list(answers) or [Answer()])
    with live_gateway({"one": neuron}, settings) as it:
        yield it, neuron


@pytest.fixture(scope="module")
def one_for_all() -> Iterator[tuple[LiveGateway, NeuronDouble]]:
    with gateway(**SOON) as both:
        yield both


@pytest.fixture
def plain(one_for_all: tuple[LiveGateway, NeuronDouble]) -> tuple[LiveGateway, NeuronDouble]:
    """A gateway with short timeouts, and a neuron that has been asked nothing yet."""
    one_for_all[1].seen.clear()
    return one_for_all


@contextlib.contextmanager
def connection(it: LiveGateway, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    url = httpx.URL(it.url)
    with socket.socket() as line:
        if receive_bytes:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        line.settimeout(20)
        line.connect((url.host, url.port))
        yield line


def posted(path: str, body: dict[str, Any], *more: str) -> bytes:
    raw = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", *more]
    return "\r\n".join([*head, f"content-length: {len(raw)}", "", ""]).encode() + raw


def to_the_end(line: socket.socket) -> bytes:
    """All that comes until the gateway hangs up."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := line.recv(1 << 16):
            received += piece
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error(answer: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return found


def until(fact: Callable[[], object]) -> None:
    for _ in range(1000):
        if fact():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass within 10 s")


def counted(it: LiveGateway, what: str) -> float:
    said = httpx.get(f"{it.metrics_url}/metrics", timeout=20).text
    rows = dict(row.rsplit(" ", 1) for row in said.splitlines() if not row.startswith("#"))
    return float(rows.get(f'cortex_{what}_total{{model="demo",node="one"}}', 0))


def whole(line: socket.socket) -> bytes:
    """One answer that tells its length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += line.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    while len(body) < length:
        body += line.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def still_serves(it: LiveGateway) -> None:
    answer = httpx.post(it.url + CHAT, json={"model": "nobody's"}, timeout=20)
    assert answer.status_code == 404, answer.text


def test_an_idle_connection_is_kept_longer_than_clients_keep_theirs() -> None:
    """On both listeners: who closes first may close while the other sends."""
    for lifespan in (True, False):
        server = serving._server(lambda *_: None, IdleTimeouts(read_secs=1, write_secs=1), 1, None, lifespan=lifespan)  # type: ignore[arg-type,return-value]

        assert server.config.timeout_keep_alive == KEEP_SECS == 75


@pytest.mark.parametrize("head", [b"P", b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-le"])
def test_half_a_head_and_nothing_more_is_hung_up_on(head: bytes, plain: tuple[LiveGateway, NeuronDouble]) -> None:
    """408, after the time that was set."""
    it, _ = plain
    with connection(it) as line:
        line.sendall(head)
        answer = to_the_end(line)

        assert status(answer) == 408
        assert error(answer)["code"] == "request_timeout"
        still_serves(it)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, "/admin/load"])
def test_half_a_body_and_nothing_more_is_hung_up_on(path: str, plain: tuple[LiveGateway, NeuronDouble]) -> None:
    """408 in the dialect's envelope; neither fleet nor neuron hears of it."""
    it, neuron = plain
    with connection(it) as line:
        line.sendall(posted(path, {"model": "demo", "messages": HI})[:-5])
        answer = to_the_end(line)

        assert status(answer) == 408
        assert b"connection: close" in answer
        assert "0.8 s" in error(answer)["message"]
        assert neuron.asked == []
        still_serves(it)


def test_a_slow_upload_is_read(plain: tuple[LiveGateway, NeuronDouble]) -> None:
    """Piece by piece, in more time than any one silence may take."""
    it, _ = plain
    with connection(it) as line:
        raw = posted(CHAT, {"model": "demo", "messages": HI}, "connection: close")
        head, blank, body = raw.partition(b"\r\n\r\n")
        line.sendall(head + blank)
        for at in range(0, len(body), 5):
            time.sleep(0.1)
            line.sendall(body[at : at + 5])

        assert status(to_the_end(line)) == 200


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_takes_nothing_is_hung_up_on(path: str, streaming: bool) -> None:
    """Its request ends in the neuron as well, and its lease is given back."""
    with gateway(LONG if streaming else LONG_WHOLE, **SOON) as (it, neuron), connection(it, 4096) as line:
        line.sendall(posted(path, {"model": "demo", "messages": HI, "max_tokens": 9, "stream": streaming}))
        until(lambda: neuron.begun)

        def in_flight() -> int:
            (node,) = httpx.get(f"{it.url}/admin/fleet", timeout=20).json()["nodes"]
            return sum(model["in_flight"] for model in node["models"])

        until(lambda: not in_flight())
        until(lambda: counted(it, "requests") == 1)
        still_serves(it)


def test_what_went_by_before_it_was_hung_up_on_is_counted() -> None:
    """In the metrics, as tokens of a request that was no error."""
    with gateway(LONG, **SOON) as (it, _), connection(it, 4096) as line:
        line.sendall(posted(CHAT, {"model": "demo", "messages": HI, "stream": True}))
        until(lambda: counted(it, "requests") == 1)

        assert 0 < counted(it, "completion_tokens") < 200
        assert counted(it, "request_errors") == 0


def test_a_slow_client_gets_its_whole_answer() -> None:
    """It takes longer than the time that nothing may happen in, but something always does."""
    answer = Answer(deltas=({"content": "word " * 20_000},) * 60)
    with gateway(answer, **SOON) as (it, _), connection(it, 1 << 16) as line:
        line.sendall(posted(CHAT, {"model": "demo", "messages": HI, "stream": True}, "connection: close"))
        received = 0
        began = time.monotonic()
        tail = b""
        while piece := line.recv(1 << 16):
            received += len(piece)
            tail = (tail + piece)[-64:]
            time.sleep(0.03)

        assert tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert received > 6_000_000
        assert time.monotonic() - began > SOON["write_timeout_secs"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x-many: y\r\n" * 10_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx-long: " + b"y" * 2_000_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 2_000_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx-endless: " + b"y" * 2_000_000,
    ],
)
def test_a_head_without_end_is_refused(head: bytes, plain: tuple[LiveGateway, NeuronDouble]) -> None:
    """Before it fills the memory."""
    it, _ = plain
    with connection(it) as line:
        with contextlib.suppress(OSError):
            line.sendall(head)
        answer = to_the_end(line)

        assert answer == b"" or status(answer) == 431  # the rest of what was sent may have swept it away
        still_serves(it)


def test_a_large_head_is_read(plain: tuple[LiveGateway, NeuronDouble]) -> None:
    """Up to the limit."""
    it, _ = plain
    cookie = "x" * (MOST_HEAD_BYTES - 1000)

    assert httpx.get(f"{it.url}/health", headers={"cookie": cookie}).status_code == 200
    answer = httpx.get(f"{it.url}/health", headers={"cookie": cookie + "x" * 1000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (431, "head_too_large")


CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /admin/unload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        b"POST /admin/unload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        b"POST /admin/unload HTTP/1.1\r\nhost: localhost\r\ncontent-length : 5\r\n\r\nabcde",
        b"POST /admin/unload HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\nabcde",
        b"POST /admin/unload HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: xchunked\r\n\r\nabcde",
        b"POST /admin/unload HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, identity\r\n\r\nabcde",
        b"POST /admin/unload HTTP/1.1\r\nhost: localhost\r\n" + CHUNKED + b"\r\nzz\r\n\r\n",
        b"GET / HTTP/1.1\nhost: localhost\n\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: \x00\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"SPAM / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"CONNECT evil.example:80 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_and_the_end(request_: bytes, plain: tuple[LiveGateway, NeuronDouble]) -> None:
    """What two programs could read in two ways above all (request smuggling); in JSON, like every other error."""
    it, neuron = plain
    with connection(it) as line:
        line.sendall(request_)
        answer = to_the_end(line)

        assert status(answer) == 400
        assert answer.count(b"HTTP/1.1 ") == 1
        assert error(answer)["type"] == "invalid_request_error"
        assert not any(seen.path.startswith("/models/") and seen.path != "/models" for seen in neuron.seen)
        still_serves(it)


def test_requests_that_come_at_once_are_answered_in_their_order(plain: tuple[LiveGateway, NeuronDouble]) -> None:
    """Pipelining: also behind a stream."""
    stream = posted(CHAT, {"model": "demo", "messages": HI, "stream": True})
    health = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    last = b"GET /nope HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    it, _ = plain
    with connection(it) as line:
        line.sendall(
            health + stream + health + posted(MESSAGES, {"model": "demo", "messages": HI, "max_tokens": 9}) + last
        )
        answer = to_the_end(line)

        statuses = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
        assert statuses == [200, 200, 200, 200, 404]
        first, streamed, again, message, _ = answer.split(b"HTTP/1.1 ")[1:]
        assert b'"status":"ok"' in first
        assert b"data: [DONE]" in streamed
        assert b'"status":"ok"' in again
        assert b'"type":"message"' in message


@pytest.mark.parametrize("name", ["Upgrade", "UPGRADE", "upgrade"])
def test_an_offer_of_another_protocol_costs_no_body(name: str, plain: tuple[LiveGateway, NeuronDouble]) -> None:
    """Java's HttpClient makes it with its first request, and goes on with HTTP/1.1 on the same connection."""
    offer = [f"{name}: h2c", f"Connection: {name}, HTTP2-Settings", "HTTP2-Settings: AAEAAEAA"]
    body = {"model": "demo", "messages": [{"role": "user", "content": "Upgrade: \r\nupgrade: x"}]}
    it, neuron = plain
    with connection(it) as line:
        line.sendall(posted(CHAT, body, *offer))
        assert status(whole(line)) == 200
        line.sendall(posted(CHAT, body, "connection: close"))
        assert status(to_the_end(line)) == 200

        assert [seen.body["messages"] for seen in neuron.asked] == [body["messages"]] * 2


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("HEAD", "/", 200),
        ("HEAD", "/health", 200),
        ("HEAD", CHAT, 405),
        ("HEAD", "/admin/fleet", 200),
        ("OPTIONS", CHAT, 204),
        ("OPTIONS", "/admin/unload", 204),
        ("OPTIONS", "/nope", 404),
        ("OPTIONS", "*", 404),
        ("TRACE", "/", 405),
        ("DELETE", "/admin/unload", 405),
        ("GET", "http://evil.example/health", 200),
        ("GET", "/%2e%2e/admin/fleet", 404),
        ("GET", "/v1/models/%00%0d%0a", 404),
    ],
)
def test_unusual_methods_and_targets(
    method: str, path: str, expected: int, plain: tuple[LiveGateway, NeuronDouble]
) -> None:
    """Each has an answer of its own, and none is an error of ours."""
    it, _ = plain
    with connection(it) as line:
        line.sendall(f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = to_the_end(line)

        assert status(answer) == expected
        assert method != "HEAD" or answer.endswith(b"\r\n\r\n")
