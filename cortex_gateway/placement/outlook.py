"""Where a model could go in the fleet as it is, and who would leave for it, before anything is asked of a node. Pure."""

from typing import Literal

from attrs import evolve, frozen

from cortex_gateway.placement import fit
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.decisions import Decision, Obstacle, Policy
from cortex_gateway.placement.room import consider
from cortex_gateway.placement.snapshot import FleetSnapshot, ModelConfig, Node


@frozen(kw_only=True)
class Prospect:
    """One node. `needs_mb`: MiB on each of `shards` devices, None where nobody knows; the node is asked then, and may refuse.
    No `devices`: it would choose them itself.

    `state`: it serves the model, loads it, has room for it, has room once the `victims` have left, or has none: `reason`.
    Of the victims those `in_use` leave when their last request has ended.
    """

    node: str
    state: Literal["serves", "loading", "room", "evicts", "none"]
    shards: int
    needs_mb: int | None
    devices: tuple[int, ...] = ()
    victims: tuple[str, ...] = ()
    in_use: tuple[str, ...] = ()
    reason: str | None = None


@frozen
class Outlook:
    """What would be decided now, and what each node by itself could do."""

    decision: Decision
    nodes: tuple[Prospect, ...]


def outlook(model: ModelConfig, snapshot: FleetSnapshot, policy: Policy) -> Outlook:
    """Of a load that an operator would ask for."""
    prospects = tuple(_prospect(model, node, policy) for node in snapshot.nodes)
    return Outlook(routing.route(model, snapshot, policy), prospects)


def _prospect(model: ModelConfig, node: Node, policy: Policy) -> Prospect:
    needed = fit.need(model, node, policy.knowledge)
    told = Prospect(node=node.name, state="none", shards=needed.shards, needs_mb=needed.per_device_mb)
    replica = node.replica(model.id) if node.healthy else None
    if replica is not None and replica.serving:
        return evolve(told, state="serves", devices=replica.devices)
    if replica is not None and replica.status == "loading":
        return evolve(told, state="loading", devices=replica.devices)
    found = consider(model, node, policy)
    if isinstance(found, Obstacle):
        return evolve(told, reason=found.reason)
    busy = {one.model for one in node.replicas if one.pending} | {one.model for one in node.members if one.pending}
    return evolve(
        told,
        state="evicts" if found.victims else "room",
        devices=found.devices,
        victims=found.victims,
        in_use=tuple(name for name in found.victims if name in busy),
    )
