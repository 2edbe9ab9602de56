"""Every wrong request gets its own status, code and param in the one envelope, and harms nobody."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron_jax.daemon.fields import decode_object
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.schema import read_chat, read_completion, read_tokenize
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron

USER = [{"role": "user", "content": "hi"}]


TOOL = {"type": "function", "function": {"name": "f"}}


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    functions = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": functions}}


def call(function: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]}]


CHAT = [
    ({"model": None}, "missing_model_field", "model"),
    ({"model": ""}, "missing_model_field", "model"),
    ({"model": 3}, "invalid_request_body", "model"),
    ({"model": "m" * 513}, "invalid_request_body", "model"),
    ({"messages": None}, "invalid_request_body", "messages"),
    ({"messages": []}, "invalid_request_body", "messages"),
    ({"messages": "hi"}, "invalid_request_body", "messages"),
    ({"messages": ["hi"]}, "invalid_request_body", "messages[0]"),
    ({"messages": [{"role": "robot"}]}, "invalid_request_body", "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, "invalid_request_body", "messages[0].content"),
    ({"messages": [{"role": "user", "content": [3]}]}, "invalid_request_body", "messages[0].content[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "unsupported_parameter",
        "messages[0].content[0].type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "invalid_request_body",
        "messages[0].content[0].text",
    ),
    ({"messages": call({})}, "invalid_request_body", "messages[0].tool_calls[0].function.name"),
    (
        {"messages": call({"name": "f", "arguments": 1})},
        "invalid_request_body",
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"stream": "yes"}, "invalid_request_body", "stream"),
    ({"parallel_tool_calls": "no"}, "invalid_request_body", "parallel_tool_calls"),
    ({"stream_options": []}, "invalid_request_body", "stream_options"),
    ({"stream_options": {"include_usage": 1}}, "invalid_request_body", "stream_options.include_usage"),
    ({"max_tokens": 0}, "invalid_request_body", "max_tokens"),
    ({"max_tokens": -1}, "invalid_request_body", "max_tokens"),
    ({"max_tokens": 10**30}, "invalid_request_body", "max_tokens"),
    ({"max_tokens": 1.5}, "invalid_request_body", "max_tokens"),
    ({"max_tokens": True}, "invalid_request_body", "max_tokens"),
    ({"max_completion_tokens": "9"}, "invalid_request_body", "max_completion_tokens"),
    ({"min_tokens": 9, "max_tokens": 8}, "invalid_request_body", "min_tokens"),
    ({"temperature": -0.1}, "invalid_request_body", "temperature"),
    ({"temperature": 2.1}, "invalid_request_body", "temperature"),
    ({"temperature": True}, "invalid_request_body", "temperature"),
    ({"temperature": "hot"}, "invalid_request_body", "temperature"),
    ({"temperature": 10**400}, "invalid_request_body", "temperature"),
    ({"top_p": 0}, "invalid_request_body", "top_p"),
    ({"top_p": 1.1}, "invalid_request_body", "top_p"),
    ({"top_k": -2}, "invalid_request_body", "top_k"),
    ({"min_p": 1.1}, "invalid_request_body", "min_p"),
    ({"presence_penalty": 2.1}, "invalid_request_body", "presence_penalty"),
    ({"frequency_penalty": -2.1}, "invalid_request_body", "frequency_penalty"),
    ({"repetition_penalty": 0}, "invalid_request_body", "repetition_penalty"),
    ({"seed": 2**64}, "invalid_request_body", "seed"),
    ({"seed": -(2**63) - 1}, "invalid_request_body", "seed"),
    ({"n": 0}, "invalid_request_body", "n"),
    ({"n": 17}, "invalid_request_body", "n"),
    ({"stop": ["a"] * 17}, "invalid_request_body", "stop"),
    ({"stop": ["a", ""]}, "invalid_request_body", "stop"),
    ({"stop": 3}, "invalid_request_body", "stop"),
    ({"stop_token_ids": [-1]}, "invalid_request_body", "stop_token_ids"),
    ({"logit_bias": {"x": 1}}, "invalid_request_body", "logit_bias.x"),
    ({"logit_bias": {"1": 101}}, "invalid_request_body", "logit_bias.1"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, "invalid_request_body", "logit_bias"),
    ({"logprobs": 3}, "invalid_request_body", "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_request_body", "top_logprobs"),
    ({"top_logprobs": 2}, "invalid_request_body", "top_logprobs"),
    ({"tools": [{"type": "web"}]}, "invalid_request_body", "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "invalid_request_body", "tools[0].function"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]},
        "invalid_request_body",
        "tools[0].function.strict",
    ),
    ({"tool_choice": "required"}, "invalid_request_body", "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "invalid_request_body", "tool_choice.function.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "unsupported_parameter", "tool_choice.type"),
    (
        {"tools": [TOOL], "tool_choice": allowed("f", mode="any")},
        "invalid_request_body",
        "tool_choice.allowed_tools.mode",
    ),
    (
        {"tools": [TOOL], "tool_choice": allowed("nobody")},
        "invalid_request_body",
        "tool_choice.allowed_tools.tools[0].function",
    ),
    ({"tools": [TOOL], "tool_choice": allowed()}, "invalid_request_body", "tool_choice.allowed_tools.tools"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}},
        "invalid_request_body",
        "tool_choice.allowed_tools.mode",
    ),
    ({"tool_choice": "sometimes"}, "invalid_request_body", "tool_choice"),
    ({"response_format": {"type": "structural_tag"}}, "unsupported_parameter", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "invalid_request_body", "response_format.json_schema"),
    ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "invalid_request_body", "guided_regex"),
    ({"structured_outputs": {"structural_tag": "x"}}, "unsupported_parameter", "structured_outputs.structural_tag"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "invalid_request_body", "structured_outputs"),
    ({"guided_choice": []}, "invalid_request_body", "guided_choice"),
    ({"grammar": ""}, "invalid_request_body", "grammar"),
    ({"best_of": 2}, "unsupported_parameter", "best_of"),
    ({"echo": True}, "unsupported_parameter", "echo"),
    ({"suffix": "x"}, "unsupported_parameter", "suffix"),
    ({"prompt_logprobs": 1, "stream": True}, "invalid_request_body", "prompt_logprobs"),
    ({"prompt_logprobs": 1, "guided_regex": "a"}, "invalid_request_body", "guided_regex"),
    ({"prompt_logprobs": 1, "thinking_token_budget": 5}, "invalid_request_body", "prompt_logprobs"),
    ({"guided_json": 3}, "invalid_request_body", "guided_json"),
    ({"chat_template_kwargs": 1}, "invalid_request_body", "chat_template_kwargs"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "invalid_request_body", "add_generation_prompt"),
    ({"continue_final_message": True}, "invalid_request_body", "continue_final_message"),
]
COMPLETIONS = [
    ({"prompt": None}, "invalid_request_body", "prompt"),
    ({"prompt": []}, "invalid_request_body", "prompt"),
    ({"prompt": 3}, "invalid_request_body", "prompt"),
    ({"prompt": ["a", 3]}, "invalid_request_body", "prompt[1]"),
    ({"prompt": [-1]}, "invalid_request_body", "prompt"),
    ({"prompt": ["a"] * 10, "n": 13}, "invalid_request_body", "prompt"),
    ({"logprobs": True}, "invalid_request_body", "logprobs"),
    ({"logprobs": 21}, "invalid_request_body", "logprobs"),
    ({"echo": True, "logprobs": 1, "min_tokens": 1, "max_tokens": 5}, "invalid_request_body", "min_tokens"),
    ({"echo": True, "logprobs": 1, "presence_penalty": 1}, "invalid_request_body", "presence_penalty"),
    ({"echo": True, "logprobs": 1, "guided_regex": "a"}, "invalid_request_body", "guided_regex"),
    ({"echo": True, "logprobs": 1, "suffix": "x"}, "invalid_request_body", "suffix"),
    ({"max_tokens": 0}, "invalid_request_body", "max_tokens"),
    ({"echo": "yes"}, "invalid_request_body", "echo"),
    ({"prompt_logprobs": -1}, "invalid_request_body", "prompt_logprobs"),
    ({"prompt_logprobs": 21}, "invalid_request_body", "prompt_logprobs"),
    ({"prompt_logprobs": 0, "stream": True}, "invalid_request_body", "prompt_logprobs"),
    ({"prompt_logprobs": 0, "suffix": "x"}, "invalid_request_body", "suffix"),
    ({"suffix": 7}, "invalid_request_body", "suffix"),
    ({"prompt": [1], "suffix": "x"}, "invalid_request_body", "suffix"),
    ({"best_of": 1, "n": 2}, "invalid_request_body", "best_of"),
    ({"best_of": 17}, "invalid_request_body", "best_of"),
    ({"best_of": 2, "stream": True}, "invalid_request_body", "best_of"),
    ({"prompt": ["a"] * 10, "best_of": 13}, "invalid_request_body", "prompt"),
]


@pytest.mark.parametrize(("change", "code", "param"), CHAT)
def test_a_wrong_chat_field_is_named(change: Mapping[str, Any], code: str, param: str) -> None:
    """400 with the path of the field; nothing else is looked at."""
    with pytest.raises(Problem) as raised:
        read_chat({"model": "m", "messages": USER, **change})

    assert (raised.value.status, raised.value.code, raised.value.param) == (400, code, param)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url"])
def test_what_is_no_text_is_refused_by_name(kind: str) -> None:
    """The client's user sees what his model cannot read."""
    with pytest.raises(Problem, match=f"content of type '{kind}' is not supported"):
        read_chat({"model": "m", "messages": [{"role": "user", "content": [{"type": kind}]}]})


