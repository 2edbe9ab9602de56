"""The daemon over real engine processes of a tiny random Llama: what the double cannot show, its numbers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import numpy as np
import pytest

from neuron_jax.config import EngineConfig
from neuron_jax.daemon.devices import Devices
from neuron_jax.hardware.discover import Sampler, discover
from neuron_jax.workers.engine_client import DEFAULT_COMMAND
from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes import quick
from tests.fakes.adapters import write_peft
from tests.fakes.live_neuron import MODEL, LiveNeuron, config_for, serving
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

_DRAW = np.random.default_rng(3).standard_normal
PAIRS = {name: (_DRAW((4, 32), np.float32), _DRAW((size, 4), np.float32)) for name, size in (("q", 32), ("v", 16))}
QUICK = RestartPolicy(first_delay=0.01)


@asynccontextmanager
async def real_neuron(tmp_path: Path, **spec: Any) -> AsyncIterator[LiveNeuron]:
    """A daemon whose engines compute; `spec` goes into the load request."""
    folder = write_checkpoint(write_tiny_model(tmp_path / "tiny"), vocab_size=261)
    engine = EngineConfig(max_slots=4, chunk_tokens=32, max_context=512)
    config = config_for(folder, tmp_path / "cache", engine=engine)
    config = attrs.evolve(config, environ={**config.environ, **quick.ENVIRON})
    hardware = discover(visible="")
    with Sampler(hardware) as sampler:
        devices = Devices(hardware, sampler)
        async with (
            serving(config, QUICK, DEFAULT_COMMAND, devices) as (url, neuron),
            httpx.AsyncClient(base_url=url, timeout=120) as http,
        ):
            answer = await http.post("/models/load", json={"model_id": MODEL, **spec})
            assert answer.status_code == 200, answer.text
            yield LiveNeuron(http, neuron, folder)


async def tell(neuron: LiveNeuron, seed: int, **more: Any) -> str:
    """A long answer drawn with `seed`."""
    options = {"max_tokens": 400, "temperature": 1.0, "seed": seed, "ignore_eos": True, **more}
    answer = await neuron.chat("once upon a time", **options)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 400
    return str(answer.json()["choices"][0]["message"]["content"])


def test_an_answer_survives_its_engine(tmp_path: Path) -> None:
    """SIGKILL under four requests: each gets the text that its seed gives, from the next process."""

    async def run() -> None:
        async with real_neuron(tmp_path) as neuron:
            wanted = [await tell(neuron, seed) for seed in range(4)]
            first = neuron.pid()
            os.kill(first, signal.SIGSTOP)  # so that none of them ends before it dies
            asking = [asyncio.create_task(tell(neuron, seed)) for seed in range(4)]
            await until(lambda: (client := neuron.lifecycle.residents[0].client) and client.open == 4)
            os.kill(first, signal.SIGKILL)

            assert await asyncio.gather(*asking) == wanted
            assert len(set(wanted)) == 4
            assert neuron.pid() != first
            metrics = (await neuron.http.get("/metrics")).text
            assert f'neuron_requests_run_again_total{{model="{MODEL}"}} 4.0' in metrics

    asyncio.run(run())


@pytest.mark.slow
def test_two_engines_on_one_cpu(tmp_path: Path) -> None:
    """They share its memory and say the same; one is killed, the other answers what it was asked, and the first comes back."""

    async def run() -> None:
        async with real_neuron(tmp_path, replicas=2) as neuron:
            resident = neuron.lifecycle.residents[0]
            wanted = await asyncio.gather(*(tell(neuron, seed) for seed in range(6)))
            victim, other = (one.client.pid for one in resident.replicas if one.client)
            for pid in (victim, other):
                os.kill(pid, signal.SIGSTOP)
            asking = [asyncio.create_task(tell(neuron, seed)) for seed in range(6)]
            await until(lambda: sum(one.client.open for one in resident.replicas if one.client) == 6)
            opened = [one.client.open for one in resident.replicas if one.client]
            os.kill(victim, signal.SIGKILL)
            os.kill(other, signal.SIGCONT)

            assert min(opened) >= 2
            assert await asyncio.gather(*asking) == wanted
            await until(lambda: resident.admission.slots == 8, 120)
            await neuron.lifecycle.devices.look(fresh=True)
            health = (await neuron.http.get("/health")).json()["devices"][0]["processes"]
            assert sorted(one["pid"] for one in health) == sorted(
                one.client.pid for one in resident.replicas if one.client
            )
            assert all(one["model"] == MODEL and one["used_mb"] > 20 for one in health)

    asyncio.run(run())


def test_weights_are_swapped_under_a_stream(tmp_path: Path) -> None:
    """There and back: a long answer goes on meanwhile, new ones are what the weights that serve say, and nothing is compiled.
    Weights of another shape, and those stored otherwise, are refused in words, and change nothing."""
    other, wide, narrow = (tmp_path / name for name in ("other", "wide", "narrow"))
    for folder, changes in ((other, {"seed": 12}), (wide, {"intermediate_size": 64}), (narrow, {"dtype": "F16"})):
        write_checkpoint(write_tiny_model(folder), vocab_size=261, **changes)

    async def run() -> None:
        # Beside the only layer's maps. Its requests share steps with those of none.
        poet = {f"model.layers.0.self_attn.{name}_proj.weight": pair for name, pair in PAIRS.items()}
        folder = write_peft(tmp_path / "poet", poet)
        async with real_neuron(tmp_path, adapters=[f"poet={folder}"]) as neuron:

            async def reload(source: Path, **more: Any) -> httpx.Response:
                return await neuron.http.post("/models/reload", json={"model_id": MODEL, "source": str(source), **more})

            first, rhymed = await asyncio.gather(tell(neuron, 1), tell(neuron, 1, model=f"{MODEL}:poet"))
            running = asyncio.create_task(tell(neuron, 2))
            await until(lambda: (client := neuron.lifecycle.residents[0].client) and client.load.running == 1)
            swapped = await reload(other)
            second, mixed = await tell(neuron, 1), await running
            refused = [await reload(folder) for folder in (wide, narrow, tmp_path)]
            back = await reload(neuron.folder, in_place=True)

            assert (swapped.status_code, back.status_code) == (200, 200), swapped.text + back.text
            assert len({first, second, mixed, rhymed}) == 4
            assert await tell(neuron, 1) == first
            assert await tell(neuron, 1, model="tiny:poet") == rhymed
            assert (await neuron.http.get("/models")).json()[0]["adapters"] == ["poet"]
            assert (await neuron.chat("hello", model=f"{MODEL}:critic")).json()["error"]["nearest"][
                0
            ] == f"{MODEL}:poet"
            assert [one.json()["error"]["kind"] for one in refused] == [*["bad_checkpoint"] * 2, "repo_fetch_failed"]
            assert "intermediate_size is 64, not 48" in refused[0].json()["error"]["message"]
            assert "bits=16" in refused[1].json()["error"]["message"]
            metrics = (await neuron.http.get("/metrics")).text
            assert f'neuron_steady_state_compiles_total{{model="{MODEL}"}} 0.0' in metrics
            assert f'neuron_weight_reloads_total{{model="{MODEL}"}} 2.0' in metrics

    asyncio.run(run())
