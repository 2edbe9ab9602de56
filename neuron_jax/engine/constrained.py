"""Matchers for the requests that have a constraint, made beside the steps; knows grammars and threads, no rows or device."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from attrs import define, field

from neuron_jax.constraints.matcher import Matcher, Tokens
from neuron_jax.workers.frames import Constraint, Vocabulary

KEPT = 64
"""Grammars that are kept: those of the same client come again and again."""


@define(eq=False)
class Matchers:
    """Owner of the thread that reads grammars. The engine's one thread calls it."""

    vocab: int  # how wide the model's logits are
    _pool: ThreadPoolExecutor = field(factory=lambda: ThreadPoolExecutor(1, "grammars"), init=False)
    _tokens: "Future[Tokens] | None" = field(default=None, init=False)
    _kept: "OrderedDict[Constraint, Future[Matcher]]" = field(factory=OrderedDict, init=False)

    def learn(self, vocabulary: Vocabulary) -> None:
        """What tokens stand for; must come before the first constraint."""
        self._tokens = self._pool.submit(Tokens, vocabulary, self.vocab)

    def prepare(self, constraint: Constraint) -> "Future[Matcher]":
        """A matcher at the beginning, to be copied; it may raise GrammarError."""
        assert self._tokens is not None, "a constraint before the vocabulary"
        found = self._kept.pop(constraint, None)
        if found is None:
            found = self._pool.submit(_made(self._tokens, constraint))
        self._kept[constraint] = found
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found


def _made(tokens: "Future[Tokens]", constraint: Constraint) -> Callable[[], Matcher]:
    return lambda: tokens.result().matcher(constraint)
