"""The pace: what it learns from steps, what it makes of sizes it has not seen, and how it cuts prompts."""

import pytest

from neuron_jax.engine.buckets import StepKey
from neuron_jax.engine.pace import Pace

SIZES = (8, 16, 32, 64, 128)


def saw(pace: Pace, tokens: int, seconds: float, *, steps: int = 1, at: float = 0) -> None:
    pace.saw(StepKey(tokens, tokens, steps), seconds, at=at, prompts=False)


def measured(**sizes: float) -> Pace:
    pace = Pace()
    for size, seconds in sizes.items():
        saw(pace, int(size.removeprefix("of")), seconds)
    return pace


def test_a_size_takes_what_it_usually_took() -> None:
    """A first run and an accident do not count."""
    pace = Pace()
    for seconds in (9.0, 0.2, 0.3, 7.0, 0.2):
        saw(pace, 64, seconds)

    assert pace.seconds(64) == 0.3


def test_it_forgets() -> None:
    pace = Pace()
    for seconds in (1.0,) * 10 + (2.0,) * 5:
        saw(pace, 64, seconds)

    assert pace.seconds(64) == 2.0


@pytest.mark.parametrize(("newer", "seconds"), [(2, 1.0), (3, 2.0)])
def test_the_newest_five_decide(newer: int, seconds: float) -> None:
    """By their median."""
    pace = Pace()
    for took in (1.0,) * 10 + (2.0,) * newer:
        saw(pace, 64, took)

    assert pace.seconds(64) == seconds


def test_of_two_in_the_middle_the_quicker_one_counts() -> None:
    pace = Pace()
    for took in (0.4, 0.2):
        saw(pace, 64, took)

    assert pace.seconds(64) == 0.2


def test_before_anything_was_measured_a_step_costs_as_much_as_32_tokens_besides_its_own() -> None:
    assert Pace().seconds(64) == 2 * Pace().seconds(16)


def test_a_small_step_bounds_what_a_larger_one_costs_by_being_one() -> None:
    pace = measured(of16=1.0)

    assert [pace.bounds(tokens) for tokens in (15, 16, 17)] == [False, True, True]
    assert not Pace().bounds(16)


def test_a_step_deep_in_its_texts_is_dearer() -> None:
    """1 s and 1 ms for every token before it, learnt on the way; and soon known of the next prompt's beginning."""
    pace = Pace()
    for at in range(0, 2000, 16):
        saw(pace, 16, 1.0 + at / 1000, at=at)

    assert pace.seconds(16, at=2000) == pytest.approx(3.0, abs=0.01)
    assert pace.seconds(16, at=4000) == pytest.approx(5.0, abs=0.01)
    assert pace.seconds(16, at=0) == pytest.approx(1.0, abs=0.01)
    assert pace.seconds(16) == pace.seconds(16, at=0)
    assert pace.usual(StepKey(16, 16)) == pace.usual(StepKey(16, 16), at=0)


def test_depth_costs_a_larger_step_at_least_as_much_as_a_smaller_one() -> None:
    """The larger one was seen at the beginning of texts only."""
    pace = measured(of64=2.0)
    for at in range(0, 2000, 16):
        saw(pace, 16, 1.0 + at / 1000, at=at)

    assert pace.seconds(64, at=3000) == pytest.approx(5.0, abs=0.01)
    assert pace.seconds(32, at=3000) == pytest.approx(4 + 1 / 3, abs=0.01)


def test_depth_costs_a_smaller_step_its_share_of_what_it_costs_a_larger_one() -> None:
    """The smaller one was seen at the beginning of texts only, and says no less of the larger one deep in them."""
    pace = measured(of16=1.0)
    for at in range(0, 2000, 16):
        saw(pace, 64, 2.0 + at / 1000, at=at)

    assert pace.seconds(16, at=4000) == pytest.approx(2.0, abs=0.01)
    assert pace.seconds(64, at=4000) == pytest.approx(6.0, abs=0.01)


def test_a_larger_step_that_seems_to_bear_depth_better_is_not_believed() -> None:
    """It was seen deep in texts as well, and took the same there."""
    pace = Pace()
    for at in range(0, 2000, 16):
        saw(pace, 16, 1.0 + at / 1000, at=at)
        saw(pace, 64, 2.0, at=at)

    assert pace.seconds(64, at=3000) > 3.0


def test_an_accident_does_not_pass_for_depth() -> None:
    pace = Pace()
    for at in range(0, 4000, 16):
        saw(pace, 16, 9.0 if at % 160 == 0 else 1.0, at=at)

    assert pace.seconds(16, at=4000) == 1.0


def test_steps_of_several_tokens_count_by_the_token() -> None:
    pace = Pace()
    saw(pace, 2, 0.4, steps=4)

    assert pace.seconds(2) == pytest.approx(0.1)
    assert pace.usual(StepKey(2, 2, 4)) == pytest.approx(0.4)


def test_what_never_ran_has_no_usual_time() -> None:
    pace = Pace()
    assert (pace.usual(StepKey(4, 4)), pace.measured) == (0.0, False)
    saw(pace, 4, 0.4)

    assert (pace.usual(StepKey(4, 4)), pace.usual(StepKey(8, 8)), pace.measured) == (0.4, 0.0, True)


