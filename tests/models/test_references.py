"""Our logits against those of Hugging Face transformers for the shapes that the demo model does not have."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.attend import causal
from models.registry import build
from tests.fakes import quick
from tests.fakes.weight_files import random_tensors

_BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 67,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
CASES: dict[str, dict[str, Any]] = {
    "llama3": _BASE
    | {
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "linear": _BASE
    | {
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "head_dim": 12,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": _BASE | {"architectures": ["MistralForCausalLM"], "rope_theta": 10000.0, "sliding_window": 5},
}
TOKENS = (np.arange(60) * 31 % 67).astype(np.int32)
LOGITS = Path(__file__).parent.parent / "data" / "transformers-logits.npz"


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(name: str) -> None:
    """Llama 3's rope scaling, linear scaling with biases and a wider head, and Mistral's window."""
    model = build(CASES[name], dtype=jnp.float32)
    params = mapping.load(model.rules, random_tensors(model))

    @quick.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens, positions, causal(), [None] * 2)
        return model.logits(params, hidden)

    with np.load(LOGITS) as expected:
        np.testing.assert_allclose(np.asarray(run(params, jnp.asarray(TOKENS))), expected[name], atol=2e-4)
