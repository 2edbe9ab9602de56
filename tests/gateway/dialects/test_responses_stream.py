"""Neutral events become the Responses stream that strict clients accept, and the Response that says the same."""

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from cortex_gateway.dialects.dialect import AnswerId, Earlier
from cortex_gateway.dialects.events import (
    Alternative,
    Error,
    Event,
    Finish,
    FinishReason,
    Reasoning,
    Start,
    Text,
    TokenLogprob,
    ToolArguments,
    ToolEnd,
    ToolStart,
    Usage,
)
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.grammar import OrderError
from cortex_gateway.dialects.opaque import unseal
from cortex_gateway.dialects.responses import request as requests
from cortex_gateway.dialects.responses.request import LOGPROBS
from cortex_gateway.dialects.responses.stream import ResponseEncoder
from cortex_gateway.dialects.sse import SseParser

STRICT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
IDENTITY = AnswerId("req_1", "a" * 32, 1_700_000_000)
START = Start(Usage(10, 0, 4))
TOOLS = [
    {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False},
    {"type": "custom", "name": "apply_patch"},
    {"type": "namespace", "name": "agents", "description": "d", "tools": [{"type": "function", "name": "spawn"}]},
]
HEARTBEAT = None
Told = Event | None


def call(at: int, function: str, *arguments: str) -> list[Event]:
    return [ToolStart(at, f"call_{at}", function), *(ToolArguments(at, text) for text in arguments), ToolEnd(at)]


def finish(reason: FinishReason = "stop") -> Finish:
    return Finish(reason, None, Usage(10, 6, 4, 2))


def encoder(**fields: Any) -> ResponseEncoder:
    body = {"model": "m", "input": "hi", "tools": TOOLS, "instructions": "be brief", **fields}
    return ResponseEncoder(requests.decode(requests.read(json.dumps(body).encode()), Earlier()), IDENTITY)


def streamed(*events: Told, **fields: Any) -> list[Any]:
    """The payloads; each is what the SDK's own types demand, one open item at a time, all numbered."""
    encoding = encoder(**fields)
    encoded = b""
    for event in events:
        match event:
            case None:
                encoded += encoding.keep_alive(None)
            case Error(failure):
                encoded += encoding.fail(failure)
            case _:
                encoded += encoding.feed(event)
    parsed = SseParser().feed(encoded)
    told = [json.loads(event.data) for event in parsed]
    assert [event.event for event in parsed] == [event["type"] for event in told]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    for event in told:
        if event["type"] != "response.failed":  # whose codes are more than OpenAI's types name
            STRICT.validate_python(event)
    if encoding.ended:
        assert json.loads(encoding.whole()) == told[-1]["response"]
    return told


def kinds(events: list[Any]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def output(*events: Told, **fields: Any) -> list[Any]:
    """What a client makes of the items, which must be what the last event says."""
    told = streamed(*events, **fields)
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    added = [event["item"]["id"] for event in told if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in told if "item" in event] == [at for at in range(len(done)) for _ in "ab"]
    assert added == [item["id"] for item in done]
    assert told[-1]["response"]["output"] == done
    return done


def test_text() -> None:
    """Every event in its order, and lists that strict clients insist on."""
    told = streamed(START, Text("a"), Text("b"), finish())

    assert kinds(told) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    part = told[7]["part"]
    assert (part["text"], part["annotations"], part["logprobs"]) == ("ab", [], [])
    assert (told[4]["logprobs"], told[6]["logprobs"], told[6]["text"]) == ([], [], "ab")
    assert {(event["output_index"], event["content_index"]) for event in told[3:8]} == {(0, 0)}


def test_log_probabilities_come_with_their_text_and_with_the_whole() -> None:
    """Of thoughts none are told."""
    first = TokenLogprob("a", -0.5, (97,), (Alternative("a", -0.5, (97,)), Alternative("b", -1.5, (98,))))
    second = TokenLogprob("b", -0.25, (98,))
    told = streamed(
        START, Reasoning("hm"), Text("a", (first,)), Text("b", (second,)), finish(), include=[LOGPROBS], top_logprobs=2
    )
    deltas = [event for event in told if event["type"] == "response.output_text.delta"]
    (done,) = (event for event in told if event["type"] == "response.output_text.done")
    part = told[-1]["response"]["output"][1]["content"][0]

    assert [[row["token"] for row in delta["logprobs"]] for delta in deltas] == [["a"], ["b"]]
    assert done["logprobs"] == part["logprobs"] == [row for delta in deltas for row in delta["logprobs"]]
    assert part["logprobs"][0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "b", "logprob": -1.5, "bytes": [98]},
        ],
    }
    assert told[-1]["response"]["top_logprobs"] == 2


