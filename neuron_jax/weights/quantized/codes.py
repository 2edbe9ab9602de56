"""Integer codes with zero points and scales -> `Blocks`, or floats where no storage has them exactly; must not know files.

A weight is (code - zero) * scale, codes and zeros without sign. Letters are those of `models.storage`.
"""

from collections.abc import Callable
from functools import partial
from math import prod

import numpy as np
import numpy.typing as npt
from attrs import frozen

from models.config import Keys
from models.storage import FLOAT32, Array, Blocks, Floats, Storage
from neuron_jax.weights.quantized.record import Files, Joined, MisfitError

Codes = npt.NDArray[np.uint8]
WIDTHS = (2, 4, 8)
"""Bits of a code that divide a byte; others straddle words."""


@frozen(eq=False, kw_only=True)
class CodeMatrix:
    """[rows, columns] of codes, not read yet. `scales` is the dtype of theirs; symmetric ones have their zero in the middle.

    `index` is the group of every column where groups do not lie in order. `codes` gives uint8 [N, K], `zeros` float32 and
    `scale` float32 [N, groups].
    """

    stem: str
    parts: tuple[str, ...]
    dtype: str
    rows: int
    columns: int
    bits: int
    group: int
    scales: str
    symmetric: bool
    index: Array | None
    codes: Callable[[], Codes]
    zeros: Callable[[], Floats]
    scale: Callable[[], Floats]

    def joined(self) -> Joined:
        """As a tensor in the narrowest storage that holds it exactly."""
        coded = code_storage(self.bits, self.group, self.scales, symmetric=self.symmetric)
        storage = coded if self.index is None else FLOAT32
        shape = (self.rows, self.columns)
        return Joined(f"{self.stem}.weight", self.parts, shape, self.dtype, storage, partial(self._read, storage))

    def _read(self, storage: Storage) -> Blocks | Array:
        codes, zeros, scale = self.codes(), self.zeros(), self.scale()
        if not storage.coded:
            index = groups_of(self.columns, self.group) if self.index is None else self.index
            return dequantized(codes, zeros, scale, index)
        self._check_promise(zeros, scale, storage)
        return _blocks(codes, zeros, scale, self.bits, storage)

    def _check_promise(self, zeros: Floats, scale: Floats, storage: Storage) -> None:
        """Raises MisfitError where the numbers are not what `storage` was told of them."""
        middle = 1 << self.bits - 1
        if self.symmetric and not np.all(zeros == middle):
            raise MisfitError(f"{self.stem} has zero points other than {middle}, and its config says symmetric")
        largest = np.max(np.abs(scale), initial=0) * (middle if storage.offset else 1)
        if storage.half and largest > np.finfo(np.float16).max:
            raise MisfitError(f"{self.stem} has offsets beyond float16: {largest}")


def read_width(keys: Keys, key: str) -> int:
    """How many bits a code has; a misfit unless it is one of WIDTHS."""
    found = keys.get(key)
    if found not in WIDTHS:
        keys.refuse(f"{key} is {found!r}, must be {', '.join(map(str, WIDTHS[:-1]))} or {WIDTHS[-1]}")
        return WIDTHS[-1]
    return int(found)


def code_storage(bits: int, group: int, scales: str, *, symmetric: bool) -> Storage:
    """What holds such codes exactly.

    A scale of 16 bits times a code or a zero is exact in float32. One of 32 bits is not: there the code has to be whole, so
    that it is rounded once.
    """
    narrow, half = scales in ("F16", "BF16"), scales == "F16"
    if bits < 8:
        return Storage(4, group, offset=True, half=half and symmetric) if narrow else Storage(8, group)
    if symmetric:
        return Storage(8, group, half=half)
    return Storage(8, group, offset=True) if narrow else FLOAT32


def _blocks(codes: Codes, zeros: Floats, scale: Floats, bits: int, storage: Storage) -> Blocks:
    """codes [N, K], zeros and scale [N, groups] -> a matrix [N, K] in the `code_storage`."""
    if storage.bits == 4:
        return Blocks(codes.view(np.int8), scale, -zeros * scale, storage)
    if bits == 8:
        offset = (np.float32(128) - zeros) * scale if storage.offset else None
        return Blocks((codes ^ np.uint8(128)).view(np.int8), scale, offset, storage)
    whole = codes.view(np.int8) - np.repeat(zeros.astype(np.int8), storage.group, axis=1)[:, : codes.shape[1]]
    return Blocks(whole, scale, None, storage)


def dequantized(codes: Codes, zeros: Floats, scale: Floats, index: Array) -> Floats:
    """Column k is in group index[k]: float32 [N, K], rounded once."""
    values = codes.astype(np.float32)
    values -= zeros[:, index]
    values *= scale[:, index]
    return values


def groups_of(columns: int, group: int) -> Array:
    """The group of every column where they lie in order, int32 [K]."""
    return np.arange(columns, dtype=np.int32) // np.int32(group)


def read_index(files: Files, name: str, columns: int, group: int) -> Array | None:
    """The group of every column, int32 [K]; None where they lie in order, as they do without such a tensor.

    Raises MisfitError where it names groups that are not there.
    """
    if name not in files.tensors:
        return None
    index = files.read(name)
    if index.shape != (columns,) or index.dtype != np.int32:
        raise MisfitError(f"{name} is {index.dtype} {index.shape}, must be int32 ({columns},)")
    if np.array_equal(index, groups_of(columns, group)) or np.all(index == -1):  # not used, and written all the same
        return None
    if index.min() < 0 or index.max() >= -(-columns // group):
        raise MisfitError(f"{name} names groups {index.min()} to {index.max()} of {-(-columns // group)}")
    return index


def unpack(words: Array, bits: int) -> Codes:
    """Words of 32 bits [..., n] -> codes [..., n * 32 / bits], the lowest bits first."""
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields = raw[..., None] >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(*raw.shape[:-1], -1)


def broadcast_scale(scale: Array, rows: int, groups: int) -> Floats:
    """One number, one per row, or one per group -> float32 [N, groups]."""
    wide = scale.astype(np.float32)
    if wide.ndim < 2:
        wide = wide.reshape(-1, 1)
    return np.ascontiguousarray(np.broadcast_to(wide, (rows, groups)))


def is_scale(shape: tuple[int, ...], rows: int, groups: int) -> bool:
    """Whether `broadcast_scale` takes it."""
    return prod(shape) == 1 or shape in ((rows,), (rows, 1), (rows, groups))
