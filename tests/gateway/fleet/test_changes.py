"""What a configuration that is read again says otherwise."""

from typing import Any

import attrs
import pytest

from cortex_gateway.config import Config, EvictionConfig, GatewayConfig, Neuron
from cortex_gateway.fleet.changes import Changes, changes
from cortex_gateway.placement.snapshot import ModelConfig

BEFORE = Config(models=(ModelConfig(id="m"), ModelConfig(id="n")), aliases={"best": "m"})


@pytest.mark.parametrize(
    ("after", "found"),
    [
        ({}, Changes()),
        ({"models": (ModelConfig(id="m", quant="int8"), ModelConfig(id="n"))}, Changes(models=("m",))),
        ({"models": (ModelConfig(id="n"), ModelConfig(id="o"))}, Changes(models=("m", "o"))),
        ({"models": (ModelConfig(id="n"), ModelConfig(id="m"))}, Changes()),
        ({"aliases": {"best": "n", "new": "m"}}, Changes(aliases=("best", "new"))),
        ({"eviction": EvictionConfig(idle_secs=5.0)}, Changes(eviction=("idle_secs",))),
        ({"gateway": GatewayConfig(wait_secs=5.0)}, Changes(needs_restart=("gateway",))),
        ({"neurons": (Neuron(name="a", endpoint="http://a:1"),)}, Changes(needs_restart=("neurons",))),
    ],
)
def test_what_is_otherwise(after: dict[str, Any], found: Changes) -> None:
    """By id and by name; an order says nothing."""

    assert changes(BEFORE, attrs.evolve(BEFORE, **after)) == found
