"""Ollama's bodies become what a neuron reads, or are refused with the path of what is wrong."""

import json
from typing import Any

import pytest

from cortex_gateway.dialects.failure import RefusedError
from cortex_gateway.dialects.ollama import request
from cortex_gateway.dialects.ollama.request import OllamaRequest

HI = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SCHEMA = {"type": "object", "properties": {"z": {}, "a": {}}}


def chat(**fields: Any) -> OllamaRequest:
    return request.chat(json.dumps({"model": "m", "messages": HI, **fields}).encode())


def generate(**fields: Any) -> OllamaRequest:
    return request.generate(json.dumps({"model": "m", "prompt": "hi", **fields}).encode())


def posted(asked: OllamaRequest) -> Any:
    return json.loads(asked.neuron_body("id"))


def refused(read: Any, **fields: Any) -> tuple[int, str | None, str]:
    with pytest.raises(RefusedError) as error:
        read(**fields)
    failure = error.value.failure
    return failure.status, failure.param, failure.message


def test_it_streams_unless_it_is_told_not_to() -> None:
    """And a stream counts its prompt before the first token."""
    asked, quiet = chat(), chat(stream=False)

    assert (asked.stream, quiet.stream, chat(stream=None).stream) == (True, False, True)
    assert posted(asked)["stream"] is True
    assert posted(asked)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert posted(quiet) == {"model": "id", "messages": HI}


def test_options_have_the_neuron_s_names() -> None:
    """What Ollama takes for unset is unset; those of its runner, and unknown ones, are tolerated."""
    options = {
        "num_predict": 5.0,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "typical_p": 1.0,
        "seed": 7,
        "stop": ["a", "", "b"],
        "repeat_penalty": 1.2,
        "presence_penalty": 1.5,
        "frequency_penalty": 1.0,
        "num_ctx": 4096,
        "num_gpu": 1,
        "mirostat": 1,
        "made_up": {},
        "main_gpu": None,
    }
    said = posted(chat(stream=False, options=options))
    unset = posted(chat(stream=False, options={"num_predict": -1, "seed": -1, "stop": [], "top_k": None}))

    assert {key: said[key] for key in said if key not in ("model", "messages")} == {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "typical_p": 1.0,
        "seed": 7,
        "stop": ["a", "b"],
        "repetition_penalty": 1.2,
        "presence_penalty": 1.5,
        "frequency_penalty": 1.0,
    }
    assert unset == {"model": "id", "messages": HI}


@pytest.mark.parametrize(("span", "told"), [(64, True), (0, True), (-1, False), (None, False)])
def test_penalties_look_at_the_whole_text_and_that_is_said(span: int | None, told: bool) -> None:
    assert chat(options={"repeat_last_n": span}).dropped == ((request.WHOLE_TEXT,) if told else ())
    assert generate(options={"repeat_last_n": span}).dropped == ((request.WHOLE_TEXT,) if told else ())


@pytest.mark.parametrize(
    ("given", "form"),
    [
        (None, None),
        ("", None),
        ("json", {"type": "json_object"}),
        (SCHEMA, {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}),
    ],
)
@pytest.mark.parametrize("read", [chat, generate])
def test_format_is_the_response_format(read: Any, given: Any, form: Any) -> None:
    """With the keys of a schema in their order."""
    body = posted(read(format=given))

    assert json.dumps(body.get("response_format")) == json.dumps(form)


@pytest.mark.parametrize(
    ("think", "variables"),
    [
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("low", {"enable_thinking": True, "reasoning_effort": "low"}),
        (None, None),
    ],
)
@pytest.mark.parametrize("read", [chat, generate])
def test_think_is_for_the_template(read: Any, think: Any, variables: Any) -> None:
    assert posted(read(think=think)).get("chat_template_kwargs") == variables


def test_a_conversation_with_calls() -> None:
    """Arguments become text with their keys in order; calls and results without ids find each other by name and order."""
    call = {"function": {"name": "f", "arguments": {"z": 1, "a": "é"}}}
    other = {"function": {"name": "g", "index": 1}}
    result = {"role": "tool", "content": "1", "tool_name": "g"}
    messages = [
        {"role": "System", "content": "s"},
        {"role": "user", "content": "hi", "images": []},
        {"role": "assistant", "thinking": "hm", "tool_calls": [call, other, call]},
        *[result, {**result, "tool_name": "f"}, {"role": "tool", "content": "3"}],
    ]
    system, user, assistant, *results = posted(chat(messages=messages))["messages"]

    assert (system["role"], user) == ("system", {"role": "user", "content": "hi"})
    assert (assistant["content"], assistant["reasoning_content"]) == ("", "hm")
    assert [one["id"] for one in assistant["tool_calls"]] == ["call_0", "call_1", "call_2"]
    assert [one["function"]["arguments"] for one in assistant["tool_calls"]] == [
        '{"z":1,"a":"é"}',
        "{}",
        '{"z":1,"a":"é"}',
    ]
    assert [one["tool_call_id"] for one in results] == ["call_1", "call_0", "call_2"]
    assert [one.get("name") for one in results] == ["g", "f", None]


