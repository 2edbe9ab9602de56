"""The fleet with neurons at the other end of an in-memory line: what callers get, and what the neurons are asked."""

import asyncio
import itertools
from typing import Any

import pytest

from cortex_gateway import errors
from cortex_gateway.config import Config, EvictionConfig, GatewayConfig, Neuron
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.fleet.residency import Residency
from cortex_gateway.metrics import Metrics
from cortex_gateway.placement.catalogue import Location
from cortex_gateway.placement.snapshot import LoadStatus, ModelConfig, Replica
from tests.fakes.contexts import asked
from tests.fakes.host_double import HostDouble
from tests.fakes.live_fleet import cold, run, until
from tests.fakes.memory_transport import MemoryTransport


def test_requests_spread_over_the_replicas_of_a_model() -> None:
    """The second goes where the first is not; a lease given back makes room again."""
    hosts = {name: HostDouble(sizes={"m": 1000}, loaded=["m"]) for name in ("a", "b")}

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        first = await fleet.acquire("m", asked("1"))
        second = await fleet.acquire("m", asked("2"))
        first.release()
        first.release()
        third = await fleet.acquire("m", asked("3"))

        assert [lease.node for lease in (first, second, third)] == ["a", "b", "a"]
        assert (first.base_url, first.cold, first.requested, first.model) == ("http://a", False, "m", "m")

    run(hosts, use)


def test_a_waiting_request_is_served_once_its_model_is_loaded() -> None:
    """Meanwhile its status says how far the load is."""
    gate = asyncio.Event()
    host = HostDouble(sizes={"m": 1000}, gates={"m": gate})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        waiting = [asyncio.create_task(fleet.acquire("best", asked(str(number)))) for number in range(3)]
        await until(lambda: fleet._residency.status("m") == LoadStatus(phase="weights", done=1, total=4, unit="bytes"))
        gate.set()
        leases = await asyncio.gather(*waiting)

        assert all(lease.cold and lease.node == "a" and lease.model == "m" for lease in leases)
        assert host.done == ["load m"]
        assert fleet._residency.status("m") is None

    run({"a": host}, use, aliases={"best": "m"})


def test_the_catalogue_says_how_a_model_is_loaded() -> None:
    """Source, formats, context and devices are passed on to the node."""
    host = HostDouble()
    model = ModelConfig(id="m", source="/models/m", quant="int8", kv_dtype="fp8", deterministic=True)

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        await cold(fleet, "m")

        assert host.specs == [
            {
                "model_id": "m",
                "source": "/models/m",
                "harness": "jax",
                "quant": "int8",
                "kv_dtype": "fp8",
                "deterministic": True,
                "tensor_parallel": 1,
            }
        ]

    run({"a": host}, use, models=(model,))


@pytest.mark.parametrize(("strategy", "evicted"), [("lru", "old"), ("priority", "cheap")])
def test_the_two_strategies_evict_differently(strategy: Any, evicted: str) -> None:
    """lru: the least recently used; priority: the least important. Metrics count it."""
    host = HostDouble(sizes={"old": 4000, "cheap": 4000, "new": 4000}, loaded=["old", "cheap"])
    models = (ModelConfig(id="cheap", residency_priority=1), ModelConfig(id="new", vram_mb=4000))

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        for model in ("old", "cheap", "new"):
            await cold(fleet, model)

        assert host.done == [f"unload {evicted}", "load new"]
        labels = {"model": evicted, "node": "a"}
        assert fleet._metrics.registry.get_sample_value("cortex_evictions_total", labels) == 1

    run({"a": host}, use, models=models, eviction=EvictionConfig(strategy=strategy))


def test_a_model_in_use_leaves_only_when_its_last_request_has_ended() -> None:
    """The newcomer waits; nothing is killed."""
    host = HostDouble(sizes={"m": 6000, "n": 6000}, loaded=["n"])

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        lease = await fleet.acquire("n", asked("1"))
        waiting = asyncio.create_task(fleet.acquire("m", asked("2")))
        await until(lambda: fleet._residency.status("m") == LoadStatus(phase="queued"))
        assert host.done == []
        lease.release()

        assert (await waiting).node == "a"
        assert host.done == ["unload n", "load m"]

    run({"a": host}, use, models=(ModelConfig(id="m", vram_mb=6000),))


