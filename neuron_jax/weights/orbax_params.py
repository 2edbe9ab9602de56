"""Parameters as Orbax checkpoints, each device reading and writing its own part; knows jax, must not know sources."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from models import mapping
from models.sharding import named_sharding
from models.spec import Embedder, Model, Params
from neuron_jax.weights.converted import PARAMS, ConvertedCheckpoint, Leaf
from neuron_jax.weights.errors import bad_checkpoint

Report = Callable[[str, int, int, str], None]
"""Called with phase, done, total, unit."""


def save_params(params: Params, folder: Path) -> dict[str, Leaf]:
    """Write the arrays into a new folder in `folder`; what they are, by path."""
    flat = flat_params(params)
    with ocp.StandardCheckpointer() as orbax:
        orbax.save((folder / PARAMS).absolute(), flat)
    return {path: Leaf(tuple(leaf.shape), str(leaf.dtype)) for path, leaf in flat.items()}


def restored(model: Model | Embedder, checkpoint: ConvertedCheckpoint, mesh: Mesh, report: Report) -> Params:
    """Every parameter of `model`, sharded over `mesh`; progress in bytes, phase "weights".

    Raises WeightsError where the arrays are for another engine, or cannot be read.
    """
    specs = flat_params(model.param_specs)
    check_leaves(model, checkpoint)
    total = sum(spec.nbytes for spec in specs.values())
    report("weights", 0, total, "bytes")
    asked = {
        path: jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=named_sharding(mesh, spec.axes))
        for path, spec in specs.items()
    }
    try:
        with ocp.StandardCheckpointer() as orbax:
            flat = jax.block_until_ready(orbax.restore((checkpoint.path / PARAMS).absolute(), asked))
    except (ValueError, OSError, KeyError) as error:
        raise bad_checkpoint(checkpoint.path / PARAMS, [str(error)]) from error
    report("weights", total, total, "bytes")
    return _nested(flat)


def check_leaves(model: Model | Embedder, checkpoint: ConvertedCheckpoint) -> None:
    """Raises WeightsError where the arrays are for another engine."""
    specs = flat_params(model.param_specs)
    wanted = {path: Leaf(tuple(spec.shape), str(jnp.dtype(spec.dtype))) for path, spec in specs.items()}
    if wanted != checkpoint.leaves:
        others = sum(
            wanted.get(path) != checkpoint.leaves.get(path) for path in wanted.keys() | checkpoint.leaves.keys()
        )
        why = f"was converted for {checkpoint.made}, and {others} arrays would be others here: load it so, or convert again"
        raise bad_checkpoint(checkpoint.path, [why])


def flat_params(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by their keys with dots between them."""
    if not isinstance(tree, Mapping):
        return {prefix.removesuffix("."): tree}
    return {path: leaf for key, part in tree.items() for path, leaf in flat_params(part, f"{prefix}{key}.").items()}


def _nested(flat: Mapping[str, Any]) -> Params:
    params: dict[str | int, Any] = {}
    for path, leaf in flat.items():
        *keys, name = path.split(".")
        mapping.place(params, tuple(int(key) if key.isdigit() else key for key in keys), {name: leaf})
    return params
