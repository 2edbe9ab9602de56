"""Matrices in the layout of the kernels: tiles of 32 rows; knows numpy and `Storage`, must not know jax or families.

    floats [tiles, K, 32] in the storage's own type
    codes [tiles, K / 4, 32, 4], or [tiles, K / 4, 16, 4] of two 4-bit codes: row i low, row i + 16 high
    scale, offset [tiles, K / group, 32], float16 when exact, else float32

Four codes of a row lie together, which is what instructions that sum products of short integers take. All parts come one
after the other in one array of bytes: every argument of a program costs a step some microseconds of the host, and a model
has hundreds of matrices. Rows past the matrix's own are zeros. A gated pair of matrices has the tiles of both in turn.
"""

from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from attrs import frozen

from models.storage import FLOAT32, Array, Blocks, Storage

TILE = 32
_HALF = TILE // 2
_WORD = 4
"""Codes of a row that lie together."""
_LEAST = 16
"""Columns that share a scale and that the kernels round together, at least and at most twice as many: see src/activations.h."""
_LINE = 64
"""Bytes that XLA's arrays on a CPU are aligned to: one of ours that is, too, becomes a device's without being copied."""


@frozen
class Tiles:
    """The layout of a matrix [rows, columns] in `storage`; `gated`: its upper half gates its lower half. Of a `stack` of them
    each has tiles of its own, one matrix's after the other's.
    """

    rows: int
    columns: int
    storage: Storage
    gated: bool = False
    stack: int = 1

    @classmethod
    def plan(cls, rows: int, columns: int, storage: Storage, *, gated: bool = False, stack: int = 1) -> "Tiles":
        """Float32 where the groups do not divide the columns, or are no multiples of 16."""
        whole = not storage.coded or (columns % storage.group == 0 and storage.group % _LEAST == 0)
        return cls(rows, columns, storage if whole else FLOAT32, gated, stack)

    @property
    def outputs(self) -> int:
        """What one row of x becomes."""
        return self.rows // 2 if self.gated else self.rows

    @property
    def code(self) -> int:
        """The kernels' number of what the codes are."""
        if self.storage.coded:
            return 4 if self.storage.bits == 4 else 3
        return {np.float32: 0, ml_dtypes.bfloat16: 1, np.float16: 2}[self.storage.dtype.type]

    @property
    def nbytes(self) -> int:
        """Of the array that `pack` makes."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self._parts)

    def pack(self, matrix: Array | Blocks) -> Array:
        """uint8 [nbytes]; `matrix` is [stack * rows, columns] in `storage`, or float of any shape of that size."""
        if not isinstance(matrix, Blocks) or not self.storage.coded:
            floats = matrix.dequantize() if isinstance(matrix, Blocks) else matrix
            arrays: tuple[Array, ...] = (floats.reshape(-1, self.columns),)
        else:
            assert matrix.storage == self.storage, f"{matrix.storage}, not {self.storage}"
            arrays = matrix.arrays
        made, at = _empty(self.nbytes), 0
        for array, (shape, dtype) in zip(arrays, self._parts, strict=True):
            end = at + prod(shape) * dtype.itemsize
            self._tile(array, made[at:end].view(dtype).reshape(shape))
            at = end
        return made

    @property
    def _parts(self) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and dtype of the codes, the scales and the offsets, in their order."""
        count, storage = self.count, self.storage
        if not storage.coded:
            return [((count, self.columns, TILE), storage.dtype)]
        codes = (count, self.columns // _WORD, _HALF if storage.bits == 4 else TILE), np.dtype(np.uint32)
        scale = (count, self.columns // storage.group, TILE), np.dtype(np.float16 if storage.half else np.float32)
        return [codes, *[scale] * (1 + storage.offset)]

    @property
    def count(self) -> int:
        """Of tiles, those of a gated pair and of a stack together."""
        return self.stack * (2 if self.gated else 1) * -(-self.outputs // TILE)

    def _tile(self, matrix: Array, tiled: Array) -> None:
        """[stack * rows, n] into [tiles, n, 32], of codes [tiles, n / 4, 32] or, two to a byte, [tiles, n / 4, 16]."""
        parts = 2 if self.gated else 1
        each, columns = -(-self.outputs // TILE), matrix.shape[1]
        rows = matrix if matrix.dtype == np.int8 else matrix.astype(tiled.dtype, copy=False)
        rows = rows.reshape(self.stack, parts, self.outputs, columns)
        if self.outputs % TILE:
            padded = np.zeros((self.stack, parts, each * TILE, columns), rows.dtype)
            padded[:, :, : self.outputs] = rows
            rows = padded
        rows = rows.reshape(self.stack, parts, each, TILE, columns).swapaxes(1, 2)
        if rows.dtype == np.int8:
            rows = _words(rows, halves=tiled.shape[-1] == _HALF)
        tiled.reshape(*rows.shape[:3], *tiled.shape[1:])[...] = rows.swapaxes(3, 4)


def _words(codes: Array, *, halves: bool) -> Array:
    """int8 [..., 32, n] -> uint32 [..., 32, n / 4]; of `halves` of 4 bits [..., 16, n / 4], the second 16 rows high."""
    if halves:
        low, high = codes[..., :_HALF, :].view(np.uint8), codes[..., _HALF:, :].view(np.uint8)
        codes = high << np.uint8(4)
        codes |= low
    return np.ascontiguousarray(codes).view(np.dtype("<u4"))


def _empty(nbytes: int) -> Array:
    """uint8 [nbytes], aligned to a line."""
    room = np.empty(nbytes + _LINE, np.uint8)
    begin = -room.ctypes.data % _LINE
    return room[begin : begin + nbytes]
