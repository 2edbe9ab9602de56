"""The checkpoint rules of layers that mix by Mamba 2; knows shapes and names, must not know files or families.

One tensor has, below each other, the rows of z, x, b, c and dt. Heads are laid out by group: of each its c, its b and its x.
"""

from collections.abc import Callable

import numpy as np

from models.dense.layout import Layout
from models.dense.names import Names
from models.dense.record import Dense, Mamba2
from models.heads import HeadLayout
from models.mapping import Part, Rule, store_as
from models.storage import Array

Arrange = Callable[[Array], Array]
FLOAT = np.dtype(np.float32)
_PATH = "layers.{}.mamba"


def mamba_rules(c: Dense, layout: Layout, names: Names, kind: Mamba2) -> list[Rule]:
    """Of one layer, `{}` for its number."""
    made = _Mamba(c, layout, names, kind)
    return [*made.matrices(), *made.vectors(), *(made.biases() if kind.bias else [])]


class _Mamba:
    def __init__(self, c: Dense, layout: Layout, names: Names, kind: Mamba2) -> None:
        self.d, self.layout, self.names, self.kind = c.hidden_size, layout, names, kind
        self.heads = HeadLayout.plan(kind.heads, kind.groups, layout.tensor_parallel)
        self.values, self.keys = kind.heads * kind.width, kind.groups * kind.state
        slots, width = self.heads.slots, self.heads.width
        self.by_head = (slots, width, kind.width)
        # Of what is made of the one tensor: shape, and how its rows are found.
        self.made: dict[str, tuple[tuple[int, ...], Arrange]] = {
            "cbx": ((slots, 2 * kind.state + width * kind.width), lambda rows: self._cbx(self._inner(rows))),
            "z": (self.by_head, lambda rows: self._heads(rows[: self.values])),
            "steps": ((slots, width), lambda rows: self.heads.spread_queries(rows[-kind.heads :])),
        }

    def matrices(self) -> list[Rule]:
        d, layout = self.d, self.layout
        exact, store = layout.exact
        kept = {"cbx": (layout.wide, layout.store(1)), "z": (layout.wide, layout.store(1)), "steps": (exact, store)}
        name, mixed = f"{self.names['mamba.out']}.weight", (d, self.values)
        out = Part(name, mixed)
        if layout.tensor_parallel > 1:
            out = Part(name, mixed, (), self._columns, moves_columns=True)
        made = [
            Rule(f"{_PATH}.{what}", (*shape, d), kept[what][0], (self._input("weight", arrange, d),), kept[what][1])
            for what, (shape, arrange) in self.made.items()
        ]
        return [*made, Rule(f"{_PATH}.out", (d, *self.by_head), layout.wide, (out,), layout.store(3), inputs=3)]

    def biases(self) -> list[Rule]:
        """Of the projections."""
        dtypes = {"steps": FLOAT}
        made = [
            Rule(
                f"{_PATH}.{what}",
                shape,
                dtypes.get(what, self.layout.dtype),
                (self._input("bias", arrange),),
                store_as("bias"),
            )
            for what, (shape, arrange) in self.made.items()
        ]
        out = Part(f"{self.names['mamba.out']}.bias", (self.d,))
        return [*made, Rule(f"{_PATH}.out", (self.d,), self.layout.dtype, (out,), store_as("bias"))]

    def vectors(self) -> list[Rule]:
        """Of the convolution, of each head, and the norm."""
        kind, stem = self.kind, self.names["mamba.taps"]
        channels, (shape, _) = self.values + 2 * self.keys, self.made["cbx"]
        taps = Part(f"{stem}.weight", (channels, 1, kind.taps), (), lambda t: np.moveaxis(self._cbx(t[:, 0]), -1, 0))
        norm = Part(f"{self.names['mamba.read_norm']}.weight", (self.values,), (), self._heads)
        made = [
            Rule(_PATH, (kind.taps, *shape), FLOAT, (taps,), store_as("taps")),
            Rule(_PATH, self.by_head, FLOAT, (norm,), store_as("read_norm")),
            self._each("rate", lambda log: -np.exp(log)),
            self._each("shift", lambda shift: shift),
            self._each("skip", lambda skip: skip),
        ]
        bias = Rule(_PATH, shape, FLOAT, (Part(f"{stem}.bias", (channels,), (), self._cbx),), store_as("taps_bias"))
        return made + [bias] * kind.taps_bias

    def _each(self, what: str, value: Arrange) -> Rule:
        """A number of each head."""
        part = Part(self.names[f"mamba.{what}"], (self.kind.heads,), (), lambda t: self.heads.spread_queries(value(t)))
        return Rule(_PATH, self.by_head[:2], FLOAT, (part,), store_as(what))

    def _input(self, end: str, arrange: Arrange, *inputs: int) -> Part:
        rows = 2 * (self.values + self.keys) + self.kind.heads
        return Part(f"{self.names['mamba.inputs']}.{end}", (rows, *inputs), (), arrange)

    def _inner(self, rows: Array) -> Array:
        """x, b and c."""
        return rows[self.values : 2 * (self.values + self.keys)]

    def _cbx(self, rows: Array) -> Array:
        """Rows of all x, then all b, then all c -> [K, 2 H + G W, ...]."""
        kind, rest = self.kind, rows.shape[1:]
        x = self._heads(rows[: self.values]).reshape(self.heads.slots, -1, *rest)
        b, c = (
            self.heads.spread_kv(part.reshape(kind.groups, kind.state, *rest))
            for part in np.split(rows[self.values :], 2)
        )
        return np.concatenate([c, b, x], axis=1)

    def _heads(self, rows: Array) -> Array:
        """[heads W, ...] -> [K, G, W, ...]."""
        return self.heads.spread_queries(rows.reshape(self.kind.heads, self.kind.width, *rows.shape[1:]))

    def _columns(self, tensor: Array) -> Array:
        return np.moveaxis(self._heads(np.swapaxes(tensor, 0, 1)), -1, 0)
