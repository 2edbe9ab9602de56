"""/v1/responses through the whole gateway: what is kept, gone on from, made in the background, cancelled and forgotten."""

import asyncio
import json
import pathlib
from typing import Any

import httpx
import pytest

from cortex_gateway.errors import LoadFailed
from cortex_gateway.routes.followed import KEPT_BYTES, KEPT_SECS, Followed
from tests.fakes.gateway_rig import CHAT, HI, RESPONSES, Rig, payloads, run, settled
from tests.fakes.keyring import guarded, made
from tests.fakes.live_gateway import live_gateway
from tests.fakes.neuron_double import Answer, NeuronDouble

LAPTOP = made("laptop")
PHONE = made("phone")
DONE = ("completed", "failed", "cancelled", "incomplete")


async def told(rig: Rig, identity: str, **headers: str) -> Any:
    answer = await rig.client.get(f"{RESPONSES}/{identity}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ended(rig: Rig, identity: str, **headers: str) -> Any:
    """What a background answer has become."""
    for _ in range(2000):
        found = await told(rig, identity, **headers)
        if found["status"] in DONE:
            return found
        await asyncio.sleep(0.005)
    raise AssertionError("it never ended")


def kinds(answer: httpx.Response) -> list[str]:
    return [event["type"].removeprefix("response.") for event in payloads(answer.content)]


def text(response: Any) -> str:
    return "".join(part["text"] for item in response["output"] for part in item.get("content", ()))


def test_both_forms_say_the_same() -> None:
    """Under the name that the client has for the model; and both are counted."""

    async def scenario(rig: Rig) -> None:
        whole = (await rig.post(RESPONSES, model="alias")).json()
        streamed = payloads((await rig.post(RESPONSES, model="alias", stream=True)).content)[-1]["response"]

        for answer in (whole, streamed):
            assert (answer["model"], answer["status"], text(answer)) == ("alias", "completed", "Hello there")
            assert answer["usage"]["total_tokens"] == 9
        assert [(record.dialect, record.outcome, record.completion_tokens) for record in rig.metrics.records] == [
            ("responses", "ok", 2)
        ] * 2

    run(scenario)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_goes_on_from_an_answer(*, stream: bool) -> None:
    """What was said and answered stands before what is said now, also two answers back."""

    async def scenario(rig: Rig) -> None:
        async def ask(**fields: Any) -> Any:
            answer = await rig.post(RESPONSES, stream=stream, **fields)
            return payloads(answer.content)[-1]["response"] if stream else answer.json()

        first = await ask(input="one")
        second = await ask(input="two", previous_response_id=first["id"])
        third = await ask(input="three", previous_response_id=second["id"])

        said = [(message["role"], message["content"]) for message in rig.neuron.asked[-1].body["messages"]]
        assert said == [
            ("user", "one"),
            ("assistant", "Hello there"),
            ("user", "two"),
            ("assistant", "Hello there"),
            ("user", "three"),
        ]
        assert third["previous_response_id"] == second["id"]
        assert await told(rig, third["id"]) == third

    run(scenario)


def test_what_is_not_to_be_kept_is_not() -> None:
    """`store: false`: nobody finds it, and nothing goes on from it."""

    async def scenario(rig: Rig) -> None:
        answer = (await rig.post(RESPONSES, store=False)).json()
        missing = await rig.client.get(f"{RESPONSES}/{answer['id']}")
        going_on = await rig.post(RESPONSES, previous_response_id=answer["id"])

        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "response_not_found")
        assert (going_on.status_code, going_on.json()["error"]["code"]) == (400, "previous_response_not_found")
        assert len(rig.neuron.asked) == 1

    run(scenario)


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST", "items", "previous", "reference"])
def test_an_answer_is_there_for_its_key_alone(method: str) -> None:
    """Another key, and whoever has none, is told that there is no such answer."""

    async def scenario(rig: Rig) -> None:
        asked = await rig.client.post(RESPONSES, json={"model": "demo", "input": "x"}, headers=LAPTOP.bearer)
        item = asked.json()["output"][0]["id"]
        path = f"{RESPONSES}/{asked.json()['id']}"
        for headers, good in ((PHONE.bearer, False), ({}, False), (LAPTOP.bearer, True)):
            match method:
                case "items":
                    answer = await rig.client.get(f"{path}/input_items", headers=headers)
                case "previous":
                    body: Any = {"model": "demo", "input": "x", "previous_response_id": asked.json()["id"]}
                    answer = await rig.client.post(RESPONSES, json=body, headers=headers)
                case "reference":
                    body = {"model": "demo", "input": [{"type": "item_reference", "id": item}]}
                    answer = await rig.client.post(RESPONSES, json=body, headers=headers)
                case "POST":
                    answer = await rig.client.post(f"{path}/cancel", json={}, headers=headers)
                case _:
                    answer = await rig.client.request(method, path, headers=headers)
            words = (answer.json().get("error") or {}).get("message", "")
            assert ("not found" not in words) is good

    run(scenario, guard=guarded(LAPTOP, PHONE))


