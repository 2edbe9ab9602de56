"""A value as models write them → JSON text, as it comes; knows notations of values, no calls.

JSON goes through as it is. What is nearly JSON becomes JSON: Python's words and quotes, Gemma's, keys without quotes, a comma
too many, a line break inside a string, NaN. Whatever was begun is closed when the text breaks off.
"""

import json
import math
import re
from collections.abc import Callable

from neuron_jax.text.calls.source import SPACES, Source, Waits

Emit = Callable[[str], None]

MOST_DEPTH = 64
"""Containers within each other. What is deeper is not read on."""

QUOTES = ('"', "'", '<|"|>', "<escape>")
"""What strings begin and end with: JSON, Python, Gemma 4, FunctionGemma."""

_WORDS = {
    "true": "true",
    "True": "true",
    "false": "false",
    "False": "false",
    "null": "null",
    "None": "null",
    "NaN": "null",
    "Infinity": "null",
    "-Infinity": "null",
}
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_LIKE_A_NUMBER = re.compile(r"[+-]?[\d.][\d.eE+-]*")
_LITERAL = re.compile(r"[\w.+-]*")
_KEY = re.compile(r"[\w.$-]*")
_PLAIN = re.compile(r"[^\"'\\<\x00-\x1f]*")
_HEX = re.compile(r"[0-9a-fA-F]*")
_OPENERS = {"{": "{", "[": "[", "(": "["}
_CLOSERS = {"{": "}", "[": "]", "(": ")"}


def read_value(source: Source, emit: Emit, lead: str = "") -> Waits[bool]:
    """Reads one value. `lead` stands before it, if anything comes at all. False where it is none, or breaks off: then what
    was emitted is whole all the same.
    """
    held, after, keyed = lead, False, False
    open_: list[str] = []
    while not after or open_:
        spaces = yield from source.run(SPACES)
        if open_ and (yield from source.taken(_CLOSERS[open_[-1]])):
            emit(spaces + _closer(open_.pop()))
            held, after, keyed = "", True, False
        elif after:
            if not (yield from source.taken(",")):
                break
            held, after = ",", False
        elif open_ and open_[-1] == "{" and not keyed:
            key = yield from _key(source)
            if key is None:
                break
            held, keyed = held + spaces + key, True
        else:
            begun = yield from _begin(source, emit, held + spaces)
            if begun is None or len(open_) == MOST_DEPTH:
                break
            open_ += begun
            held, after, keyed = "", not begun, False
    emit("".join(_closer(one) for one in reversed(open_)))
    return after and not open_


def read_string(source: Source) -> Waits[str | None]:
    """A string's text; None where none comes, or it does not end."""
    parts: list[str] = []
    for quote in QUOTES:
        if (yield from source.taken(quote)):
            whole = yield from _string(source, quote, parts.append)
            return json.loads("".join(parts)) if whole else None
    return None


def text_value(text: str) -> str:
    """The JSON of a value that was written without saying whether it is text: text where it is nothing else."""
    source, parts = Source(), list[str]()
    source.add(text.strip() + "\n")  # so that nothing looks cut off
    source.closed = True
    whole = (
        source.now(read_value(source, parts.append))
        and source.now(source.run(SPACES))
        and not source.now(source.peek())
    )
    return "".join(parts) if whole else json.dumps(text, ensure_ascii=False)


def _begin(source: Source, emit: Emit, before: str) -> Waits[str | None]:
    """Emits `before` and a whole scalar, or the beginning of a container, which it returns; None where there is neither."""
    char = yield from source.peek()
    if char and char in _OPENERS:
        yield from source.taken(char)
        emit(before + _OPENERS[char])
        return char
    for quote in QUOTES:
        if (yield from source.taken(quote)):
            emit(before)
            return "" if (yield from _string(source, quote, emit)) else None
    word = yield from source.run(_LITERAL)
    cut = not (yield from source.peek())
    written = _literal(word, cut=cut)
    if written is None:
        return None
    emit(before + written)
    return ""


def _key(source: Source) -> Waits[str | None]:
    """A key and its colon, as JSON."""
    parts: list[str] = []
    for quote in QUOTES:
        if (yield from source.taken(quote)):
            if not (yield from _string(source, quote, parts.append)):
                return None
            break
    else:
        bare = yield from source.run(_KEY)
        if not bare:
            return None
        parts.append(json.dumps(bare, ensure_ascii=False))
    spaces = yield from source.run(SPACES)
    return "".join(parts) + spaces + ":" if (yield from source.taken(":")) else None


def _string(source: Source, quote: str, emit: Emit) -> Waits[bool]:
    """The rest of a string up to `quote`, as it comes; False where it does not end, but what was emitted does."""
    emit('"')
    while True:
        emit((yield from source.some(_PLAIN)))
        if (yield from source.taken(quote)):
            emit('"')
            return True
        char = yield from source.peek()
        if not char:
            emit('"')
            return False
        yield from source.taken(char)
        escaped = char == "\\" and len(quote) == 1
        emit((yield from _escape(source)) if escaped else _spelt(char))


def _escape(source: Source) -> Waits[str]:
    """What stands for an escape in JSON; one that is none is a backslash, and one that is cut off is nothing."""
    char = yield from source.peek()
    if not char:
        return ""
    yield from source.taken(char)
    if char in '"\\/bfnrt':
        return "\\" + char
    if char not in "ux":
        return "'" if char == "'" else "\\\\" + _spelt(char)
    wanted = 4 if char == "u" else 2
    digits = yield from source.run(_HEX, wanted)
    if len(digits) == wanted:
        return "\\u" + digits.rjust(4, "0")
    return "\\\\" + char + digits if (yield from source.peek()) else ""


def _literal(word: str, *, cut: bool) -> str | None:
    """A number or a word as JSON has it. What was `cut` off is what it began to be."""
    if word in _WORDS:
        return _WORDS[word]
    if cut:
        begun = next((written for name, written in _WORDS.items() if word and name.startswith(word)), None)
        if begun is not None:
            return begun
        word = word.rstrip("eE+-.")
    if not _LIKE_A_NUMBER.fullmatch(word):
        return None
    try:
        number = float(word)
    except ValueError:
        return None
    if not math.isfinite(number):
        return "null"
    return word if _NUMBER.fullmatch(word) else json.dumps(int(number) if number.is_integer() else number)


def _closer(opener: str) -> str:
    return "}" if opener == "{" else "]"


def _spelt(char: str) -> str:
    return json.dumps(char, ensure_ascii=False)[1:-1]
