"""What `cortex status` makes of a fleet in trouble: one word in the table, the reason below it, once."""

import io
from typing import Any

import attrs
import pytest
from rich.console import Console

from cortex_gateway.cli.tables import show_fleet
from cortex_gateway.placement.snapshot import Device, Group, LoadStatus, Membership, Rank, Replica

WRONG = "org/m: the file is cut short"


def shown(*replicas: Replica, members: tuple[Membership, ...] = ()) -> list[str]:
    """The lines on a terminal of 100 columns."""
    device = Device(index=0, kind="cuda", name="card", vram_total_mb=2048)
    circuit = {"state": "closed", "failures": 0, "rests_secs": 0.0, "reason": None}
    models = [{"id": one.model, **attrs.asdict(one), "circuit": circuit} for one in replicas]
    node: dict[str, Any] = {"name": "beast", "endpoint": "http://beast", "healthy": True, "reason": None, "busy": None}
    node["members"] = [attrs.asdict(one) for one in members]
    out = Console(file=io.StringIO(), width=100)
    show_fleet(out, {"nodes": [{**node, "devices": [attrs.asdict(device)], "models": models}], "waiting": {}})
    assert isinstance(out.file, io.StringIO)
    return [line.strip() for line in out.file.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("replica", "status", "below"),
    [
        (Replica(model="m", status="loaded", devices=(0,)), ["loaded", "cuda:0"], []),
        (
            Replica(
                model="m", status="loading", progress=LoadStatus(phase="compile", done=1, total=3, unit="programs")
            ),
            ["loading", "compile", "1/3", "programs", "-"],
            [],
        ),
        (
            Replica(model="org/m", status="failed", last_error=WRONG, servable=False, unservable_detail=WRONG),
            ["failed", "-"],
            [WRONG],
        ),
        (
            Replica(model="m", status="loaded", servable=False, unservable_reason="no_template"),
            ["loaded,", "cannot", "serve", "-"],
            ["m: no_template"],
        ),
        (
            Replica(model="m", status="recovering", last_error="it was killed"),
            ["recovering", "-"],
            ["m: it was killed"],
        ),
    ],
)
def test_trouble_is_told_once_below_the_table(replica: Replica, status: list[str], below: list[str]) -> None:
    """However many fields carry it."""
    lines = shown(replica)
    (place,) = (index for index, line in enumerate(lines) if line.split()[:1] == [replica.model])

    assert lines[place].split()[1 : 1 + len(status)] == status
    assert lines[place + 1 :] == below


@pytest.mark.parametrize(
    ("leads", "line"),
    [
        ("yes", "member of m, led by attic: cuda:0"),
        ("unknown", "member of m, led by attic: cuda:0"),
        ("no", "member of m, led by attic: cuda:0, which is ending"),
    ],
)
def test_what_a_node_lends_is_told(leads: Any, line: str) -> None:
    """With the node to ask about it."""
    assert shown(members=(Membership(model="m", leader="attic", devices=(0,), leads=leads),))[-1] == line


def test_a_leader_shows_the_devices_of_its_whole_group() -> None:
    ranks = (Rank(rank=0, host="beast", devices=(0,)), Rank(rank=1, host="attic", devices=(0, 1)))
    group = Group(model="m", role="leader", leader="beast", tensor_parallel=3, ranks=ranks)
    (line,) = (
        line for line in shown(Replica(model="m", status="loaded", devices=(0,), group=group)) if line.startswith("m ")
    )

    assert "cuda:0, attic:0, attic:1" in line


def test_a_replica_that_rests_says_why() -> None:
    """For how long, and what it failed with; one that is due for a try says that."""

    def line(state: str, rests: float) -> str:
        circuit = {"state": state, "failures": 3, "rests_secs": rests, "reason": "500: out of order"}
        model = {"id": "m", **attrs.asdict(Replica(model="m", status="loaded")), "circuit": circuit}
        node = {"name": "beast", "endpoint": "http://beast", "healthy": True, "doubted": True, "reason": "reset"}
        out = Console(file=io.StringIO(), width=200)
        show_fleet(out, {"nodes": [{**node, "busy": None, "devices": [], "models": [model]}], "waiting": {}})
        assert isinstance(out.file, io.StringIO)
        assert "a request could not reach it: reset" in out.file.getvalue()
        return out.file.getvalue().splitlines()[-1].strip()

    assert line("open", 4.2) == "m: rests for 4 s more after 3 failures in a row (500: out of order)"
    assert line("half_open", 0.0) == (
        "m: rests until the next request tries it after 3 failures in a row (500: out of order)"
    )
