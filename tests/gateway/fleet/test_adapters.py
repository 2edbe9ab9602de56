"""Adapters that are asked for before their model is loaded: it is loaded for them, and they go where it is."""

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m
from cortex_gateway.placement import catalogue
from cortex_gateway.placement.snapshot import ModelConfig, Replica
from tests.fakes.bench import Bench, bench, loaded

POET = "m:poet"
CONFIGURED = ModelConfig(id="m", vram_mb=6000, adapters=("poet=/srv/poet",))


def names(it: Bench) -> tuple[str, ...]:
    return catalogue.names(it.residency.catalogue, it.residency.snapshot())


def offered(*adapters: str) -> tuple[Replica, ...]:
    """A model that a node would load with these, as it lists it."""
    return tuple(Replica(model="m", status="unloaded", adapters=adapters).with_adapters())


def test_the_model_is_loaded_for_who_asks_for_its_adapter() -> None:
    """Once for all of them, with the adapters of models.toml. Each is granted under the name that it asked for."""
    it = bench(CONFIGURED)
    it.see()
    first, second, plain = it.want(POET), it.want(POET), it.want("m")
    assert it.done_to() == ["load m"]
    assert [one.spec.adapters for one in it.effects if isinstance(one, m.StartLoad)] == [CONFIGURED.adapters]
    assert names(it) == ("m", POET)

    it.done()

    assert [it.outcome(one) for one in (first, second, plain)] == ["a", "a", "a"]
    assert [one.model for one in it.effects if isinstance(one, m.Grant)] == [POET, POET, "m"]


def test_what_a_node_has_configured_is_listed_and_loaded_there() -> None:
    """On the node that has the adapter, wherever else the model could be."""
    it = bench(ModelConfig(id="other"), nodes="ab")
    it.see("a", replicas=offered())
    it.see("b", free=8000, replicas=offered("poet"))
    assert names(it) == ("m", POET, "other")

    ticket = it.want(POET)
    it.done("b")

    assert (it.done_to("a"), it.done_to("b")) == ([], ["load m"])
    assert it.outcome(ticket) == "b"


def test_a_model_without_the_adapter_is_not_loaded_anew_by_itself() -> None:
    """Its requests would have to end for that, so an operator decides."""
    it = bench(CONFIGURED)
    it.see(replicas=(loaded("m"),))

    error = it.outcome(it.want(POET))

    assert isinstance(error, errors.AlreadyLoaded)
    assert "m is loaded on a without the adapter poet" in error.message
    assert it.done_to() == []


def test_an_adapter_leaves_with_its_model() -> None:
    it = bench(CONFIGURED)
    it.see(replicas=tuple(loaded("m", adapters=("poet",)).with_adapters()))
    assert it.outcome(it.want(POET)) == "a"
    it.back("a", POET)

    it.unload("m")
    it.done()

    assert it.residency.hosts["a"].candidate(POET, it.now) is None


def test_a_load_is_given_up_when_nobody_waits_for_the_adapter_any_more() -> None:
    """As for any model: what has not begun does not begin."""
    it = bench(CONFIGURED, ModelConfig(id="n", vram_mb=6000))
    it.see(free=4000, replicas=(loaded("n", in_flight=0),))
    ticket = it.want(POET)
    assert it.done_to() == ["unload n"]

    it.tell(m.Left(ticket=ticket))
    it.done()

    assert "load m" not in it.done_to()
