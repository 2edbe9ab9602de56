"""A gated short convolution in attention's place: its projections and how a state goes on; must not know files, slots or rows.

Each token brings B, C and x, [D] each, and is given C * conv(B * x), a weighted sum of the last N = taps inputs, channel by
channel. https://arxiv.org/abs/2511.23404 (LFM2). Channels are laid out by device as [devices, D of a device].
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from models.dense.record import ShortConvolution
from models.linears import Linears
from models.native import recurrent
from models.native.recurrent import StateRows
from models.nn import RMSNorm, parameter
from models.spec import CacheT, Mixer, RecurrentLayer

Norms = Sequence[RMSNorm | None]
"""Before what mixes, and behind it."""


class Convolution(nnx.Module):
    """B, C and x are one matmul, laid out as [devices, 3, D of a device]."""

    def __init__(self, kind: ShortConvolution, width: int, norms: Norms, layer: RecurrentLayer, make: Linears) -> None:
        self.norm, self.post_norm = norms
        (state,) = layer.state
        devices, channels, embed = (state.shape[1], "mlp"), (state.shape[2], None), ((width, "embed"),)
        self.inputs = make("convolution.inputs", embed, (devices, (3, None), channels), bias=kind.bias, fine=True)
        self.out = make("convolution.out", (devices, channels), embed, bias=kind.bias, fine=True)
        self.taps = parameter(((kind.taps, None), devices, channels), jnp.float32)
        self.shift = parameter((devices, channels), jnp.float32) if kind.bias else None
        self.layer = layer

    def __call__(self, x: jax.Array, mixer: Mixer[CacheT], cache: CacheT) -> tuple[jax.Array, CacheT]:
        """x [T, D] -> x with what its tokens gather from each other, [T, D]."""
        rule = ConvolutionRule(self.taps[...], None if self.shift is None else self.shift[...])
        mixed, cache = mixer.recur(self.layer, rule, self.inputs(x, self.norm, mixer.live), cache)
        return self.out.add(mixed, x, mixer.live, self.post_norm), cache


@frozen
class ConvolutionRule:
    """`models.spec.Recurrence` of the state [N - 1, devices, D], the last inputs. A token brings [devices, 3, D] and is given
    [devices, D]; `taps` [N, devices, D] and `shift` [devices, D].
    """

    taps: jax.Array
    shift: jax.Array | None

    def step(self, state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        """See `models.spec.Recurrence`."""
        (inputs,), (b, c, x) = state, (token[:, n].astype(jnp.float32) for n in range(3))
        window = jnp.concatenate([inputs, (b * x)[None]])
        return (window[1:],), self._given(jnp.sum(window * self.taps, axis=0), c, token)

    def chunk(self, state: Any, tokens: jax.Array, count: jax.Array) -> tuple[Any, jax.Array]:
        """See `models.spec.Recurrence`."""
        (inputs,), (b, c, x) = state, (tokens[:, :, n].astype(jnp.float32) for n in range(3))
        mixed, inputs = window_of(inputs, b * x, self.taps, count)
        return (inputs,), self._given(mixed, c, tokens)

    def native(self, tokens: Any, cache: Any, rows: StateRows) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        return recurrent.short_convolution(tokens, cache, rows, self.taps, self.shift)

    def on_gpu(
        self, tokens: Any, cache: Any, rows: StateRows, *, mesh: Mesh | None = None, interpret: bool = False
    ) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        from models import convolution_rows  # later versions of JAX have no Triton

        given, cache = convolution_rows.convolve(
            tokens, cache, rows, self.taps, self.shift, mesh=mesh, interpret=interpret
        )
        return given.astype(tokens.dtype), cache

    def _given(self, mixed: jax.Array, c: jax.Array, like: jax.Array) -> jax.Array:
        mixed = mixed if self.shift is None else mixed + as_one_of(mixed, self.shift)
        return (mixed * c).astype(like.dtype)


def as_one_of(many: jax.Array, one: jax.Array) -> jax.Array:
    """`one` with as many dimensions as `many`, the first of which are of size one."""
    return one.reshape((1,) * (many.ndim - one.ndim) + one.shape)


def window_of(before: jax.Array, inputs: jax.Array, taps: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """before [N - 1, ...], the inputs that came last, and inputs [C, ...], of which `count` are real; taps [N, ...] -> the sum
    over the last N of each, [C, ...], and the last N - 1 real ones."""
    window = jnp.concatenate([before, inputs])
    size = inputs.shape[0]
    every = [window[n : n + size] * taps[n][None] for n in range(taps.shape[0])]
    mixed = sum(every[1:], every[0])
    return mixed, lax.dynamic_slice_in_dim(window, count, before.shape[0])
