"""Logits to tokens on the device: one float32 pipeline for every row. Knows rows and ids, not requests, pages or text.

    raw logits -> penalties, bias, bans, mask -> temperature -> top_k, top_p, min_p -> Gumbel-max

The noise is keyed by (seed, position, token id), so what a row draws does not depend on its neighbours, its bucket or on
how its candidates were found. Cuts are thresholds on the value: tokens that tie with the last one kept are kept too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from neuron_jax.engine.noise import gumbel

CANDIDATES = 256
"""A nucleus or top_k within this many tokens is found by `lax.top_k`; a wider one by bisection over the vocabulary."""

MAX_BIAS = 640
"""Biased or banned ids of one request: 300 each for logit_bias and for stop ids held back by min_tokens, and the model's
own ends."""

MAX_ALTERNATIVES = 20
"""top_logprobs, as the OpenAI API bounds it."""

MOST_COUNTED = 2**15 - 1
"""How often a token may have come before it is counted no further: penalties stay what they are then."""

NOTHING, GREEDY, DRAW, FULL = -1, 0, 1, 2
"""How much of the pipeline a row needs: no token at all; arg max; temperature and the cuts; and penalties, bias, bans,
log-probabilities. A step does what the most demanding of its rows needs, which changes nothing for the others."""


class RowParams(NamedTuple):
    """Per-row parameters, each [R]."""

    slot: Any  # int32, row of `Past`
    position: Any  # uint32, of the token about to be drawn
    seed_low: Any  # uint32
    seed_high: Any  # uint32
    temperature: Any  # float32, 0 = greedy
    top_k: Any  # int32, 0 = all
    top_p: Any  # float32
    min_p: Any  # float32
    presence: Any  # float32
    frequency: Any  # float32
    repetition: Any  # float32
    biased: Any  # int32, whether the biases of the slot are this request's
    need: Any  # int32, NOTHING, GREEDY, DRAW or FULL
    full_until: Any  # uint32, up to which position it is FULL, whatever `need` says
    masked: Any  # int32, whether its line of the masks says which tokens may be drawn


class Past(NamedTuple):
    """What the drawing of a slot's next token must know besides its logits; S slots.

    `generated` [S, V] int16: how often, up to MOST_COUNTED, and `in_prompt` [S, V] bool: whether a token came before.
    `bias_ids` int32, `bias` float32 and `bias_until` uint32 [S, MAX_BIAS]: added to a token's logit at positions below
    `bias_until`.
    """

    generated: Any
    in_prompt: Any
    bias_ids: Any
    bias: Any
    bias_until: Any


class SamplerOutput(NamedTuple):
    """token [R] int32; logprob [R], and ids and logprobs of the MAX_ALTERNATIVES likeliest, zero unless the step is FULL."""

    token: jax.Array
    logprob: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array


def sample(logits: jax.Array, row: RowParams, past: Past, masks: jax.Array | None = None) -> SamplerOutput:
    """float32 [R, V] -> the next token of every row. What the step's rows do not need is not computed.

    `masks` int32 [R, words] has a bit for each token, the lowest first; None where no row is masked.
    """
    need = jnp.max(jnp.where(row.position < row.full_until, FULL, row.need))
    allowed = logits
    if masks is not None:
        allowed = lax.cond(jnp.any(row.masked > 0), lambda: only(logits, row, masks), lambda: logits)
    drawn: SamplerOutput = lax.cond(
        need <= GREEDY, lambda: bare(greedy(allowed)), lambda: _draw(logits, allowed, row, past, need)
    )
    return drawn


def sample_alike(logits: jax.Array, row: RowParams, past: Past, masks: jax.Array | None = None) -> SamplerOutput:
    """`sample` with all of it computed for every row: the same operations, whatever the rows of a step need.

    That costs some ten times as long on a CPU. The choices among roads that `sample` makes lead to the same token but for
    rounding, which here cannot differ.
    """
    adjusted = adjust(logits if masks is None else only(logits, row, masks), row, past)
    hot = row.temperature > 0
    scaled = adjusted / jnp.where(hot, row.temperature, jnp.float32(1))[:, None]
    floor = jnp.where(row.min_p > 0, scaled.max(axis=-1) + jnp.log(row.min_p), jnp.float32(-jnp.inf))
    cut = jnp.maximum(_bisected(scaled, jax.nn.logsumexp(scaled, axis=-1), row), floor)
    token = jnp.where(hot, _draw_any(scaled, cut, row), greedy(adjusted))
    return _with_logprobs(logits, token)


def count(past: Past, slot: jax.Array, token: jax.Array) -> Past:
    """`past` after `token` [R] was drawn in `slot` [R]."""
    more = (past.generated[slot, token] < MOST_COUNTED).astype(jnp.int16)
    return past._replace(generated=past.generated.at[slot, token].add(more, mode="promise_in_bounds"))


def greedy(logits: jax.Array) -> jax.Array:
    """float32 [R, V] -> int32 [R]; the lowest id wins a tie."""
    return _first_best(logits)


def draw(logits: jax.Array, row: RowParams) -> jax.Array:
    """float32 [R, V] -> int32 [R] by temperature, top_k, top_p and min_p; rows at temperature 0 are greedy."""
    hot = row.temperature > 0
    scaled = logits / jnp.where(hot, row.temperature, jnp.float32(1))[:, None]
    cut = hot & ((row.top_k > 0) | (row.top_p < 1) | (row.min_p > 0))
    # Where no row is cut there is nothing to look for: any token may be drawn.
    open_ = jnp.full(hot.shape, -jnp.inf, jnp.float32)
    road = jnp.where(jnp.any(cut), 2, jnp.where(jnp.any(hot), 1, 0))
    nothing = lambda: jnp.zeros(hot.shape, jnp.int32)  # noqa: E731
    roads = (nothing, lambda: _draw_any(scaled, open_, row), lambda: _draw_cut(scaled, hot, row))
    token: jax.Array = lax.switch(road, roads)
    return jnp.where(hot, token, greedy(logits))


def _draw_cut(scaled: jax.Array, hot: jax.Array, row: RowParams) -> jax.Array:
    lse = jax.nn.logsumexp(scaled, axis=-1)
    values, ids = _top(scaled, CANDIDATES)
    threshold, found = _threshold(values, lse, row, vocab=scaled.shape[-1])
    # Greedy rows look at nothing but the best: they must not send the others down the wide road.
    wide = hot & ~found
    token: jax.Array = lax.cond(
        jnp.any(wide),
        lambda: _draw_wide(scaled, lse, row, threshold, wide),
        lambda: _gumbel_max(values, ids, threshold, row),
    )
    return token


def _first_best(values: jax.Array) -> jax.Array:
    """[R, N] -> int32 [R], where a row's greatest value is first. In two passes that XLA:CPU vectorizes, unlike `argmax`."""
    width = values.shape[-1]
    place = jnp.arange(width, dtype=jnp.int32)[None, :]
    best = values.max(axis=-1, keepdims=True)
    # Where there is a NaN nothing equals the best: still a place.
    return jnp.where(values == best, place, width - 1).min(axis=-1)


