"""JSON schemas as llguidance is told them; knows keywords, no grammars."""

import re
from collections.abc import Mapping
from typing import Any

from neuron_jax.constraints.errors import GrammarError

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")
"""Keywords that hold schemas."""

_DAY = (
    r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    r"|([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)"
)
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?([zZ]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LABEL = (
    r"[a-zA-Z0-9]([a-zA-Z0-9]|{h}[a-zA-Z0-9]|{h}{h}[a-zA-Z0-9]|{h}([a-zA-Z0-9]{h}|-[a-zA-Z0-9]){h}{{0,58}}[a-zA-Z0-9])?"
)
_HOST_LABEL = _LABEL.format(h="[a-zA-Z0-9-]")

_FORMATS: Mapping[str, Mapping[str, Any]] = {
    "date": {"pattern": f"^({_DAY})$"},
    "time": {"pattern": f"^({_TIME})$"},
    "date-time": {"pattern": f"^({_DAY})[tT]({_TIME})$"},
    "hostname": {"pattern": rf"^{_HOST_LABEL}(\.{_HOST_LABEL})*$", "maxLength": 253},
}
"""Formats of which the library lets through more than there are: leap days by the calendar, no leap seconds and no punycode,
neither of which a pattern can tell.
"""

_ESCAPES = re.compile(r"\\.|\[(\\.|[^\]\\])*\]", re.DOTALL)
_NO_SPACE = r"[^\s\x{FEFF}]"
"""A byte order mark is white space to ECMAScript."""


def plain_schema(schema: Any) -> Any:
    """A schema without what llguidance reads as settings of its own; `true` means any JSON, which it is told in words."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise GrammarError("it must be a JSON object")
    return _exact({key: value for key, value in schema.items() if key != "x-guidance"})


def _exact(schema: Any) -> Any:
    """`schema` with its formats as patterns, where those say more, and patterns as ECMAScript reads them."""
    if not isinstance(schema, dict):
        return schema
    exact = {key: _inside(key, value) for key, value in schema.items()}
    if isinstance(exact.get("pattern"), str):
        exact["pattern"] = _ESCAPES.sub(lambda found: _NO_SPACE if found[0] == r"\S" else found[0], exact["pattern"])
    name = exact.get("format")
    if not isinstance(name, str) or name not in _FORMATS:
        return exact
    del exact["format"]
    also = exact.get("allOf", [])
    return exact | {"allOf": [*also, _FORMATS[name]]} if isinstance(also, list) else exact


def _inside(key: str, value: Any) -> Any:
    """The value of a keyword, the schemas in it made exact."""
    if key in _MAPS and isinstance(value, dict):
        return {name: _exact(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_exact(one) for one in value] if key in _LISTS else value
    return _exact(value) if key in _SINGLE else value
