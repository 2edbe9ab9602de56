"""The LFM2 family with experts: LFM2-8B-A1B and 24B-A2B; must not know files, pages or jax.

An LFM2 of whose layers all but the first have experts, which sigmoids choose with a correction. https://arxiv.org/abs/2511.23404.
"""

from typing import Any

from attrs import evolve

from models.config import Keys
from models.dense.family import checked, dense_family
from models.dense.names import LAYER, gguf_tensors
from models.dense.record import Dense, Experts
from models.lfm2 import GGUF as LFM2
from models.lfm2 import NAMES as LFM2_NAMES
from models.lfm2 import finish_convolving, read_as
from models.qwen3_moe import EXPERT_KEYS
from models.spec import Config

NAME = "Lfm2MoeForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    found, experts = read_as(keys, keys.size("intermediate_size", 7168)), _experts(keys)
    dense = keys.size("num_dense_layers", 2, least=0)
    stack = tuple(evolve(layer, experts=experts if n >= dense else None) for n, layer in enumerate(found.stack))
    return checked(keys, evolve(found, stack=stack))


def _experts(keys: Keys) -> Experts:
    return Experts(
        count=keys.size("num_experts", 32),
        active=keys.size("num_experts_per_tok", 4),
        width=keys.size("moe_intermediate_size", 1792),
        scoring="sigmoid",
        renormalised=keys.flag("norm_topk_prob", default=True),
        scale=keys.number("routed_scaling_factor", 1.0),
        correction=keys.flag("use_expert_bias", default=True),
    )


_FEED = LAYER + "feed_forward."
NAMES = {
    **LFM2_NAMES,
    "experts.router": _FEED + "gate",
    "experts.correction": _FEED + "expert_bias",
    "experts.gate": _FEED + "experts.{}.w1",
    "experts.up": _FEED + "experts.{}.w3",
    "experts.down": _FEED + "experts.{}.w2",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    return finish_convolving(NAME, config)


GGUF = evolve(
    LFM2,
    architecture="lfm2moe",
    tensors=gguf_tensors(NAMES) | {"token_embd_norm": NAMES["norm"]},
    required={**LFM2.required, **EXPERT_KEYS},
    other={**LFM2.other, "leading_dense_block_count": "num_dense_layers"},
    finish=_finish,
)

FAMILY = dense_family(architectures=(NAME,), model_types=("lfm2_moe",), read=read, names=NAMES, gguf=GGUF)
