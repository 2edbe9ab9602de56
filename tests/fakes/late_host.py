"""A host whose memory is that of real engine processes, and comes back some time after they are gone; knows no daemon."""

import os
import time
from pathlib import Path

from attrs import define, field

from neuron_jax.daemon.devices import Devices, ReturnPatience
from neuron_jax.hardware.cpu import MIB, read_private
from neuron_jax.hardware.records import Device, DeviceLoad, Hardware

ENGINES = (b"tests.fakes.engine_double", b"neuron_jax.workers.engine_process")


@define
class LateHost:
    """`total` MiB, of which the engines of this process use what they use, until `late` seconds after their end."""

    total: int
    late: float
    used: dict[int, int] = field(factory=dict)  # pid -> MiB
    gone: dict[int, float] = field(factory=dict)  # pid -> when its end was seen

    def sample(self) -> tuple[DeviceLoad, ...]:
        now, alive = time.monotonic(), {pid: read_private(pid) for pid in _engines()}
        self.used |= {pid: used // MIB for pid, used in alive.items() if used}
        for pid in self.used.keys() - {pid for pid, used in alive.items() if used}:
            self.gone.setdefault(pid, now)
        back = {pid for pid, since in self.gone.items() if now - since > self.late}
        busy = sum(used for pid, used in self.used.items() if pid not in back)
        return (DeviceLoad(0, busy, self.total - busy, 5, None),)

    def devices(self, patience: ReturnPatience) -> Devices:
        return Devices(
            Hardware("host", "Linux", "6.0", None, None, (Device(0, "late CPU", "cpu", self.total, None),), None),
            self,
            patience,
        )


def _engines() -> list[int]:
    """The engine processes that this process has started."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and any(name in (path / "cmdline").read_bytes() for name in ENGINES):
                parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
                found += [int(path.name)] if int(parent) == os.getpid() else []
        except OSError:  # it ended while we looked
            continue
    return found
