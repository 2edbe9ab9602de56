"""One node as the owner of residency knows it: what it said, what we did to it since, what it takes part in. No I/O."""

import math
from collections import Counter

from attrs import define, evolve, field

from cortex_gateway.fleet.messages import LoadSpec, Observation
from cortex_gateway.fleet.operation import Operation
from cortex_gateway.placement.circuit import Circuit
from cortex_gateway.placement.load_options import names_of
from cortex_gateway.placement.route import Candidate
from cortex_gateway.placement.snapshot import Group, Membership, Node, Replica

MISSES_UNTIL_UNHEALTHY = 3


@define(kw_only=True)
class Host:
    """Mutable, and only Residency and its parts write it; `operation` is for Operations alone."""

    name: str
    endpoint: str
    service: str | None = None  # whose answers named it; None = the configuration does
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
    circuits: dict[str, Circuit] = field(factory=dict)  # of models that have failed here since they last served
    cycles: int = 0
    operation: Operation | None = None  # that occupies it
    freed_at: float = -math.inf  # seconds; something was last unloaded then, whose memory may come back a little later
    stale: bool = False  # memory and models have changed since the node was last looked at
    looked_before_change: bool = False  # the look that is under way began before the last change
    _changes: int = field(default=0, init=False)  # of replicas, leases and what was seen
    _told: tuple[object, Node] | None = field(default=None, init=False)  # the last `node`, and what it was made of

    @property
    def idle(self) -> bool:
        """It does not answer, and nothing of ours is on it."""
        return not self.healthy and self.operation is None and not any(self.ours.values())

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
            if one.others:
                self.used(model, now)
        # Another engine, when it serves, is another replica.
        self.circuits = {model: one for model, one in self.circuits.items() if self._serves(model)}

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

    def take(self, model: str, now: float) -> bool:
        """True when it is the request that tries the replica after its rest."""
        self._changes += 1
        self.ours[model] += 1
        self.peak[model] = max(self.peak[model], self.ours[model])
        self.last_used[model] = now
        circuit = self.circuits.get(model)
        if circuit is None:
            return False
        self.circuits[model] = circuit.tried(now)
        return self.circuits[model] is not circuit

    def judge(self, model: str, circuit: Circuit) -> None:
        """What is known of the replica's health now."""
        self._changes += 1
        self.circuits[model] = circuit
        if circuit == Circuit():
            del self.circuits[model]

    def used(self, model: str, now: float) -> None:
        """Somebody else asks for it, or it is asked to leave and shall not be again at once."""
        self._changes += 1
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
        serves = evolve(
            before,
            status="loaded",
            servable=True,
            devices=devices,
            progress=None,
            last_error=None,
            adapters=names_of(spec.adapters) or before.adapters,
        )
        for one in serves.with_adapters():
            self.replicas[one.model] = one
            self.last_used[one.model] = now
            self.circuits.pop(one.model, None)
        self.changed()

    def unloaded(self, model: str, now: float) -> None:
        gone = self.replicas.get(model) or Replica(model=model, status="unloaded")
        beside = [one for one in self.replicas.values() if one.beside == model]
        for one in (gone, *beside):
            self.replicas[one.model] = evolve(one, status="unloaded", devices=(), vram_used_mb=None, others=0)
            self.last_used.pop(one.model, None)
            self.circuits.pop(one.model, None)
        self.freed(now)

    def freed(self, now: float) -> None:
        self.freed_at = now
        self.changed()

    def replica(self, model: str) -> Replica | None:
        """The replica with our own traffic and the operation under way laid over what the node said."""
        said, at = self.replicas.get(model), self.operation
        if at and at.loads_on(self.name, model):
            said = evolve(said or Replica(model=model, status="loading"), status="loading", progress=at.status(model))
        if said is None:
            return None
        return evolve(
            said,
            in_flight=self.ours[model],
            last_used=self.last_used.get(model, 0.0),
            circuit=self.circuits.get(model),
            draining=said.status == "draining" or self._leaves(said.beside or model),
        )

    def candidate(self, model: str, now: float) -> Candidate | None:
        """The replica as routing sees it, if a request may be sent to it. The path of every warm request: no copies."""
        said = self.replicas.get(model)
        if said is None or not said.serving or not self.healthy or self.suspect:
            return None
        if self.operation and (self.operation.loads_on(self.name, model) or self._leaves(said.beside or model)):
            return None
        circuit = self.circuits.get(model)
        resting = circuit is not None and circuit.rests(now)
        return Candidate(self.name, self.ours[model] + said.others, said.load, resting)

    def _leaves(self, model: str) -> bool:
        return self.operation is not None and self.operation.unloads_from(self.name, model)

    def _serves(self, model: str) -> bool:
        return model in self.replicas and self.replicas[model].status == "loaded"

    def loads_now(self, model: str) -> bool:
        """A load of it is really running there, ours or somebody else's."""
        if self.operation and self.operation.loads_on(self.name, model):
            return bool(self.operation.running) or self.operation.pause > 0
        return model in self.replicas and self.replicas[model].status == "loading"

    def present(self, model: str) -> bool:
        """It holds memory there, by the node's own word."""
        return model in self.replicas and self.replicas[model].resident

    def knows(self, model: str) -> bool:
        """Clients may ask for it because of this node."""
        return model in self.replicas and self.replicas[model].known

    def lent(self) -> list[Group]:
        """The groups that others lead and this node has ranks of."""
        return [group for group in self.seen.groups if group.role == "member"]

    def pending(self, model: str) -> int:
        """Requests on it, ours and others'."""
        said = self.replicas.get(model)
        return self.ours[model] + (said.others if said else 0)

    def node(self, members: tuple[Membership, ...] = ()) -> Node:
        """As placement sees it; `members` is what it lends, as far as its leaders tell.

        The very same record while nothing has changed, so that nobody need decide by it again.
        """
        at = self.operation.state if self.operation else None
        well = (self.healthy, self.suspect, self.silent, self.reason, self.stale)
        made_of = (self._changes, well, self.cycles, at, members)
        if self._told is None or self._told[0] != made_of:
            self._told = made_of, self._node(members)
        return self._told[1]

    def _node(self, members: tuple[Membership, ...]) -> Node:
        models = dict.fromkeys([*self.replicas, *self._coming()])
        found = [replica for model in models if (replica := self.replica(model))]
        busy = self.operation.words(self.name) if self.operation else "changed a moment ago" if self.stale else None
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
        steps = self.operation.loads if self.operation else []
        return [step.spec.model_id for step in steps if step.node == self.name]

    def _counted(self, replica: Replica) -> Replica:
        return evolve(replica, others=max(0, replica.load.pending - self.peak[replica.model]))
