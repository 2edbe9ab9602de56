"""One caller's connection: how large the head of a request may be, and how what is no HTTP is answered. Knows no route.

uvicorn keeps heads of any size, of callers who have shown no secret yet. And its parser takes what follows an offer of
another protocol for that protocol, so that the body of the request would be lost.
"""

import re
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from neuron_jax.daemon.problems import Problem

MOST_HEAD_BYTES = 64 << 10
TOO_LARGE = Problem(431, "head_too_large", f"The request line and headers are over {MOST_HEAD_BYTES} bytes.")
NO_HTTP = Problem(400, "bad_http", "The request is not HTTP/1.1.")
# Java's HttpClient and `curl --http2` offer HTTP/2 with their first request; a server may leave that unanswered
# (https://www.rfc-editor.org/rfc/rfc9110#section-7.8).
_UPGRADE = re.compile(rb"(\r\n)(upgrade:)", re.IGNORECASE)


class CallerConnection(HttpToolsProtocol):
    """uvicorn's, with a limit: `uvicorn.Config(http=CallerConnection)`."""

    def __init__(self, *args: Any, **of_uvicorn: Any) -> None:
        super().__init__(*args, **of_uvicorn)
        self._in_message = self._in_head = False
        self._head_bytes = 0
        self._problem = NO_HTTP

    def data_received(self, data: bytes) -> None:
        super().data_received(data if self._in_message else _without_upgrade(data))
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Raising ends the parser's work on this request, and asks for `send_400_response`."""
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            self._problem = TOO_LARGE
            raise ValueError(TOO_LARGE.message)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's words, in no envelope
        """The end of a connection whose request cannot be read."""
        self._refuse(self._problem)

    def _refuse(self, problem: Problem) -> None:
        body = msgspec.json.encode(problem.envelope())
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[problem.status] + head + body)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """`data`, the beginning of a request, with an offer of another protocol under a name that means nothing."""
    if b"pgrade:" not in data and b"PGRADE:" not in data:
        return data
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(rb"\1x-\2", head) + blank + rest
