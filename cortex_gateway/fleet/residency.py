"""The one owner of residency: events in, effects out, every decision asked of `placement`. No I/O, no clock of its own.

A request or an operator's command is a ticket. A ticket ends with a grant, a completion or a refusal; until then it is tried
again after every event that could help it, together with those that want the same. What nodes are at for it is `jobs`.
"""

import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import assert_never

from attrs import define, evolve, field

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.differing import Loaded, differing, words
from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.jobs import RETURN_SECS, Eviction, Jobs
from cortex_gateway.fleet.memory import PATIENCE_SECS, LoadHistory, Ticket, not_loaded, spec_for
from cortex_gateway.placement import affinity, catalogue, room
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.catalogue import Catalogue
from cortex_gateway.placement.circuit import Circuit
from cortex_gateway.placement.decisions import Decision, Hold, Join, Placement, Policy, Recovering, Reject, Serve
from cortex_gateway.placement.snapshot import FleetSnapshot, LoadStatus

log = logging.getLogger(__name__)


@define
class Residency:
    """`handle` is the only way in. Times are seconds on the caller's clock, which never goes back.

    Attributes:
        tickets: by number, the oldest first.
        decisions: how often placement was asked where something should go.
    """

    config: Config
    hosts: dict[str, Host] = field(init=False)
    tickets: dict[int, Ticket] = field(factory=dict, init=False)
    decisions: int = field(default=0, init=False)
    _history: LoadHistory = field(init=False)
    _jobs: Jobs = field(init=False)
    _considered: routing.Considered = field(factory=routing.Considered, init=False)
    _homes: affinity.Homes = field(factory=affinity.Homes, init=False)
    _picture: FleetSnapshot | None = field(default=None, init=False)  # as long as nothing has changed
    _restored: int = field(default=0, init=False)  # tickets of our own are numbered downwards
    _now: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self.hosts = {one.name: Host(name=one.name, endpoint=one.endpoint.rstrip("/")) for one in self.config.neurons}
        self._history = LoadHistory(self.config)
        self._jobs = Jobs(self.config, self.hosts, self._history)

    @property
    def catalogue(self) -> Catalogue:
        return self._history.catalogue

    @property
    def decided(self) -> list[m.Effect]:
        """The effects of the last event, as far as `handle` came."""
        return self._jobs.out

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:
        """Take one event; the effects are to be carried out in order."""
        self._now = self._jobs.now = now
        self._jobs.out = []
        self._picture = None
        self._on(event)
        for eviction in self._jobs.in_vain():
            self._have_back(eviction)
        return self._jobs.out

    def snapshot(self, now: float | None = None) -> FleetSnapshot:
        """Everything as last seen; `now` is the time of the last event, unless the caller knows better."""
        waiting: dict[str, int] = {}
        for ticket in self.tickets.values():
            if ticket.kind == "serve":
                waiting[ticket.model] = waiting.get(ticket.model, 0) + 1
        nodes = tuple(map(self._jobs.node, self.hosts.values()))
        return FleetSnapshot(nodes=nodes, at=self._now if now is None else now, waiting=waiting)

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
        deadlines = self._deadlines()
        times = (
            time
            for ticket in self.tickets.values()
            if ticket.kind == "serve"
            for time in (ticket.since + PATIENCE_SECS, ticket.since + deadlines[ticket.model])
        )
        pauses = (host.job.not_before for host in self.hosts.values() if host.job and not host.job.running)
        return min((time for time in itertools.chain(times, pauses) if time > self._now), default=None)

    # -- what happens ---------------------------------------------------------------------------------------------

    def _on(self, event: m.Event) -> None:  # noqa: C901, PLR0912 -- one row per event, for mypy to see that none lacks
        match event:
            case m.Wanted():
                self._on_wanted(event)
            case m.Returned():
                self._on_returned(event)
            case m.Looking():
                self._on_looking(event)
            case m.Seen():
                self._on_seen(event)
            case m.Missed():
                self._on_missed(event)
            case m.Left():
                self._on_left(event)
            case m.Begun():
                self._on_begun(event)
            case m.Progressed():
                self._on_progressed(event)
            case m.Ticked():
                self._on_ticked(event)
            case m.Suspected():
                self._on_suspected(event)
            case m.Absent():
                self._on_absent(event)
            case m.Found():
                self._on_found(event)
            case m.Finished():
                self._on_finished(event)
            case m.LoadAsked():
                self._on_load_asked(event)
            case m.UnloadAsked():
                self._on_unload_asked(event)
            case _:
                assert_never(event)

    def _on_wanted(self, event: m.Wanted) -> None:
        model = self.resolve(event.model)
        if model is None:
            self._jobs.out.append(m.Refuse(ticket=event.ticket, error=self.unknown(event.model)))
            return
        ticket = Ticket(number=event.ticket, kind="serve", model=model, since=self._now, context=event.context)
        queued = sum(one.kind == "serve" for one in self.tickets.values())
        self.tickets[ticket.number] = ticket
        if event.besides:
            self._send_on(ticket, event.besides)
            return
        if queued < self.config.gateway.max_waiting:
            self._try((ticket,))
        elif not self._grant((ticket,)):
            self._refuse(ticket, errors.Overloaded(f"{queued} requests wait for a model already.", queued=queued))

    def _on_load_asked(self, event: m.LoadAsked) -> None:
        self.tickets[event.ticket] = ticket = Ticket(
            number=event.ticket,
            kind="load",
            model=self.catalogue.aliases.get(event.model, event.model),
            since=self._now,
            node=event.node,
            options=event.options,
            reload=event.reload,
        )
        if self._names_nodes(ticket):
            self._try((ticket,))

    def _on_unload_asked(self, event: m.UnloadAsked) -> None:
        model = self.catalogue.aliases.get(event.model, event.model)
        ticket = Ticket(number=event.ticket, kind="unload", model=model, since=self._now, node=event.node)
        self.tickets[event.ticket] = ticket
        if not self._names_nodes(ticket):
            return
        if not self._holders(ticket):
            self._refuse(ticket, not_loaded(model, event.node))
            return
        self._try((ticket,))

    def _on_left(self, event: m.Left) -> None:
        if self.tickets.pop(event.ticket, None) and self._abandon():
            self._settle()

    def _on_returned(self, event: m.Returned) -> None:
        host = self.hosts[event.node]
        host.give_back(event.model, self._now)
        self._judge(host, event)
        if host.pending(event.model) == 0:  # else nobody who waits gains anything by it
            self._jobs.advance(host)
            self._settle()
        self._defrag(host)

    def _on_begun(self, event: m.Begun) -> None:
        host = self.hosts[event.node]
        if event.model in host.circuits:
            host.judge(event.model, host.circuits[event.model].begun())

    def _on_absent(self, event: m.Absent) -> None:
        host = self.hosts[event.node]
        if host.job is None and host.present(event.model):
            log.warning("%s says that it has not loaded %s", host.name, event.model)
            host.unloaded(event.model, self._now)
        self._jobs.out.append(m.Look(node=host.name))

    def _on_looking(self, event: m.Looking) -> None:
        self.hosts[event.node].begin_look()

    def _on_seen(self, event: m.Seen) -> None:
        host = self.hosts[event.node]
        if not host.healthy:
            log.info("%s answers at %s", host.name, host.endpoint)
        host.see(event.observation, self._now)
        self._history.measure(host)
        self._jobs.advance(host)
        self._settle()
        self._defrag(host)

    def _on_missed(self, event: m.Missed) -> None:
        host = self.hosts[event.node]
        if host.miss(event.reason):
            log.warning("%s is not healthy: %s", host.name, event.reason)
            self._jobs.lose(host)
        elif host.silent:
            self._jobs.postpone(host)
        if host.hush(silent=event.silent):
            self._jobs.out.append(m.Lost(node=host.name))
        self._settle()

    def _on_suspected(self, event: m.Suspected) -> None:
        host = self.hosts[event.node]
        host.doubt(event.reason)
        self._jobs.out.append(m.Look(node=host.name))
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
        self._jobs.finished(event)
        self._settle()

    def _on_ticked(self, _: m.Ticked) -> None:
        deadlines = self._deadlines()
        serving = [one for one in self.tickets.values() if one.kind == "serve"]
        late = [one for one in serving if self._now >= one.since + deadlines[one.model]]
        for ticket in late:
            queued = sum(one.model == ticket.model for one in self.tickets.values()) - 1
            waited = self._now - ticket.since
            message = (
                f"{ticket.model} could not be loaded within {waited:.0f} s: every node with room for it is in use."
            )
            self._refuse(ticket, errors.Overloaded(message, queued=queued))
        self._abandon()
        for host in self.hosts.values():
            self._jobs.advance(host)
        self._settle()

    # -- replicas -------------------------------------------------------------------------------------------------

    def _judge(self, host: Host, event: m.Returned) -> None:
        """What the end of a request says of the replica that had it."""
        before = host.circuits.get(event.model)
        if event.served is False:
            self._jobs.out.append(m.Look(node=host.name))  # why it failed may be seen there
            after = (before or Circuit()).failed(self._now, event.failure)
            host.judge(event.model, after)
            if after.until != (before.until if before else None):
                seconds, times = after.rest_secs, after.failures
                log.warning(
                    "%s on %s rests %.0f s, it failed %d times in a row: %s",
                    event.model,
                    host.name,
                    seconds,
                    times,
                    event.failure,
                )
        elif before and event.served:
            host.judge(event.model, before.served(event.sent))
        elif before and event.trial:
            host.judge(event.model, before.left())

    # -- tickets --------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Try every ticket again: those that want the same together; who is known first, then who has waited longest."""
        lines: dict[object, list[Ticket]] = {}
        for ticket in sorted(self.tickets.values(), key=lambda ticket: not ticket.known):
            lines.setdefault(ticket.line, []).append(ticket)
        for line in lines.values():
            self._try(line)

    def _try(self, line: Sequence[Ticket]) -> None:
        """Try tickets that want the same. What was decided for one holds for the next, until something has changed by it."""
        if line[0].kind == "unload":
            self._try_unload(line[0])
        elif line[0].kind == "restore":
            self._try_restore(line[0])
        elif line[0].kind == "load":
            self._try_load(line[0])
        elif not self._grant(line):
            self._decide_for(line)

    def _grant(self, line: Iterable[Ticket]) -> bool:
        """Send each request to a replica that serves, if there is one."""
        for ticket in line:
            home = self._homes.of(ticket.model, ticket.affinity) if ticket.affinity else None
            best = affinity.choose(self._candidates(ticket.model), home)
            if best is None:
                return False
            self._granted(ticket, best)
        return True

    def _send_on(self, ticket: Ticket, besides: frozenset[str]) -> None:
        """One that has failed elsewhere goes to another replica at once, or nowhere."""
        best = routing.least_wait([one for one in self._candidates(ticket.model) if one.node not in besides])
        if best is None:
            self._refuse(ticket, errors.NoOtherReplica(f"No other node serves {ticket.model} now."))
        else:
            self._granted(ticket, best)

    def _candidates(self, model: str) -> list[routing.Candidate]:
        return [one for host in self.hosts.values() if (one := host.candidate(model, self._now))]

    def _decide_for(self, line: Sequence[Ticket]) -> None:
        offering = self._history.offering(line[0], self.hosts.values())
        policy: Policy | None = None
        decision: Decision | None = None
        for ticket in line:
            before, policy = policy, self._history.policy(ticket, self._now, offering)
            if policy is not before or self._picture is None:
                decision = self._decide(ticket, policy)
            assert decision is not None
            self._obey(ticket, decision)
            self._report(ticket)

    def _decide(self, ticket: Ticket, policy: Policy) -> Decision:
        self.decisions += 1
        self._picture = self._picture or self.snapshot()
        model = self._history.asked(ticket, self.hosts.values())
        return routing.route(model, self._picture, policy, self._considered)

    def _obey(self, ticket: Ticket, decision: Decision) -> None:
        match decision:
            case Serve():
                self._granted(ticket, decision.node)
            case Recovering() if ticket.kind == "serve":
                message = f"{ticket.model} is recovering on {decision.node}."
                self._refuse(ticket, errors.ModelRecovering(message))
            case Placement():
                self._start(ticket, decision)
            case Reject():
                grouped = len(self._history.asked(ticket, self.hosts.values()).hosts) > 1
                self._refuse(ticket, self._history.refusal(ticket, decision, self._now, grouped=grouped))
            case _:
                ticket.cold = True

    def _granted(self, ticket: Ticket, node: str) -> None:
        del self.tickets[ticket.number]
        if ticket.kind == "load":
            self._jobs.out.append(m.Complete(ticket=ticket.number))
            return
        self._picture = None
        if ticket.affinity:
            self._homes.note(ticket.model, ticket.affinity, node)
        trial = self.hosts[node].take(ticket.model, self._now)
        grant = m.Grant(ticket=ticket.number, node=node, model=ticket.model, cold=ticket.cold, trial=trial)
        self._jobs.out.append(grant)

    def _start(self, ticket: Ticket, place: Placement) -> None:
        self._picture = None
        ticket.cold = True
        model = self._history.asked(ticket, self.hosts.values())
        spec = spec_for(model, place)
        self._jobs.start(model, spec, place, _whom(ticket), retried=ticket.kind == "restore")

    def _try_unload(self, ticket: Ticket) -> None:
        failures = self._history.failures.get(ticket.model, {}).values()
        recent = next((failure for failure in failures if failure.at >= ticket.since), None)
        if recent:
            self._refuse(ticket, recent.error)
            return
        holders = self._holders(ticket)
        held = {host.name for host in holders}
        ticket.emptied |= {host.name for host in self.hosts.values() if host.healthy and host.name not in held}
        if not holders:
            del self.tickets[ticket.number]
            self._jobs.out.append(m.Complete(ticket=ticket.number))
        for host in holders:
            if host.job is None:
                self._picture = None
                self._jobs.unload(host, ticket.model)

    def _try_load(self, ticket: Ticket) -> None:
        """Complete it where the model serves as asked for; what serves otherwise is told, or reloaded."""
        serving = [host for host in self.hosts.values() if self._serves_for(ticket, host)]
        failed = self._history.cooling(ticket, self._now).get(ticket.reloading)
        if failed:
            self._refuse(ticket, failed.error)
        elif not serving:
            self._decide_for((ticket,))
        elif ticket.reload and not any(self._history.loaded_since(ticket, host) for host in serving):
            self._try_reload(ticket, serving)
        else:
            self._compare(ticket, serving)

    def _serves_for(self, ticket: Ticket, host: Host) -> bool:
        named = ticket.named is None or host.name in ticket.named
        said = host.replica(ticket.model)
        up = host.healthy and not host.silent
        return named and up and said is not None and said.status == "loaded" and not said.draining

    def _compare(self, ticket: Ticket, serving: list[Host]) -> None:
        differs = {host.name: differing(ticket, self._loaded(ticket.model, host)) for host in serving}
        if not all(differs.values()):
            self._decide_for((ticket,))
            return
        node, found = next(iter(differs.items()))
        message = (
            f"{ticket.model} is loaded on {node} with {words(found)}. To have it as asked for, say reload (cortex load "
            f"{ticket.model} --reload): it is loaded anew once its running requests have ended."
        )
        told = {name: {"loaded": loaded, "asked": asked} for name, (loaded, asked) in found.items()}
        self._refuse(ticket, errors.AlreadyLoaded(message, node=node, differs=told))

    def _loaded(self, model: str, host: Host) -> Loaded:
        replica = host.replica(model)
        assert replica is not None
        lending = [one.name for one in self.hosts.values() if any(group.model == model for group in one.lent())]
        lenders = lending if replica.group else []
        return Loaded(replica=replica, spec=self._history.spec(model, host.name), lenders=lenders)

    def _try_reload(self, ticket: Ticket, serving: list[Host]) -> None:
        """Find room for it as if it had left already: it leaves only when there is."""
        host = serving[0]
        if len(serving) > 1:
            names = ", ".join(one.name for one in serving)
            message = f"{ticket.model} is loaded on {names}: name the node to reload it on."
            self._refuse(ticket, errors.InvalidBody(message, param="node"))
            return
        policy = evolve(self._history.policy(ticket, self._now), only=(host.name,))
        model = self._history.asked(ticket, self.hosts.values())
        decision = routing.place(model, room.without(self.snapshot(), ticket.model, host.name), policy)
        if not isinstance(decision, Placement):
            self._obey(ticket, decision)
            return
        self._picture, ticket.reloading = None, host.name
        spec = spec_for(model, decision)
        self._jobs.reload(model, spec, decision)
        self._report(ticket)

    def _have_back(self, eviction: Eviction) -> None:
        self._restored -= 1
        ticket = self._history.restoring(self._restored, eviction.node, eviction.spec, eviction.others, self._now)
        self.tickets[ticket.number] = ticket

    def _try_restore(self, ticket: Ticket) -> None:
        """Load it again once its node can, where it has room without anybody's leaving and nobody else has loaded it.

        The memory that it left may itself come back late.
        """
        there = sum(host.present(ticket.model) for host in self.hosts.values())
        assert ticket.node is not None
        if there > ticket.others or not self.hosts[ticket.node].healthy:
            del self.tickets[ticket.number]
            return
        decision = self._decide(ticket, self._history.policy(ticket, self._now))
        if isinstance(decision, Placement) and decision.costs_nothing:
            self._start(ticket, decision)
        if not isinstance(decision, Hold | Join) and self._now >= ticket.since + RETURN_SECS:
            del self.tickets[ticket.number]

    def _holders(self, ticket: Ticket) -> list[Host]:
        meant = [host for host in self.hosts.values() if ticket.node in (None, host.name)]
        hosts = [host for host in meant if host.healthy and host.name not in ticket.emptied]
        return [host for host in hosts if (one := host.replica(ticket.model)) and (one.resident or one.draining)]

    def _refuse(self, ticket: Ticket, error: errors.CortexError) -> None:
        del self.tickets[ticket.number]
        self._jobs.out.append(m.Refuse(ticket=ticket.number, error=error))

    def _report(self, ticket: Ticket) -> None:
        if ticket.kind != "load" or ticket.number not in self.tickets:
            return
        status = self.status(ticket.model)
        if status and status != ticket.reported:
            ticket.reported = status
            self._jobs.out.append(m.Report(ticket=ticket.number, status=status))

    def _names_nodes(self, ticket: Ticket) -> bool:
        """Whether every node that the operator named is one of ours; else the ticket is refused."""
        for param, names in (("node", [ticket.node] if ticket.node else []), ("hosts", ticket.options.hosts)):
            for name in names:
                if name not in self.hosts:
                    message = f"There is no node {name!r}; there are {', '.join(self.hosts)}."
                    self._refuse(ticket, errors.InvalidBody(message, param=param))
                    return False
        return True

    def _abandon(self) -> bool:
        """Drop jobs that nobody waits for and that have not begun their next step: their victims may stay."""
        wanted = {(ticket.kind == "unload", ticket.model) for ticket in self.tickets.values()}
        idle = [host for host in self.hosts.values() if host.job and not host.job.running and host.job.why != "defrag"]
        dropped = [host for host in idle if host.job and (host.job.why == "unload", host.job.model) not in wanted]
        for host in dropped:
            self._jobs.drop(host)
        return bool(dropped)

    def _defrag(self, host: Host) -> None:
        if not self.tickets:
            self._jobs.defrag(host)

    # -- facts ----------------------------------------------------------------------------------------------------

    def _listed(self, model: str) -> bool:
        return any(host.knows(model) for host in self.hosts.values())

    def _deadlines(self) -> dict[str, float]:
        """Seconds that a request may wait for each model. A load under way has its time on top of queueing.

        An operator waits as long as it takes.
        """
        gateway = self.config.gateway
        models = {ticket.model for ticket in self.tickets.values() if ticket.kind == "serve"}
        loading = {model for model in models for host in self.hosts.values() if host.loads_now(model)}
        return {model: gateway.wait_secs + gateway.load_timeout_secs * (model in loading) for model in models}


def _whom(ticket: Ticket) -> str:
    """For whom something is loaded, as the log says it."""
    if ticket.kind == "restore":
        return "nothing else came of its eviction"
    return ticket.context.id if ticket.context else "an operator"
