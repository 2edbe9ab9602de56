"""Whatever JSON a client or a neuron sends, the decoders answer it or refuse it in words; nothing else ever comes out."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.dialects.anthropic import request as messages
from cortex_gateway.dialects.chat import ChatDecoder, decode_non_streaming
from cortex_gateway.dialects.dialect import AnswerId, Earlier, Kept
from cortex_gateway.dialects.failure import RefusedError
from cortex_gateway.dialects.ollama import request as ollama
from cortex_gateway.dialects.openai import errors as openai_errors
from cortex_gateway.dialects.openai import request as openai_request
from cortex_gateway.dialects.openai.relay import non_streaming_usage
from cortex_gateway.dialects.responses import request as responses
from cortex_gateway.dialects.responses.conversations import ROUTES as CONVERSATIONS
from tests.fakes.any_json import any_json, objects

MESSAGES_WORDS = (
    *("model", "messages", "role", "content", "type", "text", "tools", "name", "input_schema", "system", "tool_choice"),
    *("thinking", "signature", "tool_use", "tool_result", "tool_use_id", "input", "id", "user", "assistant", "stream"),
    *("max_tokens", "stop_sequences", "disable_parallel_tool_use", "budget_tokens", "enabled", "output_config", "any"),
)
RESPONSES_WORDS = (
    *("model", "input", "role", "content", "type", "text", "tools", "name", "instructions", "tool_choice", "user"),
    *("message", "function", "custom", "namespace", "function_call", "function_call_output", "call_id", "output", "id"),
    *("reasoning", "summary", "encrypted_content", "item_reference", "compaction", "additional_tools", "arguments"),
    *("format", "json_schema", "schema", "allowed_tools", "mode", "auto", "include", "metadata", "effort", "stream"),
)
OLLAMA_WORDS = (
    *(
        "model",
        "messages",
        "role",
        "content",
        "tools",
        "function",
        "name",
        "parameters",
        "arguments",
        "tool_calls",
        "id",
    ),
    *(
        "thinking",
        "images",
        "tool_name",
        "tool_call_id",
        "user",
        "assistant",
        "tool",
        "system",
        "prompt",
        "suffix",
        "raw",
    ),
    *(
        "options",
        "num_predict",
        "seed",
        "stop",
        "temperature",
        "top_k",
        "repeat_last_n",
        "format",
        "json",
        "think",
        "low",
    ),
    *("keep_alive", "0s", "stream", "context", "template", "logprobs"),
)
CHUNK_WORDS = (
    *(
        "text",
        "choices",
        "delta",
        "content",
        "reasoning_content",
        "tool_calls",
        "index",
        "id",
        "function",
        "name",
        "arguments",
    ),
    *(
        "finish_reason",
        "stop",
        "length",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "error",
        "message",
        "stop_reason",
    ),
)


def decoded(body: bytes, *, counting: bool = False) -> Any:
    try:
        return messages.decode(body, counting=counting)
    except RefusedError as refused:
        return refused.failure


@pytest.mark.parametrize("counting", [False, True])
@given(any_json(MESSAGES_WORDS))
def test_any_json_as_a_messages_body(counting: bool, value: Any) -> None:
    """A request that a neuron can be sent, or a 4xx with words."""
    found = decoded(msgspec.json.encode(value), counting=counting)
    if isinstance(found, messages.MessagesRequest):
        assert msgspec.json.decode(found.neuron_body("m"))["model"] == "m"
    else:
        assert 400 <= found.status < 500
        assert found.message


@given(objects(MESSAGES_WORDS), objects(MESSAGES_WORDS))
def test_any_turn_and_any_tool_in_a_good_body(turn: Any, tool: Any) -> None:
    """The rest of the body is right, so that the decoder gets to what is not."""
    body = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", **turn}], "tools": [{"name": "f", **tool}]}
    found = decoded(msgspec.json.encode(body))

    assert isinstance(found, messages.MessagesRequest) or 400 <= found.status < 500


@given(objects(RESPONSES_WORDS), objects(RESPONSES_WORDS), objects(RESPONSES_WORDS))
def test_any_item_and_any_tool_in_a_responses_body(top: Any, item: Any, tool: Any) -> None:
    """A request that a neuron can be sent, or a 4xx with words."""
    body = {
        **top,
        "model": "m",
        "input": [{"role": "user", "content": "x"}, item],
        "tools": [{"type": "function", **tool}],
    }
    for value in (top, body):
        found = _asked(msgspec.json.encode(value))
        if isinstance(found, responses.ResponsesRequest):
            assert msgspec.json.decode(found.neuron_body("m"))["model"] == "m"
        else:
            assert 400 <= found.status < 500
            assert found.message


@given(any_json(RESPONSES_WORDS), objects(RESPONSES_WORDS), objects(RESPONSES_WORDS))
def test_any_items_of_a_conversation(value: Any, first: Any, second: Any) -> None:
    """They are kept, listed and gone on from, or refused with words; so is whatever else such a body may be."""
    for body in (value, {"items": [first]}, {"items": [{"role": "user", "content": "x", **first}, second]}):
        found = _conversation(msgspec.json.encode(body))
        if isinstance(found, Kept):
            told = msgspec.json.decode(CONVERSATIONS.items(found, {"limit": "100"}))["data"]
            assert all(isinstance(item["id"], str) for item in told)
            asked = responses.read(b'{"model": "m", "input": "x", "conversation": "conv_1"}')
            chat = responses.decode(asked, Earlier(conversation=found)).chat
            assert chat["messages"][-1]["role"] == "user"
        else:
            assert 400 <= found.status < 500
            assert found.message


def _conversation(raw: bytes) -> Any:
    """One that is begun with a body's items, and gets them once more."""
    try:
        begun = CONVERSATIONS.begin(raw, AnswerId("req_1", "7" * 32, 5))
        return CONVERSATIONS.add(raw, AnswerId("req_2", "8" * 32, 6)).make(begun)
    except RefusedError as refused:
        return refused.failure


