"""GGUF blocks of one to four bits without codebooks: ternary, binary, MXFP4 and NVFP4; must not know files.

Layouts as in ggml-common.h, values as in ggml-quants.c.
"""

import numpy as np

from models.storage import E2M1
from neuron_jax.weights.gguf_bits import Bytes, Unpacked, fields, half, neighbours, nibbles
from neuron_jax.weights.quantized.mxfp4 import powers

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
_NAN = 0x7F
_DOUBLED = (2 * E2M1).astype(np.int8)


def tq1_0(raw: Bytes) -> Unpacked:
    """Five digits of base 3 to a byte, as a fraction of 256; the last four bytes have four; then d. Digits are offset by 1."""
    parts = ((raw[:, :32], 5), (raw[:, 32:48], 5), (raw[:, 48:52], 4))
    shifted = [(part[:, None] * _POWERS[:count, None]).reshape(len(raw), -1) for part, count in parts]
    d = half(raw[:, 52:])
    return Unpacked((np.concatenate(shifted, axis=-1).astype(np.uint16) * 3 >> 8).astype(np.uint8), d, -d)


def tq2_0(raw: Bytes) -> Unpacked:
    """2-bit weights, offset by 1, then d."""
    d = half(raw[:, 64:])
    return Unpacked(fields(raw[:, :64].reshape(-1, 2, 32), 2), d, -d)


def q1_0(raw: Bytes) -> Unpacked:
    """d, then bits: d or -d."""
    d = half(raw[:, :2])
    return Unpacked(neighbours(raw[:, 2:], 1), 2 * d, -d)


def q2_0(raw: Bytes) -> Unpacked:
    """d, then 2-bit weights, offset by 1."""
    d = half(raw[:, :2])
    return Unpacked(neighbours(raw[:, 2:], 2), d, -d)


def mxfp4(raw: Bytes) -> Unpacked:
    """An exponent, then 4-bit floats."""
    return Unpacked(nibbles(raw[:, 1:]), powers(raw[:, :1]))


def nvfp4(raw: Bytes) -> Unpacked:
    """Four float8 scales, E4M3 of which the sign does not count and NaN is zero, then four groups of 16 4-bit floats."""
    exponent, fraction = (raw[:, :4] >> 3 & 15).astype(np.int32), (raw[:, :4] & 7).astype(np.float32)
    scale = np.ldexp(fraction + np.float32(8) * (exponent > 0), np.maximum(exponent, 1) - 11).astype(np.float32)
    codes = _DOUBLED[nibbles(raw[:, 4:].reshape(-1, 8))]
    return Unpacked(codes.reshape(-1, 64), np.where(raw[:, :4] == _NAN, np.float32(0), scale))