def test_a_pinned_model_stays() -> None:
    """The newcomer is told why."""
    host = HostDouble(sizes={"m": 6000, "n": 6000}, loaded=["n"])
    models = (ModelConfig(id="m", vram_mb=6000), ModelConfig(id="n", pinned_on=("a",)))

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        with pytest.raises(errors.InsufficientVram, match="pinned"):
            await fleet.acquire("m", asked("1"))

        assert host.done == []

    run({"a": host}, use, models=models)


def test_a_nodes_own_refusal_makes_room_once() -> None:
    """Nobody knew the size: the node's plan decides."""
    host = HostDouble(sizes={"m": 6000, "n": 6000}, loaded=["n"])

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        lease = await cold(fleet, "m")

        assert lease.cold
        assert host.done == ["load m", "unload n", "load m"]

    run({"a": host}, use)


def test_a_failed_load_carries_the_nodes_words() -> None:
    """503 with Retry-After, kind and message."""
    host = HostDouble(sizes={"m": 1}, failures={"m": {"error": {"kind": "bad_checkpoint", "message": "cut short"}}})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        with pytest.raises(errors.LoadFailed, match="cut short") as caught:
            await fleet.acquire("m", asked("1"))

        assert (caught.value.retry_after, caught.value.extras["kind"]) == (5, "bad_checkpoint")

    run({"a": host}, use)


@pytest.mark.parametrize("answer", [{"error": "no CUDA", "code": "cuda_unavailable"}, {"error": "no CUDA"}])
def test_a_node_without_load_streams_is_understood(answer: dict[str, Any]) -> None:
    """The predecessor answers loads with plain JSON, and its errors have other shapes."""
    good = HostDouble(plain=True, sizes={"m": 1, "n": 1}, failures={"n": answer})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        assert (await cold(fleet, "m")).node == "a"
        with pytest.raises(errors.LoadFailed, match="no CUDA"):
            await fleet.acquire("n", asked("1"))

    run({"a": good}, use)


def test_who_stops_waiting_leaves_the_queue() -> None:
    """Cancelling the wait is enough; the load that it began goes on and serves the next one."""
    gate = asyncio.Event()
    host = HostDouble(sizes={"m": 1000}, gates={"m": gate})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        waiting = asyncio.create_task(fleet.acquire("m", asked("1")))
        await until(lambda: host.done)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert waiting.cancelled()
        assert fleet.snapshot().waiting == {}

        gate.set()
        assert (await cold(fleet, "m")).node == "a"
        assert host.done == ["load m"]

    run({"a": host}, use)


def test_a_cancel_in_the_moment_of_the_grant_gives_the_lease_back() -> None:
    """Otherwise the replica would count as in use for ever."""

    def seen(status: Any) -> m.Seen:
        replica = Replica(model="m", status=status, devices=(0,))
        return m.Seen(node="a", observation=m.Observation(harnesses=("jax",), replicas=(replica,)))

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        fleet.tell(seen("loading"))
        waiting = asyncio.create_task(fleet.acquire("m", asked("1")))
        await until(lambda: fleet.snapshot().waiting)
        fleet.tell(seen("loaded"))
        waiting.cancel()
        assert fleet.snapshot().nodes[0].replicas[0].in_flight == 1, "it has been granted"
        await asyncio.wait((waiting,))

        assert waiting.cancelled()
        assert fleet.snapshot().nodes[0].replicas[0].in_flight == 0

    run({"a": HostDouble()}, use, watch_secs=1000)


def test_a_dead_node_is_left_and_taken_back() -> None:
    """Requests go to the other node; when it answers again they come back."""
    hosts = {name: HostDouble(sizes={"m": 1000}, loaded=["m"]) for name in ("a", "b")}

    async def use(fleet: Fleet, transport: MemoryTransport) -> None:
        del transport.apps["a"]
        (await fleet.acquire("m", asked("0"))).release()
        lease = await fleet.acquire("m", asked("1"))
        lease.suspect("connection refused")
        other = await fleet.acquire("m", asked("2"))
        assert (lease.node, other.node) == ("a", "b")
        await until(lambda: fleet.health()["nodes"]["healthy"] == 1)
        assert fleet.health() == {"status": "ok", "nodes": {"healthy": 1, "total": 2}}
        lease.release()

        transport.apps["a"] = hosts["a"]
        await until(lambda: fleet.health()["nodes"]["healthy"] == 2)
        assert (await fleet.acquire("m", asked("3"))).node == "a"

    run(hosts, use)


