"""One device on which every engine takes the same room, and whose memory comes back a little after an engine has ended."""

import time

from attrs import define, field

from neuron_jax.daemon.devices import Devices
from neuron_jax.hardware.records import Device, DeviceLoad, Hardware, Process
from tests.fakes.groups import alive


@define
class LateMemory:
    """`total` and `each`: MiB; `late`: seconds from the end of a process until its memory is free again.

    `each` is what the double of an engine says that it plans.
    """

    total: int = 5
    each: int = 3
    late: float = 0.1
    devices: Devices = field(init=False)
    _ended: dict[int, float] = field(factory=dict, init=False)  # pid -> when it was first seen to be gone; 0 = it runs

    def __attrs_post_init__(self) -> None:
        card = Device(0, "late", "cuda", self.total, None)
        self.devices = Devices(Hardware("host", "Linux", "6.0", None, None, (card,), None), self)

    def sample(self) -> tuple[DeviceLoad, ...]:
        now = time.monotonic()
        for given in tuple(self.devices.grants.values()):
            self._ended |= {pid: 0.0 for pid in given.pids if pid not in self._ended}
        self._ended = {pid: at or (0.0 if alive(pid) else now) for pid, at in self._ended.items()}
        held = [pid for pid, at in self._ended.items() if not at or now < at + self.late]
        processes = tuple(Process(pid, self.each) for pid in held if not self._ended[pid])
        free = max(0, self.total - self.each * len(held))
        return (DeviceLoad(0, self.total - free, free, 5, None, processes),)
