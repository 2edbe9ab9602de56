"""A model's status: its table, and what is read from it."""

from typing import Any

import pytest

from neuron_jax.daemon.status import (
    Advanced,
    Capacity,
    DrainBegan,
    DrainEnded,
    LoadEnded,
    LoadRefused,
    ModelStage,
    ModelStatus,
    Placed,
    ReplicaChanged,
    ReplicaStatus,
    after,
)
from neuron_jax.errors import LoadError
from neuron_jax.workers.frames import Progress
from neuron_jax.workers.supervisor import EngineState, Phase

HALF = Progress("read", 1, 2, "bytes")
FULL = LoadError("does_not_fit", "too big")
ROOM = Capacity(100, 4)
READY = ReplicaStatus(EngineState(Phase.READY), capacity=ROOM)
SMALL = ReplicaStatus(EngineState(Phase.READY, 1, 1, "full", "out_of_memory", 1), "less", Capacity(80, 2))
STARTING = ReplicaStatus()
AGAIN = ReplicaStatus(EngineState(Phase.RECOVERING, 1, 2, "oops", "exited"))
GIVEN_UP = ReplicaStatus(EngineState(Phase.FAILED, 6, 5, "no", "internal"))
STOPPED = ReplicaStatus(EngineState(Phase.STOPPED))

LOADING = ModelStatus(replicas=(STARTING, STARTING), progress=HALF)
LOADED = ModelStatus(ModelStage.LOADED, (READY, READY), capacity=Capacity(100, 8))
RECOVERING = ModelStatus(ModelStage.RECOVERING, (AGAIN, GIVEN_UP), capacity=ROOM)
FAILED = ModelStatus(ModelStage.FAILED, error=FULL)
DRAINING = ModelStatus(ModelStage.DRAINING, (READY,), capacity=ROOM)
UNLOADED = ModelStatus(ModelStage.UNLOADED)

TABLE = [
    (ModelStatus(), Advanced(HALF), ModelStatus(progress=HALF)),
    (ModelStatus(), Placed(2), ModelStatus(replicas=(STARTING, STARTING))),
    (LOADING, ReplicaChanged(1, AGAIN), ModelStatus(replicas=(STARTING, AGAIN), progress=HALF)),
    (LOADING, ReplicaChanged(0, READY), ModelStatus(replicas=(READY, STARTING))),
    (LOADING, LoadRefused(FULL), ModelStatus(ModelStage.FAILED, LOADING.replicas, error=FULL)),
    (LOADING, DrainBegan(), ModelStatus(ModelStage.DRAINING, LOADING.replicas)),
    (
        ModelStatus(replicas=(READY, SMALL)),
        LoadEnded(ROOM),
        ModelStatus(ModelStage.LOADED, (READY, SMALL), capacity=Capacity(80, 6)),
    ),
    (ModelStatus(replicas=(AGAIN,)), LoadEnded(ROOM), ModelStatus(ModelStage.RECOVERING, (AGAIN,), capacity=ROOM)),
    (ModelStatus(replicas=(GIVEN_UP,)), LoadEnded(ROOM), ModelStatus(ModelStage.FAILED, (GIVEN_UP,), capacity=ROOM)),
    (LOADED, ReplicaChanged(0, AGAIN), ModelStatus(ModelStage.LOADED, (AGAIN, READY), capacity=ROOM)),
    (LOADED, DrainBegan(), ModelStatus(ModelStage.DRAINING, (READY, READY), capacity=Capacity(100, 8))),
    (RECOVERING, Advanced(HALF), ModelStatus(ModelStage.RECOVERING, (AGAIN, GIVEN_UP), HALF, ROOM)),
    (
        ModelStatus(ModelStage.RECOVERING, (AGAIN, AGAIN), HALF, ROOM),
        ReplicaChanged(1, GIVEN_UP),
        ModelStatus(ModelStage.RECOVERING, (AGAIN, GIVEN_UP), HALF, ROOM),
    ),
    (
        ModelStatus(ModelStage.RECOVERING, (AGAIN, AGAIN), HALF, ROOM),
        ReplicaChanged(0, SMALL),
        ModelStatus(ModelStage.LOADED, (SMALL, AGAIN), capacity=Capacity(80, 2)),
    ),
    (RECOVERING, ReplicaChanged(0, GIVEN_UP), ModelStatus(ModelStage.FAILED, (GIVEN_UP, GIVEN_UP), capacity=ROOM)),
    (RECOVERING, DrainBegan(), ModelStatus(ModelStage.DRAINING, (AGAIN, GIVEN_UP), capacity=ROOM)),
    (FAILED, Advanced(HALF), FAILED),
    (FAILED, DrainBegan(), ModelStatus(ModelStage.DRAINING, error=FULL)),
    (DRAINING, Advanced(HALF), DRAINING),
    (DRAINING, ReplicaChanged(0, STOPPED), ModelStatus(ModelStage.DRAINING, (STOPPED,), capacity=ROOM)),
    (ModelStatus(ModelStage.DRAINING), LoadRefused(FULL), ModelStatus(ModelStage.DRAINING, error=FULL)),
    (DRAINING, DrainEnded(), ModelStatus(ModelStage.UNLOADED, (READY,), capacity=ROOM)),
    (UNLOADED, Advanced(HALF), UNLOADED),
]