def test_the_response_itself() -> None:
    """Its words at the beginning and at the end: what was asked, what it costs, and what has become of it."""
    told = streamed(START, Text("a"), finish(), metadata={"k": "v"}, temperature=0.5, store=False, truncation="auto")
    begun, ended = told[0]["response"], told[-1]["response"]

    Response.model_validate(ended)
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    assert ended["id"] == begun["id"] == "resp_" + "a" * 32
    assert (ended["status"], ended["model"], ended["created_at"]) == ("completed", "m", 1_700_000_000)
    assert (ended["metadata"], ended["temperature"], ended["store"]) == ({"k": "v"}, 0.5, False)
    assert (ended["truncation"], ended["instructions"], ended["tools"]) == ("disabled", "be brief", TOOLS)
    assert ended["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 16,
    }


def test_thoughts_are_an_item_before_the_text() -> None:
    """Closed before it, with a summary to read and the thoughts sealed."""
    told = streamed(START, Reasoning("h"), Reasoning("m"), Text("a"), finish())
    thought, message = (event["item"] for event in told if event["type"] == "response.output_item.done")

    assert kinds(told)[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm"}]
    assert unseal("reasoning", thought["encrypted_content"]) == "hm"
    assert message["content"][0]["text"] == "a"


def test_thoughts_may_come_again_after_text_and_calls() -> None:
    """Each in an item of its own."""
    done = output(
        START,
        Reasoning("a"),
        *call(0, "f", "{}"),
        Reasoning("b"),
        Text("c"),
        Reasoning("d"),
        *call(1, "f"),
        finish("tool_calls"),
    )

    assert [item["type"] for item in done] == [
        "reasoning",
        "function_call",
        "reasoning",
        "message",
        "reasoning",
        "function_call",
    ]
    assert len({item["id"] for item in done}) == 6


def test_calls() -> None:
    """A function's arguments as they were written, in pieces and whole, with the status of each."""
    told = streamed(START, *call(0, "f", '{"z":1,', '"a":2}'), *call(1, "agents__spawn"), finish("tool_calls"))
    first, second = (event["item"] for event in told if event["type"] == "response.output_item.done")
    added = next(event["item"] for event in told if event["type"] == "response.output_item.added")

    assert (added["status"], added["arguments"], added["name"]) == ("in_progress", "", "f")
    assert (first["status"], first["arguments"], first["call_id"]) == ("completed", '{"z":1,"a":2}', "call_0")
    assert (second["name"], second["namespace"], second["arguments"]) == ("spawn", "agents", "")
    pieces = [event["delta"] for event in told if event["type"] == "response.function_call_arguments.delta"]
    assert pieces == ['{"z":1,', '"a":2}']
    assert "namespace" not in first


@pytest.mark.parametrize(
    ("arguments", "bare"),
    [
        (('{"input":"*** Be', 'gin\\n"}'), "*** Begin\n"),
        (("*** Begin\n",), "*** Begin\n"),
        (('{"patch":"x"}',), '{"patch":"x"}'),
        ((), ""),
    ],
)
def test_a_custom_tool_gets_bare_text(arguments: tuple[str, ...], bare: str) -> None:
    """What the model put in `input`, and all that it wrote where it put nothing there."""
    told = streamed(START, *call(0, "apply_patch", *arguments), finish("tool_calls"))
    (item,) = (event["item"] for event in told if event["type"] == "response.output_item.done")
    deltas = [event["delta"] for event in told if event["type"] == "response.custom_tool_call_input.delta"]

    assert (item["type"], item["input"], item["name"]) == ("custom_tool_call", bare, "apply_patch")
    assert "".join(deltas) == bare
    assert "custom_tool_call_input.done" in kinds(told)


def test_an_answer_that_was_cut_is_incomplete() -> None:
    """The response says why; the item that was open is incomplete, too, and those before it are not."""
    told = streamed(START, Text("a"), *call(0, "f", '{"z'), finish("length"))
    response = told[-1]["response"]

    assert (told[-1]["type"], response["status"]) == ("response.incomplete", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure(502, "api_error", "upstream_read_failed", "cut"), "upstream_read_failed"),
        (Failure(400, "invalid_request_error", "context_length_exceeded", "long"), "context_length_exceeded"),
        (Failure(503, "rate_limit_error", None, "full"), "rate_limit_exceeded"),
        (Failure(500, "api_error", None, "oh"), "server_error"),
    ],
)
@pytest.mark.parametrize("before", [(), (HEARTBEAT,), (START, Text("a"))])
def test_a_failure_ends_it_wherever_it_stands(failure: Failure, code: str, before: tuple[Told, ...]) -> None:
    """`response.failed` is the last event, after the beginning that every stream has."""
    told = streamed(*before, Error(failure))

    assert kinds(told)[:2] == ["created", "in_progress"]
    assert kinds(told)[-1] == "failed"
    assert told[-1]["response"]["error"] == {"code": code, "message": failure.message}
    assert told[-1]["response"]["status"] == "failed"


