"""Who leaves when a model does not fit: two orders, one search. Pure."""

from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

from cortex_gateway.placement import fit
from cortex_gateway.placement.snapshot import ModelConfig, Node

MOST_EVICTIONS = 3


@frozen(kw_only=True)
class ResidentReplica:
    """A replica that holds memory, as the two orders see it. `last_used` in seconds; larger is later."""

    model: str
    priority: int
    last_used: float
    size_mb: int
    busy: bool = False


@frozen(kw_only=True)
class Room:
    """The devices to load on, once `victims` have left."""

    devices: tuple[int, ...]
    victims: tuple[str, ...] = ()


Order = Callable[[Iterable[ResidentReplica], int], list[ResidentReplica]]


def lru(residents: Iterable[ResidentReplica], incoming: int) -> list[ResidentReplica]:  # noqa: ARG001 -- this order ignores priorities
    """Least recently used first; anybody may displace anybody."""
    return sorted(residents, key=lambda one: (one.last_used, one.model))


def priority(residents: Iterable[ResidentReplica], incoming: int) -> list[ResidentReplica]:
    """Lowest priority first, then least recently used; nobody displaces a higher priority than its own."""
    outranked = [one for one in residents if incoming >= one.priority]
    return sorted(outranked, key=lambda one: (one.priority, one.last_used, one.model))


ORDERS: Mapping[str, Order] = {"lru": lru, "priority": priority}


def make_room(model: ModelConfig, node: Node, needed: fit.Need, order: list[ResidentReplica]) -> Room | None:
    """The shortest head of `order`, at most MOST_EVICTIONS of those that matter, that makes room; None if none does."""
    sizes = {one.model: one.size_mb for one in order}
    for count in range(len(order) + 1):
        going = {one.model for one in order[:count]}
        if fit.devices_for(model, node, needed, without=going, sizes=sizes) is not None:
            return _without_bystanders(model, node, needed, order[:count])
    return None


def _without_bystanders(model: ModelConfig, node: Node, needed: fit.Need, going: list[ResidentReplica]) -> Room | None:
    """Spare whoever need not leave, the most valuable first: a victim on another device frees nothing."""
    sizes = {one.model: one.size_mb for one in going}
    names = [one.model for one in going]
    for name in reversed(list(names)):
        spared = [other for other in names if other != name]
        if fit.devices_for(model, node, needed, without=spared, sizes=sizes) is not None:
            names = spared
    devices = fit.devices_for(model, node, needed, without=names, sizes=sizes)
    assert devices is not None, "sparing a victim is undone where it is missed"
    return Room(devices=devices, victims=tuple(names)) if len(names) <= MOST_EVICTIONS else None
