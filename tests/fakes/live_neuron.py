"""A neuron daemon on a real port with the engine double behind it, for one test; knows the tiny model."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import uvicorn

from neuron_jax.config import AccessConfig, AdmissionConfig, ModelSpec, NeuronConfig, ServerConfig, load_config
from neuron_jax.daemon.admission import AdmissionQueue
from neuron_jax.daemon.app import build_app, tls_of
from neuron_jax.daemon.connection import CallerConnection
from neuron_jax.daemon.devices import Devices
from neuron_jax.daemon.lifecycle import Lifecycle
from neuron_jax.daemon.service import NeuronServices
from neuron_jax.hardware.records import Device, DeviceLoad, Hardware
from neuron_jax.workers.supervisor import RESTARTS, RestartPolicy
from tests.fakes.engine_double import COMMAND, environment
from tests.fakes.tiny_model import write_tiny_model

MODEL = "org/tiny"
SERVER = ServerConfig(port=0, max_body_mb=1)


class StillDevices:
    """Devices that never change: device 0 is the fullest."""

    def __init__(self, count: int) -> None:
        self.count = count

    def sample(self) -> tuple[DeviceLoad, ...]:
        return tuple(DeviceLoad(index, 900 - 100 * index, 100 + 100 * index, 5, None) for index in range(self.count))


def still_devices(count: int = 2) -> Devices:
    devices = tuple(Device(index, "still CPU", "cpu", 1000, None) for index in range(count))
    hardware = Hardware("host", "Linux", "6.0", None, None, devices, "no NVIDIA driver")
    return Devices(hardware, StillDevices(count))


@attrs.frozen(eq=False)
class LiveNeuron:
    """A running daemon: an HTTP client bound to it, what its routes work with, its tiny model's folder."""

    http: httpx.AsyncClient
    neuron: NeuronServices
    folder: Path

    @property
    def lifecycle(self) -> Lifecycle:
        return self.neuron.lifecycle

    @property
    def counting(self) -> AdmissionQueue:
        return self.neuron.counting

    @property
    def url(self) -> str:
        return str(self.http.base_url)

    async def chat(self, text: str, **more: Any) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}
        return await self.http.post("/v1/chat/completions", json=body)

    async def load(self, **spec: Any) -> None:
        answer = await self.http.post("/models/load", json={"model_id": MODEL, **spec})
        assert answer.status_code == 200, answer.text

    def pid(self) -> int:
        client = self.lifecycle.residents[0].client
        assert client is not None
        return client.pid


def config_for(folder: Path, cache: Path, **changes: Any) -> NeuronConfig:
    """A config that offers the tiny model in `folder` as MODEL, alias `tiny`."""
    spec = ModelSpec(model_id=MODEL, source=str(folder), aliases=("tiny",))
    base = load_config(None, {**environment(), "CORTEX_CACHE": str(cache)})
    defaults: Mapping[str, Any] = {"models": (spec,), "server": SERVER}
    return attrs.evolve(base, **{**defaults, **changes})


@asynccontextmanager
async def live_neuron(
    tmp_path: Path,
    *,
    load: bool = True,
    queue: AdmissionConfig | None = None,
    restarts: RestartPolicy = RESTARTS,
    devices: Devices | None = None,
    server: ServerConfig = SERVER,
    secret: str = "",
    trust_network: bool = False,
    adapters: tuple[str, ...] = (),
    **script: Any,
) -> AsyncIterator[LiveNeuron]:
    folder = write_tiny_model(tmp_path / "tiny", **script)
    access = AccessConfig(secret=secret, trust_network=trust_network)
    config = config_for(folder, tmp_path / "cache", admission=queue or AdmissionConfig(), server=server, access=access)
    config = attrs.evolve(config, models=(attrs.evolve(config.models[0], adapters=adapters),))
    async with (
        serving(config, restarts, devices=devices) as (url, app_neuron),
        httpx.AsyncClient(base_url=url, timeout=20) as http,
    ):
        neuron = LiveNeuron(http, app_neuron, folder)
        if load:
            await app_neuron.lifecycle.load(config.models[0])
        yield neuron


@asynccontextmanager
async def running(
    config: NeuronConfig,
    restarts: RestartPolicy = RESTARTS,
    command: Sequence[str] = COMMAND,
    devices: Devices | None = None,
) -> AsyncIterator[tuple[str, Lifecycle]]:
    """As `serving`, for who needs the lifecycle only."""
    async with serving(config, restarts, command, devices) as (url, neuron):
        yield url, neuron.lifecycle


@asynccontextmanager
async def serving(
    config: NeuronConfig,
    restarts: RestartPolicy = RESTARTS,
    command: Sequence[str] = COMMAND,
    devices: Devices | None = None,
) -> AsyncIterator[tuple[str, NeuronServices]]:
    """The daemon of `config` on a free port; afterwards none of its processes or tasks is left."""
    app = build_app(config, devices or still_devices(), command=command, restarts=restarts)
    settings = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=CallerConnection,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=1,
    )
    settings.load()
    settings.ssl = tls_of(config.server)
    server = uvicorn.Server(settings)
    task = asyncio.create_task(server._serve())
    while not server.started:
        assert not task.done(), "the daemon ended at start"
        await asyncio.sleep(0.005)
    try:
        scheme = "https" if settings.ssl else "http"
        yield f"{scheme}://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", app.state.neuron
    finally:
        server.should_exit = True
        await task
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not [name for name in left if not name.startswith("Task-")], left


def with_neuron(tmp_path: Path, use: Callable[[LiveNeuron], Awaitable[Any]], **options: Any) -> Any:
    """The result of `use` on a live neuron."""

    async def run() -> Any:
        async with live_neuron(tmp_path, **options) as neuron:
            return await use(neuron)

    return asyncio.run(run())


def sse_events(text: str) -> list[str]:
    """The data of each event; asserts that the body is nothing but events and comments."""
    assert text.endswith("\n\n"), text[-80:]
    blocks = text[:-2].split("\n\n")
    assert all(block.startswith(("data: ", ":")) and "\n" not in block for block in blocks), blocks
    return [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
