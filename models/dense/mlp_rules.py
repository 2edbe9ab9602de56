"""The checkpoint rules of a layer's MLP, where it is one; knows shapes, must not know files or families."""

from collections.abc import Callable

import numpy as np
from attrs import evolve

from models.dense.layout import Layout
from models.dense.names import Names
from models.dense.record import Dense
from models.mapping import Part, Rule, store_as
from models.storage import Array


def mlp_rules(c: Dense, layout: Layout, names: Names) -> list[Rule]:
    """Of one layer, `{}` for its number."""
    kernel = gated_rules((c.hidden_size, c.intermediate_size), layout, names, "mlp", halves=c.activation.halves)
    return kernel + _biases(c, layout, names) * c.mlp_bias


def gated_rules(
    sizes: tuple[int, int], layout: Layout, names: Names, kind: str, path: str = "layers.{}.mlp.", *, halves: int = 2
) -> list[Rule]:
    """The matrices of an MLP from D to a width F and back, which are called by `kind`: gate and up, or up alone, and down."""
    d, f = sizes
    devices, width, split = layout.tensor_parallel, layout.split(f), spread(layout, f)
    one = Part(f"{names[f'{kind}.down']}.weight", (d, f))
    if devices > 1:
        one = evolve(one, arrange=lambda tensor: np.moveaxis(split(tensor.T), -1, 0), moves_columns=True)
    parts, *others = _gate_up(f, layout, names, kind, "weight", d)
    shape = (devices, halves, width, d)
    return [
        Rule(path + "gate_up", shape, layout.wide, parts, layout.store(1), others=tuple(others)),
        Rule(path + "down", (d, devices, width), layout.wide, (one,), layout.store(2), inputs=2),
    ]


def _gate_up(f: int, layout: Layout, names: Names, kind: str, end: str, *inputs: int) -> list[tuple[Part, ...]]:
    """In each of the ways that they may stand in a checkpoint."""
    split = spread(layout, f)

    def both(tensor: Array) -> Array:
        """Gate and up below each other -> [devices, 2, F of a device, ...]."""
        return np.stack([split(half) for half in np.split(tensor, 2)], axis=1)

    ways: list[tuple[Part, ...]] = []
    if f"{kind}.gate_up" in names:
        ways.append((Part(f"{names[f'{kind}.gate_up']}.{end}", (2 * f, *inputs), (), both),))
    stems = [names[what] for what in (f"{kind}.gate", f"{kind}.up") if what in names]
    if stems:
        each = (Part(f"{stem}.{end}", (f, *inputs), (slice(None), n), split) for n, stem in enumerate(stems))
        ways.append(tuple(each))
    return ways


def spread(layout: Layout, f: int) -> Callable[[Array], Array]:
    """[F, ...] -> [devices, F of a device, ...], zeros at the end."""
    devices, width = layout.tensor_parallel, layout.split(f)

    def split(tensor: Array) -> Array:
        padded = np.zeros((devices * width, *tensor.shape[1:]), tensor.dtype)
        padded[:f] = tensor
        return padded.reshape(devices, width, *tensor.shape[1:])

    return split


def _biases(c: Dense, layout: Layout, names: Names) -> list[Rule]:
    path, halves = "layers.{}.mlp.", c.activation.halves
    shape = (layout.tensor_parallel, halves, layout.split(c.intermediate_size))
    parts, *others = _gate_up(c.intermediate_size, layout, names, "mlp", "bias")
    return [
        Rule(path + "gate_up", shape, layout.dtype, parts, store_as("bias"), others=tuple(others)),
        residual_bias(c, layout, path + "down", names["mlp.down"]),
    ]


def residual_bias(c: Dense, layout: Layout, path: str, stem: str) -> Rule:
    """Of a map onto the residual stream."""
    shape = (c.hidden_size,)
    return Rule(path, shape, layout.dtype, (Part(f"{stem}.bias", shape),), store_as("bias"))
