"""The checkpoint rules of a dense decoder, from a family's table of names; knows shapes, must not know files or families.

`models.dense.names` says what a table is; of a table that all decoders of a family share, one takes what it has.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import evolve

from models.dense import latent_rules as latent
from models.dense import own_heads_rules as own_heads
from models.dense.expert_rules import expert_rules
from models.dense.layout import Layout
from models.dense.mlp_rules import mlp_rules, residual_bias
from models.dense.names import BESIDE, KNOWN, Names
from models.dense.per_layer_rules import WANTED, per_layer_rules, scalar_rule
from models.dense.record import Dense, Experts
from models.dense.recurrent_rules import recurrent_maps, recurrent_rules
from models.mapping import Ignore, Part, Rule, store_as, unroll
from models.storage import Array

HEAD_NORMS = {"attention.q_norm", "attention.k_norm"}
APART = {
    "norm",
    "delta.read_norm",
    "mamba.read_norm",
    "attention.q_a_norm",
    "attention.kv_a_norm",
    "per_layer.project_norm",
    "per_layer.post_norm",
}
"""Norms that are not of a layer's width, or whose rules are made elsewhere."""
Spread = Callable[[Array], Array]

EXACT = ("router", "delta.gates", "mamba.steps")
"""Paths of matrices that are never narrowed end so."""


def wanted(c: Dense, names: Names) -> set[str]:
    """What this decoder has, as a table of names calls it."""
    mixes = {layer.mixes for layer in c.stack if layer.mixer}
    maps = _wanted_of_attention(c, names) | recurrent_maps(mixes, names)
    if any(layer.experts is None and layer.mlp for layer in c.stack):
        maps |= gated_wanted("mlp", names, c.activation.halves)
    for experts in c.mixtures:
        maps |= experts_wanted(experts, names, c.activation.halves)
    norms = {"norm"}
    norms |= {f"{what}.norm" for what in (*mixes, "mlp")} if c.pre_norms else set()
    norms |= {f"{what}.post_norm" for what in (*mixes, "mlp")} if c.post_norms else set()
    norms |= {"attention.q_norm", "attention.k_norm"} if c.qk_norm and "attention" in mixes else set()
    sinks = {"attention.sinks"} if any(layer.sinks for layer in c.stack) else set()
    beside = WANTED if c.per_layer is not None else set()
    return {"embed", "head", *maps, *norms, *sinks, *beside, *(["scalar"] if c.scalars else [])}


def _wanted_of_attention(c: Dense, names: Names) -> set[str]:
    found: set[str] = set()
    for latents, heads in dict.fromkeys((own.latent, own.heads) for own in c.stack if own.mixes == "attention"):
        if latents is not None:
            found |= latent.wanted(latents)
        elif heads is not None:
            found |= own_heads.wanted(heads)
        else:
            qkv = {"attention.qkv"} if "attention.qkv" in names else {"attention.q", "attention.k", "attention.v"}
            found |= {*qkv, "attention.out"}
    return found


def gated_wanted(kind: str, names: Names, halves: int) -> set[str]:
    """The same of an MLP that is called so: gate and up in one tensor, each in its own, or either way."""
    apart = {f"{kind}.gate", f"{kind}.up"} if halves == 2 else {f"{kind}.up"}
    together = {f"{kind}.gate_up"} & names.keys()
    return {*together, *(apart & names.keys() if together else apart), f"{kind}.down"}


def experts_wanted(experts: Experts, names: Names, halves: int = 2) -> set[str]:
    """The same of a mixture."""
    found = (
        gated_wanted("experts", names, halves)
        | {"experts.router"}
        | {
            "oss.gate_up",
            "oss.down",
            "fused.gate_up",
            "fused.down",
            "turned.gate_up",
            "turned.down",
        }
        & names.keys()
    )
    rows = {"experts.correction_row"} & names.keys()
    found |= {"experts.correction", *rows} if experts.correction else set()
    found |= {"experts.into", "experts.back"} if experts.latent else set()
    found |= set(BESIDE) if experts.beside else set()
    found |= gated_wanted("shared", names, halves) if experts.shared else set()
    return found | ({"shared.router"} if experts.shared_gate else set())


def rules(c: Dense, layout: Layout, names: Names, ignored: tuple[str, ...]) -> tuple[Rule | Ignore, ...]:
    """`ignored`: patterns of the whole names of tensors that are known and not needed."""
    missing, strange = wanted(c, names) - names.keys(), names.keys() - KNOWN
    assert not missing | strange, f"{c.architecture}: names missing {sorted(missing)}, not known {sorted(strange)}"
    names = {what: names[what] for what in names if what in wanted(c, names)}
    own = [number for number, layer in enumerate(c.stack) if layer.latent is not None or layer.heads is not None]
    apart = APART | HEAD_NORMS if own else APART
    within = [name for name in names if name.endswith("norm") and name not in apart]
    layers = [
        *(_within(c, layout, name, names[name]) for name in within),
        *(_attention(c, layout, names) if "attention.out" in names and not own else []),
        *recurrent_rules(c, layout, names),
        *([] if c.per_layer is None else per_layer_rules(c, layout, names, c.per_layer)),
        *([scalar_rule(names)] if c.scalars else []),
    ]
    assert len(own) in (0, len(c.stack)), f"{c.architecture}: some layers are of a kind that not all are of"
    others = [rule for number in own for rule in _of_its_own(c, layout, names, number)]
    outer = [_vocab(c, layout, "embed", names), _norm(c, "norm", names["norm"])]
    head = Ignore(names["head"].replace(".", r"\.") + r"\.weight") if c.tied else _vocab(c, layout, "head", names)
    made = [*_unrolled(c, [*outer, *layers]), *others, *_mlps(c, layout, names), *_sinks(c, layout, names)]
    return (*sorted(made, key=_layer), head, *map(Ignore, ignored))


