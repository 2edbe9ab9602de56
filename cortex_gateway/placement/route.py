"""Where a request goes: a replica that serves, a load to wait for, a place to load, or why not. Pure."""

from collections.abc import Callable, Collection

from attrs import define, field, frozen

from cortex_gateway.placement import fit, together
from cortex_gateway.placement.decisions import (
    Decision,
    Hold,
    Join,
    Obstacle,
    Placement,
    Policy,
    Recovering,
    Reject,
    Serve,
    Why,
)
from cortex_gateway.placement.room import consider
from cortex_gateway.placement.snapshot import FleetSnapshot, ModelConfig, ModelLoad, Node


@frozen
class Candidate:
    """A replica that serves. `pending`: requests on it, ours counted now and the others as last reported.

    `resting`: it has failed so often that others are asked before it.
    """

    node: str
    pending: int
    load: ModelLoad
    resting: bool = False


Wait = tuple[bool, bool, float]
Consider = Callable[[ModelConfig, Node, Policy], Placement | Obstacle]


@define
class Considered:
    """`consider`, which is not asked again while model and policy are equal and the node is the very same record."""

    asked: int = field(default=0, init=False)  # how often it had to be
    _said: dict[tuple[str, str, bool], tuple[ModelConfig, Node, Policy, Placement | Obstacle]] = field(
        factory=dict, init=False
    )

    def __call__(self, model: ModelConfig, node: Node, policy: Policy) -> Placement | Obstacle:
        key = (model.id, node.name, policy.drain)
        kept = self._said.get(key)
        if kept and kept[1] is node and kept[2] is policy and (kept[0] is model or kept[0] == model):
            return kept[3]
        self.asked += 1
        found = consider(model, node, policy)
        self._said[key] = (model, node, policy, found)
        return found


def route(model: ModelConfig, snapshot: FleetSnapshot, policy: Policy, considering: Consider = consider) -> Decision:
    """Serving replica, else a load under way, else recovery, else a cold load.

    What is on a node that could not be reached is waited for until the node has been looked at: nobody leaves for it.
    """
    hosts = [
        (node, replica)
        for node in snapshot.nodes
        if node.healthy and (policy.only is None or node.name in policy.only) and (replica := node.replica(model.id))
    ]
    serving = [(node.name, replica) for node, replica in hosts if replica.serving and not node.doubted]
    best = least_wait([Candidate(name, replica.pending, replica.load) for name, replica in serving])
    if best is not None:
        return Serve(best)
    for node, replica in hosts:
        if replica.status == "loading":
            return Join(node.name)
    for node, replica in hosts:
        if node.doubted and replica.serving:
            return Hold(f"{node.name} could not be reached by a request and is being looked at")
        if replica.status == "recovering":
            return Recovering(node.name)
    return place(model, snapshot, policy, considering)


def least_wait(candidates: Collection[Candidate]) -> str | None:
    """The node where a new request should end first: well before ailing, a free slot before none, work over speed, name."""
    expected = waits(candidates)
    return min(expected, key=lambda node: (expected[node], node)) if expected else None


def waits(candidates: Collection[Candidate]) -> dict[str, Wait]:
    """How long a new request would wait, by node: whether that is ailing, has no free slot, and its work over its speed.

    Speed counts only where every candidate has measured one: an unmeasured replica is not slow, it is new.
    """
    measured = all(one.load.tok_s_decode > 0 for one in candidates)
    return {
        one.node: (
            one.resting,
            0 < one.load.max_in_flight <= one.pending,
            (one.pending + 1) / (one.load.tok_s_decode if measured else 1.0),
        )
        for one in candidates
    }


def place(model: ModelConfig, snapshot: FleetSnapshot, policy: Policy, considering: Consider = consider) -> Decision:
    """Where to load: room without eviction, then with, then most free memory, then name.

    A model of several hosts is spread over them only where none of them can have it alone.
    """
    options: list[tuple[tuple[bool, int, str], Placement]] = []
    obstacles: list[tuple[Node, Obstacle]] = []
    for node in snapshot.nodes:
        found = considering(model, node, policy)
        if isinstance(found, Placement):
            rank = (bool(found.victims), -fit.free_mb(node), node.name)
            options.append((rank, found))
        else:
            obstacles.append((node, found))
    best = min(options, key=lambda option: option[0])[1] if options else None
    if best and not (best.victims and any(obstacle.why == "doubted" for _, obstacle in obstacles)):
        return best
    if len(model.hosts) > 1 and model.shards > 1:
        spread = together.place(model, snapshot, policy)
        if isinstance(spread, Placement):
            return spread
        obstacles = spread
    return _nowhere(model, obstacles)


def _nowhere(model: ModelConfig, obstacles: list[tuple[Node, Obstacle]]) -> Hold | Reject:
    """The obstacle that says most about what to do: wait, look at the failure, make room, mend a node."""
    told = "; ".join(f"{node.name} {obstacle.reason}" for node, obstacle in obstacles) or "there is no node"
    reason = f"{model.id} cannot be loaded now: {told}."
    kinds = {obstacle.why for _, obstacle in obstacles}
    if kinds & {"busy", "doubted"}:
        return Hold(reason)
    worst: tuple[Why, ...] = ("failed", "full", "down", "never")
    return Reject(next((kind for kind in worst if kind in kinds), "down"), reason)
