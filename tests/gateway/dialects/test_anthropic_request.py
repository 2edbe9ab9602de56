"""A Messages body becomes the neuron's chat request: in place, in order, nothing added, nothing lost. Lines: 4.1."""

import json
from typing import Any

import pytest

from cortex_gateway.dialects.anthropic.request import MessagesRequest, decode
from cortex_gateway.dialects.anthropic.response import signature
from cortex_gateway.dialects.depth import deep_path
from cortex_gateway.dialects.failure import Failure, RefusedError

HI = {"role": "user", "content": "hi"}
WEATHER = {"name": "f", "input_schema": {"type": "object"}}


def request(messages: list[Any] | None = None, **fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [HI] if messages is None else messages, **fields}
    return decode(json.dumps(body).encode())


def chat(messages: list[Any] | None = None, **fields: Any) -> dict[str, Any]:
    return request(messages, **fields).chat


def said(*messages: Any, **fields: Any) -> list[Any]:
    return list(chat(list(messages), **fields)["messages"])


def refusal(messages: list[Any] | None = None, **fields: Any) -> Failure:
    with pytest.raises(RefusedError) as refused:
        request(messages, **fields)
    assert refused.value.failure.status == 400
    return refused.value.failure


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def test_the_smallest_request() -> None:
    """One user turn and a limit; the model's name travels apart."""
    body = json.loads(request().neuron_body("org/m"))

    assert body == {"model": "org/m", "messages": [HI], "max_tokens": 9}


def test_a_stream_asks_for_the_prompt_s_length_first() -> None:
    """Line 6: message_start needs real input tokens."""
    body = json.loads(request(stream=True).neuron_body("m"))

    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize("system", ["be kind", [text("be kind")]])
def test_system_comes_first_as_it_is(system: Any) -> None:
    """A string or blocks."""
    assert said(HI, system=system) == [{"role": "system", "content": "be kind"}, HI]


def test_the_billing_line_is_left_out() -> None:
    """Line 11: it is another one in every request. Only at a block's beginning, and not where all is to stay verbatim."""
    billing = "x-anthropic-billing-header: cc_version=1; cch=2;"
    rest = text(f"Say {billing}")
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [HI], "system": [text(billing), rest]}).encode()

    assert said(HI, system=[text(billing), rest])[0]["content"] == f"Say {billing}"
    assert said(HI, system=f"{billing}\nYou are\n")[0]["content"] == "You are\n"
    assert decode(body, verbatim=True).chat["messages"][0]["content"] == [text(billing), rest]


def test_system_turns_stay_in_their_place() -> None:
    """Line 12: hoisting them would change the prefix of every later turn."""
    reminder = {"role": "system", "content": [text("remember")]}
    answer = {"role": "assistant", "content": "ok"}

    assert [turn["role"] for turn in said(HI, answer, reminder, HI, system="s")] == [
        "system",
        "user",
        "assistant",
        "system",
        "user",
    ]


@pytest.mark.parametrize("signature", ["abc", "", None, 7])
def test_thinking_is_replayed_with_any_signature(signature: Any) -> None:
    """Lines 3 and 5: the template gets back what the model thought."""
    thought = {"type": "thinking", "thinking": "hm", "signature": signature}

    assert said(HI, assistant(thought, text("a")), HI)[1] == {
        "role": "assistant",
        "content": "a",
        "reasoning_content": "hm",
    }


def test_interleaved_thinking_is_one_reasoning() -> None:
    """As the neuron itself put it together."""
    blocks = [{"type": "thinking", "thinking": part, "signature": "s"} for part in ("one", " two")]

    assert said(HI, assistant(blocks[0], text("a"), blocks[1]), HI)[1]["reasoning_content"] == "one two"


