"""Whether a model fits on a node, and on which of its devices. MiB everywhere. Pure."""

import math
from collections.abc import Collection, Mapping

from attrs import field, frozen

from cortex_gateway.placement.snapshot import Device, Membership, ModelConfig, Node, Replica

Sizes = Mapping[tuple[str, str], int]
"""(model, node) -> MiB of the whole model."""


@frozen(kw_only=True)
class Knowledge:
    """What nodes have taught about footprints: measured while loaded, and asked for by a node that refused."""

    measured: Sizes = field(factory=dict)
    demanded: Sizes = field(factory=dict)


@frozen(kw_only=True)
class Need:
    """`per_device_mb` None = nobody knows: the node is asked and may refuse. `proven`: it has run on this very node."""

    shards: int
    per_device_mb: int | None
    proven: bool = False


def need(model: ModelConfig, node: Node, knowledge: Knowledge = Knowledge()) -> Need:
    """What the model takes on each of its devices there. Nearest to the truth wins; the operator's guess comes last."""
    here = (model.id, node.name)
    replica = node.replica(model.id)
    measured = knowledge.measured.get(here)
    elsewhere = [size for (name, _), size in knowledge.measured.items() if name == model.id]
    estimate = replica.vram_estimate_mb if replica else None
    whole = knowledge.demanded.get(here) or measured or max(elsewhere, default=None) or estimate or model.vram_mb
    return Need(
        shards=model.shards,
        per_device_mb=math.ceil(whole / model.shards) if whole else None,
        proven=measured is not None and here not in knowledge.demanded,
    )


def why_never(model: ModelConfig, node: Node, needed: Need) -> str | None:
    """Why this node could not hold the model even if it were empty; None if it could. An unseen node has no devices."""
    for names, what in ((model.pinned_on, "the nodes it is pinned on"), (model.hosts, "its hosts")):
        if names and node.name not in names:
            return f"is not one of {what} ({', '.join(names)})"
    if model.harness not in node.harnesses:
        return f"does not offer the harness {model.harness!r} (it offers {', '.join(node.harnesses) or 'none'})"
    wanted = max(model.min_devices, needed.shards)
    suited = eligible(model, node)
    if len(suited) < wanted:
        least = f" with {model.min_device_vram_mb} MiB" if model.min_device_vram_mb else ""
        return f"has {len(suited)} of the {wanted} devices{least} that it needs"
    if needed.per_device_mb is None or needed.proven:
        return None
    roomy = [device for device in suited if device.vram_total_mb >= needed.per_device_mb]
    if len(roomy) < needed.shards:
        largest = max(device.vram_total_mb for device in suited)
        return f"needs {needed.per_device_mb} MiB on each of {needed.shards}, its largest device has {largest}"
    return None


def could_lead(model: ModelConfig, node: Node, nodes: Collection[Node]) -> bool:
    """Whether the model could ever run there, alone or with what the other hosts of the model lend."""
    needed = need(model, node)
    if why_never(model, node, needed) is None:
        return True
    if node.name not in model.hosts or (model.pinned_on and node.name not in model.pinned_on):
        return False
    hosts = [one for one in nodes if one.name in model.hosts and model.harness in one.harnesses]
    fitting = sum(len(roomy(model, one, needed)) for one in hosts)
    return fitting >= max(model.min_devices, needed.shards) and bool(roomy(model, node, needed))


def roomy(model: ModelConfig, node: Node, needed: Need) -> tuple[Device, ...]:
    """The devices that are large enough for one part of the model."""
    least = 0 if needed.proven else needed.per_device_mb or 0
    return tuple(device for device in eligible(model, node) if device.vram_total_mb >= least)


def eligible(model: ModelConfig, node: Node) -> tuple[Device, ...]:
    """The devices that are big enough for the operator's floor."""
    return tuple(device for device in node.devices if device.vram_total_mb >= model.min_device_vram_mb)


def devices_for(
    model: ModelConfig,
    node: Node,
    needed: Need,
    *,
    without: Collection[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> tuple[int, ...] | None:
    """The freest devices that hold the model once the replicas `without` are gone, ascending; None if they do not.

    `sizes`: MiB of each replica that may go.
    """
    free = {
        device.index: device.vram_free_mb + _freed(node, device.index, without, sizes or {}) for device in node.devices
    }
    ranked = sorted((device.index for device in eligible(model, node)), key=lambda index: (-free[index], index))
    chosen = tuple(sorted(ranked[: needed.shards]))
    if len(chosen) < needed.shards:
        return None
    if needed.per_device_mb is None or all(free[index] >= needed.per_device_mb for index in chosen):
        return chosen
    return chosen if needed.proven and not _left(node, chosen, without) else None


def size(replica: Replica, node: Node, knowledge: Knowledge, config: ModelConfig) -> int:
    """MiB that come back when the replica leaves, as well as anybody knows; failing that, all its devices have in use."""
    learned = knowledge.measured.get((replica.model, node.name))
    known = replica.vram_used_mb or learned or replica.vram_estimate_mb or config.vram_mb
    return known or sum(device.vram_used_mb for device in node.devices if device.index in replica.devices)


def lent_size(member: Membership, node: Node) -> int:
    """MiB that come back on this node when the group that it lends to ends."""
    if member.device_mb is not None:
        return member.device_mb * len(member.devices)
    return sum(device.vram_used_mb for device in node.devices if device.index in member.devices)


def free_mb(node: Node) -> int:
    return sum(device.vram_free_mb for device in node.devices)


def _freed(node: Node, index: int, without: Collection[str], sizes: Mapping[str, int]) -> int:
    leaving = [replica for replica in node.replicas if replica.model in without and index in replica.devices]
    back = sum(sizes.get(replica.model, 0) // replica.spread for replica in leaving)
    lent = [member for member in node.members if member.model in without and index in member.devices]
    return back + sum(sizes.get(member.model, 0) // len(member.devices) for member in lent)


def _left(node: Node, chosen: tuple[int, ...], without: Collection[str]) -> bool:
    """Somebody else would still hold memory on the chosen devices."""
    staying = [replica.devices for replica in node.replicas if replica.resident and replica.model not in without]
    staying += [member.devices for member in node.members if member.model not in without]
    return any(set(devices) & set(chosen) for devices in staying)
