"""Whatever a client sends, it gets its own dialect's envelope, and the next client is served."""

import gzip
import json
from typing import Any

import httpx
import pytest

from cortex_gateway.config import GatewayConfig
from cortex_gateway.errors import CortexError
from tests.fakes.gateway_rig import BODIES, CHAT, COMPLETIONS, MESSAGES, RESPONSES, Rig, run
from tests.gateway.test_encodings import PACK

SMALL = GatewayConfig(hosts=("gw",), max_body_mb=1)
COUNT = "/v1/messages/count_tokens"
POSTS = [CHAT, COMPLETIONS, MESSAGES, COUNT, RESPONSES, "/admin/load", "/admin/unload"]
DEEP = b'{"model":"demo","max_tokens":1,"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def check(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The error of a response, whose envelope must be the path's own, whole, with an id to ask for."""
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body: dict[str, Any] = response.json()
    if response.url.path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"}
        assert body["type"] == "error"
        assert body["request_id"] == response.headers["x-request-id"]
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) >= {"message", "type", "code", "param"}
        assert code is None or body["error"]["code"] == code
    error: dict[str, Any] = body["error"]
    assert error["message"]
    return error


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"model":"demo"', b'{"a":NaN}', b'{"a":"\xff"}', b'{"a":Infinity}', DEEP],
)
def test_what_is_not_json_is_malformed(path: str, body: bytes) -> None:
    """Also NaN, bytes that are not UTF-8, and nesting without end."""

    async def scenario(rig: Rig) -> None:
        check(await rig.post_raw(path, body), 400, "malformed_json")

        assert rig.neuron.seen == []
        assert (await rig.post(CHAT)).status_code == 200

    run(scenario)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null", b"true"])
def test_json_that_is_no_object_is_refused(path: str, body: bytes) -> None:
    """With 400, whatever it is."""

    async def scenario(rig: Rig) -> None:
        check(await rig.post_raw(path, body), 400, "invalid_request_body")

    run(scenario)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, COUNT])
@pytest.mark.parametrize("model", [None, "", 7, [], {}, True])
def test_a_model_must_be_named(path: str, model: Any) -> None:
    """By a string with something in it."""

    async def scenario(rig: Rig) -> None:
        check(await rig.client.post(path, json={**BODIES[MESSAGES], "model": model}), 400)

    run(scenario)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, COUNT])
@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_model_is_404_with_the_nearest_names(path: str, streaming: bool) -> None:
    """For a stream as well: it is known at once. The name does not become a label of metrics."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post(path, json={**BODIES[MESSAGES], "model": "dema", "stream": streaming})
        error = check(response, 404, "model_not_found")

        assert "'demo'" in error["message"]
        assert {record.model for record in rig.metrics.records} <= {"unknown"}

    run(scenario)


@pytest.mark.parametrize("path", POSTS)
def test_a_body_over_the_cap_is_413(path: str) -> None:
    """Announced or not, and with the limit."""
    large = b" " * ((1 << 20) + 1)

    async def pieces() -> Any:
        for _ in range(5):
            yield large

    async def scenario(rig: Rig) -> None:
        error = check(await rig.post_raw(path, large), 413, "body_too_large")
        assert str(1 << 20) in error["message"]

        check(await rig.post_raw(path, pieces()), 413, "body_too_large")

    run(scenario, settings=SMALL)


def test_a_body_at_the_cap_is_read() -> None:
    """The limit itself is allowed."""

    async def scenario(rig: Rig) -> None:
        body = json.dumps(BODIES[CHAT]).encode()
        response = await rig.post_raw(CHAT, body + b" " * ((1 << 20) - len(body)))

        assert response.status_code == 200

    run(scenario, settings=SMALL)


def test_an_endless_body_is_not_read_to_its_end() -> None:
    """At twice the cap the gateway stops listening."""
    scope = {"method": "POST", "path": CHAT, "raw_path": CHAT.encode()}
    chunk = {"type": "http.request", "body": b" " * (1 << 20), "more_body": True}

    async def scenario(rig: Rig) -> None:
        start, end = await rig.asgi(scope, chunk, chunk, chunk)

        assert start["status"] == 413
        assert end["more_body"] is False

    run(scenario, settings=SMALL)


def test_a_client_that_leaves_while_it_sends_is_gone() -> None:
    """Nothing is answered, and it is recorded as cancelled."""
    scope = {"method": "POST", "path": CHAT, "raw_path": CHAT.encode()}

    async def scenario(rig: Rig) -> None:
        sent = await rig.asgi(
            scope, {"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}
        )

        assert sent == []
        assert [record.outcome for record in rig.metrics.records] == ["cancelled"]

    run(scenario)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, RESPONSES])
@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_compressed_body_is_read(path: str, encoding: str) -> None:
    """And a neuron gets it plain; one that becomes too much is 413, one that is broken 400."""

    async def scenario(rig: Rig) -> None:
        said = {"content-encoding": encoding}
        good = await rig.post_raw(path, PACK[encoding](json.dumps(BODIES[path]).encode()), **said)
        bomb = await rig.post_raw(path, PACK[encoding](bytes(3 << 20)), **said)
        junk = await rig.post_raw(path, b"{}", **said)

        assert good.status_code == 200
        assert rig.neuron.asked[0].body["model"] == "demo"
        check(bomb, 413, "body_too_large")
        assert encoding in check(junk, 400, "malformed_json")["message"]

    run(scenario, settings=GatewayConfig(hosts=("gw",), max_body_mb=1))


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("encoding", ["deflate", "compress", "gzip, br"])
def test_an_encoding_that_nobody_knows_is_refused_by_name(path: str, encoding: str) -> None:
    """415 that names the encoding, not nonsense about JSON."""

    async def scenario(rig: Rig) -> None:
        content = gzip.compress(b"{}")
        response = await rig.client.post(path, content=content, headers={"content-encoding": encoding})

        assert encoding in check(response, 415, "unsupported_media_type")["message"]

    run(scenario)


