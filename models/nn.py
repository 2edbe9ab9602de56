"""The few atoms that families share: parameters, norms, rotary; must not know any family.

Every parameter carries the logical names of its dimensions as `axes`; `models.sharding` says where they go.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax import lax

from models.native import ops

Dims = tuple[tuple[int, str | None], ...]
"""(size, logical axis) per dimension."""

Live = jax.Array | None
"""int32 [1], how many of the first tokens of a call are real. The native kernels compute those alone and leave the others'
places as they were; XLA computes them all. None: all are real."""


def parameter(dims: Dims, dtype: Any) -> nnx.Param[jax.Array]:
    """A parameter without a value: families are built abstractly, values come from a checkpoint."""
    value: Any = jax.ShapeDtypeStruct(sizes(dims), dtype)
    return nnx.Param(value, axes=tuple(axis for _, axis in dims))


def sizes(dims: Dims) -> tuple[int, ...]:
    """Without the names."""
    return tuple(size for size, _ in dims)


class RMSNorm(nnx.Module):
    """Root mean square normalization over the last axis, in float32, `weighted` or not. https://arxiv.org/abs/1910.07467."""

    def __init__(self, width: int, epsilon: float, *, native: bool = False, weighted: bool = True) -> None:
        self.epsilon = epsilon
        self.native = native
        self.width = width
        self.weight = parameter(((width, "embed"),), jnp.float32) if weighted else None

    def __call__(self, x: jax.Array, live: Live = None) -> jax.Array:
        """x [T, ..., D] -> the same, each of the last axis by itself, in the dtype of x."""
        if self.native:
            each = math.prod(x.shape[1:-1])  # rows of a token
            flat = ops.normalize(x.reshape(-1, x.shape[-1]), self.for_kernel, None if live is None else live * each)
            return flat.reshape(x.shape)
        return normed(x, self.for_kernel)

    @property
    def for_kernel(self) -> ops.Norm:
        """To be computed together with the product that follows it."""
        weight = jnp.ones(self.width, jnp.float32) if self.weight is None else self.weight[...]
        return ops.Norm(weight, self.epsilon)


def normed(x: jax.Array, norm: ops.Norm) -> jax.Array:
    """x [..., D] by the root mean square of its last axis, in float32, in its dtype, as XLA computes it."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + norm.epsilon)
    weight = norm.weight.reshape((1,) * (x.ndim - 1) + (-1,))
    return (wide * scale * weight).astype(x.dtype)


def centre(x: jax.Array, live: Live = None, *, native: bool = False) -> jax.Array:
    """x [T, D] less the mean of each row, in its dtype. A norm by root mean square of it is a layer norm without a bias."""
    if native:
        return ops.centre(x, live)
    wide = x.astype(jnp.float32)
    return (wide - jnp.mean(wide, axis=-1, keepdims=True)).astype(x.dtype)


class HeadsNorm(nnx.Module):
    """The same over all heads of a token together, of which the checkpoint has `count` numbers, each `copies` times here."""

    def __init__(self, heads: Dims, count: int, epsilon: float, *, copies: int = 1, native: bool = False) -> None:
        self.epsilon, self.count, self.native = epsilon, count * copies, native
        self.weight = parameter(heads, jnp.float32)

    def __call__(self, x: jax.Array, live: Live = None) -> jax.Array:
        """x [T, K, G, H] -> the same in its dtype."""
        if self.native:  # one device, where nothing is padded
            norm = ops.Norm(self.weight[...].reshape(-1), self.epsilon)
            return ops.normalize(x.reshape(x.shape[0], -1), norm, live).reshape(x.shape)
        wide = x.astype(jnp.float32)
        mean = (wide * wide).sum(axis=(1, 2, 3), keepdims=True) / self.count
        return (wide * lax.rsqrt(mean + self.epsilon) * self.weight[...][None]).astype(x.dtype)


def rotary_table(
    positions: jax.Array, frequencies: npt.NDArray[np.float32], magnitudes: npt.NDArray[np.float32] | None = None
) -> tuple[jax.Array, jax.Array]:
    """positions [T] int32, frequencies [H/2] radians per position -> cos and sin, each float32 [T, H/2].

    These times `magnitudes` [H/2]; None: as they are.
    """
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(frequencies)[None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return (cos, sin) if magnitudes is None else (cos * magnitudes[None], sin * magnitudes[None])


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x [T, K, G, H] turned by its position, pairs being (i, i + H/2). https://arxiv.org/abs/2104.09864."""
    cos, sin = (part[:, None, None, :] for part in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
