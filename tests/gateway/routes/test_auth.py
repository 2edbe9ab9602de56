"""Who is let in, route by route and in both dialects; and that what he showed goes nowhere."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from cortex_gateway.auth.guard import Guard
from tests.fakes.gateway_rig import BODIES, CHAT, COMPLETIONS, MESSAGES, RESPONSES, Rig, run, settled
from tests.fakes.keyring import Made, guarded, made
from tests.fakes.neuron_double import Answer

COUNT = "/v1/messages/count_tokens"
INFERENCE = [CHAT, COMPLETIONS, MESSAGES, COUNT, RESPONSES]
KEPT = [
    ("GET", f"{RESPONSES}/resp_x"),
    ("DELETE", f"{RESPONSES}/resp_x"),
    ("GET", f"{RESPONSES}/resp_x/input_items"),
    ("POST", f"{RESPONSES}/resp_x/cancel"),
]
CANCEL = "/admin/requests/x/cancel"
CONTROL = [
    ("GET", "/admin/fleet"),
    ("POST", "/admin/load"),
    ("POST", "/admin/plan"),
    ("POST", "/admin/unload"),
    ("POST", "/admin/reload"),
    ("GET", "/admin/requests"),
    ("POST", CANCEL),
]
MODELS = ["/v1/models", "/v1/models/demo"]
JSON = {"content-type": "application/json"}
FORWARDED = {"x-forwarded-for": "192.0.2.1"}
LAPTOP = made("laptop")
OPS = made("ops", "admin")


def body(path: str, **fields: Any) -> dict[str, Any]:
    return {**BODIES.get(path, BODIES[MESSAGES] if path == COUNT else {"model": "demo"}), **fields}


async def ask(
    rig: Rig, method: str, path: str, headers: Mapping[str, str] | None = None, /, **fields: Any
) -> httpx.Response:
    json = body(path, **fields) if method == "POST" else None
    return await rig.client.request(method, path, headers=headers or {}, json=json)


def told(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, Anthropic's or OpenAI's type, OpenAI's code; the envelope is checked on the way."""
    answer = response.json()
    if response.request.url.path.startswith("/v1/messages"):
        assert (answer["type"], answer["request_id"]) == ("error", response.headers["x-request-id"])
        return response.status_code, answer["error"]["type"], None
    assert set(answer) == {"error"}
    return response.status_code, answer["error"]["type"], answer["error"]["code"]


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer none"}, {"x-api-key": OPS.text[:-1]}])
def test_inference_without_a_key_is_401_where_keys_are_required(path: str, headers: dict[str, str]) -> None:
    """In the client's dialect, and before its body is looked at."""

    async def scenario(rig: Rig) -> None:
        response = await ask(rig, "POST", path, headers)
        unreadable = await rig.client.post(path, headers=headers | JSON, content=b"{")

        anthropic = (401, "authentication_error", None)
        assert told(response) == (
            anthropic if "messages" in path else (401, "invalid_request_error", "invalid_api_key")
        )
        assert response.headers["www-authenticate"].startswith('Bearer realm="cortex"')
        assert unreadable.status_code == 401
        assert rig.neuron.seen == []

    run(scenario, guard=guarded(LAPTOP, required=True))


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize(
    "headers", [LAPTOP.bearer, {"Authorization": f"bearer {LAPTOP.text}"}, {"X-Api-Key": LAPTOP.text}]
)
def test_a_key_is_taken_from_either_header(path: str, headers: dict[str, str]) -> None:
    """And nothing of it reaches the neuron."""

    async def scenario(rig: Rig) -> None:
        response = await ask(rig, "POST", path, headers)

        assert response.status_code == 200
        (seen,) = rig.neuron.seen
        assert not {"authorization", "x-api-key"} & set(seen.headers)
        assert LAPTOP.text not in repr(seen)

    run(scenario, guard=guarded(LAPTOP, required=True))


@pytest.mark.parametrize("path", INFERENCE)
def test_without_required_a_placeholder_is_as_good_as_nothing(path: str) -> None:
    """Also from elsewhere; that it is so is told at the start."""

    async def scenario(rig: Rig) -> None:
        for headers in ({}, {"authorization": "Bearer none"}, {"x-api-key": "sk-ant-x"}, FORWARDED):
            assert (await ask(rig, "POST", path, headers)).status_code == 200

    run(scenario, guard=guarded(LAPTOP))


