"""Residency against nodes on paper, driven at random: whatever happens in whatever order, its promises hold.

It is told what the fleet may tell it, and no more: of one look at a time on each node, and of one end for each load and
unload that it began. What nodes hold changes behind its back, and looks may be old when they are told.
"""

from collections import Counter

from attrs import evolve
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cortex_gateway import errors
from cortex_gateway.config import Config, EvictionConfig, GatewayConfig, Neuron
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.residency import Residency
from cortex_gateway.placement import fit, room
from cortex_gateway.placement import route as routing
from cortex_gateway.placement.decisions import Hold, Join, Policy
from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.snapshot import LoadStatus, ModelConfig
from tests.fakes.contexts import asked
from tests.fakes.paper_node import PaperNode, Work

NODES = ("a", "b", "c")
PINNED, ITS_NODE = "pinned", "a"
MODELS = (
    ModelConfig(id="small", vram_mb=2500),
    ModelConfig(id="middle", vram_mb=5000),
    ModelConfig(id="large", vram_mb=8000, residency_priority=50),
    ModelConfig(id=PINNED, vram_mb=4000, pinned_on=(ITS_NODE,)),
    ModelConfig(id="wide", vram_mb=12_000, tensor_parallel=2, hosts=("a", "b")),
    ModelConfig(id="broad", vram_mb=9000, tensor_parallel=3, hosts=NODES),
    ModelConfig(id="unmeasured"),
)
OVER_SEVERAL = ("wide", "broad")
NAMES = [model.id for model in MODELS]
SIZES = {"small": 2500, "middle": 5000, "large": 8000, PINNED: 4000, "wide": 6000, "broad": 3000, "unmeasured": 4500}
BROKEN = errors.LoadFailed("cut short", kind="bad_checkpoint")
GONE = errors.LoadFailed("it has gone away", kind="node_failed")
LOST = errors.LoadFailed("a member is gone", kind="rank_exited")

names, nodes = st.sampled_from(NAMES), st.sampled_from(NODES)
Lease = tuple[str, str, bool, float]
"""Node, model, whether it tries the replica after a rest, when it was granted."""


