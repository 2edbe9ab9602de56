"""What the predecessor's files may hold, as records, and the check that a file holds that. Knows none of our settings.

Source: crates/cortex-core/src/config.rs, catalogue.rs and crates/neuron/src/config.rs of helexa as of August 2026. It passes
over keys that it does not know, and so does `check`.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import attrs
from attrs import field, frozen

from neuron_jax.common.kinds import bare, entry_of, within
from neuron_jax.common.reader import Reader

COUNT = within(0)


@frozen(kw_only=True)
class Gateway:
    listen: str | None = None
    metrics_listen: str | None = None


@frozen(kw_only=True)
class Eviction:
    strategy: Literal["lru", "priority"] = "lru"
    defrag_after_cycles: int = field(default=0, validator=COUNT)


@frozen(kw_only=True)
class NeuronEntry:
    name: str
    endpoint: str


@frozen(kw_only=True)
class Node(NeuronEntry):
    """Of its own example, which it does not read any more."""

    vram_mb: int | None = None
    pinned: tuple[str, ...] = ()


@frozen(kw_only=True)
class Window:
    kind: Literal["balance", "rolling"] = "balance"
    seconds: int | None = field(default=None, validator=COUNT)


@frozen(kw_only=True)
class ApiKey:
    key: str
    account_id: str
    key_id: str | None = None
    hard_cap: int | None = field(default=None, validator=COUNT)
    window: Window = Window()


@frozen(kw_only=True)
class Entitlements:
    require_auth: bool = False
    keys: tuple[ApiKey, ...] = ()


@frozen(kw_only=True)
class Upstream:
    enabled: bool = False
    url: str = ""
    bearer: str = ""
    timeout_secs: int = 5
    served_usage_report_interval_secs: int = 60


@frozen(kw_only=True)
class CortexFile:
    models_config: str | None = None
    gateway: Gateway = Gateway()
    eviction: Eviction = Eviction()
    neurons: tuple[NeuronEntry, ...] = ()
    nodes: tuple[Node, ...] = ()
    entitlements: Entitlements = Entitlements()
    upstream: Upstream = Upstream()


@frozen(kw_only=True)
class Limit:
    context: int | None = None
    input: int | None = None
    output: int | None = None


@frozen(kw_only=True)
class Cost:
    input: float = 0.0
    output: float = 0.0
    cache_read: float | None = None
    cache_write: float | None = None


@frozen(kw_only=True)
class Model:
    id: str
    harness: str = "candle"
    quant: str | None = None
    vram_mb: int | None = None
    min_devices: int = 1
    min_device_vram_mb: int | None = None
    pinned_on: tuple[str, ...] = ()
    residency_priority: int | None = None
    source: str | None = None
    capabilities: tuple[str, ...] = ()
    limit: Limit = Limit()
    cost: Cost = Cost()


@frozen(kw_only=True)
class ModelsFile:
    models: tuple[Model, ...] = ()
    aliases: Mapping[str, str] = field(factory=dict)


@frozen(kw_only=True)
class Source:
    endpoint: str | None = None
    auth_env: str | None = None
    cache_dir: str | None = None


@frozen(kw_only=True)
class PrefixCache:
    enabled: bool = True
    budget_mb: int = 1024
    max_entries: int = 8


@frozen(kw_only=True)
class ContextLimit:
    enabled: bool = True
    target_prefill_latency_secs: float = 120.0
    bootstrap_prefill_tok_per_sec: float = 800.0
    activation_headroom_mb: int = 2048
    min_free_floor_mb: int = field(default=1500, validator=COUNT)
    output_reserve_tokens: int = 8192


@frozen(kw_only=True)
class Admission:
    max_in_flight: int = field(default=1, validator=COUNT)
    max_queue_depth: int = field(default=8, validator=COUNT)
    max_wait_secs: int = field(default=30, validator=COUNT)
    max_per_principal: int = 2
    anon_max_in_flight: int | None = None
    anon_max_pending: int | None = None
    kv_max_wait_secs: int = 240


@frozen(kw_only=True)
class Image:
    te_device: str = "cpu"
    te_resident: bool | None = None
    max_dim: int = 2048


@frozen(kw_only=True)
class Candle:
    hf_cache: str | None = None
    default_source: str | None = None
    sources: Mapping[str, Source] = field(factory=dict)
    prefix_cache: PrefixCache = PrefixCache()
    context_limit: ContextLimit = ContextLimit()
    admission: Admission = Admission()
    image: Image = Image()


@frozen(kw_only=True)
class Harness:
    candle: Candle = Candle()


@frozen(kw_only=True)
class HarnessEntry:
    name: str


@frozen(kw_only=True)
class DefaultModel:
    model_id: str
    harness: str = "candle"
    quant: str | None = None
    tensor_parallel: int | None = None
    devices: tuple[int, ...] | None = None


@frozen(kw_only=True)
class NeuronFile:
    port: int = 13131
    harnesses: tuple[HarnessEntry, ...] = ()
    harness: Harness = Harness()
    default_models: tuple[DefaultModel, ...] = ()


FILES: dict[str, type] = {"cortex.toml": CortexFile, "models.toml": ModelsFile, "neuron.toml": NeuronFile}


def check(table: Mapping[str, Any], name: str, origin: str) -> None:
    """Of the file that is called `name`. Raises ConfigError with every value of another kind, which stopped helexa as well."""
    Reader(origin).read(FILES[name], _known(table, FILES[name]))


def _known(value: Any, kind: Any) -> Any:
    """Without the keys that the record does not have, all the way down."""
    kind = bare(kind)
    entry = entry_of(kind)
    if entry and isinstance(value, list):
        return [_known(one, entry) for one in value]
    if get_origin(kind) is Mapping and isinstance(value, dict):
        return {key: _known(one, get_args(kind)[1]) for key, one in value.items()}
    if attrs.has(kind) and isinstance(value, dict):
        kinds = {item.name: item.type for item in attrs.fields(kind)}
        return {key: _known(one, kinds[key]) for key, one in value.items() if key in kinds}
    return value
