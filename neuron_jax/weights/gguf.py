"""The GGUF container: header, metadata and tensors of one file or of several; must not know any architecture.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from attrs import frozen

from models.storage import Array, Blocks, Storage
from neuron_jax.weights import gguf_formats
from neuron_jax.weights.errors import WeightsError, bad_checkpoint
from neuron_jax.weights.gguf_parts import part_names
from neuron_jax.weights.reading import open_file, read_into

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
_BEGINNING = 1 << 18
_MAX_VALUES = 1 << 24
"""Of one array in the header. The largest vocabularies known have some 300,000 tokens, and some more merges."""
_MAX_DEPTH = 8
"""Of arrays within arrays, which the format allows and nobody is known to use."""
_CHUNK = 1 << 20
"""Bytes unpacked at a time: the intermediate arrays of a few of these stay in a CPU's cache."""
_SCALARS = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}


class _TruncatedError(Exception):
    """The header wants bytes behind the end of the file."""


class _MalformedError(Exception):
    """The header says something that no GGUF file says."""


class _Cursor:
    """Reads little-endian values one after another."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise _TruncatedError
        chunk = self.data[self.at : end]
        self.at = end
        return chunk

    def scalar(self, kind: int) -> Any:
        if kind not in _SCALARS:
            raise _MalformedError(f"value type {kind} at byte {self.at}")
        packed = _SCALARS[kind]
        return packed.unpack(self.take(packed.size))[0]

    def string(self) -> str:
        try:
            return self.take(self.scalar(10)).decode()
        except UnicodeDecodeError as error:
            raise _MalformedError(f"a string before byte {self.at} is not UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        return self.array(depth) if kind == _ARRAY else self.scalar(kind)

    def array(self, depth: int) -> list[Any]:
        kind, count = self.scalar(4), self.scalar(10)
        if count > len(self.data):
            raise _TruncatedError
        if count > _MAX_VALUES or depth > _MAX_DEPTH:
            raise _MalformedError(f"an array of {count} values, {depth} deep in others, before byte {self.at}")
        if kind in _SCALARS:
            packed = struct.Struct(f"<{count}{_SCALARS[kind].format[-1]}")
            return list(packed.unpack(self.take(packed.size)))
        return [self.value(kind, depth + 1) for _ in range(count)]


@frozen
class GgufTensor:
    """One entry of a tensor table; `shape` is in numpy's order, `offset` from the start of file number `part`."""

    name: str
    shape: tuple[int, ...]
    kind: int
    part: int
    offset: int

    @property
    def format(self) -> gguf_formats.BlockFormat:
        return gguf_formats.FORMATS[self.kind]

    @property
    def storage(self) -> Storage:
        return self.format.storage

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.format.weights * self.format.size


def first_values(path: Path) -> tuple[str | None, Any]:
    """`general.architecture` and its `pooling_type`, None for what is not there. All files that are known have them before the
    vocabulary, which is not read."""
    found: dict[str, Any] = {}
    with path.open("rb") as file:
        cursor = _Cursor(file.read(_BEGINNING))
    # What is wrong with it is told when it is opened.
    with suppress(_TruncatedError, _MalformedError):
        magic, _, _, count = cursor.take(len(_MAGIC)), cursor.scalar(4), cursor.scalar(10), cursor.scalar(10)
        for _ in range(count if magic == _MAGIC else 0):
            key = cursor.string()
            found[key] = cursor.value(cursor.scalar(4))
    architecture = found.get("general.architecture")
    return (architecture if isinstance(architecture, str) else None), found.get(f"{architecture}.pooling_type")


