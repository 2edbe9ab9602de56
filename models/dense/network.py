"""The network of a dense decoder: attention, and layers of it and an MLP, as a `Dense` says; must not know files or pages.

https://arxiv.org/abs/2302.13971 (rotary, RMS norms), https://arxiv.org/abs/2302.05442 (norms of queries and
keys), https://arxiv.org/abs/2408.00118 (norms before and behind, soft caps), https://arxiv.org/abs/2309.17453 (sinks).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models.dense.ahead import Ahead
from models.dense.beside import Beside
from models.dense.convolution import Convolution
from models.dense.delta import Delta
from models.dense.experts import Mixture
from models.dense.latent import LatentAttention
from models.dense.layout import Layout
from models.dense.mamba import Mamba
from models.dense.mlp import MLP
from models.dense.own_heads import OwnHeads, bare
from models.dense.per_layer import After, PerLayerInputs
from models.dense.record import Dense, GatedDelta, Layer, Mamba2, Sharpening
from models.linears import Linears
from models.native.ops import Norm
from models.nn import HeadsNorm, Live, RMSNorm, centre, parameter, rotary_table, rotate
from models.rope import Rotary
from models.spec import CacheT, LayerSpec, Mixer, PagedLayer, Transform

Turn = tuple[jax.Array, jax.Array] | None
"""cos and sin, each [T, H / 2]; None where a layer does not turn."""

OfHeads = RMSNorm | HeadsNorm | None
"""What norms the queries, or the keys."""

Sharper = jax.Array | None
"""[T], what the queries of each token are multiplied by; None where by nothing."""


class Attention(nnx.Module):
    """Grouped-query attention; q, k and v are one matmul, laid out by group as [K, G query heads + k + v, H]."""

    def __init__(self, c: Dense, layout: Layout, kind: Layer, layer: PagedLayer, make: Linears) -> None:
        groups = ((layer.kv_heads, "kv_heads"),)
        width, size = layer.group, c.head_dim
        embed = ((c.hidden_size, "embed"),)
        every = (*groups, (width + 2, None), (size, None))
        mixed = (*groups, (width, None), (size, None))
        self.norm = _norm(c, layout, c.hidden_size) if c.pre_norms else None
        self.post_norm = _norm(c, layout, c.hidden_size) if c.post_norms else None
        self.q_norm, self.k_norm = _head_norms(c, layout, kind, layer)
        self.qkv = make("attention.qkv", embed, every, bias=c.qkv_bias, fine=True)
        self.gate = make("attention.gate", embed, mixed, bias=c.qkv_bias, fine=True) if c.output_gate else None
        self.out = make("attention.out", mixed, embed, bias=c.out_bias, fine=True)
        self.sinks = parameter((*groups, (width, None)), jnp.float32) if layer.sinks else None
        self.scale = size**-0.5 if c.scale is None else c.scale
        self.layer, self.turned_norms = layer, c.turned_norms

    def __call__(
        self, x: jax.Array, turn: Turn, sharper: Sharper, mixer: Mixer[CacheT], cache: CacheT
    ) -> tuple[jax.Array, CacheT]:
        """x [T, D] -> x with what its tokens gather from each other, [T, D]."""
        mixed, cache = self._mix(self.qkv(x, self.norm, mixer.live), turn, sharper, mixer, cache)
        if self.gate is not None:
            mixed = mixed * jax.nn.sigmoid(self.gate(x, self.norm, mixer.live))
        return self.out.add(mixed, x, mixer.live, self.post_norm), cache

    @property
    def _norms(self) -> tuple[Norm, Norm] | None:
        """Those that the kernel of attention computes as well."""
        if not isinstance(self.q_norm, RMSNorm) or not isinstance(self.k_norm, RMSNorm):
            return None
        return self.q_norm.for_kernel, self.k_norm.for_kernel

    def _normed(self, qkv: jax.Array, live: Live) -> jax.Array:
        if self.q_norm is None or self.k_norm is None:
            return qkv
        width = self.layer.group
        q, k, v = jnp.split(qkv, [width, width + 1], axis=2)
        return jnp.concatenate([self.q_norm(q, live), self.k_norm(k, live), v], axis=2)

    def _turned(self, qkv: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
        both, v = jnp.split(qkv, [self.layer.group + 1], axis=2)
        return jnp.concatenate([rotate(both, turn), v], axis=2)

    def _sharpened(self, qkv: jax.Array, sharper: jax.Array) -> jax.Array:
        q, others = jnp.split(qkv, [self.layer.group], axis=2)
        return jnp.concatenate([q * sharper[:, None, None, None].astype(q.dtype), others], axis=2)

    def _mix(
        self, qkv: jax.Array, turn: Turn, sharper: Sharper, mixer: Mixer[CacheT], cache: CacheT
    ) -> tuple[jax.Array, CacheT]:
        """qkv [T, K, G + 2, H] -> [T, K, G, H]."""
        sinks, norms = None if self.sinks is None else self.sinks[...], self._norms
        if self.turned_norms and turn is not None:  # kernels norm first: so they are given what has turned
            qkv, turn = self._turned(qkv, turn), None
        if sharper is not None or isinstance(self.q_norm, HeadsNorm):
            qkv, norms = self._normed(qkv, mixer.live), None
        if sharper is not None:  # after the norms, which would undo it
            qkv = self._sharpened(qkv, sharper)
        if mixer.rotates:
            return mixer.attend_rotated(self.layer, qkv, turn, cache, scale=self.scale, norms=norms, sinks=sinks)
        qkv, width = qkv if norms is None else self._normed(qkv, mixer.live), self.layer.group
        qkv = qkv if turn is None else self._turned(qkv, turn)
        q, k, v = qkv[:, :, :width] * self.scale, qkv[:, :, width], qkv[:, :, width + 1]
        return mixer.attend(self.layer, q, k, v, cache, sinks=sinks)


class Block(nnx.Module):
    """One layer. What mixes its tokens stands under its own name: `attention`, `delta`, `convolution`, `mamba`."""

    def __init__(self, c: Dense, layout: Layout, kind: Layer, layer: LayerSpec | None, make: Linears) -> None:
        self.mixes = kind.mixes
        if layer is not None:
            setattr(self, kind.mixes, _mix(c, layout, kind, layer, make))
        self.mlp = _mlp(c, layout, kind, make) if kind.mlp else None
        self.parallel = c.parallel

    def __call__(
        self, x: jax.Array, turn: Turn, sharper: Sharper, mixer: Mixer[CacheT], cache: CacheT
    ) -> tuple[jax.Array, CacheT]:
        """x [T, D] -> [T, D]; the cache is None where nothing mixes."""
        begin = x
        if self.mixes:
            mix = getattr(self, self.mixes)
            x, cache = mix(x, turn, sharper, mixer, cache) if self.mixes == "attention" else mix(x, mixer, cache)
        if self.mlp is None:
            return x, cache
        return self.mlp(begin, mixer.live, onto=x) if self.parallel else self.mlp(x, mixer.live), cache


class Decoder(nnx.Module):
    """The whole network. Layers are a list, not a scan: XLA:CPU would copy every layer's weights in a scan."""

    transform: Transform | None = None  # what becomes of the hidden states behind each layer

    def __init__(
        self,
        c: Dense,
        layout: Layout,
        layers: Sequence[LayerSpec | None],
        make: Linears,
        ahead: LayerSpec | None = None,
    ) -> None:
        self.embed = make.table("embed", layout.vocab, c.hidden_size)
        kinds = zip(c.stack, layers, strict=True)
        self.layers = nnx.List([Block(c, layout, *kind, make.within(f"layers.{n}.")) for n, kind in enumerate(kinds)])
        self.norm = _norm(c, layout, c.hidden_size)
        self.head = None if c.tied else make.table("head", layout.vocab, c.hidden_size)
        self.per_layer = None if c.per_layer is None else PerLayerInputs(c, layout, c.per_layer, make)
        behind = range(len(c.stack)) if c.scalars or c.per_layer is not None else ()
        self.after = nnx.List([After(c, layout, make.within(f"after.{n}.")) for n in behind])
        self.centre = partial(centre, native=layout.native) if c.centred else None
        block = None if ahead is None else Block(c, layout, c.ahead, ahead, make.within("ahead.layer."))
        self.ahead = None if block is None else Ahead(c, layout, block, make)
        self.ahead_rotary, self.ahead_sharpening = (
            (None,) * 2 if block is None else (c.ahead.rotary, c.ahead.sharpening)
        )
        self.rotaries = tuple(layer.rotary for layer in c.stack)
        self.sources = tuple(n if layer.source is None else layer.source for n, layer in enumerate(c.stack))
        self.sharpenings, self.embedding_scale = tuple(layer.sharpening for layer in c.stack), c.embedding_scale
        self.logit_scale, self.logit_cap = c.logit_scale, c.logit_cap

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, mixer: Mixer[CacheT], cache: Sequence[CacheT]
    ) -> tuple[jax.Array, tuple[CacheT, ...]]:
        """tokens, positions [T] -> final normed hidden [T, D], one cache entry per layer."""
        turns = {rotary: _turn(rotary, positions) for rotary in dict.fromkeys(self.rotaries)}
        sharper = {said: _sharper(said, positions) for said in dict.fromkeys(self.sharpenings)}
        x = self._embedded(tokens, mixer.live)
        given = None if self.per_layer is None else self.per_layer(tokens, x, mixer.live)
        x = x if self.centre is None else self.centre(x, mixer.live)
        entries, left = iter(cache), dict[int, Any]()
        kinds = zip(self.layers, self.rotaries, self.sharpenings, self.sources, strict=True)
        for number, (layer, rotary, far, source) in enumerate(kinds):
            entry: Any = (left[source] if source in left else next(entries)) if layer.mixes else None
            x, entry = layer(x, turns[rotary], sharper[far], mixer, entry)
            if layer.mixes:
                left[source] = entry
            x = x if self.centre is None else self.centre(x, mixer.live)
            if self.after:
                x = self.after[number](x, None if given is None else given[:, number], mixer.live)
            if self.transform is not None:
                x = self.transform(number, x)
                x = x if self.centre is None else self.centre(x, mixer.live)  # which all that follows relies on
        return self.norm(x, mixer.live), tuple(map(bare, left.values()))

    def drafted(
        self, hidden: jax.Array, tokens: jax.Array, positions: jax.Array, mixer: Mixer[CacheT], entry: CacheT
    ) -> tuple[jax.Array, CacheT]:
        """hidden [T, D] of the tokens at `positions` and the tokens behind them -> hidden [T, D] for the ones behind those."""
        assert self.ahead is not None, "nothing drafts"
        sharper = _sharper(self.ahead_sharpening, positions)
        x = self.ahead.joined(self._embedded(tokens, mixer.live), hidden, mixer.live)
        x, entry = self.ahead.layer(x, _turn(self.ahead_rotary, positions), sharper, mixer, entry)
        return self.ahead.norm(x, mixer.live), entry

    def _embedded(self, tokens: jax.Array, live: Live) -> jax.Array:
        x = self.embed.rows(tokens, live)
        return x if self.embedding_scale == 1 else x * jnp.asarray(self.embedding_scale, x.dtype)

    def logits(self, hidden: jax.Array, live: Live = None) -> jax.Array:
        """hidden [R, D] -> float32 [R, V as laid out]."""
        logits = (self.embed if self.head is None else self.head).logits(hidden, live)
        logits = logits if self.logit_scale == 1 else logits * self.logit_scale
        return logits if self.logit_cap is None else self.logit_cap * jnp.tanh(logits / self.logit_cap)


