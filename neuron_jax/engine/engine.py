"""The engine: requests in, tokens out, one step at a time. Knows scheduler and runner; no sockets, threads or text."""

from collections import deque
from collections.abc import Callable

from attrs import define, field
from msgspec.structs import replace

from neuron_jax.engine.batch import Batch
from neuron_jax.engine.requests import from_submit
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.scheduler import Scheduler
from neuron_jax.workers.frames import EngineLoad, Output, Submit

SMOOTHING = 0.1
"""Weight of the newest step in the moving averages of the rates."""


@define(eq=False)
class Engine:
    """One model being served. Not thread-safe: the one thread that owns the devices calls it.

    `clock` returns seconds and is only used to report rates: no decision depends on it.
    """

    scheduler: Scheduler
    runner: Runner
    max_context: int
    clock: Callable[[], float]
    load: EngineLoad = field(init=False)
    _arrivals: int = field(default=0, init=False)
    _rejected: deque[Output] = field(factory=deque, init=False)

    def __attrs_post_init__(self) -> None:
        self.load = EngineLoad(pages=self.scheduler.pages.total, free_pages=self.scheduler.pages.free)

    @property
    def idle(self) -> bool:
        return self.scheduler.idle and not self._rejected

    def submit(self, submit: Submit) -> None:
        """Queue a request. One that cannot be served gets an output with `finish="error"` from the next step."""
        problem = self._problem(submit)
        if problem is not None:
            self._rejected.append(Output(request=submit.request, tokens=[], finish="error", error=problem))
            return
        self._arrivals += 1
        self.scheduler.add(from_submit(submit, arrival=self._arrivals, max_context=self.max_context))

    def cancel(self, request_id: int) -> None:
        self.scheduler.cancel(request_id)
        self._note_load()

    def step(self) -> list[Output]:
        """Compute one batch: what it produced, in the order of arrival."""
        outputs = list(self._rejected)
        self._rejected.clear()
        programs = self.runner.compiler.collect()
        batch = self.scheduler.next_batch()
        if batch is None:
            return outputs
        began = self.clock()
        for row in batch.rows:
            if row.start == 0:
                self.runner.admit(row.request)
        sampled = self.runner.run(batch)
        outputs += self.scheduler.absorb(batch, sampled)
        self._note_step(batch, self.clock() - began, programs)
        return outputs

    def check_integrity(self) -> None:
        """Assert that nothing is lost: every page and slot free or owned once; all of them free when idle."""
        self.scheduler.check_integrity()
        if self.scheduler.idle:
            assert self.scheduler.pages.free == self.scheduler.pages.total

    def _problem(self, submit: Submit) -> str | None:
        vocab = self.runner.program.model.vocab_size
        if not submit.prompt or submit.max_tokens < 1:
            return "a prompt of at least one token and max_tokens of at least 1 are needed"
        if len(submit.prompt) >= self.max_context:
            return f"{len(submit.prompt)} prompt tokens; fewer than {self.max_context} fit"
        if min(submit.prompt) < 0 or max(submit.prompt) >= vocab:
            return f"token ids must be within 0..{vocab - 1}"
        return None

    def _note_step(self, batch: Batch, seconds: float, programs: int) -> None:
        rate = batch.tokens / max(seconds, 1e-9)
        name = "decode_rate" if batch.is_decode else "prefill_rate"
        before = getattr(self.load, name)
        smooth = rate if before == 0 else before + SMOOTHING * (rate - before)
        self.load = replace(self.load, **{name: smooth})
        self._note_load(steps=self.load.steps + 1, compiles=self.load.compiles + programs)

    def _note_load(self, **counters: int) -> None:
        scheduler = self.scheduler
        self.load = replace(
            self.load,
            running=scheduler.running,
            waiting=scheduler.waiting,
            free_pages=scheduler.pages.free,
            preemptions=scheduler.preemptions,
            **counters,
        )
