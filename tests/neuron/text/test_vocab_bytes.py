"""What a tokenizer.json says of its tokens' bytes."""

from typing import Any

import pytest

from neuron_jax.text.errors import TokenizerError
from neuron_jax.text.vocab_bytes import BYTES, strips_leading_space, token_bytes
from tests.fakes.vocabularies import byte_alphabet

BYTE_LEVEL = {"type": "ByteLevel"}
SENTENCE_PIECE = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]}


def described(decoder: Any, *added: str) -> dict[str, Any]:
    return {"decoder": decoder, "added_tokens": [{"content": name} for name in added]}


def test_the_alphabet_of_bytes_is_gpt_2_s() -> None:
    """All 256, each once, as another reading of the source lists them."""
    assert [BYTES[char] for char in byte_alphabet()] == list(range(256))
    assert len(BYTES) == 256


def test_ids_that_no_token_has_are_empty() -> None:
    """A table reaches to the highest id; added tokens and what is outside of the alphabet stand for themselves."""
    vocab = {"Ġa": 1, "é": 3, "<é>": 4, "界": 5}

    assert token_bytes(described(BYTE_LEVEL, "<é>"), vocab) == [
        b"",
        b" a",
        b"",
        b"\xe9",
        "<é>".encode(),
        "界".encode(),
    ]
    assert token_bytes(described(BYTE_LEVEL), {}) == []


@pytest.mark.parametrize(
    ("token", "stands_for"),
    [
        ("<0x41>", b"A"),
        ("<0xFF>", b"\xff"),
        ("\u2581a\u2581", b" a "),
        ("<0x411>", b"<0x411>"),
        ("<0x4>", b"<0x4>"),
        ("<0x41]", b"<0x41]"),
        ("[0x41>", b"[0x41>"),
    ],
)
def test_a_sentence_piece_is_its_text_or_a_byte_by_its_number(token: str, stands_for: bytes) -> None:
    """What only looks like a number of a byte is text."""
    assert token_bytes(described(SENTENCE_PIECE), {token: 0}) == [stands_for]


@pytest.mark.parametrize(("decoder", "found"), [(None, "none"), ({"type": "CTC"}, "CTC")])
def test_another_decoder_is_refused_by_name(decoder: Any, found: str) -> None:
    with pytest.raises(TokenizerError, match=f"the decoder {found};"):
        token_bytes(described(decoder), {})


@pytest.mark.parametrize(
    ("decoder", "strips"),
    [
        (None, False),
        (BYTE_LEVEL, False),
        ({"type": "Strip", "start": 1}, True),
        ({"type": "Strip", "start": 0}, False),
        ({"type": "Metaspace"}, True),
        ({"type": "Metaspace", "prepend_scheme": "first"}, True),
        ({"type": "Metaspace", "prepend_scheme": "never"}, False),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "start": 1}]}, True),
        (SENTENCE_PIECE, False),
    ],
)
def test_decoding_takes_off_the_space_that_encoding_put_in_front(decoder: Any, strips: bool) -> None:
    """One step that does so is enough."""
    assert strips_leading_space(described(decoder)) is strips
