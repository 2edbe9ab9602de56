"""Residency driven event by event with a clock in the test's hand: what it decides is what comes out, nothing else runs."""

from typing import Any

import pytest

from cortex_gateway import errors
from cortex_gateway.config import EvictionConfig, GatewayConfig
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.shortage import RETURN_SECS
from cortex_gateway.placement import catalogue
from cortex_gateway.placement.snapshot import Device, LoadStatus, ModelConfig, Replica
from tests.fakes.bench import Bench, bench, loaded


def test_a_loaded_model_is_granted_at_once_and_warm() -> None:
    """No operation, no waiting, and `cold` is false."""
    it = bench()
    it.see(replicas=(loaded("m"),))

    it.want("m")

    assert it.effects[-1] == m.Grant(ticket=1, node="a", model="m", cold=False)


def test_an_alias_is_granted_under_the_real_id() -> None:
    """The lease names the model that the node knows."""
    it = bench(aliases={"best": "m"})
    it.see(replicas=(loaded("m"),))

    it.want("best")

    assert it.effects[-1] == m.Grant(ticket=1, node="a", model="m", cold=False)


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    """A typing error is told from a model that is merely not loaded."""
    it = bench(ModelConfig(id="qwen3-8b"))
    it.see()

    error = it.outcome(it.want("qwen3-8"))

    assert isinstance(error, errors.ModelNotFound)
    assert error.extras["nearest"] == ["qwen3-8b"]


def test_our_own_requests_count_before_the_node_reports_them() -> None:
    """Three requests in a row spread over two idle replicas instead of herding onto one."""
    it = bench(nodes="ab")
    it.see("a", replicas=(loaded("m"),))
    it.see("b", replicas=(loaded("m"),))

    assert [it.outcome(it.want("m")) for _ in range(3)] == ["a", "b", "a"]


def test_requests_of_others_count_and_ours_are_not_counted_twice() -> None:
    """The report of a node holds our requests as well; only the rest is somebody else's."""
    it = bench(nodes="ab")
    it.see("a", replicas=(loaded("m"),))
    it.see("b", replicas=(loaded("m"),))
    it.want("m")  # on a
    it.see("a", replicas=(loaded("m", in_flight=1),))
    it.see("b", replicas=(loaded("m", in_flight=2),))

    assert it.outcome(it.want("m")) == "a"


def test_a_cold_model_is_loaded_once_for_all_who_wait() -> None:
    """Single flight: the second request joins the first one's load, and both are granted cold."""
    it = bench()
    it.see()
    first, second = it.want("m"), it.want("m")
    assert it.done_to() == ["load m"]

    it.done()

    assert [it.outcome(first), it.outcome(second)] == ["a", "a"]
    assert all(effect.cold for effect in it.effects if isinstance(effect, m.Grant))


def test_loads_on_one_node_are_one_after_another() -> None:
    """The second model waits until the node has been looked at after the first."""
    it = bench(ModelConfig(id="m", vram_mb=4000), ModelConfig(id="n", vram_mb=4000))
    it.see()
    it.want("m")
    second = it.want("n")
    it.done()
    assert it.done_to() == ["load m"]

    it.see(free=6000, replicas=(loaded("m", mb=4000),))
    it.done()

    assert it.done_to() == ["load m", "load n"]
    assert it.outcome(second) == "a"


def test_a_look_that_began_before_a_load_ended_does_not_undo_it() -> None:
    """An old answer says that the model is absent; the load's end is newer."""
    it = bench()
    it.see()
    it.want("m")
    it.tell(m.Looking(node="a"))
    it.done()

    device = Device(index=0, vram_total_mb=10_000, vram_free_mb=10_000)
    it.tell(m.Seen(node="a", observation=m.Observation(harnesses=("jax",), devices=(device,))))

    assert it.outcome(it.want("m")) == "a"
    assert it.done_to() == ["load m"]


