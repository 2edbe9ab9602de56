"""What each node is at: jobs begun, advanced, ended, dropped. Asks `placement`, knows no ticket. No I/O, no clock of its own.

A node works on one job at a time; a job is a row of unloads and loads, and an unload starts when the last request on that
model has ended. So nothing that runs is ever killed to make room.
"""

import logging
from collections import deque

from attrs import define, evolve, field

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.fleet import groups
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.host import Host, Job, Lend, Load, Unload
from cortex_gateway.fleet.memory import Memory, demand
from cortex_gateway.placement import defrag
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.snapshot import ModelConfig, Node

log = logging.getLogger(__name__)
NO_ROOM = ("does_not_fit", "insufficient_vram")


@define
class Jobs:
    """Part of Residency, which alone calls it, and hands in `now` and `out`, where effects go, with every event."""

    config: Config
    hosts: dict[str, Host]
    memory: Memory
    now: float = field(default=0.0, init=False)
    out: list[m.Effect] = field(factory=list, init=False)

    def start(self, model: ModelConfig, spec: m.LoadSpec, place: routing.Place, whom: str) -> None:
        """Begin to make room and to load, for `whom`."""
        host = self.hosts[place.node]
        with_whom = f" together with {', '.join(spec.hosts)}" if spec.hosts else ""
        log.info("loading %s on %s%s for %s", model.id, host.name, with_whom, whom)
        host.job = _job(model, spec, place)
        for lender in place.lenders:
            steps: deque[Unload | Load | Lend] = deque([*_unloads(model, lender.victims), Lend(leader=host.name)])
            self.hosts[lender.node].job = Job(why="load", model=model.id, steps=steps)
        for name in (host.name, *spec.hosts):
            self.advance(self.hosts[name])

    def unload(self, host: Host, model: str) -> None:
        """Begin to unload it; the node has no job."""
        assert host.job is None
        host.job = Job(why="unload", model=model, steps=deque([Unload(model=model)]))
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
        if job is None or job.running or host.suspect:
            return
        while job.steps and isinstance(step := job.steps[0], Unload) and not self._holds(host, step.model):
            job.steps.popleft()
        if not job.steps:
            host.job = None
            return
        step = job.steps[0]
        if isinstance(step, Load):
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
        if len(self._company(host, spec.model_id)) < len(lenders):
            self.drop(host)
        elif all(one.lends(spec.model_id, host.name) for one in lenders):
            for one in (host, *lenders):
                assert one.job is not None, "whoever lends has a job"
                one.job.running = True
            self.out.append(m.StartLoad(node=host.name, spec=spec))

    def _end_group(self, host: Host, job: Job, step: Unload) -> None:
        """The node only lends to the model that has to leave: have its leader unload it, and wait until it is gone."""
        group = next(group for group in host.lent() if group.model == step.model)
        leader = groups.leader(group, [one for one in self.hosts.values() if one is not host])
        if leader is None or not leader.present(step.model):
            return
        if leader.job is None:
            leader.job = Job(why="load", model=job.model, steps=deque([evolve(step)]))
        elif leader.job.model == job.model and not leader.job.running and not leader.job.unloads(step.model):
            leader.job.steps.appendleft(evolve(step))  # it is part of what it makes room for
        self.advance(leader)

    def _holds(self, host: Host, model: str) -> bool:
        """It has memory there, as a model of its own or lent to a group."""
        return host.present(model) or any(group.model == model for group in host.lent())

    def node(self, host: Host) -> Node:
        """As placement sees it."""
        return host.node(groups.memberships(host, self.hosts.values()))

    def _company(self, host: Host, model: str) -> list[Host]:
        """The other nodes that are or will be part of a load of `model` that this one leads."""
        others = [one for one in self.hosts.values() if one is not host and one.job and one.job.model == model]
        return [one for one in others if one.job and any(_lends_to(step, host.name) for step in one.job.steps)]

    def drop(self, host: Host) -> None:
        """Forget the node's job, and with a leader's those of its lenders, with a lender's that of its leader."""
        job, host.job = host.job, None
        if job is None:
            return
        for one in self._company(host, job.model):
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

    def _unload_ended(self, host: Host, job: Job, step: Unload, error: errors.CortexError | None) -> None:
        if error is None:
            host.unloaded(step.model)
            host.cycles += job.why != "defrag"
            for one in self.hosts.values():
                if one is not host and any(group.model == step.model for group in one.lent()):
                    one.changed()
                    self.out.append(m.Look(node=one.name))
            if step.incoming:
                log.info("evicted %s from %s for %s", step.model, host.name, step.incoming)
                self.out.append(m.Evicted(node=host.name, model=step.model, incoming=step.incoming))
            return
        log.warning("unloading %s from %s failed: %s", step.model, host.name, error)
        if job.why == "defrag":
            job.steps = deque(
                one for one in job.steps if not (isinstance(one, Load) and one.spec.model_id == step.model)
            )
            return
        self._fail(host, job, error)

    def _load_ended(self, host: Host, job: Job, step: Load, error: errors.CortexError | None) -> None:
        job.progress = None
        for one in self._company(host, step.spec.model_id):
            self._let_go(one)
        for name in step.spec.hosts:
            self.hosts[name].changed()
            self.out.append(m.Look(node=name))
        if error is None:
            self.memory.loaded(step.spec, host)
            host.loaded(step.spec, self.now)
            return
        log.warning("loading %s on %s failed: %s", step.spec.model_id, host.name, error)
        host.changed()
        if job.why == "defrag":
            self.memory.fail(step.spec.model_id, (host.name,), error, self.now)
            return
        if error.extras.get("kind", error.code) in NO_ROOM and not job.retried and self._retry(host, step, error):
            return
        self._fail(host, job, error, step.spec.hosts)

    def _retry(self, host: Host, step: Load, error: errors.CortexError) -> bool:
        """Once, after evicting what the node's own numbers call for; at least one model, for ours said it fitted."""
        if step.spec.hosts:  # what lacks room may be any of them
            return False
        host.job = None
        node = evolve(self.node(host), busy=None)
        model = self.memory.model(step.spec.model_id, [host], step.spec.tensor_parallel)
        freest = sorted((device.vram_free_mb for device in node.devices), reverse=True)[: model.shards]
        demanded = max(demand(error), (min(freest, default=0) + 1) * model.shards)
        found = routing.consider(model, node, self.memory.policy_after(model.id, host.name, demanded))
        if not isinstance(found, routing.Place):
            return False
        host.job = evolve(_job(model, evolve(step.spec, devices=found.devices), found), retried=True)
        return True

    def _fail(self, host: Host, job: Job, error: errors.CortexError, lenders: tuple[str, ...] = ()) -> None:
        self.memory.fail(job.model, (host.name, *lenders), error, self.now)
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
        steps += [Load(spec=self.memory.spec_again(host, model)) for model in models]
        host.job = Job(why="defrag", model="", steps=deque(steps))
        self.advance(host)


def _job(model: ModelConfig, spec: m.LoadSpec, place: routing.Place) -> Job:
    return Job(why="load", model=model.id, steps=deque([*_unloads(model, place.victims), Load(spec=spec)]))


def _unloads(model: ModelConfig, victims: tuple[str, ...]) -> list[Unload]:
    return [Unload(model=victim, incoming=model.id) for victim in victims]


def _lends_to(step: Unload | Load | Lend, leader: str) -> bool:
    return isinstance(step, Lend) and step.leader == leader
