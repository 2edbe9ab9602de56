"""Stands between a gateway and a neuron and spoils answers on demand. Knows of HTTP where a request ends."""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from enum import Enum
from urllib.parse import urlsplit

from attrs import define, field

GENERATION = (b"/v1/chat/completions", b"/v1/completions")
OVERLOADED = b'{"error": {"message": "The queue is full.", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}'


class Fault(Enum):
    """What happens to one answer."""

    NONE = "none"
    SLOW = "slow"  # in small pieces with pauses
    PAUSE = "pause"  # half of it, and the rest a while later
    BUSY = "busy"  # 503 instead
    RESET = "reset"  # the line is cut before the first byte
    CUT = "cut"  # half a body, then the line is cut
    HALF = "half"  # half a body, then an end as if it were whole
    STALL = "stall"  # half a body, then nothing for as long as the gateway waits


@define(eq=False)
class FaultProxy:
    """Answers to requests for text get the next of `faults`; all else passes.

    Attributes:
        done: how often each fault was used.
        stalled: answers that hang now.
        open: connections from the gateway.
    """

    upstream: str
    faults: Iterator[Fault]
    url: str = ""
    done: Counter[Fault] = field(factory=Counter)
    stalled: int = 0
    open: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection from its first request to its end."""
        self.open += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; True where the connection may have another."""
        head, body = await _request(reader)
        fault = next(self.faults) if head.split(b" ")[1] in GENERATION else Fault.NONE
        self.done[fault] += 1
        if fault is Fault.RESET:
            return _reset(writer)
        if fault is Fault.BUSY:
            length = b"%d" % len(OVERLOADED)
            writer.write(b"HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: " + length + b"\r\n\r\n" + OVERLOADED)
            return True
        start, answer = await self._answered(head, body)
        writer.write(start)
        match fault:
            case Fault.NONE:
                writer.write(answer)
            case Fault.SLOW:
                for at in range(0, len(answer), 97):
                    await _push(writer, answer[at : at + 97])
                    await asyncio.sleep(0.001)
            case Fault.PAUSE:
                await _push(writer, answer[: len(answer) // 2])
                await asyncio.sleep(0.1)
                writer.write(answer[len(answer) // 2 :])
            case _:
                await _push(writer, answer[: len(answer) // 2])
                return await self._break(fault, reader, writer)
        await writer.drain()
        return True

    async def _break(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if fault is Fault.CUT:
            await asyncio.sleep(0.02)  # else the half may be lost as well
            return _reset(writer)
        if fault is Fault.STALL:
            self.stalled += 1
            try:
                assert not await reader.read(1), "no request follows one that has no answer"
            finally:
                self.stalled -= 1
        return False

    async def _answered(self, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """What the neuron says, its end found by its closing the line, of which the gateway hears nothing."""
        at = urlsplit(self.upstream)
        reader, writer = await asyncio.open_connection(at.hostname, at.port)
        try:
            lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(b"connection:")]
            writer.write(b"\r\n".join([*lines, b"connection: close", b"", b""]) + body)
            start, end, answer = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        kept = [line for line in start.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        return b"\r\n".join(kept) + end, answer


@contextlib.asynccontextmanager
async def fault_proxy(upstream: str, faults: Iterator[Fault]) -> AsyncIterator[FaultProxy]:
    """In front of the neuron at that URL, on a free port."""
    proxy = FaultProxy(upstream, faults)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield proxy


async def _request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
    return head, await reader.readexactly(int(length or 0))


async def _push(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Cut the line with an RST, as a machine does that has lost its memory of it."""
    line: socket.socket = writer.get_extra_info("socket")
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
