"""A model's life, driven at random: its status is what has happened to it, whoever asked is told the truth, nothing stays."""

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from neuron_jax.config import AdmissionConfig, ModelSpec
from neuron_jax.daemon.admission import Reservation
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.replica import Listener, ReplicaSpec
from neuron_jax.daemon.resident import Plan, ResidentModel
from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.text.errors import TemplateError
from neuron_jax.text.prompt import ChatFormat
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineSpec, Progress
from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.hand_engine import HandEngine, HandLoop, HandShares, ready
from tests.fakes.tiny_model import write_tiny_model

PAUSE = 1.0
POLICY = RestartPolicy(max_failures=2, first_delay=PAUSE, max_delay=PAUSE, stable=1e9)
QUIET = st.sampled_from([0, 5, 15, 30])
"""For so many steps nobody asks for an unload: else few models would live to see much."""
FINAL, MENDABLE = "bad_checkpoint", "exited"
KINDS = st.sampled_from([MENDABLE, MENDABLE, MENDABLE, FINAL])


@define(eq=False)
class Story:
    """One engine by what was done to it: `word` as in GET /models."""

    word: str = "loading"
    deaths: int = 0
    restarts: int = 0
    served: bool = False
    engine: HandEngine | None = None
    start: "asyncio.Future[EngineClient] | None" = None
    listener: Listener | None = None

    def fall(self, kind: str) -> None:
        """It died, or a start of it failed."""
        self.deaths += 1
        self.engine = self.start = None
        if kind == FINAL or not self.served or self.deaths > POLICY.max_failures:
            self.word = "failed"
        else:
            self.word, self.restarts = "recovering", self.restarts + 1