def _of_its_own(c: Dense, layout: Layout, names: Names, number: int) -> Sequence[Rule | Ignore]:
    rules_of = own_heads.own_rules if c.stack[number].latent is None else latent.latent_rules
    return rules_of(c, layout, names, number)


def _layer(rule: Rule | Ignore) -> int:
    """In whose order they are read: what is outside of layers comes first."""
    return int(rule.keys[1]) if isinstance(rule, Rule) and rule.keys[0] == "layers" else -1


def _mlps(c: Dense, layout: Layout, names: Names) -> list[Rule]:
    made: list[Rule] = []
    for n, layer in enumerate(c.stack):
        if layer.experts is not None:
            made += expert_rules(c, layout, names, layer.experts, n)
        elif layer.mlp:
            made += [rule.at(n) for rule in mlp_rules(c.of(layer), layout, names)]
    return made


def _vocab(c: Dense, layout: Layout, path: str, names: Names) -> Rule:
    part = Part(f"{names[path]}.weight", (c.vocab_size, c.hidden_size), (slice(c.vocab_size),))
    return Rule(path, (layout.vocab, c.hidden_size), layout.wide, (part,), layout.table_store)


def _norm(c: Dense, path: str, stem: str) -> Rule:
    width = c.head_dim if path.endswith(("q_norm", "k_norm")) else c.hidden_size

    def store(whole: Array) -> dict[str, Array]:
        return {"weight": whole + np.float32(c.norm_offset) if c.norm_offset else whole}

    return Rule(path, (width,), np.dtype(np.float32), (Part(f"{stem}.weight", (width,)),), store)


def _within(c: Dense, layout: Layout, name: str, stem: str) -> Rule:
    """A layer's norm."""
    path, heads = f"layers.{{}}.{name}", layout.heads
    if not (c.heads_together and name.endswith(("q_norm", "k_norm"))):
        return _norm(c, path, stem)
    queries = name.endswith("q_norm")
    count, spread = (c.query_heads, heads.spread_queries) if queries else (c.kv_heads, heads.spread_kv)
    part = Part(f"{stem}.weight", (count * c.head_dim,), (), lambda tensor: spread(tensor.reshape(count, -1)))
    shape = (heads.slots, heads.width if queries else 1, c.head_dim)
    return Rule(path, shape, np.dtype(np.float32), (part,), store_as("weight"))


def _unrolled(c: Dense, made: list[Rule]) -> list[Rule]:
    """The rules of every layer, with the dimensions of its heads in the order in which it turns."""
    every = []
    for rule in unroll(made, len(c.stack)):
        keys = rule.keys
        layer = c.stack[int(keys[1])] if keys[0] == "layers" else None
        if layer is not None and keys[2] not in {layer.mixes, "mlp" if layer.mlp else ""}:
            continue
        rotary = None if layer is None else layer.rotary
        every.append(rule if rotary is None or rotary.order is None else _ordered(c, rule, np.array(rotary.order)))
    return [_halved(c, rule) if c.output_gate and rule.path.endswith("attention.qkv") else rule for rule in every]


def _halved(c: Dense, rule: Rule) -> Rule:
    """With queries from a tensor that has a gate behind each."""
    q, *others = rule.parts
    return evolve(rule, parts=(_half(c, q, 0), *others))


def _half(c: Dense, part: Part, half: int) -> Part:
    """Of each query head's rows in a tensor, its query's or its gate's."""
    rows, *inputs = part.shape

    def arrange(tensor: Array) -> Array:
        heads = tensor.reshape(c.query_heads, 2, c.head_dim, *tensor.shape[1:])
        return part.arrange(heads[:, half].reshape(rows, *tensor.shape[1:]))

    return evolve(part, shape=(2 * rows, *inputs), arrange=arrange)


def _ordered(c: Dense, rule: Rule, order: Any) -> Rule:
    if rule.path.endswith(("q_norm", "k_norm")):
        return evolve(rule, parts=tuple(_by_head(part, order) for part in rule.parts))
    if not rule.path.endswith("attention.qkv"):
        return rule
    turning = c.query_heads + c.kv_heads
    if len(rule.parts) == 1:
        return evolve(rule, parts=(_turned(c, rule.parts[0], order, turning),))
    q, k, v = rule.parts
    return evolve(rule, parts=(_turned(c, q, order, c.query_heads), _turned(c, k, order, c.kv_heads), v))


