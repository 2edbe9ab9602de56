"""Checkpoint to devices: shards where they belong, progress that adds up, misfits told at once."""

import threading
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.linears import XLA
from models.registry import build
from models.sharding import make_mesh
from models.spec import Model
from models.storage import Array, Blocks
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.place import _assembled, load_params
from neuron_jax.weights.quantized.checkpoint import FolderCheckpoint
from tests.fakes.weight_files import random_tensors, write_safetensors

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 31,
    "max_position_embeddings": 64,
}


def silent(phase: str, done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""


def written(folder: Path, model: Model, **changes: np.ndarray) -> Path:
    tensors = random_tensors(model) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    (folder / "config.json").write_text("{}")
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


@pytest.mark.parametrize("quant", XLA)
def test_parameters_lie_where_their_axes_say(tmp_path: Path, quant: str) -> None:
    """On two devices each holds half of a sharded kernel and all of a norm, with the values of an unsharded load."""
    model = build(CONFIG, tensor_parallel=2, quant=quant, dtype=jnp.float32)
    with open_checkpoint(written(tmp_path, model)) as checkpoint:
        params = load_params(model, checkpoint, make_mesh(jax.devices("cpu")[:2]), silent)
    kernel = params["layers"][1]["attention"]["out"]["kernel"]
    norm = params["norm"]["weight"]

    assert [2 * shard.data.nbytes for shard in kernel.addressable_shards] == [kernel.nbytes] * 2
    assert [shard.data.nbytes for shard in norm.addressable_shards] == [norm.nbytes] * 2
    jax.tree.map(np.testing.assert_array_equal, params, mapping.load(model.rules, random_tensors(model)))


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    """Bytes of the checkpoint, rising from nothing to all."""
    model = build(CONFIG, dtype=jnp.float32)
    seen: list[tuple[str, int, int, str]] = []
    with open_checkpoint(written(tmp_path, model)) as checkpoint:
        load_params(model, checkpoint, make_mesh(jax.devices("cpu")[:1]), lambda *row: seen.append(row))
        total = sum(info.nbytes for info in checkpoint.tensors.values())

    assert seen[0] == ("weights", 0, total, "bytes")
    assert seen[-1] == ("weights", total, total, "bytes")
    assert [done for _, done, _, _ in seen] == sorted(done for _, done, _, _ in seen)


@pytest.mark.parametrize("quant", XLA)
def test_a_load_takes_no_more_than_the_weights_and_a_tensor(tmp_path: Path, quant: str) -> None:
    """At the peak there are the parameters that are done and one tensor as float32, whatever the file has."""
    model = build(CONFIG | {"hidden_size": 256, "vocab_size": 16384}, quant=quant)
    largest = 4 * 16384 * 256
    with open_checkpoint(written(tmp_path, model)) as checkpoint:
        mesh = make_mesh(jax.devices("cpu")[:1])
        load_params(model, checkpoint, mesh, silent)  # what JAX makes once is no part of a load
        tracemalloc.start()
        params = load_params(model, checkpoint, mesh, silent)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    final = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

    assert peak < final + 1.3 * largest


def test_small_parameters_are_read_side_by_side_and_the_largest_by_itself(tmp_path: Path) -> None:
    """Each of the four norms waits for the other three, and the embedding for them all."""
    model = build(CONFIG, dtype=jnp.float32)
    together, read = threading.Barrier(4), []
    rules = [rule for rule in model.rules if isinstance(rule, mapping.Rule) and rule.path.endswith("norm")][:4]
    rules += [rule for rule in model.rules if isinstance(rule, mapping.Rule) and rule.path == "embed"]

    class Watched(FolderCheckpoint):
        def stored(self, name: str) -> Blocks | Array:
            if "norm" in name:
                together.wait(10)
            read.append(name)
            return super().stored(name)

    checkpoint = Watched(written(tmp_path, model), {})
    found = list(_assembled(rules, [1, 1, 1, 1, 4], checkpoint))
    checkpoint.close()

    assert [leaf.shape for leaves in found for leaf in leaves.values()] == [(16,)] * 4 + [(31, 16)]
    assert "embed" in read[-1]


def test_all_misfits_are_one_error(tmp_path: Path) -> None:
    """A tensor too many, one of a wrong shape and one missing are told together, before anything is read."""
    model = build(CONFIG, dtype=jnp.float32)
    tensors = random_tensors(model)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors |= {"extra.weight": np.zeros(3, np.float32), "model.norm.weight": np.zeros(17, np.float32)}
    (tmp_path / "config.json").write_text("{}")
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(WeightsError) as caught:
        load_params(model, checkpoint, make_mesh(jax.devices("cpu")[:1]), silent)

    assert caught.value.kind == "bad_checkpoint"
    assert caught.value.extras["misfits"] == [
        "1 missing: model.layers.1.mlp.up_proj.weight (20, 16)",
        "1 of a wrong shape: model.norm.weight is (17,), must be (16,)",
        "1 unknown: extra.weight",
    ]


def test_known_useless_tensors_are_passed_over(tmp_path: Path) -> None:
    """Rotary tables that old checkpoints carry are not misfits."""
    model = build(CONFIG, dtype=jnp.float32)
    path = written(tmp_path, model, model__layers__0__self_attn__rotary_emb__inv_freq=np.zeros(2, np.float32))
    with open_checkpoint(path) as checkpoint:
        assert load_params(model, checkpoint, make_mesh(jax.devices("cpu")[:1]), silent)
