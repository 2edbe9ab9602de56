"""Every end of a load is an end: whatever goes wrong beside it, who waits is told why, and nothing of it stays."""

import asyncio
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron_jax.daemon.devices import Devices
from neuron_jax.errors import LoadError
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron
from tests.fakes.waiting import until


async def load(neuron: LiveNeuron) -> httpx.Response:
    return await neuron.http.post("/models/load", json={"model_id": MODEL})


def slow_to_return(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Memory of engines that have ended comes back when the event is set."""
    back = asyncio.Event()

    async def returned(*_: Any) -> None:
        await back.wait()

    monkeypatch.setattr(Devices, "returned", returned)
    return back


def test_who_joins_a_load_that_is_failing_takes_the_reason_from_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine died and its memory is awaited: who asked first still hears of what, who asks now has it loaded anew."""

    async def use(neuron: LiveNeuron) -> None:
        back = slow_to_return(monkeypatch)
        first = asyncio.create_task(load(neuron))
        await until(lambda: [one.status.stage for one in neuron.lifecycle.residents] == ["failed"])
        failing = neuron.lifecycle.residents[0]
        second = asyncio.create_task(load(neuron))
        await until(lambda: failing.status.stage == "draining")
        back.set()
        for answer in (await first, await second):
            assert answer.status_code == 422, answer.text
            assert "exit code 3" in answer.json()["error"]["message"]
        assert failing not in neuron.lifecycle.residents

    with_neuron(tmp_path, use, load=False, die_loading=3)


def test_something_cancelled_within_a_load_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gave the load up, so it has a reason, and it can be loaded again."""

    async def cancelled(*_: Any) -> None:
        raise asyncio.CancelledError

    async def use(neuron: LiveNeuron) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("neuron_jax.workers.renderers.Renderers.compile", cancelled)
            answer = await load(neuron)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error"]["message"] == "what the load waited for was cancelled"
        assert [one.status.stage for one in neuron.lifecycle.residents] == ["failed"]
        assert (await load(neuron)).json() == {"status": "loaded"}

    with_neuron(tmp_path, use, load=False)


def test_a_model_ends_on_devices_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process is gone, and it is no longer listed as loaded."""

    async def fails(*_: Any, **__: Any) -> Any:
        raise OSError("the driver does not answer")

    async def use(neuron: LiveNeuron) -> None:
        pid = neuron.pid()
        with monkeypatch.context() as patched:
            patched.setattr(Devices, "look", fails)
            gone = await neuron.http.post("/models/unload", json={"model_id": MODEL})
        assert (gone.status_code, gone.json()) == (200, {"status": "unloaded"})
        assert neuron.lifecycle.residents == ()
        assert neuron.lifecycle.devices.grants == {}
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    with_neuron(tmp_path, use)


def test_a_model_that_does_not_end_as_it_should_is_forgotten_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault in what waits for its memory: else it would be draining, and refused to every load, for ever."""

    async def fault(*_: Any) -> None:
        raise RuntimeError("nobody foresaw this")

    async def use(neuron: LiveNeuron) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Devices, "returned", fault)
            gone = await neuron.http.post("/models/unload", json={"model_id": MODEL})
        assert (gone.status_code, gone.json()) == (200, {"status": "unloaded"})
        assert (await load(neuron)).json() == {"status": "loaded"}

    with_neuron(tmp_path, use)


def test_who_stops_waiting_for_an_unload_leaves_nothing_half_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed model is removed for a load that is then given up: it does not stay in the list as draining."""

    async def use(neuron: LiveNeuron) -> None:
        with pytest.raises(LoadError, match="exit code 3"):
            await neuron.lifecycle.load(neuron.lifecycle.config.models[0])
        back = slow_to_return(monkeypatch)
        again = asyncio.create_task(neuron.lifecycle.load(neuron.lifecycle.config.models[0]))
        await until(lambda: neuron.lifecycle.residents[0].status.stage == "draining")
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
        back.set()
        await until(lambda: neuron.lifecycle.residents == ())

    with_neuron(tmp_path, use, load=False, die_loading=3)
