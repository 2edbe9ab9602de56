"""An operator's loads, reloads and unloads, and the reloading of models that were evicted for nothing.

No I/O, no clock of its own.
"""

from attrs import define, evolve, field

from cortex_gateway import errors
from cortex_gateway.fleet.differing import Loaded, differing, words
from cortex_gateway.fleet.history import spec_for
from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.operation import Eviction
from cortex_gateway.fleet.operations import Operations
from cortex_gateway.fleet.shortage import RETURN_SECS
from cortex_gateway.fleet.state import FleetState
from cortex_gateway.fleet.ticket import Ticket
from cortex_gateway.fleet.waiting import Waiting
from cortex_gateway.placement import room
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.decisions import Hold, Join, Placement
from cortex_gateway.placement.load_options import LoadOptions


@define
class Commands:
    """Part of Residency, which alone calls it."""

    _state: FleetState
    _operations: Operations
    _waiting: Waiting
    _restored: int = field(default=0, init=False)  # tickets of our own are numbered downwards

    def add(self, ticket: Ticket) -> bool:
        """An operator begins to wait; false where he is refused, for he named a node that is none of ours."""
        self._waiting.tickets[ticket.number] = ticket
        hosts = self._state.hosts
        for param, names in (("node", [ticket.node] if ticket.node else []), ("hosts", ticket.options.hosts)):
            for name in names:
                if name not in hosts:
                    message = f"There is no node {name!r}; there are {', '.join(hosts)}."
                    self._waiting.refuse(ticket, errors.InvalidBody(message, param=param))
                    return False
        return True

    # -- load ------------------------------------------------------------------------------------------------------

    def load(self, ticket: Ticket) -> None:
        """Complete it where the model serves as asked for; what serves otherwise is told, or reloaded."""
        serving = [host for host in self._state.hosts.values() if self._serves_for(ticket, host)]
        failed = self._state.history.cooling(ticket, self._state.now).get(ticket.reloading)
        if failed:
            self._waiting.refuse(ticket, failed.error)
        elif not serving:
            self._waiting.decide_for((ticket,))
        elif ticket.reload and not any(self._state.history.loaded_since(ticket, host) for host in serving):
            self._reload(ticket, serving)
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
            self._waiting.decide_for((ticket,))
            return
        node, found = next(iter(differs.items()))
        message = (
            f"{ticket.model} is loaded on {node} with {words(found)}. To have it as asked for, say reload (cortex load "
            f"{ticket.model} --reload): it is loaded anew once its running requests have ended."
        )
        told = {name: {"loaded": loaded, "asked": asked} for name, (loaded, asked) in found.items()}
        self._waiting.refuse(ticket, errors.AlreadyLoaded(message, node=node, differs=told))

    def _loaded(self, model: str, host: Host) -> Loaded:
        replica = host.replica(model)
        assert replica is not None
        hosts = self._state.hosts.values()
        lending = [one.name for one in hosts if any(group.model == model for group in one.lent())]
        lenders = lending if replica.group else []
        return Loaded(replica=replica, spec=self._state.history.spec(model, host.name), lenders=lenders)

    def _reload(self, ticket: Ticket, serving: list[Host]) -> None:
        """Find room for it as if it had left already: it leaves only when there is."""
        host = serving[0]
        if len(serving) > 1:
            names = ", ".join(one.name for one in serving)
            message = f"{ticket.model} is loaded on {names}: name the node to reload it on."
            self._waiting.refuse(ticket, errors.InvalidBody(message, param="node"))
            return
        history, now = self._state.history, self._state.now
        policy = evolve(history.policy(ticket, now), only=(host.name,))
        model = history.asked(ticket, self._state.hosts.values())
        decision = routing.place(model, room.without(self._waiting.snapshot(now), ticket.model, host.name), policy)
        if not isinstance(decision, Placement):
            self._waiting.obey(ticket, decision)
            return
        self._waiting.changed()
        ticket.reloading = host.name
        self._operations.reload(model, spec_for(model, decision), decision)
        self._waiting.report(ticket)

    # -- unload ----------------------------------------------------------------------------------------------------

    def begin_unload(self, ticket: Ticket) -> None:
        """404 where there is nothing to unload."""
        if self._holders(ticket):
            self.unload(ticket)
        else:
            self._waiting.refuse(ticket, not_loaded(ticket.model, ticket.node))

    def unload(self, ticket: Ticket) -> None:
        """Complete it once the model has left each of the nodes; what is loaded there later stays."""
        failures = self._state.history.failures.get(ticket.model, {}).values()
        recent = next((failure for failure in failures if failure.at >= ticket.since), None)
        if recent:
            self._waiting.refuse(ticket, recent.error)
            return
        held = {host.name for host in self._holders(ticket)}
        healthy = {host.name for host in self._state.hosts.values() if host.healthy}
        ticket.emptied |= healthy - held
        if held:
            self._waiting.changed()
            self._operations.unload(ticket.model, [name for name in self._state.hosts if name in held])
        else:
            self._waiting.complete(ticket)

    def _holders(self, ticket: Ticket) -> list[Host]:
        meant = [host for host in self._state.hosts.values() if ticket.node in (None, host.name)]
        hosts = [host for host in meant if host.healthy and host.name not in ticket.emptied]
        return [host for host in hosts if (one := host.replica(ticket.model)) and (one.resident or one.draining)]

    # -- to have it back -------------------------------------------------------------------------------------------

    def have_back(self, eviction: Eviction) -> None:
        """A model that was evicted for nothing is to be loaded there as it was."""
        self._restored -= 1
        spec = eviction.spec
        hosts = (eviction.node, *spec.hosts) if spec.hosts else ()
        self._waiting.tickets[self._restored] = Ticket(
            number=self._restored,
            kind="restore",
            model=spec.model_id,
            since=self._state.now,
            node=eviction.node,
            options=LoadOptions(**{**spec.named, "hosts": hosts}),
            others=eviction.others,
        )

    def restore(self, ticket: Ticket) -> None:
        """Load it again once its node can, where it has room without anybody's leaving and nobody else has loaded it.

        The memory that it left may itself come back late.
        """
        there = sum(host.present(ticket.model) for host in self._state.hosts.values())
        assert ticket.node is not None
        if there > ticket.others or not self._state.hosts[ticket.node].healthy:
            del self._waiting.tickets[ticket.number]
            return
        now = self._state.now
        decision = self._waiting.decide(ticket, self._state.history.policy(ticket, now))
        if isinstance(decision, Placement) and decision.costs_nothing:
            self._waiting.start(ticket, decision)
        if not isinstance(decision, Hold | Join) and now >= ticket.since + RETURN_SECS:
            del self._waiting.tickets[ticket.number]


def not_loaded(model: str, node: str | None) -> errors.CortexError:
    """404: there is nothing to unload, or to change."""
    error = errors.BadRequest(f"The model {model!r} is not loaded on {node or 'any node'}.", param="model")
    error.status, error.code = 404, "model_not_loaded"
    return error