def test_what_does_not_fit_displaces_an_idle_model_after_it_was_unloaded() -> None:
    """Unload first, load then, and the eviction is told."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    ticket = it.want("m")
    it.done()
    it.done()

    assert it.done_to() == ["unload n", "load m"]
    assert m.Evicted(node="a", model="n", incoming="m") in it.effects
    assert it.outcome(ticket) == "a"


def test_lru_and_priority_choose_differently() -> None:
    """lru takes the least recently used; priority takes the least important, however recently it was used."""
    models = (
        ModelConfig(id="new", vram_mb=4000),
        ModelConfig(id="old", vram_mb=4000, residency_priority=100),
        ModelConfig(id="fresh", vram_mb=4000, residency_priority=1),
    )

    def evicted(strategy: Any) -> list[str]:
        it = bench(*models, eviction=EvictionConfig(strategy=strategy))
        it.see(free=2000, replicas=(loaded("old", mb=4000), loaded("fresh", mb=4000)))
        it.now = 200.0
        it.want("fresh")
        it.back("a", "fresh")
        it.want("new")
        return it.done_to()

    assert evicted("lru") == ["unload old"]
    assert evicted("priority") == ["unload fresh"]


def test_priority_never_displaces_what_matters_more() -> None:
    """A less important model is told that there is no room; with lru it would have been let in."""
    models = (ModelConfig(id="m", vram_mb=6000), ModelConfig(id="n", vram_mb=6000, residency_priority=500))
    kept = bench(*models, eviction=EvictionConfig(strategy="priority"))
    kept.see(free=2000, replicas=(loaded("n"),))
    let_in = bench(*models)
    let_in.see(free=2000, replicas=(loaded("n"),))

    assert isinstance(kept.outcome(kept.want("m")), errors.InsufficientVram)
    assert let_in.outcome(let_in.want("m")) is None


def test_a_pinned_model_is_never_evicted() -> None:
    """Whatever the strategy, and however long the request waits."""
    pinned = ModelConfig(id="n", vram_mb=6000, pinned_on=("a",))
    it = bench(ModelConfig(id="m", vram_mb=6000, residency_priority=9999), pinned)
    it.see(free=2000, replicas=(loaded("n"),))

    error = it.outcome(it.want("m"))

    assert isinstance(error, errors.InsufficientVram)
    assert "pinned" in error.message
    assert it.done_to() == []


def test_a_model_in_use_is_not_evicted_but_waited_for() -> None:
    """The newcomer queues; when the last request ends, the idle model leaves."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    it.want("n")
    waiting = it.want("m")
    assert it.done_to() == []
    assert it.residency.status("m") == LoadStatus(phase="queued")
    assert it.residency.waits("m") == LoadStatus(phase="queued", unit="requests")
    it.want("m")
    assert it.residency.waits("m") == LoadStatus(phase="queued", total=1, unit="requests")

    it.back("a", "n")

    assert it.done_to() == ["unload n"]
    assert it.outcome(waiting) is None


def test_a_model_that_others_use_is_not_evicted_either() -> None:
    """The node reports work that is not ours."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n", in_flight=1),))
    it.want("m")
    assert it.done_to() == []

    it.see(free=2000, replicas=(loaded("n"),))

    assert it.done_to() == ["unload n"]


def test_a_busy_model_cannot_starve_the_others_for_ever() -> None:
    """After ten seconds it takes no new request, and leaves when its last one has ended; nothing is killed."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    it.want("n")
    newcomer = it.want("m")
    it.now += 10
    it.tell(m.Ticked())
    late = it.want("n")
    assert (it.done_to(), it.outcome(late)) == ([], None)

    it.back("a", "n")
    it.done()
    it.done()

    assert it.done_to()[:2] == ["unload n", "load m"]
    assert it.outcome(newcomer) == "a"


def test_when_nobody_waits_any_more_a_draining_model_may_stay() -> None:
    """The newcomer gives up before the model has left: it serves again."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    it.want("n")
    newcomer = it.want("m")
    it.now += 10
    it.tell(m.Ticked())

    it.tell(m.Left(ticket=newcomer))

    assert it.outcome(it.want("n")) == "a"
    assert it.done_to() == []


def test_when_nobody_waits_any_more_no_load_follows_an_unload() -> None:
    """It was under way when the newcomer gave up: it ends, and what has left is loaded again."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    newcomer = it.want("m")
    it.tell(m.Left(ticket=newcomer))
    it.done()
    it.see(replicas=(Replica(model="n", status="unloaded"),))

    assert it.done_to() == ["unload n", "load n"]


def test_a_request_that_waits_too_long_gets_an_honest_error() -> None:
    """503 of the overload kind, whose Retry-After grows with the queue."""
    it = bench(gateway=GatewayConfig(wait_secs=60))
    it.see(free=2000, replicas=(loaded("n"),))
    it.want("n")
    first, second = it.want("m"), it.want("m")
    it.now += 10
    it.tell(m.Ticked())
    assert it.residency.next_wake() == 160.0
    it.now += 50
    it.tell(m.Ticked())

    error = it.outcome(first)
    assert isinstance(error, errors.Overloaded)
    assert (error.retry_after, it.outcome(second).retry_after) == (4, 2)


