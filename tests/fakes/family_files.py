"""Files of each family as transformers and llama.cpp's converter write them; knows their names, nothing of ours.

The names in GGUF files are those of llama.cpp's gguf-py/gguf/constants.py, the metadata those of its conversion/.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.fakes import expert_files, hybrid_files
from tests.fakes.trial_files import packed
from tests.fakes.weight_files import write_gguf, write_safetensors

_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 2.0**-17,  # which float32 has
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": _BASE | {"architectures": ["Qwen2ForCausalLM"], "rope_theta": 5000.0},
    "qwen3": _BASE | {"architectures": ["Qwen3ForCausalLM"], "rope_theta": 5000.0, "head_dim": 32},
    "gemma3": _BASE
    | {
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 6,
        "head_dim": 32,
        "sliding_window": 20,
        "query_pre_attn_scalar": 32,
        "rope_theta": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "gemma2": _BASE
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "head_dim": 32,
        "sliding_window": 20,
        "query_pre_attn_scalar": 32,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 2.0,
    },
    "glm4": _BASE | {"architectures": ["Glm4ForCausalLM"], "rope_theta": 5000.0, "head_dim": 32},
    "granite": _BASE
    | {
        "architectures": ["GraniteForCausalLM"],
        "rope_theta": 5000.0,
        "embedding_multiplier": 12.0,
        "attention_multiplier": 0.125,
        "residual_multiplier": 0.25,
        "logits_scaling": 2.0,
    },
    "phi3": _BASE | {"architectures": ["Phi3ForCausalLM"], "rope_theta": 5000.0, "sliding_window": 40},
    "smollm3": _BASE
    | {
        "architectures": ["SmolLM3ForCausalLM"],
        "num_hidden_layers": 4,
        "rope_theta": 5000.0,
        "tie_word_embeddings": False,
    },
    "gemma4": _BASE
    | {
        "architectures": ["Gemma4ForCausalLM"],
        "num_hidden_layers": 4,
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 300,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "final_logit_softcapping": 4.0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 5000.0, "partial_rotary_factor": 0.25},
        },
    },
    "deepseek2": _BASE
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 32,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "split_kv_b": True,
        "rope_theta": 5000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 8.0,
            "mscale": 0.625,
            "mscale_all_dim": 0.625,
        },
    },
    "mistral3": _BASE
    | {
        "architectures": ["Ministral3ForCausalLM"],
        "head_dim": 32,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "beta_fast": 8.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.25,
        },
    },
}
CONFIGS["olmo2"] = _BASE | {
    "architectures": ["Olmo3ForCausalLM"],
    "num_hidden_layers": 4,
    "sliding_window": 20,
    "rope_parameters": {kind: {"rope_theta": 5000.0} for kind in ("sliding_attention", "full_attention")},
}
CONFIGS["cohere2"] = {key: value for key, value in _BASE.items() if key != "rms_norm_eps"} | {
    "architectures": ["Cohere2ForCausalLM"],
    "num_hidden_layers": 4,
    "layer_norm_eps": 2.0**-17,
    "rope_theta": 5000.0,
    "sliding_window": 20,
    "logit_scale": 0.25,
}
CONFIGS["exaone4"] = _BASE | {
    "architectures": ["Exaone4ForCausalLM"],
    "num_hidden_layers": 4,
    "rope_theta": 5000.0,
    "sliding_window": 20,
}
CONFIGS["ernie4_5"] = _BASE | {"architectures": ["Ernie4_5ForCausalLM"], "rope_theta": 5000.0, "head_dim": 32}
CONFIGS["seed_oss"] = _BASE | {"architectures": ["SeedOssForCausalLM"], "rope_theta": 5000.0, "head_dim": 32}
CONFIGS["hunyuan-dense"] = _BASE | {
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "rope_theta": 5000.0,
    "head_dim": 32,
}
CONFIGS |= expert_files.CONFIGS | hybrid_files.CONFIGS
"""By the name that GGUF files give them, of widths that Q8_0 can have."""

_METADATA = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_CAPS = {key: key for key in ("attn_logit_softcapping", "final_logit_softcapping")}
_MULTIPLIERS = {
    "embedding_scale": "embedding_multiplier",
    "attention.scale": "attention_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_WIDTHS = {"attention.key_length": "head_dim", "attention.value_length": "head_dim"}
METADATA: dict[str, dict[str, str]] = {
    "qwen2": _METADATA,
    "qwen3": _METADATA | _WIDTHS,
    "gemma3": _METADATA | _WIDTHS | {"attention.sliding_window": "sliding_window"},
    "gemma2": _METADATA | _WIDTHS | _CAPS | {"attention.sliding_window": "sliding_window"},
    "glm4": _METADATA | _WIDTHS,
    "granite": _METADATA | _MULTIPLIERS,
    "phi3": _METADATA | {"attention.sliding_window": "sliding_window"},
    "smollm3": _METADATA,
    "mistral3": _METADATA | _WIDTHS,
    "cohere2": {key: own for key, own in _METADATA.items() if own != "rms_norm_eps"}
    | {
        "attention.layer_norm_epsilon": "layer_norm_eps",
        "attention.sliding_window": "sliding_window",
        "logit_scale": "logit_scale",
    },
    "exaone4": _METADATA | {"attention.sliding_window": "sliding_window"},
    "ernie4_5": _METADATA | _WIDTHS,
    "seed_oss": _METADATA | _WIDTHS,
    "hunyuan-dense": _METADATA | _WIDTHS,
    "olmo2": _METADATA | {"attention.sliding_window": "sliding_window"},
    "gemma4": _METADATA
    | {
        "attention.key_length": "global_head_dim",
        "attention.value_length": "global_head_dim",
        "attention.key_length_swa": "head_dim",
        "attention.value_length_swa": "head_dim",
        "attention.sliding_window": "sliding_window",
        "attention.shared_kv_layers": "num_kv_shared_layers",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
        "expert_count": "num_experts",
        "expert_used_count": "top_k_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "deepseek2": _METADATA
    | {
        "attention.q_lora_rank": "q_lora_rank",
        "attention.kv_lora_rank": "kv_lora_rank",
        "rope.dimension_count": "qk_rope_head_dim",
        "attention.value_length": "kv_lora_rank",
        "attention.value_length_mla": "v_head_dim",
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
        "expert_weights_scale": "routed_scaling_factor",
        "leading_dense_block_count": "first_k_dense_replace",
    },
    **{family: _METADATA | more for family, more in expert_files.METADATA.items()},
    **{family: _METADATA | more for family, more in hybrid_files.METADATA.items()},
}
"""Keys of the header, and those of config.json that they say."""
MORE: dict[str, dict[str, Any]] = {
    "gemma4": {
        "attention.sliding_window_pattern": [True, False] * 2,
        "feed_forward_length": [96, 96, 192, 192],
        "rope.dimension_count": 32,
        "rope.dimension_count_swa": 16,
        "rope.freq_base": 5000.0,
        "rope.freq_base_swa": 500.0,
    },
    "deepseek2": {
        "attention.head_count_kv": 1,
        "attention.key_length": 80,
        "attention.key_length_mla": 48,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 8.0,
        "rope.scaling.yarn_log_multiplier": 0.0625,
        "block_count": 4,
        "nextn_predict_layers": 1,
        "expert_shared_count": 1,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
    },
    "glm4": {"rope.dimension_count": 16},
    "mistral3": {
        "attention.temperature_scale": 0.25,
        "rope.freq_base": 5000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
        "rope.scaling.yarn_beta_fast": 8.0,
        "rope.scaling.yarn_log_multiplier": 1.0,
    },
    "exaone4": {"attention.sliding_window_pattern": [True, True, True, False]},
    "olmo2": {"attention.sliding_window_pattern": [True, True, True, False], "rope.freq_base": 5000.0},
    **expert_files.MORE,
    **hybrid_files.MORE,
}
"""What else it says."""
DIVISORS: dict[str, list[float]] = {"gemma4": [1.0] * 4 + [1e30] * 12}
"""Of the frequencies of full layers, in a tensor of their own."""

_TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
TENSORS: dict[str, dict[str, str]] = {
    "qwen2": _TENSORS,
    "qwen3": _TENSORS | _HEAD_NORMS,
    "gemma3": _TENSORS
    | _HEAD_NORMS
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "glm4": _TENSORS
    | {
        "post_self_attn_layernorm": "post_attention_norm",
        "post_mlp_layernorm": "post_ffw_norm",
        "mlp.gate_up_proj": "ffn_up",
    },
    "granite": _TENSORS,
    "phi3": _TENSORS | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
    "smollm3": _TENSORS,
    "mistral3": _TENSORS,
    "cohere2": _TENSORS,
    "exaone4": _TENSORS
    | _HEAD_NORMS
    | {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"},
    "ernie4_5": _TENSORS,
    "seed_oss": _TENSORS | {"post_attention_layernorm": "post_attention_norm"},
    "hunyuan-dense": _TENSORS | expert_files.HUNYUAN_NORMS,
    "olmo2": _TENSORS
    | _HEAD_NORMS
    | {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"},
    "gemma4": {
        "model.embed_tokens_per_layer": "per_layer_token_embd",
        "model.per_layer_model_projection": "per_layer_model_proj",
        "model.per_layer_projection_norm": "per_layer_proj_norm",
        "per_layer_input_gate": "inp_gate",
        "post_per_layer_input_norm": "post_norm",
        "per_layer_projection": "proj",
        "layer_scalar": "layer_output_scale.weight",
        "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
        "router.proj": "ffn_gate_inp",
        "router.scale": "ffn_gate_inp.scale",
        "router.per_expert_scale": "ffn_down_exps.scale",
        "experts.gate_up_proj": "ffn_gate_up_exps.weight",
        "experts.down_proj": "ffn_down_exps.weight",
    }
    | _TENSORS
    | _HEAD_NORMS
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "deepseek2": _TENSORS
    | {
        "self_attn.q_a_proj": "attn_q_a",
        "self_attn.q_a_layernorm": "attn_q_a_norm",
        "self_attn.q_b_proj": "attn_q_b",
        "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
        "self_attn.kv_a_layernorm": "attn_kv_a_norm",
        "self_attn.k_b_proj": "attn_k_b",
        "self_attn.v_b_proj": "attn_v_b",
    }
    | expert_files.TENSORS["glm4moe"]
    | {"post_attention_layernorm": "ffn_norm"},
    **{family: more | _TENSORS | _HEAD_NORMS | more for family, more in expert_files.TENSORS.items()},
    **{family: more | _TENSORS | _HEAD_NORMS | more for family, more in hybrid_files.TENSORS.items()},
}
TENSORS["gemma2"] = TENSORS["gemma3"]
"""Parts of transformers' names, and of the file's."""

PLUS_ONE = {"gemma2", "gemma3", "qwen35", "qwen3next", "qwen35moe"}
"""Whose norms the files have as 1 + w."""
NEIGHBOURS = {"granite", "granitehybrid", "granitemoe", "smollm3", "mistral3", "llama"}
"""Whose rows of q and k the files have in llama.cpp's order, in which the two of a rotary pair are neighbours."""


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """As transformers saves a model of text alone."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_gemma3_with_sight(folder: Path, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """As transformers saves one that sees. Returns the config of its text."""
    text = {key: value for key, value in CONFIGS["gemma3"].items() if key != "architectures"}
    inner = text | {"model_type": "gemma3_text"}
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": inner}
    stored = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    write_folder(folder, whole, stored | {"model.vision_tower.patch.weight": np.ones((3, 3), np.float32)})
    return inner


def write_family_gguf(path: Path, family: str, tensors: dict[str, np.ndarray], **more: Any) -> dict[str, np.ndarray]:
    """Of CONFIGS[family], matrices as Q8_0; returns the tensors as the file has them, by transformers' names. `more`: what else
    its header has."""
    config = CONFIGS[family]
    header = {f"{family}.{key}": config[own] for key, own in METADATA[family].items() if own in config}
    header |= {f"{family}.{key}": value for key, value in MORE.get(family, {}).items()}
    if scaling := config.get("rope_scaling"):
        header |= {
            f"{family}.rope.scaling.type": scaling["rope_type"],
            f"{family}.rope.scaling.factor": scaling["factor"],
        }
    entries, stored = {}, {}
    ways = {"fused": family == "gemma4", "halves": family == "llama4"}
    for name, tensor in hybrid_files.apart(family, expert_files.together(tensors, **ways)).items():
        short = name
        for own, part in TENSORS[family].items():
            short = short.replace(own, part)
        shift = np.float32(family in PLUS_ONE and "norm" in name and "linear_attn" not in name)
        if (recurrent := hybrid_files.packed_recurrent(family, name, tensor)) is not None:
            entries[short], stored[name] = recurrent
            continue
        entries[short], _ = packed(_in_order(family, name, _flat(tensor)) + shift)
        kept = packed(_flat(tensor) + shift)[1] - shift  # row by row, so in any order
        stored[name] = kept.reshape(tensor.shape)
    if divisors := DIVISORS.get(family):
        entries["rope_freqs.weight"], _ = packed(np.array(divisors, np.float32))
    write_gguf(path, {"general.architecture": family} | header | more, entries)
    return stored


def _in_order(family: str, name: str, tensor: np.ndarray) -> np.ndarray:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if family not in NEIGHBOURS or heads is None:
        return tensor
    split = tensor.reshape(CONFIGS[family][heads], 2, -1, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def _flat(tensor: np.ndarray) -> np.ndarray:
    """Without the dimension of one that a convolution's taps have."""
    return tensor if tensor.ndim == 1 else tensor.squeeze()
