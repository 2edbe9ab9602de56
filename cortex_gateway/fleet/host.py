"""One node as the owner of residency knows it: what it said, what we did to it since, and the job under way. No I/O."""

from collections import Counter, deque
from typing import Literal

from attrs import define, evolve, field

from cortex_gateway.fleet.messages import LoadSpec, Observation
from cortex_gateway.placement.route import Candidate
from cortex_gateway.placement.snapshot import Group, LoadStatus, Membership, Node, Replica

MISSES_UNTIL_UNHEALTHY = 3


@define(kw_only=True)
class Unload:
    model: str
    incoming: str | None = None  # the model it makes room for


@define(kw_only=True)
class Load:
    spec: LoadSpec


@define(kw_only=True)
class Lend:
    """Keep what is free free, until the leader's load has ended."""

    leader: str


@define(kw_only=True)
class Job:
    """Steps that one node takes one after another; the first may be running."""

    why: Literal["load", "unload", "defrag"]
    model: str  # what it is for; "" for defrag
    steps: deque["Unload | Load | Lend"]
    running: bool = False
    retried: bool = False  # the node refused for want of memory once already
    progress: LoadStatus | None = None

    def loads(self, model: str) -> bool:
        return any(isinstance(step, Load) and step.spec.model_id == model for step in self.steps)

    def unloads(self, model: str) -> bool:
        return any(isinstance(step, Unload) and step.model == model for step in self.steps)

    def words(self) -> str:
        """The step at hand, as `cortex status` shows it."""
        step = self.steps[0]
        if isinstance(step, Load):
            return f"loading {step.spec.model_id}"
        if isinstance(step, Lend):
            return f"lending to {self.model}, led by {step.leader}"
        return f"unloading {step.model}" if self.running else f"waiting for {step.model} to drain"

    def status(self, model: str) -> LoadStatus:
        """How far the load of `model` is: behind other steps, or as the node last reported."""
        step = self.steps[0]
        if isinstance(step, Load) and step.spec.model_id == model:
            return self.progress or LoadStatus(phase="starting")
        return LoadStatus(phase="making room")


