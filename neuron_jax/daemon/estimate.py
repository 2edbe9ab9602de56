"""How much memory a model will take at least, from what its files say; arithmetic only, must not know engines.

The memory plan of the engine is the truth, and needs the model's code. This is its lower bound, cheap enough for a list:
the weights in the format they will be kept in, and the KV pages without which a load is refused.
"""

from collections.abc import Mapping
from typing import Any, Literal

from neuron_jax.weights.describe import ModelDescription
from neuron_jax.workers.frames import LEAST_CONTEXT

WIDTH = {"cpu": 4, "cuda": 2}
"""Bytes of a value where it is not quantized: float32, bfloat16."""

BITS = {"int8": 8, "int4": 4, "fp8": 8}
"""Of a weight, without its share of a scale."""

KV_WIDTH = {"float32": 4, "bfloat16": 2, "int8": 1, "fp8": 1}
SCALED = ("int8", "fp8")
SCALE = 4
"""Bytes that go with each head's key and value in the scaled formats."""


def least_bytes(
    description: ModelDescription, *, platform: Literal["cpu", "cuda"], quant: str, kv_dtype: str, max_context: int
) -> int:
    """Bytes over all devices. `max_context` in tokens, 0 where nothing is asked for.

    Left out: a step's temporaries and the JAX runtime, which the plan has as rows of their own.
    """
    width = WIDTH[platform]
    tokens = min(max_context or LEAST_CONTEXT, description.context_length)
    token = _token(description.config, KV_WIDTH.get(kv_dtype, width), SCALE if kv_dtype in SCALED else 0)
    return _weights(description, platform, quant) + _reached(description.config, tokens) * token


def _weights(description: ModelDescription, platform: Literal["cpu", "cuda"], quant: str) -> int:
    if quant in BITS:
        return description.parameters * BITS[quant] // 8
    # On a CPU weights are kept as stored, or widened where that cannot be.
    if platform == "cpu" and quant != "none":
        return min(description.weight_bytes, description.parameters * WIDTH[platform])
    return description.parameters * WIDTH[platform]


def _reached(config: Mapping[str, Any], tokens: int) -> int:
    """Of a text of `tokens` those that are kept: pages that a window has left are given back."""
    window = config.get("sliding_window")
    return min(tokens, window) if isinstance(window, int) and window > 0 else tokens


def _token(config: Mapping[str, Any], width: int, scale: int) -> int:
    """KV bytes of one token over all layers, in config.json's terms; 0 where they do not say. `scale` bytes per head."""
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    if not layers or not heads:
        return 0
    head = config.get("head_dim") or (config.get("hidden_size") or 0) // heads
    return int(2 * layers * (config.get("num_key_value_heads") or heads) * (head * width + scale))
