"""The queue in front of a model, driven at random: slots go round in the order of arrival, and none is lost."""

import asyncio

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from neuron_jax.daemon.admission import AdmissionQueue, Reservation
from neuron_jax.daemon.problems import Problem, unavailable
from tests.fakes.hand_engine import HandLoop

DEPTH, WAIT_SECS = 3, 60.0


@define(eq=False)
class Guest:
    """Somebody with a reservation, and whether he was sent away. The guests are kept in the order of their arrival."""

    reservation: Reservation
    ends: float
    sent_away: bool = False


class Queue(RuleBasedStateMachine):
    """What the promises are stands in the invariants and where a guest comes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = HandLoop()
        self.admission = AdmissionQueue(slots=2, max_queue_depth=DEPTH, max_wait_secs=WAIT_SECS)
        self.guests: list[Guest] = []
        self.turned_away = self.timed_out = 0

    def _sitting(self) -> list[Guest]:
        return [one for one in self.guests if one.reservation.held]

    def _waiting(self) -> list[Guest]:
        return [one for one in self.guests if not one.reservation.held and not one.sent_away]

    async def _enter(self, answers: int) -> Reservation:
        return self.admission.enter(answers)

    @rule(answers=st.integers(1, 6))
    def come(self, answers: int) -> None:
        waiting, free = len(self._waiting()), self.admission.slots - self.admission.in_flight
        wanted = min(answers, self.admission.slots)
        at_once = not waiting and wanted <= free
        if not at_once and waiting == DEPTH:
            with pytest.raises(Problem) as raised:
                self.loop.run_until_complete(self._enter(answers))
            assert raised.value.status == 503
            self.turned_away += 1
            return
        reservation = self.loop.run_until_complete(self._enter(answers))
        assert (reservation.held, reservation.slots) == (at_once, wanted)
        self.guests.append(Guest(reservation, self.loop.now + WAIT_SECS))

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.guests))
        before = self._sitting()
        with guest.reservation:
            pass
        self.guests.remove(guest)
        assert [one for one in before if one is not guest and not one.reservation.held] == [], "who sits keeps his slot"

    @precondition(lambda self: self.guests)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        guest = data.draw(st.sampled_from(self.guests))
        late = not guest.reservation.held and not guest.sent_away and self.loop.now >= guest.ends
        if guest.sent_away or late:
            ahead = 0 if guest.sent_away else self._waiting().index(guest)
            with pytest.raises(Problem) as raised:
                self.loop.run_until_complete(guest.reservation.wait(0))
            assert ("Waited 60 seconds" in raised.value.message) == late
            assert guest.sent_away or raised.value.retry_after == 2 * (ahead + 1)
            self.timed_out += late
        else:
            assert self.loop.run_until_complete(guest.reservation.wait(0)) == guest.reservation.held

    @rule(slots=st.integers(1, 5))
    def resize(self, slots: int) -> None:
        before = self._sitting()
        self.admission.resize(slots)
        assert all(one.reservation.held for one in before), "who sits keeps his slot"

    @rule()
    def send_all_away(self) -> None:
        waiting = self._waiting()
        self.admission.fail(unavailable("the model is gone"))
        for one in waiting:
            one.sent_away = True

    @rule(seconds=st.sampled_from([1.0, 30.0, WAIT_SECS]))
    def time_passes(self, seconds: float) -> None:
        self.loop.now += seconds

    @invariant()
    def every_slot_is_accounted_for(self) -> None:
        assert self.admission.in_flight == sum(one.reservation.slots for one in self._sitting())
        assert self.admission.queued == len(self._waiting()) <= DEPTH
        assert self.admission.counts.rejected_queue_full == self.turned_away
        assert self.admission.counts.rejected_timeout == self.timed_out

    @invariant()
    def nobody_is_overtaken(self) -> None:
        waiting = False
        for one in self.guests:
            waiting = waiting or not (one.reservation.held or one.sent_away)
            assert not (waiting and one.reservation.held)

    @invariant()
    def no_slot_is_free_while_somebody_waits_who_could_take_it(self) -> None:
        for one in self._waiting()[:1]:
            free = self.admission.slots - self.admission.in_flight
            assert min(one.reservation.slots, self.admission.slots) > free

    def teardown(self) -> None:
        """When everybody has gone, all is as at the beginning."""
        for one in self.guests:
            with one.reservation:
                pass
        assert (self.admission.in_flight, self.admission.queued) == (0, 0)
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


def test_promises_of_the_queue_hold() -> None:
    """Guests come, wait, lose patience, go; engines come and go."""
    few = settings(max_examples=60, stateful_step_count=40)
    run_state_machine_as_test(Queue, settings=few)  # type: ignore[no-untyped-call]