def test_three_silent_looks_make_a_node_unhealthy() -> None:
    """Nobody has to run into it first."""
    host = HostDouble(sizes={"m": 1000}, loaded=["m"])

    async def use(fleet: Fleet, transport: MemoryTransport) -> None:
        del transport.apps["a"]
        await until(lambda: fleet.health()["status"] == "degraded")

        assert len(transport.refused) >= 3
        with pytest.raises(errors.NoHealthyNode, match="cannot be reached"):
            await fleet.acquire("m", asked("1"))

    run({"a": host}, use)


def test_a_hung_node_delays_nobody() -> None:
    """The others are seen and used while it is still being waited for."""
    hosts = {"hung": HostDouble(silent=True), "b": HostDouble(sizes={"m": 1000}, loaded=["m"])}

    async def main() -> None:
        config = Config(neurons=tuple(Neuron(name=name, endpoint=f"http://{name}") for name in hosts))
        fleet = Fleet(config, Metrics(), transport=MemoryTransport(dict(hosts)))
        starting = asyncio.create_task(fleet.start())
        await until(lambda: fleet.health()["nodes"]["healthy"])

        assert (await fleet.acquire("m", asked("1"))).node == "b"
        starting.cancel()
        await fleet.close()

    asyncio.run(main())


def test_after_enough_cycles_a_node_is_restarted_model_by_model() -> None:
    """defrag_after_cycles: unload and load again whatever it holds, once it is idle."""
    host = HostDouble(sizes={"m": 1000, "n": 1000}, loaded=["m", "n"])

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        await fleet.unload("n")
        await until(lambda: len(host.done) == 3)

        assert host.done == ["unload n", "unload m", "load m"]

    run({"a": host}, use, eviction=EvictionConfig(defrag_after_cycles=1))


def test_an_operator_loads_with_progress_and_unloads() -> None:
    """The same load twice is done at once."""
    host = HostDouble(sizes={"m": 1000})
    told: list[LoadStatus] = []

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        await fleet.load("m", node="a", report=told.append)
        await fleet.load("m", report=told.append)
        await fleet.unload("m", node="a")

        assert host.done == ["load m", "unload m"]
        assert [status.phase for status in told] == ["starting", "weights"]
        with pytest.raises(errors.BadRequest, match="not loaded"):
            await fleet.unload("m")

    run({"a": host}, use)


def test_closing_refuses_who_waits() -> None:
    """And nobody can come in after that."""
    host = HostDouble(sizes={"m": 1000}, gates={"m": asyncio.Event()})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        waiting = asyncio.create_task(fleet.acquire("m", asked("1")))
        await until(lambda: host.done)
        fleet.drain()

        with pytest.raises(errors.ShuttingDown):
            await waiting
        with pytest.raises(errors.ShuttingDown):
            await fleet.acquire("m", asked("2"))

    run({"a": host}, use)


def test_the_list_of_models_is_the_union_of_what_is_known() -> None:
    """The operator's, the nodes' and the aliases, with where they are and where they could be."""
    host = HostDouble(sizes={"seen": 1000}, loaded=["seen"])
    models = (ModelConfig(id="huge", vram_mb=99_000), ModelConfig(id="known", vram_mb=500))

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        entries = {entry.id: entry for entry in fleet.catalogue_entries()}

        assert list(entries) == ["huge", "known", "nick", "seen"]
        assert entries["nick"].alias_of == "seen"
        assert entries["seen"].locations == (Location(node="a", status="loaded", vram_estimate_mb=1000),)
        assert (entries["seen"].loaded, entries["known"].loaded) == (True, False)
        assert (entries["huge"].feasible_on, entries["known"].feasible_on) == ((), ("a",))
        assert fleet.locate_tokenizer("nick") == ["http://a"]
        assert fleet.resolve("nick") == "seen"
        with pytest.raises(errors.ModelNotFound):
            fleet.resolve("nik")

    run({"a": host}, use, models=models, aliases={"nick": "seen"})


