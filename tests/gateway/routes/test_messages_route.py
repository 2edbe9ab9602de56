"""/v1/messages over a neuron's chat, and the count of a prompt's tokens. Lines are dialects.md 4.1's."""

import msgspec
import pytest

from cortex_gateway.config import GatewayConfig
from tests.fakes.gateway_rig import BODIES, HI, MESSAGES, Rig, events, payloads, run
from tests.fakes.neuron_double import Answer, NeuronDouble

COUNT = "/v1/messages/count_tokens"
TOOL_CALL = {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
RICH = Answer(
    deltas=({"reasoning_content": "hm", "reasoning": "hm"}, {"content": "Hi"}, TOOL_CALL), finish="tool_calls", cached=3
)


def test_a_message_as_a_whole() -> None:
    """Thinking, text, the call, and what it cost."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(MESSAGES, model="alias")
        message = response.json()

        assert response.status_code == 200
        assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
        assert (message["model"], message["stop_reason"]) == ("alias", "tool_use")
        assert (message["usage"]["input_tokens"], message["usage"]["cache_read_input_tokens"]) == (4, 3)
        assert rig.neuron.seen[0].body["model"] == "org/demo"

    run(scenario, RICH)


def test_a_message_as_a_stream() -> None:
    """Each event is named by its type, the prompt is counted first, and there is one end."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(MESSAGES, stream=True)
        parsed = payloads(response.content)

        assert [event.event for event in events(response.content)] == [payload["type"] for payload in parsed]
        assert parsed[0]["message"]["usage"]["input_tokens"] == 4
        assert parsed[-2]["delta"]["stop_reason"] == "tool_use"
        assert parsed[-1] == {"type": "message_stop"}

    run(scenario, RICH)


@pytest.mark.parametrize("streaming", [False, True])
def test_it_is_recorded_like_any_other(streaming: bool) -> None:
    """Tokens in both forms, the first token in a stream (wire.md 2.9.11)."""

    async def scenario(rig: Rig) -> None:
        await rig.post(MESSAGES, stream=streaming)
        (record,) = rig.metrics.records

        assert (record.dialect, record.outcome, record.status) == ("messages", "ok", 200)
        assert (record.prompt_tokens, record.completion_tokens, record.cached_tokens) == (7, 3, 3)
        assert (record.ttft_seconds is not None) is streaming

    run(scenario, RICH)


def test_ids_never_repeat() -> None:
    """Line 30."""

    async def scenario(rig: Rig) -> None:
        found = {(await rig.post(MESSAGES)).json()["id"] for _ in range(20)}
        found |= {payloads((await rig.post(MESSAGES, stream=True)).content)[0]["message"]["id"] for _ in range(20)}

        assert len(found) == 40
        assert all(name.startswith("msg_") for name in found)

    run(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "anything", "anthropic-version": "2023-06-01", "anthropic-beta": "made-up-2099-01-01"},
        {"authorization": "Bearer anything"},
        {},
    ],
)
def test_any_key_any_version_any_beta(headers: dict[str, str]) -> None:
    """Lines 13 and 23: accepted, and `?beta=true` with them."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post(f"{MESSAGES}?beta=true", json=BODIES[MESSAGES], headers=headers)

        assert response.status_code == 200

    run(scenario)


@pytest.mark.parametrize("answer", [Answer(dies_after=1), Answer(unfinished=True)])
def test_a_neuron_that_dies_is_an_error_event(answer: Answer) -> None:
    """Line 21: and no message_stop."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(MESSAGES, stream=True)
        last = payloads(response.content)[-1]

        assert last["type"] == "error"
        assert last["error"]["type"] == "api_error"
        assert last["request_id"] == response.headers["x-request-id"]
        assert b"message_stop" not in response.content
        assert rig.metrics.records[0].outcome == "error"

    run(scenario, answer)


