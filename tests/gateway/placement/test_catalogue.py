"""What there is: the operator's list, the nodes' lists and the aliases, merged."""

import pytest
from attrs import evolve

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


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *(("nick", "m"), ("m", "m"), ("seen", "seen"), ("nope", None), ("nick:latest", "m"), ("seen:latest", "seen")),
        *(("own:latest", "own:latest"), ("own", None), ("m:8b", None), ("m:latest:latest", None), (":latest", None)),
    ],
)
def test_resolve(name: str, found: str | None) -> None:
    """An alias, the operator's model, a node's model, nothing; each by the tag that says nothing, unless it is so called."""
    own = "own:latest"
    known = Catalogue({"m": ModelConfig(id="m"), own: ModelConfig(id=own)}, {"nick": "m"})

    assert catalogue.resolve(known, name, lambda model: model == "seen") == found


@pytest.mark.parametrize(
    ("model", "anywhere"), [("with source", True), ("org/name", True), ("plain", False), ("org/unlisted", False)]
)
def test_what_any_node_can_be_asked_to_load(model: str, anywhere: bool) -> None:
    """The operator has to list it, with a source or under a hub's name."""
    listed = (ModelConfig(id="with source", source="/m"), ModelConfig(id="org/name"), ModelConfig(id="plain"))

    assert Catalogue({one.id: one for one in listed}).anywhere(model) is anywhere


def test_a_model_is_feasible_where_it_is_offered_or_where_any_node_may_be_asked() -> None:
    """Of two nodes one lists it."""
    fleet = FleetSnapshot(nodes=(node("a", loaded("m"), loaded("o/m")), node("b"), node("c", left("m"))))
    known = Catalogue({"o/m": ModelConfig(id="o/m"), "lost": ModelConfig(id="lost")})

    assert {entry.id: entry.feasible_on for entry in catalogue.entries(known, fleet)} == {
        "lost": ("a", "b", "c"),
        "m": ("a",),
        "o/m": ("a", "b", "c"),
    }


def left(model: str) -> Replica:
    """Nothing of it is left but a load that failed."""
    return Replica(model=model, status="failed", offered=False)


def test_up_to_three_names_that_look_alike_are_told() -> None:
    """The nearest first, and none that is quite another."""
    known = Catalogue({name: ModelConfig(id=name) for name in ("llama-1", "llama-2", "llama-3", "llama-12", "qwen")})

    assert catalogue.nearest(known, FleetSnapshot(), "llama-1") == ("llama-1", "llama-12", "llama-3")
    assert catalogue.nearest(known, FleetSnapshot(), "zzzzz") == ()


def test_an_id_to_ask_for_is_a_loaded_one_if_there_is_any() -> None:
    """Else the operator's first, else anybody's."""
    unloaded = Replica(model="a", status="unloaded")
    operator = Catalogue({"k": ModelConfig(id="k")})

    assert catalogue.present(operator, FleetSnapshot(nodes=(node("n", unloaded, loaded("z")),))) == "z"
    assert catalogue.present(operator, FleetSnapshot(nodes=(node("n", unloaded),))) == "k"
    assert catalogue.present(Catalogue(), FleetSnapshot(nodes=(node("n", unloaded),))) == "a"
    assert catalogue.present(Catalogue(), FleetSnapshot()) is None


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
        pytest.param(evolve(node("a", loaded("m"), cycles=2), doubted=True), 2, None, id="in doubt"),
        pytest.param(node("a", loaded("m"), cycles=3), 2, ("m",), id="overdue"),
        pytest.param(
            node("a", loaded("a"), loaded("z", vram_used_mb=1), cycles=2), 2, ("z", "a"), id="of no known size: last"
        ),
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


@pytest.mark.parametrize(
    ("name", "near"),
    [("smollm", ("smollm2",)), ("SMOLLM2", ("smollm2",)), ("qwen", ("Qwen3",)), ("x" * 60_000, ()), ("", ())],
)
def test_the_nearest_names(name: str, near: tuple[str, ...]) -> None:
    """Capitals are no difference, and what is far too long is not even looked at."""
    known = Catalogue({one: ModelConfig(id=one) for one in ("smollm2", "Qwen3")})

    assert catalogue.nearest(known, FleetSnapshot(), name) == near
