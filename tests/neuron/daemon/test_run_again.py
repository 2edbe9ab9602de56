"""Requests whose engine dies before anybody saw anything of their answer: they are run once more on the next engine."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron_jax.config import AdmissionConfig
from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.live_neuron import MODEL, LiveNeuron, sse_events, with_neuron
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

QUICK = RestartPolicy(first_delay=0.01, max_delay=0.02)
SLOW = RestartPolicy(first_delay=60)


def said(answer: httpx.Response) -> str:
    """The text of a chat answer, streamed or not."""
    if "event-stream" not in answer.headers["content-type"]:
        return str(answer.json()["choices"][0]["message"]["content"])
    events = [json.loads(event) for event in sse_events(answer.text) if event != "[DONE]"]
    return "".join(choice["delta"].get("content", "") for event in events for choice in event.get("choices", []))


async def metric(neuron: LiveNeuron, name: str) -> float:
    """The value of a counter of the model; 0 without a series."""
    lines = (await neuron.http.get("/metrics")).text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f'{name}{{model="{MODEL}"')), 0.0)


def resident(neuron: LiveNeuron) -> Any:
    return neuron.lifecycle.residents[0]


@pytest.mark.parametrize("n", [1, 2])
def test_a_whole_answer_is_begun_anew(tmp_path: Path, n: int) -> None:
    """Nothing of it was sent, however much there was; the answer, its usage and the metrics are those of the second run."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.chat("[[die once 2]][[say hello]]", n=n, logprobs=True)

        assert answer.status_code == 200, answer.text
        assert [choice["message"]["content"] for choice in answer.json()["choices"]] == ["hello"] * n
        assert len(answer.json()["choices"][0]["logprobs"]["content"]) == 5
        assert answer.json()["usage"]["completion_tokens"] == 6 * n
        assert await metric(neuron, "neuron_requests_run_again_total") == 1
        assert await metric(neuron, "neuron_time_to_first_token_seconds_count") == 1
        assert await metric(neuron, "neuron_completion_tokens_total") == 6 * n
        assert await metric(neuron, "neuron_engine_restarts_total") == 1
        assert resident(neuron).admission.in_flight == 0

    with_neuron(tmp_path, use, restarts=QUICK)


