"""From checkpoint tensors to parameters, as data; knows names, shapes and numpy, must not know files or devices.

A `Rule` says how one parameter is assembled: every `Part` is one checkpoint tensor and the place its values take in the
canonical array, which is [*out, *in] for a linear map. Places without a tensor stay zero (padding). `store` turns the
canonical array into the leaves that the family keeps: transposed, quantized or as it is.
Tensors that are stored in blocks may stay so: the canonical thing is then `Blocks` whose rows are the out-dimensions,
flattened, and whose columns are the in-dimensions.
`{}` in names and paths stands for the number of a layer.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from models.errors import ModelError
from models.rounding import int8_by_channel
from models.storage import FLOAT32, Array, Blocks, Storage, storage_of, to_storage

MOST_NAMED = 500
"""Tensors of one misfit: experts are thousands."""

Store = Callable[[Any], dict[str, Array]]
"""Takes the canonical array, or Blocks where the rule's storage is of codes."""

Read = Callable[[str], Array | Blocks]
"""A checkpoint tensor by name, as it is stored."""


def _as_it_is(tensor: Array) -> Array:
    return tensor


@frozen
class Part:
    """Checkpoint tensor `name`, of `shape` there, arranged and put at `index` of the canonical array. Where that has more
    columns, the last ones stay zero.

    `arrange` moves whole rows, whatever their width, unless it `moves_columns`; then blocks cannot stay blocks, for a
    column would leave the group whose scale it has. Of a map with several in-dimensions it then moves columns alone,
    however many rows there are.
    """

    name: str
    shape: tuple[int, ...]
    index: tuple[slice | int, ...] = ()
    arrange: Callable[[Array], Array] = _as_it_is
    moves_columns: bool = False


@frozen
class Rule:
    """The leaves under `path` (dotted; layers by number) come from `parts`, assembled in `shape`.

    `dtype` is that of the canonical array; None keeps the narrowest storage that holds all parts exactly. The last
    `inputs` of the dimensions are in-dimensions. `stacked`: the first of the out-dimensions counts matrices, which are kept
    each by itself. `others` are parts that the same comes from in checkpoints laid out otherwise.
    """

    path: str
    shape: tuple[int, ...]
    dtype: Any
    parts: tuple[Part, ...]
    store: Store
    inputs: int = 1
    stacked: bool = False
    others: tuple[tuple[Part, ...], ...] = ()

    def at(self, layer: int) -> "Rule":
        """The rule of one layer."""
        parts, *others = (
            tuple(evolve(part, name=part.name.format(layer)) for part in each) for each in (self.parts, *self.others)
        )
        return evolve(self, path=self.path.format(layer), parts=parts, others=tuple(others))

    def among(self, names: Collection[str]) -> "Rule":
        """With the parts that a checkpoint of these tensors has the most of, and no others."""
        if not self.others:
            return self
        share = [sum(part.name in names for part in each) / len(each) for each in (self.parts, *self.others)]
        return evolve(self, parts=(self.parts, *self.others)[share.index(max(share))], others=())

    @property
    def keys(self) -> tuple[str | int, ...]:
        """`path` as keys into the nested dict of parameters."""
        return tuple(int(key) if key.isdigit() else key for key in self.path.split("."))

    def storage(self, stored: Mapping[str, Storage]) -> Storage:
        """What `store` will be given, from what the checkpoint's tensors are stored as, by name.

        Of those that are missing `check` tells: here they count as float32.
        """
        if self.dtype is not None:
            return storage_of(self.dtype)
        parts = self.among(stored).parts
        joined = Storage.join(*(stored.get(part.name, FLOAT32) for part in parts))
        return FLOAT32 if joined.coded and any(part.moves_columns for part in parts) else joined

    def assemble(self, read: Read, storage: Storage) -> dict[str, Array]:
        """The finished leaves, by name; `storage` is this rule's. Parts are read and let go one after another."""
        return self.store(self._blocks(read, storage) if storage.coded else self._array(read, storage.dtype))

    def _array(self, read: Read, dtype: np.dtype[Any]) -> Array:
        if self._is_one_tensor:
            (part,) = self.parts
            return part.arrange(_floats(read(part.name), part.shape)).reshape(self.shape).astype(dtype, copy=False)
        whole = np.zeros(self.shape, dtype)
        for part in self.parts:
            _put(whole, part, part.arrange(_floats(read(part.name), part.shape)), self.inputs)
        return whole

    def _blocks(self, read: Read, storage: Storage) -> Blocks:
        outputs = self.shape[: len(self.shape) - self.inputs]
        rows, columns = prod(outputs), prod(self.shape[len(outputs) :])
        if self._is_one_tensor:
            (part,) = self.parts
            return _stored(read(part.name), storage).by_rows(lambda array: part.arrange(array).reshape(rows, -1))
        whole = Blocks.zeros(rows, columns, storage)
        for part in self.parts:
            for target, source in zip(whole.arrays, _stored(read(part.name), storage).arrays, strict=True):
                _put(target.reshape(*outputs, -1, copy=False), part, part.arrange(source), 1)
        return whole

    @property
    def _is_one_tensor(self) -> bool:
        """One part, and nothing to pad: so nothing to copy."""
        return len(self.parts) == 1 and prod(self.parts[0].shape) == prod(self.shape)


