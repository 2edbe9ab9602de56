"""Chat and completions reach the neuron and come back untouched."""

import msgspec
import pytest

from tests.fakes.gateway_rig import BODIES, CHAT, COMPLETIONS, Rig, payloads, run
from tests.fakes.neuron_double import Answer, stream, whole

PATHS = [CHAT, COMPLETIONS]


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_comes_back_byte_for_byte(path: str) -> None:
    """Status, type and every byte are the neuron's."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path)

        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.content == msgspec.json.encode(whole(path, BODIES[path], Answer()))

    run(scenario)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_a_stream_comes_back_byte_for_byte(path: str, options: dict[str, object]) -> None:
    """No event is added, dropped or rewritten; usage comes exactly when it was asked for (dialects.md 4.3.1)."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path, stream=True, **options)

        assert response.headers["content-type"].startswith("text/event-stream")
        assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
        assert response.content == b"".join(stream(path, {**BODIES[path], **options}, Answer()))

    run(scenario)


def test_the_neuron_gets_the_client_s_bytes() -> None:
    """A name that is no alias leaves the body alone."""
    body = b'{ "messages":[{"content":"hi","role":"user"}], "z": 1.10 ,"model":"demo"}'

    async def scenario(rig: Rig) -> None:
        await rig.post_raw(CHAT, body, **{"x-request-id": "mine", "authorization": "Bearer secret"})
        (seen,) = rig.neuron.seen

        assert seen.raw == body
        assert seen.headers["x-request-id"] == "mine"
        assert "authorization" not in seen.headers

    run(scenario)


def test_an_alias_is_resolved_in_the_body_and_nowhere_else() -> None:
    """The neuron knows ids only."""

    async def scenario(rig: Rig) -> None:
        await rig.post_raw(CHAT, b'{"z":1.10,"model":"alias","messages":[]}')

        assert rig.neuron.seen[0].raw == b'{"z":1.10,"model":"org/demo","messages":[]}'

    run(scenario)


@pytest.mark.parametrize("path", PATHS)
def test_an_answer_names_the_model_as_the_client_did(path: str) -> None:
    """In both forms, and nothing else of it changes."""

    async def scenario(rig: Rig) -> None:
        body = {**BODIES[path], "model": "alias"}
        answer = await rig.post(path, model="alias")
        streamed = await rig.post(path, model="alias", stream=True)

        assert answer.content == msgspec.json.encode(whole(path, body, Answer()))
        assert streamed.content == b"".join(stream(path, body, Answer()))

    run(scenario)


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_is_recorded_with_its_tokens(path: str) -> None:
    """Nothing is known of its first token, so nothing is told."""

    async def scenario(rig: Rig) -> None:
        await rig.post(path, model="alias")
        (record,) = rig.metrics.records

        assert (record.model, record.node, record.outcome, record.status) == ("org/demo", "one", "ok", 200)
        assert record.dialect == path.removeprefix("/v1/").split("/")[0]
        assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (7, 2, 3)
        assert (record.ttft_seconds, record.decode_seconds) == (None, None)
        assert list(record.phases) == ["wait"]

    run(scenario, Answer(cached=3))


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_is_recorded_with_its_tokens(path: str) -> None:
    """Also when the client did not ask for usage (wire.md 2.9.11)."""

    async def scenario(rig: Rig) -> None:
        await rig.post(path, stream=True)
        (record,) = rig.metrics.records

        assert (record.outcome, record.status) == ("ok", 200)
        assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (7, 2, 3)
        assert record.ttft_seconds is not None
        assert record.decode_seconds is not None
        assert record.ttft_seconds + record.decode_seconds == pytest.approx(record.seconds)
        assert sum(record.phases.values()) == pytest.approx(record.seconds)

    run(scenario, Answer(cached=3))


