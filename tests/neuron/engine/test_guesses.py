"""Guessing a request's next tokens: what is guessed behind tokens on their way, and how trust follows success."""

import pytest

from neuron_jax.engine.guesses import HOPE, Guesser

TEXT = [1, 2, 3, 4, 5, 6, 1, 2, 3]


def test_guesses_begin_behind_what_is_on_its_way() -> None:
    assert Guesser().guess(TEXT, ahead=0, most=3) == [4, 5, 6]
    assert Guesser().guess(TEXT, ahead=2, most=3) == [6, 1, 2]
    assert Guesser().guess(TEXT, ahead=5, most=1) == [3]


def test_nothing_is_guessed_of_a_text_that_does_not_repeat_itself_or_may_not_go_on() -> None:
    assert Guesser().guess([1, 2, 3, 4], ahead=0, most=3) == []
    assert Guesser().guess(TEXT, ahead=0, most=0) == []


def test_trust_follows_success() -> None:
    """What stands behind a wrong guess was not tried."""
    lucky, unlucky = Guesser(), Guesser()
    for _ in range(20):
        lucky.learn(5, 5)
        unlucky.learn(5, 0)

    assert lucky.trust > 0.99
    assert unlucky.trust < 0.01
    assert unlucky.expected(5) < 0.01
    assert lucky.expected(5) == pytest.approx(5, abs=0.2)


def test_half_of_the_tried_guesses_right_is_trusted_by_half() -> None:
    """Each step one right, one wrong, three untried."""
    guesser = Guesser()
    for _ in range(50):
        guesser.learn(5, 1)

    assert guesser.trust == pytest.approx(0.5, abs=0.01)
    assert guesser.expected(2) == pytest.approx(0.75, abs=0.02)


def test_where_nothing_may_be_guessed_nothing_is_learnt() -> None:
    """Neither from a look that was not worth one, nor from a step without guesses."""
    guesser = Guesser()
    guesser.learn(5, 0)
    before = guesser.trust
    guesser.guess(TEXT, ahead=0, most=0)
    guesser.learn(0, 0)

    assert guesser.trust == before
    assert guesser.expected(0) == 0.0


def test_trust_comes_back_while_nothing_is_tried() -> None:
    guesser = Guesser()
    for _ in range(20):
        guesser.learn(5, 0)
    for _ in range(200):
        guesser.guess(TEXT, ahead=0, most=3)

    assert guesser.trust == pytest.approx(HOPE, abs=0.02)
