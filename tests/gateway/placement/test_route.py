"""Where a request goes, case by case: a snapshot in, a decision out."""

from typing import Any

import pytest

from cortex_gateway.placement import room
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.catalogue import Catalogue
from cortex_gateway.placement.decisions import Decision, Hold, Join, Placement, Policy, Recovering, Reject, Serve
from cortex_gateway.placement.snapshot import Device, FleetSnapshot, Membership, ModelConfig, ModelLoad, Node, Replica

M = ModelConfig(id="m", vram_mb=4000)


def node(name: str, *replicas: Replica, free: int = 9000, healthy: bool = True, **more: Any) -> Node:
    device = Device(index=0, vram_total_mb=10_000, vram_free_mb=free)
    return Node(name=name, endpoint=f"http://{name}", healthy=healthy, devices=(device,), replicas=replicas, **more)


def replica(model: str = "m", status: Any = "loaded", **more: Any) -> Replica:
    return Replica(model=model, status=status, devices=(0,), **more)


def decide(*nodes: Node, model: ModelConfig = M, **policy: Any) -> Decision:
    return routing.route(model, FleetSnapshot(nodes=nodes), Policy(**policy))


def full(name: str, *models: str, **more: Any) -> Node:
    """A node without room, each resident 4000 MiB."""
    return node(name, *(replica(one, vram_used_mb=4000, **more) for one in models), free=1000)


def load(pending: int = 0, slots: int = 0, speed: float = 0.0) -> dict[str, Any]:
    return {"in_flight": pending, "load": ModelLoad(max_in_flight=slots, tok_s_decode=speed)}


@pytest.mark.parametrize(
    ("nodes", "decision"),
    [
        pytest.param([node("a", replica())], Serve("a"), id="the only replica"),
        pytest.param([node("a", replica(**load(2))), node("b", replica(**load(1)))], Serve("b"), id="the least busy"),
        pytest.param([node("b", replica()), node("a", replica())], Serve("a"), id="of equals the first by name"),
        pytest.param(
            [node("a", replica(**load(1, 1, 900))), node("b", replica(**load(1, 2, 10)))],
            Serve("b"),
            id="a free slot on the slow one beats a queue on the fast one",
        ),
        pytest.param(
            [node("a", replica(**load(0, 8, 10))), node("b", replica(**load(2, 8, 90)))],
            Serve("b"),
            id="the fast one ends sooner",
        ),
        pytest.param(
            [node("a", replica(**load(0, 8, 0))), node("b", replica(**load(2, 8, 90)))],
            Serve("a"),
            id="speed counts only where all have one",
        ),
        pytest.param(
            [node("a", replica(**load(1, 8, 10))), node("b", replica(**load(2, 8, 14)))],
            Serve("a"),
            id="the new request is work as well",
        ),
        pytest.param(
            [node("a", replica(**load(1, 0))), node("b", replica(**load(2, 8)))],
            Serve("a"),
            id="slots that are not told are not full",
        ),
        pytest.param(
            [node("a", replica(others=3)), node("b", replica(**load(2)))], Serve("b"), id="others' requests count"
        ),
        pytest.param(
            [node("a", replica(), healthy=False), node("b", replica(**load(9)))], Serve("b"), id="not a dead node"
        ),
        pytest.param(
            [node("a", replica(servable=False)), node("b", replica(**load(9)))], Serve("b"), id="not one that cannot"
        ),
        pytest.param(
            [node("a", replica(draining=True)), node("b", replica(**load(9)))], Serve("b"), id="not one about to leave"
        ),
        pytest.param([node("a", replica(status="loading")), node("b")], Join("a"), id="wait for a load under way"),
        pytest.param(
            [node("a", replica(status="recovering")), node("b", replica(status="loading"))],
            Join("b"),
            id="loading is nearer than recovering",
        ),
        pytest.param([node("a", replica(status="recovering")), node("b")], Recovering("a"), id="recovering"),
        pytest.param(
            [node("a", replica(status="recovering"), doubted=True)], Recovering("a"), id="what recovers is no doubt"
        ),
        pytest.param([node("a")], Placement(node="a", devices=()), id="cold load"),
        pytest.param(
            [node("a", replica(status="failed"))], Placement(node="a", devices=()), id="a failed one is tried anew"
        ),
        pytest.param(
            [node("a", free=5000), node("b", free=9000)], Placement(node="b", devices=()), id="most free memory"
        ),
        pytest.param([full("a", "x"), node("b", free=4000)], Placement(node="b", devices=()), id="room beats eviction"),
        pytest.param([full("a", "x")], Placement(node="a", devices=(), victims=("x",)), id="eviction"),
    ],
)
def test_route(nodes: list[Node], decision: Decision) -> None:
    """One case of routing."""
    assert decide(*nodes) == decision


