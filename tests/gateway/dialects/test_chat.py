"""A neuron's chat answer becomes neutral events, or exactly one Error."""

import json
from typing import Any

import pytest

from cortex_gateway.dialects.chat import CUT_SHORT, ChatDecoder, decode_non_streaming
from cortex_gateway.dialects.events import (
    Error,
    Event,
    Finish,
    Reasoning,
    Start,
    Text,
    ToolArguments,
    ToolEnd,
    ToolStart,
    Usage,
)
from cortex_gateway.dialects.grammar import Grammar
from tests.gateway.dialects.chat_streams import DONE, call, check, decoded, delta, event, finish, role, total, usage


def test_text_with_its_counts() -> None:
    """Start has the prompt's length and what was cached, which the role chunk cannot know; Finish has everything."""
    stream = b":\n\n" + role(9) + delta(usage(9, 1, 4), content="Hé") + delta(content="y") + finish("stop")

    check(
        stream + total(9, 2, 4) + b": usage {}\n\n" + DONE,
        Start(Usage(9, 0, 4)),
        Text("Hé"),
        Text("y"),
        Finish("stop", None, Usage(9, 2, 4)),
    )


def test_the_start_waits_for_something_to_say() -> None:
    """An answer that fails before its first word has none; one without words has it before its end."""
    failed = event(error={"message": "x", "type": "api_error"})

    assert decoded([role(9), total(9, 0)]) == [Error(CUT_SHORT)]
    assert [type(one) for one in decoded([role(9) + failed])] == [Error]
    assert decoded([role(9) + finish("stop") + total(9, 1, 4) + DONE])[0] == Start(Usage(9, 0, 4))


@pytest.mark.parametrize("names", [("reasoning_content",), ("reasoning",), ("reasoning_content", "reasoning")])
def test_reasoning_under_either_name_or_both(names: tuple[str, ...]) -> None:
    """A thought that comes under two names comes once."""
    stream = role() + delta(**dict.fromkeys(names, "hm")) + delta(content="a") + finish("stop") + total(5, 2) + DONE

    check(stream, Start(Usage(5)), Reasoning("hm"), Text("a"), Finish("stop", None, Usage(5, 2)))
    whole = answer({"content": "a", **dict.fromkeys(names, "hm")}, "stop")
    assert decode_non_streaming(whole)[1:3] == [Reasoning("hm"), Text("a")]


@pytest.mark.parametrize(("identity", "name"), [("a", None), (None, "f"), (None, None), ("a", "")])
def test_a_call_without_an_id_or_a_name_is_the_neuron_s_fault(identity: str | None, name: str | None) -> None:
    """502, before anything of it comes out."""
    whole = answer({"tool_calls": [{"id": identity, "function": {"name": name, "arguments": "{}"}}]}, "tool_calls")

    for events in (decoded([role() + call(0, identity, name)]), decode_non_streaming(whole)):
        assert [type(one) for one in events] == [Error]
        assert isinstance(events[0], Error)
        assert events[0].failure.status == 502


def test_tool_calls_open_fill_and_close() -> None:
    """Arguments come in pieces; a call ends where the next one, text, or the end begins."""
    first = call(0, "a", "f") + call(0, arguments='{"x"') + call(0, arguments=":1}")
    stream = role() + first + call(1, "b", "g") + finish("tool_calls") + total(5, 9) + DONE

    check(
        stream,
        Start(Usage(5)),
        ToolStart(0, "a", "f"),
        ToolArguments(0, '{"x"'),
        ToolArguments(0, ":1}"),
        ToolEnd(0),
        ToolStart(1, "b", "g"),
        ToolEnd(1),
        Finish("tool_calls", None, Usage(5, 9)),
    )


def test_text_after_a_call_closes_it() -> None:
    """Text and thoughts are never inside a call."""
    stream = role() + call(0, "a", "f", "{}") + delta(content="so") + finish("stop") + DONE

    assert decoded([stream])[3:5] == [ToolEnd(0), Text("so")]


@pytest.mark.parametrize(
    ("said", "called", "meant"),
    [
        ("stop", False, "stop"),
        ("tool_calls", True, "tool_calls"),
        ("stop", True, "tool_calls"),
        ("tool_calls", False, "stop"),
        ("length", True, "length"),
        ("content_filter", False, "stop"),
    ],
)
def test_the_reason_fits_what_was_said(said: str, called: bool, meant: str) -> None:
    """`tool_calls` exactly when a call was emitted; a truncated one is `length` (dialects.md 4.1.8)."""
    calls = call(0, "a", "f", "{") if called else b""
    last = decoded([role() + calls + finish(said) + DONE])[-1]

    assert isinstance(last, Finish)
    assert last.reason == meant


