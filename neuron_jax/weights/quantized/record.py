"""What a way of storing is given and what it makes of it; knows names and arrays, must not know files or formats."""

from collections.abc import Callable, Mapping
from typing import Any

from attrs import Factory, frozen

from models.storage import Array, Blocks, Storage
from neuron_jax.weights.spec import TensorInfo


@frozen
class Files:
    """The tensors of a checkpoint as they lie in its files: by name, and read by name in the files' own dtype."""

    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], Array]


@frozen
class Joined:
    """One tensor in the family's terms; `parts` are all names in the files that it takes, `read` gives `storage`."""

    name: str
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    storage: Storage
    read: Callable[[], Blocks | Array]


@frozen
class Found:
    """What a way of storing made of a checkpoint. `spare`: tensors of zeros that a family may do without."""

    joined: list[Joined] = Factory(list)
    misfits: list[str] = Factory(list)
    dropped: set[str] = Factory(set)
    spare: set[str] = Factory(set)


Settings = Mapping[str, Any]
"""`quantization_config` of a config.json."""


WORDS, FLOATS = ("I32",), ("F16", "BF16", "F32")
"""What packed codes and scales are."""


class MisfitError(Exception):
    """A tensor that is not as its format says; gathered with those of the others."""


def expect(files: Files, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """Raises MisfitError unless a tensor is there in this shape and one of these dtypes."""
    if name not in files.tensors:
        raise MisfitError(f"{name} {shape} is missing")
    found = files.tensors[name]
    if found.shape != shape or found.dtype not in dtypes:
        raise MisfitError(f"{name} is {found.dtype} {found.shape}, must be {' or '.join(dtypes)} {shape}")


def packed_sizes(files: Files, packed: str, scales: str) -> tuple[int, int, int]:
    """Both sizes of a packed matrix, and the first one of its scales, which is the number of groups. Raises MisfitError."""
    for name in (packed, scales):
        if name not in files.tensors:
            raise MisfitError(f"{name} is missing")
        if len(shape := files.tensors[name].shape) != 2 or 0 in shape:
            raise MisfitError(f"{name} is {shape}, must be a matrix")
    first, second = files.tensors[packed].shape
    return first, second, files.tensors[scales].shape[0]


def group_size(name: str, columns: int, groups: int) -> int:
    """Columns of a group, where all but the last are as large. Raises MisfitError where so many groups cannot be."""
    size = -(-columns // groups)
    if -(-columns // size) != groups:
        raise MisfitError(f"{name} has {groups} groups for {columns} columns")
    return size


def parts_of(files: Files, *names: str) -> tuple[str, ...]:
    """Those that are there."""
    return tuple(name for name in names if name in files.tensors)


def gather(stems: list[str], join: Callable[[str], Joined]) -> Found:
    """`join` of every stem, with the misfits of those that it cannot join."""
    found = Found()
    for stem in stems:
        try:
            found.joined.append(join(stem))
        except MisfitError as error:
            found.misfits.append(str(error))
    return found


def stems_of(files: Files, suffix: str, dtypes: tuple[str, ...]) -> list[str]:
    """Names without `suffix` of the tensors that have it and one of these dtypes."""
    return [
        name.removesuffix(suffix)
        for name, info in files.tensors.items()
        if name.endswith(suffix) and info.dtype in dtypes
    ]
