"""The supervisor: its table of states, and the one task that carries it out on a real process."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers import faults
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.supervisor import (
    REMEDIES,
    RESTARTS,
    Died,
    EngineState,
    Phase,
    Remedy,
    RestartPolicy,
    Started,
    StartFailed,
    StopAsked,
    Stopped,
    Supervisor,
    after,
    delay,
)
from tests.fakes.engine_double import COMMAND, environment
from tests.fakes.hand_engine import HandEngine, ready
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

READY = EngineState(Phase.READY)
FULL = EngineState(Phase.READY, 1, 1, "full", "out_of_memory", 1)
WORN = EngineState(Phase.READY, failures=RESTARTS.max_failures, restarts=RESTARTS.max_failures)
TABLE = [
    (EngineState(), Started(), EngineState(Phase.READY)),
    (EngineState(), StartFailed("no"), EngineState(Phase.FAILED, 1, 0, "no", "internal")),
    (EngineState(), StartFailed("no", "bad_checkpoint"), EngineState(Phase.FAILED, 1, 0, "no", "bad_checkpoint")),
    (
        EngineState(),
        StartFailed("full", "out_of_memory"),
        EngineState(Phase.STARTING, 1, 1, "full", "out_of_memory", 1),
    ),
    (EngineState(), StartFailed("busy", "device_busy"), EngineState(Phase.STARTING, 1, 1, "busy", "device_busy")),
    (EngineState(), StartFailed("lost", "device_lost"), EngineState(Phase.STARTING, 1, 1, "lost", "device_lost")),
    (
        EngineState(Phase.STARTING, RESTARTS.max_failures, 5, "busy", "device_busy"),
        StartFailed("busy", "device_busy"),
        EngineState(Phase.FAILED, RESTARTS.max_failures + 1, 5, "busy", "device_busy"),
    ),
    (EngineState(), StopAsked(), EngineState(Phase.DRAINING)),
    (READY, Died("oops", 1.0), EngineState(Phase.RECOVERING, 1, 1, "oops", "exited")),
    (READY, Died("bad", 1.0, "device_error"), EngineState(Phase.RECOVERING, 1, 1, "bad", "device_error")),
    (READY, Died("lost", 1.0, "device_lost"), EngineState(Phase.RECOVERING, 1, 1, "lost", "device_lost")),
    (READY, Died("full", 1.0, "out_of_memory"), EngineState(Phase.RECOVERING, 1, 1, "full", "out_of_memory", 1)),
    (FULL, Died("full", 1.0, "out_of_memory"), EngineState(Phase.FAILED, 2, 1, "full", "out_of_memory", 1)),
    (FULL, Died("oops", 1.0), EngineState(Phase.RECOVERING, 2, 2, "oops", "exited", 1)),
    (
        FULL,
        Died("full", RESTARTS.stable, "out_of_memory"),
        EngineState(Phase.RECOVERING, 1, 2, "full", "out_of_memory", 2),
    ),
    (READY, StopAsked(), EngineState(Phase.DRAINING)),
    (EngineState(Phase.RECOVERING, 2, 2, "x"), Started(), EngineState(Phase.READY, 2, 2, "x")),
    (EngineState(Phase.RECOVERING, 2, 2, "x"), StartFailed("y"), EngineState(Phase.RECOVERING, 3, 3, "y", "internal")),
    (
        EngineState(Phase.RECOVERING, 2, 2, "x"),
        StartFailed("y", "does_not_fit"),
        EngineState(Phase.FAILED, 3, 2, "y", "does_not_fit"),
    ),
    (EngineState(Phase.RECOVERING, 2, 2, "x"), StopAsked(), EngineState(Phase.DRAINING, 2, 2, "x")),
    (
        WORN,
        Died("again", 1.0),
        EngineState(Phase.FAILED, RESTARTS.max_failures + 1, RESTARTS.max_failures, "again", "exited"),
    ),
    (
        EngineState(Phase.RECOVERING, 1, 1, "gone", "rank_exited"),
        StartFailed("away", "rendezvous_timeout"),
        EngineState(Phase.RECOVERING, 1, 2, "away", "rendezvous_timeout", waits=1),
    ),
    (
        EngineState(Phase.RECOVERING, 1, 2, "away", "rendezvous_timeout", waits=RESTARTS.max_waits),
        StartFailed("away", "rendezvous_timeout"),
        EngineState(Phase.FAILED, 1, 2, "away", "rendezvous_timeout", waits=RESTARTS.max_waits + 1),
    ),
    (
        EngineState(Phase.RECOVERING, 1, 9, "away", "rendezvous_timeout", waits=8),
        Started(),
        EngineState(Phase.READY, 1, 9, "away", "rendezvous_timeout"),
    ),
    (
        EngineState(),
        StartFailed("away", "rendezvous_timeout"),
        EngineState(Phase.FAILED, 0, 0, "away", "rendezvous_timeout", waits=1),
    ),
    (
        WORN,
        Died("late", RESTARTS.stable),
        EngineState(Phase.RECOVERING, 1, RESTARTS.max_failures + 1, "late", "exited"),
    ),
    (EngineState(Phase.FAILED, last_error="no"), StopAsked(), EngineState(Phase.DRAINING, last_error="no")),
    (EngineState(Phase.DRAINING), Stopped(), EngineState(Phase.STOPPED)),
]


@pytest.mark.parametrize(("state", "happening", "expected"), TABLE)
def test_the_table_of_states(state: EngineState, happening: Any, expected: EngineState) -> None:
    """Every legal happening leads to exactly this state."""
    assert after(state, happening) == expected


def test_an_engine_begins_with_nothing_behind_it() -> None:
    """Above all with all of its memory: none of it was ever too much."""
    assert EngineState() == EngineState(
        Phase.STARTING, failures=0, restarts=0, last_error=None, kind="", shrinks=0, waits=0
    )


def test_what_an_error_wants_is_told_of_kinds_that_there_are() -> None:
    """Every kind of a fault has a remedy, and no remedy is for a kind that nobody names."""
    named = {*faults.TEXTS, "bad_checkpoint", "bad_transform", "does_not_fit", "bad_devices"}

    assert set(REMEDIES) <= named
    assert {kind: REMEDIES.get(kind, Remedy.RESTART) for kind in ("device_error", "rank_exited", "internal")} == {
        "device_error": Remedy.RESTART,
        "rank_exited": Remedy.RESTART,
        "internal": Remedy.RESTART,
    }


@pytest.mark.parametrize(
    ("phase", "happening"),
    [(Phase.STOPPED, Started()), (Phase.READY, Started()), (Phase.FAILED, Died("", 0)), (Phase.STARTING, Stopped())],
)
def test_what_cannot_happen_is_a_bug(phase: Phase, happening: Any) -> None:
    """A happening outside the table is an assertion, never a silent state."""
    with pytest.raises(AssertionError):
        after(EngineState(phase), happening)


def test_delays_double_up_to_a_bound() -> None:
    """The wait before a restart is exponential in the deaths in a row."""
    waits = [delay(EngineState(Phase.RECOVERING, failures)) for failures in (1, 2, 3, 20)]

    assert waits == [0.25, 0.5, 1.0, 30.0]
    assert delay(EngineState()) == 0.25
    assert delay(EngineState(Phase.RECOVERING, failures=1, waits=3)) == 2.0


@pytest.mark.parametrize(("kind", "most"), [("exited", 5), ("rendezvous_timeout", 20)])
def test_it_is_given_up_after_so_many_in_a_row(kind: str, most: int) -> None:
    """Five deaths are survived, and twenty starts for which another host was away."""
    state, restarts = after(READY, Died("gone", 1.0, kind)), 0
    while not state.ended:
        restarts += 1
        state = after(state, StartFailed("gone", kind))

    assert (state.phase, restarts, state.restarts) == (Phase.FAILED, most, most)


def test_a_start_that_failed_is_repeated_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """Each time after longer, and with an error in the log; who stops it is not one."""
    tried: list[float] = []

    async def start() -> EngineClient:
        tried.append(asyncio.get_running_loop().time())
        raise LoadError("device_busy", "somebody has it")

    async def run() -> None:
        supervisor = Supervisor("org/tiny", start, policy=RestartPolicy(first_delay=0.1))
        await until(lambda: len(tried) == 3)
        await supervisor.stop(0.0)

    with caplog.at_level(logging.INFO, "neuron.supervisor"):
        asyncio.run(run())
    first, second, third = tried
    levels = {record.getMessage().split()[1]: record.levelname for record in caplog.records}
    assert caplog.records[0].getMessage() == "org/tiny: starting (somebody has it)"
    assert second - first >= 0.1
    assert third - second >= 0.2
    assert levels == {"starting": "ERROR", "draining": "INFO", "stopped": "INFO"}


def test_an_engine_serves_until_it_dies_and_deaths_in_a_row_are_counted() -> None:
    """One that has died serves nobody, though nobody has noticed yet; each of these served for a moment only."""
    engines: list[HandEngine] = []

    async def start() -> EngineClient:
        engines.append(HandEngine(ready(100, 4)))
        return engines[-1]

    async def run() -> None:
        supervisor = Supervisor("org/tiny", start, policy=RestartPolicy(first_delay=0.0))
        assert supervisor.serving is None
        for number in range(3):
            await until(lambda: supervisor.state.phase is Phase.READY)
            assert supervisor.state.failures == number
            assert supervisor.serving is engines[-1]
            engines[-1].die("device_error")
            assert supervisor.serving is None
            await until(lambda before=number: supervisor.state.failures > before)
        await supervisor.stop(0.0)

    asyncio.run(run())


def test_who_stops_it_does_not_wait_for_the_next_start() -> None:
    """However long that is away."""
    tried: list[None] = []

    async def start() -> EngineClient:
        tried.append(None)
        raise LoadError("device_busy", "somebody has it")

    async def run() -> None:
        supervisor = Supervisor("org/tiny", start, policy=RestartPolicy(first_delay=3600.0, max_delay=3600.0))
        await until(lambda: tried)
        async with asyncio.timeout(60):
            await supervisor.stop(0.0)

    asyncio.run(run())
    assert len(tried) == 1


def supervised(folder: Path, use: Callable[[Supervisor, list[EngineState]], Awaitable[Any]], **script: Any) -> Any:
    write_tiny_model(folder, **script)
    spec = EngineSpec(model_id="tiny", path=str(folder))

    async def start() -> EngineClient:
        return await EngineClient.start(spec, inherited=environment(), command=COMMAND)

    async def run() -> Any:
        states: list[EngineState] = []
        supervisor = Supervisor("tiny", start, changed=states.append)
        try:
            return await use(supervisor, states)
        finally:
            await supervisor.stop(0)
            assert supervisor.engine is None
            assert supervisor.state.phase is Phase.STOPPED

    return asyncio.run(run())


def test_a_killed_engine_comes_back(tmp_path: Path) -> None:
    """After kill -9 the model is recovering, then ready with another process."""

    async def use(supervisor: Supervisor, states: list[EngineState]) -> list[str]:
        await supervisor.started()
        assert supervisor.engine is not None
        first = supervisor.engine.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.state.restarts == 1 and supervisor.state.phase is Phase.READY)
        assert supervisor.engine.pid != first
        return [state.phase.value for state in states]

    assert supervised(tmp_path, use) == ["ready", "recovering", "ready"]


def test_a_first_start_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    """The caller of a load gets the refusal at once, and the model is failed."""

    async def use(supervisor: Supervisor, states: list[EngineState]) -> Phase:
        with pytest.raises(LoadError, match="too big"):
            await supervisor.started()
        return supervisor.state.phase

    assert supervised(tmp_path, use, fail=["does_not_fit", "too big"]) is Phase.FAILED


def test_a_supervisor_that_fails_itself_has_failed(tmp_path: Path) -> None:
    """A fault in who is told of states: the engine is ended, who waits is told, and it can be stopped."""
    seen: list[EngineState] = []

    def changed(state: EngineState) -> None:
        seen.append(state)
        if state.phase is Phase.READY:
            raise RuntimeError("nobody foresaw this")

    async def run() -> None:
        spec = EngineSpec(model_id="org/tiny", path=str(write_tiny_model(tmp_path / "tiny")))
        supervisor = Supervisor(
            "org/tiny", lambda: EngineClient.start(spec, inherited=environment(), command=COMMAND), changed=changed
        )
        with pytest.raises(LoadError, match="nobody foresaw this"):
            await supervisor.started()
        assert supervisor.engine is None
        assert supervisor.state == seen[-1]
        assert (supervisor.state.phase, supervisor.state.kind) == (Phase.FAILED, "internal")
        await supervisor.stop(0.0)

    asyncio.run(run())


def test_a_start_that_is_cancelled_from_within_has_failed() -> None:
    """Nobody asked it to stop: it is told as any other failure, instead of being tried for ever without a pause."""

    async def start() -> EngineClient:
        raise asyncio.CancelledError

    async def run() -> None:
        supervisor = Supervisor("org/tiny", start)
        async with asyncio.timeout(10):
            with pytest.raises(EngineDied, match="was cancelled"):
                await supervisor.started()
            assert supervisor.state.phase is Phase.FAILED
            await supervisor.stop(0.0)

    asyncio.run(run())


def test_a_model_that_became_unloadable_is_given_up(tmp_path: Path) -> None:
    """A restart that is refused for good ends in failed, with the last error kept."""

    async def use(supervisor: Supervisor, states: list[EngineState]) -> str | None:
        await supervisor.started()
        assert supervisor.engine is not None
        write_tiny_model(tmp_path, fail=["bad_checkpoint", "the file is gone"])
        os.kill(supervisor.engine.pid, signal.SIGKILL)
        await until(lambda: supervisor.state.phase is Phase.FAILED)
        return supervisor.state.last_error

    assert supervised(tmp_path, use) == "the file is gone"


def test_a_busy_device_is_waited_for(tmp_path: Path) -> None:
    """The caller of the load waits as well, and gets an engine when the device is free."""

    async def use(supervisor: Supervisor, states: list[EngineState]) -> tuple[Phase, int]:
        await until(lambda: supervisor.state.failures)
        (tmp_path / "double.json").unlink()
        await supervisor.started()
        return supervisor.state.phase, len(states)

    phase, moves = supervised(tmp_path, use, fail=["device_busy", "all CUDA-capable devices are busy or unavailable"])

    assert phase is Phase.READY
    assert moves >= 2


def test_stopping_while_starting_ends_the_start(tmp_path: Path) -> None:
    """`stop` does not wait for a long load."""

    async def use(supervisor: Supervisor, states: list[EngineState]) -> None:
        await asyncio.sleep(0)
        await supervisor.stop(0)
        with pytest.raises(EngineDied, match="unloaded while it was loading"):
            await supervisor.started()

    supervised(tmp_path, use, load_seconds=60)
