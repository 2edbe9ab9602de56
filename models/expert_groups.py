"""How pairs of a token and an expert are divided among a GPU kernel's programs: all pairs of an expert together.

Knows the experts that tokens chose, no weights. For kernels that lower through Triton.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models.few_rows import MOST_ROWS, OUT, padded, whole
from models.widened import LEAST_ROWS

WIDE_OUT = 64
"""Outputs of a program where there are many rows, which then are read half as often; if registers hold them."""

SORTED = 1024
"""Pairs that are looked at together where they are sorted."""


@frozen
class PairRows:
    """Rows of a program: the number of their expert, of each whether it is one, its token and its pair of token and expert, and
    whether there is anything to do. Of what is no row, the token is some other's, and the pair no other row's."""

    number: jax.Array
    inside: jax.Array
    token: jax.Array
    pair: jax.Array
    here: jax.Array


@frozen
class PairGroups:
    """Pairs in `slots` of at most `rows`, each with `out` outputs a program. `find` says which a slot has, from the arrays that
    are `given` to a kernel by their names."""

    slots: int
    rows: int
    out: int
    find: Callable[[Mapping[str, Any], jax.Array], PairRows]
    given: Mapping[str, jax.Array]


def by_expert(chosen: jax.Array, count: int) -> PairGroups:
    """chosen int32 [T, active]: all tokens of an expert are one slot's, which is the expert's own, or that of its first pair
    where there are fewer pairs than experts.
    """
    find = partial(_of_expert, count)
    return PairGroups(min(chosen.size, count), padded(chosen.shape[0]), OUT, find, {"chosen": chosen})


def _of_expert(count: int, given: Mapping[str, Any], slot: jax.Array) -> PairRows:
    chosen = given["chosen"]
    tokens, active = chosen.shape
    if tokens * active < count:
        number = triton.load(chosen.at[slot // active, slot % active])
        flat = jnp.arange(pl.next_power_of_2(tokens * active), dtype=jnp.int32)
        before = triton.load(chosen.at[flat // active, flat % active], mask=flat < slot, other=-1)
        first = jnp.max((before == number).astype(jnp.int32)) == 0
    else:
        number, first = slot, jnp.bool_(True)
    row = jnp.arange(padded(tokens), dtype=jnp.int32)
    token = jnp.minimum(row, tokens - 1)
    place = jnp.arange(pl.next_power_of_2(active), dtype=jnp.int32)
    there = (row < tokens)[:, None] & (place < active)[None]
    found = triton.load(chosen.at[row[:, None], place[None]], mask=there, other=-1)
    which = jnp.where(found == number, place[None], -1).max(axis=1)
    pair = row * active + jnp.maximum(which, 0)
    return PairRows(number, which >= 0, token, pair, first & (jnp.max(which) >= 0))


def in_tiles(chosen: jax.Array, count: int, out: int, most: int = MOST_ROWS, *, interpret: bool = False) -> PairGroups:
    """chosen int32 [T, active]: an expert's pairs in as many slots as they fill, of `most` rows, for programs of `out` outputs.
    How many slots there are does not depend on what was chosen; the last ones may be empty.
    """
    pairs = chosen.size
    rows = max(LEAST_ROWS, min(most, pl.next_power_of_2(-(-pairs // count))))
    order, counts = sort(chosen.reshape(-1), count, interpret=interpret)
    find = partial(_of_tile, rows, chosen.shape[1])
    return PairGroups(pairs // rows + min(pairs, count), rows, out, find, {"order": order, "counts": counts})


def _of_tile(rows: int, active: int, given: Mapping[str, Any], slot: jax.Array) -> PairRows:
    count = given["counts"].shape[0]
    expert = jnp.arange(pl.next_power_of_2(count), dtype=jnp.int32)
    counts = triton.load(given["counts"].at[expert], mask=expert < count, other=0)
    tiles = (counts + rows - 1) // rows
    until = jnp.cumsum(tiles)
    number = (until <= slot).astype(jnp.int32).sum()
    here = number < count
    number = jnp.minimum(number, count - 1)
    earlier, own = expert < number, expert == number
    first = jnp.where(earlier, counts, 0).sum() + (slot - jnp.where(earlier, tiles, 0).sum()) * rows
    last = jnp.where(earlier | own, counts, 0).sum()
    place = first + jnp.arange(rows, dtype=jnp.int32)
    inside = here & (place < last)
    pair = triton.load(given["order"].at[place], mask=inside, other=0)
    # What is no row has a pair behind all of them, which no mask lets pass.
    pair = jnp.where(inside, pair, given["order"].shape[0] + place)
    return PairRows(number, inside, jnp.where(inside, pair // active, 0), pair, here)


def sort(chosen: jax.Array, count: int, *, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """Experts int32 [P] of so many -> the pairs by their experts, in their order, int32 [P], and how many each expert has,
    int32 [count]. A program takes an expert.
    """
    pairs = chosen.shape[0]
    size = min(SORTED, pl.next_power_of_2(pairs))

    def kernel(chosen_ref: Any, order_ref: Any, counts_ref: Any) -> None:
        own = pl.program_id(0)

        def block(number: Any) -> tuple[jax.Array, jax.Array]:
            pair = number * size + jnp.arange(size, dtype=jnp.int32)
            return pair, triton.load(chosen_ref.at[pair], mask=pair < pairs, other=count)

        def tally(number: Any, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            _, expert = block(number)
            return found[0] + (expert < own).astype(jnp.int32), found[1] + (expert == own).astype(jnp.int32)

        blocks = -(-pairs // size)
        nothing = jnp.zeros(size, jnp.int32)
        before, mine = lax.fori_loop(0, blocks, tally, (nothing, nothing))
        triton.store(counts_ref.at[own], mine.sum())

        def place(number: Any, at: jax.Array) -> jax.Array:
            pair, expert = block(number)
            there = (expert == own).astype(jnp.int32)
            where = at + jnp.cumsum(there) - 1
            # What is not written goes to places of its own, which no mask lets pass.
            where = jnp.where(expert == own, where, pairs + pair)
            triton.store(order_ref.at[where], pair, mask=expert == own)
            return at + there.sum()

        lax.fori_loop(0, blocks, place, before.sum())

    call: Any = pl.pallas_call(
        kernel,
        grid=(count,),
        in_specs=[whole(chosen.shape)],
        out_specs=[whole((pairs,)), whole((count,))],
        out_shape=[jax.ShapeDtypeStruct((size,), jnp.int32) for size in (pairs, count)],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="sort_pairs",
    )
    order, counts = call(chosen)
    return order, counts
