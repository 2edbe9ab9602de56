"""The one owner of operations: begins, advances and ends them. Asks `placement`, knows no ticket. No I/O.

A node takes part in one operation at a time, and what is asked of it one after another. A model is unloaded when the last
request on it has ended, so nothing that runs is ever killed to make room. A load begins when all its nodes are ready.
"""

import logging
from collections.abc import Collection, Iterable
from typing import assert_never

from attrs import define, evolve, field

from cortex_gateway import errors
from cortex_gateway.fleet import groups, shortage
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.host import Host
from cortex_gateway.fleet.operation import Eviction, LoadStep, Operation, UnloadStep
from cortex_gateway.fleet.state import FleetState
from cortex_gateway.placement import defrag, idle
from cortex_gateway.placement.decisions import Placement
from cortex_gateway.placement.snapshot import ModelConfig

log = logging.getLogger(__name__)


@define
class Operations:
    """Part of Residency, which alone calls it.

    Attributes:
        under_way: the oldest first. A host's `operation` is the one of these that occupies it.
    """

    _state: FleetState
    under_way: list[Operation] = field(factory=list, init=False)
    _in_vain: list[Eviction] = field(factory=list, init=False)

    # -- begun -----------------------------------------------------------------------------------------------------

    def load(
        self,
        model: ModelConfig,
        spec: m.LoadSpec,
        place: Placement,
        whom: str,
        *,
        retried: bool = False,
        first: Iterable[UnloadStep] = (),
        otherwise: m.LoadSpec | None = None,
    ) -> None:
        """Make room on all nodes of the placement, then load, for `whom`. None of them is occupied."""
        with_whom = f" together with {', '.join(spec.hosts)}" if spec.hosts else ""
        log.info("loading %s on %s%s for %s", model.id, place.node, with_whom, whom)
        unloads = [*first, *_unloads(model.id, place.node, place.victims)]
        for lender in place.lenders:
            unloads += _unloads(model.id, lender.node, lender.victims)
        load = LoadStep(node=place.node, spec=spec)
        self._begin(
            Operation(why="load", model=model.id, unloads=unloads, loads=[load], retried=retried, otherwise=otherwise)
        )

    def reload(self, model: ModelConfig, spec: m.LoadSpec, place: Placement) -> None:
        """Unload what is loaded there, and load it as `spec` says; as it was, where that fails."""
        before = self._state.history.spec_again(self._state.hosts[place.node], model.id)
        leaves = UnloadStep(node=place.node, model=model.id, at=place.node)
        otherwise = None if before.hosts else before
        whom = "an operator, instead of what is loaded"
        self.load(model, spec, place, whom, first=(leaves,), otherwise=otherwise)

    def unload(self, model: str, nodes: Iterable[str]) -> None:
        """Have it leave those of the nodes that are free. Asked again, the same operation takes in others that are by now."""
        free = [name for name in nodes if self._state.hosts[name].operation is None]
        steps = [UnloadStep(node=name, model=model, at=name) for name in free]
        found = next((one for one in self.under_way if one.why == "unload" and one.model == model), None)
        if found:
            found.unloads += steps
            self.advance()
        elif steps:
            self._begin(Operation(why="unload", model=model, unloads=steps))

    def leave_idle(self, host: Host) -> None:
        """Unload what nobody has asked for long enough; what did not leave is asked again after as long."""
        history, now = self._state.history, self._state.now
        after = self._state.config.eviction.idle_secs
        if not after and not any(model.idle_secs for model in history.catalogue.models.values()):
            return
        node = self._state.node(host)
        for model in idle.due(node, lambda name: history.catalogue.config(name, ()), after_secs=after, now=now):
            host.used(model, now)
            log.info("unloading %s from %s: nobody asks for it", model, host.name)
            self._begin(
                Operation(why="idle", model=model, unloads=[UnloadStep(node=host.name, model=model, at=host.name)])
            )
            return  # the others at the next look: a node is at one thing at a time

    def defrag(self, host: Host) -> None:
        """Restart the node's engines, if that is due."""
        after = self._state.config.eviction.defrag_after_cycles
        if not after or host.cycles < after:  # every request ends here: no node is built for nothing
            return
        models = defrag.due(self._state.node(host), after_cycles=after)
        if models is None:
            return
        host.cycles = 0
        log.info("restarting the engines of %s: %s", host.name, ", ".join(models) or "none is loaded")
        unloads = [UnloadStep(node=host.name, model=model, at=host.name) for model in models]
        specs = [self._state.history.spec_again(host, model) for model in models]
        loads = [LoadStep(node=host.name, spec=spec) for spec in specs]
        self._begin(Operation(why="defrag", model="", unloads=unloads, loads=loads))

    def _begin(self, operation: Operation) -> None:
        leading = [self._state.hosts[name] for step in operation.loads for name in step.nodes]
        assert all(host.operation is None for host in leading), "a node takes part in one operation at a time"
        self.under_way.append(operation)
        self.advance()

    # -- under way -------------------------------------------------------------------------------------------------

    def advance(self) -> None:
        """Begin whatever may begin by now. An operation that waits for a node gets it before anything else is placed there."""
        for operation in tuple(self.under_way):
            operation.unloads = [step for one in operation.unloads if (step := self._as_it_is(operation, one))]
            self._let_go(operation)
            if not operation.nodes:
                self.under_way.remove(operation)
        for operation in self.under_way:
            self._occupy(operation)
            if operation.unloads:
                self._begin_unloads(operation)
            elif not operation.running:
                self._begin_load(operation)

    def _as_it_is(self, operation: Operation, step: UnloadStep) -> UnloadStep | None:
        """Whom to ask by now: what a node lends is for the group's leader to end. None = the model has left already."""
        if step in operation.running.values():
            return step
        host = self._state.hosts[step.at]
        if host.present(step.model):
            return evolve(step, node=step.at)
        group = next((group for group in host.lent() if group.model == step.model), None)
        if group is None:
            return None
        leader = groups.leader(group, [one for one in self._state.hosts.values() if one is not host])
        asked = leader if leader and leader.present(step.model) else host
        return evolve(step, node=asked.name)

    def _let_go(self, operation: Operation) -> None:
        """Of nodes that have no more part in it."""
        nodes = operation.nodes
        for host in self._state.hosts.values():
            if host.operation is operation and host.name not in nodes:
                host.operation = None

    def _occupy(self, operation: Operation) -> None:
        """Those of its nodes that are free."""
        for host in map(self._state.hosts.__getitem__, operation.nodes):
            if host.operation is None and host.healthy:
                host.operation = operation

    def _begin_unloads(self, operation: Operation) -> None:
        for step in operation.first_unloads():
            host = self._state.hosts[step.node]
            free = host.operation is operation and host.name not in operation.running and not host.suspect
            if free and host.present(step.model) and host.pending(step.model) == 0:
                operation.running[host.name] = step
                self._state.effects.append(m.StartUnload(node=host.name, model=step.model))

    def _begin_load(self, operation: Operation) -> None:
        step = operation.loads[0]
        hosts = [self._state.hosts[name] for name in step.nodes]
        if self._state.now >= operation.not_before and not any(host.suspect for host in hosts):
            operation.running[step.node] = step
            self._state.effects.append(m.StartLoad(node=step.node, spec=step.spec))

    # -- ended -----------------------------------------------------------------------------------------------------

    def finished(self, event: m.Finished) -> None:
        """What was begun on the node has ended."""
        operation = self._state.hosts[event.node].operation
        assert operation is not None, "only what runs ends"
        step = operation.running.pop(event.node)
        match step:
            case UnloadStep():
                self._unload_ended(operation, step, event.error)
            case LoadStep():
                self._load_ended(operation, step, event.error)
            case _:
                assert_never(step)
        self._state.effects.append(m.Look(node=event.node))
        for name in operation.nodes:
            if not self._state.hosts[name].healthy:
                self._leave_out(operation, name)
        self.advance()

    def silent(self, host: Host) -> None:
        """The node does not answer just now: what has not begun is not waited for."""
        for operation in self.under_way:
            if host.name in operation.nodes and host.name not in operation.running and not operation.loading:
                self._leave_out(operation, host.name)
        self.advance()

    def lost(self, host: Host) -> None:
        """The node is gone, and with it what it was at."""
        self.silent(host)
        if host.operation and host.name in host.operation.running:
            self._state.effects.append(m.Abort(node=host.name))

    def abandon(self, wanted: Collection[tuple[bool, str]]) -> bool:
        """Cut short what nobody wants any more and has something left to begin: victims may stay. True if there is any.

        `wanted`: models, each with whether it is to leave.
        """
        unwanted = [
            one
            for one in self.under_way
            if one.unfinished and one.why in ("load", "unload")
            if (one.why == "unload", one.model) not in wanted
        ]
        for operation in unwanted:
            self._cut_short(operation)
        self.advance()
        return bool(unwanted)

    def wakes(self) -> Iterable[float]:
        """When a pause ends."""
        return (one.not_before for one in self.under_way if not one.running)

    def in_vain(self) -> list[Eviction]:
        """Those who left for a load that is not to come, each told once."""
        vain, self._in_vain = self._in_vain, []
        return vain

    def _leave_out(self, operation: Operation, node: str) -> None:
        """The node takes no part any more. Without it there is no load; what leaves other nodes leaves them."""
        if operation.why == "unload":
            running = operation.running.values()
            operation.unloads = [step for step in operation.unloads if step.node != node or step in running]
        else:
            self._cut_short(operation)

    def _cut_short(self, operation: Operation) -> None:
        operation.cut_short()
        self._in_vain += operation.evicted
        operation.evicted = []

    def _fail(
        self,
        operation: Operation,
        node: str,
        error: errors.CortexError,
        together: frozenset[str] | None = None,
    ) -> None:
        dear = bool(operation.evicted)
        self._state.history.fail(operation.model, node, error, self._state.now, together=together, dear=dear)
        self._cut_short(operation)

    # -- an unload has ended ---------------------------------------------------------------------------------------

    def _unload_ended(self, operation: Operation, step: UnloadStep, error: errors.CortexError | None) -> None:
        host = self._state.hosts[step.node]
        if error is None:
            self._left(operation, step, host)
            return
        log.warning("unloading %s from %s failed: %s", step.model, host.name, error)
        operation.unloads.remove(step)
        if operation.why == "defrag":
            operation.loads = [one for one in operation.loads if one.spec.model_id != step.model]
        else:  # other hosts may have room without that
            together = operation.loads[0].nodes if operation.loads else ()
            self._fail(operation, step.at, error, frozenset(together) if len(together) > 1 else None)

    def _left(self, operation: Operation, step: UnloadStep, host: Host) -> None:
        if step.incoming:
            self._evicted(operation, step, step.incoming)
        host.unloaded(step.model, self._state.now)
        host.cycles += operation.why != "defrag"
        for one in self._state.hosts.values():
            if one is not host and any(group.model == step.model for group in one.lent()):
                one.freed(self._state.now)
                self._state.effects.append(m.Look(node=one.name))
        if not operation.loads:  # nothing waits until lenders have their memory back
            operation.unloads.remove(step)

    def _evicted(self, operation: Operation, step: UnloadStep, incoming: str) -> None:
        log.info("evicted %s from %s for %s", step.model, step.node, incoming)
        self._state.effects.append(m.Evicted(node=step.node, model=step.model, incoming=incoming))
        hosts = self._state.hosts
        others = sum(one.present(step.model) for one in hosts.values() if one.name != step.node)
        spec = self._state.history.spec_again(hosts[step.node], step.model)
        gone = operation.evicted if operation.loads else self._in_vain
        gone.append(Eviction(node=step.node, spec=spec, others=others))

    # -- a load has ended ------------------------------------------------------------------------------------------

    def _load_ended(self, operation: Operation, step: LoadStep, error: errors.CortexError | None) -> None:
        operation.progress = None
        for name in step.spec.hosts:
            self._state.hosts[name].changed()
            self._state.effects.append(m.Look(node=name))
        leader = self._state.hosts[step.node]
        if error is None:
            operation.loads.remove(step)
            operation.evicted = []
            self._state.history.loaded(step.spec, leader, self._state.now)
            leader.loaded(step.spec, self._state.now)
            return
        log.warning("loading %s on %s failed: %s", step.spec.model_id, leader.name, error)
        leader.changed()
        if not self._tried_again(operation, step, error):
            self._load_failed(operation, step, error)

    def _tried_again(self, operation: Operation, step: LoadStep, error: errors.CortexError) -> bool:
        """For want of memory: later, where some is coming back, else once more after evictions."""
        if not shortage.told_by(error):
            return False
        hosts = [self._state.hosts[name] for name in step.nodes]
        if all(host.healthy for host in hosts) and shortage.passes(self._state, step, error):
            operation.again(self._state.now)
            log.info(
                "%s is tried again on %s in %.1f s: memory is coming back", operation.model, step.node, operation.pause
            )
            return True
        if operation.why == "defrag" or operation.retried:
            return False
        found = shortage.room_after(self._state, step, error)
        if found is None:
            return False
        operation.unloads = _unloads(operation.model, step.node, found.victims)
        operation.loads = [evolve(step, spec=evolve(step.spec, devices=found.devices))]
        operation.retried, operation.pause = True, 0.0
        return True

    def _load_failed(self, operation: Operation, step: LoadStep, error: errors.CortexError) -> None:
        if operation.why == "defrag":
            operation.loads.remove(step)
            self._state.history.fail(step.spec.model_id, step.node, error, self._state.now)
        elif operation.otherwise:
            self._state.history.fail(operation.model, step.node, error, self._state.now)
            operation.loads = [LoadStep(node=step.node, spec=operation.otherwise)]
            operation.otherwise, operation.pause = None, 0.0
        else:
            self._fail(operation, step.node, error, groups.failed_group(error, step.nodes))


def _unloads(incoming: str, node: str, victims: Iterable[str]) -> list[UnloadStep]:
    return [UnloadStep(node=node, model=victim, at=node, incoming=incoming) for victim in victims]
