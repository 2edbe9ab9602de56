"""Where a request goes: a replica that serves, a load to wait for, a place to load, or why not. Pure."""

from collections.abc import Collection
from typing import Literal

from attrs import field, frozen

from cortex_gateway.placement import evict, fit
from cortex_gateway.placement.catalogue import Catalogue
from cortex_gateway.placement.snapshot import FleetSnapshot, ModelConfig, ModelLoad, Node, Replica

Why = Literal["down", "never", "failed", "busy", "full"]


@frozen
class Serve:
    """Send it to this node."""

    node: str


@frozen
class Join:
    """It is being loaded there: wait for that load."""

    node: str


@frozen
class Recovering:
    """Its engine is coming back there by itself."""

    node: str


@frozen(kw_only=True)
class Place:
    """Load it there, on these devices (empty = the node's own choice), after the victims have left."""

    node: str
    devices: tuple[int, ...]
    victims: tuple[str, ...] = ()


@frozen
class Hold:
    """Nowhere yet, but what is in the way will pass."""

    reason: str


@frozen
class Reject:
    """Nowhere, and waiting would not help."""

    why: Why
    reason: str


Decision = Serve | Join | Recovering | Place | Hold | Reject


@frozen(kw_only=True)
class Policy:
    """What decisions depend on besides the snapshot."""

    catalogue: Catalogue = field(factory=Catalogue)
    strategy: Literal["lru", "priority"] = "lru"
    knowledge: fit.Knowledge = field(factory=fit.Knowledge)
    excluded: Collection[str] = field(factory=frozenset)  # nodes where this model has just failed to load
    only: str | None = None  # the one node that the operator named
    drain: bool = False  # the wait was long: a model in use may be drained, and leaves when its last request ends


@frozen
class Candidate:
    """A replica that serves. `pending`: requests on it, ours counted now and the others as last reported."""

    node: str
    pending: int
    load: ModelLoad


@frozen(kw_only=True)
class Obstacle:
    why: Why
    reason: str


def route(model: ModelConfig, snapshot: FleetSnapshot, policy: Policy) -> Decision:
    """Serving replica, else a load under way, else recovery, else a cold load."""
    hosts = [
        (node, replica)
        for node in snapshot.nodes
        if node.healthy and policy.only in (None, node.name) and (replica := node.replica(model.id))
    ]
    serving = [(node.name, replica) for node, replica in hosts if replica.serving]
    best = least_wait([Candidate(name, replica.pending, replica.load) for name, replica in serving])
    if best is not None:
        return Serve(best)
    for node, replica in hosts:
        if replica.status == "loading":
            return Join(node.name)
    for node, replica in hosts:
        if replica.status == "recovering":
            return Recovering(node.name)
    return place(model, snapshot, policy)


def least_wait(candidates: Collection[Candidate]) -> str | None:
    """The node where a new request should end first: a free seat before none, then work over speed, then name.

    Speed counts only where every candidate has measured one: an unmeasured replica is not slow, it is new.
    """
    measured = all(one.load.tok_s_decode > 0 for one in candidates)

    def wait(one: Candidate) -> tuple[bool, float, str]:
        queued = 0 < one.load.max_in_flight <= one.pending
        return queued, (one.pending + 1) / (one.load.tok_s_decode if measured else 1.0), one.node

    return min(candidates, key=wait).node if candidates else None


def place(model: ModelConfig, snapshot: FleetSnapshot, policy: Policy) -> Decision:
    """Where to load: pinned first, then room without eviction, then with, then most free memory, then name."""
    options: list[tuple[tuple[bool, bool, int, str], Place]] = []
    obstacles: list[tuple[Node, Obstacle]] = []
    for node in snapshot.nodes:
        found = consider(model, node, policy)
        if isinstance(found, Place):
            rank = (node.name not in model.pinned_on, bool(found.victims), -fit.free_mb(node), node.name)
            options.append((rank, found))
        else:
            obstacles.append((node, found))
    if options:
        return min(options, key=lambda option: option[0])[1]
    return _nowhere(model, obstacles)


def consider(model: ModelConfig, node: Node, policy: Policy) -> Place | Obstacle:
    """How the model could be loaded on this node now, or what is in the way."""
    needed = fit.need(model, node, policy.knowledge)
    if policy.only not in (None, node.name):
        return Obstacle(why="never", reason="is not the node that was asked for")
    if not node.healthy:
        return Obstacle(why="down", reason=f"is not healthy ({node.reason or 'not seen yet'})")
    if reason := fit.why_never(model, node, needed):
        return Obstacle(why="never", reason=reason)
    return _occupied(node, node.replica(model.id), policy) or _room(model, node, needed, policy)


def _occupied(node: Node, replica: Replica | None, policy: Policy) -> Obstacle | None:
    if node.name in policy.excluded:
        return Obstacle(why="failed", reason="has just failed to load it")
    if node.busy:
        return Obstacle(why="busy", reason=f"is occupied ({node.busy})")
    if replica and replica.status == "draining":
        return Obstacle(why="busy", reason="is still unloading it")
    if replica and replica.status == "loaded":
        return Obstacle(why="full", reason=f"has it loaded but cannot serve it ({_unservable(replica)})")
    return None


def _room(model: ModelConfig, node: Node, needed: fit.Need, policy: Policy) -> Place | Obstacle:
    everyone = residents(node, policy)
    order = evict.ORDERS[policy.strategy]
    idle = [one for one in everyone if not one.busy]
    room = evict.make_room(model, node, needed, order(idle, model.priority))
    if room is None:
        room = evict.make_room(model, node, needed, order(everyone, model.priority))
        if room is None:
            return Obstacle(why="full", reason=f"has no room: {_shortage(model, node, needed)}")
        if not policy.drain:
            return Obstacle(why="busy", reason="has room only where models are in use")
    named = room.devices if len(node.devices) > needed.shards else ()
    return Place(node=node.name, devices=named, victims=room.victims)


def residents(node: Node, policy: Policy) -> list[evict.Resident]:
    """Whoever may be asked to leave: loaded and not pinned here. `busy` = it has work in flight."""
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
    return found


def _shortage(model: ModelConfig, node: Node, needed: fit.Need) -> str:
    freest = max((device.vram_free_mb for device in fit.eligible(model, node)), default=0)
    return (
        f"it needs {needed.per_device_mb} MiB on each of {needed.shards} devices, the freest has {freest}, "
        "and what could be evicted is pinned, of higher priority, or too small"
    )


def _unservable(replica: Replica) -> str:
    return replica.unservable_detail or replica.unservable_reason or "it is leaving"


def _nowhere(model: ModelConfig, obstacles: list[tuple[Node, Obstacle]]) -> Hold | Reject:
    """The obstacle that says most about what to do: wait, look at the failure, make room, mend a node."""
    told = "; ".join(f"{node.name} {obstacle.reason}" for node, obstacle in obstacles) or "there is no node"
    reason = f"{model.id} cannot be loaded now: {told}."
    kinds = {obstacle.why for _, obstacle in obstacles}
    if "busy" in kinds:
        return Hold(reason)
    worst: tuple[Why, ...] = ("failed", "full", "down", "never")
    return Reject(next((kind for kind in worst if kind in kinds), "down"), reason)
