"""Ends a text's thoughts when there are enough of them: counts their tokens, then lets come only what closes them.

Knows tokens, no rows, requests or text. Behind the thoughts a grammar may bind the text, which is followed all along.
"""

from collections.abc import Sequence

from attrs import define, field

from neuron_jax.constraints.forced import FREE, Forced
from neuron_jax.constraints.matcher import Mask, Matcher
from neuron_jax.workers.frames import Thoughts


@define(eq=False)
class ThinkingLimit:
    """One text on its way; in a scheduler's hands what a `Matcher` is.

    `words` is how wide a mask is. `_closing` are the tokens that must come now.
    """

    _thoughts: Thoughts
    _words: int
    _grammar: Matcher | None = None
    _opened: int = field(default=0, init=False)  # of the tokens that open thoughts, so many have come
    _begun: bool = field(init=False)
    _thinks: bool = field(init=False)
    _seen: int = field(default=0, init=False)
    _closing: Forced = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._closing = Forced(self._words, [])
        self._begun = self._thinks = not self._thoughts.opens
        self._end_if_enough()

    @property
    def active(self) -> bool:
        """Whether the next token is bound."""
        return bool(self._closing.left) or (self._grammar is not None and self._grammar.active)

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return not self._closing.left and self._grammar is not None and self._grammar.complete

    @property
    def slack(self) -> int:
        """How many tokens may be drawn before anybody has to look at them."""
        if self._closing.left or self._grammar is not None:
            return 0
        return self._thoughts.most - self._seen if self._thinks or not self._begun else FREE

    @property
    def masks(self) -> Sequence[Mask]:
        """What may come next, and after each of the guesses that were last foreseen."""
        if self._closing.left:
            return self._closing.masks
        return [] if self._grammar is None else self._grammar.masks

    def take(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`. Raises GrammarError when its grammar lets none of them come."""
        for token in tokens:
            self._follow(token)
        if self._grammar is not None:
            self._grammar.take(tokens)

    def forced(self) -> list[int]:
        """Tokens that must come next."""
        if self._closing.left:
            return list(self._closing.left)
        return [] if self._grammar is None else self._grammar.forced()

    def foresee(self, guesses: Sequence[int]) -> int:
        """How many of `guesses` may come, one after the other; from now on `masks` has what may come after each of them.

        What a grammar lets come behind the thoughts is known once they are closed.
        """
        if self._closing.left:
            return self._closing.foresee(guesses, len(self._closing.left) - (self._grammar is not None))
        return 0 if self._grammar is None else self._grammar.foresee(guesses)

    def _follow(self, token: int) -> None:
        if self._closing.left:
            self._closing.take(token)
            return
        if not self._begun:
            self._open(token)
        elif self._thinks:
            self._seen += 1
            self._thinks = token != self._thoughts.closes
        self._end_if_enough()

    def _open(self, token: int) -> None:
        right = token == self._thoughts.opens[self._opened]
        self._opened += right
        self._thinks = self._opened == len(self._thoughts.opens)
        self._begun = self._thinks or not right

    def _end_if_enough(self) -> None:
        if self._thinks and self._seen >= self._thoughts.most:
            self._thinks = False
            self._closing.left.extend(self._thoughts.closing)
