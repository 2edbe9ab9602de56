"""Devices whose memory a test changes while a neuron runs; knows no engine."""

from attrs import define, field

from neuron_jax.daemon.devices import PATIENCE, Devices, ReturnPatience
from neuron_jax.hardware.records import Device, DeviceLoad, Hardware, Process


@define
class MovingDevices:
    """`free`: MiB by device; `lost`: what the driver says of a device that does not answer; `processes` by device."""

    total: int = 10_000
    free: dict[int, int] = field(factory=lambda: {0: 9_000, 1: 8_000})
    lost: dict[int, str] = field(factory=dict)
    processes: dict[int, tuple[Process, ...]] = field(factory=dict)

    def sample(self) -> tuple[DeviceLoad, ...]:
        return tuple(
            DeviceLoad(
                index, self.total - free, free, 5, None, self.processes.get(index, ()), lost=self.lost.get(index)
            )
            for index, free in self.free.items()
        )

    def devices(self, kind: str = "cuda", patience: ReturnPatience = PATIENCE) -> Devices:
        """A host with them; engines of the double run on GPUs as on anything."""
        found = tuple(Device(i, "moving", "cuda" if kind == "cuda" else "cpu", self.total, None) for i in self.free)
        return Devices(Hardware("host", "Linux", "6.0", None, None, found, None), self, patience)
