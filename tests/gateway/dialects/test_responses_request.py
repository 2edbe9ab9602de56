"""Bodies of /v1/responses as the chat that a neuron is asked for."""

from typing import Any

import msgspec
import pytest

from cortex_gateway.dialects.dialect import AnswerId, Earlier, Kept
from cortex_gateway.dialects.failure import Failure, RefusedError
from cortex_gateway.dialects.opaque import seal, unseal
from cortex_gateway.dialects.responses import request as requests
from cortex_gateway.dialects.responses.earlier import answers_of
from cortex_gateway.dialects.responses.items import SUMMARIZE, SUMMARY
from cortex_gateway.dialects.responses.request import SUMMARY_TOKENS, ResponsesRequest
from cortex_gateway.dialects.responses.response import with_ids

USER = {"role": "user", "content": "hi"}
FUNCTION = {"type": "function", "name": "f", "description": "does f", "parameters": {"type": "object"}, "strict": False}
CUSTOM = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "Helpers.",
    "tools": [FUNCTION, {**CUSTOM, "name": "say"}],
}
CALLED = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"z": 1, "a": 2}'}
OLD = AnswerId("req_1", "a" * 32, 7)


def asked(earlier: Earlier | None = None, /, **fields: Any) -> ResponsesRequest:
    body = {"model": "m", "input": "hi", **fields}
    return requests.decode(requests.read(msgspec.json.encode(body)), earlier or Earlier())


def chat(earlier: Earlier | None = None, /, **fields: Any) -> Any:
    return msgspec.json.decode(asked(earlier, **fields).neuron_body("resolved"))


def refusal(earlier: Earlier | None = None, /, **fields: Any) -> Failure:
    with pytest.raises(RefusedError) as refused:
        asked(earlier, **fields)
    return refused.value.failure


def kept(output: list[Any], *items: Any, unique: str = "a" * 32, previous: str | None = None) -> Kept:
    identity = AnswerId("req_1", unique, 7)
    said = msgspec.json.encode(with_ids(items, identity))
    return Kept(f"resp_{unique}", previous, said, msgspec.json.encode({"output": output}))


def test_a_string_is_a_user_s_message() -> None:
    """With instructions before it, and nothing that was not said."""
    assert chat(instructions="be brief") == {
        "model": "resolved",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
    }


def test_a_stream_counts_its_prompt() -> None:
    """So does an answer in the background, which the gateway reads as a stream."""
    for fields in ({"stream": True}, {"background": True}):
        assert chat(**fields)["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert "stream" not in chat()


@pytest.mark.parametrize("kind", [{}, {"type": "message"}])
@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_messages_come_with_or_without_a_type(kind: dict[str, str], role: str) -> None:
    """As a string or in parts; a developer's stays where it stands, whatever was said before."""
    parts = [
        {"type": "input_text", "text": "a"},
        {"type": "input_text", "text": ""},
        {"type": "input_text", "text": "b"},
    ]
    told = chat(input=[USER, {**kind, "role": role, "content": "x"}, {**kind, "role": role, "content": parts}])

    both = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert told["messages"] == [USER, {"role": role, "content": "x"}, {"role": role, "content": both}]


def test_what_one_answer_consisted_of_is_one_message_again() -> None:
    """Thoughts as they were thought, text, and calls with their arguments as they were written."""
    items = [
        USER,
        {"type": "reasoning", "summary": [], "encrypted_content": seal("reasoning", "hm")},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me see", "annotations": []}],
        },
        CALLED,
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin\n"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "done"}]},
    ]
    first, second, third, fourth = chat(input=items)["messages"]

    assert first == USER
    assert (second["content"], second["reasoning_content"]) == ("Let me see", "hm")
    assert [call["function"] for call in second["tool_calls"]] == [
        {"name": "f", "arguments": '{"z": 1, "a": 2}'},
        {"name": "apply_patch", "arguments": '{"input":"*** Begin\\n"}'},
    ]
    assert third == {"role": "tool", "tool_call_id": "c1", "content": "1"}
    assert fourth == {"role": "tool", "tool_call_id": "c2", "content": "done"}


