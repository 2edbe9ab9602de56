"""The checkpoint rules of a layer's experts; knows shapes, must not know files or families.

The same matrices stand in checkpoints in up to five ways:

    a tensor for each expert and matrix        experts.7.gate_proj.weight [F, D]
    one for all experts, as GGUF has them      experts.gate_proj.weight [E, F, D]
    gate above up in one for all               experts.gate_up_proj [E, 2 F, D], experts.down_proj [E, D, F]
    the same with the columns last             experts.gate_up_proj [E, D, 2 F], experts.down_proj [E, F, D]
    as gpt-oss has them, rows of gate and up in turn: gate_up_proj [E, D, 2 F], down_proj [E, F, D]; where they are stored in
    blocks, with the columns last: gate_up_proj.weight [E, 2 F, D], down_proj.weight [E, D, F]
"""

from collections.abc import Callable

import numpy as np
from attrs import evolve

from models.dense.layout import Layout
from models.dense.mlp_rules import gated_rules, spread
from models.dense.names import Names, together
from models.dense.record import Dense, Experts
from models.linears import undecided
from models.mapping import Part, Rule, Store, store_as, store_each
from models.storage import Array

Parts = tuple[Part, ...]
Arrange = Callable[[Array], Array]
_EVERY = slice(None)


def expert_rules(c: Dense, layout: Layout, names: Names, experts: Experts, layer: int) -> list[Rule]:
    """Of all that layer `layer` has in place of an MLP."""
    names = {what: stem.replace("{}", str(layer), 1) for what, stem in names.items()}
    path = f"layers.{layer}.mlp."
    router = _router(c, layout, names["experts.router"], experts.count, path + "router")
    made = [router, *_maps(c, layout.of_experts, names, experts, path)]
    if experts.router_bias:
        part = Part(f"{names['experts.router']}.bias", (experts.count,))
        made.append(Rule(path + "router", part.shape, np.dtype(np.float32), (part,), store_as("bias")))
    if experts.correction:
        made.append(_correction(names, experts.count, path[:-1]))
    if experts.latent:
        made += _latent(c, layout, names, experts, path)
    if experts.beside:
        made += _beside(c, names, experts, path)
    return made + (_shared(c, layout, names, experts, path + "shared.") if experts.shared else [])


def _correction(names: Names, count: int, path: str) -> Rule:
    """Stored as a row, or as it is."""
    ways: list[Parts] = []
    if "experts.correction_row" in names:
        ways.append((Part(names["experts.correction_row"], (1, count), (), lambda tensor: tensor[0]),))
    if "experts.correction" in names:
        ways.append((Part(names["experts.correction"], (count,)),))
    parts, *others = ways
    return Rule(path, (count,), np.dtype(np.float32), parts, store_as("correction"), others=tuple(others))


def _beside(c: Dense, names: Names, experts: Experts, path: str) -> list[Rule]:
    """Norms within, and a number of each expert. The router's norm gives what is as long as one number of it."""
    d, root = c.hidden_size, np.float32(c.hidden_size**-0.5)

    def rule(where: str, name: str, size: int, store: Store) -> Rule:
        return Rule((path + where).rstrip("."), (size,), np.dtype(np.float32), (Part(name, (size,)),), store)

    norms = [
        rule(f"{what}_norm", f"{names[f'beside.{what}']}.weight", d, store_as("weight"))
        for what in ("alone", "experts", "sum")
    ]
    return [
        *norms,
        rule("router_norm", names["beside.router"], d, lambda whole: {"weight": whole * root}),
        rule("", names["beside.scales"], experts.count, store_as("scales")),
    ]


def _latent(c: Dense, layout: Layout, names: Names, experts: Experts, path: str) -> list[Rule]:
    """What makes the experts' inputs, and what takes their sum back; every device has a copy."""
    shapes = {"into": (experts.latent, c.hidden_size), "back": (c.hidden_size, experts.latent)}
    return [
        Rule(
            path + name,
            shape,
            layout.wide,
            (Part(f"{names[f'experts.{name}']}.weight", shape),),
            layout.store(1),
        )
        for name, shape in shapes.items()
    ]


