"""A node that has refused a load for want of memory: what it lacks by its own numbers, and whether that passes by itself."""

from typing import Any

import pytest

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet import shortage
from cortex_gateway.fleet.operation import LoadStep
from cortex_gateway.fleet.shortage import RETURN_SECS
from cortex_gateway.placement.decisions import Placement
from cortex_gateway.placement.snapshot import Device, ModelConfig, Node, Replica
from tests.fakes.bench import Bench, bench, loaded

MIB = 1 << 20
CARDS = tuple(
    Device(index=index, vram_total_mb=10_000, vram_free_mb=free) for index, free in enumerate((3000, 5000, 4000))
)


def refused(**told: Any) -> errors.LoadFailed:
    return errors.LoadFailed("no room", kind="does_not_fit", **told)


def plan(*rows: Any) -> list[Any]:
    return [{"bytes": row} if isinstance(row, int) else row for row in rows]


@pytest.mark.parametrize(
    ("told", "needed", "left"),
    [
        pytest.param({}, 4001, (3000, 4000, 4000), id="nothing: a little more than we thought the second freest had"),
        pytest.param({"required_mb": 9001}, 4501, (3000, 4500, 4000), id="what it needs: half of it on each of two"),
        pytest.param({"required_mb": 9001, "free_mb": 7001}, 4501, (3000, 3500, 3500), id="what is free, too"),
        pytest.param({"required_mb": 9001, "free_mb": 20_000}, 4501, (3000, 4500, 4000), id="too much to refuse it"),
        pytest.param({"plan": plan(2 * MIB, 1)}, 2, (1, 1, 1), id="a plan: rounded up, to the MiB and to the device"),
        pytest.param({"plan": plan("more", {"bytes": "all"}, MIB)}, 1, (0, 0, 0), id="a plan with rows of no number"),
        pytest.param({"plan": "large", "required_mb": "much"}, 4001, (3000, 4000, 4000), id="words"),
    ],
)
def test_the_nodes_own_numbers_go_before_our_last_look(
    told: dict[str, Any], needed: int, left: tuple[int, ...]
) -> None:
    """For a model over two of three cards. Whatever it says, each of the two has less than is needed."""
    wants, node = shortage.corrected(Node(name="a", endpoint="", devices=CARDS), 2, refused(**told))

    assert (wants, tuple(device.vram_free_mb for device in node.devices)) == (needed, left)


def test_no_more_is_asked_of_a_device_than_it_has() -> None:
    """A node that says nothing and is empty: everything on the card would have to be free."""
    empty = Device(index=0, vram_total_mb=8000, vram_free_mb=8000)

    needed, node = shortage.corrected(Node(name="a", endpoint="", devices=(empty,)), 1, refused())

    assert (needed, node.devices[0].vram_free_mb) == (8000, 7999)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (refused(), True),
        (errors.InsufficientVram("no room"), True),
        (errors.LoadFailed("killed", kind="out_of_memory"), True),
        (errors.LoadFailed("cut short", kind="bad_checkpoint"), False),
        (errors.LoadFailed("gone"), False),
    ],
)
def test_a_want_of_memory_is_told_by_its_kind_or_else_its_code(error: errors.CortexError, told: bool) -> None:
    assert shortage.told_by(error) is told


def refusing(it: Bench, **spec: Any) -> LoadStep:
    """a has been asked to load a model, as it was asked."""
    it.load("m", **spec)
    (begun,) = (effect for effect in it.effects if isinstance(effect, m.StartLoad))
    return LoadStep(node=begun.node, spec=begun.spec)


@pytest.mark.parametrize(
    ("needs", "passes"), [pytest.param(4000, True, id="just enough"), pytest.param(4001, False, id="1 MiB too little")]
)
def test_a_want_passes_where_there_would_be_room_by_what_is_loaded(needs: int, passes: bool) -> None:
    """On one card of two: x has 6000 of 10,000 MiB on both, and m, which is what is loaded, does not count."""
    it = bench(ModelConfig(id="m", vram_mb=1000))
    x = Replica(model="x", status="loaded", devices=(0, 1), vram_used_mb=12_000)
    it.see(cards=2, free=4000, replicas=(x,))
    step = refusing(it)
    state = it.residency.state
    state.hosts["a"].freed_at = it.now

    assert shortage.passes(state, step, refused(required_mb=needs)) is passes


@pytest.mark.parametrize(("since", "passes"), [(0.0, True), (RETURN_SECS - 0.1, True), (RETURN_SECS, False)])
def test_memory_comes_back_for_so_long_after_an_unload(since: float, passes: bool) -> None:
    it = bench()
    it.see()
    step = refusing(it)
    it.residency.state.hosts["a"].freed_at = it.now - since

    assert shortage.passes(it.residency.state, step, refused()) is passes


def test_of_several_hosts_the_one_that_was_freed_last_counts() -> None:
    """What lacks room may be any of them, so nothing is said about how much there would be, nor who has to leave."""
    it = bench(ModelConfig(id="m", vram_mb=4000, tensor_parallel=2, hosts=("a", "b")), nodes="ab")
    for name in "ab":
        it.see(name, total=3000, free=3000)
    step = refusing(it)
    assert step.nodes == ("a", "b")
    it.residency.state.hosts["b"].freed_at = it.now

    assert shortage.passes(it.residency.state, step, refused(required_mb=99_000))
    assert shortage.room_after(it.residency.state, step, refused(required_mb=4000)) is None


@pytest.mark.parametrize(("needs", "victims"), [(12_000, ("x",)), (21_000, None)])
def test_who_has_to_leave_is_found_by_what_the_node_says_of_all_its_devices(needs: int, victims: Any) -> None:
    """6000 MiB on each of two cards are free once x has left; more than a card has are not, whoever leaves."""
    it = bench(ModelConfig(id="m", vram_mb=1000))
    it.see(
        cards=2, free=4000, replicas=(loaded("x"), Replica(model="y", status="loaded", devices=(1,), vram_used_mb=1))
    )
    it.residency.hosts["a"].replicas["x"] = Replica(model="x", status="loaded", devices=(0, 1), vram_used_mb=8000)
    step = refusing(it, tensor_parallel=2)

    found = shortage.room_after(it.residency.state, step, refused(required_mb=needs))

    assert (found.victims if isinstance(found, Placement) else None) == victims
