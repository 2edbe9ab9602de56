"""The CPU and the host's memory, from /proc and the control group; knows Linux's text formats, must not know NVML."""

import platform
from pathlib import Path

from attrs import frozen

MIB = 1024 * 1024


@frozen
class HostMemory:
    """Bytes this process may use in all, and those nobody uses now."""

    total: int
    available: int


@frozen
class CpuTimes:
    """Clock ticks of all cores since boot."""

    busy: int
    total: int

    def percent_since(self, before: "CpuTimes") -> int:
        """Share of busy ticks since `before`, 0 to 100."""
        total = self.total - before.total
        return round(100 * (self.busy - before.busy) / total) if total > 0 else 0


@frozen
class ProcessMemory:
    """Bytes of memory that a process has in use, and the most it ever had."""

    now: int
    peak: int


def read_memory(root: Path = Path("/")) -> HostMemory:
    """The host's memory, or the part of it that the control group (a container) may use. `root` holds proc and sys."""
    host = parse_meminfo((root / "proc/meminfo").read_text())
    for group in (_group_v2(root), _group_v1(root)):
        if group is not None and group.total < host.total:
            return HostMemory(group.total, max(0, min(group.available, host.available)))
    return host


def read_resident(root: Path = Path("/")) -> ProcessMemory:
    """Of this process."""
    return parse_status((root / "proc/self/status").read_text())


def read_private(pid: int, root: Path = Path("/")) -> int | None:
    """Bytes that a process has for itself alone, without files that it maps; None when it is gone."""
    try:
        rows = (root / f"proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next((int(row.split()[1]) * 1024 for row in rows if row.startswith("RssAnon:")), None)


def read_times(root: Path = Path("/")) -> CpuTimes:
    return parse_stat((root / "proc/stat").read_text())


def read_name(root: Path = Path("/")) -> str:
    """The processor's name, else its architecture."""
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.machine() or "CPU"


def parse_meminfo(text: str) -> HostMemory:
    """/proc/meminfo; kernels before 3.14 do not say what is available, then it is what is free."""
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    sizes = {key: int(value.split()[0]) * 1024 for key, value in rows.items()}
    return HostMemory(sizes["MemTotal"], sizes.get("MemAvailable", sizes["MemFree"]))


def parse_status(text: str) -> ProcessMemory:
    """/proc/PID/status."""
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    now, peak = (int(rows[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return ProcessMemory(now, peak)


def parse_stat(text: str) -> CpuTimes:
    """The first line of /proc/stat: user nice system idle iowait irq softirq steal, then guest, which user contains."""
    ticks = [int(field) for field in text.splitlines()[0].split()[1:9]]
    idle = ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
    return CpuTimes(sum(ticks) - idle, sum(ticks))


def _group_v2(root: Path) -> HostMemory | None:
    folder = root / "sys/fs/cgroup"
    return _group(folder / "memory.max", folder / "memory.current", folder / "memory.stat", "inactive_file")


def _group_v1(root: Path) -> HostMemory | None:
    folder = root / "sys/fs/cgroup/memory"
    limit, used = folder / "memory.limit_in_bytes", folder / "memory.usage_in_bytes"
    return _group(limit, used, folder / "memory.stat", "total_inactive_file")


def _group(limit: Path, used: Path, stat: Path, reclaimable: str) -> HostMemory | None:
    """A control group with a limit; file cache that the kernel would give up counts as available."""
    if not limit.is_file() or not used.is_file() or not limit.read_text().strip().isdigit():
        return None
    total = int(limit.read_text())
    rows = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return HostMemory(total, total - int(used.read_text()) + int(rows.get(reclaimable, 0)))
