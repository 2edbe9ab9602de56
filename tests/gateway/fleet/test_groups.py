"""Models over several hosts: who is asked to do what and in which order, and what happens when one of them is lost."""

import pytest
from attrs import evolve

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.fleet.groups import TOGETHER, failed_group, leader
from cortex_gateway.fleet.history import COOLING_SECS, PATIENCE_SECS
from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.messages import Observation
from cortex_gateway.placement.snapshot import Group, ModelConfig, Rank, Replica
from tests.fakes.bench import Bench, bench
from tests.fakes.contexts import asked
from tests.fakes.host_double import HostDouble
from tests.fakes.live_fleet import cold, run, until
from tests.fakes.memory_transport import MemoryTransport

BIG = ModelConfig(id="m", vram_mb=16_000, tensor_parallel=4, hosts=("a", "b", "c"))
SMALL = ModelConfig(id="x", vram_mb=16_000, tensor_parallel=2, pinned_on=("b",))


def pair() -> dict[str, HostDouble]:
    """Two hosts of two cards, each the other's peer."""
    hosts = {name: HostDouble(sizes={"m": 4000, "x": 8000}, hostname=f"host-{name}", cards=2) for name in "ab"}
    for one in hosts.values():
        one.peers = hosts
    return hosts


def big(nodes: str = "ab") -> Bench:
    """Nodes of two cards each that have been looked at."""
    it = bench(BIG, SMALL, nodes=nodes)
    for name in nodes:
        it.see(name, cards=2)
    return it


def group(model: str, leader: str, *hosts: str, role: str = "leader") -> Group:
    """Two cards on each host; a member tells of its own rank only."""
    ranks = tuple(Rank(rank=rank, host=host, devices=(0, 1)) for rank, host in enumerate((leader, *hosts)))
    mine = ranks if role == "leader" else ranks[1:2]
    return Group(
        model=model, role="leader" if role == "leader" else "member", leader=leader, tensor_parallel=4, ranks=mine
    )


def serving(it: Bench, model: str = "m", mb: int = 8000) -> None:
    """a leads `model` and b lends to it; each has 10 000 MiB on a card."""
    led = group(model, "a", "b")
    whole = Replica(model=model, status="loaded", devices=(0, 1), vram_used_mb=4 * mb, group=led)
    it.see("a", cards=2, free=10_000 - mb, replicas=(whole,), groups=(led,))
    it.see("b", cards=2, free=10_000 - mb, groups=(group(model, "a", "b", role="member"),))


def full(model: str) -> Replica:
    """It leaves 1000 of 10 000 MiB on each of two cards."""
    return Replica(model=model, status="loaded", devices=(0, 1), vram_used_mb=18_000)


def failed(kind: str) -> errors.LoadFailed:
    return errors.LoadFailed(f"it ended with {kind}", kind=kind)


def specs(it: Bench) -> list[tuple[str, tuple[str, ...]]]:
    """Who was asked to lead, together with whom."""
    return [(effect.node, effect.spec.hosts) for effect in it.effects if isinstance(effect, m.StartLoad)]


def test_a_request_makes_a_group_and_goes_to_its_leader() -> None:
    """The leader is asked to take devices of the other, which lists no model, and is seen to lend."""
    hosts = pair()

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        leases = [await fleet.acquire("m", asked(str(number))) for number in range(2)]
        await until(lambda: fleet.snapshot().nodes[1].members)
        (lent,) = fleet.snapshot().nodes[1].members

        assert [lease.node for lease in leases] == ["a", "a"]
        assert hosts["a"].specs[0]["hosts"] == ["b"]
        assert hosts["a"].specs[0]["ranks"] == "device"
        assert "devices" not in hosts["a"].specs[0]
        assert (lent.model, lent.leader, lent.devices, lent.device_mb, lent.leads) == ("m", "a", (0, 1), 4000, "yes")
        assert hosts["b"].done == []

    model = ModelConfig(id="m", vram_mb=16_000, tensor_parallel=4, hosts=("a", "b"), ranks="device")
    run(hosts, use, models=(model,))


