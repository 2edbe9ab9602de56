"""Adapters beside a model's maps against the same merged into its weights, and that who has none keeps every bit."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping, registry
from models.adapters import Chosen, gather
from models.attend import causal
from models.errors import ModelError
from models.mapping import Rule
from models.native import library
from models.registry import build
from models.spec import Model
from models.storage import Array, storage_of
from tests.fakes import family_trial, quick
from tests.fakes.tiny_llama import CONFIG

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
LLAMA = CONFIG | SIZES | {"head_dim": 16, "attention_bias": True, "mlp_bias": True}
TRIAL = (
    CONFIG | SIZES | {"architectures": [family_trial.NAME], "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"}
)
CONFIGS = {"llama": LLAMA, "norms behind": TRIAL}
NATIVE = pytest.param(True, marks=pytest.mark.skipif(library.unavailable() is not None, reason="no kernels"))


@pytest.fixture(autouse=True)
def _trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, "tests.fakes.family_trial"])


def tensors_of(model: Model) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    parts = [part for rule in model.rules if isinstance(rule, Rule) for part in rule.parts]
    return {part.name: (rng.standard_normal(part.shape) * 0.2).astype(np.float32) for part in parts}


def params_of(model: Model, tensors: Mapping[str, Array]) -> Any:
    params: Any = {}
    stored = {name: storage_of(tensor.dtype) for name, tensor in tensors.items()}
    for rule in mapping.check(model.rules, {name: tensor.shape for name, tensor in tensors.items()}):
        mapping.place(params, rule.keys, rule.assemble(tensors.__getitem__, rule.storage(stored)))
    return jax.tree.map(jnp.asarray, params)


def adapter_of(tensors: Mapping[str, Array], seed: int, rank: int, *ends: str) -> dict[str, tuple[Array, Array]]:
    """One beside every matrix whose name ends so."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: (rng.standard_normal(shape) * 0.3).astype(np.float32)
    wanted = {name: one.shape for name, one in tensors.items() if name.endswith(tuple(f"{end}.weight" for end in ends))}
    return {name: (draw(rank, inputs), draw(outputs, rank)) for name, (outputs, inputs) in wanted.items()}


@pytest.mark.parametrize("native", [False, NATIVE])
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_is_as_if_it_were_merged(kind: str, native: bool) -> None:
    """Two of other ranks, beside other maps: within 1e-4 of W + B A. Without one: the bits of a model that has none."""
    model = build(CONFIGS[kind], dtype=jnp.float32, native=native, quant="none")
    tensors = tensors_of(model)
    every = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    pairs = [adapter_of(tensors, 2, 3, *every), adapter_of(tensors, 3, 5, "q_proj", "v_proj", "down_proj")]
    adapters = gather(model, pairs, np.float32)
    tokens, params = jnp.arange(40, dtype=jnp.int32) * 7 % 300, params_of(model, tensors)

    def run(params: Any) -> jax.Array:
        hidden, _ = model.forward(params, tokens, jnp.arange(40, dtype=jnp.int32), causal(), [None] * 2)
        return model.logits(params.params if isinstance(params, Chosen) else params, hidden)

    plain = quick.jit(run)
    chosen = quick.jit(lambda params, arrays, which: run(Chosen(params, arrays, adapters.owners, which)))

    def through(number: int) -> np.ndarray:
        return np.asarray(chosen(params, adapters.arrays, jnp.full(40, number, jnp.int32)))

    base = np.asarray(plain(params))
    assert np.array_equal(through(0), base)
    for number, one in enumerate(pairs, start=1):
        merged = {**tensors, **{name: tensors[name] + up @ down for name, (down, up) in one.items()}}
        expected = np.asarray(plain(params_of(model, merged)))
        assert np.abs(expected - base).max() > 0.1
        np.testing.assert_allclose(through(number), expected, atol=1e-4, rtol=0)


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
