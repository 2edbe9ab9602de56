"""A body's messages and tools, as templates take them; must not know models, engines or HTTP."""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec

from neuron_jax.daemon.fields import Fields, too_deep
from neuron_jax.daemon.json_bounds import deep_path, may_be_deep
from neuron_jax.daemon.problems import unsupported
from neuron_jax.daemon.thinking import read_variables
from neuron_jax.text.prompt import Chat

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 16_384
MAX_PARTS = 4_096
MAX_TOOLS = 4_096


class Turn(Enum):
    """How a rendered chat ends: a new turn of the assistant is opened, nothing is, or its last message stays open."""

    NEW = "new"
    NONE = "none"
    CONTINUED = "continued"


def read_conversation(fields: Fields, tools: Callable[[Fields], Sequence[Mapping[str, Any]] | None]) -> Chat:
    """What a template gets. `tools` reads those that it is shown. Raises Problem."""
    messages, turn = read_messages(fields), _turn(fields)
    return Chat(
        messages=messages,
        tools=tools(fields),
        variables=read_variables(fields),
        add_generation_prompt=turn is Turn.NEW,
        continue_final=turn is Turn.CONTINUED,
    )


def read_messages(fields: Fields) -> Sequence[Mapping[str, Any]]:
    """The messages as sent. Raises Problem when one of them has a shape no template could take."""
    messages = fields.objects("messages", MAX_MESSAGES)
    if not messages:
        raise fields.wrong("messages", "a list of at least one message")
    for message in messages:
        _check_message(message)
    return [message.values for message in messages]


def _check_message(message: Fields) -> None:
    if message.get("role") not in ROLES:
        raise message.wrong("role", "one of " + ", ".join(ROLES))
    if not isinstance(message.get("content"), str | None):
        _check_parts(message)
    for key in ("name", "tool_call_id", "reasoning_content", "reasoning", "refusal"):
        message.text(key)
    for call in message.objects("tool_calls", MAX_PARTS):
        function = call.object("function")
        if function is None:
            raise call.wrong("function", "an object")
        if not function.text("name"):
            raise function.wrong("name", "a string that is not empty")
        _check_arguments(function)


def _check_arguments(function: Fields) -> None:
    """Arguments are JSON in a string, which templates get as an object: what holds for the body holds for it."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str | dict | None):
        raise function.wrong("arguments", "a string")
    if not isinstance(arguments, str) or not may_be_deep(arguments):
        return
    try:
        deep = deep_path(msgspec.json.decode(arguments)) is not None
    except (msgspec.MsgspecError, ValueError):  # text then, which is not nested
        return
    except RecursionError:
        deep = True
    if deep:
        raise too_deep(function.name("arguments"))


def _check_parts(message: Fields) -> None:
    message.list("content", "a string or a list of parts")
    for part in message.objects("content", MAX_PARTS):
        if part.get("type") != "text":
            kind = part.text("type") or ""
            words = f"content of type {kind[:64]!r} is not supported: the models here read text only."
            raise unsupported(part.name("type"), f"{part.name('type')}: {words}")
        if part.text("text") is None:
            raise part.wrong("text", "a string")


def read_tools(fields: Fields) -> Sequence[Mapping[str, Any]] | None:
    """The tools as sent; None where there are none. Raises Problem."""
    tools = fields.objects("tools", MAX_TOOLS)
    for tool in tools:
        if tool.get("type") != "function":
            raise tool.wrong("type", '"function"')
        function = tool.object("function")
        if function is None or not function.text("name"):
            raise tool.wrong("function", "an object with a name")
        function.object("parameters")
        function.flag("strict")
    return [tool.values for tool in tools] or None


def chosen_tools(fields: Fields) -> Sequence[Mapping[str, Any]] | None:
    """Those that `tool_choice` leaves. Raises Problem."""
    tools = read_tools(fields)
    match fields.get("tool_choice"):
        case None | "auto":
            return tools
        case "none":
            return None
        case "required" | {"type": "function"}:
            if not tools:
                raise fields.wrong("tool_choice", "absent where there are no tools")
            return tools
        case {"type": "allowed_tools"}:
            return _allowed(fields, tools or ())
        case {"type": str(other)}:
            raise unsupported("tool_choice.type", f"tool_choice.type {other!r} is not supported by this server.")
    raise fields.wrong("tool_choice", '"auto", "none", "required" or a function by its name')


def _allowed(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Of the tools those that OpenAI's `allowed_tools` names; the model is told of no other. Raises Problem."""
    choice = Fields(fields.get("tool_choice"), "tool_choice.")
    allowed = choice.object("allowed_tools") or Fields({}, "tool_choice.allowed_tools.")
    if allowed.get("mode") not in ("auto", "required"):
        raise allowed.wrong("mode", '"auto" or "required"')
    names = {tool["function"]["name"] for tool in tools}
    chosen = set()
    for one in allowed.objects("tools", MAX_TOOLS):
        function = one.object("function")
        if one.get("type") != "function" or function is None or function.get("name") not in names:
            raise one.wrong("function", "one of the tools by its name")
        chosen.add(function.get("name"))
    if not chosen:
        raise allowed.wrong("tools", "a list of at least one of the tools")
    return [tool for tool in tools if tool["function"]["name"] in chosen]


def forced_functions(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The functions of which one must be called, by `tool_choice`. Raises Problem."""
    choice, functions = fields.get("tool_choice"), [tool["function"] for tool in tools]
    if choice == "required":
        return functions
    if not isinstance(choice, dict):
        return ()
    if choice.get("type") == "allowed_tools":
        return functions if choice["allowed_tools"]["mode"] == "required" else ()
    named = Fields(choice, "tool_choice.").object("function") or Fields({}, "tool_choice.function.")
    found = [function for function in functions if function["name"] == named.get("name")]
    if not found:
        raise named.wrong("name", "the name of one of the tools")
    return found[:1]


def calls_once(fields: Fields) -> bool:
    """There is one call at most: so the client asks, or it names the function. Raises Problem."""
    choice = fields.get("tool_choice")
    named = isinstance(choice, dict) and choice.get("type") == "function"
    return named or not fields.flag("parallel_tool_calls", absent=True)


def _turn(fields: Fields) -> Turn:
    """`add_generation_prompt` (absent: unless the last message is continued) and `continue_final_message`."""
    opens = fields.flag("add_generation_prompt")
    if not fields.flag("continue_final_message"):
        return Turn.NEW if opens or fields.get("add_generation_prompt") is None else Turn.NONE
    if opens:
        raise fields.wrong("add_generation_prompt", "false where continue_final_message is true")
    if fields.objects("messages", MAX_MESSAGES)[-1].get("role") != "assistant":
        raise fields.wrong("continue_final_message", "false unless the last message is the assistant's")
    return Turn.CONTINUED
