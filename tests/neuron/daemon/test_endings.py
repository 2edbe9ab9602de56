"""How requests end otherwise: clients that leave, engines that die or stall, queues that are full, unloading."""

import asyncio
import json
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron_jax.config import AdmissionConfig
from tests.fakes.live_neuron import MODEL, LiveNeuron, sse_events, with_neuron
from tests.fakes.waiting import until


@asynccontextmanager
async def open_stream(neuron: LiveNeuron, text: str, **more: Any) -> AsyncIterator[AsyncIterator[str]]:
    """The lines of a chat stream, which is left when the block ends."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": True, **more}
    async with neuron.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        yield answer.aiter_lines()


def idle(neuron: LiveNeuron) -> bool:
    """Nothing is admitted, submitted or running."""
    resident = neuron.lifecycle.residents[0]
    client, queue = resident.client, resident.admission
    assert client is not None
    return (client.open, client.load.running, queue.in_flight, queue.queued) == (0, 0, 0, 0)


def submitted(neuron: LiveNeuron) -> bool:
    """An engine has work: what was only admitted is refused when its model is unloaded, for it was not begun."""
    client = neuron.lifecycle.residents[0].client
    return client is not None and client.open > 0


def test_a_client_that_leaves_a_stream_cancels_its_work(tmp_path: Path) -> None:
    """The engine runs nothing any more, the slot is free, and the metrics call it cancelled."""

    async def use(neuron: LiveNeuron) -> None:
        async with open_stream(neuron, "[[count 4000]]") as lines:
            assert [await anext(lines) for _ in range(4)]
        await until(lambda: idle(neuron))
        metrics = (await neuron.http.get("/metrics")).text
        assert f'neuron_requests_total{{model="{MODEL}",outcome="cancelled"}} 1.0' in metrics

    with_neuron(tmp_path, use)


def test_a_client_that_leaves_before_the_answer_cancels_its_work(tmp_path: Path) -> None:
    """Also without streaming."""

    async def use(neuron: LiveNeuron) -> None:
        asking = asyncio.create_task(neuron.chat("[[stall 2]]"))
        await until(lambda: not idle(neuron))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: idle(neuron))

    with_neuron(tmp_path, use)


def test_a_hundred_random_cancels_leave_nothing(tmp_path: Path) -> None:
    """Requests left at random moments: every slot, page and stream is free again, and the next one is answered."""
    rng = random.Random(3)

    async def one(neuron: LiveNeuron, stream: bool) -> None:
        if stream:
            async with open_stream(neuron, "[[count 300]]") as lines:
                async for _ in lines:
                    if rng.random() < 0.05:
                        return
        else:
            async with asyncio.timeout(rng.random() * 0.2):
                await neuron.chat("[[count 300]]")

    async def use(neuron: LiveNeuron) -> None:
        for _ in range(4):
            await asyncio.gather(*(one(neuron, index % 2 == 0) for index in range(25)), return_exceptions=True)
        await until(lambda: idle(neuron))
        assert (await neuron.chat("ok")).json()["choices"][0]["message"]["content"] == "ok"

    with_neuron(tmp_path, use)


def test_a_quiet_engine_is_bridged_by_comments(tmp_path: Path) -> None:
    """While no token comes they do, after the role chunk, and say how far the prompt is."""

    async def use(neuron: LiveNeuron) -> None:
        async with open_stream(neuron, "[[stall 0]]") as lines:
            seen = [line async for line in _first(lines, 3)]
        assert '"role":"assistant"' in seen[0]
        waits = [json.loads(line.removeprefix(": progress ")) for line in seen[1:]]
        assert (
            waits
            == [{"phase": "prompt", "done": waits[0]["total"] - 3, "total": waits[0]["total"], "unit": "tokens"}] * 2
        )

    with_neuron(tmp_path, use)


def test_who_asks_for_it_is_told_in_chunks_how_far_the_prompt_is(tmp_path: Path) -> None:
    """As llama.cpp does."""

    async def use(neuron: LiveNeuron) -> None:
        async with open_stream(neuron, "[[stall 0]]", return_progress=True) as lines:
            seen = [line async for line in _first(lines, 2)]
        chunk = json.loads(seen[1].removeprefix("data: "))
        told = chunk["prompt_progress"]

        assert (chunk["choices"][0]["delta"], told["cache"], told["total"] - told["processed"]) == ({}, 2, 3)
        assert told["time_ms"] >= 900

    with_neuron(tmp_path, use)


async def _first(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    async for line in lines:
        if line:
            yield line
            count -= 1
        if not count:
            return


def test_kill_9_under_eight_streams(tmp_path: Path) -> None:
    """Each stream ends with an error event and without [DONE]; the model recovers by itself and serves again."""

    async def read(neuron: LiveNeuron) -> str:
        return (await neuron.chat("[[stall 3]]", stream=True)).text

    async def use(neuron: LiveNeuron) -> None:
        first = neuron.pid()
        streams = [asyncio.create_task(read(neuron)) for _ in range(8)]
        await until(lambda: neuron.lifecycle.residents[0].load.running == 8)
        os.kill(first, signal.SIGKILL)
        bodies = await asyncio.gather(*streams)
        error = [json.loads(sse_events(body)[-1])["error"] for body in bodies]
        assert {(e["type"], e["code"]) for e in error} == {("api_error", "service_unavailable")}
        assert "SIGKILL" in error[0]["message"]
        meanwhile = await neuron.chat("hello")
        assert (meanwhile.status_code, meanwhile.headers.get("retry-after")) == (503, "2")
        info = (await neuron.http.get("/models")).json()[0]
        assert (info["status"], info["servable"]["ok"]) == ("recovering", False)
        assert "SIGKILL" in info["last_error"]
        await until(lambda: neuron.lifecycle.residents[0].status.stage == "loaded")
        assert (await neuron.chat("back")).json()["choices"][0]["message"]["content"] == "back"
        assert neuron.pid() != first

    with_neuron(tmp_path, use)


def test_a_death_without_streaming_is_a_503(tmp_path: Path) -> None:
    """The envelope, with Retry-After."""

    async def use(neuron: LiveNeuron) -> httpx.Response:
        return await neuron.chat("[[die 2]]")

    answer = with_neuron(tmp_path, use)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert "exit code 41" in answer.json()["error"]["message"]


def test_an_answer_the_engine_gives_up_is_an_error(tmp_path: Path) -> None:
    """finish "error" is a 500, or an error event in a stream; never a normal end."""

    async def use(neuron: LiveNeuron) -> tuple[httpx.Response, httpx.Response]:
        return await neuron.chat("[[fail 2]]"), await neuron.chat("[[fail 2]]", stream=True)

    whole, streamed = with_neuron(tmp_path, use)

    assert (whole.status_code, whole.json()["error"]["type"]) == (500, "api_error")
    assert "told to fail" in json.loads(sse_events(streamed.text)[-1])["error"]["message"]


def test_a_full_queue_refuses_with_a_time_to_come_back(tmp_path: Path) -> None:
    """One slot, one place in line: the third request gets 503 rate_limit_exceeded at once."""

    async def use(neuron: LiveNeuron) -> None:
        async with open_stream(neuron, "[[stall 1]]"):
            waiting = asyncio.create_task(neuron.chat("second"))
            await until(lambda: neuron.lifecycle.residents[0].admission.queued == 1)
            refused = await neuron.chat("third")
            load = (await neuron.http.get("/health")).json()["models"][0]
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "4")
        assert (refused.json()["error"]["type"], refused.json()["error"]["code"]) == (
            "rate_limit_error",
            "rate_limit_exceeded",
        )
        assert (load["in_flight"], load["queue_depth"], load["rejected_queue_full"]) == (1, 1, 1)
        assert (await waiting).json()["choices"][0]["message"]["content"] == "second"

    with_neuron(tmp_path, use, max_slots=1, queue=AdmissionConfig(max_queue_depth=1))


def test_waiting_too_long_is_refused(tmp_path: Path) -> None:
    """After max_wait_secs in line the answer is 503, and the place is gone."""

    async def use(neuron: LiveNeuron) -> None:
        async with open_stream(neuron, "[[stall 1]]"):
            late = await neuron.chat("second")
        assert (late.status_code, late.headers["retry-after"]) == (503, "2")
        assert neuron.lifecycle.residents[0].admission.counts.rejected_timeout == 1

    with_neuron(tmp_path, use, max_slots=1, queue=AdmissionConfig(max_wait_secs=0.05))


def test_a_stream_that_waits_in_line_is_kept_alive(tmp_path: Path) -> None:
    """Comments from the first second, the role chunk when it is its turn."""

    async def use(neuron: LiveNeuron) -> None:
        async with open_stream(neuron, "[[stall 1]]"):
            waiting = open_stream(neuron, "second")
            lines = await waiting.__aenter__()
            assert await anext(lines) == ': progress {"phase":"queued","done":0,"total":0,"unit":"requests"}'
        rest = [line async for line in lines if line]
        await waiting.__aexit__(None, None, None)
        assert '"role":"assistant"' in rest[0]
        assert rest[-1] == "data: [DONE]"

    with_neuron(tmp_path, use, max_slots=1)


def test_unloading_drains(tmp_path: Path) -> None:
    """Work in flight ends normally, new work is refused meanwhile, and the process is gone after."""

    async def use(neuron: LiveNeuron) -> None:
        pid = neuron.pid()
        running = asyncio.create_task(neuron.chat("[[count 300]]"))
        await until(lambda: submitted(neuron))
        unloading = asyncio.create_task(neuron.http.post("/models/unload", json={"model_id": "tiny"}))
        await until(lambda: neuron.lifecycle.residents[0].status.stage == "draining")
        assert (await neuron.chat("late")).status_code == 503
        assert (await running).json()["usage"]["completion_tokens"] == 301
        assert (await unloading).json() == {"status": "unloaded"}
        assert neuron.lifecycle.residents == ()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert f'model="{MODEL}"' not in (await neuron.http.get("/metrics")).text

    with_neuron(tmp_path, use)


def test_a_drain_has_a_deadline(tmp_path: Path) -> None:
    """Work that does not end in drain_secs ends with an error event."""

    async def use(neuron: LiveNeuron) -> None:
        async with open_stream(neuron, "[[stall 1]]") as lines:
            begun = [await anext(lines) for _ in range(4)]
            await neuron.http.post("/models/unload", json={"model_id": MODEL, "drain_secs": 0})
            events = sse_events("\n".join([*begun, *[line async for line in lines], ""]))
        assert "error" in json.loads(events[-1])

    with_neuron(tmp_path, use)
