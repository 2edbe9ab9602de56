"""Who waits for a ticket, and how each of them hears of it. Decides nothing, knows no node."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import assert_never

from attrs import define, field

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m
from cortex_gateway.placement.snapshot import LoadStatus

Reporter = Callable[[LoadStatus], None]
Asked = m.Wanted | m.LoadAsked | m.UnloadAsked
Answer = m.Grant | m.Complete | m.Refuse | m.Report


@define(eq=False)
class Caller:
    """What it hears last is in `done`."""

    done: asyncio.Future[m.Grant | None]
    report: Reporter | None = None


@define(eq=False)
class Callers:
    """One each for tickets that have not ended. `tell` hands an event to the owner of residency."""

    _tell: Callable[[Asked | m.Left | m.Returned], None]
    _waiting: dict[int, Caller] = field(factory=dict, init=False)
    _numbers: Iterator[int] = field(factory=lambda: itertools.count(1), init=False)
    _closed: bool = field(default=False, init=False)

    def ticket(self) -> int:
        """A number that no other has."""
        return next(self._numbers)

    async def wait(self, event: Asked, report: Reporter | None = None) -> m.Grant | None:
        """Tell of the event, and wait for what becomes of its ticket. Raises what it is refused with. To cancel it gives up
        the ticket."""
        if self._closed:
            raise errors.ShuttingDown("The gateway is going down.")
        caller = self._waiting[event.ticket] = Caller(asyncio.get_running_loop().create_future(), report)
        try:
            self._tell(event)
            return await caller.done
        except BaseException:
            self._give_up(event.ticket, caller)
            raise
        finally:
            del self._waiting[event.ticket]

    def answer(self, effect: Answer) -> None:
        """A grant that nobody waits for any more is given back."""
        caller = self._waiting.get(effect.ticket)
        if caller is None or caller.done.done():
            if isinstance(effect, m.Grant):
                self._tell(_unused(effect))
            return
        match effect:
            case m.Grant():
                caller.done.set_result(effect)
            case m.Complete():
                caller.done.set_result(None)
            case m.Refuse():
                caller.done.set_exception(effect.error)
            case m.Report():
                if caller.report:
                    caller.report(effect.status)
            case _:
                assert_never(effect)

    def close(self) -> None:
        """Refuse all who wait, and all who come."""
        self._closed = True
        for caller in self._waiting.values():
            if not caller.done.done():
                caller.done.set_exception(errors.ShuttingDown("The gateway is going down."))

    def _give_up(self, ticket: int, caller: Caller) -> None:
        """It was refused or cancelled, perhaps in the very moment in which it was granted."""
        done = caller.done
        granted = done.result() if done.done() and not done.cancelled() and not done.exception() else None
        self._tell(_unused(granted) if granted is not None else m.Left(ticket=ticket))


def _unused(granted: m.Grant) -> m.Returned:
    """Nobody waits for it any more."""
    return m.Returned(node=granted.node, model=granted.model, trial=granted.trial)
