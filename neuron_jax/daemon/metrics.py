"""The neuron_* metrics in a registry of their own; what is counted here is what clients saw, not what was planned."""

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Protocol

from attrs import frozen
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from neuron_jax.daemon.generation import Again, Ended, Event, Grown, Usage
from neuron_jax.hardware.records import DeviceLoad
from neuron_jax.workers.frames import EngineLoad

OUTCOMES = ("ok", "cancelled", "rejected", "error")
SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200)
FIRST_TOKEN = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
BETWEEN_TOKENS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)


@frozen
class ModelGauges:
    """A loaded model's numbers at the moment of a scrape."""

    model: str
    up: bool
    load: EngineLoad
    in_flight: int
    queued: int
    restarts: int
    reloads: int = 0
    weights: str = ""  # the digest of those that serve


class Gauges(Protocol):
    """Who knows the moment's numbers."""

    def model_gauges(self) -> Iterable[ModelGauges]: ...

    def device_gauges(self) -> Iterable[DeviceLoad]: ...


class Counted(Protocol):
    """A request whose tokens are counted: a `GenerationJob`, or one of whole texts."""

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def usage(self) -> Usage: ...


class Metrics:
    """One neuron's metrics. Series of a model disappear with `forget`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        model = ["model"]
        registry = self._registry
        self._requests = Counter("neuron_requests", "Requests by outcome", ["model", "outcome"], registry=registry)
        self._prompt = Counter("neuron_prompt_tokens", "Prompt tokens of answered requests", model, registry=registry)
        self._completion = Counter("neuron_completion_tokens", "Generated tokens", model, registry=registry)
        self._cached = Counter(
            "neuron_cached_prompt_tokens", "Prompt tokens from the prefix cache", model, registry=registry
        )
        self._first = Histogram(
            "neuron_time_to_first_token_seconds",
            "Until the first text or reasoning",
            model,
            buckets=FIRST_TOKEN,
            registry=registry,
        )
        self._between = Histogram(
            "neuron_inter_token_seconds",
            "Between outputs of one request",
            model,
            buckets=BETWEEN_TOKENS,
            registry=registry,
        )
        self._whole = Histogram(
            "neuron_request_duration_seconds", "Until the last byte", model, buckets=SECONDS, registry=registry
        )
        self._again = Counter(
            "neuron_requests_run_again", "Requests run anew after their engine died", model, registry=registry
        )
        self._labelled = (
            self._prompt,
            self._completion,
            self._cached,
            self._first,
            self._between,
            self._whole,
            self._again,
        )
        self._known: set[str] = set()

    def watch(self, gauges: Gauges) -> None:
        """Adds the numbers of the moment, asked for at every scrape."""
        self._registry.register(_Scrape(gauges))

    def begin(self, model: str, since: float) -> "RequestTimer":
        """A request for `model` that arrived at `since`, in seconds of time.monotonic()."""
        return RequestTimer(self, model, since)

    def remember(self, model: str) -> None:
        """`model` is loaded: its requests count from now on."""
        self._known.add(model)

    def forget(self, model: str) -> None:
        """Removes every series of an unloaded model; requests that end after this leave none behind."""
        self._known.discard(model)
        for metric in self._labelled:
            with contextlib.suppress(KeyError):
                metric.remove(model)
        for outcome in OUTCOMES:
            with contextlib.suppress(KeyError):
                self._requests.remove(model, outcome)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def count(self, model: str, outcome: str, seconds: float, job: Counted | None) -> None:
        """One request is over; called by `RequestTimer`."""
        assert outcome in OUTCOMES, outcome
        if model not in self._known:
            return
        self._requests.labels(model, outcome).inc()
        self._whole.labels(model).observe(seconds)
        if job is not None:
            self._prompt.labels(model).inc(job.prompt_tokens)
            self._completion.labels(model).inc(job.usage.completion)
            self._cached.labels(model).inc(job.usage.cached)

    def ran_again(self, model: str) -> None:
        """A request lost its engine and begins anew; called by `RequestTimer`."""
        if model in self._known:
            self._again.labels(model).inc()

    def saw_first(self, model: str, seconds: float) -> None:
        """When the first text of an answer came; called by `RequestTimer`."""
        if model in self._known:
            self._first.labels(model).observe(seconds)

    def saw_next(self, model: str, seconds: float) -> None:
        """A later output; called by `RequestTimer`."""
        if model in self._known:
            self._between.labels(model).observe(seconds)


class RequestTimer:
    """One request, timed from its arrival. `end` must be called once, whatever happened."""

    def __init__(self, metrics: Metrics, model: str, began: float) -> None:
        self._metrics = metrics
        self._model = model
        self._began = began
        self._last: dict[int, float] = {}
        self._first: float | None = None

    def see(self, event: Event) -> None:
        """Times one event."""
        match event:
            case Grown(index, pieces):
                now = time.monotonic()
                if pieces and self._first is None:
                    self._first = now - self._began
                if index in self._last:
                    self._metrics.saw_next(self._model, now - self._last[index])
                self._last[index] = now
            case Ended(index):
                self._last.pop(index, None)
            case Again():
                self._first = None
                self._last.clear()
                self._metrics.ran_again(self._model)

    def end(self, outcome: str, job: Counted | None) -> None:
        """`outcome` is one of OUTCOMES; `job` carries the tokens of a request that was admitted.

        The first text counts here and not when it came: until now it could have been of an answer that was begun anew.
        """
        if self._first is not None:
            self._metrics.saw_first(self._model, self._first)
        self._metrics.count(self._model, outcome, time.monotonic() - self._began, job)


MODEL_GAUGES: Mapping[str, str] = {
    "neuron_model_up": "1 while the engine serves",
    "neuron_running_requests": "Answers that the engine works on",
    "neuron_waiting_requests": "Answers that wait inside the engine",
    "neuron_in_flight_requests": "Answers admitted by the daemon",
    "neuron_queued_requests": "Requests in line before admission",
    "neuron_free_pages": "Free pages of the KV pool",
    "neuron_pages": "Pages of the KV pool",
    "neuron_cached_pages": "Free pages that the prefix cache can still find",
    "neuron_programs": "Programs that the engine plans to have",
    "neuron_programs_compiled": "Programs that are ready",
    "neuron_programs_dropped": "Programs that could not be compiled, and that the engine does without",
    "neuron_step_host_seconds": "The host's own part of a step, averaged",
    "neuron_step_wait_seconds": "Waiting for the device in a step, averaged",
    "neuron_prefill_tokens_per_second": "Prompt tokens per second, averaged",
    "neuron_decode_tokens_per_second": "Generated tokens per second, averaged",
}
MODEL_COUNTERS: Mapping[str, str] = {
    "neuron_preemptions": "Requests put back to free pages",
    "neuron_engine_steps": "Steps of the engine",
    "neuron_compiles": "Programs compiled after the engine was ready",
    "neuron_steady_state_compiles": "Compiles that no plan knew of and a step waited for",
    "neuron_prefix_cache_lookup_tokens": "Prompt tokens that the prefix cache was asked for",
    "neuron_prefix_cache_hit_tokens": "Prompt tokens that the prefix cache had",
    "neuron_guessed_tokens": "Tokens that were guessed ahead",
    "neuron_right_guesses": "Guessed tokens that were right",
    "neuron_drafted_tokens": "Guessed tokens that the model itself has guessed",
    "neuron_right_drafts": "Those of the model itself that were right",
    "neuron_engine_restarts": "Restarts after a death",
    "neuron_weight_reloads": "How often other weights were put in place while the model served",
}
DEVICE_GAUGES: Mapping[str, str] = {
    "neuron_device_vram_used_mb": "Memory in use, MiB",
    "neuron_device_vram_free_mb": "Free memory, MiB",
    "neuron_device_utilization_pct": "Utilization, percent",
    "neuron_device_temp_c": "Temperature, degrees Celsius",
    "neuron_device_power_watts": "What it draws, watts",
}
DEVICE_COUNTERS: Mapping[str, str] = {"neuron_device_energy_joules": "What it has drawn since its driver was loaded"}


class _Scrape:
    """Asks for the moment's numbers, so that nothing stale can be shown."""

    def __init__(self, gauges: Gauges) -> None:
        self._gauges = gauges

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        models = list(self._gauges.model_gauges())
        rows = [(row.model, _model_values(row)) for row in models]
        weights = GaugeMetricFamily("neuron_weights_info", "Which weights serve", labels=["model", "digest"])
        for row in models:
            weights.add_metric([row.model, row.weights], 1.0)
        yield weights
        devices = [(str(row.index), _device_values(row)) for row in self._gauges.device_gauges()]
        for families, label, found in ((MODEL_GAUGES, "model", rows), (DEVICE_GAUGES, "device", devices)):
            for name, help_ in families.items():
                gauge = GaugeMetricFamily(name, help_, labels=[label])
                _fill(gauge, name, found)
                yield gauge
        for families, label, found in ((MODEL_COUNTERS, "model", rows), (DEVICE_COUNTERS, "device", devices)):
            for name, help_ in families.items():
                counter = CounterMetricFamily(name, help_, labels=[label])
                _fill(counter, name, found)
                yield counter