def _asked(body: bytes) -> Any:
    try:
        return responses.decode(responses.read(body), Earlier())
    except RefusedError as refused:
        return refused.failure


def _of_ollama(read: Any, value: Any) -> Any:
    try:
        return read(msgspec.json.encode(value))
    except RefusedError as refused:
        return refused.failure


@pytest.mark.parametrize("read", [ollama.chat, ollama.generate])
@given(any_json(OLLAMA_WORDS), objects(OLLAMA_WORDS), objects(OLLAMA_WORDS), objects(OLLAMA_WORDS))
def test_any_json_as_ollama_s_bodies(read: Any, value: Any, top: Any, turn: Any, options: Any) -> None:
    """A request that a neuron can be sent, one that only loads the model, or a 4xx with words; alone and in a good body."""
    good = {"model": "m", "prompt": "x", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", **turn}]}
    for body in (value, {**top, **good, "options": options}, {**good, **top}):
        found = _of_ollama(read, body)
        if isinstance(found, ollama.OllamaRequest):
            assert found.fields is None or msgspec.json.decode(found.neuron_body("m"))["model"] == "m"
        else:
            assert 400 <= found.status < 500
            assert found.message


@given(any_json(OLLAMA_WORDS))
def test_any_json_as_a_body_of_show(value: Any) -> None:
    """A name, or a 400."""
    found = _of_ollama(ollama.shown, value)

    assert found if isinstance(found, str) else found.status == 400


@given(st.one_of(st.binary(max_size=40), any_json(("model", "stream")).map(msgspec.json.encode)))
def test_any_bytes_as_a_body_that_is_passed_on(body: bytes) -> None:
    """What is taken has a model and says whether it streams; addressed to another model, only that one value differs."""
    try:
        request = openai_request.read(body)
    except RefusedError:
        return
    before, after = msgspec.json.decode(body), msgspec.json.decode(request.addressed("other"))

    assert {**before, "model": "other"} == after


@given(any_json(CHUNK_WORDS))
def test_any_json_from_a_neuron(value: Any) -> None:
    """A stream's chunk and a non-streaming answer: events in legal order that end the stream, never an exception."""
    raw = msgspec.json.encode(value)
    decoder = ChatDecoder()
    streamed = [*decoder.feed(b"data: " + raw + b"\n\n"), *decoder.close()]
    non_streaming_usage(raw)
    openai_errors.read(500, raw)

    assert streamed
    assert decode_non_streaming(raw)