@pytest.mark.parametrize(("sent", "kept"), [("END", "END"), (42, None), (None, None)])
def test_only_a_stop_string_is_told(sent: str | int | None, kept: str | None) -> None:
    """A stop token's number means nothing to a client."""
    last = decoded([role() + finish("stop", sent) + DONE])[-1]

    assert isinstance(last, Finish)
    assert last.stop == kept


def test_what_follows_done_is_ignored() -> None:
    """Trailing data changes nothing."""
    stream = role() + finish("stop") + DONE

    assert decoded([stream + delta(content="late") + b"garbage"]) == decoded([stream])


def test_a_choice_and_a_call_without_a_number_are_the_first() -> None:
    """Not every server writes what is 0."""
    said = {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}
    stream = event(choices=[{"delta": said}]) + event(choices=[{"delta": {}, "finish_reason": "tool_calls"}]) + DONE

    assert decoded([stream])[1:] == [
        ToolStart(0, "a", "f"),
        ToolArguments(0, "{}"),
        ToolEnd(0),
        Finish("tool_calls", None, Usage()),
    ]


def test_a_count_that_is_not_told_is_none() -> None:
    """Of usage that has one of them only, and of what has no usage at all."""
    told = event(choices=[], usage={"prompt_tokens": 4}) + delta(content="a") + finish("stop") + DONE

    assert decoded([told])[-1] == Finish("stop", None, Usage(4, 0, 0))
    assert decoded([event(choices=[], usage={"completion_tokens": 4}) + finish("stop") + DONE])[-1] == Finish(
        "stop", None, Usage(0, 4, 0)
    )
    assert decoded([finish("stop") + DONE])[-1] == Finish("stop", None, Usage(0, 0, 0))
    assert decode_non_streaming(b'{"choices":[{"message":{},"finish_reason":"stop"}]}')[0] == Start(Usage(0, 0, 0))


def test_the_counts_of_a_stream_are_unknown_until_they_are_told() -> None:
    """What is recorded of an answer that was cut off."""
    decoder = ChatDecoder()
    decoder.feed(delta(content="a"))
    assert decoder.usage is None

    decoder.feed(total(1, 2))
    assert decoder.usage == Usage(1, 2)


def test_only_the_first_choice_is_read() -> None:
    """A second choice is not mixed into the first."""
    other = event(choices=[{"index": 1, "delta": {"content": "no"}}])

    assert Text("no") not in decoded([role() + other + finish("stop") + DONE])


@pytest.mark.parametrize("stream", [b"", role(), role() + delta(content="a") + finish("stop"), role() + DONE[:-1]])
def test_a_stream_that_does_not_end_is_an_error(stream: bytes) -> None:
    """Nothing but `[DONE]` is a good end: upstream death is never an end_turn (wire.md 2.9.7)."""
    assert decoded([stream])[-1] == Error(CUT_SHORT)
    assert CUT_SHORT.status == 502


def test_the_neuron_s_own_error_keeps_its_words() -> None:
    """An error event ends the stream with its code and message."""
    said = {"message": "engine died", "type": "api_error", "code": "service_unavailable", "model_id": "m"}
    last = decoded([role() + delta(content="a") + event(error=said) + DONE])[-1]

    assert isinstance(last, Error)
    assert (last.failure.status, last.failure.code, last.failure.message) == (503, said["code"], said["message"])
    assert last.failure.extras == {"model_id": "m"}


