"""Where the engines of a model will be, and what each is started with; must not know which models there are.

`occupied` says which devices engines and lent ranks are on, or will be, once for each of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from neuron_jax.config import ModelSpec, NeuronConfig
from neuron_jax.daemon.assign import assign, assign_all
from neuron_jax.daemon.devices import Devices
from neuron_jax.daemon.groups import Groups
from neuron_jax.daemon.launch import engine_spec
from neuron_jax.daemon.replica import ReplicaSpec
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.supervisor import RestartPolicy


class Placing:
    """Asks the last picture of `devices`. `command` runs an engine, `restarts` says when it runs again after a death."""

    def __init__(
        self,
        config: NeuronConfig,
        devices: Devices,
        command: Sequence[str],
        restarts: RestartPolicy,
        occupied: Callable[[], Iterable[tuple[int, ...]]],
    ) -> None:
        self._config = config
        self._devices = devices
        self._groups = Groups(config, devices, command)
        self._restarts = restarts
        self._occupied = occupied

    def assign(self, spec: ModelSpec) -> tuple[tuple[int, ...], ...]:
        """The devices of each replica of `spec`. Raises LoadError."""
        devices = self._devices
        return assign_all(spec, devices.hardware, devices.loads, self._crowd(), devices.lost)

    async def lend(self, count: int) -> tuple[int, ...]:
        """Up to `count` devices for another neuron's model, the emptiest first. Raises LoadError."""
        loads = await self._devices.look()
        able = len(loads) - len(self._devices.lost)
        some = ModelSpec(model_id="of another neuron", tensor_parallel=min(count, able))
        return assign(some, self._devices.hardware, loads, self._crowd(), self._devices.lost)

    def replicas(self, spec: ModelSpec, parts: Sequence[tuple[int, ...]], path: Path) -> Sequence[ReplicaSpec]:
        """Each engine of the model at `path`, on its part of the devices."""
        return [
            ReplicaSpec(
                holder=spec.model_id if len(parts) == 1 else f"{spec.model_id}#{number}",
                model=spec.model_id,
                devices=devices,
                memory_mb=spec.memory_mb or self._config.engine.memory_mb,
                sharers=len(parts) if self._devices.platform == "cpu" else 1,
                shares=self._devices,
                elsewhere=partial(self._elsewhere, spec),
                spec=partial(self._engine_spec, spec, path),
                start=partial(self._groups.start, spec),
                restarts=self._restarts,
            )
            for number, devices in enumerate(parts)
        ]

    def _engine_spec(self, spec: ModelSpec, path: Path, devices: tuple[int, ...], memory_mb: int) -> EngineSpec:
        return engine_spec(self._config, spec, self._devices.platform, devices, path, memory_mb=memory_mb)

    def _elsewhere(self, spec: ModelSpec, devices: tuple[int, ...]) -> tuple[int, ...]:
        """`devices`, or others where one of them is lost. Raises LoadError where there are no others."""
        lost = self._devices.lost
        if not any(index in lost for index in devices):
            return devices
        crowd = self._crowd()
        crowd.subtract(devices)
        return assign(spec, self._devices.hardware, self._devices.loads, crowd, lost)

    def _crowd(self) -> Counter[int]:
        """How many engines and lent ranks are on each device, or will be."""
        return Counter(index for devices in self._occupied() for index in devices)
