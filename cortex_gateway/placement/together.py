"""How a model that no host can have alone is spread over several: who leads, who lends, who leaves for it. Pure."""

from collections.abc import Iterable

from attrs import evolve, field, frozen

from cortex_gateway.placement import evict, fit
from cortex_gateway.placement.decisions import Lender, Obstacle, Placement, Policy
from cortex_gateway.placement.room import doubted, occupied, passing, residents
from cortex_gateway.placement.snapshot import FleetSnapshot, ModelConfig, Node

Obstacles = list[tuple[Node, Obstacle]]
Shares = list[tuple[Node, evict.Room]]

NOBODY, IDLE, ANYBODY = 0, 1, 2
"""Who may be asked to leave."""


@frozen
class Hosts:
    """The hosts of one model that could take part now, in the operator's order of preference."""

    model: ModelConfig
    policy: Policy
    able: list[Node] = field(factory=list)

    def share(self, node: Node, most: int, leave: int) -> evict.Room | None:
        """Up to `most` devices of the node, and who must leave for them; None where it has none to give."""
        needed = fit.need(self.model, node, self.policy.knowledge)
        everyone = residents(node, self.policy, besides=self.model.id) if leave else []
        order = evict.ORDERS[self.policy.strategy](
            [one for one in everyone if leave == ANYBODY or not one.busy], self.model.priority
        )
        for count in range(min(most, len(fit.roomy(self.model, node, needed))), 0, -1):
            room = evict.make_room(self.model, node, evolve(needed, shards=count), order)
            if room is not None:
                return room
        return None

    def shares(self, nodes: Iterable[Node], leave: int) -> Shares | None:
        """Enough devices, of the first node as many as it has; None where there are not enough, or the first has none."""
        missing, found = self.model.shards, []
        for place, node in enumerate(nodes):
            room = self.share(node, missing, leave) if missing else None
            if room is not None:
                missing -= len(room.devices)
                found.append((node, room))
            elif place == 0:
                return None
        return None if missing else found

    def led_by(self, leader: Node, leave: int) -> Shares | None:
        """The first group of this leader that has not just failed together: with all others, or with all but one."""
        others = [node for node in self.able if node is not leader]
        for left_out in [None, *others]:
            shares = self.shares([leader, *(node for node in others if node is not left_out)], leave)
            if shares and frozenset(node.name for node, _ in shares) not in self.policy.apart:
                return shares
        return None

    def may_lead(self, node: Node) -> bool:
        pinned, only = self.model.pinned_on, self.policy.only
        named = only is None or node.name in only
        return named and (not pinned or node.name in pinned) and node.name not in self.policy.excluded

    def best(self, leave: int) -> Placement | None:
        """Led by the host with the most free memory that can lead."""
        for leader in sorted(filter(self.may_lead, self.able), key=lambda node: (-fit.free_mb(node), node.name)):
            shares = self.led_by(leader, leave)
            if shares:
                (_, own), *lent = shares
                lenders = tuple(Lender(node=node.name, victims=room.victims) for node, room in lent)
                return Placement(node=leader.name, devices=(), victims=own.victims, lenders=lenders)
        return None


def place(model: ModelConfig, snapshot: FleetSnapshot, policy: Policy) -> Placement | Obstacles:
    """A leader and its lenders, without eviction where that is possible; else what is in the way on each node."""
    obstacles: Obstacles = []
    able: list[Node] = []
    for node in sorted(snapshot.nodes, key=lambda node: _preference(model, node)):
        obstacle = _unable(model, node)
        if obstacle:
            obstacles.append((node, obstacle))
        else:
            able.append(node)
    hosts = Hosts(model, policy, able)
    found = hosts.best(NOBODY)
    if not found and not any(obstacle.why == "doubted" for _, obstacle in obstacles):
        found = hosts.best(IDLE) or (hosts.best(ANYBODY) if policy.drain else None)
    return found or [*((node, _obstacle(hosts, node)) for node in able), *obstacles]


def _preference(model: ModelConfig, node: Node) -> int:
    return model.hosts.index(node.name) if node.name in model.hosts else len(model.hosts)


def _unable(model: ModelConfig, node: Node) -> Obstacle | None:
    """Why the node can take no part in it now."""
    if node.name not in model.hosts:
        return Obstacle(why="never", reason=f"is not one of its hosts ({', '.join(model.hosts)})")
    if not node.healthy:
        return Obstacle(why="down", reason=f"is not healthy ({node.reason or 'not seen yet'})")
    if model.harness not in node.harnesses:
        return Obstacle(why="never", reason=f"does not offer the harness {model.harness!r}")
    if node.doubted:
        return doubted(node)
    return occupied(model, node)


def _obstacle(hosts: Hosts, node: Node) -> Obstacle:
    """What keeps a host that could take part from being enough, together with the others that could."""
    model, policy = hosts.model, hosts.policy
    needed = fit.need(model, node, policy.knowledge)
    each = f" with {needed.per_device_mb} MiB each" if needed.per_device_mb else ""
    if sum(len(fit.roomy(model, one, needed)) for one in hosts.able) < model.shards:
        count = len(fit.roomy(model, node, needed))
        return Obstacle(why="never", reason=f"has {count} of the {model.shards} devices{each} that it needs")
    if lent := passing(node):
        return lent
    if hosts.best(ANYBODY):
        return Obstacle(why="busy", reason="has room only where models are in use")
    if not any(
        hosts.shares([one, *(other for other in hosts.able if other is not one)], ANYBODY) for one in hosts.able
    ):
        room = hosts.share(node, model.shards, ANYBODY)
        free = len(room.devices) if room else 0
        return Obstacle(why="full", reason=f"has room on {free} of the {model.shards} devices{each} that it needs")
    if any(node.name in apart for apart in policy.apart) or node.name in policy.excluded:
        return Obstacle(why="failed", reason="has just failed to serve it together with other hosts")
    return Obstacle(why="never", reason="may not lead it")
