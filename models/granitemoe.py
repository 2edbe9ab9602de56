"""The Granite family with experts: Granite 3.0 and 3.1 of 1B-A400M and 3B-A800M, and their kin; no files, pages or jax.

A Granite 4 with experts whose layers all attend, and turn. https://github.com/ibm-granite/granite-3.0-language-models.
"""

from typing import Any

from attrs import evolve

from models.config import Keys, architectures
from models.dense.family import dense_family
from models.dense.record import FULL, Dense
from models.gguf import GgufTable
from models.granitemoehybrid import GGUF as HYBRID
from models.granitemoehybrid import MAMBA_KEYS, NAMES, read_as
from models.spec import Config

NAME, SHARED = "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    usual = SHARED if config.get("model_type") == "granitemoeshared" else NAME
    name = next((name for name in architectures(config) if name in (NAME, SHARED)), usual)
    shared = config.get("shared_intermediate_size") if name == SHARED else None
    own = {"layer_types": None, "position_embedding_type": "rope", "shared_intermediate_size": shared or 0}
    return read_as(Keys({**config, **own}, name), usual=FULL)


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    whole = {"num_key_value_heads": config["num_attention_heads"], **config}
    return {**whole, "architectures": [SHARED if config.get("shared_intermediate_size") else NAME]}


GGUF: GgufTable = evolve(
    HYBRID,
    architecture="granitemoe",
    required={key: own for key, own in HYBRID.required.items() if key not in MAMBA_KEYS},
    optional={**HYBRID.optional, "attention.head_count_kv": "num_key_value_heads", "rope.freq_base": "rope_theta"},
    other={"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    flags={"attention_bias": "blk.0.attn_q.bias"},
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(NAME, SHARED), model_types=("granitemoe", "granitemoeshared"), read=read, names=NAMES, gguf=GGUF
)
