"""How many threads: made-up trees of proc and sys, of the machines and containers that there are."""

from pathlib import Path

import pytest

from neuron_jax.hardware.threads import read_threads

UNBOUND = "0::/\n"


def tree(root: Path, files: dict[str, str], *, cpus: int = 8, siblings: int = 1) -> Path:
    topology = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": str(cpu // siblings) for cpu in range(cpus)
    }
    for name, text in {"proc/self/cgroup": UNBOUND, **topology, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "4:cpu,cpuacct:/docker/abc\n3:cpuset:/docker/abc\n"


@pytest.mark.parametrize(
    ("files", "count", "reason"),
    [
        ({}, 8, "8 processors may be used"),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8, "8 processors may be used"),
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2, "a control group allows the time of 2 processors"),
        ({"sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3, "a control group allows the time of 2.5 processors"),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1, "a control group allows the time of 0.5 processors"),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "max 1",
            },
            3,
            "a control group allows the time of 3 processors",
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000",
            },
            4,
            "a control group allows the time of 4 processors",
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            8,
            "8 processors may be used",
        ),
        ({"proc/self/cgroup": "0::/../..\n"}, 8, "8 processors may be used"),
    ],
)
def test_a_quota_bounds(tmp_path: Path, files: dict[str, str], count: int, reason: str) -> None:
    """Of the group itself or of one above it, in either version, rounded up; no bound is none."""
    found = read_threads(tree(tmp_path, files), range(8))

    assert (found.count, found.reason) == (count, reason)


def test_two_threads_of_a_core_are_one(tmp_path: Path) -> None:
    """And only the cores of the processors that may be used count."""
    root = tree(tmp_path, {}, siblings=2)

    assert read_threads(root, range(8)).reason == "4 physical cores"
    assert read_threads(root, [0, 2, 3]).count == 2


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    """The processors that may be used."""
    assert read_threads(tmp_path, [3, 5]).count == 2


def test_this_machine() -> None:
    """Whatever it is, it has one."""
    assert read_threads().count >= 1
