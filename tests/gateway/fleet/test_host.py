"""One node as the owner of residency knows it: what it said, and what has happened since."""

from typing import Any

import pytest
from attrs import evolve

from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.messages import LoadSpec, Observation
from cortex_gateway.fleet.operation import LoadStep, Operation, UnloadStep
from cortex_gateway.placement.circuit import FAILURES, Circuit
from cortex_gateway.placement.route import Candidate
from cortex_gateway.placement.snapshot import Group, ModelLoad, Replica

M = Replica(model="m", status="loaded", devices=(0,), vram_used_mb=6000)
LOAD = LoadStep(node="a", spec=LoadSpec(model_id="m"))


def host(*replicas: Replica, **more: Any) -> Host:
    """It has answered a look at 10 s."""
    it = Host(name="a", endpoint="http://a:1")
    it.begin_look()
    it.see(Observation(replicas=replicas, **more), 10.0)
    return it


def resting(now: float) -> Circuit:
    circuit = Circuit()
    for _ in range(FAILURES):
        circuit = circuit.failed(now, "500")
    return circuit


def test_nothing_is_known_of_a_node_before_it_has_answered() -> None:
    it = Host(name="a", endpoint="http://a:1")
    node = it.node()

    assert (node.healthy, node.doubted, node.busy, node.cycles, node.reason) == (False, False, None, 0, None)
    assert (it.present("m"), it.knows("m"), it.pending("m"), it.replica("m"), it.candidate("m", 0.0)) == (
        False,
        False,
        0,
        None,
        None,
    )


def test_the_third_miss_in_a_row_is_the_one_that_counts() -> None:
    """It is told once, and one answer begins the count anew."""
    it = host(M)
    it.miss("slow")
    it.miss("slow")
    it.see(Observation(replicas=(M,)), 11.0)

    assert [it.miss(f"slow {number}") for number in range(4)] == [False, False, True, False]
    assert (it.healthy, it.reason) == (False, "slow 3")
    it.see(Observation(replicas=(M,)), 12.0)
    assert (it.healthy, it.reason, it.misses, it.silences) == (True, None, 0, 0)


def test_a_first_miss_is_no_reason() -> None:
    """The node is healthy, so nothing is told of it."""
    it = host(M)
    it.miss("slow")

    assert (it.healthy, it.reason, it.node().healthy) == (True, None, True)


def test_the_third_miss_without_a_word_is_the_end_of_what_runs() -> None:
    """A refusal in between is a word. So it is of a node that has never answered."""
    it = Host(name="a", endpoint="http://a:1")

    assert [it.hush(silent=silent) for silent in (True, True, False, True, True, True, True)] == [
        *(False, False, False, False, False),
        *(True, False),
    ]


def test_a_doubt_becomes_silence_with_the_next_miss_and_ends_with_an_answer() -> None:
    """A second doubt in between says nothing new."""
    it = host(M)
    it.doubt("reset")
    node = it.node()
    assert (node.healthy, node.doubted, node.reason) == (True, True, "reset")
    it.miss("no answer")
    it.doubt("reset again")
    node = it.node()
    assert (node.healthy, node.doubted, node.reason) == (False, False, "no answer")

    it.see(Observation(replicas=(M,)), 11.0)

    node = it.node()
    assert (node.healthy, node.doubted, node.reason) == (True, False, None)


def test_a_doubt_about_a_lost_node_keeps_the_reason_of_the_loss() -> None:
    it = host(M)
    for _ in range(3):
        it.miss("connection refused")
    it.doubt("reset")

    assert it.reason == "connection refused"


