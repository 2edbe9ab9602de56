"""One plain pass of a model over its text, and random parameters: what paged, chunked and batched ways must agree with."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.attend import causal
from models.spec import Model, ParamSpec
from tests.fakes import quick

MOST = 256
"""Tokens of a text: one compiled program serves all that are no longer."""


def random_params(model: Model, seed: int) -> Any:
    """The same on every call."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda spec: jnp.asarray(rng.standard_normal(spec.shape) * 0.3, spec.dtype),
        model.param_specs,
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )


def full_logits(model: Model, params: Any, ids: list[int]) -> np.ndarray:
    """float32 [T, V] of one plain causal pass over the whole text."""
    padded = jnp.asarray(ids + [0] * (MOST - len(ids)), jnp.int32)
    return np.asarray(_full(model, params, padded))[: len(ids)]


@partial(quick.jit, static_argnums=0)
def _full(model: Model, params: Any, tokens: jax.Array) -> jax.Array:
    positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
    return model.logits(params, hidden)
