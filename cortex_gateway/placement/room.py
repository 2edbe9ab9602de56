"""Whether one node has room for a model, who would have to leave for it, and what is in the way. Pure."""

from cortex_gateway.placement import evict, fit
from cortex_gateway.placement.decisions import Obstacle, Place, Policy
from cortex_gateway.placement.snapshot import ModelConfig, Node, Replica


def consider(model: ModelConfig, node: Node, policy: Policy) -> Place | Obstacle:
    """How the model could be loaded on this node now, or what is in the way."""
    needed = fit.need(model, node, policy.knowledge)
    if policy.only not in (None, node.name):
        return Obstacle(why="never", reason="is not the node that was asked for")
    if not node.healthy:
        return Obstacle(why="down", reason=f"is not healthy ({node.reason or 'not seen yet'})")
    if reason := fit.why_never(model, node, needed):
        return Obstacle(why="never", reason=reason)
    if node.name in policy.excluded:
        return Obstacle(why="failed", reason="has just failed to load it")
    if node.doubted:
        return doubted(node)
    return occupied(model, node) or _room(model, node, needed, policy)


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


def _room(model: ModelConfig, node: Node, needed: fit.Need, policy: Policy) -> Place | Obstacle:
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
    return Place(node=node.name, devices=named, victims=room.victims)


def passing(node: Node) -> Obstacle | None:
    """Memory that the node will get back by itself: of a group whose leader is lost or has let go of it."""
    over = [member.model for member in node.members if member.leads == "no"]
    return Obstacle(why="busy", reason=f"is getting back what it lent to {', '.join(over)}") if over else None


def residents(node: Node, policy: Policy, *, besides: str | None = None) -> list[evict.Resident]:
    """Whoever may be asked to leave: loaded and not pinned here. `busy` = it has work in flight.

    What the node lends to a group leaves with the group, which is for its leader to end. A model does not displace itself.
    """
    found = []
    for replica in node.replicas:
        config = policy.catalogue.config(replica.model, [replica])
        if replica.status != "loaded" or node.name in config.pinned_on:
            continue
        found.append(
            evict.Resident(
                model=replica.model,
                priority=config.priority,
                last_used=replica.last_used,
                size_mb=fit.size(replica, node, policy.knowledge, config),
                busy=replica.pending > 0,
            )
        )
    return found + [one for one in _groups(node, policy) if one.model != besides]


def _groups(node: Node, policy: Policy) -> list[evict.Resident]:
    led = [member for member in node.members if member.leads == "yes"]
    configs = [(member, policy.catalogue.config(member.model)) for member in led]
    return [
        evict.Resident(
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
