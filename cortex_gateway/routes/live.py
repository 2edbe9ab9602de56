"""Every request under way: who sees them and who ends them. Knows tasks, no route and no dialect."""

import asyncio
from typing import Any, Literal

from attrs import define, field

from cortex_gateway.context import RequestContext
from cortex_gateway.routes.record import Record

GONE_SECS = 10.0
State = Literal["queued", "prefill", "decode"]


def _current() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


@define(eq=False)
class Live:
    """One request under way. `cancelled`: an operator has ended it."""

    context: RequestContext
    record: Record
    cancelled: bool = field(default=False, init=False)
    _task: "asyncio.Task[Any]" = field(factory=_current, init=False)

    @property
    def state(self) -> State:
        """Waits for a replica, for its first token, or is being answered."""
        if not self.record.node:
            return "queued"
        return "decode" if self.record.passed else "prefill"

    def told(self) -> dict[str, Any]:
        """As JSON says it: seconds since its arrival, `pieces` of its answer so far, each a token or more."""
        principal = self.context.principal
        return {
            "id": self.context.id,
            "key": principal.name or None,
            "dialect": self.record.dialect,
            "model": self.record.model,
            "node": self.record.node or None,
            "state": self.state,
            "seconds": round(self.record.seconds, 3),
            "pieces": self.record.passed,
        }

    def cancel(self) -> None:
        """End it; whoever sent it is told so."""
        self.cancelled = True
        self.record.outcome = "cancelled"
        self._task.cancel()

    async def gone(self) -> None:
        """Wait until it has ended, which takes no long time."""
        await asyncio.wait((self._task,), timeout=GONE_SECS)


@define
class LiveRequests:
    """One per gateway, in its event loop."""

    _all: dict[Live, None] = field(factory=dict, init=False)  # in order of arrival

    def enter(self, live: Live) -> None:
        self._all[live] = None

    def leave(self, live: Live) -> None:
        self._all.pop(live, None)

    def told(self) -> list[dict[str, Any]]:
        """All of them, the oldest first."""
        return [live.told() for live in self._all]

    async def end(self, owner: str | None, answer: str) -> None:
        """Cancel whoever makes this answer for that key, and wait until it is gone."""
        found = [live for live in self._all if (live.record.answer, live.context.principal.key) == (answer, owner)]
        for live in found:
            live.cancel()
            await live.gone()

    def cancel(self, identity: str) -> int:
        """End those with this id, which clients may give to several; how many there were."""
        found = [live for live in self._all if live.context.id == identity and not live.cancelled]
        for live in found:
            live.cancel()
        return len(found)
