"""Which experts tokens go through, and by what shares, in one GPU kernel: a program for each token. Twin of `models.routing`.

Run in Pallas' interpreter only, and compiled for cards that were not there. It lowers through Triton.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from models.dense.record import Experts
from models.few_rows import whole
from models.routing import LEAST

_NONE = -jnp.inf


def route(
    experts: Experts,
    logits: jax.Array,
    correction: jax.Array | None = None,
    scales: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """logits float32 [T, E], correction and scales float32 [E] -> chosen int32 [T, active], the best first, and shares."""
    tokens, active = logits.shape[0], experts.active
    given = {"correction": correction, "scales": scales}
    extra = {name: array for name, array in given.items() if array is not None}

    def kernel(*refs: Any) -> None:
        logits_ref, *others = refs
        _route(experts, logits_ref, dict(zip(extra, others, strict=False)), *others[-2:])

    call: Any = pl.pallas_call(
        kernel,
        grid=(tokens,),
        in_specs=[whole(array.shape) for array in (logits, *extra.values())],
        out_specs=[whole((tokens, active))] * 2,
        out_shape=[jax.ShapeDtypeStruct((tokens, active), dtype) for dtype in (jnp.int32, jnp.float32)],
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
        name="route",
    )
    chosen, shares = call(logits, *extra.values())
    return chosen, shares


def _route(experts: Experts, logits_ref: Any, extra: dict[str, Any], chosen_ref: Any, shares_ref: Any) -> None:
    row, expert = pl.program_id(0), jnp.arange(pl.next_power_of_2(experts.count), dtype=jnp.int32)
    there = expert < experts.count
    logits = triton.load(logits_ref.at[row, expert], mask=there, other=_NONE)
    if experts.scoring == "softmax":
        powers = jnp.exp(logits - logits.max())
        scores = powers / powers.sum()
    else:
        scores = jax.nn.sigmoid(logits)
    ranked = scores
    if "correction" in extra:
        ranked = ranked + triton.load(extra["correction"].at[expert], mask=there, other=0.0)
    ranked = _within_groups(experts, jnp.where(there, ranked, _NONE), expert)
    place = jnp.arange(pl.next_power_of_2(experts.active), dtype=jnp.int32)
    chosen, shares = jnp.zeros(place.shape, jnp.int32), jnp.zeros(place.shape, jnp.float32)
    for number in range(experts.active):
        best = _best(ranked, expert, experts.count)
        chosen = jnp.where(place == number, best, chosen)
        shares = jnp.where(place == number, jnp.where(expert == best, scores, 0.0).sum(), shares)
        ranked = jnp.where(expert == best, _NONE, ranked)
    if experts.renormalised:
        shares = shares / jnp.maximum(shares.sum(), LEAST)
    shares = shares * experts.scale
    inside = place < experts.active
    if "scales" in extra:
        shares = shares * triton.load(extra["scales"].at[chosen], mask=inside, other=0.0)
    triton.store(chosen_ref.at[row, place], chosen, mask=inside)
    triton.store(shares_ref.at[row, place], shares, mask=inside)


def _best(ranked: jax.Array, expert: jax.Array, count: int) -> jax.Array:
    """The number of the highest, of equal ones the first; some expert's in any case, also where there are NaNs."""
    found: jax.Array = jnp.where(ranked == ranked.max(), expert, count - 1).min()
    return found


def _within_groups(experts: Experts, ranked: jax.Array, expert: jax.Array) -> jax.Array:
    """[E] -> the same, minus infinity in the groups that are not kept."""
    if experts.groups == 1:
        return ranked
    group = expert // (experts.count // experts.groups)
    number = jnp.arange(pl.next_power_of_2(experts.groups), dtype=jnp.int32)
    left = jnp.where(group[None] == number[:, None], ranked[None], _NONE)  # [groups, E]
    best = jnp.where(number < experts.groups, 0.0, _NONE)
    for _ in range(experts.group_best):
        highest = left.max(axis=1)
        best = best + highest
        first = jnp.where(left == highest[:, None], expert[None], experts.count).min(axis=1)
        left = jnp.where(expert[None] == first[:, None], _NONE, left)
    keeps = jnp.zeros(ranked.shape, jnp.bool_)
    for _ in range(experts.kept_groups):
        kept = _best(best, number, experts.groups)
        keeps = keeps | (group == kept)
        best = jnp.where(number == kept, _NONE, best)
    return jnp.where(keeps, ranked, _NONE)
