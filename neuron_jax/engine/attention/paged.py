"""Attention of one kind of layer: stores and mixes the tokens of a step, whichever kernel mixes. Knows no requests.

Kernels take rows of equal length. Where a step has a row for each token they get single tokens; else its rows are cut into
tiles of `TILE` tokens, so that chunks of prompts share what they read and a single token costs a tile.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from attrs import Factory, frozen

from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import KVFormat, LayerCache
from neuron_jax.engine.attention.ragged import Ragged, places

TILE = 16


class Mix(Protocol):
    """A kernel: q [N, C, K, G, k_width], scaled, over a layer's pool that holds the same tokens -> [N, C, K, G, v_width].

    The tokens are those from `start` [N], `count` [N] of them real; `table` [N, W] are the rows' pages, 0 (the trash page)
    past their end and behind the layer's window. Padding tokens get something finite.
    """

    def __call__(
        self,
        q: jax.Array,
        cache: LayerCache,
        kv: KVFormat,
        *,
        layer: PagedLayer,
        table: jax.Array,
        start: jax.Array,
        count: jax.Array,
        sinks: jax.Array | None = None,
    ) -> jax.Array: ...


@frozen
class TokenTiles:
    """The rows that a kernel gets, [N]; `token` [N, C]: which tokens they are; `place` [T]: where each token is among N * C."""

    table: jax.Array
    start: jax.Array
    count: jax.Array
    token: jax.Array
    place: jax.Array


@frozen
class PagedAttend:
    """Attention for the rows of a step, whose keys and values live in pages of `kv`."""

    mix: Mix
    kv: KVFormat
    layer: PagedLayer
    rows: Ragged
    page_size: int
    tiles: TokenTiles = Factory(lambda self: _tiles(self.rows, self.page_size, self.layer.window), takes_self=True)

    def __call__(
        self,
        q: jax.Array,
        k: jax.Array | None,
        v: jax.Array | None,
        cache: LayerCache,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache]:
        """See `models.spec.Mixer.attend`; the mixed values are in q's dtype."""
        cache = self.kv.write(cache, k, v, **places(self.rows, self.layer.window, self.page_size))
        tiles = self.tiles
        rows = q[:, None] if self.rows.single else q[tiles.token]
        where = {"table": tiles.table, "start": tiles.start, "count": tiles.count}
        mixed = self.mix(rows, cache, self.kv, layer=self.layer, **where, sinks=sinks)
        flat = mixed.reshape(-1, *mixed.shape[2:])
        return flat if self.rows.single else flat[tiles.place], cache


def _tiles(rows: Ragged, page_size: int, window: int | None) -> TokenTiles:
    tokens = jnp.arange(rows.row.shape[0], dtype=jnp.int32)
    if rows.single:
        count = rows.real.astype(jnp.int32)
        table = _own(rows.tables[window].of(rows.slot[rows.row]), rows.position, count, page_size, window)
        return TokenTiles(table, rows.position, count, tokens[:, None], tokens)
    # Each row may end with a tile that is not full.
    most = rows.row.shape[0] // TILE + rows.slot.shape[0]
    each = (rows.count + TILE - 1) // TILE
    ends = jnp.cumsum(each, dtype=jnp.int32)
    tile = jnp.arange(most, dtype=jnp.int32)
    row = jnp.minimum(jnp.sum(tile[:, None] >= ends[None], axis=1, dtype=jnp.int32), rows.slot.shape[0] - 1)
    before = (tile - (ends - each)[row]) * TILE
    count = jnp.clip(rows.count[row] - before, 0, TILE)
    start = jnp.where(count > 0, rows.start[row] + before, 0)
    inside = jnp.arange(TILE, dtype=jnp.int32)
    token = jnp.minimum((rows.first[row] + before)[:, None] + inside[None], tokens.size - 1)
    nth = tokens - rows.first[rows.row]
    place = ((ends - each)[rows.row] + nth // TILE) * TILE + nth % TILE
    place = jnp.where(rows.real, place, 0)
    return TokenTiles(
        _own(rows.tables[window].of(rows.slot[row]), start, count, page_size, window), start, count, token, place
    )


def _own(table: jax.Array, start: jax.Array, count: jax.Array, page_size: int, window: int | None) -> jax.Array:
    """[N, W] with the trash page past the page of the last token and before the first that a window reaches: what stands
    there is somebody else's."""
    first = jnp.arange(table.shape[1], dtype=jnp.int32)[None] * page_size
    own = first < (start + count)[:, None]
    if window is not None:
        own &= first + page_size > (start - window + 1)[:, None]
    return jnp.where(own, table, 0)
