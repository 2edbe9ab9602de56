"""The records that every decision is made from: nodes, replicas, models. Knows no clock, no HTTP, no file."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import evolve, field, frozen
from attrs.validators import ge, min_len, optional

from cortex_gateway.placement.circuit import Circuit
from cortex_gateway.placement.load_options import LoadOptions

Status = Literal["loaded", "loading", "recovering", "draining", "failed", "unloaded"]


def adapted(model: str, adapter: str) -> str:
    """What clients ask for who mean an adapter of a model."""
    return f"{model}:{adapter}"


DEFAULT_PRIORITY = 100
PINNED_PRIORITY = 1000


@frozen(kw_only=True)
class Limit:
    """Tokens. An absent number is unknown, never zero."""

    context: int | None = field(default=None, validator=optional(ge(1)))
    input: int | None = field(default=None, validator=optional(ge(1)))
    output: int | None = field(default=None, validator=optional(ge(1)))


@frozen(kw_only=True)
class Cost:
    """USD per million tokens, shown in /v1/models."""

    input: float | None = field(default=None, validator=optional(ge(0)))
    output: float | None = field(default=None, validator=optional(ge(0)))
    cache_read: float | None = field(default=None, validator=optional(ge(0)))
    cache_write: float | None = field(default=None, validator=optional(ge(0)))


@frozen(kw_only=True)
class ModelConfig(LoadOptions):
    """[[models]] of models.toml: how to load a model, and what the operator knows of it before any node has loaded it."""

    id: str = field(validator=min_len(1))
    harness: str = field(default="jax", validator=min_len(1))  # a node must offer it to be asked
    source: str | None = None  # folder, .gguf, hf:org/name[@revision][:file.gguf], or a built-in name
    vram_mb: int | None = field(default=None, validator=optional(ge(1)))  # whole model; a guess until a node measures
    min_devices: int = field(default=1, validator=ge(1))
    min_device_vram_mb: int = field(default=0, validator=ge(0))
    pinned_on: tuple[str, ...] = ()  # only these nodes lead it, and it is never evicted there
    idle_secs: float | None = field(default=None, validator=optional(ge(0)))  # over [eviction]'s; 0 = never
    residency_priority: int | None = None  # absent = 100, or 1000 when pinned
    capabilities: tuple[str, ...] = ()
    limit: Limit | None = None  # its context is what a node is asked to load with
    cost: Cost | None = None

    @property
    def shards(self) -> int:
        """Devices that the model is spread over."""
        return self.tensor_parallel or self.min_devices

    @property
    def priority(self) -> int:
        """The predecessor's rule: what is pinned without a number of its own outranks everything unlisted."""
        if self.residency_priority is not None:
            return self.residency_priority
        return PINNED_PRIORITY if self.pinned_on else DEFAULT_PRIORITY


@frozen(kw_only=True)
class LoadStatus:
    """How far a load is. `total` 0 = not known yet; `unit` is bytes, programs, or "" for a phase without a count."""

    phase: str
    done: int = 0
    total: int = 0
    unit: str = ""


@frozen(kw_only=True)
class Device:
    """One device of a node. MiB, percent, degrees Celsius, watts, joules since its driver was loaded; None = the node cannot
    tell."""

    index: int
    name: str = ""
    kind: str = "cuda"
    vram_total_mb: int = 0
    vram_used_mb: int = 0
    vram_free_mb: int = 0
    utilization_pct: float | None = None
    temp_c: float | None = None
    power_w: float | None = None
    energy_j: float | None = None


@frozen(kw_only=True)
class ModelLoad:
    """What a node reports about the traffic of one loaded model."""

    in_flight: int = 0
    queue_depth: int = 0
    max_in_flight: int = 0  # 0 = not told
    max_queue_depth: int = 0
    rejected_queue_full: int = 0
    rejected_timeout: int = 0
    kv_budget_mb: int = 0
    kv_available_mb: int = 0
    tok_s_prefill: float = 0.0
    tok_s_decode: float = 0.0

    @property
    def pending(self) -> int:
        """Requests that run or wait."""
        return self.in_flight + self.queue_depth


@frozen(kw_only=True)
class Rank:
    """One process of a group. `devices` are indices on its own host."""

    rank: int
    host: str
    devices: tuple[int, ...] = ()
    pid: int | None = None
    phase: str = ""


