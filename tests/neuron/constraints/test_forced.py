"""Tokens that must come: what may come in their place is nothing, and what may come behind them anything."""

import numpy as np
import pytest

from neuron_jax.constraints.forced import FREE, Forced, Recital
from neuron_jax.constraints.matcher import Mask

WORDS = 2


def allowed(mask: Mask) -> list[int]:
    return [token for token in range(32 * WORDS) if mask.view(np.uint32)[token // 32] >> token % 32 & 1]


def test_a_token_that_came_leaves_the_next_one_alone() -> None:
    """What was foreseen before it came is foreseen no more."""
    forced = Forced(WORDS, [5, 40, 63])
    assert [allowed(mask) for mask in forced.masks] == [[5]]
    assert forced.foresee([5, 40], 2) == 2
    assert [allowed(mask) for mask in forced.masks] == [[5], [40], [63]]
    forced.take(5)

    assert [allowed(mask) for mask in forced.masks] == [[40]]


@pytest.mark.parametrize(
    ("guesses", "most", "right"), [([], 3, 0), ([5], 3, 1), ([5, 40, 63], 3, 3), ([5, 7, 63], 3, 1), ([5, 40], 1, 1)]
)
def test_guesses_are_right_up_to_the_first_that_must_not_come(guesses: list[int], most: int, right: int) -> None:
    assert Forced(WORDS, [5, 40, 63]).foresee(guesses, most) == right


def test_behind_the_last_anything_may_come() -> None:
    forced = Forced(WORDS, [5, 40])
    forced.foresee([5, 40], 2)

    assert [len(allowed(mask)) for mask in forced.masks] == [1, 1, 32 * WORDS]


def test_a_text_is_recited_and_then_goes_on_freely() -> None:
    """More may come at once than is recited: what follows is no business of it."""
    recital = Recital(Forced(WORDS, [5, 40]))
    assert (recital.active, recital.slack, recital.complete, recital.forced()) == (True, 0, False, [5, 40])
    recital.take([5, 40, 7])

    assert (recital.active, recital.slack, recital.complete, recital.forced()) == (False, FREE, False, [])


@pytest.mark.parametrize("token", [0, 31, 32, 33, 63])
def test_any_token_can_be_forced(token: int) -> None:
    """Also where a word of the mask ends and the next begins."""
    assert [allowed(mask) for mask in Forced(WORDS, [token]).masks] == [[token]]
