"""Fills in the middle: what stands before and behind a gap as a prompt, for models with tokens for that; knows no wires.

Sources, for names and order: Qwen2.5-Coder's README, StarCoder's, CodeLlama's reference (`infilling_prompt_tokens`: what
stands behind the gap is cut as if it did not begin a text), DeepSeek-Coder's README.
"""

from collections.abc import Sequence

from attrs import frozen

from neuron_jax.text.errors import TooManyTokensError
from neuron_jax.text.tokenizer import Tokenizer

PROBE = "\u263a"
"""A character that no text before it can join with."""


@frozen
class Filling:
    """How one kind of model is asked: the names of its tokens. `ends` are those that it may end the middle with."""

    before: str
    behind: str
    middle: str
    ends: tuple[str, ...] = ()


FILLINGS = (
    Filling(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|fim_pad|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>"),
    ),
    Filling("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<file_sep>", "<filename>")),
    Filling("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>",)),
    Filling("\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", ("\u2581<EOT>",)),
    Filling("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
)
"""Qwen2.5-Coder, CodeGemma and Granite 4; StarCoder and Granite Code; SantaCoder; CodeLlama; DeepSeek-Coder."""


@frozen
class FillTokens:
    """The ids of a tokenizer's own filling."""

    before: int
    behind: int
    middle: int
    ends: tuple[int, ...]

    def prompt(self, tokenizer: Tokenizer, before: str, behind: str, most: int) -> list[int]:
        """The ids of a prompt to whose end the middle belongs. Raises TooManyTokensError and UncutTextError.

        In both texts the names of control tokens are plain text: they are somebody's code.
        """
        texts = (*tokenizer.begin, self.before, *tokenizer.encode_plain(before, most=most), self.behind)
        ids = [*texts, *_inside(tokenizer, behind, most), self.middle]
        if len(ids) > most:
            raise TooManyTokensError(len(ids), exact=True)
        return ids


def fill_tokens(tokenizer: Tokenizer) -> FillTokens | None:
    """Those of `tokenizer`; None where it has none."""
    for filling in FILLINGS:
        found = _ids(tokenizer, (filling.before, filling.behind, filling.middle))
        if len(found) == 3:
            before, behind, middle = found
            return FillTokens(before, behind, middle, ends=tuple(_ids(tokenizer, filling.ends)))
    return None


def _ids(tokenizer: Tokenizer, names: Sequence[str]) -> list[int]:
    return [id_ for name in names if (id_ := tokenizer.id_of(name)) is not None]


def _inside(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """The ids of a text that does not begin anything: without the space that SentencePiece puts before a first word."""
    if not tokenizer.strips_leading_space:
        return tokenizer.encode_plain(text, most=most)
    probe = tokenizer.encode_plain(PROBE)
    ids = tokenizer.encode_plain(PROBE + text, most=most + len(probe))
    return ids[len(probe) :]
