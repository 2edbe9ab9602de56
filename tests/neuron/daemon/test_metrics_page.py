"""docs/metrics.md against what a neuron answers at /metrics."""

import pathlib

import pytest

from neuron_jax.daemon.metrics import DEVICE_GAUGES, MODEL_COUNTERS, MODEL_GAUGES, Metrics

ROOT = pathlib.Path(__file__).parents[3]


def names() -> list[str]:
    """Every name as Prometheus sees it."""
    families = [family for family in Metrics()._registry.collect() if family.name.startswith("neuron_")]
    counted = [family.name + ("_total" if family.type == "counter" else "") for family in families]
    return [*counted, *MODEL_GAUGES, *(f"{name}_total" for name in MODEL_COUNTERS), *DEVICE_GAUGES]


@pytest.mark.parametrize("name", names())
def test_every_metric_of_a_neuron_is_documented(name: str) -> None:
    """Under its own name."""
    assert f"`{name}`" in (ROOT / "docs/metrics.md").read_text()
