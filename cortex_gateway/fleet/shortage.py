"""What follows where a node refuses a load for want of memory: whether that passes by itself, or who has to leave. No I/O."""

import math

from attrs import evolve

from cortex_gateway import errors
from cortex_gateway.fleet.operation import LoadStep
from cortex_gateway.fleet.state import FleetState
from cortex_gateway.placement import room
from cortex_gateway.placement.decisions import Placement
from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.snapshot import Node

NO_ROOM = ("does_not_fit", "insufficient_vram", "out_of_memory")
RETURN_SECS = 10.0
"""A kernel or a driver gives the memory of a process back by and by: so long after an unload a want of it may be only that."""
MIB = 1024 * 1024


def told_by(error: errors.CortexError) -> bool:
    return error.extras.get("kind", error.code) in NO_ROOM


def passes(state: FleetState, step: LoadStep, error: errors.CortexError) -> bool:
    """Something was unloaded a moment ago, and by what is loaded there would be room: that memory is not back yet."""
    spec = step.spec
    freed = max(state.hosts[name].freed_at for name in step.nodes)
    if state.now >= freed + RETURN_SECS:
        return False
    if spec.hosts:  # what lacks room may be any of them
        return True
    node = state.node(state.hosts[step.node])
    needed, _ = corrected(node, spec.tensor_parallel, error)
    policy = state.history.policy_after(spec.model_id, node.name, 0)
    vacant = room.vacant(node, policy, besides=spec.model_id)
    return sum(free >= needed for free in vacant.values()) >= spec.tensor_parallel


def room_after(state: FleetState, step: LoadStep, error: errors.CortexError) -> Placement | None:
    """Who has to leave by the node's own numbers; at least one model, for ours said that it fitted."""
    spec, host = step.spec, state.hosts[step.node]
    if spec.hosts:  # what lacks room may be any of them
        return None
    model = state.history.model(spec.model_id, [host], LoadOptions(tensor_parallel=spec.tensor_parallel))
    needed, node = corrected(evolve(state.node(host), busy=None), model.shards, error)
    policy = state.history.policy_after(model.id, node.name, needed * model.shards)
    found = room.consider(model, node, policy)
    return found if isinstance(found, Placement) else None


def corrected(node: Node, shards: int, error: errors.CortexError) -> tuple[int, Node]:
    """What a node that has refused for want of memory needs on each device, MiB, and the node with less free than that.

    Our last look may be older than what has taken the memory since; the node's own numbers go before it.
    """
    freest = sorted(node.devices, key=lambda device: -device.vram_free_mb)[:shards]
    told = math.ceil(demand(error) / shards)
    most = min((device.vram_total_mb for device in freest), default=0)
    needed = told or min(most, 1 + min((device.vram_free_mb for device in freest), default=0))
    free = error.extras.get("free_mb")
    cap = min(free // shards if isinstance(free, int) else needed, needed - 1)
    devices = tuple(evolve(device, vram_free_mb=min(device.vram_free_mb, cap)) for device in node.devices)
    return needed, evolve(node, devices=devices)


def demand(error: errors.CortexError) -> int:
    """MiB that the node says the model takes in all; 0 where it does not say."""
    plan = error.extras.get("plan")
    rows = plan if isinstance(plan, list) else []
    total = sum(row["bytes"] for row in rows if isinstance(row, dict) and isinstance(row.get("bytes"), int))
    required = error.extras.get("required_mb")
    return required if isinstance(required, int) else math.ceil(total / MIB)
