"""A pynvml with the devices it is told of; counts how often it is opened and closed."""

from types import SimpleNamespace
from typing import Any

import pynvml

MIB = 1024 * 1024


class FakeNvml:
    """Two H100-like devices by default. `error` is raised by nvmlInit; `quiet` devices do not report load or memory.

    `processes`: device -> pid -> MiB, None where the driver does not say. `free`: MiB by device; `lost`: devices off the bus.
    """

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, count: int = 2, error: Exception | None = None, quiet: bool = False) -> None:
        self.count, self.error, self.quiet = count, error, quiet
        self.opened = 0
        self.processes: dict[int, dict[int, int | None]] = {}
        self.free: dict[int, int] = {}
        self.lost: set[int] = set()

    def nvmlInit(self) -> None:  # noqa: N802 - the library's name
        if self.error:
            raise self.error
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 12080

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"570.86.10"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        assert self.opened
        if index in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"Fake {handle}"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}abc"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return (9, handle)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        self._speak()
        return SimpleNamespace(total=80_000 * MIB, free=self.free.get(handle, 70_000 - handle) * MIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        self._speak()
        return SimpleNamespace(gpu=40 + handle)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:  # noqa: N802
        self._speak()
        return 60 + handle

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:  # noqa: N802
        self._speak()
        return 250_500 + handle

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:  # noqa: N802
        self._speak()
        return 7_000_000 + handle

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        self._speak()
        used = self.processes.get(handle, {})
        return [SimpleNamespace(pid=pid, usedGpuMemory=None if mb is None else mb * MIB) for pid, mb in used.items()]

    def _speak(self) -> None:
        if self.quiet:
            raise pynvml.NVMLError_NotSupported