@pytest.mark.parametrize("path", POSTS)
def test_two_headers_that_name_an_encoding_are_two_encodings(path: str) -> None:
    """The last alone would make nonsense of the body."""

    async def scenario(rig: Rig) -> None:
        twice = [("content-encoding", "gzip"), ("content-encoding", "br"), ("content-type", "application/json")]
        response = await rig.client.post(path, content=gzip.compress(b"{}"), headers=twice)

        assert "gzip, br" in check(response, 415, "unsupported_media_type")["message"]

    run(scenario)


@pytest.mark.parametrize(
    "media",
    [
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/plain; charset=utf-8",
        "text/plain; application/json",
        "json",
        "",
        None,
    ],
)
@pytest.mark.parametrize("path", POSTS)
def test_another_content_type_is_refused_by_name(path: str, media: str | None) -> None:
    """415: above all what a web page can send to a stranger without being asked (a simple request)."""

    async def scenario(rig: Rig) -> None:
        headers = {} if media is None else {"content-type": media}
        response = await rig.client.post(path, content=json.dumps(BODIES[CHAT]).encode(), headers=headers)
        error = check(response, 415, "unsupported_media_type")

        assert (media or "no content type").partition(";")[0] in error["message"]
        assert "content-type: application/json" in error["message"]
        assert rig.fleet.calls == []
        assert rig.neuron.seen == []

    run(scenario)


@pytest.mark.parametrize(
    "media", ["application/json", "Application/JSON; charset=utf-8", "application/ld+json", "text/json"]
)
def test_json_under_its_names_is_read(media: str) -> None:
    """With and without parameters."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post_raw(CHAT, json.dumps(BODIES[CHAT]).encode(), **{"content-type": media})

        assert response.status_code == 200

    run(scenario)


@pytest.mark.parametrize("path", ["/nope", "/v1", "/v1/nope", "/v1/messages/nope", "/v1/messages/count_tokens/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_404_in_the_dialect_of_its_place(path: str, method: str) -> None:
    """`/v1/messages/…` speaks Anthropic's, everything else OpenAI's."""

    async def scenario(rig: Rig) -> None:
        check(await rig.client.request(method, path), 404, "not_found")

    run(scenario)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("GET", MESSAGES, "POST"),
        ("DELETE", COUNT, "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/health", "GET"),
        ("POST", "/", "GET"),
        ("POST", "/v1/models/org/demo", "GET"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(method: str, path: str, allowed: str) -> None:
    """In the header and in words."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.request(method, path)
        error = check(response, 405, "method_not_allowed")

        assert allowed in response.headers["allow"]
        assert allowed in error["message"]

    run(scenario)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("streaming", [False, True])
def test_our_own_bug_is_a_500_that_tells_nothing(path: str, streaming: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets an id, the log gets the traceback, the gateway goes on."""

    async def scenario(rig: Rig) -> None:
        rig.fleet.error = ZeroDivisionError("secret detail")
        response = await rig.post(path, stream=streaming)
        error = check(response, 500)

        assert "secret" not in error["message"]
        assert "secret detail" in caplog.text
        assert response.headers["x-request-id"] in caplog.text
        rig.fleet.error = None
        assert (await rig.post(path)).status_code == 200

    run(scenario)


def test_a_request_id_is_kept_when_it_is_decent() -> None:
    """The client's own, else a new one; never one that could break a header."""

    async def scenario(rig: Rig) -> None:
        for sent, kept in (("abc-1", True), ("x" * 129, False), ("two words", False), ("", False)):
            response = await rig.client.post(CHAT, json=BODIES[CHAT], headers={"x-request-id": sent})

            assert (response.headers["x-request-id"] == sent) is kept
            assert rig.neuron.seen[-1].headers["x-request-id"] == response.headers["x-request-id"]

    run(scenario)


def test_every_error_has_a_place_in_the_table() -> None:
    """402 is never used, and whatever can be retried says when."""
    kinds = list(CortexError.__subclasses__())
    for kind in kinds:
        kinds.extend(kind.__subclasses__())

    assert {kind.status for kind in kinds} <= {
        400,
        401,
        403,
        404,
        405,
        408,
        409,
        413,
        415,
        426,
        429,
        499,
        500,
        502,
        503,
        504,
    }
    assert {kind.type for kind in kinds} <= {"invalid_request_error", "rate_limit_error", "api_error"}


@pytest.mark.parametrize(
    ("method", "path", "word"),
    [
        ("POST", "/v1/audio/transcriptions", "text only"),
        ("POST", "/v1/audio/speech", "text only"),
        ("POST", "/v1/images/generations", "text only"),
        ("POST", "/v1/batches", "one by one"),
        ("GET", "/v1/files", "as text"),
        ("POST", "/v1/moderations", "moderates"),
        ("POST", "/v1/messages/batches", "one by one"),
        ("GET", "/v1/messages/batches", "one by one"),
    ],
)
def test_routes_that_clients_try_are_refused_by_name(method: str, path: str, word: str) -> None:
    """With what to do instead, whatever the body is: nobody reads it. 404, which no SDK tries again."""

    async def scenario(rig: Rig) -> None:
        files = {"file": b"RIFF"} if method == "POST" else None
        error = check(await rig.client.request(method, path, files=files), 404, "unsupported_route")

        assert word in error["message"]

    run(scenario)