def test_ids_that_are_there_are_kept() -> None:
    """And a result without a call has none."""
    call = {"id": "mine", "function": {"name": "f", "arguments": {}}}
    result = {"role": "tool", "content": "x", "tool_call_id": "mine"}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}, result, {"role": "tool", "content": "y"}]
    _, assistant, first, second = posted(chat(messages=messages))["messages"]

    assert (assistant["tool_calls"][0]["id"], first["tool_call_id"]) == ("mine", "mine")
    assert "tool_call_id" not in second


def test_an_assistant_s_last_text_is_gone_on_from() -> None:
    """But not from one that ends in calls, or is empty."""
    call = {"function": {"name": "f", "arguments": {}}}
    begun = posted(chat(messages=[*HI, {"role": "assistant", "content": "Once"}]))

    assert (begun["add_generation_prompt"], begun["continue_final_message"]) == (False, True)
    for turn in ({"content": "x", "tool_calls": [call]}, {"content": ""}):
        assert "continue_final_message" not in posted(chat(messages=[*HI, {"role": "assistant", **turn}]))


def test_tools_are_functions() -> None:
    """With or without their type."""
    assert posted(chat(tools=[TOOL, {"function": TOOL["function"]}]))["tools"] == [TOOL, TOOL]
    assert "tools" not in posted(chat(tools=[]))


def test_generate_is_a_chat_of_one_turn() -> None:
    """With its system prompt before it."""
    asked = generate(system="s", template="", context=[], images=[], suffix="", raw=False)

    assert asked.path == request.CHAT
    assert posted(asked)["messages"] == [{"role": "system", "content": "s"}, *HI]


@pytest.mark.parametrize(("fields", "kept"), [({"raw": True}, {}), ({"suffix": "end"}, {"suffix": "end"})])
def test_raw_and_suffix_are_bare_text(fields: Any, kept: Any) -> None:
    """On the neuron's completions, which no template touches and which says whether it fills in the middle."""
    asked = generate(**fields, stream=False, options={"num_predict": 3})

    assert asked.path == request.COMPLETIONS
    assert posted(asked) == {"model": "id", "prompt": "hi", "max_tokens": 3, **kept}


@pytest.mark.parametrize(
    "asked", [lambda **more: chat(messages=[], **more), lambda **more: generate(prompt="", **more)]
)
def test_nothing_to_answer_only_loads_the_model(asked: Any) -> None:
    """And never unloads it, which others may be using."""
    assert asked().fields is None
    for kept in ("5m", -1, 300, "10h0m0s", None, "0" * 100_000 + "x"):
        assert asked(keep_alive=kept).fields is None
    for none in (0, 0.0, "0", "0s", "0m0s"):
        assert refused(asked, keep_alive=none)[:2] == (400, "keep_alive")


def test_log_probabilities_are_the_neuron_s() -> None:
    """Alternatives only beside them, as Ollama has it; not of bare text."""
    asked = posted(chat(logprobs=True, top_logprobs=3))

    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 3)
    assert posted(chat(logprobs=False, top_logprobs=3)) == posted(chat())
    assert posted(generate(logprobs=True))["logprobs"] is True
    assert refused(generate, logprobs=True, raw=True)[:2] == (400, "logprobs")


def test_how_long_a_model_stays_is_not_the_client_s_to_say() -> None:
    """But nothing is refused for it."""
    assert posted(chat(keep_alive=0)) == posted(chat())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages.0.images"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
        ({"messages": {}}, "messages"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
            "messages.0.tool_calls.0.function.arguments",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
        ({"format": "yaml"}, "format"),
        ({"think": "hard"}, "think"),
        ({"think": {}}, "think"),
        ({"stream": "no"}, "stream"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 1.5}, "top_logprobs"),
        ({"options": []}, "options"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"num_predict": 1.5}}, "options.num_predict"),
        ({"options": {"seed": True}}, "options.seed"),
        ({"options": {"stop": "END"}}, "options.stop"),
        ({"options": {"stop": [7]}}, "options.stop.0"),
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
    ],
)
def test_what_is_wrong_in_a_chat_is_named(fields: Any, param: str) -> None:
    assert refused(chat, **fields)[:2] == (400, param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"images": ["aGk="]}, "images"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"raw": True, "system": "s"}, "raw"),
        ({"raw": "yes"}, "raw"),
        ({"prompt": 7}, "prompt"),
        ({"suffix": []}, "suffix"),
    ],
)
def test_what_is_wrong_in_a_prompt_is_named(fields: Any, param: str) -> None:
    assert refused(generate, **fields)[:2] == (400, param)


def test_show_may_still_say_name() -> None:
    assert (
        request.shown(b'{"model":"m"}')
        == request.shown(b'{"name":"m"}')
        == request.shown(b'{"model":"","name":"m"}')
        == "m"
    )
    with pytest.raises(RefusedError):
        request.shown(b"{}")
