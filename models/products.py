"""Products with int8, int4 and fp8 weights in plain XLA, which fuses them into a GPU's matmuls; knows arrays, no layers.

Each takes rows x [T, I] and a kernel [O, I] and gives float32 [T, O]. What is here for int4 and fp8 was never timed on a GPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from models.rounding import E4M3_MOST

FP8_CAPABILITY = 8.9
"""From Ada on, NVIDIA's tensor cores multiply float8."""

E2M1_BEHIND = 14
"""By how many powers of two a float16 with the bits of an e2m1 number is smaller than it."""

LARGEST_E8M0 = 254 - E2M1_BEHIND
"""Of the exponents that `e8m0` takes."""

_LIMIT = 127.0
_REST = 254.0
"""Steps of the second int8 row in one step of the first: its rounding error is at most half a step."""


def int8_matmul(x: jax.Array, kernel: jax.Array, scale: jax.Array, *, fine: bool = False) -> jax.Array:
    """x [T, I] float, kernel int8 [O, I], scale float32 [O] -> float32 [T, O].

    Each row of x is rounded to int8 by its own largest value, so a row's result does not depend on the rows beside it.
    `fine` also multiplies what that rounding left, as a second int8 row: for inputs with outliers, where the largest
    value leaves few steps for the others. It is exact in int32 sums either way.
    """
    rows = x.shape[0]
    wide = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(wide), axis=-1, keepdims=True)
    step = jnp.where(largest > 0, largest / _LIMIT, jnp.float32(1))
    coarse = jnp.round(wide / step)
    rest = (wide / step - coarse) * _REST
    # Without a second row XLA:CPU would take a path ten times slower for one row.
    values = jnp.concatenate([coarse, jnp.round(rest)]) if fine or rows == 1 else coarse
    # The barrier keeps XLA:CPU from fusing the rounding into the product, which would leave its int8 kernel.
    values = lax.optimization_barrier(values.astype(jnp.int8))
    product = lax.dot_general(values, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)
    product = product.astype(jnp.float32)
    total = product[:rows] + product[rows:] / _REST if fine else product[:rows]
    return total * step * scale[None]


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
    return _by_halves(x, scale.shape[1], *_halves(kernel, scale, offset, x.dtype))


def _by_halves(x: jax.Array, groups: int, low: jax.Array, high: jax.Array) -> jax.Array:
    """x [T, I] and the values [O, I / 2] of low and of high codes -> float32 [T, O]."""
    rows = x.shape[0]
    halves = x.reshape(rows, groups, 2, -1)
    first, second = halves[:, :, 0].reshape(rows, -1), halves[:, :, 1].reshape(rows, -1)
    return _dot(first, low) + _dot(second, high)


def mxfp4_matmul(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """x [T, I] float, kernel uint8 [O, I / 2] as `pack_int4` has codes, scale uint8 [O, I / group] -> float32 [T, O].

    A weight is exact in whatever x is: two bits and an exponent.
    """
    return _by_halves(x, scale.shape[1], *mxfp4_halves(kernel, scale, x.dtype))


def mxfp4_halves(kernel: jax.Array, scale: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The values [O, I / 2] of the low and of the high codes."""
    by = jnp.repeat(e8m0(scale), kernel.shape[1] // scale.shape[1], axis=1)
    low, high = e2m1(kernel & jnp.uint8(15)), e2m1(kernel >> jnp.uint8(4))
    return (low * by).astype(dtype), (high * by).astype(dtype)


def e2m1(codes: jax.Array) -> jax.Array:
    """Integers 0..15 -> float32, the numbers that they stand for over 2^14: as bits of a float16, which has two more bits of
    exponent and widens the least of them, too.
    """
    wide = codes.astype(jnp.int32)
    bits = ((wide & 7) << 9 | (wide & 8) << 12).astype(jnp.uint16)
    return lax.bitcast_convert_type(bits, jnp.float16).astype(jnp.float32)


def e8m0(exponents: jax.Array) -> jax.Array:
    """uint8, powers of two where 127 is 1 -> float32, what `e2m1` is multiplied by: 2^14 times these.

    At most LARGEST_E8M0.
    """
    return lax.bitcast_convert_type(exponents.astype(jnp.int32) + E2M1_BEHIND << 23, jnp.float32)


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


def by_parts(product: Callable[..., jax.Array], parts: int, x: jax.Array, *weights: jax.Array) -> jax.Array:
    """x [T, I] and a kernel's arrays [O, I or fewer] -> float32 [T, O]: the sum over `parts` equal parts of I.

    A device that has one part rounds x by the largest value of that part, so that the sum is all that the devices
    exchange. Without this they would first agree on the largest value of all, or exchange what each has yet to add.
    """
    return product(x, *weights) if parts == 1 else in_parts(product, parts, x, *weights).sum(axis=0)


def in_parts(product: Callable[..., jax.Array], parts: int, x: jax.Array, *weights: jax.Array) -> jax.Array:
    """The same before it is summed: [parts, T, O]."""
    cut = [array.reshape(array.shape[0], parts, -1) for array in (x, *weights)]
    return jax.vmap(product, in_axes=1)(*cut)


def _dot(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[T, I] and [O, I] of one dtype -> float32 [T, O]."""
    return lax.dot_general(x, kernel, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
