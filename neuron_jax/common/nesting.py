"""Where a JSON value is nested too deeply; knows values, not what they mean."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

PATH_STEPS = 6
"""How much of a path is told."""

Step = str | int
Value = dict[str, Any] | list[Any]


def deep_steps(value: Any, most: int) -> tuple[Step, ...]:
    """The first steps of the path to something in `value` that is nested deeper than `most` levels; () without one."""
    return tuple(islice(_way_down(value, most), PATH_STEPS)) if _reaches(value, most) else ()


def _way_down(value: Value, levels: int) -> Iterator[Step]:
    """The steps to the first value that has so many levels above it."""
    for below in range(levels - 1, -1, -1):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        step, value = next((step, item) for step, item in pairs if _reaches(item, below))
        yield step


def _reaches(value: Any, levels: int) -> bool:
    """Whether there is a container so many levels under `value`, or `value` is one for none."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        items = (item for one in level for item in (one.values() if isinstance(one, dict) else one))
        level = [item for item in items if type(item) in (dict, list)]
        if not level:
            break
    return bool(level)