def _by_head(part: Part, order: Any) -> Part:
    """Of a norm of one head, or of all together, with the dimensions of each in this order."""

    def arrange(tensor: Array) -> Array:
        return part.arrange(tensor.reshape(-1, len(order))[:, order].reshape(tensor.shape))

    return evolve(part, arrange=arrange)


def _turned(c: Dense, part: Part, order: Any, turning: int) -> Part:
    """With the dimensions of the first `turning` heads in this order."""

    def arrange(tensor: Array) -> Array:
        heads = tensor.reshape(-1, c.head_dim, *tensor.shape[1:])
        every = np.concatenate([heads[:turning][:, order], heads[turning:]])
        return part.arrange(every.reshape(tensor.shape))

    return evolve(part, arrange=arrange)


def _sinks(c: Dense, layout: Layout, names: Names) -> list[Rule]:
    heads, shape = layout.heads, (layout.heads.slots, layout.heads.width)
    return [
        Rule(
            f"layers.{n}.attention",
            shape,
            np.dtype(np.float32),
            (Part(names["attention.sinks"].format(n), (c.query_heads,), (), heads.spread_queries),),
            store_as("sinks"),
        )
        for n, layer in enumerate(c.stack)
        if layer.sinks
    ]


def _attention(c: Dense, layout: Layout, names: Names) -> list[Rule]:
    d, size, heads = c.hidden_size, c.head_dim, layout.heads
    slots, width = heads.slots, heads.width
    every = slice(None)
    places: list[tuple[str, int, Any, Spread]] = [
        ("q", c.query_heads, (every, slice(width)), heads.spread_queries),
        ("k", c.kv_heads, (every, width), heads.spread_kv),
        ("v", c.kv_heads, (every, width + 1), heads.spread_kv),
    ]

    def parts(kind: str, *inputs: int) -> tuple[Part, ...]:
        if "attention.qkv" in names:
            rows = (c.query_heads + 2 * c.kv_heads) * size
            return (Part(f"{names['attention.qkv']}.{kind}", (rows, *inputs), (), _fused(c, layout)),)
        return tuple(
            Part(f"{names[f'attention.{name}']}.{kind}", (count * size, *inputs), index, _split(count, size, spread))
            for name, count, index, spread in places
        )

    def gather_out(tensor: Array) -> Array:
        spread = heads.spread_queries(np.swapaxes(tensor, 0, 1).reshape(c.query_heads, size, -1))
        return np.moveaxis(spread, -1, 0)

    path, stem = "layers.{}.attention.", names["attention.out"]
    name, shape = f"{stem}.weight", (d, c.query_heads * size)
    # On one device the heads stand as in the checkpoint, so a block keeps its columns.
    out = Part(name, shape) if layout.tensor_parallel == 1 else Part(name, shape, (), gather_out, moves_columns=True)
    kernel = [
        Rule(path + "qkv", (slots, width + 2, size, d), layout.wide, parts("weight", d), layout.store(1)),
        Rule(path + "out", (d, slots, width, size), layout.wide, (out,), layout.store(3), inputs=3),
    ]
    qkv = Rule(path + "qkv", (slots, width + 2, size), layout.dtype, parts("bias"), store_as("bias"))
    bias = [qkv] * c.qkv_bias + [residual_bias(c, layout, path + "out", stem)] * c.out_bias
    return [*kernel, *bias, *(_gate(c, layout, names) if c.output_gate else [])]


def _gate(c: Dense, layout: Layout, names: Names) -> list[Rule]:
    heads, size, d = layout.heads, c.head_dim, c.hidden_size
    path, shape = "layers.{}.attention.gate", (heads.slots, heads.width, size)

    def part(kind: str, *inputs: int) -> tuple[Part, ...]:
        arrange = _split(c.query_heads, size, heads.spread_queries)
        whole = Part(f"{names['attention.q']}.{kind}", (c.query_heads * size, *inputs), (), arrange)
        return (_half(c, whole, 1),)

    kernel = Rule(path, (*shape, d), layout.wide, part("weight", d), layout.store(1))
    return [kernel, *[Rule(path, shape, layout.dtype, part("bias"), store_as("bias"))] * c.qkv_bias]


def _fused(c: Dense, layout: Layout) -> Spread:
    """q, k and v below each other -> [K, G query heads + k + v, H, ...]."""
    heads, size = layout.heads, c.head_dim

    def arrange(tensor: Array) -> Array:
        every = tensor.reshape(-1, size, *tensor.shape[1:])
        q, k, v = np.split(every, [c.query_heads, c.query_heads + c.kv_heads])
        alone = [heads.spread_kv(part)[:, None] for part in (k, v)]
        return np.concatenate([heads.spread_queries(q), *alone], axis=1)

    return arrange


def _split(count: int, size: int, spread: Spread) -> Spread:
    return lambda tensor: spread(tensor.reshape(count, size, *tensor.shape[1:]))
