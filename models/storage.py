"""Matrices as checkpoints store them: codes with a scale per group; knows numpy, must not know files, jax or layers.

Letters: N rows (out-dimensions, flattened), K columns (in-dimensions, flattened).
"""

from collections.abc import Callable
from math import gcd, prod
from typing import Any, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt
from attrs import evolve, frozen

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""By code. https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf, section 5.3.3."""

_DOUBLED = (2 * E2M1).astype(np.int8)


@frozen
class Storage:
    """What a tensor is stored as. Codes of 4 or 8 `bits` with a scale per `group` columns, and an offset if `offset`.

    `half`: scale and offset are exact in float16. 16 bits are float16 if `half`, else bfloat16; 32 bits are float32.
    `e2m1`: codes are floats of 4 bits, and scales powers of two.
    """

    bits: int
    group: int = 0
    offset: bool = False
    half: bool = False
    e2m1: bool = False

    @property
    def coded(self) -> bool:
        """Codes and scales, not floats."""
        return self.bits < 16

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an array stored so; none of codes."""
        assert not self.coded, f"{self} is no dtype"
        if self.bits == 32:
            return np.dtype(np.float32)
        return np.dtype(np.float16 if self.half else ml_dtypes.bfloat16)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor whose last axis is K, each code and scale in its own bits, without padding."""
        codes = -(-prod(shape) * self.bits // 8)
        if not self.coded:
            return codes
        groups = prod(shape[:-1]) * -(-shape[-1] // self.group)
        return codes + groups * (1 + self.offset) * (1 if self.e2m1 else 2 if self.half else 4)

    @property
    def integers(self) -> "Storage":
        """The same values with codes that are integers: twice a float of 4 bits is one, of 8 bits."""
        return Storage(8, self.group) if self.e2m1 else self

    @classmethod
    def join(cls, *storages: "Storage") -> "Storage":
        """The narrowest storage that holds tensors of all these exactly: one matrix made of several has it."""
        assert storages, "nothing to join"
        if len(set(storages)) == 1:
            return storages[0]
        if not all(storage.coded for storage in storages):
            return FLOAT32
        whole = [storage.integers for storage in storages]
        return cls(
            bits=max(storage.bits for storage in whole),
            group=gcd(*(storage.group for storage in whole)),
            offset=any(storage.offset for storage in whole),
            half=all(storage.half for storage in whole),
        )


FLOAT32, FLOAT16, BFLOAT16 = Storage(32), Storage(16, half=True), Storage(16)
MXFP4 = Storage(4, 32, e2m1=True)


def storage_of(dtype: Any) -> Storage:
    """The storage of float arrays of `dtype`."""
    return next(storage for storage in (FLOAT32, FLOAT16, BFLOAT16) if storage.dtype == dtype)


@frozen(eq=False)
class Blocks:
    """A matrix [N, K]: scale[n, k // group] * code[n, k] + offset[n, k // group], rounded once to float32.

    Codes of 4 bits are 0..15, those of 8 bits -128..127; where the storage is of `e2m1`, they stand for the numbers of that
    table. The last group of a row may be short. The product of a scale and a code is exact in float32 whatever the scales
    come from (they have few bits), so it does not matter whether a program fuses the sum with it.
    """

    codes: npt.NDArray[np.int8]
    scale: Floats
    offset: Floats | None
    storage: Storage

    def __attrs_post_init__(self) -> None:
        rows, columns = self.codes.shape
        groups = (rows, -(-columns // self.storage.group))
        assert self.codes.dtype == np.int8, self.codes.dtype
        assert self.scale.shape == groups, f"{self.scale.shape} scales, not {groups}"
        assert (self.offset is not None) == self.storage.offset, f"{self.storage} and its offsets"
        assert self.offset is None or self.offset.shape == groups, "offsets unlike scales"

    @classmethod
    def zeros(cls, rows: int, columns: int, storage: Storage) -> Self:
        """A matrix of zeros, to be filled."""
        groups = (rows, -(-columns // storage.group))
        offset = np.zeros(groups, np.float32) if storage.offset else None
        return cls(np.zeros((rows, columns), np.int8), np.zeros(groups, np.float32), offset, storage)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Codes, scale, and offset if there is one; rows are their first axis."""
        return (self.codes, self.scale) if self.offset is None else (self.codes, self.scale, self.offset)

    @property
    def nbytes(self) -> int:
        """In memory as it is here, a byte for every code."""
        return sum(array.nbytes for array in self.arrays)

    def by_rows(self, arrange: Callable[[Array], Array]) -> Self:
        """The same arrangement of whole rows, [N, any] -> [M, any], of codes, scale and offset."""
        arranged = [np.ascontiguousarray(arrange(array)) for array in self.arrays]
        return evolve(self, codes=arranged[0], scale=arranged[1], offset=arranged[2] if self.storage.offset else None)

    def dequantize(self) -> Floats:
        """float32 [N, K]."""
        rows, columns = self.shape
        group = self.storage.group
        full = columns // group
        values = E2M1[self.codes] if self.storage.e2m1 else self.codes.astype(np.float32)
        parts = [(values[:, : full * group].reshape(rows, full, group), slice(full))]
        if full * group < columns:
            parts.append((values[:, None, full * group :], slice(full, None)))
        for part, groups in parts:
            np.multiply(part, self.scale[:, groups, None], out=part)
            if self.offset is not None:
                np.add(part, self.offset[:, groups, None], out=part)
        return values


def to_storage(tensor: Blocks | Array, storage: Storage) -> Blocks | Array:
    """The same values in `storage`, which must hold them exactly; not to be quantized: that is `models.rounding`."""
    if not isinstance(tensor, Blocks):
        assert not storage.coded, "an array becomes codes only by rounding"
        return _exactly(tensor, storage.dtype)
    if not storage.coded:
        return _exactly(tensor.dequantize(), storage.dtype)
    return _widen(tensor, storage)


def exponents_of(scale: Floats) -> npt.NDArray[np.uint8]:
    """Powers of two as bytes, where 127 is 1. Any will do for zero, which groups have that nothing fills."""
    share, power = np.frexp(scale)
    assert np.all((share == 0.5) | (scale == 0)), "scales that are no powers of two"
    found: npt.NDArray[np.uint8] = (power + 126).astype(np.uint8)
    return found


def _exactly(array: Array, dtype: np.dtype[Any]) -> Array:
    converted = array.astype(dtype, copy=False)
    if not np.can_cast(array.dtype, dtype, "safe") and converted is not array:
        assert np.array_equal(converted.astype(array.dtype), array), f"{array.dtype} values are not exact in {dtype}"
    return converted


def _widen(blocks: Blocks, storage: Storage) -> Blocks:
    if storage == blocks.storage:
        return blocks
    blocks = _as_integers(blocks)
    narrow = blocks.storage
    wider = storage.bits >= narrow.bits and narrow.group % storage.group == 0 and storage.offset >= narrow.offset
    assert wider, f"{narrow} is not exact in {storage}"
    assert not storage.e2m1, f"{narrow} is not exact in {storage}"
    repeats = narrow.group // storage.group
    groups = -(-blocks.shape[1] // storage.group)
    scale, offset = (
        None if array is None else np.repeat(array, repeats, axis=1)[:, :groups]
        for array in (blocks.scale, blocks.offset)
    )
    assert scale is not None
    if storage.offset and offset is None:
        offset = np.zeros_like(scale)
    if storage.half and not narrow.half:
        for array in (scale, offset):
            assert array is None or np.array_equal(array.astype(np.float16).astype(np.float32), array), "not in float16"
    return Blocks(blocks.codes, scale, offset, storage)


def _as_integers(blocks: Blocks) -> Blocks:
    """See `Storage.integers`. Half of a power of two is exact down to the least of them."""
    if not blocks.storage.e2m1:
        return blocks
    return Blocks(_DOUBLED[blocks.codes], blocks.scale / np.float32(2), None, blocks.storage.integers)
