"""Models that are spread over several hosts, case by case: who leads, who lends, who leaves, and what is missing."""

from typing import Any

import pytest
from attrs import evolve

from cortex_gateway.placement import defrag, fit, room
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.catalogue import Catalogue
from cortex_gateway.placement.decisions import Decision, Hold, Lender, Placement, Policy, Reject
from cortex_gateway.placement.snapshot import (
    Device,
    FleetSnapshot,
    Group,
    Membership,
    ModelConfig,
    Node,
    Rank,
    Replica,
)

M = ModelConfig(id="m", vram_mb=16_000, tensor_parallel=4, hosts=("a", "b", "c", "d"))
"""4000 MiB on each of four devices."""


def node(name: str, *free: int, healthy: bool = True, **more: Any) -> Node:
    """A node of devices with so many MiB free of 10 000."""
    devices = tuple(
        Device(index=index, vram_total_mb=10_000, vram_free_mb=mb, vram_used_mb=10_000 - mb)
        for index, mb in enumerate(free)
    )
    return Node(name=name, endpoint=f"http://{name}", healthy=healthy, devices=devices, **more)


def idle(model: str = "x", *devices: int, mb: int = 8000, **more: Any) -> Replica:
    """A resident that takes `mb` of each of its devices."""
    return Replica(model=model, status="loaded", devices=devices, vram_used_mb=mb * len(devices), **more)


def member(model: str = "g", leader: str = "z", *devices: int, leads: Any = "yes", **more: Any) -> Membership:
    return Membership(model=model, leader=leader, devices=devices, leads=leads, device_mb=8000, **more)


def decide(*nodes: Node, model: ModelConfig = M, **policy: Any) -> Decision:
    return routing.route(model, FleetSnapshot(nodes=nodes), Policy(**policy))


def rejected(*nodes: Node, **how: Any) -> Reject:
    found = decide(*nodes, **how)
    assert isinstance(found, Reject)
    return found


def led(
    leader: str, *lenders: str, victims: tuple[str, ...] = (), leave: dict[str, tuple[str, ...]] | None = None
) -> Placement:
    lent = tuple(Lender(node=name, victims=(leave or {}).get(name, ())) for name in lenders)
    return Placement(node=leader, devices=(), victims=victims, lenders=lent)


TWO = (9000, 9000)


@pytest.mark.parametrize(
    ("nodes", "decision"),
    [
        pytest.param([node("a", *TWO), node("b", *TWO)], led("a", "b"), id="of equals the first by name leads"),
        pytest.param([node("a", 9000, 5000), node("b", *TWO)], led("b", "a"), id="the most free memory leads"),
        pytest.param(
            [node("a", *TWO), node("b", *TWO, 9000, 9000)], Placement(node="b", devices=()), id="one that has it alone"
        ),
        pytest.param(
            [node("a", *TWO), node("b", 1, 1, 1, 1, replicas=(idle("x", 0, 1, 2, 3),))],
            Placement(node="b", devices=(), victims=("x",)),
            id="alone after an eviction is still better than together",
        ),
        pytest.param(
            [node("a", *TWO, 9000), node("b", 9000, 1), node("c", *TWO)], led("a", "b"), id="lenders as preferred"
        ),
        pytest.param(
            [node("a", *TWO, 9000), node("c", *TWO), node("b", 1, 1)], led("a", "c"), id="a full one is passed over"
        ),
        pytest.param(
            [node("a", 9000), node("b", 9000), node("c", *TWO)], led("c", "a", "b"), id="as many hosts as it takes"
        ),
        pytest.param(
            [node("a", *TWO), node("b", 1, 1), node("c", 1, 1), node("d", *TWO)],
            led("a", "d"),
            id="more than one full one is passed over",
        ),
        pytest.param(
            [node("a", *TWO), node("b", *TWO, healthy=False), node("c", *TWO)], led("a", "c"), id="not a lost one"
        ),
        pytest.param(
            [node("a", *TWO), node("aa", *TWO), node("c", *TWO)], led("a", "c"), id="not one that is not named"
        ),
        pytest.param(
            [node("a", *TWO), node("b", 1, 1, replicas=(idle("x", 0, 1),))],
            led("a", "b", leave={"b": ("x",)}),
            id="a lender makes room",
        ),
        pytest.param(
            [node("a", *TWO), node("b", 1, 1, members=(member("g", "c", 0, 1),)), node("c")],
            led("a", "b", leave={"b": ("g",)}),
            id="a group that it lends to may have to end",
        ),
        pytest.param(
            [node("a", *TWO), node("b", 1, 1, replicas=(idle("x", 0, 1),)), node("c", *TWO)],
            led("a", "c"),
            id="room beats eviction",
        ),
    ],
)
def test_spread(nodes: list[Node], decision: Decision) -> None:
    """One case of a model that needs four devices."""
    assert decide(*nodes) == decision


