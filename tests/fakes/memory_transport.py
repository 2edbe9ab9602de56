"""An httpx transport into an ASGI app in the same loop that really streams, notices who leaves, and can lose the line."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx

AFTERWARDS = 200  # turns of the loop in which an app that only tidies up has ended
Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]


class MemoryTransport(httpx.AsyncBaseTransport):
    """`apps` maps host names to apps; a host that is missing refuses connections. An app that raises breaks the line."""

    def __init__(self, apps: dict[str, App]) -> None:
        self.apps = apps
        self.refused: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        app = self.apps.get(request.url.host)
        if app is None:
            self.refused.append(request.url.host)
            raise httpx.ConnectError("connection refused", request=request)
        body = b"".join([piece async for piece in _pieces(request)])
        line = _Line(app, request, body)
        return await line.response()


async def _pieces(request: httpx.Request) -> AsyncIterator[bytes]:
    assert isinstance(request.stream, httpx.AsyncByteStream)
    async for piece in request.stream:
        yield piece


class _Line(httpx.AsyncByteStream):
    """One request and its answer. One message is under way at a time, as with a full socket buffer of one message."""

    def __init__(self, app: App, request: httpx.Request, body: bytes) -> None:
        self._request = request
        self._asked: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._closed = asyncio.Event()
        self._out: asyncio.Queue[Message | None] = asyncio.Queue(1)
        self._task = asyncio.ensure_future(self._run(app))
        self._whole = False
        self._failed: BaseException | None = None

    async def response(self) -> httpx.Response:
        try:
            start = await self._out.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        if start is None:
            raise httpx.ReadError("the line broke before the answer", request=self._request)
        return httpx.Response(start["status"], headers=start.get("headers", []), stream=self, request=self._request)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._out.get()
            if message is None:
                raise httpx.ReadError("the line broke", request=self._request)
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                self._whole = True
                return

    async def aclose(self) -> None:
        """An app may go on with its work once all of its answer is out, as it may behind a server."""
        self._closed.set()
        turns = 0
        while not self._task.done() and not (self._whole and turns > AFTERWARDS):
            if not self._out.empty():
                self._out.get_nowait()
            await asyncio.sleep(0)
            turns += 1

    async def _run(self, app: App) -> None:
        try:
            await app(self._scope(), self._receive, self._send)
        except Exception as error:  # noqa: BLE001 -- whatever it was, the other end sees a broken line
            self._failed = error
            if not self._closed.is_set():
                await self._out.put(None)

    async def _receive(self) -> Message:
        if self._asked:
            return self._asked.pop()
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._closed.is_set():
            await asyncio.sleep(0)  # a server drops it, and lets others run
        else:
            await self._out.put(message)

    def _scope(self) -> dict[str, Any]:
        url = self._request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self._request.method,
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "server": (url.host, url.port or 80),
            "client": ("127.0.0.1", 1),
            "root_path": "",
            "state": {},
        }
