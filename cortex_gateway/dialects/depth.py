"""How deep a body that is translated may be nested; knows JSON values, not what they mean."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

MAX_DEPTH = 120
"""Levels. A neuron reads 128, of which the translation needs some."""

PATH_STEPS = 6
"""How much of a path is told."""


def deep_path(body: bytes, value: Any, most: int = MAX_DEPTH) -> str | None:
    """The beginning of the path to something in `value`, which `body` holds, that is nested deeper than `most` levels."""
    if body.count(b"[") + body.count(b"{") <= most or not _reaches(value, most):
        return None
    return ".".join(islice(_way_down(value, most), PATH_STEPS))


def _way_down(value: Any, levels: int) -> Iterator[str]:
    """The steps to the first value that has so many levels above it."""
    for below in range(levels - 1, -1, -1):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        step, value = next((step, item) for step, item in pairs if _reaches(item, below))
        yield str(step)


def _reaches(value: Any, levels: int) -> bool:
    """Whether there is an object or an array so many levels under `value`, or `value` is one for none."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        items = (item for one in level for item in (one.values() if isinstance(one, dict) else one))
        level = [item for item in items if type(item) in (dict, list)]
        if not level:
            break
    return bool(level)
