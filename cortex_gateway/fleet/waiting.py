"""Who waits, and how it ends: with a grant or a refusal, or with a load first, as `placement` says. No I/O, no clock."""

from collections.abc import Iterable, Sequence

from attrs import define, field

from cortex_gateway import errors
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.history import PATIENCE_SECS, spec_for
from cortex_gateway.fleet.operations import Operations
from cortex_gateway.fleet.state import FleetState
from cortex_gateway.fleet.ticket import Ticket
from cortex_gateway.placement import affinity
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.decisions import Decision, Placement, Policy, Recovering, Reject, Serve
from cortex_gateway.placement.outlook import Outlook, outlook
from cortex_gateway.placement.snapshot import FleetSnapshot, LoadStatus


@define
class Waiting:
    """Part of Residency, which alone calls it; the one owner of tickets.

    Attributes:
        tickets: by number, the oldest first.
        decisions: how often placement was asked where something should go.
        considered: what was found of each node before.
    """

    _state: FleetState
    _operations: Operations
    tickets: dict[int, Ticket] = field(factory=dict, init=False)
    decisions: int = field(default=0, init=False)
    considered: routing.Considered = field(factory=routing.Considered, init=False)
    _homes: affinity.Homes = field(factory=affinity.Homes, init=False)
    _picture: FleetSnapshot | None = field(default=None, init=False)  # as long as nothing has changed

    def changed(self) -> None:
        """What was decided before need not hold any more."""
        self._picture = None

    def snapshot(self, now: float) -> FleetSnapshot:
        waiting: dict[str, int] = {}
        for ticket in self._serving():
            waiting[ticket.loads] = waiting.get(ticket.loads, 0) + 1
        nodes = tuple(map(self._state.node, self._state.hosts.values()))
        return FleetSnapshot(nodes=nodes, at=now, waiting=waiting)

    def status(self, model: str) -> LoadStatus | None:
        """How far the load is that a request for `model` waits for; None where nobody waits and nothing is loading."""
        waits = next((ticket for ticket in self.tickets.values() if ticket.model == model), None)
        for host in self._state.hosts.values():
            replica = host.replica(waits.loads if waits else model)
            if replica and replica.status == "loading":
                return replica.progress or LoadStatus(phase="loading")
        return LoadStatus(phase="queued") if waits else None

    def lines(self) -> Iterable[Sequence[Ticket]]:
        """Tickets that want the same together; who is known comes first, then who has waited longest."""
        lines: dict[object, list[Ticket]] = {}
        for ticket in sorted(self.tickets.values(), key=lambda ticket: not ticket.known):
            lines.setdefault(ticket.line, []).append(ticket)
        return lines.values()

    # -- requests --------------------------------------------------------------------------------------------------

    def add(self, ticket: Ticket, besides: frozenset[str]) -> None:
        """A request begins to wait, if it must and may."""
        queued = sum(1 for _ in self._serving())
        self.tickets[ticket.number] = ticket
        if besides:
            self._send_on(ticket, besides)
        elif queued < self._state.config.gateway.max_waiting:
            self.serve((ticket,))
        elif not self._grant((ticket,)):
            self.refuse(ticket, errors.Overloaded(f"{queued} requests wait for a model already.", queued=queued))

    def serve(self, line: Sequence[Ticket]) -> None:
        """Grant requests for one model what serves; else find out what they wait for."""
        if not self._grant(line):
            self.decide_for(line)

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
            self.refuse(ticket, errors.NoOtherReplica(f"No other node serves {ticket.model} now."))
        else:
            self._granted(ticket, best)

    def _candidates(self, model: str) -> list[routing.Candidate]:
        now = self._state.now
        return [one for host in self._state.hosts.values() if (one := host.candidate(model, now))]

    def _serving(self) -> Iterable[Ticket]:
        return (ticket for ticket in self.tickets.values() if ticket.kind == "serve")

    # -- decisions -------------------------------------------------------------------------------------------------

    def decide_for(self, line: Sequence[Ticket]) -> None:
        """What was decided for one holds for the next, until something has changed by it."""
        history = self._state.history
        offering = history.offering(line[0], self._state.hosts.values())
        policy: Policy | None = None
        decision: Decision | None = None
        for ticket in line:
            before, policy = policy, history.policy(ticket, self._state.now, offering)
            if policy is not before or self._picture is None:
                decision = self.decide(ticket, policy)
            assert decision is not None
            self.obey(ticket, decision)
            self.report(ticket)

    def outlook(self, ticket: Ticket, now: float) -> Outlook:
        """What would be decided for a ticket, which does not begin to wait."""
        history, hosts = self._state.history, self._state.hosts.values()
        policy = history.policy(ticket, now, history.offering(ticket, hosts))
        return outlook(history.asked(ticket, hosts), self.snapshot(now), policy)

    def decide(self, ticket: Ticket, policy: Policy) -> Decision:
        self.decisions += 1
        self._picture = self._picture or self.snapshot(self._state.now)
        model = self._state.history.asked(ticket, self._state.hosts.values())
        return routing.route(model, self._picture, policy, self.considered)

    def obey(self, ticket: Ticket, decision: Decision) -> None:
        match decision:
            case Serve() if ticket.loads != ticket.model:  # one that has the adapter was asked before
                self.refuse(ticket, _without(ticket, decision.node))
            case Serve():
                self._granted(ticket, decision.node)
            case Recovering() if ticket.kind == "serve":
                message = f"{ticket.model} is recovering on {decision.node}."
                self.refuse(ticket, errors.ModelRecovering(message))
            case Placement():
                self.start(ticket, decision)
            case Reject():
                history = self._state.history
                grouped = len(history.asked(ticket, self._state.hosts.values()).hosts) > 1
                self.refuse(ticket, history.refusal(ticket, decision, self._state.now, grouped=grouped))
            case _:
                ticket.cold = True

    def start(self, ticket: Ticket, place: Placement) -> None:
        """Have the model loaded there."""
        self.changed()
        ticket.cold = True
        model = self._state.history.asked(ticket, self._state.hosts.values())
        spec = spec_for(model, place)
        self._operations.load(model, spec, place, _whom(ticket), retried=ticket.kind == "restore")

    # -- answers ---------------------------------------------------------------------------------------------------

    def _granted(self, ticket: Ticket, node: str) -> None:
        if ticket.kind == "load":
            self.complete(ticket)
            return
        del self.tickets[ticket.number]
        self.changed()
        if ticket.affinity:
            self._homes.note(ticket.model, ticket.affinity, node)
        trial = self._state.hosts[node].take(ticket.model, self._state.now)
        grant = m.Grant(ticket=ticket.number, node=node, model=ticket.model, cold=ticket.cold, trial=trial)
        self._state.effects.append(grant)

    def complete(self, ticket: Ticket) -> None:
        del self.tickets[ticket.number]
        self._state.effects.append(m.Complete(ticket=ticket.number))

    def refuse(self, ticket: Ticket, error: errors.CortexError) -> None:
        del self.tickets[ticket.number]
        self._state.effects.append(m.Refuse(ticket=ticket.number, error=error))

    def report(self, ticket: Ticket) -> None:
        """Tell an operator how far his load is, where that is news."""
        if ticket.kind != "load" or ticket.number not in self.tickets:
            return
        status = self.status(ticket.model)
        if status and status != ticket.reported:
            ticket.reported = status
            self._state.effects.append(m.Report(ticket=ticket.number, status=status))

    # -- time ------------------------------------------------------------------------------------------------------

    def refuse_late(self) -> None:
        """Requests whose time to wait is over."""
        deadlines, now = self._deadlines(), self._state.now
        for ticket in [one for one in self._serving() if now >= one.since + deadlines[one.model]]:
            queued = sum(one.model == ticket.model for one in self.tickets.values()) - 1
            message = (
                f"{ticket.model} could not be loaded within {now - ticket.since:.0f} s: "
                "every node with room for it is in use."
            )
            self.refuse(ticket, errors.Overloaded(message, queued=queued))

    def wakes(self) -> Iterable[float]:
        """When waiting changes what may be done for somebody, or ends."""
        deadlines = self._deadlines()
        return (
            time
            for ticket in self._serving()
            for time in (ticket.since + PATIENCE_SECS, ticket.since + deadlines[ticket.model])
        )

    def _deadlines(self) -> dict[str, float]:
        """Seconds that a request may wait for each model. A load under way has its time on top of queueing.

        An operator waits as long as it takes.
        """
        gateway = self._state.config.gateway
        models = {ticket.model: ticket.loads for ticket in self._serving()}
        hosts = self._state.hosts.values()
        loading = {model for model, loads in models.items() for host in hosts if host.loads_now(loads)}
        return {model: gateway.wait_secs + gateway.load_timeout_secs * (model in loading) for model in models}


def _without(ticket: Ticket, node: str) -> errors.CortexError:
    adapter = ticket.model.removeprefix(f"{ticket.loads}:")
    message = (
        f"{ticket.loads} is loaded on {node} without the adapter {adapter}. To have it, load it anew as it is configured: "
        f"cortex load {ticket.loads} --reload."
    )
    return errors.AlreadyLoaded(message, node=node)


def _whom(ticket: Ticket) -> str:
    """For whom something is loaded, as the log says it."""
    if ticket.kind == "restore":
        return "nothing else came of its eviction"
    return ticket.context.id if ticket.context else "an operator"
