"""GGUF files of models of whole texts, by the names that llama.cpp's converter gives them; knows no reader of ours.

Names and keys are those of gguf-py's constants and tensor mapping. https://github.com/ggml-org/llama.cpp/tree/master/gguf-py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.fakes.weight_files import write_gguf

_BERT = {
    "roberta.": "",
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.": "blk.",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    "classifier.dense": "cls",
    "classifier.out_proj": "cls.output",
}
_DECODER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
TENSORS: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "modern-bert": {
        "model.": "",
        "embeddings.tok_embeddings": "token_embd",
        "embeddings.norm": "token_embd_norm",
        "final_norm": "output_norm",
        "layers.": "blk.",
        "attn.Wqkv": "attn_qkv",
        "attn.Wo": "attn_output",
        "mlp_norm": "ffn_norm",
        "mlp.Wi": "ffn_up",
        "mlp.Wo": "ffn_down",
        "head.dense": "cls",
        "head.norm": "cls.norm",
        "classifier": "cls.output",
    },
    "nomic-bert": {
        "embeddings.word_embeddings": "token_embd",
        "embeddings.token_type_embeddings": "token_types",
        "emb_ln": "token_embd_norm",
        "encoder.layers.": "blk.",
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "norm1": "attn_output_norm",
        "mlp.fc11": "ffn_up",
        "mlp.fc12": "ffn_gate",
        "mlp.fc2": "ffn_down",
        "norm2": "layer_output_norm",
    },
    "gemma-embedding": _DECODER
    | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "2_Dense.linear": "dense_2",
        "3_Dense.linear": "dense_3",
    },
    "eurobert": _DECODER | {"post_attention_layernorm": "ffn_norm"},
    "qwen3": _DECODER | {"post_attention_layernorm": "ffn_norm", "lm_head": "output"},
}
"""By `general.architecture`, parts of the model's own names and of the file's."""

_METADATA = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_eps": "attention.layer_norm_epsilon",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "global_rope_theta": "rope.freq_base",
    "local_rope_theta": "rope.freq_base_swa",
    "rope_local_base_freq": "rope.freq_base_swa",
    "local_attention": "attention.sliding_window",
    "sliding_window": "attention.sliding_window",
    "sliding_window_pattern": "attention.sliding_window_pattern",
    "global_attn_every_n_layers": "attention.sliding_window_pattern",
    "hidden_activation": "hidden_activation",
}
"""Keys of config.json, and those of the header without the architecture."""


def write_encoder_gguf(
    path: Path, architecture: str, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], **more: Any
) -> Path:
    """In float32. `more`: what else the header has under the architecture, `__` for a dot. Returns `path`.

    An XLM-RoBERTa's positions begin behind its padding token: those before are left out.
    """
    unused = config.get("pad_token_id", -1) + 1 if "position_embeddings" in " ".join(tensors) else 0
    said = {key: config[own] for own, key in _METADATA.items() if own in config}
    said |= {key.replace("__", "."): value for key, value in more.items()}
    said["context_length"] -= unused
    header = {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in said.items()}
    if (kinds := config.get("type_vocab_size")) is not None:
        header["tokenizer.ggml.token_type_count"] = kinds
    found = {}
    for name, values in tensors.items():
        short = name
        for own, part in TENSORS[architecture].items():
            short = short.replace(own, part)
        kept = values[unused:] if short == "position_embd.weight" else values
        kept = kept + 1 if architecture == "gemma-embedding" and "norm" in name else kept
        found[short] = (0, kept.shape, kept.astype("<f4").tobytes())
    write_gguf(path, header, found)
    return path
