"""Evictions that are not followed by a load at once: memory that comes back late, and models that have left for nothing."""

import pytest

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.fleet.history import COOLING_SECS, SPARING_SECS
from cortex_gateway.fleet.shortage import RETURN_SECS
from cortex_gateway.placement.snapshot import LoadStatus, ModelConfig, Replica
from tests.fakes.bench import Bench, bench, loaded
from tests.fakes.contexts import asked
from tests.fakes.host_double import HostDouble
from tests.fakes.live_fleet import cold, run, until
from tests.fakes.memory_transport import MemoryTransport

FULL = errors.LoadFailed("does not fit", kind="does_not_fit")
BROKEN = errors.LoadFailed("cut short", kind="bad_checkpoint")


def gone(model: str) -> Replica:
    return Replica(model=model, status="unloaded")


def evicting(**more: object) -> tuple[Bench, int]:
    """A request for m that has made n leave; its load is under way."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n", **more), gone("m")))
    ticket = it.want("m")
    it.done()
    assert it.done_to() == ["unload n", "load m"]
    return it, ticket


def pass_time(it: Bench) -> None:
    """Until the load is tried again."""
    before = len(it.done_to())
    while len(it.done_to()) == before:
        wake = it.residency.next_wake()
        assert wake is not None
        it.now = wake
        it.tell(m.Ticked())


def test_a_load_that_fails_while_memory_comes_back_is_tried_again() -> None:
    """After a pause, and without asking anybody else to leave; the request waits on."""
    it, ticket = evicting()
    it.done(error=FULL)
    assert (it.outcome(ticket), it.done_to()) == (None, ["unload n", "load m"])
    assert it.residency.status("m") == LoadStatus(phase="waiting for memory")
    assert it.residency.snapshot().nodes[0].busy == "waiting for memory for m"

    pass_time(it)
    assert it.done_to() == ["unload n", "load m", "load m"]
    it.done()

    assert it.outcome(ticket) == "a"


def test_it_is_tried_more_and_more_seldom_and_not_for_ever() -> None:
    """So long after the unload the want is real: then the node's words are the answer."""
    it, ticket = evicting()
    begun = it.now
    while it.outcome(ticket) is None:
        it.done(error=FULL)
        if it.outcome(ticket) is None:
            pass_time(it)

    assert it.outcome(ticket) is FULL
    assert RETURN_SECS < it.now - begun < 2 * RETURN_SECS
    assert it.done_to().count("load m") == 7  # after 0, 0.25, 0.75, 1.75, 3.75, 7.75 and 15.75 seconds


def test_a_pause_is_not_ended_by_a_look_nor_by_other_requests() -> None:
    """Only by its time."""
    it, _ = evicting()
    it.done(error=FULL)

    it.see(free=2000, replicas=(gone("n"), gone("m")))
    it.want("m")
    it.tell(m.Ticked())

    assert it.done_to() == ["unload n", "load m"]


def test_who_waits_for_a_paused_load_is_not_late() -> None:
    """The load is under way, pauses included."""
    it, ticket = evicting()
    it.done(error=FULL)
    it.now += it.residency.config.gateway.wait_secs
    it.tell(m.Ticked())

    assert it.outcome(ticket) is None


def test_without_an_unload_a_moment_ago_a_refusal_is_a_refusal() -> None:
    """Nothing is coming back."""
    it = bench(ModelConfig(id="m", vram_mb=1000))
    it.see()
    ticket = it.want("m")
    it.done(error=FULL)

    assert it.outcome(ticket) is FULL


def test_an_operators_unload_counts_as_well() -> None:
    """It is the same memory."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    it.unload("n")
    it.done()
    it.see(free=9000, replicas=(gone("n"),))
    ticket = it.want("m")
    it.done(error=FULL)
    pass_time(it)
    it.done()

    assert it.outcome(ticket) == "a"


def test_what_others_have_taken_meanwhile_is_not_waited_for() -> None:
    """The last look was older than what is loaded now: the node's own numbers say who has to leave."""
    it = bench()
    it.see(free=2000, replicas=(loaded("n"),))
    it.unload("n")
    it.done()
    it.see(free=9000, replicas=(gone("n"), loaded("x")))
    it.want("m")
    it.done(error=errors.LoadFailed("no room", kind="does_not_fit", required_mb=6000, free_mb=4000))

    assert it.done_to() == ["unload n", "load m", "unload x"]


def test_a_model_that_left_for_a_load_that_failed_is_loaded_again() -> None:
    """As it was, once the node was looked at."""
    it = bench()
    it.see()
    it.load("n", quant="int8", kv_dtype="fp8")
    it.done()
    it.see(free=2000, replicas=(loaded("n"), gone("m")))
    ticket = it.want("m")
    it.done()
    it.done(error=BROKEN)
    assert it.outcome(ticket) is BROKEN

    it.see(replicas=(gone("n"), gone("m")))

    assert it.done_to() == ["load n", "unload n", "load m", "load n"]
    again = [effect.spec for effect in it.effects if isinstance(effect, m.StartLoad)][-1]
    assert (again.quant, again.kv_dtype) == ("int8", "fp8")
    it.done()
    assert it.residency.waiting.tickets == {}
    assert not [effect for effect in it.effects if getattr(effect, "ticket", 0) < 0], "nobody is told of it"


