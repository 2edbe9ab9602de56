"""The plain `Mixer` of one sequence, for notebooks and tests; knows arrays, must not know pages."""

from typing import Any

import jax
import jax.numpy as jnp
from attrs import frozen

from models.spec import CHUNK, Mixer, PagedLayer, Recurrence, RecurrentLayer


def causal(*, keep_weights: bool = False) -> Mixer[Any]:
    """A `Mixer` in which token i sees the tokens 0..i of the same call, in float32. Its caches go in as None.

    With `keep_weights` a layer's new cache is its attention weights, float32 [K, G, T, T]; without, it is None.
    """
    return Causal(keep_weights)


@frozen
class Causal:
    """See `causal`."""

    keep_weights: bool
    live: jax.Array | None = None
    rotates: bool = False

    def attend(
        self,
        layer: PagedLayer,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        cache: Any,
        *,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """See `models.spec.Mixer`."""
        assert cache is None, "plain causal attention reads no cache"
        scores = jnp.einsum("tkgh,skh->kgts", q, k, preferred_element_type=jnp.float32)
        if layer.soft_cap is not None:
            scores = layer.soft_cap * jnp.tanh(scores / layer.soft_cap)
        scores = jnp.where(_visible(q.shape[0], layer)[None, None], scores, -jnp.inf)
        if sinks is not None:
            column = jnp.broadcast_to(sinks[:, :, None, None], (*scores.shape[:3], 1))
            scores = jnp.concatenate([scores, column], axis=-1)
        weights = jax.nn.softmax(scores, axis=-1)[..., : k.shape[0]]
        mixed = jnp.einsum("kgts,skh->tkgh", weights, v.astype(jnp.float32)).astype(q.dtype)
        return mixed, weights if self.keep_weights else None

    def recur(self, layer: RecurrentLayer, rule: Recurrence, inputs: Any, cache: Any) -> tuple[Any, Any]:
        """See `models.spec.Mixer`: chunk after chunk."""
        del cache
        begin = tuple(jnp.zeros(leaf.shape, leaf.dtype) for leaf in layer.state)
        tokens = jax.tree.leaves(inputs)[0].shape[0]
        starts = jnp.arange(0, tokens, CHUNK, dtype=jnp.int32)

        def chunks(leaf: jax.Array) -> jax.Array:
            padded = jnp.pad(leaf, ((0, -tokens % CHUNK), *((0, 0),) * (leaf.ndim - 1)))
            return padded.reshape(-1, CHUNK, *leaf.shape[1:])

        def follow(state: Any, chunk: Any) -> tuple[Any, Any]:
            return rule.chunk(state, chunk[1], jnp.minimum(tokens - chunk[0], CHUNK))

        given = jax.lax.scan(follow, begin, (starts, jax.tree.map(chunks, inputs)))[1]
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:tokens], given), None

    def attend_rotated(self, *_: Any, **__: Any) -> tuple[jax.Array, Any]:
        """Never called: `rotates` is False."""
        raise AssertionError("plain causal attention rotates nothing")


def _visible(tokens: int, layer: PagedLayer) -> jax.Array:
    at, position = jnp.arange(tokens)[None, :], jnp.arange(tokens)[:, None]
    seen: jax.Array = (at <= position) & (at >= layer.first_seen(position))
    return seen
