"""Paged decode attention as a kernel of our own in Pallas: split over the keys, then joined. Knows arrays, no engine.

A program of the first kernel reads the keys and values of one kv head of one row in one range of `SPLIT` tokens, straight
from their pages, for all query heads of the group at once; the second joins a row's ranges. Ranges lie at fixed tokens and
are joined in their order, and those that a row does not reach are never read: what a row gets does not depend on the
other rows, on their number, or on the page size. (Flash-Decoding, https://pytorch.org/blog/flash-decoding.)

Run in Pallas' interpreter only. It lowers for CUDA through Triton, which jax 0.10 to 0.12 have and later versions will not.
What it lowers to went once through the compiler of Triton 3.9, which is not the one in XLA, for heads of 64, 80 and 128
without a window: for compute capability 9.0 in every format, for 8.0 in all but fp8. It has never been run on a device;
SPLIT, BLOCK and the warps are guesses until then.
"""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import KVFormat, LayerCache

SPLIT = 256
"""Tokens of a range; 8 kv heads of one row at 4,096 tokens are 128 programs."""

BLOCK = 64
"""Tokens read at once."""

NEVER = -1e30
"""Score of a masked key; finite, see `paged.NEVER`."""

LEAST_ROWS = 16
"""A tensor core multiplies at least so many rows: smaller groups of query heads are padded."""


def attend_decode(
    q: jax.Array,
    cache: LayerCache,
    kv: KVFormat,
    *,
    layer: PagedLayer,
    table: jax.Array,
    start: jax.Array,
    count: jax.Array,
    sinks: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """q [R, 1, K, G, H], scaled, of the tokens at `start` [R], where `count` [R] is 1 and not 0 -> [R, 1, K, G, H].

    `cache` is one layer's pool with these tokens' keys and values in it; `table` [R, W] their pages. Padding gets zeros.
    """
    assert q.shape[1] == 1, "one token per row"
    assert sinks is None, "knows no sinks"
    assert cache[0].dtype == kv.dtype
    end = jnp.where(count > 0, start + count, 0)
    return _decode(q[:, 0], cache, table, end, window=layer.window, interpret=interpret)[:, None]


def _decode(
    q: jax.Array, pool: LayerCache, table: jax.Array, end: jax.Array, *, window: int | None, interpret: bool
) -> jax.Array:
    """q [R, K, G, H] -> [R, K, G, H]; `end` [R]: how many keys a row has, its own token's included."""
    rows, kv_heads, group, width = q.shape
    pages, page_size = pool[0].shape[:2]
    splits = pl.cdiv(table.shape[1] * page_size, SPLIT)
    call: Any = partial(pl.pallas_call, interpret=interpret, compiler_params=_triton())
    values, scales = _block((pages, page_size, None, width), head=2), _block((pages, page_size, None), head=2)
    accs, sums = (rows, kv_heads, splits, group, width), (rows, kv_heads, splits, group)
    parts = call(
        partial(_read, window=window),
        grid=(rows, kv_heads, splits),
        in_specs=[
            _block((None, table.shape[1]), row=0),
            _block((rows,)),
            _block((None, None, group, width), row=0, head=1),
            *(values if leaf.ndim == 4 else scales for leaf in pool),
        ],
        out_specs=[
            _block((None, None, None, group, width), row=0, head=1, split=2),
            *[_block((None, None, None, group), row=0, head=1, split=2)] * 2,
        ],
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (accs, sums, sums)],
        name="paged_decode_read",
    )(table, end, q, *pool)
    mixed: jax.Array = call(
        partial(_join, window=window),
        grid=(rows, kv_heads),
        in_specs=[
            _block((rows,)),
            _block((None, None, splits, group, width), row=0, head=1),
            *[_block((None, None, splits, group), row=0, head=1)] * 2,
        ],
        out_specs=_block((None, None, group, width), row=0, head=1),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        name="paged_decode_join",
    )(end, *parts)
    return mixed


def _triton() -> triton.CompilerParams:
    """How Triton compiles these kernels. From here on jax's warning of its deprecation, which we know of, is not shown."""
    # It comes when the whole step is lowered, in whatever thread does that: a filter around the calls above would be gone by
    # then. Where jax has Triton no more, `choose` passes this kernel over.
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    return triton.CompilerParams(num_warps=4, num_stages=2)


def _block(shape: tuple[int | None, ...], *, row: int = -1, head: int = -1, split: int = -1) -> pl.BlockSpec:
    """The block of a program: the dimensions `row`, `head` and `split` go with its place in the grid, the others start at 0."""
    along = {dimension: axis for axis, dimension in enumerate((row, head, split)) if dimension >= 0}
    return pl.BlockSpec(shape, lambda *grid: tuple(grid[along[i]] if i in along else 0 for i in range(len(shape))))


