"""Calls that are no JSON objects: names before JSON, tags around each argument, Python, Gemma's; knows no envelopes.

Each reader says whether there was a call. It reads nothing of what follows the last one.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from attrs import define

from neuron_jax.text.calls.json_calls import json_calls
from neuron_jax.text.calls.reader import CallReader
from neuron_jax.text.calls.source import Waits
from neuron_jax.text.calls.values import read_value, text_value

NAME = re.compile(r"[\w.:-]*")
_LINE = re.compile(r"[^\n<{]*")
_TO_QUOTE = re.compile(r'[^"\n]*')
_TO_BRACKET = re.compile(r"[^>\n]*")

_BAR = "\uff5c"
SEP = f"<{_BAR}tool▁sep{_BAR}>"
CALL_BEGIN, CALL_END = f"<{_BAR}tool▁call▁begin{_BAR}>", f"<{_BAR}tool▁call▁end{_BAR}>"
CALLS_BEGIN, CALLS_END = f"<{_BAR}tool▁calls▁begin{_BAR}>", f"<{_BAR}tool▁calls▁end{_BAR}>"
DSML = f"{_BAR}DSML{_BAR}"
FUNCTION = "<function="
CALL_ID, ARGS = "[CALL_ID]", "[ARGS]"


def mistral_calls(reader: CallReader) -> Waits[bool]:
    """A list of JSON calls, or since version 11 of its tokenizer `name[ARGS]{...}`, some with `[CALL_ID]id` before."""
    source = reader.source
    yield from reader.spaces()
    if (yield from source.peek()) in tuple("[{"):
        return (yield from json_calls(reader))
    name = yield from source.run(NAME)
    if not name:
        return False
    if (yield from source.taken(CALL_ID)):
        yield from source.run(NAME)
    yield from source.taken(ARGS)
    return (yield from named(reader, name))


def deepseek_calls(reader: CallReader) -> Waits[bool]:
    """`name SEP {...}` (V3.1), or `function SEP name` and the arguments in a fence (V3, R1), any number."""
    source, called = reader.source, False
    yield from reader.spaces()
    while (yield from source.taken(CALL_BEGIN)):
        name = yield from source.run(NAME)
        if not (yield from source.taken(SEP)):
            break
        if name == "function":
            name = (yield from source.run(_LINE)).strip()
            yield from reader.spaces()
            yield from source.taken("```json")
        if not (yield from named(reader, name)):
            break
        called = True
        yield from reader.spaces()
        yield from source.taken("```")
        yield from source.taken(CALL_END)
        yield from reader.spaces()
    return called


def coder_calls(reader: CallReader) -> Waits[bool]:
    """Qwen3-Coder's and Nemotron 3's `<function=name><parameter=key>value</parameter></function>`; or JSON. The models leave
    out what opens the envelope now and then.
    """
    source = reader.source
    if reader.marker != FUNCTION:
        yield from reader.spaces()
        if not (yield from source.taken(FUNCTION)):
            return (yield from json_calls(reader))
    name = (yield from source.run(_TO_BRACKET)).strip()
    if not name or not (yield from source.taken(">")):
        return False
    arguments = _Arguments.begin(reader, name)
    while True:
        yield from reader.spaces()
        if not (yield from source.taken("<parameter=")):
            break
        key = (yield from source.run(_TO_BRACKET)).strip()
        if not (yield from source.taken(">")):
            break
        yield from arguments.tagged(key, "</parameter>", lines=True)
    yield from source.taken("</function>")
    arguments.end()
    return True


def glm_calls(reader: CallReader) -> Waits[bool]:
    """GLM 4.5's `name<arg_key>key</arg_key><arg_value>value</arg_value>`; or JSON."""
    source = reader.source
    yield from reader.spaces()
    name = (yield from source.run(_LINE)).strip()
    if not name:
        return (yield from json_calls(reader))
    yield from reader.spaces()
    called = NAME.fullmatch(name) and (
        (yield from source.starts("<arg_key>")) or (yield from source.starts("</tool_call>"))
    )
    if not called:
        return False
    arguments = _Arguments.begin(reader, name)
    while (yield from source.taken("<arg_key>")):
        key: list[str] = []
        yield from source.until(("</arg_key>",), key.append)
        yield from reader.spaces()
        if not (yield from source.taken("<arg_value>")):
            break
        yield from arguments.tagged("".join(key).strip(), "</arg_value>", lines=False)
        yield from reader.spaces()
    arguments.end()
    return True


def invoke_calls(reader: CallReader, *, mark: str = "") -> Waits[bool]:
    """`<invoke name="..."><parameter name="...">value</parameter></invoke>`, MiniMax-M2's; or JSON. With a `mark` before the
    names of the tags, DeepSeek V3.2's, they say whether a value is a string.
    """
    source, called = reader.source, False
    yield from reader.spaces()
    if (yield from source.peek()) in tuple("[{"):
        return (yield from json_calls(reader))
    while (yield from source.taken(f'<{mark}invoke name="')):
        name = yield from source.run(_TO_QUOTE)
        if not name or not (yield from source.taken('">')):
            return called
        arguments = _Arguments.begin(reader, name)
        yield from reader.spaces()
        while (yield from source.taken(f'<{mark}parameter name="')):
            key = yield from source.run(_TO_QUOTE)
            text = (yield from source.taken('" string="true"')) if mark else None
            yield from source.run(_TO_BRACKET)
            yield from source.taken(">")
            yield from arguments.tagged(key, f"</{mark}parameter>", lines=False, text=text)
            yield from reader.spaces()
        yield from source.taken(f"</{mark}invoke>")
        arguments.end()
        called = True
        yield from reader.spaces()
    return called


