"""A Responses body as the chat request a neuron reads; knows both shapes, and neither routing nor HTTP.

Fields that nobody here reads are tolerated at every level. What would change the meaning of an answer, and nobody here
does, is refused by name.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from attrs import frozen

from cortex_gateway.dialects.dialect import Earlier
from cortex_gateway.dialects.failure import RefusedError
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
from cortex_gateway.dialects.responses.earlier import (
    CONVERSATION,
    RESPONSE,
    check_ended,
    history,
    no_conversation,
    resolved,
)
from cortex_gateway.dialects.responses.items import Conversation, Message, Placed, kind_of, listed
from cortex_gateway.dialects.responses.tools import Tools, choose

LONGEST_KEY = 256  # characters
MOST_ALTERNATIVES, LOGPROBS = 20, "message.output_text.logprobs"
OFF = ("none", "minimal")
"""Efforts that ask for as good as no thinking."""
NOT_HERE = {
    "prompt": "there are no stored prompts here: send `input` and `instructions`",
    "moderation": "nobody here moderates",
}
TOKENIZED = ("messages", "tools", "chat_template_kwargs")
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
        conversation: the one that it goes on.
    """

    top: Json
    model: str
    items: list[Json]
    previous: str | None
    references: tuple[str, ...]
    conversation: str | None

    @property
    def alone(self) -> bool:
        """It can be read without anything from before."""
        return self.previous is None and self.conversation is None and not self.references

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
        return key[:LONGEST_KEY] if isinstance(key, str) and key else self.asked.conversation


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
    if before is not None and not before.startswith(RESPONSE):
        raise _not_found(before)
    asked = Asked(top, named, items, before, tuple(references), _conversation(top))
    _check(asked)
    return asked


SUMMARY_TOKENS = 4_096
"""At most so many has a summary whose length nobody has said: a model that rambles would fill its window."""


def decode(asked: Asked, earlier: Earlier) -> ResponsesRequest:
    """With the answers that it goes on from. Raises RefusedError."""
    top = asked.top
    if earlier.chain is None:
        raise _not_found(asked.previous)
    if asked.conversation is not None and earlier.conversation is None:
        raise RefusedError(no_conversation(asked.conversation))
    check_ended(earlier.chain)
    tools = Tools()
    if top.get("tools") is not None:
        tools.add(array(top["tools"], "tools"), "tools")
    conversation = Conversation(tools)
    if top.get("instructions") is not None:
        conversation.say("system", [text(top["instructions"], "instructions")])
    conversation.add(history(earlier))
    items = resolved(asked.items, earlier) if asked.references else asked.items
    conversation.add(Placed(item, f"input.{at}") for at, item in enumerate(items))
    chat: dict[str, Any] = {"messages": _messages(conversation)}
    choice, left = choose(top.get("tool_choice"), tools)
    if left:
        chat["tools"] = left
    if choice is not None and left and not conversation.compacting:
        chat["tool_choice"] = choice
    _sampling(top, chat)
    if conversation.compacting:
        chat.setdefault("max_completion_tokens", SUMMARY_TOKENS)
    _logprobs(top, chat)
    _reasoning(top, chat)
    _format(top, chat)
    dropped = (*tools.dropped, *conversation.dropped)
    return ResponsesRequest(asked, items, chat, tools, conversation.compacting, dropped)


def metadata(top: Json) -> dict[str, str]:
    """What the client notes for itself."""
    told = obj(top.get("metadata") or {}, "metadata")
    return {field: text(value, f"metadata.{field[:64]}") for field, value in told.items()}


def _not_found(previous: str | None) -> RefusedError:
    message = f"Previous response with id {previous!r} not found."
    return refused("previous_response_id", message, "previous_response_not_found")


def _conversation(top: Json) -> str | None:
    """Its id, which may stand in an object."""
    told = top.get("conversation")
    if told is None:
        return None
    path = "conversation.id" if isinstance(told, dict) else "conversation"
    identity = name(told.get("id") if isinstance(told, dict) else told, path)
    if not identity.startswith(CONVERSATION):
        raise refused(path, f"an id that begins with {CONVERSATION} is expected, found {kind(identity)}")
    if top.get("previous_response_id") is not None:
        raise refused("previous_response_id", "cannot be used together with `conversation`")
    return identity


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
    metadata(top)


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
