"""The bounded queue in front of one model: slots, a line, counts; must not know engines, text or HTTP routes."""

import asyncio
import contextlib
from collections import deque
from types import TracebackType
from typing import Self

from attrs import define

from neuron_jax.daemon.problems import Problem, overloaded


@define
class Counts:
    """What /health shows of a model's queue."""

    rejected_queue_full: int = 0
    rejected_timeout: int = 0


class AdmissionQueue:
    """`slots` requests run at once; up to `max_queue_depth` more wait in line, first come first served."""

    def __init__(self, *, slots: int, max_queue_depth: int, max_wait_secs: float) -> None:
        assert slots > 0
        self.slots = slots
        self.max_queue_depth = max_queue_depth
        self.max_wait_secs = max_wait_secs
        self.in_flight = 0
        self.counts = Counts()
        self._line: deque[Reservation] = deque()

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._line)

    def enter(self, slots: int) -> "Reservation":
        """A place for `slots` answers side by side; use it with `with`. Raises Problem when the line is full."""
        reservation = Reservation(self, min(slots, self.slots))
        if not self._line and reservation.slots <= self.slots - self.in_flight:
            self._grant(reservation)
            return reservation
        if len(self._line) >= self.max_queue_depth:
            self.counts.rejected_queue_full += 1
            raise overloaded(self.queued, f"The queue of this model is full: {self.queued} requests wait.")
        self._line.append(reservation)
        return reservation

    def resize(self, slots: int) -> None:
        """There are more engines now, or fewer. Who has a slot keeps it."""
        assert slots > 0
        self.slots = slots
        self._next()

    def fail(self, problem: Problem) -> None:
        """Sends everybody in line away."""
        while self._line:
            self._line.popleft().refuse(problem)

    def ahead(self, reservation: "Reservation") -> int:
        """How many are before it in line."""
        return self._line.index(reservation) if reservation in self._line else 0

    def leave(self, reservation: "Reservation") -> None:
        """Gives its slots, or its place in line, to the next; called by `Reservation`."""
        if reservation.held:
            self.in_flight -= reservation.slots
        else:
            with contextlib.suppress(ValueError):
                self._line.remove(reservation)
        self._next()

    def _next(self) -> None:
        while self._line and min(self._line[0].slots, self.slots) <= self.slots - self.in_flight:
            self._grant(self._line.popleft())

    def time_out(self, reservation: "Reservation") -> Problem:
        """The answer to somebody who waited too long; called by `Reservation`."""
        self.counts.rejected_timeout += 1
        ahead = self._line.index(reservation)
        return overloaded(ahead, f"Waited {self.max_wait_secs:g} seconds for a place; the server is too busy.")

    def _grant(self, reservation: "Reservation") -> None:
        self.in_flight += reservation.slots
        reservation.grant()


class Reservation:
    """One request's place: in line until `held`. Leaving the `with` block gives it back, whatever happened."""

    def __init__(self, admission: AdmissionQueue, slots: int) -> None:
        loop = asyncio.get_running_loop()
        self.slots = slots
        self._admission = admission
        self._deadline = loop.time() + admission.max_wait_secs
        self._turn: asyncio.Future[None] = loop.create_future()

    @property
    def held(self) -> bool:
        """True once it is this request's turn."""
        return self._turn.done() and not self._turn.cancelled() and self._turn.exception() is None

    @property
    def ahead(self) -> int:
        """How many are before it in line."""
        return self._admission.ahead(self)

    async def wait(self, seconds: float) -> bool:
        """True when it is this request's turn within `seconds`. Raises Problem when it has waited too long."""
        left = self._deadline - asyncio.get_running_loop().time()
        await asyncio.wait([self._turn], timeout=max(0.0, min(seconds, left)))
        if self._turn.done():
            self._turn.result()
            return True
        if left <= seconds:
            raise self._admission.time_out(self)
        return False

    def grant(self) -> None:
        """It is this request's turn; called by `AdmissionQueue`."""
        self._turn.set_result(None)

    def refuse(self, problem: Problem) -> None:
        """There will be no turn; called by `AdmissionQueue`."""
        self._turn.set_exception(problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._admission.leave(self)
        if self._turn.done() and not self._turn.cancelled():
            self._turn.exception()  # a refusal that nobody waits for any more is no news
