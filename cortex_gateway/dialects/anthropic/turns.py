"""The conversation of a Messages body as chat messages for a neuron; adds no word to it and takes none away.

System turns stay where they are, tool results come before the text of their turn, empty text is dropped, thinking is
replayed as `reasoning_content`, and the key order of tool inputs is kept.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from cortex_gateway.dialects.fields import Json, array, kind, name, obj, refused, text

Message = dict[str, Any]
_NO_MEDIA = "content blocks of type {!r} are not supported: the models here read text only"


def system(value: object, path: str = "system") -> list[Message]:
    """The top-level prompt, a string or text blocks, as at most one message."""
    content = _content(_texts(_blocks(value, path), path))
    return [{"role": "system", "content": content}] if content else []


def conversation(value: object, path: str = "messages") -> list[Message]:
    """Every turn in its place. Raises RefusedError with the path of what cannot be passed on."""
    messages: list[Message] = []
    for at, turn in enumerate(array(value, path)):
        messages.extend(_turn(obj(turn, f"{path}.{at}"), f"{path}.{at}"))
    if not messages:
        raise refused(path, "at least one message with content is required")
    return messages


def continues(messages: Sequence[Message], path: str = "messages") -> bool:
    """Whether the last message is an assistant's, which the answer has to continue."""
    last = messages[-1]
    if last["role"] != "assistant":
        return False
    if last.get("tool_calls"):
        raise refused(path, "the last turn ends in `tool_use` blocks: `tool_result` blocks must follow them")
    if not last["content"]:
        raise refused(path, "the last turn has only thinking: there is no text to continue")
    return True


def _turn(turn: Json, path: str) -> Iterator[Message]:
    role = turn.get("role")
    blocks = _blocks(turn.get("content"), f"{path}.content")
    if role == "user":
        yield from _user(blocks, f"{path}.content")
    elif role == "assistant":
        yield from _assistant(blocks, f"{path}.content")
    elif role == "system":
        content = _content(_texts(blocks, f"{path}.content"))
        if content:
            yield {"role": "system", "content": content}
    else:
        raise refused(f"{path}.role", f"must be user, assistant or system, found {kind(role)}")


def _user(blocks: list[Json], path: str) -> Iterator[Message]:
    texts: list[str] = []
    for at, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            yield _tool_result(block, f"{path}.{at}")
        else:
            texts.append(_text(block, f"{path}.{at}"))
    content = _content(texts)
    if content:
        yield {"role": "user", "content": content}


def _tool_result(block: Json, path: str) -> Message:
    identity = name(block.get("tool_use_id"), f"{path}.tool_use_id")
    inner = block.get("content")
    texts = [] if inner is None else _texts(_blocks(inner, f"{path}.content"), f"{path}.content")
    return {"role": "tool", "tool_call_id": identity, "content": _content(texts)}


def _assistant(blocks: list[Json], path: str) -> Iterator[Message]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Message] = []
    for at, block in enumerate(blocks):
        match block.get("type"):
            case "thinking":
                thoughts.append(text(block.get("thinking"), f"{path}.{at}.thinking"))
            case "redacted_thinking":  # opaque, from another service: no template has a place for it
                pass
            case "tool_use":
                calls.append(_tool_use(block, f"{path}.{at}"))
            case _:
                texts.append(_text(block, f"{path}.{at}"))
    content, thought = _content(texts), "".join(thoughts)
    if content or thought or calls:
        reasoning = {"reasoning_content": thought} if thought else {}
        tools = {"tool_calls": calls} if calls else {}
        yield {"role": "assistant", "content": content, **reasoning, **tools}


def _tool_use(block: Json, path: str) -> Message:
    arguments = obj(block.get("input"), f"{path}.input")
    function = {
        "name": name(block.get("name"), f"{path}.name"),
        "arguments": msgspec.json.encode(arguments).decode(),
    }
    return {"id": name(block.get("id"), f"{path}.id"), "type": "function", "function": function}


def _blocks(value: object, path: str) -> list[Json]:
    """A string is one text block."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    return [obj(block, f"{path}.{at}") for at, block in enumerate(array(value, path))]


def _texts(blocks: list[Json], path: str) -> list[str]:
    return [_text(block, f"{path}.{at}") for at, block in enumerate(blocks)]


def _text(block: Json, path: str) -> str:
    if block.get("type") != "text":
        if not isinstance(block.get("type"), str):
            raise refused(f"{path}.type", f"must name the block's type, found {kind(block.get('type'))}")
        raise refused(path, _NO_MEDIA.format(block["type"]), "unsupported_parameter")
    return text(block.get("text"), f"{path}.text")


def _content(texts: list[str]) -> str | list[Message]:
    """One text as it is, several as parts: how they are joined is the neuron's business."""
    full = [piece for piece in texts if piece]
    if len(full) <= 1:
        return "".join(full)
    return [{"type": "text", "text": piece} for piece in full]
