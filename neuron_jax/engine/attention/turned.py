"""Projected queries, keys and values as attention takes them: norms of heads, rotation, scale. Knows arrays, no rows."""

import jax
from attrs import frozen

from models.native.ops import Norm
from models.nn import normed, rotate

Rotary = tuple[jax.Array, jax.Array] | None
"""cos and sin, each float32 [T, H / 2]; None where nothing turns."""


@frozen
class Heads:
    """What queries are multiplied by, and the norms of queries and of keys where there are any."""

    scale: float
    norms: tuple[Norm, Norm] | None = None


def turned(qkv: jax.Array, rotary: Rotary, heads: Heads) -> tuple[jax.Array, jax.Array, jax.Array]:
    """qkv [T, K, G + 2, H] -> q [T, K, G, H], k and v [T, K, H]."""
    group = qkv.shape[2] - 2
    q, k, v = qkv[:, :, :group], qkv[:, :, group : group + 1], qkv[:, :, group + 1]
    if heads.norms is not None:
        q, k = (normed(part, norm) for part, norm in zip((q, k), heads.norms, strict=True))
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    return q * heads.scale, k[:, :, 0], v
