"""Where one model stands: a value, what may happen to it, and what it is afterwards; pure, must not know tasks or processes.

    loading ──LoadEnded──▶ loaded ⇄ recovering ──no engine left──▶ failed
       └──────────────────LoadRefused────────────────────────────────┘
    loading | loaded | recovering | failed ──DrainBegan──▶ draining ──DrainEnded──▶ unloaded

`after` is the whole table. `ResidentModel` owns the value of its model; what the routes and metrics tell of a model, and who
is let in, is read from there.
"""

from collections.abc import Mapping
from enum import StrEnum

import attrs
from attrs import field, frozen

from neuron_jax.errors import LoadError
from neuron_jax.workers.frames import Progress
from neuron_jax.workers.supervisor import EngineState, Phase


class ModelStage(StrEnum):
    """The values are the words on the wire."""

    LOADING = "loading"
    LOADED = "loaded"
    RECOVERING = "recovering"
    FAILED = "failed"
    DRAINING = "draining"
    UNLOADED = "unloaded"


STAGES: Mapping[Phase, ModelStage] = {
    Phase.STARTING: ModelStage.LOADING,
    Phase.READY: ModelStage.LOADED,
    Phase.RECOVERING: ModelStage.RECOVERING,
    Phase.FAILED: ModelStage.FAILED,
    Phase.DRAINING: ModelStage.DRAINING,
    Phase.STOPPED: ModelStage.DRAINING,
}
"""An engine's phase in the words for a model."""

WORST_LAST = (Phase.READY, Phase.DRAINING, Phase.RECOVERING, Phase.STARTING, Phase.FAILED, Phase.STOPPED)
"""Of engines that have an error to tell, the one that is furthest down here tells it for the model."""


@frozen
class Capacity:
    """What is offered to requests: tokens of context, and how many run at once."""

    max_context: int
    slots: int


@frozen
class ReplicaStatus:
    """One engine of a model. `note`: what was done about its last error. `capacity`: what it offers, while it serves."""

    state: EngineState = field(factory=EngineState)
    note: str = ""
    capacity: Capacity | None = None

    @property
    def stage(self) -> ModelStage:
        """The word for it on the wire."""
        return STAGES[self.state.phase]

    @property
    def last_error(self) -> str | None:
        """What went wrong last, and what was done about it."""
        error = self.state.last_error
        return error if error is None or not self.note else f"{error}; {self.note}"


@frozen
class ModelStatus:
    """One model. `error`: what its load failed of.

    `replicas` are its engines, once their places are known; `capacity` is that of those that serve together, or of the last
    that did, and None until all have served. `progress` is that of a start.
    """

    stage: ModelStage = ModelStage.LOADING
    replicas: tuple[ReplicaStatus, ...] = ()
    progress: Progress | None = None
    capacity: Capacity | None = None
    error: LoadError | None = None

    @property
    def ended(self) -> bool:
        """True when only a new load brings the model back."""
        return self.stage in (ModelStage.FAILED, ModelStage.DRAINING, ModelStage.UNLOADED)

    @property
    def restarts(self) -> int:
        """Of all engines together."""
        return sum(one.state.restarts for one in self.replicas)

    @property
    def last_error(self) -> str | None:
        """What went wrong last, of an engine in trouble first."""
        if self.error is not None:
            return self.error.message
        return max(self.replicas, key=_trouble).last_error if self.replicas else None


@frozen
class Advanced:
    """A start is so far."""

    progress: Progress


@frozen
class Placed:
    """So many engines begin to start."""

    replicas: int


@frozen
class ReplicaChanged:
    """The status of one engine is another."""

    index: int
    status: ReplicaStatus


@frozen
class LoadEnded:
    """All engines have served; `capacity` is what they offered when they began to."""

    capacity: Capacity


@frozen
class LoadRefused:
    """It will not be loaded."""

    error: LoadError


@frozen
class DrainBegan:
    """Somebody wants it unloaded."""


@frozen
class DrainEnded:
    """Nothing of it is left."""


Happening = Advanced | Placed | ReplicaChanged | LoadEnded | LoadRefused | DrainBegan | DrainEnded


def after(status: ModelStatus, happening: Happening) -> ModelStatus:
    """The status after `happening`. Raises AssertionError on what cannot happen in `status`."""
    match status.stage, happening:
        case ((ModelStage.LOADING | ModelStage.LOADED | ModelStage.RECOVERING), Advanced(progress)):
            new = attrs.evolve(status, progress=progress)
        case (
            (ModelStage.FAILED | ModelStage.DRAINING | ModelStage.UNLOADED),
            Advanced(),
        ):  # said before its end was heard of
            new = status
        case ModelStage.LOADING, Placed(count) if not status.replicas:
            new = attrs.evolve(status, replicas=(ReplicaStatus(),) * count)
        case (_, ReplicaChanged(index, one)) if status.stage is not ModelStage.UNLOADED and index < len(
            status.replicas
        ):
            new = _told(attrs.evolve(status, replicas=(*status.replicas[:index], one, *status.replicas[index + 1 :])))
        case ModelStage.LOADING, LoadEnded(capacity) if status.replicas:
            new = _told(attrs.evolve(status, stage=ModelStage.LOADED, progress=None, capacity=capacity))
        case ModelStage.LOADING, LoadRefused(error):
            new = attrs.evolve(status, stage=ModelStage.FAILED, progress=None, error=error)
        case ModelStage.DRAINING, LoadRefused(error) if status.error is None:
            new = attrs.evolve(status, error=error)
        case ((ModelStage.LOADING | ModelStage.LOADED | ModelStage.RECOVERING | ModelStage.FAILED), DrainBegan()):
            new = attrs.evolve(status, stage=ModelStage.DRAINING, progress=None)
        case ModelStage.DRAINING, DrainEnded():
            new = attrs.evolve(status, stage=ModelStage.UNLOADED)
        case _:
            raise AssertionError(f"{happening} in {status}")
    return new


def _told(status: ModelStatus) -> ModelStatus:
    """`status` with what follows from its engines: they say when nobody starts any more, and how well a loaded model is."""
    best = _best(status.replicas)
    if best in (ModelStage.LOADED, ModelStage.FAILED):
        status = attrs.evolve(status, progress=None)
    if status.stage not in (ModelStage.LOADED, ModelStage.RECOVERING):
        return status
    return attrs.evolve(status, stage=best, capacity=_offered(status.replicas) or status.capacity)


def _best(replicas: tuple[ReplicaStatus, ...]) -> ModelStage:
    """A model serves while one of its engines does, and has failed when all have."""
    phases = {one.state.phase for one in replicas}
    if Phase.READY in phases:
        return ModelStage.LOADED
    return ModelStage.FAILED if phases == {Phase.FAILED} else ModelStage.RECOVERING


def _offered(replicas: tuple[ReplicaStatus, ...]) -> Capacity | None:
    """That of the engines that serve; one that was started again with less memory may offer less."""
    serving = [one.capacity for one in replicas if one.capacity is not None]
    if not serving:
        return None
    return Capacity(min(one.max_context for one in serving), sum(one.slots for one in serving))


def _trouble(replica: ReplicaStatus) -> tuple[bool, int]:
    return replica.last_error is not None, WORST_LAST.index(replica.state.phase)
