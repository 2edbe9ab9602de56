"""Where the next request of a conversation goes, and who goes first where requests wait."""

from attrs import evolve

from cortex_gateway.auth.policy import NOBODY
from cortex_gateway.auth.principal import Principal
from cortex_gateway.placement.snapshot import ModelConfig
from tests.fakes.bench import Bench, bench, loaded
from tests.fakes.contexts import asked


def pair() -> Bench:
    it = bench(nodes="ab")
    for node in "ab":
        it.see(node, replicas=(loaded("m"), loaded("n")))
    return it


def test_a_conversation_stays_where_its_pages_are() -> None:
    """Others are spread; it is not, and its end elsewhere does not matter."""
    it = pair()
    first = it.outcome(it.want("m", asked("1", "talk")))
    others = [it.outcome(it.want("m")) for _ in range(2)]
    it.back(first, "m")

    assert set(others) == {"a", "b"}
    assert [it.outcome(it.want("m", asked(str(number), "talk"))) for number in range(2)] == [first, first]


def test_another_model_has_another_home() -> None:
    it = pair()
    it.want("m")
    home = it.outcome(it.want("m", asked("1", "talk")))

    assert home == "b"
    assert it.outcome(it.want("n", asked("2", "talk"))) == "a"


def test_a_busy_home_is_left_and_the_new_one_is_home_then() -> None:
    """Helpers of one session must not all pile up on one replica (users.md 17)."""
    it = pair()
    places = [it.outcome(it.want("m", asked(str(number), "talk"))) for number in range(8)]

    assert places[0] == places[1] == places[2]
    assert set(places) == {"a", "b"}


def test_a_home_that_is_gone_is_no_home() -> None:
    it = pair()
    home = it.outcome(it.want("m", asked("1", "talk")))
    it.see(home, replicas=())
    other = "b" if home == "a" else "a"

    assert it.outcome(it.want("m", asked("2", "talk"))) == other


def test_a_request_sent_on_after_a_failure_finds_a_new_home() -> None:
    it = pair()
    from cortex_gateway.fleet import messages as m

    it.want("m", asked("1", "talk"))
    it.tell(m.Wanted(ticket=90, model="m", context=asked("1", "talk"), besides=frozenset("a")))

    assert it.outcome(it.want("m", asked("2", "talk"))) == "b"


def test_who_shows_a_key_goes_first_where_requests_wait() -> None:
    """Two models that fit one at a time: the one that somebody known waits for is loaded next."""
    known = Principal(key="k", name="n", scopes=NOBODY.scopes)
    it = bench(*(ModelConfig(id=name, vram_mb=6000) for name in ("m", "x", "y")))
    it.see(replicas=(loaded("m"),), free=4000)
    held = it.outcome(it.want("m"))
    late = it.want("x"), it.want("y", evolve(asked("2"), principal=known))
    assert [it.outcome(ticket) for ticket in late] == [None, None]

    it.back(held, "m")
    it.done()
    it.see(free=10_000)

    assert "load y" in it.done_to()
    assert "load x" not in it.done_to()
