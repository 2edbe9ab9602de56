"""One load, unload or restart of engines over all nodes that take part: what is still to be done, and what runs. Records only.

`operations` begins and ends them.
"""

from typing import Literal

from attrs import define, field, frozen

from cortex_gateway.fleet.messages import LoadSpec
from cortex_gateway.placement.snapshot import LoadStatus

FIRST_PAUSE_SECS = 0.25


@frozen(kw_only=True)
class UnloadStep:
    """A model leaves the node that serves it. `at`: where its memory is wanted, another node where that lends to it."""

    node: str
    model: str
    at: str
    incoming: str | None = None  # the model that it makes room for


@frozen(kw_only=True)
class LoadStep:
    """A model is loaded; `node` leads where the specification names others."""

    node: str
    spec: LoadSpec

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.node, *self.spec.hosts)


Step = UnloadStep | LoadStep


@frozen(kw_only=True)
class Eviction:
    """Who left `node`, as it was loaded there, to make room. `others`: nodes that kept a replica of it."""

    node: str
    spec: LoadSpec
    others: int


@define(kw_only=True, eq=False)
class Operation:
    """First models leave, on all nodes at once and on each in order; then models are loaded, one after another.

    Attributes:
        why: somebody waits for a load or an unload; nobody does for what leaves idle, or starts afresh.
        model: what it is for; "" where engines are started afresh.
        running: what each node was asked to do and has not ended. It stays among the steps until it has.
        evicted: who has left for a load that has not succeeded yet.
        otherwise: what is loaded where the load fails.
        retried: nobody else is to leave if a node refuses for want of memory.
        not_before: seconds; the next load begins then at the earliest.
        pause: seconds; the last wait for memory that was still coming back, 0 = there was none.
    """

    why: Literal["load", "unload", "idle", "defrag"]
    model: str
    unloads: list[UnloadStep] = field(factory=list)
    loads: list[LoadStep] = field(factory=list)
    running: dict[str, Step] = field(factory=dict)
    evicted: list[Eviction] = field(factory=list)
    otherwise: LoadSpec | None = None
    retried: bool = False
    not_before: float = 0.0
    pause: float = 0.0
    progress: LoadStatus | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those that take part in what is left of it; the one that leads first."""
        loading = [name for step in self.loads for name in step.nodes]
        return tuple(dict.fromkeys([*loading, *(step.node for step in self.unloads)]))

    @property
    def loading(self) -> bool:
        """A load runs: from then on it is not ended from here."""
        return bool(self.loads) and self.loads[0] in self.running.values()

    @property
    def unfinished(self) -> bool:
        """There is something left to begin."""
        return len(self.unloads) + len(self.loads) > len(self.running)

    @property
    def state(self) -> object:
        """Equal while it is where it was."""
        steps = (tuple(self.unloads), tuple(self.loads), tuple(self.running))
        return (self.why, self.model, steps, self.pause, self.progress)

    def first_unloads(self) -> list[UnloadStep]:
        """Of each node that gets memory back the first."""
        return list({step.at: step for step in reversed(self.unloads)}.values())[::-1]

    def cut_short(self) -> None:
        """Begin nothing more: what runs is still to end."""
        self.unloads = [step for step in self.unloads if step in self.running.values()]
        self.loads = []
        self.otherwise = None

    def again(self, now: float) -> None:
        """Take the load once more, each time after a longer pause."""
        self.pause = self.pause * 2 or FIRST_PAUSE_SECS
        self.not_before = now + self.pause

    # -- as one of its nodes shows it --------------------------------------------------------------------------------

    def loads_on(self, node: str, model: str) -> bool:
        return any(step.node == node and step.spec.model_id == model for step in self.loads)

    def unloads_from(self, node: str, model: str) -> bool:
        return any(step.node == node and step.model == model for step in self.unloads)

    def words(self, node: str) -> str:
        """What the node is at, as `cortex status` shows it."""
        runs = self.running.get(node)
        if isinstance(runs, UnloadStep):
            return f"unloading {runs.model}"
        for step in self.unloads:
            if node in (step.node, step.at):
                return f"waiting for {step.model} to drain"
        load = self.loads[0]
        if load.node != node:
            return f"lending to {self.model}, led by {load.node}"
        waits = self.pause and not self.loading
        return f"waiting for memory for {load.spec.model_id}" if waits else f"loading {load.spec.model_id}"

    def status(self, model: str) -> LoadStatus:
        """How far the load of `model` is: behind other steps, or as the node last reported."""
        if self.unloads or self.loads[0].spec.model_id != model:
            return LoadStatus(phase="making room")
        if self.pause and not self.loading:
            return LoadStatus(phase="waiting for memory")
        return self.progress or LoadStatus(phase="starting")
