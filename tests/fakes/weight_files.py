"""Small weight files written by hand, and random tensors for any model; knows the containers, reads nothing back."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from models.mapping import Rule
from models.spec import Embedder, Model
from models.storage import Blocks, Storage

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
}


def random_tensors(model: Model | Embedder, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint for `model` under Hugging Face names, float32; the same for the same seed and config. What is one number
    and no bias multiplies a whole stream, and is near 1.
    """
    parts = [part for rule in model.rules if isinstance(rule, Rule) for part in rule.parts]
    shapes = {part.name: part.shape for part in parts}
    rng = np.random.default_rng(seed)
    scale = {name: 1.0 if len(shape) == 1 else shape[-1] ** -0.5 for name, shape in sorted(shapes.items())}
    made = {name: (rng.standard_normal(shapes[name]) * scale[name]).astype(np.float32) for name in scale}
    return {
        name: 1 + tensor / 8 if tensor.shape == (1,) and "bias" not in name else tensor for name, tensor in made.items()
    }


def random_blocks(storage: Storage, rows: int = 6, columns: int = 64, seed: int = 0) -> Blocks:
    """Every code, and scales with as many bits as the storage's."""
    rng = np.random.default_rng(seed)
    low, high = (0, 16) if storage.bits == 4 else (-128, 128)
    groups = (rows, -(-columns // storage.group))
    scale, offset = (rng.standard_normal(groups).astype(np.float16).astype(np.float32) for _ in range(2))
    if storage.e2m1:
        scale = np.ldexp(np.float32(1), rng.integers(-9, 9, groups))
    elif not storage.half:
        scale, offset = scale * 63, offset * 63
    codes = rng.integers(low, high, (rows, columns)).astype(np.int8)
    return Blocks(codes, scale, offset if storage.offset else None, storage)


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """One .safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        kind = _DTYPES[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    head = json.dumps(header).encode()
    body = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(struct.pack("<Q", len(head)) + head + body)


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, tuple[int, ...], bytes]]
) -> None:
    """One .gguf file, version 3; a tensor is (ggml type, shape in numpy's order, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, packed = _gguf_value(value)
        out += _gguf_string(key) + struct.pack("<I", kind) + packed
    at = 0
    for name, (kind, shape, raw) in tensors.items():
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        out += _gguf_string(name) + dims + struct.pack("<IQ", kind, at)
        at += -(-len(raw) // 32) * 32
    out += b"\0" * (-len(out) % 32)
    for _, _, raw in tensors.values():
        out += raw + b"\0" * (-len(raw) % 32)
    path.write_bytes(out)


def _gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _gguf_value(value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)
        case str():
            return 8, _gguf_string(value)
        case _:
            kinds = [_gguf_value(item) for item in value]
            return 9, struct.pack("<IQ", kinds[0][0], len(kinds)) + b"".join(packed for _, packed in kinds)


GGUF_LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "c", "é"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
}
"""The header of a llama of 8 wide, 2 heads over 1 kv head, 1 layer, 4 tokens."""

GGUF_SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (4, 8),
    "output_norm.weight": (8,),
    "blk.0.attn_norm.weight": (8,),
    "blk.0.attn_q.weight": (8, 8),
    "blk.0.attn_k.weight": (4, 8),
    "blk.0.attn_v.weight": (4, 8),
    "blk.0.attn_output.weight": (8, 8),
    "blk.0.ffn_norm.weight": (8,),
    "blk.0.ffn_gate.weight": (12, 8),
    "blk.0.ffn_up.weight": (12, 8),
    "blk.0.ffn_down.weight": (8, 12),
}


def gguf_tensors(seed: int = 0) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """float32 tensors for GGUF_LLAMA."""
    rng = np.random.default_rng(seed)
    return {name: (0, shape, rng.standard_normal(shape).astype("<f4").tobytes()) for name, shape in GGUF_SHAPES.items()}