def test_the_queue_has_an_end() -> None:
    """One more than `max_waiting` is refused at once."""
    it = bench(gateway=GatewayConfig(max_waiting=2))
    it.see()
    tickets = [it.want("m") for _ in range(3)]

    assert isinstance(it.outcome(tickets[2]), errors.Overloaded)
    assert it.outcome(tickets[1]) is None


def test_a_running_load_has_its_own_time() -> None:
    """The queue's deadline does not end a request whose load is under way."""
    it = bench(gateway=GatewayConfig(wait_secs=60, load_timeout_secs=1000))
    it.see()
    ticket = it.want("m")
    it.now += 500
    it.tell(m.Ticked())
    assert it.outcome(ticket) is None

    it.done()

    assert it.outcome(ticket) == "a"


def test_a_failed_load_is_told_in_the_nodes_own_words_and_not_repeated_at_once() -> None:
    """The next request within five seconds gets the same answer; a later one is tried."""
    it = bench()
    it.see()
    ticket = it.want("m")
    it.done(error=errors.LoadFailed("no tokenizer.json", kind="bad_checkpoint"))
    it.see()
    again = it.want("m")

    assert it.outcome(ticket).message == "no tokenizer.json"
    assert it.outcome(again).retry_after == 5
    assert it.done_to() == ["load m"]
    it.now += 6
    it.want("m")
    assert it.done_to() == ["load m", "load m"]


def test_a_load_that_failed_on_one_node_is_tried_on_another() -> None:
    """The request that waits does not notice."""
    it = bench(nodes="ab")
    it.see("a")
    it.see("b")
    ticket = it.want("m")
    it.done("a", error=errors.LoadFailed("disk full", kind="engine_failed"))
    it.done("b")

    assert (it.done_to("a"), it.done_to("b")) == (["load m"], ["load m"])
    assert it.outcome(ticket) == "b"


def test_a_node_that_refuses_for_want_of_memory_is_asked_once_more_after_an_eviction() -> None:
    """The gateway's guess was too small: the node's own plan decides who leaves."""
    it = bench(ModelConfig(id="m", vram_mb=1000), ModelConfig(id="n", vram_mb=6000))
    it.see(free=4000, replicas=(loaded("n"),))
    ticket = it.want("m")
    plan = [{"what": "weights", "bytes": 7000 * 1024 * 1024}]
    it.done(error=errors.LoadFailed("does not fit", kind="does_not_fit", plan=plan))
    it.done()
    it.done()

    assert it.done_to() == ["load m", "unload n", "load m"]
    assert it.outcome(ticket) == "a"


def test_it_is_asked_once_more_only_once() -> None:
    """A second refusal is the answer."""
    it = bench(ModelConfig(id="m", vram_mb=1000), ModelConfig(id="n", vram_mb=6000))
    it.see(free=4000, replicas=(loaded("n"),))
    ticket = it.want("m")
    it.done(error=errors.LoadFailed("no room", kind="does_not_fit"))
    it.done()
    it.now += RETURN_SECS
    it.done(error=errors.LoadFailed("none", kind="does_not_fit"))

    assert it.done_to() == ["load m", "unload n", "load m"]
    assert it.outcome(ticket).message == "none"


def test_a_model_too_big_for_the_node_evicts_nobody() -> None:
    """The plan says more than the device has: the refusal stands."""
    it = bench(ModelConfig(id="m"), ModelConfig(id="n", vram_mb=6000))
    it.see(free=4000, replicas=(loaded("n"),))
    ticket = it.want("m")
    it.done(error=errors.LoadFailed("far too big", kind="does_not_fit", required_mb=99_000))

    assert it.done_to() == ["load m"]
    assert it.outcome(ticket).message == "far too big"


def test_recovering_is_said_at_once() -> None:
    """The client is told to come back in two seconds instead of being kept."""
    it = bench()
    it.see(replicas=(Replica(model="m", status="recovering", devices=(0,)),))

    error = it.outcome(it.want("m"))

    assert isinstance(error, errors.ModelRecovering)
    assert error.retry_after == 2


def test_without_a_healthy_node_a_request_is_refused_at_once() -> None:
    """Three misses make a node unhealthy; one answer makes it healthy again."""
    it = bench()
    it.see(replicas=(loaded("m"),))
    for count in range(3):
        assert it.outcome(it.want("m")) == "a", count
        it.tell(m.Missed(node="a", reason="connection refused"))
    error = it.outcome(it.want("m"))
    it.see(replicas=(loaded("m"),))

    assert isinstance(error, errors.NoHealthyNode)
    assert "connection refused" in error.message
    assert it.outcome(it.want("m")) == "a"


