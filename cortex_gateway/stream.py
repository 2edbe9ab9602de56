"""One client that waits for an answer over ASGI: its body, its leaving, signs of life for it; knows no dialect."""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from litestar.types import HTTPScope, Receive, Send

from cortex_gateway.dialects.dialect import EVENT_STREAM
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.encodings import ENCODINGS, plain
from cortex_gateway.errors import BodyTooLarge, RequestTimeout, UnsupportedMedia

Header = tuple[bytes, bytes]
STREAM_HEADERS: tuple[Header, ...] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
JSON_HEADERS: tuple[Header, ...] = ((b"content-type", b"application/json"),)
KEEP_ALIVE_SECONDS = 1.0
# Nothing that a form or a simple request of a web page can send (https://fetch.spec.whatwg.org/#cors-safelisted-request-header).
JSON_TYPES = re.compile(r"application/(?:json|[\w.-]+\+json)|text/json")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class ClientGoneError(Exception):
    """The client closed the connection before it had its answer."""


class Client:
    """The other end of one request. Writes whole events only, so that what keeps it alive may come between them.

    Attributes:
        request_id: the client's own x-request-id, or a new one.
        started: whether the status line is out; from then on a failure can only be an event.
        ended: whether the last byte is out.
        status: the status that went out, 0 before.
        broken_off: the rest of the request is not read, so the connection ends with the answer.
        fail: the last bytes of a stream that has begun and fails; None until one is to begin.
        may_leave: what it asked for goes on without it.
        before_end: called before the last byte goes out: what a client sees as over is over here, too.
    """

    def __init__(
        self,
        scope: HTTPScope,
        receive: Receive,
        send: Send,
        *,
        stream_type: str = EVENT_STREAM,
        json_only: bool = True,
    ) -> None:
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        encodings = [value.decode("latin-1") for name, value in scope["headers"] if name == b"content-encoding"]
        if len(encodings) > 1:  # a header sent twice is one list (RFC 9110, 5.3), and which came last says nothing
            self.headers["content-encoding"] = ", ".join(encodings)
        self.request_id = request_id(self.headers)
        self.started = False
        self.ended = False
        self.status = 0
        self.broken_off = False
        self.may_leave = False
        self.fail: Callable[[Failure], bytes] | None = None
        self.before_end: Callable[[], None] | None = None
        self._stream_type = stream_type
        self._json_only = json_only
        self._gone = False
        self._receive = receive
        self._send = send
        self._wrote = asyncio.get_running_loop().time()

    async def body(self, limit_bytes: int, silence_secs: float) -> bytes:
        """The whole body, made plain. Raises BodyTooLarge, RequestTimeout, UnsupportedMedia, MalformedJson, ClientGoneError."""
        encoding = check_media(self.headers, json_only=self._json_only)
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            piece, more = await self._piece(silence_secs)
            size += len(piece)
            if size <= limit_bytes:
                pieces.append(piece)
            elif size > 2 * limit_bytes:  # a little is read and thrown away, so that the client gets to read the answer
                self.broken_off, more = more, False
        if size > limit_bytes:
            raise BodyTooLarge(limit_bytes)
        body = b"".join(pieces) if len(pieces) > 1 else pieces[0]
        return await asyncio.to_thread(plain, encoding, body, limit_bytes) if encoding else body

    async def _piece(self, silence_secs: float) -> tuple[bytes, bool]:
        """The next piece of the body, and whether more follows."""
        try:
            async with asyncio.timeout(silence_secs):
                message = await self._receive()
        except TimeoutError:
            self.broken_off = True
            raise RequestTimeout(silence_secs) from None
        if message["type"] != "http.request":
            raise ClientGoneError
        return message.get("body", b""), message.get("more_body", False)

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Send the status line. At most once."""
        assert not self.started
        self.started, self.status = True, status
        tagged = [*headers, (b"x-request-id", self.request_id.encode("latin-1"))]
        await self._send({"type": "http.response.start", "status": status, "headers": tagged})

    async def begin_stream(self) -> None:
        """Send the status line of a stream, unless a keep-alive has done so."""
        if not self.started:
            await self.start(200, [(b"content-type", self._stream_type.encode()), *STREAM_HEADERS])

    async def write(self, data: bytes) -> None:
        """Send a piece of the body now."""
        self._wrote = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece. At most once."""
        assert not self.ended
        self.ended = True
        if self.before_end:
            self.before_end()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, status: int, body: bytes, headers: Iterable[Header] = JSON_HEADERS) -> None:
        """Send everything at once."""
        last = [(b"connection", b"close")] if self.broken_off else []
        await self.start(status, [*headers, *last, (b"content-length", b"%d" % len(body))])
        await self.end(body)

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Cancel the block the moment the client leaves, and raise ClientGoneError in its place. After the body was read."""
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.create_task(self._watch(task))
        try:
            yield
        except asyncio.CancelledError:
            if self._gone and task.uncancel() == 0:
                raise ClientGoneError from None
            raise
        finally:
            await _cancelled(watcher)

    async def _watch(self, task: "asyncio.Task[Any]") -> None:
        """Servers say `http.disconnect` after a whole answer as well: then nobody has left."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.ended and not self.may_leave:
            self._gone = True
            task.cancel()

    @contextlib.asynccontextmanager
    async def kept_alive(self, keep_alive: Callable[[], bytes], every: float) -> AsyncIterator[None]:
        """Within the block the client is never left in silence: after `every` seconds of it `keep_alive` is sent.

        The first one starts the stream, so until then a failure still has its own status.
        """
        task = asyncio.create_task(self._keep_alive(keep_alive, every))
        try:
            yield
        finally:
            await _cancelled(task)

    async def _keep_alive(self, keep_alive: Callable[[], bytes], every: float) -> None:
        loop = asyncio.get_running_loop()
        while not self.ended:
            silent = loop.time() - self._wrote
            if silent < every:
                await asyncio.sleep(every - silent)
                continue
            await self.begin_stream()
            await self.write(keep_alive())


async def _cancelled(task: "asyncio.Task[None]") -> None:
    """Stop `task` and wait for its end; what it raised by itself is raised here."""
    task.cancel()
    await asyncio.wait((task,))  # unlike `await task`, tells our own cancellation from the task's
    if not task.cancelled():
        task.result()


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own id when it is printable and not long, else a new one."""
    sent = headers.get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"


def check_media(headers: Mapping[str, str], *, json_only: bool = True) -> str | None:
    """How a body is compressed. Raises UnsupportedMedia for what cannot be made plain, and with `json_only` for what does not
    call itself JSON."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity", *ENCODINGS):
        known = ", ".join(ENCODINGS)
        raise UnsupportedMedia(f"The content encoding {encoding!r} is not supported: use one of {known}, or none.")
    media = headers.get("content-type", "").partition(";")[0].strip().lower()
    if json_only and not JSON_TYPES.fullmatch(media):
        found = f"The content type {media!r} is not supported" if media else "The request names no content type"
        raise UnsupportedMedia(f"{found}: send the header content-type: application/json.")
    return encoding if encoding in ENCODINGS else None
