"""Opens weights on disk by what they are; must not know formats, sources or jax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.storage import Storage
from models.wrapper import text_config
from neuron_jax.weights.converted import ConvertedCheckpoint, is_converted
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.gguf_checkpoint import GgufCheckpoint
from neuron_jax.weights.modules import read_modules
from neuron_jax.weights.quantized.checkpoint import FolderCheckpoint
from neuron_jax.weights.safetensors import read_json
from neuron_jax.weights.spec import Checkpoint, TensorInfo
from neuron_jax.weights.text_part import text_part

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint", "read_config"]


def read_config(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Storage] | None]:
    """The config of what `open_checkpoint` takes and what its tensors are stored as, by name; None where a folder holds
    nothing but a config.json.

    Raises WeightsError.
    """
    if path.is_dir() and not is_converted(path) and not any(path.glob("*.safetensors*")):
        return text_config(read_json(path / "config.json")), None
    with open_checkpoint(path) as checkpoint:
        return checkpoint.config, checkpoint.storage


def open_checkpoint(path: Path) -> Checkpoint:
    """A .gguf file, or a folder with config.json and safetensors or converted parameters.

    Raises WeightsError listing all misfits.
    """
    if path.is_dir() and is_converted(path):
        return ConvertedCheckpoint(path)
    if path.is_dir():
        return text_part(FolderCheckpoint(path, read_modules(path)))
    if path.is_file():
        return GgufCheckpoint(path)
    raise bad_checkpoint(path, ["neither a folder nor a file"])
