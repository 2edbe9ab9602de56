"""When a node's engines are started afresh. Pure."""

from cortex_gateway.placement.snapshot import Node


def due(node: Node, *, after_cycles: int) -> tuple[str, ...] | None:
    """The models to restart, in the order to load them again; None = not now.

    After so many unloads (0 = never), and only while the node is healthy, unoccupied and without a request.
    """
    if not after_cycles or node.cycles < after_cycles or not node.healthy or node.doubted or node.busy:
        return None
    held = [replica for replica in node.replicas if replica.resident]
    groups = [replica.group for replica in held if replica.group]
    if node.members or any(len(group.hosts) > 1 for group in groups):  # it is not for one node to restart
        return None
    if any(replica.pending or replica.status != "loaded" for replica in held):
        return None
    by_size = sorted(held, key=lambda replica: (-(replica.vram_used_mb or 0), replica.model))
    return tuple(replica.model for replica in by_size)