@pytest.mark.parametrize(
    ("kind", "status"), [("invalid_request_error", 400), ("rate_limit_error", 503), ("api_error", 500)]
)
def test_an_error_s_type_tells_its_status(kind: str, status: int) -> None:
    """Mid-stream there is no status line to read it from."""
    last = decoded([event(error={"message": "x", "type": kind})])[-1]

    assert isinstance(last, Error)
    assert last.failure.status == status


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {\n\n",
        b"data: [1]\n\n",
        b'data: {"choices":[{"delta":{"content":5}}]}\n\n',
        event(error=7),
        role() + call(0, None, "f"),
        role() + call(0, "a", None),
        role() + call(1, "a", "f"),
        role() + call(0, "a", "f") + delta(content="x") + call(0, arguments="late"),
        role() + DONE,
        DONE,
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_nonsense_is_one_error(bad: bytes) -> None:
    """Whatever the neuron sends, the stream ends in one Error that blames it, in legal order."""
    events = decoded([bad + delta(content="after")])
    grammar = Grammar()
    for one in events:
        grammar.feed(one)

    assert isinstance(events[-1], Error)
    assert events[-1].failure.status == 502
    assert grammar.state == "ended"


def answer(message: dict[str, Any], reason: str = "stop", **choice: Any) -> bytes:
    counts = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    return json.dumps(
        {"choices": [{"index": 0, "message": message, "finish_reason": reason, **choice}], "usage": counts}
    ).encode()


def test_a_non_streaming_answer_is_the_same_events() -> None:
    """Non-stream keeps reasoning and tool calls (wire.md 2.9.1, 2.9.2)."""
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}]
    message = {"content": "hi", "reasoning_content": "hm", "reasoning": "hm", "tool_calls": calls}
    counts = Usage(7, 3, 2)
    expected: list[Event] = [
        Start(counts),
        Reasoning("hm"),
        Text("hi"),
        ToolStart(0, "a", "f"),
        ToolArguments(0, '{"x":1}'),
        ToolEnd(0),
        Finish("tool_calls", None, counts),
    ]

    assert decode_non_streaming(answer(message, "tool_calls")) == expected


def row(text: str) -> dict[str, Any]:
    return {"token": text, "logprob": -1.0, "bytes": list(text.encode()), "top_logprobs": []}


def test_log_probabilities_belong_to_the_text_they_come_with() -> None:
    """What was held back comes with the next piece; what comes with a thought is not told."""
    stream = role() + event(choices=[{"index": 0, "delta": {"reasoning": "hm"}, "logprobs": {"content": [row("hm")]}}])
    stream += event(choices=[{"index": 0, "delta": {"content": "ab"}, "logprobs": {"content": [row("a"), row("b")]}}])
    (text,) = (one for one in decoded([stream + finish("stop") + total(5, 3) + DONE]) if isinstance(one, Text))

    assert [(one.token, one.logprob, one.bytes) for one in text.logprobs] == [("a", -1.0, (97,)), ("b", -1.0, (98,))]


@pytest.mark.parametrize(
    ("tokens", "text", "own"),
    [
        (("a", "b"), "ab", ("a", "b")),
        (("hm", "</think>", "a", "b"), "ab", ("a", "b")),
        (("ab", "</think>", "ab"), "ab", ("ab",)),
        (("a", "b", "END"), "ab", ("a", "b")),  # a stop string, which is no part of the text
        (("a", "bEND"), "ab", ("a", "bEND")),
        (("a", "b", ""), "ab", ("a", "b")),  # the token that ended it
        (("x",), "ab", ("x",)),
    ],
)
def test_of_a_non_streaming_answer_those_of_its_text_are_told(
    tokens: tuple[str, ...], text: str, own: tuple[str, ...]
) -> None:
    """The neuron tells those of all tokens, in one list."""
    logprobs = {"content": [row(token) for token in tokens], "refusal": None}
    (said,) = (one for one in decode_non_streaming(answer({"content": text}, logprobs=logprobs)) if type(one) is Text)

    assert tuple(one.token for one in said.logprobs) == own


def test_a_non_streaming_answer_tells_its_stop_string() -> None:
    """As the stream does."""
    last = decode_non_streaming(answer({"content": "hi"}, stop_reason="END"))[-1]

    assert last == Finish("stop", "END", Usage(7, 3, 2))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense",
        b"{}",
        b'{"choices":[]}',
        b'{"choices":[{"message":{"content":"x"}}]}',
        b'{"choices":[{"finish_reason":"stop"}]}',
        answer({"tool_calls": [{"function": {"name": "f"}}]}),
        answer({"tool_calls": [{"id": "a", "function": {}}]}),
    ],
)
def test_a_non_streaming_answer_that_is_none_is_one_error(raw: bytes) -> None:
    """A body without a message is the neuron's fault."""
    (only,) = decode_non_streaming(raw)

    assert isinstance(only, Error)
    assert only.failure.code == "upstream_malformed_response"