def test_a_model_that_left_for_somebody_who_is_gone_is_loaded_again() -> None:
    """Two had to leave; when the first had, nobody waited any more."""
    it = bench(*(ModelConfig(id=name, vram_mb=4000) for name in ("n", "o")), ModelConfig(id="m", vram_mb=8000))
    it.see(free=1000, replicas=(loaded("n", mb=4000), loaded("o", mb=4000)))
    it.want("o")
    ticket = it.want("m")
    it.now += 10
    it.tell(m.Ticked())
    assert it.done_to() == ["unload n"]
    it.done()
    it.tell(m.Left(ticket=ticket))
    it.see(free=5000, replicas=(gone("n"), loaded("o", mb=4000)))

    assert it.done_to() == ["unload n", "load n"]


def test_it_is_not_loaded_again_where_others_have_taken_its_room() -> None:
    """Whoever waited comes first, and nobody leaves for it."""
    it, _ = evicting()
    waiting = it.load("x")
    it.done(error=BROKEN)
    it.see(replicas=(gone("n"), gone("m")))
    it.done()
    it.now += RETURN_SECS
    it.see(free=1000, replicas=(gone("n"), gone("m"), loaded("x", mb=9000)))

    assert it.outcome(waiting) == "complete"
    assert it.done_to() == ["unload n", "load m", "load x"]
    assert it.residency.waiting.tickets == {}


def test_it_is_not_loaded_again_where_a_request_has_had_it_loaded() -> None:
    """Once is enough."""
    it, _ = evicting()
    it.done(error=BROKEN)
    wanted = it.want("n")
    it.see(replicas=(gone("n"), gone("m")))
    it.done()

    assert it.outcome(wanted) == "a"
    assert it.done_to() == ["unload n", "load m", "load n"]
    assert it.residency.waiting.tickets == {}


def test_a_node_that_is_lost_meanwhile_is_not_asked_to() -> None:
    """What it holds when it is back is for it to say."""
    it, _ = evicting()
    it.done(error=BROKEN)
    for _ in range(3):
        it.tell(m.Missed(node="a", reason="gone"))

    assert it.residency.waiting.tickets == {}


def test_what_does_not_come_back_is_not_insisted_on() -> None:
    """One failure, and nobody else is asked to leave for it; the memory that it needs may be late as well."""
    it, _ = evicting()
    it.done(error=BROKEN)
    it.see(free=4000, replicas=(gone("n"), gone("m"), loaded("x", mb=5000)))
    assert it.done_to() == ["unload n", "load m"]
    it.see(free=9000, replicas=(gone("n"), gone("m"), loaded("x", mb=5000)))
    assert it.done_to() == ["unload n", "load m", "load n"]
    it.now += RETURN_SECS
    it.done(error=FULL)
    it.see(free=9000, replicas=(gone("n"), gone("m"), loaded("x", mb=5000)))

    assert it.done_to() == ["unload n", "load m", "load n"]
    assert it.residency.waiting.tickets == {}


@pytest.mark.parametrize("error", [BROKEN, FULL])
def test_others_do_not_leave_again_and_again_for_a_model_that_fails(error: errors.LoadFailed) -> None:
    """Else a client that repeats its request could keep a good model from serving. An operator may insist."""
    it, _ = evicting()
    it.now += RETURN_SECS
    it.done(error=error)
    it.see(replicas=(gone("n"), gone("m")))
    it.done()
    it.see(free=2000, replicas=(loaded("n"), gone("m")))
    it.now += COOLING_SECS + 1

    assert it.outcome(it.want("m")) is error
    assert it.done_to() == ["unload n", "load m", "load n"]
    it.load("m")
    assert it.done_to()[3:] == ["unload n"]


def test_after_a_while_they_may() -> None:
    """What was broken may be mended."""
    it, _ = evicting()
    it.done(error=BROKEN)
    it.see(free=2000, replicas=(loaded("n"), gone("m")))
    it.now += SPARING_SECS + 1
    it.want("m")

    assert it.done_to() == ["unload n", "load m", "unload n"]


def test_two_models_take_turns_on_a_node_that_gives_memory_back_late() -> None:
    """Every request is served; before, every second one was refused."""
    host = HostDouble(sizes={"m": 6000, "n": 6000}, late=1)

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        for number in range(6):
            lease = await cold(fleet, "mn"[number % 2])
            assert lease.node == "a"
        assert host.refused > 0
        assert [what for what in host.done if "unload" in what] == ["unload m", "unload n"] * 2 + ["unload m"]

    run({"a": host}, use, models=(ModelConfig(id="m", vram_mb=6000), ModelConfig(id="n", vram_mb=6000)))


def test_a_model_that_left_in_vain_is_back_on_a_real_line() -> None:
    """Through the whole fleet, looks and all."""
    host = HostDouble(
        sizes={"m": 6000, "n": 6000},
        loaded=["n"],
        failures={"m": {"error": {"kind": "bad_checkpoint", "message": "cut short"}}},
    )

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        with pytest.raises(errors.LoadFailed, match="cut short"):
            await fleet.acquire("m", asked("1"))
        await until(lambda: "load n" in host.done)

        assert host.done == ["unload n", "load m", "load n"]

    run({"a": host}, use, models=(ModelConfig(id="m", vram_mb=6000), ModelConfig(id="n", vram_mb=6000)))
