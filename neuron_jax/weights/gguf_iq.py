"""GGUF blocks whose weights are looked up in a codebook, 8 or 4 at a time: IQ1 to IQ3; must not know files.

All are blocks of 256 with a float16 scale d. Layouts as in ggml-common.h, values as in ggml-quants.c.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from neuron_jax.weights.gguf_bits import Bytes, Floats, Unpacked, half, neighbours, words
from neuron_jax.weights.gguf_codebooks import codebook

_EIGHTH = np.float32(0.125)
_SEVEN = np.arange(128, dtype=np.uint8)
_SIGNS = _SEVEN | np.array([bits.bit_count() & 1 for bits in range(128)], np.uint8) << np.uint8(7)
"""Of eight weights by seven bits: an even number of them is negative."""


def iq2_xxs(raw: Bytes) -> Unpacked:
    """Of 32 weights each: four bytes that are entries, then 4 times 7 bits of signs and 4 of scale in a word."""
    pairs = np.ascontiguousarray(raw[:, 2:]).view(np.uint32).reshape(len(raw), -1, 2)
    entries = np.ascontiguousarray(pairs[..., 0]).view(np.uint8)
    codes = _signed(codebook("IQ2_XXS")[entries], _word_signs(pairs[..., 1]))
    return Unpacked(codes, half(raw[:, :2]) * _odd(pairs[..., 1] >> 28, _EIGHTH))


def iq2_xs(raw: Bytes) -> Unpacked:
    """Words of 9 bits for an entry and 7 of signs, then a scale for every 16."""
    both = words(raw[:, 2:66])
    codes = _signed(codebook("IQ2_XS")[both & 511], _SIGNS[both >> 9])
    return Unpacked(codes, half(raw[:, :2]) * _odd(neighbours(raw[:, 66:], 4), _EIGHTH))


def iq2_s(raw: Bytes) -> Unpacked:
    """Low 8 bits of entries, signs, high 2 bits of entries, a scale for every 16."""
    entries = raw[:, 2:34] | neighbours(raw[:, 66:74], 2).astype(np.uint16) << 8
    codes = _signed(codebook("IQ2_S")[entries], raw[:, 34:66])
    return Unpacked(codes, half(raw[:, :2]) * _odd(neighbours(raw[:, 74:], 4), _EIGHTH))


def iq3_xxs(raw: Bytes) -> Unpacked:
    """Entries of four weights, then a word of signs and scale for every 32."""
    said = np.ascontiguousarray(raw[:, 66:]).view(np.uint32)
    codes = _signed(codebook("IQ3_XXS")[raw[:, 2:66]], _word_signs(said))
    return Unpacked(codes, half(raw[:, :2]) * _odd(said >> 28, np.float32(0.25)))


def iq3_s(raw: Bytes) -> Unpacked:
    """Low 8 bits of entries of four weights, their ninth bits, signs, a scale for every 32."""
    entries = raw[:, 2:66] | neighbours(raw[:, 66:74], 1).astype(np.uint16) << 8
    codes = _signed(codebook("IQ3_S")[entries], raw[:, 74:106])
    return Unpacked(codes, half(raw[:, :2]) * _odd(neighbours(raw[:, 106:], 4), np.float32(1)))


def iq1_s(raw: Bytes) -> Unpacked:
    """Low 8 bits of entries; of every 32 a word: 4 times 3 high bits, 3 of scale, the sign of a shift by an eighth.

    A weight is scale * (entry + shift), entries being -1, 0 or 1: codes are those plus one.
    """
    said = words(raw[:, 34:])
    entries = raw[:, 2:34] | _threes(said) << np.uint16(8)
    scale = half(raw[:, :2]) * _odd(said >> 12 & 7, np.float32(1))
    shift: Floats = np.where(said >> 15 == 0, _EIGHTH, -_EIGHTH) - np.float32(1)
    codes = codebook("IQ1")[entries] + np.int8(1)
    return Unpacked(codes.reshape(len(raw), -1), scale, scale * shift)


def iq1_m(raw: Bytes) -> Unpacked:
    """Low 8 bits of entries; 3 high bits and the sign of a shift for each; then four words of four 3-bit scales each, whose
    highest bits are d. Shifts are of 8 weights, scales of 16, so that codes are eighths.
    """
    said = words(raw[:, 48:])
    d = np.bitwise_or.reduce((said & np.uint16(0xF000)) >> np.array([12, 8, 4, 0], np.uint16), axis=-1, keepdims=True)
    scale = _threes(said)
    more = neighbours(raw[:, 32:48], 4)
    entries = raw[:, :32] | (more & 7).astype(np.uint16) << 8
    shift = np.where(more & 8, np.int8(-1), np.int8(1))
    codes = codebook("IQ1")[entries] * np.int8(8) + shift[..., None]
    return Unpacked(codes.reshape(len(raw), -1), d.view(np.float16).astype(np.float32) * _odd(scale, _EIGHTH))


def _signed(entries: npt.NDArray[np.int8], signs: Bytes) -> npt.NDArray[np.int8]:
    """entries [N, n, weights of an entry] and a bit for each of 256 weights -> [N, 256], negative where it is set."""
    flat = entries.reshape(len(entries), -1)
    return np.where(neighbours(signs, 1), -flat, flat)


def _word_signs(said: npt.NDArray[np.uint32]) -> Bytes:
    """Words [N, n] with 4 times 7 bits of signs -> [N, 4 n], eight bits in each."""
    sevens = said[..., None] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)
    signs: Bytes = _SIGNS[sevens].reshape(len(said), -1)
    return signs


def _threes(said: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Words [N, n] with 4 times 3 bits -> [N, 4 n]."""
    found = said[..., None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)
    return found.reshape(len(said), -1)


def _odd(factor: npt.NDArray[np.integer[Any]], unit: np.float32) -> Floats:
    """(2 factor + 1) * unit: how these formats scale a d."""
    odd: Floats = (factor.astype(np.float32) * np.float32(2) + np.float32(1)) * unit
    return odd
