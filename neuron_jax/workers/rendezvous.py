"""Where the ranks of a group meet, and how the leader hands out its steps: blocking sockets; knows no JAX and no daemon.

    rank -> leader   Hello, first; then Made, what it would serve; then Able, the programs it has compiled or cannot
    leader -> rank   Meet, once all are here; then Run, one program of the common list and what it is told

jax.distributed ends a process that waits in vain, without a word that could be caught, so nobody calls it before all are
here. It carries the collectives; what every rank must know of a step before it can run the same program goes through here,
because a collective would need to know its size beforehand, and the ranks would wait for it as for a step.

Frames are those of `workers.frames`. Whoever does not know the group's secret is sent away; nothing is encrypted.
"""

import contextlib
import hmac
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import define, field
from msgspec import Struct

from neuron_jax.common.addresses import Address, parse_address
from neuron_jax.errors import LoadError
from neuron_jax.workers.frames import FrameError, FrameReader, GroupMember, encode

READ_BYTES = 1 << 18
RETRY_SECONDS = 0.1
"""Between two attempts to reach a leader who is not there yet."""
HELLO_SECONDS = 5.0
"""Who does not say for so long which rank he is, is none."""

KEEPALIVE = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 8_000}
"""Seconds, a count, and milliseconds: after these the system itself takes a host for gone that does not answer, as when the
cable is cut. Without them that takes hours on a link where nobody speaks, and a quarter of an hour where somebody does."""

Words = npt.NDArray[np.int32]
log = logging.getLogger("neuron.ranks")


class Hello(Struct, tag="hello", frozen=True):
    rank: int
    secret: str


class Made(Struct, tag="made", frozen=True):
    """`digest` of what the rank would serve; that of all ranks must be the same."""

    digest: str


class Able(Struct, tag="able", frozen=True):
    """Places, in the common list, of the programs that the rank has compiled since, and of those that it never will have."""

    programs: tuple[int, ...]
    dropped: tuple[int, ...] = ()


class Meet(Struct, tag="meet", frozen=True):
    """All ranks are here: join jax.distributed at this HOST:PORT."""

    address: str


class Run(Struct, tag="run", frozen=True):
    """Run the program at this place of the list with int32 `words` of this shape, and with `masks`, a line of them for each
    of so many `rows`, if there are any."""

    program: int
    shape: tuple[int, ...]
    words: bytes
    rows: int = 0
    masks: bytes = b""

    def array(self) -> Words:
        return np.frombuffer(self.words, np.int32).reshape(self.shape)

    def bits(self) -> Words | None:
        return np.frombuffer(self.masks, np.int32).reshape(self.rows, -1) if self.rows else None


ToLeader = Hello | Made | Able
FromLeader = Meet | Run


@define(eq=False)
class _Link:
    """One connection: whole records in and out."""

    sock: socket.socket
    reader: FrameReader[Any]
    _came: list[Any] = field(factory=list)

    def send(self, message: Struct) -> None:
        self.sock.sendall(encode(message))

    def next(self) -> Any:
        """The next record; None when the other side is gone. Raises TimeoutError as the socket is set."""
        while not self._came:
            chunk = self.sock.recv(READ_BYTES)
            if not chunk:
                return None
            self._came += self.reader.feed(chunk)
        return self._came.pop(0)

    def close(self) -> None:
        """Wakes up whoever waits for a record: there will be none."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def rest(self) -> Iterator[Any]:
        """Every record until the other side is gone."""
        self.sock.settimeout(None)
        try:
            while (message := self.next()) is not None:
                yield message
        except (OSError, FrameError) as error:
            log.info("a link between ranks broke: %s", error)


class Leader:
    """Rank 0's side. `listen`, then `gather` all others, then `watch` them; one thread runs steps."""

    def __init__(self, group: GroupMember, listener: socket.socket) -> None:
        self.group = group
        self.address = _name(listener)
        self._listener = listener
        self._links: dict[int, _Link] = {}
        self._able: dict[int, set[int]] = {}
        self._dropped: dict[int, set[int]] = {}

    @classmethod
    def listen(cls, group: GroupMember) -> "Leader":
        """Raises LoadError port_taken."""
        host, port = parse_address(group.coordinator)
        try:
            return cls(group, socket.create_server((host, port), family=_family(host), backlog=group.world))
        except OSError as error:
            raise LoadError("port_taken", f"rank 0 cannot listen on {group.coordinator}: {error.strerror}") from error

    def close(self) -> None:
        """Leaves the rendezvous, and with that ends it."""
        self._listener.close()
        for link in self._links.values():
            link.close()

    def gather(self) -> None:
        """Returns when all other ranks are here. Raises LoadError rendezvous_timeout naming those who are not."""
        until = time.monotonic() + self.group.deadline
        while len(self._links) < self.group.world - 1:
            self._listener.settimeout(max(until - time.monotonic(), 0.001))
            try:
                sock, whence = self._listener.accept()
            except TimeoutError:
                raise self._missing() from None
            self._welcome(sock, whence)
        self._listener.close()

    def meet(self) -> str:
        """Calls all ranks to jax.distributed, and says where: HOST:PORT on this host, the port free a moment ago."""
        host, _ = parse_address(self.address)
        with socket.create_server((host, 0), family=_family(host)) as probe:
            address = _name(probe)
        for link in self._links.values():
            link.send(Meet(address))
        return address

    def agree(self, digest: str) -> None:
        """Returns when every rank would serve what `digest` stands for. Raises LoadError rank_mismatch or rank_exited."""
        for rank, link in sorted(self._links.items()):
            link.sock.settimeout(None)
            made = link.next()
            if not isinstance(made, Made):
                raise LoadError("rank_exited", f"rank {rank} left before it had read the model")
            if made.digest != digest:
                raise LoadError("rank_mismatch", f"rank {rank} would serve something else: {made.digest}, not {digest}")

    def watch(self, lost: Callable[[int], None]) -> None:
        """From now on listens to the ranks; calls `lost`, in a thread of its own, with the first that is gone."""
        for rank, link in self._links.items():
            self._able[rank], self._dropped[rank] = set(), set()
            threading.Thread(target=self._listen_to, args=(rank, link, lost), name=f"rank {rank}", daemon=True).start()

    def run(self, program: int, words: Words, masks: Words | None = None) -> None:
        """Tell all ranks to run a program. Blocks while one of them does not take its words."""
        more = (0, b"") if masks is None else (masks.shape[0], masks.tobytes())
        frame = encode(Run(program, words.shape, words.tobytes(), *more))
        for link in self._links.values():
            link.sock.sendall(frame)

    def able(self) -> set[int]:
        """The programs that every other rank has compiled."""
        return set.intersection(*(set(able) for able in self._able.values()))

    def dropped(self) -> set[int]:
        """The programs that one of the other ranks cannot compile."""
        return set().union(*self._dropped.values())

    def _welcome(self, sock: socket.socket, whence: Any) -> None:
        _keep_alive(sock)
        sock.settimeout(HELLO_SECONDS)
        link = _Link(sock, FrameReader(ToLeader))
        try:
            hello = link.next()
        except (OSError, FrameError):
            hello = None
        known = isinstance(hello, Hello) and hmac.compare_digest(hello.secret.encode(), self.group.secret.encode())
        if not known or not 0 < hello.rank < self.group.world or hello.rank in self._links:
            log.warning("%s came to the rendezvous of a group, and is none of its ranks", whence)
            sock.close()
            return
        sock.settimeout(None)
        self._links[hello.rank] = link

    def _listen_to(self, rank: int, link: _Link, lost: Callable[[int], None]) -> None:
        for message in link.rest():
            assert isinstance(message, Able), message
            self._able[rank] = self._able[rank] | set(message.programs)
            self._dropped[rank] = self._dropped[rank] | set(message.dropped)
        lost(rank)

    def _missing(self) -> LoadError:
        absent = [rank for rank in range(1, self.group.world) if rank not in self._links]
        names = " and ".join(f"rank {rank}" for rank in absent)
        return LoadError(
            "rendezvous_timeout",
            f"{names} of {self.group.world} did not come to {self.address} within {self.group.deadline:g} s",
        )


