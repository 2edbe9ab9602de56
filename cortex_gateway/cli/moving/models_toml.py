"""The predecessor's models.toml → ours, in place, so that comments stay. Pure: a table of tomlkit's in, notes out."""

import attrs

from cortex_gateway.cli.moving.entries import rekeyed
from cortex_gateway.cli.moving.notes import Notes, Table
from cortex_gateway.cli.moving.weights import tell, weights_of
from cortex_gateway.config import Cost, ModelConfig, ModelsToml

IMAGES = ("Tongyi-MAI/Z-Image",)
"""What the predecessor makes pictures with."""


def convert(table: Table, nodes: set[str] | None = None) -> Notes:
    """Every entry that is a model of text, and the aliases that can be followed. `nodes`: the names that there are."""
    notes = Notes()
    seen: set[str] = set()
    entries = table.get("models", [])
    for index in reversed(range(len(entries))):
        if reason := _useless(entries, index):
            notes.gone(f"models {entries[index].get('id')}", reason)
            del entries[index]
    for index in range(len(entries)):
        seen.add(str(_entry(entries, index, nodes, notes)["id"]))
    if "models" in table and not entries:
        del table["models"]
    _aliases(table, seen, notes)
    notes.drop_unknown("", table, {item.name for item in attrs.fields(ModelsToml)})
    return notes


def ranked(table: Table) -> bool:
    """Some model has a place in line for memory."""
    return any("residency_priority" in entry or entry.get("pinned_on") for entry in table.get("models", []))


def _useless(entries: list[Table], index: int) -> str | None:
    entry = entries[index]
    if "image" in entry.get("capabilities", []) or str(entry.get("id", "")).startswith(IMAGES):
        return "makes pictures, which nothing here does"
    if entry.get("id") in [earlier.get("id") for earlier in entries[:index]]:
        return "is there twice: helexa went by the first"
    return None


def _entry(entries: list[Table], index: int, nodes: set[str] | None, notes: Notes) -> Table:
    entry = entries[index]
    name = f"models {entry.get('id')}"
    found = weights_of(str(entry.get("id", "")), entry.get("quant"), entry.pop("source", None))
    tell(found, f"{name}: quant", f"{name}: source", notes)
    for key, least in (("vram_mb", 1), ("min_devices", 1), ("min_device_vram_mb", 0)):
        if isinstance(entry.get(key), int) and entry[key] < least:
            del entry[key]
    if entry.pop("limit", None) is not None:
        notes.gone(f"{name}: limit", "helexa did not read it; here a node would be asked for this much context")
    pinned = entry.get("pinned_on", [])
    for node in sorted(set(pinned) - nodes) if nodes and nodes & set(pinned) else ():
        pinned.remove(node)
        notes.gone(f"{name}: pinned_on {node}", "there is no such node")
    names = {"quant": "source"} if found.source else {}
    if pinned and "residency_priority" in entry:
        names["pinned_on"] = "hosts"
        notes.changed(f"{name}: pinned_on", "is hosts: where it may run. What is pinned is never evicted here")
    entry.pop("harness", None)
    if not found.quant and not found.source:
        entry.pop("quant", None)
    entry = rekeyed(entries, index, names, found.told("id"))
    notes.drop_unknown(f"{name}: ", entry, {item.name for item in attrs.fields(ModelConfig)})
    notes.drop_unknown(f"{name}: cost.", entry.get("cost", {}), {item.name for item in attrs.fields(Cost)})
    return entry


def _aliases(table: Table, models: set[str], notes: Notes) -> None:
    aliases = table.get("aliases", {})
    for name, target in list(aliases.items()):
        reason = None
        if target in aliases:
            reason = f"{target} is an alias: helexa did not follow two, and here that is refused"
        elif name in models:
            reason = "is a model's id as well, which is refused here"
        elif str(target).startswith(IMAGES):
            reason = f"{target} makes pictures, which nothing here does"
        if reason:
            del aliases[name]
            notes.gone(f"aliases {name}", reason)
