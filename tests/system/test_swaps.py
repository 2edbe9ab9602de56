"""The same with engines that compute: a process of JAX ends and another begins at every request."""

import pathlib

import pytest

from neuron_jax.workers.process import DEFAULT_COMMAND
from tests.fakes.late_memory import LateMemory
from tests.fakes.swaps import swapped
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.tiny_model import write_tiny_model


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_swaps_of_real_engines_serve_everybody(tmp_path: pathlib.Path) -> None:
    """No engine is left, and no request is refused."""
    folders = [write_checkpoint(write_tiny_model(tmp_path / name), vocab_size=261) for name in ("one", "other")]

    memory = LateMemory(total=800, each=500, kind="cpu")

    assert swapped(folders, tmp_path / "cache", DEFAULT_COMMAND, 21, memory) == [200] * 21
