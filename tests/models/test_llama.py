"""The Llama family on tiny random weights: sharding, causality, windows, biases, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.attend import causal
from models.errors import ModelError
from models.linears import XLA
from models.native import library
from models.registry import build
from models.sharding import make_mesh, shard_tree
from models.spec import Model, ParamSpec
from tests.fakes import quick
from tests.fakes.weight_files import random_tensors

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 24,
    "intermediate_size": 30,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 6,
    "vocab_size": 53,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
}
TOKENS = np.arange(1, 13, dtype=np.int32) * 4 % 53


def logits(model: Model, tensors: dict[str, np.ndarray], tokens: np.ndarray, devices: int = 1) -> np.ndarray:
    """[T, V] of one plain causal pass, sharded over `devices`."""
    mesh = make_mesh(jax.devices("cpu")[:devices])
    params = shard_tree(mapping.load(model.rules, tensors), model.param_specs, mesh)

    @quick.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
        return model.logits(params, hidden)

    return np.asarray(run(params, jnp.asarray(tokens)))


@pytest.fixture(scope="module")
def whole() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Weights, and the logits of one device."""
    model = build(CONFIG, dtype=jnp.float32)
    tensors = random_tensors(model)
    return tensors, logits(model, tensors, TOKENS)


@pytest.mark.parametrize("devices", [2, 3, 4, 8])
def test_sharding_does_not_change_the_logits(whole: tuple[dict[str, np.ndarray], np.ndarray], devices: int) -> None:
    """9 query heads over 3 kv heads, an MLP of 30 and 53 tokens give on 2, 3, 4 and 8 devices what one gives."""
    tensors, expected = whole
    model = build(CONFIG, tensor_parallel=devices, dtype=jnp.float32)

    np.testing.assert_allclose(logits(model, tensors, TOKENS, devices), expected, atol=1e-4)


@pytest.mark.parametrize("devices", [1, 3])
def test_parameters_are_what_the_specs_say(whole: tuple[dict[str, np.ndarray], np.ndarray], devices: int) -> None:
    """Loading gives exactly the tree, shapes and dtypes of `param_specs`, in every format."""
    for quant in XLA:
        model = build(CONFIG, tensor_parallel=devices, quant=quant, dtype=jnp.float32)
        params = mapping.load(model.rules, whole[0])
        found = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params)
        wanted = jax.tree.map(
            lambda spec: (spec.shape, spec.dtype), model.param_specs, is_leaf=lambda x: isinstance(x, ParamSpec)
        )

        assert found == wanted


def test_nothing_is_padded_on_one_device() -> None:
    """With one device the parameters hold as many numbers as the checkpoint."""
    model = build(CONFIG, dtype=jnp.float32)
    specs = jax.tree.leaves(model.param_specs, is_leaf=lambda x: isinstance(x, ParamSpec))

    assert sum(spec.nbytes for spec in specs) == sum(tensor.nbytes for tensor in random_tensors(model).values())


def test_a_token_changes_only_what_follows(whole: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    """Perturbing token 5 leaves the logits of tokens 0 to 4 bit for bit, and changes those from 5 on."""
    tensors, expected = whole
    changed = TOKENS.copy()
    changed[5] += 1
    found = logits(build(CONFIG, dtype=jnp.float32), tensors, changed)

    assert np.array_equal(found[:5], expected[:5])
    assert (np.abs(found[5:] - expected[5:]).max(axis=-1) > 1e-4).all()


def test_a_window_forgets() -> None:
    """With a window of 2 and two layers, token 6 reaches back to token 4 and no further."""
    config = CONFIG | {"architectures": ["MistralForCausalLM"], "sliding_window": 2}
    model = build(config, dtype=jnp.float32)
    tensors = random_tensors(model)
    near, far = TOKENS.copy(), TOKENS.copy()
    near[4] += 1
    far[3] += 1
    before = logits(model, tensors, TOKENS)

    assert np.array_equal(logits(model, tensors, far)[6:], before[6:])
    assert not np.allclose(logits(model, tensors, near)[6], before[6])


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_biases_reach_the_logits(devices: int) -> None:
    """A checkpoint with attention and MLP biases loads on any number of devices with the same result."""
    config = CONFIG | {"attention_bias": True, "mlp_bias": True}
    one = build(config, dtype=jnp.float32)
    tensors = random_tensors(one)
    unbiased = {name: tensor * (0 if name.endswith("bias") else 1) for name, tensor in tensors.items()}
    expected = logits(one, tensors, TOKENS)
    found = logits(build(config, tensor_parallel=devices, dtype=jnp.float32), tensors, TOKENS, devices)

    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - logits(one, unbiased, TOKENS)).max() > 0.1


@pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")
def test_biases_reach_the_logits_of_the_native_kernels() -> None:
    """The gate is then computed behind the product instead of within it."""
    config = CONFIG | {"attention_bias": True, "mlp_bias": True}
    one = build(config, dtype=jnp.float32)
    tensors = random_tensors(one)
    found = logits(build(config, dtype=jnp.float32, native=True), tensors, TOKENS)

    np.testing.assert_allclose(found, logits(one, tensors, TOKENS), atol=1e-4)


