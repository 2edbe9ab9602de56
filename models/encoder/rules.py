"""The checkpoint rules of an encoder, from a family's table of names; knows shapes, must not know files or families.

A table of names says for each of these what it is called in the family's checkpoints, as a stem to which `.weight` and
`.bias` come, with `{}` for the number of a layer:

    tokens, positions, types, embedding_norm                      norm                head.dense, head.norm, head.scores
    attention_norm, mlp_norm, q, k, v or qkv, out, up, down       (of each layer; `up` has the gate's rows first, or there is
                                                                   a `gate`)
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from models.encoder.record import Encoder
from models.mapping import Ignore, Part, Rule, store_as, store_kernel, unroll

Names = Mapping[str, str]
_WIDE = np.dtype(np.float32)


def rules(c: Encoder, names: Names, dtype: Any, ignored: tuple[str, ...]) -> tuple[Rule | Ignore, ...]:
    """`ignored`: patterns of the whole names of tensors that are known and not needed."""
    outer = [*_tables(c, names, dtype), *_norm(c, names, "embedding_norm"), *_head(c, names)]
    outer += _norm(c, names, "norm") if c.pre_norms else []
    layer = [*_norm(c, names, "mlp_norm", "layers.{}."), *_attention(c, names, dtype), *_mlp(c, names, dtype)]
    norms = unroll(_norm(c, names, "attention_norm", "layers.{}."), len(c.stack))
    first = {"layers.0.attention_norm"} if c.pre_norms else set()
    return (
        *unroll([*outer, *layer], len(c.stack)),
        *(rule for rule in norms if rule.path not in first),
        *map(Ignore, ignored),
    )


def _tables(c: Encoder, names: Names, dtype: Any) -> list[Rule]:
    sizes = {"tokens": c.vocab_size, "positions": c.positions, "types": c.token_types}
    shapes = {what: (count, c.hidden_size) for what, count in sizes.items() if count}
    return [
        Rule(what, shape, dtype, (Part(f"{names[what]}.weight", shape),), store_as("kernel"))
        for what, shape in shapes.items()
    ]


def _norm(c: Encoder, names: Names, what: str, prefix: str = "") -> list[Rule]:
    shape, kinds = (c.hidden_size,), ("weight", "bias") if c.norm_bias else ("weight",)
    return [
        Rule(prefix + what, shape, _WIDE, (Part(f"{names[what]}.{kind}", shape),), store_as(kind)) for kind in kinds
    ]


def map_rules(path: str, stems: tuple[str, ...], outputs: int, inputs: int, dtype: Any, *, bias: bool) -> list[Rule]:
    """Of maps [outputs, inputs] below each other."""
    whole = len(stems) * outputs
    places = [(stem, (slice(at * outputs, (at + 1) * outputs),)) for at, stem in enumerate(stems)]
    kernel = tuple(Part(f"{stem}.weight", (outputs, inputs), place) for stem, place in places)
    biases = tuple(Part(f"{stem}.bias", (outputs,), place) for stem, place in places)
    made = [Rule(path, (whole, inputs), dtype, kernel, store_kernel(1, "none"))]
    return [*made, Rule(path, (whole,), dtype, biases, store_as("bias"))] if bias else made


def _attention(c: Encoder, names: Names, dtype: Any) -> list[Rule]:
    d, bias = c.hidden_size, c.attention_bias
    fused = "qkv" in names
    stems = (names["qkv"],) if fused else (names["q"], names["k"], names["v"])
    return [
        *map_rules("layers.{}.qkv", stems, 3 * d if fused else d, d, dtype, bias=bias),
        *map_rules("layers.{}.out", (names["out"],), d, d, dtype, bias=bias),
    ]


def _mlp(c: Encoder, names: Names, dtype: Any) -> list[Rule]:
    d, f = c.hidden_size, c.intermediate_size
    apart = "gate" in names
    stems = (names["gate"], names["up"]) if apart else (names["up"],)
    return [
        *map_rules("layers.{}.up", stems, 2 * f if c.gated and not apart else f, d, dtype, bias=c.mlp_bias),
        *map_rules("layers.{}.down", (names["down"],), d, f, dtype, bias=c.mlp_bias),
    ]


def _head(c: Encoder, names: Names) -> list[Rule]:
    if c.classifier is None:
        return []
    d = c.hidden_size
    return [
        *map_rules("head.dense", (names["head.dense"],), d, d, _WIDE, bias=c.classifier.bias),
        *(_norm(c, {"norm": names["head.norm"]}, "norm", "head.") if c.classifier.norm else []),
        *map_rules("head.scores", (names["head.scores"],), c.classifier.labels, d, _WIDE, bias=True),
    ]
