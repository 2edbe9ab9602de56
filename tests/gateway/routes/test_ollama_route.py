"""Ollama's API over a neuron's chat and completions: its routes are held to what all routes are."""

import asyncio
import datetime as dt
from typing import Any

import msgspec
import pytest

from cortex_gateway.errors import LoadFailed
from tests.fakes.gateway_rig import HI, Rig, run, settled
from tests.fakes.keyring import guarded, made
from tests.fakes.neuron_double import Answer

CHAT, GENERATE = "/api/chat", "/api/generate"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "demo", "messages": HI},
    GENERATE: {"model": "demo", "prompt": "hi"},
}
BOTH = pytest.mark.parametrize("path", [CHAT, GENERATE])
LAPTOP = made("laptop", models=("org/demo",))


def lines(raw: bytes) -> list[Any]:
    assert raw.endswith(b"\n")
    return [msgspec.json.decode(line) for line in raw.split(b"\n")[:-1]]


def text(line: Any) -> str:
    said: str = line["message"]["content"] if "message" in line else line["response"]
    return said


def wanted(path: str, **fields: Any) -> dict[str, Any]:
    return {**BODIES[path], **fields}


@BOTH
def test_it_streams_lines(path: str) -> None:
    """Under Ollama's content type; the model is called as the client called it."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post(path, json=wanted(path, model="alias:latest"))
        told = lines(answer.content)

        assert answer.headers["content-type"] == "application/x-ndjson"
        assert "".join(map(text, told)) == "Hello there"
        assert [line["done"] for line in told] == [False, False, True]
        assert (told[-1]["done_reason"], told[-1]["prompt_eval_count"], told[-1]["eval_count"]) == ("stop", 7, 2)
        assert 0 < told[-1]["load_duration"] < told[-1]["total_duration"]
        assert {line["model"] for line in told} == {"alias:latest"}
        assert rig.neuron.asked[0].body["model"] == "org/demo"

    run(scenario)


@BOTH
def test_it_answers_whole(path: str) -> None:
    """With the same counts, and a moment that is now."""

    async def scenario(rig: Rig) -> None:
        answer = (await rig.client.post(path, json=wanted(path, stream=False))).json()

        assert (text(answer), answer["done"], answer["done_reason"]) == ("Hello there", True, "stop")
        assert (answer["prompt_eval_count"], answer["eval_count"]) == (7, 2)
        now = dt.datetime.now(dt.UTC)
        assert abs(now - dt.datetime.fromisoformat(answer["created_at"])) < dt.timedelta(minutes=10)

    run(scenario)


@BOTH
@pytest.mark.parametrize("streaming", [False, True])
def test_it_is_recorded_like_any_other(path: str, streaming: bool) -> None:
    async def scenario(rig: Rig) -> None:
        await rig.client.post(path, json=wanted(path, stream=streaming))
        (record,) = rig.metrics.records

        assert (record.dialect, record.model, record.outcome) == ("ollama_" + path.rpartition("/")[2], "demo", "ok")
        assert (record.prompt_tokens, record.completion_tokens) == (7, 2)
        assert (record.ttft_seconds is not None) is streaming

    run(scenario)


@pytest.mark.parametrize("fields", [{"raw": True}, {"suffix": "end"}])
@pytest.mark.parametrize("streaming", [False, True])
def test_bare_text_is_the_neuron_s_completion(fields: Any, streaming: bool) -> None:
    """Nothing is put around the prompt."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post(GENERATE, json=wanted(GENERATE, stream=streaming, **fields))
        told = lines(answer.content) if streaming else [answer.json()]

        assert "".join(map(text, told)) == "Hello there"
        assert (told[-1]["done_reason"], told[-1]["prompt_eval_count"], told[-1]["eval_count"]) == ("stop", 7, 2)
        (asked,) = rig.neuron.asked
        assert (asked.path, asked.body["prompt"]) == ("/v1/completions", "hi")
        assert asked.body.get("suffix") == fields.get("suffix")

    run(scenario)


@BOTH
def test_who_waits_is_sent_pieces_with_nothing_in_them(path: str) -> None:
    """Every line is an object that a client can read; what fails then is the last one."""

    async def scenario(rig: Rig) -> None:
        async def open_gate() -> None:
            await asyncio.sleep(0.1)
            gate.set()

        opening = asyncio.create_task(open_gate())
        answer = await rig.client.post(path, json=BODIES[path])
        await opening
        told = lines(answer.content)

        assert answer.status_code == 200
        assert (text(told[0]), told[0]["done"]) == ("", False)
        assert told[-1] == {"error": "no room"}
        assert not any(line.get("done") for line in told)
        assert rig.metrics.records[0].outcome == "error"

    gate = asyncio.Event()
    run(scenario, gate=gate, error=LoadFailed("no room"), keep_alive_seconds=0.01)