@pytest.mark.parametrize(
    ("item", "thought"),
    [
        ({"encrypted_content": "gAAAA-of-another-service", "summary": [{"type": "summary_text", "text": "s"}]}, "s"),
        ({"encrypted_content": None, "content": [{"type": "reasoning_text", "text": "c"}], "summary": []}, "c"),
        ({"encrypted_content": "cortex1.reasoning.%%%", "summary": []}, None),
        ({"summary": [], "encrypted_content": seal("compaction", "not a thought")}, None),
    ],
)
def test_thoughts_of_others_are_read_as_far_as_they_are_legible(item: Any, thought: str | None) -> None:
    """And never refused: they are opaque."""
    said = chat(input=[USER, {"type": "reasoning", "id": "rs_1", **item}, CALLED])["messages"][1]

    assert said.get("reasoning_content") == thought


def test_what_is_sealed_is_read_again_and_nothing_else() -> None:
    """Whatever the text; of the other kind, cut or changed it is nobody's."""
    for words in ("", "é\n" * 5000, "\U0001f600"):
        assert unseal("reasoning", seal("reasoning", words)) == words
    sealed = seal("reasoning", "some words that are long enough")
    for broken in (sealed[:-8], sealed.replace("reasoning", "compaction"), sealed[:20] + "AAAA" + sealed[24:], 7, None):
        assert unseal("reasoning", broken) is None


def test_tools_of_every_kind() -> None:
    """A namespace's are flat, a custom one takes a string and tells its grammar, hosted ones are left out and told of."""
    made = asked(tools=[FUNCTION, CUSTOM, AGENTS, {"type": "web_search"}, {"type": "mcp", "server_label": "x"}])
    functions = [tool["function"] for tool in made.chat["tools"]]

    assert [function["name"] for function in functions] == ["f", "apply_patch", "agents__f", "agents__say"]
    assert functions[0] == {"name": "f", "description": "does f", "parameters": {"type": "object"}}
    assert functions[1]["parameters"]["required"] == ["input"]
    assert functions[1]["description"].endswith('`input` must match this lark grammar:\nstart: "x"')
    assert functions[2]["description"] == "agents: Helpers.\n\ndoes f"
    assert [
        (tool.name, tool.namespace, tool.custom) for tool in map(made.tools.called, ("agents__f", "agents__say", "?"))
    ] == [
        ("f", "agents", False),
        ("say", "agents", True),
        ("?", None, False),
    ]
    assert [tool["type"] for tool in made.tools.told] == ["function", "custom", "namespace"]
    assert [sentence.split("'")[1] for sentence in made.dropped] == ["web_search", "mcp"]


def test_a_call_of_a_namespace_goes_back_under_its_flat_name() -> None:
    """As the model wrote it."""
    message = chat(input=[USER, {**CALLED, "namespace": "agents"}], tools=[AGENTS])["messages"][1]

    assert message["tool_calls"][0]["function"]["name"] == "agents__f"


@pytest.mark.parametrize(
    ("choice", "sent", "left"),
    [
        ("auto", "auto", 2),
        ("none", "none", 2),
        ("required", "required", 2),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}, 2),
        ({"type": "custom", "name": "apply_patch"}, {"type": "function", "function": {"name": "apply_patch"}}, 2),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, "auto", 1),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}, "required", 1),
    ],
)
def test_every_choice_of_tools(choice: Any, sent: Any, left: int) -> None:
    """As the neuron reads it."""
    told = chat(tools=[FUNCTION, CUSTOM], tool_choice=choice, parallel_tool_calls=False)

    assert (told["tool_choice"], len(told["tools"]), told["parallel_tool_calls"]) == (sent, left, False)


