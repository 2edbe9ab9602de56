"""A conversation goes back to the replica that has its pages, unless that one is ailing or much busier."""

import pytest

from cortex_gateway.placement.affinity import STAY, Homes, choose
from cortex_gateway.placement.route import Candidate
from cortex_gateway.placement.snapshot import ModelLoad


def candidate(node: str, pending: int, *, speed: float = 0.0, slots: int = 0, resting: bool = False) -> Candidate:
    return Candidate(node, pending, ModelLoad(tok_s_decode=speed, max_in_flight=slots), resting)


@pytest.mark.parametrize(
    ("home", "other", "expected"),
    [
        (candidate("home", 1), candidate("other", 0), "home"),
        (candidate("home", int(STAY) - 1), candidate("other", 0), "home"),
        (candidate("home", int(STAY)), candidate("other", 0), "other"),
        (candidate("home", 5), candidate("other", 1), "home"),
        (candidate("home", 6), candidate("other", 1), "other"),
        (candidate("home", 0, resting=True), candidate("other", 9), "other"),
        (candidate("home", 2, slots=2), candidate("other", 1, slots=2), "other"),
        (candidate("home", 9, slots=2), candidate("other", 9, slots=2), "home"),
        (candidate("home", 0, speed=10), candidate("other", 0, speed=29), "home"),
        (candidate("home", 0, speed=10), candidate("other", 0, speed=31), "other"),
        (candidate("home", 0, speed=10), candidate("other", 0, speed=30), "home"),
    ],
)
def test_it_stays_unless_the_wait_is_much_longer(home: Candidate, other: Candidate, expected: str) -> None:
    assert choose([other, home], "home") == expected
    assert choose([home, other], "home") == expected


def test_without_a_home_that_serves_the_least_wait_decides() -> None:
    others = [candidate("a", 3), candidate("b", 1)]

    assert choose(others, None) == "b"
    assert choose(others, "gone") == "b"
    assert choose([], "gone") is None


def test_homes_are_remembered_by_model_and_conversation() -> None:
    homes = Homes()
    homes.note("m", "c", "one")
    homes.note("n", "c", "two")

    assert (homes.of("m", "c"), homes.of("n", "c"), homes.of("m", "d")) == ("one", "two", None)
    homes.note("m", "c", "two")
    assert homes.of("m", "c") == "two"


def test_the_oldest_homes_are_forgotten() -> None:
    """Bounded: clients make as many names as they like."""
    homes = Homes(most=2)
    for conversation in "abac":
        homes.note("m", conversation, conversation)

    assert [homes.of("m", conversation) for conversation in "abc"] == ["a", None, "c"]
