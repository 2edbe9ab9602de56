"""The messages of /api/chat as chat messages for a neuron; knows both shapes, adds no word and takes none away.

Ollama's calls have their arguments as objects, and mostly no ids: a result names its tool at most. So calls without an id are
numbered in the order in which they were made, which is the same each time a conversation is sent, and a result without one
belongs to the first call of its tool that has none yet.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from cortex_gateway.dialects.fields import Json, array, kind, name, obj, refused, text

Message = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")


def conversation(value: object, path: str = "messages") -> list[Message]:
    """Every message in its place. Raises RefusedError with the path of what cannot be passed on."""
    calls = _Calls()
    turns = [(obj(turn, f"{path}.{at}"), f"{path}.{at}") for at, turn in enumerate(array(value, path))]
    return [_message(turn, where, calls) for turn, where in turns]


def continues(messages: Sequence[Message]) -> bool:
    """Whether the last message is an assistant's text, which the answer goes on from, as Ollama's does."""
    last = messages[-1]
    return last["role"] == "assistant" and bool(last["content"]) and not last.get("tool_calls")


def no_images(holder: Json, path: str) -> None:
    """Raises RefusedError where `images` are there."""
    if holder.get("images") is not None and array(holder["images"], path):
        raise refused(path, "images are not supported: the models here read text only", "unsupported_parameter")


class _Calls:
    """The calls that were made so far, and which of them have no result yet."""

    def __init__(self) -> None:
        self._made = 0
        self._waiting: list[tuple[str, str]] = []  # (id, name of the tool)

    def make(self, identity: str | None, tool: str) -> str:
        """The call's id."""
        identity = identity or f"call_{self._made}"
        self._made += 1
        self._waiting.append((identity, tool))
        return identity

    def answer(self, identity: str | None, tool: str | None) -> str | None:
        """The id of the call that a result belongs to; None where there is none."""
        found = next((call for call in self._waiting if _fits(call, identity, tool)), None)
        if found is not None:
            self._waiting.remove(found)
        return identity or (found and found[0])


def _fits(call: tuple[str, str], identity: str | None, tool: str | None) -> bool:
    return call[0] == identity if identity else tool in (None, call[1])


def _message(turn: Json, path: str, calls: _Calls) -> Message:
    role = text(turn.get("role"), f"{path}.role").lower()
    if role not in ROLES:
        raise refused(f"{path}.role", f"must be system, user, assistant or tool, found {kind(role)}")
    no_images(turn, f"{path}.images")
    return {"role": role, "content": _optional(turn, "content", path) or "", **dict(_rest(role, turn, path, calls))}


def _rest(role: str, turn: Json, path: str, calls: _Calls) -> Iterator[tuple[str, Any]]:
    """What only some roles have."""
    if role == "assistant":
        if thought := _optional(turn, "thinking", path):
            yield "reasoning_content", thought
        if made := _tool_calls(turn.get("tool_calls"), f"{path}.tool_calls", calls):
            yield "tool_calls", made
    if role == "tool":
        tool = _optional(turn, "tool_name", path)
        if tool:
            yield "name", tool
        if identity := calls.answer(_optional(turn, "tool_call_id", path), tool):
            yield "tool_call_id", identity


def _tool_calls(value: object, path: str, calls: _Calls) -> list[Message]:
    if value is None:
        return []
    return [_call(obj(call, f"{path}.{at}"), f"{path}.{at}", calls) for at, call in enumerate(array(value, path))]


def _call(call: Json, path: str, calls: _Calls) -> Message:
    function = obj(call.get("function"), f"{path}.function")
    tool = name(function.get("name"), f"{path}.function.name")
    arguments = {} if function.get("arguments") is None else obj(function["arguments"], f"{path}.function.arguments")
    identity = calls.make(_optional(call, "id", path), tool)
    written = msgspec.json.encode(arguments).decode()
    return {"id": identity, "type": "function", "function": {"name": tool, "arguments": written}}


def _optional(holder: Json, key: str, path: str) -> str | None:
    return None if holder.get(key) is None else text(holder[key], f"{path}.{key}")
