"""Engines and devices: shares, what is done when memory runs out or a device is lost, and when others take the memory."""

import asyncio
import json
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from neuron_jax.config import EngineConfig, ModelSpec
from neuron_jax.daemon.assign import assign_all
from neuron_jax.daemon.devices import LostDevice, lost_after
from neuron_jax.errors import LoadError
from neuron_jax.hardware.records import DeviceLoad, Process
from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.live_neuron import MODEL, LiveNeuron, config_for, running, with_neuron
from tests.fakes.moving_devices import MovingDevices
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

QUICK = RestartPolicy(first_delay=0.01, max_delay=0.02)
OTHER = "org/other"


def told(neuron: LiveNeuron) -> list[dict[str, Any]]:
    """What each engine process was told, in the order of the starts."""
    return [json.loads(line) for line in (neuron.folder / "specs").read_text().splitlines()]


async def info(neuron: LiveNeuron) -> dict[str, Any]:
    found: dict[str, Any] = (await neuron.http.get("/models")).json()[0]
    return found


async def die(neuron: LiveNeuron) -> None:
    """One request that ends its engine twice at most, and that the model has come to rest after."""
    await neuron.chat("[[die once 0]]")
    await until(lambda: neuron.lifecycle.residents[0].status.stage in ("loaded", "failed"))


def test_an_engine_is_granted_what_is_left_and_keeps_what_it_plans(tmp_path: Path) -> None:
    """All that is left while it loads, 3 % less than that; then what its plan says. Its allocator gets the same share."""
    moving = MovingDevices()

    async def use(neuron: LiveNeuron) -> None:
        (first,) = told(neuron)
        grant = neuron.lifecycle.devices.grants[MODEL]

        assert first == {"memory_mb": 8481, "kv_mb": 0, "devices": [0], "fraction": "0.8481"}
        assert (grant.mb, grant.settled, grant.pids) == (3, True, (neuron.pid(),))
        await neuron.http.post("/models/unload", json={"model_id": MODEL})
        assert not neuron.lifecycle.devices.grants

    with_neuron(tmp_path, use, devices=moving.devices())


def test_shares_are_kept_and_the_sum_is_checked(tmp_path: Path) -> None:
    """Two models on one device: the second may have what the first was not granted, and is told who has what."""
    folder, other = write_tiny_model(tmp_path / "tiny"), write_tiny_model(tmp_path / "other")
    config = config_for(folder, tmp_path)
    config = attrs.evolve(config, models=(*config.models, ModelSpec(model_id=OTHER, source=str(other))))

    async def run() -> None:
        devices = MovingDevices(free={0: 9_000}).devices()
        async with running(config, devices=devices) as (url, _), httpx.AsyncClient(base_url=url, timeout=30) as http:

            async def load(model: str, memory_mb: int) -> httpx.Response:
                return await http.post("/models/load", json={"model_id": model, "memory_mb": memory_mb})

            assert (await load(MODEL, 6_000)).status_code == 200
            error = (await load(OTHER, 4_000)).json()["error"]
            assert (error["kind"], error["suggestion"]) == ("does_not_fit", "memory_mb = 2747 fits")
            assert f"{MODEL} 6000 MiB, other programs 997 MiB, kept free 256 MiB" in error["message"]
            assert error["plan"][0] == {"what": MODEL, "bytes": 6_000 << 20}
            assert (await load(OTHER, 2_747)).status_code == 200
            assert json.loads((other / "specs").read_text().splitlines()[-1])["fraction"] == "0.2747"

    asyncio.run(run())


def test_two_loads_of_all_there_is_come_one_after_the_other(tmp_path: Path) -> None:
    """The second waits for what the first leaves, and both serve."""
    folder = write_tiny_model(tmp_path / "tiny", load_seconds=0.3)
    other = write_tiny_model(tmp_path / "other")
    config = config_for(folder, tmp_path)
    config = attrs.evolve(config, models=(*config.models, ModelSpec(model_id=OTHER, source=str(other))))

    async def run() -> None:
        devices = MovingDevices(free={0: 9_000}).devices()
        async with running(config, devices=devices) as (url, _), httpx.AsyncClient(base_url=url, timeout=30) as http:
            first = asyncio.create_task(http.post("/models/load", json={"model_id": MODEL}))
            await until(lambda: devices.grants)
            second = await http.post("/models/load", json={"model_id": OTHER})
            assert ((await first).status_code, second.status_code) == (200, 200)
            assert json.loads((other / "specs").read_text())["memory_mb"] == int((9_000 - 256) * 0.97)

    asyncio.run(run())


