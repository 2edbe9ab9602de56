"""What Prometheus scrapes: counters and histograms of requests, gauges read from the fleet at scrape time. Knows no HTTP."""

from collections.abc import Callable, Iterator, Sequence

from attrs import frozen
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cortex_gateway import speed
from cortex_gateway.placement.snapshot import Device, FleetSnapshot, Node, Replica

LABELS = ("model", "node")
DURATION_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
PHASE_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
SPEED_BUCKETS = (1, 2.5, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200)

MODEL_GAUGES: dict[str, tuple[str, Callable[[Replica], float]]] = {
    "in_flight": ("Requests that the replica runs now.", lambda one: one.load.in_flight),
    "queue_depth": ("Requests that wait in the replica's own queue.", lambda one: one.load.queue_depth),
    "max_in_flight": ("Requests that the replica runs at once at most.", lambda one: one.load.max_in_flight),
    "max_queue_depth": ("Requests that may wait in its queue.", lambda one: one.load.max_queue_depth),
    "tok_s_decode": ("Tokens per second that it generates, as the node measured.", lambda one: one.load.tok_s_decode),
    "tok_s_prefill": ("Prompt tokens per second that it reads, as measured.", lambda one: one.load.tok_s_prefill),
}
DEVICE_GAUGES: dict[str, tuple[str, Callable[[Device], float | None]]] = {
    "vram_used_mb": ("MiB in use on the device.", lambda one: one.vram_used_mb),
    "vram_free_mb": ("MiB free on the device.", lambda one: one.vram_free_mb),
    "utilization_pct": ("How busy the device is, in percent.", lambda one: one.utilization_pct),
    "temp_c": ("Temperature of the device, in degrees Celsius.", lambda one: one.temp_c),
    "power_watts": ("What the device draws, in watts.", lambda one: one.power_w),
}


@frozen(kw_only=True)
class RequestRecord:
    """One request that has ended. Seconds count from its arrival; `outcome` is ok, error or cancelled."""

    model: str
    node: str  # "" = it never reached one
    dialect: str
    outcome: str
    status: int
    seconds: float  # to the last byte
    wait_seconds: float | None = None  # until a replica was found for it, the load of one included; None = none was
    ttft_seconds: float | None = None  # to the first token of text, reasoning or a tool call
    prompt_tokens: int | None = None
    completion_tokens: int | None = None  # of a stream that was cut off those that went by, as far as they are known
    cached_tokens: int | None = None
    cold: bool = False  # it waited for a load
    decode_seconds: float | None = None  # from the first token to the last byte
    request_id: str = ""

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first over the time that they took; None where there is no such time to speak of."""
        return speed.tokens_per_second(self.completion_tokens or 0, self.decode_seconds or 0.0)

    @property
    def phases(self) -> dict[str, float]:
        """Where its time went, in seconds, as far as it is known; together they are all of it.

        `wait`: for a replica. `prompt`: from there to the first token, in the node's own line, too. `decode`: to the last byte.
        """
        if self.wait_seconds is None:
            return {}
        if self.ttft_seconds is None or self.decode_seconds is None:
            return {"wait": self.wait_seconds}
        return {
            "wait": self.wait_seconds,
            "prompt": max(0.0, self.ttft_seconds - self.wait_seconds),
            "decode": self.decode_seconds,
        }


class Metrics:
    """All of a gateway's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._listeners: list[Callable[[RequestRecord], None]] = []
        self._requests = self._counter("cortex_requests", "Requests that ended, however they did.")
        self._errors = self._counter("cortex_request_errors", "Requests that ended in an error.")
        self._cold = self._counter("cortex_cold_starts", "Requests that had to wait for a load.")
        self._prompt = self._counter("cortex_prompt_tokens", "Prompt tokens, cached ones included.")
        self._completion = self._counter("cortex_completion_tokens", "Tokens generated.")
        self._cached = self._counter("cortex_cached_prompt_tokens", "Prompt tokens that came from a prefix cache.")
        self._failures = self._counter(
            "cortex_replica_failures", "Tries of requests that failed by the replica's fault."
        )
        self._retries = self._counter("cortex_retries", "Tries that failed there and were followed by another one.")
        self._evictions = self._counter("cortex_evictions", "Models unloaded to make room for another.")
        self._duration = self._histogram(
            "cortex_request_duration_seconds", "From a request's arrival to its last byte.", DURATION_BUCKETS
        )
        self._first = self._histogram(
            "cortex_time_to_first_token_seconds",
            "From a streamed request's arrival to its first token of text, reasoning or a tool call.",
            FIRST_TOKEN_BUCKETS,
        )
        self._phases = self._histogram(
            "cortex_phase_seconds",
            "Where the time of requests went: waiting for a replica, until the first token, until the last byte.",
            PHASE_BUCKETS,
            ("phase",),
        )
        self._speed = self._histogram(
            "cortex_tokens_per_second",
            "Tokens after the first, over the time from the first to the end.",
            SPEED_BUCKETS,
        )

    def observe_request(self, record: RequestRecord) -> None:
        """Count one request that has ended."""
        labels = {"model": record.model, "node": record.node}
        self._requests.labels(**labels).inc()
        self._errors.labels(**labels).inc(record.outcome == "error")
        self._cold.labels(**labels).inc(record.cold)
        self._prompt.labels(**labels).inc(record.prompt_tokens or 0)
        self._completion.labels(**labels).inc(record.completion_tokens or 0)
        self._cached.labels(**labels).inc(record.cached_tokens or 0)
        self._duration.labels(**labels).observe(record.seconds)
        if record.ttft_seconds is not None:
            self._first.labels(**labels).observe(record.ttft_seconds)
        for phase, seconds in record.phases.items():
            self._phases.labels(**labels, phase=phase).observe(seconds)
        if (rate := record.tokens_per_second) is not None:
            self._speed.labels(**labels).observe(rate)
        for listener in self._listeners:
            listener(record)

    def observe_failure(self, model: str, node: str) -> None:
        """Count one try of a request that failed by the replica's fault."""
        self._failures.labels(model=model, node=node).inc()

    def observe_retry(self, model: str, node: str) -> None:
        """Count one try that failed there and is followed by another one, here or elsewhere."""
        self._retries.labels(model=model, node=node).inc()

    def observe_eviction(self, model: str, node: str) -> None:
        """Count one model that was unloaded to make room."""
        self._evictions.labels(model=model, node=node).inc()

    def listen(self, listener: Callable[[RequestRecord], None]) -> None:
        """Tell `listener` of every request that ends."""
        self._listeners.append(listener)

    def follow(self, snapshot: Callable[[], FleetSnapshot]) -> None:
        """Read the fleet's gauges from `snapshot` at every scrape: what has left the fleet has no series."""
        self.registry.register(FleetCollector(snapshot))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, LABELS, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], more: tuple[str, ...] = ()) -> Histogram:
        return Histogram(name, text, LABELS + more, buckets=buckets, registry=self.registry)