@pytest.mark.parametrize(("method", "path"), KEPT)
def test_kept_answers_want_what_inference_wants(method: str, path: str) -> None:
    """A key where keys are required, and the scope; then it is told that there is none."""

    async def scenario(rig: Rig) -> None:
        answers = [await ask(rig, method, path, headers) for headers in ({}, OPS.bearer, LAPTOP.bearer)]

        assert [answer.status_code for answer in answers] == [401, 403, 404]

    run(scenario, guard=guarded(LAPTOP, OPS, required=True))


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("path", INFERENCE)
def test_a_key_without_the_scope_is_403(path: str, *, required: bool) -> None:
    """A known key is held to what it allows, also where none is needed."""

    async def scenario(rig: Rig) -> None:
        response = await ask(rig, "POST", path, OPS.bearer)

        anthropic = (403, "permission_error", None)
        assert told(response) == (
            anthropic if "messages" in path else (403, "invalid_request_error", "permission_denied")
        )
        assert "www-authenticate" not in response.headers

    run(scenario, guard=guarded(OPS, required=required))


@pytest.mark.parametrize(("method", "path"), CONTROL)
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("far", [True, False])
def test_control_wants_an_admin_key_from_elsewhere_always(method: str, path: str, *, required: bool, far: bool) -> None:
    """From this host where keys are required; a proxy on this host is elsewhere."""

    async def scenario(rig: Rig) -> None:
        way = FORWARDED if far else {}
        nobody = await ask(rig, method, path, way)
        placeholder = await ask(rig, method, path, {**way, "x-api-key": "none"})
        laptop = await ask(rig, method, path, {**way, **LAPTOP.bearer})
        ops = await ask(rig, method, path, {**way, **OPS.bearer})

        done = 404 if path == CANCEL else 200  # nothing of that id is under way
        open_ = 401 if far or required else done
        assert [one.status_code for one in (nobody, placeholder, laptop, ops)] == [open_, open_, 403, done]
        asked = 0 if method == "GET" or path == CANCEL else 1 + 2 * (open_ == 200)
        assert len(rig.fleet.calls) == asked

    run(scenario, guard=guarded(LAPTOP, OPS, required=required))


@pytest.mark.parametrize("client", [("192.168.1.20", 5), None])
@pytest.mark.parametrize(("method", "path"), CONTROL)
def test_another_address_is_elsewhere_whatever_it_says(client: Any, method: str, path: str) -> None:
    """A Host of localhost or a forwarded loopback address makes nobody local."""

    async def scenario(rig: Rig) -> None:
        for said in ([], [(b"host", b"localhost")], [(b"x-forwarded-for", b"127.0.0.1")], [(b"x-real-ip", b"::1")]):
            scope = {"method": method, "path": path, "raw_path": path.encode(), "headers": said, "client": client}
            sent = await rig.asgi(scope, {"type": "http.request", "body": b'{"model":"demo"}', "more_body": False})
            assert sent[0]["status"] == 401
        assert rig.fleet.calls == []

    run(scenario)


@pytest.mark.parametrize("path", MODELS)
def test_the_list_is_for_keys_of_either_scope(path: str) -> None:
    """Where they are required."""

    async def scenario(rig: Rig) -> None:
        answers = [await ask(rig, "GET", path, headers) for headers in ({}, LAPTOP.bearer, OPS.bearer)]

        assert [one.status_code for one in answers] == [401, 200, 200]

    run(scenario, guard=guarded(LAPTOP, OPS, required=True))


