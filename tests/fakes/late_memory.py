"""One device on which every engine takes the same room, and whose memory comes back a little after an engine has ended."""

import time
from typing import Literal

from attrs import define, field

from neuron_jax.daemon.devices import Devices
from neuron_jax.hardware.cpu import MIB, read_private
from neuron_jax.hardware.records import Device, DeviceLoad, Hardware, Process
from tests.fakes.groups import alive


@define
class LateMemory:
    """`total` and `each`: MiB; `late`: seconds from the end of a process until its memory is free again.

    `each` is what the double of an engine says that it plans. `kind`: an engine that computes has to find the device.
    """

    total: int = 5
    each: int = 3
    late: float = 0.1
    kind: Literal["cpu", "cuda"] = "cuda"
    devices: Devices = field(init=False)
    _ended: dict[int, float] = field(factory=dict, init=False)  # pid -> when it was first seen to be gone; 0 = it runs
    _sizes: dict[int, int] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        card = Device(0, "late", self.kind, self.total, None)
        self.devices = Devices(Hardware("host", "Linux", "6.0", None, None, (card,), None), self)

    def sample(self) -> tuple[DeviceLoad, ...]:
        now = time.monotonic()
        for given in tuple(self.devices.grants.values()):
            self._ended |= {pid: 0.0 for pid in given.pids if pid not in self._ended}
        self._ended = {pid: at or (0.0 if alive(pid) else now) for pid, at in self._ended.items()}
        held = {pid: self._size(pid) for pid, at in self._ended.items() if not at or now < at + self.late}
        processes = tuple(Process(pid, size) for pid, size in held.items() if not self._ended[pid])
        used = min(self.total, sum(held.values()))
        return (DeviceLoad(0, used, self.total - used, 5, None, processes),)

    def _size(self, pid: int) -> int:
        """A process on a CPU has what it has, and had what it had when it was last looked at."""
        if self.kind == "cpu" and not self._ended[pid]:
            self._sizes[pid] = (read_private(pid) or 0) // MIB
        return self._sizes.get(pid, self.each)
