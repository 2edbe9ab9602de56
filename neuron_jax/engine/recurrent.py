"""Recurrent layers in a step: where each row's state comes from, and where it is left. Knows slots and snapshots by number.

The state of a text stands in its slot, and only goes forward. A row begins with zeros where its text begins, with a snapshot
where it is told one, else with what its slot has; it leaves its state in the slot, and where it is told so in a snapshot: that
of the last page boundary before its last token.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax

from models.spec import ParamSpec, RecurrentLayer
from neuron_jax.engine.attention.ragged import Ragged

States = tuple[jax.Array, ...]
"""A layer's cache: its arrays by slot, [S + 1, ...], then by snapshot, [P + 1, ...]. The last slot and snapshot 0 are trash."""


@frozen
class Snapshots:
    """By row, int32 [R]: the snapshot to `load` before its first token and the one to `save`, 0 for none."""

    load: jax.Array
    save: jax.Array
    page_size: int


def state_specs(layer: RecurrentLayer, *, slots: int, snapshots: int) -> tuple[ParamSpec, ...]:
    """The arrays of a layer's `States`, for so many slots and snapshots."""
    return tuple(
        ParamSpec((count + 1, *leaf.shape), leaf.dtype, (None, *leaf.axes))
        for count in (slots, snapshots)
        for leaf in layer.state
    )


def recur(
    update: Callable[[Any, Any], tuple[Any, Any]], inputs: Any, cache: States, rows: Ragged, snapshots: Snapshots
) -> tuple[Any, States]:
    """See `models.spec.Mixer.recur`. The first tokens of all rows at once, then the second ones, up to the longest row."""
    half, total = len(cache) // 2, rows.row.shape[0]
    by_slot, by_snapshot = cache[:half], cache[half:]
    begin = _begin(tuple(state[rows.slot] for state in by_slot), by_snapshot, rows, snapshots.load)
    boundary = (rows.start + rows.count - 1) // snapshots.page_size * snapshots.page_size
    saved = _save(by_snapshot, begin, snapshots.save, boundary == rows.start)
    each = jax.vmap(update)

    def following(k: jax.Array, carry: Any) -> Any:
        """Token `k` of every row that has so many."""
        now, kept, given = carry
        live, at = k < rows.count, rows.first + k
        new, out = each(now, jax.tree.map(lambda leaf: leaf[jnp.where(live, at, 0)], inputs))
        now = _where(live, new, now)
        kept = _save(kept, now, snapshots.save, live & (rows.start + k + 1 == boundary))
        place = jnp.where(live, at, total)
        return now, kept, jax.tree.map(lambda leaf, one: leaf.at[place].set(one, mode="drop"), given, out)

    outputs = jax.eval_shape(each, begin, jax.tree.map(lambda leaf: leaf[rows.first], inputs))[1]
    given = jax.tree.map(lambda leaf: jnp.zeros((total, *leaf.shape[1:]), leaf.dtype), outputs)
    end, saved, given = lax.fori_loop(0, jnp.max(rows.count), following, (begin, saved, given))
    return given, (*(state.at[rows.slot].set(one) for state, one in zip(by_slot, end, strict=True)), *saved)


def _begin(now: States, kept: States, rows: Ragged, load: jax.Array) -> States:
    """`now` [R, ...] with zeros and snapshots for the rows that begin with them."""

    def one(row: jax.Array, now: States) -> States:
        loads = load[row] > 0
        return tuple(
            state.at[row].set(jnp.where(loads, snapshot[load[row]], 0))
            for state, snapshot in zip(now, kept, strict=True)
        )

    return _for_each((rows.count > 0) & ((rows.start == 0) | (load > 0)), one, now)


def _save(kept: States, now: States, save: jax.Array, reached: jax.Array) -> States:
    """The snapshots with the states `now` [R, ...] of the rows that have `reached` [R] what is to be kept."""

    def one(row: jax.Array, kept: States) -> States:
        return tuple(snapshot.at[save[row]].set(state[row]) for snapshot, state in zip(kept, now, strict=True))

    return _for_each(reached & (save > 0), one, kept)


def _for_each(which: jax.Array, do: Callable[[jax.Array, States], States], states: States) -> States:
    """`do` (row, states) for each row of `which` [R], in place: mostly there is none, and then it costs a look."""

    def one(carry: tuple[jax.Array, States]) -> tuple[jax.Array, States]:
        left, states = carry
        row = jnp.argmax(left)
        return left.at[row].set(False), do(row, states)

    return lax.while_loop(lambda carry: carry[0].any(), one, (which, states))[1]


def _where(which: jax.Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(_by_row(which, a), a, b), one, other)


def _by_row(which: jax.Array, like: jax.Array) -> jax.Array:
    """`which` [R] so that it chooses among the rows of arrays as `like`."""
    return which.reshape(-1, *(1,) * (like.ndim - 1))
