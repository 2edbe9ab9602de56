"""Linear maps and tables that the native kernels of one CPU compute; knows layers and arrays, no family."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.native import ops
from models.native.tiles import Tiles
from models.nn import Dims, Live, RMSNorm, parameter, sizes


class Tiled(nnx.Module):
    """A matrix for the native kernels, in the layout that `tiles` says."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.matrix = parameter(((tiles.nbytes, None),), jnp.uint8)


class TiledLinear(Tiled):
    """A `Linear` that is computed by the native kernels, norm and sum included: [T, *in] -> [T, *out]."""

    def __init__(self, outputs: Dims, tiles: Tiles, *, bias: bool = False) -> None:
        super().__init__(tiles)
        self.outputs = sizes(outputs)
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
