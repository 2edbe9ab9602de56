"""What a layer's experts may have that no family of the references has, and the ways that they may stand in checkpoints."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models import mapping
from models.attend import causal
from models.dense.build import DenseModel, build_dense
from models.dense.names import EXPERTS, SANDWICH_NORMS, SHARED_GATE, USUAL
from models.dense.record import Dense, Experts, Layer
from models.errors import ModelError
from models.experts_xla import MOST_ROWS, block_rows
from models.mapping import Rule
from models.native import library
from models.products import mxfp4_halves
from models.registry import build
from models.sharding import make_mesh, shard_tree
from models.storage import FLOAT32, MXFP4, Blocks, Storage
from tests.fakes import quick
from tests.fakes.expert_files import CONFIGS, together
from tests.fakes.weight_files import random_blocks, random_tensors

NAMES = {**USUAL, **SANDWICH_NORMS, **EXPERTS, **SHARED_GATE}
GATED = Experts(count=6, active=2, width=13, shared=21, shared_gate=True)
TOKENS = np.arange(40, dtype=np.int32) * 7 % 53
ROUTER = "model.layers.{}.mlp.shared_expert_gate.weight"
SHARED_DOWN = "model.layers.{}.mlp.shared_expert.down_proj.weight"


def model(experts: Experts, **choices: Any) -> DenseModel:
    """Two layers with norms on both sides, of which the second has experts."""
    found = Dense(
        architecture="made up",
        vocab_size=53,
        hidden_size=20,
        intermediate_size=24,
        query_heads=2,
        kv_heads=1,
        head_dim=10,
        max_positions=64,
        epsilon=1e-6,
        stack=(Layer(None), Layer(None, experts=experts)),
        post_norms=True,
    )
    return build_dense(found, NAMES, dtype=jnp.float32, **choices)


def logits(made: DenseModel, tensors: dict[str, Any], devices: int = 1) -> np.ndarray:
    mesh = make_mesh(jax.devices("cpu")[:devices])
    params = shard_tree(mapping.load(made.rules, tensors), made.param_specs, mesh)

    @quick.jit
    def run(params: Any, tokens: jax.Array) -> jax.Array:
        hidden, _ = made.forward(params, tokens, jnp.arange(len(TOKENS)), causal(), [None] * 2)
        return made.logits(params, hidden)

    return np.asarray(run(params, jnp.asarray(TOKENS)))


def test_a_shared_expert_has_a_gate_of_its_own() -> None:
    """Which is a half where its logit is zero. By XLA, on two devices and by the kernels alike, for any logit."""
    gated, plain = model(GATED), model(evolve(GATED, shared_gate=False))
    tensors = random_tensors(gated)
    found = logits(gated, tensors)
    halved = tensors | {SHARED_DOWN.format(1): tensors[SHARED_DOWN.format(1)] / 2}
    router = halved.pop(ROUTER.format(1))
    expected = logits(plain, halved)

    np.testing.assert_allclose(logits(gated, tensors | {ROUTER.format(1): router * 0}), expected, atol=1e-5)
    assert np.abs(found - expected).max() > 1e-3
    np.testing.assert_allclose(logits(model(GATED, tensor_parallel=2), tensors, 2), found, atol=1e-5)
    if library.unavailable() is None:
        np.testing.assert_allclose(logits(model(GATED, native=True), tensors), found, atol=1e-5)


def leaves(config: dict[str, Any], tensors: dict[str, Any], **choices: Any) -> list[np.ndarray]:
    made = build(config, dtype=jnp.float32, **choices)
    return jax.tree.leaves(mapping.load(made.rules, tensors))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("family", ["qwen3moe", "gpt-oss"])
def test_experts_stand_in_checkpoints_in_several_ways(family: str, devices: int) -> None:
    """A tensor each, one for all, or gpt-oss's: the parameters are the same."""
    config = CONFIGS[family]
    tensors = random_tensors(build(config, dtype=jnp.float32))
    ways = [leaves(config, way, tensor_parallel=devices) for way in (tensors, together(tensors))]

    for one, other in zip(*ways, strict=True):
        assert np.array_equal(one, other)


