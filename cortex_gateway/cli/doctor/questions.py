"""How the doctor asks and reads in each dialect. Pure: bodies out, answers in; knows no network and no verdict."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from attrs import field, frozen

Body = dict[str, Any]
Turn = dict[str, str]
CAPITALS = ("Paris", "Rome")
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"enum": list(CAPITALS)}},
    "required": ["capital"],
    "additionalProperties": False,
}
"""An answer that is short whatever the model."""
TOOL = "tell_capital"


@frozen(kw_only=True)
class Question:
    """What to ask, whatever the dialect. `longest` is the longest answer in tokens; `tool` and `form` bind it to SCHEMA."""

    model: str
    turns: Sequence[Turn]
    longest: int
    tool: bool = False
    form: bool = False
    stream: bool = False


@frozen(kw_only=True)
class Reply:
    """What came. `text` has the reasoning, too, if there is nothing else; `call` is the JSON of a call's arguments.

    `prompt` and `cached` are tokens: of the whole prompt, and those of it that were not computed again.
    """

    text: str = ""
    call: str | None = None
    prompt: int = 0
    cached: int = 0


@frozen(kw_only=True)
class Dialect:
    """One way of asking. `pieces` and `ended` read the events of a stream."""

    name: str
    path: str
    body: Callable[[Question], Body] = field(repr=False)
    read: Callable[[Mapping[str, Any]], Reply] = field(repr=False)
    piece: Callable[[Mapping[str, Any]], str] = field(repr=False)
    ended: Callable[[Mapping[str, Any]], bool] = field(repr=False)


def _chat_body(asked: Question) -> Body:
    body: Body = {"model": asked.model, "messages": list(asked.turns), "max_completion_tokens": asked.longest}
    if asked.tool:
        function = {"name": TOOL, "description": "Tells a capital.", "parameters": SCHEMA}
        body["tools"] = [{"type": "function", "function": function}]
        body["tool_choice"] = {"type": "function", "function": {"name": TOOL}}
    if asked.form:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
        }
    return body | {"temperature": 0, "stream": asked.stream}


def _chat_read(answer: Mapping[str, Any]) -> Reply:
    message, usage = answer["choices"][0]["message"], answer["usage"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return Reply(
        text=message.get("content") or message.get("reasoning_content") or "",
        call=next((call["arguments"] for call in calls if call["name"] == TOOL), None),
        prompt=usage["prompt_tokens"],
        cached=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
    )


def _chat_piece(event: Mapping[str, Any]) -> str:
    deltas = [choice.get("delta", {}) for choice in event.get("choices", ())]
    return "".join(delta.get("content") or delta.get("reasoning_content") or "" for delta in deltas)


def _chat_ended(event: Mapping[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in event.get("choices", ()))


def _responses_body(asked: Question) -> Body:
    body: Body = {"model": asked.model, "input": list(asked.turns), "max_output_tokens": asked.longest, "store": False}
    if asked.tool:
        body["tools"] = [{"type": "function", "name": TOOL, "description": "Tells a capital.", "parameters": SCHEMA}]
        body["tool_choice"] = {"type": "function", "name": TOOL}
    if asked.form:
        body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}
    return body | {"temperature": 0, "stream": asked.stream}


def _responses_read(answer: Mapping[str, Any]) -> Reply:
    items, usage = answer["output"], answer["usage"]
    said = [part.get("text", "") for item in items if item["type"] == "message" for part in item["content"]]
    thought = [
        part.get("text", "")
        for item in items
        if item["type"] == "reasoning"
        for part in [*(item.get("summary") or ()), *(item.get("content") or ())]
    ]
    calls = [item for item in items if item["type"] == "function_call"]
    return Reply(
        text="".join(said) or "".join(thought),
        call=next((call["arguments"] for call in calls if call["name"] == TOOL), None),
        prompt=usage["input_tokens"],
        cached=(usage.get("input_tokens_details") or {}).get("cached_tokens", 0),
    )


def _responses_piece(event: Mapping[str, Any]) -> str:
    delta = event.get("delta")
    return delta if str(event.get("type")).endswith(".delta") and isinstance(delta, str) else ""


def _responses_ended(event: Mapping[str, Any]) -> bool:
    return event.get("type") in ("response.completed", "response.incomplete")


def _messages_body(asked: Question) -> Body:
    body: Body = {"model": asked.model, "messages": list(asked.turns), "max_tokens": asked.longest}
    if asked.tool:
        body["tools"] = [{"name": TOOL, "description": "Tells a capital.", "input_schema": SCHEMA}]
        body["tool_choice"] = {"type": "tool", "name": TOOL}
    if asked.form:
        body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    return body | {"temperature": 0, "stream": asked.stream}


def _messages_read(answer: Mapping[str, Any]) -> Reply:
    blocks, usage = answer["content"], answer["usage"]
    calls = [block for block in blocks if block["type"] == "tool_use" and block["name"] == TOOL]
    cached = usage.get("cache_read_input_tokens") or 0
    return Reply(
        text=_joined(blocks, "text") or _joined(blocks, "thinking"),
        call=json.dumps(calls[0]["input"]) if calls else None,
        prompt=usage["input_tokens"] + cached + (usage.get("cache_creation_input_tokens") or 0),
        cached=cached,
    )


def _joined(blocks: Iterable[Mapping[str, Any]], kind: str) -> str:
    return "".join(block[kind] for block in blocks if block["type"] == kind)


def _messages_piece(event: Mapping[str, Any]) -> str:
    delta = event.get("delta", {}) if event.get("type") == "content_block_delta" else {}
    return str(delta.get("text") or delta.get("thinking") or "")


def _messages_ended(event: Mapping[str, Any]) -> bool:
    return event.get("type") == "message_stop"


DIALECTS = (
    Dialect(
        name="openai",
        path="/v1/chat/completions",
        body=_chat_body,
        read=_chat_read,
        piece=_chat_piece,
        ended=_chat_ended,
    ),
    Dialect(
        name="responses",
        path="/v1/responses",
        body=_responses_body,
        read=_responses_read,
        piece=_responses_piece,
        ended=_responses_ended,
    ),
    Dialect(
        name="anthropic",
        path="/v1/messages",
        body=_messages_body,
        read=_messages_read,
        piece=_messages_piece,
        ended=_messages_ended,
    ),
)
