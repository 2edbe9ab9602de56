"""The quality of a model's formats, end to end: a tiny checkpoint, a process that measures it, a table."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neuron_jax.cli import run
from neuron_jax.errors import LoadError
from neuron_jax.quality.run import print_quality, report, run_quality, text
from neuron_jax.weights.describe import describe
from neuron_jax.workers.frames import EngineSpec
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.vocabularies import byte_level_json


def model_folder(folder: Path) -> Path:
    """A tiny model whose vocabulary has room for its tokenizer's."""
    write_checkpoint(folder, vocab_size=1024)
    (folder / "tokenizer.json").write_bytes(byte_level_json())
    return folder


def measured(folder: Path, *quants: str) -> dict[str, Any]:
    spec = EngineSpec("tiny", str(model_folder(folder)))
    told = list(run_quality(spec, describe(folder), quants, os.environ))

    assert {"weights", "measure"} == {record["phase"] for record in told if "phase" in record}
    return report(spec, [record["quality"] for record in told if "quality" in record])


@pytest.mark.slow
def test_every_format_is_measured_against_float32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order asked for: float32 is itself, int8 is near and about a quarter of the size; the table shows both."""
    found = measured(tmp_path, "none", "int8")
    none, int8 = found["formats"]
    print_quality(found, Console(width=120))
    shown = capsys.readouterr().out

    assert (none["quant"], none["same_first"]) == ("none", 1)
    assert 0 <= none["kl_mean"] < 1e-9  # other kernels sum in another order
    assert (int8["quant"], int8["tokens"]) == ("int8", none["tokens"])
    assert 0 < int8["kl_mean"] < 0.1
    assert int8["weight_bytes"] < 0.4 * none["weight_bytes"]
    assert f"tiny: {none['tokens']} tokens of English" in shown
    assert {"none", "int8"} <= {line.strip("│ ").split(" ")[0] for line in shown.splitlines()}


def test_the_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on standard output, with the formats that were asked for in their order."""
    model_folder(tmp_path)

    assert run(["quality", str(tmp_path), "--quant", "int8", "--quant", "none", "--json"], os.environ) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["quant"] for row in found["formats"]] == ["int8", "none"]
    assert found["platform"] == "cpu"


def test_a_format_that_is_none_is_told(tmp_path: Path) -> None:
    """With the formats there are."""
    with pytest.raises(LoadError, match=r"int3.*allowed with .* are none"):
        measured(tmp_path, "int3")


def test_the_text_is_plain_english() -> None:
    """About 700 words, of characters that every tokenizer was made for."""
    assert 600 < len(text().split()) < 800
    assert text().isascii()
