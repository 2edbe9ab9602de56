"""The `Attend` of an engine: stores and mixes the tokens of a step, whichever kernel mixes. Knows no requests."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from attrs import frozen

from neuron_jax.engine.attention.kv import KVFormat, LayerCache


class Mix(Protocol):
    """A kernel: q [R, C, K, G, H], scaled, over a layer's pool that holds the same tokens -> [R, C, K, G, H].

    The tokens are those from `start` [R], `count` [R] of them real; `table` [R, W] are the rows' pages. Padding tokens
    get something finite.
    """

    def __call__(
        self,
        q: jax.Array,
        cache: LayerCache,
        kv: KVFormat,
        *,
        table: jax.Array,
        start: jax.Array,
        count: jax.Array,
        window: int | None,
    ) -> jax.Array: ...


@frozen
class PagedAttend:
    """An `Attend` for R rows of C tokens whose keys and values live in pages of `kv`.

    `table` [R, W] int32: each row's pages in order, 0 (the trash page) past its end.
    `start` [R] int32: the position of a row's first token; `count` [R]: how many of its C tokens are real.
    """

    mix: Mix
    kv: KVFormat
    table: jax.Array
    start: jax.Array
    count: jax.Array
    chunk: int

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: LayerCache,
        *,
        window: int | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """q [R*C, K, G, H], k and v [R*C, K, H] -> mixed [R*C, K, G, H] in q's dtype and the layer's new pool."""
        cache = self.kv.write(cache, k, v, **self._places(cache[0].shape[1]))
        rows = q.reshape(self.table.shape[0], self.chunk, *q.shape[1:])
        mixed = self.mix(rows, cache, self.kv, table=self.table, start=self.start, count=self.count, window=window)
        return mixed.reshape(q.shape), cache

    def _places(self, page_size: int) -> dict[str, Any]:
        """Where the R*C tokens go; padding goes to the trash page."""
        step = jnp.arange(self.chunk, dtype=jnp.int32)[None]
        real = step < self.count[:, None]
        position = self.start[:, None] + step
        # Padding may lie past the table's end, where a clipped read would name a real page.
        index = jnp.where(real, position // page_size, 0)
        page = jnp.where(real, jnp.take_along_axis(self.table, index, axis=1), 0)
        return {"page": page.reshape(-1), "offset": (position % page_size).reshape(-1), "real": real.reshape(-1)}