def test_blocks_of_gpt_oss_stay_blocks() -> None:
    """Rows of gate and up in turn, with the columns last, as they are where they are stored in MXFP4."""
    storage, values = Storage(8, 32), {"gate_up": (5, 192, 64), "down": (5, 64, 96)}
    stem = "model.layers.0.mlp.experts."
    blocks = {
        f"{stem}{name}_proj.weight": random_blocks(storage, shape[0] * shape[1], shape[2])
        for name, shape in values.items()
    }
    plain = {
        f"{stem}{name}_proj": blocks[f"{stem}{name}_proj.weight"].dequantize().reshape(shape).swapaxes(1, 2)
        for name, shape in values.items()
    }
    made = build(CONFIGS["gpt-oss"], dtype=jnp.float32, native=True, quant="none")
    for name in values:
        rule = next(rule for rule in made.rules if rule.path == f"layers.0.mlp.experts.{name}")
        coded = evolve(rule.among(blocks), dtype=None, store=lambda whole: {"values": whole.dequantize()})
        floats = evolve(rule.among(plain), store=lambda whole: {"values": whole})
        found = coded.assemble(blocks.__getitem__, coded.storage(dict.fromkeys(blocks, storage)))["values"]
        wanted = floats.assemble(plain.__getitem__, FLOAT32)["values"]

        assert np.array_equal(found.reshape(wanted.shape), wanted), name


@pytest.mark.parametrize("devices", [1, 2])
def test_experts_in_mxfp4_stay_so_in_a_tensor_for_each_matrix(devices: int) -> None:
    """As GGUF has them: gate and up are put beside each other as codes, in whole groups for each device, zeros behind."""
    stem, shapes = "model.layers.0.mlp.experts.", {"gate": (5, 96, 64), "up": (5, 96, 64), "down": (5, 64, 96)}
    blocks = {
        f"{stem}{name}_proj.weight": random_blocks(MXFP4, shape[0] * shape[1], shape[2], seed)
        for seed, (name, shape) in enumerate(shapes.items())
    }
    made = build(
        CONFIGS["gpt-oss"],
        dtype=jnp.float32,
        quant="stored",
        storage=dict.fromkeys(blocks, MXFP4),
        tensor_parallel=devices,
    )
    gate, up, down = (
        tensor.dequantize().reshape(shapes[name]) for name, tensor in zip(shapes, blocks.values(), strict=True)
    )
    gate_up = np.moveaxis(values_of(made, "gate_up", blocks), 1, 2).reshape(5, 2, -1, 64)
    back = values_of(made, "down", blocks).reshape(5, 64, -1)

    assert gate_up.shape[2] == back.shape[2] == (96 if devices == 1 else 128)
    np.testing.assert_array_equal(gate_up[:, :, :96], np.stack([gate, up], axis=1))
    np.testing.assert_array_equal(back[..., :96], down)
    assert not gate_up[:, :, 96:].any()
    assert not back[..., 96:].any()


def values_of(made: DenseModel, name: str, blocks: dict[str, Blocks]) -> np.ndarray:
    """What the codes stand for that a layer's experts are kept as, in the shape of their rule."""
    path = f"layers.0.mlp.experts.{name}"
    rule = next(rule for rule in made.rules if isinstance(rule, Rule) and rule.path == path).among(blocks)
    leaves = rule.assemble(blocks.__getitem__, rule.storage(dict.fromkeys(blocks, MXFP4)))
    said = made.param_specs["layers"][0]["mlp"]["experts"][name]
    assert path in made.coded
    assert all((leaf.shape, leaf.dtype) == (said[part].shape, said[part].dtype) for part, leaf in leaves.items())
    flat = (jnp.asarray(leaves[part].reshape(-1, leaves[part].shape[-1])) for part in ("kernel", "scale"))
    halves = [np.asarray(half).reshape(-1, 16) for half in mxfp4_halves(*flat, jnp.float32)]
    return np.stack(halves, axis=1).reshape(rule.shape)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_experts_per_tok": 9}, "9 of 7 experts cannot be active"),
        ({"mlp_only_layers": [-1]}, "mlp_only_layers is .*, must be a list of numbers from 0 on"),
        ({"num_experts": 2**30}, "1073741824 experts are more than the 4096"),
        ({"num_experts": 0}, "num_experts is 0, must be a positive integer"),
    ],
)
def test_a_wrong_mixture_is_told(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(CONFIGS["qwen3moe"] | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_group": 3}, "8 experts do not divide into 3 groups"),
        ({"n_group": 2, "topk_group": 1, "num_experts_per_tok": 5}, "1 groups of 4 experts have not the 5"),
    ],
)
def test_wrong_groups_are_told(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(CONFIGS["glm4moe"] | change)


def test_blocks_are_as_long_as_an_expert_has_rows() -> None:
    assert [block_rows(pairs, 8) for pairs in (1, 8, 9, 40, 64, 9999)] == [1, 1, 2, 8, 8, MOST_ROWS]
