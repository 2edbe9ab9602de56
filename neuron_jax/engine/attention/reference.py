"""Attention over paged keys in plain XLA: runs anywhere, and is the oracle of every faster kernel; knows arrays, no engine.

The keys are read in blocks of `BLOCK` tokens with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867), up to
the longest row of the step. A row that ended earlier sees only masked blocks from there on, which leave its maximum, sum
and accumulator bit for bit alone: what a row gets does not depend on how long the others are. The trip count is dynamic,
so that there is no axis of compiled programs for the context length.
"""

import jax
import jax.numpy as jnp
from jax import lax

from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import KVFormat, LayerCache

BLOCK = 128
"""Tokens read at once; a multiple of every page size. 128 measured best of 64..512 for decode on a CPU."""

NEVER = -1e30
"""Score of a masked key. Finite: a block that is masked as a whole must give exp(0) * 0, not exp(inf - inf)."""


def attend_blocks(
    q: jax.Array,
    cache: LayerCache,
    kv: KVFormat,
    *,
    layer: PagedLayer,
    table: jax.Array,
    start: jax.Array,
    count: jax.Array,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """q [R, C, K, G, k_width], scaled, of the tokens from `start` [R], `count` [R] of them real -> [R, C, K, G, v_width].

    `cache` is one layer's pool with these tokens' keys and values in it; `table` [R, W] their pages, 0 (the trash page)
    past a row's end; W * page_size is a multiple of BLOCK.
    """
    rows, chunk, kv_heads, group, width = q.shape
    window = layer.window
    queries = group * chunk
    by_head = q.transpose(0, 2, 3, 1, 4).reshape(rows, kv_heads, queries, width)
    assert BLOCK % cache[0].shape[1] == 0, f"pages of {cache[0].shape[1]} tokens"
    pages = BLOCK // cache[0].shape[1]
    position = start[:, None] + jnp.arange(chunk, dtype=jnp.int32)[None]
    position = jnp.tile(position, (1, group))[:, None, :, None]  # [R, 1, G*C, 1]

    def body(block: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, acc = carry
        tokens = kv.read(cache, lax.dynamic_slice_in_dim(table, block * pages, pages, axis=1))
        score = jnp.einsum("rkqh,rskh->rkqs", by_head, tokens.k.astype(q.dtype), preferred_element_type=jnp.float32)
        # The maximum changes nothing. Without it score * scale - top is rounded once or twice, depending on how XLA:CPU
        # fuses it, which is not the same for one row and for several; a barrier is gone before it fuses.
        score = jnp.maximum(_by_key(score, tokens.k_scale), jnp.float32(NEVER))
        if layer.soft_cap is not None:
            score = layer.soft_cap * jnp.tanh(score / layer.soft_cap)
        at = (block * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32))[None, None, None, :]
        visible = at <= position
        if window is not None:
            visible &= at >= layer.first_seen(position)
        score = jnp.where(visible, score, jnp.float32(NEVER))
        new_top = jnp.maximum(top, score.max(axis=-1))
        shrink = jnp.exp(top - new_top)
        weight = jnp.where(visible, jnp.exp(score - new_top[..., None]), jnp.float32(0))
        total = total * shrink + weight.sum(axis=-1)
        weight = _by_key(weight, tokens.v_scale).astype(q.dtype)
        mixed = jnp.einsum("rkqs,rskh->rkqh", weight, tokens.v.astype(q.dtype), preferred_element_type=jnp.float32)
        return new_top, total, acc * shrink[..., None] + mixed

    shape = (rows, kv_heads, queries)
    carry = (
        jnp.full(shape, NEVER, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, layer.v_width), jnp.float32),
    )
    first = 0 if window is None else jnp.maximum(layer.first_seen(jnp.min(start)), 0) // BLOCK
    last = (jnp.max(start + count) + BLOCK - 1) // BLOCK
    top, total, acc = lax.fori_loop(first, last, body, carry)
    if sinks is not None:
        top, total, acc = _with_sinks(jnp.repeat(sinks, chunk, axis=1)[None], top, total, acc)
    # A padding query behind a window sees nothing at all: 0 / tiny is 0, not NaN.
    mixed: jax.Array = acc / jnp.maximum(total, jnp.float32(1e-30))[..., None]
    return mixed.reshape(rows, kv_heads, group, chunk, -1).transpose(0, 3, 1, 2, 4).astype(q.dtype)


def _with_sinks(sinks: jax.Array, top: jax.Array, total: jax.Array, acc: jax.Array) -> tuple[jax.Array, ...]:
    """The carry with one more score, `sinks` [1, K, Q], that has no value."""
    new_top = jnp.maximum(top, sinks)
    shrink = jnp.exp(top - new_top)
    return new_top, total * shrink + jnp.exp(sinks - new_top), acc * shrink[..., None]


def _by_key(per_key: jax.Array, scale: jax.Array | None) -> jax.Array:
    """[R, K, Q, S] times the scales [R, S, K] of its keys."""
    return per_key if scale is None else per_key * scale.transpose(0, 2, 1)[:, :, None]