def _read(table_ref: Any, end_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any, window: int | None) -> None:
    """One range of one row's keys: what it adds to the accumulator, unnormalized, its largest score and its sum."""
    *scales, acc_ref, top_ref, total_ref = refs
    page_size = k_ref.shape[1]
    head, lane, inside = _tile(q_ref.shape)
    nothing = jnp.zeros((), k_ref.dtype)
    end = end_ref[pl.program_id(0)]
    low = pl.program_id(2) * SPLIT
    high = jnp.minimum(low + SPLIT, end)
    first = jnp.maximum(low, _first(end, window))

    @pl.when(first < high)
    def _() -> None:
        q = triton.load(q_ref.at[head[:, None], lane[None]], mask=inside, other=0)

        def body(block: Any, carry: Any) -> Any:
            top, total, acc = carry
            token = block * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
            seen = (token >= first) & (token < high)
            # Past the last token a page number may be anything: it is not looked up.
            page = triton.load(table_ref.at[jnp.where(seen, token // page_size, 0)], mask=seen, other=0)
            offset = token % page_size
            there = seen[:, None] & (lane < q_ref.shape[1])[None]
            at = (page[:, None], offset[:, None], lane[None])
            k = triton.load(k_ref.at[at], mask=there, other=nothing).astype(q.dtype)
            v = triton.load(v_ref.at[at], mask=there, other=nothing).astype(q.dtype)
            score = triton.dot(q, k.T)
            if scales:
                score *= triton.load(scales[0].at[page, offset], mask=seen, other=0)[None]
            score = jnp.where(seen[None], score, NEVER)
            new_top = jnp.maximum(top, score.max(axis=1))
            shrink = jnp.exp(top - new_top)
            weight = jnp.where(seen[None], jnp.exp(score - new_top[:, None]), 0.0)
            total = total * shrink + weight.sum(axis=1)
            if scales:
                weight *= triton.load(scales[1].at[page, offset], mask=seen, other=0)[None]
            return new_top, total, acc * shrink[:, None] + triton.dot(weight.astype(q.dtype), v)

        carry = (_full(head, NEVER), _full(head, 0.0), jnp.zeros((head.size, lane.size), jnp.float32))
        top, total, acc = lax.fori_loop(first // BLOCK, pl.cdiv(high, BLOCK), body, carry)
        triton.store(acc_ref.at[head[:, None], lane[None]], acc, mask=inside)
        triton.store(top_ref.at[head], top, mask=head < q_ref.shape[0])
        triton.store(total_ref.at[head], total, mask=head < q_ref.shape[0])


def _join(end_ref: Any, acc_ref: Any, top_ref: Any, total_ref: Any, out_ref: Any, *, window: int | None) -> None:
    """The ranges of one row and head, of those that its keys reach, as one."""
    head, lane, inside = _tile(out_ref.shape)
    end = end_ref[pl.program_id(0)]

    def body(split: Any, carry: Any) -> Any:
        top, total, acc = carry
        real = head < out_ref.shape[0]
        part_top = triton.load(top_ref.at[split, head], mask=real, other=NEVER)
        part_total = triton.load(total_ref.at[split, head], mask=real, other=0)
        part_acc = triton.load(acc_ref.at[split, head[:, None], lane[None]], mask=inside, other=0)
        new_top = jnp.maximum(top, part_top)
        shrink, part = jnp.exp(top - new_top), jnp.exp(part_top - new_top)
        return new_top, total * shrink + part_total * part, acc * shrink[:, None] + part_acc * part[:, None]

    carry = (_full(head, NEVER), _full(head, 0.0), jnp.zeros((head.size, lane.size), jnp.float32))
    _, total, acc = lax.fori_loop(_first(end, window) // SPLIT, pl.cdiv(end, SPLIT), body, carry)
    mixed = acc / jnp.maximum(total, 1e-30)[:, None]
    triton.store(out_ref.at[head[:, None], lane[None]], mixed.astype(out_ref.dtype), mask=inside)


def _tile(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of a block [G, H] padded to powers of two, as Triton wants it: heads, lanes, and which of the block exist."""
    group, width = shape
    head = jnp.arange(max(pl.next_power_of_2(group), LEAST_ROWS), dtype=jnp.int32)
    lane = jnp.arange(pl.next_power_of_2(width), dtype=jnp.int32)
    return head, lane, (head < group)[:, None] & (lane < width)[None]


def _full(like: jax.Array, value: float) -> jax.Array:
    return jnp.full(like.shape, value, jnp.float32)


def _first(end: Any, window: int | None) -> Any:
    """The first key that a row's token sees."""
    return 0 if window is None else jnp.maximum(end - window, 0)
