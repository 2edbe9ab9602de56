"""HTTP/1.1 to neurons for httpx, on asyncio and llhttp; knows sockets, keeping and cancelling, no route and no dialect.

Why not httpx's own: with it a relayed request costs the gateway twice the processor time (bench/gateway.py). One
connection carries one request at a time. A connection whose answer was not read to its end is cut, which is how a neuron
learns that nobody waits. Whatever arrived while the reader was busy comes out in one piece.
"""

import asyncio
import collections
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any, cast

import httptools
import httpx

from neuron_jax.common.tls import HUNG_UP, client_context, words

Origin = tuple[str, str, int]
KEPT_SECONDS = 4.0  # servers close idle connections after 5 s or later: better to be first
KEPT_PER_ORIGIN = 128
HIGH_WATER = 1 << 20  # bytes waiting for a slow reader before the socket is left alone
PROBE_SECONDS = 20  # a host that is gone is noticed after about three of these, also when it owes us nothing yet


class NeuronTransport(httpx.AsyncBaseTransport):
    """Connections by origin, the one used last taken first. Lives in one event loop.

    Raises httpx.ConnectError, ConnectTimeout, ReadTimeout, ReadError, RemoteProtocolError as httpx's own does.
    """

    def __init__(self, tls: Mapping[tuple[str, bytes], ssl.SSLContext] | None = None) -> None:
        """`tls`: contexts by scheme and netloc, where the default one does not do."""
        self._tls = tls or {}
        self._kept: dict[Origin, collections.deque[Connection]] = {}
        self._open: set[Connection] = set()
        self._default: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` and wait for the head of its answer."""
        timeout = request.extensions.get("timeout", {})
        body = await request.aread()
        message = _head(request, len(body)) + body
        connection = self._take(_origin(request)) or await self._connect(request, timeout.get("connect"))
        try:
            connection.send(message, head_only=request.method == "HEAD")
            status, headers = await connection.head(timeout.get("read"))
        except BaseException:
            connection.abort()
            raise
        stream = Body(self, connection, timeout.get("read"))
        return httpx.Response(status, headers=headers, stream=stream, extensions={"http_version": b"HTTP/1.1"})

    async def aclose(self) -> None:
        """Cut every connection, and wait until they are gone."""
        gone = [connection.lost for connection in self._open]
        for connection in self._open:
            connection.abort()
        if gone:
            await asyncio.wait(gone)

    def give_back(self, connection: "Connection") -> None:
        """Keep a connection whose answer was read to its end; cut any other."""
        kept = self._kept.setdefault(connection.origin, collections.deque())
        if connection.reusable and len(kept) < KEPT_PER_ORIGIN:
            kept.append(connection)
        else:
            connection.abort()

    def remember(self, connection: "Connection") -> None:
        """It is ours to cut, unless it is gone already.

        Only now: a connect that is cancelled midway is cut by the loop, of which uvloop does not tell the protocol.
        """
        if not connection.lost.done():
            self._open.add(connection)

    def forget(self, connection: "Connection") -> None:
        """It is gone."""
        self._open.discard(connection)
        with contextlib.suppress(ValueError, KeyError):
            self._kept[connection.origin].remove(connection)

    def _take(self, origin: Origin) -> "Connection | None":
        kept = self._kept.get(origin)
        oldest = asyncio.get_running_loop().time() - KEPT_SECONDS
        while kept:
            connection = kept.pop()
            if connection.reusable and connection.used > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self, request: httpx.Request, seconds: float | None) -> "Connection":
        scheme, host, port = origin = _origin(request)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    lambda: Connection(self, origin, loop),
                    host,
                    port,
                    ssl=self._context(request.url) if scheme == "https" else None,
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {host}:{port} within {seconds} s", request=request) from error
        except (OSError, ssl.SSLError) as error:
            why = words(error) or error
            raise httpx.ConnectError(f"no connection to {host}:{port}: {why}", request=request) from error
        self.remember(connection)
        return connection

    def _context(self, url: httpx.URL) -> ssl.SSLContext:
        found = self._tls.get((url.scheme, url.netloc)) or self._default
        if found is None:
            found = self._default = client_context()
        return found


class Connection(asyncio.Protocol):
    """One socket. `send`, then `head`, then `read` until it gives nothing; then it is reusable if both sides agree.

    Attributes:
        origin: scheme, host and port it goes to.
        used: loop time of the last answer's end.
        lost: done when the socket is closed.
    """

    def __init__(self, pool: NeuronTransport, origin: Origin, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.used = loop.time()
        self.lost: asyncio.Future[None] = loop.create_future()
        self._pool = pool
        self._loop = loop
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._error: httpx.TransportError | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._busy = False
        self._mute = origin[0] == "https"  # it has not said a word yet, and what it minds may be us
        self._clear(head_only=False)

    def _clear(self, *, head_only: bool) -> None:
        self._head_only = head_only
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._headed = self._complete = self._framed = self._paused = False
        self._body: list[bytes] = []
        self._held = 0

    # -- for the pool ---------------------------------------------------------------------------------------------

    @property
    def reusable(self) -> bool:
        """Nothing is under way on it and the other side has not hung up."""
        return not (self._busy or self.lost.done() or self._error or self._transport.is_closing())

    def send(self, message: bytes, *, head_only: bool) -> None:
        """Begin an exchange."""
        self._clear(head_only=head_only)
        self._busy = True
        self._transport.write(message)

    async def head(self, seconds: float | None) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers of the answer."""
        while not self._headed:
            await self._progress(seconds)
        return self._status, self._headers

    async def read(self, seconds: float | None) -> bytes:
        """Everything that has come of the body; b"" at its end."""
        while not self._body:
            if self._complete:
                self._end()
                return b""
            await self._progress(seconds)
        piece = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body, self._held = [], 0
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        return piece

    def abort(self) -> None:
        """Cut it now, whatever is under way."""
        self._transport.abort()

    def _end(self) -> None:
        if self._busy:
            self._busy = False
            self.used = self._loop.time()

    async def _progress(self, seconds: float | None) -> None:
        """Wait for bytes, for at most `seconds`. Raises what ended the connection."""
        if self._error:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._waiter
        except TimeoutError as error:
            raise httpx.ReadTimeout(f"no byte from {self.origin[1]}:{self.origin[2]} for {seconds} s") from error
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: httpx.TransportError) -> None:
        self._error = self._error or error
        self._wake()
        self._transport.abort()

    # -- asyncio's side ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its type
        _probe(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        self._mute = False
        if not self._busy:
            self._fail(httpx.RemoteProtocolError("the neuron sent bytes that nobody asked for"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"the neuron's answer is not HTTP/1.1: {error}"))
        self._wake()
        if self._held > HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._headed and not self._framed and exc is None:
            self._complete = True  # the end of the connection is the end of such a body
        elif exc is not None or self._mute:
            why = (exc and words(exc)) or (HUNG_UP if self._mute else exc)
            self._error = self._error or httpx.ReadError(f"the connection broke: {why}")
        else:
            self._error = self._error or httpx.RemoteProtocolError("the neuron hung up before its answer was whole")
        self.lost.set_result(None)
        self._pool.forget(self)
        self._wake()

    # -- llhttp's side ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._headed:
            raise ValueError("a second answer follows the first")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status < 200:  # an interim answer: the real one follows
            self._headers, self._framed = [], False
            return
        self._framed = self._framed or self._status in (204, 304)
        self._headed = True
        if self._head_only:  # llhttp waits for the body that the headers announce: no second answer on this line
            self._complete = True
            self._error = self._error or httpx.RemoteProtocolError("this connection is used up")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._held += len(body)

    def on_message_complete(self) -> None:
        self._complete = self._headed
        if self._complete and not self._parser.should_keep_alive():
            self._error = self._error or httpx.RemoteProtocolError("the neuron closes this connection")


class Body(httpx.AsyncByteStream):
    """The body of one answer. Closing it early cuts the connection."""

    def __init__(self, pool: NeuronTransport, connection: Connection, seconds: float | None) -> None:
        self._pool = pool
        self._connection: Connection | None = connection
        self._seconds = seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        while connection and (piece := await connection.read(self._seconds)):
            yield piece

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            self._pool.give_back(connection)


def _origin(request: httpx.Request) -> Origin:
    url = request.url
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _head(request: httpx.Request, length: int) -> bytes:
    """The request line and headers. A body of unknown length has been read by now, so its length is known."""
    lines = [b"%b %b HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    for name, value in request.headers.raw:
        chunked = name.lower() == b"transfer-encoding"
        lines.append(b"content-length: %d" % length if chunked else b"%b: %b" % (name, value))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _probe(line: Any) -> None:
    """Let the kernel ask now and then whether the other host is still there."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, option):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), PROBE_SECONDS)
    if hasattr(socket, "TCP_KEEPCNT"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2)
