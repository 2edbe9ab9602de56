"""The transport to neurons: kept connections, limits, and every way in which a line can end, over real sockets."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx
import pytest
import uvloop

from cortex_gateway.transport import HIGH_WATER, NeuronTransport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
Run = Callable[[Awaitable[None]], None]
Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> bytes:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
        return head + await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, data: bytes = OK) -> bytes:
        seen = await self.request()
        await self.send(data)
        return seen

    async def gone(self) -> None:
        """Wait until the client has cut the line."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(1 << 16):
                pass


class Server:
    """Runs one script per connection, in order; the last one stays."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.scripts[min(self.connections, len(self.scripts) - 1)]
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await script(Peer(reader, writer))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def served(*scripts: Script) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    server = Server(*scripts)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/x"
    transport = NeuronTransport()
    async with listener, httpx.AsyncClient(transport=transport) as client:
        yield server, client
    assert not transport._open
    await asyncio.sleep(0)


async def forever(peer: Peer) -> None:
    while True:
        await peer.answer()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a scenario on the loop of the standard library, and on the one that serves."""

    async def limited(scenario: Awaitable[None]) -> None:
        async with asyncio.timeout(20):
            await scenario

    def run(scenario: Awaitable[None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(limited(scenario))

    return run


def test_a_connection_is_kept_and_used_again(run: Run) -> None:
    """Ten requests in a row need one."""

    async def scenario() -> None:
        async with served(forever) as (server, client):
            for _ in range(10):
                assert (await client.get(server.url)).text == "ok"

            assert server.connections == 1

    run(scenario())


def test_requests_at_once_have_a_connection_each(run: Run) -> None:
    """And no answer goes to another's request."""

    async def echo(peer: Peer) -> None:
        while True:
            body = (await peer.request()).rpartition(b"\r\n\r\n")[2]
            await asyncio.sleep(0)
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async def scenario() -> None:
        async with served(echo) as (server, client):
            sent = [f"body {number}" for number in range(50)]
            answers = await asyncio.gather(*(client.post(server.url, content=body) for body in sent))

            assert [answer.text for answer in answers] == sent
            assert server.connections == 50

    run(scenario())


def test_the_request_is_sent_as_it_is(run: Run) -> None:
    """Method, target, headers in order, a body of known or unknown length."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.answer())

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def scenario() -> None:
        async with served(script) as (server, client):
            await client.post(f"{server.url}/y%20z?q=1", content=b"{}", headers={"x-request-id": "r"})
            await client.post(server.url, content=pieces())
            head, _, body = seen[0].partition(b"\r\n\r\n")

            assert head.startswith(b"POST /x/y%20z?q=1 HTTP/1.1\r\n")
            assert b"\r\nx-request-id: r" in head.lower()
            assert body == b"{}"
            assert seen[1].lower().count(b"content-length: 2") == 1
            assert seen[1].endswith(b"ab")

    run(scenario())


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello",
        CHUNKED.replace(b"\r\n\r\n", b"\r\nx-a: b\r\n\r\n") + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"HTTP/1.1 103 Early\r\nx-a: no\r\n\r\nHTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 5\r\n\r\nhello",
    ],
)
def test_an_answer_may_arrive_cut_anywhere(run: Run, raw: bytes) -> None:
    """Whole, and byte by byte."""

    async def slowly(peer: Peer) -> None:
        await peer.request()
        for at in range(len(raw)):
            await peer.send(raw[at : at + 1])
            await asyncio.sleep(0)
        await forever(peer)

    async def at_once(peer: Peer) -> None:
        await peer.answer(raw)
        await forever(peer)

    async def scenario() -> None:
        for script in (slowly, at_once):
            async with served(script) as (server, client):
                response = await client.get(server.url)

                assert (response.status_code, response.text, response.headers["x-a"]) == (200, "hello", "b")
                assert (await client.get(server.url)).text == "ok"
                assert server.connections == 1

    run(scenario())


def test_a_body_without_a_length_ends_with_the_connection(run: Run) -> None:
    """As HTTP/1.0 servers do it; the next request has a new one."""

    async def script(peer: Peer) -> None:
        await peer.answer(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async def scenario() -> None:
        async with served(script) as (server, client):
            assert (await client.get(server.url)).text == "all of it"
            assert (await client.get(server.url)).text == "all of it"
            assert server.connections == 2

    run(scenario())


@pytest.mark.parametrize(
    ("method", "raw"),
    [
        ("GET", b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"),
    ],
)
def test_a_used_up_connection_is_not_kept(run: Run, method: str, raw: bytes) -> None:
    """Because the server says so, or because nobody could tell the next answer from this one's body."""

    async def script(peer: Peer) -> None:
        await peer.answer(raw)
        await peer.gone()

    async def scenario() -> None:
        async with served(script) as (server, client):
            for _ in range(2):
                assert (await client.request(method, server.url)).status_code == 200

            assert server.connections == 2

    run(scenario())


@pytest.mark.parametrize("raw", [b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"])
def test_an_answer_that_has_no_body_ends_at_its_head(run: Run, raw: bytes) -> None:
    """And its connection is kept."""

    async def script(peer: Peer) -> None:
        await peer.answer(raw)
        await forever(peer)

    async def scenario() -> None:
        async with served(script) as (server, client):
            assert (await client.get(server.url)).content == b""
            assert (await client.get(server.url)).text == "ok"
            assert server.connections == 1

    run(scenario())


def test_a_stream_comes_as_it_is_sent(run: Run) -> None:
    """Nothing waits for the end."""
    turn = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for _ in range(3):
            await peer.send(b"4\r\ntick\r\n")
            await turn.wait()
            turn.clear()
        await peer.send(b"0\r\n\r\n")

    async def scenario() -> None:
        ticks = 0
        async with served(script) as (server, client), client.stream("GET", server.url) as response:
            async for chunk in response.aiter_raw():
                assert chunk == b"tick"
                ticks += 1
                turn.set()

        assert ticks == 3

    run(scenario())


def test_what_came_while_nobody_read_comes_in_one_piece(run: Run) -> None:
    """A slow client costs fewer, larger writes."""

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"1\r\na\r\n" * 1000 + b"0\r\n\r\n")

    async def scenario() -> None:
        async with served(script) as (server, client), client.stream("GET", server.url) as response:
            assert [chunk async for chunk in response.aiter_raw()] == [b"a" * 1000]

    run(scenario())


def test_a_slow_reader_holds_the_sender_back(run: Run) -> None:
    """Memory is bounded, and nothing is lost."""
    total = HIGH_WATER * 8
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        while sent < total:
            await peer.send(b"x" * (1 << 16))
            sent += 1 << 16

    async def scenario() -> None:
        async with served(script) as (server, client), client.stream("GET", server.url) as response:
            for _ in range(400):
                await asyncio.sleep(0)
            stream = response.stream
            assert isinstance(stream, httpx.AsyncByteStream)
            received = sum([len(chunk) async for chunk in response.aiter_raw()])

        assert received == total == sent

    run(scenario())


def test_leaving_early_cuts_the_line(run: Run) -> None:
    """That is how a neuron learns it."""
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"1\r\na\r\n")
        await peer.gone()
        left.set()

    async def scenario() -> None:
        async with served(script) as (server, client):
            async with client.stream("GET", server.url):
                pass
            await left.wait()

    run(scenario())


def test_a_request_cancelled_at_any_point_of_its_connect_leaves_nothing(run: Run) -> None:
    """uvloop cuts a connect that is cancelled after `connection_made` without telling the protocol."""

    async def main() -> None:
        async with served(forever) as (server, client):
            for turns in range(12):
                request = asyncio.ensure_future(client.get(server.url))
                for _ in range(turns):
                    await asyncio.sleep(0)
                request.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await request
            async with asyncio.timeout(10):
                await client.aclose()

    run(main())


def test_a_cancelled_request_cuts_the_line(run: Run) -> None:
    """Before the head of the answer, too."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()
        left.set()

    async def scenario() -> None:
        async with served(script) as (server, client):
            task = asyncio.create_task(client.get(server.url))
            await asked.wait()
            task.cancel()
            await asyncio.wait((task,))
            await left.wait()

            assert task.cancelled()

    run(scenario())


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-le", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", httpx.RemoteProtocolError),
        (CHUNKED + b"5\r\nhello\r\n", httpx.RemoteProtocolError),
        (CHUNKED + b"zz\r\nhello\r\n", httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", httpx.RemoteProtocolError),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(run: Run, raw: bytes, error: type[Exception]) -> None:
    """Never a short body that looks like a good one."""

    async def script(peer: Peer) -> None:
        await peer.answer(raw)

    async def scenario() -> None:
        async with served(script) as (server, client):
            with pytest.raises(error):
                await client.get(server.url)

    run(scenario())


def test_what_came_before_the_line_broke_is_read_first(run: Run) -> None:
    """An error does not swallow good bytes."""

    async def script(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"5\r\nhello\r\n")

    async def scenario() -> None:
        received = b""
        async with served(script) as (server, client), client.stream("GET", server.url) as response:
            chunks = response.aiter_raw()
            received += await anext(chunks)
            with pytest.raises(httpx.RemoteProtocolError):
                await anext(chunks)

        assert received == b"hello"

    run(scenario())


def test_a_reset_is_a_read_error(run: Run) -> None:
    """A killed process does not say goodbye."""

    async def script(peer: Peer) -> None:
        await peer.request()
        line = peer.writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.writer.transport.abort()

    async def scenario() -> None:
        async with served(script) as (server, client):
            with pytest.raises(httpx.ReadError):
                await client.get(server.url)

    run(scenario())


@pytest.mark.parametrize("extra", [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nbad", b"junk"])
def test_bytes_that_nobody_asked_for_are_no_answer(run: Run, extra: bytes) -> None:
    """A second answer must never reach the next request, wherever it arrives."""

    async def together(peer: Peer) -> None:
        await peer.answer(OK + extra)
        await peer.gone()

    async def later(peer: Peer) -> None:
        await peer.answer(OK)
        await peer.send(extra)
        await peer.gone()

    async def scenario() -> None:
        for script in (together, later):
            async with served(script, forever) as (server, client):
                with contextlib.suppress(httpx.RemoteProtocolError):
                    assert (await client.get(server.url)).text == "ok"
                while server.connections == 1:
                    assert (await client.get(server.url)).text == "ok"

                assert (await client.get(server.url)).text == "ok"

    run(scenario())


def test_a_connection_that_was_closed_meanwhile_is_not_used(run: Run) -> None:
    """The next request has a new one."""

    async def once(peer: Peer) -> None:
        await peer.answer()

    async def scenario() -> None:
        async with served(once) as (server, client):
            await client.get(server.url)
            for _ in range(20):
                await asyncio.sleep(0.001)

            assert (await client.get(server.url)).text == "ok"
            assert server.connections == 2

    run(scenario())


def test_nobody_listening_is_a_connect_error(run: Run) -> None:
    """With the address in its words."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

        async def scenario() -> None:
            async with httpx.AsyncClient(transport=NeuronTransport()) as client:
                with pytest.raises(httpx.ConnectError, match=str(port)):
                    await client.get(f"http://127.0.0.1:{port}/")

        run(scenario())


def test_silence_is_a_read_timeout(run: Run) -> None:
    """Before the head and within the body; the line is cut."""

    async def mute(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    async def stalling(peer: Peer) -> None:
        await peer.answer(CHUNKED + b"1\r\na\r\n")
        await peer.gone()

    async def scenario() -> None:
        async with served(mute, stalling) as (server, client):
            for _ in range(2):
                with pytest.raises(httpx.ReadTimeout):
                    await client.get(server.url, timeout=httpx.Timeout(5, read=0.02))

            assert server.connections == 2

    run(scenario())


def test_closing_cuts_what_is_open(run: Run) -> None:
    """Kept and busy connections alike, and waits until they are gone."""
    asked = asyncio.Event()

    async def mute(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()

    async def scenario() -> None:
        async with served(forever, mute) as (server, client):
            async with client.stream("GET", server.url) as response:
                busy = asyncio.create_task(client.get(server.url))
                await asked.wait()
                await response.aread()
            await client.aclose()

            with pytest.raises(httpx.TransportError):
                await busy

    run(scenario())
