"""The Qwen3.5 family with experts: Qwen3.5 and 3.6 35B-A3B and their larger kin, the text of what also sees; no files or jax.

A Qwen3.5 whose MLP is 256 small ones, of which a token goes through 8, and one that all tokens share.
https://arxiv.org/abs/2412.06464 (gated delta rule).
"""

from typing import Any

from models.dense.family import dense_family
from models.dense.names import EXPERTS, LAYER, NEXTN, SHARED_GATE, gguf_tensors, without
from models.dense.record import Dense
from models.gguf import Changed, GgufTable
from models.qwen3_5 import GGUF as DENSE_GGUF
from models.qwen3_5 import HYBRID_KEYS, HYBRID_OPTIONAL, HYBRID_OTHER, PLUS_ONE, drafting, finish_hybrid
from models.qwen3_5 import NAMES as DENSE_NAMES
from models.qwen3_moe import EXPERT_KEYS
from models.qwen3_next import read_sparse
from models.spec import Config

NAME = "Qwen3_5MoeForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    return read_sparse(NAME, {"num_experts": 256, "num_experts_per_tok": 8, **config, "norm_topk_prob": True})


_EXPERTS = LAYER + "mlp.experts."
NAMES = {
    **DENSE_NAMES,
    **EXPERTS,
    **SHARED_GATE,
    "fused.gate_up": _EXPERTS + "gate_up_proj",
    "fused.down": _EXPERTS + "down_proj",
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """Where a file does not say how wide the shared expert is, it is as wide as the others; no layer has one MLP."""
    return finish_hybrid(NAME, {"shared_expert_intermediate_size": config["moe_intermediate_size"], **config})


GGUF = GgufTable(
    architecture="qwen35moe",
    tensors=gguf_tensors(without(NAMES, "mlp.norm")) | {"blk.{}.post_attention_norm": NAMES["mlp.norm"]} | NEXTN,
    required={**{key: own for key, own in HYBRID_KEYS.items() if key != "feed_forward_length"}, **EXPERT_KEYS},
    optional={**HYBRID_OPTIONAL, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    other=HYBRID_OTHER,
    plus_one=PLUS_ONE,
    changed={**DENSE_GGUF.changed, NAMES["shared.router"] + ".weight": Changed(one=0)},
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(NAME,),
    model_types=("qwen3_5_moe_text", "qwen3_5_moe"),
    read=read,
    names=NAMES,
    gguf=GGUF,
    ignored=drafting,
    drafts=True,
)
