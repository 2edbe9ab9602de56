"""An entry of a list of tables with other keys, its comments where they were. Pure: tomlkit's own changes append."""

from collections.abc import Mapping
from typing import Any

import tomlkit
from tomlkit.items import Null
from tomlkit.items import Table as Standard

from cortex_gateway.cli.moving.notes import Table


def rekeyed(entries: Any, index: int, names: Mapping[str, str], added: Mapping[str, Any]) -> Table:
    """`entries[index]` with keys called by their new `names`, and behind its first key what is `added` and not there."""
    old = entries[index]
    fresh = tomlkit.table() if isinstance(old, Standard) else tomlkit.inline_table()
    present = {names.get(key, key) for key in old}
    missing = {key: value for key, value in added.items() if key not in present}
    for key, item in old.value.body:
        if isinstance(item, Null):  # where a key was deleted
            continue
        if key is None:
            fresh.add(item)
            continue
        fresh.append(names.get(key.key, key), item)
        for late, value in missing.items():
            fresh.append(late, value)
        missing = {}
    for key in set(added) & present:
        fresh[key] = added[key]
    entries[index] = fresh
    found: Table = entries[index]
    return found
