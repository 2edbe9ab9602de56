"""JSON with comments, changed in one place and left alone everywhere else. Pure: text in, text out.

Comments (// and /* */) and commas before a closing bracket are allowed, as editors allow them in their settings.
"""

import json
import re
from typing import Any

from attrs import evolve, frozen

DEEPEST = 100
_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null")


class JsoncError(Exception):
    """A text is no JSON, or has something else where an object must be. The message says what and in which line."""


@frozen
class Node:
    """A value and where it stands: text[start:end]. `members` are those of an object, else None; `key` is where its key is."""

    start: int
    end: int
    value: Any
    members: dict[str, "Node"] | None = None
    key: int | None = None


def parse(text: str) -> Node:
    """The value of `text`. Raises JsoncError."""
    start = _after_space(text, 1 if text.startswith("\ufeff") else 0)
    node = _value(text, start, 0)
    if (rest := _after_space(text, node.end)) != len(text):
        raise _wrong(text, rest, "there is more behind the value")
    return node


def put(text: str, path: tuple[str, ...], value: Any, *, yields: bool = False) -> str:
    """`text` with `value` at `path`, whose objects are made where they are missing. All other characters stay.

    A text without a value becomes an object. What stands at `path` is replaced, or left if `yields`. Raises JsoncError.
    """
    start = _after_space(text, 1 if text.startswith("\ufeff") else 0)
    if start == len(text):
        text += ("" if text[-1:] in ("", "\n", "\ufeff") else "\n") + "{}\n"
    node = parse(text)
    for depth, key in enumerate(path):
        if node.members is None:
            raise _wrong(text, node.start, f"{'.'.join(path[:depth]) or 'the file'} is not an object")
        if key not in node.members:
            for missing in reversed(path[depth + 1 :]):
                value = {missing: value}
            return _insert(text, node, depth, key, value)
        node = node.members[key]
    if yields or json.dumps(node.value) == json.dumps(value):
        return text
    return text[: node.start] + _written(value, _indent(text, node.start), text) + text[node.end :]


def has(text: str, path: tuple[str, ...]) -> bool:
    """Whether something stands at `path`. Raises JsoncError."""
    node = parse(text) if text[_after_space(text, 1 if text.startswith("\ufeff") else 0) :] else Node(0, 0, {}, {})
    for key in path:
        if key not in (node.members or {}):
            return False
        assert node.members is not None, "it has the key"
        node = node.members[key]
    return True


def _insert(text: str, node: Node, depth: int, key: str, value: Any) -> str:
    """With one more member, behind the last and behind what is said of that."""
    assert node.members is not None, "only an object is inserted into"
    last = max((member.end for member in node.members.values()), default=None)
    newline = "\r\n" if "\r\n" in text else "\n"
    close = node.end - 1
    outer = _indent(text, node.start) if depth else ""
    inner = outer + "  "
    if last is not None:
        first = next(iter(node.members.values())).key
        inner = _indent(text, first or 0) if "\n" in text[node.start : first] else inner
        comma = _after_space(text, last)
        if text[comma] != ",":
            text, close = text[:last] + "," + text[last:], close + 1
    member = f"{newline}{inner}{json.dumps(key)}: {_written(value, inner, text)}"
    stay = len(text[:close].rstrip())
    tail = text[stay:close] if "\n" in text[stay:close] else newline + outer
    return text[:stay] + member + tail + text[close:]


def _written(value: Any, indent: str, text: str) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", newline + indent)


def _indent(text: str, at: int) -> str:
    """The blanks with which the line of `at` begins."""
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _value(text: str, at: int, depth: int) -> Node:
    if depth > DEEPEST:
        raise _wrong(text, at, f"it is nested more than {DEEPEST} deep")
    if text[at : at + 1] == "{":
        return _object(text, at, depth)
    if text[at : at + 1] == "[":
        return _array(text, at, depth)
    if found := _STRING.match(text, at) or _PLAIN.match(text, at):
        return Node(at, found.end(), _loaded(text, at, found[0]))
    raise _wrong(text, at, "a value is missing")


def _object(text: str, start: int, depth: int) -> Node:
    members: dict[str, Node] = {}
    at = _after_space(text, start + 1)
    while text[at : at + 1] != "}":
        found = _STRING.match(text, at)
        if found is None:
            raise _wrong(text, at, "a key or } is missing")
        key = str(_loaded(text, at, found[0]))
        colon = _after_space(text, found.end())
        if text[colon : colon + 1] != ":":
            raise _wrong(text, colon, "a colon is missing")
        if key in members:
            raise _wrong(text, at, f"{key} is there twice")
        members[key] = evolve(_value(text, _after_space(text, colon + 1), depth + 1), key=at)
        at = _after_item(text, members[key].end, "}")
    return Node(start, at + 1, {key: node.value for key, node in members.items()}, members)


def _array(text: str, start: int, depth: int) -> Node:
    items: list[Any] = []
    at = _after_space(text, start + 1)
    while text[at : at + 1] != "]":
        node = _value(text, at, depth + 1)
        items.append(node.value)
        at = _after_item(text, node.end, "]")
    return Node(start, at + 1, items)


def _after_item(text: str, end: int, close: str) -> int:
    at = _after_space(text, end)
    if text[at : at + 1] == ",":
        return _after_space(text, at + 1)
    if text[at : at + 1] != close:
        raise _wrong(text, at, f"a comma or {close} is missing")
    return at


def _loaded(text: str, at: int, token: str) -> Any:
    try:
        return json.loads(token)
    except ValueError:
        raise _wrong(text, at, "this is no value") from None


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None, "the expression matches nothing, too"
    return found.end()


def _wrong(text: str, at: int, what: str) -> JsoncError:
    return JsoncError(f"line {text.count(chr(10), 0, at) + 1}: {what}")
