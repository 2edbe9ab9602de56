"""What this host is and how busy; joins NVML and the CPU, knows no JAX.

A host is described by what an engine could use: NVIDIA devices need the driver and JAX's CUDA plugin. Where either is
missing the host is one device of kind `cpu`, and the reason is told.
"""

import importlib.util
import platform
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import pynvml

from neuron_jax.hardware import cpu
from neuron_jax.hardware.nvml import DriverVersions, Nvml, NvmlUnavailableError
from neuron_jax.hardware.records import Device, DeviceLoad, Hardware

CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def has_cuda_plugin() -> bool:
    """Whether JAX could use an NVIDIA device; looks for the package, imports nothing."""
    return any(importlib.util.find_spec(name) is not None for name in CUDA_PLUGINS)


def discover(
    cpu_devices: int = 1,
    *,
    visible: str | None = None,
    api: Any = pynvml,
    plugin: Callable[[], bool] = has_cuda_plugin,
) -> Hardware:
    """The host as it is now. `cpu_devices` devices of kind `cpu` share the host's memory when there is no other.

    `visible` is the value of CUDA_VISIBLE_DEVICES: indices or UUIDs that devices are limited to; indices stay NVML's.
    """
    try:
        with Nvml(cpu.read_memory, api) as nvml:
            versions = nvml.versions()
            every = nvml.devices()
            devices = _visible(nvml, every, visible)
    except NvmlUnavailableError as error:
        return _hardware(None, _cpus(cpu_devices), str(error))
    reason = _unusable(every, devices, plugin)
    return _hardware(versions, devices if reason is None else _cpus(cpu_devices), reason)


class Sampler:
    """Answers how busy the devices of `hardware` are; keeps NVML open and the last CPU times between two answers."""

    def __init__(self, hardware: Hardware, api: Any = pynvml) -> None:
        self._devices = hardware.devices
        self._times = cpu.read_times()
        self._open = ExitStack()
        cuda = any(device.kind == "cuda" for device in self._devices)
        self._nvml = self._open.enter_context(Nvml(cpu.read_memory, api)) if cuda else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def sample(self) -> tuple[DeviceLoad, ...]:
        """One row per device. A CPU's utilization is the average since the last sample, over all cores."""
        if self._nvml is not None:
            return tuple(self._nvml.load(device.index) for device in self._devices)
        memory, before = cpu.read_memory(), self._times
        self._times = cpu.read_times()
        used, free = (memory.total - memory.available) // cpu.MIB, memory.available // cpu.MIB
        busy = self._times.percent_since(before)
        return tuple(DeviceLoad(device.index, used, free, busy, None) for device in self._devices)


def _visible(nvml: Nvml, devices: tuple[Device, ...], visible: str | None) -> tuple[Device, ...]:
    """CUDA's own rule: the list is in order and ends at the first entry that names no device."""
    if visible is None:
        return devices
    chosen: list[Device] = []
    for entry in visible.split(","):
        named = [device for device in devices if _is_named(nvml, device, entry.strip())]
        if len(named) != 1:
            break
        chosen += named
    return tuple(chosen)


def _is_named(nvml: Nvml, device: Device, entry: str) -> bool:
    if entry.startswith("GPU-"):
        return nvml.uuid(device.index).startswith(entry)
    return entry == str(device.index)


def _unusable(every: tuple[Device, ...], visible: tuple[Device, ...], plugin: Callable[[], bool]) -> str | None:
    if not every:
        return "the NVIDIA driver works but sees no device"
    if not visible:
        return f"CUDA_VISIBLE_DEVICES hides all {len(every)} NVIDIA devices"
    if not plugin():
        return f"{every[0].name} is here, but JAX's CUDA plugin is not installed: pip install 'cortex-jax[cuda12]'"
    return None


def _cpus(count: int) -> tuple[Device, ...]:
    name, total = cpu.read_name(), cpu.read_memory().total // cpu.MIB
    return tuple(Device(index, name, "cpu", total, None) for index in range(count))


def _hardware(versions: DriverVersions | None, devices: tuple[Device, ...], reason: str | None) -> Hardware:
    return Hardware(
        hostname=platform.node(),
        os=_os_name(),
        kernel=platform.release(),
        cuda_version=versions.cuda if versions else None,
        driver_version=versions.driver if versions else None,
        devices=devices,
        cuda_unavailable_reason=reason,
    )


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()