@define(kw_only=True)
class Host:
    """Mutable, and only Residency writes it."""

    name: str
    endpoint: str
    healthy: bool = False
    reason: str | None = None
    misses: int = 0
    silences: int = 0  # misses in a row without a word
    suspect: bool = False  # a request could not reach it: it gets no other before it has answered a look
    silent: bool = False  # it is suspect, and the look that followed was missed
    seen: Observation = field(factory=Observation)
    replicas: dict[str, Replica] = field(factory=dict)
    ours: Counter[str] = field(factory=Counter)
    peak: Counter[str] = field(factory=Counter)  # most of ours at once since the look began
    last_used: dict[str, float] = field(factory=dict)
    cycles: int = 0
    job: Job | None = None
    stale: bool = False  # memory and models have changed since the node was last looked at
    looked_before_change: bool = False  # the look that is under way began before the last change
    _changes: int = field(default=0, init=False)  # of replicas, leases and what was seen
    _told: tuple[object, Node] | None = field(default=None, init=False)  # the last `node`, and what it was made of

    def begin_look(self) -> None:
        self.peak = Counter(self.ours)
        self.looked_before_change = False

    def changed(self) -> None:
        self.stale = self.looked_before_change = True
        self._changes += 1

    def see(self, observation: Observation, now: float) -> None:
        """Take what the node said, unless it said it before we changed something."""
        self.healthy, self.reason, self.misses, self.silences = True, None, 0, 0
        self.suspect = self.silent = False
        if self.looked_before_change:
            return
        self.stale = False
        self._changes += 1
        self.seen = observation
        self.replicas = {one.model: self._counted(one) for one in observation.replicas}
        for model, one in self.replicas.items():
            if one.status == "loaded":
                self.last_used.setdefault(model, now)

    def miss(self, reason: str) -> bool:
        """True when this miss is the one that makes the node unhealthy."""
        self.misses += 1
        self.stale = False
        lost = self.healthy and self.misses >= MISSES_UNTIL_UNHEALTHY
        self.silent = self.suspect
        if lost or self.silent or not self.healthy:
            self.healthy, self.reason = self.healthy and not lost, reason
        return lost

    def doubt(self, reason: str) -> None:
        """A request could not reach it. Whether it is down is for the next look to say."""
        if not self.suspect:
            self.suspect, self.silent = True, False
            self.reason = reason if self.healthy else self.reason

    def hush(self, *, silent: bool) -> bool:
        """True when this miss is the one after which no answer is expected any more."""
        self.silences = self.silences + 1 if silent else 0
        return self.silences == MISSES_UNTIL_UNHEALTHY

    def take(self, model: str, now: float) -> None:
        self._changes += 1
        self.ours[model] += 1
        self.peak[model] = max(self.peak[model], self.ours[model])
        self.last_used[model] = now

    def give_back(self, model: str, now: float) -> None:
        assert self.ours[model] > 0, "a lease is given back once"
        self._changes += 1
        self.ours[model] -= 1
        self.last_used[model] = now

    def loaded(self, spec: LoadSpec, now: float) -> None:
        """The node has just said that the model serves; sizes follow with the next look."""
        before = self.replicas.get(spec.model_id) or Replica(model=spec.model_id, status="loaded", harness=spec.harness)
        devices = spec.devices or before.devices or (() if spec.hosts else tuple(range(spec.tensor_parallel)))
        self.replicas[spec.model_id] = evolve(
            before, status="loaded", servable=True, devices=devices, progress=None, last_error=None
        )
        self.last_used[spec.model_id] = now
        self.changed()

    def unloaded(self, model: str) -> None:
        gone = self.replicas.get(model) or Replica(model=model, status="unloaded")
        self.replicas[model] = evolve(gone, status="unloaded", devices=(), vram_used_mb=None, others=0)
        self.last_used.pop(model, None)
        self.changed()

    def replica(self, model: str) -> Replica | None:
        """The replica with our own traffic and the job under way laid over what the node said."""
        said = self.replicas.get(model)
        if self.job and self.job.loads(model):
            said = evolve(
                said or Replica(model=model, status="loading"), status="loading", progress=self.job.status(model)
            )
        if said is None:
            return None
        leaving = self.job is not None and self.job.unloads(model)
        return evolve(
            said,
            in_flight=self.ours[model],
            last_used=self.last_used.get(model, 0.0),
            draining=leaving or said.status == "draining",
        )

    def candidate(self, model: str) -> Candidate | None:
        """The replica as routing sees it, if a request may be sent to it. The path of every warm request: no copies."""
        said = self.replicas.get(model)
        if said is None or not said.serving or not self.healthy or self.suspect:
            return None
        if self.job and (self.job.loads(model) or self.job.unloads(model)):
            return None
        return Candidate(self.name, self.ours[model] + said.others, said.load)

    def loads_now(self, model: str) -> bool:
        """A load of it is really running there, ours or somebody else's."""
        if self.job and self.job.loads(model):
            return self.job.running
        return model in self.replicas and self.replicas[model].status == "loading"

    def present(self, model: str) -> bool:
        """It holds memory there, by the node's own word."""
        return model in self.replicas and self.replicas[model].resident

    def lent(self) -> list[Group]:
        """The groups that others lead and this node has ranks of."""
        return [group for group in self.seen.groups if group.role == "member"]

    def lends(self, model: str, leader: str) -> bool:
        """It is ready for a group that is about to be loaded: whoever had to leave has left."""
        step = self.job.steps[0] if self.job and self.job.model == model else None
        return isinstance(step, Lend) and step.leader == leader and self.healthy

    def pending(self, model: str) -> int:
        """Requests on it, ours and others'."""
        said = self.replicas.get(model)
        return self.ours[model] + (said.others if said else 0)

    def node(self, members: tuple[Membership, ...] = ()) -> Node:
        """As placement sees it; `members` is what it lends, as far as its leaders tell.

        The very same record while nothing has changed, so that nobody need decide by it again.
        """
        job = self.job
        at = (job.why, job.model, job.running, tuple(job.steps), job.progress) if job else None
        well = (self.healthy, self.suspect, self.silent, self.reason, self.stale)
        made_of = (self._changes, well, self.cycles, at, members)
        if self._told is None or self._told[0] != made_of:
            self._told = made_of, self._node(members)
        return self._told[1]

    def _node(self, members: tuple[Membership, ...]) -> Node:
        models = dict.fromkeys([*self.replicas, *self._coming()])
        found = [replica for model in models if (replica := self.replica(model))]
        busy = self.job.words() if self.job else "changed a moment ago" if self.stale else None
        return Node(
            name=self.name,
            endpoint=self.endpoint,
            healthy=self.healthy and not self.silent,
            doubted=self.healthy and self.suspect and not self.silent,
            reason=self.reason,
            hostname=self.seen.hostname,
            harnesses=self.seen.harnesses,
            devices=self.seen.devices,
            replicas=tuple(found),
            members=members,
            busy=busy,
            cycles=self.cycles,
            uptime_secs=self.seen.uptime_secs,
        )

    def _coming(self) -> list[str]:
        return [step.spec.model_id for step in self.job.steps if isinstance(step, Load)] if self.job else []

    def _counted(self, replica: Replica) -> Replica:
        return evolve(replica, others=max(0, replica.load.pending - self.peak[replica.model]))
