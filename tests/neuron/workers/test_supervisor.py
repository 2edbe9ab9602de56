"""The supervisor: its table of states, and the one task that carries it out on a real process."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.supervisor import (
    RESTARTS,
    Died,
    Phase,
    Started,
    StartFailed,
    State,
    StopAsked,
    Stopped,
    Supervisor,
    after,
    delay,
)
from tests.fakes.engine_double import COMMAND, environment
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

READY = State(Phase.READY)
WORN = State(Phase.READY, failures=RESTARTS.max_failures, restarts=RESTARTS.max_failures)
TABLE = [
    (State(), Started(), State(Phase.READY)),
    (State(), StartFailed("no", fatal=False), State(Phase.FAILED, last_error="no")),
    (State(), StopAsked(), State(Phase.DRAINING)),
    (READY, Died("oops", 1.0), State(Phase.RECOVERING, 1, 1, "oops")),
    (READY, StopAsked(), State(Phase.DRAINING)),
    (State(Phase.RECOVERING, 2, 2, "x"), Started(), State(Phase.READY, 2, 2, "x")),
    (State(Phase.RECOVERING, 2, 2, "x"), StartFailed("y", fatal=False), State(Phase.RECOVERING, 3, 3, "y")),
    (State(Phase.RECOVERING, 2, 2, "x"), StartFailed("y", fatal=True), State(Phase.FAILED, 3, 2, "y")),
    (State(Phase.RECOVERING, 2, 2, "x"), StopAsked(), State(Phase.DRAINING, 2, 2, "x")),
    (WORN, Died("again", 1.0), State(Phase.FAILED, RESTARTS.max_failures + 1, RESTARTS.max_failures, "again")),
    (WORN, Died("late", RESTARTS.stable), State(Phase.RECOVERING, 1, RESTARTS.max_failures + 1, "late")),
    (State(Phase.FAILED, last_error="no"), StopAsked(), State(Phase.DRAINING, last_error="no")),
    (State(Phase.DRAINING), Stopped(), State(Phase.STOPPED)),
]


@pytest.mark.parametrize(("state", "happening", "expected"), TABLE)
def test_the_table_of_states(state: State, happening: Any, expected: State) -> None:
    """Every legal happening leads to exactly this state."""
    assert after(state, happening) == expected


@pytest.mark.parametrize(
    ("phase", "happening"),
    [(Phase.STOPPED, Started()), (Phase.READY, Started()), (Phase.FAILED, Died("", 0)), (Phase.STARTING, Stopped())],
)
def test_what_cannot_happen_is_a_bug(phase: Phase, happening: Any) -> None:
    """A happening outside the table is an assertion, never a silent state."""
    with pytest.raises(AssertionError):
        after(State(phase), happening)


def test_delays_double_up_to_a_bound() -> None:
    """The wait before a restart is exponential in the deaths in a row."""
    waits = [delay(State(Phase.RECOVERING, failures)) for failures in (1, 2, 3, 20)]

    assert waits == [0.25, 0.5, 1.0, 30.0]


def supervised(folder: Path, use: Callable[[Supervisor, list[State]], Awaitable[Any]], **script: Any) -> Any:
    write_tiny_model(folder, **script)
    spec = EngineSpec(model_id="tiny", path=str(folder))

    async def start() -> EngineClient:
        return await EngineClient.start(spec, inherited=environment(), command=COMMAND)

    async def run() -> Any:
        states: list[State] = []
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

    async def use(supervisor: Supervisor, states: list[State]) -> list[str]:
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

    async def use(supervisor: Supervisor, states: list[State]) -> Phase:
        with pytest.raises(LoadError, match="too big"):
            await supervisor.started()
        return supervisor.state.phase

    assert supervised(tmp_path, use, fail=["does_not_fit", "too big"]) is Phase.FAILED


def test_a_model_that_became_unloadable_is_given_up(tmp_path: Path) -> None:
    """A restart that is refused for good ends in failed, with the last error kept."""

    async def use(supervisor: Supervisor, states: list[State]) -> str | None:
        await supervisor.started()
        assert supervisor.engine is not None
        write_tiny_model(tmp_path, fail=["bad_checkpoint", "the file is gone"])
        os.kill(supervisor.engine.pid, signal.SIGKILL)
        await until(lambda: supervisor.state.phase is Phase.FAILED)
        return supervisor.state.last_error

    assert supervised(tmp_path, use) == "the file is gone"


def test_stopping_while_starting_ends_the_start(tmp_path: Path) -> None:
    """`stop` does not wait for a long load."""

    async def use(supervisor: Supervisor, states: list[State]) -> None:
        await asyncio.sleep(0)
        await supervisor.stop(0)
        with pytest.raises(EngineDied, match="unloaded while it was loading"):
            await supervisor.started()

    supervised(tmp_path, use, load_seconds=60)