@pytest.mark.parametrize(("change", "code", "param"), COMPLETIONS)
def test_a_wrong_completion_field_is_named(change: Mapping[str, Any], code: str, param: str) -> None:
    """400 with the path of the field."""
    with pytest.raises(Problem) as raised:
        read_completion({"model": "m", "prompt": "hi", **change})

    assert (raised.value.status, raised.value.code, raised.value.param) == (400, code, param)


def test_tokenize_wants_a_prompt_or_messages() -> None:
    """400 naming messages when there is neither."""
    with pytest.raises(Problem, match="messages must be a list"):
        read_tokenize({"model": "m"})


@pytest.mark.parametrize(
    "harmless",
    [
        {"response_format": {"type": "text"}},
        {"best_of": 1, "suffix": "", "echo": False},
        {"user": "u", "metadata": {}, "service_tier": "auto", "parallel_tool_calls": True, "store": True},
        {"temperature": None, "stop": None, "tools": None, "tool_choice": None, "logit_bias": None, "n": None},
        {"tools": [], "tool_choice": "none"},
        {"top_k": -1, "seed": -(2**63)},
    ],
)
def test_harmless_fields_are_accepted(harmless: Mapping[str, Any]) -> None:
    """Unknown fields, null, and values that change nothing are no reason to refuse."""
    assert read_chat({"model": "m", "messages": USER, **harmless}).params.n == 1


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63, 2**64 - 1])
def test_seeds_of_any_sign_become_uint64(seed: int) -> None:
    """An int64 seed maps to its two's complement."""
    assert read_chat({"model": "m", "messages": USER, "seed": seed}).params.seed == seed % 2**64