@pytest.mark.parametrize(
    ("told", "leader", "leads"),
    [
        pytest.param("a", "a", "yes", id="its host name"),
        pytest.param("10.9.9.9", "a", "yes", id="an address that we do not know: the only one that leads the model"),
        pytest.param("c", "c", "no", id="one that does not lead it any more"),
        pytest.param("same", "a", "yes", id="a name that two nodes have: the one that leads"),
    ],
)
def test_a_member_is_joined_with_its_leader(told: str, leader: str, leads: str) -> None:
    """By whatever a member knows of it."""
    it = big("abc")
    serving(it)
    for name in "ca":
        host = it.residency.hosts[name]
        host.seen = evolve(host.seen, hostname="same" if told == "same" else name)
    it.see("b", cards=2, free=2000, groups=(evolve(group("m", "a", "b", role="member"), leader=told),))
    (lent,) = it.residency.snapshot().nodes[1].members

    assert (lent.leader, lent.leads) == (leader, leads)


def test_a_group_that_others_lead_is_named_by_what_its_member_knows() -> None:
    """Another gateway's, perhaps: nobody here can end it."""
    it = big()
    it.see("b", cards=2, free=2000, groups=(group("z", "10.9.9.9", "b", role="member"),))
    (lent,) = it.residency.snapshot().nodes[1].members

    assert (lent.leader, lent.leads, lent.device_mb) == ("10.9.9.9", "unknown", None)


def test_a_group_leaves_a_lender_through_its_leader() -> None:
    """x is pinned on b, whose memory m has: a is asked to unload m, and b is asked to load x once it is gone."""
    hosts = pair()

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        await cold(fleet, "m")
        lease = await cold(fleet, "x")

        assert lease.node == "b"
        assert hosts["a"].done == ["load m", "unload m"]
        assert hosts["b"].done == ["load x"]

    run(hosts, use, models=(BIG, SMALL))


def test_a_lender_makes_room_before_the_leader_is_asked_to_load() -> None:
    hosts = pair()
    hosts["b"].loaded.append("x")

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        lease = await cold(fleet, "m")

        assert lease.node == "a"
        assert (hosts["b"].done, hosts["a"].done) == (["unload x"], ["load m"])

    run(hosts, use, models=(BIG, ModelConfig(id="x")))


def test_who_lends_is_occupied_until_the_load_has_ended() -> None:
    """Nothing else is placed on what it is about to give away."""
    it = big()
    it.want("m")
    other = it.want("x")

    assert specs(it) == [("a", ("b",))]
    assert it.residency.snapshot().nodes[1].busy == "lending to m, led by a"
    it.done("a")
    serving(it)
    assert it.outcome(1) == "a"
    assert it.outcome(other) is None


def test_a_lender_in_use_is_waited_for() -> None:
    """After a while it takes no new request; the leader is asked once its last one has ended."""
    it = big()
    it.see("b", cards=2, free=1000, replicas=(full("y"),))
    it.want("y")
    it.want("m")
    it.now += PATIENCE_SECS
    it.tell(m.Ticked())
    assert it.done_to("b") == []
    it.back("b", "y")
    assert (it.done_to("b"), specs(it)) == (["unload y"], [])
    it.done("b")

    assert specs(it) == [("a", ("b",))]


def test_a_lender_lost_before_the_load_ends_the_plan() -> None:
    """c takes its place, or the request hears what is missing."""
    it = big("abc")
    it.see("c", cards=2, free=1000, replicas=(full("y"),))
    it.see("b", cards=2, free=1000, replicas=(full("z"),))
    it.want("m")
    assert it.done_to("b") == ["unload z"]
    for _ in range(3):
        it.tell(m.Missed(node="b", reason="refused"))
    it.done("b", failed("node_failed"))

    assert it.done_to("c") == ["unload y"]
    it.done("c")
    assert specs(it) == [("a", ("c",))]


