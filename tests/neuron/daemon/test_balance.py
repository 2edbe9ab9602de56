"""Which engine a request goes to, and several engines' numbers as one model's."""

import random
from collections import Counter

import msgspec

from neuron_jax.daemon import tally
from neuron_jax.daemon.balance import ABOUT_EQUAL, Busy, choose
from neuron_jax.workers.frames import EngineLoad


def busy(*open_: int, slots: int = 8) -> dict[int, Busy]:
    return {index: Busy(count, slots) for index, count in enumerate(open_)}


def test_an_engine_without_a_free_slot_keeps_nobody() -> None:
    """A prompt whose pages it has is computed sooner where somebody is idle."""
    assert {choose(busy(2, 0, slots=2), [number] * 9) for number in range(50)} == {1}
    assert {choose(busy(1, 0, slots=2), [number] * 9) for number in range(50)} == {0, 1}
    assert {choose(busy(3, 2, slots=2), [number] * 9) for number in range(50)} == {1}


def test_the_least_busy_engine_is_chosen() -> None:
    """Whatever the prompt, where the others are clearly busier."""
    rng = random.Random(1)

    for _ in range(100):
        prompt = [rng.randrange(300) for _ in range(20)]
        assert choose(busy(9, 9 - ABOUT_EQUAL - 1, 10), prompt) == 1


def test_prompts_that_begin_alike_go_together() -> None:
    """Among engines about as busy; different beginnings are spread over all of them."""
    beginnings = [[number] * 600 for number in range(300)]
    idle = busy(0, 0, 0)

    assert all(choose(idle, [*one, 1]) == choose(busy(1, 2, 0), [*one, 2]) for one in beginnings)
    assert min(Counter(choose(idle, one) for one in beginnings).values()) > 50


def test_an_engine_that_leaves_moves_only_its_own_prompts() -> None:
    """So the others' pages are still good for those that stay."""
    beginnings = [[number] * 600 for number in range(300)]
    before = [choose(busy(0, 0, 0), one) for one in beginnings]
    after = [choose({0: Busy(0, 8), 2: Busy(0, 8)}, one) for one in beginnings]

    assert all(old in (new, 1) for old, new in zip(before, after, strict=True))


def test_loads_are_summed() -> None:
    """But of averages the highest, and names once; and only counters outlive an engine."""
    numbers = dict.fromkeys(EngineLoad.__struct_fields__, 2)
    one = msgspec.convert(numbers | {"dropped": ["b"]}, EngineLoad)
    both = tally.total([one, msgspec.structs.replace(one, dropped=("b", "a"))])

    assert both.dropped == ("a", "b")
    assert (both.running, both.pages, both.decode_rate, both.host_ms) == (4, 4, 4, 2)
    assert tally.total([]) == EngineLoad()
    assert (tally.counters(one).steps, tally.counters(one).running) == (2, 0)
