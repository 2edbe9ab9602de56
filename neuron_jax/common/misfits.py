"""What cattrs says does not fit, as paths of keys and words; pure."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

import attrs
from cattrs import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

from neuron_jax.common.kinds import SECRETS, Misfit, allowed, bare, did_you_mean, entry_of, quoted

LONGEST_SHOWN = 400
"""Characters of a value in a message."""
BEHIND = re.compile(r": -?[\d.]+$")
"""The value as validators of attrs tell it, where it is told already."""


def misfits(error: ClassValidationError, table: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each place that `table` does not fit, as models[0].id, and what is to be told of it."""
    fields = attrs.fields_dict(error.cl)
    noted, others = error.group_exceptions()
    for inner, note in noted:
        yield from _of_field(inner, fields[note.name], table.get(note.name), _below(path, note.name))
    for other in others:
        if not isinstance(other, ForbiddenExtraKeysError):
            raise other  # of the record's own constructor, which no table should reach
        for key in sorted(other.extra_fields):
            known = list(fields)
            yield _below(path, key), f"is not a key here; allowed: {quoted(known)}{did_you_mean(key, known)}"


def shown(value: Any) -> str:
    """For a message, and as much as one can bear: load requests are of anybody's making.

    A table may hold a secret, so its values are not shown.
    """
    text = _shown(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        tables = any(isinstance(item, dict) for item in value)
        return "a list of tables" if tables else f"[{', '.join(map(_shown, value))}]"
    return f'"{value}"' if isinstance(value, str) else "a table" if isinstance(value, dict) else str(value)


def _of_field(error: Exception, item: "attrs.Attribute[Any]", value: Any, path: str) -> Iterator[tuple[str, str]]:
    """`item` is the field; below it, in a list or a mapping, the same with the kind and no validator of its own."""
    if "hidden" in item.metadata:
        yield path, SECRETS
    elif isinstance(error, ClassValidationError):
        yield from misfits(error, value, path)
    elif isinstance(error, IterableValidationError):
        for inner, note in error.group_exceptions()[0]:
            entry = item.evolve(type=note.type, validator=None)
            yield from _of_field(inner, entry, value[note.index], _below(path, note.index))
    else:
        yield path, _told(error, item, value, path)


def _told(error: Exception, item: "attrs.Attribute[Any]", value: Any, path: str) -> str:
    words = f"allowed: {allowed(item.type, item.validator)}{_header(item.type, path)}"
    match error:
        case KeyError():
            return f"is missing; {words}"
        case Misfit():
            return f"found {shown(value)}; {words}{did_you_mean(value, _choices(item.type))}"
    said = str(error.args[0]) if error.args else str(error)
    return f"found {shown(value)}; {BEHIND.sub('', said)}"


def _choices(kind: Any) -> Sequence[str]:
    return get_args(bare(kind)) if get_origin(bare(kind)) is Literal else ()


def _header(kind: Any, path: str) -> str:
    """How the header of a table is written, where it is one of the file's own."""
    if "[" in path:
        return ""
    return f" [{path}]" if attrs.has(bare(kind)) else f" [[{path}]]" if entry_of(bare(kind)) else ""


def _below(path: str, key: str | int) -> str:
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key
