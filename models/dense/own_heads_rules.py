"""The checkpoint rules of attention with heads of a layer's own; knows shapes, must not know files or families."""

from typing import Any

import numpy as np

from models.dense.layout import Layout
from models.dense.names import Names
from models.dense.record import Dense, Heads
from models.heads import HeadLayout
from models.mapping import Ignore, Part, Rule, store_as
from models.storage import Array

_UNUSED = ("attention.k", "attention.v", "attention.k_norm")
"""What a checkpoint may have of a layer that reads the keys and values of another."""


def wanted(kind: Heads) -> set[str]:
    """What such a layer has of its own, as a table of names calls it, norms of the residual stream aside."""
    made = [{"attention.k", "attention.k_norm"}, {"attention.v"}][: kind.made]
    return {"attention.q", "attention.q_norm", "attention.out"}.union(*made)


def own_rules(c: Dense, layout: Layout, names: Names, number: int) -> list[Rule | Ignore]:
    """Those of layer `number`, without the norms of the residual stream."""
    kind = c.stack[number].heads
    assert kind is not None, f"layer {number} is of another kind"
    rotary = c.stack[number].rotary
    assert rotary is None or rotary.order is None, (
        "heads of a layer's own that turn in another order than the checkpoint's"
    )
    own = {what: stem.format(number) for what, stem in names.items() if what.startswith("attention")}
    path, heads = f"layers.{number}.attention.", HeadLayout.plan(c.query_heads, kind.kv_heads, layout.tensor_parallel)
    norms = [name for name in ("attention.q_norm", "attention.k_norm") if name in wanted(kind)]
    unused = [own[what] for what in _UNUSED if what not in wanted(kind) and what in own]
    return [
        *_qkv(c, layout, own, path, (kind, heads)),
        *_out(c, layout, own["attention.out"], path + "out", (kind, heads)),
        *(_norm(f"layers.{number}.{name}", own[name], kind.head_dim) for name in norms),
        *(Ignore(stem.replace(".", r"\.") + r"\.(weight|bias)") for stem in unused),
    ]


def _qkv(c: Dense, layout: Layout, own: Names, path: str, kind_of: tuple[Heads, HeadLayout]) -> list[Rule]:
    (kind, heads), every = kind_of, slice(None)
    size, width = kind.head_dim, heads.width
    places: list[tuple[str, int, Any, Any]] = [
        ("q", c.query_heads, (every, slice(width)), heads.spread_queries),
        ("k", kind.kv_heads, (every, width), heads.spread_kv),
        ("v", kind.kv_heads, (every, width + 1), heads.spread_kv),
    ]

    def part(what: str, place: tuple[str, int, Any, Any], *inputs: int) -> Part:
        name, count, index, spread = place

        def split(tensor: Array) -> Array:
            found: Array = spread(tensor.reshape(count, size, *tensor.shape[1:]))
            return found

        return Part(f"{own[f'attention.{name}']}.{what}", (count * size, *inputs), index, split)

    made, shape = places[: 1 + kind.made], (heads.slots, width + kind.made, size)
    weights = tuple(part("weight", place, c.hidden_size) for place in made)
    wide = Rule(path + "qkv", (*shape, c.hidden_size), layout.wide, weights, layout.store(1))
    biases = tuple(part("bias", place) for place in made)
    return [wide] + [Rule(path + "qkv", shape, layout.dtype, biases, store_as("bias"))] * c.qkv_bias


def _out(c: Dense, layout: Layout, stem: str, path: str, kind_of: tuple[Heads, HeadLayout]) -> list[Rule]:
    (kind, heads), d = kind_of, c.hidden_size

    def gather(tensor: Array) -> Array:
        spread = heads.spread_queries(np.swapaxes(tensor, 0, 1).reshape(c.query_heads, kind.head_dim, -1))
        return np.moveaxis(spread, -1, 0)

    name, shape = f"{stem}.weight", (d, c.query_heads * kind.head_dim)
    # On one device the heads stand as in the checkpoint, so a block keeps its columns.
    part = Part(name, shape) if layout.tensor_parallel == 1 else Part(name, shape, (), gather, moves_columns=True)
    wide = Rule(path, (d, heads.slots, heads.width, kind.head_dim), layout.wide, (part,), layout.store(3), inputs=3)
    return [wide] + [Rule(path, (d,), layout.dtype, (Part(f"{stem}.bias", (d,)),), store_as("bias"))] * c.out_bias


def _norm(path: str, stem: str, width: int) -> Rule:
    return Rule(path, (width,), np.dtype(np.float32), (Part(f"{stem}.weight", (width,)),), store_as("weight"))
