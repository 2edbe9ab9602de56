"""Logical axis names -> mesh axes, in one table; knows devices, must not know what a parameter is for."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from models.traced import Traced

EXPERT, TENSOR = "ep", "tp"
"""The mesh axes. Whole experts are split over `ep`, the width of each over `tp`; all else over both, which are all devices.

Where `ep` is 1 a device has a part of each expert: so all have the same to do, whichever experts a step's tokens go through.

There is none for data: replicas of a model are engines of their own, each with its own mesh, and share nothing.
"""

BOTH = (EXPERT, TENSOR)

RULES: dict[str, tuple[str, ...]] = {
    "embed": (),
    "kv_heads": BOTH,
    "mlp": BOTH,
    "vocab": BOTH,
    "experts": (EXPERT,),
    "expert_mlp": (TENSOR,),
}
"""Logical axis -> mesh axes; none keeps the dimension whole on every device."""

_MESH = Traced[Mesh]("mesh")


def make_mesh(devices: Sequence[Any], expert_parallel: int = 1) -> Mesh:
    """A mesh over `devices`, which are jax devices, in their order: `expert_parallel` of them along `ep`."""
    return Mesh(np.array(list(devices), dtype=object).reshape(expert_parallel, -1), BOTH)


def computing_on(mesh: Mesh) -> AbstractContextManager[None]:
    """What is traced in here is for `mesh`: experts that are split over `ep` have to know it."""
    return _MESH.within(mesh)


def current_mesh() -> Mesh:
    """That of `computing_on`."""
    mesh = _MESH.get()
    assert mesh is not None, "experts over ep are traced within computing_on(mesh)"
    return mesh


def sharded(axis: str | None) -> bool:
    """Whether a dimension of this logical name is spread over devices."""
    return axis is not None and bool(RULES[axis])


def shards(axes: Sequence[str | None], devices: int, expert_parallel: int = 1) -> int:
    """In how many parts an array of these dimensions lies on so many devices."""
    sizes = {EXPERT: expert_parallel, TENSOR: devices // expert_parallel}
    return prod(sizes[one] for axis in axes if axis is not None for one in RULES[axis])


def named_sharding(mesh: Mesh, axes: Sequence[str | None]) -> NamedSharding:
    """The sharding of an array whose dimensions have these logical names; None is a dimension without a name."""
    return NamedSharding(mesh, partition(axes))


def partition(axes: Sequence[str | None]) -> PartitionSpec:
    """The same without a mesh."""
    spec = [() if axis is None else RULES[axis] for axis in axes]
    used = [one for every in spec for one in every]
    assert len(used) == len(set(used)), f"{tuple(axes)} puts two dimensions on one mesh axis"
    return PartitionSpec(*(one or None for one in spec))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device has whole."""
    return NamedSharding(mesh, PartitionSpec())


def shard_tree(tree: Any, specs: Any, mesh: Mesh) -> Any:
    """Arrays put on the mesh as their `ParamSpec`s say; both trees have the same structure."""
    return jax.tree.map(lambda leaf, spec: jax.device_put(leaf, named_sharding(mesh, spec.axes)), tree, specs)