def test_tokens_are_told_by_a_node_that_has_the_tokenizer() -> None:
    """On vLLM's paths, loaded or not; no request that metrics count, nor one that a stranger's page may send."""

    async def scenario(rig: Rig) -> None:
        tokens = await rig.client.post("/tokenize", json={"model": "alias", "prompt": "a b"})
        words = await rig.client.post("/detokenize", json={"model": "alias", "tokens": [1, 2]})
        unknown = await rig.client.post("/detokenize", json={"model": "dema", "tokens": [1]})
        page = await rig.client.post("/tokenize", json={"model": "demo"}, headers={"origin": "http://evil.example"})

        assert tokens.json() == {"count": 2, "tokens": [0, 1], "max_model_len": 8192}
        assert words.json() == {"prompt": "1 2"}
        assert [seen.body["model"] for seen in rig.neuron.seen] == ["org/demo", "org/demo"]
        assert (unknown.status_code, page.status_code) == (404, 403)
        assert (rig.fleet.acquired, rig.metrics.records) == (0, [])

    run(scenario)


def test_a_stream_without_a_token_has_no_first_token() -> None:
    """The role chunk is none (wire.md 2.9.10)."""

    async def scenario(rig: Rig) -> None:
        await rig.post(CHAT, stream=True)

        assert rig.metrics.records[0].ttft_seconds is None

    run(scenario, Answer(deltas=()))


def test_a_stream_s_time_ends_with_its_last_byte() -> None:
    """Not with its headers (wire.md 2.9.11): there is no record before."""

    async def scenario(rig: Rig) -> None:
        seen = 0
        async for _ in rig.stream(CHAT):
            seen += 1
            assert rig.metrics.records == []

        assert seen > 1
        assert len(rig.metrics.records) == 1

    run(scenario)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("streaming", [False, True])
def test_the_neuron_s_refusal_keeps_status_code_and_retry_after(path: str, streaming: bool) -> None:
    """A stream that was refused at once has its own status, too."""
    envelope = b'{"error":{"message":"full","type":"rate_limit_error","code":"rate_limit_exceeded","param":null,"q":3}}'

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path, stream=streaming)

        assert response.status_code == 503
        assert response.headers["retry-after"] == "8"
        assert response.json() == msgspec.json.decode(envelope)
        assert rig.metrics.records[0].outcome == "error"

    run(scenario, Answer(refusal=(503, envelope, {"retry-after": "8"})))


@pytest.mark.parametrize(
    "refusal", [(502, b"<html>bad</html>", {}), (302, b"", {"location": "http://x"}), (200, b"", {})]
)
@pytest.mark.parametrize("path", PATHS)
def test_an_answer_that_is_none_is_the_neuron_s_fault(path: str, refusal: tuple[int, bytes, dict[str, str]]) -> None:
    """Pages of other programs, redirects, and JSON where a stream was asked for."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(path, stream=True)

        assert response.status_code == 502
        assert response.json()["error"]["code"] == "upstream_malformed_response"

    run(scenario, Answer(refusal=refusal))


@pytest.mark.parametrize("answer", [Answer(dies_after=1), Answer(unfinished=True), Answer(dies_after=0)])
def test_a_neuron_that_dies_in_a_stream_is_an_error_event(answer: Answer) -> None:
    """A broken line and a silent end both say so, after everything that came before (wire.md 2.9.7)."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(CHAT, stream=True)
        *before, last = payloads(response.content)

        assert response.status_code == 200
        assert last["error"]["code"] == "upstream_read_failed"
        assert all("error" not in chunk for chunk in before)
        assert b"[DONE]" not in response.content
        assert rig.metrics.records[0].outcome == "error"

    run(scenario, answer)


def test_the_neuron_s_own_error_event_goes_through() -> None:
    """It is not told twice."""
    said = {"message": "engine died", "type": "api_error", "code": "service_unavailable", "param": None}

    async def scenario(rig: Rig) -> None:
        response = await rig.post(CHAT, stream=True)

        assert [chunk["error"] for chunk in payloads(response.content) if "error" in chunk] == [said]
        assert rig.metrics.records[0].outcome == "error"

    run(scenario, Answer(error_after=(1, said)))
