"""Requests under way can be seen and ended, have a deadline, and carry their conversation to the fleet."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.gateway_rig import BODIES, CHAT, COMPLETIONS, MESSAGES, Rig, payloads, run, settled
from tests.fakes.keyring import guarded, made
from tests.fakes.neuron_double import Answer

PATHS = [CHAT, COMPLETIONS, MESSAGES]


def gated(scenario: Callable[[Rig, asyncio.Event], Any], **options: Any) -> None:
    """Run a scenario whose fleet holds every acquire back until the gate opens."""
    gate = asyncio.Event()

    async def wrapped(rig: Rig) -> None:
        await scenario(rig, gate)

    run(wrapped, gate=gate, **options)


async def under_way(rig: Rig, count: int = 1) -> list[dict[str, Any]]:
    """The list, once there are so many."""
    async with asyncio.timeout(60):
        while True:
            listed: list[dict[str, Any]] = (await rig.client.get("/admin/requests")).json()["requests"]
            if len(listed) == count:
                return listed
            await settled()


async def cancel(rig: Rig, identity: str) -> Any:
    return await rig.client.post(f"/admin/requests/{identity}/cancel", json={})


@pytest.mark.parametrize("path", PATHS)
def test_a_request_that_waits_is_listed_and_can_be_cancelled(path: str) -> None:
    async def scenario(rig: Rig, _: asyncio.Event) -> None:
        asking = asyncio.create_task(rig.client.post(path, json=BODIES[path], headers={"x-request-id": "mine/1"}))
        (listed,) = await under_way(rig)

        assert (listed["id"], listed["state"], listed["model"], listed["node"]) == ("mine/1", "queued", "demo", None)
        assert (await cancel(rig, "mine/1")).json() == {"cancelled": 1}
        answer = await asking
        assert answer.status_code == 499
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert "operator" in answer.json()["error"]["message"]
        assert await under_way(rig, 0) == []
        assert rig.fleet.abandoned == 1
        assert [(record.outcome, record.status) for record in rig.metrics.records] == [("cancelled", 499)]

    gated(scenario)


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_that_is_cancelled_ends_in_an_error_event(path: str) -> None:
    """The neuron is hung up on, and the lease is given back (the rig looks)."""

    async def scenario(rig: Rig) -> None:
        raw, cancelled = b"", False
        async for chunk in rig.stream(path):
            raw += chunk
            if b"Hello" in raw and not cancelled:
                (listed,) = await under_way(rig)
                cancelled = (await cancel(rig, listed["id"])).is_success

        last = payloads(raw)[-1]
        assert "cancelled by an operator" in last["error"]["message"]
        assert b"[DONE]" not in raw
        assert rig.metrics.records[0].outcome == "cancelled"

    run(scenario, Answer(pause=0.05, deltas=({"content": "Hello"},) * 200))


def test_states_tell_how_far_a_request_is() -> None:
    async def scenario(rig: Rig) -> None:
        stream = rig.stream(CHAT)
        while b"Hello" not in await anext(stream):
            pass
        (decoding,) = await under_way(rig)
        await stream.aclose()

        assert decoding["state"] == "decode"
        assert decoding["node"] == "one"
        assert decoding["pieces"] >= 1
        assert decoding["seconds"] >= 0
        await under_way(rig, 0)

    run(scenario, Answer(pause=0.02, deltas=({"content": "Hello"},) * 200))


def test_an_id_that_nobody_has_is_not_found() -> None:
    async def scenario(rig: Rig) -> None:
        answer = await cancel(rig, "nobody")

        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")
        assert (await rig.client.post("/admin/requests/nobody", json={})).json()["error"]["code"] == "not_found"

    run(scenario)


@pytest.mark.parametrize("path", PATHS)
def test_a_deadline_ends_a_request_that_waits(path: str) -> None:
    async def scenario(rig: Rig, _: asyncio.Event) -> None:
        answer = await rig.client.post(path, json=BODIES[path], headers={"x-request-timeout": "0.05"})

        assert answer.status_code == 504
        assert "0.05 s" in answer.json()["error"]["message"]
        assert answer.json()["error"]["type"] == ("timeout_error" if path == MESSAGES else "api_error")
        assert rig.fleet.abandoned == 1
        assert rig.metrics.records[0].outcome == "error"

    gated(scenario)


@pytest.mark.parametrize("path", PATHS)
def test_a_deadline_ends_a_stream_that_has_begun(path: str) -> None:
    """With an error event, and the neuron is hung up on (the rig looks)."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post(
            path, json={**BODIES[path], "stream": True}, headers={"x-request-timeout": "0.3"}
        )

        assert answer.status_code == 200
        assert b"Hello" in answer.content
        assert "0.3 s" in payloads(answer.content)[-1]["error"]["message"]
        assert b"[DONE]" not in answer.content

    run(scenario, Answer(pause=0.02, deltas=({"content": "Hello"},) * 500))


