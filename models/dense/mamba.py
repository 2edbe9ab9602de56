"""Mamba 2 in attention's place: its projections and how a state goes on; must not know files, slots or rows.

https://arxiv.org/abs/2405.21060. A state S [state, width] for each head fades, takes in a value x under a key b, and is read
by a query c. What is read is gated, and normed over all heads of a group:

    S' = g S + b (dt x)^T        o = S'^T c + skip x        dt = softplus(raw + shift), g = exp(rate dt)

Letters beside those of `models.spec`: K groups, G heads of each, H state, W width, N taps.
"""

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from models.dense.convolution import Norms, as_one_of, window_of
from models.dense.record import Mamba2
from models.heads import HeadLayout
from models.linears import Linears
from models.native import recurrent
from models.native.ops import Norm
from models.native.recurrent import StateRows
from models.nn import parameter
from models.spec import CHUNK, CacheT, Mixer, RecurrentLayer


class Mamba(nnx.Module):
    """Queries, keys and values are one matmul, laid out by group as [K, H + H + G W], and convolved."""

    def __init__(self, kind: Mamba2, width: int, norms: Norms, layer: RecurrentLayer, make: Linears) -> None:
        self.norm, self.post_norm = norms
        inputs, (slots, group, keys, values) = (leaf.shape for leaf in layer.state)
        groups, embed = ((slots, "kv_heads"),), ((width, "embed"),)
        each, channels = (group, None), 2 * keys + group * values
        heads = (*groups, each, (values, None))
        self.cbx = make("mamba.cbx", embed, (*groups, (channels, None)), bias=kind.bias, fine=True)
        self.z = make("mamba.z", embed, heads, bias=kind.bias, fine=True)
        self.steps = make.exact("mamba.steps", embed, (*groups, each), bias=kind.bias)
        self.out = make("mamba.out", heads, embed, bias=kind.bias, fine=True)
        self.taps = parameter(((inputs[0] + 1, None), *groups, (channels, None)), jnp.float32)
        self.taps_bias = parameter((*groups, (channels, None)), jnp.float32) if kind.taps_bias else None
        self.rate, self.shift, self.skip = (parameter((*groups, each), jnp.float32) for _ in range(3))
        self.read_norm = parameter(heads, jnp.float32)
        self.together = Together.plan(kind, make.devices)
        self.layer, self.epsilon = layer, kind.epsilon

    def __call__(self, x: jax.Array, mixer: Mixer[CacheT], cache: CacheT) -> tuple[jax.Array, CacheT]:
        """x [T, D] -> x with what its tokens gather from each other, [T, D]."""
        projected = tuple(linear(x, self.norm, mixer.live) for linear in (self.cbx, self.steps, self.z))
        bias = jnp.zeros(self.taps.shape[1:], jnp.float32) if self.taps_bias is None else self.taps_bias[...]
        norm = Norm(self.read_norm[...], self.epsilon)
        heads = (self.rate[...], self.shift[...], self.skip[...])
        rule = MambaRule(self.taps[...], bias, heads, norm, self.together)
        mixed, cache = mixer.recur(self.layer, rule, projected, cache)
        return self.out.add(mixed, x, mixer.live, self.post_norm), cache


@frozen
class Together:
    """What is normed together: so many values, of all the laid out groups [K] that have one number; None: of each alone."""

    count: int
    groups: tuple[int, ...] | None

    @classmethod
    def plan(cls, kind: Mamba2, devices: int) -> Self:
        layout = HeadLayout.plan(kind.heads, kind.groups, devices)
        number = None if layout.replicas == 1 else tuple(layout.kv_index().tolist())
        return cls(layout.group * kind.width, number)

    def mean(self, squares: jax.Array) -> jax.Array:
        """Sums [..., K] -> [..., K]."""
        if self.groups is not None:
            number = np.array(self.groups)
            same = jnp.asarray(number[:, None] == number[None], jnp.float32)
            squares = jnp.matmul(squares, same, precision=lax.Precision.HIGHEST)
        return squares / self.count


