"""A layer's experts as the native kernels compute them, on one CPU; knows layers and arrays, no family."""

import jax
import jax.numpy as jnp
from flax import nnx

from models.dense.record import Activation, Experts
from models.linears_native import Tiled
from models.native import experts as kernels
from models.native.ops import Gate
from models.native.tiles import Tiles
from models.nn import Live, RMSNorm, parameter


class ExpertsNative(nnx.Module):
    """Both maps of every expert as stacked tiles. Only those of the experts at hand are read."""

    def __init__(self, experts: Experts, activation: Activation, gate_up: Tiles, down: Tiles) -> None:
        self.experts, self.activation = experts, activation
        self.gate_up = TiledStack(gate_up, bias=experts.bias)
        self.down = TiledStack(down, bias=experts.bias)

    def __call__(
        self,
        x: jax.Array,
        logits: jax.Array,
        residual: jax.Array | None,
        *,
        correction: jax.Array | None = None,
        scales: jax.Array | None = None,
        norm: RMSNorm | None = None,
        live: Live = None,
    ) -> jax.Array:
        """See `models.experts_xla.ExpertsXla`."""
        routed = kernels.route(logits, self.experts, correction, live)
        routed = routed if scales is None else routed.scaled(scales)
        stack, gate = self.gate_up, Gate(self.activation.kind, self.activation.limit)
        given = None if norm is None else norm.for_kernel
        early = self.experts.share_inputs
        gated = kernels.gathered(
            x, stack.tiles, stack.matrix[...], routed, gate=gate, norm=given, bias=stack.flat_bias, shared=early
        )
        routed = routed.whole if early else routed
        stack, tokens = self.down, x.shape[0]
        around = {"residual": residual, "bias": stack.flat_bias, "live": live}
        return kernels.summed(gated, stack.tiles, stack.matrix[...], routed, tokens, **around)


class TiledStack(Tiled):
    """Matrices of one shape, in the layout that `tiles` says."""

    def __init__(self, tiles: Tiles, *, bias: bool) -> None:
        super().__init__(tiles)
        width = (1, 2, tiles.outputs) if tiles.gated else (tiles.outputs,)
        dims = ((tiles.stack, None), *((size, None) for size in width))
        self.bias = parameter(dims, jnp.float32) if bias else None

    @property
    def flat_bias(self) -> jax.Array | None:
        """[E * outputs], of gated ones [E * 2 * outputs]."""
        return None if self.bias is None else self.bias[...].reshape(-1)
