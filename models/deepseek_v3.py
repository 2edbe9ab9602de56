"""The DeepSeek V3 family: V3, R1, V3.1; must not know files, pages or jax.

Latent attention, whose heads turn in a part of their own, its pairs being neighbours; where YaRN scales the turning, all
scores are sharper. The first layers have one MLP, the others experts that are chosen by sigmoids with a correction within the
best groups, and one that all tokens share. The layer behind the last, which drafts tokens, is read for guesses.
https://arxiv.org/abs/2412.19437.
"""

from typing import Any

from attrs import evolve

from models.config import MOST_LAYERS, Keys
from models.dense.expert_config import read_sigmoid_experts
from models.dense.family import checked, dense_family
from models.dense.latent_config import latent_scale, read_latent
from models.dense.names import CORRECTION, EXPERTS, GGUF_KEYS, LATENT, NEXTN, SHARED, USUAL, gguf_tensors, without
from models.dense.record import SILU, Dense, Experts
from models.gguf import GgufTable
from models.spec import Config

NAME, SECOND = "DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM"


def read(config: Config) -> Dense:
    """What the family reads of a config.json. Raises ModelError with every misfit."""
    keys = Keys(config, NAME)
    experts = read_sigmoid_experts(keys, count=256, active=8, width=2048, scale=2.5, groups=8, kept_groups=4)
    interleaved = keys.flag("rope_interleave", default=True)
    return read_deepseek(keys, experts, dense=keys.size("first_k_dense_replace", 3, least=0), interleaved=interleaved)


def read_deepseek(keys: Keys, experts: Experts, *, dense: int, interleaved: bool = True) -> Dense:
    """The same for every version: the first `dense` layers have one MLP, the others `experts`."""
    heads, bias = keys.size("num_attention_heads"), keys.flag("attention_bias")
    if keys.size("num_key_value_heads", heads) != heads:
        keys.refuse("num_key_value_heads must be num_attention_heads: all heads share one latent")
    if keys.size("moe_layer_freq", 1) != 1:
        keys.refuse("moe_layer_freq must be 1")
    layer = read_latent(keys, interleaved=interleaved, split=keys.flag("split_kv_b"))
    kind = layer.latent
    assert kind is not None, "a layer with a latent"
    count = keys.size("num_hidden_layers", most=MOST_LAYERS)
    found = Dense(
        architecture=keys.subject,
        vocab_size=keys.size("vocab_size"),
        hidden_size=keys.size("hidden_size"),
        intermediate_size=keys.size("intermediate_size"),
        query_heads=heads,
        kv_heads=1,
        head_dim=kind.still + kind.turned,
        max_positions=keys.size("max_position_embeddings", 4096),
        epsilon=keys.number("rms_norm_eps", 1e-6),
        stack=tuple(layer if n < dense else evolve(layer, experts=experts) for n in range(count)),
        activation=keys.choice("hidden_act", {"silu": SILU}, "silu"),
        tied=keys.flag("tie_word_embeddings"),
        qkv_bias=bias,
        out_bias=bias,
        scale=latent_scale(keys, kind),
    )
    return checked(keys, found)


NAMES = {**without(USUAL, "attention.k", "attention.v"), **LATENT, **EXPERTS, **CORRECTION, **SHARED}


def drafting(found: Dense) -> tuple[str, ...]:
    """The tensors of the layers that draft tokens, in either container."""
    behind = "|".join(str(len(found.stack) + n) for n in range(_MOST_DRAFTING))
    return rf"model\.layers\.({behind})\..*", rf"blk\.({behind})\..*"


_MOST_DRAFTING = 4
_LOG = "yarn_log_multiplier"
_LENGTHS = ("key_length", "key_length_mla", "value_length", "value_length_mla")
_SIGMOID = 2
"""Of expert_gating_func."""


def _finish(config: dict[str, Any]) -> dict[str, Any]:
    """Both versions are one architecture of GGUF, and it is the scores of experts that differ. Newer files have what makes keys
    and values apart, and the widths of heads under keys of their own; YaRN's sharpening is one number, a tenth of both in
    config.json.
    """
    said = {key: value for key, value in config.items() if key not in {"partial_rotary_factor", *_LENGTHS, _LOG}}
    k, v = (config.get(f"{key}_mla", config.get(key, 0)) for key in ("key_length", "value_length"))
    scaling, log = config.get("rope_scaling"), config.get(_LOG)
    if scaling and log:
        said["rope_scaling"] = {**scaling, "mscale": 10 * log, "mscale_all_dim": 10 * log}
    drafting = said.pop("num_nextn_predict_layers", 0)
    sigmoid = said.pop("gating", None) == _SIGMOID
    return said | {
        "qk_nope_head_dim": k - config["qk_rope_head_dim"],
        "v_head_dim": v,
        "num_hidden_layers": config["num_hidden_layers"] - (drafting if isinstance(drafting, int) else 0),
        "n_group": config.get("n_group", 1),
        "topk_group": config.get("topk_group", 1),
        "topk_method": "greedy" if config.get("n_group", 1) == 1 else "group_limited_greedy",
        "architectures": [NAME if sigmoid else SECOND],
    }


GGUF = GgufTable(
    architecture="deepseek2",
    tensors=gguf_tensors(NAMES) | NEXTN,
    required={
        **GGUF_KEYS,
        "attention.kv_lora_rank": "kv_lora_rank",
        "rope.dimension_count": "qk_rope_head_dim",
        "attention.key_length": "key_length",
        "attention.value_length": "value_length",
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
    },
    optional={
        "attention.q_lora_rank": "q_lora_rank",
        "attention.key_length_mla": "key_length_mla",
        "attention.value_length_mla": "value_length_mla",
        "rope.freq_base": "rope_theta",
        f"rope.scaling.{_LOG}": _LOG,
        "expert_weights_scale": "routed_scaling_factor",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
    },
    other={
        "expert_gating_func": "gating",
        "expert_shared_count": "n_shared_experts",
        "expert_weights_norm": "norm_topk_prob",
        "leading_dense_block_count": "first_k_dense_replace",
        "nextn_predict_layers": "num_nextn_predict_layers",
    },
    flags={"split_kv_b": "blk.0.attn_k_b.weight"},
    finish=_finish,
)

FAMILY = dense_family(
    architectures=(NAME,),
    model_types=("deepseek_v3",),
    read=read,
    names=NAMES,
    gguf=GGUF,
    ignored=drafting,
    drafts=True,
)