def test_nobody_leaves_a_lender_while_another_host_is_in_doubt() -> None:
    """It may well be up: then it lends, and nothing has to end. Hosts with room enough do not wait for it."""
    doubted = node("b", *TWO, doubted=True, reason="refused")
    full = node("c", 1, 1, replicas=(idle("x", 0, 1),))

    assert isinstance(decide(node("a", *TWO), doubted, full), Hold)
    assert decide(node("a", *TWO), doubted, node("c", *TWO)) == led("a", "c")


@pytest.mark.parametrize(
    ("nodes", "policy", "kind", "words"),
    [
        pytest.param(
            [node("a", *TWO), node("b", *TWO, healthy=False, reason="refused")],
            {},
            "down",
            ["a has 2 of the 4 devices", "b is not healthy (refused)"],
            id="a host is lost",
        ),
        pytest.param(
            [node("a", *TWO), node("b", 9000)], {}, "never", ["a has 2 of the 4", "b has 1 of the 4"], id="few"
        ),
        pytest.param(
            [node("a", *TWO), node("b", *TWO, harnesses=("candle",))], {}, "never", ["b does not offer"], id="harness"
        ),
        pytest.param(
            [node("a", *TWO), node("b", 1, 9000)],
            {},
            "full",
            ["a has room on 2 of the 4 devices with 4000 MiB each", "b has room on 1 of the 4"],
            id="no room",
        ),
        pytest.param(
            [node("a", *TWO), node("b", 1, 1, members=(member(leads="unknown"),))],
            {},
            "full",
            ["b has room on 0"],
            id="foreign",
        ),
        pytest.param(
            [node("a", *TWO), node("b", *TWO)],
            {"apart": {frozenset("ab")}},
            "failed",
            ["just failed"],
            id="just failed",
        ),
    ],
)
def test_what_is_missing_is_told(nodes: list[Node], policy: dict[str, Any], kind: str, words: list[str]) -> None:
    """Host by host."""
    found = decide(*nodes, **policy)

    assert isinstance(found, Reject)
    assert found.why == kind
    assert all(part in found.reason for part in words), found.reason


@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param(node("b", *TWO, busy="loading x"), "occupied (loading x)", id="occupied"),
        pytest.param(node("b", 1, 1, replicas=(idle("x", 0, 1, in_flight=1),)), "models are in use", id="in use"),
        pytest.param(
            node("b", 1, 1, members=(member("g", "c", 0, 1, pending=1),)), "models are in use", id="group in use"
        ),
        pytest.param(
            node("b", 1, 1, members=(member("m", "c", 0, 1, leads="no"),)),
            "getting back what it lent to m",
            id="ending",
        ),
    ],
)
def test_what_will_pass_is_waited_for(other: Node, words: str) -> None:
    """Work that ends, and a group whose leader is gone: its neuron ends it by itself."""
    found = decide(node("a", *TWO), other)

    assert isinstance(found, Hold)
    assert words in found.reason


def test_a_long_wait_drains_what_is_in_use_on_a_lender() -> None:
    other = node("b", 1, 1, replicas=(idle("x", 0, 1, in_flight=1),))

    assert decide(node("a", *TWO), other, drain=True) == led("a", "b", leave={"b": ("x",)})


def test_a_group_that_failed_is_not_tried_again_but_others_are() -> None:
    """a and b did not get on: c takes the place of b, whoever leads."""
    nodes = [node("a", *TWO), node("b", *TWO), node("c", *TWO)]

    assert decide(*nodes, apart={frozenset("ab")}) == led("a", "c")
    assert decide(*nodes, apart={frozenset("ab"), frozenset("ac")}) == led("b", "c")
    assert rejected(*nodes, apart={frozenset("ab"), frozenset("ac"), frozenset("bc")}).why == "failed"


def test_a_leader_that_failed_by_itself_may_lend() -> None:
    """Its port was taken: the other one leads."""
    both = (node("a", *TWO), node("b", *TWO))
    assert decide(*both, excluded={"a"}) == led("b", "a")
    assert rejected(*both, excluded={"a", "b"}).why == "failed"
    assert rejected(*both, excluded={"c"}, only=()).why == "never"


def test_where_others_could_have_it_together_the_pinned_one_is_named() -> None:
    """It has no room itself, and they may not lead."""
    pinned = evolve(M, pinned_on=("a",))

    assert "b may not lead it" in rejected(node("a", 1, 1), node("b", *TWO), node("c", *TWO), model=pinned).reason


