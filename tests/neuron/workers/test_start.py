"""What is looked at before an engine is planned: that a config says no more than its files have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers import embed, start
from neuron_jax.workers.frames import EngineSpec
from tests.fakes.tiny_bert import write_tiny_bert
from tests.fakes.tiny_llama import write_checkpoint

KINDS: dict[str, tuple[Callable[[Path], Path], Callable[..., Any]]] = {
    "decoder": (write_checkpoint, start.designed),
    "encoder": (write_tiny_bert, embed.designed),
}


def test_more_layers_than_tensors_are_told_before_they_are_laid_out(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, num_hidden_layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4096}))

    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(WeightsError, match="has 4096 layers, and its files 11 tensors"),
    ):
        start.designed(EngineSpec("m", str(folder), memory_mb=500), checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_absurd_counts_are_told_of_the_tensors_and_not_of_the_memory(tmp_path: Path, kind: str) -> None:
    """A vocabulary of a billion tokens: the table is told, not that 400 GiB do not fit."""
    write, designed = KINDS[kind]
    folder = write(tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 2**30}))

    with open_checkpoint(folder) as checkpoint, pytest.raises(WeightsError) as failed:
        designed(EngineSpec("m", str(folder), memory_mb=500), checkpoint)
    assert failed.value.kind == "bad_checkpoint"
    assert failed.value.message.startswith(f"{folder}: 1 of a wrong shape: ")
