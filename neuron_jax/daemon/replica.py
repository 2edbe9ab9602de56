"""One engine of a model: its devices, its share of their memory, its process over all restarts; must not know requests.

A start asks for devices and a share anew each time, so that it finds what is there now: other devices when one was lost,
less when the last engine ran out of memory.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from attrs import frozen
from msgspec.structs import replace

from neuron_jax.daemon.launch import KV_ROW, TOTAL_ROW, WEIGHTS_ROW, row_mb, shrunk
from neuron_jax.daemon.shares import MemoryGrant, MemoryRequest, Shortage
from neuron_jax.daemon.status import Capacity, ReplicaStatus
from neuron_jax.daemon.tally import counters, total
from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineLoad, EngineSpec, Progress, Ready
from neuron_jax.workers.supervisor import REMEDIES, EngineState, Phase, Remedy, RestartPolicy, Supervisor

Listener = Callable[[Progress], None]
_log = logging.getLogger("neuron.lifecycle")


class Shares(Protocol):
    """Who grants memory; `daemon.devices.Devices` does."""

    async def place(self, request: MemoryRequest) -> MemoryGrant: ...

    def settle(self, holder: str, pids: Sequence[int], planned_mb: int) -> MemoryGrant: ...

    def put_back(self, holder: str, before: MemoryGrant | None) -> None: ...

    def ended(self, holder: str) -> None: ...

    def release(self, holder: str) -> None: ...

    async def returned(self, holder: str) -> None: ...

    async def look(self, *, fresh: bool = False) -> object: ...

    def shortage(self, holder: str) -> Shortage | None: ...

    def lose(self, devices: tuple[int, ...], reason: str) -> None: ...


@frozen(eq=False)
class ReplicaSpec:
    """What a replica is told: its name, its first devices, what it asks for, and how its engine is specified and started.

    `elsewhere` gives the devices for a start: those it is given unless one of them is lost. Raises LoadError.
    """

    holder: str
    model: str
    devices: tuple[int, ...]
    memory_mb: int
    sharers: int
    shares: Shares
    elsewhere: Callable[[tuple[int, ...]], tuple[int, ...]]
    spec: Callable[[tuple[int, ...], int], EngineSpec]
    start: Callable[[EngineSpec, Listener], Awaitable[EngineClient]]
    restarts: RestartPolicy


class Replica:
    """Starts its first engine at once. `started` waits for it, `stop` ends everything; `changed` is told its status."""

    def __init__(self, place: ReplicaSpec, *, hear: Listener, changed: Callable[[ReplicaStatus], None]) -> None:
        self.devices = place.devices
        self._place = place
        self._hear = hear
        self._tell = changed
        self._note = ""
        self._pool_mb = 0
        self._past = EngineLoad()
        self._last: EngineClient | None = None
        self._held: MemoryGrant | None = None
        self._path = ""  # of the weights that serve; "" = as it was placed
        self._supervisor = Supervisor(place.holder, self._start, changed=self._changed, policy=place.restarts)

    @property
    def holder(self) -> str:
        """Its name among those who hold memory."""
        return self._place.holder

    @property
    def client(self) -> EngineClient | None:
        """The engine that serves, if there is one."""
        return self._supervisor.serving

    @property
    def shortage(self) -> Shortage | None:
        """Set when its engine has not the memory to begin anything new."""
        return self._place.shares.shortage(self.holder)

    @property
    def load(self) -> EngineLoad:
        """How busy its engine is; what engines count goes on over restarts."""
        return total([self._past, self.client.load if self.client is not None else EngineLoad()])

    async def started(self) -> Capacity:
        """What it offered when it served for the first time. Raises LoadError or EngineDied when it never did."""
        return _capacity(await self._supervisor.started())

    async def read_weights(self, path: str, *, in_place: bool) -> None:
        """Its engine holds other weights ready. Raises LoadError where they do not fit, or the host has no room for both,
        EngineDied."""
        client, place = self.client, self._place
        if client is None:
            raise EngineDied(f"{self.holder} is being restarted")
        if client.spec.platform == "cpu" and not in_place:
            mb = row_mb(client.ready.plan, WEIGHTS_ROW)
            try:
                await place.shares.place(MemoryRequest(self._beside, place.model, self.devices, mb))
            except LoadError as error:
                words = f"{error.message} Or in_place = true reads them in the place of those that serve"
                raise LoadError(error.kind, words, error.extras) from error
        await client.read_weights(path, in_place=in_place)

    async def swap_weights(self, path: str, *, keep: bool) -> None:
        """Its engine serves with what it read, and so does every later one. Raises EngineDied: with `keep`, the next engine
        has the old weights then."""
        before, self._path = self._path, path
        try:
            if self.client is not None:
                await self.client.swap_weights()
        except EngineDied:
            self._path = before if keep else path
            raise

    def drop_weights(self) -> None:
        """There is one set of weights again."""
        if self.client is not None:
            self.client.drop_weights()
        self._place.shares.release(self._beside)

    @property
    def _beside(self) -> str:
        """Who holds the memory of a second set of weights."""
        return f"new weights of {self.holder}"

    async def stop(self, drain_secs: float) -> None:
        """Waits up to `drain_secs` for what is in flight; the process, its grant and its memory are gone after."""
        shares = self._place.shares
        try:
            await shares.look(fresh=True)  # what it uses can only be seen while it is there
        except Exception as error:  # noqa: BLE001  # the driver's, say: an engine must end on devices that cannot be looked at
            _log.warning("%s ends unseen: the devices could not be looked at: %s", self.holder, error)
        try:
            await self._supervisor.stop(drain_secs)
        finally:
            shares.release(self.holder)
        await shares.returned(self.holder)

    async def _start(self) -> EngineClient:
        place, shares = self._place, self._place.shares
        self.devices = place.elsewhere(self.devices)
        given = await self._granted(
            MemoryRequest(place.holder, place.model, self.devices, place.memory_mb, place.sharers)
        )
        placed = place.spec(self.devices, given.mb)
        placed = replace(placed, path=self._path or placed.path)
        spec, note = shrunk(placed, self._pool_mb, self._supervisor.state.shrinks)
        if note != self._note:
            self._note = note
            self._tell(self._status(self._supervisor.state))
        try:
            client = await place.start(spec, self._hear)
        except BaseException:
            shares.put_back(place.holder, self._held)
            raise
        if self._path not in ("", client.spec.path):  # swapped in all others while it started
            await client.close()
            shares.put_back(place.holder, self._held)
            raise EngineDied("other weights are to be served by now")
        rows = client.ready.plan
        self._pool_mb = self._pool_mb or row_mb(rows, KV_ROW) * len(self.devices)
        self._held = shares.settle(place.holder, client.pids, row_mb(rows, TOTAL_ROW))
        return client

    async def _granted(self, request: MemoryRequest) -> MemoryGrant:
        """A share. That there is none is final for a first start; later it may come back, so the restart is tried again."""
        try:
            return await self._place.shares.place(request)
        except LoadError as error:
            if self._supervisor.state.phase is Phase.RECOVERING and error.kind == "does_not_fit":
                raise LoadError("insufficient_vram", error.message, error.extras) from error
            raise

    def _changed(self, state: EngineState) -> None:
        if state.phase is Phase.READY:
            self._last = self._supervisor.engine
        elif self._last is not None and state.phase is not Phase.DRAINING:  # the process is there until that has ended
            self._past, self._last = total([self._past, counters(self._last.load)]), None
            self._place.shares.ended(self.holder)
        fell = state.phase in (Phase.STARTING, Phase.RECOVERING, Phase.FAILED)
        if fell and REMEDIES.get(state.kind) is Remedy.ELSEWHERE:
            self._place.shares.lose(self.devices, state.last_error or state.kind)
        if state.phase is Phase.FAILED:
            self._place.shares.release(self.holder)
        self._tell(self._status(state))

    def _status(self, state: EngineState) -> ReplicaStatus:
        engine = self._supervisor.engine if state.phase is Phase.READY else None
        return ReplicaStatus(state, self._note, None if engine is None else _capacity(engine.ready))


def _capacity(ready: Ready) -> Capacity:
    return Capacity(ready.max_context, ready.max_slots)
