"""Keeps one model's engine alive: the states, when to restart, when to give up; must not know HTTP or text.

    starting ──ready──▶ ready ──died──▶ recovering ──ready──▶ ready
        └──error──▶ failed ◀──too many──────┘
    any ──stop──▶ draining ──▶ stopped
    any ──fault of ours──▶ failed

What an error wants is in REMEDIES. `after` is the whole table of states as a pure function; `Supervisor` is the one task
that carries it out, and `start`, which it is given, does what the state asks for: less memory, other devices.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from enum import StrEnum
from typing import Any

import attrs
from attrs import frozen

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import Ready

_log = logging.getLogger("neuron.supervisor")


class Phase(StrEnum):
    """Where a model's engine is; `daemon.status` has the words of the wire for it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    RECOVERING = "recovering"
    FAILED = "failed"
    STOPPED = "stopped"


class Remedy(StrEnum):
    """What helps against an error."""

    GIVE_UP = "give up"  # another try gives the same answer
    SHRINK = "shrink"  # a new process with less memory for pages, once
    ELSEWHERE = "elsewhere"  # a new process on other devices
    WAIT = "wait"  # a new process later, also when the first start failed: somebody is about to leave
    AWAIT = (
        "await"  # a new process later: another host may come back; a first start that fails is the caller's to repeat
    )
    RESTART = "restart"  # a new process; a first start that fails is the caller's to repeat


REMEDIES: Mapping[str, Remedy] = {
    "bad_checkpoint": Remedy.GIVE_UP,
    "does_not_fit": Remedy.GIVE_UP,
    "bad_devices": Remedy.GIVE_UP,
    "bad_transform": Remedy.GIVE_UP,
    "cuda_feature_not_enabled": Remedy.GIVE_UP,
    "out_of_memory": Remedy.SHRINK,
    "device_lost": Remedy.ELSEWHERE,
    "device_busy": Remedy.WAIT,
    "rendezvous_timeout": Remedy.AWAIT,
}
"""By kind, as in `workers.faults` and in the refusals of a load; for every other kind it is RESTART."""


@frozen
class RestartPolicy:
    """When an engine that died is started again. Times in seconds.

    More than `max_failures` deaths in a row, failed restarts among them, and the model is given up. Waits before a restart
    double from `first_delay` to `max_delay`. An engine that served for `stable` before it died starts a new count.
    Hosts that are away may be away for longer: then it is `max_waits`, which is some minutes.
    """

    max_failures: int = 5
    max_waits: int = 20
    first_delay: float = 0.25
    max_delay: float = 30.0
    stable: float = 60.0


RESTARTS = RestartPolicy()


@frozen
class EngineState:
    """A model's engine: its phase, deaths in a row, restarts in all, and the last error anybody should read.

    `kind` is that of the last death in this row. `shrinks`: how often the engine ran out of memory, and begins with less.
    `waits`: starts in a row for which another host was away.
    """

    phase: Phase = Phase.STARTING
    failures: int = 0
    restarts: int = 0
    last_error: str | None = None
    kind: str = ""
    shrinks: int = 0
    waits: int = 0

    @property
    def ended(self) -> bool:
        """True when only a new load brings the model back."""
        return self.phase in (Phase.FAILED, Phase.STOPPED)


@frozen
class Started:
    """The engine said it is ready."""


@frozen
class StartFailed:
    """The engine did not become ready."""

    error: str
    kind: str = "internal"


@frozen
class Died:
    """A ready engine ended after `served` seconds."""

    error: str
    served: float
    kind: str = "exited"


@frozen
class StopAsked:
    """Somebody wants the model unloaded."""


@frozen
class Stopped:
    """The process is gone and was meant to be."""


@frozen
class Faulted:
    """A fault of ours ended the supervision itself, and with it the engine."""

    error: str


Happening = Started | StartFailed | Died | StopAsked | Stopped | Faulted


def after(state: EngineState, happening: Happening, policy: RestartPolicy = RESTARTS) -> EngineState:
    """The state after `happening`. Raises AssertionError on what cannot happen in `state`."""
    match state.phase, happening:
        case ((Phase.STARTING | Phase.READY | Phase.RECOVERING | Phase.FAILED), StopAsked()):
            return attrs.evolve(state, phase=Phase.DRAINING)
        case Phase.DRAINING, Stopped():
            return attrs.evolve(state, phase=Phase.STOPPED)
        case ((Phase.STARTING | Phase.RECOVERING), Started()):
            return attrs.evolve(state, phase=Phase.READY, waits=0)
        case ((Phase.STARTING | Phase.RECOVERING), StartFailed(error, kind)):
            return _fallen(state, error, kind, policy)
        case Phase.READY, Died(error, served, kind):
            row = state if served < policy.stable else attrs.evolve(state, failures=0, kind="")
            return _fallen(row, error, kind, policy)
        case _, Faulted(error):
            return attrs.evolve(state, phase=Phase.FAILED, last_error=error, kind="internal")
    raise AssertionError(f"{happening} in {state}")