@pytest.mark.parametrize(
    "how", [{"only": "b"}, {"model": ModelConfig(id="m", tensor_parallel=4, hosts=("a", "b"), pinned_on=("b",))}]
)
def test_the_named_node_and_the_pinned_one_lead(how: dict[str, Any]) -> None:
    """The others of its hosts still lend."""
    assert decide(node("a", *TWO), node("b", *TWO), **how) == led("b", "a")


@pytest.mark.parametrize(("hosts", "devices"), [(("a", "b"), 1), (("a",), 4)])
def test_what_cannot_be_spread_is_told_as_of_one_host(hosts: tuple[str, ...], devices: int) -> None:
    """One device, or one host."""
    model = ModelConfig(id="m", vram_mb=4000 * devices, tensor_parallel=devices, hosts=hosts)

    assert "with 4000 MiB each" not in rejected(node("a", 1, 1), model=model).reason


def test_two_devices_are_enough_to_be_spread() -> None:
    """One on each host."""
    model = ModelConfig(id="m", vram_mb=8000, tensor_parallel=2, hosts=("a", "b"))

    assert decide(node("a", 9000), node("b", 9000), model=model) == led("a", "b")


@pytest.mark.parametrize("leads", ["no", "unknown"])
def test_only_a_leader_that_leads_can_be_asked_to_end_a_group(leads: str) -> None:
    lending = node("b", 1, members=(member("g", "a", 0, leads=leads),))

    assert room.residents(lending, Policy()) == []


def test_a_group_that_is_pinned_on_its_leader_stays() -> None:
    lending = node("b", 1, members=(member("g", "a", 0), member("h", "a", 0)))
    catalogue = Catalogue({"g": ModelConfig(id="g", pinned_on=("a",))})

    assert [one.model for one in room.residents(lending, Policy(catalogue=catalogue))] == ["h"]


@pytest.mark.parametrize(
    ("victims", "leave", "nothing"),
    [
        ((), {}, True),
        (("x",), {}, False),
        ((), {"c": ("x",)}, False),
        ((), {"b": ("x",), "c": ("y",)}, False),
        (("x",), {"b": ("y",)}, False),
    ],
)
def test_a_placement_for_which_somebody_has_to_leave_costs_something(
    victims: tuple[str, ...], leave: dict[str, tuple[str, ...]], nothing: bool
) -> None:
    """The leader or any of its lenders."""
    assert led("a", "b", "c", victims=victims, leave=leave).costs_nothing is nothing
    assert led("a", victims=victims).costs_nothing is (not victims)


def test_a_group_frees_its_share_on_each_of_its_hosts() -> None:
    """8000 MiB over two devices here and two elsewhere are 2000 on each."""
    group = Group(model="g", role="leader", leader="a", world=2, tensor_parallel=4)
    leader = node(
        "a", 1000, 1000, replicas=(Replica(model="g", status="loaded", devices=(0, 1), vram_used_mb=8000, group=group),)
    )

    def fits(mb: int) -> bool:
        needed = fit.Need(shards=2, per_device_mb=mb)
        return fit.devices_for(ModelConfig(id="x"), leader, needed, without={"g"}, sizes={"g": 8000}) is not None

    assert fits(3000)
    assert not fits(3001)


def test_every_host_that_could_lead_is_feasible() -> None:
    """As /v1/models lists them: with the others it has enough devices; without, it has none."""
    nodes = (node("a", *TWO), node("b", *TWO), node("z", *TWO))

    assert [one.name for one in nodes if fit.could_lead(M, one, nodes)] == ["a", "b"]
    assert not fit.could_lead(M, nodes[0], nodes[:1])
    assert not fit.could_lead(M, nodes[0], (nodes[0], nodes[2]))


@pytest.mark.parametrize(
    ("first", "second", "model", "feasible"),
    [
        (node("a", *TWO), node("b", *TWO, harnesses=("candle",)), M, []),
        (node("a", *TWO), node("b", 1, 1, 1, 1), M, ["a", "b"]),
        (
            node("a", *TWO),
            node("b", *TWO),
            ModelConfig(id="m", tensor_parallel=4, hosts=("a", "b"), pinned_on=("b",)),
            ["b"],
        ),
        (node("a", *TWO, 1), node("b", *TWO), ModelConfig(id="m", min_devices=5, hosts=("a", "b")), ["a", "b"]),
        (node("a", *TWO), node("b", *TWO), ModelConfig(id="m", min_devices=5, hosts=("a", "b")), []),
        (node("a", *TWO), node("b", *TWO), ModelConfig(id="m", tensor_parallel=2), ["a", "b"]),
        (node("a", *TWO), node("b", *TWO), ModelConfig(id="m", tensor_parallel=3), []),
        (
            node("a", *TWO),
            node("b", *TWO),
            ModelConfig(id="m", vram_mb=40_001, tensor_parallel=4, hosts=("a", "b")),
            [],
        ),
        (node("a"), node("b", *TWO, 9, 9), M, ["b"]),
        (node("a"), node("b", *TWO, 9), M, []),
    ],
)
def test_who_could_lead(first: Node, second: Node, model: ModelConfig, feasible: list[str]) -> None:
    """Empty hosts are asked: what is on them now does not matter, only what devices they have and what they offer."""
    nodes = (first, second)

    assert [one.name for one in nodes if fit.could_lead(model, one, nodes)] == feasible


