"""Matrices side by side, one for each head, as XLA and as the native kernels compute them; knows arrays, no family.

They are small beside the others, and XLA keeps them in the model's own dtype whatever the others are rounded to.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models.linears_native import Tiled
from models.native import ops
from models.nn import Live, parameter


class HeadMaps(nnx.Module):
    """[T, K, G, in] -> [T, K, G, out], with K * G `heads`."""

    def __init__(self, heads: int, inputs: int, outputs: int, *, dtype: Any) -> None:
        self.kernel = parameter(((heads, "kv_heads"), (outputs, None), (inputs, None)), dtype)

    def __call__(self, x: jax.Array, live: Live = None) -> jax.Array:  # noqa: ARG002
        """x [T, K, G, in] -> [T, K, G, out] in the dtype of x."""
        by_head = self.kernel[...].reshape(*x.shape[1:3], *self.kernel.shape[1:])
        return jnp.einsum("tkgi,kgoi->tkgo", x, by_head)


class TiledHeadMaps(Tiled):
    """The same by the native kernels."""

    def __call__(self, x: jax.Array, live: Live = None) -> jax.Array:
        """x [T, K, G, in] -> [T, K, G, out]."""
        flat = ops.linear(x.reshape(x.shape[0], -1), self.tiles, self.matrix[...], live=live)
        return flat.reshape(*x.shape[:3], self.tiles.outputs)
