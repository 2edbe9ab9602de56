"""The gated delta rule in attention's place: its projections and how a state goes on; must not know files, slots or rows.

https://arxiv.org/abs/2412.06464, https://arxiv.org/abs/2406.06484 (in chunks). A state S [key_width, value_width] for each
value head answers a key k with S^T k. A token lets it fade, corrects its answer to the token's own key, and reads it:

    S' = g S + k (b (v - (g S)^T k))^T        o = S'^T q        g = exp(rate * softplus(a + dt)), b = sigmoid(beta)

Letters beside those of `models.spec`: K key heads, G value heads of each, H key_width, W value_width, N taps.
"""

from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from flax import nnx
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.sharding import Mesh

from models.dense.convolution import Norms, as_one_of, window_of
from models.linears import Linears
from models.native import recurrent
from models.native.ops import Norm
from models.native.recurrent import StateRows
from models.nn import RMSNorm, parameter
from models.spec import CHUNK, CacheT, Mixer, RecurrentLayer

EPSILON = 1e-6
"""Of the norms of queries and keys."""


class Delta(nnx.Module):
    """Queries, keys and values are one matmul, laid out by key head as [K, H + H + G W], convolved and normed."""

    def __init__(self, width: int, norms: Norms, epsilon: float, layer: RecurrentLayer, make: Linears) -> None:
        self.norm, self.post_norm = norms
        inputs, (slots, group, keys, values) = (leaf.shape for leaf in layer.state)
        heads, embed = ((slots, "kv_heads"),), ((width, "embed"),)
        each, channels = (group, None), 2 * keys + group * values
        self.qkv = make("delta.qkv", embed, (*heads, (channels, None)), bias=False, fine=True)
        self.z = make("delta.z", embed, (*heads, each, (values, None)), bias=False, fine=True)
        self.gates = make.exact("delta.gates", embed, (*heads, (2, None), each), bias=False)
        self.out = make("delta.out", (*heads, each, (values, None)), embed, bias=False, fine=True)
        self.taps = parameter(((inputs[0] + 1, None), *heads, (channels, None)), jnp.float32)
        self.rate, self.shift = (parameter((*heads, each), jnp.float32) for _ in range(2))
        self.read_norm = RMSNorm(values, epsilon)
        self.layer = layer

    def __call__(self, x: jax.Array, mixer: Mixer[CacheT], cache: CacheT) -> tuple[jax.Array, CacheT]:
        """x [T, D] -> x with what its tokens gather from each other, [T, D]."""
        projected = tuple(linear(x, self.norm, mixer.live) for linear in (self.qkv, self.gates, self.z))
        norm = self.read_norm.for_kernel
        rule = DeltaRule(self.taps[...], self.rate[...], self.shift[...], norm)
        mixed, cache = mixer.recur(self.layer, rule, projected, cache)
        return self.out.add(mixed, x, mixer.live, self.post_norm), cache


