"""The host's memory and load, read off the kernel's own text."""

from pathlib import Path

import pytest

from neuron_jax.hardware.cpu import (
    CpuTimes,
    HostMemory,
    ProcessMemory,
    parse_meminfo,
    parse_stat,
    parse_status,
    read_memory,
    read_name,
    read_private,
    read_resident,
    read_times,
)

GIB = 1024**3
MEMINFO = (
    "MemTotal:       8388608 kB\nMemFree:        1048576 kB\nMemAvailable:   4194304 kB\nHugePages_Total:       0\n"
)


def write(root: Path, **files: str) -> Path:
    """Files under `root`, by path with `__` for a slash and `_dot_` for a dot."""
    for name, text in {"proc__meminfo": MEMINFO, **files}.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_is_what_the_kernel_calls_available() -> None:
    """File cache counts as free; old kernels only know what is really unused."""
    assert parse_meminfo(MEMINFO) == HostMemory(8 * GIB, 4 * GIB)
    assert parse_meminfo(MEMINFO.replace("MemAvailable", "Other")) == HostMemory(8 * GIB, GIB)


def test_busy_ticks_leave_out_idle_waiting_and_guests() -> None:
    """Guest time is part of user time and must not count twice."""
    assert parse_stat("cpu  10 1 5 70 10 1 1 2 9 9\ncpu0 1 1 1 1\n") == CpuTimes(20, 100)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (CpuTimes(0, 0), CpuTimes(30, 120), 25),
        (CpuTimes(5, 9), CpuTimes(5, 9), 0),
        (CpuTimes(0, 0), CpuTimes(9, 9), 100),
    ],
)
def test_utilization_is_the_share_between_two_readings(before: CpuTimes, after: CpuTimes, expected: int) -> None:
    """Nothing elapsed is nothing used."""
    assert after.percent_since(before) == expected


def test_a_container_has_the_memory_of_its_control_group(tmp_path: Path) -> None:
    """The limit is the total; cache the kernel would give up is available."""
    stat = "anon 5\ninactive_file 1073741824\n"
    second = {"memory_dot_max": f"{2 * GIB}\n", "memory_dot_current": f"{2 * GIB}\n", "memory_dot_stat": stat}
    root = write(tmp_path, **{f"sys__fs__cgroup__{name}": text for name, text in second.items()})

    assert read_memory(root) == HostMemory(2 * GIB, GIB)


def test_the_first_version_of_control_groups_counts_too(tmp_path: Path) -> None:
    """Other names, same meaning; no statistics, no cache to give up."""
    files = {"memory_dot_limit_in_bytes": f"{4 * GIB}", "memory_dot_usage_in_bytes": f"{GIB}"}
    root = write(tmp_path, **{f"sys__fs__cgroup__memory__{name}": text for name, text in files.items()})

    assert read_memory(root) == HostMemory(4 * GIB, 3 * GIB)


@pytest.mark.parametrize("limit", ["max\n", str(2**62)])
def test_a_group_without_a_real_limit_is_the_host(tmp_path: Path, limit: str) -> None:
    """No limit is written as a word or as a number beyond any machine."""
    root = write(tmp_path, sys__fs__cgroup__memory_dot_max=limit, sys__fs__cgroup__memory_dot_current="1")

    assert read_memory(root) == HostMemory(8 * GIB, 4 * GIB)


def test_the_processor_is_named(tmp_path: Path) -> None:
    """Where the kernel gives no name the architecture stands in."""
    assert (
        read_name(write(tmp_path, proc__cpuinfo="processor : 0\nmodel name\t: Big Chip @ 3GHz\n")) == "Big Chip @ 3GHz"
    )
    assert read_name(write(tmp_path, proc__cpuinfo="processor : 0\n"))


def test_what_a_process_has_in_memory_is_read() -> None:
    """Now, and at its highest."""
    assert parse_status("Name:\tpython\nVmHWM:\t    4096 kB\nVmRSS:\t    1024 kB\n") == ProcessMemory(2**20, 4 * 2**20)


def test_what_a_process_has_for_itself_is_read(tmp_path: Path) -> None:
    """Without the files it maps; nothing of one that is gone."""
    root = write(tmp_path, proc__7__status="VmRSS:\t 4096 kB\nRssAnon:\t 1024 kB\nRssFile:\t 3072 kB\n")

    assert read_private(7, root) == 2**20
    assert read_private(8, root) is None


def test_this_machine_can_be_read() -> None:
    """The real files have the form the parsers expect."""
    assert 0 < read_memory().available <= read_memory().total
    assert 0 < read_times().busy < read_times().total
    assert 0 < read_resident().now <= read_resident().peak