def _mlp(c: Dense, layout: Layout, kind: Layer, make: Linears) -> MLP | Mixture | Beside:
    if kind.experts is None:
        return MLP(c.of(kind), layout, make)
    return (Beside if kind.experts.beside else Mixture)(c, layout, kind.experts, make)


def _mix(
    c: Dense, layout: Layout, kind: Layer, layer: LayerSpec, make: Linears
) -> Attention | LatentAttention | OwnHeads | Delta | Convolution | Mamba:
    if isinstance(layer, PagedLayer):
        return _attention(c, layout, kind, layer, make)
    norms = [_norm(c, layout, c.hidden_size) if there else None for there in (c.pre_norms, c.post_norms)]
    if isinstance(kind.recurrence, GatedDelta):
        return Delta(c.hidden_size, norms, c.epsilon, layer, make)
    if isinstance(kind.recurrence, Mamba2):
        return Mamba(kind.recurrence, c.hidden_size, norms, layer, make)
    assert kind.recurrence is not None, f"{layer} and nothing that recurs"
    return Convolution(kind.recurrence, c.hidden_size, norms, layer, make)


def _attention(
    c: Dense, layout: Layout, kind: Layer, layer: PagedLayer, make: Linears
) -> Attention | LatentAttention | OwnHeads:
    if kind.latent is not None:
        return LatentAttention(c, layout, kind.latent, layer, make)
    return (
        Attention(c, layout, kind, layer, make) if kind.heads is None else OwnHeads(c, layout, kind.heads, layer, make)
    )