@frozen
class MambaRule:
    """`models.spec.Recurrence` of the states [N - 1, K, 2 H + G W], the last inputs of the convolution, and S [K, G, H, W].

    A token brings c, b and x in one [K, 2 H + G W], the raw dt [K, G] and z [K, G, W], and is given norm(o * silu(z)),
    [K, G, W]. `taps` [N, K, 2 H + G W] and their `bias`; `heads` are rate (below 0), shift and skip, each [K, G].
    """

    taps: jax.Array
    bias: jax.Array
    heads: tuple[jax.Array, jax.Array, jax.Array]
    norm: Norm
    together: Together

    def step(self, state: Any, token: Any) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        (inputs, before), (cbx, raw, z) = state, token
        window = jnp.concatenate([inputs, cbx.astype(jnp.float32)[None]])
        c, b, x = (part[0] for part in self._read(jnp.sum(window * self.taps, axis=0)[None], before.shape))
        fade, dt = self._steps(raw)
        after = before * jnp.exp(fade)[:, :, None, None] + b[:, None, :, None] * (dt[:, :, None] * x)[:, :, None]
        return (window[1:], after), self._given(_einsum("kghw,kh->kgw", after, c), x, z)

    def chunk(self, state: Any, tokens: Any, count: jax.Array) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`. What is not real fades nothing and brings nothing."""
        (inputs, before), (cbx, raw, z) = state, tokens
        mixed, inputs = window_of(inputs, cbx.astype(jnp.float32), self.taps, count)
        c, b, x = self._read(mixed, before.shape)
        fade, dt = (jnp.where(jnp.arange(CHUNK)[:, None, None] < count, one, 0) for one in self._steps(raw))
        read, after = mamba_chunk((c, b, dt[..., None] * x), fade, before)
        return (inputs, after), self._given(read, x, z)

    def native(self, tokens: Any, cache: Any, rows: StateRows) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        return recurrent.mamba(tokens, cache, rows, (self.taps, self.bias, *self.heads), self.norm)

    def on_gpu(
        self, tokens: Any, cache: Any, rows: StateRows, *, mesh: Mesh | None = None, interpret: bool = False
    ) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        from models import recurrent_rows  # later versions of JAX have no Triton

        cbx, raw, z = tokens
        rule = recurrent_rows.Rule("mamba", self.taps, self.bias, self.heads)
        read, cache = recurrent_rows.recur(rule, cbx, raw, cache, rows, mesh=mesh, interpret=interpret)
        return self._gated(read, z), cache

    def _read(self, mixed: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """mixed [C, K, 2 H + G W] -> c and b [C, K, H], x [C, K, G, W]."""
        _, group, keys, values = shape
        c, b, x = jnp.split(jax.nn.silu(mixed + self.bias[None]), [keys, 2 * keys], axis=-1)
        return c, b, x.reshape(*x.shape[:2], group, values)

    def _steps(self, raw: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., K, G] -> the logarithm of how a state fades, and dt."""
        rate, shift = (as_one_of(raw, one) for one in self.heads[:2])
        dt = jax.nn.softplus(raw.astype(jnp.float32) + shift)
        return rate * dt, dt

    def _given(self, read: jax.Array, x: jax.Array, z: jax.Array) -> jax.Array:
        """[..., K, G, W] with what skips the state, gated and normed, in the dtype of z."""
        return self._gated(read + as_one_of(read, self.heads[2][..., None]) * x, z)

    def _gated(self, read: jax.Array, z: jax.Array) -> jax.Array:
        gated = read * jax.nn.silu(z.astype(jnp.float32))
        mean = self.together.mean(jnp.sum(gated * gated, axis=(-1, -2)))
        scale = lax.rsqrt(mean + self.norm.epsilon)[..., None, None]
        return (gated * scale * as_one_of(gated, self.norm.weight)).astype(z.dtype)


def mamba_chunk(
    cbx: tuple[jax.Array, jax.Array, jax.Array], fade: jax.Array, before: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """c and b [C, K, H], dt x [C, K, G, W], fade (logarithm) [C, K, G], S [K, G, H, W] -> o [C, K, G, W] and S behind."""
    c, b, x = cbx
    total = jnp.cumsum(fade, axis=0)
    gap = jnp.moveaxis(total, 0, -1)
    order = jnp.arange(c.shape[0])
    seen = (order[:, None] >= order[None])[None, None]
    between = jnp.exp(jnp.where(seen, gap[..., :, None] - gap[..., None, :], -jnp.inf))
    read = jnp.exp(total)[..., None] * _einsum("ikh,kghw->ikgw", c, before)
    read += _einsum("kgij,jkgw->ikgw", _einsum("ikh,jkh->kij", c, b)[:, None] * between, x)
    left = jnp.exp(total[-1:] - total)
    after = jnp.exp(total[-1])[..., None, None] * before
    return read, after + _einsum("jkh,jkgw->kghw", b, x * left[..., None])


def _einsum(letters: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """In float32 throughout: a state gathers the errors of all tokens before."""
    return jnp.einsum(letters, one, other, precision=lax.Precision.HIGHEST)
