"""The files that sentence-transformers writes beside a model's config.json; knows names, must not know what they mean.

modules.json lists what a text goes through; each but the network itself has a folder, with a config.json where it has any.
"""

from pathlib import Path
from typing import Any

import msgspec

from models.pooling import MODULES
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.reading import read_whole
from neuron_jax.weights.safetensors import read_json

FILE = "modules.json"
SETTINGS = "config_sentence_transformers.json"


class _Module(msgspec.Struct):
    type: str
    path: str


def read_modules(folder: Path) -> dict[str, Any]:
    """What modules.json says, for a config, under `models.pooling.MODULES`; empty without one. Raises WeightsError."""
    if not (folder / FILE).is_file():
        return {}
    try:
        modules = msgspec.json.decode(read_whole(folder / FILE), type=list[_Module])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise bad_checkpoint(folder / FILE, [f"not a list of modules: {error}"]) from error
    return {MODULES: [_told(folder, module) for module in modules]}


def read_instruction(folder: Path) -> str | None:
    """What a model is told of its task where a client says nothing: the default of its named prompts, if it has one."""
    file = folder / SETTINGS
    said = read_json(file) if file.is_file() else {}
    prompts, name = said.get("prompts"), said.get("default_prompt_name")
    found = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return found if isinstance(found, str) and found else None


def _told(folder: Path, module: _Module) -> dict[str, Any]:
    if module.path and Path(module.path).name != module.path:
        raise bad_checkpoint(folder / FILE, [f"names {module.path!r}, which is no folder beside it"])
    told = {"type": module.type.rpartition(".")[2]}
    file = folder / module.path / "config.json"
    return {**told, "path": module.path, "config": read_json(file)} if module.path and file.is_file() else told
