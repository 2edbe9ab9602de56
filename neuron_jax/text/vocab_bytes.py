"""The bytes that each token stands for, read off a tokenizer.json; knows the decoders that chat models use."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neuron_jax.text.errors import TokenizerError

SPACE = "\u2581"
"""What SentencePiece writes for a space."""

SPACES: Mapping[str, Any] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
"""The normalizer that writes it."""


def token_bytes(description: Mapping[str, Any], vocab: Mapping[str, int]) -> list[bytes]:
    """Bytes by id; ids that no token has get b"". `vocab` includes the added tokens. Raises TokenizerError."""
    convert = _converter(description)
    added = {row["content"] for row in description["added_tokens"]}
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, id_ in vocab.items():
        table[id_] = token.encode() if token in added else convert(token)
    return table


def strips_leading_space(description: Mapping[str, Any]) -> bool:
    """Whether decoding takes one space off the front of the text, because encoding put one there."""
    return any(
        (step["type"] == "Strip" and step["start"] > 0)
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        or step["type"] == "WordPiece"
        for step in steps(description.get("decoder"), "decoders")
    )


def steps(node: Mapping[str, Any] | None, inner: str) -> Sequence[Mapping[str, Any]]:
    """A step of a tokenizer.json, or those of a sequence of steps under `inner`, as one list."""
    if node is None:
        return []
    if node["type"] != "Sequence":
        return [node]
    return [step for part in node[inner] for step in steps(part, inner)]


def _converter(description: Mapping[str, Any]) -> Callable[[str], bytes]:
    kinds = [step["type"] for step in steps(description.get("decoder"), "decoders")]
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return _sentence_piece
    if kinds == ["WordPiece"]:
        return _word_piece
    found = " + ".join(kinds) or "none"
    raise TokenizerError(
        f"tokenizer.json has the decoder {found}; ByteLevel, SentencePiece's and WordPiece are understood"
    )


def _word_piece(token: str) -> bytes:
    """Words stand apart; what goes on with one begins with ##."""
    return token.removeprefix("##").encode() if token.startswith("##") else f" {token}".encode()


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace(SPACE, " ").encode()


def _byte_level(token: str) -> bytes:
    """GPT-2's printable alphabet back to bytes; a token with a character outside it stands for itself."""
    try:
        return bytes(map(BYTES.__getitem__, token))
    except KeyError:
        return token.encode()


def _alphabet() -> dict[str, int]:
    """Printable Latin-1 stands for itself; the other bytes, in order, take the characters from U+0100 on.

    Source: GPT-2's `bytes_to_unicode`, https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


BYTES = _alphabet()
"""The byte of each character of a byte-level vocabulary."""
