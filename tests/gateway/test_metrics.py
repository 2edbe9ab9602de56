"""What Prometheus sees: scraped over a real connection, parsed by its own parser."""

import asyncio
import pathlib

import attrs
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cortex_gateway import metrics as gateway_metrics
from cortex_gateway.config import Config, GatewayConfig, Neuron
from cortex_gateway.metrics import Metrics, RequestRecord
from cortex_gateway.placement.snapshot import Device, FleetSnapshot, ModelLoad, Node, Replica
from cortex_gateway.serving import bind, running

ROOT = pathlib.Path(__file__).parents[2]
RECORD = RequestRecord(
    model="m",
    node="a",
    dialect="chat",
    outcome="ok",
    status=200,
    seconds=3.0,
    wait_seconds=0.1,
    ttft_seconds=0.3,
    prompt_tokens=10,
    completion_tokens=21,
    cached_tokens=4,
    cold=True,
    decode_seconds=2.0,
)
HERE = {"model": "m", "node": "a"}


def fleet() -> FleetSnapshot:
    load = ModelLoad(
        in_flight=1, queue_depth=2, max_in_flight=3, max_queue_depth=4, rejected_timeout=5, tok_s_decode=6.5
    )
    device = Device(index=0, vram_total_mb=9, vram_used_mb=7, vram_free_mb=2, utilization_pct=55.0, energy_j=77.0)
    replica = Replica(model="m", status="loaded", devices=(0,), load=load)
    one = Node(name="a", endpoint="http://a", healthy=True, devices=(device,), replicas=(replica,))
    return FleetSnapshot(nodes=(one, Node(name="b", endpoint="http://b")), waiting={"n": 2})


def value(of: Metrics, name: str, **labels: str) -> float | None:
    return of.registry.get_sample_value(name, labels or HERE)


def test_a_request_is_counted_once_everywhere() -> None:
    """Requests, tokens, cold starts and the three times."""
    it = Metrics()

    it.observe_request(RECORD)

    counted = {name: value(it, f"cortex_{name}_total") for name in ("requests", "request_errors", "cold_starts")}
    tokens = [value(it, f"cortex_{name}_tokens_total") for name in ("prompt", "completion", "cached_prompt")]
    assert counted == {"requests": 1, "request_errors": 0, "cold_starts": 1}
    assert tokens == [10, 21, 4]
    assert value(it, "cortex_request_duration_seconds_sum") == 3.0
    assert value(it, "cortex_time_to_first_token_seconds_sum") == 0.3
    assert value(it, "cortex_tokens_per_second_sum") == 10.0


@pytest.mark.parametrize(
    ("known", "phases"),
    [
        ({}, {"wait": 0.1, "prompt": 0.2, "decode": 2.0}),
        ({"ttft_seconds": None, "decode_seconds": None}, {"wait": 0.1}),
        ({"wait_seconds": None, "ttft_seconds": None, "decode_seconds": None}, {}),
        ({"ttft_seconds": 0.05}, {"wait": 0.1, "prompt": 0.0, "decode": 2.0}),
    ],
)
def test_the_phases_of_a_request(known: dict[str, float | None], phases: dict[str, float]) -> None:
    """As far as they are known; what began to answer and was tried again elsewhere waited longer than its first token."""
    it = Metrics()

    it.observe_request(attrs.evolve(RECORD, **known))

    sums = {phase: value(it, "cortex_phase_seconds_sum", **HERE, phase=phase) for phase in ("wait", "prompt", "decode")}
    assert {phase: pytest.approx(told) for phase, told in sums.items() if told is not None} == phases


@pytest.mark.parametrize(("outcome", "errors"), [("ok", 0), ("cancelled", 0), ("error", 1)])
def test_only_an_error_is_an_error(outcome: str, errors: int) -> None:
    """A client that went away is not the gateway's fault."""
    it = Metrics()

    it.observe_request(attrs.evolve(RECORD, outcome=outcome))

    assert value(it, "cortex_request_errors_total") == errors


@pytest.mark.parametrize(
    "record",
    [
        attrs.evolve(RECORD, completion_tokens=1),
        attrs.evolve(RECORD, completion_tokens=None),
        attrs.evolve(RECORD, decode_seconds=None),
        attrs.evolve(RECORD, decode_seconds=0.0),
        attrs.evolve(RECORD, decode_seconds=0.0004),
    ],
)
def test_a_speed_needs_two_tokens_and_a_time(record: RequestRecord) -> None:
    """Otherwise there is no sample: neither a zero, nor 50,000 tokens per second of an answer that came in one piece."""
    it = Metrics()

    it.observe_request(record)

    assert value(it, "cortex_tokens_per_second_count") is None


def test_an_unstreamed_request_has_no_first_token() -> None:
    """Its duration is counted all the same."""
    it = Metrics()

    it.observe_request(attrs.evolve(RECORD, ttft_seconds=None))

    assert value(it, "cortex_time_to_first_token_seconds_count") is None
    assert value(it, "cortex_request_duration_seconds_count") == 1


