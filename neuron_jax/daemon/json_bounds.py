"""How much a JSON text may become in memory, told from its bytes, and how deep it may go; knows no fields.

Three bytes of JSON, `[],`, are seventy as Python objects: a body within its own limit can still be far too much.
"""

import re
from itertools import islice
from typing import Any

from neuron_jax.common.nesting import deep_steps

MAX_VALUES = 1_000_000
"""JSON values in one body, each comma and opening bracket counted as one: at most some 100 MB of objects."""

MAX_DEPTH = 128
"""Levels of nesting in one body. The deepest schemas of tools have some thirty; what walks a value stops at some hundreds."""

_OPENER_OR_STRING = re.compile(rb'([,\[{])|"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string that the body leaves open counts as one: whatever begins with a quote is passed over at once."""


def may_be_deep(text: bytes | bytearray | str, most: int = MAX_DEPTH) -> bool:
    """Whether JSON `text` has enough brackets to be nested deeper than `most` levels."""
    if isinstance(text, str):
        return text.count("[") + text.count("{") > most
    return text.count(b"[") + text.count(b"{") > most


def has_too_many_values(body: bytes | bytearray, most: int = MAX_VALUES) -> bool:
    """Whether `body` has more than `most` commas and opening brackets outside its strings."""
    if sum(map(body.count, (b",", b"[", b"{"))) <= most:  # those inside strings included, as ordinary bodies have them
        return False
    outside = (found.lastindex for found in _OPENER_OR_STRING.finditer(body))
    return next(islice(filter(None, outside), most, None), None) is not None


def deep_path(value: Any, most: int = MAX_DEPTH) -> str | None:
    """The beginning of the path to something in `value` that is nested deeper than `most` levels; None without one."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in deep_steps(value, most))
    return "".join(steps).removeprefix(".") or None
