"""A family in one file with every option that Llama does not use, against a plain numpy pass written for itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping, registry
from models.attend import causal
from models.dense.record import Activation
from models.errors import ModelError
from models.matrices import activate
from models.native import library
from models.registry import build
from models.sharding import make_mesh, shard_tree
from models.spec import Model
from tests.fakes import quick, trial_forward
from tests.fakes.trial_files import CONFIG, random_trial

TOKENS = [int(token) for token in np.arange(1, 31) * 37 % CONFIG["vocab_size"]]
CASES: dict[str, dict[str, Any]] = {
    "all": CONFIG,
    "biases, norms behind alone": CONFIG | {"attention_bias": True, "mlp_bias": True, "norms": "after"},
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, "tests.fakes.family_trial"])


def logits(model: Model, tensors: dict[str, np.ndarray], devices: int = 1) -> np.ndarray:
    mesh = make_mesh(jax.devices("cpu")[:devices])
    params = shard_tree(mapping.load(model.rules, tensors), model.param_specs, mesh)

    @quick.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
        return model.logits(params, hidden)

    return np.asarray(run(params, jnp.asarray(TOKENS, jnp.int32)))


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_plain_pass_computes(case: str) -> None:
    """On one device, on two and on three, and by the native kernels."""
    config = CASES[case]
    tensors = random_trial(config)
    expected = trial_forward.logits(config, tensors, TOKENS)

    for devices in (1, 2, 3):
        model = build(config, tensor_parallel=devices, dtype=jnp.float32)
        np.testing.assert_allclose(logits(model, tensors, devices), expected, atol=2e-4, err_msg=f"{devices} devices")
    if library.unavailable() is None:
        found = logits(build(config, dtype=jnp.float32, native=True), tensors)
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg="native")


@pytest.mark.parametrize(
    ("choices", "within"),
    [
        ({"quant": "int8"}, 0.15),
        ({"quant": "fp8"}, 0.6),
        ({"quant": "int8", "native": True}, 0.15),
        ({"dtype": jnp.bfloat16}, 0.2),
    ],
    ids=str,
)
def test_narrower_weights_stay_close(choices: dict[str, Any], within: float) -> None:
    """By a share of the spread of all logits."""
    if choices.get("native") and library.unavailable() is not None:
        pytest.skip(f"no kernels: {library.unavailable()}")
    tensors = random_trial(CONFIG)
    expected = trial_forward.logits(CONFIG, tensors, TOKENS)
    found = logits(build(CONFIG, **({"dtype": jnp.float32} | choices)), tensors)

    assert 0 < np.abs(found - expected).max() < within * expected.std()


@pytest.mark.parametrize(
    "change",
    [
        {"partial_rotary_factor": 1.0},
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"activation_limit": None},
        {"query_pre_attn_scalar": 16},
        {"sliding_window": 30},
        {"layer_types": ["full_attention"] * 3},
        {"norms": "after"},
    ],
    ids=str,
)
def test_every_option_shows_in_the_plain_pass(change: dict[str, Any]) -> None:
    """So that whoever agrees with it has heeded each."""
    tensors = random_trial(CONFIG)
    moved = trial_forward.logits(CONFIG | change, tensors, TOKENS) - trial_forward.logits(CONFIG, tensors, TOKENS)

    assert np.abs(moved).max() > 0.01


def test_activations() -> None:
    """Each by its own formula, and within its limit."""
    gate, up = np.linspace(-9, 9, 19, dtype=np.float32), np.linspace(5, -5, 19, dtype=np.float32)

    def found(activation: Activation) -> np.ndarray:
        return np.asarray(activate(activation, jnp.asarray(gate), jnp.asarray(up)))

    np.testing.assert_allclose(found(Activation()), gate / (1 + np.exp(-gate)) * up, atol=1e-5)
    low, within = np.minimum(gate, 7), np.clip(up, -7, 7)
    oai = low / (1 + np.exp(-1.702 * low)) * (within + 1)
    np.testing.assert_allclose(found(Activation("swiglu_oai", 7.0)), oai, atol=1e-4)
    exact = np.asarray(jax.scipy.special.erf(gate / np.sqrt(np.float32(2))))
    np.testing.assert_allclose(found(Activation("gelu")), 0.5 * gate * (1 + exact) * up, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types is .*, must be 3 times 'sliding_attention' or"),
        ({"layer_types": [[], {}, 5]}, "must be 3 times"),
        ({"partial_rotary_factor": 0.2}, "partial_rotary_factor is 0.2, must leave"),
        ({"rope_parameters": {"full_attention": 5}}, "rope_parameters has 5 for full_attention, must be an object"),
        ({"attn_logit_softcapping": -1}, "attn_logit_softcapping is -1, must be a positive number"),
        ({"hidden_activation": "relu"}, "hidden_activation is 'relu', must be 'silu' or 'gelu'"),
    ],
)
def test_a_wrong_config_is_told(change: dict[str, Any], words: str) -> None:
    """By the same words for every family."""
    with pytest.raises(ModelError, match=words):
        build(CONFIG | change)
