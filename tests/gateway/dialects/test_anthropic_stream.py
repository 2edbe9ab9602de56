"""Neutral events become the Messages stream that clients accept, and the whole Message that says the same. Lines are 4.1's."""

import json
from typing import Any

import pytest

from cortex_gateway.dialects.anthropic.response import non_streaming_message, signature
from cortex_gateway.dialects.anthropic.stream import PING, MessageEncoder
from cortex_gateway.dialects.events import (
    Error,
    Event,
    Finish,
    FinishReason,
    Reasoning,
    Start,
    Text,
    ToolArguments,
    ToolEnd,
    ToolStart,
    Usage,
)
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.grammar import OrderError
from cortex_gateway.dialects.opaque import unseal
from cortex_gateway.dialects.sse import SseParser

START = Start(Usage(10, 0, 4))
CALL: tuple[Event, ...] = (
    ToolStart(0, "call_1", "f"),
    ToolArguments(0, '{"z":1,'),
    ToolArguments(0, '"a":2}'),
    ToolEnd(0),
)
BROKEN = Failure(502, "api_error", "upstream_read_failed", "cut")


def finish(reason: FinishReason = "stop", stop: str | None = None) -> Finish:
    return Finish(reason, stop, Usage(10, 6, 4))


def streamed(*events: Event) -> list[Any]:
    encoder = MessageEncoder(message_id="msg_1", model="m", request_id="req_1")
    encoded = [encoder.fail(event.failure) if isinstance(event, Error) else encoder.feed(event) for event in events]
    parsed = SseParser().feed(b"".join(encoded))
    assert all(json.loads(event.data)["type"] == event.event for event in parsed)
    return [json.loads(event.data) for event in parsed]


def message(*events: Event) -> Any:
    encoded = non_streaming_message(events, message_id="msg_1", model="m")
    assert isinstance(encoded, bytes)
    return json.loads(encoded)


def accumulated(events: list[Any]) -> list[Any]:
    """What a strict client makes of the blocks; every delta must fit its block, and one block is open at a time."""
    fitting = {
        "text_delta": "text",
        "thinking_delta": "thinking",
        "signature_delta": "thinking",
        "input_json_delta": "tool_use",
    }
    blocks: list[Any] = []
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            is_open = True
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[-1]
            assert is_open
            assert event["index"] == len(blocks) - 1
            assert fitting[delta["type"]] == block["type"]
            field, value = next((key, value) for key, value in delta.items() if key != "type")
            key = "json" if field == "partial_json" else field
            block[key] = block[key] + value
        elif event["type"] == "content_block_stop":
            assert is_open
            assert event["index"] == len(blocks) - 1
            is_open = False
    assert not is_open
    return [closed(block) for block in blocks]


def closed(block: dict[str, Any]) -> dict[str, Any]:
    arguments = block.pop("json")
    if block["type"] == "tool_use" and arguments:
        block["input"] = json.loads(arguments)
    return block


SEQUENCES: list[tuple[Event, ...]] = [
    (Text("a"), Text("b")),
    (Reasoning("hm"), Text("a")),
    (Reasoning("hm"), *CALL),
    (Text("a"), Reasoning("hm"), Text("b")),
    (Text("a"), *CALL, Text("b"), Reasoning("c")),
    (*CALL, ToolStart(1, "call_2", "g"), ToolEnd(1)),
    (),
]


@pytest.mark.parametrize("middle", SEQUENCES)
def test_blocks_are_strictly_one_after_another(middle: tuple[Event, ...]) -> None:
    """Lines 1 and 2: each kind in its own block, closed before the next, indexes without gaps."""
    events = streamed(START, *middle, finish())
    kinds = [event["type"] for event in events]

    accumulated(events)
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]


@pytest.mark.parametrize("middle", [*SEQUENCES[:3], (Reasoning("x"), Text("a"), *CALL)])
def test_the_whole_message_is_what_the_stream_adds_up_to(middle: tuple[Event, ...]) -> None:
    """Wire.md 2.9.1: a client that falls back to non-stream loses nothing."""
    merged = [event for event in middle if not (isinstance(event, Text) and event.text == "b")]
    assert accumulated(streamed(START, *merged, finish())) == message(START, *merged, finish())["content"]


def test_the_start_has_the_real_prompt_without_what_was_cached() -> None:
    """Lines 6 and 7."""
    start = streamed(START)[0]["message"]

    assert start["usage"] == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 0,
    }
    assert (start["id"], start["role"], start["content"], start["stop_reason"]) == ("msg_1", "assistant", [], None)


def test_the_last_counts_are_cumulative() -> None:
    """Line 7."""
    counts = {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 6,
    }

    assert streamed(START, Text("a"), finish())[-2]["usage"] == counts
    assert message(START, Text("a"), finish())["usage"] == counts


