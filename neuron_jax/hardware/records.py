"""What a host consists of, as the wire reports it (docs/wire.md section 1); knows no way to find it out."""

from typing import Literal

from attrs import frozen


@frozen
class Device:
    """One device an engine can use. Memory is in MiB; for a CPU it is the host's."""

    index: int
    name: str
    kind: Literal["cuda", "cpu"]
    vram_total_mb: int
    compute_capability: str | None


@frozen
class Hardware:
    """The host. `cuda_unavailable_reason` says why there is no device of kind `cuda`, None when there is one."""

    hostname: str
    os: str
    kernel: str
    cuda_version: str | None
    driver_version: str | None
    devices: tuple[Device, ...]
    cuda_unavailable_reason: str | None


@frozen
class Process:
    """What one process has of a device's memory, in MiB."""

    pid: int
    used_mb: int


@frozen
class DeviceLoad:
    """How busy one device is: MiB, percent, degrees Celsius, watts, and the joules since its driver was loaded; None where the
    device does not say.

    `processes` are those that the driver tells of, none where it does not. `lost`: what the driver says of a device that
    does not answer any more; its numbers are 0 then.
    """

    index: int
    vram_used_mb: int
    vram_free_mb: int
    utilization_pct: int | None
    temp_c: int | None
    processes: tuple[Process, ...] = ()
    lost: str | None = None
    power_w: float | None = None
    energy_j: float | None = None