def _fill(
    family: GaugeMetricFamily | CounterMetricFamily, name: str, rows: Iterable[tuple[str, Mapping[str, float | None]]]
) -> None:
    for label, values in rows:
        value = values[name]
        if value is not None:
            family.add_metric([label], value)


def _model_values(row: ModelGauges) -> Mapping[str, float | None]:
    load = row.load
    return {
        "neuron_model_up": float(row.up),
        "neuron_running_requests": load.running,
        "neuron_waiting_requests": load.waiting,
        "neuron_in_flight_requests": row.in_flight,
        "neuron_queued_requests": row.queued,
        "neuron_free_pages": load.free_pages,
        "neuron_pages": load.pages,
        "neuron_cached_pages": load.kept_pages,
        "neuron_programs": load.programs_planned,
        "neuron_programs_compiled": load.programs,
        "neuron_programs_dropped": len(load.dropped),
        "neuron_step_host_seconds": load.host_ms / 1000,
        "neuron_step_wait_seconds": load.wait_ms / 1000,
        "neuron_prefill_tokens_per_second": load.prefill_rate,
        "neuron_decode_tokens_per_second": load.decode_rate,
        "neuron_preemptions": load.preemptions,
        "neuron_engine_steps": load.steps,
        "neuron_compiles": load.compiles,
        "neuron_steady_state_compiles": load.steady_compiles,
        "neuron_prefix_cache_lookup_tokens": load.prefix_lookup_tokens,
        "neuron_prefix_cache_hit_tokens": load.prefix_hit_tokens,
        "neuron_guessed_tokens": load.guessed_tokens,
        "neuron_right_guesses": load.right_guesses,
        "neuron_drafted_tokens": load.drafted_tokens,
        "neuron_right_drafts": load.right_drafts,
        "neuron_engine_restarts": row.restarts,
        "neuron_weight_reloads": row.reloads,
    }


def _device_values(row: DeviceLoad) -> Mapping[str, float | None]:
    return {
        "neuron_device_vram_used_mb": row.vram_used_mb,
        "neuron_device_vram_free_mb": row.vram_free_mb,
        "neuron_device_utilization_pct": row.utilization_pct,
        "neuron_device_temp_c": row.temp_c,
        "neuron_device_power_watts": row.power_w,
        "neuron_device_energy_joules": row.energy_j,
    }
