"""What a config alone says of how its tensors are stored; knows rules of checkpoints, opens no file."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from models.mapping import Rule
from models.registry import build
from models.storage import MXFP4, Storage


def promised(config: Mapping[str, Any]) -> dict[str, Storage]:
    """What files of this config will have, by the names of their tensors, as far as that decides what a GPU keeps: where it is
    MXFP4, matrices of experts, under the names that blocks have. Raises ModelError as `build` does.
    """
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping) or settings.get("quant_method") != "mxfp4":
        return {}
    rules = build(config, dtype=jnp.bfloat16).rules
    stacked = [rule for rule in rules if isinstance(rule, Rule) and rule.stacked]
    ways = [way for rule in stacked for way in (rule.parts, *rule.others)]
    names = [part.name for way in ways for part in way if not part.moves_columns]
    return dict.fromkeys(names, MXFP4)
