"""An engine that dies again and again: the model is given up with what it last said, and a new load revives it."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

QUICK = RestartPolicy(max_failures=2, first_delay=0.01, max_delay=0.02)


async def tiny(neuron: LiveNeuron) -> dict[str, Any]:
    """What the list of models says of it."""
    return next(info for info in (await neuron.http.get("/models")).json() if info["id"] == MODEL)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"die_ready": 7}, "the double was told to die when ready"),
        ({"die_loading": 9, "die_loading_after": 1}, "the double was told to die while loading"),
    ],
    ids=["after each ready", "at each restart"],
)
def test_a_crash_loop_ends_in_failed_and_a_load_revives_it(script: dict[str, Any], words: str, tmp_path: Path) -> None:
    """The list of models and every request tell the last error; nothing is started any more, until somebody loads it."""

    async def use(neuron: LiveNeuron) -> None:
        resident = neuron.lifecycle.residents[0]
        if "die_loading" in script:
            os.kill(neuron.pid(), signal.SIGKILL)
        await until(lambda: resident.status.stage == "failed")
        info = await tiny(neuron)
        answers = [await neuron.chat("hi"), await neuron.chat("hi", stream=True)]

        assert (info["status"], info["servable"]["ok"], "pid" in info) == ("failed", False, False)
        assert words in info["last_error"]
        for answer in answers:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (503, "service_unavailable")
            assert f"{MODEL!r} failed: " in error["message"]
            assert words in error["message"]
        assert (neuron.folder / "starts").read_text() == "3"

        (neuron.folder / "double.json").unlink()
        await neuron.load()
        assert (await tiny(neuron))["status"] == "loaded"
        assert (await neuron.chat("hi")).json()["choices"][0]["message"]["content"] == "hi"

    with_neuron(tmp_path, use, restarts=QUICK, **script)


def test_a_revived_model_that_still_crashes_fails_again(tmp_path: Path) -> None:
    """The new load has a count of its own; one that never becomes ready is refused with what the engine said."""

    async def use(neuron: LiveNeuron) -> None:
        await until(lambda: neuron.lifecycle.residents[0].status.stage == "failed")
        write_tiny_model(neuron.folder, die_loading=9)
        answer = await neuron.http.post("/models/load", json={"model_id": MODEL})

        assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "engine_failed")
        assert "exit code 9" in answer.json()["error"]["message"]
        assert (await tiny(neuron))["status"] == "failed"

    with_neuron(tmp_path, use, restarts=QUICK, die_ready=7)
