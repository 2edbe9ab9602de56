"""Matrices in the layout of the kernels: tiles of 32 rows; knows numpy and `Storage`, must not know jax or families.

    codes [tiles, K, 32] in the storage's own type, or [tiles, K, 16] of two 4-bit codes: row i low, row i + 16 high
    scale, offset [tiles, K / group, 32], float16 when exact, else float32

Rows past the matrix's own are zeros. A gated pair of matrices has the tiles of both in turn.
"""

from typing import Any

import ml_dtypes
import numpy as np
from attrs import frozen

from models.blocks import FLOAT32, Array, Blocks, Storage

TILE = 32
_HALF = TILE // 2


@frozen
class Tiles:
    """The layout of a matrix [rows, columns] in `storage`; `gated`: its upper half gates its lower half."""

    rows: int
    columns: int
    storage: Storage
    gated: bool = False

    @classmethod
    def plan(cls, rows: int, columns: int, storage: Storage, *, gated: bool = False) -> "Tiles":
        """Float32 where the groups do not divide the columns."""
        whole = not storage.coded or columns % storage.group == 0
        return cls(rows, columns, storage if whole else FLOAT32, gated)

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
    def leaves(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and dtype of each array, in the order in which the kernels take them."""
        count, storage = self._tiles, self.storage
        if not storage.coded:
            return {"codes": ((count, self.columns, TILE), storage.dtype)}
        narrow = storage.bits == 4
        codes = (count, self.columns, _HALF if narrow else TILE), np.dtype(np.uint8 if narrow else np.int8)
        scale = (count, self.columns // storage.group, TILE), np.dtype(np.float16 if storage.half else np.float32)
        return {"codes": codes, "scale": scale} | ({"offset": scale} if storage.offset else {})

    def pack(self, matrix: Array | Blocks) -> dict[str, Array]:
        """The arrays of `leaves`; `matrix` is [rows, columns] in `storage`, or float of any shape of that size."""
        leaves = {name: dtype for name, (_, dtype) in self.leaves.items()}
        if not isinstance(matrix, Blocks) or not self.storage.coded:
            floats = matrix.dequantize() if isinstance(matrix, Blocks) else matrix
            return {"codes": self._tile(floats.reshape(self.rows, self.columns)).astype(leaves["codes"], copy=False)}
        assert matrix.storage == self.storage, f"{matrix.storage}, not {self.storage}"
        codes = self._tile(matrix.codes)
        if self.storage.bits == 4:
            codes = codes.view(np.uint8)
            codes = codes[..., :_HALF] | codes[..., _HALF:] << np.uint8(4)
        named = {"codes": codes, "scale": self._tile(matrix.scale)}
        if matrix.offset is not None:
            named["offset"] = self._tile(matrix.offset)
        return {name: array.astype(leaves[name], copy=False) for name, array in named.items()}

    @property
    def _tiles(self) -> int:
        return (2 if self.gated else 1) * -(-self.outputs // TILE)

    def _tile(self, matrix: Array) -> Array:
        """[rows, n] -> [tiles, n, 32]."""
        parts = 2 if self.gated else 1
        each = self._tiles // parts
        padded = np.zeros((parts, each * TILE, matrix.shape[1]), matrix.dtype)
        padded[:, : self.outputs] = matrix.reshape(parts, self.outputs, -1)
        tiled = padded.reshape(parts, each, TILE, -1).transpose(1, 0, 3, 2)
        return np.ascontiguousarray(tiled).reshape(self._tiles, -1, TILE)
