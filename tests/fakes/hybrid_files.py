"""Files of families that recur, as `tests.fakes.family_files` has those of the others; knows their names, nothing of ours."""

from typing import Any

import numpy as np

from tests.fakes import expert_files
from tests.fakes.trial_files import packed

_LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
_HYBRID = {key: value for key, value in expert_files.BASE.items() if key != "rope_theta"} | {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25},
    **_LINEAR,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen35": _HYBRID | {"architectures": ["Qwen3_5ForCausalLM"]},
    "qwen3next": _HYBRID
    | {
        "architectures": ["Qwen3NextForCausalLM"],
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "qwen35moe": {key: value for key, value in _HYBRID.items() if key != "intermediate_size"}
    | {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "lfm2": {key: value for key, value in expert_files.BASE.items() if key != "rms_norm_eps"}
    | {
        "architectures": ["Lfm2ForCausalLM"],
        "norm_eps": 2.0**-17,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
    },
}
CONFIGS["granitehybrid"] = expert_files.BASE | {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "layer_types": ["mamba", "attention", "mamba"],
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 32,
    "mamba_d_conv": 4,
    "mamba_n_groups": 2,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "intermediate_size": 32,
    "shared_intermediate_size": 64,
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.125,
    "residual_multiplier": 0.25,
    "logits_scaling": 2.0,
}
CONFIGS["lfm2moe"] = CONFIGS["lfm2"] | {
    "architectures": ["Lfm2MoeForCausalLM"],
    "num_dense_layers": 1,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_OTHER_KEYS = {"num_hidden_layers", "rms_norm_eps", "intermediate_size"}
CONFIGS["nemotron_h_moe"] = {key: value for key, value in expert_files.BASE.items() if key not in _OTHER_KEYS} | {
    "architectures": ["NemotronHForCausalLM"],
    "layer_norm_epsilon": 2.0**-17,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "intermediate_size": 32,
    "head_dim": 32,
    "mamba_num_heads": 4,
    "mamba_head_dim": 32,
    "n_groups": 2,
    "ssm_state_size": 32,
    "conv_kernel": 4,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 64,
    "moe_latent_size": 32,
    "routed_scaling_factor": 2.5,
}
_SSM = {
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}
METADATA: dict[str, dict[str, str]] = {
    "qwen35": expert_files.WIDTHS | _SSM,
    "qwen3next": expert_files.METADATA["qwen3moe"]
    | _SSM
    | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
    "qwen35moe": expert_files.METADATA["qwen3moe"] | _SSM,
    "lfm2": {"attention.layer_norm_rms_epsilon": "norm_eps"},
    "lfm2moe": {
        "attention.layer_norm_rms_epsilon": "norm_eps",
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "leading_dense_block_count": "num_dense_layers",
    },
    "granitehybrid": {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_shared_feed_forward_length": "shared_intermediate_size",
        "ssm.conv_kernel": "mamba_d_conv",
        "ssm.state_size": "mamba_d_state",
        "ssm.group_count": "mamba_n_groups",
        "ssm.time_step_rank": "mamba_n_heads",
    },
    "nemotron_h_moe": expert_files.WIDTHS
    | {
        "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
        "expert_weights_scale": "routed_scaling_factor",
        "moe_latent_size": "moe_latent_size",
        "ssm.conv_kernel": "conv_kernel",
        "ssm.state_size": "ssm_state_size",
        "ssm.group_count": "n_groups",
        "ssm.time_step_rank": "mamba_num_heads",
    },
}
_SAID = {"rope.dimension_count": 8, "rope.freq_base": 5000.0, "ssm.inner_size": 192}
MORE: dict[str, dict[str, Any]] = {
    "qwen35": _SAID
    | {
        "block_count": 5,
        "nextn_predict_layers": 1,
        "attention.recurrent_layers": [True, True, True, False, False],
    },
    "qwen3next": _SAID | {"full_attention_interval": 4},
    "qwen35moe": _SAID,
    "lfm2": {"attention.head_count_kv": [0, 2, 0], "shortconv.l_cache": 3},
    "lfm2moe": {"attention.head_count_kv": [0, 2, 0], "shortconv.l_cache": 3},
    "granitehybrid": {"attention.head_count_kv": [0, 2, 0], "ssm.inner_size": 128},
    "nemotron_h_moe": {
        "block_count": 5,
        "nextn_predict_layers": 1,
        "attention.head_count_kv": [0, 0, 2, 0, 2],
        "feed_forward_length": [0, 32, 0, 32, 32],
        "ssm.inner_size": 128,
        "expert_shared_count": 1,
        "expert_weights_norm": True,
        "expert_group_count": 1,
    },
}
_DELTA = {
    "post_attention_layernorm": "post_attention_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}
_NEXTN = {
    "eh_proj": "nextn.eh_proj",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "shared_head.norm": "nextn.shared_head_norm",
}
_MAMBA = {
    "in_proj": "ssm_in",
    "conv1d": "ssm_conv1d",
    "A_log": "ssm_a",
    "dt_bias": "ssm_dt.bias",
    "D": "ssm_d",
    "norm": "ssm_norm",
    "out_proj": "ssm_out",
}
TENSORS: dict[str, dict[str, str]] = {
    "qwen35": _DELTA | _NEXTN,
    "qwen3next": expert_files.TENSORS["qwen3moe"]
    | _DELTA
    | {
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
    },
    "lfm2": {
        "model.embedding_norm": "token_embd_norm",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "self_attn.out_proj": "attn_output",
        "operator_norm": "attn_norm",
        "conv.in_proj": "shortconv.in_proj",
        "conv.conv": "shortconv.conv",
        "conv.out_proj": "shortconv.out_proj",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
    },
    "granitehybrid": {
        **{f"mamba.{own}": short for own, short in _MAMBA.items()},
        "block_sparse_moe.router.layer": "ffn_gate_inp",
        "block_sparse_moe.experts.gate_proj": "ffn_gate_exps",
        "block_sparse_moe.experts.up_proj": "ffn_up_exps",
        "block_sparse_moe.experts.down_proj": "ffn_down_exps",
        "shared_mlp.gate_proj": "ffn_gate_shexp",
        "shared_mlp.up_proj": "ffn_up_shexp",
        "shared_mlp.output_linear": "ffn_down_shexp",
    },
    "nemotron_h_moe": {
        "backbone.embeddings": "token_embd",
        "backbone.norm_f": "output_norm",
        "backbone.layers": "blk",
        **{f"mixer.{own}": short for own, short in _MAMBA.items()},
        ".norm.": ".attn_norm.",
        "mixer.gate.e_score_correction_bias": "exp_probs_b.bias",
        "mixer.gate": "ffn_gate_inp",
        "mixer.experts.up_proj": "ffn_up_exps",
        "mixer.experts.down_proj": "ffn_down_exps",
        "mixer.shared_experts.up_proj": "ffn_up_shexp",
        "mixer.shared_experts.down_proj": "ffn_down_shexp",
        "mixer.fc1_latent_proj": "ffn_latent_down",
        "mixer.fc2_latent_proj": "ffn_latent_up",
        "mixer.q_proj": "attn_q",
        "mixer.k_proj": "attn_k",
        "mixer.v_proj": "attn_v",
        "mixer.o_proj": "attn_output",
    },
}


TENSORS["qwen35moe"] = TENSORS["qwen3next"]
TENSORS["lfm2moe"] = {
    "feed_forward.gate": "ffn_gate_inp",
    "feed_forward.expert_bias": "exp_probs_b.bias",
    "feed_forward.experts.w1": "ffn_gate_exps",
    "feed_forward.experts.w3": "ffn_up_exps",
    "feed_forward.experts.w2": "ffn_down_exps",
} | TENSORS["lfm2"]


def apart(family: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors that the file has as two: gate and up of the shared MLP, and what mixes by key head; or otherwise: a row."""
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if ".moe_statics." in name:
            found[name.replace("moe_statics", "gate")] = tensor[0]
        elif ".shared_mlp.input_linear." in name:
            halves = zip(("gate_proj", "up_proj"), np.split(tensor, 2), strict=True)
            found |= {name.replace("input_linear", own): half for own, half in halves}
        else:
            found |= _by_kind(family, name, tensor) if ".in_proj_qkvz." in name else {name: tensor}
    return found


def _by_kind(family: str, name: str, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """All queries, keys and values in one tensor and their gates in another, in place of one of all by key head."""
    config = CONFIGS[family]
    keys, width = config["linear_num_key_heads"], config["linear_key_head_dim"]
    values = config["linear_num_value_heads"] // keys * config["linear_value_head_dim"]
    parts = np.split(tensor.reshape(keys, -1, tensor.shape[1]), np.cumsum([width, width, values]), axis=1)
    flat = [part.reshape(-1, tensor.shape[1]) for part in parts]
    return {name.replace("qkvz", "qkv"): np.concatenate(flat[:3]), name.replace("qkvz", "z"): flat[3]}


def packed_recurrent(family: str, name: str, tensor: np.ndarray) -> tuple[Any, np.ndarray] | None:
    """A tensor of what recurs as llama.cpp's converter stores it, and what of it is left; None of one that it stores as all."""
    if "linear_attn" in name:
        return packed_linear(family, name, tensor)
    mamba = any(
        f".{where}.{what}" in name for where in ("mamba", "mixer") for what in ("A_log", "D", "norm.", "conv1d.")
    )
    return packed_mamba(family, name, tensor) if mamba else None


def packed_mamba(family: str, name: str, tensor: np.ndarray) -> tuple[Any, np.ndarray]:
    """The negative exponential of A_log; it and D with a dimension of one, the norm by group."""
    groups = CONFIGS[family].get("mamba_n_groups") or CONFIGS[family]["n_groups"]
    flat = -np.exp(tensor) if name.endswith("A_log") else tensor.squeeze()
    if name.endswith(("A_log", ".D")):
        flat = flat[:, None]
    entry, kept = packed(flat.reshape(groups, -1) if ".norm." in name else flat)
    return entry, (np.log(-kept) if name.endswith("A_log") else kept).reshape(tensor.shape)


def packed_linear(family: str, name: str, tensor: np.ndarray) -> tuple[Any, np.ndarray]:
    """A tensor of the gated delta rule as llama.cpp's converter stores it, and what of it is left, in the family's own order.

    A negative exponential is stored for A_log. Of Qwen3.5's value heads those with the same place in their group come together.
    """
    config = CONFIGS[family]
    key_heads, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    before = 2 * key_heads * config["linear_key_head_dim"] if ".in_proj_qkv." in name or ".conv1d." in name else 0
    axis = 1 if ".out_proj." in name else 0

    def turned(values: np.ndarray, *, back: bool) -> np.ndarray:
        if family == "qwen3next":
            return values
        values = np.moveaxis(values, axis, 0)
        groups = (heads // key_heads, key_heads) if back else (key_heads, heads // key_heads)
        split = values[before:].reshape(*groups, -1, *values.shape[1:]).swapaxes(0, 1)
        return np.moveaxis(np.concatenate([values[:before], split.reshape(values[before:].shape)]), 0, axis)

    if name.endswith("linear_attn.norm.weight"):
        return packed(tensor)
    flat = -np.exp(tensor) if name.endswith("A_log") else tensor.squeeze()
    entry, kept = packed(np.ascontiguousarray(turned(flat, back=False)))
    kept = turned(kept.reshape(flat.shape), back=True)
    return entry, (np.log(-kept) if name.endswith("A_log") else kept).reshape(tensor.shape)
