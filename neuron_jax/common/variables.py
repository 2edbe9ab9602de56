"""Environment variables over a table, PREFIX_SECTION__KEY=value, and which of them set nothing; pure."""

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs

from neuron_jax.common.kinds import bare, did_you_mean, entry_of, quoted
from neuron_jax.common.names import nearest

NESTED = "__"
ORCHESTRATED = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)")
"""What Kubernetes and Docker set for a service that is called like the program; the rest of PORT is an address."""
CLOSE = 0.7


def settings(cls: type[Any], prefix: str, environ: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """The variables that are for a record `cls`, with the keys that they name: ours have a section, or set one whole."""
    for name in sorted(name for name in environ if name.startswith(prefix)):
        keys = name.removeprefix(prefix).lower().split(NESTED)
        if len(keys) > 1 or keys[0] in _settable(cls):
            yield name, keys


def laid(kind: Any, node: Any, keys: Sequence[str], text: str, where: str = "") -> Any:
    """`node`, which is to become a `kind`, with what a variable says of `keys` in it; `where` is the node's own key.

    Raises ValueError: there is no such key, or `text` is no TOML where it must be.
    """
    if not keys:
        return read_text(bare(kind), text)
    key, *rest = keys
    if attrs.has(kind):
        kinds = {item.name: item.type for item in attrs.fields(kind)}
        if key not in kinds:
            names = [name for name, inner in kinds.items() if not rest or attrs.has(inner) or entry_of(inner)]
            raise ValueError(f'found "{key}"; allowed: {quoted(names)}{did_you_mean(key, names)}')
        table = dict(node) if isinstance(node, dict) else {}
        return table | {key: laid(kinds[key], table.get(key), rest, text, key)}
    if not entry_of(kind):
        raise ValueError(f'found "{key}"; allowed: nothing')
    entries = list(node) if isinstance(node, list) else []
    if not (key.isdecimal() and rest and int(key) <= len(entries)):
        raise ValueError(f'found "{key}"; there are {len(entries)} {where}; the next is {len(entries)}')
    index = int(key)
    entries[index : index + 1] = [laid(entry_of(kind), entries[index] if index < len(entries) else {}, rest, text)]
    return entries


def read_text(kind: Any, text: str) -> Any:
    """A string as it stands, a list also with commas alone, all else as TOML; what is none is a string, and no table."""
    if kind in (str, Path) or get_origin(kind) is Literal:
        return text
    if get_origin(kind) is tuple and not entry_of(kind) and not text.startswith("["):
        return [read_text(get_args(kind)[0], item.strip()) for item in text.split(",") if item]
    try:
        return tomllib.loads(f"value = {text.lower() if kind is bool else text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if attrs.has(kind) or entry_of(kind):
            raise ValueError(f"not TOML: {error}") from error
        return text


def names(cls: type[Any], prefix: str) -> list[str]:
    """Of all variables that are read for `cls`, but for single entries of lists."""
    found = []
    for key, kind in _settable(cls).items():
        name = f"{prefix}{key.upper()}"
        found += [name, *(names(kind, name + NESTED) if attrs.has(kind) else ())]
    return found


def unused(environ: Mapping[str, str], prefix: str, known: Collection[str], others: Collection[str] = ()) -> list[str]:
    """A line for each variable that begins with `prefix` and is none of `known`, with the nearest that is.

    `others`: names, or beginnings that end in `_`, that something else legitimately sets. A name with two underscores is
    not looked at: a wrong one stops the start.
    """
    rests = {name.removeprefix(prefix): name for name in (*known, *others) if not name.endswith("_")}
    vendors = tuple(name for name in others if name.endswith("_"))
    lines = []
    for name in sorted(name for name in environ if name.startswith(prefix)):
        rest = name.removeprefix(prefix)
        if rest in rests or NESTED in rest or name.startswith(vendors) or _orchestrated(rest, environ[name]):
            continue
        near = nearest(rest, rests, 1, CLOSE)
        lines.append(f"environment: {name} is not used" + (f"; did you mean {rests[near[0]]}?" if near else ""))
    return lines


def _settable(cls: type[Any]) -> dict[str, Any]:
    return {item.name: item.type for item in attrs.fields(cls) if "file_only" not in item.metadata}


def _orchestrated(rest: str, value: str) -> bool:
    return bool(ORCHESTRATED.fullmatch(rest)) or (rest.endswith("PORT") and "://" in value)
