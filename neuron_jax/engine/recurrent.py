"""Recurrent layers in a step: where each row's state comes from, and where it is left. Knows slots and snapshots by number.

The state of a text stands in its slot, and only goes forward. A row begins with zeros where its text begins, with a snapshot
where it is told one, else with what its slot has; it leaves its state in the slot, and where it is told so in a snapshot: that
of the last page boundary before its last token.

Where there is a row for each token, all rows take their next token together. Else rows of a single token do so, and before
them longer ones one after the other, chunk after chunk; a chunk ends where a multiple of CHUNK of the text does, or the page
whose state is to be kept. A row that begins with a snapshot is taken in turn with the longer ones: a later row of the same
step may be kept in that very place.

What was guessed may be wrong, and a state cannot be taken back. So the rows of guesses FOLLOW each other: each begins with what
the one before it leaves, and that is also kept in a snapshot, from which the text goes on where the guess was wrong.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import evolve, frozen
from jax import lax

from models.native.recurrent import FOLLOWS, StateRows
from models.spec import CHUNK, ParamSpec, Recurrence, RecurrentLayer
from neuron_jax.engine.attention.ragged import Ragged

States = tuple[jax.Array, ...]
"""A layer's cache: its arrays by slot, [S + 1, ...], then by snapshot, [P + 1, ...]. The last slot and snapshot 0 are trash."""


@frozen
class Snapshots:
    """By row, int32 [R]: the snapshot to `load` before its first token, or FOLLOWS, and the one to `save`, 0 for none.
    `guesses`: whether rows may follow others.
    """

    load: jax.Array
    save: jax.Array
    page_size: int
    guesses: bool = False


def state_specs(layer: RecurrentLayer, *, slots: int, snapshots: int) -> tuple[ParamSpec, ...]:
    """The arrays of a layer's `States`, for so many slots and snapshots."""
    return tuple(
        ParamSpec((count + 1, *leaf.shape), leaf.dtype, (None, *leaf.axes))
        for count in (slots, snapshots)
        for leaf in layer.state
    )


def state_rows(rows: Ragged, snapshots: Snapshots) -> StateRows:
    """The same for a kernel."""
    by_row = (rows.slot, rows.start, rows.count, snapshots.load, snapshots.save)
    return StateRows(*by_row, snapshots.page_size, snapshots.guesses)