def test_requests_of_others_are_those_that_were_never_ours() -> None:
    """Of four that run or wait there one was ours when the look began, and one more came while it was under way.

    Theirs are uses of the model, too.
    """
    it = host(M)
    it.take("m", 11.0)
    it.begin_look()
    it.take("m", 11.0)
    it.give_back("m", 12.0)
    it.see(Observation(replicas=(evolve(M, load=ModelLoad(in_flight=3, queue_depth=1)),)), 13.0)

    replica = it.replica("m")
    assert replica is not None
    assert (replica.in_flight, replica.others, it.pending("m"), replica.last_used) == (1, 2, 3, 13.0)
    assert it.candidate("m", 13.0) == Candidate("a", 3, ModelLoad(in_flight=3, queue_depth=1), resting=False)


def test_what_is_seen_for_the_first_time_was_used_just_now() -> None:
    """Else a model that somebody else has loaded would be the first to leave. What does not serve is not in use."""
    it = host(M, Replica(model="n", status="failed"))
    it.see(Observation(replicas=(M,)), 20.0)

    assert it.last_used == {"m": 10.0}


def test_a_look_from_before_a_change_says_only_that_the_node_is_there() -> None:
    """Its models are as we have left them until a later look has told."""
    it = host()
    it.begin_look()
    it.loaded(LoadSpec(model_id="m"), 11.0)
    it.see(Observation(hostname="old"), 12.0)
    assert (it.present("m"), it.seen.hostname, it.node().busy) == (True, None, "changed a moment ago")

    it.begin_look()
    it.see(Observation(hostname="new"), 13.0)

    assert (it.present("m"), it.seen.hostname, it.node().busy) == (False, "new", None)


@pytest.mark.parametrize(
    ("spec", "devices"),
    [
        pytest.param(LoadSpec(model_id="m", devices=(2,)), (2,), id="asked for"),
        pytest.param(LoadSpec(model_id="m", tensor_parallel=2), (0, 1), id="the node's own choice, guessed"),
        pytest.param(LoadSpec(model_id="m", tensor_parallel=2, hosts=("b",)), (), id="over several hosts: not known"),
    ],
)
def test_what_was_loaded_serves_before_the_next_look(spec: LoadSpec, devices: tuple[int, ...]) -> None:
    """With the devices that it was to have, and without what was wrong before."""
    it = host(Replica(model="m", status="failed", servable=False, last_error="no"))
    it.judge("m", resting(10.0))
    it.loaded(spec, 11.0)
    replica = it.replica("m")
    assert replica is not None

    assert (replica.status, replica.devices, replica.last_error, replica.circuit) == ("loaded", devices, None, None)
    assert replica.serving
    assert it.last_used["m"] == 11.0


def test_what_was_unloaded_holds_nothing_and_has_no_past() -> None:
    """Its memory may be back a little later: that is counted from here."""
    it = host(evolve(M, load=ModelLoad(in_flight=2)))
    it.judge("m", resting(10.0))
    it.unloaded("m", 11.0)
    it.unloaded("n", 11.0)
    replica = it.replica("m")
    assert replica is not None

    assert (replica.status, replica.devices, replica.vram_used_mb, replica.others) == ("unloaded", (), None, 0)
    assert (replica.last_used, replica.circuit, it.freed_at, it.stale) == (0.0, None, 11.0, True)
    assert (it.present("m"), it.present("n"), it.knows("n")) == (False, False, True)


def test_a_replica_that_serves_again_is_judged_anew_where_it_is_another() -> None:
    """What is known of an engine ends when the node lists none."""
    it = host(M)
    it.judge("m", resting(10.0))
    it.see(Observation(replicas=(M,)), 11.0)
    assert "m" in it.circuits
    it.see(Observation(replicas=(evolve(M, status="recovering"),)), 12.0)

    assert it.circuits == {}