@pytest.mark.parametrize("ended_by", ["deadline", "operator"])
def test_a_body_that_does_not_come_ends_with_its_connection(ended_by: str) -> None:
    """What is left of it would be taken for the next request."""

    async def scenario(rig: Rig) -> None:
        timeout = [(b"x-request-timeout", b"0.05")] if ended_by == "deadline" else []
        headers = [(b"host", b"gw"), (b"content-type", b"application/json"), (b"x-request-id", b"slow"), *timeout]
        scope = {"method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "headers": headers}
        asking = asyncio.create_task(rig.asgi(scope, {"type": "http.request", "body": b"{", "more_body": True}))
        if ended_by == "operator":
            await under_way(rig)
            await cancel(rig, "slow")
        start = (await asking)[0]

        assert start["status"] == (504 if ended_by == "deadline" else 499)
        assert (b"connection", b"close") in start["headers"]

    run(scenario)


def test_the_list_names_the_key_and_no_more_of_it() -> None:
    laptop, ops = made("laptop"), made("ops", "admin")

    async def scenario(rig: Rig, _: asyncio.Event) -> None:
        asking = asyncio.create_task(rig.client.post(CHAT, json=BODIES[CHAT], headers=laptop.bearer))
        while not (listed := (await rig.client.get("/admin/requests", headers=ops.bearer)).json()["requests"]):
            await settled()
        asking.cancel()
        await asyncio.wait([asking])

        assert listed[0]["key"] == "laptop"
        assert laptop.text not in str(listed)

    gated(scenario, guard=guarded(laptop, ops, required=True))


def test_a_deadline_that_is_no_number_is_refused_and_one_that_is_kept_does_nothing() -> None:
    async def scenario(rig: Rig) -> None:
        refused = await rig.client.post(CHAT, json=BODIES[CHAT], headers={"x-request-timeout": "soon"})
        answered = await rig.client.post(CHAT, json=BODIES[CHAT], headers={"x-request-timeout": "60"})

        assert (refused.status_code, answered.status_code) == (400, 200)
        assert "'soon'" in refused.json()["error"]["message"]

    run(scenario)


@pytest.mark.parametrize(
    ("path", "fields", "headers", "expected"),
    [
        (CHAT, {}, {}, None),
        (CHAT, {"prompt_cache_key": "k"}, {}, "k"),
        (CHAT, {"prompt_cache_key": 7}, {}, None),
        (CHAT, {"prompt_cache_key": "k"}, {"session_id": "s"}, "s"),
        (COMPLETIONS, {"prompt_cache_key": "k"}, {}, "k"),
        (MESSAGES, {}, {"x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"}, "s a"),
    ],
)
def test_the_fleet_is_told_the_conversation(
    path: str, fields: dict[str, Any], headers: dict[str, str], expected: str | None
) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.post(path, json={**BODIES[path], **fields}, headers=headers)

        assert [context.affinity for context in rig.fleet.contexts] == [expected]

    run(scenario)
