"""The events of answers that are made in the background, for who reads along; knows server-sent events, no dialect."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

from attrs import define, field, frozen

from cortex_gateway.dialects import sse
from cortex_gateway.stream import Client

KEPT_SECS = 300.0
KEPT_BYTES = 64 << 20
"""How long the events of an answer are kept after its end, and how much of all of them together."""
_BLANK = b"\n\n"


@define(eq=False)
class EventLog:
    """What a stream has said so far. Events are numbered from 0; any number of readers begin anywhere and follow."""

    ended: bool = field(default=False, init=False)
    _events: list[bytes] = field(factory=list, init=False)
    _grown: asyncio.Event = field(factory=asyncio.Event, init=False)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(map(len, self._events))

    def add(self, encoded: bytes) -> None:
        """Some whole events."""
        self._events += [event + _BLANK for event in encoded.split(_BLANK)[:-1]]
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    async def follow(self, first: int) -> AsyncIterator[bytes]:
        """The events from number `first` on, those that are there at once, until the end."""
        while True:
            grown = self._grown
            ready = self._events[first:]
            if ready:
                first += len(ready)
                yield b"".join(ready)
            elif self.ended:
                return
            else:
                await grown.wait()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


@frozen
class _Ended:
    at: float
    key: tuple[str, str]
    size: int


@define
class Followed:
    """All of them, by who asked for an answer and its id. One per gateway, in its event loop."""

    now: Callable[[], float] = time.monotonic
    _logs: dict[tuple[str, str], EventLog] = field(factory=dict, init=False)
    _ended: list[_Ended] = field(factory=list, init=False)  # the one that ended first is first

    @contextlib.contextmanager
    def log(self, owner: str, answer: str) -> Iterator[EventLog]:
        """That of an answer which is made within the block."""
        key = (owner, answer)
        made = self._logs[key] = EventLog()
        try:
            yield made
        finally:
            made.end()
            self._ended.append(_Ended(self.now(), key, made.size))
            self._forget_old()

    def find(self, owner: str, answer: str) -> EventLog | None:
        """Where its events are known still."""
        self._forget_old()
        return self._logs.get((owner, answer))

    def forget(self, owner: str, answer: str) -> None:
        self._logs.pop((owner, answer), None)

    def _forget_old(self) -> None:
        held = sum(one.size for one in self._ended)
        while self._ended and (held > KEPT_BYTES or self._ended[0].at < self.now() - KEPT_SECS):
            oldest = self._ended.pop(0)
            held -= oldest.size
            self._logs.pop(oldest.key, None)


async def read_along(client: Client, log: EventLog, first: int, keep_alive_seconds: float) -> None:
    """Send `client` the events from number `first` on, and comments while there are none: events would have to be numbered."""
    await client.begin_stream()
    async with client.kept_alive(lambda: sse.COMMENT, keep_alive_seconds):
        async for ready in log.follow(first):
            await client.write(ready)
    await client.end()