@pytest.mark.parametrize(("status", "happening", "expected"), TABLE)
def test_the_table(status: ModelStatus, happening: Any, expected: ModelStatus) -> None:
    """Every legal happening leads to exactly this status."""
    assert after(status, happening) == expected


@pytest.mark.parametrize(
    ("status", "happening"),
    [
        (LOADING, Placed(1)),
        (LOADED, Placed(1)),
        (LOADING, ReplicaChanged(2, READY)),
        (ModelStatus(), LoadEnded(ROOM)),
        (LOADING, DrainEnded()),
        (LOADED, LoadEnded(ROOM)),
        (LOADED, LoadRefused(FULL)),
        (LOADED, DrainEnded()),
        (FAILED, LoadRefused(FULL)),
        (FAILED, LoadEnded(ROOM)),
        (FAILED, DrainEnded()),
        (DRAINING, DrainBegan()),
        (DRAINING, LoadEnded(ROOM)),
        (ModelStatus(ModelStage.DRAINING, error=FULL), LoadRefused(FULL)),
        (UNLOADED, DrainBegan()),
        (UNLOADED, DrainEnded()),
        (ModelStatus(ModelStage.UNLOADED, (STOPPED,)), ReplicaChanged(0, READY)),
    ],
)
def test_what_cannot_happen_is_a_bug(status: ModelStatus, happening: Any) -> None:
    """It is an assertion, never a silent status."""
    with pytest.raises(AssertionError):
        after(status, happening)


def test_a_model_complains_of_its_worst_engine() -> None:
    """Restarts are those of all; what was done about an error stands behind it; what a load failed of comes first."""
    both = ModelStatus(ModelStage.LOADED, (SMALL, AGAIN))

    assert (both.restarts, both.last_error) == (3, "oops")
    assert ModelStatus(ModelStage.LOADED, (SMALL, READY)).last_error == "full; less"
    assert ModelStatus(ModelStage.RECOVERING, (GIVEN_UP, AGAIN)).last_error == "no"
    assert ModelStatus(ModelStage.FAILED, (AGAIN,), error=FULL).last_error == "too big"
    assert (LOADED.last_error, ModelStatus().last_error, ModelStatus().restarts) == (None, None, 0)


def test_only_a_new_load_brings_back_what_has_ended() -> None:
    """What recovers does so by itself."""
    ended = {stage for stage in ModelStage if ModelStatus(stage).ended}

    assert ended == {ModelStage.FAILED, ModelStage.DRAINING, ModelStage.UNLOADED}


def test_an_engine_has_a_word_as_its_model_has() -> None:
    """Those of `replicas` in GET /models."""
    words = {phase.value: ReplicaStatus(EngineState(phase)).stage.value for phase in Phase}

    assert words == {
        "starting": "loading",
        "ready": "loaded",
        "recovering": "recovering",
        "failed": "failed",
        "draining": "draining",
        "stopped": "draining",
    }