def test_an_engine_that_ran_out_of_memory_gets_fewer_pages_once(tmp_path: Path) -> None:
    """80 % of the pool that it had planned; the list of models says what was done. A second time in a row is final."""

    async def use(neuron: LiveNeuron) -> None:
        await die(neuron)
        after = await info(neuron)
        assert [one["kv_mb"] for one in told(neuron)] == [0, 1]
        assert (after["status"], after["restarts"]) == ("loaded", 1)
        assert after["last_error"].endswith("; it was started again with kv_mb = 1 of 2")
        assert "out_of_memory: no room for a step" in after["last_error"]

        await neuron.chat("[[die 0]]")
        await until(lambda: neuron.lifecycle.residents[0].status.stage == "failed")
        assert not neuron.lifecycle.devices.grants

    words = ["out_of_memory", "no room for a step"]
    with_neuron(tmp_path, use, restarts=QUICK, devices=MovingDevices().devices(), last_words=words)


def test_a_load_that_ran_out_of_memory_is_tried_with_less(tmp_path: Path) -> None:
    """The caller waits, and gets an engine with 80 % of the memory."""

    async def use(neuron: LiveNeuron) -> None:
        await neuron.load(memory_mb=1_000, kv_mb=100)
        assert [(one["memory_mb"], one["kv_mb"]) for one in told(neuron)] == [(1_000, 100), (800, 80)]
        assert (await info(neuron))["last_error"].endswith("it was started again with memory_mb = 800 of 1000")

    script = {"fail": ["out_of_memory", "full"], "fail_starts": [1]}
    with_neuron(tmp_path, use, load=False, restarts=QUICK, devices=MovingDevices().devices(), **script)


def test_a_model_leaves_a_lost_device(tmp_path: Path) -> None:
    """It is served on another one; the device is told of as lost and gets nobody any more."""

    async def use(neuron: LiveNeuron) -> None:
        await die(neuron)
        after, health = await info(neuron), (await neuron.http.get("/health")).json()["devices"]
        found = (await neuron.http.get("/discovery")).json()["devices"]

        assert (after["status"], after["devices"]) == ("loaded", [1])
        assert [device["lost"] is None for device in health] == [False, True]
        assert "fallen off the bus" in health[0]["lost"]
        assert ["lost" in device for device in found] == [True, False]

    words = ["device_lost", "the GPU has fallen off the bus"]
    with_neuron(tmp_path, use, restarts=QUICK, devices=MovingDevices().devices(), last_words=words)


@pytest.mark.parametrize(("free", "spec"), [({0: 9_000}, {}), ({0: 9_000, 1: 9_000}, {"devices": [0]})])
def test_a_model_without_another_device_fails_with_the_reason(
    tmp_path: Path, free: dict[int, int], spec: dict[str, Any]
) -> None:
    """There is none, or the model was to be on this one and no other."""

    async def use(neuron: LiveNeuron) -> None:
        await neuron.load(**spec)
        await die(neuron)
        after = await info(neuron)
        assert after["status"] == "failed"
        assert "device 0 (" in after["last_error"]
        assert "fallen off the bus" in after["last_error"]

    words = ["device_lost", "the GPU has fallen off the bus"]
    devices = MovingDevices(free=free).devices()
    with_neuron(tmp_path, use, load=False, restarts=QUICK, devices=devices, last_words=words)


def test_a_lost_device_is_used_again_when_the_driver_sees_it_well() -> None:
    """But not because the driver never noticed: then only a new start of the neuron forgives."""
    fine, bad = (DeviceLoad(0, 0, 9, None, None, lost=words) for words in (None, "GPU is lost"))
    silent = {0: LostDevice("ECC", seen=False)}

    assert lost_after({}, [fine]) == {}
    assert lost_after({}, [bad]) == {0: LostDevice("GPU is lost", seen=True)}
    assert lost_after(silent, [fine]) == silent
    assert lost_after(silent, [bad]) == {0: LostDevice("ECC", seen=True)}
    assert lost_after({0: LostDevice("ECC", seen=True)}, [fine]) == {}