def test_a_suspected_node_gets_no_request_until_it_answers() -> None:
    """A lost connection is evidence at once; the node is looked at without delay."""
    it = bench(nodes="ab")
    it.see("a", replicas=(loaded("m"),))
    it.see("b", replicas=(loaded("m"),))

    effects = it.tell(m.Suspected(node="a", reason="connection reset"))

    assert m.Look(node="a") in effects
    assert [it.outcome(it.want("m")) for _ in range(2)] == ["b", "b"]
    it.see("a", replicas=(loaded("m"),))
    assert it.outcome(it.want("m")) == "a"


def offered(model: str) -> Replica:
    """A node could load it."""
    return Replica(model=model, status="unloaded")


def suspected(it: Bench, node: str = "a") -> None:
    it.tell(m.Looking(node=node))
    it.tell(m.Suspected(node=node, reason="connection refused"))


def missed(it: Bench, node: str = "a") -> None:
    it.tell(m.Missed(node=node, reason="no answer"))


def test_a_job_that_ends_on_a_suspected_node_is_over() -> None:
    """A load is told to have ended before the look is: the fleet can be shown, and goes on with what is next."""
    it = bench(ModelConfig(id="m", vram_mb=3000), ModelConfig(id="n", vram_mb=3000), ModelConfig(id="o", vram_mb=3000))
    it.see(replicas=(loaded("m", mb=3000), offered("n"), offered("o")))
    waiting = it.want("n")
    suspected(it)

    it.done()

    (a,) = it.residency.snapshot().nodes
    assert (a.doubted, a.busy) == (True, "changed a moment ago")
    it.see(free=4000, replicas=(loaded("m", mb=3000), loaded("n", mb=3000), offered("o")))
    assert it.outcome(waiting) == "a"
    it.want("o")
    assert it.done_to() == ["load n", "load o"]


def test_nobody_leaves_for_a_model_whose_node_could_not_be_reached_once() -> None:
    """One failed connect is no proof: the request waits for the look, and the model that was there all along serves it."""
    it = bench(nodes="ab")
    it.see("a", free=4000, replicas=(loaded("m"),))
    it.see("b", free=4000, replicas=(loaded("n"), offered("m")))
    suspected(it)
    ticket = it.want("m")
    assert (it.outcome(ticket), it.done_to("b")) == (None, [])

    it.see("a", free=4000, replicas=(loaded("m"),))

    assert it.outcome(ticket) == "a"
    assert it.done_to("b") == []


def test_a_look_that_is_missed_as_well_lets_the_request_go_elsewhere() -> None:
    """At once, and not after three misses: two signs are enough to ask another node."""
    it = bench(nodes="ab")
    it.see("a", free=4000, replicas=(loaded("m"),))
    it.see("b", free=4000, replicas=(loaded("n"), offered("m")))
    suspected(it)
    it.want("m")

    missed(it)

    assert it.done_to("b") == ["unload n"]
    (a, _) = it.residency.snapshot().nodes
    assert (a.healthy, a.doubted, a.reason) == (False, False, "no answer")


def test_without_another_node_the_request_waits_for_the_look_and_then_hears_the_reason() -> None:
    """503 only when it is known."""
    it = bench()
    it.see(replicas=(loaded("m"),))
    suspected(it)
    ticket = it.want("m")
    assert it.outcome(ticket) is None
    assert it.residency.snapshot().nodes[0].doubted

    missed(it)

    assert isinstance(it.outcome(ticket), errors.NoHealthyNode)
    assert "no answer" in it.outcome(ticket).message


def test_a_cold_model_is_placed_where_there_is_room_and_else_waits_for_the_look() -> None:
    """The suspected node would have had room: on the other one nobody is asked to leave before that is known."""
    it = bench(nodes="abc")
    it.see("a")
    it.see("b", free=4000, replicas=(loaded("x"),))
    suspected(it)
    waits = it.want("m")
    assert (it.done_to("b"), it.outcome(waits)) == ([], None)

    it.see("c")

    assert it.done_to("c") == ["load m"]


def test_a_second_failed_connect_does_not_begin_the_doubt_anew() -> None:
    """The look was missed: the requests that still fail say nothing new."""
    it = bench(nodes="ab")
    it.see("a", replicas=(loaded("m"),))
    it.see("b", replicas=(offered("m"),))
    suspected(it)
    missed(it)
    suspected(it)

    it.want("m")

    assert it.done_to("b") == ["load m"]


