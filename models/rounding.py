"""Weights rounded to codes, by channels or in groups of a row; knows numpy, must not know layers, files or jax.

Whole models pass through here while somebody waits, so what is done in groups is laid out for the processor: chunks that stay
in its cache, groups side by side (so that a step is the same for all of them), and a thread for every core.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from models.storage import Array, Blocks, Storage

Floats = npt.NDArray[np.float32]
Rounded = tuple[Floats, Floats, Floats | None]
"""Of groups [group, n] side by side: codes [group, n], scale [n], offset [n] or None."""

INT8 = Storage(8, 32, half=True)
INT4 = Storage(4, 32, offset=True, half=True)

CHUNK = 1 << 18
"""Weights rounded at a time: a handful of float32 arrays of this size stay in a core's cache, and are small beside a tensor."""

E4M3_MOST = 448.0
"""The largest finite number of float8_e4m3fn."""

_STARTS = (1.0, 0.93, 0.86)
"""First scales of a search, as shares of the one that reaches from the least weight to the largest: what a smaller one
loses at the ends it may win in between."""

_ROUNDS = 3
_MOST8, _MOST4 = np.float32(127), np.float32(15)


def int8_by_channel(weight: npt.NDArray[Any], inputs: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """[*out, *in] with `inputs` trailing in-dimensions -> int8 of that shape and float32 scales [*out].

    Symmetric, rounded to nearest even; a channel of zeros gets scale 1. weight ~ values * scale.
    """
    outputs = weight.shape[: weight.ndim - inputs]
    rows = weight.reshape(prod(outputs), -1)
    values, scale = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    step = max(1, CHUNK // rows.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        wide = rows[part].astype(np.float32, copy=False)
        largest = np.max(np.abs(wide), axis=1)
        scale[part] = np.where(largest > 0, largest / _MOST8, np.float32(1))
        values[part] = np.rint(wide / scale[part, None])
    return values.reshape(weight.shape), scale.reshape(outputs)


def fp8_by_channel(weight: npt.NDArray[Any], inputs: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
    """[*out, *in] with `inputs` trailing in-dimensions -> float8_e4m3fn of that shape and float32 scales [*out].

    A channel of zeros gets scale 1. weight ~ values * scale.
    """
    outputs = weight.shape[: weight.ndim - inputs]
    flat = weight.reshape(prod(outputs), -1)
    values, scale = np.empty(flat.shape, ml_dtypes.float8_e4m3fn), np.empty(len(flat), np.float32)
    step = max(1, CHUNK // flat.shape[1])
    for first in range(0, len(flat), step):
        part = slice(first, first + step)
        wide = flat[part].astype(np.float32, copy=False)
        largest = np.max(np.abs(wide), axis=1)
        scale[part] = np.where(largest > 0, largest / np.float32(E4M3_MOST), np.float32(1))
        values[part] = wide / scale[part, None]
    return values.reshape(weight.shape), scale.reshape(outputs)


def int8_by_group(matrix: Array | Blocks) -> Blocks:
    """[N, K] -> INT8: symmetric, each weight within half a step of its group's scale."""
    return _quantize(matrix, INT8, _round_int8)


def int4_by_group(matrix: Array | Blocks) -> Blocks:
    """[N, K] -> INT4: scale and offset of a group are searched for the least squared error."""
    return _quantize(matrix, INT4, _round_int4)


def pack_int4(codes: npt.NDArray[np.integer[Any]], group: int) -> npt.NDArray[np.uint8]:
    """Codes 0..15 [..., I] -> bytes [..., I / 2]: in each group, byte i holds code i (low) and code i + group / 2 (high).

    Halves rather than neighbours: each half of a byte then meets its own slice of x, so that a product needs the bits
    shifted and masked but never interleaved, and XLA can fuse that into the matmul.
    """
    assert group % 16 == 0, f"groups of {group}"
    assert codes.shape[-1] % group == 0, f"{codes.shape[-1]} codes in groups of {group}"
    # Eight codes in a word, and many groups at once: numpy is slow where an innermost axis is as short as half a group.
    words = np.ascontiguousarray(codes).astype(np.int8, copy=False).view(np.uint64).reshape(-1, 2, group // 16)
    packed = np.empty(words[:, 0].shape, np.uint64)
    step = CHUNK // group
    for first in range(0, len(words), step):
        low, high, made = words[first : first + step, 0], words[first : first + step, 1], packed[first : first + step]
        for place in range(group // 16):
            made[:, place] = low[:, place] | high[:, place] << np.uint64(4)
    return packed.view(np.uint8).reshape(*codes.shape[:-1], -1)


def _quantize(matrix: Array | Blocks, storage: Storage, rounded: Callable[[Floats], Rounded]) -> Blocks:
    rows, columns = matrix.shape
    target = Blocks.zeros(rows, columns, storage)
    step = max(1, CHUNK // columns)

    def fill(first: int) -> None:
        part = slice(first, min(first + step, rows))
        codes, scale, offset = rounded(_groups(_floats(matrix, part), storage.group))
        count = part.stop - part.start
        target.codes[part] = codes.T.reshape(count, -1)[:, :columns]
        target.scale[part] = scale.reshape(count, -1)
        if target.offset is not None and offset is not None:
            target.offset[part] = offset.reshape(count, -1)

    with ThreadPoolExecutor(int(os.environ.get("CORTEX_THREADS", "0")) or len(os.sched_getaffinity(0))) as threads:
        list(threads.map(fill, range(0, rows, step)))
    return target


def _floats(matrix: Array | Blocks, rows: slice) -> Floats:
    if isinstance(matrix, Blocks):
        return matrix.by_rows(lambda array: array[rows]).dequantize()
    return matrix[rows].astype(np.float32, copy=False)


def _groups(values: Floats, group: int) -> Floats:
    """[rows, K] -> [group, rows * groups of a row]; a short group is filled up with its last weight, which changes
    neither its least nor its largest."""
    short = -values.shape[1] % group
    if short:
        values = np.pad(values, ((0, 0), (0, short)), mode="edge")
    return np.ascontiguousarray(values.reshape(-1, group).T)


def _round_int8(x: Floats) -> Rounded:
    exact = np.max(np.abs(x), axis=0) / _MOST8
    scale = exact.astype(np.float16)
    # Rounded up where it was rounded down: otherwise the largest weight would have no code.
    scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale).astype(np.float32)
    return np.rint(x * _inverse(scale)), scale, None


def _round_int4(x: Floats) -> Rounded:
    least, largest = np.min(x, axis=0), np.max(x, axis=0)
    best: tuple[Floats, Floats, Floats] | None = None
    for start in _STARTS:
        scale = (largest - least) * np.float32(start / 15)
        found = _search(x, scale, (least + largest - 15 * scale) / 2)
        best = found if best is None else _better(best, found)
    assert best is not None, "no starts"
    scale, offset = (array.astype(np.float16).astype(np.float32) for array in best[1:])
    return _codes(x, scale, offset), scale, offset


def _search(x: Floats, scale: Floats, offset: Floats) -> tuple[Floats, Floats, Floats]:
    """Error, scale and offset of each group after turns of the best codes for these and the best of these for those."""
    total = np.sum(x, axis=0)
    for _ in range(_ROUNDS):
        fitted = _fit(x, total, _codes(x, scale, offset))
        usable = fitted[0] > 0
        scale, offset = np.where(usable, fitted[0], scale), np.where(usable, fitted[1], offset)
    left = _codes(x, scale, offset)
    left *= scale
    left += offset
    left -= x
    return _products(left, left), scale, offset


def _better(one: tuple[Floats, Floats, Floats], other: tuple[Floats, Floats, Floats]) -> tuple[Floats, Floats, Floats]:
    smaller = other[0] < one[0]
    error, scale, offset = (np.where(smaller, new, old) for old, new in zip(one, other, strict=True))
    return error, scale, offset


def _codes(x: Floats, scale: Floats, offset: Floats) -> Floats:
    codes = x - offset
    codes *= _inverse(scale)
    np.rint(codes, out=codes)
    return np.clip(codes, 0, _MOST4, out=codes)


def _fit(x: Floats, total: Floats, codes: Floats) -> tuple[Floats, Floats]:
    """Least squares: the scale and offset that bring `codes` nearest to x; scale 0 where all codes are the same."""
    count = np.float32(len(x))
    codes_total = np.sum(codes, axis=0)
    spread = count * _products(codes, codes) - codes_total * codes_total
    slope = count * _products(x, codes) - total * codes_total
    scale = np.where(spread > 0, slope / np.maximum(spread, np.float32(1)), np.float32(0))
    return scale, (total - scale * codes_total) / count


def _products(one: Floats, other: Floats) -> Floats:
    found: Floats = np.einsum("gn,gn->n", one, other)
    return found


def _inverse(scale: Floats) -> Floats:
    """1 / scale, and 0 for 0: a group of one value has one code."""
    return np.where(scale > 0, 1 / np.where(scale > 0, scale, np.float32(1)), np.float32(0))
