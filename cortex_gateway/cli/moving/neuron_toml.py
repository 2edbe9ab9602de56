"""The predecessor's neuron.toml → ours, in place, so that comments stay. Pure: a table of tomlkit's in, notes out."""

from collections.abc import Callable
from typing import Any

import tomlkit
from attrs import evolve

from cortex_gateway.cli.moving.entries import rekeyed
from cortex_gateway.cli.moving.notes import Notes, Table
from cortex_gateway.cli.moving.weights import SCHEME, tell, weights_of

OURS = {
    *("secret", "secret_file", "trust_network", "server", "cache", "engine", "admission", "ranks", "watchdog", "peers"),
    "models",
}
"""What the predecessor has not: the file is one of ours already."""
MODEL = {"model_id", "harness", "quant", "tensor_parallel", "devices"}
HUB = "https://huggingface.co"
TRUST = (
    "is set: helexa's neurons do what every host that reaches them asks, and so will this one. "
    "Better give it a secret (NEURON_SECRET, and CORTEX_GATEWAY__NEURON_SECRET at the gateway) and take this out"
)
Find = Callable[[list[str], str, str | None], str | None]
"""(caches, org/name, the GGUF file's tag) → what the predecessor has fetched of it, or None."""
GONE = {
    "prefix_cache.budget_mb": "the cache has whatever pages of the KV pool nobody else needs",
    "prefix_cache.max_entries": "it keeps pages, not whole prompts",
    "context_limit.enabled": "the memory plan says how much context there is, always",
    "context_limit.target_prefill_latency_secs": "long prompts stop no streams here, so no context is cut short for time",
    "context_limit.bootstrap_prefill_tok_per_sec": "the same",
    "context_limit.activation_headroom_mb": "the memory plan counts a step's temporaries",
    "context_limit.output_reserve_tokens": "prompt and answer share the context; engine.max_context bounds it",
    "admission.max_per_principal": "it is the gateway's: cortex keys add NAME --max-concurrent N",
    "admission.anon_max_in_flight": "requests without a key are not told apart; [auth] required = true keeps them out",
    "admission.anon_max_pending": "the same",
    "admission.kv_max_wait_secs": "admission.max_wait_secs is the only wait",
}
"""Of [harness.candle]: what has no counterpart, and why."""


def convert(table: Table, find: Find) -> Notes:
    """The daemon's address, the engine's limits, what is loaded at start."""
    notes = Notes()
    candle = table.pop("harness", {}).get("candle", {})
    models = table.pop("default_models", None)
    table.pop("harnesses", None)
    port = table.pop("port", 13131)
    notes.changed("port", "is server.port, and server.host says where the neuron listens: everywhere, as helexa's did")
    notes.drop_unknown("", table, set())
    caches = _caches(candle, notes)
    table["trust_network"] = True
    notes.to_do("trust_network", TRUST)
    _add(table, "server", {"host": "0.0.0.0", "port": port})  # noqa: S104 - where the predecessor listens
    _add(table, "engine", _engine(candle, notes))
    _add(table, "admission", _admission(candle, notes))
    _rest(candle, notes)
    if models:
        for index in range(len(models)):
            _model(models, index, caches, find, notes)
        table["default_models"] = models
    return notes


def _add(table: Table, name: str, values: dict[str, Any]) -> None:
    if values:
        added = tomlkit.table()
        added.update(values)
        table[name] = added


def _engine(candle: Table, notes: Notes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    limits, slots = candle.get("context_limit", {}), candle.get("admission", {}).pop("max_in_flight", None)
    if isinstance(slots, int) and slots > 1:
        found["max_slots"] = slots
        notes.changed(
            "harness.candle.admission.max_in_flight", "is engine.max_slots; without it the memory plan decides"
        )
    elif slots is not None:
        notes.gone(
            "harness.candle.admission.max_in_flight",
            "one at a time was candle's limit: the memory plan decides. engine.max_slots = 1 brings it back",
        )
    if "min_free_floor_mb" in limits:
        found["min_free_mb"] = limits.pop("min_free_floor_mb")
        notes.changed("harness.candle.context_limit.min_free_floor_mb", "is engine.min_free_mb")
    if (enabled := candle.get("prefix_cache", {}).pop("enabled", None)) is not None:
        found["prefix_cache"] = enabled
        notes.changed("harness.candle.prefix_cache.enabled", "is engine.prefix_cache")
    return found


def _admission(candle: Table, notes: Notes) -> dict[str, Any]:
    told = candle.get("admission", {})
    found = {key: told.pop(key) for key in ("max_queue_depth", "max_wait_secs") if key in told}
    for key in found:
        notes.changed(f"harness.candle.admission.{key}", f"is admission.{key}")
    return found


def _caches(candle: Table, notes: Notes) -> list[str]:
    """Where the predecessor's downloads may be."""
    sources = candle.pop("sources", {})
    folders = [candle.pop("hf_cache", None), *(source.get("cache_dir") for source in sources.values())]
    if candle.pop("default_source", SCHEME) != SCHEME:
        notes.gone(
            "harness.candle.default_source", "HF_ENDPOINT in the environment names the one registry that is asked"
        )
    for scheme, source in sources.items():
        path = f"harness.candle.sources.{scheme}"
        if str(source.get("endpoint", HUB)).rstrip("/") != HUB:
            notes.gone(f"{path}.endpoint", f"HF_ENDPOINT={source['endpoint']} in the environment is for all models")
        if source.get("auth_env", "HF_TOKEN") != "HF_TOKEN":
            notes.gone(f"{path}.auth_env", f"the token is $HF_TOKEN, not ${source['auth_env']}")
    found = [str(folder) for folder in folders if folder]
    if found:
        notes.gone(
            "harness.candle.hf_cache",
            f"what is in {', '.join(found)} is kept in another way here: downloads go to cache.models_dir, and a model "
            "that is there already is served by its folder, as its source",
        )
    return found


def _rest(candle: Table, notes: Notes) -> None:
    if candle.pop("image", None) is not None:
        notes.gone("harness.candle.image", "nothing here makes pictures")
    for section, settings in candle.items():
        for key in settings if isinstance(settings, dict) else ():
            path = f"{section}.{key}"
            notes.gone(
                f"harness.candle.{path}", GONE.get(path, "no key of helexa's, which passed over it, nor of ours")
            )


def _model(models: list[Table], index: int, caches: list[str], find: Find, notes: Notes) -> None:
    entry = models[index]
    name = f"default_models {entry.get('model_id')}"
    tag = entry.get("quant")
    found = weights_of(str(entry.get("model_id", "")), tag)
    tell(found, f"{name}: quant", f"{name}: scheme", notes)
    is_file = found.source is not None
    if here := find(caches, found.id, tag if is_file else None):
        found = evolve(found, source=here)
        notes.changed(f"{name}: source", f"is what helexa had fetched, {here}")
    entry.pop("harness", None)
    if not found.quant and tag is not None and not is_file:
        entry.pop("quant")
    entry = rekeyed(models, index, {"quant": "source"} if is_file else {}, found.told("model_id"))
    notes.drop_unknown(f"{name}: ", entry, MODEL | {"source"})
