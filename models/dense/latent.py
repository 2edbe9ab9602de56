"""Multi-head latent attention of a dense decoder: its network, over a cache of latents; must not know files or pages.

What would make a head's keys of a latent is applied to its queries instead, and what would make its values to what it gathers
(https://arxiv.org/abs/2405.04434, section 2.1.2). So all heads read one key, the latent and a part that turns, and one
value, the latent, of which each device has a copy for the heads that are its own.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from models.dense.layout import Layout
from models.dense.record import Dense, Latent
from models.linears import Linears
from models.nn import Dims, RMSNorm, rotate
from models.spec import CacheT, Mixer, PagedLayer


class LatentAttention(nnx.Module):
    """Attention whose keys and values are latents; see `models.dense.record.Latent`."""

    def __init__(self, c: Dense, layout: Layout, kind: Latent, layer: PagedLayer, make: Linears) -> None:
        embed, heads = ((c.hidden_size, "embed"),), ((layer.kv_heads, "kv_heads"), (layer.group, None))
        given: Dims = embed if kind.query_rank is None else ((kind.query_rank, None),)
        self.norm = RMSNorm(c.hidden_size, c.epsilon, native=layout.native) if c.pre_norms else None
        self.post_norm = RMSNorm(c.hidden_size, c.epsilon, native=layout.native) if c.post_norms else None
        rank = kind.query_rank
        self.q_a = None if rank is None else make("attention.q_a", embed, given, bias=c.qkv_bias, fine=True)
        self.q_a_norm = None if rank is None else RMSNorm(rank, kind.epsilon, native=layout.native)
        self.q = make("attention.q", given, (*heads, (kind.still + kind.turned, None)), bias=False, fine=True)
        self.kv_a = make("attention.kv_a", embed, ((kind.rank + kind.turned, None),), bias=c.qkv_bias, fine=True)
        self.kv_a_norm = RMSNorm(kind.rank, kind.epsilon, native=layout.native)
        self.k_up = make.per_head("attention.k_up", layer.kv_heads * layer.group, kind.still, kind.rank)
        self.v_up = make.per_head("attention.v_up", layer.kv_heads * layer.group, kind.rank, kind.value)
        self.out = make("attention.out", (*heads, (kind.value, None)), embed, bias=c.out_bias, fine=True)
        self.scale = c.head_dim**-0.5 if c.scale is None else c.scale
        self.kind, self.layer = kind, layer

    def __call__(
        self,
        x: jax.Array,
        turn: tuple[jax.Array, jax.Array] | None,
        sharper: jax.Array | None,
        mixer: Mixer[CacheT],
        cache: CacheT,
    ) -> tuple[jax.Array, CacheT]:
        """x [T, D], `turn` cos and sin [T, turned / 2] -> x with what its tokens gather from each other, [T, D]."""
        assert sharper is None, "latent attention whose queries are sharpened"
        still, turned = self._queries(x, turn, mixer)
        latent, key = self._latents(x, turn, mixer)
        q = jnp.concatenate([self.k_up(still, mixer.live), turned], axis=-1) * jnp.asarray(self.scale, x.dtype)
        k = jnp.concatenate([latent, key], axis=-1)
        every = (x.shape[0], self.layer.kv_heads)
        k, v = (jnp.broadcast_to(part[:, None], (*every, part.shape[-1])) for part in (k, latent))
        mixed, cache = mixer.attend(self.layer, q, k, v, cache)
        return self.out.add(self.v_up(mixed, mixer.live), x, mixer.live, self.post_norm), cache

    def _queries(
        self, x: jax.Array, turn: tuple[jax.Array, jax.Array] | None, mixer: Mixer[CacheT]
    ) -> tuple[jax.Array, jax.Array]:
        """[T, K, G, still] and, turned, [T, K, G, turned]."""
        if self.q_a is None:
            q = self.q(x, self.norm, mixer.live)
        else:
            q = self.q(self.q_a(x, self.norm, mixer.live), self.q_a_norm, mixer.live)
        still, turned = jnp.split(q, [self.kind.still], axis=-1)
        return still, turned if turn is None else rotate(turned, turn)

    def _latents(
        self, x: jax.Array, turn: tuple[jax.Array, jax.Array] | None, mixer: Mixer[CacheT]
    ) -> tuple[jax.Array, jax.Array]:
        """The latent [T, rank] and the part of the key that turns [T, turned]."""
        latent, key = jnp.split(self.kv_a(x, self.norm, mixer.live), [self.kind.rank], axis=-1)
        turned = key if turn is None else rotate(key[:, None, None], turn)[:, 0, 0]
        return self.kv_a_norm(latent, mixer.live), turned
