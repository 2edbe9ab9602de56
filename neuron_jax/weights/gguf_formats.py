"""The block formats of GGUF tensors -> codes and scales, vectorized; knows bytes and numpy, must not know files.

`d` is a block's scale and `m` its minimum throughout, as in ggml's own block structs (ggml-common.h), which define the
layouts.
"""

import numpy as np
from attrs import frozen

from models.native.unpacking import unpacks
from models.storage import BFLOAT16, FLOAT16, FLOAT32, MXFP4, Blocks, Storage
from neuron_jax.weights import gguf_iq, gguf_narrow
from neuron_jax.weights.gguf_bits import Bytes, Floats, Unpack, Unpacked, fields, half, nibbles

_IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
_SUPER = 256
"""Weights in a block of the K formats."""


@frozen
class BlockFormat:
    """One tensor type of GGUF: `size` bytes hold `weights` values. Without `unpack` they are floats as they lie."""

    name: str
    weights: int
    size: int
    storage: Storage
    unpack: Unpack | None = None


def _fifth_bits(raw: Bytes) -> Bytes:
    """uint8 [N, 4] holding 32 bits -> [N, 32] of 0 or 16."""
    return np.unpackbits(raw, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(raw: Bytes) -> Unpacked:
    d = half(raw[:, :2])
    return Unpacked(nibbles(raw[:, 2:]), d, -8 * d)


def _q4_1(raw: Bytes) -> Unpacked:
    return Unpacked(nibbles(raw[:, 4:]), half(raw[:, :2]), half(raw[:, 2:4]))


def _q5_0(raw: Bytes) -> Unpacked:
    codes = nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
    return Unpacked(codes.view(np.int8) - np.int8(16), half(raw[:, :2]))


def _q5_1(raw: Bytes) -> Unpacked:
    return Unpacked(nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8]), half(raw[:, :2]), half(raw[:, 2:4]))


def _q8_0(raw: Bytes) -> Unpacked:
    return Unpacked(raw[:, 2:], half(raw[:, :2]))


def _iq4_nl(raw: Bytes) -> Unpacked:
    return Unpacked(_IQ4_NL[nibbles(raw[:, 2:])], half(raw[:, :2]))


def _iq4_xs(raw: Bytes) -> Unpacked:
    """d, the high 2 bits of 8 scales, their low 4 bits, then 8 groups of 32 codes of IQ4_NL."""
    high = fields(raw[:, 2:4, None], 2)
    low = fields(raw[:, 4:8, None], 4)
    codes = _IQ4_NL[nibbles(raw[:, 8:].reshape(-1, 16))]
    return Unpacked(codes.reshape(-1, _SUPER), half(raw[:, :2]) * ((low | high << np.uint8(4)).astype(np.float32) - 32))


def _q2_k(raw: Bytes) -> Unpacked:
    """16 groups of 16: 4-bit scale and minimum, then 2-bit weights, then d and m."""
    scales, quants = raw[:, :16], raw[:, 16:80].reshape(-1, 2, 32)
    d, m = half(raw[:, 80:82]), half(raw[:, 82:84])
    return Unpacked(fields(quants, 2), d * (scales & 15).astype(np.float32), -m * (scales >> 4).astype(np.float32))


def _q3_k(raw: Bytes) -> Unpacked:
    """32 bytes of third bits, 2-bit weights, 16 packed 6-bit scales, d; weights are offset by 4."""
    high = fields(raw[:, :32].reshape(-1, 1, 32), 1)
    low = fields(raw[:, 32:96].reshape(-1, 2, 32), 2)
    scales = half(raw[:, 108:110]) * (_q3_scales(raw[:, 96:108]) - 32)
    return Unpacked(low | high << np.uint8(2), scales, -4 * scales)


def _q3_scales(raw: Bytes) -> Floats:
    """[N, 12] -> [N, 16]: low 4 bits from the first 8 bytes, high 2 bits from the last 4."""
    return (nibbles(raw[:, :8]) | fields(raw[:, None, 8:], 2) << np.uint8(4)).astype(np.float32)


def _k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """Scales and offsets, each [N, 8], of d, m and 12 bytes: 6-bit factors, the last four of each kind borrowing their
    high bits from the first."""
    d, m = half(raw[:, 0:2]), half(raw[:, 2:4])
    first, second, third = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return d * scales.astype(np.float32), -m * minima.astype(np.float32)


def _q4_k(raw: Bytes) -> Unpacked:
    return Unpacked(fields(raw[:, 16:144].reshape(-1, 4, 32), 4), *_k_scales(raw[:, :16]))


def _q5_k(raw: Bytes) -> Unpacked:
    high = fields(raw[:, 16:48].reshape(-1, 1, 32), 1)
    low = fields(raw[:, 48:176].reshape(-1, 4, 32), 4)
    return Unpacked(low | high << np.uint8(4), *_k_scales(raw[:, :16]))