NO_JSON = {
    "empty": b"",
    "cut short": b"{",
    "trailing": b'{"a":1} x',
    "nan": b'{"a":NaN}',
    "infinity": b'{"a":Infinity}',
    "overflow": b'{"a":1e999}',
    "not utf-8": b'{"a":"\xff"}',
    "nested": b"[" * 100_000,
    "lone surrogate": b'{"a":"\\ud800"}',
    "endless number": b'{"a":' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    """malformed_json, whatever is wrong with it: cut short, NaN, nesting, bad UTF-8, numbers nobody can hold."""
    with pytest.raises(Problem) as raised:
        decode_object(body)

    assert (raised.value.status, raised.value.code) == (400, "malformed_json")


@pytest.mark.parametrize("body", [b"[]", b"3", b'"x"', b"null"])
def test_json_that_is_no_object_is_an_invalid_body(body: bytes) -> None:
    """A valid JSON value of another kind is not malformed."""
    with pytest.raises(Problem) as raised:
        decode_object(body)

    assert raised.value.code == "invalid_request_body"


def assert_envelope(answer: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert {"message", "type", "code", "param"} <= error.keys()
    assert error["code"] == code
    assert error["message"]
    return error


def test_every_refusal_of_a_live_neuron_is_an_envelope(tmp_path: Path) -> None:
    """404, 405, 413, 422 and the 400s that need a model: status, code, type and extras as documented."""

    async def use(neuron: LiveNeuron) -> None:
        post, get = neuron.http.post, neuron.http.get
        assert_envelope(await get("/nowhere"), 404, "not_found")
        assert_envelope(await post("/models/x/nothing"), 405, "method_not_allowed")
        assert_envelope(await get("/models/x/nothing"), 404, "not_found")
        assert_envelope(await get("/v1/chat/completions"), 405, "method_not_allowed")
        assert_envelope(await post("/v1/chat/completions", content=b"{"), 400, "malformed_json")
        big = assert_envelope(
            await post("/v1/chat/completions", content=b"x" * (1 << 20) + b"x"), 413, "body_too_large"
        )
        assert big["limit_bytes"] == 1 << 20
        unknown = await post("/v1/completions", json={"model": "org/tin", "prompt": "x"})
        assert assert_envelope(unknown, 404, "model_not_found")["nearest"] == [MODEL]
        assert_envelope(await neuron.chat("refuse to render"), 422, "template_render_failed")
        assert_envelope(await neuron.chat("x", logit_bias={"261": 1}), 400, "invalid_request_body")
        assert_envelope(await neuron.chat("x", stop_token_ids=[999]), 400, "invalid_request_body")
        empty = await post("/v1/completions", json={"model": MODEL, "prompt": ""})
        assert_envelope(empty, 400, "invalid_request_body")
        outside = await post("/v1/completions", json={"model": MODEL, "prompt": [261]})
        assert "vocabulary" in assert_envelope(outside, 400, "invalid_request_body")["message"]
        assert_envelope(await neuron.chat("x", min_tokens=5000), 400, "invalid_request_body")
        assert (await neuron.chat("still fine")).json()["choices"][0]["message"]["content"] == "still fine"

    with_neuron(tmp_path, use)


def test_a_prompt_over_the_context_is_refused_with_the_words_clients_match(tmp_path: Path) -> None:
    """context_length_exceeded with prompt_len and max, at exactly the limit; one token less is answered."""

    async def use(neuron: LiveNeuron) -> None:
        fits = await neuron.chat("x" * 60)  # 3 template tokens: one place is left for the answer
        assert fits.json()["usage"] == {
            "prompt_tokens": 63,
            "completion_tokens": 1,
            "total_tokens": 64,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        assert fits.json()["choices"][0]["finish_reason"] == "length"
        error = assert_envelope(await neuron.chat("x" * 61), 400, "context_length_exceeded")
        assert (error["prompt_len"], error["max"]) == (64, 64)
        assert error["message"] == (
            "This model's maximum context length is 64 tokens. However, your messages resulted in 64 tokens. "
            "Please reduce the length of the messages."
        )

    with_neuron(tmp_path, use, max_context=64)


def test_tools_are_told_in_words_where_the_template_has_no_place_for_them(tmp_path: Path) -> None:
    """Neither refused nor dropped: the prompt is as much longer as it takes to tell of them, and /models says so."""

    async def use(neuron: LiveNeuron) -> None:
        plain = (await neuron.chat("x", tools=[TOOL], tool_choice="none")).json()["usage"]["prompt_tokens"]
        told = (await neuron.chat("x", tools=[TOOL])).json()["usage"]["prompt_tokens"]
        shown = {one["id"]: one for one in (await neuron.http.get("/models")).json()}
        assert told > plain + 100
        assert (shown[MODEL]["tool_call"], shown[MODEL]["tool_format"]) == (True, "generic")

    with_neuron(tmp_path, use, tools=False)


def test_a_chunked_body_over_the_cap_is_refused_too(tmp_path: Path) -> None:
    """Without a Content-Length the cap holds as well."""

    async def endless() -> Any:
        for _ in range(40):
            yield b" " * (1 << 16)
            await asyncio.sleep(0)

    async def use(neuron: LiveNeuron) -> None:
        assert_envelope(await neuron.http.post("/tokenize", content=endless()), 413, "body_too_large")

    with_neuron(tmp_path, use, load=False)


def test_a_request_id_is_echoed(tmp_path: Path) -> None:
    """What the caller sends as x-request-id comes back, on errors as well."""

    async def use(neuron: LiveNeuron) -> list[str]:
        headers = {"x-request-id": "abc-1"}
        answers = [await neuron.http.get(path, headers=headers) for path in ("/version", "/nowhere")]
        return [answer.headers["x-request-id"] for answer in answers]

    assert with_neuron(tmp_path, use, load=False) == ["abc-1", "abc-1"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("embeddings", {"input": "x"}),
        ("rerank", {"query": "x", "documents": ["x"]}),
        ("score", {"text_1": "x", "text_2": "x"}),
    ],
)
def test_a_model_that_generates_makes_no_vectors(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """It is refused by name, with what it can be asked for."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.http.post(f"/v1/{path}", json={"model": MODEL, **body})

        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "unsupported_model"
        assert answer.json()["error"]["capabilities"] == ["text"]
        assert "generates text" in answer.json()["error"]["message"]

    with_neuron(tmp_path, use)
