"""GGUF files of the llama architecture in Hugging Face terms: config keys, tensor names, row order; must not know jax."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from models.blocks import Array, Blocks, Storage
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.gguf import GgufFile, GgufTensor
from neuron_jax.weights.spec import TensorInfo

_ROPE_FACTORS = "rope_freqs.weight"
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROTATED = re.compile(r".*\.self_attn\.(q_proj|k_proj)\.(weight|bias)")
_REQUIRED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_OPTIONAL = {
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}


class GgufCheckpoint:
    """A GGUF file as a `Checkpoint`. `metadata` is the file's own header."""

    def __init__(self, path: Path) -> None:
        """Raises WeightsError when the file is damaged or not of the llama architecture."""
        self._file = GgufFile(path)
        try:
            self._by_name = {hf_name(name): tensor for name, tensor in self._file.tensors.items()}
            self.metadata: Mapping[str, Any] = self._file.metadata
            self.config = _config(path, self._file)
        except BaseException:
            self._file.close()
            raise
        self._by_name.pop(_ROPE_FACTORS, None)
        self.tensors = {name: _info(name, tensor) for name, tensor in self._by_name.items()}
        self.storage: Mapping[str, Storage] = {name: tensor.storage for name, tensor in self._by_name.items()}

    def stored(self, name: str) -> Blocks | Array:
        """See `Checkpoint`. q and k come with their rows in Hugging Face's order, whatever the file has."""
        tensor = self._file.read(self._by_name[name])
        rotated = _ROTATED.fullmatch(name)
        if rotated is None:
            return tensor
        heads = self.config["num_attention_heads" if rotated.group(1) == "q_proj" else "num_key_value_heads"]
        if isinstance(tensor, Blocks):
            return tensor.by_rows(lambda rows: halves_from_pairs(rows, heads))
        return halves_from_pairs(tensor, heads)

    def read(self, name: str) -> Array:
        """See `Checkpoint`."""
        tensor = self.stored(name)
        return tensor.dequantize().reshape(self.tensors[name].shape) if isinstance(tensor, Blocks) else tensor

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def halves_from_pairs(rows: Array, heads: int) -> Array:
    """Undo the row order of GGUF's q and k: there the rotary pairs (i, i + H/2) of a head lie side by side."""
    width = rows.shape[0] // heads
    pairs = rows.reshape(heads, width // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(np.swapaxes(pairs, 1, 2)).reshape(rows.shape)


def hf_name(name: str) -> str:
    """The Hugging Face name of a GGUF tensor; a name without one stays, and the checkpoint's user will not know it."""
    stem, _, kind = name.rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if layer and layer.group(2) in _LAYER:
        return f"model.layers.{layer.group(1)}.{_LAYER[layer.group(2)]}.{kind}"
    return name


def _info(name: str, tensor: GgufTensor) -> TensorInfo:
    return TensorInfo(name, tensor.shape, tensor.format.name, tensor.nbytes)


def _config(path: Path, file: GgufFile) -> dict[str, Any]:
    """The header as a config.json."""
    header = file.metadata
    family = header.get("general.architecture")
    if family != "llama":
        raise bad_checkpoint(path, [f"general.architecture is {family!r}; known is 'llama'"])
    misfits = [f"{family}.{key} is missing" for key in _REQUIRED if f"{family}.{key}" not in header]
    misfits += [
        f"{family}.{key} is {header[f'{family}.{key}']!r}, must be a positive number"
        for key in (*_REQUIRED, *_OPTIONAL)
        if f"{family}.{key}" in header and not _positive(header[f"{family}.{key}"])
    ]
    rotated, count = header.get(f"{family}.rope.dimension_count"), header.get(f"{family}.embedding_length")
    if rotated is not None and not _positive(rotated):
        misfits.append(f"{family}.rope.dimension_count is {rotated!r}, must be a positive number")
    if not misfits and count < header[f"{family}.attention.head_count"]:
        misfits.append(f"{family}.embedding_length is {count}, which is less than one for each attention head")
    misfits += [f"tensor {name} is missing" for name in ("token_embd.weight",) if name not in file.tensors]
    if header.get(f"{family}.expert_count", 0):
        misfits.append(
            f"{family}.expert_count is {header['llama.expert_count']}; mixtures of experts are not supported"
        )
    if misfits:
        raise bad_checkpoint(path, misfits)
    keys = {**_REQUIRED, **_OPTIONAL}
    config = {hf: header[f"{family}.{key}"] for key, hf in keys.items() if f"{family}.{key}" in header}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    return config | {
        "architectures": ["MistralForCausalLM" if config.get("sliding_window") else "LlamaForCausalLM"],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "rope_scaling": _rope_scaling(file),
        "partial_rotary_factor": _rotary_share(config, header.get(f"{family}.rope.dimension_count")),
        "bos_token_id": header.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.get("tokenizer.ggml.eos_token_id"),
    }


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


def _rope_scaling(file: GgufFile) -> dict[str, Any] | None:
    """GGUF keeps Llama 3's scaling as one divisor per frequency, in a tensor."""
    if _ROPE_FACTORS in file.tensors:
        return {"rope_type": "factors", "factors": _floats(file, _ROPE_FACTORS)}
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": file.metadata.get("llama.rope.scaling.factor")}


def _floats(file: GgufFile, name: str) -> list[float]:
    tensor = file.read(file.tensors[name])
    values = tensor.dequantize() if isinstance(tensor, Blocks) else tensor
    return [float(value) for value in values.ravel()]


def _rotary_share(config: Mapping[str, Any], rotated: int | None) -> float:
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return 1.0 if rotated is None else rotated / head