def test_a_lender_lost_while_it_is_ready_ends_the_plan() -> None:
    """The leader has unloaded what it had to, and loads just that again, for it has left in vain."""
    it = big()
    it.see("a", cards=2, total=20_000, free=1000, replicas=(full("z"),))
    ticket = it.want("m")
    assert it.done_to("a") == ["unload z"]
    for _ in range(3):
        it.tell(m.Missed(node="b", reason="refused"))
    it.done("a")
    it.see("a", cards=2)

    assert it.done_to("a") == ["unload z", "load z"]
    assert isinstance(it.outcome(ticket), errors.NoHealthyNode)


def test_a_group_is_reloaded_on_its_hosts() -> None:
    """It ends first, and what it has there counts as free; both hosts keep that for it until it is loaded."""
    it = big()
    serving(it)
    it.now += 1
    asked = it.load("m", ranks="device", reload=True)
    other = it.want("x")
    assert (it.done_to("a"), it.outcome(other)) == (["unload m"], None)
    it.done("a")

    assert specs(it) == [("a", ("b",))]
    it.done("a")
    assert it.outcome(asked) == "complete"


def test_who_leaves_before_anything_has_begun_leaves_the_victims() -> None:
    """An unload under way still ends; no load follows it."""
    it = big()
    it.see("b", cards=2, free=1000, replicas=(full("z"),))
    ticket = it.want("m")
    it.tell(m.Left(ticket=ticket))
    it.done("b")

    assert specs(it) == []
    assert [host.operation for host in it.residency.hosts.values()] == [None, None]


def test_a_leader_lost_in_the_load_frees_its_lenders_and_says_what_is_missing() -> None:
    it = big()
    ticket = it.want("m")
    for _ in range(3):
        it.tell(m.Missed(node="a", reason="refused"))
    assert it.effects[-1] == m.Abort(node="a")
    it.done("a", failed("node_failed"))
    it.see("b", cards=2)
    error = it.outcome(ticket)

    assert it.residency.hosts["b"].operation is None
    assert isinstance(error, errors.LoadFailed)
    assert "b has 2 of the 4 devices with 4000 MiB each that it needs; a is not healthy (refused)" in error.message


def test_when_the_leader_is_lost_the_next_request_is_placed_on_what_is_left() -> None:
    """Once the lender has its memory back: until then it is waited for, not evicted from."""
    it = big("abc")
    serving(it)
    for _ in range(3):
        it.tell(m.Missed(node="a", reason="refused"))
    ticket = it.want("m")
    assert it.outcome(ticket) is None
    it.see("b", cards=2)

    assert specs(it) == [("b", ("c",))]


def test_without_enough_that_is_left_the_next_request_hears_it_at_once() -> None:
    it = big()
    for _ in range(3):
        it.tell(m.Missed(node="a", reason="refused"))
    error = it.outcome(it.want("m"))

    assert isinstance(error, errors.NoHealthyNode)
    assert "b has 2 of the 4 devices" in error.message


def test_a_group_that_ended_failed_is_placed_again() -> None:
    """By the next request, on the hosts that are there."""
    it = big("abc")
    ended = Replica(model="m", status="failed", last_error="rank_exited: rank 1 was killed", servable=False)
    it.see("a", cards=2, replicas=(ended,))
    for _ in range(3):
        it.tell(m.Missed(node="b", reason="refused"))
    it.want("m")

    assert specs(it) == [("a", ("c",))]


@pytest.mark.parametrize("kind", TOGETHER)
def test_hosts_that_fail_together_are_not_tried_together_again(kind: str) -> None:
    """Each of them is tried with the third; then the last failure is told, and what each host has."""
    it = big("abc")
    ticket = it.want("m")
    for node in ("a", "a", "b"):
        it.done(node, failed(kind))
        for name in "abc":
            it.see(name, cards=2)
    error = it.outcome(ticket)

    assert specs(it) == [("a", ("b",)), ("a", ("c",)), ("b", ("c",))]
    assert error.extras["kind"] == kind
    assert "failed to serve it together" in error.message


