"""NVIDIA's devices through NVML; knows pynvml, must not know JAX or what the devices are used for."""

from collections.abc import Callable
from typing import Any, Self, TypeVar

import pynvml
from attrs import frozen

from neuron_jax.hardware.cpu import MIB, HostMemory
from neuron_jax.hardware.records import Device, DeviceLoad, Process

T = TypeVar("T")


class NvmlUnavailableError(Exception):
    """There is no working NVIDIA driver; the message says how that shows."""


@frozen
class DriverVersions:
    """The driver's own version, and the newest CUDA it supports."""

    driver: str
    cuda: str


class Nvml:
    """NVML between initialisation and shutdown. `api` is pynvml. Raises NvmlUnavailableError.

    `host_memory` stands in where a device shares the host's memory and so reports none of its own.
    """

    def __init__(self, host_memory: Callable[[], HostMemory], api: Any = pynvml) -> None:
        self._api = api
        self._host_memory = host_memory
        try:
            api.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlUnavailableError(_reason(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._api.nvmlShutdown()

    def versions(self) -> DriverVersions:
        cuda = self._api.nvmlSystemGetCudaDriverVersion_v2()
        return DriverVersions(_text(self._api.nvmlSystemGetDriverVersion()), f"{cuda // 1000}.{cuda % 1000 // 10}")

    def devices(self) -> tuple[Device, ...]:
        """Every device, in the order of the PCI bus."""
        return tuple(self._device(index) for index in range(self._api.nvmlDeviceGetCount()))

    def uuid(self, index: int) -> str:
        return _text(self._api.nvmlDeviceGetUUID(self._handle(index)))

    def load(self, index: int) -> DeviceLoad:
        """The device now; one that does not answer is lost, and says so."""
        try:
            return self._load(index)
        except pynvml.NVMLError as error:
            return DeviceLoad(index, 0, 0, None, None, lost=str(error))

    def _load(self, index: int) -> DeviceLoad:
        handle = self._handle(index)
        memory = self._memory(handle)
        rates = self._if_supported(lambda: self._api.nvmlDeviceGetUtilizationRates(handle).gpu)
        temperature = self._if_supported(
            lambda: self._api.nvmlDeviceGetTemperature(handle, self._api.NVML_TEMPERATURE_GPU)
        )
        milliwatts = self._if_supported(lambda: self._api.nvmlDeviceGetPowerUsage(handle))
        millijoules = self._if_supported(lambda: self._api.nvmlDeviceGetTotalEnergyConsumption(handle))
        used = memory.total - memory.available
        return DeviceLoad(
            index,
            used // MIB,
            memory.available // MIB,
            rates,
            temperature,
            processes=self._processes(handle),
            power_w=None if milliwatts is None else milliwatts / 1000,
            energy_j=None if millijoules is None else millijoules / 1000,
        )

    def _processes(self, handle: Any) -> tuple[Process, ...]:
        """Those that compute and say what they use; in a container the driver may show none, or pids of the host."""
        found = self._if_supported(lambda: self._api.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        return tuple(Process(one.pid, one.usedGpuMemory // MIB) for one in found if one.usedGpuMemory is not None)

    def _device(self, index: int) -> Device:
        handle = self._handle(index)
        major, minor = self._api.nvmlDeviceGetCudaComputeCapability(handle)
        name = _text(self._api.nvmlDeviceGetName(handle))
        return Device(index, name, "cuda", self._memory(handle).total // MIB, f"{major}.{minor}")

    def _handle(self, index: int) -> Any:
        return self._api.nvmlDeviceGetHandleByIndex(index)

    def _memory(self, handle: Any) -> HostMemory:
        info = self._if_supported(lambda: self._api.nvmlDeviceGetMemoryInfo(handle))
        return HostMemory(info.total, info.free) if info is not None else self._host_memory()

    def _if_supported(self, ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except pynvml.NVMLError_NotSupported:
            return None


def _reason(error: Exception) -> str:
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return "no NVIDIA driver is installed: libnvidia-ml.so.1 was not found"
    if isinstance(error, pynvml.NVMLError_DriverNotLoaded):
        return "the NVIDIA driver is installed but its kernel module is not loaded"
    return f"NVML does not start: {error}"


def _text(value: str | bytes) -> str:
    """Old bindings answer in bytes."""
    return value.decode() if isinstance(value, bytes) else value
