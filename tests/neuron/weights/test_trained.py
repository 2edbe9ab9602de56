"""Parameters as training has them, saved and loaded again: the very arrays that an engine makes of the checkpoint itself."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.native import library
from models.registry import build
from models.sharding import make_mesh
from neuron_jax.daemon.model_text import read_text
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.place import load_params
from neuron_jax.weights.trained import save_trained
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.tiny_model import write_tiny_model


@pytest.mark.parametrize("native", [True, False])
def test_an_engine_loads_what_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    """For the native kernels and without them, with all that a model's folder has."""
    if native and library.unavailable() is not None:
        pytest.skip("no kernels")
    monkeypatch.setattr(library, "unavailable", lambda: None if native else "not here")
    source = write_checkpoint(write_tiny_model(tmp_path / "source"), vocab_size=261)
    mesh = make_mesh(jax.devices("cpu")[:1])
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        trained = load_params(build(config, dtype=jnp.float32), checkpoint, mesh, lambda *_: None)
        engine = build(config, dtype=jnp.float32, native=native, quant="none", storage=checkpoint.storage)
        expected = load_params(engine, checkpoint, mesh, lambda *_: None)
    folder = save_trained(trained, source, tmp_path / "trained")
    with open_checkpoint(folder) as checkpoint:
        found = load_params(engine, checkpoint, mesh, lambda *_: None)

    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(expected)))
    assert read_text(folder).tokenizer.pieces == read_text(source).tokenizer.pieces
