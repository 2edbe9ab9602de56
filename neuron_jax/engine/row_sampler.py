"""Drawing with cuts, and log-probabilities, by one GPU kernel each: a program goes through one row. Knows rows and ids.

`straight_sampler` is how XLA does it, in some sixty kernels. What top_k and top_p keep lies close to the likeliest token: one
pass over the vocabulary counts how many tokens, of how much probability, lie within some distances of it. The nearest that is
enough says which are copied side by side; among those few the cut is found by halving, and drawn. Where they are no few, the
same is done with the whole vocabulary.

Run in Pallas' interpreter only, and compiled for cards that were not there. It lowers through Triton, as `attention.flash`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from neuron_jax.engine.noise import gumbel
from neuron_jax.engine.sampler import MAX_ALTERNATIVES, RowParams, SamplerOutput, ordered, unordered

TILE, WARPS = 1024, 8
"""Tokens that a program looks at at once."""

NEAR = (1.0, 2.0, 4.0, 6.0, 9.0, 13.0, 20.0)
"""Distances from the largest value: of a token beyond the last the probability is a billionth of the likeliest's."""

MOST = 16384
"""Tokens that are copied side by side."""

TEMPERATURE, TOP_P, MIN_P = range(3)
TOP_K, POSITION, SEED_LOW, SEED_HIGH = range(4)


def draw(logits: jax.Array, row: RowParams, *, interpret: bool = False) -> jax.Array:
    """float32 [R, V] -> int32 [R], as `straight_sampler` draws by temperature, top_k, top_p and min_p."""
    rows = logits.shape[0]
    floats = jnp.stack([row.temperature, row.top_p, row.min_p], axis=1)
    told = (row.top_k, row.position, row.seed_low, row.seed_high)
    ints = jnp.stack([lax.bitcast_convert_type(part, jnp.int32) for part in told], axis=1)
    token = jax.ShapeDtypeStruct((rows,), jnp.int32)
    drawn: jax.Array = _call(_draw, (logits, floats, ints), [token], interpret=interpret)[0]
    return drawn


def with_logprobs(logits: jax.Array, token: jax.Array, *, interpret: bool = False) -> SamplerOutput:
    """`token` with its log-probability by float32 `logits` [R, V], and the likeliest ones with theirs, of equals the lowest id
    first; as `straight_sampler.with_logprobs`."""
    rows = logits.shape[0]
    of_row, of_many = ((rows,), (rows, MAX_ALTERNATIVES))
    shapes = [
        jax.ShapeDtypeStruct(*told) for told in ((of_row, jnp.float32), (of_many, jnp.int32), (of_many, jnp.float32))
    ]
    logprob, ids, top = _call(_logprobs, (logits, token), shapes, interpret=interpret)[:3]
    short = logits.shape[1] < MAX_ALTERNATIVES  # a tiny vocabulary
    there = jnp.arange(MAX_ALTERNATIVES) < logits.shape[1]
    if short:
        ids, top = jnp.where(there[None], ids, 0), jnp.where(there[None], top, 0.0)
    return SamplerOutput(token, logprob, ids, top)


def _call(body: Callable[..., None], given: Sequence[jax.Array], made: Sequence[Any], *, interpret: bool) -> Any:
    """A program for each row, with room for what it copies behind what it makes."""
    rows, room = given[0].shape[0], min(MOST, given[0].shape[1])
    shapes = [*made, *(jax.ShapeDtypeStruct((rows, room + TILE), dtype) for dtype in (jnp.float32, jnp.int32))]

    def kernel(*refs: Any) -> None:
        row, outs = pl.program_id(0), refs[len(given) :]
        body(row, refs[: len(given)], outs[: len(made)], _Copies(row, outs[-2], outs[-1], interpret))

    call: Any = pl.pallas_call(
        kernel,
        grid=(rows,),
        in_specs=[_whole(array.shape) for array in given],
        out_specs=[_whole(shape.shape) for shape in shapes],
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name=f"row{body.__name__}",
    )
    return call(*given)


