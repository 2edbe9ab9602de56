"""Folders of config.json and safetensors, whole or sharded by an index; knows bytes, must not know architectures.

https://huggingface.co/docs/safetensors/index#format
"""

import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import ml_dtypes
import msgspec
import numpy as np
from attrs import evolve, frozen

from models.storage import Array
from neuron_jax.weights.errors import WeightsError, bad_checkpoint
from neuron_jax.weights.reading import open_file, read_bytes, read_into, read_whole
from neuron_jax.weights.spec import TensorInfo

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 100_000_000
"""The format's own bound, of its reference implementation."""
_BUFFER = re.compile(
    r"(.*\.)?(position_ids|masked_bias|rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached))"
)
"""What old versions of transformers kept in a layer, and so in its checkpoints, though it follows from the config."""


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


@frozen
class _Stored:
    """One tensor of one file; `start` from the file's first byte."""

    info: TensorInfo
    start: int
    file: BinaryIO


class SafetensorsFolder:
    """The tensors as they lie in the files, whatever they mean. Files stay open, tensors are read one at a time."""

    def __init__(
        self,
        folder: Path,
        beside: Mapping[str, Any] = MappingProxyType({}),
        *,
        within: Sequence[str] = (),
        config: str = "config.json",
    ) -> None:
        """`beside`: what belongs to the config and stands in other files. `within`: folders in it whose tensors are the
        model's, too, under the folder's name. Raises WeightsError listing all that is wrong with
        the files, `config` included."""
        self._open = ExitStack()
        try:
            self.config = {**read_json(folder / config), **beside}
            self._stored = _scan(folder, self._open)
            for name in within:
                if (folder / name).is_dir():
                    self._stored |= _named(name, _scan(folder / name, self._open))
        except BaseException:
            self._open.close()
            raise
        self.tensors: Mapping[str, TensorInfo] = {name: stored.info for name, stored in self._stored.items()}

    def array(self, name: str) -> Array:
        """One tensor in memory of its own, in its own dtype."""
        stored = self._stored[name]
        values = np.empty(stored.info.shape, _DTYPES[stored.info.dtype])
        read_into(stored.file, stored.start, values)
        return values

    def file_of(self, name: str) -> str:
        """The name of the file that a tensor is in."""
        return Path(self._stored[name].file.name).name

    def close(self) -> None:
        self._open.close()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises WeightsError when it is not there or not an object."""
    try:
        value = json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:
        raise bad_checkpoint(path, [f"not JSON: {error}"]) from error
    if not isinstance(value, dict):
        raise bad_checkpoint(path, ["not a JSON object"])
    return value


def files_of_index(path: Path) -> dict[str, str]:
    """File names by tensor, of an index; all in its own folder. Raises WeightsError."""
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise bad_checkpoint(path, ["weight_map is not an object of file names"])
    if outside := sorted({name for name in where.values() if Path(name).name != name}):
        raise bad_checkpoint(path, [f"weight_map names {outside[0]!r}, which is no file of this folder"])
    return where


def _scan(folder: Path, stack: ExitStack) -> dict[str, _Stored]:
    """Every tensor of the folder by name."""
    where, names = _files(folder)
    stored: dict[str, _Stored] = {}
    misfits: list[str] = []
    for name in names:
        try:
            found = _scan_file(folder / name, stack)
        except WeightsError as error:
            misfits += [f"{name}: {row}" for row in error.extras["misfits"]]
            continue
        misfits += [f"{tensor} is in {name} and in another file" for tensor in found.keys() & stored.keys()]
        stored |= found
        wanted = [key for key, file in where.items() if file == name and not _BUFFER.fullmatch(key)]
        misfits += [f"{name}: {key} is missing" for key in wanted if key not in found]
    if misfits:
        raise bad_checkpoint(folder, misfits)
    return stored


def _named(folder: str, stored: Mapping[str, _Stored]) -> dict[str, _Stored]:
    return {
        f"{folder}.{name}": evolve(one, info=evolve(one.info, name=f"{folder}.{name}")) for name, one in stored.items()
    }


def _files(folder: Path) -> tuple[dict[str, str], list[str]]:
    """What the index says (tensor -> file; empty without one), and the files."""
    if (folder / INDEX).is_file():
        where = files_of_index(folder / INDEX)
        return where, sorted(set(where.values()))
    if (folder / SINGLE).is_file():
        return {}, [SINGLE]
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise bad_checkpoint(folder, [f"has neither {SINGLE} nor {INDEX} nor other safetensors"])
    return {}, names


def _scan_file(path: Path, stack: ExitStack) -> dict[str, _Stored]:
    file = stack.enter_context(open_file(path))
    size = os.fstat(file.fileno()).st_size
    start, header = _header(path, file, size)
    misfits = [row for name, entry in header.items() for row in _misfits(name, entry, size - start)]
    if misfits := misfits or _overlaps(header):
        raise bad_checkpoint(path, misfits)
    return {
        name: _Stored(
            TensorInfo(name, entry.shape, entry.dtype, entry.data_offsets[1] - entry.data_offsets[0]),
            start + entry.data_offsets[0],
            file,
        )
        for name, entry in header.items()
    }


def _header(path: Path, file: BinaryIO, size: int) -> tuple[int, dict[str, _Entry]]:
    """Where the tensors' bytes start, and the table of tensors."""
    if size < _LENGTH.size:
        raise bad_checkpoint(path, [f"cut short: {size} bytes"])
    (length,) = _LENGTH.unpack(read_bytes(file, 0, _LENGTH.size))
    start = _LENGTH.size + length
    if length > _MAX_HEADER:
        raise bad_checkpoint(path, [f"not a safetensors file: its header would have {length} bytes"])
    if start > size:
        raise bad_checkpoint(path, [f"cut short: the header ends at byte {start} of {size}"])
    try:
        table = json.loads(read_bytes(file, _LENGTH.size, length), object_pairs_hook=_once)
        weights = {
            name: entry for name, entry in table.items() if name != "__metadata__" and not _BUFFER.fullmatch(name)
        }
        return start, msgspec.convert(weights, dict[str, _Entry])
    except (ValueError, AttributeError, RecursionError) as error:
        raise bad_checkpoint(path, [f"not a safetensors header: {error}"]) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python's reader would take the last of two entries of one name without a word. Raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is there twice")
    return found


def _overlaps(header: Mapping[str, _Entry]) -> list[str]:
    """Tensors that begin within another, which the format forbids: one of the two has bytes that are not its own."""
    spans = sorted((*entry.data_offsets, name) for name, entry in header.items() if prod(entry.shape))
    return [f"{name} begins within {before}" for (_, end, before), (begin, _, name) in pairwise(spans) if begin < end]


def _misfits(name: str, entry: _Entry, available: int) -> list[str]:
    if entry.dtype not in _DTYPES:
        return [f"{name} has dtype {entry.dtype}; known are {', '.join(_DTYPES)}"]
    begin, end = entry.data_offsets
    if min((*entry.shape, begin)) < 0:
        return [f"{name} has a negative size: shape {list(entry.shape)}, bytes {begin} to {end}"]
    size = prod(entry.shape) * np.dtype(_DTYPES[entry.dtype]).itemsize
    if end - begin != size:
        return [f"{name} {entry.shape} {entry.dtype} takes {size} bytes but has {end - begin}"]
    return [f"cut short: {name} ends at byte {end} of {available}"] if end > available else []
