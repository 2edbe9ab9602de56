"""The predecessor's cortex.toml → ours, in place, so that comments stay. Pure: a table of tomlkit's in, notes out."""

import re
from typing import Any

import attrs
import tomlkit

from cortex_gateway.cli.moving.notes import Notes, Table
from cortex_gateway.config import Auth, CortexToml, EvictionConfig, GatewayConfig, Neuron

OURS = {"auth", "answers", "discovery"}
"""Tables that the predecessor has not: the file is one of ours already."""
UPSTREAM = "there is no upstream authority here: keys are this gateway's own"


def convert(table: Table, *, models: str | None, ranked: bool, state: str | None) -> Notes:
    """`models`: where the catalogue will be, from this file; `ranked`: it has priorities; `state`: of the database of keys."""
    notes = Notes()
    _nodes(table, notes)
    _entitlements(table, notes, state)
    if (upstream := table.pop("upstream", None)) is not None:
        notes.gone("upstream", UPSTREAM + ("; it was in use" if upstream.get("enabled") else ""))
    _eviction(table, notes, ranked=ranked)
    _models_config(table, notes, models)
    _unknown(table, notes)
    listen = table.get("gateway", {}).get("listen", "")
    if not re.match(r"127\.|localhost|\[::1\]", str(listen)):
        notes.changed(
            "gateway.listen",
            "whoever reaches it may use the models, as before; /admin, which is new, wants a key from any other host",
        )
    return notes


def names(table: Table) -> set[str]:
    """Of the nodes that the predecessor's file has."""
    return {str(one.get("name")) for key in ("neurons", "nodes") for one in table.get(key, [])}


def _nodes(table: Table, notes: Notes) -> None:
    """What helexa's own example still calls its neurons, with what only they had."""
    nodes = table.pop("nodes", None)
    if nodes is None:
        return
    entries = table.setdefault("neurons", tomlkit.aot())
    for node in nodes:
        entry = tomlkit.table()
        entry.update({key: node[key] for key in ("name", "endpoint") if key in node})
        entries.append(entry)
        if node.get("pinned"):
            models = ", ".join(map(str, node["pinned"]))
            notes.to_do("nodes.pinned", f'write pinned_on = ["{node.get("name")}"] in models.toml, at {models}')
    notes.changed("nodes", "are [[neurons]]; vram_mb is left out, as the neurons tell it")


def _entitlements(table: Table, notes: Notes, state: str | None) -> None:
    told = table.pop("entitlements", {})
    auth: dict[str, Any] = {}
    if "require_auth" in told:
        auth["required"] = bool(told["require_auth"])
        notes.changed("entitlements.require_auth", "is auth.required")
    if state:
        auth["state"] = state
    if auth:
        added = tomlkit.table()
        added.update(auth)
        table["auth"] = added
    keys = told.get("keys", [])
    if keys:
        notes.gone(
            "entitlements.keys",
            "keys are no longer written here, and none goes on: the gateway keeps hashes of those that it made. "
            "Make one for each holder and hand it over",
        )
    for key in keys:
        notes.to_do("entitlements.keys", _new_key(key))


def _new_key(key: Table) -> str:
    """The command that makes its successor; the key itself is told nobody."""
    name = re.sub(r"[^A-Za-z0-9._@-]", "-", str(key.get("key_id") or key.get("account_id") or "key"))[:64]
    cap, window = key.get("hard_cap"), key.get("window", {})
    if cap is None:
        return f"cortex keys add {name}"
    seconds = window.get("seconds") if window.get("kind") == "rolling" else None
    if not seconds:
        return f"cortex keys add {name}    (its balance of {cap} tokens has no counterpart)"
    return f"cortex keys add {name} --tokens-per-minute {max(1, int(cap) * 60 // int(seconds))}    (was {cap} in {seconds} s)"


def _eviction(table: Table, notes: Notes, *, ranked: bool) -> None:
    told = table.get("eviction", {})
    if ranked and told.get("strategy", "lru") != "priority":
        table.setdefault("eviction", tomlkit.table())["strategy"] = "priority"
        notes.changed(
            "eviction.strategy",
            'is "priority": helexa never read it and went by residency_priority, which "lru" does not look at here',
        )
    if told.get("defrag_after_cycles"):
        notes.changed(
            "eviction.defrag_after_cycles", "helexa only warned: here the engines of an idle node are started afresh"
        )


def _models_config(table: Table, notes: Notes, models: str | None) -> None:
    found = table.get("models_config")
    if models is not None and found != models:
        table["models_config"] = models
        notes.changed("models_config", f'is "{models}", beside this file; without the key there is no catalogue')
    if models is None and found is not None:
        del table["models_config"]
        notes.gone("models_config", f"there is no {found}")


def _unknown(table: Table, notes: Notes) -> None:
    notes.drop_unknown("", table, _keys(CortexToml))
    for section, record in (("gateway", GatewayConfig), ("eviction", EvictionConfig), ("auth", Auth)):
        notes.drop_unknown(f"{section}.", table.get(section, {}), _keys(record))
    for entry in table.get("neurons", []):
        notes.drop_unknown("neurons.", entry, _keys(Neuron))


def _keys(record: type) -> set[str]:
    return {item.name for item in attrs.fields(record)}
