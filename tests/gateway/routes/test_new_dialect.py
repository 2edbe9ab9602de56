"""A dialect made of one folder has everything that those of the gateway have, without a line elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest

from cortex_gateway.auth.guard import Guard
from cortex_gateway.dialects.table import DIALECTS
from cortex_gateway.errors import LoadFailed, NoHealthyNode
from tests.fakes.dialect_trial.dialect import SAY
from tests.fakes.gateway_rig import BODIES, CHAT, Rig, run
from tests.fakes.neuron_double import Answer

ASKED = {"who": "demo", "prompt": "Hello"}


def said(scenario: Callable[[Rig], Awaitable[None]], *answers: Answer, **options: Any) -> None:
    run(scenario, *answers, dialects=(*DIALECTS, SAY), **options)


def lines(raw: bytes) -> list[Any]:
    return [msgspec.json.decode(line) for line in raw.splitlines()]


def test_it_answers_whole_and_is_counted() -> None:
    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post("/say", json=ASKED)

        assert answer.json()["said"] == "Hello there"
        assert answer.json()["id"].startswith("say_")
        (record,) = rig.metrics.records
        assert (record.dialect, record.model, record.outcome) == ("say", "demo", "ok")
        assert record.completion_tokens

    said(scenario)


def test_it_streams_in_its_own_form() -> None:
    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post("/say", json={**ASKED, "live": True})

        assert answer.headers["content-type"] == "application/x-ndjson"
        told = lines(answer.content)
        assert [line["number"] for line in told] == list(range(1, len(told) + 1))
        assert "".join(line.get("said", "") for line in told) == "Hello there"
        assert told[-1]["over"] == "stop"

    said(scenario)


def test_waiting_and_failing_are_told_by_the_same_encoder() -> None:
    """What keeps a stream alive and what ends it are numbered with the rest."""

    async def scenario(rig: Rig) -> None:
        async def fail() -> None:
            await asyncio.sleep(0.1)
            gate.set()

        failing = asyncio.create_task(fail())
        answer = await rig.client.post("/say", json={**ASKED, "live": True})
        await failing

        told = lines(answer.content)
        assert told[0]["still"] == "thinking"
        assert told[-1]["oops"] == "no room"
        assert [line["number"] for line in told] == list(range(1, len(told) + 1))
        assert rig.metrics.records[0].outcome == "error"

    gate = asyncio.Event()
    said(scenario, gate=gate, error=LoadFailed("no room"), keep_alive_seconds=0.01)


def test_a_stream_that_breaks_off_ends_in_its_error() -> None:
    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post("/say", json={**ASKED, "live": True})

        told = lines(answer.content)
        assert "broke off" in told[-1]["oops"]
        assert [line["number"] for line in told] == list(range(1, len(told) + 1))

    said(scenario, Answer(dies_after=1))


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/say", {"prompt": 7}, 400), ("/say", {**ASKED, "who": "nobody"}, 404), ("/say/nothing", ASKED, 404)],
)
def test_errors_below_its_paths_are_its_own(path: str, body: object, status: int) -> None:
    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post(path, json=body)

        assert answer.status_code == status
        assert answer.json()["oops"]
        assert answer.json()["request"] == answer.headers["x-request-id"]

    said(scenario)


def test_it_asks_for_keys_as_all_do() -> None:
    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post("/say", json=ASKED)

        assert answer.status_code == 401
        assert "key" in answer.json()["oops"]

    said(scenario, guard=Guard(required=True))


def test_it_counts_tokens() -> None:
    async def scenario(rig: Rig) -> None:
        counted: httpx.Response = await rig.client.post("/say/long", json=ASKED)

        assert counted.json()["long"] > 0
        assert not rig.metrics.records

    said(scenario)


def test_the_others_speak_as_before() -> None:
    async def scenario(rig: Rig) -> None:
        assert (await rig.client.post(CHAT, json=BODIES[CHAT])).status_code == 200
        assert (await rig.client.get("/nowhere")).json()["error"]["code"] == "not_found"
        assert (await rig.client.get("/v1/messages/nowhere")).json()["type"] == "error"

    said(scenario)


def test_a_gateway_without_it_does_not_know_its_paths() -> None:
    async def scenario(rig: Rig) -> None:
        assert (await rig.client.post("/say", json=ASKED)).json()["error"]["code"] == "not_found"

    run(scenario, error=NoHealthyNode("not asked"))