def test_nothing_is_begun_on_a_node_that_could_not_be_reached() -> None:
    """A victim that has drained is unloaded when the node has answered; when it has not, somebody else may load."""
    it = bench(nodes="ab")
    it.see("a", free=2000, replicas=(loaded("n"),))
    it.see("b", free=2000, total=2000)
    it.want("n")
    it.want("m")
    it.now += 10
    it.tell(m.Ticked())
    suspected(it)
    it.back("a", "n")
    assert it.done_to() == []

    it.see("a", free=2000, replicas=(loaded("n"),))
    assert it.done_to() == ["unload n"]


def test_what_had_not_begun_on_a_silent_node_is_not_waited_for() -> None:
    """The operation is cut short with the first missed look, and the other node takes it."""
    it = bench(nodes="ab")
    it.see("a", free=2000, replicas=(loaded("n"),))
    it.want("n")
    ticket = it.want("m")
    it.now += 10
    it.tell(m.Ticked())
    suspected(it)
    it.see("b")
    missed(it)
    it.done("b")

    assert it.outcome(ticket) == "b"


def test_when_a_node_dies_in_a_load_the_load_goes_elsewhere() -> None:
    """The work is given up, and the other node takes it."""
    it = bench(nodes="ab")
    it.see("a")
    it.see("b")
    ticket = it.want("m")
    for _ in range(3):
        it.tell(m.Missed(node="a", reason="gone"))
    assert m.Abort(node="a") in it.effects

    it.done("a", error=errors.LoadFailed("a has gone away."))
    it.done("b")

    assert it.outcome(ticket) == "b"


def test_a_load_begun_by_somebody_else_is_joined() -> None:
    """The node says that it is loading: nobody asks it again."""
    it = bench()
    progress = LoadStatus(phase="weights", done=1, total=2, unit="bytes")
    it.see(replicas=(Replica(model="m", status="loading", devices=(0,), progress=progress),))
    ticket = it.want("m")
    assert it.residency.status("m") == it.residency.waits("m") == progress

    it.see(replicas=(loaded("m"),))

    assert it.outcome(ticket) == "a"
    assert it.done_to() == []


def test_an_operators_load_reports_progress_and_completes() -> None:
    """Every status once, and no grant."""
    it = bench()
    it.see()
    ticket = it.load("m", quant="none", tensor_parallel=1)
    status = LoadStatus(phase="weights", done=1, total=2, unit="bytes")
    for _ in range(2):
        it.tell(m.Progressed(node="a", status=status))
    it.done()

    reports = [effect.status for effect in it.effects if isinstance(effect, m.Report)]
    assert reports == [LoadStatus(phase="starting"), status]
    assert it.outcome(ticket) == "complete"
    assert next(effect.spec.quant for effect in it.effects if isinstance(effect, m.StartLoad)) == "none"


def test_an_operator_may_add_a_replica_on_a_named_node() -> None:
    """Loaded elsewhere is not loaded there."""
    it = bench(nodes="ab")
    it.see("a", replicas=(loaded("m"),))
    it.see("b")

    ticket = it.load("m", node="b")
    it.done("b")

    assert it.done_to("b") == ["load m"]
    assert it.outcome(ticket) == "complete"
    assert it.outcome(it.load("m")) == "complete"


def test_an_operator_who_names_no_node_of_ours_is_told_their_names() -> None:
    """400 with the names."""
    it = bench(nodes="ab")

    error = it.outcome(it.load("m", node="c"))

    assert isinstance(error, errors.InvalidBody)
    assert "a, b" in error.message


def test_an_unload_waits_for_the_last_request() -> None:
    """Then the model takes no request, the node is asked, and the operator hears of it."""
    it = bench()
    it.see(replicas=(loaded("m"),))
    it.want("m")
    ticket = it.unload("m")
    assert it.done_to() == []

    it.back("a", "m")
    it.done()

    assert it.done_to() == ["unload m"]
    assert it.outcome(ticket) == "complete"


def test_an_unload_of_what_is_not_loaded_is_a_404() -> None:
    """With a code of its own, so that scripts may take it for done."""
    it = bench()
    it.see()

    anywhere, there = it.outcome(it.unload("m")), it.outcome(it.unload("m", node="a"))

    assert (anywhere.status, anywhere.code) == (404, "model_not_loaded")
    assert anywhere.message == "The model 'm' is not loaded on any node."
    assert there.message == "The model 'm' is not loaded on a."


