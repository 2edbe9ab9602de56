"""Checkpoints of tests.fakes.family_trial: as the text part of a larger model in safetensors, and in GGUF."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from models.registry import build
from tests.fakes.weight_files import random_tensors, write_gguf, write_safetensors

CONFIG: dict[str, Any] = {
    "architectures": ["TrialForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "rms_norm_eps": 2.0**-20,  # which a float32 of a GGUF file holds
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "layer_types": ["sliding_attention", "full_attention", "still_attention"],
    "sliding_window": 20,
    "rope_parameters": {"sliding_attention": {"rope_theta": 100.0}, "full_attention": {"rope_theta": 5000.0}},
    "partial_rotary_factor": 0.5,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 6.0,
    "activation_limit": 1.5,
    "attention_sinks": True,
    "query_pre_attn_scalar": 8,
}


def random_trial(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tensors by the names of a model of text alone; norms near zero, to which the family adds one."""
    tensors = random_tensors(build(config, dtype=np.float32), seed=6)
    return {name: tensor * (0.3 if "norm" in name else 1) for name, tensor in tensors.items()}


def write_wrapped(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A model that sees, the text part of which is the trial."""
    inner = {key: value for key, value in config.items() if key != "architectures"} | {"model_type": "trial_text"}
    whole = {"architectures": ["SeeingForConditionalGeneration"], "model_type": "seeing", "text_config": inner}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(whole))
    stored = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in tensors.items()}
    sight = {"model.vision_tower.patch.weight": np.ones((3, 3), np.float32)}
    write_safetensors(folder / "model.safetensors", stored | sight)
    return folder


_SHORT = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.sinks": "attn_sinks.weight",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_trial_gguf(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Matrices as Q8_0, norms as 1 + w; returns the tensors as the file has them."""
    kinds = ["full_attention", "sliding_attention", "still_attention"]
    header = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.layer_norm_rms_epsilon": config.get("rms_norm_eps", 1e-6),
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": [kinds.index(kind) for kind in config["layer_types"]],
        "rope.freq_base": config["rope_parameters"]["full_attention"]["rope_theta"],
        "rope.freq_base_swa": config["rope_parameters"]["sliding_attention"]["rope_theta"],
        "rope.dimension_count": int(config["head_dim"] * config["partial_rotary_factor"]),
        "attn_logit_softcapping": config["attn_logit_softcapping"],
        "final_logit_softcapping": config["final_logit_softcapping"],
        "activation_limit": config["activation_limit"],
        "query_pre_attn_scalar": config["query_pre_attn_scalar"],
    }
    metadata = {"general.architecture": "trial"} | {f"trial.{key}": value for key, value in header.items() if value}
    entries, stored = {}, {}
    for name, tensor in tensors.items():
        entries[_short(name)], stored[name] = packed(tensor + 1 if "norm" in name else tensor)
        stored[name] = stored[name] - 1 if "norm" in name else stored[name]
    write_gguf(path, metadata, entries)
    return stored


def _short(name: str) -> str:
    for own, short in _SHORT.items():
        name = name.replace(own, short)
    return name.replace("model.layers.", "blk.")


def packed(tensor: np.ndarray) -> tuple[tuple[int, tuple[int, ...], bytes], np.ndarray]:
    """The entry, and its values: float32 of vectors and narrow matrices; of others Q8_0, 32 codes behind a float16 scale."""
    if tensor.ndim == 1 or tensor.shape[-1] % 32:
        return (0, tensor.shape, tensor.astype("<f4").tobytes()), tensor
    groups = tensor.reshape(-1, 32)
    scale = (np.abs(groups).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(groups / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
    raw = np.concatenate([scale.view(np.int8), codes], axis=1).tobytes()
    return (8, tensor.shape, raw), (codes * scale.astype(np.float32)).reshape(tensor.shape).astype(np.float32)
