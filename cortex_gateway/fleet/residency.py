"""The one owner of residency: events in, effects out, every decision asked of `placement`. No I/O, no clock of its own.

A request or an operator's wish is a ticket. A ticket ends with a grant, a completion or a refusal; until then it is tried
again after every event that could help it. A node works on one job at a time; a job is a row of unloads and loads, and an
unload starts when the last request on that model has ended. So nothing that runs is ever killed to make room.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, evolve, field

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.fleet import groups
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.host import Host, Job, Lend, Load, Unload
from cortex_gateway.fleet.memory import PATIENCE_SECS, Failure, Memory, Ticket, demand, not_loaded, spec_for
from cortex_gateway.placement import catalogue, defrag
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.catalogue import Catalogue
from cortex_gateway.placement.snapshot import FleetSnapshot, LoadStatus, ModelConfig, Node

log = logging.getLogger(__name__)
NO_ROOM = ("does_not_fit", "insufficient_vram")


@define
class Residency:
    """`handle` is the only way in. Times are seconds on the caller's clock, which never goes back."""

    config: Config
    hosts: dict[str, Host] = field(init=False)
    tickets: dict[int, Ticket] = field(factory=dict, init=False)
    _memory: Memory = field(init=False)
    _out: list[m.Effect] = field(factory=list, init=False)
    _now: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.hosts = {one.name: Host(name=one.name, endpoint=one.endpoint.rstrip("/")) for one in self.config.neurons}
        self._memory = Memory(self.config)

    @property
    def catalogue(self) -> Catalogue:
        return self._memory.catalogue

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:
        """Take one event; the effects are to be carried out in order."""
        self._now = now
        self._out = []
        handler: Callable[[Any], None] = getattr(self, f"_on_{type(event).__name__.lower()}")
        handler(event)
        return self._out

    def snapshot(self) -> FleetSnapshot:
        waiting: dict[str, int] = {}
        for ticket in self.tickets.values():
            if ticket.kind == "serve":
                waiting[ticket.model] = waiting.get(ticket.model, 0) + 1
        return FleetSnapshot(nodes=tuple(map(self._node, self.hosts.values())), waiting=waiting)

    def resolve(self, name: str) -> str | None:
        return catalogue.resolve(self.catalogue, name, self._listed)

    def unknown(self, name: str) -> errors.ModelNotFound:
        """What to say to someone who asks for `name`, which nobody knows."""
        snapshot = self.snapshot()
        near = catalogue.nearest(self.catalogue, snapshot, name)
        return errors.ModelNotFound(name, nearest=near, present=catalogue.present(self.catalogue, snapshot))

    def status(self, model: str) -> LoadStatus | None:
        """How far the load is that a request for `model` waits for; None where nobody waits and nothing is loading."""
        for host in self.hosts.values():
            replica = host.replica(model)
            if replica and replica.status == "loading":
                return replica.progress or LoadStatus(phase="loading")
        waits = any(ticket.model == model for ticket in self.tickets.values())
        return LoadStatus(phase="queued") if waits else None

    def next_wake(self) -> float | None:
        """When a `Ticked` would change something; None = not before the next event."""
        times = [time for ticket in self.tickets.values() for time in self._times(ticket) if time > self._now]
        return min(times, default=None)

    # -- what happens ---------------------------------------------------------------------------------------------

    def _on_wanted(self, event: m.Wanted) -> None:
        model = self.resolve(event.model)
        if model is None:
            self._out.append(m.Refuse(ticket=event.ticket, error=self.unknown(event.model)))
            return
        ticket = Ticket(number=event.ticket, kind="serve", model=model, since=self._now, request_id=event.request_id)
        queued = sum(one.kind == "serve" for one in self.tickets.values())
        self.tickets[ticket.number] = ticket
        self._try(ticket)
        if ticket.number in self.tickets and queued >= self.config.gateway.max_waiting:
            self._refuse(ticket, errors.Overloaded(f"{queued} requests wait for a model already.", queued=queued))
            self._abandon()

    def _on_loadasked(self, event: m.LoadAsked) -> None:
        self.tickets[event.ticket] = ticket = Ticket(
            number=event.ticket,
            kind="load",
            model=self.catalogue.aliases.get(event.model, event.model),
            since=self._now,
            node=event.node,
            quant=event.quant,
            kv_dtype=event.kv_dtype,
            deterministic=event.deterministic,
            tensor_parallel=event.tensor_parallel,
            hosts=event.hosts,
            ranks=event.ranks,
        )
        if self._names_nodes(ticket):
            self._try(ticket)

    def _on_unloadasked(self, event: m.UnloadAsked) -> None:
        model = self.catalogue.aliases.get(event.model, event.model)
        ticket = Ticket(number=event.ticket, kind="unload", model=model, since=self._now, node=event.node)
        self.tickets[event.ticket] = ticket
        if not self._names_nodes(ticket):
            return
        if not self._holders(ticket):
            self._refuse(ticket, not_loaded(model, event.node))
            return
        self._try(ticket)

    def _on_left(self, event: m.Left) -> None:
        if self.tickets.pop(event.ticket, None):
            self._abandon()

    def _on_returned(self, event: m.Returned) -> None:
        host = self.hosts[event.node]
        host.give_back(event.model, self._now)
        self._advance(host)
        self._settle()
        self._defrag(host)

    def _on_looking(self, event: m.Looking) -> None:
        self.hosts[event.node].begin_look()

    def _on_seen(self, event: m.Seen) -> None:
        host = self.hosts[event.node]
        if not host.healthy:
            log.info("%s answers at %s", host.name, host.endpoint)
        host.see(event.observation, self._now)
        self._memory.measure(host)
        self._advance(host)
        self._settle()
        self._defrag(host)

    def _on_missed(self, event: m.Missed) -> None:
        host = self.hosts[event.node]
        if host.miss(event.reason):
            log.warning("%s is not healthy: %s", host.name, event.reason)
            self._lose_job(host)
        if host.hush(silent=event.silent):
            self._out.append(m.Lost(node=host.name))
        self._settle()

    def _on_suspected(self, event: m.Suspected) -> None:
        host = self.hosts[event.node]
        host.suspect, host.reason = True, event.reason
        self._out.append(m.Look(node=host.name))
        self._settle()

    def _on_progressed(self, event: m.Progressed) -> None:
        job = self.hosts[event.node].job
        if job is None:
            return
        job.progress = event.status
        for ticket in self.tickets.values():
            if ticket.kind == "load" and job.loads(ticket.model):
                self._report(ticket)

    def _on_found(self, event: m.Found) -> None:
        for ticket in self.tickets.values():
            if ticket.model == event.model:
                ticket.cold = False

    def _on_finished(self, event: m.Finished) -> None:
        host = self.hosts[event.node]
        assert host.job is not None, "only a running job ends"
        host.job.running = False
        step = host.job.steps.popleft()
        assert not isinstance(step, Lend), "a lender works as long as its leader does"
        if isinstance(step, Unload):
            self._unload_ended(host, host.job, step, event.error)
        else:
            self._load_ended(host, host.job, step, event.error)
        self._out.append(m.Look(node=host.name))
        if not host.healthy:
            self._drop(host)
        self._advance(host)
        self._settle()

    def _on_ticked(self, _: m.Ticked) -> None:
        for ticket in list(self.tickets.values()):
            if self._now >= self._deadline(ticket):
                queued = sum(one.model == ticket.model for one in self.tickets.values()) - 1
                waited = self._now - ticket.since
                message = (
                    f"{ticket.model} could not be loaded within {waited:.0f} s: every node with room for it is in use."
                )
                self._refuse(ticket, errors.Overloaded(message, queued=queued))
        self._abandon()

    # -- tickets --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Try every ticket again, oldest first."""
        for ticket in list(self.tickets.values()):
            self._try(ticket)

    def _try(self, ticket: Ticket) -> None:
        if ticket.kind == "unload":
            self._try_unload(ticket)
            return
        if ticket.kind == "serve":
            best = routing.least_wait([one for host in self.hosts.values() if (one := host.candidate(ticket.model))])
            if best is not None:
                self._granted(ticket, best)
                return
        self._decide(ticket)

    def _decide(self, ticket: Ticket) -> None:
        model = self._memory.asked(ticket, self.hosts.values())
        decision = routing.route(model, self.snapshot(), self._memory.policy(ticket, self._now))
        match decision:
            case routing.Serve():
                self._granted(ticket, decision.node)
            case routing.Recovering() if ticket.kind == "serve":
                message = f"{ticket.model} is recovering on {decision.node}."
                self._refuse(ticket, errors.ModelRecovering(message))
            case routing.Place():
                self._start(ticket, model, decision)
            case routing.Reject():
                grouped = len(model.hosts) > 1
                self._refuse(ticket, self._memory.refusal(ticket, decision, self._now, grouped=grouped))
            case _:
                ticket.cold = True
        self._report(ticket)

    def _granted(self, ticket: Ticket, node: str) -> None:
        del self.tickets[ticket.number]
        if ticket.kind == "load":
            self._out.append(m.Complete(ticket=ticket.number))
            return
        self.hosts[node].take(ticket.model, self._now)
        self._out.append(m.Grant(ticket=ticket.number, node=node, model=ticket.model, cold=ticket.cold))

    def _start(self, ticket: Ticket, model: ModelConfig, place: routing.Place) -> None:
        ticket.cold = True
        host = self.hosts[place.node]
        spec = spec_for(model, place, ticket.quant, ticket.kv_dtype, ticket.deterministic)
        with_whom = f" together with {', '.join(spec.hosts)}" if spec.hosts else ""
        log.info("loading %s on %s%s for %s", model.id, host.name, with_whom, ticket.request_id or "an operator")
        host.job = _job(model, spec, place)
        for lender in place.lenders:
            steps: deque[Unload | Load | Lend] = deque([*_unloads(model, lender.victims), Lend(leader=host.name)])
            self.hosts[lender.node].job = Job(why="load", model=model.id, steps=steps)
        for name in (host.name, *spec.hosts):
            self._advance(self.hosts[name])

    def _try_unload(self, ticket: Ticket) -> None:
        failed = [failure for (name, _), failure in self._memory.failures.items() if name == ticket.model]
        recent = next((failure for failure in failed if failure.at >= ticket.since), None)
        if recent:
            self._refuse(ticket, recent.error)
            return
        holders = self._holders(ticket)
        if not holders:
            del self.tickets[ticket.number]
            self._out.append(m.Complete(ticket=ticket.number))
        for host in holders:
            if host.job is None:
                host.job = Job(why="unload", model=ticket.model, steps=deque([Unload(model=ticket.model)]))
                self._advance(host)

    def _holders(self, ticket: Ticket) -> list[Host]:
        hosts = [host for host in self.hosts.values() if ticket.node in (None, host.name) and host.healthy]
        return [host for host in hosts if (one := host.replica(ticket.model)) and (one.resident or one.draining)]

    def _refuse(self, ticket: Ticket, error: errors.CortexError) -> None:
        del self.tickets[ticket.number]
        self._out.append(m.Refuse(ticket=ticket.number, error=error))

    def _report(self, ticket: Ticket) -> None:
        status = self.status(ticket.model)
        if ticket.kind == "load" and ticket.number in self.tickets and status and status != ticket.reported:
            ticket.reported = status
            self._out.append(m.Report(ticket=ticket.number, status=status))

    def _names_nodes(self, ticket: Ticket) -> bool:
        """Whether every node that the operator named is one of ours; else the ticket is refused."""
        for param, names in (("node", [ticket.node] if ticket.node else []), ("hosts", ticket.hosts)):
            for name in names:
                if name not in self.hosts:
                    message = f"There is no node {name!r}; there are {', '.join(self.hosts)}."
                    self._refuse(ticket, errors.InvalidBody(message, param=param))
                    return False
        return True

    def _abandon(self) -> None:
        """Drop jobs that nobody waits for and that have not begun their next step: their victims may stay."""
        wanted = {(ticket.kind == "unload", ticket.model) for ticket in self.tickets.values()}
        for host in self.hosts.values():
            job = host.job
            if job and not job.running and job.why != "defrag" and (job.why == "unload", job.model) not in wanted:
                self._drop(host)
        self._settle()

    # -- jobs -----------------------------------------------------------------------------------------------------

    def _advance(self, host: Host) -> None:
        """Begin the next step of the node's job, if it may begin."""
        job = host.job
        if job is None or job.running:
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
            self._advance(self.hosts[step.leader])
        elif not host.present(step.model):
            self._end_group(host, job, step)
        elif host.pending(step.model) == 0:
            job.running = True
            self._out.append(m.StartUnload(node=host.name, model=step.model))

    def _begin_load(self, host: Host, spec: m.LoadSpec) -> None:
        """Once every lender has made room; from then on they, too, are at work. Without one of them there is no load."""
        lenders = [self.hosts[name] for name in spec.hosts]
        if len(self._company(host, spec.model_id)) < len(lenders):
            self._drop(host)
        elif all(one.lends(spec.model_id, host.name) for one in lenders):
            for one in (host, *lenders):
                assert one.job is not None, "whoever lends has a job"
                one.job.running = True
            self._out.append(m.StartLoad(node=host.name, spec=spec))

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
        self._advance(leader)

    def _holds(self, host: Host, model: str) -> bool:
        """It has memory there, as a model of its own or lent to a group."""
        return host.present(model) or any(group.model == model for group in host.lent())

    def _node(self, host: Host) -> Node:
        return host.node(groups.memberships(host, self.hosts.values()))

    def _company(self, host: Host, model: str) -> list[Host]:
        """The other nodes that are or will be part of a load of `model` that this one leads."""
        others = [one for one in self.hosts.values() if one is not host and one.job and one.job.model == model]
        return [one for one in others if one.job and any(_lends_to(step, host.name) for step in one.job.steps)]

    def _drop(self, host: Host) -> None:
        """Forget the node's job, and with a leader's those of its lenders, with a lender's that of its leader."""
        job, host.job = host.job, None
        if job is None:
            return
        for one in self._company(host, job.model):
            self._let_go(one)
        for step in job.steps:
            leader = self.hosts[step.leader] if isinstance(step, Lend) else None
            if leader and leader.job and leader.job.loads(job.model) and not leader.job.running:
                self._drop(leader)

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
                    self._out.append(m.Look(node=one.name))
            if step.incoming:
                log.info("evicted %s from %s for %s", step.model, host.name, step.incoming)
                self._out.append(m.Evicted(node=host.name, model=step.model, incoming=step.incoming))
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
            self._out.append(m.Look(node=name))
        if error is None:
            self._memory.loaded(step.spec, host)
            host.loaded(step.spec, self._now)
            return
        log.warning("loading %s on %s failed: %s", step.spec.model_id, host.name, error)
        host.changed()
        if job.why == "defrag":
            self._memory.failures[step.spec.model_id, host.name] = Failure(at=self._now, error=error)
            return
        if error.extras.get("kind", error.code) in NO_ROOM and not job.retried and self._retry(host, step, error):
            return
        self._fail(host, job, error, step.spec.hosts)

    def _retry(self, host: Host, step: Load, error: errors.CortexError) -> bool:
        """Once, after evicting what the node's own numbers call for; at least one model, for ours said it fitted."""
        if step.spec.hosts:  # what lacks room may be any of them
            return False
        host.job = None
        node = evolve(self._node(host), busy=None)
        model = self._memory.model(step.spec.model_id, [host], step.spec.tensor_parallel)
        freest = sorted((device.vram_free_mb for device in node.devices), reverse=True)[: model.shards]
        demanded = max(demand(error), (min(freest, default=0) + 1) * model.shards)
        found = routing.consider(model, node, self._memory.policy_after(model.id, host.name, demanded))
        if not isinstance(found, routing.Place):
            return False
        host.job = evolve(_job(model, evolve(step.spec, devices=found.devices), found), retried=True)
        return True

    def _fail(self, host: Host, job: Job, error: errors.CortexError, lenders: tuple[str, ...] = ()) -> None:
        self._memory.fail(job.model, (host.name, *lenders), error, self._now)
        self._drop(host)

    def _lose_job(self, host: Host) -> None:
        if host.job and host.job.running and not isinstance(host.job.steps[0], Lend):
            self._out.append(m.Abort(node=host.name))
        else:
            self._drop(host)

    def _defrag(self, host: Host) -> None:
        after = self.config.eviction.defrag_after_cycles
        if self.tickets or not after or host.cycles < after:  # every request ends here: no node is built for nothing
            return
        models = defrag.due(self._node(host), after_cycles=after)
        if models is None:
            return
        host.cycles = 0
        log.info("restarting the engines of %s: %s", host.name, ", ".join(models) or "none is loaded")
        steps: list[Unload | Load | Lend] = [Unload(model=model) for model in models]
        steps += [Load(spec=self._memory.spec_again(host, model)) for model in models]
        host.job = Job(why="defrag", model="", steps=deque(steps))
        self._advance(host)

    # -- facts ----------------------------------------------------------------------------------------------------

    def _listed(self, model: str) -> bool:
        return any(model in host.replicas for host in self.hosts.values())

    def _times(self, ticket: Ticket) -> tuple[float, ...]:
        return (
            (ticket.since + PATIENCE_SECS, self._deadline(ticket))
            if ticket.kind == "serve"
            else (self._deadline(ticket),)
        )

    def _deadline(self, ticket: Ticket) -> float:
        """Queueing has an end of its own; a load under way has its time on top, an operator waits as long as it takes."""
        if ticket.kind != "serve":
            return math.inf
        loading = any(host.loads_now(ticket.model) for host in self.hosts.values())
        gateway = self.config.gateway
        return ticket.since + gateway.wait_secs + (gateway.load_timeout_secs if loading else 0.0)


def _job(model: ModelConfig, spec: m.LoadSpec, place: routing.Place) -> Job:
    return Job(why="load", model=model.id, steps=deque([*_unloads(model, place.victims), Load(spec=spec)]))


def _unloads(model: ModelConfig, victims: tuple[str, ...]) -> list[Unload]:
    return [Unload(model=victim, incoming=model.id) for victim in victims]


def _lends_to(step: Unload | Load | Lend, leader: str) -> bool:
    return isinstance(step, Lend) and step.leader == leader
