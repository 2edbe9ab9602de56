"""Our logits and greedy text against those of Hugging Face transformers, for each family and the shapes that it may have."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.attend import causal
from models.native import library
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
_QWEN = _BASE | {"hidden_size": 36, "intermediate_size": 43, "num_attention_heads": 6, "vocab_size": 71}
LLAMA: dict[str, dict[str, Any]] = {
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
QWEN2: dict[str, dict[str, Any]] = {
    "qwen2": _QWEN
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen2 windows": _QWEN
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
}
QWEN3: dict[str, dict[str, Any]] = {
    "qwen3": _QWEN | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 12, "rope_theta": 5000.0},
    "qwen3 windows, biases": _QWEN
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 8,
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
_GEMMA3 = _QWEN | {
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 10,
    "num_hidden_layers": 4,
    "sliding_window": 7,
    "query_pre_attn_scalar": 8,
}
GEMMA3: dict[str, dict[str, Any]] = {
    "gemma3": _GEMMA3
    | {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        },
    },
    "gemma3 by older keys, with biases and a cap": _GEMMA3
    | {
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 100.0,
        "rope_theta": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "attention_bias": True,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": False,
    },
}
FAMILIES = {"llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3, "gemma3": GEMMA3}
"""The cases of each, by the name of the file with what transformers says of them."""
TOKENS = (np.arange(60) * 31 % 67).astype(np.int32)
DATA = Path(__file__).parent.parent / "data"


EVERY = [(family, name) for family, cases in FAMILIES.items() for name in cases]
NO_KERNELS = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")


def reference(family: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The prompt's logits, and the tokens of the text after it."""
    with np.load(DATA / f"transformers-{family}.npz") as found:
        return found[name], found[f"{name} greedy"]


def logits(config: dict[str, Any], tokens: np.ndarray, **choices: Any) -> np.ndarray:
    """[T, V] of one plain causal pass."""
    tensors = random_tensors(build(config, dtype=jnp.float32))
    model = build(config, dtype=jnp.float32, **choices)

    @quick.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
        return model.logits(params, hidden)

    return np.asarray(run(mapping.load(model.rules, tensors), jnp.asarray(tokens)))


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=NO_KERNELS)], ids=["xla", "native"])
@pytest.mark.parametrize(("family", "name"), EVERY)
def test_logits_and_greedy_text_are_those_of_transformers(family: str, name: str, *, native: bool) -> None:
    """The prompt's logits within 1e-4, and after it the same token is likeliest at each place of the text."""
    expected, greedy = reference(family, name)
    found = logits(FAMILIES[family][name], np.concatenate([TOKENS, greedy]), native=native)

    np.testing.assert_allclose(found[: len(TOKENS)], expected, rtol=0, atol=1e-4)
    assert found[len(TOKENS) - 1 : -1].argmax(axis=-1).tolist() == greedy.tolist()


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=NO_KERNELS)], ids=["xla", "native"])
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_stays_close_to_transformers(family: str, *, native: bool) -> None:
    """By a share of the spread of all logits, on average."""
    name, config = next(iter(FAMILIES[family].items()))
    expected, _ = reference(family, name)
    found = logits(config, TOKENS, quant="int8", native=native)

    assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.1 * expected.std()