def test_heartbeats_are_numbered_events() -> None:
    """The first one begins the stream; later ones repeat `in_progress`, without the words of the request."""
    told = streamed(HEARTBEAT, HEARTBEAT, START, Text("a"), HEARTBEAT, Text("b"), finish())

    assert kinds(told)[:3] == ["created", "in_progress", "in_progress"]
    assert kinds(told).count("created") == 1
    assert [event["delta"] for event in told if "delta" in event] == ["a", "b"]
    beats = [event["response"] for event in told if event["type"] == "response.in_progress"][1:]
    assert len(beats) == 2
    assert all(beat["tools"] == [] and beat["instructions"] is None for beat in beats)
    assert told[-1]["response"]["tools"] == TOOLS


def test_a_summary_is_one_item() -> None:
    """Of all that the model says, its text is kept, sealed."""
    events = (START, Reasoning("hm"), Text("It was "), Text("about x."), *call(0, "f", "{}"), finish())
    (item,) = output(*events, input=[{"type": "compaction_trigger"}])

    assert item["type"] == "compaction"
    assert unseal("compaction", item["encrypted_content"]) == "It was about x."


@pytest.mark.parametrize(("fields", "status"), [({}, "completed"), ({"max_output_tokens": 9}, "incomplete")])
def test_a_summary_is_whole_at_our_own_limit(fields: dict[str, Any], status: str) -> None:
    """A client's limit cuts it off."""
    told = streamed(START, Text("It was"), finish("length"), input=[{"type": "compaction_trigger"}], **fields)

    assert told[-1]["type"] == f"response.{status}"


def test_no_summary_is_a_failure() -> None:
    """A conversation must not be forgotten for nothing."""
    told = streamed(START, *call(0, "f", "{}"), finish("tool_calls"), input=[{"type": "compaction_trigger"}])

    assert told[-1]["type"] == "response.failed"


def test_in_the_background_it_is_queued_first() -> None:
    """Until a model has it; and cancelled where its client wants it no more."""
    encoding = encoder(background=True)
    statuses = [json.loads(encoding.whole())["status"]]
    encoding.working()
    statuses.append(json.loads(encoding.whole())["status"])
    encoding.cancel()
    statuses.append(json.loads(encoding.whole())["status"])

    assert statuses == ["queued", "in_progress", "cancelled"]
    assert encoding.ended


def test_what_cannot_come_now_raises() -> None:
    """The grammar of neutral events holds here, too."""
    encoding = encoder()
    with pytest.raises(OrderError):
        encoding.feed(Text("a"))
