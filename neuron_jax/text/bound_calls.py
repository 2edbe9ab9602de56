"""How a model must write its calls where they are bound, as the parts around their arguments; knows forms of calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from neuron_jax.text.formats import form_of

Function = Mapping[str, Any]


def forced_calls(format_: str, functions: Sequence[Function], *, several: bool) -> str:
    """The source of a `calls` constraint: one call of one of `functions`, or `several` of them in a row."""
    return json.dumps(_told(format_, functions, several=several))


def free_calls(format_: str, functions: Sequence[Function], *, several: bool) -> str:
    """The same for a text that may have calls or none: bound from where one begins. The arguments of functions that are not
    `strict` are any object.
    """
    form = form_of(format_)
    first = form.start + form.head
    # What begins a call at the beginning only: its first character, or the names of all functions.
    begins = [first[0]] if first else [one["name"] + form.neck for one in functions]
    return json.dumps(_told(format_, _loose(functions), several=several) | {"trigger": form.trigger, "begins": begins})


def calls_or_answer(format_: str, functions: Sequence[Function], schema: str, *, several: bool) -> str:
    """The same for a text that is either calls or JSON by `schema`, the text of one."""
    return json.dumps(_told(format_, _loose(functions), several=several) | {"answer": schema})


def _loose(functions: Sequence[Function]) -> list[Function]:
    """Those that are not strict take any object."""
    return [one if one.get("strict") is True else {"name": one["name"]} for one in functions]


def _told(format_: str, functions: Sequence[Function], *, several: bool) -> dict[str, Any]:
    form = form_of(format_)
    calls = [
        {
            "before": f"{form.head}{_name(function, quoted=form.quoted)}{form.neck}",
            "schema": {"type": "object", **(function.get("parameters") or {})},
            "behind": form.tail,
        }
        for function in functions
    ]
    around = {"start": form.start, "between": form.between, "end": form.end}
    return {"calls": calls, "several": several and form.several, **around}


def _name(function: Function, *, quoted: bool) -> str:
    return json.dumps(function["name"], ensure_ascii=False) if quoted else str(function["name"])
