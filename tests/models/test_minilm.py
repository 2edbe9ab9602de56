"""The real all-MiniLM-L6-v2, as it is built in, against transformers on sentences of every kind and length."""

import asyncio
import os
from pathlib import Path

import attrs
import httpx
import numpy as np
import pytest

from neuron_jax.config import ModelSpec, cache_root
from neuron_jax.daemon.devices import Devices
from neuron_jax.hardware.discover import Sampler, discover
from neuron_jax.weights import sources
from neuron_jax.workers.process import DEFAULT_COMMAND
from tests.fakes.live_neuron import config_for, serving

pytestmark = pytest.mark.slow

MODEL = "all-minilm-l6-v2"
DATA = Path(__file__).parents[1] / "data" / "minilm-l6-v2.npz"
TEXTS = (
    "The cat sits outside.",
    "Ein Mann spielt Gitarre, während draußen der Regen fällt.",
    "x",
    "def add(a, b):\n    return a + b  # TODO: check for overflow!",
    "naïve café — Ωmega, 北京, 🙂 and a\ttab",
    "What is the capital of France? Paris is the capital of France. " * 3,
    "the same words again and again " * 60,
)
"""The last has 362 tokens: more than sentence-transformers reads of a text, fewer than the model can."""


def test_vectors_are_those_of_transformers(tmp_path: Path) -> None:
    """Cosine at least 0.9999 for each, asked for together by its name; they are compared with each of them alone."""

    async def run() -> httpx.Response:
        models = cache_root(os.environ) / "models"
        await asyncio.to_thread(sources.fetch, sources.BuiltIn(MODEL), models, lambda *_: None)
        config = config_for(tmp_path, tmp_path / "cache", models=())
        config = attrs.evolve(config, cache=attrs.evolve(config.cache, models_dir=models))
        hardware = discover(visible="")
        with Sampler(hardware) as sampler:
            async with serving(config, command=DEFAULT_COMMAND, devices=Devices(hardware, sampler)) as (url, neuron):
                await neuron.lifecycle.load(ModelSpec(model_id=MODEL))
                async with httpx.AsyncClient(base_url=url, timeout=120) as http:
                    return await http.post("/v1/embeddings", json={"model": MODEL, "input": TEXTS})

    answer = asyncio.run(run()).json()
    found = np.array([row["embedding"] for row in answer["data"]])
    with np.load(DATA) as expected:
        cosines = np.sum(found * expected["embeddings"], axis=1)

    assert cosines.min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
