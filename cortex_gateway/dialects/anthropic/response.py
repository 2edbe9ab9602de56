"""Neutral events as one non-streaming Message, and the counts and reasons both forms share; knows no bytes of a stream."""

import base64
import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec

from cortex_gateway.dialects.events import (
    Error,
    Event,
    Finish,
    Reasoning,
    Start,
    Text,
    ToolArguments,
    ToolStart,
    Usage,
)
from cortex_gateway.dialects.failure import Failure, malformed
from cortex_gateway.dialects.grammar import Grammar
from cortex_gateway.dialects.opaque import seal


def stop_reason(finish: Finish) -> str:
    """Anthropic's word for how the answer ended."""
    if finish.stop is not None and finish.reason == "stop":
        return "stop_sequence"
    return {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}[finish.reason]


def usage(counts: Usage) -> dict[str, int]:
    """`input_tokens` leaves out what came from the cache, which has its own count."""
    return {
        "input_tokens": counts.prompt - counts.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": counts.cached,
        "output_tokens": counts.completion,
    }


def signature(thought: str, *, omitted: bool = False) -> str:
    """What clients keep beside a thinking block and send back. Opaque to them, and never checked here.

    Where the thought was `omitted` it is in there: the next turn shows it to the model again, as it was generated.
    """
    if omitted:
        return seal("thinking", thought)
    return base64.b64encode(hashlib.sha256(b"cortex thinking\n" + thought.encode()).digest()).decode()


def non_streaming_message(
    events: Iterable[Event], *, message_id: str, model: str, omits_thinking: bool = False
) -> bytes | Failure:
    """The Message that the events of a non-streaming answer make, or the failure they end in."""
    grammar = Grammar()
    blocks: list[dict[str, Any]] = []
    for event in events:
        grammar.feed(event)
        if isinstance(event, Error):
            return event.failure
        if isinstance(event, Finish):
            return _message(blocks, event, message_id, model)
        _add(event, blocks, omits_thinking=omits_thinking)
    raise AssertionError("a non-streaming answer ends in Finish or Error")


def _add(event: Event, blocks: list[dict[str, Any]], *, omits_thinking: bool) -> None:
    match event:
        case Text(text):
            blocks.append({"type": "text", "text": text})
        case Reasoning(text):
            shown, signed = "" if omits_thinking else text, signature(text, omitted=omits_thinking)
            blocks.append({"type": "thinking", "thinking": shown, "signature": signed})
        case ToolStart(_, identity, name):
            blocks.append({"type": "tool_use", "id": identity, "name": name, "input": ""})
        case ToolArguments(_, text):
            blocks[-1]["input"] += text
        case _:
            assert not isinstance(event, Start) or not blocks


def _message(blocks: list[dict[str, Any]], finish: Finish, message_id: str, model: str) -> bytes | Failure:
    for block in blocks:
        if block["type"] == "tool_use":
            arguments = _arguments(block["input"], cut=finish.reason == "length")
            if arguments is None:
                return malformed(f"the arguments of tool call {block['id']!r} are not a JSON object")
            block["input"] = arguments
    message = {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": stop_reason(finish),
        "stop_sequence": finish.stop if stop_reason(finish) == "stop_sequence" else None,
        "usage": usage(finish.usage),
    }
    return msgspec.json.encode(message)


def _arguments(text: str, *, cut: bool) -> dict[str, Any] | None:
    """No text is no arguments; those of an answer that was cut off cannot be read and are left empty."""
    try:
        value = msgspec.json.decode(text or "{}")
    except (ValueError, RecursionError):
        return {} if cut else None
    return value if isinstance(value, dict) else None
