"""What the programs of an attention kernel are given to do in a step: single tokens, and tiles of longer rows. Knows no heads.

A row of one token, which is what decoding is, may have a long text before it and is read by several programs; a longer row is
cut into tiles of tokens that share what they read. How many of either there may be is part of the compiled step; which of
them exist is data.
"""

from functools import partial

import jax
import jax.numpy as jnp
from attrs import frozen

from neuron_jax.engine.attention.ragged import Ragged

SLOT, START, COUNT, TOKEN = range(4)
"""Of each piece of work: whose pages it reads, the position of its first token, how many tokens it has, 0 for a piece that is
not there, and the place of its first among the tokens of the step."""

FEW = 16
"""Steps of so many tokens or fewer are single tokens, whatever their rows."""


@partial(jax.tree_util.register_dataclass, data_fields=["singles", "tiles", "real"], meta_fields=[])
@frozen
class Work:
    """`singles` int32 [N, 4] have at most one token each, `tiles` int32 [M, 4] at most as many as was asked for, None
    where a step has no longer rows; `real` int32
    [1] tokens of the step exist, the first ones."""

    singles: jax.Array
    tiles: jax.Array | None
    real: jax.Array


def work(rows: Ragged, tile: int) -> Work:
    """The tokens of a step in pieces of one and of at most `tile` tokens."""
    tokens, real = rows.row.shape[0], jnp.sum(rows.count, keepdims=True, dtype=jnp.int32)
    if tokens <= FEW:
        place = jnp.arange(tokens, dtype=jnp.int32)
        alone = jnp.stack([rows.slot[rows.row], rows.position, rows.real.astype(jnp.int32), place], axis=1)
        return Work(alone, None, real)
    single = (rows.count == 1).astype(jnp.int32)
    alone = jnp.stack([rows.slot, rows.start, single, rows.first], axis=1)
    return Work(alone, _tiles(rows, tile, most_tiles(tokens, rows.slot.shape[0], tile)), real)


def most_tiles(tokens: int, rows: int, tile: int) -> int:
    """Of a step of `tokens` tokens in `rows` rows: each longer row may end with a tile that is not full."""
    longer = min(rows, tokens // 2)
    return 0 if tokens <= FEW else (tokens + longer * (tile - 1)) // tile


def _tiles(rows: Ragged, tile: int, most: int) -> jax.Array:
    each = jnp.where(rows.count > 1, (rows.count + tile - 1) // tile, 0)
    ends = jnp.cumsum(each, dtype=jnp.int32)
    number = jnp.arange(most, dtype=jnp.int32)
    row = jnp.minimum(jnp.sum(number[:, None] >= ends[None], axis=1, dtype=jnp.int32), rows.slot.shape[0] - 1)
    before = (number - (ends - each)[row]) * tile
    count = jnp.where(number < ends[-1], jnp.clip(rows.count[row] - before, 0, tile), 0)
    return jnp.stack([rows.slot[row], rows.start[row] + before, count, rows.first[row] + before], axis=1)