def test_the_neuron_s_own_error_event_becomes_ours() -> None:
    """In the words it used."""
    said = {"message": "engine died", "type": "api_error", "code": "service_unavailable"}

    async def scenario(rig: Rig) -> None:
        last = payloads((await rig.post(MESSAGES, stream=True)).content)[-1]

        assert last["error"] == {"type": "overloaded_error", "message": "engine died"}

    run(scenario, Answer(error_after=(1, said)))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_overlong_prompt_says_what_makes_clients_compact(streaming: bool) -> None:
    """Line 19: before the stream begins, with its status."""
    error = {
        "message": "This model's maximum context length is 8192 tokens. …",
        "type": "invalid_request_error",
        "code": "context_length_exceeded",
        "param": "messages",
        "prompt_len": 9000,
        "max": 8192,
    }

    async def scenario(rig: Rig) -> None:
        response = await rig.post(MESSAGES, stream=streaming)

        assert response.status_code == 400
        assert response.json()["error"] == {
            "type": "invalid_request_error",
            "message": "prompt is too long: 9000 tokens > 8192 maximum",
        }

    run(scenario, Answer(refusal=(400, msgspec.json.encode({"error": error}), {})))


def test_a_refusal_keeps_its_retry_after() -> None:
    """wire.md 2.9.6."""
    envelope = b'{"error":{"message":"full","type":"rate_limit_error","code":"rate_limit_exceeded","param":null}}'

    async def scenario(rig: Rig) -> None:
        response = await rig.post(MESSAGES)

        assert (response.status_code, response.headers["retry-after"]) == (503, "4")
        assert response.json()["error"]["type"] == "overloaded_error"

    run(scenario, Answer(refusal=(503, envelope, {"retry-after": "4"})))


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"choices":[]}'])
def test_an_answer_that_is_none_is_the_neuron_s_fault(raw: bytes) -> None:
    """And no empty message."""

    async def scenario(rig: Rig) -> None:
        response = await rig.post(MESSAGES)

        assert response.status_code == 502
        assert response.json()["error"]["type"] == "api_error"
        assert rig.metrics.records[0].outcome == "error"

    run(scenario, Answer(refusal=(200, raw, {})))


def test_a_prompt_is_counted_without_a_lease() -> None:
    """Line 27: it can never load a model, and it is no generation that metrics would count."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post(COUNT, json={"model": "alias", "messages": HI, "system": "s"})
        (seen,) = rig.neuron.seen

        assert response.json() == {"input_tokens": len(msgspec.json.encode(seen.body["messages"]).split())}
        assert (seen.path, seen.body["model"]) == ("/tokenize", "org/demo")
        assert rig.fleet.acquired == 0
        assert rig.metrics.records == []

    run(scenario)


@pytest.mark.parametrize("stable", [True, False])
def test_a_prompt_begins_as_the_one_before_it(stable: bool) -> None:
    """Claude Code's billing line changes with every request; `[gateway] stabilize_prompts` says whether it is passed on."""

    async def scenario(rig: Rig) -> None:
        for number in range(2):
            system = [
                {"type": "text", "text": f"x-anthropic-billing-header: cch={number};"},
                {"type": "text", "text": "s"},
            ]
            await rig.post(MESSAGES, system=system)
            await rig.client.post(COUNT, json={"model": "demo", "messages": HI, "system": system})
        prompts = [seen.body["messages"] for seen in rig.neuron.seen]

        assert (prompts[0] == prompts[2], prompts[1] == prompts[3]) == (stable, stable)
        assert prompts[0] == prompts[1]

    run(scenario, settings=GatewayConfig(hosts=("gw",), stabilize_prompts=stable))


def test_the_first_node_that_has_the_files_counts() -> None:
    """A node that is down or has none is stepped over."""
    without, having = NeuronDouble(tokenizers=[]), NeuronDouble(tokenizers=["demo"])

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post(COUNT, json={"model": "demo", "messages": HI})

        assert response.status_code == 200
        assert (len(without.seen), len(having.seen)) == (1, 1)

    run(scenario, nodes={"down": None, "without": without, "having": having})


def test_without_any_files_it_says_how_to_get_them() -> None:
    """503, not a guess."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post(COUNT, json={"model": "demo", "messages": HI})

        assert response.status_code == 503
        assert "load the model once" in response.json()["error"]["message"]

    run(scenario, nodes={"one": NeuronDouble(tokenizers=[])})


def test_counting_for_an_unknown_model_is_404() -> None:
    """As a request to it would be."""

    async def scenario(rig: Rig) -> None:
        response = await rig.client.post(COUNT, json={"model": "dema", "messages": HI})

        assert response.status_code == 404
        assert "demo" in response.json()["error"]["message"]

    run(scenario)
