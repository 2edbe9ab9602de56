"""Attention by `jax.nn.dot_product_attention`, hence cuDNN, over keys gathered from their pages; knows arrays, no engine.

One token for each row needs the rows' lengths only; several, or a window, need a mask [R, 1, C, S] in the dtype of q, since
cuDNN's own causal mask puts the first query on the first key. As many pages are gathered as the longest row has, rounded up
to one of few widths.

With cuDNN this has never been run; its arrangement is tested with JAX's own implementation of the same function.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import KVFormat, LayerCache, widened

LEAST_WIDTH = 512
"""Tokens of the narrowest gather; the next ones are four times as wide each."""


def attend_gathered(
    q: jax.Array,
    cache: LayerCache,
    kv: KVFormat,
    *,
    layer: PagedLayer,
    table: jax.Array,
    start: jax.Array,
    count: jax.Array,
    sinks: jax.Array | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """q [R, C, K, G, H], scaled, of the tokens from `start` [R], `count` [R] of them real -> [R, C, K, G, H].

    `cache` is one layer's pool with these tokens' keys and values in it; `table` [R, W] their pages.
    """
    assert sinks is None, "knows no sinks"
    window = layer.window
    rows, chunk, kv_heads, group, size = q.shape
    page_size = cache[0].shape[1]
    heads = q.reshape(rows, chunk, kv_heads * group, size)
    at = start[:, None] + jnp.arange(chunk, dtype=jnp.int32)[None]  # [R, C]

    def gather(tokens: int) -> tuple[jax.Array, jax.Array]:
        return widened(kv.read(cache, table[:, : -(-tokens // page_size)]), q.dtype)

    def attend(k: jax.Array, v: jax.Array, **kind: Any) -> jax.Array:
        # JAX's own function mixes dtypes.
        with jax.numpy_dtype_promotion("standard"):
            mixed: jax.Array = jax.nn.dot_product_attention(
                heads, k, v, scale=1.0, implementation=implementation, **kind
            )
        return mixed

    def lengths(width: int) -> jax.Array:
        # A padding row reads one key of the trash page, which is zero: no keys at all would be 0 / 0.
        return attend(*gather(width), key_value_seq_lengths=jnp.maximum(start + count, 1))

    def masked(width: int) -> jax.Array:
        k, v = gather(width)
        token = jnp.arange(k.shape[1], dtype=jnp.int32)[None, None]
        visible = token <= at[..., None]
        if window is not None:
            visible &= token > at[..., None] - window
        return attend(k, v, mask=visible[:, None])

    general = lengths if chunk == 1 and window is None else masked
    widths = _widths(chunk, table.shape[1] * page_size)
    needed = jnp.sum(jnp.max(start + count) > jnp.array(widths[:-1], jnp.int32), dtype=jnp.int32)
    mixed: jax.Array = lax.switch(needed, [partial(general, width) for width in widths])
    return mixed.reshape(q.shape)


def _widths(chunk: int, most: int) -> Sequence[int]:
    """Tokens to gather, ascending, the last being all that a row can have."""
    widths = [LEAST_WIDTH]
    while widths[-1] < most:
        widths.append(4 * widths[-1])
    return [width for width in widths if chunk <= width < most] + [most]
