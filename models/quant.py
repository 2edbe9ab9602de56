"""int8 weights per output channel with dynamic int8 activations; knows arrays, must not know layers or files."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

_CHUNK = 1 << 18
"""Weights rounded at a time, so that what is made on the way is small beside a tensor."""
_LIMIT = 127.0
_REST = 254.0
"""Steps of the second int8 row in one step of the first: its rounding error is at most half a step."""


def quantize(weight: npt.NDArray[Any], inputs: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """[*out, *in] with `inputs` trailing in-dimensions -> int8 of that shape and float32 scales [*out].

    Symmetric, rounded to nearest even; a channel of zeros gets scale 1. weight ~ values * scale.
    """
    outputs = weight.shape[: weight.ndim - inputs]
    rows = weight.reshape(prod(outputs), -1)
    values, scale = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)
    step = max(1, _CHUNK // rows.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        wide = rows[part].astype(np.float32, copy=False)
        largest = np.max(np.abs(wide), axis=1)
        scale[part] = np.where(largest > 0, largest / _LIMIT, np.float32(1))
        values[part] = np.rint(wide / scale[part, None])
    return values.reshape(weight.shape), scale.reshape(outputs)


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


def by_parts(product: Callable[..., jax.Array], parts: int, x: jax.Array, *weights: jax.Array) -> jax.Array:
    """x [T, I] and a kernel's arrays [O, I or fewer] -> float32 [T, O]: the sum over `parts` equal parts of I.

    A device that has one part rounds x by the largest value of that part, so that the sum is all that the devices
    exchange. Without this they would first agree on the largest value of all, or exchange what each has yet to add.
    """
    if parts == 1:
        return product(x, *weights)
    cut = [array.reshape(array.shape[0], parts, -1) for array in (x, *weights)]
    return jax.vmap(product, in_axes=1)(*cut).sum(axis=0)
