"""What a step must at least move and multiply, from a model's shapes; arithmetic in bytes and flops, no arrays."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from attrs import frozen

from models.registry import build
from models.spec import Model, PagedLayer, ParamSpec


@frozen
class Costs:
    """Over all devices: bytes of weights that every decode step reads, KV bytes of one token, and flops."""

    weights: int
    kv_token: int
    matmul: int  # multiply-adds per prompt token in matrices of weights
    head: int  # those of the vocabulary, once per request
    attention: int  # multiply-adds per pair of tokens that attend, over all layers

    def decode_bytes(self, streams: int, context: float) -> float:
        """Read by one step of `streams` requests with `context` tokens each."""
        return self.weights + streams * context * self.kv_token

    def prefill_flops(self, prompt: int) -> float:
        """Of a whole prompt with causal attention: two per multiply-add."""
        return 2.0 * (prompt * self.matmul + self.head + prompt * (prompt + 1) // 2 * self.attention)


def costs(model: Model, config: Mapping[str, Any], kv_token: int) -> Costs:
    """Of `model`, whose `config` also gives the matrices as they are before quantization and packing."""
    plain = build(config, quant="none", dtype=jax.numpy.float32)
    matrices = [leaf for leaf in _leaves(plain.param_specs) if len(leaf.shape) > 1]
    inner = [leaf for leaf in matrices if "vocab" not in leaf.axes]
    table = next(leaf for leaf in matrices if "vocab" in leaf.axes)
    return Costs(
        weights=_read_by_decode(model),
        kv_token=kv_token,
        matmul=sum(math.prod(leaf.shape) for leaf in inner),
        head=math.prod(table.shape),
        attention=sum(
            layer.kv_heads * layer.group * (layer.k_width + layer.v_width)
            for layer in plain.layers
            if isinstance(layer, PagedLayer)
        ),
    )


def _read_by_decode(model: Model) -> int:
    """All of the parameters, but for a table that is only looked up in: one that has a head beside it."""
    sizes = {name: sum(leaf.nbytes for leaf in _leaves(tree)) for name, tree in model.param_specs.items()}
    return sum(size for name, size in sizes.items() if name != "embed" or "head" not in sizes)


def _leaves(tree: Any) -> list[ParamSpec]:
    leaves: list[ParamSpec] = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))
    return leaves
