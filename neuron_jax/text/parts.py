"""Encodes text of any length part by part, with the ids of the whole; knows the backend, must not know prompts.

A library call takes some 150 bytes of memory per character and cannot be stopped; parts of some thousand characters take
little, are twice as fast, and nobody has to wait for the rest of a text that is too long.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any

import tokenizers
from attrs import define

from neuron_jax.text.cuts import Cuts, cuts_of
from neuron_jax.text.errors import TooManyTokensError, UncutTextError

PART_CHARS = 16 * 1024
STRETCH_PARTS = 64
"""A stretch without any cut that is encoded at all, in parts: a million characters, some 150 MB."""

_TRIES = 64
"""Cuts that are looked at for one that the tokenizer itself agrees to."""

_BESIDE = 32
"""Characters on either side of a cut on which it is asked."""

_LOST = 16
"""Tokens that a cut anywhere adds at most, generously."""


@define
class TokenCount:
    """How many tokens a text of `chars` characters has so far. More than `most` are refused; None = any number is taken.

    A quarter more than `most` is still counted exactly: whoever is a little over wants to know by how much.
    """

    most: int | None
    chars: int
    tokens: int = 0
    done: int = 0

    def add(self, tokens: int, chars: int) -> None:
        """A part of `chars` characters has so many tokens. Raises TooManyTokensError when it makes no sense to go on."""
        self.tokens, self.done = self.tokens + tokens, self.done + chars
        if self.done < self.chars:
            self.check(self.tokens, self.done)

    def check(self, tokens: int, done: int) -> None:
        """Raises TooManyTokensError when `tokens`, those of the first `done` characters, are far too many."""
        if self.most is not None and tokens > self.most + self.most // 4:
            raise TooManyTokensError(max(tokens, tokens * self.chars // max(1, done)), exact=False)

    def close(self) -> None:
        """All is counted. Raises TooManyTokensError when it is too much."""
        if self.most is not None and self.tokens > self.most:
            raise TooManyTokensError(self.tokens, exact=True)


class PartEncoder:
    """One backend, for texts in which nothing is put around the whole."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        description: Mapping[str, Any],
        *,
        verbatim: bool = False,
        part_chars: int = PART_CHARS,
    ) -> None:
        self._backend = backend
        self._description = description
        self._verbatim = verbatim
        self._part_chars = part_chars

    @cached_property
    def cuts(self) -> Cuts | None:
        """Where texts may be cut, None where nobody knows."""
        return cuts_of(self._description, verbatim=self._verbatim)

    def encode(self, text: str, count: TokenCount) -> list[int]:
        """The ids of `text`. Raises TooManyTokensError and UncutTextError."""
        ids: list[int] = []
        for part in self.parts(text):
            ids += self._take(part, count)
        return ids

    def parts(self, text: str) -> Iterator[str]:
        """`text` cut where its ids do not show it: joined, they are those of the whole."""
        at = 0
        while len(text) - at > 2 * self._part_chars and self.cuts is not None:
            cut = self._cut(text, at, self.cuts)
            if cut is None:
                break
            yield text[at:cut]
            at = cut + self.cuts.back * (text[cut] == " ")
        yield text[at:]

    def _cut(self, text: str, at: int, cuts: Cuts) -> int | None:
        """The first cut after a part's length that the tokenizer agrees to: its rules may be others than we read."""
        candidates = islice(cuts.after(text, at + self._part_chars), _TRIES)
        return next((cut for cut in candidates if self._agrees(text, cut, cuts.back)), None)

    def _agrees(self, text: str, cut: int, back: int) -> bool:
        left, right = text[max(0, cut - _BESIDE) : cut], text[cut : cut + _BESIDE]
        rest = right[back:] if right.startswith(" ") else right
        return self._ids(left + right) == self._ids(left) + self._ids(rest)

    def _take(self, part: str, count: TokenCount) -> list[int]:
        if len(part) > 4 * self._part_chars and count.most is not None:
            self._weigh(part, count)
        ids = self._ids(part)
        count.add(len(ids), len(part))
        return ids

    def _weigh(self, stretch: str, count: TokenCount) -> None:
        """Refuses a stretch without cuts that is too long, before the library has to take it whole."""
        tokens = count.tokens
        for at in range(0, len(stretch), self._part_chars):
            tokens += max(0, len(self._ids(stretch[at : at + self._part_chars])) - _LOST)
            count.check(tokens, count.done + at + self._part_chars)
        if len(stretch) > STRETCH_PARTS * self._part_chars:
            raise UncutTextError(len(stretch), STRETCH_PARTS * self._part_chars)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids
