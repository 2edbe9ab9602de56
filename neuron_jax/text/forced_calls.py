"""How a model must write its calls when it has to call a tool, as the parts around their arguments; knows formats of calls."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from neuron_jax.text.tools import TOOL_CALL_CLOSE, TOOL_CALL_OPEN

AROUND: Mapping[str, tuple[str, str, str]] = {
    "hermes": (TOOL_CALL_OPEN + "\n", "arguments", "\n" + TOOL_CALL_CLOSE),
    "llama3_json": ("", "parameters", ""),
}
"""By format what stands before a call's object, what its arguments are called there, and what stands behind."""


def forced_calls(format_: str, functions: Sequence[Mapping[str, Any]], *, several: bool) -> str | None:
    """The source of a `calls` constraint: one call of one of `functions`, or `several` of them in a row. None for a format
    whose calls cannot be forced.
    """
    around = AROUND.get(format_)
    if around is None:
        return None
    before, arguments, behind = around
    calls = [
        {
            "before": f'{before}{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "{arguments}": ',
            "schema": {"type": "object", **(function.get("parameters") or {})},
            "behind": "}" + behind,
        }
        for function in functions
    ]
    # What Llama writes behind its first call is none.
    return json.dumps({"calls": calls, "several": several and bool(behind)})
