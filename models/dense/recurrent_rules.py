"""The checkpoint rules of layers that mix by a recurrence; knows shapes and names, must not know files or families.

Heads of the gated delta rule are laid out by key head, as groups of attention are: of each its query, its key and its values.
"""

from collections.abc import Callable, Collection

import numpy as np

from models.dense.layout import Layout
from models.dense.mamba_rules import mamba_rules
from models.dense.names import CONVOLUTION, DELTA, MAMBA, Names
from models.dense.record import Dense, GatedDelta, Mamba2, Recurrent, ShortConvolution
from models.heads import HeadLayout
from models.mapping import Part, Rule, store_as
from models.storage import Array

Spread = Callable[[Array], Array]
FLOAT = np.dtype(np.float32)


def recurrent_maps(mixes: Collection[str], names: Names) -> set[str]:
    """What tensors, but for norms, layers that mix so have, as a table of names calls them."""
    tables = (("delta", DELTA), ("convolution", CONVOLUTION), ("mamba", MAMBA))
    wanted = [table for what, table in tables if what in mixes]
    every = {name for table in wanted for name in table if not name.endswith(".norm")}
    if "delta" in mixes and "delta.gates" in names:
        every = every - {"delta.beta", "delta.a"} | {"delta.gates"}
    return every | ({"delta.qkvz"} & names.keys() if "delta" in mixes else set())


def recurrent_rules(c: Dense, layout: Layout, names: Names) -> list[Rule]:
    """Of all kinds that `c` has; the layers of a model that are of one kind are alike."""
    kinds = dict.fromkeys(layer.recurrence for layer in c.stack if layer.recurrence is not None)
    assert len({type(kind) for kind in kinds}) == len(kinds), f"{c.architecture}: layers of one kind that differ"
    return [rule for kind in kinds for rule in _rules_of(kind, c, layout, names)]


def _rules_of(kind: Recurrent, c: Dense, layout: Layout, names: Names) -> list[Rule]:
    if isinstance(kind, GatedDelta):
        return _Delta(c, layout, names, kind).rules()
    if isinstance(kind, Mamba2):
        return mamba_rules(c, layout, names, kind)
    return _convolution(c, layout, names, kind)


