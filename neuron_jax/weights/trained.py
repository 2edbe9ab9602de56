"""Parameters that were trained here, as a checkpoint that engines of this host load; knows jax, must not know processes.

Training needs the arrays as XLA computes with them, in floats: those of `models.build(config)`. An engine on a CPU has the
native kernels' tiles in their place.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from models import mapping
from models.dense.build import TABLES
from models.mapping import Rule
from models.native import library
from models.registry import build
from models.spec import Params
from models.storage import Array
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.converted import LayoutKey, describe_params
from neuron_jax.weights.describe import describe
from neuron_jax.weights.orbax_params import flat_params, save_params
from neuron_jax.weights.rest import write_rest


def save_trained(params: Params, source: Path, folder: Path) -> Path:
    """Writes `params`, float32 arrays of the model at `source` on one device, into `folder`, which is made anew: config,
    tokenizer and the rest as there, the arrays by Orbax. An engine with quant = "none" can load it, and swap it in.
    """
    native = jax.default_backend() == "cpu" and library.unavailable() is None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with open_checkpoint(source) as checkpoint:
        write_rest(describe(source), checkpoint.config, folder)
        if native:
            params = _tiled(params, checkpoint.config)
        made = LayoutKey("none", "float32", tensor_parallel=1, native=native)
        describe_params(folder, made, checkpoint, save_params(params, folder))
    return folder


def _tiled(params: Params, config: Mapping[str, Any]) -> Params:
    """The same for the native kernels."""
    model = build(config, quant="none", dtype=np.float32, native=True, storage={})
    rules = [rule for rule in model.rules if isinstance(rule, Rule) and rule.path in model.tiles]
    matrices = {
        rule.path: rule for rule in sorted(rules, key=lambda rule: len(rule.shape))
    }  # not the bias of the same path
    flat = {path: np.asarray(leaf) for path, leaf in flat_params(params).items()}
    tiled: Params = {}
    for path, leaf in flat.items():
        where, _, name = path.rpartition(".")
        rule = matrices.get(where)
        keys = tuple(int(key) if key.isdigit() else key for key in where.split("."))
        if rule is None or name != "kernel":
            mapping.place(tiled, keys, {name: leaf})
        else:
            mapping.place(tiled, keys, {"matrix": model.tiles[where].pack(_outputs_first(rule, leaf))})
    return tiled


def _outputs_first(rule: Rule, kernel: Array) -> Array:
    """A kernel as the checkpoint's matrix stands: XLA has in-dimensions first, but of tables."""
    if rule.path in TABLES:
        return kernel
    return np.ascontiguousarray(np.moveaxis(kernel, range(rule.inputs), range(-rule.inputs, 0)))
