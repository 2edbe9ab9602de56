"""A recurrent layer of a step as one GPU kernel: short convolution, gates, and the state from token to token. Knows arrays.

A state [H, W] answers by columns that know nothing of each other. So a program takes some columns of one value head of one
row, keeps them in registers from the row's first token to its last, and says on the way what each token reads. It has what the
next token brings on its way while it computes. Nothing of a row depends on the rows beside it, nor on how a text was cut into
rows. `Recurrence.step` is its twin.

Run in Pallas' interpreter only, and compiled for cards that were not there. It lowers through Triton, as `few_rows`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh

from models.native.recurrent import FOLLOWS, StateRows
from models.spread import states_over

KEPT, WARPS = 4096, 4
"""Numbers of a state that a program keeps, 32 in each thread's registers. A warp has whole columns, so what it sums over the
keys needs no other."""

MOST_COLUMNS = 32

EPSILON = 1e-6
"""Of the norms of a delta rule's queries and keys, as `dense.delta` has it."""

MOST_KEYS = 256


@frozen
class Rule:
    """How a state goes on. `taps` [N, K, 2 H + G W] and their `bias` [K, 2 H + G W] or None; `heads` are rate and shift, of
    Mamba skip as well, each [K, G]."""

    kind: Literal["delta", "mamba"]
    taps: jax.Array
    bias: jax.Array | None
    heads: Sequence[jax.Array]


def refuses(state: Sequence[Any], largest: int) -> str | None:
    """Why there is no kernel for a layer with these arrays for a text, of which the largest of all texts has so many numbers;
    None where there is one."""
    if largest >= 2**31:
        return "a layer's states are too large for 32-bit offsets"
    if len(state) == 1:  # a convolution's last inputs
        return None
    keys = state[1].shape[2]
    return f"takes up to {MOST_KEYS} keys, not {keys}" if keys > MOST_KEYS else None


