"""Token ids to text, as they come; knows no stop strings, no parsers.

Constant time per token: a token's bytes go through one incremental UTF-8 decoder, nothing is decoded twice.
"""

import codecs
from collections.abc import Iterable

from neuron_jax.text.tokenizer import Tokenizer


class Detokenizer:
    """All that is fed, joined, plus `close()`, is `tokenizer.decode` of all ids with special tokens skipped.

    `visible` are special ids whose text is wanted all the same: the tags a parser looks for. `continues` keeps the
    space that a SentencePiece tokenizer puts before the first word: right after a raw prompt, wrong for a chat's turn.
    """

    def __init__(self, tokenizer: Tokenizer, *, visible: frozenset[int] = frozenset(), continues: bool = False) -> None:
        self._tokenizer = tokenizer
        self._hidden = tokenizer.special_ids - visible
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = tokenizer.strips_leading_space and not continues

    def feed(self, ids: Iterable[int]) -> str:
        """The characters that are whole now; bytes of an unfinished one wait for the next token."""
        pieces = b"".join(self._tokenizer.piece(id_) for id_ in ids if id_ not in self._hidden)
        return self._unspaced(self._utf8.decode(pieces))

    def close(self) -> str:
        """U+FFFD for a character the model left unfinished, else nothing."""
        return self._unspaced(self._utf8.decode(b"", final=True))

    def _unspaced(self, text: str) -> str:
        if not (self._strip and text):
            return text
        self._strip = False
        return text.removeprefix(" ")
