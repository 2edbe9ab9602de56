"""Attention over paged keys as one kernel of our own in Pallas, for all rows of a step at once. Knows arrays, no engine.

A program reads the keys and values of one kv head straight from their pages, for as many query heads of its group as there
are, at most `Sizes.rows` of them times tokens. A tile of a longer row is one program. A single token's keys are cut into
`Sizes.splits` ranges by its own length and nobody else's; the last program of a token to come joins what the ranges gave, in
their order. (Flash-Decoding, https://pytorch.org/blog/flash-decoding; the last to come as in Stream-K, arXiv:2301.03598.) So
neither the grid nor the scratch goes with the longest context, and what a row gets does not depend on the other rows.

It lowers for CUDA through Triton, which jax 0.10 to 0.12 have and later versions will not. It was compiled for every kind of
card from sm80 on, and never run on one.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models.spec import PagedLayer
from neuron_jax.engine.attention.kv import LayerCache
from neuron_jax.engine.attention.work import COUNT, SLOT, START, TOKEN, Work

NEVER = -1e30
"""Score of a masked key. Finite, as is `LEAST`: a block that is masked as a whole must give exp(-much), not exp(inf - inf)."""

LEAST = -1e20
"""The largest score so far, where there was none: so much larger than `NEVER` that masked keys weigh nothing."""

LOG2_E = 1.4426950408889634

SHORTEST = 256
"""Tokens of a range at least: less is not worth a program of its own."""

LEAST_ROWS = 16
"""A tensor core multiplies at least so many rows and columns: fewer are padded."""

PROGRAMS = 512
"""Enough to keep any card busy, where texts are long."""

LEAST_SPLITS, MOST_SPLITS = 8, 64
"""Of a text: the longest one may be long, however many there are; and what a program reads should be worth it."""

SCRATCH = 64 * 2**20
"""Bytes for what ranges of texts give, and with fewer ranges if need be."""

HOPPER = 9.0
"""Whose four warps multiply blocks from shared memory."""

ROOMY = (8.0, HOPPER, 10.0)
"""Compute capabilities with 160 KiB of shared memory and more; the others have 99."""

FP8 = 8.9
"""From this compute capability on there are instructions that convert float8."""

JOINED = 8192
"""Numbers of several ranges that are joined at once."""


@frozen
class Sizes:
    """What one kind of layer is computed with: at most `rows` queries and `keys` keys in a block, `splits` ranges of a text."""

    rows: int
    keys: int
    splits: int
    warps: int
    stages: int


def sizes(layer: PagedLayer, singles: int, stored: int, capability: float) -> Sizes:
    """Of a step of so many single tokens, over numbers of `stored` bytes, on a card of `capability`.

    So that ptxas spills nothing and shared memory suffices, which tests/deviceless/test_attention.py holds for all cards.
    Triton keeps (stages - 1) / 2 blocks on their way, since their places are read as well.
    """
    widest = max(layer.k_width, layer.v_width)
    roomy = capability in ROOMY
    rows = 64 if widest <= 256 else 32
    warps = 4 if widest <= (128 if capability == HOPPER else 64) else 8
    pair = (layer.k_width + layer.v_width) * stored
    budget = (72 if roomy else 36 if stored < 4 else 24) * 1024
    keys = 64 if widest <= 256 else 32
    while keys > LEAST_ROWS and keys * pair > budget:
        keys //= 2
    blocks, heads = layer.kv_heads * -(-layer.group // rows), layer.kv_heads * layer.group
    splits = max(PROGRAMS // (singles * blocks), LEAST_SPLITS)
    splits = max(min(splits, SCRATCH // (singles * heads * layer.v_width * 4)), 2)
    return Sizes(
        rows, keys, min(1 << (splits.bit_length() - 1), MOST_SPLITS), warps, 5 if roomy and widest <= 128 else 3
    )


@frozen
class Kernel:
    """What of a call is known when it is compiled."""

    layer: PagedLayer
    sizes: Sizes
    page_size: int
    singles: int
    tiles: int
    first: int  # where a slot's pages begin in its line
    scaled: bool  # keys and values are stored with scales
    converts: bool = True  # the card has instructions that convert what is stored
    interpret: bool = False

    @property
    def heads(self) -> int:
        """Query heads of one program."""
        return min(self.layer.group, self.sizes.rows)

    @property
    def parts(self) -> int:
        """Programs that share the query heads of a kv head."""
        return -(-self.layer.group // self.sizes.rows)

    @property
    def tile(self) -> int:
        """Tokens of a tile."""
        return self.sizes.rows // self.heads

    @property
    def units(self) -> int:
        """Programs of one kv head and part of its group."""
        return self.tiles + self.singles * self.sizes.splits


@frozen
class Here:
    """One program: number `whole` of those for a kv head and part of its group, and what it reads and writes; see `attend`."""

    kernel: Kernel
    whole: Any
    head: Any
    part: Any
    real: Any
    singles: Any
    tiles: Any
    table: Any
    q: Any
    k: Any
    v: Any
    scales: tuple[Any, ...]
    sinks: Any
    out: Any
    accs: Any  # [N, K, splits, G, v_width]: what a range adds to the accumulator, unnormalized
    tops: Any  # [N, K, splits, G]: its largest score
    totals: Any  # and its sum
    turns: Any


@frozen
class Queries:
    """Those of one program: by row of its block the place among the tokens, the head of the group, and whether it is there."""

    token: jax.Array
    head: jax.Array
    there: jax.Array


@frozen
class Keys:
    """Those of one program: of the text in `slot` from `low` up to `high`, as far as they are in the blocks from `first` up to
    `last`."""

    slot: Any
    low: Any
    high: Any
    first: Any
    last: Any


@frozen
class Found:
    """What keys gave each query: the largest score, the sum of the weights, and the weighted values by part of their width."""

    top: jax.Array
    total: jax.Array
    accs: Sequence[jax.Array]


def attend(
    kernel: Kernel,
    q: jax.Array,
    cache: LayerCache,
    turns: jax.Array,
    *,
    table: jax.Array,
    work: Work,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """q [T, K, G, k_width], scaled, over a layer's pool that holds the same tokens -> [T, K, G, v_width], and `turns` again.

    `table` int32 [S, L] are the lines of every slot, with its pages from `Kernel.first` on. `turns` int32 [N, K * parts]
    counts the programs of each single token that have come; it is zero before and after. `sinks` float32 [K, G]. Padding
    tokens get zeros.
    """
    layer, splits = kernel.layer, kernel.sizes.splits
    kv_heads, group = q.shape[1], layer.group
    ranges = (kernel.singles, kv_heads, splits, group)
    assert (work.tiles is not None, sinks is not None) == (kernel.tiles > 0, layer.sinks)
    given = [part for part in (work.real, work.singles, work.tiles, table, q, *cache, sinks, turns) if part is not None]
    out = [
        jax.ShapeDtypeStruct((*q.shape[:3], layer.v_width), q.dtype),
        jax.ShapeDtypeStruct((*ranges, layer.v_width), jnp.float32),
        *[jax.ShapeDtypeStruct(ranges, jnp.float32)] * 2,
        jax.ShapeDtypeStruct(turns.shape, turns.dtype),
    ]
    call: Any = pl.pallas_call(
        partial(_program, kernel),
        grid=(kv_heads * kernel.parts, kernel.units),
        out_shape=out,
        input_output_aliases={len(given) - 1: len(out) - 1},
        interpret=kernel.interpret,
        compiler_params=_triton(kernel.sizes),
        name="paged_attention",
    )
    mixed, *_, turns = call(*given)
    return mixed, turns


def _triton(given: Sizes) -> triton.CompilerParams:
    """How Triton compiles the kernel. From here on jax's warning of its deprecation, which we know of, is not shown."""
    # It comes when the whole step is lowered, in whatever thread does that: a filter around the call would be gone by then.
    # Where jax has Triton no more, `choose` passes this kernel over.
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    return triton.CompilerParams(num_warps=given.warps, num_stages=given.stages)