def test_redacted_thinking_is_accepted() -> None:
    """Line 3: nobody can read it, and it is no error."""
    assert said(HI, assistant({"type": "redacted_thinking", "data": "x"}, text("a")), HI)[1]["content"] == "a"


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, True),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"output_config": {"effort": "low"}}, True),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "max"}}, False),
        ({"output_config": {"format": None}}, None),
        ({}, None),
    ],
)
def test_both_ways_to_ask_for_thinking(fields: dict[str, Any], wanted: bool | None) -> None:
    """Line 4; unasked, the model's own template decides."""
    expected = None if wanted is None else {"enable_thinking": wanted}

    assert chat(**fields).get("chat_template_kwargs") == expected


def test_how_much_is_thought_is_passed_on() -> None:
    """Line 4: the effort for the template, the budget for the engine; what is switched off has none, nor has a count."""
    asked = chat(thinking={"type": "enabled", "budget_tokens": 2048}, output_config={"effort": "xhigh"})
    off = {"thinking": {"type": "disabled", "budget_tokens": 2048}}
    counting = decode(
        b'{"model":"m","messages":[{"role":"user","content":"hi"}],"thinking":{"type":"enabled","budget_tokens":9}}',
        counting=True,
    )

    assert (asked["reasoning_effort"], asked["thinking_token_budget"]) == ("xhigh", 2048)
    assert not {"reasoning_effort", "thinking_token_budget"} & {*chat(), *chat(**off)}
    assert "thinking_token_budget" not in counting.chat


def test_a_thought_that_was_left_out_comes_back_by_its_signature() -> None:
    """Line 5: or the next turn's prompt is not what was computed. What is shown counts where it is."""
    sealed = {"type": "thinking", "thinking": "", "signature": signature("hm", omitted=True)}
    shown = {**sealed, "thinking": "other"}

    assert said(HI, assistant(sealed, text("a")), HI)[1]["reasoning_content"] == "hm"
    assert said(HI, assistant(shown, text("a")), HI)[1]["reasoning_content"] == "other"
    assert request(thinking={"type": "adaptive", "display": "omitted"}).omits_thinking
    assert not request(thinking={"type": "adaptive", "display": "summarized"}).omits_thinking


def test_a_system_turn_may_say_nothing() -> None:
    """4.4, line 4: one that only carries settings; as a string and as one block it is the same turn (line 2)."""
    settings = {"role": "system", "output_config": {"effort": "high"}}
    words = [{"role": "system", "content": content} for content in ("now", [text("now")])]

    assert said(HI, settings, {**settings, "content": []}) == [HI]
    assert said(HI, words[0]) == said(HI, words[1])


def test_what_another_service_did_between_the_turns_is_left_out() -> None:
    """Line 14: its searches and their results are for its own eyes; the log says so."""
    used = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    asked = request([HI, assistant(text("I look."), used, found, text("So.")), HI])

    assert asked.chat["messages"][1]["content"] == [text("I look."), text("So.")]
    assert [sentence.split("'")[1] for sentence in asked.dropped] == ["server_tool_use", "web_search_tool_result"]


def test_results_of_searches_and_names_of_tools_are_text() -> None:
    """Line 15: whoever ran the tool found them."""
    found = {"type": "search_result", "title": "T", "source": "http://x", "content": [text("one"), text("two")]}
    reference = {"type": "tool_reference", "tool_name": "f"}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [found, reference]}

    assert said(user(result))[0]["content"] == [text("T\nhttp://x\none\ntwo"), text("f")]


