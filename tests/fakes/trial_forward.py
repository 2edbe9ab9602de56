"""What tests.fakes.family_trial must compute, once more in numpy from the checkpoint's own tensors: nothing of ours in it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]


def logits(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], tokens: list[int]) -> Floats:
    """[T, V] in float64."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = weights["model.embed_tokens.weight"][tokens] * config["hidden_size"] ** 0.5
    for n, kind in enumerate(config["layer_types"]):
        layer = {name.removeprefix(f"model.layers.{n}."): tensor for name, tensor in weights.items()}
        pre = config.get("norms", "both") == "both"
        given = _norm(x, layer["input_layernorm.weight"]) if pre else x
        x = x + _norm(_attention(config, kind, layer, given), layer["post_attention_layernorm.weight"])
        given = _norm(x, layer["pre_feedforward_layernorm.weight"]) if pre else x
        x = x + _norm(_mlp(config, layer, given), layer["post_feedforward_layernorm.weight"])
    found = _norm(x, weights["model.norm.weight"]) @ weights["model.embed_tokens.weight"].T
    cap = config.get("final_logit_softcapping")
    return found if cap is None else cap * np.tanh(found / cap)


def _norm(x: Floats, weight: Floats) -> Floats:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * (1 + weight)


def _linear(layer: Mapping[str, Floats], name: str, x: Floats) -> Floats:
    return x @ layer[f"{name}.weight"].T + layer.get(f"{name}.bias", 0.0)


def _mlp(config: Mapping[str, Any], layer: Mapping[str, Floats], x: Floats) -> Floats:
    gate, up = _linear(layer, "mlp.gate_proj", x), _linear(layer, "mlp.up_proj", x)
    limit = config.get("activation_limit")
    if limit is not None:
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
    bent = 0.5 * gate * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    return _linear(layer, "mlp.down_proj", bent * up)


def _attention(config: Mapping[str, Any], kind: str, layer: Mapping[str, Floats], x: Floats) -> Floats:
    """Head by head, token by token."""
    heads, kv_heads, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    q, k, v = (_linear(layer, f"self_attn.{name}_proj", x).reshape(len(x), -1, size) for name in "qkv")
    q, k = _norm(q, layer["self_attn.q_norm.weight"]), _norm(k, layer["self_attn.k_norm.weight"])
    if kind != "still_attention":
        theta, rotated = config["rope_parameters"][kind]["rope_theta"], int(size * config["partial_rotary_factor"])
        q, k = _turned(q, theta, rotated), _turned(k, theta, rotated)
    mixed = np.zeros((len(x), heads, size))
    for head in range(heads):
        for t in range(len(x)):
            first = max(0, t - config["sliding_window"] + 1) if kind == "sliding_attention" else 0
            seen, group = slice(first, t + 1), head // (heads // kv_heads)
            scores = k[seen, group] @ q[t, head] / config.get("query_pre_attn_scalar", size) ** 0.5
            cap = config.get("attn_logit_softcapping")
            scores = scores if cap is None else cap * np.tanh(scores / cap)
            shares = np.exp(scores)
            sink = np.exp(layer["self_attn.sinks"][head]) if "self_attn.sinks" in layer else 0.0
            mixed[t, head] = shares / (shares.sum() + sink) @ v[seen, group]
    return _linear(layer, "self_attn.o_proj", mixed.reshape(len(x), -1))


def _turned(x: Floats, theta: float, rotated: int) -> Floats:
    """The first `rotated` dimensions, pairs being (i, i + rotated / 2)."""
    angles = np.arange(len(x))[:, None] * theta ** (-np.arange(0, rotated, 2) / rotated)
    turn = np.exp(1j * angles)[:, None]
    half = rotated // 2
    found = (x[..., :half] + 1j * x[..., half:rotated]) * turn
    return np.concatenate([found.real, found.imag, x[..., rotated:]], axis=-1)