def only(logits: jax.Array, row: RowParams, masks: jax.Array) -> jax.Array:
    """The logits of the tokens that each row may draw, -inf for the others."""
    bits = (masks[:, :, None] >> jnp.arange(32, dtype=jnp.int32)[None, None, :]) & 1
    may = bits.reshape(masks.shape[0], -1)[:, : logits.shape[1]] > 0
    return jnp.where(may | (row.masked == 0)[:, None], logits, jnp.float32(-jnp.inf))


def _draw(logits: jax.Array, allowed: jax.Array, row: RowParams, past: Past, need: jax.Array) -> SamplerOutput:
    full = need == FULL
    token = draw(lax.cond(full, lambda: adjust(allowed, row, past), lambda: allowed), row)
    drawn: SamplerOutput = lax.cond(full, lambda: _with_logprobs(logits, token), lambda: bare(token))
    return drawn


def adjust(logits: jax.Array, row: RowParams, past: Past) -> jax.Array:
    """The logits that are drawn from: after penalties, bias and bans."""
    adjusted = _penalize(logits, past.generated[row.slot], past.in_prompt[row.slot], row)
    holds = (row.biased > 0)[:, None] & (row.position[:, None] < past.bias_until[row.slot])
    rows = jnp.arange(logits.shape[0], dtype=jnp.int32)[:, None]
    return adjusted.at[rows, past.bias_ids[row.slot]].add(jnp.where(holds, past.bias[row.slot], jnp.float32(0)))


