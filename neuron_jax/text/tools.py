"""Finds tool calls in a model's text; knows the envelopes models use, must not know tokens or any API's wire.

A call is handed on whole, when its envelope ends: so text that only looks like a call is never lost, it comes out as text.
An envelope that the model left open counts when the JSON inside is complete.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Protocol

from neuron_jax.text.pieces import Piece, Text, ToolArguments, ToolEnd, ToolStart
from neuron_jax.text.stop import StopMatcher

TOOL_CALL_OPEN, TOOL_CALL_CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
MISTRAL_TAG = "[TOOL_CALLS]"

_BARE_STARTS = ('{"name":"', '{"type":"function"', '{"function":', '{"parameters":{', '[{"name":"')
"""How a call without any envelope begins, white space aside."""

_LONGEST_START = 200
"""Characters, white space included, within which a bare call must show that it is one."""

_JSON = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s;,]*")


class ToolParser(Protocol):
    """Pure and incremental; any chunking of the text gives the same calls and the same text around them.

    With `only_one` the first call is the last thing that comes out; `ended` is true once it did.
    """

    @property
    def ended(self) -> bool: ...

    def feed(self, text: str) -> list[Piece]: ...

    def close(self) -> list[Piece]: ...


class TaggedTools:
    """Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number, text in between."""

    def __init__(self, call_prefix: str, *, only_one: bool) -> None:
        self._calls = _Calls(call_prefix, only_one=only_one)
        self._tag = StopMatcher((TOOL_CALL_OPEN,))
        self._inside = False
        self._body: list[str] = []
        self._spaces = ""
        self._after_call = False

    @property
    def ended(self) -> bool:
        """The only call that is wanted is out."""
        return self._calls.full

    def feed(self, text: str) -> list[Piece]:
        """Text outside the envelopes as it comes, calls when their envelope closes."""
        pieces: list[Piece] = []
        rest: str | None = text
        while rest is not None and not self.ended:
            matched = self._tag.feed(rest)
            pieces += self._part(matched.text)
            if matched.stop is not None:
                pieces += self._switch()
            rest = matched.rest if matched.stop is not None else None
        return pieces

    def close(self) -> list[Piece]:
        """What was held back; the JSON of an unclosed envelope if it is complete, else the envelope as text."""
        held = self._tag.close()
        if self._inside:
            return self._called(close=held)
        return self._part(held) + ([] if self._after_call else _text(self._spaces))

    def _switch(self) -> list[Piece]:
        """At a tag: into an envelope, or out of it with what it held."""
        self._inside = not self._inside
        self._tag = StopMatcher((TOOL_CALL_CLOSE if self._inside else TOOL_CALL_OPEN,))
        return [] if self._inside else self._called(close=TOOL_CALL_CLOSE)

    def _part(self, text: str) -> list[Piece]:
        """A part of an envelope is kept; text is shown, except white space before and after calls."""
        if self._inside:
            self._body.append(text)
            return []
        whole = self._spaces + (text.lstrip() if self._after_call else text)
        shown = whole.rstrip()
        self._spaces = whole[len(shown) :]
        self._after_call = self._after_call and not shown
        return _text(shown)

    def _called(self, *, close: str) -> list[Piece]:
        body, self._body = "".join(self._body), []
        spaces, self._spaces = self._spaces, ""
        calls, rest = _read_calls(body)
        self._after_call = bool(calls) and not rest
        return self._calls.pieces(calls) if self._after_call else _text(spaces + TOOL_CALL_OPEN + body + close)


class TailTools:
    """Llama 3 and Mistral: after `tag`, or when `bare` from the first character, all the rest of the turn is calls."""

    def __init__(self, call_prefix: str, *, tag: str, bare: bool, only_one: bool) -> None:
        self._calls = _Calls(call_prefix, only_one=only_one)
        self._tag = StopMatcher((tag,))
        self._undecided = bare
        self._tail: list[str] | None = None
        self._start = ""

    @property
    def ended(self) -> bool:
        """The only call that is wanted is out: not before `close()`, where the envelope ends."""
        return self._calls.full

    def feed(self, text: str) -> list[Piece]:
        """Text before the calls; the calls come with `close()`."""
        if self._tail is not None:
            self._tail.append(text)
            return []
        return self._decide(text) if self._undecided else self._search(text)

    def close(self) -> list[Piece]:
        """The calls; whatever in their place is none, as text."""
        held = self._tag.close()
        if self._undecided:
            self._undecided, self._tail = False, [self._start]
        if self._tail is None:
            return _text(held)
        body = "".join(self._tail)
        calls, rest = _read_calls(body, need_arguments=True)
        if not calls:
            return _text(body)
        pieces = self._calls.pieces(calls)
        return pieces if self.ended else pieces + _text(rest)

    def _decide(self, text: str) -> list[Piece]:
        """At the start of the turn: JSON that may be a call waits for the end, anything else is text."""
        self._start += text
        head = re.sub(r"\s+", "", self._start[:_LONGEST_START])
        if len(self._start) < _LONGEST_START and any(start.startswith(head) for start in _BARE_STARTS):
            return []
        self._undecided = False
        if head.startswith(_BARE_STARTS):
            self._tail = [self._start]
            return []
        return self._search(self._start)

    def _search(self, text: str) -> list[Piece]:
        matched = self._tag.feed(text)
        if matched.stop is not None:
            self._tail = [matched.rest]
        return _text(matched.text)


class _Calls:
    """Numbers the calls of one choice and names them `<prefix><number>`; with `only_one` all but the first are left out."""

    def __init__(self, prefix: str, *, only_one: bool) -> None:
        self._prefix = prefix
        self._only_one = only_one
        self._count = 0

    @property
    def full(self) -> bool:
        return self._only_one and self._count > 0

    def pieces(self, calls: Sequence[tuple[str, str]]) -> list[Piece]:
        wanted = calls[:1] if self._only_one else calls
        return [piece for name, arguments in wanted for piece in self._call(name, arguments)]

    def _call(self, name: str, arguments: str) -> list[Piece]:
        index, self._count = self._count, self._count + 1
        return [ToolStart(index, f"{self._prefix}{index}", name), ToolArguments(index, arguments), ToolEnd(index)]


def _read_calls(text: str, *, need_arguments: bool = False) -> tuple[list[tuple[str, str]], str]:
    """Calls at the front of `text`, as name and arguments, and what follows the last of them, white space aside."""
    calls: list[tuple[str, str]] = []
    at = _skip(text, 0)
    while at < len(text):
        value, end = _read_json(text, at)
        found = _as_calls(value, need_arguments)
        if not found:
            break
        calls += found
        at = _skip(text, end)
    return calls, text[at:]


def _read_json(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that starts at `at`, and where it ends; None where there is none."""
    try:
        return _JSON.raw_decode(text, at)
    except (ValueError, RecursionError):  # the second for absurdly deep brackets
        return None, at


