"""The steps that unpackers of GGUF blocks share; knows bytes and numpy, must not know formats or files."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from attrs import frozen

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@frozen
class Unpacked:
    """Of every block: codes uint8 or int8 [blocks, weights], scale and offset [blocks, groups]."""

    codes: npt.NDArray[np.uint8] | npt.NDArray[np.int8]
    scale: Floats
    offset: Floats | None = None


Unpack = Callable[[Bytes], Unpacked]
"""Takes uint8 [blocks, bytes per block]."""


def half(raw: Bytes) -> Floats:
    """uint8 [N, 2 n] holding float16 -> float32 [N, n]."""
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def words(raw: Bytes) -> npt.NDArray[np.uint16]:
    """uint8 [N, 2 n] -> uint16 [N, n]."""
    return np.ascontiguousarray(raw).view(np.uint16)


def nibbles(raw: Bytes) -> Bytes:
    """[N, n] -> [N, 2 n]: all low halves, then all high halves."""
    return np.concatenate([raw & 15, raw >> 4], axis=-1)


def fields(raw: Bytes, bits: int) -> Bytes:
    """[N, g, n] -> [N, g * 8 / bits * n]: the lowest `bits` of each byte of a g first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (raw[:, :, None, :] >> shifts & np.uint8(2**bits - 1)).reshape(len(raw), -1)


def neighbours(raw: Bytes, bits: int) -> Bytes:
    """[N, n] -> [N, n * 8 / bits]: the lowest `bits` of each byte first, beside its others."""
    return fields(raw[:, :, None], bits)
