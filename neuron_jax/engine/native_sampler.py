"""`sampler.sample` by one native kernel, for one CPU device; knows rows and ids, not requests, pages or text.

Same pipeline, same noise, same rules for ties. What is promised beyond that:

- A row's token and log-probabilities are the same bits whatever rows are beside it.
- For a seed the token is XLA's, but for rounding: exp and log differ in the last bits, so a token whose value lies within
  some 1e-6 of the nucleus' edge may be kept by one and not by the other, and of two tokens whose scores lie so close the
  other may win. The cuts of top_k and min_p and everything greedy have no such edge: they are equal.
- Log-probabilities are given for the rows that need them, where XLA's come for all rows of a step or none.
"""

import jax
import jax.numpy as jnp
from jax import lax

from models.native import ops
from models.native.library import unavailable
from neuron_jax.engine.sampler import MAX_ALTERNATIVES, Past, RowParams, SamplerOutput

_INTS = ("slot", "position", "seed_low", "seed_high", "top_k", "biased", "need", "full_until", "masked")
_FLOATS = ("temperature", "top_p", "min_p", "presence", "frequency", "repetition")


def sample(logits: jax.Array, row: RowParams, past: Past, masks: jax.Array | None = None) -> SamplerOutput:
    """float32 [R, V], and as bits the tokens that masked rows may draw, int32 [R, words] -> the next token of every row."""
    words = -(-logits.shape[1] // 32)
    if masks is None:
        masks, row = jnp.zeros((0, words), jnp.int32), row._replace(masked=jnp.zeros_like(row.need))
    ints = [lax.bitcast_convert_type(getattr(row, name), jnp.int32) for name in _INTS]
    floats = [getattr(row, name) for name in _FLOATS]
    drawn = ops.sample(
        logits, jnp.stack(ints, axis=1), jnp.stack(floats, axis=1), tuple(past), masks, alternatives=MAX_ALTERNATIVES
    )
    return SamplerOutput(*drawn)


def refuses(mesh: jax.sharding.Mesh) -> str | None:
    """Why the kernel cannot draw for programs of `mesh`; None when it can."""
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return "serves one CPU device"
    return unavailable()
