"""One connection to a server of ours: how large a head may be, and how what is no HTTP is answered. Knows uvicorn, no route.

uvicorn keeps heads of any size, of callers who have shown no key or secret yet. And its parser takes what follows an offer of
another protocol for that protocol, so that the body of the request would be lost.
"""

import asyncio
import re
from abc import abstractmethod
from typing import Any, cast

from attrs import frozen
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from neuron_jax.common.joined import JoinedTransport

MOST_HEAD_BYTES = 64 << 10
# Java's HttpClient and `curl --http2` offer HTTP/2 with their first request; a server may leave that unanswered
# (https://www.rfc-editor.org/rfc/rfc9110#section-7.8).
_UPGRADE = re.compile(rb"(\r\n)(upgrade:)", re.IGNORECASE)


@frozen
class Refusal:
    """What a caller is told before the connection is closed."""

    status: int
    code: str
    message: str


TOO_LARGE = Refusal(431, "head_too_large", f"The request line and headers are over {MOST_HEAD_BYTES} bytes.")
NO_HTTP = Refusal(400, "bad_http", "The request is not HTTP/1.1.")


class RefusedHeadError(Exception):
    """Ends the parser's work on a request."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's, with a limit; a program says what its errors look like."""

    def __init__(self, *args: Any, **of_uvicorn: Any) -> None:
        super().__init__(*args, **of_uvicorn)
        self._refusal = NO_HTTP
        self._in_message = self._in_head = False
        self._head_bytes = 0

    @abstractmethod
    def refused(self, refusal: Refusal) -> bytes:
        """The JSON of an answer. The path is not known."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        joined = JoinedTransport(cast("asyncio.Transport", transport), self.loop)
        super().connection_made(cast("asyncio.Transport", joined))

    def data_received(self, data: bytes) -> None:
        super().data_received(data if self._in_message else _without_upgrade(data))
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.refuse(TOO_LARGE)
            else:
                self.head_goes_on()

    def head_goes_on(self) -> None:
        """A part of a head has come, and there is more to come."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Raising ends the parser's work on this request, and asks for `send_400_response`."""
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD_BYTES:
            self._refusal = TOO_LARGE
            raise RefusedHeadError(TOO_LARGE.message)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's words, in no envelope
        """The end of a connection whose request cannot be read."""
        self.refuse(self._refusal)

    def refuse(self, refusal: Refusal) -> None:
        """Answer, and close."""
        body = self.refused(refusal)
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[refusal.status] + head + body)
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """`data`, the beginning of a request, with an offer of another protocol under a name that means nothing."""
    if b"pgrade:" not in data and b"PGRADE:" not in data:
        return data
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(rb"\1x-\2", head) + blank + rest
