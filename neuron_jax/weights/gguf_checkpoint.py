"""GGUF files in the terms of their families' own checkpoints: config keys, tensor names, row order; must not know jax.

What differs between architectures is data that `models.registry` has (see `models.gguf`); no architecture is known here.
"""

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from models.config import is_positive
from models.errors import ModelError
from models.gguf import UNREAD, Changed, GgufTable, Order
from models.pooling import modules_of_gguf
from models.registry import gguf_tables, read
from models.storage import FLOAT32, Array, Blocks, Storage
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.gguf import GgufFile, GgufTensor
from neuron_jax.weights.spec import TensorInfo

_ARCHITECTURE = "general.architecture"
_ROPE_FACTORS = "rope_freqs.weight"
_SHORT_FACTORS, _LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
_DIVISORS = {_ROPE_FACTORS, _SHORT_FACTORS, _LONG_FACTORS}
_SCALING = {
    "factor": "factor",
    "original_context_length": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
"""Metadata of rope.scaling, and keys of config.json's rope_scaling."""
_EMBEDDINGS, _HEAD = "token_embd.weight", "output.weight"
_LAYER = re.compile(r"blk\.(\d+)\.")


class GgufCheckpoint:
    """A GGUF file as a `Checkpoint`. `metadata` is the file's own header."""

    spare: frozenset[str] = frozenset()

    def __init__(self, path: Path) -> None:
        """Raises WeightsError when the file is damaged or of an architecture that no family has."""
        self.path = path
        self._file = GgufFile(path)
        try:
            self.metadata: Mapping[str, Any] = self._file.metadata
            self._table = _table(path, self.metadata)
            self.config = _config(path, self._file, self._table)
            if self._table.changed:
                _check(path, self.config)  # before anything is put in an order that its sizes give
        except BaseException:
            self._file.close()
            raise
        tensors = {name: tensor for name, tensor in self._file.tensors.items() if name not in _DIVISORS}
        self._by_name = {own_name(self._table, name): tensor for name, tensor in tensors.items()}
        self._undo = {name: undo for name in self._by_name if (undo := self._table.changed.get(_whole(name)))}
        self.tensors = {name: self._info(name, tensor) for name, tensor in self._by_name.items()}
        self.storage: Mapping[str, Storage] = {
            name: FLOAT32 if _stem(name) in self._table.plus_one else self._storage(name, tensor)
            for name, tensor in self._by_name.items()
        }

    def stored(self, name: str) -> Blocks | Array:
        """See `Checkpoint`. Rows come in the order of the family's own checkpoints, whatever the file has."""
        tensor, stem = self._file.read(self._by_name[name]), _stem(name)
        if stem in self._table.plus_one:
            return _floats(tensor).reshape(self.tensors[name].shape) - np.float32(1)
        if name in self._undo:
            tensor = tensor if self.storage[name] == self._by_name[name].storage else _floats(tensor)
            return undone(tensor, self._undo[name], self.config, self.tensors[name].shape)
        if stem not in self._table.neighbours:
            return tensor
        heads = self.config[self._table.neighbours[stem]]
        if isinstance(tensor, Blocks):
            return tensor.by_rows(lambda rows: halves_from_pairs(rows, heads))
        return halves_from_pairs(tensor, heads)

    def read(self, name: str) -> Array:
        """See `Checkpoint`."""
        tensor = self.stored(name)
        return tensor.dequantize().reshape(self.tensors[name].shape) if isinstance(tensor, Blocks) else tensor

    def close(self) -> None:
        self._file.close()

    def _info(self, name: str, tensor: GgufTensor) -> TensorInfo:
        shape = tensor.shape
        if name in self._undo and (one := self._undo[name].one) is not None:
            shape = (*shape[:one], 1, *shape[one:])
        if name in self._undo and self._undo[name].flat:
            shape = (prod(shape),)
        return TensorInfo(name, shape, tensor.format.name, tensor.nbytes)

    def _storage(self, name: str, tensor: GgufTensor) -> Storage:
        """As the file's, but for what cannot be undone block by block."""
        undo = self._undo.get(name)
        if undo is None or not tensor.storage.coded:
            return tensor.storage
        by_groups = undo.columns is None or _by_groups(undo.columns(self.config), tensor.storage.group) is not None
        moved = undo.values is not None or undo.one is not None or undo.flat
        return tensor.storage if by_groups and not moved else FLOAT32

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def halves_from_pairs(rows: Array, heads: int) -> Array:
    """Undo the row order of llama.cpp's q and k: there the rotary pairs (i, i + H/2) of a head lie side by side."""
    width = rows.shape[0] // heads
    pairs = rows.reshape(heads, width // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(np.swapaxes(pairs, 1, 2)).reshape(rows.shape)


def undone(tensor: Blocks | Array, undo: Changed, config: Mapping[str, Any], shape: tuple[int, ...]) -> Blocks | Array:
    """The family's own tensor, of `shape`. Blocks stay blocks."""
    rows = None if undo.rows is None else undo.rows(config)
    columns = None if undo.columns is None else undo.columns(config)
    if isinstance(tensor, Blocks):
        tensor = tensor if rows is None else tensor.by_rows(lambda array: array[rows])
        return tensor if columns is None else _with_columns(tensor, columns)
    tensor = tensor if rows is None else tensor[rows]
    tensor = tensor if columns is None else tensor[:, columns]
    tensor = tensor if undo.values is None else undo.values(_floats(tensor))
    return np.ascontiguousarray(tensor).reshape(shape)


def _with_columns(blocks: Blocks, order: Order) -> Blocks:
    groups = _by_groups(order, blocks.storage.group)
    assert groups is not None, "columns that leave their groups"
    scale = np.ascontiguousarray(blocks.scale[:, groups])
    offset = None if blocks.offset is None else np.ascontiguousarray(blocks.offset[:, groups])
    return Blocks(np.ascontiguousarray(blocks.codes[:, order]), scale, offset, blocks.storage)


def _by_groups(order: Order, group: int) -> Order | None:
    """An order of columns as one of whole groups of them; None where a column leaves its group."""
    if len(order) % group:
        return None
    first = order[::group]
    whole = not (first % group).any() and np.array_equal(order, (first[:, None] + np.arange(group)).ravel())
    return first // group if whole else None


def own_name(table: GgufTable, name: str) -> str:
    """The family's name of a GGUF tensor; a name without one stays, and the checkpoint's user will not know it."""
    layer = _LAYER.match(name)
    key = name if layer is None else _LAYER.sub("blk.{}.", name, count=1)
    stem, _, kind = key.rpartition(".")
    if key in table.tensors:
        found = table.tensors[key]
    elif stem in table.tensors:
        found = f"{table.tensors[stem]}.{kind}"
    else:
        return name
    return found if layer is None else found.format(layer.group(1))


def _stem(name: str) -> str:
    """As in a table: the family's name without its kind, `{}` for the number of a layer."""
    return re.sub(r"\.\d+\.", ".{}.", name.rpartition(".")[0], count=1)


def _whole(name: str) -> str:
    """The family's name with `{}` for the number of a layer."""
    return re.sub(r"\.\d+\.", ".{}.", name, count=1)


def _table(path: Path, header: Mapping[str, Any]) -> GgufTable:
    tables, found = gguf_tables(), header.get(_ARCHITECTURE)
    if not isinstance(found, str) or found not in tables:
        known = ", ".join(map(repr, sorted(tables)))
        why = f" ({UNREAD[found]})" if isinstance(found, str) and found in UNREAD else ""
        raise bad_checkpoint(path, [f"{_ARCHITECTURE} is {found!r}, which is not served{why}; served are {known}"])
    return tables[found]


def _config(path: Path, file: GgufFile, table: GgufTable) -> dict[str, Any]:
    """The header as a config.json."""
    prefix = f"{table.architecture}."
    header = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    numbers = {**table.required, **table.optional}
    misfits = [f"{prefix}{key} is missing" for key in table.required if key not in header]
    misfits += [
        f"{prefix}{key} is {header[key]!r}, must be a positive number"
        for key in (*numbers, "rope.dimension_count")
        if key in header and not is_positive(header[key])
    ]
    misfits += [] if _EMBEDDINGS in file.tensors else [f"tensor {_EMBEDDINGS} is missing"]
    misfits += [f"{prefix}{key} is {header[key]}; {why}" for key, why in table.refused.items() if header.get(key)]
    if misfits:
        raise bad_checkpoint(path, misfits)
    said = {own: header[key] for key, own in {**numbers, **table.other}.items() if key in header}
    if (kinds := file.metadata.get("tokenizer.ggml.token_type_count")) is not None:
        said["type_vocab_size"] = kinds
    flags = {key: tensor in file.tensors for key, tensor in table.flags.items()}
    whole = {
        **modules_of_gguf(header.get("pooling_type", table.pooling or 0)),
        "vocab_size": file.tensors[_EMBEDDINGS].shape[0],
        "tie_word_embeddings": _HEAD not in file.tensors,
        "rope_scaling": _rope_scaling(file, header),
        "partial_rotary_factor": _rotary_share(said, header.get("rope.dimension_count")),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.metadata.get("tokenizer.ggml.eos_token_id"),
        **said,
        **flags,
    }
    try:
        return table.finish(whole)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        wanted = ", ".join(prefix + key for key in table.other)
        raise bad_checkpoint(path, [f"of {wanted} one is missing, or is none: {error!r}"]) from error


def _check(path: Path, config: Mapping[str, Any]) -> None:
    """Raises WeightsError with all that the family finds wrong."""
    try:
        read(config)
    except ModelError as error:
        raise bad_checkpoint(path, error.misfits) from error


def _rope_scaling(file: GgufFile, header: Mapping[str, Any]) -> dict[str, Any] | None:
    """GGUF keeps Llama 3's scaling as one divisor per frequency, in a tensor, and LongRoPE's in two."""
    if _ROPE_FACTORS in file.tensors:
        return {"rope_type": "factors", "factors": _divisors(file, _ROPE_FACTORS)}
    if _SHORT_FACTORS in file.tensors:
        sharper = {"attention_factor": header.get("rope.scaling.attn_factor")}
        return {"rope_type": "longrope", "short_factor": _divisors(file, _SHORT_FACTORS), **sharper}
    kind = header.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    said = {own: header[f"rope.scaling.{key}"] for key, own in _SCALING.items() if f"rope.scaling.{key}" in header}
    return {"rope_type": kind, **said}


def _divisors(file: GgufFile, name: str) -> list[float]:
    return [float(factor) for factor in _floats(file.read(file.tensors[name])).ravel()]


def _floats(tensor: Blocks | Array) -> Array:
    return tensor.dequantize() if isinstance(tensor, Blocks) else tensor.astype(np.float32, copy=False)


def _rotary_share(config: Mapping[str, Any], rotated: float | None) -> float:
    head = config.get("head_dim") or config.get("hidden_size", 0) // config.get("num_attention_heads", 1)
    return 1.0 if rotated is None or not head else rotated / head