@pytest.mark.parametrize("path", ["/", "/health"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_stays_open(method: str, path: str) -> None:
    """For load balancers, also with a key that is over."""

    async def scenario(rig: Rig) -> None:
        for headers in ({}, made("over", expires=1.0).bearer):
            assert (await ask(rig, method, path, headers)).status_code == 200

    run(scenario, guard=guarded(made("over", expires=1.0), required=True))


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize("streaming", [True, False])
def test_a_key_for_some_models_is_403_for_others(path: str, *, streaming: bool) -> None:
    """An alias is the model behind it; a model that is not there is refused alike."""

    async def scenario(rig: Rig) -> None:
        how = {"stream": True} if streaming and path != COUNT else {}
        for model, status in (("org/demo", 200), ("alias", 200), ("demo", 403), ("ghost", 403)):
            response = await ask(rig, "POST", path, key.bearer, model=model, **how)
            assert response.status_code == status, model
            assert status == 200 or model in response.text
        assert len(rig.neuron.seen) == 2

    key = made(models=("alias",))
    run(scenario, guard=guarded(key))


@pytest.mark.parametrize("path", ["/admin/load", "/admin/unload"])
def test_an_admin_key_for_some_models_is_403_for_others(path: str) -> None:
    """A key for some models neither loads nor unloads the rest."""
    key = made("ops", "admin", models=("alias",))

    async def scenario(rig: Rig) -> None:
        answers = [await ask(rig, "POST", path, key.bearer, model=name) for name in ("org/demo", "alias", "demo", "x")]

        assert [one.status_code for one in answers] == [200, 200, 403, 403]
        assert len(rig.fleet.calls) == 2

    run(scenario, guard=guarded(key))


def test_the_list_has_what_a_key_may_use() -> None:
    """With the aliases of it."""

    async def scenario(rig: Rig) -> None:
        page = (await ask(rig, "GET", "/v1/models", key.bearer)).json()
        found = [
            (await ask(rig, "GET", f"/v1/models/{name}", key.bearer)).status_code for name in ("alias", "demo", "x")
        ]

        assert [entry["id"] for entry in page["data"]] == ["alias", "org/demo"]
        assert (page["first_id"], page["last_id"]) == ("alias", "org/demo")
        assert found == [200, 403, 403]

    key = made(models=("org/demo",))
    run(scenario, guard=guarded(key))


def test_a_key_that_is_over_or_revoked_is_401_at_once() -> None:
    """Between two requests; what was counted of a key that stays is kept."""
    now = [100.0]
    key = made(expires=200.0, requests_per_minute=1)
    guard = guarded(key, now=lambda: now[0], clock=lambda: 0.0)

    async def scenario(rig: Rig) -> None:
        assert (await ask(rig, "POST", CHAT, key.bearer)).status_code == 200
        guard.know([key.key, OPS.key])
        assert (await ask(rig, "POST", CHAT, key.bearer)).status_code == 429
        now[0] = 200.0
        expired = await ask(rig, "POST", CHAT, key.bearer)
        assert (expired.status_code, "expired" in expired.text) == (401, True)
        guard.know([OPS.key])
        assert (await ask(rig, "POST", CHAT, key.bearer)).status_code == 200  # nobody's now, and none is required

    run(scenario, guard=guard)


@pytest.mark.parametrize("path", INFERENCE)
def test_requests_a_minute(path: str) -> None:
    """429 with the time to wait, after which it passes; refused ones do not count, malformed ones do."""
    clock = [1000.0]
    key = made(requests_per_minute=2)

    async def scenario(rig: Rig) -> None:
        first = await rig.client.post(path, headers=key.bearer | JSON, content=b"{")
        second = await ask(rig, "POST", path, key.bearer)
        third = [await ask(rig, "POST", path, key.bearer) for _ in range(3)][-1]
        clock[0] += int(third.headers["retry-after"])
        fourth = await ask(rig, "POST", path, key.bearer)

        assert [one.status_code for one in (first, second, third, fourth)] == [400, 200, 429, 200]
        assert third.headers["retry-after"] == "30"
        openai = (429, "rate_limit_error", "rate_limit_exceeded")
        assert told(third) == ((429, "rate_limit_error", None) if "messages" in path else openai)

    run(scenario, guard=guarded(key, clock=lambda: clock[0]))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES])
@pytest.mark.parametrize("streaming", [True, False])
def test_tokens_a_minute(path: str, *, streaming: bool) -> None:
    """Counted from the usage that the neuron tells, before the client sees the end: the very next request is held to it."""
    clock = [1000.0]
    key = made(tokens_per_minute=9)

    async def scenario(rig: Rig) -> None:
        first = await ask(rig, "POST", path, key.bearer, stream=streaming)  # 7 + 2 tokens
        second = await ask(rig, "POST", path, key.bearer, stream=streaming)
        clock[0] += int(second.headers["retry-after"])
        third = await ask(rig, "POST", path, key.bearer, stream=streaming)

        assert [one.status_code for one in (first, second, third)] == [200, 429, 200]
        assert second.headers["retry-after"] == "7"

    run(scenario, guard=guarded(key, clock=lambda: clock[0]))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES])
def test_what_went_by_of_an_answer_is_counted_when_its_client_leaves(path: str) -> None:
    """Nobody spends more than he may by hanging up before the end."""
    key = made(tokens_per_minute=20)

    async def scenario(rig: Rig) -> None:
        rig.client.headers.update(key.bearer)
        seen = 0
        async with contextlib.aclosing(rig.stream(path)) as chunks:
            while seen < 20:
                seen += (await anext(chunks)).count(b"word")
        await settled()
        assert (await ask(rig, "POST", path)).status_code == 429

    run(scenario, Answer(deltas=({"content": " word "},) * 500), guard=guarded(key), keep_alive_seconds=5)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES])