def _router(c: Dense, layout: Layout, stem: str, count: int, path: str) -> Rule:
    (dtype, store), shape = layout.exact, (count, c.hidden_size)
    return Rule(path, shape, dtype, (Part(f"{stem}.weight", shape),), store)


def _shared(c: Dense, layout: Layout, names: Names, experts: Experts, path: str) -> list[Rule]:
    if not experts.shared_gate:
        return gated_rules((c.hidden_size, experts.shared), layout, names, "shared", path, halves=c.activation.halves)
    d, f, devices, width = c.hidden_size, experts.shared, layout.tensor_parallel, layout.split(experts.shared)
    own = {what.replace("shared", "experts"): stem for what, stem in names.items() if what.startswith("shared")}
    # A mixture of one, whose tensors have no number.
    return [
        _router(c, layout, names["shared.router"], 1, path + "router"),
        *_matrices(layout, (1, d, f, devices, width), path + "experts.", [_by_number(layout, own, 1, d, f)]),
    ]


def _maps(c: Dense, layout: Layout, names: Names, experts: Experts, path: str) -> list[Rule]:
    e, d, f = experts.count, experts.latent or c.hidden_size, experts.width
    sizes = (e, d, f, layout.tensor_parallel, layout.split(f))
    ways = [_by_number(layout, names, e, d, f), _in_one(layout, names, e, d, f)]
    if "oss.gate_up" in names:
        ways = [*_as_oss(layout, names, e, d, f), *ways]
    if "fused.gate_up" in names:
        ways.append(_fused(layout, names, e, d, f))
    if "turned.gate_up" in names:
        ways = [_turned(layout, names, e, d, f), *ways]
    made = _matrices(layout, sizes, path + "experts.", ways, c.activation.halves)
    return made + (_biases(layout, names, sizes, path + "experts.") if experts.bias else [])


def _matrices(
    layout: Layout, sizes: tuple[int, ...], path: str, ways: list[tuple[Parts, Parts]], halves: int = 2
) -> list[Rule]:
    """`ways`: the parts of gate and up, and those of down, in each of the ways that they may stand in a checkpoint."""
    e, d, _, devices, width = sizes

    def rule(name: str, shape: tuple[int, ...], inputs: int, which: int) -> Rule:
        one = layout.store(inputs)
        store = one if one is undecided else store_each(one)
        parts, *others = (way[which] for way in ways)
        return Rule(path + name, shape, layout.wide, parts, store, inputs, stacked=True, others=tuple(others))

    return [rule("gate_up", (e, devices, halves, width, d), 1, 0), rule("down", (e, d, devices, width), 2, 1)]


def _by_number(layout: Layout, names: Names, e: int, d: int, f: int) -> tuple[Parts, Parts]:
    split = spread(layout, f)

    def name(what: str, number: int) -> str:
        return f"{names[f'experts.{what}'].format(number)}.weight"

    gate_up = tuple(
        Part(name(what, number), (f, d), (number, _EVERY, place), split)
        for number in range(e)
        for place, what in enumerate(_halves(names))
    )
    return gate_up, tuple(Part(name("down", number), (d, f), (number,)) for number in range(e))


def _in_one(layout: Layout, names: Names, e: int, d: int, f: int) -> tuple[Parts, Parts]:
    gate_up = tuple(
        Part(f"{together(names[f'experts.{what}'])}.weight", (e, f, d), (_EVERY, _EVERY, place), _each(layout, e, f))
        for place, what in enumerate(_halves(names))
    )
    return gate_up, (Part(f"{together(names['experts.down'])}.weight", (e, d, f)),)


def _halves(names: Names) -> tuple[str, ...]:
    return ("gate", "up") if "experts.gate" in names else ("up",)