def gemma_calls(reader: CallReader) -> Waits[bool]:
    """Gemma 4's and FunctionGemma's `call:name{key:value}`, with quotes of their own; or JSON."""
    source = reader.source
    yield from reader.spaces()
    if not (yield from source.taken("call:")):
        return (yield from json_calls(reader))
    name = yield from source.run(NAME)
    return bool(name) and (yield from named(reader, name))


def python_calls(reader: CallReader, *, lines: bool = False) -> Waits[bool]:
    """Llama 4's and LFM2's `[name(key=value), ...]`; or JSON. With `lines` OLMo 3's, one a line without brackets."""
    source, called = reader.source, False
    yield from reader.spaces()
    listed = yield from source.taken("[")
    yield from reader.spaces()
    if (yield from source.starts("{")):
        return (yield from json_calls(reader, listed=listed))
    while True:
        yield from reader.spaces()
        name = yield from source.run(NAME)
        if not name or not (yield from source.taken("(")):
            break
        yield from _keywords(_Arguments.begin(reader, name))
        called = True
        yield from reader.spaces()
        if not (lines or listed) or (listed and not (yield from source.taken(","))):
            break
    if called and listed:
        yield from source.taken("]")
    return called


def line_calls(reader: CallReader) -> Waits[bool]:
    """GLM 4's `name`, one of those that may be called, and on the next line its arguments."""
    source = reader.source
    yield from source.run(re.compile(r"\n*"), 2)
    name = yield from source.run(NAME)
    known = any(function.get("name") == name for function in reader.functions)
    if not known or not (yield from source.taken("\n")):
        return False
    return (yield from named(reader, name))


def named(reader: CallReader, name: str) -> Waits[bool]:
    """A call of `name` whose arguments come next, as an object; whether it is one."""
    yield from reader.spaces()
    if not (yield from reader.source.starts("{")):
        return False
    reader.start(name)
    yield from read_value(reader.source, reader.arguments)
    reader.end()
    return True


def _keywords(arguments: "_Arguments") -> Waits[None]:
    """`key=value, ...)`"""
    source = arguments.reader.source
    while True:
        yield from source.run(re.compile(r"[\s,]*"))
        key = yield from source.run(NAME)
        yield from arguments.reader.spaces()
        if not key or not (yield from source.taken("=")):
            break
        yield from arguments.reader.spaces()
        if not (yield from arguments.value(key)):
            break
    yield from source.taken(")")
    arguments.end()


@define
class _Arguments:
    """The arguments of a call that come one by one, as an object that grows. Of two with one name the first counts."""

    reader: CallReader
    kinds: Mapping[str, Any]
    keys: set[str]

    @classmethod
    def begin(cls, reader: CallReader, name: str) -> "_Arguments":
        reader.start(name)
        reader.arguments("{")
        return cls(reader, reader.properties(name), set())

    def value(self, key: str) -> Waits[bool]:
        """One that is written as a value; whether it is whole."""
        emit = self.reader.arguments if key not in self.keys else _drop
        return (yield from read_value(self.reader.source, emit, self._before(key)))

    def tagged(self, key: str, close: str, *, lines: bool, text: bool | None = None) -> Waits[None]:
        """One that is written up to `close`, as it is where it is text: by the function's schema, unless `text` says so.
        `lines`: a line break on either side is none of it.
        """
        emit = self.reader.arguments if key not in self.keys else _drop
        kind = self.kinds.get(key)
        before = self._before(key)
        if text if text is not None else _is_text(kind):
            emit(before + '"')
            shown = _Lines(emit) if lines else None
            yield from self.reader.source.until((close,), shown.feed if shown else lambda part: emit(_inner(part)))
            emit('"')
            return
        parts: list[str] = []
        yield from self.reader.source.until((close,), parts.append)
        written = "".join(parts)
        emit(before + text_value(written.removeprefix("\n").removesuffix("\n") if lines else written))

    def end(self) -> None:
        self.reader.arguments("}")
        self.reader.end()

    def _before(self, key: str) -> str:
        """What stands before the value of `key`."""
        comma = ", " if self.keys else ""
        self.keys.add(key)
        return f"{comma}{json.dumps(key, ensure_ascii=False)}: "


@define
class _Lines:
    """Shows a text as the inside of a JSON string, but for a line break at either end."""

    emit: Any
    held: str = ""
    begun: bool = False

    def feed(self, part: str) -> None:
        if not part:
            return
        text = self.held + (part if self.begun else part.removeprefix("\n"))
        self.begun = True
        self.held = "\n" if text.endswith("\n") else ""
        self.emit(_inner(text.removesuffix("\n")))


def _is_text(kind: Any) -> bool:
    """Whether a schema admits nothing but strings."""
    if not isinstance(kind, Mapping):
        return False
    values = kind.get("enum")
    named = isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)
    return kind.get("type") == "string" or named


def _inner(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _drop(_: str) -> None:
    pass
