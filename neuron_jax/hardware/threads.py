"""How many threads are worth computing with here: what the process may use, and what there is. Knows Linux's text formats.

A thread more than that waits for the others' cores, and with a quota the kernel stops all of them for the rest of a period.
"""

import os
from collections.abc import Iterable
from math import ceil
from pathlib import Path

from attrs import frozen


@frozen
class Threads:
    """`count`, at least 1, and which of the bounds it is, in words."""

    count: int
    reason: str


def read_threads(root: Path = Path("/"), cpus: Iterable[int] | None = None) -> Threads:
    """The least of: processors that may be used, their physical cores, and the control groups' quota of time.

    `root` holds proc and sys; `cpus` are the processors this process may use.
    """
    allowed = sorted(os.sched_getaffinity(0) if cpus is None else cpus)
    bounds = [
        Threads(len(allowed), f"{len(allowed)} processors may be used"),
        *_cores(root, allowed),
        *(
            Threads(max(1, ceil(quota)), f"a control group allows the time of {quota:g} processors")
            for quota in _quotas(root)
        ),
    ]
    return min(bounds, key=lambda bound: bound.count)


def _cores(root: Path, cpus: Iterable[int]) -> list[Threads]:
    """Two threads of one core share its arithmetic; unknown where the system does not tell."""
    folder = root / "sys/devices/system/cpu"
    try:
        cores = {(folder / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in cpus}
    except OSError:
        return []
    return [Threads(len(cores), f"{len(cores)} physical cores")]


def _quotas(root: Path) -> list[float]:
    """Processors' worth of time, of this process's control group and of all above it, in version 2 and in version 1."""
    try:
        rows = [row.split(":", 2) for row in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    found: list[float | None] = []
    for _, controllers, path in rows:
        if not controllers:
            found += [_quota_v2(folder) for folder in _upwards(root / "sys/fs/cgroup", path)]
        elif "cpu" in controllers.split(","):
            mounts = (root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup/cpu")
            found += [_quota_v1(folder) for mount in mounts for folder in _upwards(mount, path)]
    return [quota for quota in found if quota]


def _upwards(mount: Path, path: str) -> list[Path]:
    """The group's folder and those above it; in a container the mount itself is the group, whatever its path says."""
    folder = mount / path.lstrip("/")
    return [folder, *(one for one in folder.parents if one == mount or mount in one.parents)]


def _quota_v2(folder: Path) -> float | None:
    return _share(_words(folder / "cpu.max"))


def _quota_v1(folder: Path) -> float | None:
    return _share([*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")])


def _share(words: list[str]) -> float | None:
    """Quota by period in microseconds; `max` and -1 are no bound."""
    if len(words) != 2 or not all(word.isdigit() for word in words) or "0" in words:
        return None
    quota, period = map(int, words)
    return quota / period


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
