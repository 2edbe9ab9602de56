"""When a model leaves because nobody asks for it."""

from typing import Any

import pytest

from cortex_gateway.placement import idle
from cortex_gateway.placement.snapshot import ModelConfig, ModelLoad, Node, Replica


def node(*replicas: Replica, **more: Any) -> Node:
    return Node(**{"name": "a", "endpoint": "http://a:1", "healthy": True, "replicas": replicas, **more})


def loaded(model: str, last_used: float, **more: Any) -> Replica:
    return Replica(**{"model": model, "status": "loaded", "last_used": last_used, **more})


def due(it: Node, *, after: float = 60.0, now: float = 100.0, **config: Any) -> tuple[str, ...]:
    return idle.due(it, lambda name: ModelConfig(id=name, **config), after_secs=after, now=now)


@pytest.mark.parametrize(
    ("after", "config", "leaves"),
    [
        (60.0, {}, True),
        (61.0, {}, False),
        (0.0, {}, False),
        (0.0, {"idle_secs": 60.0}, True),
        (60.0, {"idle_secs": 61.0}, False),
        (60.0, {"idle_secs": 0.0}, False),
        (60.0, {"pinned_on": ("a",)}, False),
        (60.0, {"pinned_on": ("a",), "idle_secs": 1.0}, False),
        (60.0, {"pinned_on": ("b",)}, True),
    ],
)
def test_a_model_leaves_after_its_own_time_else_everybodys(after: float, config: dict[str, Any], leaves: bool) -> None:
    """Last used 60 s ago."""
    assert due(node(loaded("m", 40.0)), after=after, **config) == (("m",) if leaves else ())


@pytest.mark.parametrize("more", [{"healthy": False}, {"doubted": True}, {"busy": "loading x"}])
def test_nothing_leaves_a_node_that_is_not_ready(more: dict[str, Any]) -> None:
    """It would have to wait."""
    assert due(node(loaded("m", 0.0), **more)) == ()


@pytest.mark.parametrize(
    "more", [{"in_flight": 1}, {"others": 1}, {"draining": True}, {"status": "loading"}, {"status": "unloaded"}]
)
def test_what_works_or_is_not_there_does_not_leave(more: dict[str, Any]) -> None:
    """Ours and others' requests alike."""
    assert due(node(loaded("m", 0.0, load=ModelLoad(), **more), loaded("n", 0.0))) == ("n",)


@pytest.mark.parametrize(("adapter", "leaves"), [({}, True), ({"last_used": 50.0}, False), ({"in_flight": 1}, False)])
def test_whoever_asks_for_an_adapter_asks_for_its_model(adapter: dict[str, Any], leaves: bool) -> None:
    """It never leaves by itself."""
    beside = loaded(**{"model": "m:poet", "last_used": 0.0, "beside": "m", **adapter})

    assert due(node(loaded("m", 0.0), beside)) == (("m",) if leaves else ())
