"""int4 and fp8 weights in plain XLA, which fuses them into a GPU's matmuls; knows arrays, must not know layers or files.

Nothing here has been timed on a GPU. Each function takes rows x [T, I] and a kernel [O, I] and gives float32 [T, O], as
`models.quant.int8_matmul` does.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
from jax import lax

E4M3_MOST = 448.0
"""The largest finite number of float8_e4m3fn."""

CHUNK = 1 << 18
"""Weights rounded at a time: what this takes besides its result is a few such arrays."""

FP8_CAPABILITY = 8.9
"""From Ada on, NVIDIA's tensor cores multiply float8."""


def pack_int4(codes: npt.NDArray[np.integer[Any]], group: int) -> npt.NDArray[np.uint8]:
    """Codes 0..15 [..., I] -> bytes [..., I / 2]: in each group, byte i holds code i (low) and code i + group / 2 (high).

    Halves rather than neighbours: each half of a byte then meets its own slice of x, so that a product needs the bits
    shifted and masked but never interleaved, and XLA can fuse that into the matmul.
    """
    assert group % 2 == 0, f"groups of {group}"
    assert codes.shape[-1] % group == 0, f"{codes.shape[-1]} codes in groups of {group}"
    halves = codes.astype(np.uint8).reshape(*codes.shape[:-1], -1, 2, group // 2)
    packed: npt.NDArray[np.uint8] = halves[..., 0, :] | (halves[..., 1, :] << np.uint8(4))
    return packed.reshape(*codes.shape[:-1], -1)


def unpack_int4(
    kernel: jax.Array, scale: jax.Array, offset: jax.Array | None = None, *, dtype: Any = jnp.float32
) -> jax.Array:
    """Bytes [O, I / 2], scale and offset [O, I / group] -> values [O, I]: what the rows of an embedding are read with."""
    low, high = _halves(kernel, scale, offset, jnp.dtype(dtype))
    groups = scale.shape[1]
    values = jnp.stack(
        [low.reshape(-1, groups, low.shape[1] // groups), high.reshape(-1, groups, high.shape[1] // groups)], 2
    )
    return values.reshape(kernel.shape[0], -1)


def int4_matmul(x: jax.Array, kernel: jax.Array, scale: jax.Array, offset: jax.Array | None = None) -> jax.Array:
    """x [T, I] float, kernel uint8 [O, I / 2] of `pack_int4`, scale and offset [O, I / group] -> float32 [T, O].

    A weight is scale * code + offset, rounded to the dtype of x; the sums are float32.
    """
    rows, groups = x.shape[0], scale.shape[1]
    low, high = _halves(kernel, scale, offset, x.dtype)
    halves = x.reshape(rows, groups, 2, -1)
    first, second = halves[:, :, 0].reshape(rows, -1), halves[:, :, 1].reshape(rows, -1)
    return _dot(first, low) + _dot(second, high)


def _halves(kernel: jax.Array, scale: jax.Array, offset: jax.Array | None, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The values [O, I / 2] of the low and of the high codes."""
    outputs, groups = scale.shape
    half = kernel.shape[1] // groups

    def spread(part: jax.Array) -> jax.Array:
        return jnp.broadcast_to(part.astype(jnp.float32)[:, :, None], (outputs, groups, half)).reshape(outputs, -1)

    def values(codes: jax.Array) -> jax.Array:
        scaled = codes.astype(jnp.float32) * spread(scale)
        return (scaled if offset is None else scaled + spread(offset)).astype(dtype)

    return values(kernel & jnp.uint8(15)), values(kernel >> jnp.uint8(4))


def quantize_fp8(weight: npt.NDArray[Any], inputs: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
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


def fp8_matmul(x: jax.Array, kernel: jax.Array, scale: jax.Array, *, native: bool) -> jax.Array:
    """x [T, I] float, kernel float8_e4m3fn [O, I], scale float32 [O] -> float32 [T, O].

    `native` multiplies in float8: each row of x is then rounded by its own largest value, so that it does not depend on
    the rows beside it. Else the weights are widened to the dtype of x, which is exact, and x stays as it is.
    """
    if not native:
        return _dot(x, kernel.astype(x.dtype)) * scale[None]
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=-1, keepdims=True)
    step = jnp.where(largest > 0, largest / E4M3_MOST, jnp.float32(1))
    return _dot((wide / step).astype(kernel.dtype), kernel) * step * scale[None]


def multiplies_fp8(device: Any) -> bool:
    """Whether this JAX device has float8 matmuls."""
    return device.platform == "gpu" and float(device.compute_capability) >= FP8_CAPABILITY


def _dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[T, I] and [O, I] of one dtype -> float32 [T, O]."""
    return lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
