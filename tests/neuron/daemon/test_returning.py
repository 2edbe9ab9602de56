"""Memory that comes back some time after its engine is gone: unload waits for it, and so does whoever needs it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from neuron_jax.config import EngineConfig, ModelSpec
from neuron_jax.daemon.devices import ReturnPatience
from neuron_jax.daemon.returning import Leaving, last_seen, missing
from neuron_jax.daemon.shares import DeviceMemory, MemoryGrant, MemoryRequest, Picture
from neuron_jax.errors import LoadError
from neuron_jax.hardware.records import Process
from neuron_jax.workers.process import DEFAULT_COMMAND
from tests.fakes.engine_double import COMMAND
from tests.fakes.late_host import LateHost
from tests.fakes.live_neuron import MODEL, config_for, running
from tests.fakes.moving_devices import MovingDevices
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.tiny_model import write_tiny_model

OTHER = "org/other"
A = MemoryGrant("a", "a", (0,), 4_000, settled=True, pids=(7,), planned=3_000)
B = MemoryGrant("b", "b", (0,), 2_000, settled=True, pids=(8,), planned=2_000)


def picture(free: int, shared: bool = False, **used: int) -> Picture:
    pids = {"a": 7, "b": 8}
    return Picture({0: DeviceMemory(10_000, free)}, {(0, pids[name]): mb for name, mb in used.items()}, shared=shared)


@pytest.mark.parametrize(
    ("before", "leaving"),
    [
        (picture(3_000, a=3_500), Leaving({0: 3_500}, {0: 1_500}, measured=True)),
        (picture(3_000, a=3_500, b=2_000), Leaving({0: 3_500}, {0: 1_500}, measured=True)),
        (picture(3_000, shared=True, a=3_500, b=2_000), Leaving({0: 3_500}, {0: 1_500}, measured=True)),
        (picture(3_000), Leaving({0: 1_500}, {0: 3_500}, measured=False)),  # nobody tells: half of the plan
    ],
)
def test_what_an_engine_was_seen_to_use(before: Picture, leaving: Leaving) -> None:
    """Beside what other programs used, but not our other engines."""
    assert last_seen(A, before, [A, B]) == leaving


@pytest.mark.parametrize(
    ("after", "mb"),
    [
        (picture(3_000, b=2_000), 3_500),  # all of it still looks like other programs'
        (picture(5_000, b=2_000), 1_500),
        (picture(6_400, b=2_000), 0),  # nearly all is back
        (picture(6_500, b=2_000), 0),
        (picture(5_500, b=3_000), 0),  # B took what came back
        (picture(0, b=2_000), 3_500),  # never more than it was
    ],
)
def test_what_is_missing_of_it(after: Picture, mb: int) -> None:
    """What other programs seem to use more than before."""
    assert missing(Leaving({0: 3_500}, {0: 1_500}, measured=True), after, [B]) == mb


def ended(moving: MovingDevices, use: Any, kind: str = "cuda", **patience: float) -> Any:
    """The result of `use` with devices on which an engine of 5,000 MiB has just ended, whose memory is not back."""

    async def run() -> Any:
        devices = moving.devices(kind, ReturnPatience(**{"poll": 0.005, "most": 5.0, **patience}))
        devices.keep_free(0)
        await devices.place(MemoryRequest("a", "a", (0,), 6_000))
        moving.free[0] = 4_000
        moving.processes[0] = (Process(7, 5_000),)
        devices.settle("a", [7], 5_000)
        await devices.look(fresh=True)
        moving.processes[0] = ()
        devices.ended("a")
        devices.release("a")
        return await use(devices)

    return asyncio.run(run())


def test_unloading_is_done_when_the_memory_is_back() -> None:
    """The driver has it for a while after the process is gone."""
    moving = MovingDevices(free={0: 9_000})

    async def use(devices: Any) -> bool:
        waiting = asyncio.create_task(devices.returned("a"))
        await asyncio.sleep(0.05)
        early = waiting.done()
        moving.free[0] = 9_000
        await asyncio.wait_for(waiting, 20)
        return early

    assert ended(moving, use) is False


@pytest.mark.parametrize(("mb", "granted"), [(6_000, 6_000), (0, int(9_000 * 0.97))])
def test_a_load_that_only_lacks_it_waits(mb: int, granted: int) -> None:
    """It is not refused, nor given the little that is there by now."""
    moving = MovingDevices(free={0: 9_000})

    async def use(devices: Any) -> tuple[bool, int]:
        placing = asyncio.create_task(devices.place(MemoryRequest("b", "b", (0,), mb)))
        await asyncio.sleep(0.05)
        early = placing.done()
        moving.free[0] = 9_000
        return early, (await asyncio.wait_for(placing, 20)).mb

    assert ended(moving, use) == (False, granted)


def test_a_load_that_fits_meanwhile_does_not_wait() -> None:
    """There is room for it beside what is still to come."""
    given = ended(MovingDevices(free={0: 9_000}), lambda devices: devices.place(MemoryRequest("b", "b", (0,), 3_000)))

    assert given.mb == 3_000


def test_a_load_on_another_device_does_not_wait() -> None:
    """What does not fit there does not fit."""

    async def use(devices: Any) -> None:
        with pytest.raises(LoadError, match="asks for 9000 MiB"):
            await devices.place(MemoryRequest("b", "b", (1,), 9_000))

    ended(MovingDevices(free={0: 9_000, 1: 8_000}), use, most=1000.0, still_cuda=1000.0)


@pytest.mark.parametrize(
    ("kind", "patience"), [("cuda", {"still_cuda": 0.1}), ("cpu", {"still_cpu": 0.1}), ("cuda", {"most": 0.1})]
)
def test_nobody_waits_for_what_does_not_come(kind: str, patience: dict[str, float]) -> None:
    """Another program may have taken it: the load is refused then, with the table of who has what."""

    async def use(devices: Any) -> None:
        with pytest.raises(LoadError, match="other programs 6000 MiB") as raised:
            await asyncio.wait_for(devices.place(MemoryRequest("b", "b", (0,), 6_000)), 20)
        assert raised.value.kind == "does_not_fit"
        await asyncio.wait_for(devices.returned("a"), 20)

    ended(MovingDevices(free={0: 9_000}), use, kind, **patience)


def test_a_neuron_that_ends_waits_for_nothing() -> None:
    """Nobody will use it."""

    async def use(devices: Any) -> None:
        devices.close()
        await asyncio.wait_for(devices.returned("a"), 1)

    ended(MovingDevices(free={0: 9_000}), use, most=1000.0, still_cuda=1000.0)


def swaps(tmp_path: Path, count: int, command: Sequence[str], host: LateHost, *, memory_mb: int, **script: Any) -> None:
    """Two models take turns on a host with room for one: each is unloaded, the other loaded and asked."""
    first = write_tiny_model(tmp_path / "tiny", **script)
    other = write_tiny_model(tmp_path / "other", **script)
    if command is DEFAULT_COMMAND:
        for folder in (first, other):
            write_checkpoint(folder, vocab_size=261)
    spec = ModelSpec(model_id=OTHER, source=str(other))
    engine = EngineConfig(max_slots=2, chunk_tokens=32, max_context=512, min_free_mb=0)
    config = config_for(first, tmp_path / "cache", engine=engine)
    config = attrs.evolve(config, models=(*config.models, spec))

    async def run() -> None:
        devices = host.devices(ReturnPatience(poll=0.01))
        async with (
            running(config, command=command, devices=devices) as (url, _),
            httpx.AsyncClient(base_url=url, timeout=120) as http,
        ):
            for at in range(count):
                coming, going = (MODEL, OTHER) if at % 2 == 0 else (OTHER, MODEL)
                if at:
                    assert (await http.post("/models/unload", json={"model_id": going})).status_code == 200
                loaded = await http.post("/models/load", json={"model_id": coming, "memory_mb": memory_mb})
                assert loaded.status_code == 200, (at, loaded.text)
                body = {"model": coming, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
                assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
            full = await http.post("/models/load", json={"model_id": going, "memory_mb": memory_mb})
            assert full.json()["error"]["kind"] == "does_not_fit"

    asyncio.run(run())


@pytest.mark.slow
def test_twenty_swaps_on_a_host_with_room_for_one(tmp_path: Path) -> None:
    """Processes that take 80 MiB and more, whose memory comes back a tenth of a second after they are gone."""
    swaps(tmp_path, 20, COMMAND, LateHost(1_000, late=0.1), memory_mb=930, ballast_mb=80)


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_twenty_swaps_of_real_engines(tmp_path: Path) -> None:
    """The same with engines that compute."""
    swaps(tmp_path, 20, DEFAULT_COMMAND, LateHost(4_000, late=0.5), memory_mb=3_900)
