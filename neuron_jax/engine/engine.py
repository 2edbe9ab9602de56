"""The engine: requests in, tokens out, one step at a time. Knows scheduler and runner; no sockets, threads or text.

    next_batch -> pack, dispatch -> fetch -> absorb

Overlapped, a step is dispatched before the one before is fetched: while the host reads, books, sends and plans, the device
computes. Plain, each step is fetched at once; both give the same tokens.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from attrs import define, field
from msgspec.structs import replace

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.constraints.forced import Forced, Recital
from neuron_jax.constraints.matcher import Matcher, mask_words
from neuron_jax.constraints.thinking import ThinkingLimit
from neuron_jax.engine.batch import Step
from neuron_jax.engine.constrained import Matchers
from neuron_jax.engine.programs import Result
from neuron_jax.engine.requests import Follower, from_submit
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.sampler import MAX_BIAS
from neuron_jax.engine.scheduler import Scheduler
from neuron_jax.workers.frames import EngineLoad, Output, Submit

Watch = Callable[[str, float], AbstractContextManager[None]]
"""Entered around every call that may hang with the device: what it is for, and the seconds such a step usually takes, 0
where it has not run yet."""

HELD_SECONDS = 0.01
"""How long an engine without other work waits for a grammar before it looks for commands."""

SMOOTHING = 0.1
"""Weight of the newest step in the moving averages."""


@define(eq=False)
class Times:
    """Seconds that the host has spent, in all, on `steps` steps."""

    plan: float = 0.0
    pack: float = 0.0
    dispatch: float = 0.0
    wait: float = 0.0
    absorb: float = 0.0
    steps: int = 0


@define(eq=False)
class Flight:
    """A step under way. `since`: when it was dispatched."""

    step: Step
    result: Result
    since: float


@define(eq=False)
class Engine:
    """One model being served. Not thread-safe: the one thread that owns the devices calls it.

    `clock` returns seconds. What it says decides how work is cut into steps, never what comes out.
    """

    scheduler: Scheduler
    runner: Runner
    max_context: int
    clock: Callable[[], float]
    overlap: bool = True
    watch: Watch = lambda what, seconds: nullcontext()  # noqa: ARG005
    load: EngineLoad = field(init=False)
    matchers: Matchers = field(init=False)
    times: Times = field(factory=Times, init=False)
    _arrivals: int = field(default=0, init=False)
    _rejected: deque[Output] = field(factory=deque, init=False)
    _held: list[tuple[Submit, Future[Matcher]]] = field(factory=list, init=False)  # until their grammars are read
    _flight: Flight | None = field(default=None, init=False)
    _landed: float = field(default=0.0, init=False)  # when the last result came, or work began

    def __attrs_post_init__(self) -> None:
        self.load = EngineLoad(pages=self.scheduler.cache.total)
        self.matchers = Matchers(self.runner.program.model.vocab_size)
        self._note_load()

    @property
    def idle(self) -> bool:
        return self._resting and not self._held

    @property
    def _resting(self) -> bool:
        return self.scheduler.idle and self._flight is None and not self._rejected

    @property
    def compiling(self) -> bool:
        return self.load.programs < self.load.programs_planned

    def submit(self, submit: Submit) -> None:
        """Queue a request. One that cannot be served gets an output with `finish="error"` from the next step."""
        problem = self._problem(submit)
        if problem is not None:
            self._rejected.append(Output(request=submit.request, tokens=[], finish="error", error=problem))
            return
        if self.idle:
            self._landed = self.clock()
        if submit.constraint is not None:
            self._held.append((submit, self.matchers.prepare(submit.constraint)))
            return
        self._add(submit)

    def cancel(self, request_id: int) -> None:
        self._held = [(submit, matcher) for submit, matcher in self._held if submit.request != request_id]
        self.scheduler.cancel(request_id)
        self._note_load()

    def step(self) -> list[Output]:
        """Start a step and finish one, the same or the one before: what it produced, in the order of arrival."""
        self._let_go()
        outputs = list(self._rejected)
        self._rejected.clear()
        self.collect()
        if self._flight is not None and self._flight.step.open_ended:
            outputs += self._land(self._flight)
            self._flight = None
        flight = self._take_off()
        if self.overlap:
            flight, self._flight = self._flight, flight
        return outputs + self._land(flight) if flight is not None else outputs

    def land(self) -> list[Output]:
        """Wait for the step under way, if there is one: what it produced. Then the device has nothing to do."""
        flight, self._flight = self._flight, None
        return self._land(flight) if flight is not None else []

    def swap(self, params: Any) -> None:
        """Serve with `params`, of the same shapes, from the next step on; only after `land`.

        Nothing is compiled, and nobody loses anything: who runs is computed again from its text so far and goes on with what
        these weights say. What was kept of texts under others is forgotten.
        """
        assert self._flight is None, "a step is under way"
        self.runner.params = params
        self.scheduler.begin_again()
        self._note_load()

    def collect(self) -> None:
        """Take over the programs that became usable meanwhile, and note those that never will."""
        compiled = self.runner.collect()
        if compiled or len(self.runner.dropped) > len(self.load.dropped):
            self.scheduler.menu.add(self.runner.sizes(compiled))
            self._note_load(compiles=self.load.compiles + len(compiled))

    def check_idle(self) -> None:
        """Assert that an idle engine has all its pages and slots back.

        Two comparisons, for the next request waits for this. A page that was lost or shared wrongly shows in the counts once
        all requests have left. Which page it was, `check_integrity` tells, which tests call after every step.
        """
        self.scheduler.check_idle()

    def check_integrity(self) -> None:
        """Assert that nothing is lost: every page and slot free or owned once; all of them free when idle."""
        self.scheduler.check_integrity()
        if self.scheduler.idle:
            self.scheduler.check_idle()

    def _let_go(self) -> None:
        """Queue those whose grammars have been read; where there is nothing else to do, wait a moment for one."""
        if not self._held:
            return
        if self._resting:
            wait([matcher for _, matcher in self._held], HELD_SECONDS, FIRST_COMPLETED)
        held, self._held = self._held, []
        for submit, matcher in held:
            if not matcher.done():
                self._held.append((submit, matcher))
            elif (error := matcher.exception()) is None:
                self._add(submit, matcher.result().copy())
            elif isinstance(error, GrammarError):
                problem = f"its constraint cannot be followed: {error}"
                self._rejected.append(Output(request=submit.request, tokens=[], finish="error", error=problem))
            else:
                raise error

    def _add(self, submit: Submit, grammar: Matcher | None = None) -> None:
        self._arrivals += 1
        matcher: Follower | None = grammar
        words = mask_words(self.runner.program.model.vocab_size)
        if submit.begins:
            matcher = Recital(Forced(words, list(submit.begins)))
        elif submit.thoughts is not None:
            matcher = ThinkingLimit(submit.thoughts, words, grammar)
        request = from_submit(submit, arrival=self._arrivals, max_context=self.max_context, matcher=matcher)
        self.scheduler.add(request)

    def _problem(self, submit: Submit) -> str | None:
        vocab = self.runner.program.model.vocab_size
        if not submit.prompt or submit.max_tokens < 1:
            return "a prompt of at least one token and max_tokens of at least 1 are needed"
        if len(submit.prompt) >= self.max_context:
            return f"{len(submit.prompt)} prompt tokens; fewer than {self.max_context} fit"
        if min(*submit.prompt, *submit.begins, 0) < 0 or max(*submit.prompt, *submit.begins, 0) >= vocab:
            return f"token ids must be within 0..{vocab - 1}"
        adapters = self.runner.program.adapters
        if submit.adapter > (0 if adapters is None else adapters.count):
            return f"there is no adapter {submit.adapter}"
        if len(submit.stop_ids) + len(submit.sampling.logit_bias) > MAX_BIAS:
            return f"stop_ids and logit_bias name more than {MAX_BIAS} ids"
        return _recital_problem(submit)

    def _take_off(self) -> Flight | None:
        """Plan a step and set the device to work on it."""
        clock, times = self.clock, self.times
        began = clock()
        step = self.scheduler.next_batch()
        planned = clock()
        times.plan += planned - began
        if step is None:
            return None
        packed = self.runner.pack(step)
        ready = clock()
        with self._watched(step):
            result = self.runner.dispatch(step, packed)
        since = clock()
        times.pack += ready - planned
        times.dispatch += since - ready
        return Flight(step, result, since)

    def _land(self, flight: Flight) -> list[Output]:
        """Wait for a step, and book what it brought."""
        clock, times, step = self.clock, self.times, flight.step
        asked = clock()
        with self._watched(step):
            drawn = self.runner.fetch(step, flight.result)
        came = clock()
        outputs = self.scheduler.absorb(step, drawn)
        times.wait += came - asked
        times.absorb += clock() - came
        times.steps += 1
        # It ran from its dispatch or, if that was later, from the end of the step before. Where the host had to know how
        # that one ended, the device's waiting for it is part of the price.
        seconds = came - (self._landed if step.open_ended else max(flight.since, self._landed))
        self._note_step(step, seconds, host=asked - self._landed, wait=came - asked)
        self._landed = came
        return outputs

    def _watched(self, step: Step) -> AbstractContextManager[None]:
        return self.watch(str(step.key), self.scheduler.pace.usual(step.key, at=step.depth))

    def _note_step(self, step: Step, seconds: float, *, host: float, wait: float) -> None:
        load, prompts = self.load, step.prompt_tokens
        if seconds > 0:
            self.scheduler.pace.saw(step.key, seconds, at=step.depth, prompts=prompts > 0)
        rates = {"prefill_rate": prompts, "decode_rate": step.tokens - prompts}
        self._note_load(
            steps=load.steps + 1,
            **{n: _smooth(getattr(load, n), made / max(seconds, 1e-9)) for n, made in rates.items() if made},
            host_ms=_smooth(load.host_ms, 1e3 * host),
            wait_ms=_smooth(load.wait_ms, 1e3 * wait),
        )

    def _note_load(self, **numbers: float) -> None:
        scheduler, runner = self.scheduler, self.runner
        self.load = replace(
            self.load,
            running=scheduler.running,
            waiting=scheduler.waiting,
            free_pages=scheduler.cache.free,
            kept_pages=scheduler.cache.kept,
            preemptions=scheduler.preemptions,
            prefix_lookup_tokens=scheduler.cache.lookup_tokens,
            prefix_hit_tokens=scheduler.cache.hit_tokens,
            guessed_tokens=scheduler.guessed_tokens,
            right_guesses=scheduler.right_guesses,
            drafted_tokens=scheduler.drafted_tokens,
            right_drafts=scheduler.right_drafts,
            programs=len(runner.usable),
            programs_planned=runner.planned,
            dropped=tuple(sorted(map(str, runner.dropped))),
            steady_compiles=runner.compiler.unplanned,
            **numbers,
        )


def _recital_problem(submit: Submit) -> str | None:
    if submit.begins and (submit.constraint or submit.thoughts or submit.min_tokens):
        return "a text whose beginning is given takes no constraint, no limit of thoughts and no min_tokens"
    return None


def _smooth(before: float, newest: float) -> float:
    return newest if before == 0 else before + SMOOTHING * (newest - before)
