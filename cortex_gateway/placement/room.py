"""Whether one node has room for a model, who would have to leave for it, and what is in the way. Pure."""

from attrs import evolve

from cortex_gateway.placement import evict, fit
from cortex_gateway.placement.decisions import Obstacle, Placement, Policy
from cortex_gateway.placement.snapshot import FleetSnapshot, ModelConfig, Node, Replica


def consider(model: ModelConfig, node: Node, policy: Policy) -> Placement | Obstacle:
    """How the model could be loaded on this node now, or what is in the way."""
    needed = fit.need(model, node, policy.knowledge)
    found = _unsuited(model, node, needed, policy) or occupied(model, node) or _room(model, node, needed, policy)
    if isinstance(found, Placement) and found.victims and node.name in policy.sparing:
        return Obstacle(why="failed", reason="has failed to load it a moment ago, for which others had to leave")
    return found


def _unsuited(model: ModelConfig, node: Node, needed: fit.Need, policy: Policy) -> Obstacle | None:
    """Why the node is not to be asked for this model, however much room it has."""
    if policy.only is not None and node.name not in policy.only:
        return Obstacle(why="never", reason=f"is not what was asked for ({', '.join(policy.only)})")
    if policy.offering is not None and node.name not in policy.offering:
        return Obstacle(why="never", reason="does not offer it")
    if not node.healthy:
        offers = "offers it and " if policy.offering is not None else ""
        return Obstacle(why="down", reason=f"{offers}is not healthy ({node.reason or 'not seen yet'})")
    if reason := fit.why_never(model, node, needed):
        return Obstacle(why="never", reason=reason)
    if node.name in policy.excluded:
        return Obstacle(why="failed", reason="has just failed to load it")
    return doubted(node) if node.doubted else None


def doubted(node: Node) -> Obstacle:
    """A look is under way that will tell whether it is up."""
    return Obstacle(why="doubted", reason=f"could not be reached by a request ({node.reason}) and is being looked at")


def occupied(model: ModelConfig, node: Node) -> Obstacle | None:
    """Why nothing can be begun there for this model now."""
    replica = node.replica(model.id)
    if node.busy:
        return Obstacle(why="busy", reason=f"is occupied ({node.busy})")
    if replica and replica.status == "draining":
        return Obstacle(why="busy", reason="is still unloading it")
    if replica and replica.status == "loaded":
        return Obstacle(why="full", reason=f"has it loaded but cannot serve it ({_unservable(replica)})")
    return None


def _room(model: ModelConfig, node: Node, needed: fit.Need, policy: Policy) -> Placement | Obstacle:
    everyone = residents(node, policy, besides=model.id)
    order = evict.ORDERS[policy.strategy]
    idle = [one for one in everyone if not one.busy]
    room = evict.make_room(model, node, needed, order(idle, model.priority))
    if room is None:
        room = evict.make_room(model, node, needed, order(everyone, model.priority))
        if room is None and (lent := passing(node)):
            return lent
        if room is None:
            return Obstacle(why="full", reason=f"has no room: {_shortage(model, node, needed)}")
        if not policy.drain:
            return Obstacle(why="busy", reason="has room only where models are in use")
    named = room.devices if len(node.devices) > needed.shards else ()
    return Placement(node=node.name, devices=named, victims=room.victims)


def passing(node: Node) -> Obstacle | None:
    """Memory that the node will get back by itself: of a group whose leader is lost or has let go of it."""
    over = [member.model for member in node.members if member.leads == "no"]
    return Obstacle(why="busy", reason=f"is getting back what it lent to {', '.join(over)}") if over else None


def vacant(node: Node, policy: Policy, *, besides: str) -> dict[int, int]:
    """MiB that each device would have free if there were nothing on it but the models that we know to be there."""
    left = {device.index: device.vram_total_mb for device in node.devices}
    for replica in node.replicas:
        if not replica.resident or replica.model == besides:
            continue
        size = fit.size(replica, node, policy.knowledge, policy.catalogue.config(replica.model, [replica]))
        for index in set(replica.devices) & left.keys():
            left[index] -= size // replica.spread
    for member in node.members:
        for index in set(member.devices) & left.keys():
            left[index] -= fit.lent_size(member, node) // len(member.devices)
    return left


def without(snapshot: FleetSnapshot, model: str, leader: str) -> FleetSnapshot:
    """The fleet as it will be when the model that this node serves has left it."""
    return evolve(snapshot, nodes=tuple(_vacated(node, model, leader) for node in snapshot.nodes))


def _vacated(node: Node, model: str, leader: str) -> Node:
    back: dict[int, int] = {}
    replica = node.replica(model) if node.name == leader else None
    if replica:
        back = dict.fromkeys(replica.devices, (replica.vram_used_mb or 0) // (replica.spread or 1))
    lent = [one for one in node.members if one.model == model and one.leader == leader]
    for member in lent:
        back |= dict.fromkeys(member.devices, fit.lent_size(member, node) // (len(member.devices) or 1))
    devices = tuple(evolve(one, vram_free_mb=one.vram_free_mb + back.get(one.index, 0)) for one in node.devices)
    replicas = tuple(one for one in node.replicas if one is not replica)
    members = tuple(one for one in node.members if one not in lent)
    return evolve(node, devices=devices, replicas=replicas, members=members)


def residents(node: Node, policy: Policy, *, besides: str | None = None) -> list[evict.ResidentReplica]:
    """Whoever may be asked to leave: loaded and not pinned here. `busy` = it has work in flight.

    What the node lends to a group leaves with the group, which is for its leader to end. A model does not displace itself.
    """
    found = []
    for replica in node.replicas:
        config = policy.catalogue.config(replica.model, [replica])
        if replica.status != "loaded" or replica.beside or node.name in config.pinned_on:
            continue
        found.append(
            evict.ResidentReplica(
                model=replica.model,
                priority=config.priority,
                last_used=replica.last_used,
                size_mb=fit.size(replica, node, policy.knowledge, config),
                busy=replica.pending > 0,
            )
        )
    return found + [one for one in _groups(node, policy) if one.model != besides]


def _groups(node: Node, policy: Policy) -> list[evict.ResidentReplica]:
    led = [member for member in node.members if member.leads == "yes"]
    configs = [(member, policy.catalogue.config(member.model)) for member in led]
    return [
        evict.ResidentReplica(
            model=member.model,
            priority=config.priority,
            last_used=member.last_used,
            size_mb=fit.lent_size(member, node),
            busy=member.pending > 0,
        )
        for member, config in configs
        if member.leader not in config.pinned_on
    ]


def _shortage(model: ModelConfig, node: Node, needed: fit.Need) -> str:
    freest = max((device.vram_free_mb for device in fit.eligible(model, node)), default=0)
    return (
        f"it needs {needed.per_device_mb} MiB on each of {needed.shards} devices, the freest has {freest}, "
        "and what could be evicted is pinned, of higher priority, or too small"
    )


def _unservable(replica: Replica) -> str:
    return replica.unservable_detail or replica.unservable_reason or "it is leaving"
