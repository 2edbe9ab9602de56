"""What drafts tokens, against its arithmetic written out in numpy; and its tensors by every name that they have."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.attend import causal
from models.dense.build import DenseModel
from models.dense.names import AHEAD, BEHIND_LAST, has_drafting
from models.native import library
from models.registry import build
from models.sharding import make_mesh, shard_tree
from neuron_jax.weights.checkpoint import open_checkpoint
from tests.fakes import quick
from tests.fakes.family_files import CONFIGS, write_family_gguf
from tests.fakes.weight_files import random_tensors

Tensors = dict[str, np.ndarray]
NO_KERNELS = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")
CONFIG = CONFIGS["qwen35"]
TOKENS = np.arange(1, 40, dtype=np.int32) * 37 % 300
BEHIND = np.append(TOKENS[1:], 7).astype(np.int32)


def hidden_and_drafted(model: DenseModel, tensors: Tensors, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Final hidden states [T, D], and the logits [T, V] of the tokens behind those that follow."""
    mesh = make_mesh(jax.devices("cpu")[:devices])
    params = shard_tree(mapping.load(model.rules, tensors), model.param_specs, mesh)

    @quick.jit
    def run(params: Any) -> Any:
        positions = jnp.arange(len(TOKENS), dtype=jnp.int32)
        nothing = [None] * len(model.layers)
        hidden, _ = model.forward(params, jnp.asarray(TOKENS), positions, causal(), nothing)
        ahead, _ = model.draft(params, hidden, (jnp.asarray(BEHIND), positions), causal(), None)
        return hidden, model.logits(params, ahead)

    hidden, logits = run(params)
    return np.asarray(hidden), np.asarray(logits)


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + CONFIG["rms_norm_eps"]) * (1 + weight)


def turned(x: np.ndarray) -> np.ndarray:
    """x [T, heads, H] by position, a quarter of each head."""
    width = x.shape[-1] // 4
    frequencies = CONFIG["rope_parameters"]["rope_theta"] ** -(np.arange(0, width, 2) / width)
    angle = np.arange(len(x))[:, None, None] * frequencies
    cos, sin = np.cos(angle), np.sin(angle)
    one, two, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
    return np.concatenate([one * cos - two * sin, two * cos + one * sin, rest], axis=-1)


def reference(tensors: Tensors, hidden: np.ndarray) -> np.ndarray:
    """As Qwen's module for it: norms multiply by 1 + w, queries come with gates, the head is the model's."""
    heads, kv_heads, size = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    w = {name.removeprefix("mtp."): tensor.astype(np.float64) for name, tensor in tensors.items() if "mtp." in name}
    at = lambda name: w[f"layers.0.{name}.weight"]
    embedded = tensors["model.embed_tokens.weight"][BEHIND]
    both = [norm(embedded, w["pre_fc_norm_embedding.weight"]), norm(hidden, w["pre_fc_norm_hidden.weight"])]
    x = np.concatenate(both, axis=-1) @ w["fc.weight"].T

    inner = norm(x, at("input_layernorm"))
    q, gate = np.split((inner @ at("self_attn.q_proj").T).reshape(-1, heads, 2 * size), 2, axis=-1)
    k, v = ((inner @ at(f"self_attn.{which}_proj").T).reshape(-1, kv_heads, size) for which in "kv")
    q, k = turned(norm(q, at("self_attn.q_norm"))), turned(norm(k, at("self_attn.k_norm")))
    k, v = (np.repeat(part, heads // kv_heads, axis=1) for part in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(size)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("hts,shd->thd", shares / shares.sum(-1, keepdims=True), v) / (1 + np.exp(-gate))
    x = x + mixed.reshape(len(x), -1) @ at("self_attn.o_proj").T
    inner = norm(x, at("post_attention_layernorm"))
    up, along = inner @ at("mlp.up_proj").T, inner @ at("mlp.gate_proj").T
    x = x + (along / (1 + np.exp(-along)) * up) @ at("mlp.down_proj").T
    return norm(x, w["norm.weight"]) @ tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"]).T


@pytest.mark.parametrize(
    ("devices", "native"),
    [(1, False), (2, False), pytest.param(1, True, marks=NO_KERNELS)],
    ids=["xla", "two", "native"],
)
def test_it_computes_what_the_reference_computes(devices: int, *, native: bool) -> None:
    model = build(CONFIG, dtype=jnp.float32, draft=True, native=native, tensor_parallel=devices)
    tensors = random_tensors(build(CONFIG, dtype=jnp.float32, draft=True))
    hidden, logits = hidden_and_drafted(model, tensors, devices)
    expected = reference(tensors, hidden)

    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4)
    assert np.abs(expected).max() > 1


def behind_the_last(tensors: Tensors, layers: int) -> Tensors:
    """By the names that llama.cpp and other families give them."""
    stems = {f"{AHEAD[what]}.": f"model.layers.{layers}.{BEHIND_LAST[what]}." for what in AHEAD}
    stems["mtp.layers.0."] = f"model.layers.{layers}."
    renamed = {}
    for name, tensor in tensors.items():
        stem = next((stem for stem in stems if name.startswith(stem)), None)
        renamed[name if stem is None else stems[stem] + name.removeprefix(stem)] = tensor
    return renamed


@pytest.mark.parametrize("family", ["qwen35", "qwen35moe", "qwen3next", "glm4moe", "deepseek2"])
def test_its_tensors_stand_under_either_names(family: str) -> None:
    """And are read only where it is to draft."""
    config = CONFIGS[family]
    plain, model = (build(config, dtype=jnp.float32, draft=draft) for draft in (False, True))
    tensors = random_tensors(model)
    others = behind_the_last(tensors, config["num_hidden_layers"])
    ways = [jax.tree.leaves(mapping.load(model.rules, way)) for way in (tensors, others)]

    assert others.keys() != tensors.keys()
    assert all(np.array_equal(one, other) for one, other in zip(*ways, strict=True))
    assert all(map(has_drafting, (tensors, others)))
    assert not has_drafting(random_tensors(plain))
    mapping.check(plain.rules, {name: tensor.shape for name, tensor in others.items()})
    assert len(model.layers) == len(plain.layers) + 1


def test_a_gguf_file_has_it_behind_the_last_layer(tmp_path: Path) -> None:
    """Its norms as 1 + w, as all of the file's."""
    model = build(CONFIG, dtype=jnp.float32, draft=True)
    tensors = behind_the_last(random_tensors(model), CONFIG["num_hidden_layers"])
    stored = write_family_gguf(tmp_path / "m.gguf", "qwen35", tensors)
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        mapping.check(model.rules, {name: info.shape for name, info in checkpoint.tensors.items()})
        assert has_drafting(checkpoint.tensors)
        for name, tensor in stored.items():
            np.testing.assert_array_equal(checkpoint.read(name), tensor, err_msg=name)
