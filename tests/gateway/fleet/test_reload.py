"""An operator asks for a model that is loaded already: as asked for, otherwise, or to be loaded anew."""

from typing import Any

import httpx
import pytest

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.differing import Loaded, differing
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.fleet.messages import LoadSpec
from cortex_gateway.fleet.shortage import RETURN_SECS
from cortex_gateway.fleet.ticket import Ticket
from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.snapshot import Group, Limit, ModelConfig, Rank, Replica
from tests.fakes.bench import Bench, bench, loaded
from tests.fakes.host_double import HostDouble
from tests.fakes.live_fleet import run
from tests.fakes.live_gateway import live_gateway
from tests.fakes.memory_transport import MemoryTransport

BROKEN = errors.LoadFailed("no such format", kind="quant_not_found")


def gone(model: str) -> Replica:
    return Replica(model=model, status="unloaded")


def serving(**spec: Any) -> Bench:
    """m is loaded on a as the operator asked."""
    it = bench()
    it.see(replicas=(gone("m"), gone("n")))
    it.load("m", **spec)
    it.done()
    it.see(free=4000, replicas=(loaded("m"), gone("n")))
    it.now += 1
    return it


def spec_of(it: Bench) -> LoadSpec:
    return [effect.spec for effect in it.effects if isinstance(effect, m.StartLoad)][-1]


def test_the_same_again_is_done_at_once() -> None:
    """With the same options, or with none."""
    it = serving(quant="int8", tensor_parallel=1)

    assert it.outcome(it.load("m", quant="int8", tensor_parallel=1)) == "complete"
    assert it.outcome(it.load("m")) == "complete"
    assert it.done_to() == ["load m"]


def test_another_option_is_refused_by_name() -> None:
    """409 with what is loaded, what was asked for, and the way out; the model serves on."""
    it = serving(quant="int8")

    error = it.outcome(it.load("m", quant="none", tensor_parallel=2))

    assert isinstance(error, errors.AlreadyLoaded)
    assert (error.status, error.code) == (409, "already_loaded")
    assert error.extras == {
        "node": "a",
        "differs": {"quant": {"loaded": "int8", "asked": "none"}, "tensor_parallel": {"loaded": 1, "asked": 2}},
    }
    assert "m is loaded on a with quant int8 (asked for: none), tensor_parallel 1 (asked for: 2)" in error.message
    assert "reload" in error.message
    assert it.outcome(it.want("m")) == "a"
    assert it.done_to() == ["load m"]


def test_one_replica_that_is_as_asked_for_is_enough() -> None:
    it = bench(nodes="ab")
    for node, quant in (("a", "none"), ("b", "int8")):
        it.see(node, replicas=(loaded("m", quant={"chosen": quant}),))

    assert it.outcome(it.load("m", quant="int8")) == "complete"


def test_who_joins_a_load_under_way_hears_of_it_too() -> None:
    """When it has ended: then it is loaded, and not as asked for."""
    it = bench()
    it.see()
    it.want("m")
    asked = it.load("m", quant="none")
    it.done()

    assert isinstance(it.outcome(asked), errors.AlreadyLoaded)


def test_reload_drains_unloads_and_loads_as_asked() -> None:
    """Requests that run end first; those that come meanwhile wait for the new one."""
    it = serving(quant="int8")
    it.want("m")
    asked = it.load("m", quant="none", reload=True)
    late = it.want("m")
    assert (it.outcome(asked), it.outcome(late), it.done_to()) == (None, None, ["load m"])

    it.back("a", "m")
    assert it.done_to() == ["load m", "unload m"]
    it.done()
    it.done()

    assert it.done_to() == ["load m", "unload m", "load m"]
    assert spec_of(it).quant == "none"
    assert (it.outcome(asked), it.outcome(late)) == ("complete", "a")


def test_reload_without_options_loads_as_configured() -> None:
    """As `load` would have it; an engine that misbehaves is replaced."""
    it = serving(quant="int8")
    asked = it.load("m", reload=True)
    it.done()
    it.done()

    assert spec_of(it).quant == "auto"
    assert it.outcome(asked) == "complete"


def test_reload_of_what_is_not_loaded_is_a_load() -> None:
    """Nothing has to leave."""
    it = bench()
    it.see()
    asked = it.load("m", reload=True)
    it.done()

    assert it.outcome(asked) == "complete"
    assert it.done_to() == ["load m"]


def test_a_reload_that_fails_leaves_the_model_as_it_was() -> None:
    """The operator hears why; whoever waited is served by what was loaded before."""
    it = serving(quant="int8")
    asked = it.load("m", quant="nonsense", reload=True)
    it.done()
    late = it.want("m")
    it.done(error=BROKEN)
    assert it.outcome(asked) is BROKEN
    it.done()

    assert it.done_to() == ["load m", "unload m", "load m", "load m"]
    assert spec_of(it).quant == "int8"
    assert it.outcome(late) == "a"


