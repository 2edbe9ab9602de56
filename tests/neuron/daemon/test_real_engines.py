"""The daemon over real engine processes of a tiny random Llama: what the double cannot show, its numbers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from neuron_jax.config import EngineConfig
from neuron_jax.daemon.devices import Devices
from neuron_jax.hardware.discover import Sampler, discover
from neuron_jax.workers.engine_client import DEFAULT_COMMAND
from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.live_neuron import MODEL, LiveNeuron, config_for, running
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

QUICK = RestartPolicy(first_delay=0.01)


@asynccontextmanager
async def real_neuron(tmp_path: Path, **spec: Any) -> AsyncIterator[LiveNeuron]:
    """A daemon whose engines compute; `spec` goes into the load request."""
    folder = write_checkpoint(write_tiny_model(tmp_path / "tiny"), vocab_size=261)
    engine = EngineConfig(max_slots=4, chunk_tokens=32, max_context=512)
    config = config_for(folder, tmp_path / "cache", engine=engine)
    hardware = discover(visible="")
    with Sampler(hardware) as sampler:
        devices = Devices(hardware, sampler)
        async with (
            running(config, QUICK, DEFAULT_COMMAND, devices) as (url, lifecycle),
            httpx.AsyncClient(base_url=url, timeout=120) as http,
        ):
            answer = await http.post("/models/load", json={"model_id": MODEL, **spec})
            assert answer.status_code == 200, answer.text
            yield LiveNeuron(http, lifecycle, folder)


async def tell(neuron: LiveNeuron, seed: int) -> str:
    """A long answer drawn with `seed`."""
    wish = {"max_tokens": 400, "temperature": 1.0, "seed": seed, "ignore_eos": True}
    answer = await neuron.chat("once upon a time", **wish)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 400
    return str(answer.json()["choices"][0]["message"]["content"])


def test_an_answer_survives_its_engine(tmp_path: Path) -> None:
    """SIGKILL under four requests: each gets the text that its seed gives, from the next process."""

    async def run() -> None:
        async with real_neuron(tmp_path) as neuron:
            wanted = [await tell(neuron, seed) for seed in range(4)]
            first = neuron.pid()
            asking = [asyncio.create_task(tell(neuron, seed)) for seed in range(4)]
            await until(lambda: (client := neuron.lifecycle.residents[0].client) and client.open == 4)
            os.kill(first, signal.SIGKILL)

            assert await asyncio.gather(*asking) == wanted
            assert len(set(wanted)) == 4
            assert neuron.pid() != first
            metrics = (await neuron.http.get("/metrics")).text
            assert f'neuron_requests_run_again_total{{model="{MODEL}"}} 4.0' in metrics

    asyncio.run(run())
