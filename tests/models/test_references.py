"""Our logits and greedy text against those of Hugging Face transformers, for each family and the shapes that it may have."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.attend import causal
from models.native import library
from models.registry import build
from tests.fakes import quick
from tests.fakes.params import slow_but
from tests.fakes.weight_files import random_tensors

_BASE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 67,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
_QWEN = _BASE | {"hidden_size": 36, "intermediate_size": 43, "num_attention_heads": 6, "vocab_size": 71}
LLAMA: dict[str, dict[str, Any]] = {
    "llama3": _BASE
    | {
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "linear": _BASE
    | {
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "head_dim": 12,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": _BASE | {"architectures": ["MistralForCausalLM"], "rope_theta": 10000.0, "sliding_window": 5},
}
QWEN2: dict[str, dict[str, Any]] = {
    "qwen2": _QWEN
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen2 windows": _QWEN
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "num_hidden_layers": 3,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
}
QWEN3: dict[str, dict[str, Any]] = {
    "qwen3": _QWEN | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 12, "rope_theta": 5000.0},
    "qwen3 windows, biases": _QWEN
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 8,
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}
_GEMMA3 = _QWEN | {
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 10,
    "num_hidden_layers": 4,
    "sliding_window": 7,
    "query_pre_attn_scalar": 8,
}
GEMMA3: dict[str, dict[str, Any]] = {
    "gemma3": _GEMMA3
    | {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        },
    },
    "gemma3 by older keys, with biases and a cap": _GEMMA3
    | {
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 100.0,
        "rope_theta": 5000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "attention_bias": True,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": False,
    },
}
_YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 16}
YARN: dict[str, dict[str, Any]] = {
    "llama, yarn": _BASE | {"architectures": ["LlamaForCausalLM"], "rope_parameters": _YARN},
    "qwen3, yarn as DeepSeek says it": _QWEN
    | {
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 16,
        "rope_parameters": _YARN | {"beta_fast": 3.0, "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 0.5},
    },
    "llama, yarn with a factor of its own": _BASE
    | {
        "architectures": ["LlamaForCausalLM"],
        "head_dim": 16,
        "rope_parameters": _YARN | {"attention_factor": 1.25, "beta_fast": 4.0},
    },
}
GEMMA2: dict[str, dict[str, Any]] = {
    "gemma2": _GEMMA3
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "rope_theta": 5000.0,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
    },
    "gemma2 without caps, with biases": _GEMMA3
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
}
GLM4: dict[str, dict[str, Any]] = {
    "glm4": _QWEN | {"architectures": ["Glm4ForCausalLM"], "head_dim": 12, "rope_theta": 5000.0, "pad_token_id": 0},
    "glm4, another part turns, no biases": _QWEN
    | {
        "architectures": ["Glm4ForCausalLM"],
        "head_dim": 16,
        "partial_rotary_factor": 0.25,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
}
_MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 3.0,
}
GRANITE: dict[str, dict[str, Any]] = {
    "granite": _QWEN
    | _MULTIPLIERS
    | {"architectures": ["GraniteForCausalLM"], "rope_theta": 5000.0, "tie_word_embeddings": True},
    "granite, biases": _QWEN
    | {"architectures": ["GraniteForCausalLM"], "attention_bias": True, "mlp_bias": True, "residual_multiplier": 0.5},
}
_HYBRID = _QWEN | {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "num_hidden_layers": 4,
    "layer_types": ["mamba", "mamba", "attention", "mamba"],
    "hidden_size": 40,
    "num_attention_heads": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 10,
    "mamba_d_state": 14,
    "shared_intermediate_size": 43,
}
GRANITE_HYBRID: dict[str, dict[str, Any]] = {
    "granite hybrid, experts": _HYBRID
    | _MULTIPLIERS
    | {
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "intermediate_size": 19,
        "mamba_n_groups": 2,
        "tie_word_embeddings": True,
    },
    "granite hybrid, one MLP, biases, attention that turns": _HYBRID
    | {
        "num_local_experts": 0,
        "mamba_proj_bias": True,
        "mamba_conv_bias": False,
        "mamba_d_conv": 3,
        "mamba_d_head": "auto",
        "attention_bias": True,
        "residual_multiplier": 0.5,
        "position_embedding_type": "rope",
        "rope_theta": 5000.0,
    },
}
_GRANITE_MOE = _QWEN | _MULTIPLIERS | {"intermediate_size": 19, "num_local_experts": 6, "num_experts_per_tok": 3}
GRANITE_MOE: dict[str, dict[str, Any]] = {
    "granitemoe": _GRANITE_MOE
    | {"architectures": ["GraniteMoeForCausalLM"], "rope_theta": 5000.0, "tie_word_embeddings": True},
    "granitemoe, an MLP that all share, biases": _GRANITE_MOE
    | {
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "shared_intermediate_size": 23,
        "attention_bias": True,
    },
}
_NEMOTRON = {key: value for key, value in _QWEN.items() if key not in {"num_hidden_layers", "rms_norm_eps"}} | {
    "architectures": ["NemotronHForCausalLM"],
    "head_dim": 10,
    "mamba_num_heads": 6,
    "mamba_head_dim": 7,
    "ssm_state_size": 11,
    "time_step_min": 1e-9,
    "pad_token_id": 0,
}
NEMOTRON_H: dict[str, dict[str, Any]] = {
    "nemotron_h": _NEMOTRON | {"hybrid_override_pattern": "M-M*-M", "n_groups": 3, "mlp_bias": True, "use_bias": True},
    "nemotron_h, experts": _NEMOTRON
    | {
        "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba", "mlp"],
        "n_groups": 1,
        "conv_kernel": 3,
        "use_conv_bias": False,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 19,
        "moe_shared_expert_intermediate_size": 23,
        "routed_scaling_factor": 2.5,
    },
    "nemotron_h, experts on a latent": _NEMOTRON
    | {
        "layers_block_type": ["linear_attention", "moe", "full_attention"],
        "n_groups": 2,
        "n_routed_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 19,
        "moe_shared_expert_intermediate_size": 23,
        "moe_latent_size": 14,
        "norm_topk_prob": False,
    },
}
_LONG = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
PHI3: dict[str, dict[str, Any]] = {
    "phi3": _BASE
    | {
        "architectures": ["Phi3ForCausalLM"],
        "rope_theta": 5000.0,
        "sliding_window": 9,
        "pad_token_id": 0,
    },
    "phi3 for long texts, a part turns": _BASE
    | {
        "architectures": ["Phi3ForCausalLM"],
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "partial_rotary_factor": 0.5,
        "rope_scaling": _LONG,
        "original_max_position_embeddings": 96,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
}
SMOLLM3: dict[str, dict[str, Any]] = {
    "smollm3": _BASE
    | {
        "architectures": ["SmolLM3ForCausalLM"],
        "num_hidden_layers": 5,
        "rope_theta": 5000.0,
        "pad_token_id": 0,
    },
    "smollm3 with windows and biases": _BASE
    | {
        "architectures": ["SmolLM3ForCausalLM"],
        "num_hidden_layers": 3,
        "no_rope_layers": [0, 1, 0],
        "use_sliding_window": True,
        "sliding_window": 5,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
}
MINISTRAL3: dict[str, dict[str, Any]] = {
    "ministral3": _QWEN
    | {
        "architectures": ["Ministral3ForCausalLM"],
        "head_dim": 12,
        "rope_parameters": _YARN | {"llama_4_scaling_beta": 0.3, "mscale": 1.0, "mscale_all_dim": 1.0},
        "pad_token_id": 0,
    },
    "ministral3 with a window": _QWEN
    | {
        "architectures": ["Ministral3ForCausalLM"],
        "head_dim": 16,
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "rope_parameters": _YARN | {"beta_fast": 4.0, "llama_4_scaling_beta": 0.1},
        "pad_token_id": 0,
    },
}
_COHERE = {key: value for key, value in _QWEN.items() if key != "rms_norm_eps"} | {
    "layer_norm_eps": 1e-4,
    "rope_theta": 5000.0,
    "logit_scale": 0.4,
}
COHERE2: dict[str, dict[str, Any]] = {
    "cohere2": _COHERE | {"architectures": ["Cohere2ForCausalLM"], "num_hidden_layers": 5, "sliding_window": 7},
    "cohere2, other layers, biases": _COHERE
    | {
        "architectures": ["Cohere2ForCausalLM"],
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 5,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "cohere": _COHERE | {"architectures": ["CohereForCausalLM"]},
}
_LATENT = _BASE | {
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 19,
    "num_experts_per_tok": 3,
}
_SHARPER = _YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}
DEEPSEEK_V3: dict[str, dict[str, Any]] = {
    "deepseek v3": _LATENT
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_hidden_layers": 3,
        "q_lora_rank": 18,
        "rope_parameters": _SHARPER,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
    },
    "deepseek v3, halves, biases, no latent of queries": _LATENT
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "q_lora_rank": None,
        "rope_theta": 5000.0,
        "rope_interleave": False,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "first_k_dense_replace": 2,
        "n_routed_experts": 5,
        "n_group": 1,
        "topk_group": 1,
    },
}
DEEPSEEK_V2: dict[str, dict[str, Any]] = {
    "deepseek v2": _LATENT
    | {
        "architectures": ["DeepseekV2ForCausalLM"],
        "hidden_size": 33,
        "q_lora_rank": 18,
        "rope_parameters": _YARN | {"mscale": 0.7, "mscale_all_dim": 0.7},
        "n_routed_experts": 8,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.5,
    },
    "deepseek v2 lite": _LATENT
    | {
        "architectures": ["DeepseekV2ForCausalLM"],
        "hidden_size": 33,
        "q_lora_rank": None,
        "rope_theta": 5000.0,
        "n_routed_experts": 5,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
        "tie_word_embeddings": True,
    },
}
GLM4_MOE_LITE: dict[str, dict[str, Any]] = {
    "glm4_moe_lite": _LATENT
    | {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "q_lora_rank": 18,
        "rope_theta": 5000.0,
        "n_routed_experts": 6,
        "pad_token_id": 0,
    },
    "glm4_moe_lite, layers by name, shares as they are": _LATENT
    | {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "num_hidden_layers": 3,
        "mlp_layer_types": ["dense", "dense", "sparse"],
        "q_lora_rank": 10,
        "n_routed_experts": 6,
        "n_group": 2,
        "topk_group": 1,
        "norm_topk_prob": False,
        "attention_bias": True,
        "pad_token_id": 0,
    },
}
_GEMMA4 = _QWEN | {
    "architectures": ["Gemma4ForCausalLM"],
    "head_dim": 10,
    "global_head_dim": 16,
    "num_hidden_layers": 4,
    "sliding_window": 7,
    "hidden_size_per_layer_input": 0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "proportional", "rope_theta": 5000.0, "partial_rotary_factor": 0.4},
    },
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
GEMMA4: dict[str, dict[str, Any]] = {
    "gemma4, keys that are values, biases": _GEMMA4
    | {
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 3,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
    "gemma4, embeddings of layers, shared keys and values": _GEMMA4
    | {
        "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": 71,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 5.0,
    },
    "gemma4, experts beside each MLP": _GEMMA4
    | {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "enable_moe_block": True,
        "num_experts": 7,
        "top_k_experts": 3,
        "moe_intermediate_size": 19,
    },
}
_LINEAR = {
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 18,
    "linear_value_head_dim": 14,
}
QWEN3_5: dict[str, dict[str, Any]] = {
    "qwen3.5": _QWEN
    | _LINEAR
    | {
        "architectures": ["Qwen3_5ForCausalLM"],
        "head_dim": 16,
        "num_hidden_layers": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.25},
    },
    "qwen3.5, other kinds in turn, biases": _QWEN
    | _LINEAR
    | {
        "architectures": ["Qwen3_5ForCausalLM"],
        "head_dim": 12,
        "num_hidden_layers": 3,
        "layer_types": ["full_attention", "linear_attention", "linear_attention"],
        "linear_num_value_heads": 3,
        "linear_conv_kernel_dim": 3,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    },
}
QWEN3_NEXT: dict[str, dict[str, Any]] = {
    "qwen3_next": QWEN3_5["qwen3.5"]
    | {
        "architectures": ["Qwen3NextForCausalLM"],
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 19,
        "shared_expert_intermediate_size": 23,
    },
    "qwen3_next, shares as they are, a layer without experts": QWEN3_5["qwen3.5, other kinds in turn, biases"]
    | {
        "architectures": ["Qwen3NextForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 17,
        "shared_expert_intermediate_size": 17,
        "norm_topk_prob": False,
        "mlp_only_layers": [1],
    },
}
QWEN3_5_MOE: dict[str, dict[str, Any]] = {
    "qwen3_5_moe": {key: value for key, value in QWEN3_NEXT["qwen3_next"].items() if key != "intermediate_size"}
    | {"architectures": ["Qwen3_5MoeForCausalLM"]}
}
_LFM2 = {**_QWEN, "norm_eps": 1e-5, "architectures": ["Lfm2ForCausalLM"]}
LFM2: dict[str, dict[str, Any]] = {
    "lfm2": _LFM2
    | {
        "num_hidden_layers": 4,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
        "block_multiple_of": 10,
        "block_ffn_dim_multiplier": 1.3,
        "rope_theta": 5000.0,
    },
    "lfm2 with biases, by other keys": _LFM2
    | {
        "num_hidden_layers": 3,
        "full_attn_idxs": [1],
        "block_auto_adjust_ff_dim": False,
        "conv_bias": True,
        "conv_L_cache": 4,
        "tie_word_embeddings": False,
    },
}
_LFM2_MOE = _LFM2 | {
    "architectures": ["Lfm2MoeForCausalLM"],
    "num_hidden_layers": 3,
    "layer_types": ["conv", "full_attention", "conv"],
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 19,
    "rope_theta": 5000.0,
}
LFM2_MOE: dict[str, dict[str, Any]] = {
    "lfm2_moe": _LFM2_MOE | {"num_dense_layers": 1, "num_experts": 7, "routed_scaling_factor": 1.5},
    "lfm2_moe without corrections, shares as they are, biases": _LFM2_MOE
    | {
        "num_dense_layers": 0,
        "num_experts": 4,
        "use_expert_bias": False,
        "norm_topk_prob": False,
        "conv_bias": True,
        "tie_word_embeddings": False,
    },
}
_MOE = _QWEN | {"head_dim": 12, "rope_theta": 5000.0, "moe_intermediate_size": 19, "num_experts_per_tok": 3}
QWEN3_MOE: dict[str, dict[str, Any]] = {
    "qwen3_moe": _MOE | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 7, "norm_topk_prob": True},
    "qwen3_moe, some layers without experts, windows": _MOE
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 5,
        "num_hidden_layers": 4,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 9,
        "tie_word_embeddings": True,
    },
}
GPT_OSS: dict[str, dict[str, Any]] = {
    "gpt_oss": _QWEN
    | {
        "architectures": ["GptOssForCausalLM"],
        "num_hidden_layers": 4,
        "head_dim": 16,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "sliding_window": 7,
        "rope_parameters": _YARN | {"truncate": False},
        "swiglu_limit": 1.5,
        "pad_token_id": 0,
    },
    "gpt_oss without biases of attention, other layers": _QWEN
    | {
        "architectures": ["GptOssForCausalLM"],
        "head_dim": 12,
        "num_local_experts": 3,
        "num_experts_per_tok": 1,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
        "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "pad_token_id": 0,
    },
}
MIXTRAL: dict[str, dict[str, Any]] = {
    "mixtral": _QWEN | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 5, "rope_theta": 5000.0},
    "mixtral with a window": _QWEN
    | {
        "architectures": ["MixtralForCausalLM"],
        "head_dim": 10,
        "num_local_experts": 4,
        "num_experts_per_tok": 3,
        "sliding_window": 9,
        "tie_word_embeddings": True,
    },
}
GLM4_MOE: dict[str, dict[str, Any]] = {
    "glm4_moe": _MOE
    | {
        "architectures": ["Glm4MoeForCausalLM"],
        "num_hidden_layers": 3,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "n_shared_experts": 2,
        "routed_scaling_factor": 2.5,
        "use_qk_norm": True,
        "attention_bias": True,
        "pad_token_id": 0,
    },
    "glm4_moe, shares as they are": _MOE
    | {
        "architectures": ["Glm4MoeForCausalLM"],
        "num_hidden_layers": 3,
        "first_k_dense_replace": 2,
        "n_routed_experts": 5,
        "norm_topk_prob": False,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    },
}
OLMO2: dict[str, dict[str, Any]] = {
    "olmo2": _QWEN | {"architectures": ["Olmo2ForCausalLM"], "rope_theta": 5000.0, "pad_token_id": 0},
    "olmo3": _QWEN
    | {
        "architectures": ["Olmo3ForCausalLM"],
        "num_hidden_layers": 4,
        "sliding_window": 7,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_theta": 5000.0,
        "rope_scaling": {key: value for key, value in _YARN.items() if key != "rope_theta"},
        "pad_token_id": 0,
    },
    "olmo3, rotary by kind": _QWEN
    | {
        "architectures": ["Olmo3ForCausalLM"],
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 5,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
        },
        "pad_token_id": 0,
    },
}
EXAONE4: dict[str, dict[str, Any]] = {
    "exaone4": _QWEN
    | {"architectures": ["Exaone4ForCausalLM"], "num_hidden_layers": 5, "sliding_window": 7, "rope_theta": 5000.0},
    "exaone4 without windows": _QWEN
    | {
        "architectures": ["Exaone4ForCausalLM"],
        "sliding_window": None,
        "layer_types": ["full_attention"] * 2,
        "tie_word_embeddings": True,
        "rope_theta": 5000.0,
    },
}
ERNIE4_5: dict[str, dict[str, Any]] = {
    "ernie4_5": _QWEN | {"architectures": ["Ernie4_5ForCausalLM"], "head_dim": 10, "rope_theta": 5000.0},
    "ernie4_5 with biases": _QWEN
    | {"architectures": ["Ernie4_5ForCausalLM"], "head_dim": 12, "use_bias": True, "tie_word_embeddings": False},
}
_ERNIE_MOE = _QWEN | {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "rope_theta": 5000.0,
    "moe_num_experts": 7,
    "moe_k": 3,
    "moe_intermediate_size": 19,
}
ERNIE4_5_MOE: dict[str, dict[str, Any]] = {
    "ernie4_5_moe": _ERNIE_MOE | {"num_hidden_layers": 3},
    "ernie4_5_moe, some layers, nothing shared": _ERNIE_MOE
    | {
        "num_hidden_layers": 4,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 2,
        "moe_layer_interval": 2,
        "moe_num_shared_experts": 0,
        "tie_word_embeddings": False,
    },
}
SEED_OSS: dict[str, dict[str, Any]] = {
    "seed_oss": _QWEN | {"architectures": ["SeedOssForCausalLM"], "head_dim": 10, "rope_theta": 5000.0},
    "seed_oss, other biases": _QWEN
    | {
        "architectures": ["SeedOssForCausalLM"],
        "head_dim": 12,
        "attention_bias": False,
        "attention_out_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
}
MINIMAX_M2: dict[str, dict[str, Any]] = {
    "minimax_m2": _QWEN
    | {
        "architectures": ["MiniMaxM2ForCausalLM"],
        "head_dim": 12,
        "rotary_dim": 8,
        "rope_theta": 5000.0,
        "num_local_experts": 7,
        "num_experts_per_tok": 3,
        "intermediate_size": 19,
    },
}
HUNYUAN_V1_DENSE: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": _QWEN
    | {
        "architectures": ["HunYuanDenseV1ForCausalLM"],
        "head_dim": 12,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "alpha": 50.0, "factor": 1.0},
    },
    "hunyuan_v1_dense, biases": _QWEN
    | {
        "architectures": ["HunYuanDenseV1ForCausalLM"],
        "head_dim": 16,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
}
_HUNYUAN_MOE = _QWEN | {"architectures": ["HunYuanMoEV1ForCausalLM"], "head_dim": 12, "intermediate_size": 19}
HUNYUAN_V1_MOE: dict[str, dict[str, Any]] = {
    "hunyuan_v1_moe": _HUNYUAN_MOE
    | {
        "num_experts": 7,
        "moe_topk": [3, 3],
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "alpha": 50.0, "factor": 1.0},
    },
    "hunyuan_v1_moe, biases": _HUNYUAN_MOE
    | {"num_experts": 4, "moe_topk": 1, "attention_bias": True, "tie_word_embeddings": True},
}
_LLAMA4 = _QWEN | {
    "architectures": ["Llama4ForCausalLM"],
    "head_dim": 12,
    "num_hidden_layers": 4,
    "intermediate_size": 19,
    "intermediate_size_mlp": 43,
    "num_local_experts": 5,
    "attn_scale": 0.3,
}
LLAMA4: dict[str, dict[str, Any]] = {
    "llama4": _LLAMA4
    | {
        "attention_chunk_size": 16,
        "floor_scale": 8,
        "interleave_moe_layer_step": 2,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
        },
    },
    "llama4, two experts of a token, other layers, biases": _LLAMA4
    | {
        "num_experts_per_tok": 2,
        "no_rope_layers": [0, 1, 1, 0],
        "layer_types": ["full_attention", "full_attention", "chunked_attention", "chunked_attention"],
        "attention_chunk_size": 23,
        "floor_scale": 10,
        "moe_layers": [0, 2, 3],
        "use_qk_norm": False,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
}
FAMILIES = {
    "exaone4": EXAONE4,
    "ernie4_5": ERNIE4_5,
    "ernie4_5_moe": ERNIE4_5_MOE,
    "seed_oss": SEED_OSS,
    "minimax_m2": MINIMAX_M2,
    "gemma4": GEMMA4,
    "cohere2": COHERE2,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "glm4_moe_lite": GLM4_MOE_LITE,
    "llama": LLAMA,
    "llama4": LLAMA4,
    "yarn": YARN,
    "ministral3": MINISTRAL3,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3_5": QWEN3_5,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "glm4": GLM4,
    "granite": GRANITE,
    "granite_hybrid": GRANITE_HYBRID,
    "granite_moe": GRANITE_MOE,
    "hunyuan_v1_dense": HUNYUAN_V1_DENSE,
    "hunyuan_v1_moe": HUNYUAN_V1_MOE,
    "lfm2": LFM2,
    "lfm2_moe": LFM2_MOE,
    "nemotron_h": NEMOTRON_H,
    "qwen3_next": QWEN3_NEXT,
    "qwen3_5_moe": QWEN3_5_MOE,
    "phi3": PHI3,
    "smollm3": SMOLLM3,
    "qwen3_moe": QWEN3_MOE,
    "gpt_oss": GPT_OSS,
    "mixtral": MIXTRAL,
    "glm4_moe": GLM4_MOE,
    "olmo2": OLMO2,
}
"""The cases of each, by the name of the file with what transformers says of them."""
TOKENS = (np.arange(60) * 31 % 67).astype(np.int32)
DATA = Path(__file__).parent.parent / "data"


WITHIN = {"qwen3_next": 0.3, "qwen3_5_moe": 0.3}
"""Where int8 strays further: rounded activations choose another expert, and a state carries that on."""
EVERY = [(family, name) for family, cases in FAMILIES.items() for name in cases]
FIRST = [(family, next(iter(cases))) for family, cases in FAMILIES.items()]
NO_KERNELS = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")


def reference(family: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The prompt's logits, and the tokens of the text after it."""
    with np.load(DATA / f"transformers-{family}.npz") as found:
        return found[name], found[f"{name} greedy"]