def test_a_node_with_part_of_a_group_is_not_restarted() -> None:
    """Neither the one that leads nor one that lends. Ranks on one host are that host's own affair."""
    ranks = (Rank(rank=0, host="a"), Rank(rank=1, host="b"))
    group = Group(model="m", role="leader", leader="a", world=2, tensor_parallel=2, ranks=ranks)
    alone = Group(model="m", role="leader", leader="a", world=2, tensor_parallel=2, ranks=(ranks[0], ranks[0]))

    assert defrag.due(node("a", 1, replicas=(idle("m", 0, group=alone),), cycles=9), after_cycles=1) == ("m",)
    assert defrag.due(node("a", 1, replicas=(idle("m", 0, group=group),), cycles=9), after_cycles=1) is None
    assert defrag.due(node("b", 1, members=(member(),), cycles=9), after_cycles=1) is None


def test_what_would_be_free_but_for_what_is_known() -> None:
    """By device: the model itself does not count, nor what holds no memory; a group's part is counted where it is."""
    group = Group(model="g", role="leader", leader="a", world=2, tensor_parallel=4)
    replicas = (
        idle("x", 0),
        Replica(model="g", status="loaded", devices=(0, 1), vram_used_mb=4000, group=group),
        idle("m", 1),
        Replica(model="y", status="failed", devices=(1,), vram_used_mb=700),
        Replica(model="z", status="loaded", devices=(9,), vram_used_mb=700),
    )
    it = node("a", 1, 1, 1, replicas=replicas, members=(member("h", "b", 2),))

    assert room.vacant(it, Policy(), besides="m") == {0: 1000, 1: 9000, 2: 2000}
    assert room.vacant(node("a", 1, members=(member("h", "b", 0, 8),)), Policy(), besides="m") == {0: 2000}


def test_a_model_that_a_node_lends_to_does_not_displace_itself() -> None:
    """Other groups may have to end for it."""
    lending = node("b", 1, 1, members=(member("m", "a", 0), member("g", "a", 1)))

    assert [one.model for one in room.residents(lending, Policy(), besides="m")] == ["g"]
    (first, _) = room.residents(lending, Policy())
    assert (first.busy, first.size_mb) == (False, 8000)


def test_only_what_leaves_is_taken_from_the_picture() -> None:
    """A lender gets back what it lends to this group, not what it lends to another of the same leader or of the same name."""
    lending = node("b", 1, 1, 1, members=(member("g", "a", 0), member("h", "a", 1), member("g", "c", 2)))
    leading = node("a", 1, 1, replicas=(idle("g", 0), idle("h", 1)))

    after = room.without(FleetSnapshot(nodes=(leading, lending)), "g", "a")

    a, b = after.nodes
    assert [one.vram_free_mb for one in a.devices] == [8001, 1]
    assert [one.vram_free_mb for one in b.devices] == [8001, 1, 1]
    assert ([one.model for one in a.replicas], b.members) == (["h"], lending.members[1:])


def test_what_leaves_gives_back_its_share_of_each_device() -> None:
    """On both of two; nothing where nobody knows how much it had, or where it is on no device that we know of."""
    wide, lent = idle("g", 0, 1), member("g", "a", 0, 1)
    leading, lending = node("a", 1, 1, replicas=(wide,)), node("b", 1, 1, members=(lent,))

    def free(leading: Node, lending: Node) -> list[list[int]]:
        after = room.without(FleetSnapshot(nodes=(leading, lending)), "g", "a")
        return [[one.vram_free_mb for one in it.devices] for it in after.nodes]

    assert free(leading, lending) == [[8001, 8001], [8001, 8001]]
    unknown = evolve(leading, replicas=(evolve(wide, vram_used_mb=None),))
    assert free(unknown, evolve(lending, members=(evolve(lent, devices=()),))) == [[1, 1], [1, 1]]
    assert free(evolve(leading, replicas=(evolve(wide, devices=(0,), vram_used_mb=None),)), lending)[0] == [1, 1]
    assert free(evolve(leading, replicas=(evolve(wide, devices=()),)), lending) == [[1, 1], [8001, 8001]]
