"""Whose texts are next, and what a call's arrays say; no device."""

import numpy as np

from neuron_jax.engine.embedding.line import Call, Line
from neuron_jax.engine.embedding.runner import packed
from neuron_jax.engine.embedding.sizes import CallSize, declare
from neuron_jax.workers.frames import Embed

SIZES = declare(512, 1024)


def asked(number: int, *lengths: int) -> Embed:
    """A request of texts of these lengths."""
    return Embed(number, [[number] * length for length in lengths])


def drained(line: Line) -> list[Call]:
    """All calls, each computed."""
    calls = []
    while (call := line.next_call()) is not None:
        calls.append(call)
        for text in call.texts:
            line.computed(text)
    return calls


def test_every_text_is_computed_once() -> None:
    """Of all requests, each with its own number."""
    line = Line(SIZES)
    line.add(asked(1, 5, 400, 30))
    line.add(asked(2, *([20] * 300)))
    found = [(text.request, text.index, len(text.ids)) for call in drained(line) for text in call.texts]

    assert sorted(found) == [(1, 0, 5), (1, 1, 400), (1, 2, 30), *((2, at, 20) for at in range(300))]
    assert (line.requests, line.waiting) == (0, 0)


def test_a_short_text_does_not_wait_for_somebody_s_thousand() -> None:
    """Who comes second is in the next call; the rest of that call is the first one's."""
    line = Line(SIZES)
    line.add(asked(1, *([40] * 1000)))
    line.next_call()
    line.add(asked(2, 7))
    call = line.next_call()

    assert call is not None
    assert {text.request for text in call.texts} == {1, 2}


def test_two_who_ask_for_much_get_the_same() -> None:
    """In turn: what the first has had by then is not held against who comes later, nor for him."""
    line = Line(SIZES)
    line.add(asked(1, *([100] * 80)))
    for _ in range(3):
        line.next_call()
    line.add(asked(2, *([100] * 80)))
    served = [0, 0]
    for _ in range(6):
        call = line.next_call()
        assert call is not None
        for text in call.texts:
            served[text.request - 1] += len(text.ids)

    assert served[0] == served[1]


def test_what_was_cancelled_is_not_computed() -> None:
    """And what is under way of it is nobody's."""
    line = Line(SIZES)
    line.add(asked(1, *([100] * 80)))
    call = line.next_call()
    line.cancel(1)
    assert call is not None

    assert line.next_call() is None
    assert [line.computed(text) for text in call.texts] == [None] * len(call.texts)


def test_the_last_text_makes_a_request_whole() -> None:
    """Then it is told apart from one that waits for more."""
    line = Line(SIZES)
    line.add(asked(1, 300, 300, 300))
    first, second = line.next_call(), line.next_call()
    assert first is not None
    assert second is not None

    assert [line.computed(text) for text in (*first.texts, *second.texts)] == [False, False, True]


def test_the_arrays_of_a_call() -> None:
    """Texts behind each other; places without one belong to nobody."""
    line = Line((CallSize(2, 6),))
    line.add(Embed(1, [[5, 6], [1, 2, 3, 4]], seconds=[0, 1]))
    call = line.next_call()
    assert call is not None
    texts = packed(call)

    assert [text.index for text in call.texts] == [1, 0]
    np.testing.assert_array_equal(texts.tokens, [[1, 2, 3, 4, 5, 6], [0] * 6])
    np.testing.assert_array_equal(texts.positions, [[0, 1, 2, 3, 0, 1], [0] * 6])
    np.testing.assert_array_equal(texts.types, [[0, 1, 1, 1, 0, 0], [0] * 6])
    np.testing.assert_array_equal(texts.owner, [[0, 0, 0, 0, 1, 1], [2] * 6])
    np.testing.assert_array_equal(texts.first, [0, 4])
    np.testing.assert_array_equal(texts.last, [3, 5])
