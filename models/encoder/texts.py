"""Whole texts in one call: how they lie in it, who sees whom, and what becomes of each; must not know any family.

    B  rows of a call        W  places of a row        T  B * W, all places        N  texts at most

Several texts stand behind each other in a row as long as there is room, so that little is computed for nothing whatever
their lengths are, and a few sizes of calls do for all.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from models.pooling import Pooling


class Texts(NamedTuple):
    """`tokens`, their `positions` in their own texts and their `types`, int32 [B, W]. `owner` int32 [B, W]: the number of
    the text that a token is of, N where none stands. `first` and `last` int32 [N]: the places of each text's first and last
    token among all T; 0 where there is no such text.
    """

    tokens: jax.Array
    positions: jax.Array
    types: jax.Array
    owner: jax.Array
    first: jax.Array
    last: jax.Array


BLOCK = 512
"""Queries that meet all keys of their row at once, in wider rows: scores are what takes memory."""


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, owner: jax.Array, *, reach: int | None = None, causal: bool = False
) -> jax.Array:
    """q [T, K, G, H] multiplied by the softmax scale, k and v [T, K, H], owner int32 [B, W] -> mixed [T, K, G, H].

    A token sees those of its own text, up to `reach` before and behind it, with `causal` none behind it. What stands for no
    text sees its like: nobody looks at what becomes of it, but it must not become NaN.
    """
    rows, width = owner.shape
    shape = q.shape
    q, k, v = (part.reshape(rows, width, *part.shape[1:]) for part in (q, k, v))

    def mix(queries: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Some queries [B, w, K, G, H], and their places in a row [w]."""
        q, at = queries
        seen = owner[:, at][:, :, None] == owner[:, None, :]
        distance = at[:, None] - jnp.arange(width)[None, :]
        if reach is not None:
            seen &= (jnp.abs(distance) <= reach)[None]
        if causal:
            seen &= (distance >= 0)[None]
        scores = jnp.einsum("bwkgh,bskh->bkgws", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum("bkgws,bskh->bwkgh", weights.astype(v.dtype), v)

    if width <= BLOCK:
        return mix((q, jnp.arange(width))).reshape(shape)
    blocks = -(-width // BLOCK)
    padded = jnp.pad(q, ((0, 0), (0, blocks * BLOCK - width), (0, 0), (0, 0), (0, 0)))
    apart = jnp.moveaxis(padded.reshape(rows, blocks, BLOCK, *shape[1:]), 1, 0)
    at = jnp.minimum(jnp.arange(blocks * BLOCK), width - 1).reshape(blocks, BLOCK)
    mixed = jnp.moveaxis(lax.map(mix, (apart, at)), 0, 1)
    return mixed.reshape(rows, -1, *shape[1:])[:, :width].reshape(shape)


def pool(hidden: jax.Array, texts: Texts, pooling: Pooling) -> jax.Array:
    """hidden [T, D] -> float32 [N, D], one vector for each text; zeros where there is none."""
    count, wide = texts.first.shape[0], hidden.astype(jnp.float32)
    match pooling.kind:
        case "mean":
            # A product sums faster than a scatter, and in the same order whatever stands beside a text.
            mine = (texts.owner.reshape(1, -1) == jnp.arange(count)[:, None]).astype(jnp.float32)
            tokens = jnp.sum(mine, axis=1, keepdims=True)
            return (mine @ wide) / jnp.maximum(tokens, 1)
        case "cls":
            return wide[texts.first]
        case "lasttoken":
            return wide[texts.last]


def normalized(vectors: jax.Array) -> jax.Array:
    """vectors [N, D] -> each of length 1, or 0 where it is."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