def test_an_unload_that_fails_is_told() -> None:
    """The node's words reach the operator."""
    it = bench()
    it.see(replicas=(loaded("m"),))
    ticket = it.unload("m")

    it.done(error=errors.LoadFailed("engine hangs"))

    assert it.outcome(ticket).message == "engine hangs"


def test_after_enough_unloads_an_idle_node_restarts_its_engines() -> None:
    """Drain, unload, load again as it was loaded; the count starts anew."""
    it = bench(ModelConfig(id="m", vram_mb=1000), eviction=EvictionConfig(defrag_after_cycles=1))
    it.see()
    it.load("m", quant="none", kv_dtype="int8", deterministic=True)
    it.done()
    it.see(free=9000, replicas=(loaded("m", mb=1000), loaded("x", mb=500)))
    it.want("m")
    it.unload("x")
    it.done()
    it.see(free=9000, replicas=(loaded("m", mb=1000),))
    assert it.done_to() == ["load m", "unload x"]

    it.back("a", "m")
    it.done()
    meanwhile = it.want("m")
    it.done()

    assert it.done_to() == ["load m", "unload x", "unload m", "load m"]
    assert it.outcome(meanwhile) == "a"
    specs = [effect.spec for effect in it.effects if isinstance(effect, m.StartLoad)]
    assert [(spec.quant, spec.kv_dtype, spec.deterministic) for spec in specs] == [("none", "int8", True)] * 2
    assert it.residency.snapshot().nodes[0].cycles == 0


def test_what_somebody_else_loaded_comes_back_in_the_same_formats() -> None:
    """The node said which it had chosen."""
    it = bench(eviction=EvictionConfig(defrag_after_cycles=1))
    chosen = {"quant": "int4", "kv_dtype": "fp8", "deterministic": True}
    formats = {name: {"chosen": what, "reason": ""} for name, what in chosen.items()}
    it.see(free=9000, replicas=(loaded("m", mb=1000, **formats), loaded("x", mb=500)))
    it.unload("x")
    it.done()
    it.see(free=9000, replicas=(loaded("m", mb=1000, **formats),))
    it.done()

    assert it.done_to() == ["unload x", "unload m", "load m"]
    spec = next(effect.spec for effect in it.effects if isinstance(effect, m.StartLoad))
    assert (spec.quant, spec.kv_dtype, spec.deterministic) == ("int4", "fp8", True)


def test_what_nobody_asks_for_leaves_and_comes_back_when_asked_for() -> None:
    """One model at a look, and no ticket waits for it."""
    it = bench(eviction=EvictionConfig(idle_secs=60))
    held = (loaded("m", mb=3000), loaded("n", mb=3000))
    it.see(replicas=held)
    it.want("m")
    it.now += 59
    it.back("a", "m")
    it.now += 59
    it.see(replicas=held)
    assert it.done_to() == ["unload n"]
    it.tell(m.Ticked())
    it.done()
    it.see(replicas=(loaded("m", mb=3000),))
    assert it.done_to() == ["unload n"]

    it.now += 1
    it.see(replicas=(loaded("m", mb=3000),))
    asked = it.want("m")
    it.done()
    it.see()
    it.done()

    assert it.done_to() == ["unload n", "unload m", "load m"]
    assert it.outcome(asked) == "a"


def test_what_would_not_leave_is_asked_again_after_as_long() -> None:
    """Not at every look."""
    it = bench(eviction=EvictionConfig(idle_secs=60))
    it.see(replicas=(loaded("m"),))
    it.now += 60
    it.see(replicas=(loaded("m"),))
    it.done(error=errors.LoadFailed("m will not leave"))
    it.now += 59
    it.see(replicas=(loaded("m"),))
    assert it.done_to() == ["unload m"]

    it.now += 1
    it.see(replicas=(loaded("m"),))

    assert it.done_to() == ["unload m", "unload m"]


def test_requests_of_others_keep_a_model() -> None:
    """As far as a look sees them."""
    it = bench(eviction=EvictionConfig(idle_secs=60))
    it.see(replicas=(loaded("m"),))
    it.now += 50
    it.see(replicas=(loaded("m", in_flight=1),))
    it.now += 50
    it.see(replicas=(loaded("m"),))

    assert it.done_to() == []


