"""Which token of a step belongs to which row, as arrays on the device: what every attention starts from. Knows no requests.

A step is T tokens, flat. Row r has `count[r]` of them, those of one request from position `start[r]` on, and rows stand one
after the other; behind the last comes padding. Rows are of any length side by side: chunks of prompts, and single tokens.
Two rows may be of one request. All keys and values of a layer are stored before any is read, so a token sees those of its
own step that stand before it in its text, whichever row they are in.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from attrs import frozen


@frozen
class Table:
    """The pages of every slot in order: `width` words of its line in `lines` int32 [S, L], from `first` on. Cutting them out
    would copy the table of the longest context in every step of a GPU."""

    lines: jax.Array
    first: int
    width: int

    def of(self, slot: jax.Array) -> jax.Array:
        """slot [N] -> [N, W]."""
        return self.whole()[slot]

    def page(self, slot: jax.Array, number: jax.Array) -> jax.Array:
        """The page of this `number` [N] of each slot [N]."""
        return self.lines[slot, self.first + number]

    def whole(self) -> jax.Array:
        """[S, W]."""
        return self.lines[:, self.first : self.first + self.width]


def table(pages: jax.Array) -> Table:
    """Pages [S, W] by themselves."""
    return Table(pages, 0, pages.shape[1])


@frozen
class Ragged:
    """`tables` by window of a layer: the pages of every slot, of which a slot's own end where its tokens do. By row, int32
    [R]: `slot`, `start`, `count`, and `first`, its place among the tokens. By token, [T]: `row`, `position`, `real`.
    """

    tables: Mapping[int | None, Table]
    slot: jax.Array
    start: jax.Array
    count: jax.Array
    first: jax.Array
    row: jax.Array
    position: jax.Array
    real: jax.Array

    @property
    def single(self) -> bool:
        """Whether there is a row for each token, so that every token may be looked at by itself."""
        return self.row.shape[0] <= self.slot.shape[0]


def ragged(
    tables: Mapping[int | None, Table], slot: jax.Array, start: jax.Array, count: jax.Array, tokens: int
) -> Ragged:
    """The rows of a step of `tokens` tokens."""
    ends = jnp.cumsum(count, dtype=jnp.int32)
    first = ends - count
    place = jnp.arange(tokens, dtype=jnp.int32)
    row = jnp.sum(place[:, None] >= ends[None], axis=1, dtype=jnp.int32)
    real = row < slot.shape[0]
    row = jnp.minimum(row, slot.shape[0] - 1)
    position = jnp.where(real, start[row] + place - first[row], 0)
    return Ragged(tables, slot, start, count, first, row, position, real)


def places(rows: Ragged, window: int | None, page_size: int) -> dict[str, jax.Array]:
    """Where the tokens are stored, as `KVFormat.write` takes it; padding goes to the trash page."""
    page = rows.tables[window].page(rows.slot[rows.row], rows.position // page_size)
    return {"page": jnp.where(rows.real, page, 0), "offset": rows.position % page_size, "real": rows.real}
