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
TENSORS: dict[str, dict[str, str]] = {
    "qwen35": _DELTA,
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
}


TENSORS["qwen35moe"] = TENSORS["qwen3next"]


def apart(family: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All queries, keys and values in one tensor and their gates in another, in place of one of all by key head."""
    found = {}
    for name, tensor in tensors.items():
        if ".in_proj_qkvz." not in name:
            found[name] = tensor
            continue
        config = CONFIGS[family]
        keys, width = config["linear_num_key_heads"], config["linear_key_head_dim"]
        values = config["linear_num_value_heads"] // keys * config["linear_value_head_dim"]
        ends = np.cumsum([width, width, values])
        parts = np.split(tensor.reshape(keys, -1, tensor.shape[1]), ends, axis=1)
        flat = [part.reshape(-1, tensor.shape[1]) for part in parts]
        found[name.replace("qkvz", "qkv")], found[name.replace("qkvz", "z")] = np.concatenate(flat[:3]), flat[3]
    return found


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
