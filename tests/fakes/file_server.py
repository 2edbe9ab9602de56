"""A local HTTP server of files in memory that breaks connections midway, or refuses; knows ranges, nothing of the product."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import frozen


@frozen
class Refusal:
    """A status, and the hub's own word for it."""

    status: int
    code: str = ""


class FileServer(ThreadingHTTPServer):
    """`files` by path. The next answers with bodies send at most the `cuts` in turn; None sends the whole. `refusals` are what
    the next requests get in place of an answer, by a part of their paths; None lets one through."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], cuts: list[int | None] | None = None, *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.cuts = list(cuts or [])
        self.ranges = ranges
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.refusals: dict[str, list[Refusal | None]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        wanted = self.headers.get("Range")
        path = self.path.split("?")[0]
        self.server.asked.append((self.command, path, wanted))
        if (refusal := self._refusal(path)) is not None:
            self._head(refusal.status, {"X-Error-Code": refusal.code, "Content-Length": "0"})
            return
        content = self.server.files.get(path)
        if content is None:
            self._head(404, {"Content-Length": "0"})
            return
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and self.server.ranges else 0
        if start and start >= len(content):
            self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        extra = self.server.headers.get(path, {}) | {"Content-Length": str(len(content) - start)}
        if start:
            extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(206 if start else 200, extra)
        if body:
            cut = self.server.cuts.pop(0) if self.server.cuts else None
            self.wfile.write(content[start:] if cut is None else content[start : start + cut])
            self.close_connection = True

    def _refusal(self, path: str) -> Refusal | None:
        waiting = next((each for part, each in self.server.refusals.items() if part in path and each), [None])
        return waiting.pop(0)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class names it so
        """Say nothing."""


@contextmanager
def serving(files: dict[str, bytes], cuts: list[int | None] | None = None, **kind: Any) -> Iterator[FileServer]:
    """The server while it runs; its thread is gone afterwards."""
    with FileServer(files, cuts, **kind) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
