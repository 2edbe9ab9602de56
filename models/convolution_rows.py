"""A short convolution of a step's rows as one GPU kernel: its channels know nothing of each other. Knows arrays.

A program takes some channels of one row, keeps their last inputs in registers, and has what the next token brings on its way.
`Recurrence.step` is its twin. Run in Pallas' interpreter only, and compiled for cards that were not there.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.sharding import Mesh

from models.native.recurrent import StateRows
from models.recurrent_rows import COUNT, FIRST, LOAD, SAVE, SLOT, START, mark_behind, only_real, own_tokens, told, whole
from models.spread import states_over

CHANNELS, WARPS = 256, 4
"""Of a program."""


def convolve(
    bcx: jax.Array,
    cache: tuple[jax.Array, ...],
    rows: StateRows,
    taps: jax.Array,
    shift: jax.Array | None,
    *,
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """bcx [T, K, 3, D] are B, C and x; `cache` the last inputs by slot and by snapshot, [..., N - 1, K, D]; taps [N, K, D],
    shift [K, D] or None -> C * (conv(B x) + shift) in float32 [T, K, D], zeros for padding, and `cache`, written in
    place. Two rows must not have one slot unless one follows the other, nor may one save what another loads. On a `mesh` each
    device goes through its own of K.
    """
    if mesh is not None:

        def own(given: Any, cache: Any, rows: StateRows) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            return convolve(given["bcx"], cache, rows, given["taps"], given["shift"], interpret=interpret)

        by_head = {"bcx": (bcx, 1), "taps": (taps, 1), "shift": (shift, 0)}
        return states_over(mesh, own, by_head, tuple((leaf, 2) for leaf in cache), rows)
    tokens, parts, _, width = bcx.shape
    given = (told(rows), bcx, taps, *(() if shift is None else (shift,)))

    def kernel(*refs: Any) -> None:
        number = tuple(pl.program_id(axis) for axis in range(3))
        words, read, made = refs[0], refs[1 : len(given)], refs[-3:]
        pl.when(words[number[0], COUNT] > 0)(lambda: _row(number, words, read, made, rows))

    shapes = [jax.ShapeDtypeStruct((tokens, parts, width), jnp.float32)]
    shapes += [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in cache]
    call: Any = pl.pallas_call(
        kernel,
        grid=(rows.slot.shape[0], parts, pl.cdiv(width, CHANNELS)),
        in_specs=[whole(array.shape) for array in (*given, *cache)],
        out_specs=[whole(shape.shape) for shape in shapes],
        out_shape=shapes,
        input_output_aliases={len(given) + i: 1 + i for i in range(2)},
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="short_convolution",
    )
    mixed, *cache_ = call(*given, *cache)
    return only_real(mixed, rows), tuple(cache_)


def _row(number: Sequence[Any], words: Any, given: Sequence[Any], made: Sequence[Any], rows: StateRows) -> None:
    """All tokens of the row that the program of this `number` is for."""
    (bcx, taps, *shift), (mixed, inputs, kept), (row, part, block) = given, made, number
    slot, start, count, load, save, first = (words[row, word] for word in (SLOT, START, COUNT, LOAD, SAVE, FIRST))
    boundary = (start + own_tokens(words, row, rows) - 1) // rows.page_size * rows.page_size
    channel = block * CHANNELS + jnp.arange(CHANNELS, dtype=jnp.int32)
    inside, size = channel < taps.shape[2], taps.shape[0]

    def at(ref: Any, *place: Any, mask: Any = inside) -> jax.Array:
        values: jax.Array = triton.load(ref.at[(*place, channel)], mask=mask, other=0)
        return values.astype(jnp.float32)

    def brought(token: Any) -> list[jax.Array]:
        return [at(bcx, token, part, n) for n in range(3)]

    def leave(ref: Any, place: Any, window: Sequence[jax.Array]) -> None:
        for n, values in enumerate(window):
            triton.store(ref.at[place, n, part, channel], values, mask=inside)

    weights = [at(taps, n, part) for n in range(size)]
    fixed = at(shift[0], part) if shift else jnp.zeros(CHANNELS, jnp.float32)
    going, copied = inside & (load == 0) & (start > 0), inside & (load > 0)
    window = [at(inputs, slot, n, part, mask=going) + at(kept, load, n, part, mask=copied) for n in range(size - 1)]
    pl.when((save > 0) & (boundary == start))(lambda: leave(kept, save, window))

    def following(i: Any, carry: Any) -> Any:
        window, (b, c, x) = carry
        ahead = brought(first + jnp.minimum(i + 1, count - 1))
        window = [*window, b * x]
        summed = sum((weights[n] * window[n] for n in range(1, size)), weights[0] * window[0])
        triton.store(mixed.at[first + i, part, channel], c * (summed + fixed), mask=inside)
        window = window[1:]
        pl.when((save > 0) & (start + i + 1 == boundary))(lambda: leave(kept, save, window))
        if rows.guesses:
            mark = mark_behind(words, row, i)
            pl.when(mark > 0)(lambda: leave(kept, mark, window))
        return window, ahead

    window, _ = lax.fori_loop(0, count, following, (window, brought(first)))
    leave(inputs, slot, window)
