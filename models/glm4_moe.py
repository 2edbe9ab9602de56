"""The GLM-4 family with experts: GLM-4.5, its Air, 4.6 and 4.7; must not know files, pages or jax.

The first layers have one MLP, the others experts that are chosen by sigmoids with a correction, and one that all tokens share;
half of each head turns. The layer behind the last, which drafts tokens, is read for guesses. https://arxiv.org/abs/2508.06471.
"""

from typing import Any

from models.config import MOST_LAYERS, Keys
from models.dense.expert_config import read_sigmoid_experts
from models.dense.family import checked, dense_family
from models.dense.names import CORRECTION, EXPERTS, GGUF_KEYS, NEXTN, QK_NORMS, SHARED, USUAL, gguf_tensors, without
from models.dense.record import SILU, Dense, Experts, Layer
from models.gguf import GgufTable, finish_as
from models.rope import read_rotary
from models.spec import Config

NAME = "Glm4MoeForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    hidden, heads = keys.size("hidden_size", 4096), keys.size("num_attention_heads", 96)
    head_dim = keys.optional_size("head_dim") or hidden // heads
    rotary, experts = read_rotary(keys, head_dim, share=0.5), _experts(keys)
    count, dense = keys.size("num_hidden_layers", 46, most=MOST_LAYERS), keys.size("first_k_dense_replace", 1, least=0)
    found = Dense(
        architecture=NAME,
        vocab_size=keys.size("vocab_size", 151552),
        hidden_size=hidden,
        intermediate_size=keys.size("intermediate_size", 10944),
        query_heads=heads,
        kv_heads=keys.size("num_key_value_heads", 8),
        head_dim=head_dim,
        max_positions=keys.size("max_position_embeddings", 131072),
        epsilon=keys.number("rms_norm_eps", 1e-5),
        stack=tuple(Layer(rotary, experts=experts if n >= dense else None) for n in range(count)),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=keys.flag("attention_bias"),
        qk_norm=keys.flag("use_qk_norm"),
    )
    return checked(keys, found)


def _experts(keys: Keys) -> Experts:
    count = keys.size("num_local_experts", 128)
    return read_sigmoid_experts(keys, count=count, active=8, width=1408, scale=1.0)


NAMES = {**USUAL, **QK_NORMS, **EXPERTS, **CORRECTION, **SHARED}


def _drafting(found: Dense) -> tuple[str, ...]:
    """The tensors of the layer that drafts tokens, in either container."""
    return rf"model\.layers\.{len(found.stack)}\..*", rf"blk\.{len(found.stack)}\..*"


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF counts the layers that draft tokens among all."""
    drafting = config.get("num_nextn_predict_layers")
    layers = config["num_hidden_layers"] - (drafting if isinstance(drafting, int) else 0)
    return finish_as(NAME)({**config, "num_hidden_layers": layers})


GGUF = GgufTable(
    architecture="glm4moe",
    tensors=gguf_tensors(without(NAMES, "mlp.norm")) | {"blk.{}.post_attention_norm": NAMES["mlp.norm"]} | NEXTN,
    required={
        **GGUF_KEYS,
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
    },
    optional={
        "rope.freq_base": "rope_theta",
        "expert_weights_scale": "routed_scaling_factor",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
    },
    other={
        "expert_shared_count": "n_shared_experts",
        "expert_weights_norm": "norm_topk_prob",
        "leading_dense_block_count": "first_k_dense_replace",
        "nextn_predict_layers": "num_nextn_predict_layers",
    },
    flags={"attention_bias": "blk.0.attn_q.bias", "use_qk_norm": "blk.0.attn_q_norm.weight"},
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(NAME,), model_types=("glm4_moe",), read=read, names=NAMES, gguf=GGUF, ignored=_drafting, drafts=True
)
