"""How few tokens a text can have, by what each token stands for at most, and what of it may vanish."""

from typing import Any

import pytest

from neuron_jax.text.spelling import Spelling, spelling_of
from tests.fakes.vocabularies import byte_alphabet

TABLE = [b"abc", b"d", b""]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
NFC = {"type": "NFC"}


def described(*missing: int, **change: Any) -> dict[str, Any]:
    """A byte-level BPE vocabulary without tokens for the bytes `missing`."""
    vocab = {char: byte for byte, char in enumerate(byte_alphabet()) if byte not in missing}
    rules = {"model": {"type": "BPE", "vocab": vocab}, "normalizer": None, "pre_tokenizer": BYTE_LEVEL}
    return {**rules, "added_tokens": [], **change}


def added(**strips: bool) -> list[dict[str, Any]]:
    return [{"lstrip": False, "rstrip": False, **strips}]


@pytest.mark.parametrize(
    ("description", "longest"),
    [
        pytest.param(described(), 3, id="the longest token"),
        pytest.param(described(normalizer=NFC), 6, id="two characters may become one"),
        pytest.param(described(normalizer={"type": "Sequence", "normalizers": [NFC]}), 6, id="within a sequence"),
        pytest.param(described(normalizer={"type": "Lowercase"}), 0, id="a normalizer that may shorten"),
        pytest.param(described(normalizer={"type": "Prepend", "prepend": "x"}), 3, id="one that lengthens"),
        pytest.param(described(model={"type": "Unigram", "vocab": []}), 0, id="another model"),
        pytest.param(described(added_tokens=added()), 3, id="an added token"),
        pytest.param(described(added_tokens=added(lstrip=True)), 0, id="one that takes white space before it"),
        pytest.param(described(added_tokens=added(rstrip=True)), 0, id="or behind it"),
        pytest.param(described(pre_tokenizer=None), 3, id="no words"),
        pytest.param(described(pre_tokenizer={"type": "Whitespace"}), 0, id="white space is dropped"),
        pytest.param(described(pre_tokenizer={"type": "Split", "behavior": "Removed"}), 0, id="what splits is dropped"),
        pytest.param(described(pre_tokenizer={"type": "Split", "behavior": "Isolated"}), 3, id="what splits stays"),
        pytest.param(described(0x7F), 3, id="the last byte of ASCII is not spelt"),
        pytest.param(described(0x80), 0, id="the first of those in every other character"),
        pytest.param(described(0xBF), 0, id="the last of those"),
        pytest.param(described(0xC0), 3, id="one that is in no character"),
    ],
)
def test_how_much_a_token_stands_for_at_most(description: dict[str, Any], longest: int) -> None:
    """0 where a step may make less of a text than is known."""
    assert spelling_of(description, TABLE).longest == longest


def test_a_vocabulary_without_tokens_bounds_nothing() -> None:
    assert spelling_of(described(), []).longest == 0


def test_characters_without_a_token_may_vanish() -> None:
    """Of ASCII: of any other something is spelt."""
    assert spelling_of(described(0x04, 0x00, 0x7F, 0xC0), TABLE).unspelt == "\x00\x04\x7f"


def test_bytes_are_spelt_by_their_numbers_where_a_vocabulary_falls_back_to_them() -> None:
    """As SentencePiece's do."""
    vocab = [f"<0x{byte:02X}>" for byte in range(256) if byte != 0x1F]
    model = {"type": "BPE", "vocab": vocab, "byte_fallback": True}

    assert spelling_of(described(model=model), TABLE) == Spelling(3, "\x1f")


@pytest.mark.parametrize(
    ("texts", "least"),
    [(("abcdefgh",), 2), (("abcdefg",), 1), (("abcd", "efgh"), 2), (("abcd\x00\x00efgh",), 2), ((), 0)],
)
def test_texts_have_so_many_tokens_at_least(texts: tuple[str, ...], least: int) -> None:
    """Together, rounded down, and without what may vanish."""
    assert Spelling(4, "\x00").least_tokens(*texts) == least
    assert Spelling().least_tokens(*texts) == 0