def test_a_stream_of_which_nothing_was_sent_is_begun_anew(tmp_path: Path) -> None:
    """One role chunk, comments while the engine starts, then the answer and a normal end."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.chat("[[die once 0]][[say hello]]", stream=True, stream_options={"include_usage": True})
        events = sse_events(answer.text)

        assert said(answer) == "hello"
        assert sum('"role":"assistant"' in event for event in events) == 1
        assert json.loads(events[-2])["usage"]["completion_tokens"] == 6
        assert events[-1] == "[DONE]"
        assert ': progress {"phase":"starting the engine"' in answer.text
        assert await metric(neuron, "neuron_requests_run_again_total") == 1

    with_neuron(tmp_path, use, restarts=QUICK, load_seconds=1.5)


def test_a_stream_that_has_begun_is_not(tmp_path: Path) -> None:
    """A second answer could not be joined to what was sent of the first: an error event, and no [DONE]."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.chat("[[die once 3]][[say hello]]", stream=True)

        assert said(answer) == "hel"
        assert "exit code 41" in json.loads(sse_events(answer.text)[-1])["error"]["message"]
        assert await metric(neuron, "neuron_requests_run_again_total") == 0

    with_neuron(tmp_path, use, restarts=QUICK)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_kills_engines_kills_two(tmp_path: Path, stream: bool) -> None:
    """At most one more run for each request."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.chat("[[die 0]]", stream=stream)
        error = json.loads(sse_events(answer.text)[-1]) if stream else answer.json()

        assert answer.status_code == (200 if stream else 503)
        assert "exit code 41" in error["error"]["message"]
        assert error["error"]["engine_died"], "a gateway must not send it to another neuron"
        await until(lambda: resident(neuron).status.stage == "loaded")
        assert resident(neuron).status.restarts == 2
        assert said(await neuron.chat("on")) == "on"

    with_neuron(tmp_path, use, restarts=QUICK)


def test_whoever_waits_in_line_gets_the_next_engine(tmp_path: Path) -> None:
    """One slot: the first dies with its engine after it has said something, the others have seen nothing of theirs."""

    async def use(neuron: LiveNeuron) -> None:
        first = asyncio.create_task(neuron.chat("[[stall 1]]", stream=True))
        await until(lambda: resident(neuron).load.running == 1)
        others = [asyncio.create_task(neuron.chat(text)) for text in ("b", "c")]
        await until(lambda: resident(neuron).admission.queued == 2)
        os.kill(neuron.pid(), signal.SIGKILL)

        assert "SIGKILL" in json.loads(sse_events((await first).text)[-1])["error"]["message"]
        assert [said(answer) for answer in await asyncio.gather(*others)] == ["b", "c"]

    with_neuron(tmp_path, use, restarts=QUICK, max_slots=1)


def test_the_wait_for_an_engine_has_an_end(tmp_path: Path) -> None:
    """After max_wait_secs the answer is 503."""

    async def use(neuron: LiveNeuron) -> httpx.Response:
        return await neuron.chat("[[die 0]]")

    answer = with_neuron(tmp_path, use, restarts=SLOW, queue=AdmissionConfig(max_wait_secs=0.1))

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
    assert "Waited 0.1 seconds" in answer.json()["error"]["message"]
    assert answer.json()["error"]["engine_died"]


@pytest.mark.parametrize(
    ("script", "words"), [({"die_loading": 9, "die_loading_after": 1}, "failed"), ({}, "unloaded")]
)
def test_the_wait_ends_with_the_model(tmp_path: Path, script: dict[str, Any], words: str) -> None:
    """A model that is given up, or unloaded, gets no other engine."""
    give_up = RestartPolicy(max_failures=1, first_delay=0.01)

    async def use(neuron: LiveNeuron) -> httpx.Response:
        asking = asyncio.create_task(neuron.chat("[[die 0]]"))
        if words == "unloaded":
            await until(lambda: resident(neuron).status.stage == "recovering")
            await neuron.http.post("/models/unload", json={"model_id": MODEL})
        return await asking

    answer = with_neuron(tmp_path, use, restarts=give_up if script else SLOW, **script)

    assert answer.status_code == 503
    assert words in answer.json()["error"]["message"]


def test_a_client_that_leaves_while_it_waits_is_gone(tmp_path: Path) -> None:
    """Its slot is free, and the next engine has nothing to do for it."""

    async def use(neuron: LiveNeuron) -> None:
        asking = asyncio.create_task(neuron.chat("[[die 0]]"))
        await until(lambda: resident(neuron).status.stage == "recovering")
        assert resident(neuron).admission.in_flight == 1
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: resident(neuron).admission.in_flight == 0)
        metrics = (await neuron.http.get("/metrics")).text
        assert f'neuron_requests_total{{model="{MODEL}",outcome="cancelled"}} 1.0' in metrics

    with_neuron(tmp_path, use, restarts=SLOW)


def test_the_next_engine_may_have_less_room(tmp_path: Path) -> None:
    """Its context and its slots are the model's from then on."""

    async def use(neuron: LiveNeuron) -> None:
        write_tiny_model(neuron.folder, max_context=100, max_slots=3)
        assert said(await neuron.chat("[[die once 0]][[say hi]]")) == "hi"
        assert (resident(neuron).max_context, resident(neuron).admission.slots) == (100, 3)
        refused = await neuron.chat("x" * 200)
        assert refused.json()["error"]["code"] == "context_length_exceeded"

    with_neuron(tmp_path, use, restarts=QUICK)
