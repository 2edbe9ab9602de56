"""A Responses body as the chat request a neuron reads; knows both shapes, and neither routing nor HTTP.

Fields that nobody here reads are tolerated at every level. What would change the meaning of an answer, and nobody here
does, is refused by name.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from attrs import frozen

from cortex_gateway.dialects.dialect import Earlier, Kept
from cortex_gateway.dialects.fields import (
    Json,
    array,
    body,
    flag,
    integer,
    kind,
    model,
    name,
    number,
    obj,
    refused,
    text,
)
from cortex_gateway.dialects.responses.items import Conversation, Message, Placed, kind_of, listed
from cortex_gateway.dialects.responses.tools import Tools, choose

LONGEST_KEY = 256  # characters
MOST_ALTERNATIVES, LOGPROBS = 20, "message.output_text.logprobs"
OFF = ("none", "minimal")
"""Efforts that ask for as good as no thinking."""
NOT_HERE = {
    "conversation": "there are no conversations here: name the answer before this one in `previous_response_id`",
    "prompt": "there are no stored prompts here: send `input` and `instructions`",
    "moderation": "nobody here moderates",
}
RESPONSE, TOKENIZED = "resp_", ("messages", "tools", "chat_template_kwargs")
# Responses' name -> (the neuron's name, how it is read)
SAMPLING: dict[str, tuple[str, Callable[[object, str], Any]]] = {
    "temperature": ("temperature", number),
    "top_p": ("top_p", number),
    "max_output_tokens": ("max_completion_tokens", integer),
    "parallel_tool_calls": ("parallel_tool_calls", flag),
}


@frozen
class Asked:
    """A body, read as far as that goes without earlier answers.

    Attributes:
        top: all of it.
        model: what the client called it.
        items: its own items, references among them.
        previous: the answer that it goes on from.
        references: ids of items that are to be found in earlier answers.
    """

    top: Json
    model: str
    items: list[Json]
    previous: str | None
    references: tuple[str, ...]

    @property
    def stream(self) -> bool:
        return _flag(self.top, "stream", default=False)

    @property
    def store(self) -> bool:
        return _flag(self.top, "store", default=True)

    @property
    def background(self) -> bool:
        return _flag(self.top, "background", default=False)


@frozen
class ResponsesRequest:
    """A decoded request.

    Attributes:
        asked: the client's words.
        items: its own items, references resolved.
        chat: the neuron's fields, without `model` and `stream`.
        tools: what the model may call.
        compacting: the answer is to be one compaction item.
        dropped: what was left out, a sentence for each.
    """

    asked: Asked
    items: list[Json]
    chat: dict[str, Any]
    tools: Tools
    compacting: bool
    dropped: tuple[str, ...]

    def neuron_body(self, resolved: str) -> bytes:
        """The bytes to post to /v1/chat/completions. A stream counts its prompt before the first token."""
        streams = self.asked.stream or self.asked.background
        options = {"include_usage": True, "continuous_usage_stats": True}
        streaming = {"stream": True, "stream_options": options} if streams else {}
        return msgspec.json.encode({"model": resolved, **self.chat, **streaming})

    def tokenize_body(self, resolved: str) -> bytes:
        """The bytes to post to /tokenize: whatever changes the prompt and nothing else."""
        return msgspec.json.encode(
            {"model": resolved, **{key: self.chat[key] for key in TOKENIZED if key in self.chat}}
        )

    @property
    def cache_key(self) -> str | None:
        """The conversation that the body names, if it does."""
        key = self.asked.top.get("prompt_cache_key")
        return key[:LONGEST_KEY] if isinstance(key, str) and key else None


def read(raw: bytes) -> Asked:
    """The body's own words. Raises RefusedError."""
    top = body(raw)
    named = model(top)
    for field, words in NOT_HERE.items():
        if top.get(field) is not None:
            raise refused(field, words, "unsupported_parameter")
    items = listed(top.get("input"))
    references = [
        name(item.get("id"), f"input.{at}.id")
        for at, item in enumerate(items)
        if kind_of(item, f"input.{at}") == "item_reference"
    ]
    previous = top.get("previous_response_id")
    before = None if previous is None else name(previous, "previous_response_id")
    asked = Asked(top, named, items, before, tuple(references))
    _check(asked)
    return asked


def decode(asked: Asked, earlier: Earlier) -> ResponsesRequest:
    """With the answers that it goes on from. Raises RefusedError."""
    top = asked.top
    if earlier.chain is None:
        message = f"Previous response with id {asked.previous!r} not found."
        raise refused("previous_response_id", message, "previous_response_not_found")
    _check_ended(earlier.chain)
    tools = Tools()
    if top.get("tools") is not None:
        tools.add(array(top["tools"], "tools"), "tools")
    conversation = Conversation(tools)
    if top.get("instructions") is not None:
        conversation.say("system", [text(top["instructions"], "instructions")])
    conversation.add(_history(earlier))
    items = _resolved(asked, earlier)
    conversation.add(Placed(item, f"input.{at}") for at, item in enumerate(items))
    chat = {"messages": _messages(conversation)}
    choice, left = choose(top.get("tool_choice"), tools)
    if left:
        chat["tools"] = left
    if choice is not None and left and not conversation.compacting:
        chat["tool_choice"] = choice
    _sampling(top, chat)
    _logprobs(top, chat)
    _reasoning(top, chat)
    _format(top, chat)
    dropped = (*tools.dropped, *conversation.dropped)
    return ResponsesRequest(asked, items, chat, tools, conversation.compacting, dropped)


