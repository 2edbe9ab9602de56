"""The requests under way, each with the replica that it may use: given back, or cut short where a node falls silent."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from attrs import Factory, define, field, frozen

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m

Tell = Callable[[m.Suspected | m.Absent | m.Begun | m.Returned], None]


@define(kw_only=True, eq=False)
class Lease:
    """A replica that a request may use. It counts in flight from `Fleet.acquire` until `release` or the end of `async with`.

    That block is cut short, and raises UpstreamReadFailed, where the node falls silent for good: neither it nor its host
    says anything then, and whoever waits for an answer would wait for ever.

    Attributes:
        heard: how many bytes of an answer have come. While more come, a node that does not answer the poll is still at work.
    """

    requested: str
    model: str
    node: str
    base_url: str
    cold: bool
    _tell: Tell = field(repr=False)
    _over: Callable[["Lease"], None] = field(repr=False)
    _sent: float
    _trial: bool
    _served: bool | None = None
    _failure: str = ""
    heard: Callable[[], int] = lambda: 0
    _limit: asyncio.Timeout = field(factory=lambda: asyncio.timeout(None), init=False, repr=False)
    _waiting: bool = field(default=False, init=False)
    _released: bool = False

    def release(self) -> None:
        """Give the replica back. Doing it again does nothing."""
        if self._released:
            return
        self._released = True
        self._over(self)
        ended = m.Returned(
            node=self.node,
            model=self.model,
            served=self._served,
            failure=self._failure,
            sent=self._sent,
            trial=self._trial,
        )
        self._tell(ended)

    def suspect(self, reason: str) -> None:
        """The node could not be reached: no request goes there until it has answered a look."""
        self._tell(m.Suspected(node=self.node, reason=reason))

    def cut(self) -> None:
        """No answer is to be expected any more."""
        if self._waiting:
            self._limit.reschedule(asyncio.get_running_loop().time())

    def absent(self) -> None:
        """The node has not loaded the model any more: it is looked at before it is asked again."""
        self._tell(m.Absent(node=self.node, model=self.model))

    def begun(self) -> None:
        """A good answer has begun."""
        if self._trial:
            self._tell(m.Begun(node=self.node, model=self.model))

    def served(self) -> None:
        """The answer has ended well."""
        if self._served is None:
            self._served = True

    def failed(self, reason: str) -> None:
        """The replica, not the request, was at fault. A replica that fails again and again is given a rest."""
        self._served, self._failure = False, reason

    async def __aenter__(self) -> Self:
        await self._limit.__aenter__()
        self._waiting = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting = False
        self.release()
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            message = f"The node {self.node} has stopped answering, so its answer is no longer waited for."
            raise errors.UpstreamReadFailed(message) from None


@frozen(eq=False)
class Leases:
    """Those that have not been given back. `silent` says of a node whether it still says nothing."""

    tell: Tell
    silent: Callable[[str], bool]
    within_secs: float
    _held: set[Lease] = Factory(set)

    def grant(self, granted: m.Grant, requested: str, base_url: str, now: float) -> Lease:
        lease = Lease(
            requested=requested,
            model=granted.model,
            node=granted.node,
            base_url=base_url,
            cold=granted.cold,
            tell=self.tell,
            over=self._held.discard,
            sent=now,
            trial=granted.trial,
        )
        self._held.add(lease)
        return lease

    def listen_once_more(self, node: str) -> None:
        """Cut those of a node that is silent, one look's time from now, where nothing of an answer comes meanwhile."""
        heard = {lease: lease.heard() for lease in self._held if lease.node == node}
        asyncio.get_running_loop().call_later(self.within_secs, self._cut, node, heard)

    def _cut(self, node: str, heard: dict[Lease, int]) -> None:
        if not self.silent(node):
            return
        for lease in self._held & heard.keys():
            if lease.heard() == heard[lease]:
                lease.cut()
