"""docs/metrics.md against what a neuron answers at /metrics, and that against what an engine reports."""

import pathlib

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from neuron_jax.daemon.metrics import DEVICE_COUNTERS, DEVICE_GAUGES, MODEL_COUNTERS, MODEL_GAUGES, Metrics, ModelGauges
from neuron_jax.hardware.records import DeviceLoad
from neuron_jax.workers.frames import EngineLoad

ROOT = pathlib.Path(__file__).parents[3]


def names() -> list[str]:
    """Every name as Prometheus sees it."""
    families = [family for family in Metrics()._registry.collect() if family.name.startswith("neuron_")]
    counted = [family.name + ("_total" if family.type == "counter" else "") for family in families]
    counters = [f"{name}_total" for name in (*MODEL_COUNTERS, *DEVICE_COUNTERS)]
    return [*counted, *MODEL_GAUGES, *counters, *DEVICE_GAUGES]


@pytest.mark.parametrize("name", names())
def test_every_metric_of_a_neuron_is_documented(name: str) -> None:
    """Under its own name."""
    assert f"`{name}`" in (ROOT / "docs/metrics.md").read_text()


NUMBERS = {name: number for number, name in enumerate(EngineLoad.__struct_fields__, start=100) if name != "dropped"}
DROPPED = ("step 2", "step 4", "step 8")


class Moment:
    """One model with a number of its own for everything that an engine reports."""

    def model_gauges(self) -> list[ModelGauges]:
        load = msgspec.convert({**NUMBERS, "dropped": DROPPED}, EngineLoad)
        return [ModelGauges("tiny", up=True, load=load, in_flight=1, queued=2, restarts=3)]

    def device_gauges(self) -> list[DeviceLoad]:
        return [DeviceLoad(0, 7, 9, None, 60, power_w=250.5, energy_j=7000.0)]


def test_a_device_tells_what_it_knows() -> None:
    """What it does not say has no series; what it has drawn only grows."""
    metrics = Metrics()
    metrics.watch(Moment())
    shown = {
        sample.name.removeprefix("neuron_device_"): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.labels.get("device") == "0"
    }

    told = {"vram_used_mb": 7, "vram_free_mb": 9, "temp_c": 60, "power_watts": 250.5, "energy_joules_total": 7000}
    assert shown == told


def test_everything_that_an_engine_reports_is_a_metric() -> None:
    """Times in seconds, everything else as it is."""
    metrics = Metrics()
    metrics.watch(Moment())
    shown = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.labels.get("model") == "tiny"
    }

    wanted = {number / 1000 if name.endswith("_ms") else number for name, number in NUMBERS.items()}
    assert wanted <= set(shown.values())
    assert shown["neuron_programs_dropped"] == len(DROPPED)
    assert shown["neuron_programs_compiled"] == NUMBERS["programs"]
    assert shown["neuron_programs"] == NUMBERS["programs_planned"]
    assert shown["neuron_step_host_seconds"] == NUMBERS["host_ms"] / 1000
    assert shown["neuron_steady_state_compiles_total"] == NUMBERS["steady_compiles"]
