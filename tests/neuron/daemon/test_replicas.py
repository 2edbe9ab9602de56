"""A model with several engines: who answers, what one's death changes, what is told of them."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx

from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron
from tests.fakes.moving_devices import MovingDevices
from tests.fakes.waiting import until

QUICK = RestartPolicy(first_delay=0.01, max_delay=0.02)
SLOW = RestartPolicy(first_delay=60)


def resident(neuron: LiveNeuron) -> Any:
    return neuron.lifecycle.residents[0]


async def info(neuron: LiveNeuron) -> dict[str, Any]:
    found: dict[str, Any] = (await neuron.http.get("/models")).json()[0]
    return found


def with_two(tmp_path: Path, use: Any, restarts: RestartPolicy = QUICK, **script: Any) -> Any:
    """`use` on a neuron that serves the tiny model with two engines, on a GPU each."""

    async def run(neuron: LiveNeuron) -> Any:
        await neuron.load(replicas=2)
        return await use(neuron)

    return with_neuron(
        tmp_path, run, load=False, restarts=restarts, devices=MovingDevices().devices(), max_slots=2, **script
    )


def test_two_engines_are_one_model(tmp_path: Path) -> None:
    """The list of models has both; slots and pages are those of both, and so are the metrics."""

    async def use(neuron: LiveNeuron) -> None:
        listed, load = await info(neuron), (await neuron.http.get("/health")).json()["models"][0]
        await asyncio.gather(*(neuron.chat(f"[[count 20]] {number}") for number in range(4)))
        metrics = (await neuron.http.get("/metrics")).text

        assert (listed["status"], listed["devices"], listed["vram_planned_mb"]) == ("loaded", [0, 1], 6)
        assert [(one["status"], one["devices"]) for one in listed["replicas"]] == [("loaded", [0]), ("loaded", [1])]
        assert len({one["pid"] for one in listed["replicas"]}) == 2
        assert (load["max_in_flight"], load["kv_budget_mb"]) == (4, 4)
        assert f'neuron_pages{{model="{MODEL}"}} 2048.0' in metrics
        assert f'neuron_requests_total{{model="{MODEL}",outcome="ok"}} 4.0' in metrics
        assert sorted(neuron.lifecycle.devices.grants) == [f"{MODEL}#0", f"{MODEL}#1"]

    with_two(tmp_path, use)


def test_work_is_spread(tmp_path: Path) -> None:
    """Four requests at once for two engines with two slots each: nobody waits, and none has more than three."""

    async def use(neuron: LiveNeuron) -> None:
        asking = [asyncio.create_task(neuron.chat("[[stall 1]]", n=2)) for _ in range(2)]
        await until(lambda: resident(neuron).load.running == 4)
        assert [one["load"]["open"] for one in (await info(neuron))["replicas"]] == [2, 2]
        assert resident(neuron).admission.queued == 0
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    with_two(tmp_path, use)


def test_one_engine_dies_and_the_other_serves(tmp_path: Path) -> None:
    """The model stays loaded; who had seen nothing is answered by the other engine at once, without waiting for a restart."""

    async def use(neuron: LiveNeuron) -> None:
        asking = [asyncio.create_task(neuron.chat(f"[[stall 1]] {number}")) for number in range(4)]
        await until(lambda: resident(neuron).load.running == 4)
        victim = (await info(neuron))["replicas"][0]
        os.kill(victim["pid"], signal.SIGKILL)
        await until(lambda: resident(neuron).admission.slots == 2)
        listed = await info(neuron)

        assert (listed["status"], listed["restarts"], listed.get("servable")) == ("loaded", 1, None)
        assert [one["status"] for one in listed["replicas"]] == ["recovering", "loaded"]
        assert "SIGKILL" in listed["replicas"][0]["last_error"]
        await until(lambda: resident(neuron).replicas[1].client.open == 4)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert (await neuron.chat("hi")).status_code == 200

    with_two(tmp_path, use, SLOW)


def test_an_engine_that_died_comes_back(tmp_path: Path) -> None:
    """Two again, with another process, and what was counted goes on."""

    async def use(neuron: LiveNeuron) -> None:
        for number in range(8):
            await neuron.chat(f"[[count 20]] {number}")
        steps, first = resident(neuron).load.steps, (await info(neuron))["replicas"]
        os.kill(first[0]["pid"], signal.SIGKILL)
        await until(lambda: resident(neuron).status.restarts == 1 and resident(neuron).admission.slots == 4)
        again = (await info(neuron))["replicas"]

        assert again[0]["pid"] != first[0]["pid"]
        assert again[1]["pid"] == first[1]["pid"]
        assert resident(neuron).load.steps >= steps > 0

    with_two(tmp_path, use)


def test_a_model_fails_with_its_last_engine(tmp_path: Path) -> None:
    """While one of them serves the other may be given up."""
    give_up = RestartPolicy(max_failures=0)

    async def use(neuron: LiveNeuron) -> None:
        first, second = (one["pid"] for one in (await info(neuron))["replicas"])
        os.kill(first, signal.SIGKILL)
        await until(lambda: resident(neuron).status.replicas[0].state.ended)
        assert resident(neuron).status.stage == "loaded"
        assert (await neuron.chat("hi")).status_code == 200
        os.kill(second, signal.SIGKILL)
        await until(lambda: resident(neuron).status.stage == "failed")
        assert (await neuron.chat("hi")).status_code == 503
        assert not neuron.lifecycle.devices.grants

    with_two(tmp_path, use, give_up)


def test_all_engines_or_none(tmp_path: Path) -> None:
    """Where one of them cannot be started the load is refused, and no process is left."""

    async def use(neuron: LiveNeuron) -> httpx.Response:
        answer = await neuron.http.post("/models/load", json={"model_id": MODEL, "replicas": 2})
        assert all(one.client is None for one in resident(neuron).replicas)
        assert not neuron.lifecycle.devices.grants
        return answer

    answer = with_neuron(
        tmp_path,
        use,
        load=False,
        devices=MovingDevices().devices(),
        fail=["bad_checkpoint", "no"],
        fail_starts=[2],
    )

    assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "bad_checkpoint")


def test_prompts_that_begin_alike_go_to_the_same_engine(tmp_path: Path) -> None:
    """One after the other, so that both are idle each time."""

    async def use(neuron: LiveNeuron) -> None:
        for number in range(6):
            await neuron.chat("x" * 600 + f"[[say {number}]]")
        busy = [replica.client.load.steps > 0 for replica in resident(neuron).replicas]
        assert sorted(busy) == [False, True]

    with_two(tmp_path, use)
