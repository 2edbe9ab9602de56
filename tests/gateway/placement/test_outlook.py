"""What `cortex plan` says of a fleet: where a model could go, who would leave for it, and what is in the way."""

from typing import Any

from attrs import evolve

from cortex_gateway.placement.decisions import Placement, Policy, Reject, Serve
from cortex_gateway.placement.outlook import Outlook, Prospect, outlook
from cortex_gateway.placement.snapshot import Device, FleetSnapshot, ModelConfig, Node, Replica

MODEL = ModelConfig(id="m", vram_mb=6000)


def node(name: str, *free: int, **more: Any) -> Node:
    devices = tuple(
        Device(index=index, vram_total_mb=8000, vram_free_mb=mb, vram_used_mb=8000 - mb)
        for index, mb in enumerate(free)
    )
    return Node(**{"name": name, "endpoint": f"http://{name}", "healthy": True, "devices": devices, **more})


def held(model: str, mb: int, **more: Any) -> Replica:
    return Replica(model=model, status="loaded", devices=(0,), vram_used_mb=mb, **more)


def of(*nodes: Node, model: ModelConfig = MODEL) -> Outlook:
    return outlook(model, FleetSnapshot(nodes=nodes), Policy(drain=True))


def test_each_node_says_what_it_could() -> None:
    full = node("full", 1000, replicas=(held("idle", 3000), held("used", 4000, in_flight=1)))
    found = of(node("roomy", 100, 7000), full, node("small", 2000), node("down", 8000, healthy=False, reason="off"))
    roomy, evicts, small, down = found.nodes

    assert found.decision == Placement(node="roomy", devices=(1,))
    assert roomy == Prospect(node="roomy", state="room", shards=1, needs_mb=6000, devices=(1,))
    assert evicts.state == "evicts"
    assert (set(evicts.victims), evicts.in_use) == ({"idle", "used"}, ("used",))
    assert small.state == down.state == "none"
    assert small.reason is not None
    assert "it needs 6000 MiB on each of 1 devices, the freest has 2000" in small.reason
    assert down.reason == "is not healthy (off)"


def test_where_it_serves_already() -> None:
    found = of(node("a", 1000, replicas=(held("m", 6000),)), node("b", 7000))

    assert found.decision == Serve("a")
    assert [one.state for one in found.nodes] == ["serves", "room"]


def test_what_no_node_can_have() -> None:
    found = of(node("a", 8000), model=evolve(MODEL, vram_mb=9000))

    assert isinstance(found.decision, Reject)
    assert found.nodes[0].reason == "needs 9000 MiB on each of 1, its largest device has 8000"
