"""Weights under a checkpoint's names, adapters beside them, and the same merged by numpy; knows rules, no files but PEFT's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import mapping
from models.mapping import Rule
from models.spec import Model
from models.storage import Array, storage_of
from tests.fakes.weight_files import write_safetensors

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Pairs = Mapping[str, tuple[Array, Array]]


def tensors_of(model: Model) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    parts = [part for rule in model.rules if isinstance(rule, Rule) for part in rule.parts]
    return {part.name: (rng.standard_normal(part.shape) * 0.2).astype(np.float32) for part in parts}


def params_of(model: Model, tensors: Mapping[str, Array]) -> Any:
    params: Any = {}
    stored = {name: storage_of(tensor.dtype) for name, tensor in tensors.items()}
    for rule in mapping.check(model.rules, {name: tensor.shape for name, tensor in tensors.items()}):
        mapping.place(params, rule.keys, rule.assemble(tensors.__getitem__, rule.storage(stored)))
    return jax.tree.map(jnp.asarray, params)


def adapter_of(tensors: Mapping[str, Array], seed: int, rank: int, *ends: str) -> dict[str, tuple[Array, Array]]:
    """One beside every matrix whose name ends so, those of experts aside."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (rng.standard_normal(shape) * 0.3).astype(np.float32)
    every = tuple(f"{end}.weight" for end in ends)
    wanted = {name: one.shape for name, one in tensors.items() if name.endswith(every) and ".experts." not in name}
    return {name: (draw(rank, inputs), draw(outputs, rank)) for name, (outputs, inputs) in wanted.items()}


def merged(tensors: Mapping[str, Array], adapter: Pairs) -> dict[str, Array]:
    """W + B A, in float32."""
    return {**tensors, **{name: tensors[name] + up @ down for name, (down, up) in adapter.items()}}


def write_peft(folder: Path, adapter: Pairs, **config: Any) -> Path:
    """As PEFT saves it, unscaled: lora_alpha is the rank."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = next(iter(adapter.values()))[0].shape[0]
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    stems = {name: f"base_model.model.{name.removesuffix('.weight')}" for name in adapter}
    halves = {f"{stems[name]}.lora_A.weight": down for name, (down, _) in adapter.items()}
    halves |= {f"{stems[name]}.lora_B.weight": up for name, (_, up) in adapter.items()}
    write_safetensors(folder / "adapter_model.safetensors", halves)
    return folder
