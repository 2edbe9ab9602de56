"""Who may use how much of which device: grants to engines and what is left; arithmetic, must not know processes or HTTP.

All numbers are MiB. What is left of a device is what nobody was granted, nobody else uses, and nobody wants kept free:

    left = total - granted - others' use - floor,   others' use = used - what our engines use

What an engine uses is measured where the driver tells, else it is taken to use all that it planned from the moment it
serves. CPU devices share one memory, so an engine on two of them takes its grant twice from the same.
"""

from collections.abc import Iterable, Mapping, Sequence

from attrs import frozen

from neuron_jax.errors import LoadError

WORTH_IT = 64
"""MiB. Less than this is not suggested to anybody."""


@frozen
class MemoryGrant:
    """What the engine `holder` may use on each of `devices`.

    `pids` of its processes and `planned`, what its plan says it will use there, are known once it serves. Before that a grant
    of all there was is not `settled`: others wait for what it leaves.
    """

    holder: str
    model: str
    devices: tuple[int, ...]
    mb: int
    settled: bool
    pids: tuple[int, ...] = ()
    planned: int = 0


@frozen
class MemoryRequest:
    """What an engine asks for on each of `devices`; `mb` 0 = all that is left, shared with as many as `sharers` say.

    `sharers`: engines of the model that have the same memory and come one after the other, this one among them.
    """

    holder: str
    model: str
    devices: tuple[int, ...]
    mb: int = 0
    sharers: int = 1


@frozen
class DeviceMemory:
    """One device's memory: of `total`, `free` is used by nobody now."""

    total: int
    free: int


@frozen
class Picture:
    """The devices at one moment. `used`: (device, pid) → MiB, as measured; `shared`: all devices are one memory.

    `floor` is kept free on each device. `usable`: the part of what is left that an allocator can make use of.
    """

    memories: Mapping[int, DeviceMemory]
    used: Mapping[tuple[int, int], int]
    floor: int = 0
    shared: bool = False
    usable: float = 1.0


@frozen
class Shortage:
    """A device has less free memory than the engines on it still need. MiB."""

    device: int
    free: int
    required: int


def grant(request: MemoryRequest, picture: Picture, grants: Iterable[MemoryGrant]) -> MemoryGrant:
    """What `request` gets beside `grants`. Raises LoadError does_not_fit, with a table of who has what."""
    others = [one for one in grants if one.holder != request.holder]
    device = min(request.devices, key=lambda index: left(index, picture, others))
    share = left(device, picture, others) // _copies(request.devices, picture)
    if request.mb > share:
        raise _refusal(request, device, share, picture, others)
    if request.mb:
        return MemoryGrant(request.holder, request.model, request.devices, request.mb, settled=True)
    siblings = sum(one.model == request.model and _same_memory(one, request, picture) for one in others)
    all_left = int(share * picture.usable) // max(1, request.sharers - siblings)
    if all_left < 1:
        raise _refusal(request, device, share, picture, others)
    return MemoryGrant(request.holder, request.model, request.devices, all_left, settled=False)


def waits(request: MemoryRequest, picture: Picture, grants: Iterable[MemoryGrant]) -> bool:
    """True while another model's engine holds all there was of the same memory, and has not said what it leaves."""
    held = {one.holder: one for one in grants}
    if request.holder in held:  # it starts again in what it has
        return False
    return any(
        not one.settled and one.model != request.model and _same_memory(one, request, picture) for one in held.values()
    )


def left(device: int, picture: Picture, grants: Sequence[MemoryGrant]) -> int:
    """What a new engine may get of `device`; may be negative."""
    granted = sum(_weight(one, device, picture) for one in grants)
    return picture.memories[device].total - granted - foreign(device, picture, grants) - picture.floor


def foreign(device: int, picture: Picture, grants: Iterable[MemoryGrant]) -> int:
    """What other programs use of `device`."""
    memory = picture.memories[device]
    return max(0, memory.total - memory.free - sum(_used(one, device, picture) for one in grants))


