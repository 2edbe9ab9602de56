"""What a family says of its GGUF files, as data: names and keys; must not know files.

The reader is `neuron_jax.weights.gguf_checkpoint`. What holds for every architecture stands there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

Order = npt.NDArray[np.int64]


def finish_as(architecture: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`GgufTable.finish` where nothing is missing but the architecture, and the kv heads where each head has its own."""

    def finish(config: dict[str, Any]) -> dict[str, Any]:
        return {"num_key_value_heads": config["num_attention_heads"], **config, "architectures": [architecture]}

    return finish


def _unchanged(config: dict[str, Any]) -> dict[str, Any]:
    return config


@frozen(eq=False)
class Changed:
    """What the converter made of a tensor, to be undone. `rows` and `columns` say of a config.json where each of the family's
    own stands in the file; `values` undoes a function of each; `one` is the place of a dimension of one that the file left out;
    `flat`: it is a vector that the file has in two dimensions.
    """

    rows: Callable[[Mapping[str, Any]], Order] | None = None
    columns: Callable[[Mapping[str, Any]], Order] | None = None
    values: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None
    one: int | None = None
    flat: bool = False


@frozen(eq=False)
class GgufTable:
    """One `general.architecture`. Metadata keys are without it: block_count for llama.block_count.

    `tensors`: stems of tensor names, `{}` for the number of a layer -> stems in the family's own checkpoints.
    `required`, `optional`: metadata that are positive numbers -> keys of config.json. `other`: metadata of any kind, which
    the family's own reader checks. `flags`: keys of config.json that are true where the file has this tensor.
    `neighbours`: the tensors whose rows are in llama.cpp's order for rotary pairs, by their stems in `tensors`, and the key
    of config.json with the number of their heads. `plus_one`: stems of tensors that the file stores as 1 + w. `changed`: by
    their whole names, with `{}` for the number of a layer, what else the file has otherwise.
    `refused`: metadata that have to be absent or zero, and what a file with them is. `pooling`: the `pooling_type` that is
    meant where a file has none, if its model reads whole texts. `finish` makes the config whole.
    """

    architecture: str
    tensors: Mapping[str, str]
    required: Mapping[str, str]
    optional: Mapping[str, str] = field(factory=dict)
    other: Mapping[str, str] = field(factory=dict)
    flags: Mapping[str, str] = field(factory=dict)
    neighbours: Mapping[str, str] = field(factory=dict)
    plus_one: tuple[str, ...] = ()
    changed: Mapping[str, Changed] = field(factory=dict)
    refused: Mapping[str, str] = field(factory=dict)
    pooling: int | None = None
    finish: Callable[[dict[str, Any]], dict[str, Any]] = _unchanged


UNREAD: Mapping[str, str] = {
    "jina-bert-v2": "its scores fall with the distance of tokens (ALiBi) in place of positions",
    "jina-bert-v3": "its maps have an adapter for each task, which are in files of their own",
    "neo-bert": "its norms are by root mean squares and stand before attention and MLP, as those of no encoder here do",
    "nomic-bert-moe": "every other of its layers has experts, which no encoder here has",
}
"""Architectures of llama.cpp that are known and not served, and what no family here has."""
