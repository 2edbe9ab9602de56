"""Guesses at a text's next tokens from the text itself: what followed when its last words stood there before. Pure."""

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from attrs import define, field

LONGEST, SHORTEST = 4, 2
"""Lengths of the n-grams. One token alone says too little about what follows it; four hardly ever mislead."""

AT_ONCE = 4096
"""Tokens that are taken over in one call, a fifth of a millisecond's work: every stream waits for it. So the first guesses
in a longer text that is new as a whole know its beginning only."""

NOTHING = -1
"""What stands before the text: no token, so that nothing is found to begin there."""


@define(eq=False)
class Lookup:
    """One growing text, searched as a whole for every guess. An index of its n-grams would be quicker to ask, by some
    microseconds, but takes 28 ms to build of 32,000 tokens and a hundred times the memory.
    """

    _text: "array[int]" = field(factory=lambda: array("i", [NOTHING] * LONGEST), init=False)

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """`most` tokens that may follow `tokens`, or none: what followed the latest earlier place of its longest ending.

        A place so near that its continuation runs into the end repeats itself, as the text then does. `tokens` must be
        those of the last call with more at the end; of what is new AT_ONCE are looked at.
        """
        known = len(self._text) - LONGEST
        assert len(tokens) >= known, "the text was cut"
        self._text.extend(tokens[known : known + AT_ONCE])
        before = np.frombuffer(self._text, np.int32)[: LONGEST + len(tokens) - 1]
        place = _latest(before, tokens[-LONGEST:])
        return [] if place is None else _copy(tokens, place - LONGEST, most)


def _latest(text: npt.NDArray[np.int32], ending: Sequence[int]) -> int | None:
    """Where the longest possible part of `ending`, SHORTEST tokens at least, ends in `text` for the last time."""
    if not ending:
        return None
    (places,), place = (text == ending[-1]).nonzero(), None
    for length, token in enumerate(ending[-2::-1], start=2):
        places = places[text[places - length + 1] == token]
        if not len(places):
            break
        place = int(places[-1]) + 1 if length >= SHORTEST else None
    return place


def _copy(tokens: Sequence[int], place: int, most: int) -> list[int]:
    period = len(tokens) - place
    found = list(tokens[place : place + most])
    while len(found) < most:
        found.append(found[-period])
    return found