def recur(rule: Recurrence, inputs: Any, cache: States, rows: Ragged, snapshots: Snapshots) -> tuple[Any, States]:
    """See `models.spec.Mixer.recur`."""
    if rows.single:
        states = tuple(state[0] for state in cache[: len(cache) // 2])
        return _together(rule, inputs, (_nothing(rule, inputs, states), cache), rows, snapshots)
    given, cache = _in_chunks(rule, inputs, cache, rows, snapshots)
    if snapshots.guesses:
        given, cache = lax.cond(
            jnp.any(snapshots.load == FOLLOWS),
            lambda carry: _guessed(rule, inputs, carry, rows, snapshots),
            lambda carry: carry,
            (given, cache),
        )
    done: tuple[Any, States] = lax.cond(
        jnp.any(_single(rows, snapshots)),
        lambda carry: _singles(rule, inputs, carry, rows, snapshots),
        lambda carry: carry,
        (given, cache),
    )
    return done


def _single(rows: Ragged, snapshots: Snapshots) -> jax.Array:
    return (rows.count == 1) & (snapshots.load == 0) & ~_leads(snapshots)


def _leads(snapshots: Snapshots) -> jax.Array:
    """[R], the rows that others follow."""
    return jnp.append(snapshots.load[1:] == FOLLOWS, False) & (snapshots.load != FOLLOWS)


def _joined(rows: Ragged, snapshots: Snapshots, trash: int) -> tuple[Ragged, Snapshots]:
    """Rows with those that follow them in one, in whose places there are rows without tokens."""
    follows, place = snapshots.load == FOLLOWS, jnp.arange(rows.count.shape[0], dtype=jnp.int32)
    first = lax.cummax(jnp.where(follows, 0, place))
    count = jnp.zeros_like(rows.count).at[first].add(rows.count)
    joined = evolve(rows, count=count, slot=jnp.where(follows, trash, rows.slot))
    return joined, evolve(
        snapshots, load=jnp.where(follows, 0, snapshots.load), save=jnp.where(follows, 0, snapshots.save)
    )


def _guessed(
    rule: Recurrence, inputs: Any, carry: tuple[Any, States], rows: Ragged, snapshots: Snapshots
) -> tuple[Any, States]:
    """The rows of guesses and those that they follow, all texts at once."""
    which = _leads(snapshots) | (snapshots.load == FOLLOWS)
    some = evolve(
        rows,
        count=jnp.where(which, rows.count, 0),
        slot=jnp.where(which, rows.slot, carry[1][0].shape[0] - 1),
    )
    return _together(rule, inputs, carry, some, snapshots)


def _boundary(rows: Ragged, snapshots: Snapshots) -> jax.Array:
    """[R], the position behind which the state may be kept."""
    return (rows.start + rows.count - 1) // snapshots.page_size * snapshots.page_size


def _nothing(rule: Recurrence, inputs: Any, state: States) -> Any:
    """Zeros in place of what each token is given, [T, ...]."""
    token = jax.tree.map(lambda leaf: leaf[0], inputs)
    outputs = jax.eval_shape(rule.step, state, token)[1]
    total = jax.tree.leaves(inputs)[0].shape[0]
    return jax.tree.map(lambda leaf: jnp.zeros((total, *leaf.shape), leaf.dtype), outputs)


def _together(
    rule: Recurrence, inputs: Any, carry: tuple[Any, States], rows: Ragged, snapshots: Snapshots
) -> tuple[Any, States]:
    """The first tokens of all rows at once, then the second ones, up to the longest row."""
    given, cache = carry
    half, total = len(cache) // 2, rows.row.shape[0]
    by_slot, by_snapshot = cache[:half], cache[half:]
    boundary, kept_behind = _boundary(rows, snapshots), _kept_behind(snapshots)
    if snapshots.guesses:
        rows, snapshots = _joined(rows, snapshots, by_slot[0].shape[0] - 1)
    begin = _begin(tuple(state[rows.slot] for state in by_slot), by_snapshot, rows, snapshots.load)
    saved = _save(by_snapshot, begin, snapshots.save, (boundary == rows.start) & (rows.count > 0))
    each = jax.vmap(rule.step)

    def following(k: jax.Array, carry: Any) -> Any:
        """Token `k` of every row that has so many."""
        now, kept, given = carry
        live, at = k < rows.count, rows.first + k
        new, out = each(now, jax.tree.map(lambda leaf: leaf[jnp.where(live, at, 0)], inputs))
        now = _where(live, new, now)
        kept = _save(kept, now, snapshots.save, live & (rows.start + k + 1 == boundary))
        if snapshots.guesses:
            kept = _save(kept, now, kept_behind(k), live & (k + 1 < rows.count))
        place = jnp.where(live, at, total)
        return now, kept, jax.tree.map(lambda leaf, one: leaf.at[place].set(one, mode="drop"), given, out)

    end, saved, given = lax.fori_loop(0, jnp.max(rows.count), following, (begin, saved, given))
    return given, (*(state.at[rows.slot].set(one) for state, one in zip(by_slot, end, strict=True)), *saved)


def _singles(
    rule: Recurrence, inputs: Any, carry: tuple[Any, States], rows: Ragged, snapshots: Snapshots
) -> tuple[Any, States]:
    """The token of every row of one token, all at once."""
    (given, cache), half, total = carry, len(carry[1]) // 2, rows.row.shape[0]
    by_slot, kept, live = cache[:half], cache[half:], _single(rows, snapshots)
    singles = evolve(rows, count=live.astype(jnp.int32))
    now = _begin(tuple(state[rows.slot] for state in by_slot), kept, singles, jnp.zeros_like(snapshots.load))
    kept = _save(kept, now, snapshots.save, live & (_boundary(rows, snapshots) == rows.start))
    place = jnp.where(live, rows.first, total)
    now, out = jax.vmap(rule.step)(now, jax.tree.map(lambda leaf: leaf[jnp.where(live, rows.first, 0)], inputs))
    slot = jnp.where(live, rows.slot, by_slot[0].shape[0])
    by_slot = tuple(state.at[slot].set(one, mode="drop") for state, one in zip(by_slot, now, strict=True))
    return jax.tree.map(lambda leaf, one: leaf.at[place].set(one, mode="drop"), given, out), (*by_slot, *kept)


def _in_chunks(rule: Recurrence, inputs: Any, cache: States, rows: Ragged, snapshots: Snapshots) -> tuple[Any, States]:
    """Every row but the single ones, one row after the other."""
    half, total = len(cache) // 2, rows.row.shape[0]
    given = _nothing(rule, inputs, tuple(state[0] for state in cache[:half]))
    # A chunk is read and written whole, though a row may end in it, or the step.
    inputs, given = (jax.tree.map(lambda leaf: jnp.pad(leaf, _behind(leaf)), tree) for tree in (inputs, given))
    boundary = _boundary(rows, snapshots)

    def one_row(carry: tuple[jax.Array, Any, States]) -> tuple[jax.Array, Any, States]:
        left, given, cache = carry
        row = jnp.argmax(left)
        start, end, load = rows.start[row], rows.start[row] + rows.count[row], snapshots.load[row]
        slot, edge = rows.slot[row], boundary[row]
        state = tuple(
            jnp.where(load > 0, kept[load], jnp.where(start == 0, jnp.zeros_like(now[0]), now[slot]))
            for now, kept in zip(cache[:half], cache[half:], strict=True)
        )

        def one_chunk(carry: tuple[jax.Array, States, States, Any]) -> tuple[jax.Array, States, States, Any]:
            position, state, kept, given = carry
            stop = jnp.minimum((position // CHUNK + 1) * CHUNK, end)
            stop = jnp.where(edge > position, jnp.minimum(stop, edge), stop)
            at, count = rows.first[row] + position - start, stop - position
            state, out = rule.chunk(state, _chunk_at(inputs, at), count)
            kept = jax.tree.map(partial(jnp.where, stop == edge), state, kept)
            live = jnp.arange(CHUNK) < count
            out = jax.tree.map(lambda new, old: jnp.where(_by_row(live, new), new, old), out, _chunk_at(given, at))
            given = jax.tree.map(lambda old, new: lax.dynamic_update_slice_in_dim(old, new, at, 0), given, out)
            return stop, state, kept, given

        _, state, kept, given = lax.while_loop(lambda carry: carry[0] < end, one_chunk, (start, state, state, given))
        place = jnp.where(edge >= start, snapshots.save[row], 0)
        by_slot = (now.at[slot].set(one) for now, one in zip(cache[:half], state, strict=True))
        by_snapshot = (old.at[place].set(one) for old, one in zip(cache[half:], kept, strict=True))
        return left.at[row].set(False), given, (*by_slot, *by_snapshot)

    waiting = (rows.count > 0) & ~_single(rows, snapshots) & ~_leads(snapshots) & (snapshots.load != FOLLOWS)
    _, given, cache = lax.while_loop(lambda carry: carry[0].any(), one_row, (waiting, given, cache))
    return jax.tree.map(lambda leaf: leaf[:total], given), cache


def _kept_behind(snapshots: Snapshots) -> Callable[[jax.Array], jax.Array]:
    """Of token k of each row of several, where the state behind it is kept: as the row says that follows it in turn."""
    places = jnp.where(snapshots.load == FOLLOWS, snapshots.save, 0)
    rows = jnp.arange(places.shape[0], dtype=jnp.int32)
    return lambda k: places[jnp.minimum(rows + k + 1, places.shape[0] - 1)]


def _behind(leaf: jax.Array) -> list[tuple[int, int]]:
    return [(0, CHUNK)] + [(0, 0)] * (leaf.ndim - 1)


def _chunk_at(tree: Any, at: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, at, CHUNK), tree)


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
