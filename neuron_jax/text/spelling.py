"""How many tokens a text has at least, told from its length; knows tokenizer.json's words, must not know ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from neuron_jax.text.vocab_bytes import BYTES, SPACES, steps

USUAL_CHARS = 4
"""Characters of a token of ordinary text: what is estimated of a text that nobody needs to count."""


@frozen
class Spelling:
    """`longest`: characters that one token stands for at most, 0 where nobody knows; those of `unspelt` may vanish."""

    longest: int = 0
    unspelt: str = ""

    def least_tokens(self, *texts: str) -> int:
        """How many tokens `texts` have together at least; 0 where nothing is certain."""
        if not self.longest:
            return 0
        vanishing = sum(text.count(char) for text in texts for char in self.unspelt)
        return (sum(map(len, texts)) - vanishing) // self.longest


def spelling_of(description: Mapping[str, Any], table: Sequence[bytes]) -> Spelling:
    """That of a tokenizer.json whose tokens stand for the bytes in `table`.

    A byte is at most one character; where a normalizer composes (NFC), at most two.
    """
    model, unspelt = description["model"], _unspelt_bytes(description["model"])
    normalizers = steps(description.get("normalizer"), "normalizers")
    kept = (
        model["type"] == "BPE"
        and not unspelt & set(range(0x80, 0xC0))  # one of them is in every character beyond ASCII
        and not any(row["lstrip"] or row["rstrip"] for row in description["added_tokens"])
        and all(step == SPACES or step["type"] in {"Prepend", "NFC"} for step in normalizers)
        and all(map(_keeps, steps(description.get("pre_tokenizer"), "pretokenizers")))
    )
    composes = any(step["type"] == "NFC" for step in normalizers)
    longest = max(map(len, table), default=0) * (2 if composes else 1) if kept else 0
    return Spelling(longest, "".join(map(chr, sorted(byte for byte in unspelt if byte < 0x80))))


def _unspelt_bytes(model: Mapping[str, Any]) -> set[int]:
    """The bytes that a BPE vocabulary has no token for: many of them may be one unknown token, or none at all."""
    vocab = model.get("vocab", ())
    if model.get("byte_fallback"):
        return {byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab}
    return {byte for char, byte in BYTES.items() if char not in vocab}


def _keeps(pre_tokenizer: Mapping[str, Any]) -> bool:
    """Whether the words are the whole text."""
    if pre_tokenizer["type"] == "Split":
        return bool(pre_tokenizer["behavior"] != "Removed")
    return pre_tokenizer["type"] in {"ByteLevel", "Metaspace", "Digits"}
