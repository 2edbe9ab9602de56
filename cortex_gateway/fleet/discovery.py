"""Asks the host's name servers for the neurons of a service, again and again; tells who they are, decides nothing."""

import asyncio
import contextlib
import logging
import pathlib
import secrets
from collections.abc import Awaitable, Callable

from attrs import field, frozen

from cortex_gateway.config import Discovery, Neuron
from cortex_gateway.fleet import dns

log = logging.getLogger(__name__)
RESOLV_CONF = pathlib.Path("/etc/resolv.conf")
PORT = 53
ASK_SECS = 2.0
Resolve = Callable[[str], Awaitable[tuple[dns.Service, ...]]]


class _Datagrams(asyncio.DatagramProtocol):
    """The first datagram that comes is the answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002 - the socket takes that one's alone
        if not self.answer.done():
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def services(name: str, servers: tuple[tuple[str, int], ...] | None = None) -> tuple[dns.Service, ...]:
    """The targets of an SRV name, from the first of `servers` that answers. Raises DnsError, OSError."""
    problem: Exception = dns.DnsError(f"{RESOLV_CONF} names no name server")
    for server in _servers(RESOLV_CONF) if servers is None else servers:
        try:
            async with asyncio.timeout(ASK_SECS):
                return await _ask(name, server)
        except TimeoutError:
            problem = dns.DnsError(f"the name server {server[0]} does not answer")
        except (dns.DnsError, OSError) as error:
            problem = error
    raise problem


def _servers(file: pathlib.Path) -> tuple[tuple[str, int], ...]:
    """As resolv.conf(5) names them. Raises OSError."""
    lines = [line.split() for line in file.read_text(errors="replace").splitlines()]
    return tuple((words[1], PORT) for words in lines if len(words) > 1 and words[0] == "nameserver")


async def _ask(name: str, server: tuple[str, int]) -> tuple[dns.Service, ...]:
    number = secrets.randbelow(1 << 16)
    asked = dns.question(name, number)
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(_Datagrams, remote_addr=server)
    try:
        transport.sendto(asked)
        return dns.answers(await protocol.answer, number)
    except dns.TruncatedError:
        return dns.answers(await _by_tcp(asked, server), number)
    finally:
        transport.close()


async def _by_tcp(asked: bytes, server: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*server)
    with contextlib.closing(writer):
        writer.write(len(asked).to_bytes(2) + asked)
        try:
            return await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        except asyncio.IncompleteReadError as error:
            raise dns.DnsError("the name server broke off") from error


def neurons(found: tuple[dns.Service, ...], service: Discovery) -> tuple[Neuron, ...]:
    """Each called by the first label of its host's name, as a StatefulSet's pods are, or where two have that by all of it."""
    first = [one.target.split(".")[0] for one in found]
    return tuple(
        Neuron(
            name=label if first.count(label) == 1 else one.target,
            endpoint=f"{service.scheme}://{one.target}:{one.port}",
            secret=service.secret,
        )
        for one, label in zip(found, first, strict=True)
    )


@frozen(kw_only=True)
class Finder:
    """One per `[[discovery]]`. `asked` is set once the first answer has come, or has not."""

    service: Discovery
    tell: Callable[[str, tuple[Neuron, ...]], None]  # with the service's name
    resolve: Resolve = services
    asked: asyncio.Event = field(factory=asyncio.Event)

    async def run(self) -> None:
        """Until cancelled. While nobody answers, what was known stays."""
        trouble = ""
        while True:
            try:
                self.tell(self.service.srv, neurons(await self.resolve(self.service.srv), self.service))
                said = ""
            except (dns.DnsError, OSError, ValueError) as error:
                said = str(error) or type(error).__name__
            if said and said != trouble:
                log.warning("looking up %s failed: %s", self.service.srv, said)
            trouble = said
            self.asked.set()
            await asyncio.sleep(self.service.every_secs)
