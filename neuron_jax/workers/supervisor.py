"""Keeps one model's engine alive: the states, when to restart, when to give up; must not know HTTP or text.

    starting ──ready──▶ ready ──died──▶ recovering ──ready──▶ ready
        └──error──▶ failed ◀──too many──────┘
    any ──stop──▶ draining ──▶ stopped

`after` is the whole table as a pure function; `Supervisor` is the one task that carries it out.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from enum import StrEnum
from typing import Any

import attrs
from attrs import frozen

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import Ready

FATAL = ("bad_checkpoint", "does_not_fit", "cuda_feature_not_enabled")
"""Kinds of a failed start that another try cannot change; all others may pass: memory comes back late, a peer returns."""

_log = logging.getLogger("neuron.supervisor")


class Phase(StrEnum):
    """Where a model's engine is; the values of `status` on the wire are made of these."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    RECOVERING = "recovering"
    FAILED = "failed"
    STOPPED = "stopped"


@frozen
class RestartPolicy:
    """When an engine that died is started again. Times in seconds.

    More than `max_failures` deaths in a row, failed restarts among them, and the model is given up. Waits before a restart
    double from `first_delay` to `max_delay`. An engine that served for `stable` before it died starts a new count.
    """

    max_failures: int = 5
    first_delay: float = 0.25
    max_delay: float = 30.0
    stable: float = 60.0


RESTARTS = RestartPolicy()


@frozen
class State:
    """A model's engine: its phase, deaths in a row, restarts in all, and the last error anybody should read."""

    phase: Phase = Phase.STARTING
    failures: int = 0
    restarts: int = 0
    last_error: str | None = None

    @property
    def ended(self) -> bool:
        """True when only a new load brings the model back."""
        return self.phase in (Phase.FAILED, Phase.STOPPED)


@frozen
class Started:
    """The engine said it is ready."""


@frozen
class StartFailed:
    """The engine did not become ready. `fatal`: trying again gives the same answer."""

    error: str
    fatal: bool


@frozen
class Died:
    """A ready engine ended after `served` seconds."""

    error: str
    served: float


@frozen
class StopAsked:
    """Somebody wants the model unloaded."""


@frozen
class Stopped:
    """The process is gone and was meant to be."""


Happening = Started | StartFailed | Died | StopAsked | Stopped


def after(state: State, happening: Happening, policy: RestartPolicy = RESTARTS) -> State:
    """The state after `happening`. Raises AssertionError on what cannot happen in `state`."""
    match state.phase, happening:
        case ((Phase.STARTING | Phase.READY | Phase.RECOVERING | Phase.FAILED), StopAsked()):
            return attrs.evolve(state, phase=Phase.DRAINING)
        case Phase.DRAINING, Stopped():
            return attrs.evolve(state, phase=Phase.STOPPED)
        case ((Phase.STARTING | Phase.RECOVERING), Started()):
            return attrs.evolve(state, phase=Phase.READY)
        case Phase.STARTING, StartFailed(error):
            return attrs.evolve(state, phase=Phase.FAILED, last_error=error)
        case Phase.RECOVERING, StartFailed(error, fatal):
            return _fallen(state, state.failures + 1, error, give_up=fatal or state.failures >= policy.max_failures)
        case Phase.READY, Died(error, served):
            failures = 1 if served >= policy.stable else state.failures + 1
            return _fallen(state, failures, error, give_up=failures > policy.max_failures)
    raise AssertionError(f"{happening} in {state}")


def _fallen(state: State, failures: int, error: str, *, give_up: bool) -> State:
    if give_up:
        return attrs.evolve(state, phase=Phase.FAILED, failures=failures, last_error=error)
    restarts = state.restarts + 1
    return State(phase=Phase.RECOVERING, failures=failures, restarts=restarts, last_error=error)


def delay(state: State, policy: RestartPolicy = RESTARTS) -> float:
    """Seconds to wait before the next start: exponential in the deaths in a row."""
    return min(policy.first_delay * 2.0 ** max(0, state.failures - 1), policy.max_delay)


class Supervisor:
    """Owns one model's engine from the first start to its end, in one task. `start` gives a ready engine or raises."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[EngineClient]],
        *,
        changed: Callable[[State], None] = lambda _: None,
        policy: RestartPolicy = RESTARTS,
    ) -> None:
        self.state = State()
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
        if self.state.failures and await _within(self._stopping.wait(), delay(self.state, self._policy)):
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
        elif isinstance(done, Exception):
            self._move(StartFailed(str(done), fatal=isinstance(done, LoadError) and done.kind in FATAL))
            self._settle(done)

    async def _serve(self) -> None:
        assert self.engine is not None
        since = time.monotonic()
        await self._unless_stopped(self.engine.died)
        if self.engine.died.done():
            error = str(self.engine.died.result())
            await self._end_engine()
            self._move(Died(error, time.monotonic() - since))

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


async def _within(work: Coroutine[Any, Any, Any], seconds: float) -> bool:
    """True when `work` ended within `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