@frozen
class DeltaRule:
    """`models.spec.Recurrence` of the states [N - 1, K, 2 H + G W], the last inputs of the convolution, and S [K, G, H, W].

    A token brings qkv [K, 2 H + G W], beta and a [K, 2, G] and z [K, G, W], and is given norm(o) * silu(z), [K, G, W].
    `taps` [N, K, 2 H + G W], `rate` (below 0) and `shift` [K, G].
    """

    taps: jax.Array
    rate: jax.Array
    shift: jax.Array
    norm: Norm

    def step(self, state: Any, token: Any) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        (inputs, before), (qkv, gates, z) = state, token
        window = jnp.concatenate([inputs, qkv.astype(jnp.float32)[None]])
        q, k, v = self._read(jnp.sum(window * self.taps, axis=0)[None], before.shape)
        q, k, v = q[0], k[0], v[0]
        fade, rate = self._gates(gates)
        faded = before * jnp.exp(fade)[:, :, None, None]
        wrong = rate[:, :, None] * (v - _einsum("kghw,kh->kgw", faded, k))
        after = faded + k[:, None, :, None] * wrong[:, :, None]
        return (window[1:], after), self._given(_einsum("kghw,kh->kgw", after, q), z)

    def chunk(self, state: Any, tokens: Any, count: jax.Array) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`. What is not real fades nothing and corrects nothing."""
        (inputs, before), (qkv, gates, z) = state, tokens
        mixed, inputs = window_of(inputs, qkv.astype(jnp.float32), self.taps, count)
        q, k, v = self._read(mixed, before.shape)
        fade, rate = (jnp.where(jnp.arange(CHUNK)[:, None, None] < count, one, 0) for one in self._gates(gates))
        read, after = delta_chunk((q, k, v), fade, rate, before)
        return (inputs, after), self._given(read, z)

    def native(self, tokens: Any, cache: Any, rows: StateRows) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        return recurrent.gated_delta(tokens, cache, rows, (self.taps, self.rate, self.shift), self.norm)

    def on_gpu(
        self, tokens: Any, cache: Any, rows: StateRows, *, mesh: Mesh | None = None, interpret: bool = False
    ) -> tuple[Any, Any]:
        """See `models.spec.Recurrence`."""
        from models import recurrent_rows  # later versions of JAX have no Triton

        qkv, gates, z = tokens
        rule = recurrent_rows.Rule("delta", self.taps, None, (self.rate, self.shift))
        read, cache = recurrent_rows.recur(rule, qkv, gates, cache, rows, mesh=mesh, interpret=interpret)
        return self._given(read, z), cache

    def _read(self, mixed: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """mixed [C, K, 2 H + G W] -> q and k [C, K, H], v [C, K, G, W]."""
        _, group, keys, values = shape
        q, k, v = jnp.split(jax.nn.silu(mixed), [keys, 2 * keys], axis=-1)
        return _unit(q) * keys**-0.5, _unit(k), v.reshape(*v.shape[:2], group, values)

    def _gates(self, gates: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., K, 2, G] -> the logarithm of how a state fades, and how much of what is wrong is corrected, [..., K, G]."""
        beta, a = gates[..., 0, :].astype(jnp.float32), gates[..., 1, :].astype(jnp.float32)
        rate, shift = (as_one_of(a, one) for one in (self.rate, self.shift))
        return rate * jax.nn.softplus(a + shift), jax.nn.sigmoid(beta)

    def _given(self, read: jax.Array, z: jax.Array) -> jax.Array:
        """[..., K, G, W] normed and gated, in the dtype of z."""
        scale = lax.rsqrt(jnp.mean(read * read, axis=-1, keepdims=True) + self.norm.epsilon)
        return (read * scale * as_one_of(read, self.norm.weight) * jax.nn.silu(z.astype(jnp.float32))).astype(z.dtype)


def delta_chunk(
    qkv: tuple[jax.Array, jax.Array, jax.Array], fade: jax.Array, rate: jax.Array, before: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """q and k [C, K, H], v [C, K, G, W], fade (logarithm) and rate [C, K, G], S [K, G, H, W] -> o [C, K, G, W] and S behind.

    What each token corrects depends on the corrections before it: (I + A) U = R with A strictly lower. Solved by forward
    substitution; squaring A for the inverse passes on random keys and gives NaN on a text that repeats itself.
    """
    q, k, v = qkv
    total = jnp.cumsum(fade, axis=0)
    gap = jnp.moveaxis(total, 0, -1)
    order = jnp.arange(q.shape[0])
    seen = (order[:, None] >= order[None])[None, None]
    between = jnp.exp(jnp.where(seen, gap[..., :, None] - gap[..., None, :], -jnp.inf))
    alike = _einsum("ikh,jkh->kij", k, k)[:, None] * between * jnp.moveaxis(rate, 0, -1)[..., None]
    wrong = v - jnp.exp(total)[..., None] * _einsum("ikh,kghw->ikgw", k, before)
    wrong = jnp.moveaxis(rate[..., None] * wrong, 0, 2)
    corrected = solve_triangular(alike, wrong, lower=True, unit_diagonal=True)
    read = jnp.exp(total)[..., None] * _einsum("ikh,kghw->ikgw", q, before)
    read += _einsum("kgij,kgjw->ikgw", _einsum("ikh,jkh->kij", q, k)[:, None] * between, corrected)
    left = jnp.exp(total[-1:] - total)
    after = jnp.exp(total[-1])[..., None, None] * before
    after += _einsum("jkh,kgjw->kghw", k, corrected * jnp.moveaxis(left, 0, -1)[..., None])
    return read, after


def _unit(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPSILON)


def _einsum(letters: str, one: jax.Array, other: jax.Array) -> jax.Array:
    """In float32 throughout: a state gathers the errors of all tokens before."""
    return jnp.einsum(letters, one, other, precision=lax.Precision.HIGHEST)
