"""What there is: the operator's list, the nodes' lists and the aliases, merged."""

import pytest

from cortex_gateway.placement import catalogue, defrag
from cortex_gateway.placement.catalogue import Catalogue, Location
from cortex_gateway.placement.snapshot import Cost, Device, FleetSnapshot, Limit, ModelConfig, Node, Replica

DEVICE = Device(index=0, vram_total_mb=8000, vram_free_mb=8000)


def node(name: str, *replicas: Replica, healthy: bool = True, cycles: int = 0, busy: str | None = None) -> Node:
    return Node(
        name=name,
        endpoint=f"http://{name}",
        healthy=healthy,
        devices=(DEVICE,),
        replicas=replicas,
        cycles=cycles,
        busy=busy,
    )


def loaded(model: str, **more: object) -> Replica:
    return Replica(model=model, status="loaded", devices=(0,), **more)  # type: ignore[arg-type]


def test_an_entry_joins_what_everybody_says() -> None:
    """Union of capabilities, tightest limit, every location, the operator's cost."""
    operator = ModelConfig(id="m", limit=Limit(output=100), capabilities=("code",), cost=Cost(input=1.5))
    one = loaded("m", capabilities=("text",), limit=Limit(context=4096, input=4000), tool_call=True, vram_used_mb=700)
    two = Replica(model="m", status="unloaded", limit=Limit(context=2048), reasoning=True, vram_estimate_mb=600)
    fleet = FleetSnapshot(nodes=(node("a", one), node("b", two)))

    (entry,) = catalogue.entries(Catalogue({"m": operator}), fleet)

    assert entry.capabilities == ("text", "code")
    assert entry.limit == Limit(context=2048, input=4000, output=100)
    assert entry.cost == Cost(input=1.5)
    assert (entry.tool_call, entry.reasoning, entry.loaded) == (True, True, True)
    assert entry.feasible_on == ("a", "b")
    assert entry.locations == (
        Location(node="a", status="loaded", vram_estimate_mb=700),
        Location(node="b", status="unloaded", vram_estimate_mb=600),
    )


def test_an_unknown_window_is_left_out() -> None:
    """None, never zero; and a model that says nothing of itself is taken to do text."""
    (entry,) = catalogue.entries(Catalogue(), FleetSnapshot(nodes=(node("a", loaded("m")),)))

    assert (entry.limit, entry.capabilities, entry.cost) == (None, ("text",), None)


def test_a_model_on_a_dead_node_is_not_loaded() -> None:
    """It is still listed."""
    (entry,) = catalogue.entries(Catalogue(), FleetSnapshot(nodes=(node("a", loaded("m"), healthy=False),)))

    assert not entry.loaded


def test_an_alias_has_an_entry_of_its_own_where_its_model_is_known() -> None:
    """One that leads nowhere is not listed."""
    known = Catalogue({}, {"nick": "m", "ghost": "gone"})

    entries = catalogue.entries(known, FleetSnapshot(nodes=(node("a", loaded("m")),)))

    assert [(entry.id, entry.alias_of) for entry in entries] == [("m", None), ("nick", "m")]


@pytest.mark.parametrize(("name", "found"), [("nick", "m"), ("m", "m"), ("seen", "seen"), ("nope", None)])
def test_resolve(name: str, found: str | None) -> None:
    """An alias, the operator's model, a node's model, nothing."""
    known = Catalogue({"m": ModelConfig(id="m")}, {"nick": "m"})

    assert catalogue.resolve(known, name, lambda model: model == "seen") == found


def test_a_model_that_only_a_node_knows_keeps_its_harness() -> None:
    """So that it is loaded again where that harness is."""
    known = Catalogue()

    assert known.config("m", [Replica(model="m", status="unloaded", harness="candle")]).harness == "candle"
    assert known.config("m").harness == "jax"


@pytest.mark.parametrize(
    ("config", "priority", "shards"),
    [
        (ModelConfig(id="m"), 100, 1),
        (ModelConfig(id="m", pinned_on=("a",), min_devices=2), 1000, 2),
        (ModelConfig(id="m", pinned_on=("a",), residency_priority=0, min_devices=2, tensor_parallel=4), 0, 4),
    ],
)
def test_what_follows_from_a_models_entry(config: ModelConfig, priority: int, shards: int) -> None:
    """Priority and shards where they are not given."""
    assert (config.priority, config.shards) == (priority, shards)


@pytest.mark.parametrize(
    ("it", "after", "due"),
    [
        pytest.param(node("a", loaded("m"), cycles=9), 0, None, id="switched off"),
        pytest.param(node("a", loaded("m"), cycles=1), 2, None, id="too early"),
        pytest.param(node("a", loaded("m"), cycles=2, healthy=False), 2, None, id="not healthy"),
        pytest.param(node("a", loaded("m"), cycles=2, busy="loading"), 2, None, id="occupied"),
        pytest.param(node("a", loaded("m", in_flight=1), cycles=2), 2, None, id="in use"),
        pytest.param(
            node("a", Replica(model="m", status="recovering"), cycles=2), 2, None, id="something is recovering"
        ),
        pytest.param(node("a", Replica(model="m", status="unloaded"), cycles=2), 2, (), id="nothing is loaded"),
        pytest.param(
            node("a", loaded("small", vram_used_mb=1), loaded("big", vram_used_mb=9), cycles=2),
            2,
            ("big", "small"),
            id="the largest comes back first",
        ),
    ],
)
def test_defrag(it: Node, after: int, due: tuple[str, ...] | None) -> None:
    """One case of whether a node's engines are restarted."""
    assert defrag.due(it, after_cycles=after) == due
