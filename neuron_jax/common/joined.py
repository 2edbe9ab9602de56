"""Writes the head of an answer together with its first bytes; knows asyncio's transports and how a head begins, no server.

uvicorn writes the head and the body of an answer apart. That is two system calls, and the other end is woken for a head of
no use. A head that is held goes out with the next write, at the latest in the next turn of the loop.
"""

import asyncio
from typing import Any

STATUS = b"HTTP/1.1 "


class JoinedTransport:
    """A transport over `transport`. What it does not do itself is done by that one."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send `data` after what is held, or hold it."""
        if self._head:
            head, self._head = self._head, b""
            # From Python 3.12 on asyncio never gets rid of an empty piece: it would try again for ever, and not close.
            self._transport.writelines((head, data) if data else (head,))
        elif data.startswith(STATUS):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Once everything is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)
