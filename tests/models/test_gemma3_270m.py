"""The real Gemma 3 270M, in a GGUF file of llama.cpp's, against greedy texts of an independent reference."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attend import causal
from models.native import library
from models.registry import build
from models.sharding import make_mesh
from neuron_jax.config import cache_root
from neuron_jax.text.tokenizer import Tokenizer, load_tokenizer
from neuron_jax.weights import sources
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.place import load_params

pytestmark = pytest.mark.slow

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "gemma3-270m-greedy.json").read_text())
EXCUSED = 1e-3
"""Margins under which two correct programs may choose differently."""


@pytest.fixture(scope="module")
def gguf() -> Path:
    """As `neuron pull gemma-3-270m` gets it; the first run downloads 240 MB."""
    return sources.fetch(sources.BuiltIn("gemma-3-270m"), cache_root(os.environ) / "models", lambda *_: None)


@pytest.fixture(scope="module")
def tokenizer(gguf: Path) -> Tokenizer:
    with open_checkpoint(gguf) as checkpoint:
        return load_tokenizer(json=None, gguf=checkpoint.metadata, config={})


def test_prompts_are_cut_as_the_reference_cuts_them(tokenizer: Tokenizer) -> None:
    """A SentencePiece vocabulary of 262144 tokens that puts no space before a text."""
    for row in ROWS:
        assert tokenizer.encode(row["text"], add_special=True) == row["prompt"]


@pytest.mark.parametrize("quant", ["none", "stored"])
def test_greedy_tokens_are_the_references(gguf: Path, quant: str) -> None:
    """Every row token for token, with its log-probabilities: by XLA in float32, and by the native kernels as stored."""
    native = quant == "stored"
    if native and library.unavailable() is not None:
        pytest.skip(f"no kernels: {library.unavailable()}")
    with open_checkpoint(gguf) as checkpoint:
        storage = checkpoint.storage if native else None
        model = build(checkpoint.config, dtype=jnp.float32, quant=quant, native=native, storage=storage)
        params = load_params(model, checkpoint, make_mesh(jax.devices("cpu")[:1]), lambda *_: None)

    @jax.jit
    def run(params: Any, tokens: jax.Array, first: int) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
        return jax.nn.log_softmax(model.logits(params, jax.lax.dynamic_slice_in_dim(hidden, first, 32)))

    assert max(len(row["prompt"]) for row in ROWS) > 512
    for row in ROWS:
        ids = np.array(row["prompt"] + row["tokens"], np.int32)
        padded = np.pad(ids, (0, -len(ids) % 64))  # so that two programs serve all
        found = np.asarray(run(params, jnp.asarray(padded), len(row["prompt"]) - 1))
        sure = np.array(row["margins"]) >= EXCUSED

        assert np.array_equal(found.argmax(axis=-1)[sure], np.array(row["tokens"])[sure])
        np.testing.assert_allclose(found[np.arange(32), row["tokens"]], row["logprobs"], atol=1e-3)
