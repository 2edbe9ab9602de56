"""Converted checkpoints: the same arrays in the same places, for the engine that they were made for and no other."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.native import library
from models.registry import build
from models.sharding import make_mesh
from models.spec import Model, Params
from neuron_jax.cli import run
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.converted import DESCRIPTION, PARAMS, ConvertedCheckpoint, LayoutKey, describe_params
from neuron_jax.weights.describe import describe
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.orbax_params import save_params
from neuron_jax.weights.place import load_params
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.weight_files import GGUF_LLAMA, gguf_tensors, write_gguf


def load(path: Path, quant: str, tensor_parallel: int, report: Any = lambda *_: None) -> tuple[Model, Params]:
    mesh = make_mesh(jax.devices("cpu")[:tensor_parallel])
    native = quant == "stored"
    with open_checkpoint(path) as checkpoint:
        model = build(
            checkpoint.config,
            tensor_parallel=tensor_parallel,
            quant=quant,
            dtype=jnp.float32,
            native=native,
            storage=checkpoint.storage,
        )
        return model, load_params(model, checkpoint, mesh, report)


def converted(folder: Path, quant: str, tensor_parallel: int = 1) -> tuple[Path, Params]:
    """A converted tiny Llama, and its parameters before."""
    source, out = folder / "source", folder / "out"
    write_checkpoint(source)
    out.mkdir()
    _, params = load(source, quant, tensor_parallel)
    made = LayoutKey(quant, "float32", tensor_parallel, native=quant == "stored")
    with open_checkpoint(source) as checkpoint:
        describe_params(out, made, checkpoint, save_params(params, out))
    (out / "config.json").write_bytes((source / "config.json").read_bytes())
    return out, params


def misfits(path: Path, quant: str, tensor_parallel: int = 1) -> list[str]:
    with pytest.raises(WeightsError) as caught:
        load(path, quant, tensor_parallel)
    assert caught.value.kind == "bad_checkpoint"
    assert str(path) in caught.value.message
    return list(caught.value.extras["misfits"])


NATIVE = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")


@pytest.mark.parametrize(("quant", "devices"), [pytest.param("stored", 1, marks=NATIVE), ("int8", 2), ("fp8", 1)])
def test_arrays_come_back_where_they_were(tmp_path: Path, quant: str, devices: int) -> None:
    """Every leaf has its bytes and its sharding, and progress ends at its total."""
    path, before = converted(tmp_path, quant, devices)
    seen: list[tuple[str, int, int, str]] = []
    _, after = load(path, quant, devices, lambda *row: seen.append(row))

    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert old.sharding.is_equivalent_to(new.sharding, old.ndim)
        assert np.asarray(old).tobytes() == np.asarray(new).tobytes()
    assert seen[-1] == ("weights", seen[-1][2], seen[-1][2], "bytes")


def test_another_engine_is_told_what_it_was_made_for(tmp_path: Path) -> None:
    """Other formats and other numbers of devices."""
    path, _ = converted(tmp_path, "int8", 2)
    for quant, devices in (("none", 2), ("int8", 1)):
        (row,) = misfits(path, quant, devices)

        assert row.startswith("was converted for quant = 'int8', float32, tensor_parallel = 2, XLA, and ")


def test_cut_and_missing_files_are_told(tmp_path: Path) -> None:
    """Each file by its name, before anything is read."""
    path, _ = converted(tmp_path, "none")
    first, second, *_ = (file for file in sorted((path / PARAMS).rglob("*")) if file.is_file() and file.stat().st_size)
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    rows = misfits(path, "none")

    assert [row.split(" ")[0] for row in rows] == [file.relative_to(path).as_posix() for file in (first, second)]
    assert rows[1].endswith("is not there")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", "not such a description"),
        ("[]", "not such a description"),
        ({"version": 9}, "of version 9, readable is 2"),
    ],
)
def test_a_description_that_is_none_is_told(tmp_path: Path, description: Any, message: str) -> None:
    """Broken JSON, other JSON, another version."""
    path, _ = converted(tmp_path, "none")
    if isinstance(description, dict):
        description = json.dumps(json.loads((path / DESCRIPTION).read_text()) | description)
    (path / DESCRIPTION).write_text(description)
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(path)


def test_a_gguf_file_is_converted_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command: what describes the model stays, and what is there already is not overwritten."""
    source, out = tmp_path / "tiny.gguf", tmp_path / "out"
    more = {"tokenizer.ggml.eot_token_id": 3, "tokenizer.chat_template.tool_use": "{{ tools }}"}
    write_gguf(source, GGUF_LLAMA | more, gguf_tensors())
    command = ["convert", str(source), str(out), "--quant", "none", "--json"]
    assert run(command, dict(os.environ)) == 0, capsys.readouterr().err
    told = json.loads(capsys.readouterr().out)
    before, after = describe(source), describe(out)
    with open_checkpoint(out) as checkpoint:
        assert isinstance(checkpoint, ConvertedCheckpoint)
        assert str(checkpoint.made) == "quant = 'none', float32, tensor_parallel = 1, " + (
            "the native kernels" if told["made"]["native"] else "XLA"
        )

    assert (before.eos_ids, before.bos_id, before.chat_template) == (after.eos_ids, after.bos_id, after.chat_template)
    assert before.tool_template == after.tool_template == "{{ tools }}"
    assert before.tokenizer.gguf == after.tokenizer.gguf
    assert (before.parameters, before.weight_bytes) == (after.parameters, after.weight_bytes)
    assert run(command, {}) == 1
    assert "is there already" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "tiny.gguf"]