@pytest.mark.parametrize("kind", ["port_taken", "device_busy", "device_lost", "cuda_feature_not_enabled"])
def test_a_failure_of_the_leader_lets_another_lead(kind: str) -> None:
    """The same two hosts, the other way round; the first is forgiven after a while."""
    it = big()
    it.want("m")
    it.done("a", failed(kind))
    for name in "ab":
        it.see(name, cards=2)
    it.done("b", failed(kind))
    for name in "ab":
        it.see(name, cards=2)
    it.now += COOLING_SECS + 1
    it.want("m")

    assert specs(it) == [("a", ("b",)), ("b", ("a",)), ("a", ("b",))]


def test_a_leader_that_makes_room_on_a_lender_ends_its_own_other_group() -> None:
    """g is led by a, which has room beside it; b has not. a is asked to unload g, then to load m."""
    it = big()
    led = group("g", "a", "b")
    whole = Replica(model="g", status="loaded", devices=(0, 1), vram_used_mb=20_000, group=led)
    it.see("a", cards=2, total=20_000, free=15_000, replicas=(whole,), groups=(led,))
    it.see("b", cards=2, free=3000, groups=(group("g", "a", "b", role="member"),))
    it.want("m")
    assert it.done_to("a") == ["unload g"]
    it.done("a")
    it.see("a", cards=2, total=20_000, free=20_000)
    assert specs(it) == []
    it.see("b", cards=2)

    assert specs(it) == [("a", ("b",))]


def test_an_operator_says_which_hosts_and_how_many_processes() -> None:
    """Other hosts than the catalogue's; the node that is named leads, whatever the order."""
    it = big("abc")
    it.load("m", node="c", hosts=("b",), ranks="device", tensor_parallel=4)
    (spec,) = (effect.spec for effect in it.effects if isinstance(effect, m.StartLoad))

    assert specs(it) == [("c", ("b",))]
    assert (spec.ranks, spec.tensor_parallel, spec.devices) == ("device", 4, ())


def test_a_group_is_compared_with_those_that_lend_to_it() -> None:
    """What b lends to another group is no part of m's."""
    it = big("abc")
    serving(it)
    it.see("c", cards=2, groups=(group("z", "elsewhere", "c", role="member"),))
    it.now += 1

    assert it.outcome(it.load("m", hosts=("a", "b"))) == "complete"
    error = it.outcome(it.load("m", hosts=("a", "c")))
    assert isinstance(error, errors.AlreadyLoaded)
    assert error.extras["differs"] == {"hosts": {"loaded": ("b",), "asked": ("a", "c")}}


def test_a_group_that_left_in_vain_is_loaded_again_on_its_hosts() -> None:
    """Led by the same node and with the same lender, though another would do."""
    it = big("abc")
    it.load("m", node="b", hosts=("b", "c"))
    it.done("b")
    led = group("m", "b", "c")
    whole = Replica(model="m", status="loaded", devices=(0, 1), vram_used_mb=32_000, group=led)
    it.see("b", cards=2, free=2000, replicas=(whole,), groups=(led,))
    it.see("c", cards=2, free=2000, groups=(group("m", "b", "c", role="member"),))
    it.want("x")
    assert it.done_to("b") == ["load m", "unload m"]
    it.done("b")
    it.see("c", cards=2)
    it.done("b", failed("bad_checkpoint"))
    it.see("b", cards=2)

    assert it.done_to("b") == ["load m", "unload m", "load x", "load m"]
    assert specs(it)[-1] == ("b", ("c",))


def test_a_host_by_itself_is_no_group_that_failed() -> None:
    """Then it is excluded as any other node."""
    assert failed_group(failed("rank_exited"), ("a",)) is None
    assert failed_group(failed("rank_exited"), ("a", "b")) == {"a", "b"}
    assert failed_group(failed("port_taken"), ("a", "b")) is None