def test_unknown_sizes_lie_on_the_line_through_the_known() -> None:
    pace = measured(of16=1.0, of64=2.0)

    assert pace.seconds(8) == 1.0
    assert pace.seconds(32) == pytest.approx(4 / 3)
    assert pace.seconds(128) == pytest.approx(10 / 3)


def test_of_several_known_sizes_the_two_nearest_count() -> None:
    """On both sides, or the last two."""
    pace = measured(of16=3.0, of32=5.0, of64=6.0, of128=10.0)

    assert [pace.seconds(size) for size in (8, 24, 48, 96, 256)] == [3.0, 4.0, 5.5, 8.0, 18.0]


def test_a_larger_step_takes_a_token_no_longer_than_a_smaller_one() -> None:
    """Neither one that was measured at a bad moment nor one that never ran."""
    pace = measured(of16=1.0, of32=3.0, of64=4.0)

    assert [pace.seconds(size) for size in (24, 32, 48, 64, 128)] == [1.5, 2.0, 3.0, 4.0, 6.0]


def test_streams_are_used_to_the_gaps_that_they_have_without_prompts() -> None:
    """Of a burst of tokens that is all of it."""
    pace = Pace()
    assert pace.gap == 0.0
    for took in (0.4, 0.1, 0.5):
        saw(pace, 2, took, steps=4)
    pace.saw(StepKey(64, 64), 9.0, prompts=True)

    assert pace.gap == 0.4


def test_the_largest_size_within_a_time_is_found_at_its_own_depth() -> None:
    """A step costs a second and one for 16 tokens; the larger sizes stand deeper here, which costs twice as much."""
    pace = measured(**{f"of{size}": 1 + size / 16 for size in SIZES})

    assert pace.most(5.0, SIZES, lambda _: 0) == 64
    assert pace.most(4.9, SIZES, lambda _: 0) == 32
    assert pace.most(0.5, SIZES, lambda _: 0) == 0


@pytest.mark.parametrize(
    ("tokens", "size"), [(300, 128), (128, 128), (127, 128), (120, 128), (100, 64), (40, 32), (33, 32), (3, 8)]
)
def test_a_prompt_is_cut_so_that_little_is_padding(tokens: int, size: int) -> None:
    """Here a step costs as much as 8 tokens besides its own."""
    pace = measured(**{f"of{size}": size + 8.0 for size in SIZES})

    assert pace.cut(tokens, SIZES) == size


def test_of_two_ways_that_cost_the_same_one_step_is_taken() -> None:
    even = measured(of8=1.0, of16=2.0)

    assert [even.cut(tokens, (8, 16)) for tokens in (8, 9, 16)] == [8, 16, 16]


def test_where_padding_is_skipped_a_prompt_is_never_cut_for_it() -> None:
    """Then a size is but what a step is timed by."""
    pace = Pace(padded=False)
    for size, seconds in ((8, 1.0), (16, 3.0)):
        saw(pace, size, seconds)

    assert [pace.cut(tokens, (8, 16)) for tokens in (8, 9, 17)] == [8, 16, 16]


def test_looks_that_are_near_each_other_say_nothing_of_depth() -> None:
    """However deep they are: what became slower between them did so for another reason."""
    pace = Pace()
    for at in range(4000, 4208, 16):
        saw(pace, 16, 1.0 if at < 4160 else 2.0, at=at)

    assert pace.seconds(16, at=0) == pace.seconds(16, at=8000) == 2.0


def test_depth_makes_nothing_cheaper() -> None:
    """What became quicker on the way did so for another reason. And a quarter of a step, at least, is not for depth."""
    pace = Pace()
    for at in range(0, 2000, 16):
        saw(pace, 16, 9.0 - at / 1000, at=at)
    assert pace.seconds(16, at=9000) == pace.seconds(16, at=0)

    steep = Pace()
    for at in range(3000, 5000, 16):
        saw(steep, 16, at / 1000 - 2.9, at=at)
    assert steep.seconds(16, at=0) == pytest.approx(2.05 / 4, abs=0.01)


def test_a_size_that_was_seen_alone_costs_others_by_the_token() -> None:
    """A larger step as many times as much; a smaller one costs the same, for what is not its tokens' is not known."""
    pace = measured(of16=1.0)

    assert (pace.seconds(32), pace.seconds(8)) == (2.0, 1.0)


def test_a_larger_step_costs_no_less_than_a_smaller_one() -> None:
    """Whether it was seen or not."""
    pace = measured(of16=2.0, of32=1.0)

    assert [pace.seconds(size) for size in (24, 32, 64)] == [2.0, 2.0, 2.0]


def test_where_padding_costs_nothing_a_prompt_is_padded() -> None:
    """As on a GPU, where a step reads all weights for one token or for many."""
    pace = measured(**{f"of{size}": 1.0 for size in SIZES})

    assert [pace.cut(tokens, SIZES) for tokens in (3, 17, 70)] == [8, 32, 128]


def test_a_prompt_longer_than_what_is_allowed_begins_with_the_most_that_is() -> None:
    assert Pace().cut(500, (8, 16)) == 16
