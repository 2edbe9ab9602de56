"""SentencePiece's own .model files -> the keys of a GGUF header, which describe the same; must not know files.

A .model is a protocol buffer, ModelProto of sentencepiece_model.proto:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from neuron_jax.text.errors import TokenizerError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_KINDS = {1: "t5", 2: "llama"}
"""By TrainerSpec.model_type: unigrams and BPE."""
_NORMAL, _UNUSED = 1, 5


def header_of(content: bytes) -> dict[str, Any]:
    """Raises TokenizerError where the bytes are no such file, or of a kind that no language model uses."""
    try:
        fields = list(_fields(content))
        pieces = [dict(_fields(piece)) for number, piece in fields if number == _PIECES]
        trainer, normalizer = (dict(_fields(_last(fields, number))) for number in (_TRAINER, _NORMALIZER))
        tokens = [piece.get(1, b"").decode() for piece in pieces]
        scores = [struct.unpack("<f", piece.get(2, bytes(4)))[0] for piece in pieces]
    except (IndexError, struct.error, UnicodeDecodeError, AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(f"not a SentencePiece model: {error}") from error
    if not tokens or not trainer:
        raise TokenizerError("not a whole SentencePiece model: it has no pieces, or does not say how they were made")
    kind = trainer.get(3, 1)
    if kind not in _KINDS:
        raise TokenizerError(f"a SentencePiece model of type {kind}; unigrams (1) and BPE (2) are understood")
    named = {"unknown": trainer.get(40, 0), "bos": trainer.get(41, 1), "eos": trainer.get(42, 2)}
    return {
        "model": _KINDS[kind],
        "tokens": tokens,
        "scores": scores,
        "token_type": [piece.get(3, _NORMAL) for piece in pieces],
        "add_space_prefix": bool(normalizer.get(3, 1)),
        "remove_extra_whitespaces": bool(normalizer.get(4, 1)),
        "precompiled_charsmap": normalizer.get(2, b""),
        **{f"{name}_token_id": id_ for name, id_ in named.items() if id_ < len(tokens)},  # -1, without sign, is none
    }


def with_added(header: dict[str, Any], added: Mapping[int, tuple[str, int]]) -> dict[str, Any]:
    """The header with tokens (text, type) by id, which a tokenizer_config.json adds or names anew."""
    tokens, types, scores = list(header["tokens"]), list(header["token_type"]), list(header["scores"])
    for id_ in range(len(tokens), max(added, default=-1) + 1):
        tokens.append(f"<unused_{id_}>")
        types.append(_UNUSED)
        scores.append(0.0)
    for id_, (text, kind) in added.items():
        tokens[id_], types[id_] = text, kind
    return header | {"tokens": tokens, "token_type": types, "scores": scores}


def _last(fields: list[tuple[int, Any]], number: int) -> bytes:
    found: bytes = next((value for key, value in reversed(fields) if key == number), b"")
    return found


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message: numbers without sign, bytes otherwise."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}[wire] if wire in (_FIXED64, _FIXED32) else len(data) + 1
        if at + size > len(data):
            raise ValueError(f"a field ends at byte {at + size} of {len(data)}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of at most 64 bits and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError(f"a number before byte {at} is too long")
