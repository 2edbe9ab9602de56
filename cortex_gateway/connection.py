"""One client's connection: how long it may stand still. Knows uvicorn's protocol, no route.

uvicorn waits for ever for the rest of a head and for a client to take its answer. Here a head has a time, and the kernel
cuts a connection whose other end takes nothing: the request then ends as when the client hangs up, which cancels everything
behind it. A slow client is left alone as long as it takes something.
"""

import asyncio
import logging
import socket
from typing import Any

import msgspec
from attrs import frozen

from neuron_jax.common.connection import BoundedConnection, Refusal

log = logging.getLogger(__name__)
KEEP_SECS = 75
"""An idle connection lives so long: longer than clients and proxies keep theirs, so that they close first."""
PROBE_SECS = 20
"""The kernel asks so often whether the other host is still there."""


@frozen(kw_only=True)
class IdleTimeouts:
    """Seconds without any progress: of the client's sending, and of its reading."""

    read_secs: float
    write_secs: float


class ClientConnection(BoundedConnection):
    """uvicorn's, with limits: `uvicorn.Config(http=partial(ClientConnection, timeouts))`."""

    def __init__(self, timeouts: IdleTimeouts, **of_uvicorn: Any) -> None:
        super().__init__(**of_uvicorn)
        self._timeouts = timeouts
        self._alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        limit_silence(transport.get_extra_info("socket"), self._timeouts.write_secs)
        self.timeout_keep_alive_task = self.loop.call_later(KEEP_SECS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._unset_keepalive_if_required()
        if isinstance(exc, TimeoutError) and self.cycle is not None and not self.cycle.response_complete:
            log.info("a client took nothing of its answer for %.0f s: cut", self._timeouts.write_secs)
        super().connection_lost(exc)

    def refused(self, refusal: Refusal) -> bytes:
        """OpenAI's envelope."""
        error = {"message": refusal.message, "type": "invalid_request_error", "code": refusal.code, "param": None}
        return msgspec.json.encode({"error": error})

    def head_goes_on(self) -> None:
        if self._alarm is None:
            self._alarm = self.loop.call_later(self._timeouts.read_secs, self._late)

    def on_headers_complete(self) -> None:
        self._disarm()
        super().on_headers_complete()

    def _late(self) -> None:
        """Half a head, and nothing more; while another request is being answered that one goes first."""
        self._alarm = None
        if self.cycle is not None and not self.cycle.response_complete:
            self.head_goes_on()
            return
        message = f"The request's head did not end within {self._timeouts.read_secs:g} s."
        self.refuse(Refusal(408, "request_timeout", message))

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