def test_the_request_that_tries_a_rested_replica_is_told_apart() -> None:
    """While it is under way others go elsewhere; a replica that has never failed is tried by nobody."""
    it = host(M)
    assert not it.take("m", 11.0)
    circuit = resting(11.0)
    it.judge("m", circuit)
    assert circuit.until is not None
    assert not it.take("m", 11.0)
    candidate = it.candidate("m", 11.0)
    assert candidate is not None
    assert candidate.resting

    before = it.candidate("m", circuit.until)
    assert before is not None
    assert not before.resting
    assert it.take("m", circuit.until)
    during = it.candidate("m", circuit.until)
    assert during is not None
    assert during.resting
    it.judge("m", Circuit())
    assert it.circuits == {}


@pytest.mark.parametrize(
    ("operation", "serves"),
    [
        pytest.param(Operation(why="load", model="m", loads=[LOAD]), False, id="it is loaded"),
        pytest.param(
            Operation(why="unload", model="m", unloads=[UnloadStep(node="a", model="m", at="a")]), False, id="it leaves"
        ),
        pytest.param(
            Operation(why="unload", model="n", unloads=[UnloadStep(node="a", model="n", at="a")]),
            True,
            id="another does",
        ),
        pytest.param(Operation(why="load", model="n", loads=[evolve(LOAD, node="b")]), True, id="loaded elsewhere"),
    ],
)
def test_a_model_that_comes_or_leaves_takes_no_request(operation: Operation, serves: bool) -> None:
    it = host(M)
    it.operation = operation
    replica = it.replica("m")
    assert replica is not None

    assert (it.candidate("m", 11.0) is not None) is serves
    assert replica.serving is serves
    assert it.loads_now("m") is False


def test_a_load_runs_from_its_beginning_to_its_end_pauses_included() -> None:
    """Ours, or one that the node tells of."""
    it = host(Replica(model="x", status="loading"))
    it.operation = Operation(why="load", model="m", loads=[LOAD])
    assert [it.loads_now(model) for model in "mxz"] == [False, True, False]
    it.operation.again(11.0)
    assert it.loads_now("m")
    it.operation.pause, it.operation.running = 0.0, {"a": LOAD}
    assert it.loads_now("m")


def test_what_is_to_come_is_listed_though_the_node_has_not_said_so() -> None:
    """On the node that loads it, and not on one that lends."""
    it = host(M)
    load = LoadStep(node="a", spec=LoadSpec(model_id="n", hosts=("b",)))
    it.operation = Operation(why="load", model="n", loads=[load])
    lender = Host(name="b", endpoint="", operation=it.operation)

    assert [(one.model, one.status) for one in it.node().replicas] == [("m", "loaded"), ("n", "loading")]
    assert lender.node().replicas == ()


def test_a_node_is_the_same_record_until_something_changes() -> None:
    """So nobody decides by it again for nothing."""
    it = host(M)
    before = it.node()
    assert it.node() is before
    for change in (
        lambda: it.take("m", 11.0),
        lambda: it.give_back("m", 11.0),
        lambda: it.doubt("reset"),
        lambda: it.miss("slow"),
        lambda: it.see(Observation(replicas=(M,)), 11.0),
        lambda: it.judge("m", resting(11.0)),
        lambda: it.unloaded("m", 12.0),
        lambda: setattr(it, "operation", Operation(why="load", model="m", loads=[LOAD])),
    ):
        change()
        after = it.node()
        assert after is not before
        assert it.node() is after
        before = after


def test_two_changes_are_not_none() -> None:
    """Whatever happens between two pictures of a node, the second is another."""
    it = host(M)
    for number, change in enumerate(
        (
            lambda: it.give_back("m", 11.0),
            lambda: it.judge("m", resting(11.0)),
            lambda: it.see(Observation(replicas=(M,)), 11.0),
            it.changed,
        )
    ):
        before = it.node()
        it.take("m", 12.0 + number)
        change()
        assert it.node() is not before
        it.begin_look()


def test_what_a_node_lends_is_what_others_lead() -> None:
    lends = Group(model="m", role="member", leader="b")
    leads = Group(model="n", role="leader", leader="a")

    assert host(groups=(leads, lends)).lent() == [lends]
