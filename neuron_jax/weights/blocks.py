"""The block formats of GGUF tensors -> float32, vectorized; knows bytes and numpy, must not know files.

Each decoder takes uint8 [blocks, bytes per block] and gives float32 [blocks, weights per block]. `d` is a block's scale
and `m` its minimum throughout, as in ggml's own block structs (ggml-common.h), which define the layouts.
"""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from attrs import frozen

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Decoder = Callable[[Bytes], Floats]

_IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_SUPER = 256
"""Weights in a block of the K formats."""


@frozen
class BlockFormat:
    """One tensor type of GGUF: `size` bytes hold `weights` values."""

    name: str
    weights: int
    size: int
    decode: Decoder


def _half(raw: Bytes) -> Floats:
    """uint8 [N, 2 n] holding float16 -> float32 [N, n]."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _plain(dtype: Any) -> Decoder:
    return lambda raw: np.ascontiguousarray(raw).view(dtype).astype(np.float32)


def _signed(raw: Bytes) -> Floats:
    return np.ascontiguousarray(raw).view(np.int8).astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """[N, n] -> [N, 2 n]: all low halves, then all high halves."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _fields(raw: Bytes, bits: int) -> Bytes:
    """[N, g, n] -> [N, g, 8 / bits, n]: the lowest `bits` of each byte first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return raw[:, :, None, :] >> shifts & np.uint8(2**bits - 1)


def _fifth_bits(raw: Bytes) -> Bytes:
    """uint8 [N, 4] holding 32 bits -> [N, 32] of 0 or 16."""
    return np.unpackbits(raw, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(raw: Bytes) -> Floats:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw: Bytes) -> Floats:
    return _half(raw[:, :2]) * _nibbles(raw[:, 4:]) + _half(raw[:, 2:4])


def _q5_0(raw: Bytes) -> Floats:
    return _half(raw[:, :2]) * ((_nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])).astype(np.float32) - 16)


def _q5_1(raw: Bytes) -> Floats:
    return _half(raw[:, :2]) * (_nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])) + _half(raw[:, 2:4])


def _q8_0(raw: Bytes) -> Floats:
    return _half(raw[:, :2]) * _signed(raw[:, 2:])


def _iq4_nl(raw: Bytes) -> Floats:
    values: Floats = _IQ4_NL[_nibbles(raw[:, 2:])]
    return _half(raw[:, :2]) * values


def _q2_k(raw: Bytes) -> Floats:
    """16 groups of 16: 4-bit scale and minimum, then 2-bit weights, then d and m."""
    scales, quants = raw[:, :16], raw[:, 16:80].reshape(-1, 2, 32)
    d, m = _half(raw[:, 80:82]), _half(raw[:, 82:84])
    weights = _fields(quants, 2).reshape(-1, 16, 16)
    factors, minima = d * (scales & 15).astype(np.float32), m * (scales >> 4).astype(np.float32)
    values: Floats = factors[..., None] * weights - minima[..., None]
    return values.reshape(-1, _SUPER)


def _q3_k(raw: Bytes) -> Floats:
    """32 bytes of inverted third bits, 2-bit weights, 16 packed 6-bit scales, d."""
    high = _fields(raw[:, :32].reshape(-1, 1, 32), 1).reshape(-1, 16, 16)
    low = _fields(raw[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    weights = low.astype(np.float32) - 4 * (high == 0).astype(np.float32)
    scales = _half(raw[:, 108:110]) * (_q3_scales(raw[:, 96:108]) - 32)
    values: Floats = scales[..., None] * weights
    return values.reshape(-1, _SUPER)


def _q3_scales(raw: Bytes) -> Floats:
    """[N, 12] -> [N, 16]: low 4 bits from the first 8 bytes, high 2 bits from the last 4."""
    low = _nibbles(raw[:, :8])
    high = _fields(raw[:, None, 8:], 2).reshape(-1, 16)
    return (low | high << 4).astype(np.float32)


def _k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """[N, 12] -> 6-bit scales and minima, each [N, 8]; the last four of each borrow their high bits from the first."""
    first, second, third = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(raw: Bytes) -> Floats:
    scales, minima = _k_scales(raw[:, 4:16])
    weights = _fields(raw[:, 16:144].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _scaled(raw, weights, scales, minima)


def _q5_k(raw: Bytes) -> Floats:
    scales, minima = _k_scales(raw[:, 4:16])
    high = _fields(raw[:, 16:48].reshape(-1, 1, 32), 1).reshape(-1, 8, 32)
    low = _fields(raw[:, 48:176].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _scaled(raw, low | high << np.uint8(4), scales, minima)


def _scaled(raw: Bytes, weights: Bytes, scales: Floats, minima: Floats) -> Floats:
    d, m = _half(raw[:, 0:2]), _half(raw[:, 2:4])
    return ((d * scales)[..., None] * weights - (m * minima)[..., None]).reshape(-1, _SUPER)


def _q6_k(raw: Bytes) -> Floats:
    """Low 4 bits, high 2 bits, 16 int8 scales, d; weights are offset by 32."""
    low = _fields(raw[:, :128].reshape(-1, 2, 64), 4).reshape(-1, _SUPER)
    high = _fields(raw[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, _SUPER)
    weights = (low | high << 4).astype(np.float32) - 32
    scales = _half(raw[:, 208:210]) * _signed(raw[:, 192:208])
    return (scales[..., None] * weights.reshape(-1, 16, 16)).reshape(-1, _SUPER)


FORMATS: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4, _plain(np.float32)),
    1: BlockFormat("F16", 1, 2, _plain(np.float16)),
    2: BlockFormat("Q4_0", 32, 18, _q4_0),
    3: BlockFormat("Q4_1", 32, 20, _q4_1),
    6: BlockFormat("Q5_0", 32, 22, _q5_0),
    7: BlockFormat("Q5_1", 32, 24, _q5_1),
    8: BlockFormat("Q8_0", 32, 34, _q8_0),
    10: BlockFormat("Q2_K", _SUPER, 84, _q2_k),
    11: BlockFormat("Q3_K", _SUPER, 110, _q3_k),
    12: BlockFormat("Q4_K", _SUPER, 144, _q4_k),
    13: BlockFormat("Q5_K", _SUPER, 176, _q5_k),
    14: BlockFormat("Q6_K", _SUPER, 210, _q6_k),
    20: BlockFormat("IQ4_NL", 32, 18, _iq4_nl),
    30: BlockFormat("BF16", 1, 2, _plain(ml_dtypes.bfloat16)),
}
"""ggml type number -> format."""


def decode(block: BlockFormat, raw: Bytes, shape: tuple[int, ...]) -> Floats:
    """The tensor of `shape` whose blocks are `raw` (flat)."""
    return block.decode(raw.reshape(-1, block.size)).reshape(shape)
