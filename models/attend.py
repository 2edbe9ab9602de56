"""Plain causal attention over one sequence, for notebooks and tests; knows arrays, must not know pages."""

from typing import Any

import jax
import jax.numpy as jnp

from models.spec import Attend


def causal(*, keep_weights: bool = False) -> Attend[Any]:
    """An `Attend` in which token i sees the tokens 0..i of the same call, in float32. Its cache goes in as None.

    With `keep_weights` a layer's new cache is its attention weights, float32 [K, G, T, T]; without, it is None.
    """

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, *, window: int | None = None
    ) -> tuple[jax.Array, Any]:
        assert cache is None, "plain causal attention reads no cache"
        scores = jnp.einsum("tkgh,skh->kgts", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(_visible(q.shape[0], window)[None, None], scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("kgts,skh->tkgh", weights, v.astype(jnp.float32)).astype(q.dtype)
        return mixed, weights if keep_weights else None

    return attend


def _visible(tokens: int, window: int | None) -> jax.Array:
    back = jnp.arange(tokens)[:, None] - jnp.arange(tokens)[None, :]
    return (back >= 0) if window is None else (back >= 0) & (back < window)
