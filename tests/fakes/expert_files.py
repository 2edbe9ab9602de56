"""Files of families with experts, as `tests.fakes.family_files` has those of the others; knows their names, nothing of ours."""

import re
from typing import Any

import numpy as np

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 2.0**-17,
    "rope_theta": 5000.0,
}
_SMALL = {"head_dim": 32, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3moe": BASE | _SMALL | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 7, "norm_topk_prob": True},
    "gpt-oss": BASE
    | {
        "architectures": ["GptOssForCausalLM"],
        "head_dim": 32,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 20,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
    "llama": BASE | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2},
    "llama4": BASE
    | {
        "architectures": ["Llama4ForCausalLM"],
        "head_dim": 32,
        "intermediate_size": 32,
        "intermediate_size_mlp": 96,
        "num_hidden_layers": 4,
        "num_local_experts": 5,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
    },
    "ernie4_5-moe": BASE
    | {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
    },
    "granitemoe": BASE
    | {
        "architectures": ["GraniteMoeForCausalLM"],
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "intermediate_size": 32,
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.25,
        "logits_scaling": 2.0,
    },
    "hunyuan-moe": BASE
    | {
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "head_dim": 32,
        "intermediate_size": 32,
        "num_experts": 5,
        "moe_topk": [2] * 3,
        "moe_intermediate_size": [32] * 3,
        "num_shared_expert": [2] * 3,
    },
    "minimax-m2": BASE
    | _SMALL
    | {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "num_local_experts": 5,
        "intermediate_size": 32,
        "partial_rotary_factor": 0.5,
    },
    "glm4moe": BASE
    | _SMALL
    | {
        "architectures": ["Glm4MoeForCausalLM"],
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
    },
}
"""By the name that GGUF files give them; Mixtral is a llama there."""

