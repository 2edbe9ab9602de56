"""Who leaves: the two orders, and the shortest set of victims that makes room."""

import pytest

from cortex_gateway.placement import evict, fit
from cortex_gateway.placement.evict import ResidentReplica, Room
from cortex_gateway.placement.snapshot import Device, ModelConfig, Node, Replica

OLD = ResidentReplica(model="old", priority=100, last_used=1, size_mb=1000)
NEW = ResidentReplica(model="new", priority=100, last_used=9, size_mb=1000)
CHEAP = ResidentReplica(model="cheap", priority=1, last_used=10, size_mb=1000)
DEAR = ResidentReplica(model="dear", priority=900, last_used=0, size_mb=1000)


@pytest.mark.parametrize("incoming", [0, 100, 9999])
def test_lru_ignores_priorities(incoming: int) -> None:
    """Only the time of the last use counts, whoever comes in."""
    order = evict.lru([NEW, CHEAP, DEAR, OLD], incoming)

    assert [one.model for one in order] == ["dear", "old", "new", "cheap"]


@pytest.mark.parametrize(
    ("incoming", "order"),
    [
        (0, []),
        (1, ["cheap"]),
        (100, ["cheap", "old", "new"]),
        (900, ["cheap", "old", "new", "dear"]),
    ],
)
def test_priority_displaces_equals_and_lower(incoming: int, order: list[str]) -> None:
    """Lowest first, then least recently used; never a higher one."""
    assert [one.model for one in evict.priority([NEW, CHEAP, DEAR, OLD], incoming)] == order


def test_both_orders_are_known_by_their_names() -> None:
    """The names of `[eviction] strategy`."""
    assert [evict.ORDERS[name] for name in ("lru", "priority")] == [evict.lru, evict.priority]


def node(free: tuple[int, ...], on: dict[str, tuple[int, ...]]) -> Node:
    devices = tuple(Device(index=index, vram_total_mb=9000, vram_free_mb=mb) for index, mb in enumerate(free))
    replicas = tuple(Replica(model=model, status="loaded", devices=where) for model, where in on.items())
    return Node(name="a", endpoint="http://a", devices=devices, replicas=replicas)


def order(*sizes: int) -> list[ResidentReplica]:
    return [ResidentReplica(model=f"r{n}", priority=0, last_used=n, size_mb=size) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("free", "on", "sizes", "need", "room"),
    [
        pytest.param((5000,), {"r0": (0,)}, (1000,), 5000, Room(devices=(0,)), id="nobody has to leave"),
        pytest.param(
            (1000,),
            {"r0": (0,), "r1": (0,)},
            (1000, 1000),
            2000,
            Room(devices=(0,), victims=("r0",)),
            id="the first is enough",
        ),
        pytest.param(
            (0, 0),
            {"r0": (1,), "r1": (0,)},
            (500, 4000),
            4000,
            Room(devices=(0,), victims=("r1",)),
            id="who sits on another device is spared",
        ),
        pytest.param(
            (0, 0),
            {"r0": (0,), "r1": (1,), "r2": (0,)},
            (1000, 500, 1000),
            2000,
            Room(devices=(0,), victims=("r0", "r2")),
            id="who sits on another device is spared between two who have to leave",
        ),
        pytest.param(
            (0, 0),
            {"r0": (0,), "r1": (1,), "r2": (0,), "r3": (0,)},
            (1000, 500, 1000, 1000),
            3000,
            Room(devices=(0,), victims=("r0", "r2", "r3")),
            id="and does not count among the three",
        ),
        pytest.param(
            (0,),
            {"r0": (0,), "r1": (0,), "r2": (0,)},
            (1000, 1000, 1000),
            3000,
            Room(devices=(0,), victims=("r0", "r1", "r2")),
            id="three at most",
        ),
        pytest.param(
            (0,), {f"r{n}": (0,) for n in range(4)}, (1000,) * 4, 4000, None, id="a fourth would be one too many"
        ),
        pytest.param((0,), {"r0": (0,)}, (1000,), 5000, None, id="not enough even then"),
    ],
)
def test_make_room(
    free: tuple[int, ...], on: dict[str, tuple[int, ...]], sizes: tuple[int, ...], need: int, room: Room | None
) -> None:
    """One case of looking for victims."""
    needed = fit.Need(shards=1, per_device_mb=need)

    assert evict.make_room(ModelConfig(id="m"), node(free, on), needed, order(*sizes)) == room