def logits(config: dict[str, Any], tokens: np.ndarray, **choices: Any) -> np.ndarray:
    """[T, V] of one plain causal pass."""
    tensors = random_tensors(build(config, dtype=jnp.float32))
    model = build(config, dtype=jnp.float32, **choices)

    @quick.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
        return model.logits(params, hidden)

    return np.asarray(run(mapping.load(model.rules, tensors), jnp.asarray(tokens)))


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=NO_KERNELS)], ids=["xla", "native"])
@pytest.mark.parametrize(("family", "name"), slow_but(FIRST, EVERY))
def test_logits_and_greedy_text_are_those_of_transformers(family: str, name: str, *, native: bool) -> None:
    """The prompt's logits within 1e-4, and after it the same token is likeliest at each place of the text."""
    expected, greedy = reference(family, name)
    found = logits(FAMILIES[family][name], np.concatenate([TOKENS, greedy]), native=native)

    np.testing.assert_allclose(found[: len(TOKENS)], expected, rtol=0, atol=1e-4)
    assert found[len(TOKENS) - 1 : -1].argmax(axis=-1).tolist() == greedy.tolist()


@pytest.mark.parametrize(
    ("config", "stem", "fused"),
    [
        (QWEN3_5_MOE["qwen3_5_moe"], "mlp.experts", ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")),
        (
            GRANITE_HYBRID["granite hybrid, experts"],
            "block_sparse_moe.experts",
            ("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
        ),
    ],
    ids=["qwen3_5_moe", "granite"],
)
def test_experts_in_one_tensor_are_those_in_many(config: dict[str, Any], stem: str, fused: tuple[str, str]) -> None:
    """As checkpoints of Qwen3.5 and Granite have them: of all experts the rows of gate before those of up."""
    model = build(config, dtype=jnp.float32)
    alone = random_tensors(model)
    found = {name: tensor for name, tensor in alone.items() if f".{stem}." not in name}
    count = range(config.get("num_experts") or config["num_local_experts"])
    for n in range(4):
        before = f"model.layers.{n}."
        gate, up, down = (
            [alone[f"{before}{stem}.{e}.{what}_proj.weight"] for e in count] for what in ("gate", "up", "down")
        )
        found[before + fused[0]] = np.stack([np.concatenate(each) for each in zip(gate, up, strict=True)])
        found[before + fused[1]] = np.stack(down)

    jax.tree.map(np.testing.assert_array_equal, *(mapping.load(model.rules, tensors) for tensors in (alone, found)))


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=NO_KERNELS)], ids=["xla", "native"])
@pytest.mark.parametrize("family", FAMILIES)
def test_int8_stays_close_to_transformers(family: str, *, native: bool) -> None:
    """By a share of the spread of all logits, on average."""
    name, config = next(iter(FAMILIES[family].items()))
    expected, _ = reference(family, name)
    found = logits(config, TOKENS, quant="int8", native=native)

    assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < WITHIN.get(family, 0.1) * expected.std()