def test_thinking_is_signed_before_its_block_ends() -> None:
    """Line 3, and the signature is the same in both forms."""
    events = streamed(START, Reasoning("a"), Reasoning("b"), Text("c"), finish())
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]

    assert deltas[2] == {"type": "signature_delta", "signature": signature("ab")}
    assert message(START, Reasoning("ab"), finish())["content"][0]["signature"] == signature("ab")
    assert signature("ab") != signature("abc")


def test_a_thought_that_is_left_out_is_a_block_all_the_same() -> None:
    """Of `display: omitted`: empty, with a signature that holds it, in both forms."""
    encoder = MessageEncoder(message_id="msg_1", model="m", request_id="req_1", omits_thinking=True)
    raw = b"".join(map(encoder.feed, (START, Reasoning("a"), Reasoning("b"), Text("c"), finish())))
    events = [json.loads(event.data) for event in SseParser().feed(raw)]
    whole = non_streaming_message(
        [START, Reasoning("ab"), Text("c"), finish()], message_id="msg_1", model="m", omits_thinking=True
    )

    assert isinstance(whole, bytes)
    blocks = json.loads(whole)["content"]
    assert accumulated(events) == blocks
    assert blocks[0] == {"type": "thinking", "thinking": "", "signature": signature("ab", omitted=True)}
    assert unseal("thinking", blocks[0]["signature"]) == "ab"


def test_a_tool_starts_empty_and_others_have_no_input() -> None:
    """Line 9."""
    starts = [
        event["content_block"]
        for event in streamed(START, Text("a"), Reasoning("b"), *CALL, finish("tool_calls"))
        if event["type"] == "content_block_start"
    ]

    assert starts == [
        {"type": "text", "text": ""},
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "tool_use", "id": "call_1", "name": "f", "input": {}},
    ]


def test_a_call_without_arguments_is_still_a_block() -> None:
    """Line 9: its input is the empty object."""
    call = (ToolStart(0, "t", "f"), ToolEnd(0))

    assert accumulated(streamed(START, *call, finish("tool_calls")))[0]["input"] == {}
    assert message(START, *call, finish("tool_calls"))["content"][0]["input"] == {}


def test_arguments_keep_their_order() -> None:
    """Line 10."""
    assert list(message(START, *CALL, finish("tool_calls"))["content"][0]["input"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("reason", "stop", "said", "sequence"),
    [
        ("stop", None, "end_turn", None),
        ("stop", "END", "stop_sequence", "END"),
        ("length", None, "max_tokens", None),
        ("tool_calls", None, "tool_use", None),
    ],
)
def test_how_it_ended(reason: FinishReason, stop: str | None, said: str, sequence: str | None) -> None:
    """Lines 8 and 18."""
    delta = streamed(START, finish(reason, stop))[-2]["delta"]
    once = message(START, finish(reason, stop))

    assert delta == {"stop_reason": said, "stop_sequence": sequence}
    assert (once["stop_reason"], once["stop_sequence"]) == (said, sequence)


def test_a_truncated_call_is_max_tokens_with_what_there_is() -> None:
    """Line 8: cut arguments cannot be read, and the reason says why."""
    cut = (ToolStart(0, "t", "f"), ToolArguments(0, '{"a'), ToolEnd(0))
    once = message(START, *cut, finish("length"))

    assert (once["stop_reason"], once["content"][0]["input"]) == ("max_tokens", {})


@pytest.mark.parametrize("arguments", ['{"a', "[1]", "7"])
def test_arguments_that_are_no_object_are_the_neuron_s_fault(arguments: str) -> None:
    """A client is never told to call a tool with something else."""
    call = (ToolStart(0, "t", "f"), ToolArguments(0, arguments), ToolEnd(0))
    failure = non_streaming_message((START, *call, finish("tool_calls")), message_id="msg_1", model="m")

    assert isinstance(failure, Failure)
    assert failure.code == "upstream_malformed_response"


@pytest.mark.parametrize("before", [(), (START,), (START, Text("a")), (START, CALL[0], CALL[1])])
def test_a_failure_is_the_last_event_and_no_message_stop(before: tuple[Event, ...]) -> None:
    """Line 21: nobody takes half an answer for a whole one."""
    events = streamed(*before, Error(BROKEN))

    assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": "cut"}, "request_id": "req_1"}
    assert "message_stop" not in [event["type"] for event in events]
    assert non_streaming_message((*before, Error(BROKEN)), message_id="msg_1", model="m") == BROKEN


def test_nothing_follows_the_end() -> None:
    """The encoder holds its caller to the grammar."""
    encoder = MessageEncoder(message_id="msg_1", model="m", request_id="req_1")
    encoder.feed(START)
    encoder.feed(finish())

    with pytest.raises(OrderError):
        encoder.feed(Text("late"))


def test_the_ping_is_one_event() -> None:
    """Line 22."""
    (event,) = SseParser().feed(PING)

    assert (event.event, json.loads(event.data)) == ("ping", {"type": "ping"})
