"""The `Attend` of an engine: rotates, stores and mixes the tokens of a step, whichever kernel mixes. Knows no requests."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from attrs import frozen

from models.nn import rotate
from neuron_jax.engine.attention_kv import KVFormat, LayerCache


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
        qkv: jax.Array,
        cache: LayerCache,
        *,
        rotary: tuple[jax.Array, jax.Array],
        scale: float,
        window: int | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """qkv [R*C, K, G+2, H] -> mixed [R*C, K, G, H] in its dtype and the layer's new pool."""
        group = qkv.shape[2] - 2
        turned = rotate(qkv[:, :, : group + 1], rotary)
        cache = self.kv.write(cache, turned[:, :, group], qkv[:, :, group + 1], **self._places(cache[0].shape[1]))
        q = (turned[:, :, :group] * scale).reshape(*self._rows, *turned[:, :, :group].shape[1:])
        mixed = self.mix(q, cache, self.kv, table=self.table, start=self.start, count=self.count, window=window)
        return mixed.reshape(qkv.shape[0], *mixed.shape[2:]), cache

    @property
    def _rows(self) -> tuple[int, int]:
        return self.table.shape[0], self.chunk

    def _places(self, page_size: int) -> dict[str, Any]:
        """Where the R*C tokens go; padding goes to the trash page."""
        step = jnp.arange(self.chunk, dtype=jnp.int32)[None]
        real = step < self.count[:, None]
        position = self.start[:, None] + step
        # Padding may lie past the table's end, where a clipped read would name a real page.
        index = jnp.where(real, position // page_size, 0)
        page = jnp.where(real, jnp.take_along_axis(self.table, index, axis=1), 0)
        return {"page": page.reshape(-1), "offset": (position % page_size).reshape(-1), "real": real.reshape(-1)}