WIDTHS = {"attention.key_length": "head_dim", "attention.value_length": "head_dim"}
_USED = {"expert_used_count": "num_experts_per_tok"}
METADATA: dict[str, dict[str, str]] = {
    "qwen3moe": WIDTHS | _USED | {"expert_count": "num_experts", "expert_feed_forward_length": "moe_intermediate_size"},
    "gpt-oss": WIDTHS
    | _USED
    | {
        "expert_count": "num_local_experts",
        "expert_feed_forward_length": "intermediate_size",
        "attention.sliding_window": "sliding_window",
    },
    "llama": _USED | {"expert_count": "num_local_experts"},
    "llama4": WIDTHS
    | _USED
    | {
        "feed_forward_length": "intermediate_size_mlp",
        "expert_count": "num_local_experts",
        "expert_feed_forward_length": "intermediate_size",
        "interleave_moe_layer_step": "interleave_moe_layer_step",
    },
    "ernie4_5-moe": {
        "expert_count": "moe_num_experts",
        "expert_used_count": "moe_k",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_count": "moe_num_shared_experts",
    },
    "granitemoe": _USED
    | {
        "expert_count": "num_local_experts",
        "attention.scale": "attention_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    },
    "hunyuan-moe": WIDTHS | {"expert_count": "num_experts"},
    "minimax-m2": WIDTHS
    | _USED
    | {"expert_count": "num_local_experts", "expert_feed_forward_length": "intermediate_size"},
    "glm4moe": WIDTHS
    | _USED
    | {
        "expert_count": "n_routed_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
        "expert_weights_scale": "routed_scaling_factor",
    },
}
MORE: dict[str, dict[str, Any]] = {
    "ernie4_5-moe": {"leading_dense_block_count": 1, "interleave_moe_layer_step": 1},
    "hunyuan-moe": {
        "expert_used_count": 2,
        "expert_shared_count": 2,
        "expert_feed_forward_length": 32,
        "expert_shared_feed_forward_length": 64,
        "rope.scaling.type": "none",
    },
    "minimax-m2": {"rope.dimension_count": 16},
    "gpt-oss": {"rope.scaling.original_context_length": 32},
    "glm4moe": {
        "rope.dimension_count": 16,
        "block_count": 4,
        "nextn_predict_layers": 1,
        "leading_dense_block_count": 1,
        "expert_shared_count": 1,
        "expert_weights_norm": True,
    },
}
_TENSORS = {
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
HUNYUAN_NORMS = {"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"}
_BEHIND = {"post_attention_layernorm": "post_attention_norm"}
TENSORS: dict[str, dict[str, str]] = {
    "llama4": {
        "feed_forward.router": "ffn_gate_inp",
        "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp",
        "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
        "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
        "feed_forward.experts.gate_proj": "ffn_gate_exps",
        "feed_forward.experts.up_proj": "ffn_up_exps",
        "feed_forward.experts.down_proj": "ffn_down_exps",
        "feed_forward.gate_proj": "ffn_gate",
        "feed_forward.up_proj": "ffn_up",
        "feed_forward.down_proj": "ffn_down",
    },
    "ernie4_5-moe": _TENSORS
    | {
        "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
    },
    "granitemoe": {
        "block_sparse_moe.router.layer": "ffn_gate_inp",
        "block_sparse_moe.experts.gate_proj": "ffn_gate_exps",
        "block_sparse_moe.experts.up_proj": "ffn_up_exps",
        "block_sparse_moe.experts.down_proj": "ffn_down_exps",
    },
    "qwen3moe": _TENSORS,
    "gpt-oss": _TENSORS | _BEHIND | {"mlp.router": "ffn_gate_inp", "self_attn.sinks": "attn_sinks.weight"},
    "llama": {
        "block_sparse_moe.gate": "ffn_gate_inp",
        "block_sparse_moe.experts.w1": "ffn_gate_exps",
        "block_sparse_moe.experts.w3": "ffn_up_exps",
        "block_sparse_moe.experts.w2": "ffn_down_exps",
    },
    "hunyuan-moe": _TENSORS
    | HUNYUAN_NORMS
    | {
        "mlp.gate.wg": "ffn_gate_inp",
        "mlp.shared_mlp.gate_proj": "ffn_gate_shexp",
        "mlp.shared_mlp.up_proj": "ffn_up_shexp",
        "mlp.shared_mlp.down_proj": "ffn_down_shexp",
    },
    "minimax-m2": {
        "block_sparse_moe.gate": "ffn_gate_inp",
        "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias",
        "block_sparse_moe.experts.w1": "ffn_gate_exps",
        "block_sparse_moe.experts.w3": "ffn_up_exps",
        "block_sparse_moe.experts.w2": "ffn_down_exps",
    },
    "glm4moe": _TENSORS
    | _BEHIND
    | {
        "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
        "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
        "mlp.shared_experts.up_proj": "ffn_up_shexp",
        "mlp.shared_experts.down_proj": "ffn_down_shexp",
    },
}


def together(tensors: dict[str, np.ndarray], *, fused: bool = False, halves: bool = False) -> dict[str, np.ndarray]:
    """One tensor of all experts, [E, out, in], in place of one of each, or of gpt-oss's, or with `halves` of Llama 4's.
    `fused`: gate above up in one."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        alone = re.fullmatch(r"(.*\.experts)\.(\d+)(\..*)", name)
        if alone is not None:
            before, number, after = alone.groups()
            found.setdefault(before + after, {})[int(number)] = tensor
        elif name.endswith((".gate_up_proj", ".gate_up_proj_bias")):
            stem, kind = name.split(".gate_up_proj")[0], "bias" if name.endswith("bias") else "weight"
            turned = tensor if kind == "bias" else tensor.swapaxes(1, 2)
            both = np.split(turned, 2, axis=1) if halves else [turned[:, n::2] for n in range(2)]
            found |= {f"{stem}.{half}_proj.{kind}": part for half, part in zip(("gate", "up"), both, strict=True)}
        elif name.endswith((".experts.down_proj", ".down_proj_bias")):
            bias = name.endswith("bias")
            own = name.replace("_bias", ".bias") if bias else f"{name}.weight"
            found[own] = tensor if bias else tensor.swapaxes(1, 2)
        else:
            found[name] = tensor
    stacks = {name: np.stack([each[n] for n in sorted(each)]) for name, each in found.items() if isinstance(each, dict)}
    every = {name: np.ascontiguousarray(tensor) for name, tensor in (found | stacks).items()}
    return _fused(every) if fused else every


def _fused(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the names that Gemma 4 has for them."""
    found = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for stem in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:
        gate, up, down = (tensors[f"{stem}.experts.{which}_proj.weight"] for which in ("gate", "up", "down"))
        found[f"{stem}.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        found[f"{stem}.experts.down_proj"] = down
    return found
