"""The pace: what it learns from steps, what it makes of sizes it has not seen, and how it cuts prompts."""

import pytest

from neuron_jax.engine.buckets import DecodeKey, ExtendKey, VerifyKey
from neuron_jax.engine.pace import Pace

CHUNKS = (8, 16, 32, 64, 128)


def measured(**extends: float) -> Pace:
    pace = Pace()
    for chunk, seconds in extends.items():
        pace.saw(ExtendKey(int(chunk.removeprefix("of"))), seconds)
    return pace


def test_a_program_takes_what_it_usually_took() -> None:
    """A first run and an accident do not count."""
    pace = Pace()
    for seconds in (9.0, 0.2, 0.3, 7.0, 0.2):
        pace.saw(ExtendKey(64), seconds)

    assert pace.extend(64) == 0.3


def test_it_forgets() -> None:
    pace = Pace()
    for seconds in (1.0,) * 10 + (2.0,) * 5:
        pace.saw(ExtendKey(64), seconds)

    assert pace.extend(64) == 2.0


def test_a_chunk_deep_in_its_prompt_is_dearer() -> None:
    """1 s and 1 ms for every token before it, learnt on the way; and soon known of the next prompt's beginning."""
    pace = Pace()
    for at in range(0, 2000, 16):
        pace.saw(ExtendKey(16), 1.0 + at / 1000, at=at)

    assert pace.extend(16, at=2000) == pytest.approx(3.0, abs=0.01)
    assert pace.extend(16, at=4000) == pytest.approx(5.0, abs=0.01)
    assert pace.extend(16, at=0) == pytest.approx(1.0, abs=0.01)


def test_depth_costs_a_larger_chunk_at_least_as_much_as_a_smaller_one() -> None:
    """The larger one was seen at the beginning of prompts only."""
    pace = measured(of64=2.0)
    for at in range(0, 2000, 16):
        pace.saw(ExtendKey(16), 1.0 + at / 1000, at=at)

    assert pace.extend(64, at=3000) == pytest.approx(5.0, abs=0.01)
    assert pace.extend(32, at=3000) == pytest.approx(4 + 1 / 3, abs=0.01)


def test_an_accident_does_not_pass_for_depth() -> None:
    pace = Pace()
    for at in range(0, 4000, 16):
        pace.saw(ExtendKey(16), 9.0 if at % 160 == 0 else 1.0, at=at)

    assert pace.extend(16, at=4000) == 1.0


def test_steps_of_several_tokens_count_by_the_token() -> None:
    pace = Pace()
    pace.saw(DecodeKey(2, 4), 0.4)

    assert pace.decode(2) == pytest.approx(0.1)


def test_verifying_is_a_matter_of_its_own() -> None:
    pace = Pace()
    pace.saw(VerifyKey(2, 4), 0.4)

    assert (pace.verify(VerifyKey(2, 4)), pace.verify(VerifyKey(1, 4)), pace.decode(2)) == (0.4, 0.0, 0.0)


def test_an_unknown_row_count_is_taken_to_be_as_fast_as_a_smaller_one() -> None:
    pace = Pace()
    assert pace.decode(4) == 0.0
    pace.saw(DecodeKey(4, 1), 0.4)

    assert (pace.decode(2), pace.decode(4), pace.decode(8)) == (0.0, 0.4, 0.4)


def test_unknown_chunks_lie_on_the_line_through_the_known() -> None:
    pace = measured(of16=1.0, of64=2.0)

    assert pace.extend(8) == 1.0
    assert pace.extend(32) == pytest.approx(4 / 3)
    assert pace.extend(128) == pytest.approx(10 / 3)


def test_one_known_chunk_and_a_decode_step_tell_what_a_step_costs_by_being_one() -> None:
    alone = measured(of16=1.0)
    beside = measured(of16=1.0)
    beside.saw(DecodeKey(1, 1), 0.85)

    assert alone.extend(32) == pytest.approx(2.0)
    assert beside.extend(32) == pytest.approx(1.16)


@pytest.mark.parametrize(
    ("tokens", "chunk"), [(300, 128), (128, 128), (127, 128), (120, 128), (100, 64), (40, 32), (33, 32), (3, 8)]
)
def test_a_prompt_is_cut_so_that_little_is_padding(tokens: int, chunk: int) -> None:
    """Here a step costs as much as 8 tokens besides its own."""
    pace = measured(**{f"of{size}": size + 8.0 for size in CHUNKS})

    assert pace.cut(tokens, CHUNKS) == chunk


def test_where_padding_costs_nothing_a_prompt_is_padded() -> None:
    """As on a GPU, where a step reads all weights for one token or for many."""
    pace = measured(**{f"of{size}": 1.0 for size in CHUNKS})

    assert [pace.cut(tokens, CHUNKS) for tokens in (3, 17, 70)] == [8, 32, 128]


def test_a_prompt_longer_than_what_is_allowed_begins_with_the_most_that_is() -> None:
    assert Pace().cut(500, (8, 16)) == 16
