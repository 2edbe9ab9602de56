"""While a model loads or a prompt is read the client hears something; when it leaves, everything behind it stops."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from cortex_gateway.errors import CortexError, LoadFailed, ModelRecovering, NoHealthyNode, Overloaded
from cortex_gateway.placement.snapshot import LoadStatus
from tests.fakes.gateway_rig import BODIES, CHAT, COMPLETIONS, MESSAGES, RESPONSES, Rig, Sent, payloads, run, settled
from tests.fakes.neuron_double import Answer, NeuronDouble

BEATS = {CHAT: b":\n\n", COMPLETIONS: b":\n\n", MESSAGES: b'event: ping\ndata: {"type":"ping"}\n\n'}
PATHS = list(BEATS)


def gated(scenario: Callable[[Rig, asyncio.Event], Any], **options: Any) -> None:
    """Run a scenario whose fleet holds every acquire back until the gate opens."""
    gate = asyncio.Event()

    async def wrapped(rig: Rig) -> None:
        await scenario(rig, gate)

    run(wrapped, gate=gate, **{"keep_alive_seconds": 0.01, **options})


@pytest.mark.parametrize("path", PATHS)
def test_a_cold_load_is_not_silent(path: str) -> None:
    """The stream starts, beats in the dialect's own way, and then the answer follows (dialects.md 4.1.22)."""

    async def scenario(rig: Rig, gate: asyncio.Event) -> None:
        chunks = []
        async for chunk in rig.stream(path):
            chunks.append(chunk)
            if len(chunks) == 3:
                assert chunks == [BEATS[path]] * 3
                gate.set()

        assert b"Hello" in b"".join(chunks)
        assert rig.metrics.records[0].outcome == "ok"
        assert rig.metrics.records[0].cold

    gated(scenario, cold=True)


PROGRESS = b': progress {"phase":"weights","done":41,"total":93,"unit":"bytes"}\n\n'


@pytest.mark.parametrize(
    ("path", "first"),
    [
        (CHAT, PROGRESS),
        (COMPLETIONS, PROGRESS),
        (MESSAGES, PROGRESS + BEATS[MESSAGES]),
        (RESPONSES, PROGRESS + b"event: response.created"),
        ("/api/chat", b'"status":"weights","completed":41,"total":93'),
    ],
)
def test_a_beat_says_how_far_a_load_is(path: str, first: bytes) -> None:
    """In a comment before the dialect's own; where it has none, under the names that it has for such things."""

    async def scenario(rig: Rig, gate: asyncio.Event) -> None:
        seen = [chunk async for chunk in _opened(rig.stream(path), gate)]
        assert first in seen[0]
        assert b"Hello" in b"".join(seen)

    gated(scenario, waiting_for=LoadStatus(phase="weights", done=41, total=93, unit="bytes"))


async def _opened(stream: AsyncIterator[bytes], gate: asyncio.Event) -> AsyncIterator[bytes]:
    """Its chunks; with the first one the fleet has a replica."""
    async for chunk in stream:
        gate.set()
        yield chunk


@pytest.mark.parametrize("path", PATHS)
def test_a_load_that_fails_after_beats_is_an_error_event(path: str) -> None:
    """The status is out, so the stream itself says it, and ends."""

    async def scenario(rig: Rig, gate: asyncio.Event) -> None:
        raw = b""
        async for chunk in rig.stream(path):
            raw += chunk
            gate.set()
        last = payloads(raw)[-1]

        assert last["error"]["message"] == "no room"
        assert b"[DONE]" not in raw
        assert b"message_stop" not in raw
        assert rig.metrics.records[0].outcome == "error"
        assert rig.metrics.records[0].status == 200

    gated(scenario, error=LoadFailed("no room"))


