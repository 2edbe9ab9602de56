"""The queue in front of a model, without a model."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import pytest

from neuron_jax.daemon.admission import AdmissionQueue
from neuron_jax.daemon.problems import Problem, unavailable


def queue(slots: int = 2, depth: int = 2, wait: float = 60.0) -> AdmissionQueue:
    return AdmissionQueue(slots=slots, max_queue_depth=depth, max_wait_secs=wait)


def run(use: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await use()

    return asyncio.run(main())


def test_slots_are_given_in_order() -> None:
    """Whoever came first sits first, even when a later one would fit now."""

    async def use() -> None:
        admission = queue(slots=3)
        with ExitStack() as sitting:
            first = sitting.enter_context(admission.enter(2))
            with admission.enter(2) as big, admission.enter(1) as small:
                assert (first.held, big.held, small.held) == (True, False, False)
                assert (admission.in_flight, admission.queued) == (2, 2)
                sitting.close()
                assert (big.held, small.held, admission.in_flight) == (True, True, 3)
        assert (admission.in_flight, admission.queued) == (0, 0)

    run(use)


def test_who_waits_is_told_how_many_are_before_it() -> None:
    """And who has its turn, that nobody is."""

    async def use() -> None:
        admission = queue(slots=1, depth=3)
        with ExitStack() as sitting:
            first = sitting.enter_context(admission.enter(1))
            with admission.enter(1) as second, admission.enter(1) as third:
                assert [one.ahead for one in (first, second, third)] == [0, 0, 1]
                sitting.close()
                assert [one.ahead for one in (second, third)] == [0, 0]

    run(use)


def test_more_answers_than_slots_take_them_all() -> None:
    """n may be larger than the engine's slots: the engine queues the rest itself."""

    async def use() -> None:
        with queue(slots=2).enter(16) as reservation:
            assert (reservation.held, reservation.slots) == (True, 2)

    run(use)


def test_a_full_line_refuses() -> None:
    """Retry-After grows with the line, and the refusal is counted."""

    async def use() -> None:
        admission = queue(slots=1, depth=1)
        with admission.enter(1), admission.enter(1), pytest.raises(Problem) as raised:
            admission.enter(1)
        assert (raised.value.status, raised.value.retry_after) == (503, 4)
        assert admission.counts.rejected_queue_full == 1

    run(use)


def test_leaving_the_line_gives_the_place_to_the_next() -> None:
    """A request that is cancelled while it waits holds nobody up."""

    async def use() -> None:
        admission = queue(slots=1)
        with admission.enter(1):
            gone, next_ = admission.enter(1), admission.enter(1)
            with gone:
                pass
            assert admission.queued == 1
        assert await next_.wait(0)
        with next_:
            assert admission.in_flight == 1
        assert (admission.in_flight, admission.queued) == (0, 0)

    run(use)


def test_everybody_in_line_can_be_sent_away() -> None:
    """When the model goes, those who wait get its reason."""

    async def use() -> None:
        admission = queue(slots=1)
        with admission.enter(1), admission.enter(1) as waiting:
            admission.fail(unavailable("the model is gone"))
            with pytest.raises(Problem, match="the model is gone"):
                await waiting.wait(1)
        assert admission.in_flight == 0

    run(use)


def test_who_waits_sleeps_until_it_is_his_turn() -> None:
    """Not a moment longer than it takes the one before him, and he does not ask again and again meanwhile."""

    async def use() -> None:
        admission = queue(slots=1)
        with admission.enter(1), admission.enter(1) as second:
            waiting = asyncio.create_task(second.wait(30))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            admission.resize(2)
            assert await waiting

    run(use)


def test_a_wait_that_is_shorter_than_patience_is_no_refusal() -> None:
    """Who waits is told in between, so that his client can be; when his time is over, that he waited in vain."""

    async def use() -> None:
        admission = queue(slots=1, wait=0.02)
        with admission.enter(1), admission.enter(1) as second, admission.enter(1) as third:
            assert not await third.wait(0)
            began = asyncio.get_running_loop().time()
            with pytest.raises(Problem, match=r"Waited 0\.02 seconds") as raised:
                await third.wait(3600)
            assert asyncio.get_running_loop().time() - began < 1800, "its patience counts, not the turn's length"
            assert (raised.value.retry_after, admission.counts.rejected_timeout) == (4, 1)
            assert not second.held

    run(use)