def test_a_reload_for_which_there_is_no_room_does_not_begin() -> None:
    """It is known beforehand, and the model serves on."""
    it = bench(ModelConfig(id="m", vram_mb=6000, min_devices=1))
    it.see(free=4000, replicas=(loaded("m"),))
    it.now += 1

    error = it.outcome(it.load("m", tensor_parallel=2, reload=True))

    assert isinstance(error, errors.InsufficientVram)
    assert it.done_to() == []


def test_a_reload_that_needs_more_room_evicts_others_and_counts_its_own_as_free() -> None:
    """What m has now is free by then."""
    it = bench(ModelConfig(id="m", vram_mb=6000), ModelConfig(id="n", vram_mb=3000))
    it.see(free=1000, replicas=(loaded("m"), loaded("n", mb=3000)))
    it.now += 1
    it.load("m", quant="none", reload=True)
    it.done()

    assert it.done_to() == ["unload m", "load m"]


def test_a_reload_that_is_refused_for_want_of_memory_may_make_others_leave() -> None:
    """Once, as any other load: what m needs as it is asked for is known only then."""
    it = serving()
    it.see(free=2000, replicas=(loaded("m"), loaded("n", mb=2000)))
    asked = it.load("m", quant="none", reload=True)
    it.done()
    it.see(free=8000, replicas=(gone("m"), loaded("n", mb=2000)))
    it.now += RETURN_SECS
    it.done(error=errors.LoadFailed("no room", kind="does_not_fit", required_mb=9000))
    it.done()
    it.done()

    assert it.done_to() == ["load m", "unload m", "load m", "unload n", "load m"]
    assert it.outcome(asked) == "complete"


def test_a_reload_that_nobody_waits_for_any_more_does_not_begin() -> None:
    """The operator pressed Ctrl-C while it drained."""
    it = serving()
    it.want("m")
    asked = it.load("m", reload=True)
    it.tell(m.Left(ticket=asked))

    assert it.outcome(it.want("m")) == "a"
    it.back("a", "m")
    it.back("a", "m")
    assert it.done_to() == ["load m"]


def doubted(it: Bench) -> int:
    """A reload that waits for a request to end, on a node that another request could not reach."""
    it.want("m")
    asked = it.load("m", reload=True)
    it.tell(m.Looking(node="a"))
    it.tell(m.Suspected(node="a", reason="reset"))
    it.back("a", "m")
    assert it.done_to() == ["load m"]
    return asked


def test_a_reload_waits_for_the_look_at_a_node_that_could_not_be_reached() -> None:
    """And goes on when it has answered."""
    it = serving()
    asked = doubted(it)
    it.see(free=4000, replicas=(loaded("m"), gone("n")))
    it.done()
    it.done()

    assert it.done_to() == ["load m", "unload m", "load m"]
    assert it.outcome(asked) == "complete"


def test_a_reload_on_a_node_that_does_not_answer_is_refused_and_not_taken_for_done() -> None:
    """The old one is still there when the node is back."""
    it = serving()
    asked = doubted(it)
    it.tell(m.Missed(node="a", reason="slow"))
    it.see(free=4000, replicas=(loaded("m"), gone("n")))

    assert isinstance(it.outcome(asked), errors.NoHealthyNode)
    assert it.done_to() == ["load m"]


def test_of_several_replicas_the_operator_says_which() -> None:
    """With `node`."""
    it = bench(nodes="ab")
    for node in "ab":
        it.see(node, free=4000, replicas=(loaded("m"),))
    it.now += 1

    error = it.outcome(it.load("m", reload=True))
    asked = it.load("m", node="b", reload=True)
    it.done("b")
    it.done("b")

    assert isinstance(error, errors.InvalidBody)
    assert "a, b" in error.message
    assert it.outcome(asked) == "complete"
    assert (it.done_to("a"), it.done_to("b")) == ([], ["unload m", "load m"])


def test_hosts_that_do_not_have_it_get_a_replica() -> None:
    """Loaded elsewhere is not loaded there."""
    it = bench(nodes="ab")
    it.see("a", free=4000, replicas=(loaded("m"),))
    it.see("b")

    it.load("m", hosts=("b",))

    assert it.done_to("b") == ["load m"]


def replica(**more: Any) -> Replica:
    return Replica(model="m", status="loaded", devices=(0, 1), **more)


def chose(name: str, what: Any) -> dict[str, Any]:
    return {name: {"chosen": what, "reason": ""}}


