"""The one owner of residency: events in, effects out, every decision asked of `placement`. No I/O, no clock of its own.

A request or an operator's command is a ticket. A ticket ends with a grant, a completion or a refusal; until then it is tried
again after every event that could help it, together with those that want the same. What nodes do for it is an operation.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import assert_never

from attrs import define, evolve, field

from cortex_gateway import errors
from cortex_gateway.config import Config
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.commands import Commands
from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.operations import Operations
from cortex_gateway.fleet.state import FleetState
from cortex_gateway.fleet.ticket import Ticket
from cortex_gateway.fleet.waiting import Waiting
from cortex_gateway.placement import catalogue
from cortex_gateway.placement.catalogue import Catalogue
from cortex_gateway.placement.circuit import Circuit
from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.outlook import Outlook
from cortex_gateway.placement.snapshot import FleetSnapshot, LoadStatus

log = logging.getLogger(__name__)


@define
class Residency:
    """`handle` is the only way in. Times are seconds on the caller's clock, which never goes back."""

    config: Config
    state: FleetState = field(init=False)
    operations: Operations = field(init=False)
    waiting: Waiting = field(init=False)
    _commands: Commands = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.state = FleetState(self.config)
        self.operations = Operations(self.state)
        self.waiting = Waiting(self.state, self.operations)
        self._commands = Commands(self.state, self.operations, self.waiting)

    @property
    def hosts(self) -> dict[str, Host]:
        return self.state.hosts

    @property
    def catalogue(self) -> Catalogue:
        return self.state.history.catalogue

    @property
    def decided(self) -> list[m.Effect]:
        """The effects of the last event, as far as `handle` came."""
        return self.state.effects

    def handle(self, event: m.Event, now: float) -> list[m.Effect]:
        """Take one event; the effects are to be carried out in order."""
        self.state.now = now
        self.state.effects = []
        if isinstance(event, m.OfNode) and event.node not in self.hosts:
            return self.state.effects
        self.waiting.changed()
        self._on(event)
        for eviction in self.operations.in_vain():
            self._commands.have_back(eviction)
        return self.state.effects

    def snapshot(self, now: float | None = None) -> FleetSnapshot:
        """Everything as last seen; `now` is the time of the last event, unless the caller knows better."""
        return self.waiting.snapshot(self.state.now if now is None else now)

    def status(self, model: str) -> LoadStatus | None:
        """How far the load is that a request for `model` waits for; None where nobody waits and nothing is loading."""
        return self.waiting.status(model)

    def waits(self, model: str) -> LoadStatus | None:
        """What a request for `model` waits for now: of a line, how many others are in it."""
        found = self.waiting.status(model)
        if found is None or found.phase != "queued":
            return found
        others = sum(ticket.model == model for ticket in self.waiting.tickets.values()) - 1
        return evolve(found, total=max(0, others), unit="requests")

    def outlook(self, name: str, node: str | None, options: LoadOptions, now: float) -> Outlook:
        """Where a load that an operator would ask for could go, and what it would cost; nothing is begun."""
        model = self.catalogue.aliases.get(name, name)
        return self.waiting.outlook(
            Ticket(number=0, kind="load", model=model, since=now, node=node, options=options), now
        )

    def resolve(self, name: str) -> str | None:
        return catalogue.resolve(self.catalogue, name, self._listed)

    def unknown(self, name: str) -> errors.ModelNotFound:
        """What to say to someone who asks for `name`, which nobody knows."""
        snapshot = self.snapshot()
        near = catalogue.nearest(self.catalogue, snapshot, name)
        return errors.ModelNotFound(name, nearest=near, present=catalogue.present(self.catalogue, snapshot))

    def next_wake(self) -> float | None:
        """When a `Ticked` would change something; None = not before the next event."""
        times = itertools.chain(self.waiting.wakes(), self.operations.wakes())
        return min((time for time in times if time > self.state.now), default=None)

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
            case m.Configured():
                self._on_configured(event)
            case m.Listed():
                self._on_listed(event)
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

    # -- to those who wait

    def _on_wanted(self, event: m.Wanted) -> None:
        model = self.resolve(event.model)
        if model is None:
            self.state.effects.append(m.Refuse(ticket=event.ticket, error=self.unknown(event.model)))
            return
        ticket = Ticket(
            number=event.ticket,
            kind="serve",
            model=model,
            loads=self._base(model),
            since=self.state.now,
            context=event.context,
        )
        self.waiting.add(ticket, event.besides)

    def _on_load_asked(self, event: m.LoadAsked) -> None:
        ticket = Ticket(
            number=event.ticket,
            kind="load",
            model=self.catalogue.aliases.get(event.model, event.model),
            since=self.state.now,
            node=event.node,
            options=event.options,
            reload=event.reload,
        )
        if self._commands.add(ticket):
            self._commands.load(ticket)

    def _on_unload_asked(self, event: m.UnloadAsked) -> None:
        model = self.catalogue.aliases.get(event.model, event.model)
        ticket = Ticket(number=event.ticket, kind="unload", model=model, since=self.state.now, node=event.node)
        if self._commands.add(ticket):
            self._commands.begin_unload(ticket)

    def _on_left(self, event: m.Left) -> None:
        if self.waiting.tickets.pop(event.ticket, None) and self._abandon():
            self._settle()

    def _on_ticked(self, _: m.Ticked) -> None:
        self.waiting.refuse_late()
        self._abandon()
        self.operations.advance()
        self._settle()

    def _on_configured(self, event: m.Configured) -> None:
        self.state.configure(event)
        self._settle()

    # -- to replicas

    def _on_returned(self, event: m.Returned) -> None:
        host = self.hosts[event.node]
        host.give_back(event.model, self.state.now)
        self._judge(host, event)
        if host.pending(event.model) == 0:  # else nobody who waits gains anything by it
            self.operations.advance()
            self._settle()
        self._defrag(host)

    def _judge(self, host: Host, event: m.Returned) -> None:
        """What the end of a request says of the replica that had it."""
        before = host.circuits.get(event.model)
        if event.served is False:
            self.state.effects.append(m.Look(node=host.name))  # why it failed may be seen there
            after = (before or Circuit()).failed(self.state.now, event.failure)
            host.judge(event.model, after)
            if after.until != (before.until if before else None):
                log.warning(
                    "%s on %s rests %.0f s, it failed %d times in a row: %s",
                    event.model,
                    host.name,
                    after.rest_secs,
                    after.failures,
                    event.failure,
                )
        elif before and event.served:
            host.judge(event.model, before.served(event.sent))
        elif before and event.trial:
            host.judge(event.model, before.left())

    def _on_begun(self, event: m.Begun) -> None:
        host = self.hosts[event.node]
        if event.model in host.circuits:
            host.judge(event.model, host.circuits[event.model].begun())

    def _on_absent(self, event: m.Absent) -> None:
        host = self.hosts[event.node]
        if host.operation is None and host.present(event.model):
            log.warning("%s says that it has not loaded %s", host.name, event.model)
            host.unloaded(event.model, self.state.now)
        self.state.effects.append(m.Look(node=host.name))

    # -- to nodes

    def _on_looking(self, event: m.Looking) -> None:
        self.hosts[event.node].begin_look()

    def _on_seen(self, event: m.Seen) -> None:
        host = self.hosts[event.node]
        if not host.healthy:
            log.info("%s answers at %s", host.name, host.endpoint)
        host.see(event.observation, self.state.now)
        self.state.history.measure(host)
        self.operations.advance()
        self._settle()
        self.operations.leave_idle(host)
        self._defrag(host)

    def _on_missed(self, event: m.Missed) -> None:
        host = self.hosts[event.node]
        if host.miss(event.reason):
            log.warning("%s is not healthy: %s", host.name, event.reason)
            self.operations.lost(host)
        elif host.silent:
            self.operations.silent(host)
        if host.hush(silent=event.silent):
            self.state.effects.append(m.Lost(node=host.name))
        self._settle()

    def _on_listed(self, event: m.Listed) -> None:
        """Who is new joins. Who is named no more, does not answer and is at nothing has parted."""
        for one in event.neurons:
            if one.name not in self.hosts:
                self.hosts[one.name] = Host(name=one.name, endpoint=one.endpoint.rstrip("/"), service=event.service)
                self.state.effects.append(m.Joined(neuron=one))
        named = {one.name for one in event.neurons}
        busy = {ticket.node for ticket in self.waiting.tickets.values()}
        for host in list(self.hosts.values()):
            if host.service == event.service and host.name not in named and host.name not in busy and host.idle:
                log.info("%s has left the fleet", host.name)
                del self.hosts[host.name]
                self.state.effects.append(m.Parted(node=host.name))

    def _on_suspected(self, event: m.Suspected) -> None:
        host = self.hosts[event.node]
        host.doubt(event.reason)
        self.state.effects.append(m.Look(node=host.name))
        self._settle()

    # -- to loads and unloads

    def _on_progressed(self, event: m.Progressed) -> None:
        operation = self.hosts[event.node].operation
        if operation is None:
            return
        operation.progress = event.status
        for ticket in self.waiting.tickets.values():
            if operation.loads_on(event.node, ticket.loads):
                self.waiting.report(ticket)

    def _on_found(self, event: m.Found) -> None:
        for ticket in self.waiting.tickets.values():
            if ticket.loads == event.model:
                ticket.cold = False

    def _on_finished(self, event: m.Finished) -> None:
        self.operations.finished(event)
        self._settle()

    # -- what follows ---------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Try every ticket again."""
        for line in self.waiting.lines():
            self._try(line)

    def _try(self, line: Sequence[Ticket]) -> None:
        """Tickets that want the same; more than one only of requests."""
        match line[0].kind:
            case "serve":
                self.waiting.serve(line)
            case "load":
                self._commands.load(line[0])
            case "unload":
                self._commands.unload(line[0])
            case "restore":
                self._commands.restore(line[0])
            case kind:
                assert_never(kind)

    def _abandon(self) -> bool:
        """Have nothing more begun that nobody waits for."""
        return self.operations.abandon(
            {(ticket.kind == "unload", ticket.loads) for ticket in self.waiting.tickets.values()}
        )

    def _defrag(self, host: Host) -> None:
        if not self.waiting.tickets:
            self.operations.defrag(host)

    def _base(self, model: str) -> str:
        """What is loaded for those who ask for a model: of an adapter the model that it is beside."""
        if model in self.catalogue.models:
            return model
        told = (one.beside for host in self.hosts.values() if (one := host.replicas.get(model)) and one.beside)
        return self.catalogue.bases.get(model) or next(told, model)

    def _listed(self, model: str) -> bool:
        return any(host.knows(model) for host in self.hosts.values())