@pytest.mark.parametrize("config", ["output_config", "output_format"])
def test_a_format_binds_the_answer(config: str) -> None:
    """As it is now, and as it was in the beta."""
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    form = {"type": "json_schema", "schema": schema}
    asked = chat(**{config: form if config == "output_format" else {"format": form, "effort": None}})

    assert asked["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }
    assert list(asked["response_format"]["json_schema"]["schema"]["properties"]) == ["b", "a"]
    assert "response_format" not in chat()


def test_tools_keep_the_order_of_their_keys() -> None:
    """Line 10: a sorted schema is another prompt."""
    schema = '{"type":"object","properties":{"z":{"type":"string"},"a":{"enum":["y","b"]}},"required":["z"]}'
    tool = f'{{"input_schema":{schema},"name":"f"}}'
    body = f'{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":"x"}}],"tools":[{tool}]}}'

    assert f'"parameters":{schema}'.encode() in decode(body.encode()).neuron_body("m")


def test_a_tool_becomes_a_function() -> None:
    """With its description when it has one, and `strict`; `cache_control`, `type: custom` and the rest say nothing."""
    tool = {**WEATHER, "description": "d", "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": True}

    assert chat(tools=[tool, WEATHER])["tools"] == [
        {
            "type": "function",
            "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
        },
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    ]


@pytest.mark.parametrize("kind", ["web_search_20250305", "bash_20250124", "text_editor_20250728", "tool_search"])
def test_server_tools_are_accepted_and_left_out(kind: str) -> None:
    """Line 14: nobody here could run them."""
    server = {"type": kind, "name": "x"}

    assert "tools" not in chat(tools=[server], tool_choice={"type": "auto"})
    assert len(chat(tools=[server, WEATHER])["tools"]) == 1
    assert kind in request(tools=[server]).dropped[0]


def test_a_typed_tool_with_a_schema_is_a_function() -> None:
    """Whoever says how it is called can run it himself."""
    assert len(chat(tools=[{**WEATHER, "type": "mine_20260101"}])["tools"]) == 1


@pytest.mark.parametrize(
    ("choice", "passed"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_tool_choice_is_passed_on(choice: Any, passed: Any) -> None:
    """Line 17: a forced choice is the neuron's to grant or to refuse by name."""
    assert chat(tools=[WEATHER], tool_choice=choice)["tool_choice"] == passed


def test_one_call_at_a_time_is_passed_on() -> None:
    """Line 17."""
    alone = {"type": "auto", "disable_parallel_tool_use": True}

    assert chat(tools=[WEATHER], tool_choice=alone)["parallel_tool_calls"] is False
    assert "parallel_tool_calls" not in chat(tools=[WEATHER], tool_choice={"type": "auto"})


def test_a_tool_s_input_keeps_its_order() -> None:
    """Line 10, on replay."""
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"z": 1, "a": {"y": [1.5, "é"], "b": None}}}
    (_, turn, _) = said(HI, assistant(text("so"), use), user({"type": "tool_result", "tool_use_id": "t"}))

    assert turn["content"] == "so"
    assert turn["tool_calls"] == [
        {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"z":1,"a":{"y":[1.5,"é"],"b":null}}'}}
    ]


@pytest.mark.parametrize(
    ("content", "passed"),
    [
        ("42", "42"),
        ([text("42")], "42"),
        ([text("4"), text("2")], [text("4"), text("2")]),
        (None, ""),
        ([], ""),
        ("", ""),
    ],
)
def test_a_tool_result_in_every_form(content: Any, passed: Any) -> None:
    """Line 15: a string, blocks, or nothing."""
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": True, "content": content}

    assert said(HI, assistant(use), user(result))[-1] == {"role": "tool", "tool_call_id": "t", "content": passed}


def test_results_come_before_the_text_of_their_turn() -> None:
    """Line 15: in order, then what the user says."""
    results = [{"type": "tool_result", "tool_use_id": name, "content": name} for name in ("a", "b")]
    turn = user(text("first"), results[0], results[1], text("last"))

    assert said(turn) == [
        {"role": "tool", "tool_call_id": "a", "content": "a"},
        {"role": "tool", "tool_call_id": "b", "content": "b"},
        {"role": "user", "content": [text("first"), text("last")]},
    ]


def test_empty_text_is_dropped() -> None:
    """Line 16: an empty block or turn must not change the prompt."""
    turns = [user(text(""), text("hi")), assistant(text("")), {"role": "assistant", "content": ""}, HI]

    assert said(*turns, system="") == [HI, HI]
    assert said(HI, system=[text("")]) == [HI]


def test_white_space_is_not_empty() -> None:
    """Line 16: nothing is trimmed."""
    assert said(user(text(" \n")))[0]["content"] == " \n"


def test_a_last_assistant_turn_is_continued() -> None:
    """Line 16: a prefill is no turn of its own."""
    asked = chat([HI, {"role": "assistant", "content": "{"}])

    assert (asked["add_generation_prompt"], asked["continue_final_message"]) == (False, True)
    assert "add_generation_prompt" not in chat()


def test_an_empty_prefill_is_none() -> None:
    """What was dropped continues nothing."""
    assert "continue_final_message" not in chat([HI, assistant(text(""))])


def test_unknown_fields_are_tolerated_everywhere() -> None:
    """Line 13."""
    odd = {"cache_control": {"type": "ephemeral", "ttl": "1h", "scope": "x"}, "citations": [], "new": 1}
    body = {"metadata": {"user_id": "u"}, "context_management": {}, "container": None, "service_tier": "auto"}
    more = {"mcp_servers": [], "betas": ["x"], "output_config": {"new": 1}, "inference_geo": "eu"}
    asked = chat([{**user(text("hi", **odd)), "ctx": 1}], system=[text("s", **odd)], **body, **more)

    assert asked == {"messages": [{"role": "system", "content": "s"}, HI], "max_tokens": 9}


def test_sampling_keeps_its_values() -> None:
    """And stop sequences are stop strings."""
    asked = chat(temperature=0, top_p=0.5, top_k=3, stop_sequences=["a", "b"])

    assert {key: asked[key] for key in ("temperature", "top_p", "top_k", "stop")} == {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "stop": ["a", "b"],
    }
    assert "stop" not in chat(stop_sequences=[])


@pytest.mark.parametrize("kind", ["image", "document", "container_upload", "server_tool_use", "compaction"])
def test_what_is_not_text_is_refused_by_name(kind: str) -> None:
    """Line 28: never dropped in silence."""
    failure = refusal([HI, user(text("see"), {"type": kind, "source": {}})])

    assert failure.code == "unsupported_parameter"
    assert failure.param == "messages.1.content.1"
    assert repr(kind) in failure.message


def test_an_image_in_a_tool_result_is_refused_with_its_path() -> None:
    """Line 15: no model here sees it."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("a"), {"type": "image", "source": {}}]}

    assert refusal([user(result)]).param == "messages.0.content.0.content.1"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"model": 7}, "model"),
        ({"system": 7}, "system"),
        ({"system": [{"type": 7}]}, "system.0.type"),
        ({"system": ["x"]}, "system.0"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": ["a", 1]}, "stop_sequences.1"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"tools": {}}, "tools"),
        ({"tools": ["f"]}, "tools.0"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tools": [{"type": 7}]}, "tools.0.type"),
        ({"tools": [{**WEATHER, "description": 7}]}, "tools.0.description"),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": "9"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "display": "loud"}}, "thinking.display"),
        ({"output_config": {"effort": 7}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], path: str) -> None:
    """The message begins with its path, as Anthropic's own do."""
    failure = refusal(**fields)

    assert failure.param == path
    assert failure.code == "invalid_anthropic_body"
    assert failure.message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("messages", "path"),
    [
        ([], "messages"),
        ([user()], "messages"),
        ([{"role": "user", "content": ""}], "messages"),
        (["hi"], "messages.0"),
        ([{"content": "hi"}], "messages.0.role"),
        ([{"role": "tool", "content": "hi"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": 7}], "messages.0.content"),
        ([user("hi")], "messages.0.content.0"),
        ([user({"text": "hi"})], "messages.0.content.0.type"),
        ([user({"type": "text"})], "messages.0.content.0.text"),
        ([user({"type": "tool_result"})], "messages.0.content.0.tool_use_id"),
        ([assistant({"type": "thinking"}), HI], "messages.0.content.0.thinking"),
        ([user({"type": "search_result", "title": "T"})], "messages.0.content.0.source"),
        ([user({"type": "tool_reference"})], "messages.0.content.0.tool_name"),
        ([assistant({"type": "tool_use", "name": "f", "input": {}}), HI], "messages.0.content.0.id"),
        ([assistant({"type": "tool_use", "id": "t", "input": {}}), HI], "messages.0.content.0.name"),
        ([assistant({"type": "tool_use", "id": "t", "name": "f", "input": "{}"}), HI], "messages.0.content.0.input"),
        ([HI, assistant({"type": "tool_use", "id": "t", "name": "f", "input": {}})], "messages"),
        ([HI, assistant({"type": "thinking", "thinking": "hm"})], "messages"),
    ],
)
def test_a_wrong_turn_is_named(messages: list[Any], path: str) -> None:
    """Down to the block."""
    failure = refusal(messages)

    assert failure.param == path
    assert failure.message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b"{", "malformed_json"),
        (b'{"model":"\xff"}', "malformed_json"),
        (b'{"temperature":NaN}', "malformed_json"),
        (b'{"temperature":1e999}', "malformed_json"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed_json"),
        (b"[]", "invalid_anthropic_body"),
        (b"{}", "missing_model_field"),
        (b'{"model":""}', "missing_model_field"),
        (b'{"model":"' + b"m" * 513 + b'"}', "invalid_anthropic_body"),
    ],
)
def test_a_body_that_is_none(body: bytes, code: str) -> None:
    """Every way of not being a request has its code."""
    with pytest.raises(RefusedError) as refused:
        decode(body)

    assert (refused.value.failure.status, refused.value.failure.code) == (400, code)


def test_counting_needs_no_limit_and_asks_for_the_same_prompt() -> None:
    """Line 27: the same messages, tools and template arguments, and nothing else."""
    fields = {"tools": [WEATHER], "thinking": {"type": "enabled"}, "temperature": 1}
    prefill = [HI, {"role": "assistant", "content": "a"}]
    counting = decode(json.dumps({"model": "m", "messages": prefill, **fields}).encode(), counting=True)
    asked = json.loads(request(prefill, **fields).neuron_body("m"))
    counted = json.loads(counting.tokenize_body("m"))

    assert counted == {key: value for key, value in asked.items() if key not in ("max_tokens", "temperature")}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (
            lambda levels: {"tools": [{"name": "f", "input_schema": nested(levels - 3)}]},
            "tools.0.input_schema.a.a.a",
        ),
        (
            lambda levels: {
                "messages": [
                    {"role": "user", "content": "x"},
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "t", "name": "f", "input": nested(levels - 5)}],
                    },
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "y"}]},
                ]
            },
            "messages.1.content.0.input.a",
        ),
    ],
)
@pytest.mark.parametrize("levels", [121, 400, 700])
def test_what_is_nested_too_deeply_is_refused_with_its_path(change: Any, path: str, levels: int) -> None:
    """Schemas of tools and inputs of calls; 120 levels are passed on (wire.md, section 3)."""
    body = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(RefusedError) as raised:
        decode(json.dumps({**body, **change(levels)}).encode())

    failure = raised.value.failure
    assert (failure.status, failure.code, failure.param) == (400, "invalid_anthropic_body", path)
    assert decode(json.dumps({**body, **change(120)}).encode())


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([[1]], None),
        ([[[]]], "0.0"),
        ([[1], {"a": 1, "b": [2]}], "1.b"),
        ({"a": [1], "b": [[]]}, "b.0"),
        ([[], [], [], [1], [2]], None),
        (7, None),
    ],
)
def test_the_path_to_what_is_deeper_than_so_many_levels(value: Any, path: str | None) -> None:
    """The first such value, after two levels; how many brackets there are side by side does not matter."""
    assert deep_path(json.dumps(value).encode(), value, most=2) == path


def test_a_wide_body_is_not_a_deep_one() -> None:
    """An agent brings a hundred tools along."""
    assert len(chat(tools=[WEATHER] * 200)["tools"]) == 200


@pytest.mark.parametrize(
    ("value", "shown"),
    [("x" * 58, "'" + "x" * 58 + "'"), ("x" * 59, "'" + "x" * 56 + "…"), ({}, "an object"), (True, "True")],
)
def test_what_was_found_is_shown_up_to_a_length(value: Any, shown: str) -> None:
    """Sixty characters, and fewer where more had to be left out."""
    assert refusal(thinking={"type": value}).message.endswith(f"found {shown}")
