"""Checkpoints with faults, over HTTP: one error that names the files and all that is wrong with them, and others serve on."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from neuron_jax.config import EngineConfig, ModelSpec
from neuron_jax.daemon.devices import Devices
from neuron_jax.hardware.discover import Sampler, discover
from neuron_jax.workers.engine_client import DEFAULT_COMMAND
from tests.fakes import quick
from tests.fakes.faulty_files import KINDS, OF_FILES, copied, faults_of, write_whole, write_whole_gguf
from tests.fakes.live_neuron import config_for, serving
from tests.fakes.params import slow_but


@asynccontextmanager
async def daemon(tmp_path: Path, models: Sequence[ModelSpec]) -> AsyncIterator[httpx.AsyncClient]:
    """A daemon that offers `models`, with engines that compute."""
    config = config_for(tmp_path, tmp_path / "cache", engine=EngineConfig(max_slots=2, chunk_tokens=32, max_context=64))
    config = attrs.evolve(config, models=tuple(models), environ={**config.environ, **quick.ENVIRON})
    hardware = discover(visible="")
    with Sampler(hardware) as sampler:
        async with (
            serving(config, command=DEFAULT_COMMAND, devices=Devices(hardware, sampler)) as (url, _),
            httpx.AsyncClient(base_url=url, timeout=120) as http,
        ):
            yield http


async def load(http: httpx.AsyncClient, name: str) -> httpx.Response:
    return await http.post("/models/load", json={"model_id": name})


async def answer(http: httpx.AsyncClient, kind: str) -> Any:
    """What the model that is whole says."""
    if kind == "encoder":
        return (await http.post("/v1/embeddings", json={"model": "whole", "input": "the cat"})).json()["data"]
    body = {"model": "whole", "prompt": "once", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    return (await http.post("/v1/completions", json=body)).json()["choices"]


async def refused(http: httpx.AsyncClient, name: str, words: Sequence[str]) -> None:
    """A load is refused in words that name the model's own files, and nothing of it is there."""
    told = (await load(http, name)).json()["error"]
    assert told["kind"] == "bad_checkpoint", told
    assert told["model_id"] == name
    for one in words:
        assert one in told["message"], f"{name}: {one!r} is not told: {told['message']}"
    listed = {model["id"]: model for model in (await http.get("/models")).json()}
    assert listed[name]["status"] == "failed"
    asked = await http.post("/v1/completions", json={"model": name, "prompt": "a"})
    assert asked.status_code in (404, 503), asked.text


def refuse_all(tmp_path: Path, kind: str, whole: Path, faulty: Sequence[tuple[str, Path, Sequence[str]]]) -> None:
    """Loads what is whole, each of `faulty` (its name, its files and what must be told), and asks the whole one again."""
    specs = [ModelSpec(model_id=name, source=str(path)) for name, path, _ in faulty]
    good = ModelSpec(model_id="whole", source=str(whole))

    async def run() -> None:
        async with daemon(tmp_path, [*specs, good]) as http:
            assert (await load(http, "whole")).json() == {"status": "loaded"}
            first = await answer(http, kind)
            for name, path, words in faulty:
                await refused(http, name, [str(path), *words])

            assert await answer(http, kind) == first
            up = [model["id"] for model in (await http.get("/models")).json() if model["status"] == "loaded"]
            assert up == ["whole"]
            assert (await load(http, "whole")).status_code == 400, "it is loaded already"

    asyncio.run(run())


@pytest.mark.parametrize("kind", slow_but({"latent"}, KINDS))
def test_each_fault_of_a_folder_is_one_error(tmp_path: Path, kind: str) -> None:
    """Files that are cut, missing, swapped, of other shapes and types, and configs with absurd counts."""
    whole = write_whole(kind, tmp_path / "whole")
    faulty = []
    for number, (name, make) in enumerate(faults_of(kind).items()):
        folder = copied(whole, tmp_path / str(number))
        faulty.append((name, folder.path, make(folder)))

    refuse_all(tmp_path, kind, whole.path, faulty)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_of_a_gguf_file_is_one_error(tmp_path: Path, kind: str) -> None:
    """Its header is the config, and one file has everything."""
    whole = write_whole_gguf(kind, tmp_path / "whole.gguf")
    faulty = []
    for number, (name, make) in enumerate(OF_FILES.items()):
        file = Path(shutil.copy(whole, tmp_path / f"{number}.gguf"))
        faulty.append((name, file, make(file)))

    refuse_all(tmp_path, kind, whole, faulty)
