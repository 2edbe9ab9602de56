"""The tools of a Responses body as functions that a neuron knows, and their names back; knows no turn and no stream.

A namespace's tools are called `namespace__name`. A custom tool, which takes bare text, is a function with one string,
`input`; its grammar is told in words. Tools that OpenAI's servers or a client of their own kind would run are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from attrs import field, frozen

from cortex_gateway.dialects.fields import Json, array, kind, name, obj, refused, text

Chat = dict[str, Any]
NOTHING: Chat = {"type": "object", "properties": {}}


@frozen
class Tool:
    """One that the model may call, by the names that the client has for it."""

    name: str
    namespace: str | None = None
    custom: bool = False

    @property
    def function(self) -> str:
        """What the model calls it."""
        return flat(self.name, self.namespace)


@frozen
class Tools:
    """All of a request.

    Attributes:
        chat: as the neuron is told of them.
        told: as the client told of them, without those that were left out.
        named: what the model calls one -> the tool.
        dropped: a sentence for each type that was left out.
    """

    chat: list[Chat] = field(factory=list)
    told: list[Json] = field(factory=list)
    named: dict[str, Tool] = field(factory=dict)
    dropped: dict[str, None] = field(factory=dict)

    def add(self, tools: Sequence[object], path: str) -> None:
        """Take those of a list. Raises RefusedError."""
        for at, value in enumerate(tools):
            self._one(obj(value, f"{path}.{at}"), f"{path}.{at}")

    def called(self, function: str) -> Tool:
        """The one that the model called; a function where nobody offered such a thing."""
        return self.named.get(function, Tool(function))

    def _one(self, tool: Json, path: str) -> None:
        kind_of = text(tool.get("type"), f"{path}.type")
        if kind_of in ("function", "custom"):
            self._take(tool, path, None, "")
        elif kind_of == "namespace":
            self._namespace(tool, path)
        else:
            self.dropped[f"tools of type {kind(kind_of)} are left out: nobody here can run them"] = None
            return
        self.told.append(tool)

    def _namespace(self, tool: Json, path: str) -> None:
        """Its description goes with its first tool: a model has no other place for it."""
        within = name(tool.get("name"), f"{path}.name")
        about = _description(tool, path)
        for at, value in enumerate(array(tool.get("tools"), f"{path}.tools")):
            here = f"{path}.tools.{at}"
            self._take(obj(value, here), here, within, f"{within}: {about}" if about and not at else "")

    def _take(self, tool: Json, path: str, namespace: str | None, about: str) -> None:
        custom = tool.get("type") == "custom"
        one = Tool(name(tool.get("name"), f"{path}.name"), namespace, custom)
        if one.function in self.named:
            raise refused(f"{path}.name", f"there are two tools that a model would call {one.function!r}")
        self.named[one.function] = one
        words = "\n\n".join(filter(None, (about, _description(tool, path), _grammar(tool, path) if custom else "")))
        function: Chat = {"name": one.function, **({"description": words} if words else {})}
        function["parameters"] = _bare_text(tool, path) if custom else _parameters(tool, path)
        if tool.get("strict") is True:
            function["strict"] = True
        self.chat.append({"type": "function", "function": function})


def flat(called: str, namespace: object) -> str:
    """What a model calls a tool of a namespace, or of none."""
    return f"{namespace}__{called}" if isinstance(namespace, str) and namespace else called


def as_arguments(bare: str) -> str:
    """A custom tool's text as a function's arguments."""
    return msgspec.json.encode({"input": bare}).decode()


def bare_text(arguments: str) -> str:
    """The text that a model gave a custom tool: that of `input`, or all of it where there is none."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    found = value.get("input") if isinstance(value, dict) else None
    return found if isinstance(found, str) else arguments


def choose(value: object, tools: Tools) -> tuple[Any, list[Chat]]:
    """`tool_choice` as a neuron reads it, None where nothing is said; and the tools that it leaves."""
    if value is None or not tools.chat:
        if value not in (None, "auto", "none"):
            raise refused("tool_choice", "there is no tool to choose", "unsupported_parameter")
        return None, tools.chat
    if isinstance(value, str):
        if value not in ("auto", "none", "required"):
            raise refused("tool_choice", f"must be auto, none or required, found {kind(value)}")
        return value, tools.chat
    choice = obj(value, "tool_choice")
    if choice.get("type") == "allowed_tools":
        return _allowed(choice, tools)
    function = _named(choice, "tool_choice", tools)
    return {"type": "function", "function": {"name": function}}, tools.chat


def _allowed(choice: Json, tools: Tools) -> tuple[Any, list[Chat]]:
    mode = choice.get("mode")
    if mode not in ("auto", "required"):
        raise refused("tool_choice.mode", f"must be auto or required, found {kind(mode)}")
    listed = array(choice.get("tools"), "tool_choice.tools")
    ours = [obj(one, f"tool_choice.tools.{at}") for at, one in enumerate(listed)]
    kept = {
        _named(one, f"tool_choice.tools.{at}", tools)
        for at, one in enumerate(ours)
        if one.get("type") in ("function", "custom")
    }
    return mode, [tool for tool in tools.chat if tool["function"]["name"] in kept]


def _named(choice: Json, path: str, tools: Tools) -> str:
    if choice.get("type") not in ("function", "custom"):
        message = f"tools of type {kind(choice.get('type'))} cannot be chosen: nobody here can run them"
        raise refused(path, message, "unsupported_parameter")
    function = flat(name(choice.get("name"), f"{path}.name"), choice.get("namespace"))
    if function not in tools.named:
        raise refused(f"{path}.name", f"there is no tool {kind(function)} among `tools`")
    return function


def _description(tool: Mapping[str, Any], path: str) -> str:
    found = tool.get("description")
    return "" if found is None else text(found, f"{path}.description")


def _parameters(tool: Json, path: str) -> Chat:
    found = tool.get("parameters")
    return NOTHING if found is None else dict(obj(found, f"{path}.parameters"))


def _bare_text(tool: Json, path: str) -> Chat:
    about = f"The whole input of {name(tool.get('name'), f'{path}.name')}, as bare text."
    return {
        "type": "object",
        "properties": {"input": {"type": "string", "description": about}},
        "required": ["input"],
        "additionalProperties": False,
    }


def _grammar(tool: Json, path: str) -> str:
    if tool.get("format") is None:
        return ""
    form = obj(tool["format"], f"{path}.format")
    if form.get("type") != "grammar":
        return ""
    syntax = text(form.get("syntax"), f"{path}.format.syntax")
    return f"`input` must match this {syntax} grammar:\n{text(form.get('definition'), f'{path}.format.definition')}"