def test_what_the_files_say_now_is_followed_at_once() -> None:
    """By who waits already, too; what is loaded stays loaded."""
    it = bench(ModelConfig(id="m", vram_mb=6000), ModelConfig(id="n", vram_mb=99_000, source="/n"))
    it.see(free=4000, replicas=(loaded("m"),))
    waits = it.load("n", node="a")
    unknown = it.want("best")
    assert isinstance(it.outcome(unknown), errors.ModelNotFound)
    assert isinstance(it.outcome(waits), errors.InsufficientVram)

    models = (ModelConfig(id="n", vram_mb=3000, source="/n", quant="int8"),)
    it.tell(m.Configured(models=models, aliases={"best": "m"}, eviction=EvictionConfig(strategy="priority")))
    granted = it.want("best")
    it.load("n", node="a")

    assert it.outcome(granted) == "a"
    assert it.done_to() == ["load n"]
    specs = [effect.spec for effect in it.effects if isinstance(effect, m.StartLoad)]
    assert [spec.quant for spec in specs] == ["int8"]


def test_a_node_with_work_is_not_defragmented() -> None:
    """Neither ours nor others' requests are disturbed."""
    it = bench(eviction=EvictionConfig(defrag_after_cycles=1))
    it.see(replicas=(loaded("m"), loaded("x", mb=500)))
    it.unload("x")
    it.done()

    it.see(replicas=(loaded("m", in_flight=1),))

    assert it.done_to() == ["unload x"]


def test_a_picture_is_of_the_last_event_unless_the_time_is_told() -> None:
    it = bench()
    it.see()

    assert it.residency.snapshot().at == it.now
    assert it.residency.snapshot(0.0).at == 0.0


def test_everything_that_waits_is_counted() -> None:
    """The snapshot tells how many requests wait for which model."""
    it = bench()
    it.see()
    it.want("m")
    it.want("m")
    it.load("n")

    assert it.residency.snapshot().waiting == {"m": 2}


def test_a_defrag_goes_on_past_what_fails() -> None:
    """A model that will not leave stays loaded; one that will not come back is told to who wants it; the rest return."""
    it = bench(ModelConfig(id="m"), eviction=EvictionConfig(defrag_after_cycles=1))
    held = (loaded("m", mb=3000), loaded("n", mb=2000), loaded("o", mb=1000))
    it.see(replicas=(*held, loaded("x", mb=1)))
    it.unload("x")
    it.done()
    it.see(replicas=held)
    it.done(error=errors.LoadFailed("m will not leave"))
    it.done()
    it.done()
    it.done(error=errors.LoadFailed("n will not come back"))
    it.done()

    assert it.done_to()[1:] == ["unload m", "unload n", "unload o", "load n", "load o"]
    assert it.residency.snapshot().nodes[0].cycles == 0
    assert it.outcome(it.want("n")).message == "n will not come back"
    assert [it.outcome(it.want(model)) for model in ("m", "o")] == ["a", "a"]


def test_a_victim_that_will_not_leave_fails_the_load() -> None:
    """The newcomer hears why, and the victim serves on."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    ticket = it.want("m")
    it.done(error=errors.LoadFailed("engine hangs"))

    assert it.outcome(ticket).message == "engine hangs"
    assert it.outcome(it.want("n")) == "a"


def test_a_node_lost_while_a_victim_drains_forgets_its_job() -> None:
    """Nothing was running there, so nothing is given up; the newcomer is told that the node is gone."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    it.want("n")
    ticket = it.want("m")
    it.now += 10
    it.tell(m.Ticked())
    for _ in range(3):
        it.tell(m.Missed(node="a", reason="gone"))

    assert m.Abort(node="a") not in it.effects
    assert isinstance(it.outcome(ticket), errors.NoHealthyNode)


