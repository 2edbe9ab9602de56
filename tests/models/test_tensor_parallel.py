"""Every shape of every family on 2, 4 and 8 devices against one: the same logits, the same likeliest tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.attend import causal
from models.linears import XLA
from models.registry import build, families, purpose
from models.sharding import RULES, make_mesh, named_sharding, shard_tree
from models.spec import Model, PagedLayer, ParamSpec
from tests.fakes import quick
from tests.fakes.params import slow_but
from tests.fakes.weight_files import random_tensors

DEGREES = (2, 4, 8)
CLOSE = 1e-4
TOKENS = np.arange(1, 13, dtype=np.int32) * 4 % 53
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES: dict[str, dict[str, Any]] = {
    # heads, kv heads, and what else is not the plain Llama 2. Neither 30 nor 53 divides by a number of devices.
    "llama 2: as many kv heads as heads": {"heads": (8, 8)},
    "llama 3: grouped, scaled rotary": {"heads": (8, 2), "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0},
    "llama 3.2: tied": {"heads": (8, 4), "rope_scaling": LLAMA3_ROPE, "tie_word_embeddings": True},
    "smollm2: 3 kv heads, tied": {"heads": (9, 3), "tie_word_embeddings": True},
    "tinyllama: 16 heads a device's worth": {"heads": (16, 8)},
    "one kv head": {"heads": (6, 1)},
    "one kv head for more heads than devices": {"heads": (12, 1)},
    "5 heads, which divide by nothing": {"heads": (5, 5)},
    "mistral: window, heads wider than the model": {
        "heads": (4, 2),
        "architectures": ["MistralForCausalLM"],
        "head_dim": 10,
        "sliding_window": 4,
    },
    "qwen 2: biases, tied": {"heads": (6, 2), "architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True},
    "qwen 3: norms of heads, wider than the model": {
        "heads": (6, 2),
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 10,
    },
    "gemma 3: windows, norms on both sides": {
        "heads": (4, 1),
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 10,
        "query_pre_attn_scalar": 10,
        "sliding_window": 4,
        "sliding_window_pattern": 2,
    },
    "gemma 2: soft caps": {
        "heads": (4, 2),
        "architectures": ["Gemma2ForCausalLM"],
        "head_dim": 10,
        "sliding_window": 4,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 2.0,
    },
    "granite: multipliers": {
        "heads": (6, 3),
        "architectures": ["GraniteForCausalLM"],
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "smollm 3: a layer that does not turn": {
        "heads": (6, 2),
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layers": [1, 0],
    },
    "glm 4: neighbours turn, gate and up in one": {
        "heads": (6, 2),
        "architectures": ["Glm4ForCausalLM"],
        "head_dim": 8,
    },
    "phi 3: q, k and v in one": {"heads": (6, 2), "architectures": ["Phi3ForCausalLM"], "head_dim": 6},
    "ministral 3: far queries are sharper": {
        "heads": (6, 3),
        "architectures": ["Ministral3ForCausalLM"],
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 4,
            "llama_4_scaling_beta": 0.5,
        },
    },
    "hunyuan": {"heads": (6, 3), "architectures": ["HunYuanDenseV1ForCausalLM"], "head_dim": 6},
    "hunyuan with experts": {
        "heads": (6, 2),
        "architectures": ["HunYuanMoEV1ForCausalLM"],
        "num_experts": 5,
        "moe_topk": 2,
        "intermediate_size": 11,
    },
    "llama 4: shares of what goes into experts": {
        "heads": (6, 2),
        "architectures": ["Llama4ForCausalLM"],
        "head_dim": 6,
        "no_rope_layers": [1, 0],
        "attention_chunk_size": 5,
        "floor_scale": 4,
        "intermediate_size": 11,
        "intermediate_size_mlp": 30,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "moe_layers": [1],
    },
    "deepseek v3: latents, of which each device has a copy": {
        "heads": (5, 5),
        "architectures": ["DeepseekV3ForCausalLM"],
        "q_lora_rank": 10,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 10,
        "first_k_dense_replace": 1,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 11,
        "n_group": 2,
        "topk_group": 1,
    },
    "deepseek v2": {
        "heads": (6, 6),
        "architectures": ["DeepseekV2ForCausalLM"],
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 10,
        "first_k_dense_replace": 2,
        "num_experts_per_tok": 2,
    },
    "glm 4.7 flash": {
        "heads": (6, 6),
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "q_lora_rank": 10,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 10,
        "first_k_dense_replace": 2,
    },
    "gemma 4: layers with heads of their own, and layers that share keys and values": {
        "heads": (6, 3),
        "architectures": ["Gemma4ForCausalLM"],
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "global_head_dim": 10,
        "sliding_window": 4,
        "hidden_size_per_layer_input": 6,
        "vocab_size_per_layer_input": 55,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
    },
    "gemma 4 unified: keys that are values": {
        "heads": (6, 3),
        "architectures": ["Gemma4UnifiedForCausalLM"],
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "global_head_dim": 8,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
    },
    "gemma 4 with experts beside each MLP": {
        "heads": (6, 3),
        "architectures": ["Gemma4ForCausalLM"],
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 2,
        "moe_intermediate_size": 11,
    },
    "qwen 3.5: the gated delta rule, gates": {
        "heads": (6, 2),
        "architectures": ["Qwen3_5ForCausalLM"],
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 5,
    },
    "qwen 3 next: one tensor of queries, keys, values and gates, experts": {
        "heads": (4, 2),
        "architectures": ["Qwen3NextForCausalLM"],
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 5,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 11,
        "shared_expert_intermediate_size": 9,
    },
    "qwen 3.5 with experts, all of which share one": {
        "heads": (4, 2),
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "head_dim": 8,
        "layer_types": ["full_attention", "linear_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 10,
        "shared_expert_intermediate_size": 8,
    },
    "granite 4: Mamba whose one group is split, experts": {
        "heads": (6, 2),
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 6,
        "mamba_d_head": 8,
        "mamba_d_state": 5,
        "num_local_experts": 3,
        "shared_intermediate_size": 10,
        "residual_multiplier": 0.5,
    },
    "granite 3 with experts": {
        "heads": (6, 2),
        "architectures": ["GraniteMoeForCausalLM"],
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    },
    "granite 3 with experts and an MLP that all share": {
        "heads": (6, 2),
        "architectures": ["GraniteMoeSharedForCausalLM"],
        "num_local_experts": 5,
        "shared_intermediate_size": 10,
    },
    "nemotron 3: layers of one thing, groups that divide by nothing, a latent, no gates": {
        "heads": (6, 2),
        "architectures": ["NemotronHForCausalLM"],
        "hybrid_override_pattern": "M*E-",
        "mamba_num_heads": 6,
        "mamba_head_dim": 4,
        "n_groups": 3,
        "ssm_state_size": 5,
        "n_routed_experts": 4,
        "moe_intermediate_size": 11,
        "moe_shared_expert_intermediate_size": 10,
        "moe_latent_size": 14,
        "use_bias": True,
    },
    "lfm 2: short convolutions with biases": {
        "heads": (6, 2),
        "architectures": ["Lfm2ForCausalLM"],
        "layer_types": ["conv", "full_attention"],
        "conv_bias": True,
        "hidden_size": 22,
    },
    "cohere 2: attention and MLP side by side, a mean taken away": {
        "heads": (6, 2),
        "architectures": ["Cohere2ForCausalLM"],
        "hidden_size": 36,
        "layer_types": ["full_attention", "sliding_attention"],
        "sliding_window": 4,
    },
    "cohere": {"heads": (6, 3), "architectures": ["CohereForCausalLM"]},
    "lfm 2 with experts": {
        "heads": (6, 2),
        "architectures": ["Lfm2MoeForCausalLM"],
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 1,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 11,
    },
    "exaone 4: norms behind, of each head": {
        "heads": (6, 2),
        "architectures": ["Exaone4ForCausalLM"],
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
    },
    "ernie 4.5 with experts": {
        "heads": (6, 2),
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "moe_num_experts": 5,
        "moe_k": 2,
        "moe_intermediate_size": 11,
    },
    "seed-oss: a bias behind attention": {
        "heads": (6, 2),
        "architectures": ["SeedOssForCausalLM"],
        "attention_out_bias": True,
    },
    "ernie 4.5: neighbours turn, biases": {
        "heads": (6, 2),
        "architectures": ["Ernie4_5ForCausalLM"],
        "use_bias": True,
    },
    "minimax m2: a norm of all heads, of which a part turns": {
        "heads": (6, 2),
        "architectures": ["MiniMaxM2ForCausalLM"],
        "head_dim": 8,
        "rotary_dim": 4,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    },
    "qwen 3 with experts, which divide by nothing": {
        "heads": (6, 2),
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 11,
    },
    "gpt-oss: sinks, experts with biases": {
        "heads": (6, 3),
        "architectures": ["GptOssForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 4,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4},
    },
    "mixtral: two of three": {"heads": (4, 2), "architectures": ["MixtralForCausalLM"], "num_local_experts": 3},
    "glm 4 with experts: one that all share, one layer without": {
        "heads": (6, 2),
        "architectures": ["Glm4MoeForCausalLM"],
        "head_dim": 8,
        "n_routed_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 11,
        "n_group": 2,
    },
    "olmo 2: a norm of all heads": {"heads": (6, 2), "architectures": ["Olmo2ForCausalLM"]},
    "olmo 3: the same, and windows": {"heads": (5, 5), "architectures": ["Olmo3ForCausalLM"], "sliding_window": 4},
    "attention_bias": {"heads": (6, 3), "attention_bias": True},
    "mlp_bias, linear rotary": {
        "heads": (4, 1),
        "mlp_bias": True,
        "attention_bias": True,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
}


def config(case: str) -> dict[str, Any]:
    """A small config.json."""
    changes = dict(CASES[case])
    heads, kv_heads = changes.pop("heads")
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 24,
        "intermediate_size": 30,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 6,
        "vocab_size": 53,
        "max_position_embeddings": 128,
        "rope_theta": 10000.0,
    } | changes


def logits(model: Model, tensors: dict[str, np.ndarray], devices: int) -> np.ndarray:
    """float32 [T, V] of one plain causal pass."""
    mesh = make_mesh(jax.devices("cpu")[:devices])
    params = shard_tree(mapping.load(model.rules, tensors), model.param_specs, mesh)

    @quick.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
        return model.logits(params, hidden)

    return np.asarray(run(params, jnp.asarray(TOKENS)))


def leaves(model: Model) -> list[ParamSpec]:
    return jax.tree.leaves(model.param_specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))


QUICK = ("llama 3: grouped, scaled rotary", "smollm2: 3 kv heads, tied", "gpt-oss: sinks, experts with biases")


@pytest.mark.parametrize("case", slow_but(QUICK, CASES))
def test_more_devices_give_the_same_logits(case: str) -> None:
    """Within 1e-4 in float32, and the same token is likeliest at each place; more devices than kv heads, too."""
    one = build(config(case), dtype=jnp.float32)
    tensors = random_tensors(one)
    expected = logits(one, tensors, 1)

    for devices in DEGREES:
        found = logits(build(config(case), tensor_parallel=devices, dtype=jnp.float32), tensors, devices)

        np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE, err_msg=f"{devices} devices")
        assert np.array_equal(found.argmax(axis=-1), expected.argmax(axis=-1)), f"{devices} devices"


@pytest.mark.parametrize("devices", [1, *DEGREES])
@pytest.mark.parametrize("quant", XLA)
def test_every_parameter_lies_on_the_mesh_as_the_table_says(quant: str, devices: int) -> None:
    """Each logical axis is in the table, no two dimensions share a mesh axis, and each device has an equal part."""
    mesh = make_mesh(jax.devices("cpu")[:devices])
    for case in CASES:
        model = build(config(case), tensor_parallel=devices, quant=quant, dtype=jnp.float32)
        for spec in leaves(model):
            assert {axis for axis in spec.axes if axis is not None} <= RULES.keys(), spec

            # Both raise: the first where two dimensions clash, the second where a dimension does not divide.
            named_sharding(mesh, spec.axes).shard_shape(spec.shape)
        assert all(layer.kv_heads % devices == 0 for layer in model.layers if isinstance(layer, PagedLayer))


def test_the_table_holds_no_axis_that_nobody_uses() -> None:
    """And every family that generates text is among the cases above; others are on one device."""
    models = [build(config(case), dtype=jnp.float32) for case in CASES]
    named = {name for family in families() for name in family.architectures}
    generating = {name for name in named if purpose({"architectures": [name]}) == "generate"}
    generating -= {"Gemma3TextModel"}  # EmbeddingGemma, which its files tell from a model that generates

    assert {model.architecture for model in models} == generating
    assert {axis for model in models for spec in leaves(model) for axis in spec.axes if axis} == RULES.keys()