def _with_logprobs(logits: jax.Array, token: jax.Array) -> SamplerOutput:
    """Log-probabilities are those of the raw logits, as OpenAI defines them."""
    raw = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    top, ids = _top(raw, MAX_ALTERNATIVES)
    short = MAX_ALTERNATIVES - top.shape[-1]  # of a tiny vocabulary
    logprob = jnp.take_along_axis(raw, token[:, None], axis=-1)[:, 0]
    missing = ((0, 0), (0, short))
    return SamplerOutput(token, logprob, jnp.pad(ids.astype(jnp.int32), missing), jnp.pad(top, missing))


def bare(token: jax.Array) -> SamplerOutput:
    rows = token.shape[0]
    ids = jnp.zeros((rows, MAX_ALTERNATIVES), jnp.int32)
    return SamplerOutput(token, jnp.zeros(rows, jnp.float32), ids, ids.astype(jnp.float32))


def _top(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k`, of at most the whole row. The barriers keep it apart from what is around it: where XLA:CPU does not
    recognize its pattern it sorts the whole vocabulary, which takes a hundred times as long. One barrier for each array:
    over the pair of them, XLA's partitioner aborts the process when there is more than one device.
    """
    best, ids = lax.top_k(lax.optimization_barrier(values), min(count, values.shape[-1]))
    return lax.optimization_barrier(best), lax.optimization_barrier(ids)


def _penalize(logits: jax.Array, generated: jax.Array, in_prompt: jax.Array, row: RowParams) -> jax.Array:
    """Repetition as Keskar et al. 2019 (CTRL) and HF do it, over prompt and output; presence and frequency over output."""
    count = generated.astype(jnp.float32)
    seen = (generated > 0) | in_prompt
    rate = row.repetition[:, None]
    repeated = jnp.where(logits > 0, logits / rate, logits * rate)
    logits = jnp.where(seen, repeated, logits)
    present = (count > 0).astype(jnp.float32)
    penalty: jax.Array = row.frequency[:, None] * count + row.presence[:, None] * present
    return logits - penalty


def _threshold(values: jax.Array, lse: jax.Array, row: RowParams, *, vocab: int) -> tuple[jax.Array, jax.Array]:
    """The smallest value kept, judged from each row's best `values` [R, N] in falling order; and whether that is the last
    word on it, or the cut may lie outside of them: float32 [R], bool [R].
    """
    width = values.shape[-1]
    k = jnp.where(row.top_k > 0, jnp.minimum(row.top_k, vocab), vocab)
    k_inside = k <= width
    last_k = jnp.take_along_axis(values, jnp.minimum(k, width)[:, None] - 1, axis=-1)[:, 0]
    # The nucleus is taken of what top_k left, renormalised: the order of HF and vLLM (Holtzman et al. 2020 for top_p).
    kept = jnp.arange(width, dtype=jnp.int32)[None, :] < k[:, None]
    mass = jnp.cumsum(jnp.where(kept, jnp.exp(values - lse[:, None]), jnp.float32(0)), axis=-1)
    whole = jnp.where(k_inside, mass[:, -1], jnp.float32(1))
    enough = mass >= (row.top_p * whole)[:, None]
    whole_known = k_inside | (k == vocab)
    nucleus_inside = jnp.any(enough, axis=-1) & (row.top_p < 1) & whole_known
    nucleus = jnp.take_along_axis(values, jnp.argmax(enough, axis=-1)[:, None], axis=-1)[:, 0]
    floor = jnp.where(row.min_p > 0, values[:, 0] + jnp.log(row.min_p), jnp.float32(-jnp.inf))
    # One rule that cuts within the candidates is enough: the others could only have kept more.
    floor_inside = (floor > values[:, -1]) & ((row.top_p >= 1) | whole_known)
    nothing = jnp.float32(-jnp.inf)
    threshold = jnp.maximum(jnp.where(k_inside, last_k, nothing), jnp.where(nucleus_inside, nucleus, nothing))
    threshold = jnp.maximum(threshold, floor)
    # Where the last candidate ties with the last token kept, there may be more of them.
    complete = (threshold > values[:, -1]) | (width == vocab)
    return threshold, (k_inside | nucleus_inside | floor_inside) & complete


def _gumbel_max(values: jax.Array, ids: jax.Array, threshold: jax.Array, row: RowParams) -> jax.Array:
    noise = gumbel((row.seed_low, row.seed_high), row.position, ids.astype(jnp.uint32))
    # Apart from the search for its maximum, or XLA:CPU would compute all this noise twice.
    score = lax.optimization_barrier(jnp.where(values >= threshold[:, None], values + noise, jnp.float32(-jnp.inf)))
    return jnp.take_along_axis(ids, _first_best(score)[:, None], axis=-1)[:, 0].astype(jnp.int32)


def _draw_any(scaled: jax.Array, threshold: jax.Array, row: RowParams) -> jax.Array:
    """A draw from the whole vocabulary above `threshold` [R]."""
    ids = jnp.broadcast_to(jnp.arange(scaled.shape[-1], dtype=jnp.int32)[None, :], scaled.shape)
    return _gumbel_max(scaled, ids, threshold, row)


def _draw_wide(scaled: jax.Array, lse: jax.Array, row: RowParams, threshold: jax.Array, wide: jax.Array) -> jax.Array:
    """The same draw over the whole vocabulary. Rows that are not `wide` keep their threshold, and so their token."""
    floor = jnp.where(row.min_p > 0, scaled.max(axis=-1) + jnp.log(row.min_p), jnp.float32(-jnp.inf))
    # Plain temperature sampling keeps everything above `floor`, with nothing to look for.
    cut = lax.cond(
        jnp.any(wide & ((row.top_p < 1) | (row.top_k > 0))),
        lambda: _bisected(scaled, lse, row),
        lambda: jnp.full(floor.shape, -jnp.inf, jnp.float32),
    )
    return _draw_any(scaled, jnp.where(wide, jnp.maximum(cut, floor), threshold), row)


def _bisected(scaled: jax.Array, lse: jax.Array, row: RowParams) -> jax.Array:
    """The smallest value that top_k and then top_p keep, in each row [R]; exact, without sorting.

    A float's bits, with those below the sign flipped for negatives, order as the floats do: 32 halvings of that range
    find the largest value of which enough is at or above. Sorting 49152 values takes a CPU ten times as long.
    """
    order = ordered(scaled)
    top = order.max(axis=-1)
    vocab = scaled.shape[-1]
    k = jnp.where(row.top_k > 0, jnp.minimum(row.top_k, vocab), vocab)
    counted = lambda cut: jnp.sum(order >= cut[:, None], axis=-1, dtype=jnp.int32) >= k  # noqa: E731
    by_k = _largest(counted, jnp.full_like(top, -(2**31)), top)
    mass = jnp.where(order >= by_k[:, None], jnp.exp(scaled - lse[:, None]), jnp.float32(0))
    enough = jnp.minimum(row.top_p, 1) * mass.sum(axis=-1)
    heavy = lambda cut: jnp.sum(jnp.where(order >= cut[:, None], mass, jnp.float32(0)), axis=-1) >= enough  # noqa: E731
    by_p = jnp.where(row.top_p < 1, _largest(heavy, by_k, top), by_k)
    return unordered(by_p)


def _largest(holds: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """The largest int32 in [low, high] for which the falling `holds` is true; it is at `low`. All [R]."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low | high) - ((low ^ high) >> 1)  # the upper mean, which cannot overflow
        ok = holds(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle - 1)

    found: jax.Array = lax.fori_loop(0, 32, halve, (low, high))[0]
    return found


def ordered(values: jax.Array) -> jax.Array:
    """float32 -> int32 in the same order."""
    bits = lax.bitcast_convert_type(values, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def unordered(order: jax.Array) -> jax.Array:
    """The inverse of `ordered`, which is its own."""
    return lax.bitcast_convert_type(order ^ ((order >> 31) & 0x7FFFFFFF), jnp.float32)
