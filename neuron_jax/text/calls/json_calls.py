"""Calls that are JSON objects: `{"name": ..., "arguments": {...}}` in all spellings; knows no envelopes."""

import json
import re
from collections.abc import Sequence

from attrs import define

from neuron_jax.text.calls.reader import CallReader
from neuron_jax.text.calls.source import Source, Waits
from neuron_jax.text.calls.values import read_string, read_value

BETWEEN = re.compile(r"[\s;,]*")
"""What models put between calls."""

_ARGUMENTS = ("arguments", "parameters")
_NAMES = ("name", "function")
_OTHER_NAME = "tool_name"
"""What Cohere calls it; not without an envelope."""
_BESIDE = ("type", "id")
"""Other keys that a call without an envelope may have."""


def json_calls(reader: CallReader, *, bare: bool = False, listed: bool = False) -> Waits[bool]:
    """One call, several in a row, or a list of them; whether there was one. `bare`: without an envelope around it, so that
    it must show that it is a call. `listed`: the list has been opened.
    """
    source = reader.source
    yield from reader.spaces()
    listed = listed or (yield from source.taken("["))
    called = False
    while True:
        yield from source.run(BETWEEN)
        if not (yield from _json_call(reader, bare=bare)):
            break
        called = True
    if called and listed:
        yield from source.taken("]")
    return called


@define
class _Call:
    """What is known of a call; `held` are arguments that came before the name."""

    name: str | None = None
    held: str | None = None
    made: bool = False


def _json_call(reader: CallReader, *, bare: bool) -> Waits[bool]:
    """One call, shown as soon as its arguments begin."""
    call = _Call()
    whole = yield from _members(reader, call, _BESIDE if bare else None, nested=False)
    if call.made:
        reader.end()
    elif whole and call.name and (call.held is not None or not bare):
        reader.call(call.name, call.held or "{}")
    else:
        return False
    return True


def _members(reader: CallReader, call: _Call, beside: Sequence[str] | None, *, nested: bool) -> Waits[bool]:
    """The members of an object that describes `call`; whether it is whole, and nothing in it says that it is no call."""
    source = reader.source
    if not (yield from source.taken("{")):
        return False
    while True:
        yield from source.run(BETWEEN)
        if (yield from source.taken("}")):
            return True
        key = yield from (read_string(source) if beside is None else _one_of(source, (*_ARGUMENTS, *_NAMES, *beside)))
        yield from reader.spaces()
        if key is None or not (yield from source.taken(":")):
            return False
        yield from reader.spaces()
        if not (yield from _member(reader, call, key, beside, nested=nested)):
            return False


def _one_of(source: Source, keys: Sequence[str]) -> Waits[str | None]:
    """One of `keys`; None as soon as it is another."""
    for key in keys:
        if (yield from source.taken(f'"{key}"')):
            return key
    return None


def _member(reader: CallReader, call: _Call, key: str, beside: Sequence[str] | None, *, nested: bool) -> Waits[bool]:
    source = reader.source
    if key == "function" and not nested and (yield from source.starts("{")):
        return (yield from _members(reader, call, beside, nested=True))
    if call.name is None and (key in _NAMES or (key == _OTHER_NAME and beside is None)):
        name = yield from read_string(source)
        call.name = name if name and _is_text(name) else None
        return call.name is not None
    if key in _ARGUMENTS and not call.made:
        return (yield from _arguments(reader, call))
    if call.made or beside is None or key in beside:
        return (yield from read_value(source, _drop))
    return False


def _arguments(reader: CallReader, call: _Call) -> Waits[bool]:
    """They are an object, the same as text, or none; as they come where the name is known already."""
    source = reader.source
    if not (yield from source.starts("{")):
        return (yield from _other_arguments(reader, call))
    if call.name is None:
        parts: list[str] = []
        whole = yield from read_value(source, parts.append)
        call.held = "".join(parts)
        return whole
    reader.start(call.name)
    call.made = True
    return (yield from read_value(source, reader.arguments))


def _other_arguments(reader: CallReader, call: _Call) -> Waits[bool]:
    if (yield from reader.source.taken("null")):
        call.held = "{}"
        return True
    text = yield from read_string(reader.source)
    if text is None:
        return False
    call.held = _object(text)
    return call.held is not None


def _object(text: str) -> str | None:
    """`text` where it is a JSON object, and an empty one for nothing."""
    if not text.strip():
        return "{}"
    try:
        value = json.loads(text)
        return json.dumps(value, ensure_ascii=False, allow_nan=False) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def _is_text(text: str) -> bool:
    """False with half a surrogate pair, which JSON can escape and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _drop(_: str) -> None:
    pass
