"""What an operation says of itself: what is left of it, and how its nodes and those who wait are told."""

from typing import Any

import pytest

from cortex_gateway.fleet.messages import LoadSpec
from cortex_gateway.fleet.operation import FIRST_PAUSE_SECS, LoadStep, Operation, UnloadStep
from cortex_gateway.placement.snapshot import LoadStatus

LOAD = LoadStep(node="a", spec=LoadSpec(model_id="m", hosts=("b",)))
LATER = LoadStep(node="a", spec=LoadSpec(model_id="n"))
LEAVES = UnloadStep(node="c", model="x", at="b", incoming="m")
HALF = LoadStatus(phase="weights", done=1, total=2, unit="bytes")


def operation(**more: Any) -> Operation:
    return Operation(**{"why": "load", "model": "m", "loads": [LOAD], **more})


@pytest.mark.parametrize(
    ("is_at", "node", "words"),
    [
        ({}, "a", "loading m"),
        ({"running": {"a": LOAD}}, "a", "loading m"),
        ({"pause": 0.25}, "a", "waiting for memory for m"),
        ({"pause": 0.25, "running": {"a": LOAD}}, "a", "loading m"),
        ({"pause": 0.25}, "b", "lending to m, led by a"),
        ({"unloads": [LEAVES]}, "b", "waiting for x to drain"),
        ({"unloads": [LEAVES]}, "c", "waiting for x to drain"),
        ({"unloads": [LEAVES]}, "a", "loading m"),
        ({"unloads": [LEAVES], "running": {"c": LEAVES}}, "c", "unloading x"),
    ],
)
def test_a_node_says_what_it_is_at(is_at: dict[str, Any], node: str, words: str) -> None:
    assert operation(**is_at).words(node) == words


@pytest.mark.parametrize(
    ("is_at", "model", "status"),
    [
        ({}, "m", LoadStatus(phase="starting")),
        ({"progress": HALF}, "m", HALF),
        ({"pause": 0.25, "progress": HALF}, "m", LoadStatus(phase="waiting for memory")),
        ({"pause": 0.25, "progress": HALF, "running": {"a": LOAD}}, "m", HALF),
        ({"unloads": [LEAVES], "progress": HALF}, "m", LoadStatus(phase="making room")),
        ({"loads": [LOAD, LATER], "progress": HALF}, "n", LoadStatus(phase="making room")),
    ],
)
def test_who_waits_is_told_how_far_it_is(is_at: dict[str, Any], model: str, status: LoadStatus) -> None:
    """What comes after another step makes room, as far as anybody needs to know."""
    assert operation(**is_at).status(model) == status


def test_it_ends_when_nothing_is_left_to_begin_or_to_end() -> None:
    """`loading` and `unfinished` decide who may cut it short."""
    waiting, draining = operation(), operation(unloads=[LEAVES], running={"c": LEAVES})
    loading = operation(running={"a": LOAD})

    assert [one.loading for one in (waiting, draining, loading)] == [False, False, True]
    assert [one.unfinished for one in (waiting, draining, loading)] == [True, True, False]
    assert [one.nodes for one in (waiting, draining)] == [("a", "b"), ("a", "b", "c")]
    draining.cut_short()
    assert (draining.nodes, draining.loads, draining.unfinished) == (("c",), [], False)
    waiting.cut_short()
    assert waiting.nodes == ()


def test_each_node_that_gets_memory_back_is_served_in_order() -> None:
    """Of two that leave for one node the second waits; those for others do not."""
    second = UnloadStep(node="c", model="y", at="b")
    elsewhere = UnloadStep(node="a", model="z", at="a")

    assert operation(unloads=[LEAVES, second, elsewhere]).first_unloads() == [LEAVES, elsewhere]


def test_each_pause_is_twice_the_one_before() -> None:
    it = operation()
    pauses = []
    for _ in range(3):
        it.again(100.0)
        pauses.append((it.pause, it.not_before))

    first = FIRST_PAUSE_SECS
    assert pauses == [(first, 100 + first), (2 * first, 100 + 2 * first), (4 * first, 100 + 4 * first)]


def test_a_model_comes_and_goes_on_its_own_node_only() -> None:
    """A lender neither loads the model nor loses one that leaves elsewhere for it."""
    it = operation(unloads=[LEAVES])

    assert [it.loads_on(node, model) for node, model in ("am", "bm", "an")] == [True, False, False]
    assert [it.unloads_from(node, model) for node, model in ("cx", "bx", "cm")] == [True, False, False]