def answers_of(items: Sequence[str]) -> frozenset[str]:
    """The answers of which these items are parts, by their ids as `response.item_id` makes them."""
    return frozenset(found for item in items if (found := _answer_of(item)) is not None)


def _answer_of(item: str) -> str | None:
    _, _, numbered = item.partition("_")
    return RESPONSE + numbered[:32] if len(numbered) > 32 else None


def _history(earlier: Earlier) -> list[Placed]:
    """What was said before, oldest first; of a summary and what it sums up, only the summary."""
    said: list[Placed] = []
    for kept in earlier.chain or ():
        output = msgspec.json.decode(kept.answer)["output"]
        if any(item["type"] == "compaction" for item in output):
            said = []
        else:
            items = msgspec.json.decode(kept.input)  # one that asked for a summary and got none asks no more
            said += [Placed(item, "previous_response_id") for item in items if item.get("type") != "compaction_trigger"]
        said += [Placed(item, "previous_response_id") for item in output]
    return said


def _check_ended(chain: Sequence[Kept]) -> None:
    """Only the last one can be under way still: what goes on from one that is, is refused."""
    if chain and msgspec.json.decode(chain[-1].answer).get("status") in ("queued", "in_progress"):
        message = f"the answer {chain[-1].id!r} has not come to its end yet"
        raise refused("previous_response_id", message, "previous_response_not_found")


def _resolved(asked: Asked, earlier: Earlier) -> list[Json]:
    """The request's items, those in place of which only an id was sent taken from earlier answers."""
    if not asked.references:
        return asked.items
    known = {
        item["id"]: item
        for kept in (*(earlier.chain or ()), *earlier.others)
        for item in (*msgspec.json.decode(kept.input), *msgspec.json.decode(kept.answer)["output"])
        if isinstance(item.get("id"), str)
    }
    items = []
    for at, item in enumerate(asked.items):
        if kind_of(item, f"input.{at}") == "item_reference":
            if item["id"] not in known:
                message = f"Item with id {item['id'][:64]!r} not found: it was not kept, or not under this key"
                raise refused(f"input.{at}.id", message, "item_not_found")
            item = known[item["id"]]  # noqa: PLW2901 -- that is what the reference stands for
        items.append(item)
    return items


def _messages(conversation: Conversation) -> list[Message]:
    messages = conversation.messages()
    if not messages:
        raise refused("input", "at least one item with content is required")
    return messages


def _check(asked: Asked) -> None:
    """What does not go together, and what nobody here does."""
    top = asked.top
    if asked.background and not asked.store:
        raise refused("background", "needs `store`: what is not kept cannot be asked for later")
    for at, value in enumerate(array(top.get("include") or [], "include")):
        text(value, f"include.{at}")
    if top.get("truncation") not in (None, "auto", "disabled"):
        raise refused("truncation", f"must be auto or disabled, found {kind(top['truncation'])}")
    for field, value in obj(top.get("metadata") or {}, "metadata").items():
        text(value, f"metadata.{field[:64]}")


def _sampling(top: Json, chat: dict[str, Any]) -> None:
    for ours, (theirs, read_value) in SAMPLING.items():
        if top.get(ours) is not None:
            chat[theirs] = read_value(top[ours], ours)
    if chat.get("max_completion_tokens", 1) < 1:
        raise refused("max_output_tokens", f"must be at least 1, found {chat['max_completion_tokens']}")
    if "tools" not in chat:
        chat.pop("parallel_tool_calls", None)


def _logprobs(top: Json, chat: dict[str, Any]) -> None:
    """Either of the two fields asks for them."""
    alternatives = 0 if top.get("top_logprobs") is None else integer(top["top_logprobs"], "top_logprobs")
    if not 0 <= alternatives <= MOST_ALTERNATIVES:
        raise refused("top_logprobs", f"must be from 0 to {MOST_ALTERNATIVES}, found {alternatives}")
    if alternatives or LOGPROBS in (top.get("include") or ()):
        chat.update(logprobs=True, top_logprobs=alternatives)


def _reasoning(top: Json, chat: dict[str, Any]) -> None:
    if top.get("reasoning") is None:
        return
    effort = obj(top["reasoning"], "reasoning").get("effort")
    if effort is not None:
        degree = text(effort, "reasoning.effort")
        chat["chat_template_kwargs"] = {"enable_thinking": degree not in OFF, "reasoning_effort": degree}


def _format(top: Json, chat: dict[str, Any]) -> None:
    form = obj(top["text"], "text").get("format") if top.get("text") is not None else None
    if form is None:
        return
    asked = obj(form, "text.format")
    match asked.get("type"):
        case "text":
            return
        case "json_object":
            chat["response_format"] = {"type": "json_object"}
        case "json_schema":
            fields = ("name", "description", "schema", "strict")
            schema = {field: asked[field] for field in fields if asked.get(field) is not None}
            obj(schema.get("schema"), "text.format.schema")
            chat["response_format"] = {"type": "json_schema", "json_schema": schema}
        case other:
            message = f"must be text, json_object or json_schema, found {kind(other)}"
            raise refused("text.format.type", message, "unsupported_parameter")


def _flag(top: Json, field: str, *, default: bool) -> bool:
    return flag(top[field], field) if top.get(field) is not None else default