def test_a_load_that_takes_too_long_is_given_up() -> None:
    """With the limit in the message."""
    host = HostDouble(sizes={"m": 1000}, gates={"m": asyncio.Event()})

    async def main() -> None:
        neurons = (Neuron(name="a", endpoint="http://a"),)
        config = Config(gateway=GatewayConfig(load_timeout_secs=1), neurons=neurons)
        fleet = Fleet(config, Metrics(), transport=MemoryTransport({"a": host}))
        await fleet.start()
        with pytest.raises(errors.LoadFailed, match="was not loaded on a within 1 s"):
            await fleet.acquire("m", asked("1"))
        await fleet.close()

    asyncio.run(main())


def test_when_a_node_is_lost_in_a_load_the_other_one_takes_over() -> None:
    """The hung load is given up as soon as the node is known to be gone."""
    hosts = {name: HostDouble(sizes={"m": 1000}, gates={"m": asyncio.Event()}) for name in ("a", "b")}

    async def use(fleet: Fleet, transport: MemoryTransport) -> None:
        waiting = asyncio.create_task(fleet.acquire("m", asked("1")))
        await until(lambda: hosts["a"].done)
        del transport.apps["a"]
        hosts["b"].gates["m"].set()

        assert (await waiting).node == "b"
        assert fleet._residency.status("m") is None

    run(hosts, use)


def test_health_names_what_is_loaded_but_cannot_serve() -> None:
    """`impaired`, with the node's own reason."""

    def seen() -> m.Seen:
        broken = Replica(model="m", status="loaded", servable=False, unservable_reason="insufficient_vram")
        return m.Seen(node="a", observation=m.Observation(harnesses=("jax",), replicas=(broken,)))

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        fleet.tell(seen())

        assert fleet.health() == {
            "status": "impaired",
            "nodes": {"healthy": 1, "total": 1},
            "unservable": [{"node": "a", "model": "m", "reason": "insufficient_vram", "detail": None}],
        }

    run({"a": HostDouble()}, use, watch_secs=1000)


