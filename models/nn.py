"""The few atoms that families share: parameters, linear maps, tables, norms, rotary; must not know any family.

Every parameter carries the logical names of its dimensions as `axes`; `models.sharding` says where they go.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx
from jax import lax

from models.native import ops
from models.native.tiles import Tiles
from models.quant import by_parts, int8_matmul
from models.sharding import sharded

Dims = tuple[tuple[int, str | None], ...]
"""(size, logical axis) per dimension."""

Live = jax.Array | None
"""int32 [1], how many of the first tokens of a call are real. The native kernels compute those alone and leave the others'
places as they were; XLA computes them all. None: all are real."""


def parameter(dims: Dims, dtype: Any) -> nnx.Param[jax.Array]:
    """A parameter without a value: families are built abstractly, values come from a checkpoint."""
    value: Any = jax.ShapeDtypeStruct(_sizes(dims), dtype)
    return nnx.Param(value, axes=tuple(axis for _, axis in dims))


def _sizes(dims: Dims) -> tuple[int, ...]:
    return tuple(size for size, _ in dims)


def parts(inputs: Dims, devices: int) -> int:
    """In how many parts, one per device, the in-dimensions of a map are: `devices`, or 1 where each has them whole."""
    return devices if sharded(inputs[0][1]) else 1


class RMSNorm(nnx.Module):
    """Root mean square normalization over the last axis, in float32. https://arxiv.org/abs/1910.07467."""

    def __init__(self, width: int, epsilon: float, *, native: bool = False) -> None:
        self.epsilon = epsilon
        self.native = native
        self.weight = parameter(((width, "embed"),), jnp.float32)

    def __call__(self, x: jax.Array, live: Live = None) -> jax.Array:
        """x [T, ..., D] -> the same, each of the last axis by itself, in the dtype of x."""
        if self.native:
            each = math.prod(x.shape[1:-1])  # rows of a token
            flat = ops.normalize(x.reshape(-1, x.shape[-1]), self.for_kernel, None if live is None else live * each)
            return flat.reshape(x.shape)
        wide = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.epsilon)
        weight = self.weight[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (wide * scale * weight).astype(x.dtype)

    @property
    def for_kernel(self) -> ops.Norm:
        """To be computed together with the product that follows it."""
        return ops.Norm(self.weight[...], self.epsilon)


class Linear(nnx.Module):
    """[T, *in] -> [T, *out]. Float kernels are [*in, *out] (XLA:CPU reads them fastest so), int8 kernels [*out, *in].

    Only the first of the in- and of the out-dimensions may be sharded: the product runs on flattened ones, because
    XLA:CPU would transpose a kernel of more dimensions in every call.
    """

    def __init__(
        self,
        inputs: Dims,
        outputs: Dims,
        *,
        quant: str,
        dtype: Any,
        bias: bool = False,
        fine: bool = False,
        devices: int = 1,
    ) -> None:
        assert not any(axis for _, axis in inputs[1:] + outputs[1:] if axis is not None), (
            "an inner dimension is sharded"
        )
        int8 = quant == "int8"
        self.outputs = _sizes(outputs)
        self.fine = fine
        self.parts = parts(inputs, devices)
        self.kernel = parameter(outputs + inputs, jnp.int8) if int8 else parameter(inputs + outputs, dtype)
        self.scale = parameter(outputs, jnp.float32) if int8 else None
        self.bias = parameter(outputs, dtype) if bias else None

    def __call__(self, x: jax.Array, norm: RMSNorm | None = None, live: Live = None) -> jax.Array:  # noqa: ARG002
        """x [T, *in] -> [T, *out] in the dtype of x; the product with norm(x)."""
        x = x if norm is None else norm(x)
        flat = x.reshape(x.shape[0], -1)
        width = flat.shape[1]
        if self.scale is None:
            y = flat @ self.kernel[...].reshape(width, -1)
        else:
            kernel = self.kernel[...].reshape(-1, width)
            product = partial(int8_matmul, scale=self.scale[...].reshape(-1), fine=self.fine)
            y = by_parts(product, self.parts, flat, kernel).astype(x.dtype)
        y = y.reshape(x.shape[0], *self.outputs)
        return y if self.bias is None else y + self.bias[...][None]

    def add(self, x: jax.Array, residual: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """x [T, *in], residual [T, *out] -> their sum after the product, [T, *out]."""
        return residual + self(x)


class VocabTable(nnx.Module):
    """One row of D per token, [V, D] in every dtype: rows are looked up, and the product with all of them is logits."""

    def __init__(self, vocab: int, width: int, *, quant: str, dtype: Any) -> None:
        int8 = quant == "int8"
        self.dtype = dtype
        self.kernel = parameter(((vocab, "vocab"), (width, "embed")), jnp.int8 if int8 else dtype)
        self.scale = parameter(((vocab, "vocab"),), jnp.float32) if int8 else None

    def rows(self, tokens: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """tokens [T] int32 -> [T, D]."""
        rows = jnp.take(self.kernel[...], tokens, axis=0)
        if self.scale is None:
            return rows
        scale = jnp.take(self.scale[...], tokens, axis=0)
        return (rows.astype(jnp.float32) * scale[:, None]).astype(self.dtype)

    def logits(self, hidden: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """hidden [R, D] -> float32 [R, V]."""
        if self.scale is not None:
            return int8_matmul(hidden, self.kernel[...], self.scale[...])
        return lax.dot_general(hidden, self.kernel[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


class Tiled(nnx.Module):
    """A matrix for the native kernels, in the layout that `tiles` says."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.matrix = parameter(((tiles.nbytes, None),), jnp.uint8)


class TiledLinear(Tiled):
    """A `Linear` that is computed by the native kernels, norm and sum included: [T, *in] -> [T, *out]."""

    def __init__(self, outputs: Dims, tiles: Tiles, *, bias: bool = False) -> None:
        super().__init__(tiles)
        self.outputs = _sizes(outputs)
        self.bias = parameter(outputs, jnp.float32) if bias else None

    def __call__(self, x: jax.Array, norm: RMSNorm | None = None, live: Live = None) -> jax.Array:
        """x [T, *in] -> [T, *out]: the product with norm(x); of a gated pair silu(gate) * up, [T, F]."""
        before = None if norm is None else norm.for_kernel
        y = ops.linear(x.reshape(x.shape[0], -1), self.tiles, self.matrix[...], norm=before, live=live)
        return y if self.tiles.gated else self._biased(y.reshape(x.shape[0], *self.outputs))

    def add(self, x: jax.Array, residual: jax.Array, live: Live = None) -> jax.Array:
        """x [T, *in], residual [T, *out] -> their sum after the product, [T, *out]."""
        flat = residual.reshape(x.shape[0], -1)
        y = ops.linear(x.reshape(x.shape[0], -1), self.tiles, self.matrix[...], residual=flat, live=live)
        return self._biased(y.reshape(residual.shape))

    def _biased(self, y: jax.Array) -> jax.Array:
        return y if self.bias is None else y + self.bias[...][None]


class TiledTable(Tiled):
    """A `VocabTable` read by the native kernels."""

    def rows(self, tokens: jax.Array, live: Live = None) -> jax.Array:
        """tokens [T] int32 -> [T, D]."""
        return ops.rows(tokens, self.tiles, self.matrix[...], live)

    def logits(self, hidden: jax.Array, live: Live = None) -> jax.Array:
        """hidden [R, D] -> float32 [R, V]."""
        return ops.linear(hidden, self.tiles, self.matrix[...], live=live)


def rotary_table(positions: jax.Array, frequencies: npt.NDArray[np.float32]) -> tuple[jax.Array, jax.Array]:
    """positions [T] int32, frequencies [H/2] radians per position -> cos and sin, each float32 [T, H/2]."""
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(frequencies)[None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x [T, K, G, H] turned by its position, pairs being (i, i + H/2). https://arxiv.org/abs/2104.09864."""
    cos, sin = (part[:, None, None, :] for part in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