def test_sampling_effort_and_form() -> None:
    """Under the neuron's names."""
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    told = chat(
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=5,
        reasoning={"effort": "high"},
        text={"format": schema, "verbosity": "low"},
    )

    assert (told["temperature"], told["top_p"], told["max_completion_tokens"]) == (0.5, 0.9, 5)
    assert told["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "high"}
    assert told["response_format"]["json_schema"] == {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert chat(text={"format": {"type": "json_object"}})["response_format"] == {"type": "json_object"}
    assert "response_format" not in chat(text={"format": {"type": "text"}})
    assert chat(reasoning={"effort": "none"})["chat_template_kwargs"]["enable_thinking"] is False
    assert "chat_template_kwargs" not in chat(reasoning={"summary": "auto"})


def test_what_agents_send_besides_is_tolerated() -> None:
    """At every level; what comes of it is the chat of a request without it."""
    more: dict[str, Any] = {
        "store": False,
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"],
        "prompt_cache_key": "k",
        "client_metadata": {"a": "b"},
        "truncation": "auto",
        "service_tier": "priority",
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "max_tool_calls": 3,
        "context_management": [{"type": "compaction", "compact_threshold": 9}],
        "stream_options": {"include_obfuscation": False},
        "nobody_knows": [1],
    }
    item = {**USER, "phase": "x", "content": [{"type": "input_text", "text": "hi", "prompt_cache_breakpoint": {}}]}

    assert chat(**more, input=[item]) == chat()
    assert asked(**more).cache_key == "k"


def test_items_that_nobody_here_made_are_left_out_and_told() -> None:
    """The conversation goes on without them."""
    made = asked(
        input=[USER, {"type": "web_search_call", "id": "ws_1"}, {"type": "mcp_list_tools"}, {"type": "web_search_call"}]
    )

    assert made.chat["messages"] == [USER]
    assert [sentence.split("'")[1] for sentence in made.dropped] == ["web_search_call", "mcp_list_tools"]


def test_tools_may_come_with_an_item() -> None:
    """They join the others."""
    made = asked(input=[USER, {"type": "additional_tools", "role": "developer", "tools": [CUSTOM]}], tools=[FUNCTION])

    assert [tool["function"]["name"] for tool in made.chat["tools"]] == ["f", "apply_patch"]


def test_a_summary_is_asked_for_last_and_read_as_what_was_said() -> None:
    """Nothing forces or forbids a call: the prompt's beginning stays that of the conversation."""
    made = asked(input=[USER, {"type": "compaction_trigger"}], tools=[FUNCTION], tool_choice="required")
    assert made.compacting
    assert made.chat["messages"] == [USER, {"role": "user", "content": SUMMARIZE}]
    assert "tool_choice" not in made.chat
    assert made.chat["max_completion_tokens"] == SUMMARY_TOKENS
    assert asked(input=[USER, {"type": "compaction_trigger"}], max_output_tokens=9).chat["max_completion_tokens"] == 9
    assert "max_completion_tokens" not in chat(input=[USER])

    later = chat(input=[{"type": "compaction", "encrypted_content": seal("compaction", "It was about x.")}, USER])
    assert later["messages"] == [{"role": "user", "content": f"{SUMMARY}It was about x."}, USER]


def test_a_summary_of_another_service_is_refused() -> None:
    """Without it the model would know nothing of the conversation, and nobody would see that."""
    assert (
        refusal(input=[USER, {"type": "compaction", "encrypted_content": "gAAA"}]).param == "input.1.encrypted_content"
    )


def test_earlier_answers_come_before_the_input() -> None:
    """Oldest first, without their instructions; a summary stands for all before it."""
    said = [
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]}
    ]
    first, second = kept(said, USER), kept([CALLED], {"role": "user", "content": "do f"}, unique="b" * 32)
    output = {"type": "function_call_output", "call_id": "c1", "output": "1"}
    roles = [
        (message["role"], message["content"])
        for message in chat(
            Earlier((first, second)), input=[output], previous_response_id="resp_b", instructions="new"
        )["messages"]
    ]
    summary = kept(
        [{"type": "compaction", "encrypted_content": seal("compaction", "s")}], {"type": "compaction_trigger"}
    )

    assert roles == [
        ("system", "new"),
        ("user", "hi"),
        ("assistant", "yes"),
        ("user", "do f"),
        ("assistant", ""),
        ("tool", "1"),
    ]
    compacted = chat(Earlier((first, summary)), previous_response_id="resp_a")["messages"]
    assert compacted == [{"role": "user", "content": f"{SUMMARY}s"}, USER]