class Member:
    """The side of every other rank. `attend`, then `meet`, `agree`, and take `messages` for ever."""

    def __init__(self, group: GroupMember, link: _Link) -> None:
        self.group = group
        self._link = link
        self._inbox: queue.SimpleQueue[Run | None] = queue.SimpleQueue()

    @classmethod
    def attend(cls, group: GroupMember) -> "Member":
        """Comes to the leader. Raises LoadError rendezvous_timeout."""
        until = time.monotonic() + group.deadline
        while True:
            try:
                sock = socket.create_connection(parse_address(group.coordinator), max(until - time.monotonic(), 0.001))
                break
            except OSError as error:
                if time.monotonic() >= until:
                    raise _unreachable(group, error.strerror or str(error)) from error
                time.sleep(RETRY_SECONDS)
        _keep_alive(sock)
        link = _Link(sock, FrameReader(FromLeader))
        link.send(Hello(group.rank, group.secret))
        return cls(group, link)

    def close(self) -> None:
        self._link.close()

    def meet(self) -> str:
        """Waits until all are here: where to join jax.distributed. Raises LoadError rendezvous_timeout."""
        # The leader waits as long for the last of us, and began before we did.
        self._link.sock.settimeout(self.group.deadline)
        try:
            called = self._link.next()
        except TimeoutError:
            raise _unreachable(self.group, "not all ranks came") from None
        except OSError as error:
            raise _unreachable(self.group, error.strerror or str(error)) from error
        if not isinstance(called, Meet):
            raise _unreachable(self.group, "it sent this rank away, or left")
        return called.address

    def agree(self, digest: str) -> None:
        self._link.send(Made(digest))

    def watch(self, lost: Callable[[int], None]) -> None:
        """From now on listens to the leader; calls `lost`, in a thread of its own, when it is gone."""
        threading.Thread(target=self._listen, args=(lost,), name="rank 0", daemon=True).start()

    def tell_able(self, programs: Sequence[int], dropped: Sequence[int] = ()) -> None:
        self._link.send(Able(tuple(programs), tuple(dropped)))

    def next(self, timeout: float | None) -> Run | None:
        """What the leader says next; None when that is nothing for `timeout` seconds."""
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def _listen(self, lost: Callable[[int], None]) -> None:
        for message in self._link.rest():
            assert isinstance(message, Run), message
            self._inbox.put(message)
        lost(0)


Rendezvous = Leader | Member


def _keep_alive(sock: socket.socket) -> None:
    """Notice within seconds when the other host is gone without a word; and send words at once, however short."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):  # Linux's names
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _name(sock: socket.socket) -> str:
    return str(Address(*sock.getsockname()[:2]))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _unreachable(group: GroupMember, why: str) -> LoadError:
    return LoadError(
        "rendezvous_timeout",
        f"rank {group.rank} of {group.world} did not meet the others at {group.coordinator} "
        f"within {group.deadline:g} s: {why}",
    )
