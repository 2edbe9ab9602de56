"""Checkpoints in the layout that an engine serves, as `neuron convert` writes them; knows folders, must not know jax.

config.json, the tokenizer's files and what else describes the model, as in any folder
converted.json    what it was made for, the tensors that it was made of, its arrays and files
params/           the arrays, by Orbax
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, Self

import msgspec
from attrs import frozen

from models.storage import Storage
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.reading import read_whole
from neuron_jax.weights.safetensors import read_json
from neuron_jax.weights.spec import Checkpoint, TensorInfo

DESCRIPTION, PARAMS = "converted.json", "params"
_VERSION = 2
"""2: codes of the native kernels' tiles lie four columns together."""


@frozen
class LayoutKey:
    """What decides the layout: how weights are kept, the type of what is not quantized, for how many devices of which kind."""

    quant: str
    dtype: str
    tensor_parallel: int
    native: bool  # in the tiles of the native CPU kernels
    expert_parallel: int = 1

    def __str__(self) -> str:
        kernels = "the native kernels" if self.native else "XLA"
        experts = f"expert_parallel = {self.expert_parallel}, " if self.expert_parallel > 1 else ""
        return f"quant = {self.quant!r}, {self.dtype}, tensor_parallel = {self.tensor_parallel}, {experts}{kernels}"


@frozen
class Leaf:
    """One array of the parameters."""

    shape: tuple[int, ...]
    dtype: str


class _Tensor(msgspec.Struct):
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    storage: Storage


class _Description(msgspec.Struct):
    version: int
    made: LayoutKey
    tensors: dict[str, _Tensor]
    leaves: dict[str, Leaf]
    files: dict[str, int]


def is_converted(folder: Path) -> bool:
    """Whether a folder is such a checkpoint."""
    return (folder / DESCRIPTION).is_file()


def describe_params(folder: Path, made: LayoutKey, checkpoint: Checkpoint, leaves: Mapping[str, Leaf]) -> None:
    """Write `converted.json` beside the arrays that were made of `checkpoint`."""
    tensors = {
        name: _Tensor(info.shape, info.dtype, info.nbytes, checkpoint.storage[name])
        for name, info in checkpoint.tensors.items()
    }
    said = _Description(_VERSION, made, tensors, dict(leaves), _sizes(folder))
    (folder / DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(said)))


class ConvertedCheckpoint:
    """Such a folder as a `Checkpoint` whose parameters are made already: see `neuron_jax.weights.place`."""

    spare: frozenset[str] = frozenset()

    def __init__(self, folder: Path) -> None:
        """Raises WeightsError listing what is missing or cut."""
        self.path = folder
        self.config: Mapping[str, Any] = read_json(folder / "config.json")
        try:
            said = msgspec.json.decode(read_whole(folder / DESCRIPTION), type=_Description)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise bad_checkpoint(folder / DESCRIPTION, [f"not such a description: {error}"]) from error
        if said.version != _VERSION:
            raise bad_checkpoint(
                folder, [f"of version {said.version}, readable is {_VERSION}: convert the model again"]
            )
        there = _sizes(folder)
        if wrong := [
            _misfit(name, size, there.get(name)) for name, size in said.files.items() if there.get(name) != size
        ]:
            raise bad_checkpoint(folder, wrong)
        self.made, self.leaves = said.made, said.leaves
        self.tensors = {name: TensorInfo(name, one.shape, one.dtype, one.nbytes) for name, one in said.tensors.items()}
        self.storage = {name: one.storage for name, one in said.tensors.items()}

    def stored(self, name: str) -> NoReturn:
        """It has none of the tensors that it was made of."""
        raise bad_checkpoint(self.path, [f"was converted ({self.made}) and has no {name} any more"])

    read = stored

    def close(self) -> None:
        """Nothing is held open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _sizes(folder: Path) -> dict[str, int]:
    files = [file for file in sorted((folder / PARAMS).rglob("*")) if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _misfit(name: str, size: int, found: int | None) -> str:
    return f"{name} is not there" if found is None else f"{name} has {found} bytes, must have {size}"
