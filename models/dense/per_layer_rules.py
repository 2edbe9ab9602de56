"""The checkpoint rules of what layers are given beside the residual stream; knows shapes, must not know files or families."""

import numpy as np

from models.dense.layout import Layout
from models.dense.names import Names
from models.dense.record import Dense, PerLayer
from models.mapping import Part, Rule, store_as

WANTED = frozenset(f"per_layer.{part}" for part in ("embed", "project", "project_norm", "gate", "out", "post_norm"))


def per_layer_rules(c: Dense, layout: Layout, names: Names, kind: PerLayer) -> list[Rule]:
    """Those of the whole decoder, and with `{}` those of each layer."""
    d, width, every = c.hidden_size, kind.width, len(c.stack) * kind.width
    table = Part(f"{names['per_layer.embed']}.weight", (kind.vocab_size, every), (slice(kind.vocab_size),))
    shape = (layout.padded(kind.vocab_size), every)
    return [
        Rule("per_layer.embed", shape, layout.wide, (table,), layout.table_store),
        _map(layout, "per_layer.project", names["per_layer.project"], (every, d)),
        _norm("per_layer.project_norm", names["per_layer.project_norm"], width),
        _map(layout, "after.{}.gate", names["per_layer.gate"], (width, d)),
        _map(layout, "after.{}.out", names["per_layer.out"], (d, width)),
        _norm("after.{}.post_norm", names["per_layer.post_norm"], d),
    ]


def scalar_rule(names: Names) -> Rule:
    """Of each layer what the stream is multiplied by."""
    return Rule("after.{}", (1,), np.dtype(np.float32), (Part(names["scalar"], (1,)),), store_as("scalar"))


def _map(layout: Layout, path: str, stem: str, shape: tuple[int, int]) -> Rule:
    return Rule(path, shape, layout.wide, (Part(f"{stem}.weight", shape),), layout.store(1))


def _norm(path: str, stem: str, width: int) -> Rule:
    return Rule(path, (width,), np.dtype(np.float32), (Part(f"{stem}.weight", (width,)),), store_as("weight"))
