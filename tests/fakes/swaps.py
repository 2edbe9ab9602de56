"""Two models on a neuron that has room for one, behind a gateway, and a client that wants them in turn."""

import asyncio
import pathlib
from collections.abc import Sequence

import attrs
import httpx

from cortex_gateway.app import create_app
from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config, GatewayConfig, Neuron
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from cortex_gateway.transport import NeuronTransport
from neuron_jax.config import EngineConfig, ModelSpec
from neuron_jax.workers.supervisor import RESTARTS
from tests.fakes.gateway_rig import CHAT
from tests.fakes.late_memory import LateMemory
from tests.fakes.live_neuron import config_for, running
from tests.fakes.memory_transport import MemoryTransport

MODELS = ("org/one", "org/other")


def swapped(
    folders: Sequence[pathlib.Path], cache: pathlib.Path, command: Sequence[str], times: int, memory: LateMemory
) -> list[int]:
    """The statuses of `times` requests, each for the model that is not loaded. `command` starts an engine."""
    specs = tuple(
        ModelSpec(model_id=name, source=str(folder), memory_mb=memory.each)
        for name, folder in zip(MODELS, folders, strict=True)
    )
    engine = EngineConfig(max_slots=2, chunk_tokens=32, max_context=256, min_free_mb=0)
    config = attrs.evolve(config_for(folders[0], cache, engine=engine), models=specs)

    async def main() -> list[int]:
        async with running(config, RESTARTS, command, memory.devices) as (url, _):
            return await _ask(url, times)

    return asyncio.run(main())


async def _ask(url: str, times: int) -> list[int]:
    config = Config(gateway=GatewayConfig(watch_secs=0.2), neurons=(Neuron(name="a", endpoint=url),))
    fleet = Fleet(config, Metrics(), transport=NeuronTransport())
    await fleet.start()
    try:
        transport = MemoryTransport({"gw": create_app(fleet, Metrics(), config, Guard())})
        async with httpx.AsyncClient(transport=transport, base_url="http://gw", timeout=120) as client:
            return [await _one(client, MODELS[number % 2]) for number in range(times)]
    finally:
        await fleet.close()


async def _one(client: httpx.AsyncClient, model: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    return (await client.post(CHAT, json=body)).status_code
