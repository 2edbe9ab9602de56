"""A name server on a free port that answers every question with one message's records, by UDP and by TCP."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Sequence

from attrs import define, field

from cortex_gateway.fleet.dns import Service


def named(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def answer(question: bytes, services: Sequence[Service], *, cut: bool = False, code: int = 0) -> bytes:
    """With an A record beside each SRV, and the owner's name as a pointer to the question."""
    asked_end = question.index(b"\0", 12) + 5
    flags = 0x8180 | code | (0x0200 if cut else 0)
    body = b""
    for one in services if not cut else ():
        target = struct.pack("!3H", one.priority, one.weight, one.port) + named(one.target)
        body += b"\xc0\x0c" + struct.pack("!HHIH", 33, 1, 5, len(target)) + target
        body += named(one.target) + struct.pack("!HHIH", 1, 1, 5, 4) + b"\x7f\x00\x00\x01"
    head = question[:2] + struct.pack("!5H", flags, 1, 0 if cut else 2 * len(services), 0, 0)
    return head + question[12:asked_end] + body


@define(slots=False)
class NameServer:
    """What it answers, and how it was asked."""

    services: list[Service] = field(factory=list)
    cut: bool = False  # datagrams are too short
    code: int = 0
    asked: list[str] = field(factory=list)
    address: tuple[str, int] = ("127.0.0.1", 0)

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        pass

    def error_received(self, error: Exception) -> None:
        pass

    def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
        self.asked.append("udp")
        self._transport.sendto(answer(data, self.services, cut=self.cut, code=self.code), sender)

    async def by_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append("tcp")
        question = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        told = answer(question, self.services)
        writer.write(len(told).to_bytes(2) + told)
        await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def name_server(server: NameServer) -> AsyncIterator[NameServer]:
    """Listening, UDP and TCP on one port."""
    tcp = await asyncio.start_server(server.by_tcp, "127.0.0.1", 0)
    server.address = tcp.sockets[0].getsockname()[:2]
    loop = asyncio.get_running_loop()
    udp, _ = await loop.create_datagram_endpoint(lambda: server, local_addr=server.address)
    try:
        yield server
    finally:
        udp.close()
        tcp.close()
        await tcp.wait_closed()