class GgufFile:
    """An open GGUF model. `metadata` values are Python scalars, strings and lists. Close it, or use `with`."""

    def __init__(self, path: Path) -> None:
        """`path` may be any of a model's files. Raises WeightsError listing all that is wrong with the headers and the
        extents of the tensors."""
        self._open = ExitStack()
        try:
            self._files, self.metadata, self.tensors = _scan(path, self._open)
        except BaseException:
            self._open.close()
            raise

    def read(self, tensor: GgufTensor) -> Blocks | Array:
        """One tensor as it is stored, in memory of its own; the rows of blocks are all axes but the last."""
        if not tensor.storage.coded:
            values = np.empty(tensor.shape, tensor.storage.dtype)
            read_into(self._files[tensor.part], tensor.offset, values)
            return values
        return self._read_blocks(tensor)

    def _read_blocks(self, tensor: GgufTensor) -> Blocks:
        rows, columns = prod(tensor.shape[:-1]), tensor.shape[-1]
        found = Blocks.zeros(rows, columns, tensor.storage)
        row_bytes = columns // tensor.format.weights * tensor.format.size
        step = max(1, _CHUNK // row_bytes)
        raw = np.empty((step, row_bytes), np.uint8)
        for first in range(0, rows, step):
            part = raw[: min(step, rows - first)]
            read_into(self._files[tensor.part], tensor.offset + first * row_bytes, part)
            gguf_formats.unpack_into(found, slice(first, first + len(part)), tensor.format, part)
        return found

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _scan(path: Path, stack: ExitStack) -> tuple[list[BinaryIO], dict[str, Any], dict[str, GgufTensor]]:
    """The open files, the first one's metadata, and the tensors of all."""
    files: list[BinaryIO] = []
    metadata: dict[str, Any] = {}
    tensors: dict[str, GgufTensor] = {}
    misfits: list[str] = []
    names = part_names(path.name)
    for part, name in enumerate(names):
        try:
            files.append(stack.enter_context(open_file(path.with_name(name))))
            # Mapped for the header only: pages of tensors would count as memory of this process once they were read.
            with _map(path, files[-1]) as header:
                said, found = _header(path, part, header)
        except WeightsError as error:
            misfits += [f"{name}: {row}" if len(names) > 1 else row for row in error.extras["misfits"]]
            continue
        misfits += [f"{tensor} is in {name} and in another file" for tensor in found.keys() & tensors.keys()]
        metadata, tensors = metadata or said, tensors | found
    count = metadata.get("split.count", 1)
    if not misfits and not isinstance(count, int):
        misfits.append(f"split.count is {count!r}, must be a number of files")
    if not misfits and count > 1 and len(names) == 1:
        misfits.append(f"it is one of {count} files, which must be named ...-00001-of-{count:05}.gguf and so on")
    if misfits:
        raise bad_checkpoint(path, misfits)
    return files, metadata, tensors


def _map(path: Path, file: BinaryIO) -> mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise bad_checkpoint(path, [f"cannot be read: {error}"]) from error


def _header(path: Path, part: int, data: mmap.mmap) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    cursor = _Cursor(data)
    try:
        count, metadata = _metadata(cursor)
        listed = list(_tensors(cursor, count))
    except _TruncatedError:
        raise bad_checkpoint(path, [f"cut short: {len(data)} bytes end within the header"]) from None
    except _MalformedError as error:
        raise bad_checkpoint(path, [f"not a usable GGUF file: {error}"]) from error
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    start = -(-cursor.at // alignment) * alignment
    tensors = {name: GgufTensor(name, shape, kind, part, start + offset) for name, shape, kind, offset in listed}
    misfits = [row for tensor in tensors.values() for row in _tensor_misfits(tensor, len(data))]
    if len(tensors) < len(listed):
        misfits.append(f"tensors are named twice: {', '.join(_twice(name for name, *_ in listed))}")
    if misfits := misfits or _overlaps(tensors.values()):
        raise bad_checkpoint(path, misfits)
    return metadata, tensors


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _overlaps(tensors: Iterable[GgufTensor]) -> list[str]:
    """Tensors that begin within another: one of the two has bytes that are not its own."""
    spans = sorted((one.offset, one.offset + one.nbytes, one.name) for one in tensors if one.nbytes)
    return [f"{name} begins within {before}" for (_, end, before), (begin, _, name) in pairwise(spans) if begin < end]


def _metadata(cursor: _Cursor) -> tuple[int, dict[str, Any]]:
    magic = cursor.take(len(_MAGIC))
    if magic != _MAGIC:
        raise _MalformedError(f"it starts with {magic!r}, not {_MAGIC!r}")
    version = cursor.scalar(4)
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise _MalformedError("it is big-endian, and only little-endian files can be read")
    if version not in _VERSIONS:
        raise _MalformedError(f"version {version}; readable are {', '.join(map(str, _VERSIONS))}")
    tensors, pairs = cursor.scalar(10), cursor.scalar(10)
    metadata = {}
    for _ in range(pairs):
        key = cursor.string()
        if key in metadata:
            raise _MalformedError(f"{key} is there twice")
        metadata[key] = cursor.value(cursor.scalar(4))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _MalformedError(f"general.alignment is {alignment!r}")
    return tensors, metadata


def _tensors(cursor: _Cursor, count: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    for _ in range(count):
        name = cursor.string()
        dimensions = cursor.scalar(4)
        if dimensions > _MAX_DIMENSIONS:
            raise _MalformedError(f"{name} has {dimensions} dimensions")
        shape = tuple(cursor.scalar(10) for _ in range(dimensions))[::-1]
        yield name, shape, cursor.scalar(4), cursor.scalar(10)


def _tensor_misfits(tensor: GgufTensor, file_size: int) -> list[str]:
    if tensor.kind not in gguf_formats.FORMATS:
        known = ", ".join(block.name for block in gguf_formats.FORMATS.values())
        return [f"{tensor.name} has ggml type {tensor.kind}; readable are {known}"]
    if not tensor.shape or tensor.shape[-1] % tensor.format.weights:
        return [f"{tensor.name} {tensor.shape} is not made of whole {tensor.format.name} blocks"]
    end = tensor.offset + tensor.nbytes
    return [f"cut short: {tensor.name} ends at byte {end} of {file_size}"] if end > file_size else []
