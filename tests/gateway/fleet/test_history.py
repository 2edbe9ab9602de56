"""How loads went, and what placement is asked with because of it."""

from typing import Any

import pytest

from cortex_gateway import errors
from cortex_gateway.config import Config, Neuron
from cortex_gateway.fleet.history import COOLING_SECS, PATIENCE_SECS, SPARING_SECS, LoadHistory, spec_for
from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.messages import LoadSpec, Observation
from cortex_gateway.fleet.ticket import Ticket
from cortex_gateway.placement.decisions import Placement, Reject
from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.snapshot import Limit, ModelConfig, Replica

FULL = errors.LoadFailed("no room", kind="does_not_fit")
BROKEN = errors.LoadFailed("cut short", kind="bad_checkpoint")


def history(*models: ModelConfig) -> LoadHistory:
    nodes = tuple(Neuron(name=name, endpoint="http://x:1") for name in "ab")
    return LoadHistory(Config(neurons=nodes, models=models or (ModelConfig(id="m"),)))


def ticket(since: float = 100.0, **more: Any) -> Ticket:
    return Ticket(**{"number": 1, "kind": "serve", "model": "m", "since": since, **more})


def seen(*replicas: Replica, name: str = "a") -> Host:
    it = Host(name=name, endpoint="")
    it.see(Observation(replicas=replicas), 1.0)
    return it


def test_a_footprint_is_known_once_it_was_measured() -> None:
    """Of what serves; and what was decided by without it is not decided by any more."""
    it = history()
    before = it.policy(ticket(), 100.0)
    it.measure(seen(Replica(model="m", status="loaded", vram_used_mb=6000)))
    it.measure(seen(Replica(model="x", status="loading", vram_used_mb=10), name="b"))
    after = it.policy(ticket(), 100.0)

    assert before.knowledge.measured == {}
    assert after.knowledge.measured == {("m", "a"): 6000}
    it.measure(seen(Replica(model="m", status="loaded", vram_used_mb=6000)))
    assert it.policy(ticket(), 100.0) is after
    it.measure(seen(Replica(model="m", status="loaded", vram_used_mb=7000)))
    assert it.policy(ticket(), 100.0).knowledge.measured == {("m", "a"): 7000}


@pytest.mark.parametrize(
    ("kind", "since", "now", "cools"),
    [
        ("serve", 100.0, 100.0 + COOLING_SECS, True),
        ("serve", 101.0, 100.0 + COOLING_SECS, True),
        ("serve", 101.0, 100.1 + COOLING_SECS, False),
        ("serve", 99.0, 200.0, True),
        ("load", 100.0, 200.0, True),
        ("load", 100.1, 100.1, False),
        ("restore", 99.9, 100.0, True),
        ("restore", 100.0, 100.0, False),
    ],
)
def test_a_failure_counts_for_who_waited_then_and_for_a_while(kind: Any, since: float, now: float, cools: bool) -> None:
    """A request is kept from a node that failed a moment ago; an operator who asks after that may insist.

    What is to come back is not kept from it by what failed just then.
    """
    it = history()
    it.fail("m", "a", BROKEN, 100.0)

    assert (it.cooling(ticket(since, kind=kind), now).keys() == {"a"}) is cools
    assert it.cooling(ticket(since, kind=kind, model="n"), now) == {}


def test_a_node_that_failed_alone_is_excluded_and_those_that_failed_together_are_kept_apart() -> None:
    it = history()
    it.fail("m", "a", BROKEN, 100.0)
    it.fail("m", "b", BROKEN, 100.0, together=frozenset("bc"), dear=True)
    it.fail("m", "b", BROKEN, 100.0, together=frozenset("bd"))
    policy = it.policy(ticket(), 100.0)

    assert policy.excluded == {"a"}
    assert policy.apart == {frozenset("bc"), frozenset("bd")}
    assert policy.sparing == frozenset()


