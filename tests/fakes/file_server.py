"""A local HTTP server of files in memory that can break a connection midway; knows ranges, nothing of the product."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer(ThreadingHTTPServer):
    """`files` by path. The next answers with bodies send at most the `cuts` in turn; None sends the whole."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], cuts: list[int | None] | None = None, *, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.cuts = list(cuts or [])
        self.ranges = ranges
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[tuple[str, str, str | None]] = []

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
