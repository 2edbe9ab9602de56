"""Adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors; knows files, must not know jax or layouts.

https://huggingface.co/docs/peft/developer_guides/checkpoint. Of each adapted map there are
`base_model.model.<its name>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r]. Together they add B A * alpha / r.
"""

import math
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from models.storage import Array
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.safetensors import SafetensorsFolder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<map>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
REFUSED = (
    "use_dora",
    "modules_to_save",
    "layer_replication",
    "fan_in_fan_out",
    "megatron_config",
    "trainable_token_indices",
)
"""Keys of the config that ask for something else than a product beside a map."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder is such an adapter."""
    return (folder / CONFIG).is_file()


def read_adapter(folder: Path) -> dict[str, tuple[Array, Array]]:
    """By name of the tensor that they stand beside: A float32 [r, in], and B [out, r] times what it is scaled with.

    Raises WeightsError with all misfits.
    """
    if not is_adapter(folder):
        raise bad_checkpoint(folder, [f"has no {CONFIG}"])
    with closing(SafetensorsFolder(folder, config=CONFIG)) as files:
        if misfits := _refusals(files.config):
            raise bad_checkpoint(folder / CONFIG, misfits)
        found = {name: _TENSOR.fullmatch(name) for name in files.tensors}
        misfits = [f"{name} is no half of a low-rank product" for name, match in found.items() if match is None]
        halves: dict[str, dict[str, Array]] = {}
        for name, match in found.items():
            if match is not None:
                halves.setdefault(match["map"], {})[match["half"]] = files.array(name).astype(np.float32)
        config = files.config
    misfits += [f"{name} has only one half" for name, pair in halves.items() if len(pair) < 2]
    if misfits or not halves:
        raise bad_checkpoint(folder, misfits or ["has no tensors"])
    return {f"{name}.weight": (pair["A"], pair["B"] * _scale(config, name)) for name, pair in halves.items()}


def _refusals(config: Mapping[str, Any]) -> list[str]:
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    wrong = [f"peft_type is {kind!r}; LORA is served"] if kind != "LORA" else []
    wrong += [f"bias is {bias!r}; none is served"] if bias != "none" else []
    return wrong + [f"{key} is not served" for key in REFUSED if config.get(key)]


def _scale(config: Mapping[str, Any], name: str) -> np.float32:
    rank = _pattern(config, "rank_pattern", name, config.get("r", 8))
    alpha = _pattern(config, "alpha_pattern", name, config.get("lora_alpha", 8))
    return np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern(config: Mapping[str, Any], key: str, name: str, usual: float) -> float:
    """Of the map `name`: that of the first pattern that its name ends with, as PEFT has it."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return float(value)
    return usual
