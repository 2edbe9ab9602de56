"""The block formats of GGUF tensors -> codes and scales, vectorized; knows bytes and numpy, must not know files.

Each unpacker takes uint8 [blocks, bytes per block]. `d` is a block's scale and `m` its minimum throughout, as in ggml's
own block structs (ggml-common.h), which define the layouts.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from attrs import frozen

from models.storage import BFLOAT16, FLOAT16, FLOAT32, Blocks, Storage

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@frozen
class Unpacked:
    """Of every block: codes uint8 or int8 [blocks, weights], scale and offset [blocks, groups]."""

    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    scale: Floats
    offset: Floats | None = None


Unpack = Callable[[Bytes], Unpacked]

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


def _half(raw: Bytes) -> Floats:
    """uint8 [N, 2 n] holding float16 -> float32 [N, n]."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _nibbles(raw: Bytes) -> Bytes:
    """[N, n] -> [N, 2 n]: all low halves, then all high halves."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def _fields(raw: Bytes, bits: int) -> Bytes:
    """[N, g, n] -> [N, g * 8 / bits * n]: the lowest `bits` of each byte of a g first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (raw[:, :, None, :] >> shifts & np.uint8(2**bits - 1)).reshape(len(raw), -1)


def _fifth_bits(raw: Bytes) -> Bytes:
    """uint8 [N, 4] holding 32 bits -> [N, 32] of 0 or 16."""
    return np.unpackbits(raw, axis=-1, bitorder="little") << np.uint8(4)


def _q4_0(raw: Bytes) -> Unpacked:
    d = _half(raw[:, :2])
    return Unpacked(_nibbles(raw[:, 2:]), d, -8 * d)


def _q4_1(raw: Bytes) -> Unpacked:
    return Unpacked(_nibbles(raw[:, 4:]), _half(raw[:, :2]), _half(raw[:, 2:4]))


def _q5_0(raw: Bytes) -> Unpacked:
    codes = _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
    return Unpacked(codes.view(np.int8) - np.int8(16), _half(raw[:, :2]))


def _q5_1(raw: Bytes) -> Unpacked:
    return Unpacked(_nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8]), _half(raw[:, :2]), _half(raw[:, 2:4]))


def _q8_0(raw: Bytes) -> Unpacked:
    return Unpacked(raw[:, 2:], _half(raw[:, :2]))


def _iq4_nl(raw: Bytes) -> Unpacked:
    return Unpacked(_IQ4_NL[_nibbles(raw[:, 2:])], _half(raw[:, :2]))


def _iq4_xs(raw: Bytes) -> Unpacked:
    """d, the high 2 bits of 8 scales, their low 4 bits, then 8 groups of 32 codes of IQ4_NL."""
    high = _fields(raw[:, 2:4, None], 2)
    low = _fields(raw[:, 4:8, None], 4)
    codes = _IQ4_NL[_nibbles(raw[:, 8:].reshape(-1, 16))]
    return Unpacked(
        codes.reshape(-1, _SUPER), _half(raw[:, :2]) * ((low | high << np.uint8(4)).astype(np.float32) - 32)
    )


def _q2_k(raw: Bytes) -> Unpacked:
    """16 groups of 16: 4-bit scale and minimum, then 2-bit weights, then d and m."""
    scales, quants = raw[:, :16], raw[:, 16:80].reshape(-1, 2, 32)
    d, m = _half(raw[:, 80:82]), _half(raw[:, 82:84])
    return Unpacked(_fields(quants, 2), d * (scales & 15).astype(np.float32), -m * (scales >> 4).astype(np.float32))


def _q3_k(raw: Bytes) -> Unpacked:
    """32 bytes of third bits, 2-bit weights, 16 packed 6-bit scales, d; weights are offset by 4."""
    high = _fields(raw[:, :32].reshape(-1, 1, 32), 1)
    low = _fields(raw[:, 32:96].reshape(-1, 2, 32), 2)
    scales = _half(raw[:, 108:110]) * (_q3_scales(raw[:, 96:108]) - 32)
    return Unpacked(low | high << np.uint8(2), scales, -4 * scales)


def _q3_scales(raw: Bytes) -> Floats:
    """[N, 12] -> [N, 16]: low 4 bits from the first 8 bytes, high 2 bits from the last 4."""
    return (_nibbles(raw[:, :8]) | _fields(raw[:, None, 8:], 2) << np.uint8(4)).astype(np.float32)


def _k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """Scales and offsets, each [N, 8], of d, m and 12 bytes: 6-bit factors, the last four of each kind borrowing their
    high bits from the first."""
    d, m = _half(raw[:, 0:2]), _half(raw[:, 2:4])
    first, second, third = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=-1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=-1)
    return d * scales.astype(np.float32), -m * minima.astype(np.float32)


def _q4_k(raw: Bytes) -> Unpacked:
    return Unpacked(_fields(raw[:, 16:144].reshape(-1, 4, 32), 4), *_k_scales(raw[:, :16]))


def _q5_k(raw: Bytes) -> Unpacked:
    high = _fields(raw[:, 16:48].reshape(-1, 1, 32), 1)
    low = _fields(raw[:, 48:176].reshape(-1, 4, 32), 4)
    return Unpacked(low | high << np.uint8(4), *_k_scales(raw[:, :16]))


def _q6_k(raw: Bytes) -> Unpacked:
    """Low 4 bits, high 2 bits, 16 int8 scales, d; weights are offset by 32."""
    low = _fields(raw[:, :128].reshape(-1, 2, 64), 4)
    high = _fields(raw[:, 128:192].reshape(-1, 2, 32), 2)
    scales = _half(raw[:, 208:210]) * np.ascontiguousarray(raw[:, 192:208]).view(np.int8).astype(np.float32)
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
    20: BlockFormat("IQ4_NL", 32, 18, Storage(8, 32, half=True), _iq4_nl),
    23: BlockFormat("IQ4_XS", _SUPER, 136, Storage(8, 32), _iq4_xs),
    30: BlockFormat("BF16", 1, 2, BFLOAT16),
}
"""ggml type number -> format."""


def unpack_into(target: Blocks, rows: slice, block: BlockFormat, raw: Bytes) -> None:
    """The `rows` of `target` from the bytes of their blocks."""
    assert block.unpack is not None, f"{block.name} has no blocks"
    found = block.unpack(raw.reshape(-1, block.size))
    target.codes[rows] = found.codes.view(np.int8).reshape(-1, target.shape[1])
    target.scale[rows] = found.scale.reshape(-1, target.scale.shape[1])
    if target.offset is not None:
        assert found.offset is not None, f"{block.name} has no offsets"
        target.offset[rows] = found.offset.reshape(-1, target.scale.shape[1])