@frozen
class FleetCollector(Collector):
    """Gauges as they are at the moment of the scrape."""

    snapshot: Callable[[], FleetSnapshot]

    def describe(self) -> list[Metric]:
        """Nothing is collected at registration."""
        return []

    def collect(self) -> Iterator[Metric]:
        fleet = self.snapshot()
        up = [node for node in fleet.nodes if node.healthy]
        loaded = [(node, one) for node in up for one in node.replicas if one.status in ("loaded", "recovering")]
        yield from self._models(loaded)
        rests = [((one.model, node.name), _rests(one, fleet.at)) for node, one in loaded]
        yield _gauge("cortex_model_circuit_open", "1 = it failed so often in a row that it rests.", LABELS, rests)
        yield from self._devices(up)
        yield _gauge(
            "cortex_node_up", "1 = the node answers.", ("node",), [((n.name,), n.healthy) for n in fleet.nodes]
        )
        waiting = [((model,), count) for model, count in fleet.waiting.items()]
        yield _gauge("cortex_model_waiting", "Requests that wait for the model to be loaded.", ("model",), waiting)

    def _models(self, loaded: list[tuple[Node, Replica]]) -> Iterator[Metric]:
        for name, (text, read) in MODEL_GAUGES.items():
            values = [((one.model, node.name), read(one)) for node, one in loaded]
            yield _gauge(f"cortex_model_{name}", text, LABELS, values)
        text = "Requests that the replica turned away."
        family = CounterMetricFamily("cortex_model_rejections", text, labels=("node", "model", "reason"))
        for node, one in loaded:
            family.add_metric((node.name, one.model, "queue_full"), one.load.rejected_queue_full)
            family.add_metric((node.name, one.model, "wait_timeout"), one.load.rejected_timeout)
        yield family

    def _devices(self, nodes: list[Node]) -> Iterator[Metric]:
        for name, (text, read) in DEVICE_GAUGES.items():
            values = [((node.name, str(one.index)), read(one)) for node in nodes for one in node.devices]
            yield _gauge(f"cortex_device_{name}", text, ("node", "device"), values)
        text = "What the device has drawn since its driver was loaded, in joules."
        family = CounterMetricFamily("cortex_device_energy_joules", text, labels=("node", "device"))
        for node in nodes:
            for one in node.devices:
                if one.energy_j is not None:
                    family.add_metric((node.name, str(one.index)), one.energy_j)
        yield family


def _rests(replica: Replica, now: float) -> float:
    return float(replica.circuit is not None and replica.circuit.rests(now))


def _gauge(
    name: str, text: str, labels: tuple[str, ...], values: Sequence[tuple[tuple[str, ...], float | None]]
) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        if value is not None:
            family.add_metric(key, float(value))
    return family
