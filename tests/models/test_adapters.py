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
from tests.fakes import family_trial, quick
from tests.fakes.adapters import EVERY, adapter_of, merged, params_of, tensors_of
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


@pytest.mark.parametrize("native", [False, NATIVE])
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_is_as_if_it_were_merged(kind: str, native: bool) -> None:
    """Two of other ranks, beside other maps: within 1e-4 of W + B A. Without one: the bits of a model that has none."""
    model = build(CONFIGS[kind], dtype=jnp.float32, native=native, quant="none")
    tensors = tensors_of(model)
    pairs = [adapter_of(tensors, 2, 3, *EVERY), adapter_of(tensors, 3, 5, "q_proj", "v_proj", "down_proj")]
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
        expected = np.asarray(plain(params_of(model, merged(tensors, one))))
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
