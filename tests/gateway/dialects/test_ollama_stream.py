"""Neutral events become the lines of Ollama's stream, and the one object that says the same."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cortex_gateway.dialects.dialect import AnswerId, Timing
from cortex_gateway.dialects.events import (
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
from cortex_gateway.dialects.ollama import errors, models, response
from cortex_gateway.dialects.ollama.response import Said, chat_said, generate_said
from cortex_gateway.dialects.ollama.stream import LineEncoder

START = Start(Usage(10, 0, 4))
BROKEN = Failure(502, "api_error", "upstream_read_failed", "cut")
FORMS = pytest.mark.parametrize("said", [chat_said, generate_said])


def clock(step: float = 0.5, waited: float = 0.25) -> Iterator[Timing]:
    elapsed = 1.0
    while True:
        yield Timing(elapsed, waited)
        elapsed += step


def identity(step: float = 0.5) -> AnswerId:
    ticks = clock(step)
    return AnswerId("req_1", "7" * 32, created=1_700_000_000, timing=lambda: next(ticks))


def finish(reason: FinishReason = "stop") -> Finish:
    return Finish(reason, None, Usage(10, 6, 4))


def call(arguments: str, index: int = 0) -> tuple[Event, ...]:
    return ToolStart(index, f"call_{index}", "f"), ToolArguments(index, arguments), ToolEnd(index)


def streamed(*events: Event, said: Said = chat_said) -> list[Any]:
    encoder = LineEncoder(said, model="m", identity=identity())
    raw = b"".join(encoder.fail(one.failure) if isinstance(one, Error) else encoder.feed(one) for one in events)
    assert raw.endswith(b"\n")
    return [json.loads(line) for line in raw.split(b"\n")[:-1]]


def whole(*events: Event, said: Said = chat_said) -> Any:
    encoded = response.non_streaming(events, said, model="m", identity=identity())
    assert isinstance(encoded, bytes)
    return json.loads(encoded)


def told(line: Any) -> tuple[str, str, list[Any]]:
    """Text, thinking and calls of a line of either form."""
    inner = line.get("message", line)
    return inner.get("content", inner.get("response")), inner.get("thinking", ""), inner.get("tool_calls", [])


@FORMS
def test_text_and_thoughts_in_lines(said: Said) -> None:
    """Each an object that says who made it and when; the last one has the reason and the counts."""
    lines = streamed(START, Reasoning("hm"), Text("a"), Text("b"), finish(), said=said)

    assert [told(line) for line in lines] == [("", "hm", []), ("a", "", []), ("b", "", []), ("", "", [])]
    assert [line["done"] for line in lines] == [False, False, False, True]
    assert {line["model"] for line in lines} == {"m"}
    assert lines[0]["created_at"] == "2023-11-14T22:13:21.500000Z"
    assert (lines[-1]["done_reason"], lines[-1]["prompt_eval_count"], lines[-1]["eval_count"]) == ("stop", 10, 6)


@FORMS
def test_log_probabilities_stand_beside_the_text(said: Said) -> None:
    """In each line, and all of them in an answer of one piece; no key where they were not asked for."""
    rows = [TokenLogprob(token, -1.0, (ord(token),)) for token in "ab"]
    events = (START, Text("a", (rows[0],)), Text("b", (rows[1],)), Text("c"), finish())
    lines = streamed(*events, said=said)

    assert [[row["token"] for row in line.get("logprobs", ())] for line in lines] == [["a"], ["b"], [], []]
    assert "logprobs" not in lines[2]
    assert [row["token"] for row in whole(*events, said=said)["logprobs"]] == ["a", "b"]


def test_durations_are_nanoseconds_and_add_up() -> None:
    """Waiting, the prompt until the first token, and the answer after it."""
    last = streamed(START, Text("a"), finish())[-1]

    assert (last["load_duration"], last["prompt_eval_duration"]) == (250_000_000, 750_000_000)
    assert (last["eval_duration"], last["total_duration"]) == (1_000_000_000, 2_000_000_000)


def test_of_an_answer_in_one_piece_the_first_token_is_not_known() -> None:
    """So the prompt's time is in the answer's."""
    answer = whole(START, Text("a"), finish())

    assert "prompt_eval_duration" not in answer
    assert answer["eval_duration"] == answer["total_duration"] - answer["load_duration"]


def test_no_duration_is_zero() -> None:
    """Clients divide by it."""
    encoder = LineEncoder(chat_said, model="m", identity=AnswerId("r", "u"))
    last = json.loads(encoder.feed(START) + encoder.feed(finish()))

    assert last["eval_duration"] == last["prompt_eval_duration"] == 1


@FORMS
def test_a_call_comes_whole_with_its_arguments_as_an_object(said: Said) -> None:
    """Keys in their order; several calls in theirs."""
    pieces = (ToolStart(0, "call_0", "f"), ToolArguments(0, '{"z":1,'), ToolArguments(0, '"a":2}'), ToolEnd(0))
    events = (START, Text("x"), *pieces, ToolStart(1, "call_1", "f"), ToolEnd(1), finish("tool_calls"))
    lines, answer = streamed(*events, said=said), whole(*events, said=said)

    calls = [one for line in lines for one in told(line)[2]]
    assert [json.dumps(one["function"]["arguments"]) for one in calls] == ['{"z": 1, "a": 2}', "{}"]
    assert [(one["id"], one["function"]["index"]) for one in calls] == [("call_0", 0), ("call_1", 1)]
    assert told(answer) == ("x", "", calls)
    assert lines[-1]["done_reason"] == answer["done_reason"] == "stop"


@pytest.mark.parametrize("arguments", ['{"z":', "[1]", "[" * 100_000])
def test_a_call_that_was_cut_off_is_none(arguments: str) -> None:
    """The reason says so."""
    events = (START, *call("{}"), *call(arguments, 1), finish("length"))
    lines, answer = streamed(*events), whole(*events)

    assert [one["id"] for line in lines for one in told(line)[2]] == ["call_0"]
    assert [one["id"] for one in told(answer)[2]] == ["call_0"]
    assert lines[-1]["done_reason"] == answer["done_reason"] == "length"


def test_arguments_that_are_no_object_are_told_as_written() -> None:
    """In their place, also before another call and before text."""
    events = (START, *call("[1]"), *call("{}", 1), *call("7", 2), Text("x"), *call("no", 3), finish("tool_calls"))
    found = [
        told(line)[:1] + tuple(one["function"]["arguments"] for one in told(line)[2]) for line in streamed(*events)
    ]

    odd = [{"malformed_arguments": text} for text in ("[1]", "7", "no")]
    assert found == [("", odd[0]), ("", {}), ("", odd[1]), ("x",), ("", odd[2]), ("",)]
    assert [one["function"]["arguments"] for one in told(whole(*events))[2]] == [odd[0], {}, odd[1], odd[2]]


@FORMS
def test_a_keep_alive_is_a_piece_with_nothing_in_it(said: Said) -> None:
    """Not an empty line, which no client can read."""
    raw = LineEncoder(said, model="m", identity=identity()).keep_alive(None)

    line = json.loads(raw)
    assert (raw.count(b"\n"), raw[-1:]) == (1, b"\n")
    assert (told(line), line["done"]) == (("", "", []), False)


def test_a_failure_is_the_last_line() -> None:
    assert streamed(START, Text("a"), Error(BROKEN))[-1] == {"error": "cut"}
    assert response.non_streaming([START, Error(BROKEN)], chat_said, model="m", identity=identity()) is BROKEN


def test_events_out_of_order_are_our_fault() -> None:
    with pytest.raises(OrderError):
        streamed(Text("a"))


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (Failure(400, "invalid_request_error", "missing_model_field", "model: field required"), "model is required"),
        (
            Failure(404, "invalid_request_error", "model_not_found", "The model 'x' does not exist. Did you mean 'y'?"),
            "model 'x' not found. Did you mean 'y'?",
        ),
        (BROKEN, "cut"),
    ],
)
def test_errors_are_in_the_words_that_clients_look_for(failure: Failure, words: str) -> None:
    assert json.loads(errors.body(failure)) == {"error": words}
    assert errors.line(failure) == errors.body(failure) + b"\n"


@pytest.mark.parametrize(
    ("name", "tagged"),
    [
        ("demo", "demo:latest"),
        ("demo:8b", "demo:8b"),
        ("org/demo", "org/demo:latest"),
        ("hf:org/demo", "hf:org/demo:latest"),
    ],
)
def test_every_name_has_a_tag(name: str, tagged: str) -> None:
    assert models.tagged(name) == tagged