def _fallen(state: EngineState, error: str, kind: str, policy: RestartPolicy) -> EngineState:
    remedy = REMEDIES.get(kind, Remedy.RESTART)
    told = attrs.evolve(state, failures=state.failures + 1, last_error=error, kind=kind)
    if remedy is Remedy.AWAIT:  # nothing of ours failed
        told = attrs.evolve(told, failures=state.failures, waits=state.waits + 1)
    if told.failures > policy.max_failures or told.waits > policy.max_waits or _gives_up(state, remedy, kind):
        return attrs.evolve(told, phase=Phase.FAILED)
    return attrs.evolve(
        told,
        phase=Phase.STARTING if state.phase is Phase.STARTING else Phase.RECOVERING,
        restarts=state.restarts + 1,
        shrinks=state.shrinks + (remedy is Remedy.SHRINK),
    )


def _gives_up(state: EngineState, remedy: Remedy, kind: str) -> bool:
    match remedy:
        case Remedy.GIVE_UP:
            return True
        case Remedy.SHRINK:
            return state.kind == kind  # with less memory it ran out of it again
        case Remedy.RESTART | Remedy.AWAIT:
            return state.phase is Phase.STARTING
    return False


def delay(state: EngineState, policy: RestartPolicy = RESTARTS) -> float:
    """Seconds to wait before the next start: exponential in the deaths and waits in a row."""
    return min(policy.first_delay * 2.0 ** max(0, state.failures + state.waits - 1), policy.max_delay)


class Supervisor:
    """Owns one model's engine from the first start to its end, in one task. `start` gives a ready engine or raises."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[EngineClient]],
        *,
        changed: Callable[[EngineState], None] = lambda _: None,
        policy: RestartPolicy = RESTARTS,
    ) -> None:
        self.state = EngineState()
        self.engine: EngineClient | None = None
        self._name = name
        self._start = start
        self._changed = changed
        self._policy = policy
        self._stopping = asyncio.Event()
        self._drain_secs = 0.0
        self._first: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name=f"supervisor of {name}")

    @property
    def serving(self) -> EngineClient | None:
        """The engine, while it can be submitted to: one that died is none, also before anybody has noticed."""
        return None if self.engine is None or self.engine.died.done() else self.engine

    async def started(self) -> Ready:
        """What the engine said when it served for the first time; it may have died since.

        Raises LoadError or EngineDied when it never did.
        """
        return await asyncio.shield(self._first)

    async def stop(self, drain_secs: float) -> None:
        """Waits up to `drain_secs` for what is in flight, ends the process, and returns when it is gone."""
        self._drain_secs = drain_secs
        self._stopping.set()
        await asyncio.shield(self._task)

    async def _run(self) -> None:
        try:
            await self._live()
        except Exception as error:  # noqa: BLE001  # a fault of ours: without this its model would be what it was last, for ever
            _log.exception("%s: its supervisor failed", self._name)
            said = f"{type(error).__name__}: {error}"
            self.state = after(self.state, Faulted(said), self._policy)
            self._settle(LoadError("internal", said))
            self._changed(self.state)

    async def _live(self) -> None:
        try:
            while not self._stopping.is_set():
                await self._turn()
            self._move(StopAsked())
            if self.engine is not None:
                await _within(self.engine.idle(), self._drain_secs)
        finally:
            await self._end_engine()
        self._move(Stopped())
        self._settle(EngineDied(f"{self._name} was unloaded while it was loading"))

    async def _turn(self) -> None:
        match self.state.phase:
            case Phase.STARTING | Phase.RECOVERING:
                await self._try_start()
            case Phase.READY:
                await self._serve()
            case _:
                await self._stopping.wait()

    async def _try_start(self) -> None:
        if (self.state.failures or self.state.waits) and await _within(
            self._stopping.wait(), delay(self.state, self._policy)
        ):
            return
        starting = asyncio.ensure_future(self._start())
        try:
            await self._unless_stopped(starting)
        finally:
            starting.cancel()
            done = (await asyncio.gather(starting, return_exceptions=True))[0]
        if isinstance(done, EngineClient):
            self.engine = done
            self._move(Started())
            self._settle(done.ready)
        elif isinstance(done, asyncio.CancelledError) and not self._stopping.is_set():
            self._start_failed(EngineDied("its start waited for something that was cancelled", "internal"))
        elif isinstance(done, Exception):
            self._start_failed(done)

    def _start_failed(self, error: Exception) -> None:
        self._move(StartFailed(str(error), _kind(error)))
        if self.state.ended:
            self._settle(error)

    async def _serve(self) -> None:
        assert self.engine is not None
        since = time.monotonic()
        await self._unless_stopped(self.engine.died)
        if self.engine.died.done():
            died = self.engine.died.result()
            self._move(Died(str(died), time.monotonic() - since, died.kind))
            await self._end_engine()

    async def _unless_stopped(self, future: "asyncio.Future[Any]") -> None:
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({future, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()

    async def _end_engine(self) -> None:
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.close()

    def _settle(self, outcome: Ready | Exception) -> None:
        if self._first.done():
            return
        if isinstance(outcome, Ready):
            self._first.set_result(outcome)
            return
        self._first.set_exception(outcome)
        self._first.exception()  # nobody may be waiting any more

    def _move(self, happening: Happening) -> None:
        self.state = after(self.state, happening, self._policy)
        level = logging.ERROR if isinstance(happening, Died | StartFailed) else logging.INFO
        _log.log(level, "%s: %s (%s)", self._name, self.state.phase.value, self.state.last_error or "no error")
        self._changed(self.state)


def _kind(error: Exception) -> str:
    return error.kind if isinstance(error, LoadError | EngineDied) else "internal"


async def _within(work: Coroutine[Any, Any, Any], seconds: float) -> bool:
    """True when `work` ended within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
