"""Follows one text through its grammar: which tokens may come next, and which must; knows tokens, no rows or requests."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from attrs import define, field
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.constraints.grammar import LIMITS, grammar_of, refusal
from neuron_jax.workers.frames import Constraint, Vocabulary

Mask = npt.NDArray[np.int32]
"""[words]: a bit for each token, the lowest of the first word first; set for what may come."""


def mask_words(vocab: int) -> int:
    """int32 words of a mask over so many tokens."""
    return -(-vocab // 32)


class Tokens:
    """A model's vocabulary as grammars see it. `vocab` is how wide its logits are; what is behind its tokens is never
    allowed. Immutable, and shared by all matchers.
    """

    def __init__(self, vocabulary: Vocabulary, vocab: int) -> None:
        size = max(vocab, len(vocabulary.tokens))
        self.words = mask_words(vocab)
        described = _Described(vocabulary, size)
        self._tokens = LLTokenizer(
            described,
            # Without a token that ends a text there must be one all the same: behind all that can be drawn.
            n_vocab=size + 1,
            eos_token=list(vocabulary.ends) or [size],
            slices=LLTokenizer.json_slices(),
        )
        described.cut = self._tokens.greedy_tokenize
        self._room = mask_words(size + 1)

    def matcher(self, constraint: Constraint) -> "Matcher":
        """At the beginning of a text. Raises GrammarError. Takes as long as the grammar is intricate."""
        found = LLMatcher(self._tokens, grammar_of(constraint), log_level=0, limits=LIMITS)
        matcher = Matcher(found, self, constraint.after, constraint.opens)
        matcher.look()
        return matcher

    def mask(self, matcher: LLMatcher) -> Mask:
        """What may come next. Raises GrammarError where that takes too long to tell."""
        room = np.zeros(self._room, np.int32)
        matcher.unsafe_compute_mask_ptr(room.ctypes.data, room.nbytes)
        if matcher.is_error():
            raise refusal(matcher.get_error())
        return room[: self.words]


@define(eq=False)
class Matcher:
    """One text on its way. `masks` are those of the next token, and of those that come after each of the guessed ones that
    the last look found.

    While it waits for the token `after`, anything may come, and there are no masks. With `opens`, it waits only if the text
    begins with that token, as it may.
    """

    _grammar: LLMatcher
    _tokens: Tokens
    _after: int | None = None
    _opens: int | None = None
    masks: list[Mask] = field(factory=list, init=False)

    def copy(self) -> "Matcher":
        """For another text that stands at the same place."""
        twin = Matcher(self._grammar.deep_copy(), self._tokens, self._after, self._opens)
        twin.masks = list(self.masks)
        return twin

    @property
    def active(self) -> bool:
        """Whether the next token is bound."""
        return self._after is None or self._opens is not None

    @property
    def slack(self) -> int:
        """How many tokens may be drawn before anybody has to look at them: the thoughts may end with any."""
        return 0

    @property
    def complete(self) -> bool:
        """Whether the text is whole and nothing may follow."""
        return self.active and self._grammar.is_stopped()

    def take(self, tokens: Sequence[int]) -> None:
        """The text goes on with `tokens`. Raises GrammarError when they are none of its, or the next are hard to tell."""
        bound = self._behind(tokens)
        if not self.active:
            return
        if bound and not self._grammar.consume_tokens(list(bound)):
            raise refusal(self._grammar.get_error())
        if not self.complete:
            self.look()

    def look(self) -> None:
        """Find out what may come next."""
        self.masks = [self._tokens.mask(self._grammar)]
        if self._opens is not None:
            self.masks[0].view(np.uint32)[self._opens // 32] |= np.uint32(1 << self._opens % 32)

    def forced(self) -> list[int]:
        """Tokens that must come next, as they are usually written."""
        return self._grammar.compute_ff_tokens() if self.active and self._opens is None else []

    @property
    def chooses(self) -> bool:
        """Whether the first token decides if it waits."""
        return self._opens is not None

    def follows(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may come, one after the other."""
        assert not self.chooses, "nobody knows yet whether it waits"
        if self._after is not None and self._after not in tokens:
            return len(tokens)
        free = 0 if self._after is None else list(tokens).index(self._after) + 1
        return free + self._grammar.validate_tokens(list(tokens[free:]))

    def foresee(self, guesses: Sequence[int]) -> int:
        """How many of `guesses` may come, one after the other; from now on `masks` has what may come after each of them."""
        if not self.active:
            return 0
        right = self._grammar.validate_tokens(list(guesses))
        del self.masks[1:]
        seen = 0
        for token in guesses[:right]:
            self._grammar.consume_token(token)
            seen += 1
            if self._grammar.is_stopped():
                break
            try:
                self.masks.append(self._tokens.mask(self._grammar))
            except GrammarError:
                break
        known = len(self.masks) - 1
        if not self._grammar.is_error() and not self._grammar.rollback(seen):
            raise refusal(self._grammar.get_error())
        return known

    def _behind(self, tokens: Sequence[int]) -> Sequence[int]:
        """Those of `tokens` that are bound: without a token to wait for all."""
        if self._opens is not None and tokens:
            thinks, self._opens = tokens[0] == self._opens, None
            self._after = self._after if thinks else None
        if self._after is None:
            return tokens
        if self._after not in tokens:
            return ()
        at = list(tokens).index(self._after)
        self._after = None
        return tokens[at + 1 :]


class _Described(TokenizerWrapper):
    """A vocabulary in the shape that llguidance asks for.

    What is forced is cut into the longest tokens: mostly, and for JSON's punctuation nearly always, that is what the
    model's own tokenizer would do, of which engines know nothing.
    """

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self.is_tokenizer_wrapper = True
        self.bos_token_id = None
        missing = size + 1 - len(vocabulary.tokens)
        self.eos_token_id = vocabulary.ends[0] if vocabulary.ends else size
        self.tokens = [*vocabulary.tokens, *[b""] * missing]
        self.special_token_ids = list(vocabulary.special)
        self.cut: Callable[[str], list[int]] = lambda _: []

    def __call__(self, text: str) -> list[int]:
        return self.cut(text)