class Fleet(RuleBasedStateMachine):
    """What the promises are stands in the invariants and in `_took`."""

    strategy = "lru"
    defrag_after = 0
    idle_secs = 0.0

    def __init__(self) -> None:
        super().__init__()
        config = Config(
            gateway=GatewayConfig(max_waiting=4),
            neurons=tuple(Neuron(name=name, endpoint=f"http://{name}:1") for name in NODES),
            models=MODELS,
            aliases={"best": "large"},
            eviction=EvictionConfig(
                strategy=self.strategy,  # type: ignore[arg-type]
                defrag_after_cycles=self.defrag_after,
                idle_secs=self.idle_secs,
            ),
        )
        self.residency = Residency(config)
        self.now = 100.0
        self.numbers = 0
        self.waiting: dict[int, frozenset[str]] = {}  # tickets nobody has answered, and the nodes they must not get
        self.leases: list[Lease] = []
        self.taken: dict[str, str] = {}  # nodes that a load has begun on -> who leads it
        self.looks: dict[str, m.Observation | None] = {}  # under way; None = the node answers later
        self.nodes = {name: PaperNode(name, SIZES) for name in NODES}
        for name in NODES:
            self._look(name)

    # -- the fleet --------------------------------------------------------------------------------------------------

    def _tell(self, event: m.Event) -> None:
        for effect in self.residency.handle(event, self.now):
            self._took(effect)

    def _took(self, effect: m.Effect) -> None:
        match effect:
            case m.Grant():
                assert effect.node not in self._answered(effect.ticket), "it has failed there"
                self.leases.append((effect.node, effect.model, effect.trial, self.now))
            case m.Complete() | m.Refuse():
                self._answered(effect.ticket)
            case m.Report():
                assert effect.ticket in self.waiting
            case m.StartLoad() | m.StartUnload():
                self._began(effect)
            case m.Abort():
                work = self.nodes[effect.node].work
                assert work is not None, "nothing is under way there"
                work.given_up = True
            case m.Evicted():
                assert (effect.model, effect.node) != (PINNED, ITS_NODE), "what is pinned stays"

    def _answered(self, ticket: int) -> frozenset[str]:
        assert ticket in self.waiting, "each ticket is answered once, and nobody who has left"
        return self.waiting.pop(ticket)

    def _began(self, effect: m.StartLoad | m.StartUnload) -> None:
        node, host = self.nodes[effect.node], self.residency.hosts[effect.node]
        assert node.work is None, "one thing at a time"
        assert node.name not in self.taken, "it is part of a load that runs"
        assert host.healthy, "nothing is begun on a node that is lost"
        assert not host.suspect, "nor on one that could not be reached"
        node.work = Work(effect)
        if isinstance(effect, m.StartLoad):
            self._load_began(node, effect.spec)
        else:
            assert not [one for one in self.leases if one[:2] == (effect.node, effect.model)], "nobody is cut off"
            if (effect.model, effect.node) == (PINNED, ITS_NODE):
                assert host.operation is not None
                assert host.operation.why != "idle", "what is pinned stays"
                assert host.operation.why != "load" or host.operation.model == PINNED, (
                    "only an operator has it unloaded"
                )

    def _load_began(self, leader: PaperNode, spec: m.LoadSpec) -> None:
        for name in (leader.name, *spec.hosts):
            host = self.residency.hosts[name]
            assert name not in self.taken, "it is part of another load that runs"
            assert name == leader.name or self.nodes[name].work is None, "a lender has made room before"
            assert host.healthy, "nothing is begun with a node that is lost"
            assert not host.suspect, "nor with one that could not be reached"
            assert host.operation is not None
            assert not host.operation.unloads, "who has to leave has left"
            self.taken[name] = leader.name

    def _look(self, name: str) -> None:
        self._tell(m.Looking(node=name))
        self._tell(m.Seen(node=name, observation=self._observed(name)))

    def _observed(self, name: str) -> m.Observation:
        ours = Counter(model for node, model, *_ in self.leases if node == name)
        return self.nodes[name].observation(ours)

    def _settle_work(self, node: PaperNode, *, broken: bool) -> None:
        """What was begun there has its effect now; it is told later."""
        work = node.work
        assert work is not None
        work.settled = True
        if not node.up:
            work.error = GONE
        elif isinstance(work.asked, m.StartUnload):
            if node.leads(work.asked.model) and not broken:
                node.lose(work.asked.model)
            work.error = BROKEN if broken else None
        else:
            work.error = self._load(node, work.asked.spec, broken=broken)

    def _load(self, node: PaperNode, spec: m.LoadSpec, *, broken: bool) -> errors.CortexError | None:
        if broken:
            return BROKEN
        lenders = [self.nodes[name] for name in spec.hosts]
        if node.leads(spec.model_id) or node.take(spec.model_id, *lenders):
            return None
        if not all(one.up for one in lenders):
            return LOST
        return errors.LoadFailed("no room", kind="does_not_fit", required_mb=node.sizes[spec.model_id])

    def _tell_end(self, node: PaperNode) -> None:
        work, node.work = node.work, None
        assert work is not None
        self.taken = {name: leader for name, leader in self.taken.items() if leader != node.name}
        self._tell(m.Finished(node=node.name, error=GONE if work.given_up else work.error))

    def _with_work(self) -> list[PaperNode]:
        return [node for node in self.nodes.values() if node.work]

    def _give_back(self, lease: Lease, *, served: bool | None) -> None:
        self.leases.remove(lease)
        node, model, trial, sent = lease
        failure = "500" if served is False else ""
        self._tell(m.Returned(node=node, model=model, served=served, failure=failure, sent=sent, trial=trial))

    def _ask(self, event: m.Wanted | m.LoadAsked | m.UnloadAsked) -> None:
        self.numbers += 1
        event = evolve(event, ticket=self.numbers)
        self.waiting[self.numbers] = event.besides if isinstance(event, m.Wanted) else frozenset()
        self._tell(event)

    # -- what may happen ------------------------------------------------------------------------------------------

    @rule(model=st.sampled_from([*NAMES, "best", "nobody's"]))
    def want(self, model: str) -> None:
        self._ask(m.Wanted(ticket=0, model=model, context=asked("r")))

    @rule(model=names, besides=st.frozensets(nodes, min_size=1))
    def want_elsewhere(self, model: str, besides: frozenset[str]) -> None:
        self._ask(m.Wanted(ticket=0, model=model, context=asked("r"), besides=besides))

    @rule(model=names, node=st.none() | nodes, quant=st.sampled_from([None, None, "int8"]), reload=st.booleans())
    def load(self, model: str, node: str | None, quant: str | None, *, reload: bool) -> None:
        self._ask(m.LoadAsked(ticket=0, model=model, node=node, options=LoadOptions(quant=quant), reload=reload))

    @rule(model=names, node=st.none() | nodes)
    def unload(self, model: str, node: str | None) -> None:
        self._ask(m.UnloadAsked(ticket=0, model=model, node=node))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        del self.waiting[ticket]
        self._tell(m.Left(ticket=ticket))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), served=st.sampled_from([True, True, False, None]))
    def give_back(self, data: st.DataObject, served: bool | None) -> None:
        self._give_back(data.draw(st.sampled_from(self.leases)), served=served)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def answer_begins(self, data: st.DataObject) -> None:
        node, model, trial, _ = data.draw(st.sampled_from(self.leases))
        if trial:
            self._tell(m.Begun(node=node, model=model))

    @rule(node=nodes, late=st.booleans())
    def begin_look(self, node: str, *, late: bool) -> None:
        if node not in self.looks:
            self._tell(m.Looking(node=node))
            self.looks[node] = None if late or not self.nodes[node].up else self._observed(node)

    @precondition(lambda self: self.looks)
    @rule(data=st.data(), silent=st.booleans())
    def end_look(self, data: st.DataObject, *, silent: bool) -> None:
        node = data.draw(st.sampled_from(sorted(self.looks)))
        seen = self.looks.pop(node)
        if seen or self.nodes[node].up:
            self._tell(m.Seen(node=node, observation=seen or self._observed(node)))
        else:
            self._tell(m.Missed(node=node, reason="no answer", silent=silent))

    @rule(node=nodes)
    def look(self, node: str) -> None:
        if node not in self.looks and self.nodes[node].up:
            self._look(node)

    @rule(node=nodes, times=st.integers(1, 3), silent=st.booleans())
    def miss(self, node: str, times: int, *, silent: bool) -> None:
        if node not in self.looks:
            for _ in range(times):
                self._tell(m.Looking(node=node))
                self._tell(m.Missed(node=node, reason="no answer", silent=silent))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), absent=st.booleans())
    def request_fails(self, data: st.DataObject, *, absent: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        event = m.Absent(node=lease[0], model=lease[1]) if absent else m.Suspected(node=lease[0], reason="refused")
        self._tell(event)
        self._give_back(lease, served=False)

    @precondition(lambda self: self._with_work())
    @rule(data=st.data(), broken=st.sampled_from([False, False, False, True]), told=st.booleans())
    def work_ends(self, data: st.DataObject, *, broken: bool, told: bool) -> None:
        node = data.draw(st.sampled_from(self._with_work()))
        if node.work and not node.work.settled:
            self._settle_work(node, broken=broken)
        if told:
            self._tell_end(node)

    @precondition(lambda self: self._with_work())
    @rule(data=st.data())
    def work_goes_on(self, data: st.DataObject) -> None:
        node = data.draw(st.sampled_from(self._with_work()))
        self._tell(m.Progressed(node=node.name, status=LoadStatus(phase="weights", done=1, total=2)))

    @rule(node=nodes)
    def crash(self, node: str) -> None:
        self.nodes[node].crash()

    @rule(node=nodes)
    def come_back(self, node: str) -> None:
        self.nodes[node].up = True

    @rule(node=nodes, model=names)
    def somebody_else_loads(self, node: str, model: str) -> None:
        if self.nodes[node].up and model not in OVER_SEVERAL:
            self.nodes[node].take(model)

    @rule(node=nodes, model=names, what=st.sampled_from(["gone", "ill", "well", "used", "idle"]))
    def something_else_happens(self, node: str, model: str, what: str) -> None:
        it = self.nodes[node]
        if not it.leads(model):
            return
        match what:
            case "gone":
                it.lose(model)
            case "ill" | "well":
                it.held[model].well = what == "well"
            case _:
                it.others[model] = int(what == "used")

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 10.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        wake = self.residency.next_wake()
        self.now = self.now + seconds if wake is None else min(wake, self.now + seconds)
        self._tell(m.Ticked())

    # -- what holds always ------------------------------------------------------------------------------------------

    @invariant()
    def promises(self) -> None:
        self._no_ticket_is_lost()
        self._leases_are_counted()
        self._what_runs_is_known_to_run()
        self._each_node_takes_part_in_one_operation()
        self._nothing_waits_for_a_lost_node()
        self._memory_is_not_negative()
        self._nobody_waits_for_what_could_be_had()
        self._it_wakes_in_time_to_come()

    def _no_ticket_is_lost(self) -> None:
        assert {number for number in self.residency.waiting.tickets if number > 0} == self.waiting.keys()

    def _leases_are_counted(self) -> None:
        counted = Counter((node, model) for node, model, *_ in self.leases)
        for name, host in self.residency.hosts.items():
            assert {model: count for model, count in host.ours.items() if count} == {
                model: count for (node, model), count in counted.items() if node == name
            }

    def _what_runs_is_known_to_run(self) -> None:
        for name, host in self.residency.hosts.items():
            runs = host.operation is not None and name in host.operation.running
            assert (self.nodes[name].work is not None) == runs

    def _each_node_takes_part_in_one_operation(self) -> None:
        under_way = self.residency.operations.under_way
        for name, host in self.residency.hosts.items():
            assert host.operation is None or host.operation in under_way
            assert host.operation is None or name in host.operation.nodes, (
                "it is let go of when it has no more part in it"
            )
        for operation in under_way:
            assert operation.nodes, "what has nothing left to do has ended"
            occupied = [*operation.running, *(name for step in operation.loads for name in step.nodes)]
            assert all(self.residency.hosts[name].operation is operation for name in occupied)

    def _nothing_waits_for_a_lost_node(self) -> None:
        for operation in self.residency.operations.under_way:
            for name in operation.nodes if not operation.loading else ():
                host = self.residency.hosts[name]
                assert (host.healthy and not host.silent) or name in operation.running

    def _memory_is_not_negative(self) -> None:
        for node in self.residency.snapshot().nodes:
            policy = Policy(catalogue=self.residency.catalogue)
            assert all(one.size_mb >= 0 for one in room.residents(node, policy))
            assert all(replica.pending >= 0 and replica.others >= 0 for replica in node.replicas)
            assert fit.free_mb(node) >= 0

    def _nobody_waits_for_what_could_be_had(self) -> None:
        snapshot = self.residency.snapshot(self.now)
        for ticket in self.residency.waiting.tickets.values():
            if ticket.kind != "serve":
                continue
            offering = self.residency.state.history.offering(ticket, self.residency.hosts.values())
            policy = self.residency.state.history.policy(ticket, self.now, offering)
            model = self.residency.state.history.asked(ticket, self.residency.hosts.values())
            decision = routing.route(model, snapshot, policy)
            assert isinstance(decision, Hold | Join), (ticket, decision)

    def _it_wakes_in_time_to_come(self) -> None:
        wake = self.residency.next_wake()
        assert wake is None or wake > self.now

    def teardown(self) -> None:
        """When all is well again and time passes, everybody who waits is answered, and nothing goes on."""
        for _ in range(60):
            self._be_well()
            if self._quiet():
                break
            self.now = self.residency.next_wake() or self.now + 1
            self._tell(m.Ticked())
        self.promises()
        assert self._quiet(), (self.residency.waiting.tickets, self.residency.operations.under_way)

    def _be_well(self) -> None:
        for node in self.nodes.values():
            node.up = True
            node.others.clear()
            for held in node.held.values():
                held.well = True
            if node.work:
                if not node.work.settled:
                    self._settle_work(node, broken=False)
                self._tell_end(node)
        for lease in list(self.leases):
            self._give_back(lease, served=True)
        for name in NODES:
            self._look(name)

    def _quiet(self) -> bool:
        return not self.residency.waiting.tickets and not self.residency.operations.under_way


class Ranked(Fleet):
    strategy = "priority"
    defrag_after = 2
    idle_secs = 20.0


class Grouped(Fleet):
    """Most of what happens is about models over several nodes: members are lost and come back, unloads race."""

    # Not driven here, so that the rest happens more often.
    want_elsewhere = load = unload = answer_begins = work_goes_on = request_fails = None  # type: ignore[assignment]
    begin_look = end_look = somebody_else_loads = something_else_happens = crash = miss = None  # type: ignore[assignment]

    @initialize(
        held=st.tuples(*(st.sampled_from(["", "small", "middle", "large"]) for _ in NODES)),
        used=st.sampled_from([True, True, False]),
        model=st.sampled_from(OVER_SEVERAL),
    )
    def begin(self, held: tuple[str, ...], *, used: bool, model: str) -> None:
        """Room has to be made on some nodes, and takes its time where what is there is in use."""
        for name, there in zip(NODES, held, strict=True):
            if there:
                self.nodes[name].take(there)
                self._look(name)
        for there in sorted(set(held) - {""}) if used else ():
            self.want(there)
        self._ask(m.LoadAsked(ticket=0, model=model))

    def _grouped(self) -> list[tuple[str, ...]]:
        """The nodes of each load over several that is under way, and of each model that is loaded so; the leader first."""
        planned = [operation.nodes for operation in self.residency.operations.under_way if len(operation.nodes) > 1]
        held = [tuple(one.name for one in held.on) for node in self.nodes.values() for held in node.held.values()]
        return planned + [names for names in held if len(names) > 1]

    def _member(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(data.draw(st.sampled_from(self._grouped()))))

    @rule(model=st.sampled_from(OVER_SEVERAL))
    def want_over_several(self, model: str) -> None:
        self._ask(m.Wanted(ticket=0, model=model, context=asked("r")))

    @rule(model=st.sampled_from(OVER_SEVERAL), node=st.none() | nodes, reload=st.booleans())
    def load_over_several(self, model: str, node: str | None, *, reload: bool) -> None:
        self._ask(m.LoadAsked(ticket=0, model=model, node=node, reload=reload))

    @rule(model=st.sampled_from(OVER_SEVERAL))
    def unload_over_several(self, model: str) -> None:
        self._ask(m.UnloadAsked(ticket=0, model=model))

    @rule()
    def everybody_leaves(self) -> None:
        while self.waiting:  # one who leaves may let another be answered
            ticket = min(self.waiting)
            del self.waiting[ticket]
            self._tell(m.Left(ticket=ticket))

    @precondition(lambda self: self._grouped())
    @rule(data=st.data())
    def a_member_crashes(self, data: st.DataObject) -> None:
        self.nodes[self._member(data)].crash()

    @precondition(lambda self: self._grouped())
    @rule(data=st.data(), times=st.sampled_from([1, 3]))
    def a_member_is_missed(self, data: st.DataObject, times: int) -> None:
        name = self._member(data)
        for _ in range(times if name not in self.looks else 0):
            self._tell(m.Looking(node=name))
            self._tell(m.Missed(node=name, reason="no answer"))

    @precondition(lambda self: self._grouped())
    @rule(data=st.data())
    def a_member_is_back(self, data: st.DataObject) -> None:
        name = self._member(data)
        self.nodes[name].up = True
        self.look(name)

    @precondition(lambda self: self._on_members())
    @rule(data=st.data())
    def a_member_is_doubted(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self._on_members()))
        self._tell(m.Suspected(node=lease[0], reason="refused"))
        self._give_back(lease, served=False)

    def _on_members(self) -> list[Lease]:
        members = {name for names in self._grouped() for name in names}
        return [lease for lease in self.leases if lease[0] in members]


FEW = settings(max_examples=60, stateful_step_count=40, phases=[Phase.generate])
"""Not shrunk: that takes longer than a test may. Who hunts a failure asks for fewer steps and more examples."""


def test_promises_of_residency_hold() -> None:
    """Whoever was used least recently leaves."""
    run_state_machine_as_test(Fleet, settings=FEW)  # type: ignore[no-untyped-call]


def test_promises_of_residency_hold_with_priorities_and_restarts() -> None:
    """Whoever matters least leaves, and engines are started afresh after two unloads."""
    run_state_machine_as_test(Ranked, settings=FEW)  # type: ignore[no-untyped-call]


def test_promises_of_residency_hold_over_several_nodes() -> None:
    """A load over several of them is whole or not at all, whichever of them is lost, doubted or back, and whenever."""
    run_state_machine_as_test(Grouped, settings=settings(FEW, max_examples=120))  # type: ignore[no-untyped-call]