def test_what_an_answer_was_made_from_is_listed() -> None:
    """All of it, the newest first unless asked otherwise, page by page."""

    async def scenario(rig: Rig) -> None:
        first = (await rig.post(RESPONSES, input="one")).json()
        second = (await rig.post(RESPONSES, input="two", previous_response_id=first["id"])).json()
        path = f"{RESPONSES}/{second['id']}/input_items"
        whole = (await rig.client.get(path)).json()
        begun = (await rig.client.get(path, params={"limit": 2, "order": "asc"})).json()
        rest = (await rig.client.get(path, params={"order": "asc", "after": begun["last_id"]})).json()

        texts = [item["content"][0]["text"] for item in whole["data"]]
        assert (texts, whole["has_more"]) == (["two", "Hello there", "one"], False)
        assert [item["id"] for item in (*begun["data"], *rest["data"])] == [item["id"] for item in whole["data"]][::-1]
        assert (begun["has_more"], rest["has_more"]) == (True, False)
        for query in ({"limit": "0"}, {"limit": "many"}, {"after": "msg_x"}):
            assert (await rig.client.get(path, params=query)).status_code == 400

    run(scenario)


def test_an_answer_can_be_forgotten() -> None:
    """Once."""

    async def scenario(rig: Rig) -> None:
        answer = (await rig.post(RESPONSES)).json()
        path = f"{RESPONSES}/{answer['id']}"
        gone = await rig.client.delete(path)

        assert gone.json() == {"id": answer["id"], "object": "response", "deleted": True}
        assert (await rig.client.get(path)).status_code == 404
        assert (await rig.client.delete(path)).status_code == 404

    run(scenario)