class _Delta:
    """The rules of the gated delta rule."""

    def __init__(self, c: Dense, layout: Layout, names: Names, kind: GatedDelta) -> None:
        self.c, self.layout, self.names, self.kind = c, layout, names, kind
        self.heads = HeadLayout.plan(kind.value_heads, kind.key_heads, layout.tensor_parallel)
        self.channels = 2 * kind.key_width + self.heads.width * kind.value_width

    def rules(self) -> list[Rule]:
        kind, names, d, layout = self.kind, self.names, self.c.hidden_size, self.layout
        path, slots, width, values = "layers.{}.delta.", self.heads.slots, self.heads.width, kind.value_width
        every = 2 * kind.key_heads * kind.key_width + kind.value_heads * values
        taps = Part(f"{names['delta.taps']}.weight", (every, 1, kind.taps), (), self._taps)
        (exact, store), mixed = layout.exact, (d, kind.value_heads * values)
        out = Part(f"{names['delta.out']}.weight", mixed)
        if layout.tensor_parallel > 1:
            out = Part(out.name, mixed, (), self._columns, moves_columns=True)
        return [
            self._matrix("qkv", (slots, self.channels, d), every, self._rows, self._of_fused),
            self._matrix("z", (slots, width, values, d), kind.value_heads * values, self._values, self._z_of_fused),
            Rule(path + "gates", (slots, 2, width, d), exact, self._gates(d), store),
            Rule(path + "out", (d, slots, width, values), layout.wide, (out,), layout.store(3), inputs=3),
            Rule(path[:-1], (kind.taps, slots, self.channels), FLOAT, (taps,), store_as("taps")),
            self._by_head("rate", lambda log: -np.exp(log)),
            self._by_head("shift", lambda shift: shift),
            Rule(path + "read_norm", (values,), FLOAT, (self._norm,), store_as("weight")),
        ]

    @property
    def _norm(self) -> Part:
        return Part(f"{self.names['delta.read_norm']}.weight", (self.kind.value_width,))

    def _matrix(self, what: str, shape: tuple[int, ...], rows: int, alone: Spread, fused: Spread) -> Rule:
        """Of a tensor of its own, `alone`, or of one that has queries, keys, values and their gates, `fused`."""
        d, layout, kind = self.c.hidden_size, self.layout, self.kind
        ways = [(Part(f"{self.names[f'delta.{what}']}.weight", (rows, d), (), alone),)]
        if "delta.qkvz" in self.names:
            every = 2 * (kind.key_heads * kind.key_width + kind.value_heads * kind.value_width)
            ways.insert(0, (Part(f"{self.names['delta.qkvz']}.weight", (every, d), (), fused),))
        path = "layers.{}.delta." + what
        return Rule(path, shape, layout.wide, ways[0], layout.store(1), others=tuple(ways[1:]))

    def _by_head(self, what: str, value: Spread) -> Rule:
        heads, count = self.heads, self.kind.value_heads
        part = Part(self.names[f"delta.{what}"], (count,), (), lambda tensor: heads.spread_queries(value(tensor)))
        return Rule("layers.{}.delta", (heads.slots, heads.width), FLOAT, (part,), store_as(what))

    def _rows(self, tensor: Array) -> Array:
        """Rows of all queries, then all keys, then all values -> [K, 2 H + G W, ...]."""
        kind, rest = self.kind, tensor.shape[1:]
        size = kind.key_heads * kind.key_width
        q, k = (
            part.reshape(kind.key_heads, kind.key_width, *rest) for part in (tensor[:size], tensor[size : 2 * size])
        )
        v = self.heads.spread_queries(tensor[2 * size :].reshape(kind.value_heads, kind.value_width, *rest))
        values = v.reshape(self.heads.slots, -1, *rest)
        return np.concatenate([*map(self.heads.spread_kv, (q, k)), values], axis=1)

    def _taps(self, tensor: Array) -> Array:
        return np.moveaxis(self._rows(tensor[:, 0]), -1, 0)

    def _columns(self, tensor: Array) -> Array:
        kind = self.kind
        by_head = np.swapaxes(tensor, 0, 1).reshape(kind.value_heads, kind.value_width, -1)
        return np.moveaxis(self.heads.spread_queries(by_head), -1, 0)

    def _values(self, tensor: Array) -> Array:
        kind = self.kind
        return self.heads.spread_queries(tensor.reshape(kind.value_heads, kind.value_width, *tensor.shape[1:]))

    def _gates(self, d: int) -> tuple[Part, ...]:
        heads, count = self.heads, self.kind.value_heads
        if "delta.gates" in self.names:
            return (Part(f"{self.names['delta.gates']}.weight", (2 * count, d), (), self._both_gates),)
        stems = enumerate((self.names["delta.beta"], self.names["delta.a"]))
        return tuple(
            Part(f"{stem}.weight", (count, d), (slice(None), place), heads.spread_queries) for place, stem in stems
        )

    def _by_key_head(self, tensor: Array) -> list[Array]:
        """A tensor of each key head's query, key, values and gates of values -> those, each [key heads, rows, ...]."""
        kind = self.kind
        size = kind.group * kind.value_width
        by_head = tensor.reshape(kind.key_heads, -1, *tensor.shape[1:])
        return np.split(by_head, [kind.key_width, 2 * kind.key_width, 2 * kind.key_width + size], axis=1)

    def _of_fused(self, tensor: Array) -> Array:
        q, k, v, _ = self._by_key_head(tensor)
        return self._rows(np.concatenate([part.reshape(-1, *tensor.shape[1:]) for part in (q, k, v)]))

    def _z_of_fused(self, tensor: Array) -> Array:
        z = self._by_key_head(tensor)[3]
        return self._values(z.reshape(-1, *tensor.shape[1:]))

    def _both_gates(self, tensor: Array) -> Array:
        kind = self.kind
        both = tensor.reshape(kind.key_heads, 2, kind.group, *tensor.shape[1:])
        gates = [self.heads.spread_queries(both[:, n].reshape(kind.value_heads, *tensor.shape[1:])) for n in range(2)]
        return np.stack(gates, axis=1)


def _convolution(c: Dense, layout: Layout, names: Names, kind: ShortConvolution) -> list[Rule]:
    d, devices = c.hidden_size, layout.tensor_parallel
    width = -(-d // devices)

    def split(tensor: Array) -> Array:
        """[D, ...] -> [devices, D of a device, ...], zeros at the end."""
        padded = np.zeros((devices * width, *tensor.shape[1:]), tensor.dtype)
        padded[:d] = tensor
        return padded.reshape(devices, width, *tensor.shape[1:])

    def three(tensor: Array) -> Array:
        return np.stack([split(part) for part in np.split(tensor, 3)], axis=1)

    path, inputs, last = "layers.{}.convolution", names["convolution.inputs"], names["convolution.out"]
    taps = Part(
        f"{names['convolution.taps']}.weight", (d, 1, kind.taps), (), lambda t: np.moveaxis(split(t[:, 0]), -1, 0)
    )
    shift = Part(f"{names['convolution.taps']}.bias", (d,), (), split)

    def gather(tensor: Array) -> Array:
        return np.moveaxis(split(tensor.T), -1, 0)

    columns = Part(f"{last}.weight", (d, d))
    if devices > 1:
        columns = Part(columns.name, (d, d), (), gather, moves_columns=True)
    kernel = [
        Rule(
            path + ".inputs",
            (devices, 3, width, d),
            layout.wide,
            (Part(f"{inputs}.weight", (3 * d, d), (), three),),
            layout.store(1),
        ),
        Rule(path + ".out", (d, devices, width), layout.wide, (columns,), layout.store(2), inputs=2),
        Rule(path, (kind.taps, devices, width), FLOAT, (taps,), store_as("taps")),
    ]
    bias = [
        Rule(
            path + ".inputs",
            (devices, 3, width),
            layout.dtype,
            (Part(f"{inputs}.bias", (3 * d,), (), three),),
            store_as("bias"),
        ),
        Rule(path + ".out", (d,), layout.dtype, (Part(f"{last}.bias", (d,)),), store_as("bias")),
        Rule(path, (devices, width), FLOAT, (shift,), store_as("shift")),
    ]
    return kernel + bias * kind.bias
