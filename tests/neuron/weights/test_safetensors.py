"""The safetensors reader: dtypes, shards, and every way a folder can be broken."""

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.safetensors import INDEX
from tests.fakes.weight_files import write_safetensors

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.arange(5).astype(ml_dtypes.bfloat16),
}


def folder(path: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    write_safetensors(path / "model.safetensors", TENSORS if tensors is None else tensors)
    return path


def misfits(path: Path) -> list[str]:
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(path)
    assert caught.value.kind == "bad_checkpoint"
    return list(caught.value.extras["misfits"])


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    """float32, float16 and bfloat16 keep values, shape and dtype."""
    with open_checkpoint(folder(tmp_path)) as checkpoint:
        for name, tensor in TENSORS.items():
            found = checkpoint.stored(name)

            assert found.dtype == tensor.dtype == checkpoint.storage[name].dtype
            np.testing.assert_array_equal(found, tensor)


def test_doubles_come_as_floats(tmp_path: Path) -> None:
    """float64 is rounded to float32, and said to be that."""
    with open_checkpoint(folder(tmp_path, {"a": np.array([1 / 3])})) as checkpoint:
        found = checkpoint.stored("a")

        assert checkpoint.storage["a"].dtype == found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1 / 3], np.float32))


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    """A tensor has memory of its own: it is still there after closing, and can be written."""
    with open_checkpoint(folder(tmp_path)) as checkpoint:
        found = checkpoint.read("a")
    found += 1

    assert found.sum() == TENSORS["a"].sum() + 6


def test_shards_are_read_through_the_index(tmp_path: Path) -> None:
    """Tensors of two files are one checkpoint."""
    path = folder(tmp_path, {})
    (path / "model.safetensors").unlink()
    write_safetensors(path / "one.safetensors", {"a": TENSORS["a"]})
    write_safetensors(path / "two.safetensors", {"b": TENSORS["b"]})
    weight_map = {"a": "one.safetensors", "b": "two.safetensors"}
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.tensors) == {"a", "b"}
        np.testing.assert_array_equal(checkpoint.read("b"), TENSORS["b"])


def test_old_buffers_are_no_weights(tmp_path: Path) -> None:
    """Whatever their dtype, and whether an index names them."""
    path = folder(tmp_path, {})
    names = ["model.embeddings.position_ids", "model.layers.0.self_attn.rotary_emb.cos_cached", "rotary_emb.inv_freq"]
    header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    header |= {name: {"dtype": "I64", "shape": [1], "data_offsets": [4, 12]} for name in names}
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))
    (path / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(["a", *names, "masked_bias"], "model.safetensors")})
    )
    with open_checkpoint(path) as checkpoint:
        assert list(checkpoint.tensors) == ["a"]


def test_missing_shards_and_tensors_are_told_together(tmp_path: Path) -> None:
    """One file gone and one tensor gone: both in one error."""
    path = folder(tmp_path)
    weight_map = {"a": "model.safetensors", "zz": "model.safetensors", "y": "gone.safetensors"}
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    found = misfits(path)

    assert any(row.startswith("gone.safetensors: is not there") for row in found)
    assert "model.safetensors: zz is missing" in found


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    """At every length short of the whole the error is ours."""
    path = folder(tmp_path)
    whole = (path / "model.safetensors").read_bytes()
    for length in range(len(whole)):
        (path / "model.safetensors").write_bytes(whole[:length])

        assert misfits(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "has dtype F8_E4M3; readable are F32"),
        ({"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}, "has dtype F4; known are F64"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}, "takes 16 bytes but has 12"),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}, "negative size"),
        ({"dtype": "F32", "shape": ["4"], "data_offsets": [0, 16]}, "not a safetensors header"),
        ({"dtype": "F32"}, "not a safetensors header"),
    ],
)
def test_a_damaged_table_is_told(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    """Unknown dtypes, sizes that do not match, entries that are none."""
    path = folder(tmp_path)
    head = json.dumps({"x": entry}).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * 16)

    assert message in misfits(path)[0]


@pytest.mark.parametrize(("other", "begin", "message"), [("y", 8, "y begins within x"), ("x", 16, "x is there twice")])
def test_tensors_that_share_a_place_or_a_name_are_told(tmp_path: Path, other: str, begin: int, message: str) -> None:
    """One of the two would have the other's weights."""
    path = folder(tmp_path)
    first, second = ({"dtype": "F32", "shape": [4], "data_offsets": [at, at + 16]} for at in (0, begin))
    head = f'{{"x": {json.dumps(first)}, "{other}": {json.dumps(second)}}}'.encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * 32)

    assert message in misfits(path)[0]


@pytest.mark.parametrize("config", [None, "{", "[]"])
def test_a_config_that_is_none_is_told(tmp_path: Path, config: str | None) -> None:
    """No config.json, broken JSON, JSON that is no object."""
    path = folder(tmp_path)
    (path / "config.json").unlink()
    if config is not None:
        (path / "config.json").write_text(config)

    assert misfits(path)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    """The message names the files that would be looked for."""
    path = folder(tmp_path)
    (path / "model.safetensors").unlink()

    assert "neither model.safetensors nor" in misfits(path)[0]


def test_a_path_that_is_nothing_is_told(tmp_path: Path) -> None:
    """Neither a folder nor a file."""
    assert misfits(tmp_path / "nothing") == ["neither a folder nor a file"]
