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
    begin = tuple(_begin(state, kept, rows, snapshots) for state, kept in zip(by_slot, by_snapshot, strict=True))
    boundary = (rows.start + rows.count - 1) // snapshots.page_size * snapshots.page_size
    each = jax.vmap(update)

    def following(k: jax.Array, carry: Any) -> Any:
        """Token `k` of every row that has so many."""
        now, marked, given = carry
        live, at = k < rows.count, rows.first + k
        new, out = each(now, jax.tree.map(lambda leaf: leaf[jnp.where(live, at, 0)], inputs))
        now = _where(live, new, now)
        marked = _where(live & (rows.start + k + 1 == boundary), now, marked)
        place = jnp.where(live, at, total)
        return now, marked, jax.tree.map(lambda leaf, one: leaf.at[place].set(one, mode="drop"), given, out)

    outputs = jax.eval_shape(each, begin, jax.tree.map(lambda leaf: leaf[rows.first], inputs))[1]
    given = jax.tree.map(lambda leaf: jnp.zeros((total, *leaf.shape[1:]), leaf.dtype), outputs)
    end, marked, given = lax.fori_loop(0, jnp.max(rows.count), following, (begin, begin, given))
    # Of several tokens in one step each is a row of its own, and most of them reach no boundary.
    save = jnp.where(boundary >= rows.start, snapshots.save, 0)
    left = (
        *(state.at[rows.slot].set(one) for state, one in zip(by_slot, end, strict=True)),
        *(kept.at[save].set(one) for kept, one in zip(by_snapshot, marked, strict=True)),
    )
    return given, left


def _begin(state: jax.Array, kept: jax.Array, rows: Ragged, snapshots: Snapshots) -> jax.Array:
    own = jnp.where(_by_row(rows.start == 0, state), 0, state[rows.slot])
    return jnp.where(_by_row(snapshots.load > 0, kept), kept[snapshots.load], own)


def _where(which: jax.Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(_by_row(which, a), a, b), one, other)


def _by_row(which: jax.Array, like: jax.Array) -> jax.Array:
    """`which` [R] so that it chooses among the rows of arrays as `like`."""
    return which.reshape(-1, *(1,) * (like.ndim - 1))
