"""The checkpoint rules of what drafts tokens; knows shapes, must not know files or families.

Its layer stands behind the others, or under a name of its own. What it shares with the decoder, the embeddings and the head,
some checkpoints have once more.
"""

from collections.abc import Sequence

import numpy as np
from attrs import evolve

from models.dense.layout import Layout
from models.dense.names import AHEAD, BEHIND_LAST, LAYER, Names
from models.dense.record import Dense
from models.mapping import Part, Rule
from models.storage import Array

OWN = "mtp.layers.{}."


def own_names(names: Names) -> Names:
    """The table of its layer where it has a name of its own."""
    return {what: stem.replace(LAYER, OWN) for what, stem in names.items()}


def ahead_rules(c: Dense, layout: Layout, own: Sequence[Rule], usual: Sequence[Rule]) -> list[Rule]:
    """`own` and `usual`: those of its layer as the only one of a decoder, by either names."""
    number, width = len(c.stack), c.hidden_size
    layers = [_either(_moved(one), _moved(_behind(other, number))) for one, other in zip(own, usual, strict=True)]

    def norm(whole: Array) -> dict[str, Array]:
        return {"weight": whole + np.float32(c.norm_offset) if c.norm_offset else whole}

    made = [
        _stem(
            what,
            (width, 2 * width) if what == "fc" else (width,),
            number,
            layout.wide if what == "fc" else np.dtype(np.float32),
        )
        for what in AHEAD
    ]
    return [*layers, *(evolve(rule, store=layout.store(1) if rule.path == "ahead.fc" else norm) for rule in made)]


def _stem(what: str, shape: tuple[int, ...], number: int, dtype: object) -> Rule:
    stems = (AHEAD[what], LAYER.format(number) + BEHIND_LAST[what])
    one, other = ((Part(f"{stem}.weight", shape),) for stem in stems)
    return Rule(f"ahead.{what}", shape, dtype, one, dict, others=(other,))


def _moved(rule: Rule) -> Rule:
    return evolve(rule, path=rule.path.replace("layers.0.", "ahead.layer.", 1))


def _behind(rule: Rule, number: int) -> Rule:
    """With the tensors of the layer behind the last."""

    def renamed(parts: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(evolve(part, name=part.name.replace(LAYER.format(0), LAYER.format(number))) for part in parts)

    return evolve(rule, parts=renamed(rule.parts), others=tuple(map(renamed, rule.others)))


def _either(one: Rule, other: Rule) -> Rule:
    assert one.path == other.path, f"{one.path} and {other.path}"
    return evolve(one, others=(*one.others, other.parts, *other.others))