def recur(
    rule: Rule,
    mixed: jax.Array,
    gates: jax.Array,
    cache: tuple[jax.Array, ...],
    rows: StateRows,
    *,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """mixed [T, K, 2 H + G W] are queries, keys and values before the convolution, gates [T, K, 2, G], of Mamba [T, K, G], as
    projected; `cache` the last inputs and the states by slot, then by snapshot -> what each token reads, float32 [T, K, G, W],
    zeros for padding, and `cache`, written in place. Two rows must not have one slot unless
    one follows the other, nor may one save what another loads. On a `mesh` each device goes through its own key heads.
    """
    if mesh is not None:
        return _spread(mesh, rule, {"mixed": mixed, "gates": gates}, cache, rows, interpret=interpret)
    half = len(cache) // 2
    inputs, kept = cache[0], cache[half]
    tokens, (_, key_heads, group, keys, width) = mixed.shape[0], cache[1].shape
    # Apart from where they are written: several programs of a row begin with the same ones.
    load, start = rows.load[:, None, None, None], rows.start[:, None, None, None]
    before = jnp.where(load > 0, kept[rows.load], jnp.where(start == 0, jnp.float32(0), inputs[rows.slot]))
    extra = [*rule.heads, *(() if rule.bias is None else (rule.bias,))]
    given = (told(rows), before, mixed, gates, rule.taps, *extra)

    def kernel(*refs: Any) -> None:
        number = tuple(pl.program_id(axis) for axis in range(3))
        made = refs[-1 - len(cache) :]
        pl.when(refs[0][number[0], COUNT] > 0)(lambda: _row(rule, number, refs[: len(given)], made, rows))

    shapes = [jax.ShapeDtypeStruct((tokens, key_heads, group, width), jnp.float32)]
    shapes += [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in cache]
    call: Any = pl.pallas_call(
        kernel,
        grid=(rows.slot.shape[0], key_heads * group, pl.cdiv(width, _columns(keys))),
        in_specs=[whole(array.shape) for array in (*given, *cache)],
        out_specs=[whole(shape.shape) for shape in shapes],
        out_shape=shapes,
        input_output_aliases={len(given) + i: 1 + i for i in range(len(cache))},
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name=f"recurrent_{rule.kind}",
    )
    read, *cache_ = call(*given, *cache)
    return only_real(read, rows), tuple(cache_)


def _spread(
    mesh: Mesh, rule: Rule, given: Mapping[str, jax.Array], cache: tuple[jax.Array, ...], rows: StateRows, **how: Any
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """`recur` on every device for its own key heads."""

    def own(mine: Any, cache: Any, rows: StateRows) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        its = Rule(rule.kind, mine["taps"], mine["bias"], mine["heads"])
        return recur(its, mine["mixed"], mine["gates"], cache, rows, **how)

    brought = {name: (array, 1) for name, array in given.items()}
    by_head = {"taps": (rule.taps, 1), "bias": (rule.bias, 0), "heads": (tuple(rule.heads), 0)}
    return states_over(mesh, own, brought | by_head, tuple(zip(cache, (2, 1, 2, 1), strict=True)), rows)


SLOT, START, COUNT, LOAD, SAVE, FIRST, OWN, BEHIND, MARK = range(9)
"""What a program is told of its row. Where there are guesses `COUNT` has the tokens of the rows that follow as well, `OWN` has
not; `BEHIND` are these rows, and of each of them `MARK` is where the state that it begins with is kept."""


def told(rows: StateRows) -> jax.Array:
    """int32 [R, 6], where there are guesses [R, 9]: then a row that others follow goes through their tokens, too, and those
    have none."""
    first = jnp.cumsum(rows.count, dtype=jnp.int32) - rows.count
    if not rows.guesses:
        return jnp.stack([rows.slot, rows.start, rows.count, rows.load, rows.save, first], axis=1)
    follows, nothing = rows.load == FOLLOWS, jnp.zeros_like(rows.count)
    leader = lax.cummax(jnp.where(follows, 0, jnp.arange(rows.count.size, dtype=jnp.int32)))
    count, behind = (nothing.at[leader].add(part) for part in (rows.count, follows.astype(jnp.int32)))
    load, save = (jnp.where(follows, 0, part) for part in (rows.load, rows.save))
    marks = jnp.where(follows, rows.save, 0)
    return jnp.stack([rows.slot, rows.start, count, load, save, first, rows.count, behind, marks], axis=1)


def own_tokens(told: Any, row: Any, rows: StateRows) -> Any:
    """Of a row without those that follow it."""
    return told[row, OWN if rows.guesses else COUNT]


def mark_behind(told: Any, row: Any, token: Any) -> Any:
    """Where the state behind this token of a row is kept for the guess that follows, 0 for nowhere."""
    nth = token + 1 - told[row, OWN]
    follower = jnp.clip(row + 1 + nth, 0, told.shape[0] - 1)
    return jnp.where((nth >= 0) & (nth < told[row, BEHIND]), told[follower, MARK], 0)


def only_real(given: jax.Array, rows: StateRows) -> jax.Array:
    """[T, ...] with zeros for the tokens behind those of all rows."""
    real = jnp.arange(given.shape[0], dtype=jnp.int32) < jnp.sum(rows.count)
    return jnp.where(real.reshape(-1, *(1,) * (given.ndim - 1)), given, jnp.float32(0))


def _columns(keys: int) -> int:
    return min(KEPT // int(pl.next_power_of_2(keys)), MOST_COLUMNS)


def whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    """All of an array, of which a program takes what it needs."""
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


@frozen
class _Part:
    """Of a row's inputs those that one program reads: `channels` of its key head, and which of these are `there`."""

    channels: jax.Array
    there: jax.Array

    def load(self, ref: Any, *place: Any) -> jax.Array:
        values: jax.Array = triton.load(ref.at[(*place, self.channels)], mask=self.there, other=0)
        return values.astype(jnp.float32)

    def store(self, ref: Any, place: Sequence[Any], values: jax.Array) -> None:
        triton.store(ref.at[(*place, self.channels)], values, mask=self.there)


@frozen
class _Here:
    """One program: its head, its columns, and its parts of queries, keys and values."""

    head: tuple[Any, Any]  # the key head, and which of its value heads
    columns: jax.Array
    state: tuple[jax.Array, jax.Array]  # keys and columns of its part of the state, which it has as [columns, H]
    inside: jax.Array
    parts: tuple[_Part, _Part, _Part]
    owns: Sequence[Any]  # whether it keeps the last inputs of a part


def _here(number: Any, part: Any, shape: tuple[int, ...]) -> _Here:
    """`number` of its head and of its columns; `shape` of the states by slot."""
    _, _, group, keys, width = shape
    head = (number // group, number % group)
    key = jnp.arange(pl.next_power_of_2(keys), dtype=jnp.int32)
    column = part * _columns(keys) + jnp.arange(_columns(keys), dtype=jnp.int32)
    inside, own = column < width, (head[1] == 0) & (part == 0)
    value = 2 * keys + head[1] * width + column
    parts = (_Part(key, key < keys), _Part(keys + key, key < keys), _Part(value, inside))
    both = inside[:, None] & (key < keys)[None]
    return _Here(head, column, (key[None], column[:, None]), both, parts, (own, own, True))


def _row(rule: Rule, number: Sequence[Any], given: Sequence[Any], made: Sequence[Any], rows: StateRows) -> None:
    """All tokens of the row that the program of this `number` is for."""
    told_ref, before, mixed, gates, taps, *extra = given
    read, inputs, states, kept_inputs, kept = made
    row, *_ = number
    words = [told_ref[row, word] for word in range(6)]
    here = _here(number[1], number[2], states.shape)
    key_head, nth = here.head
    start, count, load, save, first = words[START], words[COUNT], words[LOAD], words[SAVE], words[FIRST]
    boundary = (start + own_tokens(told_ref, row, rows) - 1) // rows.page_size * rows.page_size
    window = [[part.load(before, row, n, key_head) for part in here.parts] for n in range(taps.shape[0] - 1)]
    weights = [[part.load(taps, n, key_head) for part in here.parts] for n in range(taps.shape[0])]
    heads = [ref[key_head, nth] for ref in extra[: len(rule.heads)]]
    bias = None if rule.bias is None else [part.load(extra[-1], key_head) for part in here.parts]

    def where(ref: Any, place: Any) -> Any:
        return ref.at[(place, key_head, nth, *here.state)]

    of_slot = triton.load(where(states, words[SLOT]), mask=here.inside & (load == 0) & (start > 0), other=0)
    state = of_slot + triton.load(where(kept, load), mask=here.inside & (load > 0), other=0)

    def leave(place: Any, window: Any, state: jax.Array, inputs: Any, states: Any) -> None:
        triton.store(where(states, place), state, mask=here.inside)
        for n, values in enumerate(window):
            for part, own, one in zip(here.parts, here.owns, values, strict=True):
                _Part(part.channels, part.there & own).store(inputs, (place, n, key_head), one)

    def brought(token: Any) -> Any:
        """What a token brings, as it is projected."""
        told = [gates[token, key_head, 0, nth], gates[token, key_head, 1, nth]] if rule.kind == "delta" else []
        told = told or [gates[token, key_head, nth]]
        return [part.load(mixed, token, key_head) for part in here.parts], [one.astype(jnp.float32) for one in told]

    def following(i: Any, carry: Any) -> Any:
        state, window, (new, gate) = carry
        ahead = brought(first + jnp.minimum(i + 1, count - 1))
        window = [*window, new]
        summed = [sum(weights[n][p] * window[n][p] for n in range(len(window))) for p in range(3)]
        if bias is not None:
            summed = [one + own for one, own in zip(summed, bias, strict=True)]
        # What is not there is zero, and stays so.
        state, out = _taken(states.shape[3], state, [_silu(one) for one in summed], gate, heads)
        triton.store(read.at[first + i, key_head, nth, here.columns], out, mask=here.parts[2].there)
        window = window[1:]
        pl.when((save > 0) & (start + i + 1 == boundary))(lambda: leave(save, window, state, kept_inputs, kept))
        if rows.guesses:
            mark = mark_behind(told_ref, row, i)
            pl.when(mark > 0)(lambda: leave(mark, window, state, kept_inputs, kept))
        return state, window, ahead

    pl.when((save > 0) & (boundary == start))(lambda: leave(save, window, state, kept_inputs, kept))
    state, window, _ = lax.fori_loop(0, count, following, (state, window, brought(first)))
    leave(words[SLOT], window, state, inputs, states)


def _taken(
    keys: int, state: jax.Array, qkv: Sequence[jax.Array], gate: Sequence[Any], heads: Sequence[Any]
) -> tuple[jax.Array, jax.Array]:
    """The state [columns, H] of so many `keys` behind a token, and what it reads, [columns]."""
    q, k, v = qkv
    if len(heads) == 3:  # Mamba
        rate, shift, skip = heads
        dt = _softplus(gate[0] + shift)
        state = state * jnp.exp(rate * dt) + (dt * v)[:, None] * k[None]
        return state, jnp.sum(state * q[None], axis=1) + skip * v
    rate, shift = heads
    q, k = _unit(q) * keys**-0.5, _unit(k)
    state = state * jnp.exp(rate * _softplus(gate[1] + shift))
    wrong = (v - jnp.sum(state * k[None], axis=1)) * (1 / (1 + jnp.exp(-gate[0])))
    state = state + wrong[:, None] * k[None]
    return state, jnp.sum(state * q[None], axis=1)


def _silu(x: jax.Array) -> jax.Array:
    return x / (1 + jnp.exp(-x))


def _softplus(x: Any) -> Any:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _unit(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.sum(x * x, axis=0) + EPSILON)