def test_no_load_follows_on_a_node_that_is_lost_while_a_victim_leaves() -> None:
    """Though the unload has ended well before it could be given up."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    ticket = it.want("m")
    down(it, "a")
    it.done()

    assert it.done_to() == ["unload n"]
    assert isinstance(it.outcome(ticket), errors.NoHealthyNode)


def test_what_is_loaded_while_a_model_leaves_stays() -> None:
    """It leaves where it is when the operator asks; a request that comes meanwhile has it loaded elsewhere, and gets it."""
    it = bench(nodes="ab")
    it.see("a", replicas=(loaded("m"),))
    it.see("b", replicas=(offered("m"),))
    it.want("m")
    gone = it.unload("m")
    late = it.want("m")
    assert (it.outcome(gone), it.done_to("b")) == (None, ["load m"])

    it.done("b")
    assert it.outcome(late) == "b"
    it.back("a", "m")
    it.done("a")

    assert it.outcome(gone) == "complete"
    assert (it.done_to("a"), it.done_to("b")) == (["unload m"], ["load m"])


def test_an_unload_from_a_node_we_do_not_have_is_refused() -> None:
    """With the names of those we have."""
    it = bench()
    it.see(replicas=(loaded("m"),))

    assert isinstance(it.outcome(it.unload("m", node="z")), errors.InvalidBody)


def test_progress_after_the_end_is_of_no_interest() -> None:
    """A late line changes nothing."""
    it = bench()
    it.see()

    assert it.tell(m.Progressed(node="a", status=LoadStatus(phase="weights"))) == []


def test_a_victim_that_left_by_itself_is_not_unloaded_again() -> None:
    """The node's next look says that it is gone: the load begins."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    it.want("n")
    it.want("m")
    it.now += 10
    it.tell(m.Ticked())
    it.see(free=9000, replicas=(Replica(model="n", status="unloaded"),))

    assert it.done_to() == ["load m"]


def down(it: Bench, node: str) -> None:
    for _ in range(3):
        it.tell(m.Missed(node=node, reason="connection refused"))


@pytest.mark.parametrize(
    "models",
    [
        pytest.param((), id="that only a node knows"),
        pytest.param((ModelConfig(id="x", vram_mb=6000),), id="whose id says nothing of its files"),
    ],
)
def test_a_model_that_only_a_lost_node_offers_is_asked_of_no_other(models: tuple[ModelConfig, ...]) -> None:
    """They would answer that there is no such model. The client is told who has it, and to come again."""
    it = bench(ModelConfig(id="n"), *models, nodes="ab")
    it.see("a", free=4000, replicas=(loaded("n"),))
    it.see("b", replicas=(offered("x"),))
    down(it, "b")

    error = it.outcome(it.want("x"))

    assert isinstance(error, errors.NoHealthyNode)
    assert error.retry_after == 5
    assert "b offers it and is not healthy (connection refused)" in error.message
    assert it.done_to("a") == []


def test_a_model_that_the_operator_says_where_to_find_is_asked_of_all() -> None:
    """A hub's name or a source is good on any node."""
    it = bench(ModelConfig(id="org/x"), ModelConfig(id="y", source="hf:org/y"), nodes="ab")
    it.see("a")
    it.see("b", replicas=(offered("org/x"), offered("y")))
    down(it, "b")

    it.want("org/x")
    it.done("a")
    it.see("a")
    it.want("y")

    assert it.done_to("a") == ["load org/x", "load y"]


def test_an_operator_may_try_a_node_that_does_not_offer_it() -> None:
    """Whoever names a node means it; whoever names none is told who offers it."""
    it = bench(ModelConfig(id="n"), nodes="ab")
    it.see("a")
    it.see("b", replicas=(offered("x"),))
    down(it, "b")

    assert "b offers it" in it.outcome(it.load("x")).message
    it.load("x", node="a")

    assert it.done_to("a") == ["load x"]


def test_a_load_that_failed_is_no_model() -> None:
    """An id that nobody has is unknown again after an operator has tried it; one that a node offers stays known."""
    it = bench(ModelConfig(id="n"))
    it.see()
    it.load("typo")
    assert it.residency.resolve("typo") is None
    it.done(error=errors.LoadFailed("there is no such model"))
    broken = Replica(model="mine", status="failed", last_error="cut short")
    it.see(replicas=(Replica(model="typo", status="failed", offered=False), broken))

    listed = catalogue.names(it.residency.catalogue, it.residency.snapshot())
    assert listed == ("mine", "n")
    assert isinstance(it.outcome(it.want("typo")), errors.ModelNotFound)
    assert [one.model for one in it.residency.snapshot().nodes[0].replicas] == ["typo", "mine"]


def test_what_leaves_one_node_leaves_it_though_another_is_lost() -> None:
    """Both have a request when the model is to be unloaded everywhere."""
    it = bench(nodes="ab")
    for node in "ab":
        it.see(node, replicas=(loaded("m"),))
    assert [it.outcome(it.want("m")) for _ in "ab"] == ["a", "b"]
    asked = it.unload("m")
    for _ in range(3):
        it.tell(m.Missed(node="a", reason="gone"))

    it.back("b", "m")
    assert it.done_to("b") == ["unload m"]
    it.done("b")
    it.back("a", "m")
    it.see("a", replicas=(loaded("m"),))

    assert (it.outcome(asked), it.done_to("a")) == ("complete", [])
