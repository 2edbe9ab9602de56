"""Requests that wait for the same model are decided together, and only what has changed is looked at again: counted, not timed.

How long it takes is measured by `bench/fleet.py`.
"""

import string

from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.history import PATIENCE_SECS
from cortex_gateway.placement.snapshot import ModelConfig, Replica
from tests.fakes.bench import Bench, bench, loaded
from tests.fakes.contexts import asked

NODES = string.ascii_lowercase[:8]
COULD = [f"could-{number}" for number in range(19)]
WAITING = 255


def crowd(wanted: int) -> Bench:
    """Eight nodes, each full of `n`, which has two requests on each; 255 more wait for `wanted` other models."""
    models = [ModelConfig(id=name, vram_mb=6000) for name in ("n", *COULD)]
    it = bench(*models, nodes=NODES)
    for node in NODES:
        it.see(node, free=2000, replicas=(loaded("n"), *(Replica(model=name, status="unloaded") for name in COULD)))
    for _ in range(2 * len(NODES)):
        it.want("n")
    for number in range(WAITING):
        it.want(COULD[number % wanted])
    assert it.residency.snapshot().waiting.keys() == set(COULD[:wanted])
    return it


def decided(it: Bench, event: m.Event) -> tuple[int, int]:
    """How often placement was asked in this event, and how often it had to look at a node for it."""
    before = (it.residency.waiting.decisions, it.residency.waiting.considered.asked)
    it.tell(event)
    return it.residency.waiting.decisions - before[0], it.residency.waiting.considered.asked - before[1]


def test_a_request_that_ends_on_a_busy_model_is_no_reason_to_decide() -> None:
    """Nobody who waits gains anything while there is another request on it."""
    it = crowd(19)

    assert decided(it, m.Returned(node="a", model="n")) == (0, 0)


def test_a_model_that_falls_idle_is_one_decision_for_each_model_that_is_waited_for() -> None:
    """And one more for the model whose load it begins: 20, not 255; only the node that has changed is looked at."""
    it = crowd(19)
    it.back("a", "n")

    assert decided(it, m.Returned(node="a", model="n")) == (20, 19)
    assert it.done_to("a") == ["unload n"]


def test_a_model_that_all_wait_for_is_decided_once() -> None:
    """And once more when its load has begun: then they all wait for that."""
    it = crowd(1)
    it.back("a", "n")

    assert decided(it, m.Returned(node="a", model="n")) == (2, 1)


def test_one_more_in_line_is_one_decision_and_no_look() -> None:
    """What was seen of each node for those before holds for the next."""
    it = crowd(19)

    assert decided(it, m.Wanted(ticket=9999, model=COULD[0], context=asked("late"))) == (1, 0)


def test_who_leaves_or_finds_the_line_full_changes_nothing() -> None:
    """No operation is cut short by it, so nothing is decided."""
    it = crowd(19)

    assert decided(it, m.Left(ticket=it.numbers)) == (0, 0)
    for _ in range(2):
        it.want(COULD[0])
    assert decided(it, m.Wanted(ticket=9999, model=COULD[0], context=asked("late"))) == (0, 0)
    assert "256 requests wait" in it.outcome(9999).message


def test_a_look_at_one_node_is_no_look_at_the_others() -> None:
    """19 models, one node."""
    it = crowd(19)
    seen = it.residency.hosts["a"].seen
    it.tell(m.Looking(node="a"))

    assert decided(it, m.Seen(node="a", observation=seen)) == (19, 19)


def test_those_who_have_waited_long_are_decided_apart_from_the_others() -> None:
    """For them a model in use may be drained: that is another question, asked once for all of them."""
    it = crowd(1)
    it.now += PATIENCE_SECS
    it.want(COULD[0])

    assert decided(it, m.Ticked())[0] == 3
    assert it.residency.hosts["a"].operation is not None


def test_everybody_is_granted_when_the_model_is_there() -> None:
    """In the order in which they came, and spread over what there is."""
    it = crowd(1)
    it.back("a", "n")
    it.back("a", "n")
    it.done("a")
    it.done("a")

    granted = [effect.ticket for effect in it.effects if isinstance(effect, m.Grant) and effect.model == COULD[0]]
    assert granted == list(range(17, 17 + WAITING))
    assert it.residency.hosts["a"].ours[COULD[0]] == WAITING