def _floats(tensor: Array | Blocks, shape: tuple[int, ...]) -> Array:
    return tensor.dequantize().reshape(shape) if isinstance(tensor, Blocks) else tensor


def _stored(tensor: Array | Blocks, storage: Storage) -> Blocks:
    found = to_storage(tensor, storage)
    assert isinstance(found, Blocks), f"{storage} is not of blocks"
    return found


def _put(whole: Array, part: Part, arranged: Array, inputs: int) -> None:
    place = whole[part.index]
    if arranged.size == place.size:
        whole[part.index] = arranged.reshape(place.shape)
        return
    rows, columns = place.shape[: place.ndim - inputs], arranged.shape[-1]
    place.reshape(*rows, -1, copy=False)[..., :columns] = arranged.reshape(*rows, columns)


@frozen
class Ignore:
    """Checkpoint tensors that are known and not needed: names that `pattern` matches as a whole."""

    pattern: str = field(converter=str)

    def covers(self, name: str) -> bool:
        return re.fullmatch(self.pattern, name) is not None


def unroll(rules: Sequence[Rule], layers: int) -> tuple[Rule, ...]:
    """The rules of every layer for those with `{}`, the others once."""
    once = [rule for rule in rules if "{}" not in rule.path]
    return (*once, *(rule.at(layer) for layer in range(layers) for rule in rules if "{}" in rule.path))


def store_as(name: str) -> Store:
    """The canonical array is the leaf `name`."""
    return lambda whole: {name: whole}


def store_kernel(inputs: int, quant: str) -> Store:
    """A linear map with `inputs` in-dimensions: `kernel` [*in, *out], or int8 `kernel` [*out, *in] and `scale`."""
    return store_int8(inputs) if quant == "int8" else lambda whole: {"kernel": _inputs_first(whole, inputs)}


def store_each(store: Store) -> Store:
    """What `store` makes of every matrix of a stack, stacked."""

    def stored(whole: Array) -> dict[str, Array]:
        made: dict[str, Array] = {}
        for number, one in enumerate(whole):
            for name, leaf in store(one).items():
                made.setdefault(name, np.empty((len(whole), *leaf.shape), leaf.dtype))[number] = leaf
        return made

    return stored


def store_int8(inputs: int) -> Store:
    """int8 `kernel` [*out, *in] and float32 `scale` [*out]."""

    def store(whole: Array) -> dict[str, Array]:
        kernel, scale = int8_by_channel(whole, inputs)
        return {"kernel": kernel, "scale": scale}

    return store


def _inputs_first(whole: Array, inputs: int) -> Array:
    axes = range(whole.ndim)
    return np.ascontiguousarray(np.transpose(whole, (*axes[whole.ndim - inputs :], *axes[: whole.ndim - inputs])))


def check(rules: Sequence[Rule | Ignore], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Rule, ...]:
    """The rules to apply to a checkpoint of these tensors, `shapes` by name.

    Raises ModelError listing every tensor that is missing, of a wrong shape, or that no rule knows.
    """
    applied = tuple(rule.among(shapes) for rule in rules if isinstance(rule, Rule))
    parts = [part for rule in applied for part in rule.parts]
    wanted = {part.name: part.shape for part in parts}
    assert len(wanted) == len({(part.name, part.shape) for part in parts}), "a checkpoint tensor has two shapes"
    read = [(rule.path, part.name) for rule in applied for part in rule.parts]
    assert len(read) == len(set(read)), "a parameter has two rules for one tensor"
    ignored = [rule for rule in rules if isinstance(rule, Ignore)]
    unknown = [name for name in shapes if name not in wanted and not any(rule.covers(name) for rule in ignored)]
    misfits = [
        *_misfit("missing", [f"{name} {shape}" for name, shape in wanted.items() if name not in shapes]),
        *_misfit(
            "of a wrong shape",
            [
                f"{name} is {shapes[name]}, must be {shape}"
                for name, shape in wanted.items()
                if name in shapes and shapes[name] != shape
            ],
        ),
        *_misfit("unknown", unknown),
    ]
    if misfits:
        raise ModelError("the checkpoint's tensors do not fit its config", misfits)
    return applied


def _misfit(kind: str, rows: list[str]) -> list[str]:
    if not rows:
        return []
    more = f", and {len(rows) - MOST_NAMED:,} more" if len(rows) > MOST_NAMED else ""
    return [f"{len(rows)} {kind}: " + ", ".join(rows[:MOST_NAMED]) + more]


def load(rules: Sequence[Rule | Ignore], tensors: Mapping[str, Array | Blocks]) -> dict[str | int, Any]:
    """Parameters as numpy arrays from tensors that are all in memory; for notebooks and tests. Raises ModelError."""
    applied = check(rules, {name: tensor.shape for name, tensor in tensors.items()})
    stored = {
        part.name: tensor.storage if isinstance(tensor := tensors[part.name], Blocks) else storage_of(tensor.dtype)
        for rule in applied
        for part in rule.parts
    }
    params: dict[str | int, Any] = {}
    for rule in applied:
        place(params, rule.keys, rule.assemble(tensors.__getitem__, rule.storage(stored)))
    return params


def place(params: dict[str | int, Any], keys: tuple[str | int, ...], leaves: Mapping[str, Any]) -> None:
    """Put leaves into the nested dict under `keys`, making the dicts on the way."""
    for key in keys:
        params = params.setdefault(key, {})
    params.update(leaves)
