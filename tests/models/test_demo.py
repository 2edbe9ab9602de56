"""The demo model's own weights: greedy tokens and log-probabilities of an independent reference, sharded and not."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attend import causal
from models.registry import build
from models.sharding import make_mesh
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.place import load_params

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "smollm2-greedy.json").read_text())
SHORT = [row for row in ROWS if len(row["prompt_ids"]) + len(row["greedy_ids"]) <= 64]
EXCUSED = 1e-3
"""Margins under which two correct programs may choose differently."""


class Scorer:
    """Log-probabilities of a row's greedy tokens in one teacher-forced pass, padded to `length` tokens."""

    def __init__(self, path: Path, devices: int, length: int, quant: str = "none") -> None:
        with open_checkpoint(path) as checkpoint:
            self.model = build(checkpoint.config, tensor_parallel=devices, quant=quant, dtype=jnp.float32)
            mesh = make_mesh(jax.devices("cpu")[:devices])
            self.params = load_params(self.model, checkpoint, mesh, lambda *_: None)
        self.length = length
        self.run = jax.jit(self._run)

    def _run(self, params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        layers = len(self.model.layers)
        hidden, _ = self.model.forward(params, tokens, positions, causal(), [None] * layers)
        return jax.nn.log_softmax(self.model.logits(params, hidden))

    def __call__(self, row: dict[str, Any]) -> np.ndarray:
        """[greedy tokens, V]."""
        ids = row["prompt_ids"] + row["greedy_ids"]
        padded = np.array(ids + [0] * (self.length - len(ids)), np.int32)
        first = len(row["prompt_ids"]) - 1
        return np.asarray(self.run(self.params, jnp.asarray(padded)))[first : len(ids) - 1]


@pytest.fixture(scope="module")
def one_device(demo_gguf: Path) -> Scorer:
    return Scorer(demo_gguf, 1, 256)


def assert_greedy(logprobs: np.ndarray, row: dict[str, Any]) -> None:
    """The likeliest token is the reference's everywhere, and about as likely as there."""
    ids = np.array(row["greedy_ids"])
    sure = np.array(row["margins"]) >= EXCUSED

    assert np.array_equal(logprobs.argmax(axis=-1)[sure], ids[sure])
    np.testing.assert_allclose(logprobs[np.arange(len(ids)), ids], row["logprobs"], atol=2e-3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["messages"][-1]["content"][:24])
def test_greedy_tokens_are_the_references(one_device: Scorer, row: dict[str, Any]) -> None:
    """Every row of the reference, token for token, with its log-probabilities."""
    assert_greedy(one_device(row), row)


@pytest.mark.parametrize(
    ("devices", "rows"), [(3, 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((2, 2), (4, 2), (8, 1)))]
)
def test_greedy_tokens_do_not_depend_on_the_devices(demo_gguf: Path, devices: int, rows: int) -> None:
    """On 2, 3, 4 and 8 devices, which do not all divide 9 heads or 3 kv heads evenly, the tokens are the same."""
    scorer = Scorer(demo_gguf, devices, 64)
    for row in SHORT[:rows]:
        assert_greedy(scorer(row), row)


@pytest.mark.slow
def test_int8_mostly_agrees(demo_gguf: Path) -> None:
    """With int8 weights 93 of 100 greedy tokens stay, and log-probabilities move by less than 0.1 on average."""
    scorer = Scorer(demo_gguf, 1, 128, "int8")
    rows = [row for row in ROWS if len(row["prompt_ids"]) + len(row["greedy_ids"]) <= 128][:6]
    found = [scorer(row) for row in rows]
    ids = np.concatenate([row["greedy_ids"] for row in rows])
    logprobs = np.concatenate(found)
    moved = np.abs(logprobs[np.arange(len(ids)), ids] - np.concatenate([row["logprobs"] for row in rows]))

    assert (logprobs.argmax(axis=-1) == ids).mean() > 0.93
    assert moved.mean() < 0.1
