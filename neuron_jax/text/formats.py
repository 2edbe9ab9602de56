"""Which parsers a model's output needs, read off its chat template; knows names of formats, must not know streams."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from neuron_jax.text.calls.reader import CallReader, ToolParser
from neuron_jax.text.calls.table import FORMATS, Form, ToolFormat
from neuron_jax.text.reasoning import CLOSE, OPEN, ReasoningParser

_NAMED: Mapping[str, ToolFormat] = {one.name: one for one in FORMATS}


def tool_format(source: str) -> str | None:
    """The name of the template's format, or None for one whose calls are not understood: they stay text."""
    return next((one.name for one in FORMATS if re.search(one.seen, source)), None)


def form_of(name: str) -> Form:
    """How the calls of a format are written where they are bound."""
    return _NAMED[name].form


def reasoning_format(source: str, prompt: str) -> str | None:
    """`think` when the model may open its thinking, `think_opened` when the rendered `prompt` has done so, the name of a tool
    format that tells thoughts as well, or None.
    """
    if prompt.rstrip().endswith(OPEN):
        return "think_opened"
    found = tool_format(source)
    if found is not None and _NAMED[found].thinks:
        return found
    return "think" if CLOSE in source else None


def tool_parser(
    name: str, call_prefix: str, *, only_one: bool = False, functions: Sequence[Mapping[str, Any]] = ()
) -> ToolParser:
    """The parser of a format that `tool_format` named; ids of calls are `<call_prefix><index>`, and `only_one` ends it.
    `functions` are those that may be called, as OpenAI describes them.
    """
    return CallReader(_NAMED[name].read, call_prefix, only_one, functions)


def reasoning_parser(name: str, *, tools: str | None) -> ReasoningParser | None:
    """The parser of a format that `reasoning_format` named; None where the tools' tells thoughts as well. A call envelope
    ends thinking that was left open.
    """
    if name in _NAMED:
        return None
    assert name in ("think", "think_opened"), name
    return ReasoningParser(opened=name == "think_opened", until=_NAMED[tools].opens if tools else ())


def markers(*, reasoning: str | None, tools: str | None) -> frozenset[str]:
    """Strings the parsers look for; in some vocabularies they are special tokens, which must not be skipped then."""
    thinks = (OPEN, CLOSE) if reasoning and reasoning not in _NAMED else ()
    names = [name for name in (reasoning, tools) if name in _NAMED]
    return frozenset((*thinks, *(marker for name in names if name for marker in _NAMED[name].markers)))
