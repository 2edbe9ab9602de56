"""Calls of tools as a grammar: forced, or bound from where the model begins one; knows Lark as llguidance reads it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from neuron_jax.constraints.schema import plain_schema

_TEXT = r"TEXT: /(.|\n)*/"


def calls_grammar(told: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """What `text.bound_calls` writes as Lark. Each call is its parts around a JSON object of its own schema."""
    if "answer" in told:
        answer = {**plain_schema(json.loads(told["answer"])), "x-guidance": options}
        start = [f"start: {_group(told)} | answer", f"answer: %json {json.dumps(answer)}"]
    elif "trigger" not in told:
        start = [f"start: {_group(told)}"]
    elif told["trigger"] is None:
        start = _at_first(told)
    else:
        start = _triggered(told)
    lines = [*start, *_alternatives("call", told["calls"], "")]
    for at, call in enumerate(told["calls"]):
        schema = {**plain_schema(call["schema"]), "x-guidance": options}
        lines += [f"arguments{at}: %json {json.dumps(schema)}"]
    return "\n".join(lines)


def _group(told: Mapping[str, Any]) -> str:
    """All calls that stand together."""
    more = f"({_said(told['between'])} call)*" if told["several"] else ""
    return _joined(_said(told["start"]), "call", more, _said(told["end"]))


def _at_first(told: Mapping[str, Any]) -> list[str]:
    """Calls from the first character on, or a text that begins with none of what calls begin with."""
    begins = " | ".join(_said(one) for one in told["begins"])
    return [f"start: {_group(told)} | FREE", rf"FREE: /(.|\n)*/ & ~(/\s*/ ({begins}) /(.|\n)*/)"]


def _triggered(told: Mapping[str, Any]) -> list[str]:
    """Text, and calls from what triggers them on. What is repeated with its own trigger need not follow a call at once."""
    trigger, in_start = told["trigger"], bool(told["start"])
    rest = told["start"].removeprefix(trigger) if in_start else ""
    first = [] if in_start else _alternatives("first", told["calls"], trigger)
    more = f"({_said(told['between'])} call)*" if in_start and told["several"] else ""
    group = _joined("trigger", _said(rest), "call" if in_start else "first", more, _said(told["end"]))
    start = f"start: ({group})* TEXT" if told["several"] else f"start: TEXT | {group}"
    return [start, f"trigger[lazy]: TEXT {_said(trigger)}", _TEXT, *first]


def _alternatives(name: str, calls: Sequence[Mapping[str, Any]], read: str) -> list[str]:
    """Any of `calls`, of which `read` has been read."""
    lines = [f"{name}: " + " | ".join(f"{name}{at}" for at in range(len(calls)))]
    for at, call in enumerate(calls):
        before = call["before"].removeprefix(read)
        lines.append(f"{name}{at}: {_joined(_said(before), f'arguments{at}', _said(call['behind']))}")
    return lines


def _said(text: str) -> str:
    return json.dumps(text) if text else ""


def _joined(*parts: str) -> str:
    return " ".join(filter(None, parts))
