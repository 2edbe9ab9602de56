"""The records: what nobody has told is nothing, what follows from what was told, and which numbers make no sense."""

from functools import partial
from typing import Any

import pytest
from attrs import asdict

from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.snapshot import (
    Cost,
    Device,
    Group,
    Limit,
    LoadStatus,
    Membership,
    ModelConfig,
    ModelLoad,
    Node,
    Rank,
    Replica,
)


def test_what_a_node_has_not_told_is_nothing() -> None:
    """No request, no memory, no progress, no doubt."""
    device, node, member = Device(index=0), Node(name="a", endpoint=""), Membership(model="m", leader="b")

    assert set(asdict(ModelLoad()).values()) == {0}
    assert (device.vram_total_mb, device.vram_used_mb, device.vram_free_mb) == (0, 0, 0)
    assert (node.healthy, node.doubted, node.cycles) == (False, False, 0)
    assert (member.pending, asdict(LoadStatus(phase="x"))) == (0, {"phase": "x", "done": 0, "total": 0, "unit": ""})
    assert (Group(model="m", role="member", leader="b").world, Group(model="m", role="leader", leader="b").ranks) == (
        0,
        (),
    )


def test_a_replica_of_which_nothing_is_told_serves_without_work() -> None:
    """It is one of the node's own, and does nothing that it would have to say."""
    replica = Replica(model="m", status="loaded")

    assert (replica.known, replica.serving, replica.pending, replica.spread) == (True, True, 0, 0)
    assert not any((replica.tool_call, replica.reasoning, replica.draining))


def test_requests_on_a_replica_are_ours_and_the_others() -> None:
    """And of a model's load those that run and those that wait."""
    assert Replica(model="m", status="loaded", in_flight=2, others=3).pending == 5
    assert ModelLoad(in_flight=2, queue_depth=3).pending == 5


@pytest.mark.parametrize(
    ("status", "resident"),
    [
        ("loaded", True),
        ("loading", True),
        ("recovering", True),
        ("draining", True),
        ("failed", False),
        ("unloaded", False),
    ],
)
def test_who_holds_memory(status: Any, resident: bool) -> None:
    """What is resident is known, even where the node does not list it."""
    replica = Replica(model="m", status=status, offered=False)

    assert (replica.resident, replica.known) == (resident, resident)
    assert Replica(model="m", status=status).known


@pytest.mark.parametrize(
    "change", [{"status": "recovering"}, {"servable": False}, {"draining": True}, {"status": "failed"}]
)
def test_who_takes_no_request(change: dict[str, Any]) -> None:
    """One reason is enough."""
    assert not Replica(**{"model": "m", "status": "loaded", **change}).serving


def test_a_group_is_spread_over_all_its_hosts() -> None:
    """Devices of all of them; each host once, the leader's first."""
    ranks = tuple(Rank(rank=rank, host=host) for rank, host in enumerate("bba"))
    group = Group(model="m", role="leader", leader="b", tensor_parallel=6, ranks=ranks)

    assert group.hosts == ("b", "a")
    assert Replica(model="m", status="loaded", devices=(0, 1), group=group).spread == 6
    assert Replica(model="m", status="loaded", devices=(0, 1)).spread == 2
    untold = Group(model="m", role="leader", leader="b")
    assert Replica(model="m", status="loaded", devices=(0, 1), group=untold).spread == 2


def test_what_somebody_has_said_of_a_load() -> None:
    """By name, false included: that is said as well."""
    said = LoadOptions(deterministic=False, tensor_parallel=2, hosts=("a",))

    assert said.named == {"deterministic": False, "tensor_parallel": 2, "hosts": ("a",)}
    assert LoadOptions().named == {}


@pytest.mark.parametrize(
    ("record", "name", "least"),
    [
        *(("Limit", name, 1) for name in ("context", "input", "output")),
        *(("Cost", name, 0) for name in ("input", "output", "cache_read", "cache_write")),
        *(("ModelConfig", name, 1) for name in ("vram_mb", "min_devices")),
        ("ModelConfig", "min_device_vram_mb", 0),
        ("LoadOptions", "tensor_parallel", 1),
    ],
)
def test_the_least_number_that_makes_sense(record: str, name: str, least: int) -> None:
    """It is taken, and one less is refused by its name."""
    made = {"Limit": Limit, "Cost": Cost, "ModelConfig": partial(ModelConfig, id="m"), "LoadOptions": LoadOptions}
    make: Any = made[record]

    assert getattr(make(**{name: least}), name) == least
    with pytest.raises(ValueError, match=name):
        make(**{name: least - 1})


@pytest.mark.parametrize(
    ("record", "name"),
    [("ModelConfig", "id"), ("ModelConfig", "harness"), ("LoadOptions", "quant"), ("LoadOptions", "kv_dtype")],
)
def test_an_empty_name_is_none(record: str, name: str) -> None:
    """A letter is one."""
    make: Any = LoadOptions if record == "LoadOptions" else ModelConfig
    more = {} if record == "LoadOptions" else {"id": "m"}

    assert getattr(make(**{**more, name: "x"}), name) == "x"
    with pytest.raises(ValueError, match=name):
        make(**{**more, name: ""})
