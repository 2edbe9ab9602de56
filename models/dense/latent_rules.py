"""The checkpoint rules of latent attention, from a family's table of names; knows shapes, must not know files or families.

A checkpoint has one matrix for the keys and values of all heads. It is read twice: its rows that make keys are applied to
queries, the other way round, so that of codes there remain floats; those that make values stay as they are stored.
"""

from collections.abc import Sequence

import numpy as np

from models.dense.layout import Layout
from models.dense.names import Names
from models.dense.record import Dense, Latent
from models.mapping import Part, Rule, Store, store_as
from models.rope import Rotary
from models.storage import Array

JOINED, SPLIT = ("attention.kv_b",), ("attention.k_b", "attention.v_b")


def wanted(kind: Latent) -> set[str]:
    """What such a layer has of its own, as a table of names calls it, norms of the residual stream aside."""
    queries = {"attention.q"} if kind.query_rank is None else {"attention.q_a", "attention.q_a_norm", "attention.q_b"}
    return queries | {"attention.kv_a", "attention.kv_a_norm", "attention.out", *(SPLIT if kind.split else JOINED)}


def latent_rules(c: Dense, layout: Layout, names: Names, number: int) -> list[Rule]:
    """Those of layer `number`, without the norms of the residual stream."""
    layer = c.stack[number]
    kind = layer.latent
    assert kind is not None, f"layer {number} is of another kind"
    own = {what: stem.format(number) for what, stem in names.items() if what in wanted(kind)}
    path = f"layers.{number}.attention."
    return [
        *_queries(c, layout, own, path, (kind, layer.rotary)),
        *_latents(c, layout, own, path, (kind, layer.rotary)),
        *_heads(c, layout, own, path, kind),
        *_out(c, layout, own, path, kind),
    ]


def _queries(c: Dense, layout: Layout, own: Names, path: str, kind_of: tuple[Latent, Rotary | None]) -> list[Rule]:
    kind, rotary = kind_of
    heads, width = layout.heads, kind.still + kind.turned
    order = _order(kind.still, kind.turned, rotary)

    def arrange(tensor: Array) -> Array:
        return heads.spread_queries(tensor.reshape(c.query_heads, width, *tensor.shape[1:])[:, np.array(order)])

    def to_heads(stem: str, inputs: int) -> Rule:
        part = Part(f"{stem}.weight", (c.query_heads * width, inputs), (), arrange)
        return Rule(path + "q", (heads.slots, heads.width, width, inputs), layout.wide, (part,), layout.store(1))

    if kind.query_rank is None:
        return [to_heads(own["attention.q"], c.hidden_size)]
    return [
        *_flat(c, layout, path + "q_a", own["attention.q_a"], range(kind.query_rank)),
        _norm(path + "q_a_norm", own["attention.q_a_norm"], kind.query_rank),
        to_heads(own["attention.q_b"], kind.query_rank),
    ]


def _latents(c: Dense, layout: Layout, own: Names, path: str, kind_of: tuple[Latent, Rotary | None]) -> list[Rule]:
    kind, rotary = kind_of
    return [
        *_flat(c, layout, path + "kv_a", own["attention.kv_a"], _order(kind.rank, kind.turned, rotary)),
        _norm(path + "kv_a_norm", own["attention.kv_a_norm"], kind.rank),
    ]


def _flat(c: Dense, layout: Layout, path: str, stem: str, order: Sequence[int]) -> list[Rule]:
    """A map from the residual stream, its rows in this order, that every device has whole."""
    width, rows = len(order), np.array(order)

    def part(what: str, *inputs: int) -> Part:
        return Part(f"{stem}.{what}", (width, *inputs), (), lambda tensor: tensor[rows])

    wide = Rule(path, (width, c.hidden_size), layout.wide, (part("weight", c.hidden_size),), layout.store(1))
    return [wide] + [Rule(path, (width,), layout.dtype, (part("bias"),), store_as("bias"))] * c.qkv_bias


def _heads(c: Dense, layout: Layout, own: Names, path: str, kind: Latent) -> list[Rule]:
    heads, both = layout.heads, kind.still + kind.value

    def keys(tensor: Array) -> Array:
        return heads.spread_queries(tensor.reshape(c.query_heads, both, -1)[:, : kind.still].swapaxes(1, 2))

    def values(tensor: Array) -> Array:
        return heads.spread_queries(tensor.reshape(c.query_heads, both, -1)[:, kind.still :])

    def alone(tensor: Array) -> Array:
        return heads.spread_queries(tensor.reshape(c.query_heads, -1, tensor.shape[-1]))

    def rule(name: str, part: Part, outputs: int, inputs: int) -> Rule:
        shape = (heads.slots * heads.width, outputs, inputs)
        # XLA keeps these in the model's own dtype.
        dtype = layout.wide if layout.native else layout.dtype
        store: Store = layout.store(1) if layout.native else store_as("kernel")
        return Rule(path + name, shape, dtype, (part,), store, stacked=True)

    if kind.split:
        k_shape, v_shape = (c.query_heads, kind.rank, kind.still), (c.query_heads, kind.value, kind.rank)
        k = Part(f"{own['attention.k_b']}.weight", k_shape, (), alone)
        v = Part(f"{own['attention.v_b']}.weight", v_shape, (), alone)
    else:
        name, shape = f"{own['attention.kv_b']}.weight", (c.query_heads * both, kind.rank)
        k = Part(name, shape, (), keys, moves_columns=True)
        v = Part(name, shape, (), values)
    return [rule("k_up", k, kind.rank, kind.still), rule("v_up", v, kind.value, kind.rank)]


def _out(c: Dense, layout: Layout, own: Names, path: str, kind: Latent) -> list[Rule]:
    heads, d, stem = layout.heads, c.hidden_size, own["attention.out"]

    def gather(tensor: Array) -> Array:
        spread = heads.spread_queries(np.swapaxes(tensor, 0, 1).reshape(c.query_heads, kind.value, -1))
        return np.moveaxis(spread, -1, 0)

    name, shape = f"{stem}.weight", (d, c.query_heads * kind.value)
    # On one device the heads stand as in the checkpoint, so a block keeps its columns.
    part = Part(name, shape) if layout.tensor_parallel == 1 else Part(name, shape, (), gather, moves_columns=True)
    wide = Rule(
        path + "out", (d, heads.slots, heads.width, kind.value), layout.wide, (part,), layout.store(3), inputs=3
    )
    bias = Rule(path + "out", (d,), layout.dtype, (Part(f"{stem}.bias", (d,)),), store_as("bias"))
    return [wide] + [bias] * c.out_bias


def _norm(path: str, stem: str, width: int) -> Rule:
    return Rule(path, (width,), np.dtype(np.float32), (Part(f"{stem}.weight", (width,)),), store_as("weight"))


def _order(still: int, turned: int, rotary: Rotary | None) -> Sequence[int]:
    """Where each dimension stands in a checkpoint: those that stand still, then those that turn."""
    order = None if rotary is None else rotary.order
    return (*range(still), *(still + place for place in (range(turned) if order is None else order)))