def measured(grant: MemoryGrant, picture: Picture) -> int | None:
    """What the engine really uses over all its devices; None where nobody tells."""
    if not grant.pids:
        return None
    devices = grant.devices[:1] if picture.shared else grant.devices
    found = [used_of(grant, device, picture) for device in devices]
    return None if None in found else sum(mb for mb in found if mb is not None)


def shortage(grant: MemoryGrant, picture: Picture, before: Shortage | None) -> Shortage | None:
    """The device on which the engine cannot end what it would begin now, if there is one.

    `before`: what was said last time. Who was short stays so until there is a quarter of the floor more than enough.
    """
    if not picture.floor or not grant.pids:
        return None
    slack = picture.floor // 4 if before else 0
    for device in grant.devices:
        if device not in picture.memories:
            continue
        required = picture.floor + _needs(grant, device, picture)
        if picture.memories[device].free < required + slack:
            return Shortage(device, picture.memories[device].free, required)
    return None


def _needs(grant: MemoryGrant, device: int, picture: Picture) -> int:
    """What the engine has planned and does not use yet; nothing where its use is not known."""
    used = used_of(grant, device, picture)
    planned = grant.planned * _copies(grant.devices, picture)
    return 0 if used is None else max(0, planned - used)


def _copies(devices: Sequence[int], picture: Picture) -> int:
    """How often a grant counts against one memory."""
    return len(devices) if picture.shared else 1


def _weight(grant: MemoryGrant, device: int, picture: Picture) -> int:
    """What the grant takes of `device`."""
    return grant.mb * _copies(grant.devices, picture) if picture.shared or device in grant.devices else 0


def _used(grant: MemoryGrant, device: int, picture: Picture) -> int:
    if not grant.pids:
        return 0
    planned = min(_weight(grant, device, picture), grant.planned * _copies(grant.devices, picture))
    seen = used_of(grant, device, picture)
    return planned if seen is None else seen


def used_of(grant: MemoryGrant, device: int, picture: Picture) -> int | None:
    """What the engine's processes use of `device`, of those that are told of; None where none is."""
    found = [picture.used[device, pid] for pid in grant.pids if (device, pid) in picture.used]
    return sum(found) if found else None


def _same_memory(grant: MemoryGrant, request: MemoryRequest, picture: Picture) -> bool:
    return picture.shared or bool(set(grant.devices) & set(request.devices))


def _refusal(
    request: MemoryRequest, device: int, share: int, picture: Picture, others: Sequence[MemoryGrant]
) -> LoadError:
    copies = _copies(request.devices, picture)
    holders = {one.holder: mb for one in others if (mb := _weight(one, device, picture))}
    rows = {**holders, "other programs": foreign(device, picture, others), "kept free": picture.floor}
    table = ", ".join(f"{what} {mb} MiB" for what, mb in rows.items() if mb)
    asked = f"{request.mb * copies} MiB" if request.mb else "a share"
    what = "the host's memory" if picture.shared else f"device {device}"
    message = (
        f"{request.holder} asks for {asked} of {what}, which has {picture.memories[device].total} MiB: {table}. "
        + _suggestion(request, share, copies, holders)
    )
    plan = [{"what": what, "bytes": mb << 20} for what, mb in rows.items() if mb]
    required = {"required_mb": request.mb * len(request.devices)} if request.mb else {}
    return LoadError("does_not_fit", message, {"plan": plan, "free_mb": max(0, share * copies), **required})


def _suggestion(request: MemoryRequest, share: int, copies: int, holders: Mapping[str, int]) -> str:
    """The smallest change with which it fits: a smaller share, else the smallest engine that has to go, else more memory."""
    if request.mb and share >= WORTH_IT:
        return f"memory_mb = {share} fits"
    missing = (max(request.mb, WORTH_IT) - share) * copies
    enough = [(mb, holder) for holder, mb in holders.items() if mb >= missing]
    if enough:
        return f"It fits when {min(enough)[1]} is unloaded"
    return f"{missing} MiB more have to be free"