def _each(layout: Layout, e: int, f: int) -> Arrange:
    """[E, F, ...] -> [E, devices, F of a device, ...]; blocks have both in their rows."""
    split = spread(layout, f)

    def arrange(tensor: Array) -> Array:
        return np.moveaxis(split(np.moveaxis(tensor.reshape(e, f, -1), 1, 0)), 2, 0)

    return arrange


def _fused(layout: Layout, names: Names, e: int, d: int, f: int) -> tuple[Parts, Parts]:
    each = _each(layout, e, f)

    def both(tensor: Array) -> Array:
        """[E, 2 F, ...], all rows of gate before those of up -> [E, devices, 2, F of a device, ...]."""
        return np.stack([each(half) for half in np.split(tensor.reshape(e, 2 * f, -1), 2, axis=1)], axis=2)

    gate_up = Part(names["fused.gate_up"], (e, 2 * f, d), (), both)
    return (gate_up,), (Part(names["fused.down"], (e, d, f)),)


def _turned(layout: Layout, names: Names, e: int, d: int, f: int) -> tuple[Parts, Parts]:
    """`_fused`, with the columns of gate before those of up."""
    (both,), (down,) = _fused(layout, {"fused.gate_up": names["turned.gate_up"], "fused.down": ""}, e, d, f)
    gate_up = evolve(both, shape=(e, d, 2 * f), arrange=_columns_last(both.arrange), moves_columns=True)
    name = names["turned.down"]
    return (gate_up,), (
        evolve(down, name=name, shape=(e, f, d), arrange=_columns_last(down.arrange), moves_columns=True),
    )


def _columns_last(arrange: Arrange) -> Arrange:
    return lambda tensor: arrange(np.swapaxes(tensor, 1, 2))


def _as_oss(layout: Layout, names: Names, e: int, d: int, f: int) -> list[tuple[Parts, Parts]]:
    both = _both(layout, e, f)
    gate_up, down, last = names["oss.gate_up"], names["oss.down"], _columns_last
    return [
        (
            (Part(gate_up, (e, d, 2 * f), (), last(both), moves_columns=True),),
            (Part(down, (e, f, d), (), lambda tensor: np.swapaxes(tensor, 1, 2), moves_columns=True),),
        ),
        (
            (Part(f"{gate_up}.weight", (e, 2 * f, d), (), both),),
            (Part(f"{down}.weight", (e, d, f)),),
        ),
    ]


def _both(layout: Layout, e: int, f: int) -> Arrange:
    """[E, 2 F, ...], rows of gate and up in turn -> [E, devices, 2, F of a device, ...]."""
    each = _each(layout, e, f)

    def arrange(tensor: Array) -> Array:
        halves = tensor.reshape(e, f, 2, -1)
        return np.stack([each(halves[:, :, place]) for place in range(2)], axis=2)

    return arrange


def _biases(layout: Layout, names: Names, sizes: tuple[int, ...], path: str) -> list[Rule]:
    e, d, f, devices, width = sizes
    gate_up = tuple(
        Part(f"{together(names[f'experts.{what}'])}.bias", (e, f), (_EVERY, _EVERY, place), _each(layout, e, f))
        for place, what in enumerate(("gate", "up"))
    )
    down: Parts = (Part(f"{together(names['experts.down'])}.bias", (e, d)),)
    others: list[tuple[Parts, Parts]] = [(gate_up, down)]
    if "oss.gate_up" in names:
        mixed = (Part(f"{names['oss.gate_up']}_bias", (e, 2 * f), (), _both(layout, e, f)),)
        others = [(mixed, (Part(f"{names['oss.down']}_bias", (e, d)),)), *others]
    shapes = {"gate_up": (e, devices, 2, width), "down": (e, d)}
    return [
        Rule(
            path + name, shape, layout.dtype, others[0][n], store_as("bias"), others=tuple(way[n] for way in others[1:])
        )
        for n, (name, shape) in enumerate(shapes.items())
    ]
