"""Linear maps and tables that the native kernels of one CPU compute; knows layers and arrays, no family."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.adapters import LowRank
from models.dense.record import Activation
from models.native import ops
from models.native.tiles import Tiles
from models.nn import Dims, Live, RMSNorm, parameter, sizes


class Tiled(nnx.Module):
    """A matrix for the native kernels, in the layout that `tiles` says."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles
        self.matrix = parameter(((tiles.nbytes, None),), jnp.uint8)


class TiledLinear(Tiled):
    """A `Linear` that is computed by the native kernels, with all that goes before and follows: [T, *in] -> [T, *out]."""

    low_rank: LowRank | None = None  # the adapters beside it, see `models.adapters`

    def __init__(self, outputs: Dims, tiles: Tiles, *, bias: bool = False) -> None:
        super().__init__(tiles)
        self.outputs = sizes(outputs)
        self.bias = parameter(outputs, jnp.float32) if bias else None

    def __call__(self, x: jax.Array, norm: RMSNorm | None = None, live: Live = None) -> jax.Array:
        """x [T, *in] -> [T, *out]: the product with norm(x)."""
        return self._product(x, live, norm=_kernels(norm)).reshape(x.shape[0], *self.outputs)

    def add(self, x: jax.Array, residual: jax.Array, live: Live = None, norm: RMSNorm | None = None) -> jax.Array:
        """x [T, *in], residual [T, *out] -> the residual and norm(product), [T, *out]."""
        flat = residual.reshape(x.shape[0], -1)
        return self._product(x, live, residual=flat, post_norm=_kernels(norm)).reshape(residual.shape)

    def gated(self, x: jax.Array, activation: Activation, norm: RMSNorm | None = None, live: Live = None) -> jax.Array:
        """x [T, *in] -> act(gate) * up of the product with norm(x), [T, F]."""
        gate = ops.Gate(activation.kind, activation.limit)
        assert gate.number(self.tiles) > 0, f"{activation.kind} of a map with {'a' if self.tiles.gated else 'no'} gate"
        return self._product(x, live, norm=_kernels(norm), gate=gate)

    def _product(self, x: jax.Array, live: Live, **around: Any) -> jax.Array:
        bias = None if self.bias is None else self.bias[...].reshape(-1)
        flat = x.reshape(x.shape[0], -1)
        if self.low_rank is not None:
            norm = around.get("norm")
            around["beside"] = self.low_rank(flat if norm is None else ops.normalize(flat, norm, live))
        return ops.linear(flat, self.tiles, self.matrix[...], bias=bias, live=live, **around)


def _kernels(norm: RMSNorm | None) -> ops.Norm | None:
    return None if norm is None else norm.for_kernel


class TiledTable(Tiled):
    """A `VocabTable` read by the native kernels."""

    def rows(self, tokens: jax.Array, live: Live = None) -> jax.Array:
        """tokens [T] int32 -> [T, D]."""
        return ops.rows(tokens, self.tiles, self.matrix[...], live)

    def logits(self, hidden: jax.Array, live: Live = None) -> jax.Array:
        """hidden [R, D] -> float32 [R, V]."""
        return ops.linear(hidden, self.tiles, self.matrix[...], live=live)
