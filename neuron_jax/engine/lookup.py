"""Guesses at a text's next tokens from the text itself: what followed when its last words stood there before. Pure."""

from collections.abc import Sequence

from attrs import define, field

LONGEST, SHORTEST = 4, 2
"""Lengths of the n-grams. One token alone says too little about what follows it; four hardly ever mislead."""


@define(eq=False)
class Lookup:
    """The n-grams of one growing text, and where each of them ended last."""

    _ends: dict[int, dict[tuple[int, ...], int]] = field(init=False)  # by n; without those that end the text
    _known: int = field(default=0, init=False)  # n-grams that end at or before it are in `_ends`

    def __attrs_post_init__(self) -> None:
        self._ends = {n: {} for n in range(LONGEST, SHORTEST - 1, -1)}

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """`most` tokens that may follow `tokens`, or none: what followed the latest earlier place of its longest ending.

        A place so near that its continuation runs into the end repeats itself, as the text then does. `tokens` must be
        those of the last call with more at the end; the work is proportional to what is new.
        """
        assert len(tokens) >= self._known, "the text was cut"
        self._learn(tokens)
        for n, ends in self._ends.items():
            place = ends.get(tuple(tokens[-n:]))
            if place is not None:
                return _copy(tokens, place, most)
        return []

    def _learn(self, tokens: Sequence[int]) -> None:
        """Note the n-grams that end before the last token."""
        for end in range(self._known + 1, len(tokens)):
            for n, ends in self._ends.items():
                if n <= end:
                    ends[tuple(tokens[end - n : end])] = end
        self._known = max(len(tokens) - 1, 0)


def _copy(tokens: Sequence[int], place: int, most: int) -> list[int]:
    period = len(tokens) - place
    found = list(tokens[place : place + most])
    while len(found) < most:
        found.append(found[-period])
    return found