@pytest.mark.parametrize("path", PATHS)
def test_a_refusal_after_beats_is_an_error_event(path: str) -> None:
    """Also when it is the neuron that refuses."""
    envelope = b'{"error":{"message":"too long","type":"invalid_request_error","code":"x","param":null}}'

    async def scenario(rig: Rig, gate: asyncio.Event) -> None:
        rig.neuron.answers[:] = [Answer(refusal=(400, envelope, {}))]
        raw = b""
        async for chunk in rig.stream(path):
            raw += chunk
            gate.set()

        assert payloads(raw)[-1]["error"]["message"] == "too long"

    gated(scenario)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NoHealthyNode("none"), 503, "5"),
        (LoadFailed("bad"), 503, "5"),
        (ModelRecovering("soon"), 503, "2"),
        (Overloaded("full", queued=4), 503, "10"),
        (Overloaded("full", queued=400), 503, "120"),
    ],
)
def test_what_is_known_at_once_has_its_own_status(
    path: str, streaming: bool, error: CortexError, status: int, retry_after: str
) -> None:
    """A stream starts early only when there is something to wait for; cold-load failures are 503 (wire.md 2.9.16)."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path, stream=streaming)

        assert response.status_code == status
        assert response.headers["retry-after"] == retry_after
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"]["message"] == error.message

    run(scenario, error=error)


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_waits_and_keeps_its_status(path: str) -> None:
    """Without a stream there is nothing to beat into."""

    async def scenario(rig: Rig, gate: asyncio.Event) -> None:
        asked = asyncio.create_task(rig.post(path))
        await settled()
        assert not asked.done()
        gate.set()

        assert (await asked).status_code == 503

    gated(scenario, error=LoadFailed("no room"))


@pytest.mark.parametrize("path", PATHS)
def test_a_silent_prompt_is_kept_company(path: str) -> None:
    """Beats go on while the neuron reads the prompt, whatever it says or does not say itself."""
    gate = asyncio.Event()

    async def scenario(rig: Rig) -> None:
        raw = b""
        async for chunk in rig.stream(path):
            raw += chunk
            if raw.count(BEATS[path]) >= 3:
                gate.set()

        assert b"Hello" in raw
        assert payloads(raw)

    run(scenario, Answer(gate=gate, comments=1), keep_alive_seconds=0.01)


@pytest.mark.parametrize("path", PATHS)
def test_leaving_the_queue_stops_waiting(path: str) -> None:
    """A client that goes away during a cold load gives up its place."""

    async def scenario(rig: Rig, gate: asyncio.Event) -> None:
        async with contextlib.aclosing(rig.stream(path)) as chunks:
            await anext(chunks)
        await settled()

        assert rig.fleet.abandoned == 1
        assert rig.neuron.seen == []
        assert rig.metrics.records[0].outcome == "cancelled"

    gated(scenario)


@pytest.mark.parametrize("path", PATHS)
def test_leaving_a_stream_cancels_the_neuron(path: str) -> None:
    """Upstream is closed at once, the lease given back (users.md 18)."""

    async def scenario(rig: Rig) -> None:
        async with contextlib.aclosing(rig.stream(path)) as chunks:
            while b"token" not in await anext(chunks):
                pass
        await settled()

        assert rig.neuron.left == 1
        assert rig.fleet.in_flight == 0
        (record,) = rig.metrics.records
        assert (record.outcome, record.status, record.node) == ("cancelled", 200, "one")

    run(scenario, Answer(deltas=({"content": "token"},) * 500))


@pytest.mark.parametrize(
    ("path", "options", "prompt"),
    [
        (CHAT, {}, 7),
        (COMPLETIONS, {}, 7),
        (CHAT, {"stream_options": {"continuous_usage_stats": True}}, 7),
        (MESSAGES, {}, 7),
    ],
)
def test_what_went_by_before_a_client_left_is_counted(path: str, options: dict[str, Any], prompt: int) -> None:
    """Its tokens were computed like any others, and so were those of the prompt."""

    async def scenario(rig: Rig) -> None:
        seen = 0
        async with contextlib.aclosing(rig.stream(path, **options)) as chunks:
            while seen < 20:
                seen += (await anext(chunks)).count(b"word")
        await settled()

        (record,) = rig.metrics.records
        assert record.outcome == "cancelled"
        assert record.prompt_tokens == prompt
        assert seen <= (record.completion_tokens or 0) <= seen + 5

    run(scenario, Answer(deltas=({"content": " word "},) * 500))


@pytest.mark.parametrize("path", PATHS)
def test_what_went_by_before_a_neuron_died_is_counted(path: str) -> None:
    """As for a client that leaves."""

    async def scenario(rig: Rig) -> None:
        await rig.post(path, stream=True)

        (record,) = rig.metrics.records
        assert (record.outcome, record.completion_tokens) == ("error", 3)

    run(scenario, Answer(deltas=({"content": "token"},) * 9, dies_after=3))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streaming", [False, True])
def test_leaving_before_the_answer_cancels_the_neuron(path: str, streaming: bool) -> None:
    """Also while the prompt is read, and also when no stream was asked for."""

    async def scenario(rig: Rig) -> None:
        asked = asyncio.create_task(rig.post(path, stream=streaming))
        await settled()
        assert rig.neuron.begun == 1
        asked.cancel()
        await asyncio.wait((asked,))
        await settled()

        assert rig.neuron.left == 1
        (record,) = rig.metrics.records
        assert (record.outcome, record.status) == ("cancelled", 200 if streaming else 499)

    run(scenario, Answer(gate=asyncio.Event()))


def test_two_hundred_clients_that_leave_at_any_moment_leave_nothing() -> None:
    """No lease, no task, no request upstream is left; the next client is served."""

    async def scenario(rig: Rig) -> None:
        async def leave(after: int) -> None:
            asked = asyncio.create_task(rig.post(PATHS[after % 3], stream=after % 2 == 0))
            for _ in range(after):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait((asked,))

        await asyncio.gather(*map(leave, range(200)))
        await settled()

        assert rig.fleet.in_flight == 0
        assert len(rig.metrics.records) <= 200
        assert (await rig.post(CHAT)).status_code == 200

    run(scenario)


@pytest.mark.parametrize("path", PATHS)
def test_a_node_that_is_down_is_stepped_over(path: str) -> None:
    """Another replica answers and the fleet is told; the client sees nothing of it (wire.md 2.9.17)."""
    up = NeuronDouble()

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path)

        assert response.status_code == 200
        assert rig.fleet.suspected == ["down"]
        assert up.begun == 1
        (record,) = rig.metrics.records
        assert (record.outcome, record.node) == ("ok", "up")

    run(scenario, nodes={"down": None, "up": up})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streaming", [False, True])
def test_when_every_node_is_down_it_says_so(path: str, streaming: bool) -> None:
    """502, after each was tried."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path, stream=streaming)

        assert response.status_code == 502
        assert set(rig.fleet.suspected) == {"a", "b"}
        assert "could not be reached" in response.json()["error"]["message"]

    run(scenario, nodes={"a": None, "b": None})


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("beats", [0, 1])
def test_a_gateway_that_stops_says_so(path: str, beats: int) -> None:
    """503 where nothing was sent yet, else an error event: nobody takes the end of the program for the end of an answer."""
    body = msgspec.json.encode({**BODIES[path], "stream": True})
    scope = {"method": "POST", "path": path, "raw_path": path.encode()}

    async def scenario(rig: Rig, gate: asyncio.Event) -> None:
        sent = Sent()
        serving = asyncio.create_task(
            rig.asgi(scope, {"type": "http.request", "body": body, "more_body": False}, sent=sent)
        )
        await settled()
        if beats:
            await sent.begun.wait()
        serving.cancel()
        await asyncio.wait((serving,))

        assert serving.cancelled()
        assert sent[0]["status"] == (200 if beats else 503)
        assert b"going down" in sent[-1]["body"]
        assert sent[-1]["more_body"] is False
        assert rig.fleet.abandoned == 1

    gated(scenario, keep_alive_seconds=0.01 if beats else 5)