def test_who_leads_another_model_does_not_lead_this_one() -> None:
    """Nor does who only lends to it; of two that lead it none is meant by an address that nobody knows."""
    unknown = group("m", "10.9.9.9", "c", role="member")
    leads = Observation(groups=(group("m", "a", "b"),))
    others = Observation(groups=(group("z", "b", "c"), group("m", "a", "b", role="member")))
    a, b, twin = (
        Host(name=name, endpoint=f"http://{name}:1", seen=seen)
        for name, seen in zip("abd", (leads, others, leads), strict=True)
    )

    assert leader(unknown, [a, b]) is a
    assert leader(unknown, [b]) is None
    assert leader(unknown, [a, twin]) is None
    assert leader(evolve(unknown, leader="b"), [a, b]) is b


def test_an_unknown_host_is_refused() -> None:
    it = big()
    error = it.outcome(it.load("m", hosts=("a", "zed")))

    assert isinstance(error, errors.InvalidBody)
    assert error.param == "hosts"
    assert "'zed'" in error.message


def test_a_lender_that_is_back_while_the_load_runs_still_belongs_to_it() -> None:
    """Nothing else is placed on what it is about to give away."""
    it = big()
    it.want("m")
    for _ in range(3):
        it.tell(m.Missed(node="b", reason="refused"))
    it.see("b", cards=2)
    other = it.want("x")

    assert (it.done_to("b"), it.outcome(other)) == ([], None)
    assert it.residency.snapshot().nodes[1].busy == "lending to m, led by a"
    it.done("a", failed("rank_exited"))
    it.see("b", cards=2)
    assert it.done_to("b") == ["load x"]


def test_nobody_is_asked_to_lead_while_a_lender_could_not_be_reached() -> None:
    """The load begins when it has answered."""
    it = big()
    it.see("b", cards=2, free=1000, replicas=(full("z"),))
    it.want("m")
    it.tell(m.Looking(node="b"))
    it.tell(m.Suspected(node="b", reason="reset"))
    it.done("b")
    it.tell(m.Ticked())
    assert specs(it) == []
    it.see("b", cards=2)

    assert specs(it) == [("a", ("b",))]


def test_hosts_whose_victim_will_not_leave_are_not_asked_again_and_again() -> None:
    """Neither way round: the third takes part instead."""
    it = big("abc")
    it.see("b", cards=2, free=1000, replicas=(full("z"),))
    it.see("c", cards=2, free=1000, replicas=(full("y"),))
    it.want("m")
    it.done("b", failed("engine_failed"))
    it.done("c")

    assert (it.done_to("b"), it.done_to("c")) == (["unload z"], ["unload y"])
    assert specs(it) == [("a", ("c",))]


def test_an_unload_over_several_nodes_is_one_operation() -> None:
    """Each is free again when it has left there; one that is occupied takes part as soon as that is over."""
    it = big("abc")
    for name in "abc":
        it.see(name, cards=2, free=1000, replicas=(full("z"),))
    for _ in range(3):
        it.want("z")
    it.load("y", node="c")
    ticket = it.unload("z")
    (operation,) = (one for one in it.residency.operations.under_way if one.why == "unload")
    for name in "ab":
        it.back(name, "z")
    it.done("b")

    assert operation.nodes == ("a",)
    assert it.residency.hosts["b"].operation is None
    it.back("c", "z")
    it.done("c")
    assert operation.nodes == ("a", "c")
    it.done("a")
    it.done("c")
    assert [it.done_to(name) for name in "abc"] == [["unload z"], ["unload z"], ["load y", "unload z"]]
    assert it.outcome(ticket) == "complete"


def test_who_has_waited_for_a_load_is_served_before_an_unload_that_came_later() -> None:
    """Also where the node has told meanwhile that it is loading."""
    it = big()
    ticket = it.want("m")
    gone = it.unload("m")
    it.see("a", cards=2, replicas=(Replica(model="m", status="loading"),))
    it.done("a")

    assert (it.outcome(ticket), it.outcome(gone), it.done_to("a")) == ("a", None, ["load m"])
    it.back("a", "m")
    it.done("a")
    assert it.outcome(gone) == "complete"