@BOTH
@pytest.mark.parametrize("answer", [Answer(dies_after=1), Answer(unfinished=True)])
def test_a_neuron_that_dies_is_an_error_in_the_stream(path: str, answer: Answer) -> None:
    """And no line says that it is done."""

    async def scenario(rig: Rig) -> None:
        told = lines((await rig.client.post(path, json=BODIES[path])).content)

        assert list(told[-1]) == ["error"]
        assert not any(line.get("done") for line in told)
        assert rig.metrics.records[0].outcome == "error"

    run(scenario, answer)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", CHAT, {"model": "nobody", "messages": HI}, 404, "model 'nobody' not found"),
        ("POST", GENERATE, {"model": "nobody:latest", "prompt": "x"}, 404, "model 'nobody:latest' not found"),
        ("POST", "/api/show", {"model": "nobody"}, 404, "model 'nobody' not found"),
        ("POST", CHAT, {"messages": HI}, 400, "model is required"),
        ("POST", "/api/show", {}, 400, "model is required"),
        ("POST", CHAT, {"model": "demo", "messages": 7}, 400, "messages"),
        ("POST", GENERATE, {"model": "demo", "prompt": "x", "images": ["aGk="]}, 400, "images"),
        ("POST", "/api/embed", {"model": "demo", "input": 7}, 400, "input"),
        ("POST", "/api/embeddings", {"model": "nobody", "prompt": "x"}, 404, "model 'nobody' not found"),
        ("POST", "/api/pull", {"model": "demo"}, 404, "/api/pull"),
        ("GET", CHAT, None, 405, "GET"),
    ],
)
def test_errors_are_ollama_s(method: str, path: str, body: Any, status: int, words: str) -> None:
    """One string, under the status that Ollama has for it."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.request(method, path, json=body)

        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert words in answer.json()["error"]
        assert rig.neuron.asked == []

    run(scenario)


def test_what_the_neuron_refuses_has_its_words_and_status() -> None:
    error = msgspec.json.encode({"error": {"message": "too long", "type": "x", "code": "context_length_exceeded"}})

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post(CHAT, json=BODIES[CHAT])

        assert (answer.status_code, answer.json()) == (400, {"error": "too long"})

    run(scenario, Answer(refusal=(400, error, {})))


@pytest.mark.parametrize(("path", "nothing"), [(CHAT, {"messages": []}), (GENERATE, {"prompt": ""})])
def test_nothing_to_answer_loads_the_model(path: str, nothing: Any) -> None:
    """It is waited for and no neuron is asked; a model that nobody knows, or that does not load, is told of."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.post(path, json=wanted(path, model="demo:latest", **nothing))
        unknown = await rig.client.post(path, json=wanted(path, model="nobody", **nothing))

        assert (text(answer.json()), answer.json()["done"], answer.json()["done_reason"]) == ("", True, "load")
        assert unknown.status_code == 404
        assert rig.fleet.acquired == 1
        assert rig.neuron.asked == []
        assert [(record.model, record.outcome) for record in rig.metrics.records] == [
            ("demo", "ok"),
            ("unknown", "error"),
        ]

    async def failing(rig: Rig) -> None:
        answer = await rig.client.post(path, json=wanted(path, **nothing))

        assert (answer.status_code, answer.json()) == (503, {"error": "no room"})

    run(scenario)
    run(failing, error=LoadFailed("no room"))


def test_models_are_listed_shown_and_told_to_run() -> None:
    """By names with a tag, which all routes take; an alias has the digest of its model."""

    async def scenario(rig: Rig) -> None:
        tags = (await rig.client.get("/api/tags")).json()["models"]
        running = (await rig.client.get("/api/ps")).json()["models"]
        shown = (await rig.client.post("/api/show", json={"model": "alias:latest"})).json()

        assert [one["name"] for one in tags] == ["alias:latest", "demo:latest", "org/demo:latest"]
        assert tags[0]["digest"] == tags[2]["digest"] != tags[1]["digest"]
        assert (tags[0]["size"], len(tags[0]["digest"]), tags[0]["capabilities"]) == (300 << 20, 64, ["completion"])
        assert [one["model"] for one in running] == ["demo:latest", "org/demo:latest"]
        assert (running[0]["size_vram"], running[0]["context_length"]) == (300 << 20, 8192)
        assert shown["model_info"]["cortex.context_length"] == 8192
        assert shown["model_info"]["general.basename"] == "alias"
        assert (await rig.client.get("/v1/models/demo:latest")).json()["id"] == "demo"

    run(scenario)