@frozen(kw_only=True)
class Group:
    """Processes that serve one model together, as one node tells of it: the leader of all ranks, a member of its own."""

    model: str
    role: Literal["leader", "member"]
    leader: str  # the leader's host name, or its address as a member knows it
    world: int = 0
    tensor_parallel: int = 0  # devices of all hosts
    ranks: tuple[Rank, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those of its ranks, each once; the leader's first."""
        return tuple(dict.fromkeys(rank.host for rank in self.ranks))


@frozen(kw_only=True)
class Membership:
    """Devices of a node that serve a model which another node leads. They come back when the leader lets go of it."""

    model: str
    leader: str  # the node that leads; its host name where it is none of ours
    devices: tuple[int, ...] = ()
    leads: Literal["yes", "no", "unknown"] = "unknown"  # "no": that node is lost or has let go, so this will pass
    device_mb: int | None = None  # MiB on each device, as far as the leader has told
    pending: int = 0  # requests on the leader
    last_used: float = 0.0


@frozen(kw_only=True)
class Replica:
    """One model on one node, as that node lists it, plus what this gateway knows of its own traffic."""

    model: str
    status: Status
    devices: tuple[int, ...] = ()
    harness: str = "jax"
    vram_used_mb: int | None = None
    vram_estimate_mb: int | None = None
    capabilities: tuple[str, ...] = ()
    limit: Limit | None = None
    tool_call: bool = False
    reasoning: bool = False
    offered: bool = True  # the node has it among its models; false for what was only ever asked for by name
    servable: bool = True
    unservable_reason: str | None = None
    unservable_detail: str | None = None
    progress: LoadStatus | None = None
    last_error: str | None = None
    quant: Mapping[str, Any] | None = None  # {chosen, reason}
    kv_dtype: Mapping[str, Any] | None = None  # {chosen, reason}
    deterministic: Mapping[str, Any] | None = None  # {chosen, reason}
    group: Group | None = None  # led from here; of several replicas the sum
    adapters: tuple[str, ...] = ()  # names of those that are served beside it
    beside: str | None = None  # it is an adapter of this model, in whose engine and memory it is
    load: ModelLoad = ModelLoad()
    in_flight: int = 0  # our own requests on it now
    others: int = 0  # requests the node reported that were not ours
    last_used: float = 0.0  # seconds on the gateway's own clock; larger is later
    circuit: Circuit | None = None  # None = it has not failed since it last served
    draining: bool = False  # takes no new request: it is about to leave

    def with_adapters(self) -> "Iterator[Replica]":
        """Itself, and each of its adapters as a model of its own, which is where it is and takes no memory."""
        yield self
        for name in self.adapters:
            model = adapted(self.model, name)
            alone: dict[str, Any] = {"adapters": (), "group": None, "vram_used_mb": None, "vram_estimate_mb": None}
            yield evolve(self, model=model, beside=self.model, **alone)

    @property
    def pending(self) -> int:
        """Requests that run or wait on it, ours counted now and the others as last reported."""
        return self.in_flight + self.others

    @property
    def spread(self) -> int:
        """Devices that it is on, over all hosts of its group."""
        return (self.group.tensor_parallel if self.group else 0) or len(self.devices)

    @property
    def resident(self) -> bool:
        """It holds memory of its devices: its own, not that of the model that it is an adapter of."""
        return self.beside is None and self.status in ("loaded", "recovering", "draining", "loading")

    @property
    def known(self) -> bool:
        """It is a model that clients may ask for: not one of which nothing is left but a load that failed."""
        return self.offered or self.resident or self.beside is not None

    @property
    def serving(self) -> bool:
        """A request may be sent to it."""
        return self.status == "loaded" and self.servable and not self.draining


@frozen(kw_only=True)
class Node:
    """One host as last seen."""

    name: str
    endpoint: str
    healthy: bool = False
    doubted: bool = False  # a request could not reach it, and the look that will tell more is under way
    reason: str | None = None  # why it is not healthy, or doubted
    hostname: str | None = None
    harnesses: tuple[str, ...] = ("jax",)
    devices: tuple[Device, ...] = ()
    replicas: tuple[Replica, ...] = ()
    members: tuple[Membership, ...] = ()  # what it lends to models that others lead
    busy: str | None = None  # the load, unload or defrag under way, in words
    cycles: int = 0  # unloads since its engines were last started afresh
    uptime_secs: float = 0.0

    def replica(self, model: str) -> Replica | None:
        return next((replica for replica in self.replicas if replica.model == model), None)


@frozen(kw_only=True)
class FleetSnapshot:
    """Every node at one moment, in the order of the configuration."""

    nodes: tuple[Node, ...] = ()
    at: float = 0.0  # seconds on the gateway's own clock
    waiting: Mapping[str, int] = field(factory=dict)  # model -> requests that wait for it to be loaded
