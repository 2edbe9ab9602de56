"""Attention over a paged KV pool in plain XLA: runs anywhere, and is the oracle of every faster kernel.

The keys are read in blocks of `BLOCK` tokens with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867), up to
the longest row of the step. A row that ended earlier sees only masked blocks from there on, which leave its maximum, sum
and accumulator bit for bit alone: what a row gets does not depend on how long the others are. The trip count is dynamic,
so that there is no axis of compiled programs for the context length.
"""

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax

BLOCK = 128
"""Tokens read at once; a multiple of every page size. 128 measured best of 64..512 for decode on a CPU."""

NEVER = -1e30
"""Score of a masked key. Finite: a block that is masked as a whole must give exp(0) * 0, not exp(inf - inf)."""

LayerCache = tuple[jax.Array, jax.Array]
"""One layer's pool: keys and values, each [pages, page_size, K, H]."""


@frozen
class PagedAttend:
    """An `Attend` for R rows of C tokens whose keys and values live in pages.

    `table` [R, W] int32: each row's pages in order, 0 (the trash page) past its end; W * page_size is a multiple of BLOCK.
    `start` [R] int32: the position of a row's first token; `count` [R]: how many of its C tokens are real.
    """

    table: jax.Array
    start: jax.Array
    count: jax.Array
    chunk: int

    @property
    def positions(self) -> jax.Array:
        """[R, C] int32."""
        return self.start[:, None] + jnp.arange(self.chunk, dtype=jnp.int32)[None, :]

    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, cache: LayerCache, *, window: int | None = None
    ) -> tuple[jax.Array, LayerCache]:
        """q [R*C, K, G, H], k and v [R*C, K, H] -> mixed [R*C, K, G, H] in q's dtype and the layer's new pool."""
        keys, values = self._write(cache[0], k), self._write(cache[1], v)
        rows, chunk = self.table.shape[0], self.chunk
        _, kv_heads, group, width = q.shape
        by_head = q.reshape(rows, chunk, kv_heads, group, width).transpose(0, 2, 3, 1, 4)
        by_head = by_head.reshape(rows, kv_heads, group * chunk, width)
        mixed = self._mix(by_head, keys, values, group=group, window=window)
        mixed = mixed.reshape(rows, kv_heads, group, chunk, width).transpose(0, 3, 1, 2, 4)
        return mixed.reshape(q.shape).astype(q.dtype), (keys, values)

    def _write(self, pool: jax.Array, new: jax.Array) -> jax.Array:
        """`pool` with the R*C new keys or values in their places; padding goes to the trash page."""
        page_size = pool.shape[1]
        real = jnp.arange(self.chunk, dtype=jnp.int32)[None, :] < self.count[:, None]
        # Padding may lie past the table's end, where a clipped read would name a real page.
        index = jnp.where(real, self.positions // page_size, 0)
        page = jnp.where(real, jnp.take_along_axis(self.table, index, axis=1), 0)
        offset = self.positions % page_size
        # The trash page stays zero: a masked weight of 0 times a NaN left there by one request would reach all others.
        new = jnp.where(real.reshape(-1, 1, 1), new.astype(pool.dtype), jnp.zeros((), pool.dtype))
        return pool.at[page.reshape(-1), offset.reshape(-1)].set(new, mode="promise_in_bounds")

    def _mix(self, q: jax.Array, keys: jax.Array, values: jax.Array, *, group: int, window: int | None) -> jax.Array:
        """q [R, K, G*C, H] -> float32 [R, K, G*C, H]."""
        rows, kv_heads, queries, width = q.shape
        page_size = keys.shape[1]
        pages = BLOCK // page_size
        position = jnp.tile(self.positions, (1, group))[:, None, :, None]  # [R, 1, G*C, 1]

        def body(block: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            top, total, acc = carry
            ids = lax.dynamic_slice_in_dim(self.table, block * pages, pages, axis=1)
            k = keys[ids].reshape(rows, BLOCK, kv_heads, width)
            v = values[ids].reshape(rows, BLOCK, kv_heads, width)
            score = jnp.einsum("rkqh,rskh->rkqs", q, k, preferred_element_type=jnp.float32)
            at = (block * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32))[None, None, None, :]
            visible = at <= position
            if window is not None:
                visible &= at > position - window
            score = jnp.where(visible, score, jnp.float32(NEVER))
            new_top = jnp.maximum(top, score.max(axis=-1))
            shrink = jnp.exp(top - new_top)
            weight = jnp.where(visible, jnp.exp(score - new_top[..., None]), jnp.float32(0))
            mixed = jnp.einsum("rkqs,rskh->rkqh", weight.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return new_top, total * shrink + weight.sum(axis=-1), acc * shrink[..., None] + mixed

        shape = (rows, kv_heads, queries)
        carry = (
            jnp.full(shape, NEVER, jnp.float32),
            jnp.zeros(shape, jnp.float32),
            jnp.zeros((*shape, width), jnp.float32),
        )
        total: jax.Array
        acc: jax.Array
        _, total, acc = lax.fori_loop(self._first_block(window), self._end_block(), body, carry)
        # A padding query behind a window sees nothing at all: 0 / tiny is 0, not NaN.
        return acc / jnp.maximum(total, jnp.float32(1e-30))[..., None]

    def _end_block(self) -> jax.Array:
        return (jnp.max(self.start + self.count) + BLOCK - 1) // BLOCK

    def _first_block(self, window: int | None) -> jax.Array | int:
        if window is None:
            return 0
        return jnp.maximum(jnp.min(self.start) - window + 1, 0) // BLOCK
