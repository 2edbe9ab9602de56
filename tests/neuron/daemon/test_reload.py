"""POST /models/reload over doubles: who swaps and when, what is told of it, what a refusal and a death leave behind."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron_jax.daemon.shares import MemoryRequest
from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron
from tests.fakes.moving_devices import MovingDevices
from tests.fakes.tiny_model import tokenizer_json, write_tiny_model
from tests.fakes.waiting import until

QUICK = RestartPolicy(first_delay=0.01, max_delay=0.02)


async def reload(neuron: LiveNeuron, **body: Any) -> httpx.Response:
    return await neuron.http.post("/models/reload", json={"model_id": MODEL, **body})


async def info(neuron: LiveNeuron) -> dict[str, Any]:
    found: dict[str, Any] = (await neuron.http.get("/models")).json()[0]
    return found


def test_streams_run_on_and_the_weights_are_told(tmp_path: Path) -> None:
    """Two engines; under an alias; the digest tells the files apart, and comes back with them."""
    tuned = str(write_tiny_model(tmp_path / "tuned", pace=0.002))

    async def use(neuron: LiveNeuron) -> None:
        await neuron.load(replicas=2)
        before = (await info(neuron))["weights"]
        pids = [one["pid"] for one in (await info(neuron))["replicas"]]
        asking = [asyncio.create_task(neuron.chat(f"[[count 300]] {number}", max_tokens=300)) for number in range(3)]
        await until(lambda: sum(one.client.open for one in neuron.lifecycle.residents[0].replicas if one.client) == 3)
        answer = await neuron.http.post("/models/reload", json={"model_id": "tiny", "source": tuned})
        answers = await asyncio.gather(*asking)
        after = (await info(neuron))["weights"]
        back = (await reload(neuron, source=str(neuron.folder), in_place=True)).json()["weights"]
        metrics = (await neuron.http.get("/metrics")).text

        assert (answer.status_code, answer.json()) == (200, {"status": "reloaded", "weights": after})
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [300] * 3
        assert before == {"source": str(neuron.folder), "digest": back["digest"], "reloads": 0}
        assert (after["source"], after["reloads"], back["reloads"]) == (tuned, 1, 2)
        assert after["digest"] != before["digest"]
        assert [one["pid"] for one in (await info(neuron))["replicas"]] == pids
        assert sorted(neuron.lifecycle.devices.grants) == [f"{MODEL}#0", f"{MODEL}#1"]
        assert f'neuron_weight_reloads_total{{model="{MODEL}"}} 2.0' in metrics
        assert f'neuron_weights_info{{digest="{back["digest"]}",model="{MODEL}"}} 1.0' in metrics

    with_neuron(tmp_path, use, load=False, devices=MovingDevices().devices())


def test_what_does_not_fit_leaves_all_as_it_was(tmp_path: Path) -> None:
    """The engine's own refusal, another tokenizer, no files, no room: each in one sentence, and what served serves."""
    misfit = write_tiny_model(tmp_path / "misfit", fail=["bad_checkpoint", "layers.0.mlp is missing"])
    alien = write_tiny_model(tmp_path / "alien")
    (alien / "tokenizer.json").write_text(tokenizer_json().replace('"A":65', '"A":66').replace('"B":66', '"B":65', 1))

    async def use(neuron: LiveNeuron) -> None:
        served = (await info(neuron))["weights"]
        devices = neuron.lifecycle.devices
        refused = [await reload(neuron, source=str(folder)) for folder in (misfit, alien, tmp_path / "nowhere")]
        await devices.place(MemoryRequest("another", "another", devices.grants[MODEL].devices))
        devices.settle("another", [], 0)
        full = await reload(neuron)
        in_place = await reload(neuron, in_place=True)

        assert [(one.status_code, one.json()["error"]["kind"]) for one in (*refused, full)] == [
            (422, "bad_checkpoint"),
            (422, "bad_checkpoint"),
            (422, "repo_fetch_failed"),
            (422, "does_not_fit"),
        ]
        messages = [one.json()["error"]["message"] for one in (*refused, full)]
        assert messages[0] == "layers.0.mlp is missing"
        assert "2 tokens stand for something else" in messages[1]
        assert "asks for 1 MiB of the host's memory" in messages[3]
        assert "in_place" in messages[3]
        assert in_place.status_code == 200
        assert (await info(neuron))["weights"] == {**served, "reloads": 1}
        assert (await neuron.chat("still there")).status_code == 200

    with_neuron(tmp_path, use)


@pytest.mark.parametrize("in_place", [False, True])
def test_an_engine_that_dies_swapping_comes_back(tmp_path: Path, in_place: bool) -> None:
    """With the new weights, where it had them; in place with the old ones, and whoever asked is told."""
    tuned = write_tiny_model(tmp_path / "tuned", dies_swapping=True)

    async def use(neuron: LiveNeuron) -> None:
        answer = await reload(neuron, source=str(tuned), in_place=in_place)
        resident = neuron.lifecycle.residents[0]
        await until(lambda: resident.client is not None and resident.status.restarts == 1)

        assert answer.status_code == (422 if in_place else 200)
        assert resident.client is not None
        assert resident.client.spec.path == str(neuron.folder if in_place else tuned)
        assert (await info(neuron))["weights"]["reloads"] == (0 if in_place else 1)

    with_neuron(tmp_path, use, restarts=QUICK)


def test_bad_requests(tmp_path: Path) -> None:
    async def use(neuron: LiveNeuron) -> None:
        answers = [await neuron.http.post("/models/reload", json=body) for body in ({}, {"model_id": "alien"})]
        wrong = await reload(neuron, in_place="yes")

        assert [one.status_code for one in (*answers, wrong)] == [400, 404, 400]
        assert json.loads(wrong.content)["error"] == 'in_place must be true or false; found "yes".'

    with_neuron(tmp_path, use)
