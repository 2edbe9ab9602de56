"""Which engine a request goes to, and several engines' numbers as one model's."""

import random
from collections import Counter

import msgspec

from neuron_jax.daemon import tally
from neuron_jax.daemon.balance import ABOUT_EQUAL, choose
from neuron_jax.workers.frames import EngineLoad
from neuron_jax.workers.supervisor import Phase, State


def test_the_least_busy_engine_is_chosen() -> None:
    """Whatever the prompt, where the others are clearly busier."""
    rng = random.Random(1)

    for _ in range(100):
        prompt = [rng.randrange(300) for _ in range(20)]
        assert choose({0: 9, 1: 9 - ABOUT_EQUAL - 1, 2: 10}, prompt) == 1


def test_prompts_that_begin_alike_go_together() -> None:
    """Among engines about as busy; different beginnings are spread over all of them."""
    beginnings = [[number] * 600 for number in range(300)]
    idle = {0: 0, 1: 0, 2: 0}

    assert all(choose(idle, [*one, 1]) == choose({0: 1, 1: 2, 2: 0}, [*one, 2]) for one in beginnings)
    assert min(Counter(choose(idle, one) for one in beginnings).values()) > 50


def test_an_engine_that_leaves_moves_only_its_own_prompts() -> None:
    """So the others' pages are still good for those that stay."""
    beginnings = [[number] * 600 for number in range(300)]
    before = [choose({0: 0, 1: 0, 2: 0}, one) for one in beginnings]
    after = [choose({0: 0, 2: 0}, one) for one in beginnings]

    assert all(old in (new, 1) for old, new in zip(before, after, strict=True))


def test_loads_are_summed() -> None:
    """But of averages the highest; and only counters outlive an engine."""
    one = msgspec.convert(dict.fromkeys(EngineLoad.__struct_fields__, 2), EngineLoad)
    both = tally.total([one, one])

    assert (both.running, both.pages, both.decode_rate, both.host_ms) == (4, 4, 4, 2)
    assert tally.total([]) == EngineLoad()
    assert (tally.counters(one).steps, tally.counters(one).running) == (2, 0)


def test_a_model_is_as_well_as_its_best_engine() -> None:
    """And complains of the worst."""
    ready, recovering = State(Phase.READY, restarts=1), State(Phase.RECOVERING, 1, 2, "oops", "exited")
    failed = State(Phase.FAILED, 6, 5, "no", "internal")

    assert tally.joined([]) == State()
    assert tally.joined([recovering, ready]) == State(Phase.READY, 0, 3, "oops", "exited")
    assert tally.joined([failed, recovering]).phase is Phase.RECOVERING
    assert tally.joined([failed, recovering]).last_error == "no"
    assert tally.joined([failed, failed]).phase is Phase.FAILED
