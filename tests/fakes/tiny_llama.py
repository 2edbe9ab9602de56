"""A Llama of a few thousand random weights for tests of the engine: real code, real shapes, no files."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.attend import causal
from models.registry import build
from models.spec import Model, ParamSpec

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def tiny(**changes: Any) -> tuple[Model, Any]:
    """The model and its parameters, the same on every call."""
    model = build(CONFIG | changes, dtype=jnp.float32)
    rng = np.random.default_rng(11)
    params = jax.tree.map(
        lambda spec: jnp.asarray(rng.standard_normal(spec.shape) * 0.3, spec.dtype),
        model.param_specs,
        is_leaf=lambda leaf: isinstance(leaf, ParamSpec),
    )
    return model, params


def full_logits(model: Model, params: Any, ids: list[int]) -> np.ndarray:
    """float32 [T, V] of one plain causal pass: what any paged, chunked or batched way must agree with."""
    tokens = jnp.asarray(ids, jnp.int32)
    positions = jnp.arange(len(ids), dtype=jnp.int32)
    caches = [None] * model.cache_spec.layers
    hidden, _ = model.forward(params, tokens, positions, causal(), caches)
    return np.asarray(model.logits(params, hidden))
