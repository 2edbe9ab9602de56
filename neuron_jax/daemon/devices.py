"""This host's devices: what they are, how full, and which of them a model gets; must not know models' insides."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from neuron_jax.config import ModelSpec
from neuron_jax.errors import LoadError
from neuron_jax.hardware.records import DeviceLoad, Hardware

STALE_SECONDS = 1.0


class Sampling(Protocol):
    """Looks at the devices now; `neuron_jax.hardware.discover.Sampler` does."""

    def sample(self) -> Sequence[DeviceLoad]: ...


class Devices:
    """The hardware as found at start, and a picture of its load that is at most a second old."""

    def __init__(self, hardware: Hardware, sampler: Sampling) -> None:
        self.hardware = hardware
        self._sampler = sampler
        self._loads: tuple[DeviceLoad, ...] = ()
        self._taken = float("-inf")

    @property
    def platform(self) -> Literal["cpu", "cuda"]:
        """What engines run on here."""
        return "cuda" if any(device.kind == "cuda" for device in self.hardware.devices) else "cpu"

    @property
    def loads(self) -> tuple[DeviceLoad, ...]:
        """The last picture."""
        return self._loads

    async def look(self) -> tuple[DeviceLoad, ...]:
        """A picture that is not stale; NVML may take some milliseconds, so a thread asks it."""
        if time.monotonic() - self._taken > STALE_SECONDS:
            self._loads = tuple(await asyncio.to_thread(self._sampler.sample))
            self._taken = time.monotonic()
        return self._loads


def assign(
    spec: ModelSpec, hardware: Hardware, loads: Sequence[DeviceLoad], residents: Mapping[int, int]
) -> tuple[int, ...]:
    """This host's devices for `spec`: those it names, else the emptiest. `residents`: models per device. Raises LoadError.

    Fewer than it is spread over where other hosts may lend the rest.
    """
    known = [device.index for device in hardware.devices]
    if spec.devices is not None:
        return _named(spec, spec.devices, known)
    if spec.tensor_parallel > len(known) and not spec.hosts:
        raise LoadError(
            "bad_devices",
            f"tensor_parallel is {spec.tensor_parallel}, and this host has {len(known)} device(s): {known}. On a CPU, "
            "engine.cpu_devices in the neuron's config splits it for trying; hosts names peers that may lend some.",
        )
    free = {load.index: load.vram_free_mb for load in loads}
    # Models that are still loading have not taken their memory yet, so the fewest models come first.
    ranked = sorted(known, key=lambda index: (residents.get(index, 0), -free.get(index, 0), index))
    return tuple(sorted(ranked[: spec.tensor_parallel]))


def _named(spec: ModelSpec, devices: tuple[int, ...], known: Sequence[int]) -> tuple[int, ...]:
    missing = [index for index in devices if index not in known]
    if missing:
        raise LoadError("bad_devices", f"devices {list(devices)}: {missing} are not here; this host has {list(known)}.")
    if spec.tensor_parallel not in (1, len(devices)) and not (spec.hosts and spec.tensor_parallel > len(devices)):
        raise LoadError(
            "bad_devices", f"tensor_parallel is {spec.tensor_parallel}, and {len(devices)} devices are named; give one."
        )
    return devices