def test_evictions_are_counted() -> None:
    """The predecessor described the metric and never counted."""
    it = Metrics()

    it.observe_eviction("m", "a")

    assert value(it, "cortex_evictions_total") == 1


def test_listeners_hear_of_every_request() -> None:
    """The access log is one."""
    it, heard = Metrics(), list[RequestRecord]()
    it.listen(heard.append)

    it.observe_request(RECORD)

    assert heard == [RECORD]


def test_gauges_show_the_fleet_of_the_moment() -> None:
    """Of loaded models and healthy nodes; what a node cannot tell has no series."""
    it = Metrics()
    it.follow(fleet)

    assert [value(it, f"cortex_model_{name}") for name in gateway_metrics.MODEL_GAUGES] == [1, 2, 3, 4, 6.5, 0]
    assert value(it, "cortex_device_vram_free_mb", node="a", device="0") == 2
    assert value(it, "cortex_device_utilization_pct", node="a", device="0") == 55
    assert value(it, "cortex_device_temp_c", node="a", device="0") is None
    assert value(it, "cortex_device_power_watts", node="a", device="0") is None
    assert value(it, "cortex_device_energy_joules_total", node="a", device="0") == 77
    assert value(it, "cortex_model_rejections_total", **HERE, reason="wait_timeout") == 5
    assert (value(it, "cortex_node_up", node="a"), value(it, "cortex_node_up", node="b")) == (1, 0)
    assert value(it, "cortex_model_waiting", model="n") == 2


def test_series_of_what_has_left_disappear() -> None:
    """A model that was unloaded, and a node that went down."""
    now = [fleet()]
    it = Metrics()
    it.follow(lambda: now[0])
    assert value(it, "cortex_model_in_flight") == 1

    node = now[0].nodes[0]
    now[0] = FleetSnapshot(nodes=(attrs.evolve(node, replicas=(Replica(model="m", status="unloaded"),)),))
    assert value(it, "cortex_model_in_flight") is None
    assert value(it, "cortex_device_vram_free_mb", node="a", device="0") == 2

    now[0] = FleetSnapshot(nodes=(attrs.evolve(node, healthy=False),))
    assert value(it, "cortex_device_vram_free_mb", node="a", device="0") is None


def test_a_scrape_over_http_can_be_parsed() -> None:
    """By Prometheus' own parser; every family has its help; other paths are not metrics."""

    async def scrape() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        gateway = GatewayConfig(listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", drain_secs=0)
        config = Config(gateway=gateway, neurons=(Neuron(name="a", endpoint="http://127.0.0.1:9"),))
        listeners = bind(config)
        async with running(config, listeners) as it, httpx.AsyncClient(base_url=it.metrics_url, timeout=30) as http:
            it.metrics.observe_request(RECORD)
            return await http.get("/metrics"), await http.head("/metrics"), await http.get("/")

    got, head, other = asyncio.run(scrape())

    families = {family.name: family for family in text_string_to_metric_families(got.text)}
    assert got.headers["content-type"].startswith("text/plain")
    assert families["cortex_requests"].samples[0].labels == HERE
    assert families["cortex_node_up"].samples[0].value == 0
    assert all(family.documentation for name, family in families.items() if not name.endswith("_created"))
    assert (head.status_code, head.content, other.status_code) == (200, b"", 404)


def names() -> list[str]:
    """Every family that a gateway can have, as it is exposed."""
    it = Metrics()
    it.follow(fleet)
    it.observe_request(RECORD)
    it.observe_eviction("m", "a")
    return sorted(family.name + ("_total" if family.type == "counter" else "") for family in it.registry.collect())


@pytest.mark.parametrize("name", names())
def test_every_metric_is_documented(name: str) -> None:
    """docs/metrics.md has each one."""
    assert f"`{name}`" in (ROOT / "docs/metrics.md").read_text()


@pytest.mark.parametrize(
    ("name", "buckets"),
    [
        ("request_duration_seconds", "0.1 0.5 1 2.5 5 10 30 60 120 300 600 1200"),
        ("time_to_first_token_seconds", "0.05 0.1 0.25 0.5 1 2 5 10 20 30 60 120"),
        ("phase_seconds", "0.005 0.02 0.1 0.5 1 2 5 10 20 30 60 120 300 600"),
        ("tokens_per_second", "1 2.5 5 10 15 20 30 40 60 80 120 200"),
    ],
)
def test_the_buckets_are_the_documented_ones(name: str, buckets: str) -> None:
    """Dashboards of the predecessor keep working."""
    it = Metrics()
    it.observe_request(RECORD)
    (family,) = (one for one in it.registry.collect() if one.name == f"cortex_{name}")
    every = [float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")]
    bounds = dict.fromkeys(every)  # those of each phase are the same

    assert list(bounds) == [*map(float, buckets.split()), float("inf")]
    assert f"| {buckets} |" in (ROOT / "docs/metrics.md").read_text()
