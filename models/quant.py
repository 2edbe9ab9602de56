"""int8 weights per output channel with dynamic int8 activations; knows arrays, must not know layers or files."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from models.errors import ModelError

SCHEMES = ("none", "int8")
_LIMIT = 127.0


def check(quant: str) -> None:
    """Raises ModelError when `quant` is not one of SCHEMES."""
    if quant not in SCHEMES:
        raise ModelError(f"quant {quant!r}", [f"allowed are {', '.join(SCHEMES)}"])


def quantize(weight: npt.NDArray[Any], inputs: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """[*out, *in] with `inputs` trailing in-dimensions -> int8 of that shape and float32 scales [*out].

    Symmetric, rounded to nearest even; a channel of zeros gets scale 1. weight ~ values * scale.
    """
    axes = tuple(range(weight.ndim - inputs, weight.ndim))
    largest = np.max(np.abs(weight), axis=axes, keepdims=True).astype(np.float32)
    scale = np.where(largest > 0, largest / _LIMIT, np.float32(1))
    values = np.rint(weight.astype(np.float32, copy=False) / scale).astype(np.int8)
    return values, scale.reshape(weight.shape[: weight.ndim - inputs])


def int8_matmul(x: jax.Array, kernel: jax.Array, scale: jax.Array) -> jax.Array:
    """x [T, *in] float, kernel int8 [*out, *in], scale float32 [*out] -> float32 [T, *out].

    Each row of x is quantized by its own largest value, so a row's result does not depend on the rows beside it.
    """
    rows, values = x.shape[0], x
    if rows == 1:
        # XLA:CPU runs an int8 product of one row ten times slower than one of two.
        values = jnp.concatenate([x, x])
    inputs = tuple(range(1, x.ndim))
    first = kernel.ndim - len(inputs)
    values, row_scale = _quantize_rows(values.astype(jnp.float32), inputs)
    product = lax.dot_general(
        values,
        kernel,
        ((inputs, tuple(range(first, kernel.ndim))), ((), ())),
        preferred_element_type=jnp.int32,
    )
    row_scale = jnp.expand_dims(row_scale, tuple(range(1, first + 1)))
    return (product.astype(jnp.float32) * row_scale * scale[None])[:rows]


def _quantize_rows(x: jax.Array, inputs: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    largest = jnp.max(jnp.abs(x), axis=inputs, keepdims=True)
    scale = jnp.where(largest > 0, largest / _LIMIT, jnp.float32(1))
    return jnp.round(x / scale).astype(jnp.int8), jnp.squeeze(scale, inputs)