class Life(RuleBasedStateMachine):
    """The rules say what others do; the invariants, what must be true of the model whatever they did."""

    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.loop = HandLoop()
        self.resident: ResidentModel | None = None
        self.callers: list[asyncio.Task[None]] = []

    @initialize(count=st.integers(1, 2), quiet=QUIET)
    def load(self, count: int, quiet: int) -> None:
        self._begin(count, quiet)

    def _begin(self, count: int, quiet: int) -> None:
        self.quiet = quiet
        self.stories = [Story() for _ in range(count)]
        self.placed = self.served = self.unloading = self.gone = self.in_vain = False
        self.refused: str | None = None  # what the load failed of
        self.fetched: Path | Exception | None = None
        self.told: list[Progress] = []
        self.unloads: list[asyncio.Task[None]] = []
        self.line: list[Reservation] = []
        self.capacity: tuple[int, int] | None = None

        async def make() -> ResidentModel:
            self.shares = HandShares()
            self.template: asyncio.Future[None] = self.loop.create_future()
            plan = Plan(self._fetch, self._compile, self._places, AdmissionConfig(max_wait_secs=86_400), self._forget)
            return ResidentModel("tiny", ModelSpec(model_id="tiny"), (0,), plan)

        self.resident = self.loop.run_until_complete(make())
        self.loop.rest()

    # What the model is given.

    def _fetch(self, report: Any) -> Path:
        report("download", 1, 2, "bytes")
        self.in_vain = self.unloading
        assert self.fetched is not None
        if isinstance(self.fetched, Exception):
            raise self.fetched
        return self.fetched

    async def _compile(self, _: ChatFormat) -> None:
        await self.template

    def _places(self, _: Path) -> list[ReplicaSpec]:
        self.placed = True
        return [
            ReplicaSpec(
                holder=f"tiny#{index}",
                model="tiny",
                devices=(index,),
                memory_mb=0,
                sharers=1,
                shares=self.shares,
                elsewhere=lambda devices: devices,
                spec=lambda devices, _: EngineSpec(model_id="tiny", path="", devices=devices),
                start=self._start,
                restarts=POLICY,
            )
            for index in range(len(self.stories))
        ]

    async def _start(self, spec: EngineSpec, listener: Listener) -> EngineClient:
        story = self.stories[spec.devices[0]]
        story.start, story.listener = self.loop.create_future(), listener
        return await story.start

    def _forget(self) -> None:
        assert not self.gone
        self.gone = True

    # What happens.

    @property
    def model(self) -> ResidentModel:
        assert self.resident is not None
        return self.resident

    @property
    def over(self) -> bool:
        """Nobody can do anything for this model any more."""
        return self.unloading or self.refused is not None

    @rule(count=st.integers(1, 2), quiet=QUIET)
    @precondition(lambda self: self.gone and not self.loop.threads.busy)
    def load_anew(self, count: int, quiet: int) -> None:
        self.callers.clear()
        self._begin(count, quiet)

    @rule(outcome=st.sampled_from(["good", "good", "good", "unreachable", "no model"]))
    @precondition(lambda self: self.loop.threads.busy and self.fetched is None)
    def fetch(self, outcome: str) -> None:
        self.fetched = OSError("unreachable") if outcome == "unreachable" else self.folder / outcome
        self.loop.threads.work()
        self.loop.rest()
        if not self.over and outcome == "unreachable":
            self._refuse("unreachable")

    @rule()
    @precondition(lambda self: self.loop.threads.busy and self.fetched is not None)
    def read(self) -> None:
        self.loop.threads.work()
        self.loop.rest()
        if not self.over and self.fetched == self.folder / "no model":
            self._refuse("no model")

    @rule(outcome=st.sampled_from(["good", "good", "good", "bad", "cancelled"]))
    @precondition(lambda self: not self.template.done() and self.model.known_text is None and not self.over)
    def compile(self, outcome: str) -> None:
        waits = self.fetched is not None and not self.loop.threads.busy
        if not waits:
            return
        if outcome == "cancelled":
            self.template.cancel()
            self._refuse("was cancelled")
        elif outcome == "bad":
            self.template.set_exception(TemplateError("this template is bad"))
            self._refuse("this template is bad")
        else:
            self.template.set_result(None)
        self.loop.rest()

    @rule(context=st.sampled_from([50, 100]), slots=st.integers(1, 3))
    @precondition(lambda self: self.fetched is None and not self.over)
    def all_goes_well(self, context: int, slots: int) -> None:
        """What a walk of single steps seldom gets to: the model serves."""
        self.fetch("good")
        self.read()
        self.compile("good")
        for story in self.stories:
            self._become_ready(story, context, slots)

    def _refuse(self, why: str) -> None:
        self.refused = why
        for story in self.stories:
            if self.placed:
                story.word, story.engine, story.start = "draining", None, None

    def _some(self, data: st.DataObject, stories: list[Story]) -> Story:
        return data.draw(st.sampled_from(stories))

    def _starting(self) -> list[Story]:
        return [one for one in self.stories if one.start is not None]

    def _serving(self) -> list[Story]:
        return [one for one in self.stories if one.engine is not None]

    @rule(data=st.data(), context=st.sampled_from([50, 100]), slots=st.integers(1, 3))
    @precondition(lambda self: self._starting())
    def engine_is_ready(self, data: st.DataObject, context: int, slots: int) -> None:
        self._become_ready(self._some(data, self._starting()), context, slots)

    def _become_ready(self, story: Story, context: int, slots: int) -> None:
        assert story.start is not None
        engine = self.loop.run_until_complete(_made(context, slots))
        story.start.set_result(engine)
        self.loop.rest()
        story.engine, story.start, story.word, story.served = engine, None, "loaded", True
        self._take_stock()

    @rule(data=st.data(), kind=KINDS)
    @precondition(lambda self: self._starting())
    def start_fails(self, data: st.DataObject, kind: str) -> None:
        story = self._some(data, self._starting())
        assert story.start is not None
        first = not story.served
        story.start.set_exception(LoadError(kind, f"died of {kind}"))
        self.loop.rest()
        story.fall(kind)
        if first and not self.served:
            self._refuse(f"died of {kind}")
        self._take_stock()

    @rule(data=st.data(), kind=KINDS)
    @precondition(lambda self: not self.unloading and self._serving())
    def engine_dies(self, data: st.DataObject, kind: str) -> None:
        story = self._some(data, self._serving())
        assert story.engine is not None
        story.engine.die(kind)
        self.loop.rest()
        story.fall(kind)
        self._take_stock()

    def _take_stock(self) -> None:
        if self.over:
            return
        if not self.served and all(one.served for one in self.stories):
            self.served = True
        found = [(one.engine.ready.max_context, one.engine.ready.max_slots) for one in self._serving() if one.engine]
        if self.served and found:
            self.capacity = (min(context for context, _ in found), sum(slots for _, slots in found))

    @rule(data=st.data())
    @precondition(lambda self: any(one.start for one in self.stories))
    def engine_tells_how_far_it_is(self, data: st.DataObject) -> None:
        story = self._some(data, self._starting())
        assert story.listener is not None
        said = Progress("read", 1, 3, "bytes")
        story.listener(said)
        if story is self.stories[0]:
            assert self.model.status.progress == said
            assert self.told[-1:] == [said] or all(one.done() for one in self.callers)

    @rule(data=st.data())
    @precondition(lambda self: not self.unloading and self._serving())
    def engine_works(self, data: st.DataObject) -> None:
        engine = self._some(data, self._serving()).engine
        assert engine is not None
        engine.work()

    @rule()
    def time_passes(self) -> None:
        self.loop.now += PAUSE
        self.loop.rest()

    @rule()
    @precondition(lambda self: not self.gone)
    def memory_returns(self) -> None:
        self.shares.back.set()
        self.loop.rest()

    @rule()
    def join(self) -> None:
        """One more waits for the load, and hears how far it is."""
        self.callers.append(self.loop.create_task(self._wait()))
        self.loop.rest()

    async def _wait(self) -> None:
        with self.model.heard_by(self.told.append):
            await self.model.loaded()

    @rule(data=st.data())
    @precondition(lambda self: any(not one.done() for one in self.callers))
    def leave(self, data: st.DataObject) -> None:
        """The load goes on without him."""
        caller = data.draw(st.sampled_from([one for one in self.callers if not one.done()]))
        caller.cancel()
        self.loop.rest()
        self.callers.remove(caller)

    @rule(stays=st.booleans(), drain=st.sampled_from([0.0, PAUSE]))
    @precondition(lambda self: not self.gone and self.quiet <= 0)
    def unload(self, stays: bool, drain: float) -> None:
        asking = self.loop.create_task(self.model.unload(drain))
        first, self.unloading = not self.unloading, True
        self.loop.rest()
        if first:
            for story in self.stories:
                story.start, story.word = None, "draining" if self.placed else story.word
                story.engine = None
        if stays:
            self.unloads.append(asking)
        else:
            asking.cancel()
            self.loop.rest()

    @rule()
    @precondition(lambda self: self.capacity is not None and not self.over and self._expected() != "failed")
    def enter_the_line(self) -> None:
        self.line.append(self.loop.run_until_complete(_entered(self.model)))

    # What must be true.

    def _expected(self) -> str:
        if self.gone:
            return "unloaded"
        if self.unloading:
            return "draining"
        if self.refused is not None:
            return "failed"
        words = {one.word for one in self.stories}
        if not self.served:
            return "loading"
        return "loaded" if "loaded" in words else "failed" if words == {"failed"} else "recovering"

    @invariant()
    def status_is_what_has_happened(self) -> None:
        self.quiet -= 1
        status = self.model.status
        assert status.stage == self._expected()
        if self.placed:
            assert [one.stage.value for one in status.replicas] == [one.word for one in self.stories]
            assert status.restarts == sum(one.restarts for one in self.stories)
        if status.capacity is not None:
            assert (status.capacity.max_context, status.capacity.slots) == self.capacity
        assert (status.capacity is None) == (self.capacity is None)
        assert status.progress is None or self._expected() in ("loading", "loaded", "recovering")

    @invariant()
    def whoever_asked_is_told_the_truth(self) -> None:
        for caller in self.callers:
            if not caller.done():
                assert not self.gone
                assert self.unloading or self._expected() in ("loading", "failed")
            elif caller.exception() is None:
                assert self.served
            elif isinstance(caller.exception(), Problem):
                assert self.unloading
                assert not self.served
            else:
                assert isinstance(caller.exception(), LoadError | EngineDied)
                assert self.refused is not None
                assert self.refused in str(caller.exception())

    @invariant()
    def requests_are_let_in_by_the_status(self) -> None:
        expected = self._expected()
        words = {"unloaded": "unloaded", "draining": "unloaded", "failed": "failed", "loading": "still loading"}
        if expected == "loaded":
            self.model.check()
            return
        with pytest.raises(Problem, match=words.get(expected, "being restarted")):
            self.model.check()

    @invariant()
    def the_line_follows(self) -> None:
        if self.capacity is None:
            return
        assert self.model.admission.slots == self.capacity[1]
        if self._expected() in ("failed", "draining", "unloaded"):
            assert self.model.admission.queued == 0

    @invariant()
    def whoever_unloads_waits_for_the_end(self) -> None:
        assert [one.done() for one in self.unloads] == [self.gone] * len(self.unloads)
        for one in self.unloads if self.gone else ():
            one.result()

    @invariant()
    def nothing_stays(self) -> None:
        assert not self.in_vain, "a thread whose model is unloaded goes on after its next report"
        if self.gone:
            assert not self.shares.held
            assert all(not one.client for one in self.model.replicas)

    def teardown(self) -> None:
        """Unloaded, everything ends, whatever has been."""
        if self.resident is None:
            self.loop.close()
            return
        asking = self.loop.create_task(self.model.unload(0.0))
        self.unloading = True
        self.shares.back.set()
        while self.loop.threads.busy:
            self.fetched = self.fetched or OSError("too late")
            self.loop.threads.work()
        self.time_passes()
        assert asking.done()
        assert self.gone
        assert all(one.done() for one in self.callers)
        with ExitStack() as line:
            for one in self.line:
                line.enter_context(one)
        assert not [task for task in asyncio.all_tasks(self.loop) if not task.done()]
        for caller in self.callers:
            caller.exception()
        self.loop.rest()
        self.loop.close()


async def _made(context: int, slots: int) -> HandEngine:
    return HandEngine(ready(context, slots))


async def _entered(model: ResidentModel) -> Reservation:
    return model.admission.enter(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path / "good")
    (tmp_path / "no model").mkdir()
    return tmp_path


def test_promises_of_a_resident_model_hold(folder: Path) -> None:
    """Loads succeed, fail and are given up; callers join and leave; engines die and come back; unloads come at any time."""
    few = settings(max_examples=100, stateful_step_count=50)
    run_state_machine_as_test(type("LifeOf", (Life,), {"folder": folder}), settings=few)  # type: ignore[no-untyped-call]