def _q6_k(raw: Bytes) -> Unpacked:
    """Low 4 bits, high 2 bits, 16 int8 scales, d; weights are offset by 32."""
    low = fields(raw[:, :128].reshape(-1, 2, 64), 4)
    high = fields(raw[:, 128:192].reshape(-1, 2, 32), 2)
    scales = half(raw[:, 208:210]) * np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
    return Unpacked((low | high << np.uint8(4)).view(np.int8) - np.int8(32), scales)


FORMATS: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4, FLOAT32),
    1: BlockFormat("F16", 1, 2, FLOAT16),
    2: BlockFormat("Q4_0", 32, 18, Storage(4, 32, offset=True, half=True), _q4_0),
    3: BlockFormat("Q4_1", 32, 20, Storage(4, 32, offset=True, half=True), _q4_1),
    6: BlockFormat("Q5_0", 32, 22, Storage(8, 32, half=True), _q5_0),
    7: BlockFormat("Q5_1", 32, 24, Storage(8, 32, offset=True, half=True), _q5_1),
    8: BlockFormat("Q8_0", 32, 34, Storage(8, 32, half=True), _q8_0),
    10: BlockFormat("Q2_K", _SUPER, 84, Storage(4, 16, offset=True), _q2_k),
    11: BlockFormat("Q3_K", _SUPER, 110, Storage(4, 16, offset=True), _q3_k),
    12: BlockFormat("Q4_K", _SUPER, 144, Storage(4, 32, offset=True), _q4_k),
    13: BlockFormat("Q5_K", _SUPER, 176, Storage(8, 32, offset=True), _q5_k),
    14: BlockFormat("Q6_K", _SUPER, 210, Storage(8, 16), _q6_k),
    16: BlockFormat("IQ2_XXS", _SUPER, 66, Storage(8, 32), gguf_iq.iq2_xxs),
    17: BlockFormat("IQ2_XS", _SUPER, 74, Storage(8, 16), gguf_iq.iq2_xs),
    18: BlockFormat("IQ3_XXS", _SUPER, 98, Storage(8, 32), gguf_iq.iq3_xxs),
    19: BlockFormat("IQ1_S", _SUPER, 50, Storage(4, 32, offset=True), gguf_iq.iq1_s),
    20: BlockFormat("IQ4_NL", 32, 18, Storage(8, 32, half=True), _iq4_nl),
    21: BlockFormat("IQ3_S", _SUPER, 110, Storage(8, 32), gguf_iq.iq3_s),
    22: BlockFormat("IQ2_S", _SUPER, 82, Storage(8, 16), gguf_iq.iq2_s),
    23: BlockFormat("IQ4_XS", _SUPER, 136, Storage(8, 32), _iq4_xs),
    29: BlockFormat("IQ1_M", _SUPER, 56, Storage(8, 16), gguf_iq.iq1_m),
    30: BlockFormat("BF16", 1, 2, BFLOAT16),
    34: BlockFormat("TQ1_0", _SUPER, 54, Storage(4, _SUPER, offset=True, half=True), gguf_narrow.tq1_0),
    35: BlockFormat("TQ2_0", _SUPER, 66, Storage(4, _SUPER, offset=True, half=True), gguf_narrow.tq2_0),
    39: BlockFormat("MXFP4", 32, 17, MXFP4, gguf_narrow.mxfp4),
    40: BlockFormat("NVFP4", 64, 36, Storage(8, 16), gguf_narrow.nvfp4),
    41: BlockFormat("Q1_0", 128, 18, Storage(4, 128, offset=True), gguf_narrow.q1_0),
    42: BlockFormat("Q2_0", 64, 18, Storage(4, 64, offset=True, half=True), gguf_narrow.q2_0),
}
"""ggml type number -> format."""
NUMBERS = {block.name: number for number, block in FORMATS.items()}
"""And back, by name."""


def unpack_into(target: Blocks, rows: slice, block: BlockFormat, raw: Bytes) -> None:
    """The `rows` of `target` from the bytes of their blocks, natively where that is possible."""
    assert block.unpack is not None, f"{block.name} has no blocks"
    native, offset = unpacks(), None if target.offset is None else target.offset[rows]
    if native and native(NUMBERS[block.name], raw, target.codes[rows], target.scale[rows], offset):
        return
    found = block.unpack(raw.reshape(-1, block.size))
    target.codes[rows] = found.codes.view(np.int8).reshape(-1, target.shape[1])
    target.scale[rows] = found.scale.reshape(-1, target.scale.shape[1])
    if target.offset is not None:
        assert found.offset is not None, f"{block.name} has no offsets"
        target.offset[rows] = found.offset.reshape(-1, target.scale.shape[1])