def test_a_bug_in_the_background_is_heard_of(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody awaits these tasks, so their end is logged; and who waits is not left waiting."""
    host = HostDouble(sizes={"m": 1000})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        object.__setattr__(fleet._nodes._watchers["a"], "client", None)
        with pytest.raises(errors.LoadFailed, match="gateway failed"):
            await fleet.acquire("m", asked("1"))

    run({"a": host}, use, watch_secs=1000)
    assert "work on a has failed" in caplog.text


def test_a_load_given_up_before_it_began_is_over() -> None:
    """The node is lost in the moment in which the load is decided: afterwards it can work again."""
    host = HostDouble(sizes={"m": 1000, "n": 1000})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        waiting = asyncio.create_task(fleet.acquire("m", asked("1")))
        await until(lambda: fleet._work.tasks)  # decided, and its task has not run yet
        for _ in range(3):
            fleet.tell(m.Missed(node="a", reason="gone"))
        with pytest.raises(errors.CortexError, match="gone"):
            await waiting
        fleet.look()
        await until(lambda: fleet.health()["nodes"]["healthy"])

        assert fleet.snapshot().nodes[0].busy is None
        assert (await cold(fleet, "n")).node == "a"

    run({"a": host}, use, watch_secs=1000)


class Faulty(Residency):
    """Decides, and then fails, on every answer of a node that has loaded something."""

    def _on_seen(self, event: m.Seen) -> None:
        super()._on_seen(event)
        if any(one.status == "loaded" for one in event.observation.replicas):
            raise KeyError("a bug of ours")


def test_what_was_decided_before_a_fault_of_ours_is_done() -> None:
    """A grant that is lost on the way would be a lease for ever, and a request that waits for ever."""

    def seen(status: Any) -> m.Seen:
        replica = Replica(model="m", status=status, devices=(0,))
        return m.Seen(node="a", observation=m.Observation(harnesses=("jax",), replicas=(replica,)))

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        fleet._residency = Faulty(fleet._config)
        fleet.tell(seen("loading"))
        waiting = asyncio.create_task(fleet.acquire("m", asked("1")))
        await until(lambda: fleet.snapshot().waiting)
        with pytest.raises(KeyError):
            fleet.tell(seen("loaded"))

        assert (await waiting).node == "a"

    run({"a": HostDouble()}, use, watch_secs=1000)


def test_an_id_that_failed_to_load_is_not_in_the_list() -> None:
    """Clients see what they could have; the operator sees what went wrong."""
    typo = {"error": {"kind": "repo_fetch_failed", "message": "org/typo is no model"}}
    host = HostDouble(sizes={"m": 1000}, failures={"org/typo": typo})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        with pytest.raises(errors.LoadFailed, match="is no model"):
            await fleet.load("org/typo")
        await until(lambda: fleet.snapshot().nodes[0].replica("org/typo"))

        assert [entry.id for entry in fleet.catalogue_entries()] == ["m"]
        with pytest.raises(errors.ModelNotFound):
            await fleet.acquire("org/typo", asked("1"))
        failed = fleet.snapshot().nodes[0].replica("org/typo")
        assert failed is not None
        assert (failed.status, failed.last_error) == ("failed", "no such model")

    run({"a": host}, use)


def test_what_somebody_else_has_loaded_is_no_cold_start() -> None:
    """The gateway has not looked since, asks for the load, and hears that there is nothing to do."""
    host = HostDouble(sizes={"m": 1000})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        host.loaded.append("m")
        lease = await fleet.acquire("m", asked("1"))

        assert host.done == ["load m"]
        assert not lease.cold
        lease.release()

    run({"a": host}, use, watch_secs=60)


def stopped(host: HostDouble) -> None:
    """As a process that got SIGSTOP: the kernel takes what is sent, and nothing comes."""
    host.silent = True


def test_whoever_waits_for_a_node_that_fell_silent_is_freed() -> None:
    """Once it has answered no look three times, and nothing has come for as long again."""
    host = HostDouble(sizes={"m": 1000}, loaded=["m"])

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        lease = await fleet.acquire("m", asked("1"))
        stopped(host)
        with pytest.raises(errors.UpstreamReadFailed, match="a has stopped answering"):
            async with lease:
                await asyncio.Event().wait()

        assert fleet.snapshot().nodes[0].replicas[0].in_flight == 0

    run({"a": host}, use, look_timeout_secs=0.05)


def test_an_answer_that_goes_on_is_not_cut() -> None:
    """Though no look is answered: what is slow may be a driver that is asked for its memory."""
    host = HostDouble(sizes={"m": 1000}, loaded=["m"])

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        lease = await fleet.acquire("m", asked("1"))
        lease.heard = itertools.count().__next__
        stopped(host)
        async with lease:
            await until(lambda: not fleet.snapshot().nodes[0].healthy)
            await asyncio.sleep(1.0)  # five times as long as it would take to be cut

        assert not fleet.snapshot().nodes[0].healthy

    run({"a": host}, use, look_timeout_secs=0.2)


def test_a_node_that_refuses_or_says_nonsense_is_not_silent() -> None:
    """It drains, or has a fault in one route: what it answers is still to come."""
    host = HostDouble(sizes={"m": 1000}, loaded=["m"])

    async def use(fleet: Fleet, transport: MemoryTransport) -> None:
        async with await fleet.acquire("m", asked("1")):
            del transport.apps["a"]
            await until(lambda: not fleet.snapshot().nodes[0].healthy)
            await asyncio.sleep(0.6)

    run({"a": host}, use, look_timeout_secs=0.3)


def test_a_node_that_is_back_in_time_costs_nobody_anything() -> None:
    """It was only busy."""
    host = HostDouble(sizes={"m": 1000}, loaded=["m"])

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        async with await fleet.acquire("m", asked("1")):
            stopped(host)
            await until(lambda: not fleet.snapshot().nodes[0].healthy)
            host.silent = False
            await until(lambda: fleet.snapshot().nodes[0].healthy)
            await asyncio.sleep(0.5)

    run({"a": host}, use, look_timeout_secs=0.2)
