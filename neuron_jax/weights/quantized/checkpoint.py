"""A folder of safetensors as a `Checkpoint`, whichever way its weights are stored; must not know architectures.

This is the seam: behind it a family sees one tensor where the files have several.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from attrs import evolve

from models.pooling import dense_folders
from models.storage import BFLOAT16, FLOAT16, FLOAT32, Array, Blocks, Storage
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.quantized import awq, compressed, fp8, gptq, mxfp4
from neuron_jax.weights.quantized.record import Files, Found, Joined, MisfitError, Settings
from neuron_jax.weights.safetensors import SafetensorsFolder
from neuron_jax.weights.spec import TensorInfo

WAYS: Mapping[str, Callable[[Settings, Files], Found]] = {
    "awq": awq.find,
    "compressed-tensors": compressed.find,
    "fbgemm_fp8": fp8.find,
    "fp8": fp8.find,
    "gptq": gptq.find,
    "mxfp4": mxfp4.find,
}
"""By `quant_method`."""
FLOATS = {"F32": FLOAT32, "F16": FLOAT16, "BF16": BFLOAT16, "F64": FLOAT32}
_OF_ACTIVATIONS = re.compile(
    r".*\.((input|output|activation)_(scale|scale_ub|zero_point|global_scale)|(q|k|v)_(scale|zero_point))"
)
"""What says how activations, keys and values would be rounded: here they are not."""


class FolderCheckpoint:
    """config.json and safetensors. Files stay open, tensors are read one at a time."""

    def __init__(self, folder: Path, beside: Mapping[str, Any]) -> None:
        """`beside`: see `SafetensorsFolder`. Raises WeightsError listing all that is wrong with the files, or naming a way of
        storing that is not read."""
        self.path = folder
        self._files = SafetensorsFolder(folder, beside, within=dense_folders(beside))
        try:
            found = _find(folder, self._files)
        except BaseException:
            self._files.close()
            raise
        self._joined = {joined.name: joined for joined in found.joined}
        self.config: Mapping[str, Any] = self._files.config
        self.spare = frozenset(found.spare)
        plain = {name: info for name, info in self._files.tensors.items() if name not in found.dropped}
        self.tensors: Mapping[str, TensorInfo] = plain | {
            name: _info(joined, self._files.tensors) for name, joined in self._joined.items()
        }
        self.storage: Mapping[str, Storage] = {name: FLOATS[info.dtype] for name, info in plain.items()} | {
            name: joined.storage for name, joined in self._joined.items()
        }

    def stored(self, name: str) -> Blocks | Array:
        """See `Checkpoint`. float64 comes as float32, which no model needs to exceed."""
        if name not in self._joined:
            return self._files.array(name).astype(self.storage[name].dtype, copy=False)
        try:
            return self._joined[name].read()
        except MisfitError as error:
            raise bad_checkpoint(self.path, [str(error)]) from error

    def read(self, name: str) -> Array:
        """See `Checkpoint`."""
        tensor = self.stored(name)
        return tensor.dequantize().reshape(self.tensors[name].shape) if isinstance(tensor, Blocks) else tensor

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _find(folder: Path, files: SafetensorsFolder) -> Found:
    """What is stored as several tensors; `dropped` has every tensor that is no weight. Raises WeightsError."""
    settings = _settings(files.config)
    found = Found() if not settings else _of_method(settings, Files(files.tensors, files.array))
    taken = {name for joined in found.joined for name in joined.parts}
    dropped = taken | {name for name in files.tensors if settings and _OF_ACTIVATIONS.fullmatch(name)}
    misfits = found.misfits or [
        f"{files.file_of(name)}: {name} has dtype {info.dtype}; readable are {', '.join(FLOATS)}"
        for name, info in files.tensors.items()
        if name not in dropped and info.dtype not in FLOATS
    ]
    if misfits:
        raise bad_checkpoint(folder, misfits)
    return evolve(found, dropped=dropped)


def _settings(config: Mapping[str, Any]) -> Any:
    """How the weights are stored, as the config says it; None where it does not. A wrapper may say it of its text part."""
    inner = config.get("text_config")
    places = (config, inner) if isinstance(inner, Mapping) else (config,)
    said = (place.get(key) for place in places for key in ("quantization_config", "compression_config"))
    return next((found for found in said if found), None)


def _of_method(settings: Any, files: Files) -> Found:
    if not isinstance(settings, Mapping):
        return Found(misfits=[f"quantization_config is {settings!r}, must be an object"])
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in WAYS:
        return Found(misfits=[f"quantization_config.quant_method is {method!r}; readable are {', '.join(WAYS)}"])
    try:
        return WAYS[method](settings, files)
    except MisfitError as error:
        return Found(misfits=[str(error)])


def _info(joined: Joined, files: Mapping[str, TensorInfo]) -> TensorInfo:
    nbytes = sum(files[name].nbytes for name in joined.parts)
    return TensorInfo(joined.name, joined.shape, joined.dtype, nbytes)
