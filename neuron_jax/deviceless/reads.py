"""What a design must read whatever its programs do: weights, keys and values, states; arithmetic, no arrays."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from attrs import frozen

from models.registry import build
from models.sharding import shards
from models.spec import PagedLayer, ParamSpec, RecurrentLayer
from neuron_jax.engine.build import Design


@frozen
class DesignReads:
    """See `predict.Reads`."""

    made: Design

    def text_bytes(self, context: int) -> int:
        """Of one card: a window's keys and values where there is a window, and a state that is read and written."""
        devices = self.made.tensor_parallel
        total = 0
        for layer in self.made.model.layers:
            if isinstance(layer, PagedLayer):
                seen = context if layer.window is None else min(context, layer.window)
                total += seen * self.made.kv.token_bytes(layer) // devices
            elif isinstance(layer, RecurrentLayer):
                total += sum(leaf.nbytes // shards(leaf.axes, devices) for leaf in layer.state)
        return total

    def pair_flops(self) -> int:
        """Of one card: two operations for each multiply-add of scores and of mixing."""
        paged = [layer for layer in self.made.model.layers if isinstance(layer, PagedLayer)]
        heads = sum(layer.kv_heads * layer.group * (layer.k_width + layer.v_width) for layer in paged)
        return 2 * heads // self.made.tensor_parallel


def reads(made: Design) -> DesignReads:
    """Of a design."""
    return DesignReads(made)


def token_bytes(made: Design, tokens: int = 1) -> float:
    """Bytes of weights on one card that so many tokens cost together: each once, but for a table that is only looked up in and
    for experts that cannot be chosen by so few.
    """
    model = made.model
    count, active = model.experts
    total = 0.0
    for name, tree in model.param_specs.items():
        if name == "embed" and "head" in model.param_specs:
            continue
        for leaf in _leaves(tree):
            share = min(1, tokens * active / count) if "experts" in leaf.axes else 1
            total += leaf.nbytes * share / shards(leaf.axes, made.tensor_parallel, made.expert_parallel)
    return total


def parameters(config: Mapping[str, Any]) -> int:
    """How many a model of this config has."""
    return sum(math.prod(leaf.shape) for leaf in _leaves(build(config, dtype=jax.numpy.bfloat16).param_specs))


def _leaves(tree: Any) -> list[ParamSpec]:
    leaves: list[ParamSpec] = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))
    return leaves
