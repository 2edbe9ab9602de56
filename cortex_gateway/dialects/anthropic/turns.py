"""The conversation of a Messages body as chat messages for a neuron; adds no word to it and takes none away.

System turns stay where they are, tool results come before the text of their turn, empty text is dropped, thinking is
replayed as `reasoning_content`, and the key order of tool inputs is kept. What Anthropic's servers would have done between
the turns (searched, run) is left out: it is for their eyes.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from cortex_gateway.dialects.fields import Json, array, kind, name, obj, refused, text
from cortex_gateway.dialects.opaque import unseal

Message = dict[str, Any]
_NO_MEDIA = "content blocks of type {!r} are not supported: the models here read text only"
_OF_SERVERS = re.compile(r"server_tool_use|mcp_tool_use|(?!tool_result$)\w+_tool_result")
"""Blocks of an assistant's turn that came from another service's own tools."""
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")
"""Claude Code's first line, which has a checksum of its own in every request: no later turn would begin as this one."""


def system(value: object, path: str = "system", *, verbatim: bool = False) -> list[Message]:
    """The top-level prompt, a string or text blocks, as at most one message. Without the billing line, unless `verbatim`."""
    texts = _texts(_blocks(value, path), path)
    content = _content(texts if verbatim else [_BILLING.sub("", text) for text in texts])
    return [{"role": "system", "content": content}] if content else []


def conversation(value: object, path: str = "messages") -> list[Message]:
    """Every turn in its place. Raises RefusedError with the path of what cannot be passed on."""
    messages: list[Message] = []
    for at, turn in enumerate(array(value, path)):
        messages.extend(_turn(obj(turn, f"{path}.{at}"), f"{path}.{at}"))
    if not messages:
        raise refused(path, "at least one message with content is required")
    return messages


def dropped(value: Sequence[Json]) -> dict[str, None]:
    """A sentence for each kind of block that `conversation` left out."""
    kinds = {
        block["type"]: None
        for turn in value
        if turn.get("role") == "assistant" and isinstance(turn.get("content"), list)
        for block in turn["content"]
        if _OF_SERVERS.fullmatch(block["type"])
    }
    return {f"blocks of type {kind(found)} are left out: no model here has made them": None for found in kinds}


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
    content = turn.get("content")
    if role == "system" and content is None:  # one that only carries settings, as Claude Code sends it
        return
    blocks = _blocks(content, f"{path}.content")
    if role == "user":
        yield from _user(blocks, f"{path}.content")
    elif role == "assistant":
        yield from _assistant(blocks, f"{path}.content")
    elif role == "system":
        said = _content(_texts(blocks, f"{path}.content"))
        if said:
            yield {"role": "system", "content": said}
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
                thoughts.append(_thought(block, f"{path}.{at}"))
            case "redacted_thinking":  # opaque, from another service: no template has a place for it
                pass
            case "tool_use":
                calls.append(_tool_use(block, f"{path}.{at}"))
            case str(other) if _OF_SERVERS.fullmatch(other):
                pass
            case _:
                texts.append(_text(block, f"{path}.{at}"))
    content, thought = _content(texts), "".join(thoughts)
    if content or thought or calls:
        reasoning = {"reasoning_content": thought} if thought else {}
        tools = {"tool_calls": calls} if calls else {}
        yield {"role": "assistant", "content": content, **reasoning, **tools}


def _thought(block: Json, path: str) -> str:
    """As it is shown; where it was left out (`display: omitted`) as it is sealed in the signature."""
    shown = text(block.get("thinking"), f"{path}.thinking")
    return shown or unseal("thinking", block.get("signature")) or ""


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
    """A block as a model reads it."""
    match block.get("type"):
        case "search_result":
            return _search_result(block, path)
        case "tool_reference":  # all tools are told of, so its name says which is meant
            return name(block.get("tool_name"), f"{path}.tool_name")
    if block.get("type") != "text":
        if not isinstance(block.get("type"), str):
            raise refused(f"{path}.type", f"must name the block's type, found {kind(block.get('type'))}")
        raise refused(path, _NO_MEDIA.format(block["type"]), "unsupported_parameter")
    return text(block.get("text"), f"{path}.text")


def _search_result(block: Json, path: str) -> str:
    """What was found, beneath where."""
    title, source = (text(block.get(key), f"{path}.{key}") for key in ("title", "source"))
    return "\n".join([title, source, *_texts(_blocks(block.get("content"), f"{path}.content"), f"{path}.content")])


def _content(texts: list[str]) -> str | list[Message]:
    """One text as it is, several as parts: how they are joined is the neuron's business."""
    full = [piece for piece in texts if piece]
    if len(full) <= 1:
        return "".join(full)
    return [{"type": "text", "text": piece} for piece in full]
