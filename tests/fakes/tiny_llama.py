"""A Llama of a few thousand random weights for tests of the engine: real code, real shapes, no files."""

import json
import pathlib
import struct
from typing import Any

import jax.numpy as jnp
import numpy as np

from models.registry import build
from models.spec import Model
from tests.fakes.plain_pass import random_params

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}


def tiny(**changes: Any) -> tuple[Model, Any]:
    """The model and its parameters, the same on every call."""
    model = build(CONFIG | changes, dtype=jnp.float32)
    return model, random_params(model, seed=11)


def write_checkpoint(folder: pathlib.Path, *, seed: int = 11, dtype: str = "F32", **changes: Any) -> pathlib.Path:
    """A folder with config.json and model.safetensors of random weights, under Hugging Face names."""
    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(seed)
    kind = {"F32": "<f4", "F16": "<f2"}[dtype]
    tensors = {name: (rng.standard_normal(shape) * 0.3).astype(kind) for name, shape in hf_shapes(config).items()}
    header: dict[str, Any] = {}
    offset = 0
    for name, array in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    head = json.dumps(header).encode()
    body = b"".join(array.tobytes() for array in tensors.values())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + body)
    return folder


def hf_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of its checkpoint, as Hugging Face names them."""
    width, mlp = config["hidden_size"], config["intermediate_size"]
    head = width // config["num_attention_heads"]
    kv = config["num_key_value_heads"] * head
    layer = {
        "input_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (kv, width),
        "self_attn.v_proj.weight": (kv, width),
        "self_attn.o_proj.weight": (width, width),
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (mlp, width),
        "mlp.up_proj.weight": (mlp, width),
        "mlp.down_proj.weight": (width, mlp),
    }
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes if config["tie_word_embeddings"] else shapes | {"lm_head.weight": (config["vocab_size"], width)}
