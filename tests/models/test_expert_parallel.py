"""Experts that lie whole on some of the devices say what one device says; and what cannot be split so is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.attend import causal
from models.errors import ModelError
from models.registry import build
from models.sharding import computing_on, make_mesh, named_sharding, shard_tree, shards
from models.spec import Model
from tests.fakes import quick
from tests.fakes.expert_files import CONFIGS
from tests.fakes.weight_files import random_tensors
from tests.models.test_tensor_parallel import CLOSE, leaves

TOKENS = np.arange(40, dtype=np.int32) * 7 % 300
EVEN: dict[str, dict[str, Any]] = {
    "softmax": CONFIGS["qwen3moe"] | {"num_experts": 8},
    "sigmoids, groups, a shared one": CONFIGS["glm4moe"] | {"n_shared_experts": 1, "first_k_dense_replace": 1},
    "gpt-oss, biases": CONFIGS["gpt-oss"] | {"num_local_experts": 4},
    "Llama 4, shares of what goes in": CONFIGS["llama4"] | {"num_local_experts": 4},
}


def logits(model: Model, tensors: dict[str, Any], devices: int = 1, parts: int = 1) -> np.ndarray:
    mesh = make_mesh(jax.devices("cpu")[:devices], parts)
    params = shard_tree(mapping.load(model.rules, tensors), model.param_specs, mesh)

    @quick.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        with computing_on(mesh):
            positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
            hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
            return model.logits(params, hidden)

    return np.asarray(run(params, jnp.asarray(TOKENS)))


@pytest.mark.parametrize("case", EVEN)
def test_whole_experts_on_several_devices_give_the_same_logits(case: str) -> None:
    """On as many parts as devices, and on fewer, so that experts are split as well; gpt-oss has one a device."""
    one = build(EVEN[case], dtype=jnp.float32)
    tensors = random_tensors(one)
    expected = logits(one, tensors)

    for devices, parts in [(2, 2), (4, 4), (8, 4)]:
        model = build(EVEN[case], tensor_parallel=devices, expert_parallel=parts, dtype=jnp.float32)
        found = logits(model, tensors, devices, parts)

        np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE, err_msg=f"{devices} devices, {parts} parts")
        assert np.array_equal(found.argmax(axis=-1), expected.argmax(axis=-1)), f"{devices} devices, {parts} parts"


def test_int4_is_rounded_as_on_one_device_where_experts_are_whole() -> None:
    """Slices of 16 columns are no groups of 32."""
    config = EVEN["softmax"]
    one = build(config, quant="int4", dtype=jnp.float32)
    tensors = random_tensors(one)
    whole = build(config, tensor_parallel=2, expert_parallel=2, quant="int4", dtype=jnp.float32)
    sliced = build(config, tensor_parallel=2, quant="int4", dtype=jnp.float32)
    down = [
        np.asarray(mapping.load(model.rules, tensors)["layers"][0]["mlp"]["experts"]["down"]["kernel"])
        for model in (one, whole, sliced)
    ]

    assert np.array_equal(down[0], down[1])
    assert down[2].shape != down[0].shape


def test_each_device_has_its_part_of_the_experts() -> None:
    """As the memory plan reckons it; no dimension is on two axes."""
    mesh = make_mesh(jax.devices("cpu")[:4], 2)
    model = build(EVEN["gpt-oss, biases"], tensor_parallel=4, expert_parallel=2, dtype=jnp.float32)
    experts = 0
    for spec in leaves(model):
        held = np.prod(named_sharding(mesh, spec.axes).shard_shape(spec.shape))

        assert held * shards(spec.axes, 4, 2) == np.prod(spec.shape), spec
        experts += "experts" in spec.axes and "expert_mlp" in spec.axes
    assert experts == 3 * len(model.layers)  # two matrices, and the biases of one


@pytest.mark.parametrize(
    ("config", "sizes", "words"),
    [
        (CONFIGS["qwen3moe"], (2, 2), "expert_parallel = 2: 7 experts do not divide into 2 parts"),
        (EVEN["softmax"], (2, 4), "it does not divide the devices, tensor_parallel = 2"),
        (EVEN["softmax"] | {"architectures": ["Qwen3ForCausalLM"]}, (2, 2), "the model has no experts"),
    ],
    ids=str,
)
def test_what_cannot_be_split_is_refused(config: dict[str, Any], sizes: tuple[int, int], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(config, tensor_parallel=sizes[0], expert_parallel=sizes[1], dtype=jnp.float32)
