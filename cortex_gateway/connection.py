"""One client's connection: how long it may stand still and how large a head may be. Knows uvicorn's protocol, no route.

uvicorn waits for ever for the rest of a head and for a client to take its answer, and keeps headers of any size. Here a
head has a size and a time, and the kernel cuts a connection whose other end takes nothing: the request then ends as when
the client hangs up, which cancels everything behind it. A slow client is left alone as long as it takes something.
"""

import asyncio
import logging
import re
import socket
from typing import Any, cast

import msgspec
from attrs import frozen
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

log = logging.getLogger(__name__)
KEEP_SECS = 75
"""An idle connection lives so long: longer than clients and proxies keep theirs, so that they close first."""
MOST_HEAD_BYTES = 64 << 10
PROBE_SECS = 20
"""The kernel asks so often whether the other host is still there."""
# The parser takes what follows such a header for another protocol: a body would be lost. Java's HttpClient sends it with
# its first request. A server may leave the offer unanswered (RFC 9110 section 7.8).
_UPGRADE = re.compile(rb"(\r\n)(upgrade:)", re.IGNORECASE)


@frozen(kw_only=True)
class IdleTimeouts:
    """Seconds without any progress: of the client's sending, and of its reading."""

    read_secs: float
    write_secs: float


class RefusedHeadError(Exception):
    """Ends the parser's work on a request."""


class ClientConnection(HttpToolsProtocol):
    """uvicorn's, with limits: `uvicorn.Config(http=partial(ClientConnection, timeouts))`."""

    def __init__(self, timeouts: IdleTimeouts, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._timeouts = timeouts
        self._refusal = (400, "bad_http", "The request is not HTTP/1.1.")
        self._in_message = self._in_head = False
        self._head_bytes = 0
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        limit_silence(transport.get_extra_info("socket"), self._timeouts.write_secs)
        self.timeout_keep_alive_task = self.loop.call_later(KEEP_SECS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._unset_keepalive_if_required()
        if isinstance(exc, TimeoutError) and self.cycle is not None and not self.cycle.response_complete:
            log.info("a client took nothing of its answer for %.0f s: cut", self._timeouts.write_secs)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data if self._in_message else _without_upgrade(data))
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            self._check_head(self._head_bytes)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._disarm()
        self._check_size(len(self.url) + sum(len(name) + len(value) for name, value in self.headers))
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_message = False
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- uvicorn's words, which say less
        """The end of a connection whose request cannot be read. The path is not known, so it is OpenAI's envelope."""
        status, code, message = self._refusal
        error = {"message": message, "type": "invalid_request_error", "code": code, "param": None}
        body = msgspec.json.encode({"error": error})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def _check_size(self, size: int) -> None:
        if size > MOST_HEAD_BYTES:
            message = f"The request line and headers are over {MOST_HEAD_BYTES} bytes."
            self._refusal = (431, "head_too_large", message)
            raise RefusedHeadError(message)

    def _check_head(self, size: int) -> None:
        """The head goes on after what has come."""
        try:
            self._check_size(size)
        except RefusedHeadError as error:
            self.send_400_response(str(error))
            return
        if self._alarm is None:
            self._alarm = self.loop.call_later(self._timeouts.read_secs, self._late)

    def _late(self) -> None:
        """Half a head, and nothing more; while another request is being answered that one goes first."""
        self._alarm = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._check_head(self._head_bytes)
            return
        message = f"The request's head did not end within {self._timeouts.read_secs:g} s."
        self._refusal = (408, "request_timeout", message)
        self.send_400_response(message)

    def _disarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def limit_silence(line: socket.socket, seconds: float) -> None:
    """Have the kernel cut a connection whose other end has taken nothing for so long, or is gone. Source: tcp(7)."""
    if line.family not in (socket.AF_INET, socket.AF_INET6):
        return
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, option):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), PROBE_SECS)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))


def _without_upgrade(data: bytes) -> bytes:
    """`data`, the beginning of a request, with an offer of another protocol under a name that means nothing."""
    if b"pgrade:" not in data and b"PGRADE:" not in data:
        return data
    head, blank, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(rb"\1x-\2", head) + blank + rest
