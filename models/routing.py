"""Which experts a token goes through, and what share each has, as XLA computes it; knows arrays, no layers.

The native twin is models/native/src/route.h. https://arxiv.org/abs/2101.03961 (shares), https://arxiv.org/abs/2408.15664
(correction), https://arxiv.org/abs/2405.04434 (groups).
"""

import jax
import jax.numpy as jnp

from models.dense.record import Experts

LEAST = 2.0**-126
"""The smallest normal float32, in place of a sum of sigmoids that are all zero."""


def route(
    experts: Experts, logits: jax.Array, correction: jax.Array | None = None, scales: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """logits float32 [T, E], correction and scales float32 [E] -> chosen int32 [T, active], the best first, and shares."""
    scores = jax.nn.softmax(logits, axis=-1) if experts.scoring == "softmax" else jax.nn.sigmoid(logits)
    ranked = _within_groups(experts, scores if correction is None else scores + correction[None])
    chosen = jax.lax.top_k(ranked, experts.active)[1]
    shares = jnp.take_along_axis(scores, chosen, axis=-1)
    if experts.renormalised:
        shares = shares / jnp.maximum(shares.sum(axis=-1, keepdims=True), LEAST)
    shares = shares * experts.scale
    return chosen.astype(jnp.int32), shares if scales is None else shares * scales[chosen]


def _within_groups(experts: Experts, ranked: jax.Array) -> jax.Array:
    """[T, E] -> the same, minus infinity in the groups that are not kept."""
    if experts.groups == 1:
        return ranked
    groups = ranked.reshape(ranked.shape[0], experts.groups, -1)
    best = jax.lax.top_k(groups, experts.group_best)[0].sum(axis=-1)
    kept = jax.lax.top_k(best, experts.kept_groups)[1]
    keeps = (kept[:, :, None] == jnp.arange(experts.groups)[None, None]).any(axis=1)
    return jnp.where(keeps[:, :, None], groups, -jnp.inf).reshape(ranked.shape)