def _norm(c: Dense, layout: Layout, width: int) -> RMSNorm:
    return RMSNorm(width, c.epsilon, native=layout.native)


def _head_norms(c: Dense, layout: Layout, kind: Layer, layer: PagedLayer) -> tuple[OfHeads, OfHeads]:
    size, native = c.head_dim, layout.native
    if kind.bare_norms:
        q, k = (RMSNorm(size, c.epsilon, native=native, weighted=False) for _ in range(2))
        return q, k
    if not c.qk_norm:
        return None, None
    if not c.heads_together:
        return _norm(c, layout, size), _norm(c, layout, size)
    every, keys = (((layer.kv_heads, "kv_heads"), (count, None), (size, None)) for count in (layer.group, 1))
    return (
        HeadsNorm(every, c.query_heads * size, c.epsilon, native=native),
        HeadsNorm(keys, c.kv_heads * size, c.epsilon, copies=layout.heads.replicas, native=native),
    )


def _turn(rotary: Rotary | None, positions: jax.Array) -> Turn:
    if rotary is None:
        return None
    magnitudes = None if rotary.magnitude == 1 else rotary.magnitudes
    return rotary_table(positions, np.array(rotary.frequencies, np.float32), magnitudes)


def _sharper(sharpening: Sharpening | None, positions: jax.Array) -> Sharper:
    """positions [T] -> float32 [T]."""
    if sharpening is None:
        return None
    times = jnp.floor_divide(positions + sharpening.ahead, sharpening.original).astype(jnp.float32)
    return 1 + sharpening.beta * jnp.log1p(times)