def test_others_are_spared_for_longer_than_the_node_is() -> None:
    it = history()
    it.fail("m", "a", BROKEN, 100.0, dear=True)
    later = 100.0 + COOLING_SECS + 1
    soon, late = it.policy(ticket(later), later), it.policy(ticket(200.0), 100.1 + SPARING_SECS)

    assert (soon.excluded, soon.sparing) == (frozenset(), {"a"})
    assert late.sparing == frozenset()


@pytest.mark.parametrize(
    ("kind", "waited", "drain"),
    [("serve", PATIENCE_SECS - 0.1, False), ("serve", PATIENCE_SECS, True), ("load", 0.0, True)],
)
def test_patience_has_an_end_and_an_operator_needs_none(kind: Any, waited: float, drain: bool) -> None:
    """Then a model in use may be drained."""
    assert history().policy(ticket(kind=kind), 100.0 + waited).drain is drain


def test_a_load_that_went_well_makes_up_for_the_failure_before() -> None:
    it = history()
    it.fail("m", "a", BROKEN, 100.0)
    it.loaded(LoadSpec(model_id="m"), seen(), 100.0)

    assert it.failures == {"m": {}}
    assert it.loaded_since(ticket(100.0), seen())
    assert not it.loaded_since(ticket(100.1), seen())
    assert not it.loaded_since(ticket(100.0), seen(name="b"))


def test_what_the_catalogue_says_of_a_model_goes_before_what_nodes_tell() -> None:
    """Of one that it does not have the nodes are asked."""
    told = Replica(model="m", status="loaded", harness="other", limit=Limit(context=99))
    hosts = [seen(told), seen(Replica(model="x", status="loaded", harness="other"), name="b")]
    it = history(ModelConfig(id="m", vram_mb=10))

    assert (it.model("m", hosts).harness, it.model("m", hosts).vram_mb) == ("jax", 10)
    assert it.model("x", hosts).harness == "other"


@pytest.mark.parametrize(
    ("limit", "options", "told"),
    [
        (None, {}, None),
        (Limit(context=99), {}, 99),
        (Limit(context=99), {"max_context": 50}, 50),
        (None, {"max_context": 50}, 50),
    ],
)
def test_a_context_that_is_asked_for_goes_before_the_limit(
    limit: Limit | None, options: dict[str, Any], told: int | None
) -> None:
    """What models.toml shows of a model, a node is asked to load with, unless somebody wants otherwise."""
    model = ModelConfig(id="m", limit=limit, **options)

    assert spec_for(model, Placement(node="a", devices=(0,))).max_context == told


def test_an_operator_is_told_of_the_last_failure() -> None:
    """It says more than that there is no room now."""
    it = history()
    it.fail("m", "a", FULL, 100.0)
    it.fail("m", "b", BROKEN, 101.0)
    full = Reject(why="full", reason="no room anywhere")

    assert it.refusal(ticket(), full, 101.0) is BROKEN
    together = it.refusal(ticket(), full, 101.0, grouped=True)
    assert (together.message, together.extras["kind"]) == ("cut short no room anywhere", "bad_checkpoint")
    later = 101.0 + COOLING_SECS + 1
    assert isinstance(it.refusal(ticket(later), full, later), errors.InsufficientVram)
    assert it.refusal(ticket(later), Reject(why="failed", reason="has failed"), later) is BROKEN
    assert isinstance(it.refusal(ticket(later), Reject(why="down", reason="gone"), later), errors.NoHealthyNode)


def test_what_a_node_would_have_room_for_may_drain_others() -> None:
    """It has refused already, and says itself how much it takes."""
    after = history().policy_after("m", "a", 7000)

    assert after.drain
    assert after.knowledge.demanded == {("m", "a"): 7000}


@pytest.mark.parametrize(
    ("node", "hosts", "asked"),
    [(None, (), ()), ("b", (), ()), (None, ("a", "b"), ("a", "b")), ("b", ("a", "b"), ("b", "a"))],
)
def test_a_node_that_is_named_leads_its_hosts(node: str | None, hosts: tuple[str, ...], asked: tuple[str, ...]) -> None:
    wanted = ticket(kind="load", node=node, options=LoadOptions(hosts=hosts))

    assert history().asked(wanted, []).hosts == asked