def test_its_pin_comes_first() -> None:
    """Room elsewhere does not matter: it may only be there."""
    pinned = ModelConfig(id="m", vram_mb=4000, pinned_on=("b", "c"))

    assert decide(node("a"), full("b", "x"), node("c", free=4000), model=pinned) == Placement(node="c", devices=())


def test_devices_are_named_where_there_is_a_choice() -> None:
    """The freest one of two."""
    devices = tuple(Device(index=index, vram_total_mb=9000, vram_free_mb=mb) for index, mb in enumerate((5000, 8000)))
    it = Node(name="a", endpoint="http://a", healthy=True, devices=devices)

    assert decide(it) == Placement(node="a", devices=(1,))


@pytest.mark.parametrize(
    ("nodes", "policy", "kind", "words"),
    [
        pytest.param([], {}, "down", "there is no node", id="no node at all"),
        pytest.param([node("a", healthy=False)], {}, "down", "not seen yet", id="not seen yet"),
        pytest.param([node("a", healthy=False, reason="refused")], {}, "down", "refused", id="down, and why"),
        pytest.param([node("a")], {"only": ("b",)}, "never", "asked for (b)", id="another node was named"),
        pytest.param([node("a", harnesses=("candle",))], {}, "never", "harness", id="no node could ever"),
        pytest.param([node("a")], {"excluded": {"a"}}, "failed", "just failed", id="it has just failed there"),
        pytest.param(
            [node("a", replica(servable=False, unservable_detail="no memory"))],
            {},
            "full",
            "no memory",
            id="unservable",
        ),
        pytest.param(
            [node("a", replica(servable=False, unservable_reason="unavailable"))], {}, "full", "unavailable", id="why"
        ),
        pytest.param([node("a", replica(draining=True))], {}, "full", "it is leaving", id="leaving"),
        pytest.param([node("a", free=1)], {}, "full", "the freest has 1", id="no room"),
        pytest.param([node("a")], {"offering": ("b",)}, "never", "does not offer it", id="not its node"),
        pytest.param(
            [node("a", healthy=False)], {"offering": ("a",)}, "down", "a offers it and is not", id="its node is down"
        ),
        pytest.param([node("a", healthy=False)], {}, "down", "now: a is not healthy", id="nobody offers it"),
        pytest.param(
            [node("a"), node("b")], {"excluded": {"a"}, "only": ("a",)}, "failed", "b is not", id="the worst says"
        ),
    ],
)
def test_reject(nodes: list[Node], policy: dict[str, Any], kind: str, words: str) -> None:
    """One reason to refuse at once, in words an operator can use."""
    decision = decide(*nodes, **policy)

    assert isinstance(decision, Reject)
    assert decision.why == kind
    assert words in decision.reason


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        pytest.param([node("a", busy="loading x")], "loading x", id="the node has a job"),
        pytest.param([node("a", replica(status="draining"))], "still unloading", id="the model is just leaving"),
        pytest.param([full("a", "x", in_flight=1)], "models are in use", id="who could leave is in use"),
        pytest.param([node("a", free=1), full("b", "x", in_flight=1)], "models are in use", id="one of two nodes"),
        pytest.param([node("a", doubted=True, reason="refused")], "by a request (refused)", id="in doubt"),
        pytest.param([node("a", replica(), doubted=True)], "being looked at", id="it serves and is in doubt"),
        pytest.param(
            [full("a", "x"), node("b", doubted=True, reason="cut")], "by a request (cut)", id="nobody leaves meanwhile"
        ),
        pytest.param(
            [node("a", free=1, members=(Membership(model="g", leader="z", devices=(0,), leads="no"),))],
            "getting back what it lent to g",
            id="a group's memory comes back",
        ),
    ],
)
def test_hold(nodes: list[Node], words: str) -> None:
    """One reason to wait: it will pass."""
    decision = decide(*nodes)

    assert isinstance(decision, Hold)
    assert words in decision.reason


