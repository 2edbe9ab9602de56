"""Replicas that fail: who gets requests instead, how long they rest, who tries them; on the bench and with neurons behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec

from cortex_gateway import errors
from cortex_gateway.app import create_app
from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config, GatewayConfig, Neuron
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics
from cortex_gateway.placement.circuit import FAILURES, REST_SECS
from cortex_gateway.placement.snapshot import Replica
from tests.fakes.bench import Bench, bench, loaded
from tests.fakes.contexts import asked
from tests.fakes.gateway_rig import BODIES, CHAT
from tests.fakes.host_double import HostDouble
from tests.fakes.live_fleet import until
from tests.fakes.memory_transport import MemoryTransport
from tests.fakes.neuron_double import Answer

BROKEN = Answer(
    refusal=(
        500,
        msgspec.json.encode({"error": {"message": "out of order", "type": "api_error", "code": None, "param": None}}),
        {},
    )
)


def pair() -> Bench:
    it = bench(nodes="ab")
    for node in "ab":
        it.see(node, replicas=(loaded("m"),))
    return it


def fail(it: Bench, times: int = FAILURES, node: str = "a") -> None:
    """Requests that fail there, though the other would have been free."""
    for _ in range(times):
        it.residency.hosts[node].take("m", it.now)
        it.tell(m.Returned(node=node, model="m", served=False, failure="500", sent=it.now))


def served(it: Bench, node: str, sent: float) -> None:
    it.tell(m.Returned(node=node, model="m", served=True, sent=sent))


def test_a_replica_that_failed_again_and_again_gets_nothing_while_another_serves() -> None:
    """However idle it is."""
    it = pair()
    fail(it)

    assert [it.outcome(it.want("m")) for _ in range(5)] == ["b"] * 5


def test_after_its_rest_one_request_tries_it() -> None:
    """The second goes elsewhere until the first has an answer."""
    it = pair()
    fail(it)
    it.now += REST_SECS
    it.want("m")
    trial = it.effects[-1]
    assert isinstance(trial, m.Grant)
    assert (trial.node, trial.trial) == ("a", True)
    assert it.outcome(it.want("m")) == "b"

    it.tell(m.Begun(node="a", model="m"))

    assert it.outcome(it.want("m")) == "a"
    served(it, "a", it.now)
    assert it.residency.hosts["a"].circuits == {}


def test_a_trial_that_fails_begins_a_longer_rest() -> None:
    """And the node is looked at."""
    it = pair()
    fail(it)
    it.now += REST_SECS
    it.want("m")

    effects = it.tell(m.Returned(node="a", model="m", served=False, failure="503", sent=it.now, trial=True))

    assert m.Look(node="a") in effects
    it.now += REST_SECS
    assert it.outcome(it.want("m")) == "b"


def test_a_trial_whose_client_leaves_is_no_verdict() -> None:
    """The next request tries it."""
    it = pair()
    fail(it)
    it.now += REST_SECS
    it.want("m")
    it.tell(m.Returned(node="a", model="m", trial=True))

    assert it.outcome(it.want("m")) == "a"


def test_only_the_end_of_a_trial_lets_the_next_one_try() -> None:
    """Not that of a request which was there before the rest, and whose client has left."""
    it = pair()
    for node in "ab":
        it.residency.hosts[node].take("m", it.now)
    fail(it)
    it.now += REST_SECS
    assert it.outcome(it.want("m")) == "a"  # the trial
    it.back("a", "m")

    assert it.outcome(it.want("m")) == "b"


def test_a_trial_may_end_when_its_engine_has_been_started_again() -> None:
    it = pair()
    fail(it)
    it.now += REST_SECS
    it.want("m")
    it.see("a", replicas=(Replica(model="m", status="recovering", devices=(0,)),))
    it.see("a", replicas=(loaded("m"),))
    assert it.residency.hosts["a"].circuits == {}

    it.tell(m.Returned(node="a", model="m", trial=True))

    assert it.residency.hosts["a"].circuits == {}


def test_where_all_replicas_rest_the_best_of_them_is_asked() -> None:
    """A client who can break a model must not be able to close it to all others."""
    it = pair()
    fail(it, node="a")
    fail(it, node="b")

    assert [it.outcome(it.want("m")) for _ in range(2)] == ["a", "b"]


def test_an_engine_that_was_started_again_begins_well() -> None:
    """What failed is gone."""
    it = pair()
    fail(it)
    it.see("a", replicas=(Replica(model="m", status="recovering", devices=(0,)),))
    it.see("a", replicas=(loaded("m"),))

    assert it.outcome(it.want("m")) == "a"


def test_a_request_is_sent_on_to_another_replica_at_once_or_not_at_all() -> None:
    """It neither waits nor has anything loaded for it."""
    it = pair()
    it.tell(m.Wanted(ticket=50, model="m", context=asked("r"), besides=frozenset("a")))
    it.tell(m.Wanted(ticket=51, model="m", context=asked("r"), besides=frozenset("ab")))

    assert it.outcome(50) == "b"
    assert isinstance(it.outcome(51), errors.NoOtherReplica)
    assert it.residency.waiting.tickets == {}
    assert it.done_to("a") == it.done_to("b") == []


def test_a_model_that_is_absent_is_waited_for_until_the_node_was_looked_at() -> None:
    """Then it is loaded again."""
    it = bench()
    it.see(replicas=(loaded("m"),))
    effects = it.tell(m.Absent(node="a", model="m"))
    ticket = it.want("m")
    assert (it.outcome(ticket), it.done_to(), m.Look(node="a") in effects) == (None, [], True)

    it.see(replicas=(Replica(model="m", status="unloaded"),))

    assert it.done_to() == ["load m"]


def test_what_a_node_that_is_being_worked_on_lacks_is_seen_by_the_next_look() -> None:
    """Its load or unload says what is there when it has ended."""
    it = bench()
    it.see(replicas=(loaded("m"),))
    it.unload("m")

    effects = it.tell(m.Absent(node="a", model="m"))

    assert effects == [m.Look(node="a")]
    assert it.residency.hosts["a"].replicas["m"].status == "loaded"


@contextlib.asynccontextmanager
async def gateway(hosts: dict[str, HostDouble]) -> AsyncIterator[tuple[httpx.AsyncClient, Fleet, Metrics]]:
    """The whole gateway in front of them."""
    neurons = tuple(Neuron(name=name, endpoint=f"http://{name}") for name in hosts)
    config, metrics = Config(gateway=GatewayConfig(watch_secs=0.05, hosts=("gw",)), neurons=neurons), Metrics()
    fleet = Fleet(config, metrics, transport=MemoryTransport(dict(hosts)))
    await fleet.start()
    try:
        transport = MemoryTransport({"gw": create_app(fleet, metrics, config, Guard())})
        async with httpx.AsyncClient(transport=transport, base_url="http://gw") as client:
            yield client, fleet, metrics
    finally:
        await fleet.close()


def test_a_replica_that_fails_fast_does_not_get_all_requests() -> None:
    """Every client is answered; the broken one rests after three, which /admin/fleet and the metrics show."""
    hosts = {
        "a": HostDouble(sizes={"demo": 1}, loaded=["demo"], answers=[BROKEN]),
        "b": HostDouble(sizes={"demo": 1}, loaded=["demo"]),
    }

    async def main() -> None:
        async with gateway(hosts) as (client, _, metrics):
            answers = [await client.post(CHAT, json=BODIES[CHAT]) for _ in range(20)]
            nodes: list[Any] = (await client.get("/admin/fleet")).json()["nodes"]
            value = metrics.registry.get_sample_value

            assert [answer.status_code for answer in answers] == [200] * 20
            assert hosts["a"].begun == FAILURES
            circuit = nodes[0]["models"][0]["circuit"]
            assert (circuit["state"], circuit["failures"], circuit["reason"]) == ("open", 3, "500: out of order")
            assert 0 < circuit["rests_secs"] <= REST_SECS
            assert value("cortex_model_circuit_open", {"model": "demo", "node": "a"}) == 1
            assert value("cortex_model_circuit_open", {"model": "demo", "node": "b"}) == 0
            assert value("cortex_retries_total", {"model": "demo", "node": "a"}) == FAILURES
            assert value("cortex_replica_failures_total", {"model": "demo", "node": "a"}) == FAILURES
            assert value("cortex_requests_total", {"model": "demo", "node": "b"}) == 20

    asyncio.run(main())


def test_a_model_that_somebody_unloaded_behind_our_back_is_loaded_again() -> None:
    """The neuron says 404, the client gets its answer."""
    gone = {"error": {"message": "not loaded", "type": "invalid_request_error", "code": "model_not_found"}}
    absent = Answer(refusal=(404, msgspec.json.encode(gone), {}))
    host = HostDouble(sizes={"demo": 1}, loaded=["demo"], answers=[absent, Answer()])

    async def main() -> None:
        async with gateway({"a": host}) as (client, fleet, _):
            await until(lambda: fleet.snapshot().nodes[0].healthy)
            host.loaded.remove("demo")

            assert (await client.post(CHAT, json=BODIES[CHAT])).status_code == 200
            assert host.done == ["load demo"]

    asyncio.run(main())