def _program(kernel: Kernel, *refs: Any) -> None:
    """A tile, or a range of a single token, for one kv head and part of its group."""
    given, (out, accs, tops, totals, turns) = refs[:-5], refs[-5:]
    real, singles, *more = given[:-1]
    tiles = more.pop(0) if kernel.tiles else None
    sinks = more.pop() if kernel.layer.sinks else None
    table, q, k, v, *scales = more
    whole, unit = pl.program_id(0), pl.program_id(1)
    head, part = (whole, 0) if kernel.parts == 1 else (whole // kernel.parts, whole % kernel.parts)
    arrays = (real, singles, tiles, table, q, k, v, tuple(scales), sinks, out, accs, tops, totals, turns)
    here = Here(kernel, whole, head, part, *arrays)
    _blank(here, unit)
    if kernel.tiles == 0:
        _single(here, unit)
        return
    pl.when(unit < kernel.tiles)(lambda: _tile(here, unit))
    pl.when(unit >= kernel.tiles)(lambda: _single(here, unit - kernel.tiles))


def _blank(here: Here, unit: Any) -> None:
    """Zeros for the padding tokens, which nobody else writes."""
    tokens, spare = here.out.shape[0], here.real[0] + unit
    nth = jnp.arange(_block(here.kernel.heads), dtype=jnp.int32)
    heads = here.part * here.kernel.heads + nth
    there = (nth < here.kernel.heads) & (heads < here.kernel.layer.group)

    def one(i: Any, _: Any) -> Any:
        token = spare + i * here.kernel.units
        for first, lane in _lanes(here.kernel.layer.v_width):
            inside = there[:, None] & (first + lane < here.kernel.layer.v_width)[None]
            nothing = jnp.zeros(inside.shape, here.out.dtype)
            triton.store(here.out.at[token, here.head, heads[:, None], (first + lane)[None]], nothing, mask=inside)
        return _

    lax.fori_loop(0, (tokens - spare + here.kernel.units - 1) // here.kernel.units, one, 0)


def _tile(here: Here, unit: Any) -> None:
    slot, start, count, first = (here.tiles[unit, word] for word in (SLOT, START, COUNT, TOKEN))
    layer = here.kernel.layer

    @pl.when(count > 0)
    def _() -> None:
        row = jnp.arange(here.kernel.sizes.rows, dtype=jnp.int32)
        nth, heads = row // here.kernel.heads, here.part * here.kernel.heads + row % here.kernel.heads
        asked = Queries(first + nth, heads, (nth < count) & (heads < layer.group))
        position = (start + nth)[:, None]
        low = 0 if layer.window is None else jnp.maximum(layer.first_seen(start), 0)

        def seen(at: jax.Array) -> jax.Array:
            visible: jax.Array = at[None] <= position
            return visible if layer.window is None else visible & (at[None] >= layer.first_seen(position))

        size, high = here.kernel.sizes.keys, start + count
        keys = Keys(slot, low, high, low // size, pl.cdiv(high, size))
        _finish(here, asked, _walk(here, asked, keys, seen))


def _single(here: Here, unit: Any) -> None:
    number, split = unit % here.kernel.singles, unit // here.kernel.singles
    slot, position, count, token = (here.singles[number, word] for word in (SLOT, START, COUNT, TOKEN))
    keys, splits, layer = here.kernel.sizes.keys, here.kernel.sizes.splits, here.kernel.layer
    low = 0 if layer.window is None else jnp.maximum(layer.first_seen(position), 0)
    first, last = low // keys, jnp.where(count > 0, position // keys + 1, low // keys)
    each = jnp.maximum((last - first + splits - 1) // splits, SHORTEST // keys)
    ranges = (last - first + each - 1) // each
    begin = first + split * each

    @pl.when(begin < last)
    def _() -> None:
        row = jnp.arange(max(_block(here.kernel.heads), LEAST_ROWS), dtype=jnp.int32)
        heads = here.part * here.kernel.heads + row
        asked = Queries(token + 0 * row, heads, (row < here.kernel.heads) & (heads < here.kernel.layer.group))
        text = Keys(slot, low, position + 1, begin, jnp.minimum(begin + each, last))
        found = _walk(here, asked, text, None)
        if splits == 1:
            _finish(here, asked, found)
            return
        pl.when(ranges == 1)(lambda: _finish(here, asked, found))
        pl.when(ranges > 1)(lambda: _part(here, asked, found, (number, split, ranges, token)))


def _walk(here: Here, asked: Queries, text: Keys, seen: Callable[[jax.Array], jax.Array] | None) -> Found:
    """The keys of `text`, as far as each query has `seen` them; None: all."""
    layer, keys, rows = here.kernel.layer, here.kernel.sizes.keys, asked.head.shape[0]
    q = [
        triton.load(
            here.q.at[asked.token[:, None], here.head, asked.head[:, None], (first + lane)[None]],
            mask=asked.there[:, None] & (first + lane < layer.k_width)[None],
            other=0,
        )
        for first, lane in _lanes(layer.k_width)
    ]
    dtype, size = q[0].dtype, jnp.int32(here.kernel.page_size)

    def body(block: Any, carry: Any) -> Any:
        top, total, accs = carry
        at = block * keys + jnp.arange(keys, dtype=jnp.int32)
        inside = (at >= text.low) & (at < text.high)
        # Past the last token a page number may be anything: it is not looked up.
        page = triton.load(
            here.table.at[text.slot, here.kernel.first + jnp.where(inside, lax.div(at, size), 0)], mask=inside, other=0
        )
        offset = lax.rem(at, size)

        def stored(ref: Any, first: int, lane: jax.Array, width: int) -> jax.Array:
            where = ref.at[page[:, None], offset[:, None], here.head, (first + lane)[None]]
            there = inside[:, None] & (first + lane < width)[None]
            values: jax.Array = triton.load(where, mask=there, other=jnp.zeros((), ref.dtype))
            return values.astype(dtype) if here.kernel.converts else _from_float8(values, dtype)

        score = jnp.zeros((rows, keys), jnp.float32)
        for part, (first, lane) in zip(q, _lanes(layer.k_width), strict=True):
            score += triton.dot(part, stored(here.k, first, lane, layer.k_width).T)
        if here.kernel.scaled:
            score *= triton.load(here.scales[0].at[page, offset, here.head], mask=inside, other=0)[None]
        if layer.soft_cap is not None:
            score = layer.soft_cap * _tanh(score / layer.soft_cap)
        visible = inside[None] if seen is None else inside[None] & seen(at)
        score = jnp.where(visible, score, NEVER)
        new_top = jnp.maximum(top, score.max(axis=1))
        shrink = jnp.exp2((top - new_top) * LOG2_E)
        weight = jnp.exp2(score * LOG2_E - (new_top * LOG2_E)[:, None])
        total = total * shrink + weight.sum(axis=1)
        if here.kernel.scaled:
            weight *= triton.load(here.scales[1].at[page, offset, here.head], mask=inside, other=0)[None]
        weight = weight.astype(dtype)
        accs = [
            acc * shrink[:, None] + triton.dot(weight, stored(here.v, first, lane, layer.v_width))
            for acc, (first, lane) in zip(accs, _lanes(layer.v_width), strict=True)
        ]
        return new_top, total, accs

    empty = [jnp.zeros((rows, lane.size), jnp.float32) for _, lane in _lanes(layer.v_width)]
    begin = (jnp.full((rows,), LEAST, jnp.float32), jnp.zeros((rows,), jnp.float32), empty)
    return Found(*lax.fori_loop(text.first, text.last, body, begin))


def _finish(here: Here, asked: Queries, found: Found) -> None:
    """Writes what the queries get."""
    share = _share(here, asked, found.top, found.total)
    for acc, (first, lane) in zip(found.accs, _lanes(here.kernel.layer.v_width), strict=True):
        where = here.out.at[asked.token[:, None], here.head, asked.head[:, None], (first + lane)[None]]
        inside = asked.there[:, None] & (first + lane < here.kernel.layer.v_width)[None]
        triton.store(where, (acc * share[:, None]).astype(here.out.dtype), mask=inside)


def _share(here: Here, asked: Queries, top: jax.Array, total: jax.Array) -> jax.Array:
    """What a query's weights are multiplied by, so that with its sink they sum up to one."""
    if here.sinks is None:
        return 1 / jnp.maximum(total, 1e-30)
    sink = triton.load(here.sinks.at[here.head, asked.head], mask=asked.there, other=NEVER)
    new_top = jnp.maximum(top, sink)
    shrink = jnp.exp2((top - new_top) * LOG2_E)
    return shrink / (total * shrink + jnp.exp2((sink - new_top) * LOG2_E))


def _part(here: Here, asked: Queries, found: Found, which: tuple[Any, Any, Any, Any]) -> None:
    """Leaves what a range of a single token gave, and joins all of them where this is the last. `which`: the number of the
    single token, of the range, how many ranges it has, and its place among the tokens."""
    number, split, ranges, token = which
    for acc, (first, lane) in zip(found.accs, _lanes(here.kernel.layer.v_width), strict=True):
        where = here.accs.at[number, here.head, split, asked.head[:, None], (first + lane)[None]]
        inside = asked.there[:, None] & (first + lane < here.kernel.layer.v_width)[None]
        triton.store(where, acc, mask=inside)
    triton.store(here.tops.at[number, here.head, split, asked.head], found.top, mask=asked.there)
    triton.store(here.totals.at[number, here.head, split, asked.head], found.total, mask=asked.there)
    if not here.kernel.interpret:  # where programs run one after the other
        triton.debug_barrier()  # all threads have stored, before one says so
    come = triton.atomic_add(here.turns, (number, here.whole), jnp.int32(1))

    @pl.when(come == ranges - 1)
    def _() -> None:
        here.turns[number, here.whole] = jnp.int32(0)
        _join(here, number, ranges, token)


def _join(here: Here, number: Any, ranges: Any, token: Any) -> None:
    """What the ranges of a token gave, in their order, as one."""
    nth = jnp.arange(_block(here.kernel.heads), dtype=jnp.int32)
    heads = here.part * here.kernel.heads + nth
    asked = Queries(token + 0 * nth, heads, (nth < here.kernel.heads) & (heads < here.kernel.layer.group))

    def of(ref: Any, split: jax.Array, other: float) -> jax.Array:
        there = (split < ranges)[:, None] & asked.there[None]
        # Past the first cache, which may hold what stood there before.
        return triton.load(
            ref.at[number, here.head, split[:, None], heads[None]], mask=there, other=other, volatile=True
        )

    splits = jnp.arange(here.kernel.sizes.splits, dtype=jnp.int32)
    top = jnp.maximum(of(here.tops, splits, NEVER).max(axis=0), LEAST)

    def weights(split: jax.Array) -> jax.Array:
        return jnp.exp2((of(here.tops, split, NEVER) - top[None]) * LOG2_E)

    total = (weights(splits) * of(here.totals, splits, 0)).sum(axis=0)
    share = _share(here, asked, top, total)
    for first, lane in _lanes(here.kernel.layer.v_width):
        inside = asked.there[:, None] & (first + lane < here.kernel.layer.v_width)[None]
        some = max(min(JOINED // (nth.size * lane.size), here.kernel.sizes.splits), 1)

        def body(i: Any, acc: jax.Array, some: int = some, at: Any = first + lane, inside: Any = inside) -> jax.Array:
            split = i * some + jnp.arange(some, dtype=jnp.int32)
            where = here.accs.at[number, here.head, split[:, None, None], heads[None, :, None], at[None, None]]
            there = (split < ranges)[:, None, None] & inside[None]
            values: jax.Array = triton.load(where, mask=there, other=0, volatile=True)
            return acc + (weights(split)[:, :, None] * values).sum(axis=0)

        acc = lax.fori_loop(0, pl.cdiv(ranges, some), body, jnp.zeros((nth.size, lane.size), jnp.float32))
        where = here.out.at[token, here.head, heads[:, None], (first + lane)[None]]
        triton.store(where, (acc * share[:, None]).astype(here.out.dtype), mask=inside)


def _lanes(width: int) -> list[tuple[int, jax.Array]]:
    """A width as the powers of two that Triton wants, the last of them padded: where each begins, and its lanes."""
    found, first = [], 0
    while first < width:
        left = width - first
        size = 1 << (left.bit_length() - 1)
        if size < LEAST_ROWS or left - size >= size // 2 + size // 4:
            size = max(_block(left), LEAST_ROWS)
        found.append((first, jnp.arange(size, dtype=jnp.int32)))
        first += size
    return found


def _block(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def _from_float8(codes: jax.Array, dtype: Any) -> jax.Array:
    """Bytes of float8_e4m3fn as numbers, exactly: as a float16 the same bits are worth a 256th, denormal ones too."""
    wide = codes.astype(jnp.int16)
    half = lax.bitcast_convert_type(((wide & 0x7F) << 7) | (wide & -0x8000), jnp.float16)
    return (half.astype(jnp.float32) * 256).astype(dtype)


def _tanh(x: jax.Array) -> jax.Array:
    """Of which exp2 is a single instruction."""
    return 1 - 2 / (1 + jnp.exp2(x * (2 * LOG2_E)))
