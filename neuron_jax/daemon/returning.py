"""Device memory that engines which have ended still hold; arithmetic, must not know clocks, processes or HTTP.

A process is gone before its memory is: the kernel frees that afterwards, and a CUDA driver takes longer. Until then it looks
like memory of other programs. All numbers are MiB.
"""

from collections.abc import Iterable, Mapping

from attrs import frozen

from neuron_jax.daemon.shares import WORTH_IT, MemoryGrant, Picture, foreign, used_of

TOLERANCE = 0.1
"""Of what an engine used, that may be missing at the end: other programs go on meanwhile."""


@frozen
class Leaving:
    """What an engine used of each device when it was last seen, and what other programs used beside it."""

    used: Mapping[int, int]
    others: Mapping[int, int]
    measured: bool


def last_seen(given: MemoryGrant, picture: Picture, grants: Iterable[MemoryGrant]) -> Leaving:
    """The engine in `picture`. Where nobody measures, it is taken to use half of what it planned, which it surely does."""
    devices = [device for device in given.devices if device in picture.memories]
    devices = devices[:1] if picture.shared else devices
    seen = {device: used_of(given, device, picture) for device in devices}
    measured = bool(seen) and None not in seen.values()
    used = {device: given.planned // 2 if mb is None else mb for device, mb in seen.items()}
    beside = [one for one in grants if one.holder != given.holder]
    others = {device: max(0, foreign(device, picture, beside) - mb) for device, mb in used.items()}
    return Leaving(used, others, measured)


def missing(leaving: Leaving, picture: Picture, grants: Iterable[MemoryGrant]) -> int:
    """How much of what the engine used is not free again, on the device where most is missing; 0 where it is nothing."""
    beside = list(grants)
    return max((_missing(leaving, device, picture, beside) for device in leaving.used), default=0)


def _missing(leaving: Leaving, device: int, picture: Picture, grants: list[MemoryGrant]) -> int:
    if device not in picture.memories:
        return 0
    used = leaving.used[device]
    mb = min(used, foreign(device, picture, grants) - leaving.others[device])
    return mb if mb >= max(WORTH_IT, int(used * TOLERANCE)) else 0
