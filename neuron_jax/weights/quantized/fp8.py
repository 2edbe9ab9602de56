"""Float8 weights with a scale per block, row or tensor; knows numpy's float8 types, must not know files.

    weight F8_E4M3 or F8_E5M2 [..., N, K]   weight_scale_inv or weight_scale [..., N / rows, K / columns], rounded up

DeepSeek's and Qwen's have blocks of 128 x 128 and call it scale_inv, though a weight is code * scale for all. Scales that
are powers of two (E8M0, or bytes) leave the weight exact in bfloat16. https://arxiv.org/abs/2412.19437, section 3.3.
"""

from functools import partial
from math import prod
from typing import Any

import numpy as np

from models.config import Keys
from models.storage import BFLOAT16, FLOAT32, Array, Floats
from neuron_jax.weights.quantized.record import (
    FLOATS,
    Files,
    Found,
    Joined,
    MisfitError,
    Settings,
    expect,
    gather,
    stems_of,
)

FLOAT8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_POWERS = ("F8_E8M0", "U8")
Block = tuple[int, int]


def find(settings: Settings, files: Files) -> Found:
    """Every float8 matrix of the checkpoint."""
    keys = Keys(settings, "quantization_config")
    block = read_block(keys, "weight_block_size")
    if keys.misfits:
        return Found(misfits=keys.misfits)
    return gather(stems_of(files, "", FLOAT8), partial(join, files, block=block))


def read_block(keys: Keys, key: str) -> Block | None:
    """Rows and columns of a block, None where the config has none."""
    found: Any = keys.get(key)
    if found is None:
        return None
    if isinstance(found, list | tuple) and len(found) == 2 and all(type(size) is int and size > 0 for size in found):
        return (found[0], found[1])
    keys.refuse(f"{key} is {found!r}, must be two positive integers")
    return None


def join(files: Files, name: str, *, block: Block | None) -> Joined:
    """The matrix `name` and its scales."""
    shape = files.tensors[name].shape
    scale = next((name + ending for ending in _SCALES if name + ending in files.tensors), None)
    if scale is None:
        raise MisfitError(f"{name}{_SCALES[0]} is missing")
    if len(shape) < 2:
        raise MisfitError(f"{name} is {shape}, must be a matrix")
    scales = files.tensors[scale]
    expect(files, scale, scales.shape, (*FLOATS, *_POWERS))
    block = _block(name, shape, scales.shape, block)
    storage = BFLOAT16 if scales.dtype in _POWERS else FLOAT32

    def read() -> Array:
        return _scaled(files.read(name), as_powers(files.read(scale), scales.dtype), block).astype(
            storage.dtype, copy=False
        )

    return Joined(name, (name, scale), shape, files.tensors[name].dtype, storage, read)


def as_powers(scale: Array, dtype: str) -> Floats:
    """float32; bytes are exponents of two, 127 being 1."""
    if dtype == "U8":
        return np.ldexp(np.float32(1), scale.astype(np.int32) - 127).astype(np.float32)
    return scale.astype(np.float32)


def _block(name: str, shape: tuple[int, ...], scales: tuple[int, ...], block: Block | None) -> Block:
    """What a scale is for, from the shape of the scales: the config's blocks, else whole rows or the whole matrix."""
    rows, columns = shape[-2:]
    if prod(scales) == 1 and len(shape) == 2:
        return rows, columns
    choices = {(rows, columns): (*shape[:-2], 1, 1), (1, columns): (*shape[:-1], 1)}
    if block is not None:
        choices = {block: (*shape[:-2], -(-rows // block[0]), -(-columns // block[1]))}
    fitting = [size for size, wanted in choices.items() if _ends_alike(scales, wanted)]
    if not fitting:
        raise MisfitError(f"{name} {shape} has scales {scales}, must be {' or '.join(map(str, choices.values()))}")
    return fitting[0]


def _ends_alike(scales: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Ones at the end may be left out."""
    return (
        scales == wanted
        or (wanted[-1] == 1 and scales == wanted[:-1])
        or (wanted[-2:] == (1, 1) and scales == wanted[:-2])
    )


def _scaled(codes: Array, scale: Floats, block: Block) -> Floats:
    """float32 of the shape of `codes`, rounded once."""
    rows, columns = codes.shape[-2:]
    grid = scale.reshape(*codes.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
    wide = codes.astype(np.float32)
    if block == (1, columns):
        wide *= grid
        return wide
    for place, first in enumerate(range(0, rows, block[0])):
        part = wide[..., first : first + block[0], :]
        part *= np.repeat(grid[..., place, :], block[1], axis=-1)[..., None, :columns]
    return wide