@pytest.mark.parametrize("devices", [1, 4])
def test_tied_embeddings_are_one_table(devices: int) -> None:
    """A tied model has no head of its own and ignores one that the checkpoint repeats."""
    model = build(CONFIG | {"tie_word_embeddings": True}, tensor_parallel=devices, dtype=jnp.float32)
    tensors = random_tensors(model)
    untied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    expected = logits(build(CONFIG, dtype=jnp.float32), untied, TOKENS)

    assert "head" not in model.param_specs
    np.testing.assert_allclose(logits(model, untied, TOKENS, devices), expected, atol=1e-4)


@pytest.mark.parametrize("devices", [1, 3])
def test_int8_stays_close(whole: tuple[dict[str, np.ndarray], np.ndarray], devices: int) -> None:
    """int8 weights move the logits by a few hundredths of their spread, sharded or not."""
    tensors, expected = whole
    model = build(CONFIG, tensor_parallel=devices, quant="int8", dtype=jnp.float32)
    found = logits(model, tensors, TOKENS, devices)

    assert np.abs(found - expected).max() < 0.1 * expected.std()


def test_int8_rows_do_not_touch_each_other(whole: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    """In int8 a prefix alone gives the very logits it gives inside a longer call."""
    model = build(CONFIG, quant="int8", dtype=jnp.float32)

    np.testing.assert_allclose(logits(model, whole[0], TOKENS[:1]), logits(model, whole[0], TOKENS)[:1], atol=1e-4)


def test_bfloat16_is_close(whole: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    """The same weights in bfloat16 give float32 logits within its precision."""
    found = logits(build(CONFIG, dtype=jnp.bfloat16), whole[0], TOKENS)

    assert found.dtype == np.float32
    assert np.abs(found - whole[1]).max() < 0.15 * whole[1].std()


def test_a_model_can_be_differentiated(whole: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    """The function that serves has gradients, and none flows from a token to those before it."""
    model = build(CONFIG, dtype=jnp.float32)
    params = mapping.load(model.rules, whole[0])

    def loss(table: jax.Array) -> jax.Array:
        changed = params | {"embed": {"kernel": table}}
        tokens = jnp.asarray(TOKENS)
        hidden, _ = model.forward(changed, tokens, jnp.arange(12, dtype=jnp.int32), causal(), [None] * 2)
        return model.logits(changed, hidden[:4]).sum()

    gradient = np.asarray(quick.jit(jax.grad(loss))(jnp.asarray(params["embed"]["kernel"])))

    assert (np.abs(gradient[TOKENS[:4]]).max(axis=-1) > 0).all()
    assert np.abs(gradient[TOKENS[4:]]).max() == 0


def test_attention_weights_can_be_kept(whole: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
    """`causal(keep_weights=True)` leaves one [K, G, T, T] array per layer whose rows sum to one."""
    model = build(CONFIG, dtype=jnp.float32)
    params = mapping.load(model.rules, whole[0])

    @quick.jit
    def run(tokens: jax.Array) -> tuple[jax.Array, ...]:
        positions = jnp.arange(12, dtype=jnp.int32)
        return model.forward(params, tokens, positions, causal(keep_weights=True), [None] * 2)[1]

    weights = run(jnp.asarray(TOKENS))

    assert [layer.shape for layer in weights] == [(3, 3, 12, 12)] * 2
    np.testing.assert_allclose(np.asarray(weights[0]).sum(axis=-1), 1, atol=1e-5)
    assert np.triu(np.asarray(weights[1]), 1).max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["Qwen9ForCausalLM"]},
            "Qwen9ForCausalLM; known are .*LlamaForCausalLM, .*MistralForCausalLM",
        ),
        ({"architectures": None}, "none named"),
        ({"hidden_size": "24"}, "hidden_size is '24'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 4}, "9 attention heads do not divide among 4"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "needs low_freq_factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor is -1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"hidden_act": 5}, "hidden_act is 5, must be 'silu'"),
        ({"rope_theta": "x"}, "rope_theta is 'x', must be a positive number"),
        ({"rope_theta": 1e-300}, "frequencies that are no numbers"),
        ({"rope_parameters": {"rope_theta": [1]}}, r"rope_theta is \[1\], must be a positive number"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "has None for all layers, must be an object"),
        ({"rope_parameters": 5}, "rope_parameters is 5, must be an object"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', must be an object"),
        ({"rope_scaling": {"type": "factors", "factors": 3}}, "factors must be positive numbers"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', must be a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', must be true or false"),
        ({"attention_bias": 1}, "attention_bias is 1, must be true or false"),
        ({"num_hidden_layers": 2**30}, "num_hidden_layers is 1073741824, must be a positive integer up to"),
        ({"head_dim": 2**30}, "head_dim is 1073741824"),
        (
            {"num_attention_heads": 2**30, "num_key_value_heads": 1, "head_dim": 8},
            "1073741824 heads are more than the 65536",
        ),
    ],
)
def test_a_config_that_is_not_ours_is_refused(change: dict[str, Any], message: str) -> None:
    """The message names the field, its value and what is allowed."""
    with pytest.raises(ModelError, match=message):
        build(CONFIG | change)


def test_all_misfits_of_a_config_are_told_at_once() -> None:
    """Four wrong fields, one error."""
    with pytest.raises(ModelError) as caught:
        build(CONFIG | {"vocab_size": -1, "hidden_size": None, "rope_theta": "x", "mlp_bias": 0})

    assert len(caught.value.misfits) == 4


def test_an_unknown_quantization_is_refused() -> None:
    """Only the known schemes are accepted."""
    with pytest.raises(ModelError, match="allowed with XLA are none, stored, int8"):
        build(CONFIG, quant="int3")
