"""How much memory a model will take at least, from what its files say; arithmetic only, must not know engines.

The memory plan of the engine is the truth, and needs the model's code. This is its lower bound, cheap enough for a list:
the weights in the format they will be kept in, and the KV pages without which a load is refused.
"""

from typing import Literal

from models.spec import LayerSpec, PagedLayer
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
    scale = SCALE if kv_dtype in SCALED else 0
    layers = description.outline.layers
    kept = sum(_kept(layer, tokens, KV_WIDTH.get(kv_dtype, width), scale) for layer in layers)
    return _weights(description, platform, quant) + kept


def _weights(description: ModelDescription, platform: Literal["cpu", "cuda"], quant: str) -> int:
    if quant in BITS:
        return description.parameters * BITS[quant] // 8
    # On a CPU weights are kept as stored, or widened where that cannot be.
    if platform == "cpu" and quant != "none":
        return min(description.weight_bytes, description.parameters * WIDTH[platform])
    return description.parameters * WIDTH[platform]


def _kept(layer: LayerSpec, tokens: int, width: int, scale: int) -> int:
    """Bytes that a layer keeps of a text of `tokens`: pages that a window has left are given back. `scale` bytes per head."""
    if not isinstance(layer, PagedLayer):
        return sum(state.nbytes for state in layer.state)
    reached = tokens if layer.window is None else min(tokens, layer.window)
    return reached * layer.kv_heads * ((layer.k_width + layer.v_width) * width + 2 * scale)