def test_in_the_background_the_client_is_answered_at_once() -> None:
    """While it waits for a model it is a live request; its end is counted with its tokens, and is there to be asked for."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.post(RESPONSES, background=True)
        queued = answer.json()
        await settled()
        live = (await rig.client.get("/admin/requests")).json()["requests"]
        assert not rig.metrics.records
        gate.set()
        found = await ended(rig, queued["id"])

        assert (answer.status_code, queued["status"], queued["output"]) == (200, "queued", [])
        assert [(one["dialect"], one["state"]) for one in live] == [("responses", "queued")]
        assert (found["status"], text(found), found["background"]) == ("completed", "Hello there", True)
        await settled()
        (record,) = rig.metrics.records
        assert (record.outcome, record.completion_tokens, record.dialect) == ("ok", 2, "responses")
        assert rig.neuron.asked[0].body["stream"] is True
        assert (await rig.client.get("/admin/requests")).json()["requests"] == []

    gate = asyncio.Event()
    run(scenario, gate=gate)


def test_in_the_background_the_client_may_read_along() -> None:
    """From the beginning, or again from any event on, with the same numbers; what it reads ends with the answer."""

    async def scenario(rig: Rig) -> None:
        reading = asyncio.create_task(rig.post(RESPONSES, background=True, stream=True))
        await settled()
        (live,) = (await rig.client.get("/admin/requests")).json()["requests"]
        gate.set()
        answer = await reading
        events = payloads(answer.content)
        identity = events[0]["response"]["id"]
        again = {"stream": "true", "starting_after": "2"}
        rest = payloads((await rig.client.get(f"{RESPONSES}/{identity}", params=again)).content)

        assert live["state"] == "queued"
        assert kinds(answer)[:4] == ["created", "queued", "in_progress", "output_item.added"]
        assert kinds(answer)[-1] == "completed"
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [events[at]["response"]["status"] for at in (0, 1, 2, -1)] == [
            "queued",
            "queued",
            "in_progress",
            "completed",
        ]
        assert rest == events[3:]
        assert (await told(rig, identity)) == events[-1]["response"]
        for wrong in ("x", "-1"):
            refused = await rig.client.get(f"{RESPONSES}/{identity}", params={**again, "starting_after": wrong})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "starting_after")

    gate = asyncio.Event()
    run(scenario, gate=gate)


def test_in_the_background_a_stream_is_made_without_its_reader() -> None:
    """Which comes back later and misses nothing."""
    neuron = NeuronDouble(answers=[Answer(pause=0.2)])
    with live_gateway({"double": neuron}) as gateway, httpx.Client(base_url=gateway.url, timeout=60) as client:
        body = {"model": "demo", "input": "x", "background": True, "stream": True}
        with client.stream("POST", RESPONSES, json=body) as answer:
            first = next(line for line in answer.iter_lines() if line.startswith("data:"))
        identity = json.loads(first.removeprefix("data:"))["response"]["id"]
        read = client.get(f"{RESPONSES}/{identity}", params={"stream": "true"})
        found = client.get(f"{RESPONSES}/{identity}").json()

    assert payloads(read.content)[-1]["response"] == found
    assert (found["status"], text(found)) == ("completed", "Hello there")


def test_in_the_background_a_stream_that_fails_or_is_ended_has_an_end() -> None:
    """The failure is its last event; who ended it knows, and reads no more."""

    async def scenario(rig: Rig) -> None:
        failed = await rig.post(RESPONSES, background=True, stream=True)
        assert kinds(failed)[-1] == "failed"

        reading = asyncio.create_task(rig.post(RESPONSES, background=True, stream=True))
        for _ in range(1000):
            live = (await rig.client.get("/admin/requests")).json()["requests"]
            if live and live[0]["state"] != "queued":
                break
            await asyncio.sleep(0.005)
        await rig.client.post(f"/admin/requests/{live[0]['id']}/cancel", json={})
        events = payloads((await reading).content)
        assert events[-1]["type"] == "response.in_progress"
        assert (await told(rig, events[0]["response"]["id"]))["status"] == "cancelled"

    run(scenario, Answer(dies_after=1), Answer(gate=asyncio.Event()))


def test_of_other_answers_no_events_are_known() -> None:
    """One that was streamed and kept, and one in the background that was not streamed."""

    async def scenario(rig: Rig) -> None:
        kept = (await rig.post(RESPONSES)).json()["id"]
        made = (await ended(rig, (await rig.post(RESPONSES, background=True)).json()["id"]))["id"]

        for identity in (kept, made):
            refused = await rig.client.get(f"{RESPONSES}/{identity}", params={"stream": "true"})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")

    run(scenario)


def test_events_are_forgotten_after_a_while_or_where_there_are_many() -> None:
    """The oldest first; those of an answer that is being made stay."""
    now = 0.0
    followed = Followed(now=lambda: now)
    with followed.log("me", "running"):
        for at in range(3):
            with followed.log("me", f"ended {at}") as log:
                log.add(b"data: {}\n\n" * (KEPT_BYTES // 22))
        assert [at for at in range(3) if followed.find("me", f"ended {at}")] == [1, 2]
        assert followed.find("you", "ended 1") is None
        now = KEPT_SECS + 1
        assert [at for at in range(3) if followed.find("me", f"ended {at}")] == []
        assert followed.find("me", "running") is not None


@pytest.mark.parametrize("when", ["queued", "answering"])
@pytest.mark.parametrize("how", ["cancel", "delete", "operator"])
def test_in_the_background_it_can_be_ended(when: str, how: str) -> None:
    """Wherever it stands; all behind it ends with it, and once it has ended that changes nothing."""

    async def scenario(rig: Rig) -> None:
        queued = (await rig.post(RESPONSES, background=True)).json()
        path = f"{RESPONSES}/{queued['id']}"
        for _ in range(1000):
            if when == "queued" or (await told(rig, queued["id"]))["status"] == "in_progress":
                break
            await asyncio.sleep(0.005)
        match how:
            case "cancel":
                assert (await rig.client.post(f"{path}/cancel", json={})).json()["status"] == "cancelled"
            case "delete":
                assert (await rig.client.delete(path)).json()["deleted"]
            case _:
                (live,) = (await rig.client.get("/admin/requests")).json()["requests"]
                await rig.client.post(f"/admin/requests/{live['id']}/cancel", json={})
        if how == "delete":
            assert (await rig.client.get(path)).status_code == 404
        else:
            assert (await ended(rig, queued["id"]))["status"] == "cancelled"
            assert (await rig.client.post(f"{path}/cancel", json={})).json()["status"] == "cancelled"
        await settled()
        assert [record.outcome for record in rig.metrics.records] == ["cancelled"]
        assert rig.fleet.in_flight == 0

    gate = asyncio.Event()
    if when == "queued":
        run(scenario, gate=gate)
    else:
        run(scenario, Answer(gate=gate))


def test_what_was_not_in_the_background_cannot_be_cancelled() -> None:
    """400, as OpenAI has it."""

    async def scenario(rig: Rig) -> None:
        answer = (await rig.post(RESPONSES)).json()

        assert (await rig.client.post(f"{RESPONSES}/{answer['id']}/cancel", json={})).status_code == 400

    run(scenario)


@pytest.mark.parametrize(
    "answer", [Answer(dies_after=1), Answer(error_after=(1, {"message": "oh", "type": "api_error"}))]
)
def test_in_the_background_a_failure_is_there_to_be_asked_for(answer: Answer) -> None:
    """With what went wrong."""

    async def scenario(rig: Rig) -> None:
        found = await ended(rig, (await rig.post(RESPONSES, background=True)).json()["id"])

        assert (found["status"], bool(found["error"]["message"])) == ("failed", True)
        await settled()
        assert [record.outcome for record in rig.metrics.records] == ["error"]

    run(scenario, answer)


def test_in_the_background_a_model_that_does_not_load_is_a_failure() -> None:
    """There to be asked for; a name that nobody knows is told at once, and so is an answer to go on from that is not whole."""

    async def scenario(rig: Rig) -> None:
        unknown = await rig.post(RESPONSES, background=True, model="nobody")
        queued = (await rig.post(RESPONSES, background=True)).json()
        early = await rig.post(RESPONSES, previous_response_id=queued["id"])
        gate.set()
        found = await ended(rig, queued["id"])

        assert found["error"] == {"code": "service_unavailable", "message": "no room"}
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert (early.status_code, early.json()["error"]["param"]) == (400, "previous_response_id")

    gate = asyncio.Event()
    run(scenario, gate=gate, error=LoadFailed("no room"))


def test_in_the_background_a_gateway_s_end_is_told(tmp_path: pathlib.Path) -> None:
    """By the next gateway: it failed, and does not wait for ever."""
    state = tmp_path / "cortex-state.db"
    neuron = NeuronDouble(answers=[Answer(pause=30)])
    with live_gateway({"double": neuron}, state=state) as gateway:
        body = {"model": "demo", "input": "x", "background": True}
        queued = httpx.post(f"{gateway.url}{RESPONSES}", json=body, timeout=60).json()
    with live_gateway({"double": NeuronDouble()}, state=state) as gateway:
        found = httpx.get(f"{gateway.url}{RESPONSES}/{queued['id']}", timeout=60).json()

    assert (found["status"], found["error"]["code"]) == ("failed", "shutting_down")


def test_in_the_background_a_key_s_limits_hold_until_it_has_ended() -> None:
    """Asking how it does is no request to them."""

    async def scenario(rig: Rig) -> None:
        headers = limited.bearer
        body = {"model": "demo", "input": "x", "background": True}
        queued = (await rig.client.post(RESPONSES, json=body, headers=headers)).json()
        second = await rig.client.post(RESPONSES, json=body, headers=headers)
        looks = [await told(rig, queued["id"], **headers) for _ in range(20)]
        gate.set()
        await ended(rig, queued["id"], **headers)
        await settled()
        third = await rig.client.post(RESPONSES, json=body, headers=headers)

        assert (second.status_code, third.status_code) == (429, 200)
        assert {look["status"] for look in looks} <= {"queued", "in_progress"}
        await ended(rig, third.json()["id"], **headers)

    gate = asyncio.Event()
    limited = made("limited", max_concurrent=1, requests_per_minute=10)
    run(scenario, gate=gate, guard=guarded(limited))


def test_a_client_that_waits_is_told_so_by_events() -> None:
    """`response.in_progress` again and again, numbered with the rest, until the answer; then it goes on as if nothing was."""

    async def scenario(rig: Rig) -> None:
        sent = b""
        async for chunk in rig.stream(RESPONSES):
            sent += chunk
            if sent.count(b"event: response.in_progress") > 3:
                gate.set()

        told = payloads(sent)
        names = [event["type"].removeprefix("response.") for event in told]
        assert names[:5] == ["created", "in_progress", "in_progress", "in_progress", "in_progress"]
        assert names[-1] == "completed"
        assert [event["sequence_number"] for event in told] == list(range(len(told)))

    gate = asyncio.Event()
    run(scenario, gate=gate, keep_alive_seconds=0.01)


@pytest.mark.parametrize(
    ("answer", "last"),
    [
        (Answer(finish="length"), "incomplete"),
        (Answer(dies_after=1), "failed"),
        (Answer(unfinished=True), "failed"),
        (Answer(error_after=(1, {"message": "oh", "type": "api_error", "code": None})), "failed"),
    ],
)
def test_a_stream_ends_in_what_became_of_it(answer: Answer, last: str) -> None:
    """Clients that see no such event ask again."""

    async def scenario(rig: Rig) -> None:
        assert kinds(await rig.post(RESPONSES, stream=True))[-1] == last

    run(scenario, answer)


def test_a_prompt_that_is_too_long_is_told_by_its_code() -> None:
    """By status before the stream has begun, and in it afterwards."""
    envelope = (
        b'{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded",'
        b'"param":null,"prompt_len":9,"max":5}}'
    )

    async def scenario(rig: Rig) -> None:
        answer = await rig.post(RESPONSES, stream=True)

        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")

    run(scenario, Answer(refusal=(400, envelope, {})))


def test_the_conversation_is_that_of_its_key() -> None:
    """`prompt_cache_key`, unless a header names one."""

    async def scenario(rig: Rig) -> None:
        await rig.post(RESPONSES, prompt_cache_key="k")
        await rig.client.post(
            RESPONSES, json={"model": "demo", "input": "x", "prompt_cache_key": "k"}, headers={"session-id": "s"}
        )

        assert [context.affinity for context in rig.fleet.contexts] == ["k", "s"]

    run(scenario)


@pytest.mark.parametrize("name", ["upgrade", "x-upgrade"])
@pytest.mark.parametrize("path", [RESPONSES, CHAT])
def test_a_websocket_is_refused_in_a_word(path: str, name: str) -> None:
    """426: a client falls back to POST without trying again. Without the offer it is 405."""

    async def scenario(rig: Rig) -> None:
        refused = await rig.client.get(path, headers={name: "websocket", "connection": "Upgrade"})

        assert (refused.status_code, refused.json()["error"]["code"]) == (426, "no_websocket")
        assert refused.headers["upgrade"] == "HTTP/1.1"
        assert (await rig.client.get(path)).status_code == 405

    run(scenario)


def test_what_was_left_out_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """An agent sends the same tools a thousand times."""

    async def scenario(rig: Rig) -> None:
        for _ in range(3):
            assert (await rig.post(RESPONSES, tools=[{"type": "web_search"}])).status_code == 200

    run(scenario)
    assert caplog.text.count("web_search") == 1


def test_a_conversation_can_be_compacted() -> None:
    """What the user said, and one item with the summary, which the next request goes on from; it is not kept."""

    async def scenario(rig: Rig) -> None:
        said = [*HI, {"role": "assistant", "content": "ho"}]
        answer = (await rig.client.post(f"{RESPONSES}/compact", json={"model": "demo", "input": said})).json()
        *users, compaction = answer["output"]
        await rig.post(RESPONSES, input=[*answer["output"], *HI])
        first, second = (seen.body["messages"] for seen in rig.neuron.asked)

        assert (answer["object"], answer["usage"]["total_tokens"]) == ("response.compaction", 9)
        assert [(item["role"], item["content"][0]["text"]) for item in users] == [("user", "hi")]
        assert compaction["type"] == "compaction"
        assert [message["role"] for message in first] == ["user", "assistant", "user"]
        assert "stream" not in rig.neuron.asked[0].body
        assert "Hello there" in second[1]["content"]
        assert (await rig.client.get(f"{RESPONSES}/{answer['id']}")).status_code == 404

    run(scenario)


def test_without_a_summary_nothing_is_compacted() -> None:
    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post(f"{RESPONSES}/compact", json={"model": "demo", "input": "hi"})

        assert answer.status_code == 502
        assert "no summary" in answer.json()["error"]["message"]

    run(scenario, Answer(deltas=()))


def test_input_tokens_are_counted_without_a_load() -> None:
    """By the neuron that has the tokenizer; what was said before must be sent along."""

    async def scenario(rig: Rig) -> None:
        counted = await rig.client.post(f"{RESPONSES}/input_tokens", json={"model": "demo", "input": "one two"})

        assert counted.json()["object"] == "response.input_tokens"
        assert counted.json()["input_tokens"] > 0
        for field, value in (
            ("previous_response_id", "resp_x"),
            ("conversation", "conv_x"),
            ("input", [{"type": "item_reference", "id": "msg_" + 33 * "a"}]),
        ):
            refused = await rig.client.post(
                f"{RESPONSES}/input_tokens", json={"model": "demo", "input": "x", field: value}
            )
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
        assert rig.neuron.asked == []

    run(scenario)


def test_a_kept_answer_is_not_streamed_again() -> None:
    """Said by name, not ignored."""

    async def scenario(rig: Rig) -> None:
        answer = (await rig.post(RESPONSES)).json()
        streamed = await rig.client.get(f"{RESPONSES}/{answer['id']}", params={"stream": "true"})

        assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, "stream")

    run(scenario)
