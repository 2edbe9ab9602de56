"""The Qwen3-Next family: Qwen3-Next-80B-A3B, its Instruct, Thinking and Coder; must not know files, pages or jax.

A Qwen3.5 with experts, one of which all tokens share, whose checkpoints have the projections of a key head's query, key, values
and gates side by side in one tensor. https://qwen.ai/blog?id=4074cca80393150c248e508aa62983f9cb7d27cd
"""

from typing import Any

import numpy as np
from attrs import evolve

from models.config import Keys
from models.dense.family import checked, dense_family
from models.dense.names import DELTA, EXPERTS, LAYER, NEXTN, QK_NORMS, SHARED_GATE, USUAL, gguf_tensors, without
from models.dense.record import SILU, Dense, Experts
from models.gguf import Changed, GgufTable
from models.qwen3_5 import HYBRID_KEYS, HYBRID_OPTIONAL, HYBRID_OTHER, PLUS_ONE, drafting, finish_hybrid, hybrid_stack
from models.qwen3_moe import EXPERT_KEYS, sparse_layers
from models.spec import Config

NAME = "Qwen3NextForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    return read_sparse(NAME, config)


def read_sparse(name: str, config: Config) -> Dense:
    """The same of a family of this name."""
    keys = Keys(config, name)
    heads = keys.size("num_attention_heads")
    head_dim, bias = keys.size("head_dim", 256), keys.flag("attention_bias")
    stack, sparse = hybrid_stack(keys, head_dim), sparse_layers(keys, _experts(keys))
    found = Dense(
        architecture=name,
        vocab_size=keys.size("vocab_size"),
        hidden_size=keys.size("hidden_size"),
        intermediate_size=keys.size("intermediate_size", 5632),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 32768),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(evolve(layer, experts=experts) for layer, experts in zip(stack, sparse, strict=True)),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        norm_offset=1.0,
        output_gate=True,
    )
    return checked(keys, found)


def _experts(keys: Keys) -> Experts:
    return Experts(
        count=keys.size("num_experts", 512),
        active=keys.size("num_experts_per_tok", 10),
        width=keys.size("moe_intermediate_size", 512),
        renormalised=keys.flag("norm_topk_prob", default=True),
        shared=keys.size("shared_expert_intermediate_size", 512),
        shared_gate=True,
    )


_LINEAR = LAYER + "linear_attn."
NAMES = {
    **USUAL,
    **QK_NORMS,
    **without(DELTA, "delta.beta", "delta.a"),
    "delta.qkvz": _LINEAR + "in_proj_qkvz",
    "delta.gates": _LINEAR + "in_proj_ba",
    **EXPERTS,
    **SHARED_GATE,
}


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """Where a file does not say how wide the shared expert is, it is as wide as the others."""
    usual = {"norm_topk_prob": True, "shared_expert_intermediate_size": config["moe_intermediate_size"]}
    return finish_hybrid(NAME, {**usual, **config})


GGUF = GgufTable(
    architecture="qwen3next",
    tensors=gguf_tensors(without(NAMES, "mlp.norm")) | {"blk.{}.post_attention_norm": NAMES["mlp.norm"]} | NEXTN,
    required={**HYBRID_KEYS, **EXPERT_KEYS},
    optional={**HYBRID_OPTIONAL, "expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    other=HYBRID_OTHER,
    plus_one=PLUS_ONE,
    changed={
        NAMES["delta.taps"] + ".weight": Changed(one=1),
        NAMES["shared.router"] + ".weight": Changed(one=0),
        NAMES["delta.rate"]: Changed(values=lambda rate: np.log(-rate)),
    },
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(NAME,), model_types=("qwen3_next",), read=read, names=NAMES, gguf=GGUF, ignored=drafting, drafts=True
)