def test_a_slot_is_free_again_when_the_last_byte_is_seen(path: str) -> None:
    """Not a moment later: a client that asks one thing after the other is never refused."""
    key = made(max_concurrent=1)

    async def scenario(rig: Rig) -> None:
        for streaming in (True, False):
            for _ in range(20):
                response = await ask(rig, "POST", path, key.bearer, stream=streaming)
                assert response.status_code == 200

    run(scenario, guard=guarded(key))


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("ending", ["leaves", "fails", "refused", "dies", "cancelled"])
def test_a_slot_is_free_again_however_a_request_ends(path: str, ending: str) -> None:
    """While it is taken a second request is refused; others are not."""
    gate = asyncio.Event()
    key, other = made(max_concurrent=1), made("other", max_concurrent=1)
    answers = {
        "leaves": Answer(gate=gate),
        "cancelled": Answer(gate=gate),
        "fails": Answer(error_after=(1, {"message": "no", "type": "api_error", "code": None}), gate=gate),
        "refused": Answer(refusal=(500, b'{"error":{"message":"no"}}', {})),
        "dies": Answer(dies_after=1, gate=gate),
    }

    async def scenario(rig: Rig) -> None:
        first = asyncio.create_task(ask(rig, "POST", path, key.bearer, stream=True))
        if ending != "refused":
            await settled()
            assert rig.neuron.begun == 1
            second = await ask(rig, "POST", path, key.bearer)
            assert (second.status_code, second.headers["retry-after"]) == (429, "1")
            assert (await ask(rig, "POST", path, other.bearer)).status_code == 200
        if ending in ("leaves", "cancelled"):
            first.cancel()
        gate.set()
        await asyncio.wait([first])
        await settled()
        assert (await ask(rig, "POST", path, key.bearer)).status_code == 200

    run(scenario, answers[ending], Answer(), guard=guarded(key, other))


def test_an_admin_is_not_counted() -> None:
    """Limits are about what models cost."""
    key = made("ops", "admin", requests_per_minute=1, max_concurrent=1)

    async def scenario(rig: Rig) -> None:
        for _ in range(5):
            assert (await ask(rig, "POST", "/admin/load", key.bearer)).status_code == 200
            assert (await ask(rig, "GET", "/v1/models", key.bearer)).status_code == 200

    run(scenario, guard=guarded(key))


KEYS = {
    "good": made("secret-owner"),
    "over": made("secret-over", expires=1.0),
    "spent": made("secret-spent", requests_per_minute=1),
    "narrow": made("secret-narrow", models=("org/demo",)),
    "unknown": made("secret-unknown"),
}


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
@pytest.mark.parametrize("which", KEYS)
def test_a_key_is_said_nowhere(which: str, header: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not in answers, records, logs or what the neuron gets; nor who has it in records and logs."""
    key = KEYS[which]
    guard = guarded(*(one for name, one in KEYS.items() if name != "unknown"), required=True)

    async def scenario(rig: Rig) -> None:
        headers = {header: f"Bearer {key.text}" if header == "authorization" else key.text}
        said = []
        for _ in range(2):
            for path in (*INFERENCE, "/admin/load"):
                said.append(await ask(rig, "POST", path, headers))
                said.append(await ask(rig, "POST", path, headers, stream=True))
            said += [await ask(rig, "GET", path, headers) for path in ("/admin/fleet", *MODELS, "/nowhere", "/health")]
        rig.fleet.error = RuntimeError("a defect")
        said.append(await ask(rig, "POST", CHAT, headers))
        everything = [f"{one.headers} {one.text}" for one in said]
        silent = [repr(rig.metrics.records), repr(rig.neuron.seen), repr(rig.fleet.calls), caplog.text]

        hidden = (key.text, key.text.rpartition("-")[2], key.text[-20:], key.key.digest.hex())
        assert not [text for text in (*everything, *silent) for part in hidden if part in text]
        assert not [text for text in silent for part in (key.key.name, key.key.id) if part in text]

    with caplog.at_level(logging.DEBUG):
        run(scenario, guard=guard)


def test_preflights_need_no_key() -> None:
    """Browsers send none with them."""

    async def scenario(rig: Rig) -> None:
        headers = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
        assert (await rig.client.options(CHAT, headers=headers)).status_code == 204

    run(scenario, guard=guarded(required=True))


def test_a_body_is_not_awaited_from_nobody() -> None:
    """Who may not send one is told before it comes."""

    async def scenario(rig: Rig) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"33000000")]
        async with asyncio.timeout(20):
            sent = await rig.asgi({"method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "headers": headers})

        assert sent[0]["status"] == 401

    run(scenario, guard=Guard(required=True))


def test_refusals_are_counted_under_no_model(caplog: pytest.LogCaptureFixture) -> None:
    """Names that strangers make up are no labels."""
    key: Made = made(models=("demo",))

    async def scenario(rig: Rig) -> None:
        await ask(rig, "POST", CHAT, model="made-up")
        await ask(rig, "POST", CHAT, key.bearer, model="made-up")

        assert [(one.model, one.status, one.outcome) for one in rig.metrics.records] == [
            ("unknown", 401, "error"),
            ("unknown", 403, "error"),
        ]

    run(scenario, guard=guarded(key, required=True))