def test_of_several_devices_the_one_that_the_driver_names_is_lost(tmp_path: Path) -> None:
    """The other one is good for the next engine."""
    moving = MovingDevices(lost={1: "GPU is lost"})
    devices = moving.devices()

    async def run() -> None:
        await devices.look()
        devices.lose((0, 1), "something about NCCL and a bus")

    asyncio.run(run())

    assert devices.lost == {1: "something about NCCL and a bus"}


def test_stolen_memory_stops_new_work_only(tmp_path: Path) -> None:
    """What runs goes on; new requests get 503 with numbers and Retry-After; it ends by itself when the memory is back."""
    moving = MovingDevices()

    async def use(neuron: LiveNeuron) -> None:
        going = asyncio.create_task(neuron.chat("[[stall 1]]"))
        await until(lambda: neuron.lifecycle.residents[0].load.running == 1)
        moving.free[0] = 200
        await until(lambda: neuron.lifecycle.residents[0].shortage)
        refused, after = await neuron.chat("hi"), await info(neuron)
        error = refused.json()["error"]

        assert (refused.status_code, error["code"], refused.headers["retry-after"]) == (503, "insufficient_vram", "5")
        assert (error["free_mb"], error["required_mb"]) == (200, 256)
        assert (after["status"], after["servable"]["ok"]) == ("loaded", False)
        assert after["servable"]["reason"] == "insufficient_vram"
        assert "device 0 has 200 MiB free" in after["servable"]["detail"]
        assert not going.done()
        moving.free[0] = 400
        await until(lambda: neuron.lifecycle.residents[0].shortage is None)
        assert (await neuron.chat("hi")).status_code == 200
        going.cancel()

    with_neuron(tmp_path, use, devices=moving.devices())


def test_the_floor_can_be_turned_off(tmp_path: Path) -> None:
    """`min_free_mb = 0` grants everything and never refuses."""
    moving = MovingDevices(free={0: 100})
    config = config_for(write_tiny_model(tmp_path / "tiny"), tmp_path, engine=EngineConfig(min_free_mb=0))

    async def run() -> None:
        devices = moving.devices()
        async with (
            running(config, devices=devices) as (url, lifecycle),
            httpx.AsyncClient(base_url=url, timeout=30) as http,
        ):
            assert (await http.post("/models/load", json={"model_id": MODEL})).status_code == 200
            moving.free[0] = 0
            await devices.look(fresh=True)
            devices.judge()
            assert lifecycle.residents[0].shortage is None

    asyncio.run(run())


def test_who_is_on_a_device_is_told(tmp_path: Path) -> None:
    """Our engines by their model; what they really use is `vram_used_mb`, their plan beside it."""
    moving = MovingDevices()

    async def use(neuron: LiveNeuron) -> None:
        moving.processes[0] = (Process(neuron.pid(), 700), Process(1, 50))
        await neuron.lifecycle.devices.look(fresh=True)
        device = (await neuron.http.get("/health")).json()["devices"][0]
        after = await info(neuron)

        assert device["processes"] == [
            {"pid": neuron.pid(), "used_mb": 700, "model": MODEL},
            {"pid": 1, "used_mb": 50, "model": None},
        ]
        assert (after["vram_used_mb"], after["vram_planned_mb"]) == (700, 3)

    with_neuron(tmp_path, use, devices=moving.devices())


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("cuda", {"replicas": 2}, ((0,), (1,))),
        ("cuda", {"replicas": 2, "devices": (1, 0)}, ((1,), (0,))),
        ("cuda", {"replicas": 3}, "3 replicas need 3 devices, and this host has 2"),
        ("cuda", {"replicas": 2, "devices": (0,)}, "2 replicas of 1 device"),
        ("cpu", {"replicas": 3}, ((0,), (1,), (0,))),
        ("cpu", {"replicas": 2, "devices": (1,)}, ((1,), (1,))),
        ("cpu", {"replicas": 2, "tensor_parallel": 2}, ((0, 1), (0, 1))),
    ],
)
def test_where_replicas_go(kind: str, options: dict[str, Any], expected: Any) -> None:
    """Each on GPUs of its own; CPU devices may be shared."""
    moving = MovingDevices()
    spec = ModelSpec(model_id="m", **options)
    hardware = moving.devices(kind).hardware

    if isinstance(expected, tuple):
        assert assign_all(spec, hardware, moving.sample(), {}) == expected
        return
    with pytest.raises(LoadError, match=expected):
        assign_all(spec, hardware, moving.sample(), {})