def test_the_version_is_one_that_clients_take() -> None:
    """And HEAD is answered, with which they look whether anybody is there."""

    async def scenario(rig: Rig) -> None:
        version = (await rig.client.get("/api/version")).json()["version"]

        assert tuple(map(int, version.split("."))) >= (0, 17, 6)
        for path in ("/", "/api/version", "/api/tags"):
            assert (await rig.client.head(path)).status_code == 200

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", CHAT, BODIES[CHAT]),
        ("POST", GENERATE, BODIES[GENERATE]),
        ("POST", CHAT, {"model": "demo", "messages": []}),
        ("GET", "/api/tags", None),
        ("GET", "/api/ps", None),
        ("POST", "/api/show", {"model": "demo"}),
        ("GET", "/api/version", None),
        ("POST", "/api/embed", {"model": "demo"}),
    ],
)
def test_every_route_asks_for_a_key_where_one_is_required(method: str, path: str, body: Any) -> None:
    """In Ollama's words, as `Authorization: Bearer`, which its clients send."""

    async def scenario(rig: Rig) -> None:
        answer = await rig.client.request(method, path, json=body)
        let_in = await rig.client.request(method, path, json=body, headers=made("open").bearer)

        assert answer.status_code == 401
        assert "key" in answer.json()["error"]
        assert let_in.status_code == 200

    run(scenario, guard=guarded(made("open"), required=True))


def test_a_key_sees_and_uses_its_models_only() -> None:
    async def scenario(rig: Rig) -> None:
        tags = await rig.client.get("/api/tags", headers=LAPTOP.bearer)
        statuses = [
            (await rig.client.post(path, json=body, headers=LAPTOP.bearer)).status_code
            for model in ("demo:latest", "alias:latest")
            for path, body in (
                (CHAT, {"model": model, "messages": HI}),
                (CHAT, {"model": model, "messages": []}),
                ("/api/show", {"model": model}),
            )
        ]

        assert [one["name"] for one in tags.json()["models"]] == ["alias:latest", "org/demo:latest"]
        assert statuses == [403] * 3 + [200] * 3

    run(scenario, guard=guarded(LAPTOP, required=True))


@BOTH
def test_a_request_that_waits_is_listed_and_can_be_cancelled(path: str) -> None:
    async def scenario(rig: Rig) -> None:
        asking = asyncio.create_task(rig.client.post(path, json=BODIES[path], headers={"x-request-id": "mine"}))
        listed: list[Any] = []
        for _ in range(1000):
            await settled()
            if listed := (await rig.client.get("/admin/requests")).json()["requests"]:
                break

        assert [(one["id"], one["dialect"]) for one in listed] == [("mine", "ollama_" + path.rpartition("/")[2])]
        assert (await rig.client.post("/admin/requests/mine/cancel", json={})).json() == {"cancelled": 1}
        answer = await asking
        assert answer.status_code == 499
        assert "operator" in answer.json()["error"]

    run(scenario, gate=asyncio.Event())


def test_a_client_that_leaves_is_not_answered_to_the_end() -> None:
    """The neuron is left as soon as it has gone."""

    async def scenario(rig: Rig) -> None:
        request = rig.client.build_request("POST", CHAT, json=BODIES[CHAT])
        response = await rig.client.send(request, stream=True)
        await anext(response.aiter_raw())
        await response.aclose()
        for _ in range(1000):
            await settled()
            if rig.neuron.left:
                break

        assert rig.neuron.left == 1

    run(scenario, Answer(deltas=({"content": "x"},) * 3, pause=0.2))


def test_pages_of_this_machine_may_ask() -> None:
    """As on /v1/*; a stranger's may not."""

    async def scenario(rig: Rig) -> None:
        near = await rig.client.post(CHAT, json=BODIES[CHAT], headers={"origin": "http://localhost:3000"})
        far = await rig.client.post(CHAT, json=BODIES[CHAT], headers={"origin": "http://evil.example"})

        assert (near.status_code, near.headers["access-control-allow-origin"]) == (200, "http://localhost:3000")
        assert far.status_code == 403
        assert "error" in far.json()

    run(scenario)


@BOTH
@pytest.mark.parametrize("media", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_body_need_not_call_itself_json(path: str, media: str | None) -> None:
    """`curl -d` does not, and Ollama does not ask. A stranger's page sends its Origin with it; what controls does ask."""

    async def scenario(rig: Rig) -> None:
        headers = {} if media is None else {"content-type": media}
        body = msgspec.json.encode(wanted(path, stream=False))
        answer = await rig.client.post(path, content=body, headers=headers)
        page = await rig.client.post(path, content=body, headers={**headers, "origin": "http://evil.example"})
        control = await rig.client.post("/admin/unload", content=b'{"model":"demo"}', headers=headers)

        assert (answer.status_code, answer.json()["done"]) == (200, True)
        assert page.status_code == 403
        assert control.status_code == 415

    run(scenario)
