"""Encoders over HTTP, in engine processes that compute: vectors are those of transformers, alone and among others."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import jax.numpy as jnp
import numpy as np
import pytest

from models.pooling import MODULES
from models.registry import build_embedder
from neuron_jax.config import ModelSpec
from tests.fakes.family_files import write_folder
from tests.fakes.tiny_bert import tokenizer, write_modules
from tests.fakes.weight_files import random_tensors
from tests.models.test_encoders import CASES, DATA, TEXTS, pooled
from tests.neuron.daemon.test_faulty_checkpoints import daemon, load

pytestmark = pytest.mark.slow


def write(folder: Path, config: dict[str, Any]) -> Path:
    """A folder as sentence-transformers writes it, whose vectors are the mean."""
    saved = {key: value for key, value in config.items() if key != MODULES}
    model = build_embedder(pooled(saved, "mean_tokens"), dtype=jnp.float32)
    write_folder(folder, saved, random_tensors(model))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    write_modules(folder, "mean_tokens", normalize=False)
    return folder


@pytest.mark.parametrize("name", ["xlm-roberta", "modernbert", "eurobert"])
def test_vectors_over_http_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    """Texts as token ids, some hundreds at once and each alone."""
    spec = ModelSpec(model_id="encoder", source=str(write(tmp_path / "encoder", CASES[name])))

    async def run() -> None:
        async with daemon(tmp_path, [spec]) as http:
            assert (await load(http, "encoder")).status_code == 200
            together = await vectors(http, TEXTS * 40)
            alone = np.concatenate([await vectors(http, [text]) for text in TEXTS])

        with np.load(DATA) as expected:
            np.testing.assert_allclose(alone, expected[name], rtol=0, atol=1e-4)
        np.testing.assert_allclose(together, np.tile(alone, (40, 1)), rtol=0, atol=1e-5)

    asyncio.run(run())


async def vectors(http: httpx.AsyncClient, texts: list[list[int]]) -> np.ndarray:
    """[N, width]."""
    answer = await http.post("/v1/embeddings", json={"model": "encoder", "input": texts})
    assert answer.status_code == 200, answer.text
    return np.array([row["embedding"] for row in answer.json()["data"]])
