"""What each node is at: jobs begun, advanced, ended, dropped. Asks `placement`, knows no ticket. No I/O, no clock of its own.

A node works on one job at a time; a job is a row of unloads and loads, and an unload starts when the last request on that
model has ended. So nothing that runs is ever killed to make room.
"""

import logging
from collections import deque
from collections.abc import Iterable

from attrs import define, evolve, field, frozen

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.fleet import groups
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.host import Host, Lend, Load, NodeJob, Unload
from cortex_gateway.fleet.memory import LoadHistory, corrected
from cortex_gateway.placement import defrag, room
from cortex_gateway.placement.decisions import Placement
from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.snapshot import ModelConfig, Node

log = logging.getLogger(__name__)
NO_ROOM = ("does_not_fit", "insufficient_vram", "out_of_memory")
RETURN_SECS = 10.0
"""A kernel or a driver gives the memory of a process back by and by: so long after an unload a want of it may be only that."""


@frozen(kw_only=True)
class Eviction:
    """Who left `node`, as it was loaded there, for `incoming` on the node `at`. `others`: nodes that kept a replica of it."""

    node: str
    spec: m.LoadSpec
    incoming: str
    at: str
    others: int


@define
class Jobs:
    """Part of Residency, which alone calls it, and hands in `now` and `out`, where effects go, with every event.

    Attributes:
        evictions: for models that are not loaded yet.
    """

    config: Config
    hosts: dict[str, Host]
    history: LoadHistory
    evictions: list[Eviction] = field(factory=list, init=False)
    now: float = field(default=0.0, init=False)
    out: list[m.Effect] = field(factory=list, init=False)

    def start(
        self,
        model: ModelConfig,
        spec: m.LoadSpec,
        place: Placement,
        whom: str,
        *,
        retried: bool = False,
        first: Iterable[Unload] = (),
    ) -> None:
        """Begin to make room and to load, for `whom`."""
        host = self.hosts[place.node]
        with_whom = f" together with {', '.join(spec.hosts)}" if spec.hosts else ""
        log.info("loading %s on %s%s for %s", model.id, host.name, with_whom, whom)
        host.job = evolve(_job(model, spec, place), retried=retried)
        host.job.steps.extendleft(first)
        for lender in place.lenders:
            unloads = _unloads(model, lender.node, lender.victims)
            steps: deque[Unload | Load | Lend] = deque([*unloads, Lend(leader=host.name)])
            self.hosts[lender.node].job = NodeJob(why="load", model=model.id, steps=steps)
        for name in (host.name, *spec.hosts):
            self.advance(self.hosts[name])

    def reload(self, model: ModelConfig, spec: m.LoadSpec, place: Placement) -> None:
        """Unload what is loaded there, and load it as `spec` says; as it was, where that fails."""
        host = self.hosts[place.node]
        before = self.history.spec_again(host, model.id)
        self.start(model, spec, place, "an operator, instead of what is loaded", first=(Unload(model=model.id),))
        assert host.job is not None
        host.job.otherwise = None if before.hosts else before

    def unload(self, host: Host, model: str) -> None:
        """Begin to unload it; the node has no job."""
        assert host.job is None
        host.job = NodeJob(why="unload", model=model, steps=deque([Unload(model=model)]))
        self.advance(host)

    def finished(self, event: m.Finished) -> None:
        """What ran on the node has ended."""
        host = self.hosts[event.node]
        assert host.job is not None, "only a running job ends"
        host.job.running = False
        step = host.job.steps.popleft()
        assert not isinstance(step, Lend), "a lender works as long as its leader does"
        if isinstance(step, Unload):
            self._unload_ended(host, host.job, step, event.error)
        else:
            self._load_ended(host, host.job, step, event.error)
        self.out.append(m.Look(node=host.name))
        if not host.healthy:
            self.drop(host)
        self.advance(host)

    def advance(self, host: Host) -> None:
        """Begin the next step of the node's job, if it may begin."""
        job = host.job
        if job is None or job.running:
            return
        while job.steps and isinstance(step := job.steps[0], Unload) and not self._holds(host, step.model):
            job.steps.popleft()
        if not job.steps:
            host.job = None
        if not job.steps or host.suspect:
            return
        step = job.steps[0]
        if isinstance(step, Load):
            if self.now >= job.not_before:
                self._begin_load(host, step.spec)
        elif isinstance(step, Lend):
            self.advance(self.hosts[step.leader])
        elif not host.present(step.model):
            self._end_group(host, job, step)
        elif host.pending(step.model) == 0:
            job.running = True
            self.out.append(m.StartUnload(node=host.name, model=step.model))

    def _begin_load(self, host: Host, spec: m.LoadSpec) -> None:
        """Once every lender has made room; from then on they, too, are at work. Without one of them there is no load."""
        lenders = [self.hosts[name] for name in spec.hosts]
        if len(self._group_of(host, spec.model_id)) < len(lenders):
            self.drop(host)
        elif all(one.lends(spec.model_id, host.name) for one in lenders):
            for one in (host, *lenders):
                assert one.job is not None, "whoever lends has a job"
                one.job.running = True
            self.out.append(m.StartLoad(node=host.name, spec=spec))

    def _end_group(self, host: Host, job: NodeJob, step: Unload) -> None:
        """The node only lends to the model that has to leave: have its leader unload it, and wait until it is gone."""
        group = next(group for group in host.lent() if group.model == step.model)
        leader = groups.leader(group, [one for one in self.hosts.values() if one is not host])
        if leader is None or not leader.present(step.model):
            return
        if leader.job is None:
            leader.job = NodeJob(why="load", model=job.model, steps=deque([evolve(step)]))
        elif leader.job.model == job.model and not leader.job.running and not leader.job.unloads(step.model):
            leader.job.steps.appendleft(evolve(step))  # it is part of what it makes room for
        self.advance(leader)

    def _holds(self, host: Host, model: str) -> bool:
        """It has memory there, as a model of its own or lent to a group."""
        return host.present(model) or any(group.model == model for group in host.lent())

    def node(self, host: Host) -> Node:
        """As placement sees it."""
        return host.node(groups.memberships(host, self.hosts.values()))

    def _group_of(self, host: Host, model: str) -> list[Host]:
        """The other nodes that are or will be part of a load of `model` that this one leads."""
        others = [one for one in self.hosts.values() if one is not host and one.job and one.job.model == model]
        return [one for one in others if one.job and any(_lends_to(step, host.name) for step in one.job.steps)]

    def drop(self, host: Host) -> None:
        """Forget the node's job, and with a leader's those of its lenders, with a lender's that of its leader."""
        job, host.job = host.job, None
        if job is None:
            return
        for one in self._group_of(host, job.model):
            self._let_go(one)
        for step in job.steps:
            leader = self.hosts[step.leader] if isinstance(step, Lend) else None
            if leader and leader.job and leader.job.loads(job.model) and not leader.job.running:
                self.drop(leader)

    def _let_go(self, lender: Host) -> None:
        """Its leader will not load, or has loaded: an unload that runs is still to end."""
        job = lender.job
        if job and job.running and not isinstance(job.steps[0], Lend):
            job.steps = deque([job.steps[0]])
        else:
            lender.job = None

    def _unload_ended(self, host: Host, job: NodeJob, step: Unload, error: errors.CortexError | None) -> None:
        if error is None:
            if step.incoming:
                self._evicted(host, step, step.incoming)
            host.unloaded(step.model, self.now)
            host.cycles += job.why != "defrag"
            for one in self.hosts.values():
                if one is not host and any(group.model == step.model for group in one.lent()):
                    one.freed(self.now)
                    self.out.append(m.Look(node=one.name))
            return
        log.warning("unloading %s from %s failed: %s", step.model, host.name, error)
        if job.why == "defrag":
            job.steps = deque(
                one for one in job.steps if not (isinstance(one, Load) and one.spec.model_id == step.model)
            )
            return
        self._fail(host, job, error)
        waiting = self.hosts.get(step.at)
        if waiting and waiting is not host and waiting.job and waiting.job.model == step.incoming:
            self._fail(waiting, waiting.job, error)  # it lends to a group that has not been ended

    def _evicted(self, host: Host, step: Unload, incoming: str) -> None:
        log.info("evicted %s from %s for %s", step.model, host.name, incoming)
        self.out.append(m.Evicted(node=host.name, model=step.model, incoming=incoming))
        others = sum(one.present(step.model) for one in self.hosts.values() if one is not host)
        spec = self.history.spec_again(host, step.model)
        self.evictions.append(Eviction(node=host.name, spec=spec, incoming=incoming, at=step.at, others=others))

    def in_vain(self) -> list[Eviction]:
        """Those that left for a load that is not to come, each told once."""
        if not self.evictions:
            return []
        vain = [one for one in self.evictions if not self._comes(one)]
        self.evictions = [one for one in self.evictions if self._comes(one)]
        return vain

    def _comes(self, eviction: Eviction) -> bool:
        job = self.hosts[eviction.at].job
        return job is not None and job.model == eviction.incoming

    def _load_ended(self, host: Host, job: NodeJob, step: Load, error: errors.CortexError | None) -> None:
        job.progress = None
        for name in step.spec.hosts:
            self.hosts[name].changed()
            self.out.append(m.Look(node=name))
        if error is None:
            self._release_lenders(host, step)
            self.history.loaded(step.spec, host, self.now)
            host.loaded(step.spec, self.now)
            self.evictions = [one for one in self.evictions if one.incoming != step.spec.model_id]
            return
        log.warning("loading %s on %s failed: %s", step.spec.model_id, host.name, error)
        host.changed()
        wants_room = error.extras.get("kind", error.code) in NO_ROOM
        if wants_room and host.healthy and self._memory_returns(host, step, error):
            job.again(step, self.now)
            log.info("%s is tried again on %s in %.1f s: memory is coming back", job.model, host.name, job.pause)
            return
        self._release_lenders(host, step)
        if job.why == "defrag":
            self.history.fail(step.spec.model_id, (host.name,), error, self.now)
            return
        if wants_room and not job.retried and self._retry(host, job, step, error):
            return
        if job.otherwise:
            self.history.fail(job.model, (host.name,), error, self.now)
            job.steps, job.otherwise = deque([Load(spec=job.otherwise)]), None
            return
        self._fail(host, job, error, step.spec.hosts)

    def _release_lenders(self, host: Host, step: Load) -> None:
        for one in self._group_of(host, step.spec.model_id):
            self._let_go(one)

    def _memory_returns(self, host: Host, step: Load, error: errors.CortexError) -> bool:
        """Something was unloaded a moment ago, and by what is loaded there would be room: that memory is not back yet."""
        spec = step.spec
        freed = max(one.freed_at for one in (host, *(self.hosts[name] for name in spec.hosts)))
        if self.now >= freed + RETURN_SECS:
            return False
        if spec.hosts:  # what lacks room may be any of them
            return True
        job, host.job = host.job, None  # which is between two steps
        node, host.job = self.node(host), job
        needed, _ = corrected(node, spec.tensor_parallel, error)
        vacant = room.vacant(node, self.history.policy_after(spec.model_id, host.name, 0), besides=spec.model_id)
        return sum(free >= needed for free in vacant.values()) >= spec.tensor_parallel

    def _retry(self, host: Host, job: NodeJob, step: Load, error: errors.CortexError) -> bool:
        """Once, after evicting what the node's own numbers call for; at least one model, for ours said it fitted."""
        if step.spec.hosts:  # what lacks room may be any of them
            return False
        host.job = None
        model = self.history.model(step.spec.model_id, [host], LoadOptions(tensor_parallel=step.spec.tensor_parallel))
        needed, node = corrected(evolve(self.node(host), busy=None), model.shards, error)
        found = room.consider(model, node, self.history.policy_after(model.id, host.name, needed * model.shards))
        if not isinstance(found, Placement):
            return False
        again = _job(model, evolve(step.spec, devices=found.devices), found)
        host.job = evolve(again, retried=True, otherwise=job.otherwise)
        return True

    def _fail(self, host: Host, job: NodeJob, error: errors.CortexError, lenders: tuple[str, ...] = ()) -> None:
        dear = any(one.incoming == job.model and one.at == host.name for one in self.evictions)
        self.history.fail(job.model, (host.name, *lenders), error, self.now, dear=dear)
        self.drop(host)

    def postpone(self, host: Host) -> None:
        """The node does not answer just now: what has not begun there is not waited for."""
        if host.job and not host.job.running:
            self.drop(host)

    def lose(self, host: Host) -> None:
        """The node is gone, and with it what it was at."""
        if host.job and host.job.running and not isinstance(host.job.steps[0], Lend):
            self.out.append(m.Abort(node=host.name))
        else:
            self.drop(host)

    def defrag(self, host: Host) -> None:
        """Restart its engines, if that is due."""
        after = self.config.eviction.defrag_after_cycles
        if not after or host.cycles < after:  # every request ends here: no node is built for nothing
            return
        models = defrag.due(self.node(host), after_cycles=after)
        if models is None:
            return
        host.cycles = 0
        log.info("restarting the engines of %s: %s", host.name, ", ".join(models) or "none is loaded")
        steps: list[Unload | Load | Lend] = [Unload(model=model) for model in models]
        steps += [Load(spec=self.history.spec_again(host, model)) for model in models]
        host.job = NodeJob(why="defrag", model="", steps=deque(steps))
        self.advance(host)


def _job(model: ModelConfig, spec: m.LoadSpec, place: Placement) -> NodeJob:
    unloads = _unloads(model, place.node, place.victims)
    return NodeJob(why="load", model=model.id, steps=deque([*unloads, Load(spec=spec)]))


def _unloads(model: ModelConfig, node: str, victims: tuple[str, ...]) -> list[Unload]:
    return [Unload(model=victim, incoming=model.id, at=node) for victim in victims]


def _lends_to(step: Unload | Load | Lend, leader: str) -> bool:
    return isinstance(step, Lend) and step.leader == leader
