"""When a process or a step counts as hung; the numbers are seconds."""

import asyncio
import os
import sys
from typing import Any

import pytest

from neuron_jax.errors import EngineDied
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineSpec, Pulse
from neuron_jax.workers.heart import Heart
from neuron_jax.workers.watchdog import allowed, judge

SPEC = EngineSpec("m", "p", step_seconds=30.0, first_seconds=300.0, silent_seconds=10.0)


@pytest.mark.parametrize(
    ("usual", "seconds"),
    [(0.0, 300.0), (0.01, 30.0), (1.5, 30.0), (2.0, 40.0), (60.0, 1200.0)],
    ids=["never ran", "quick", "at the floor", "above it", "slow"],
)
def test_what_a_step_may_take(usual: float, seconds: float) -> None:
    assert allowed(SPEC, usual) == seconds


@pytest.mark.parametrize(
    ("pulse", "silent", "serving", "kind"),
    [
        (Pulse(), 9.9, True, None),
        (Pulse(), 10.1, True, "rank_silent"),
        (Pulse(), 10.1, False, None),
        (Pulse(), 60.1, False, "rank_silent"),
        (Pulse(29.0, 30.0, "step 8"), 0.1, True, None),
        (Pulse(30.5, 30.0, "step 8"), 0.1, True, "step_timeout"),
        (Pulse(9999.0, 0.0, "a follower's step"), 0.1, True, None),
        (Pulse(61.0, 60.0, "the sanity all-reduce"), 0.1, False, "step_timeout"),
    ],
)
def test_who_must_go(pulse: Pulse, silent: float, serving: bool, kind: str | None) -> None:
    verdict = judge(SPEC, pulse, silent, serving=serving)

    assert (verdict.kind if verdict else None) == kind


def test_the_words_name_the_step() -> None:
    verdict = judge(SPEC, Pulse(31.0, 30.0, "step 512"), 0.0, serving=True)

    assert verdict is not None
    assert verdict.words == "took over 30 s for step 512: it hangs"


def test_a_heart_tells_what_its_process_is_at() -> None:
    """Work inside of work is told as the inner one, and the outer one goes on after."""
    heart = Heart(lambda pulse: None)
    with heart.work("a step", 5.0):
        with heart.work("its end"):
            assert (heart.pulse().what, heart.pulse().allowed) == ("its end", 0.0)
        assert (heart.pulse().what, heart.pulse().allowed) == ("a step", 5.0)
        assert heart.pulse().busy > 0

    assert heart.pulse() == Pulse()


def test_a_hanging_step_ends_its_engine() -> None:
    """The double says what a real process does whose device hangs: it lives, and its step does not end."""

    async def run() -> EngineDied:
        told = EngineSpec("tiny", "p")
        client = await EngineClient.start(
            told, inherited=os.environ, command=(sys.executable, "-m", "tests.fakes.hanging_engine")
        )
        try:
            died: Any = await asyncio.wait_for(client.died, 20)
            return died
        finally:
            await client.close()

    died = asyncio.run(run())

    assert died.kind == "step_timeout"
    assert "the engine process of tiny took over 1 s for step 4" in str(died)