SPEC = LoadSpec(model_id="m", quant="auto", tensor_parallel=2)
GROUP = Group(
    model="m",
    role="leader",
    leader="a",
    tensor_parallel=4,
    ranks=tuple(Rank(rank=rank, host="ab"[rank // 2], devices=(rank % 2,)) for rank in range(4)),
)


@pytest.mark.parametrize(
    ("asked", "told", "spec", "differs"),
    [
        ({"quant": "int8"}, chose("quant", "int8"), SPEC, {}),
        ({"quant": "auto"}, chose("quant", "int8"), SPEC, {}),
        ({"quant": "none"}, chose("quant", "int8"), SPEC, {"quant": ("int8", "none")}),
        ({"quant": "none"}, chose("quant", "int8"), None, {"quant": ("int8", "none")}),
        ({"quant": "auto"}, chose("quant", "int8"), None, {}),
        ({"quant": "int8"}, {}, None, {}),
        (
            {"quant": "auto"},
            chose("quant", "int8"),
            LoadSpec(model_id="m", quant="int8"),
            {"quant": ("int8", "auto")},
        ),
        ({"kv_dtype": "fp8"}, chose("kv_dtype", "bfloat16"), SPEC, {"kv_dtype": ("bfloat16", "fp8")}),
        ({"kv_dtype": "auto"}, chose("kv_dtype", "bfloat16"), SPEC, {}),
        ({"deterministic": True}, chose("deterministic", False), SPEC, {"deterministic": (False, True)}),
        ({"deterministic": True}, chose("deterministic", True), SPEC, {}),
        ({"deterministic": False}, chose("deterministic", True), SPEC, {}),
        (
            {"deterministic": False},
            chose("deterministic", True),
            LoadSpec(model_id="m", deterministic=True),
            {"deterministic": (True, False)},
        ),
        ({"tensor_parallel": 2}, {}, None, {}),
        ({"tensor_parallel": 1}, {}, None, {"tensor_parallel": (2, 1)}),
        ({"expert_parallel": 2}, {}, SPEC, {"expert_parallel": (1, 2)}),
        ({"expert_parallel": 2}, {}, LoadSpec(model_id="m", expert_parallel=2), {}),
        ({"max_context": 4096}, {"limit": Limit(context=2048)}, SPEC, {"max_context": (2048, 4096)}),
        ({"max_context": 2048}, {"limit": Limit(context=2048)}, SPEC, {}),
        ({"max_context": 9999}, {"limit": Limit(context=8192)}, LoadSpec(model_id="m", max_context=9999), {}),
        ({"max_context": 4096}, {}, None, {}),
        ({"speculate": 0}, {}, SPEC, {"speculate": (-1, 0)}),
        ({"speculate": -1}, {}, SPEC, {}),
        ({"speculate": 3}, {}, LoadSpec(model_id="m", speculate=0), {"speculate": (0, 3)}),
        ({"speculate": 3}, {}, None, {}),
        ({"ranks": "device"}, {}, SPEC, {"ranks": ("host", "device")}),
        ({"ranks": "device"}, {"group": GROUP}, None, {}),
        ({"ranks": "host"}, {"group": GROUP}, None, {"ranks": ("device", "host")}),
        ({"ranks": "device"}, {}, None, {}),
        ({"hosts": ("a", "b")}, {"group": GROUP}, None, {}),
        ({"hosts": ("a", "c")}, {"group": GROUP}, None, {"hosts": (("b",), ("a", "c"))}),
        ({}, chose("quant", "int8"), SPEC, {}),
    ],
)
def test_what_differs(
    asked: dict[str, Any], told: dict[str, Any], spec: LoadSpec | None, differs: dict[str, tuple[Any, Any]]
) -> None:
    """Only what the operator named, and only where it is known to be otherwise."""
    ticket = Ticket(number=1, kind="load", model="m", since=0.0, options=LoadOptions(**asked))
    lenders = ("b",) if "group" in told else ()

    assert differing(ticket, Loaded(replica=replica(**told), spec=spec, lenders=lenders)) == differs


def test_a_reload_over_the_wire() -> None:
    """The node is asked to unload and to load with the new options."""
    host = HostDouble(sizes={"m": 1000})

    async def use(fleet: Fleet, _: MemoryTransport) -> None:
        await fleet.load("m", options=LoadOptions(quant="int8"))
        with pytest.raises(errors.AlreadyLoaded, match="quant int8"):
            await fleet.load("m", options=LoadOptions(quant="none"))
        await fleet.load("m", options=LoadOptions(quant="none"), reload=True)

        assert host.done == ["load m", "unload m", "load m"]
        assert [spec["quant"] for spec in host.specs] == ["int8", "none"]

    run({"a": host}, use)


def test_the_gateway_answers_409() -> None:
    """With the envelope of its other errors."""
    host = HostDouble(sizes={"m": 1000})

    with live_gateway({"a": host}) as it:
        for body in ({"model": "m", "quant": "int8"}, {"model": "m", "quant": "int8"}):
            assert httpx.post(f"{it.url}/admin/load", json=body).status_code == 200
        answer = httpx.post(f"{it.url}/admin/load", json={"model": "m", "quant": "none"})
        again = httpx.post(f"{it.url}/admin/load", json={"model": "m", "quant": "none", "reload": True})

    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "already_loaded"
    assert answer.json()["error"]["differs"] == {"quant": {"loaded": "int8", "asked": "none"}}
    assert again.json() == {"status": "loaded"}