def test_an_item_may_be_sent_by_its_id() -> None:
    """Of an earlier answer, or of what it answered; with or without the type."""
    said = {
        "type": "message",
        "id": f"msg_{'a' * 32}0000",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "yes"}],
    }
    earlier = Earlier(others=(kept([said], USER),))
    given = requests.read(msgspec.json.encode({"model": "m", "input": [{"id": said["id"]}]}))

    assert answers_of(given.references) == {f"resp_{'a' * 32}"}
    assert answers_of([f"msg_{'a' * 32}", "msg_1", "msg"]) == set(), "what is too short for an answer's and a number"
    for reference in ({"id": said["id"]}, {"type": "item_reference", "id": said["id"]}):
        assert chat(earlier, input=[USER, reference, USER])["messages"][1]["content"] == "yes"
    of_input = {"type": "item_reference", "id": f"msg_{'a' * 32}8000"}
    assert chat(earlier, input=[of_input])["messages"] == [USER]
    assert refusal(earlier, input=[{"id": "msg_other"}]).code == "item_not_found"


def test_log_probabilities_are_asked_for_in_two_ways() -> None:
    """By `include` alone without alternatives; by `top_logprobs` with as many, within bounds."""
    wanted = {"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}

    assert chat(input="hi").keys().isdisjoint({"logprobs", "top_logprobs"})
    for fields, alternatives in ((wanted, 0), ({"top_logprobs": 3}, 3), ({**wanted, "top_logprobs": 20}, 20)):
        asked = chat(input="hi", **fields)
        assert (asked["logprobs"], asked["top_logprobs"]) == (True, alternatives)
    for wrong in (-1, 21):
        assert refusal(top_logprobs=wrong).param == "top_logprobs"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"tool_choice": {"type": "web_search_preview"}, "tools": [FUNCTION]}, "tool_choice"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"input": [{**USER, "content": [{"type": "input_image", "image_url": "data:"}]}]}, "input.0.content.0"),
        ({"input": [{**USER, "content": [{"type": "input_file", "file_id": "f"}]}]}, "input.0.content.0"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(fields: Any, param: str) -> None:
    """400 unsupported_parameter."""
    failure = refusal(**fields)

    assert (failure.status, failure.code, failure.param) == (400, "unsupported_parameter", param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 7}, "model"),
        ({"input": 7}, "input"),
        ({"input": []}, "input"),
        ({"input": [7]}, "input.0"),
        ({"input": [{}]}, "input.0.type"),
        ({"input": [{"type": 7}]}, "input.0.type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{**CALLED, "name": ""}]}, "input.0.name"),
        ({"input": [{**CALLED, "arguments": {}}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 7}]}, "input.0.output"),
        ({"tools": [{"name": "f"}]}, "tools.0.type"),
        ({"tools": [FUNCTION, FUNCTION]}, "tools.1.name"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [7]}]}, "tools.0.tools.0"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
        ({"tools": [FUNCTION], "tool_choice": "any"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"store": False, "background": True}, "background"),
        ({"truncation": "left"}, "truncation"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(fields: Any, param: str) -> None:
    """400 with `param`."""
    failure = refusal(**fields)

    assert (failure.status, failure.param) == (400, param)
    assert failure.message.startswith(f"{param}: ")


def test_an_answer_that_is_not_there_is_told() -> None:
    """As OpenAI tells it."""
    failure = refusal(Earlier(None), previous_response_id="resp_x")

    assert (failure.code, failure.param) == ("previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({}, None),
        ({"prompt_cache_key": "k"}, "k"),
        ({"prompt_cache_key": "k", "conversation": "conv_1"}, "k"),
        ({"prompt_cache_key": "", "conversation": "conv_1"}, "conv_1"),
        ({"prompt_cache_key": 7}, None),
    ],
)
def test_a_body_names_its_conversation(fields: dict[str, Any], key: str | None) -> None:
    """By its cache key, or by the conversation that it goes on with."""
    conversation = Kept("conv_1", None, b"[]", b"{}") if "conversation" in fields else None

    assert asked(Earlier(conversation=conversation), **fields).cache_key == key
