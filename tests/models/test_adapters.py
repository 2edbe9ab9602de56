"""Adapters beside a model's maps against the same merged into its weights, and that who has none keeps every bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import registry
from models.adapters import Chosen, gather
from models.attend import causal
from models.errors import ModelError
from models.native import library
from models.registry import build
from models.sharding import make_mesh, shard_tree
from tests.fakes import family_trial, quick
from tests.fakes.adapters import EVERY, adapter_of, merged, params_of, tensors_of
from tests.fakes.tiny_llama import CONFIG
from tests.models.test_references import DEEPSEEK_V3, GEMMA4, GLM4_MOE, GRANITE_HYBRID, LFM2, QWEN3_5

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
LLAMA = CONFIG | SIZES | {"head_dim": 16, "attention_bias": True, "mlp_bias": True}
TRIAL = (
    CONFIG | SIZES | {"architectures": [family_trial.NAME], "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"}
)


@pytest.fixture(autouse=True)
def _trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, "tests.fakes.family_trial"])


KINDS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "llama": (LLAMA, EVERY),
    "norms behind": (TRIAL, EVERY),
    "experts, one of which all share": (GLM4_MOE["glm4_moe"], EVERY),
    "latents": (
        DEEPSEEK_V3["deepseek v3"],
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ),
    "gated attention, a delta rule": (
        QWEN3_5["qwen3.5"],
        (*EVERY, "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"),
    ),
    "Mamba": (GRANITE_HYBRID["granite hybrid, one MLP, biases, attention that turns"], (*EVERY, "in_proj", "out_proj")),
    "convolutions": (LFM2["lfm2"], ("q_proj", "k_proj", "v_proj", "self_attn.out_proj", "in_proj", "w1", "w3", "w2")),
    "heads of a layer's own": (GEMMA4["gemma4, embeddings of layers, shared keys and values"], EVERY),
}
"""Configs, and the ends of the names of the maps that have one."""
PLAIN = ("llama", "norms behind")
PLACES = [
    *((kind, 1, False) for kind in PLAIN),
    *((kind, 1, True) for kind in KINDS),
    *((kind, 2, False) for kind in KINDS),
    ("llama", 4, False),
]


@pytest.mark.parametrize(("kind", "devices", "native"), PLACES)
def test_each_is_as_if_it_were_merged(kind: str, devices: int, native: bool) -> None:
    """Two of other ranks, beside other maps: within 1e-4 of W + B A. Without one: the bits of a model that has none. Over
    several devices, of which none has all heads, and four have two kv heads."""
    if native and library.unavailable() is not None:
        pytest.skip("no kernels")
    config, ends = KINDS[kind]
    model = build(config, dtype=jnp.float32, native=native, quant="none", tensor_parallel=devices)
    tensors = tensors_of(model)
    pairs = [adapter_of(tensors, 2, 3, *ends), adapter_of(tensors, 3, 5, ends[0], ends[-1])]
    adapters = gather(model, pairs, np.float32)
    tokens, mesh = jnp.arange(40, dtype=jnp.int32) * 7 % config["vocab_size"], make_mesh(jax.devices()[:devices])

    def put(tensors: Any) -> Any:
        return shard_tree(params_of(model, tensors), model.param_specs, mesh)

    params = put(tensors)

    def run(params: Any) -> jax.Array:
        caches = [None] * len(model.layers)
        hidden, _ = model.forward(params, tokens, jnp.arange(40, dtype=jnp.int32), causal(), caches)
        return model.logits(params.params if isinstance(params, Chosen) else params, hidden)

    plain = quick.jit(run)
    chosen = quick.jit(lambda params, arrays, which: run(Chosen(params, arrays, adapters.owners, which)))

    def through(number: int) -> np.ndarray:
        return np.asarray(chosen(params, adapters.arrays, jnp.full(40, number, jnp.int32)))

    base = np.asarray(plain(params))
    assert np.array_equal(through(0), base)
    for number, one in enumerate(pairs, start=1):
        expected = np.asarray(plain(put(merged(tensors, one))))
        assert np.abs(expected - base).max() > 0.1
        np.testing.assert_allclose(through(number), expected, atol=1e-4 * max(1.0, np.abs(expected).max()), rtol=0)


def test_what_has_no_place_is_named() -> None:
    model = build(LLAMA, dtype=jnp.float32)
    a, b = np.zeros((2, 48), np.float32), np.zeros((48, 2), np.float32)
    stranger, narrow = "model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"

    with pytest.raises(ModelError) as found:
        gather(model, [{stranger: (a, b), narrow: (a, b)}], np.float32)
    assert list(found.value.misfits) == [
        f"{stranger} is no map that can have an adapter",
        f"{narrow} is [32, 48], and its adapter is of [2, 48] and [48, 2]",
    ]


@pytest.mark.parametrize(
    ("stem", "words"),
    [
        ("mlp.experts.3.up_proj", "experts lie in a stack"),
        ("mlp.experts", "experts lie in a stack"),
        ("mlp.experts.base_layer", "experts lie in a stack"),
        ("mlp.gate", "what chooses experts has none"),
        ("self_attn.kv_b_proj", "what makes keys and values of a latent has none"),
    ],
)
def test_maps_of_experts_and_of_latents_have_none(stem: str, words: str) -> None:
    """By name and with the reason: what makes keys and values of a latent is applied to each head's, and experts are a stack.
    PEFT names what it adds to the tensors of all experts (its `target_parameters`) after the module that has them."""
    model = build(DEEPSEEK_V3["deepseek v3"], dtype=jnp.float32)
    name = f"model.layers.2.{stem}.weight"
    pair = (np.zeros((2, 32), np.float32), np.zeros((32, 2), np.float32))

    with pytest.raises(ModelError) as found:
        gather(model, [{name: pair}], np.float32)
    (told,) = found.value.misfits
    assert told.startswith(f"{name} is no map that can have an adapter: {words}")