def _skip(text: str, at: int) -> int:
    """Past white space and the separators models put between calls."""
    found = _BETWEEN.match(text, at)
    return found.end() if found else at


def _as_calls(value: Any, need_arguments: bool) -> list[tuple[str, str]]:
    """A call, or a list of nothing but calls."""
    values = value if isinstance(value, list) else [value]
    calls = [call for item in values if (call := _as_call(item, need_arguments)) is not None]
    return calls if len(calls) == len(values) else []


def _as_call(value: Any, need_arguments: bool) -> tuple[str, str] | None:
    """Name and arguments as JSON text, in any of the spellings models use."""
    call = value.get("function", value) if isinstance(value, dict) else None
    call = {**value, "name": call} if isinstance(call, str) else call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    arguments = call.get("arguments", call.get("parameters"))
    if isinstance(arguments, str):
        arguments = _read_json(arguments, 0)[0] if arguments.strip() else {}
    elif arguments is None and not need_arguments:
        arguments = {}
    written = _written(arguments) if isinstance(arguments, dict) and _is_text(call["name"]) else None
    return None if written is None else (call["name"], written)


def _written(arguments: Any) -> str | None:
    """As JSON text; None where they are none: models write NaN, Infinity and 1e999."""
    try:
        text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return text if _is_text(text) else json.dumps(arguments)


def _is_text(text: str) -> bool:
    """False with half a surrogate pair, which JSON can escape and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(text: str) -> list[Piece]:
    return [Text(text)] if text else []
