"""Tokens that must come, one after the other, and the masks that let nothing else; knows no grammars, rows or requests."""

from collections.abc import Sequence

import numpy as np
from attrs import define, field

from neuron_jax.constraints.matcher import Mask

FREE = 2**40
"""Tokens that may come unseen where nothing will be forced any more: more than any text has."""


@define(eq=False)
class Forced:
    """Those that are `left`. `words` is how wide a mask is."""

    words: int
    left: list[int]
    _foreseen: int = field(default=0, init=False)

    def take(self, token: int) -> None:
        """The first one came."""
        assert token == self.left[0], "a token that was not allowed"
        del self.left[0]
        self._foreseen = 0

    def foresee(self, guesses: Sequence[int], most: int) -> int:
        """How many of `guesses` they are, `most` at most; from now on `masks` has what may come after each of those."""
        most = min(most, len(self.left))
        wrong = (at for at in range(most) if at >= len(guesses) or guesses[at] != self.left[at])
        self._foreseen = next(wrong, most)
        return self._foreseen

    @property
    def masks(self) -> list[Mask]:
        """What may come next, and after each of the guesses that were foreseen: anything behind the last one."""
        forced = [self._only(token) for token in self.left[: self._foreseen + 1]]
        return [*forced, np.full(self.words, -1, np.int32)] if self._foreseen == len(self.left) else forced

    def _only(self, token: int) -> Mask:
        mask = np.zeros(self.words, np.int32)
        mask.view(np.uint32)[token // 32] = np.uint32(1 << token % 32)
        return mask


@define(eq=False)
class Recital:
    """A text that begins with given tokens, whatever else it must be; in a scheduler's hands what a `Matcher` is."""

    _forced: Forced

    @property
    def active(self) -> bool:
        """Whether the next token is bound."""
        return bool(self._forced.left)

    @property
    def complete(self) -> bool:
        """Never: anything may follow."""
        return False

    @property
    def slack(self) -> int:
        """How many tokens may be drawn before anybody has to look at them."""
        return 0 if self._forced.left else FREE

    @property
    def masks(self) -> Sequence[Mask]:
        """What may come next, and after each of the guesses that were last foreseen."""
        return self._forced.masks

    def take(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`."""
        for token in tokens[: len(self._forced.left)]:
            self._forced.take(token)

    def forced(self) -> list[int]:
        """Tokens that must come next."""
        return list(self._forced.left)

    def foresee(self, guesses: Sequence[int]) -> int:
        """How many of `guesses` may come, one after the other."""
        return self._forced.foresee(guesses, len(guesses))
