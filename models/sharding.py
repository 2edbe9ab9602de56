"""Logical axis names -> mesh axes, in one table; knows devices, must not know what a parameter is for."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

EXPERT, TENSOR = "ep", "tp"
"""The mesh axes: of experts, which every mesh has with size 1, and of tensors. A device has a part of each expert rather
than some of them whole: so all have the same to do, whichever experts a step's tokens go through.

There is none for data: replicas of a model are engines of their own, each with its own mesh, and share nothing.
"""

RULES: dict[str, str | None] = {
    "embed": None,
    "kv_heads": TENSOR,
    "mlp": TENSOR,
    "vocab": TENSOR,
    "experts": EXPERT,
}
"""Logical axis -> mesh axis; None keeps the dimension whole on every device."""


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """A mesh over `devices`, which are jax devices, in their order: all of them along `tp`."""
    return Mesh(np.array(list(devices), dtype=object)[None], (EXPERT, TENSOR))


def sharded(axis: str | None) -> bool:
    """Whether a dimension of this logical name is spread over the devices of `tp`."""
    return axis is not None and RULES[axis] == TENSOR


def named_sharding(mesh: Mesh, axes: Sequence[str | None]) -> NamedSharding:
    """The sharding of an array whose dimensions have these logical names; None is a dimension without a name."""
    spec = [None if axis is None else RULES[axis] for axis in axes]
    used = [axis for axis in spec if axis is not None]
    assert len(used) == len(set(used)), f"{tuple(axes)} puts two dimensions on one mesh axis"
    return NamedSharding(mesh, PartitionSpec(*spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def shard_tree(tree: Any, specs: Any, mesh: Mesh) -> Any:
    """Arrays put on the mesh as their `ParamSpec`s say; both trees have the same structure."""
    return jax.tree.map(lambda leaf, spec: jax.device_put(leaf, named_sharding(mesh, spec.axes)), tree, specs)