def test_a_node_in_doubt_is_not_waited_for_where_there_is_room() -> None:
    """Nor where another one serves."""
    doubted = node("b", replica(), doubted=True)

    assert decide(node("a"), node("b", doubted=True)) == Placement(node="a", devices=())
    assert decide(node("a", replica(**load(9))), doubted) == Serve("a")


def test_a_node_that_was_named_is_the_only_one() -> None:
    """Where it serves elsewhere does not count."""
    assert decide(node("a", replica()), node("b"), only=("b",)) == Placement(node="b", devices=())
    assert decide(node("a", replica(**load(9))), node("b", replica()), only=("a",)) == Serve("a")


def test_nobody_leaves_again_for_a_load_that_has_just_failed() -> None:
    """Where there is room it may be tried."""
    found = decide(full("a", "x"), sparing={"a"})

    assert isinstance(found, Reject)
    assert (found.why, "for which others had to leave" in found.reason) == ("failed", True)
    assert decide(node("a"), sparing={"a"}) == Placement(node="a", devices=())
    assert decide(full("a", "x"), sparing={"b"}) == Placement(node="a", devices=(), victims=("x",))


def test_the_freest_device_is_told() -> None:
    """Of several."""
    devices = tuple(Device(index=index, vram_total_mb=9000, vram_free_mb=mb) for index, mb in enumerate((5, 8, 7)))
    found = decide(Node(name="a", endpoint="http://a", healthy=True, devices=devices))

    assert isinstance(found, Reject)
    assert "the freest has 8," in found.reason


def test_a_node_is_considered_again_only_when_something_has_changed() -> None:
    """The model's entry, the node's record or the policy; each of several nodes is remembered."""
    considered, policy, it, other = routing.Considered(), Policy(), node("a"), full("b", "x")

    def asked(model: ModelConfig = M, policy: Policy = policy, it: Node = it) -> int:
        found = considered(model, it, policy)
        assert found == room.consider(model, it, policy)
        return considered.asked

    assert [asked(), asked(), asked(it=other), asked(), asked(it=other)] == [1, 1, 2, 2, 2]
    assert asked(ModelConfig(id="m", vram_mb=4000)) == 2
    assert asked(ModelConfig(id="m", vram_mb=4001)) == 3
    assert [asked(), asked(it=node("a")), asked(policy=Policy())] == [4, 5, 6]


def test_after_a_long_wait_a_model_in_use_may_be_drained() -> None:
    """An idle one still goes first."""
    busy, idle = replica("x", vram_used_mb=4000, in_flight=1), replica("y", vram_used_mb=4000, last_used=9.0)

    assert decide(full("a", "x", in_flight=1), drain=True) == Placement(node="a", devices=(), victims=("x",))
    assert decide(node("a", busy, idle, free=0), drain=True) == Placement(node="a", devices=(), victims=("y",))


def test_the_pinned_and_the_unloaded_are_no_victims() -> None:
    """Only what is loaded and free to go; a pin elsewhere is no pin here."""
    models = {"p": ModelConfig(id="p", pinned_on=("a",)), "q": ModelConfig(id="q", pinned_on=("b",))}
    it = node("a", replica("p"), replica("q"), replica("r", status="unloaded"), replica("s", status="recovering"))

    found = room.residents(it, Policy(catalogue=Catalogue(models)))

    assert [one.model for one in found] == ["q"]
    assert not found[0].busy
    assert found[0].priority == 1000


def test_priority_is_passed_on_to_the_order() -> None:
    """The strategy of the policy decides."""
    models = {"x": ModelConfig(id="x", residency_priority=500)}
    it = full("a", "x")

    assert isinstance(decide(it, strategy="priority", catalogue=Catalogue(models)), Reject)
    assert decide(it, strategy="lru", catalogue=Catalogue(models)) == Placement(node="a", devices=(), victims=("x",))
