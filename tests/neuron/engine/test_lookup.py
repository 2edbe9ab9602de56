"""Guesses from the text itself against a search of the whole text at every step."""

import random

import pytest

from neuron_jax.engine.lookup import AT_ONCE, LONGEST, SHORTEST, Lookup


def by_search(tokens: list[int], most: int) -> list[int]:
    """The same, the slow way: every length, every place, from the back."""
    for n in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if tokens[end - n : end] == tokens[-n:]:
                text = list(tokens)
                for _ in range(most):
                    text.append(text[end + len(text) - len(tokens)])
                return text[len(tokens) :]
    return []


@pytest.mark.parametrize("letters", [1, 2, 5, 30])
@pytest.mark.parametrize("stride", [1, 3, 50])
def test_it_finds_what_a_search_finds(letters: int, stride: int) -> None:
    """Texts of few letters repeat much, those of many little; they grow by a token, a few, or a prompt."""
    rng = random.Random(letters)
    text: list[int] = []
    lookup = Lookup()
    found = 0
    for step in range(60):
        text += [rng.randrange(letters) for _ in range(rng.randint(1, stride))]
        guess = lookup.propose(text, step % 7)
        assert guess == by_search(text, step % 7)
        found += bool(guess)

    assert found or letters == 30


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("the cat sat; the cat", 4, " sat"),
        ("abcd-1 abcd-2 xbcd", 2, "-2"),
        ("abcd-1 xbcd-2 abcd", 2, "-1"),
        ("zabcd-1 yabcd-2 zabcd", 2, "-2"),
        ("ab1 ab", 2, "1 "),
        ("a1ba", 2, ""),
        ("no no", 0, ""),
        ("abcabc", 7, "abcabca"),
        ("abcdefg", 3, ""),
        ("", 3, ""),
        ("a", 3, ""),
    ],
)
def test_the_longest_ending_counts_then_the_latest_place(text: str, most: int, expected: str) -> None:
    """A repetition goes on as it is; what was never seen gives no guess."""
    assert Lookup().propose(list(map(ord, text)), most) == list(map(ord, expected))


def test_a_call_takes_over_a_bounded_part_of_a_new_text() -> None:
    """The first guess in a long prompt makes every stream wait: it knows the beginning only, and later ones the rest."""

    class Counting(list[int]):
        read = 0

        def __getitem__(self, key: slice) -> list[int]:  # type: ignore[override]
            found = list(self)[key]
            Counting.read = max(Counting.read, len(found))
            return found

    text = Counting([*range(3 * AT_ONCE), 2 * AT_ONCE + 7, 2 * AT_ONCE + 8])
    lookup = Lookup()
    guesses = [lookup.propose(text, 2) for _ in range(4)]

    assert guesses == [[], [], [2 * AT_ONCE + 9, 2 * AT_ONCE + 10], [2 * AT_ONCE + 9, 2 * AT_ONCE + 10]]
    assert Counting.read == AT_ONCE


def test_what_is_kept_of_a_text_is_four_bytes_a_token() -> None:
    lookup = Lookup()
    text = list(range(10_000))
    for _ in range(3):
        lookup.propose(text, 4)

    assert lookup._text.itemsize * len(lookup._text) == 4 * (10_000 + LONGEST)
