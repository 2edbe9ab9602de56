"""Attention whose layers have heads of sizes of their own, and may share keys and values; must not know files or pages.

Values are normed without weights, a key may be the value as well, and the last layers read what earlier ones have kept: they
are called with the new keys and values of those again, which their caches then get once more. Gemma 4.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from flax import nnx

from models.dense.layout import Layout
from models.dense.record import Dense, Heads
from models.linears import Linears
from models.native.ops import Norm
from models.nn import Live, RMSNorm, rotate
from models.spec import Mixer, PagedLayer


@frozen
class Kept:
    """What a layer leaves for those that share its keys and values: its cache, and of the tokens of this call keys as
    projected, values, each [T, K, H], and what norms the keys.
    """

    cache: Any
    key: jax.Array
    value: jax.Array
    norm: RMSNorm


def bare(left: Any) -> Any:
    """The cache of a layer, whatever else it left."""
    return left.cache if isinstance(left, Kept) else left


class OwnHeads(nnx.Module):
    """See `models.dense.record.Heads`; what is projected is [K, G query heads + `kind.made`, H]."""

    def __init__(self, c: Dense, layout: Layout, kind: Heads, layer: PagedLayer, make: Linears) -> None:
        groups, width, size = ((layer.kv_heads, "kv_heads"),), layer.group, kind.head_dim
        embed = ((c.hidden_size, "embed"),)
        norm = partial(RMSNorm, epsilon=c.epsilon, native=layout.native)
        self.norm = norm(c.hidden_size) if c.pre_norms else None
        self.post_norm = norm(c.hidden_size) if c.post_norms else None
        self.q_norm = norm(size)
        self.k_norm = norm(size) if kind.made else None
        self.v_norm = norm(size, weighted=False) if kind.made else None
        every = (*groups, (width + kind.made, None), (size, None))
        self.qkv = make("attention.qkv", embed, every, bias=c.qkv_bias, fine=True)
        self.out = make("attention.out", (*groups, (width, None), (size, None)), embed, bias=c.out_bias, fine=True)
        self.scale = size**-0.5 if c.scale is None else c.scale
        self.layer = layer

    def __call__(
        self,
        x: jax.Array,
        turn: tuple[jax.Array, jax.Array] | None,
        sharper: jax.Array | None,
        mixer: Mixer[Any],
        cache: Any,
    ) -> tuple[jax.Array, Kept]:
        """x [T, D], `cache` the layer's own, or what the layer left whose keys and values it shares -> x with what its tokens
        gather from each other, [T, D].
        """
        assert sharper is None, "heads of a layer's own whose queries are sharpened"
        assert turn is not None, "heads of a layer's own that do not turn"
        qkv = self.qkv(x, self.norm, mixer.live)
        kept = cache if isinstance(cache, Kept) else self._make(qkv, cache, mixer.live)
        mixed, left = self._mix(qkv[:, :, : self.layer.group], kept, turn, mixer)
        out = self.out.add(mixed, x, mixer.live, self.post_norm)
        return out, Kept(left, kept.key, kept.value, kept.norm)

    def _make(self, qkv: jax.Array, cache: Any, live: Live) -> Kept:
        assert self.k_norm is not None, "a layer without keys of its own, and nothing to share"
        assert self.v_norm is not None, "a layer without values of its own, and nothing to share"
        return Kept(cache, qkv[:, :, self.layer.group], self.v_norm(qkv[:, :, -1], live), self.k_norm)

    def _mix(self, q: jax.Array, kept: Kept, turn: Any, mixer: Mixer[Any]) -> tuple[jax.Array, Any]:
        """q as projected [T, K, G, H] -> [T, K, G, H], the cache."""
        if mixer.rotates:
            qkv = jnp.concatenate([q, kept.key[:, :, None], kept.value[:, :, None]], axis=2)
            norms: tuple[Norm, Norm] = (self.q_norm.for_kernel, kept.norm.for_kernel)
            return mixer.attend_rotated(self.layer, qkv, turn, kept.cache, scale=self.scale, norms=norms)
        k = rotate(kept.norm(kept.key, mixer.live)[:, :, None], turn)[:, :, 0]
        q = rotate(self.q_norm(q, mixer.live), turn) * self.scale
        return mixer.attend(self.layer, q, k, kept.value, kept.cache)