def _whole(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec(shape, lambda _: (0,) * len(shape))


@frozen
class _Copies:
    """Where a row's program puts values and ids side by side; behind the `room` for them is one place for each lane."""

    row: Any
    values: Any
    ids: Any
    interpret: bool

    @property
    def room(self) -> int:
        return int(self.values.shape[1]) - TILE

    def settle(self) -> None:
        """What one thread has stored others may load."""
        if not self.interpret:
            triton.debug_barrier()


@frozen
class _Tokens:
    """Of a row the tokens that are looked at: the `count` copies where it is `narrow`, else the whole vocabulary."""

    row: Any
    logits: Any
    by: Any  # what logits are divided by
    copies: _Copies
    narrow: Any
    count: Any

    @property
    def tiles(self) -> Any:
        return (self.count + TILE - 1) // TILE

    def tile(self, number: Any) -> tuple[jax.Array, jax.Array]:
        """Values, -inf where there is none, and ids."""
        at = number * TILE + jnp.arange(TILE, dtype=jnp.int32)
        there, copied = at < self.count, (at < self.count) & self.narrow
        wide = self.every(number, there & ~self.narrow)
        near = triton.load(self.copies.values.at[self.row, at], mask=copied, other=-jnp.inf, volatile=True)
        ids = triton.load(self.copies.ids.at[self.row, at], mask=copied, other=0, volatile=True)
        return jnp.where(self.narrow, near, wide), jnp.where(self.narrow, ids, at)

    def every(self, number: Any, there: jax.Array) -> jax.Array:
        """Values of the vocabulary."""
        at = number * TILE + jnp.arange(TILE, dtype=jnp.int32)
        values: jax.Array = triton.load(self.logits.at[self.row, at], mask=there, other=-jnp.inf) / self.by
        return values

    def sums(self, part: Callable[[jax.Array], jax.Array], dtype: Any) -> jax.Array:
        """Of all values, in their order by lanes."""

        def add(number: Any, total: jax.Array) -> jax.Array:
            return total + part(self.tile(number)[0])

        return jnp.sum(lax.fori_loop(0, self.tiles, add, jnp.zeros(TILE, dtype)))

    def best(self, score: Callable[[jax.Array, jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The largest score, and the lowest id that has it."""

        def better(number: Any, carry: Any) -> Any:
            most, where = carry
            values, ids = self.tile(number)
            scores = score(values, ids)
            return jnp.maximum(most, scores), jnp.where(scores > most, ids, where)

        nothing = (jnp.full(TILE, -jnp.inf, jnp.float32), jnp.zeros(TILE, jnp.int32))
        most, where = lax.fori_loop(0, self.tiles, better, nothing)
        top = jnp.max(most)
        vocab = self.logits.shape[1]
        return top, jnp.minimum(jnp.min(jnp.where(most == top, where, vocab)), vocab - 1)


@frozen
class _Near:
    """How many tokens lie within each of the distances `NEAR` of the largest value, of what mass by exp(value - largest); and
    the mass of all."""

    counts: Sequence[jax.Array]
    masses: Sequence[jax.Array]
    mass: jax.Array

    @classmethod
    def of(cls, all_: _Tokens, top: jax.Array, *, wanted: Any) -> "_Near":
        """Zeros where it is not `wanted`."""

        def look(number: Any, carry: Any) -> Any:
            counts, masses, mass = carry
            values = all_.every(number, number * TILE + jnp.arange(TILE, dtype=jnp.int32) < all_.count)
            share = jnp.exp(values - top)
            inside = [values >= top - distance for distance in NEAR]
            counts = [count + one.astype(jnp.int32) for count, one in zip(counts, inside, strict=True)]
            masses = [old + jnp.where(one, share, 0.0) for old, one in zip(masses, inside, strict=True)]
            return counts, masses, mass + share

        zeros = [jnp.zeros(TILE, dtype) for dtype in (jnp.int32, jnp.float32)]
        nothing = ([zeros[0] for _ in NEAR], [zeros[1] for _ in NEAR], zeros[1])
        counts, masses, mass = lax.fori_loop(0, jnp.where(wanted, all_.tiles, 0), look, nothing)
        return cls([jnp.sum(one) for one in counts], [jnp.sum(one) for one in masses], jnp.sum(mass))

    def least(self, enough: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The first distance that is `enough`, and how many tokens lie within; infinite, and more than there is room for, where
        none is."""
        distance, count = jnp.float32(jnp.inf), jnp.int32(2**30)
        for far, many, one in reversed(list(zip(NEAR, self.counts, enough, strict=True))):
            distance, count = jnp.where(one, jnp.float32(far), distance), jnp.where(one, many, count)
        return distance, count


def _copied(all_: _Tokens, least: jax.Array, count: jax.Array, *, wanted: Any) -> _Tokens:
    """The `count` tokens of at least this value, side by side in the order of their ids, where that is `wanted` and there is
    room for them; else all."""
    copies, narrow = all_.copies, wanted & (count <= all_.copies.room)

    def copy(number: Any, offset: Any) -> Any:
        at = number * TILE + jnp.arange(TILE, dtype=jnp.int32)
        values = all_.every(number, at < all_.count)
        kept = (values >= least) & (at < all_.count)
        # Where nothing is stored, the places must differ as well: an interpreter puts back what it found.
        spare = copies.room + jnp.arange(TILE, dtype=jnp.int32)
        place = jnp.where(kept, offset + jnp.cumsum(kept.astype(jnp.int32)) - 1, spare)
        triton.store(copies.values.at[all_.row, place], values, mask=kept)
        triton.store(copies.ids.at[all_.row, place], at, mask=kept)
        return offset + jnp.sum(kept.astype(jnp.int32))

    lax.fori_loop(0, jnp.where(narrow, all_.tiles, 0), copy, jnp.int32(0))
    copies.settle()
    return _Tokens(all_.row, all_.logits, all_.by, copies, narrow, jnp.where(narrow, count, all_.count))


def _all(row: Any, logits: Any, by: Any, copies: _Copies) -> _Tokens:
    return _Tokens(row, logits, by, copies, jnp.bool_(False), jnp.int32(logits.shape[1]))


def _draw(row: Any, given: Sequence[Any], made: Sequence[Any], copies: _Copies) -> None:
    logits, floats, ints = given
    temperature, top_p, min_p = (floats[row, word] for word in (TEMPERATURE, TOP_P, MIN_P))
    hot = temperature > 0
    all_ = _all(row, logits, jnp.where(hot, temperature, jnp.float32(1)), copies)
    top, first = all_.best(lambda values, _: values)
    made[0][row] = first

    @pl.when(hot)
    def _() -> None:
        tokens, cut = _cut(all_, top, ints[row, TOP_K], top_p, min_p)
        position, *seed = (
            lax.bitcast_convert_type(ints[row, word], jnp.uint32) for word in (POSITION, SEED_LOW, SEED_HIGH)
        )

        def score(values: jax.Array, ids: jax.Array) -> jax.Array:
            low, high = (jnp.broadcast_to(part, (1,)) for part in seed)
            noise = gumbel((low, high), jnp.broadcast_to(position, (1,)), ids.astype(jnp.uint32)[None])
            return jnp.where(values >= cut, values + noise.reshape(TILE), -jnp.inf)

        made[0][row] = tokens.best(score)[1]


def _cut(all_: _Tokens, top: jax.Array, top_k: Any, top_p: Any, min_p: Any) -> tuple[_Tokens, jax.Array]:
    """The tokens to look at, and the smallest value that top_k, then top_p, then min_p keep."""
    vocab = all_.logits.shape[1]
    by_count, by_mass = top_k > 0, top_p < 1
    k, p = jnp.where(by_count, jnp.minimum(top_k, vocab), vocab), jnp.minimum(top_p, 1)
    near = _Near.of(all_, top, wanted=by_count | by_mass)
    # What top_p keeps of what top_k left is less than what it would keep of all.
    enough = [
        jnp.where(by_count, count >= k, mass >= p * near.mass)
        for count, mass in zip(near.counts, near.masses, strict=True)
    ]
    distance, count = near.least(enough)
    tokens = _copied(all_, top - distance, count, wanted=by_count | by_mass)
    low, high = jnp.where(tokens.narrow, ordered(top - distance), jnp.int32(-(2**31))), ordered(top)

    def many(cut: jax.Array) -> jax.Array:
        return tokens.sums(lambda values: (ordered(values) >= cut).astype(jnp.int32), jnp.int32) >= k

    by_k = _largest(many, low, jnp.where(by_count, high, low))

    def mass_of(cut: jax.Array) -> jax.Array:
        return tokens.sums(lambda values: jnp.where(ordered(values) >= cut, jnp.exp(values - top), 0.0), jnp.float32)

    enough_mass = p * jnp.where(by_count, mass_of(by_k), near.mass)
    by_p = _largest(lambda cut: mass_of(cut) >= enough_mass, by_k, jnp.where(by_mass, high, by_k))
    floor = jnp.where(min_p > 0, top + jnp.log(min_p), -jnp.inf)
    return tokens, jnp.where(by_count | by_mass, jnp.maximum(unordered(by_p), floor), floor)


def _largest(holds: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """The largest int32 in [low, high] for which the falling `holds` is true; it is at `low`."""

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # the upper mean, which cannot overflow
        ok = holds(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

    found: jax.Array = lax.while_loop(lambda bounds: bounds[0] < bounds[1], halve, (low, high))[0]
    return found


def _logprobs(row: Any, given: Sequence[Any], made: Sequence[Any], copies: _Copies) -> None:
    (logits, token), (logprob, ids, tops) = given, made
    vocab = logits.shape[1]
    all_ = _all(row, logits, jnp.float32(1), copies)
    top, _ = all_.best(lambda values, _: values)
    near = _Near.of(all_, top, wanted=jnp.bool_(True))
    whole = jnp.log(near.mass) + top
    logprob[row] = logits[row, token[row]] - whole
    distance, count = near.least([count >= min(MAX_ALTERNATIVES, vocab) for count in near.counts])
    tokens = _copied(all_, top - distance, count, wanted=jnp.bool_(True))

    def following(place: Any, last: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The likeliest of those behind the `last`."""
        value, number = last

        def score(values: jax.Array, ids: jax.Array) -> jax.Array:
            raw = values - whole
            return jnp.where((raw < value) | ((raw == value) & (ids > number)), raw, -jnp.inf)

        found = tokens.best(score)
        tops[row, place], ids[row, place] = found
        return found

    lax.fori_loop(0, MAX_ALTERNATIVES, following, (jnp.float32(jnp.inf), jnp.int32(-1)))
