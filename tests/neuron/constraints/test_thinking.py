"""A text's thoughts are counted and closed; what comes before the count is over, and behind the thoughts, is free."""

from collections.abc import Iterator

import numpy as np
import pytest

from neuron_jax.constraints.forced import FREE
from neuron_jax.constraints.matcher import Mask
from neuron_jax.constraints.thinking import ThinkingLimit
from neuron_jax.workers.frames import Thoughts

OPEN, CLOSE, LINE, WORDS = 60, 61, 10, 2
CLOSING = (LINE, CLOSE, LINE)


def limit(most: int, *opens: int) -> ThinkingLimit:
    return ThinkingLimit(Thoughts(most, CLOSE, CLOSING, opens), WORDS)


def allowed(mask: Mask) -> list[int]:
    return [token for token in range(32 * WORDS) if mask.view(np.uint32)[token // 32] >> token % 32 & 1]


def bound(it: ThinkingLimit) -> Iterator[int]:
    """The tokens that it forces, one after the other."""
    while it.active:
        (token,) = allowed(it.masks[0])
        yield token
        it.take([token])


@pytest.mark.parametrize("most", [0, 1, 3])
@pytest.mark.parametrize("opens", [(), (OPEN,), (OPEN, 5, OPEN)])
def test_after_so_many_tokens_thoughts_are_closed(most: int, opens: tuple[int, ...]) -> None:
    """Counted from the tokens that open them, where the prompt has not done so; then nothing is bound any more."""
    it = limit(most, *opens)
    for token in opens:
        assert not it.active
        it.take([token])
    for token in range(most):
        assert not it.active
        it.take([token])

    assert list(bound(it)) == list(CLOSING)
    assert (it.slack, it.forced(), it.complete, it.masks) == (FREE, [], False, [])


def test_thoughts_that_end_by_themselves_are_not_closed() -> None:
    it = limit(3)
    it.take([1, CLOSE])
    it.take(list(range(20)))

    assert not it.active
    assert it.slack == FREE


@pytest.mark.parametrize(("opens", "said"), [((OPEN,), [1]), ((OPEN, 5), [OPEN, 6]), ((OPEN, 5), [5])])
def test_an_answer_without_thoughts_has_none_to_close(opens: tuple[int, ...], said: list[int]) -> None:
    it = limit(1, *opens)
    it.take(said)

    assert it.slack == FREE
    it.take([OPEN, 2, 3])
    assert not it.active


def test_as_long_as_there_are_tokens_left_nobody_looks() -> None:
    """Steps are planned ahead until the last of them."""
    it = limit(5)

    assert it.slack == 5
    it.take([1, 2])
    assert it.slack == 3
    it.take([3, 4, 5])
    assert it.slack == 0


@pytest.mark.parametrize(
    ("guesses", "right"), [([], 0), ([LINE], 1), ([LINE, CLOSE, LINE], 3), ([LINE, LINE], 1), ([CLOSE], 0)]
)
def test_what_is_forced_can_be_guessed(guesses: list[int], right: int) -> None:
    """Each mask is that of the token behind a right guess; behind the last one everything may come."""
    it = limit(0)

    assert it.forced() == list(CLOSING)
    assert it.foresee(guesses) == right
    assert [allowed(mask) for mask in it.masks[:3]][: right + 1] == [[token] for token in CLOSING[: right + 1]]
    assert len(it.masks) == right + 1
    if right == 3:
        assert allowed(it.masks[3]) == list(range(32 * WORDS))
