"""A Messages body as the chat request a neuron reads; knows both shapes, and neither routing nor HTTP.

Fields that nobody here reads are tolerated at every level: metadata, cache_control, context_management, betas …
Tools that Anthropic's servers would run (typed, without a schema) are left out: the model cannot call them here.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from attrs import evolve, frozen

from cortex_gateway.dialects.anthropic import turns
from cortex_gateway.dialects.failure import RefusedError
from cortex_gateway.dialects.fields import (
    INVALID,
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

# Anthropic's name -> (the neuron's name, how it is read)
SAMPLING: dict[str, tuple[str, Callable[[object, str], Any]]] = {
    "temperature": ("temperature", number),
    "top_p": ("top_p", number),
    "top_k": ("top_k", integer),
}
TOKENIZED = (
    "messages",
    "tools",
    "chat_template_kwargs",
    "reasoning_effort",
    "add_generation_prompt",
    "continue_final_message",
)


@frozen
class MessagesRequest:
    """A decoded request.

    Attributes:
        model: what the client called it.
        stream: whether the answer is a stream.
        chat: the neuron's fields, without `model` and `stream`.
        omits_thinking: the client wants to know that the model thinks, but not what.
        dropped: what was left out, a sentence for each.
    """

    model: str
    stream: bool
    chat: dict[str, Any]
    omits_thinking: bool
    dropped: tuple[str, ...]

    def neuron_body(self, model: str) -> bytes:
        """The bytes to post to /v1/chat/completions. A stream counts its prompt before the first token."""
        streaming = (
            {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
            if self.stream
            else {}
        )
        return msgspec.json.encode({"model": model, **self.chat, **streaming})

    def tokenize_body(self, model: str) -> bytes:
        """The bytes to post to /tokenize: whatever changes the prompt and nothing else."""
        return msgspec.json.encode({"model": model, **{key: self.chat[key] for key in TOKENIZED if key in self.chat}})


def decode(raw: bytes, *, counting: bool = False, verbatim: bool = False) -> MessagesRequest:
    """Read a body of /v1/messages, or of count_tokens, which needs no `max_tokens`. Raises RefusedError.

    `verbatim`: what changes with every request of a client's stays in its prompt.
    """
    try:
        return _decode(raw, counting=counting, verbatim=verbatim)
    except RefusedError as error:
        if error.failure.code == INVALID:
            raise RefusedError(evolve(error.failure, code="invalid_anthropic_body")) from error
        raise


def _decode(raw: bytes, *, counting: bool, verbatim: bool) -> MessagesRequest:
    top = body(raw)
    named = model(top)
    stream = flag(top["stream"], "stream") if top.get("stream") is not None else False
    system = turns.system(top.get("system") or "", verbatim=verbatim)
    messages = [*system, *turns.conversation(top.get("messages"))]
    chat: dict[str, Any] = {"messages": messages}
    if turns.continues(messages):
        chat.update(add_generation_prompt=False, continue_final_message=True)
    dropped = turns.dropped(top["messages"])
    _tools(top, chat, dropped)
    _sampling(top, chat, counting=counting)
    thinking = None if top.get("thinking") is None else obj(top["thinking"], "thinking")
    _effort(top, chat)
    if thinking is not None:
        _thinking(thinking, chat, counting=counting)
    _form(top, chat)
    return MessagesRequest(named, stream, chat, _omits(thinking or {}), tuple(dropped))


def _tools(top: Json, chat: dict[str, Any], dropped: dict[str, None]) -> None:
    if top.get("tools") is None:
        return
    ours = []
    for at, value in enumerate(array(top["tools"], "tools")):
        tool, path = obj(value, f"tools.{at}"), f"tools.{at}"
        if tool.get("type") not in (None, "custom") and "input_schema" not in tool:
            found = kind(text(tool["type"], f"{path}.type"))
            dropped[f"tools of type {found} are left out: nobody here can run them"] = None
        else:
            ours.append(_tool(tool, path))
    if ours:
        chat["tools"] = ours
        _tool_choice(top, chat)


def _tool(tool: Json, path: str) -> dict[str, Any]:
    description = tool.get("description")
    words = {} if description is None else {"description": text(description, f"{path}.description")}
    function = {
        "name": name(tool.get("name"), f"{path}.name"),
        **words,
        "parameters": obj(tool.get("input_schema"), f"{path}.input_schema"),
        **({"strict": True} if tool.get("strict") is True else {}),
    }
    return {"type": "function", "function": function}


def _tool_choice(top: Json, chat: dict[str, Any]) -> None:
    if top.get("tool_choice") is None:
        return
    choice = obj(top["tool_choice"], "tool_choice")
    match choice.get("type"):
        case "auto" | "none" as same:
            chat["tool_choice"] = same
        case "any":
            chat["tool_choice"] = "required"
        case "tool":
            named = {"name": name(choice.get("name"), "tool_choice.name")}
            chat["tool_choice"] = {"type": "function", "function": named}
        case other:
            raise refused("tool_choice.type", f"must be auto, any, tool or none, found {kind(other)}")
    if choice.get("disable_parallel_tool_use") is not None:
        alone = flag(choice["disable_parallel_tool_use"], "tool_choice.disable_parallel_tool_use")
        if alone:
            chat["parallel_tool_calls"] = False


def _sampling(top: Json, chat: dict[str, Any], *, counting: bool) -> None:
    if not counting:
        chat["max_tokens"] = _max_tokens(top.get("max_tokens"))
    for ours, (theirs, read) in SAMPLING.items():
        if top.get(ours) is not None:
            chat[theirs] = read(top[ours], ours)
    if top.get("stop_sequences") is not None:
        stops = array(top["stop_sequences"], "stop_sequences")
        if stops:
            chat["stop"] = [name(stop, f"stop_sequences.{at}") for at, stop in enumerate(stops)]


def _max_tokens(value: object) -> int:
    if value is None:
        raise refused("max_tokens", "field required")
    limit = integer(value, "max_tokens")
    if limit < 1:
        raise refused("max_tokens", f"must be at least 1, found {limit}")
    return limit


def _form(top: Json, chat: dict[str, Any]) -> None:
    """`output_config.format`, which was `output_format` in the beta, binds the answer to a JSON schema."""
    config = obj(top["output_config"], "output_config") if top.get("output_config") is not None else {}
    path = "output_format" if config.get("format") is None else "output_config.format"
    given = top.get("output_format") if config.get("format") is None else config["format"]
    if given is None:
        return
    form = obj(given, path)
    if form.get("type") != "json_schema":
        raise refused(f"{path}.type", f"must be json_schema, found {kind(form.get('type'))}")
    schema = obj(form.get("schema"), f"{path}.schema")
    chat["response_format"] = {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }


def _effort(top: Json, chat: dict[str, Any]) -> None:
    """`output_config.effort` asks for thinking, unless `thinking` says otherwise."""
    effort = None if top.get("output_config") is None else obj(top["output_config"], "output_config").get("effort")
    if effort is not None:
        chat["reasoning_effort"] = name(effort, "output_config.effort")
        chat["chat_template_kwargs"] = {"enable_thinking": True}


def _thinking(thinking: Json, chat: dict[str, Any], *, counting: bool) -> None:
    mode = thinking.get("type")
    if mode not in ("enabled", "disabled", "adaptive"):
        raise refused("thinking.type", f"must be enabled, disabled or adaptive, found {kind(mode)}")
    chat["chat_template_kwargs"] = {"enable_thinking": mode != "disabled"}
    if thinking.get("budget_tokens") is None:
        return
    budget = integer(thinking["budget_tokens"], "thinking.budget_tokens")
    if budget < 1:
        raise refused("thinking.budget_tokens", f"must be at least 1, found {budget}")
    if mode == "enabled" and not counting:
        chat["thinking_token_budget"] = budget


def _omits(thinking: Json) -> bool:
    display = thinking.get("display")
    if display not in (None, "summarized", "omitted"):
        raise refused("thinking.display", f"must be summarized or omitted, found {kind(display)}")
    return display == "omitted"
