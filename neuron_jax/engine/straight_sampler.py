"""`sampler.sample` without a branch, for one kind of `Draws` at a time; knows rows and ids, not requests, pages or text.

On a GPU a branch on what the rows need would make the device ask the host in the middle of a step. The host knows what they
need, so it chooses the program. Same pipeline and noise as `sampler`, so the same tokens but for rounding: all candidates are
found by the wide road, a search for the cut over the vocabulary, in an eighth of the passes that halving takes. Where there
are kernels for it (`row_sampler`), they draw by cuts, and tell log-probabilities.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, PartitionSpec

from models.sharding import BOTH
from neuron_jax.engine.buckets import Draws
from neuron_jax.engine.noise import gumbel
from neuron_jax.engine.sampler import (
    MAX_ALTERNATIVES,
    Past,
    RowParams,
    SamplerOutput,
    adjust,
    bare,
    only,
    ordered,
    unordered,
)

DIGIT = 4
"""Bits of a value found in one pass over the vocabulary: 15 sums at once."""

GROUP = 64
"""Tokens of which the best is looked at first where the likeliest are looked for: sorts stay within one block of threads."""

_SIGN = -(2**31)


@frozen
class Drawing:
    """What draws by cuts, from float32 [R, V] and rows' parameters -> int32 [R]; and what tells log-probabilities, as
    `with_logprobs`."""

    draw: Callable[[jax.Array, RowParams], jax.Array]
    with_logprobs: Callable[[jax.Array, jax.Array], SamplerOutput]


def sample(
    draws: Draws,
    logits: jax.Array,
    row: RowParams,
    past: Past,
    masks: jax.Array | None = None,
    *,
    drawing: Drawing | None = None,
) -> SamplerOutput:
    """float32 [R, V] -> the next token of every row, none of which needs more than `draws`.

    Log-probabilities come where `draws` is FULL; `masks` as in `sampler.sample`. Where nothing is cut, XLA draws.
    """
    by = Drawing(drawn_by_cuts, with_logprobs) if drawing is None else drawing
    adjusted = logits
    if draws >= Draws.FULL:
        adjusted = adjust(logits if masks is None else only(logits, row, masks), row, past)
    token = _drawn(adjusted, row, cut=False) if draws == Draws.PLAIN else by.draw(adjusted, row)
    return by.with_logprobs(logits, token) if draws >= Draws.FULL else bare(token)


def sample_by_parts(mesh: Mesh, logits: jax.Array, row: RowParams, past: Past) -> SamplerOutput:
    """`sample` where nothing is cut, of logits that lie on the devices of `mesh` by the vocabulary, in equal parts. Each device
    finds the best of its own, and the best of these is the token: no logit leaves its device.
    """
    del past

    def best(logits: jax.Array, row: RowParams) -> jax.Array:
        score = _scores(logits, row, lax.axis_index(BOTH) * logits.shape[1])[1]
        at = jnp.argmax(score, axis=-1).astype(jnp.int32)
        most = lax.bitcast_convert_type(jnp.max(score, axis=-1), jnp.int32)
        every = lax.all_gather(jnp.stack([most, at + lax.axis_index(BOTH) * logits.shape[1]]), BOTH)
        # Among equals the first, which has the lowest token.
        part = jnp.argmax(lax.bitcast_convert_type(every[:, 0], jnp.float32), axis=0)
        return jnp.take_along_axis(every[:, 1], part[None], axis=0)[0]

    specs = (PartitionSpec(None, BOTH), PartitionSpec())
    spread = jax.shard_map(best, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
    return bare(spread(logits, row))


def drawn_by_cuts(logits: jax.Array, row: RowParams) -> jax.Array:
    """float32 [R, V] -> int32 [R] by temperature, top_k, top_p and min_p; rows at temperature 0 are greedy."""
    return _drawn(logits, row, cut=True)


def _scores(adjusted: jax.Array, row: RowParams, first: Any = 0) -> tuple[jax.Array, jax.Array]:
    """[R, V] of the tokens from the `first` one on -> by temperature, without noise and with it."""
    hot = (row.temperature > 0)[:, None]
    scaled = adjusted / jnp.where(hot, row.temperature[:, None], jnp.float32(1))
    tokens = jnp.arange(scaled.shape[1], dtype=jnp.uint32) + jnp.asarray(first, jnp.uint32)
    ids = jnp.broadcast_to(tokens[None], scaled.shape)
    noise = gumbel((row.seed_low, row.seed_high), row.position, ids)
    return scaled, scaled + jnp.where(hot, noise, jnp.float32(0))


def _drawn(adjusted: jax.Array, row: RowParams, *, cut: bool) -> jax.Array:
    scaled, score = _scores(adjusted, row)
    if cut:
        score = jnp.where(scaled >= _cut(scaled, row)[:, None], score, jnp.float32(-jnp.inf))
    return jnp.argmax(score, axis=-1).astype(jnp.int32)


def with_logprobs(logits: jax.Array, token: jax.Array) -> SamplerOutput:
    """`token` with its log-probability by the raw `logits`, and the likeliest ones with theirs."""
    raw = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    top, ids = likeliest(raw, MAX_ALTERNATIVES)
    logprob = jnp.take_along_axis(raw, token[:, None], axis=-1)[:, 0]
    missing = ((0, 0), (0, MAX_ALTERNATIVES - top.shape[-1]))  # of a tiny vocabulary
    return SamplerOutput(token, logprob, jnp.pad(ids, missing), jnp.pad(top, missing))


def likeliest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of [R, V], without sorting V: the best `count` are in the `count` groups whose own best are best."""
    rows, vocab = values.shape
    groups = -(-vocab // GROUP)
    if groups <= count:
        best, ids = lax.top_k(values, min(count, vocab))
        return best, ids.astype(jnp.int32)
    padded = jnp.pad(values, ((0, 0), (0, groups * GROUP - vocab)), constant_values=-jnp.inf)
    grouped = padded.reshape(rows, groups, GROUP)
    # In the order of their ids, so that among equals the lowest comes first.
    found = jnp.sort(lax.top_k(grouped.max(axis=-1), count)[1].astype(jnp.int32), axis=-1)
    near = jnp.take_along_axis(grouped, found[:, :, None], axis=1).reshape(rows, -1)
    best, place = lax.top_k(near, count)
    return best, jnp.take_along_axis(found, place // GROUP, axis=1) * GROUP + place.astype(jnp.int32) % GROUP


def _cut(scaled: jax.Array, row: RowParams) -> jax.Array:
    """The smallest value that top_k, then top_p, then min_p keep, [R]; the lowest there is in rows that are greedy."""
    hot, vocab = row.temperature > 0, scaled.shape[-1]
    # Kept apart from its readers: each would make it of the logits again. Row by row, for logits that were gathered from
    # several devices lie column by column, and then fifteen sums at once need more shared memory than a card has.
    order = with_layout_constraint(lax.optimization_barrier(ordered(scaled)), Layout((0, 1)))
    top = order.max(axis=-1)
    k = jnp.where(row.top_k > 0, jnp.minimum(row.top_k, vocab), vocab)[:, None]

    def many(cuts: Sequence[jax.Array]) -> jax.Array:
        return _sums([(order >= cut[:, None]).astype(jnp.int32) for cut in cuts]) >= k

    by_k = _largest(many, top)
    share = jnp.exp(unordered(order) - unordered(top)[:, None])
    mass = jnp.where(order >= by_k[:, None], share, jnp.float32(0))
    enough = (jnp.minimum(row.top_p, 1) * mass.sum(axis=-1))[:, None]

    def heavy(cuts: Sequence[jax.Array]) -> jax.Array:
        return _sums([jnp.where(order >= cut[:, None], mass, 0.0) for cut in cuts]) >= enough

    by_p = jnp.clip(_largest(heavy, top), by_k, top)
    value = unordered(jnp.where(row.top_p < 1, by_p, by_k))
    floor = jnp.where(row.min_p > 0, unordered(top) + jnp.log(row.min_p), jnp.float32(-jnp.inf))
    return jnp.where(hot, jnp.maximum(value, floor), jnp.float32(-jnp.inf))


def _largest(holds: Callable[[Sequence[jax.Array]], jax.Array], like: jax.Array) -> jax.Array:
    """The largest int32 [R] for which the falling `holds` is true, digit by digit from the highest; else the lowest there is.

    `holds` takes some values [R] and gives a bool for each, [R, values].
    """
    found = jnp.full_like(like, _SIGN)  # as bits without a sign it is 0
    for shift in range(32 - DIGIT, -1, -DIGIT):
        steps = [found + jnp.asarray(digit << shift, jnp.uint32).astype(jnp.int32) for digit in range(1, 1 << DIGIT)]
        found = found + (holds(steps).sum(axis=-1, dtype=jnp.int32) << shift)
    return found


def _sums(parts: Sequence[jax.Array]) -> jax.Array:
    """Of each [R, V] the sum of its rows, in one pass over what they are made of: [R, parts]."""
    zeros = [jnp.zeros((), part.dtype) for part in parts]

    def add(left: Sequence[jax.Array], right: Sequence[jax.Array]) -> list[jax.Array]:
        return [a + b for a, b in zip(left, right, strict=True)]

    return jnp.stack(lax.reduce(list(parts), zeros, add, (1,)), axis=-1)
