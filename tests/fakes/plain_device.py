"""A device of plain Python for a real scheduler, which keeps tokens where a real one keeps what they come to.

What it draws depends on all tokens that it finds in the pages of a row, and on those that the row's recurrent state has gone
through: one wrong page or snapshot, one wrong token. Half of it repeats what followed the same two tokens, so that there is
something to guess. `answer` says what any engine must say.
"""

import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import define, field, frozen

from neuron_jax.constraints.matcher import Tokens
from neuron_jax.engine.batch import Drawn, Row, Step
from neuron_jax.engine.buckets import Draws, Menu, declare
from neuron_jax.engine.cache import NOWHERE, Cache
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.packing import LOGPROBS
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.requests import Follower, from_submit
from neuron_jax.engine.scheduler import Scheduler
from neuron_jax.workers.frames import Output, Submit, Vocabulary
from tests.fakes.engines import submit

VOCAB, CONTEXT = 7, 120
LETTERS = Tokens(Vocabulary([bytes([97 + token]) for token in range(VOCAB)], (), ()), VOCAB)
"""The tokens as letters, for grammars."""

Rule = Callable[[list[int]], set[int] | None]
"""What may follow tokens that were said: None for anything, nothing at the end."""


def free(_: list[int]) -> None:
    """Anything may follow."""


def drawn_after(text: Sequence[int], allowed: set[int] | None = None) -> int:
    repeats = zlib.crc32(bytes(text[-2:])) % 4 > 0
    first = zlib.crc32(bytes(text[-2:] if repeats else text)) % VOCAB
    return next(token % VOCAB for token in range(first, 2 * VOCAB) if allowed is None or token % VOCAB in allowed)


def answer(
    prompt: Sequence[int],
    count: int,
    stop: Sequence[int] = (),
    *,
    given: int = 0,
    rule: Rule = free,
    window: int = CONTEXT,
) -> list[int]:
    """What any engine must say. The first `given` tokens do not end it; `window` tokens are seen."""
    said: list[int] = []
    while len(said) < count and not (len(said) > given and said[-1] in stop) and rule(said) != set():
        said.append(drawn_after([*prompt, *said][-window:], rule(said)))
    return said


FORM = "([ab]c[a-g]{2}){5}"
"""A text of 20 tokens that are letters."""


def form(said: list[int]) -> set[int] | None:
    """What may follow in FORM, counted by hand."""
    if len(said) == 20:
        return set()
    return [{0, 1}, {2}, None, None][len(said) % 4]


def logprob(text: Sequence[int]) -> float:
    """That of the token behind `text`."""
    return -(zlib.crc32(bytes(text)) % 1000) / 100


@frozen(eq=False)
class Sent:
    """A row as the device gets it: copies, because the host goes on with its own."""

    start: int
    count: int
    draws: int
    slot: int
    pages: list[int]
    tokens: list[int]  # of a prompt all of them, else the newest where the host must say it, and those that are guessed
    fed: bool
    states: tuple[int, int]
    marks: Sequence[int]
    drafts: int
    masks: list[npt.NDArray[np.int32]] | None  # of what it may draw, after each of its tokens

    def allowed(self, draw: int) -> set[int] | None:
        if self.masks is None:
            return None
        word = int(self.masks[draw].view(np.uint32)[0])
        return {token for token in range(VOCAB) if word >> token & 1}


@define(eq=False)
class Device:
    """Runs steps in the order in which they were dispatched, when they are fetched. With `recurs` its rows have states, too;
    of their tokens it sees the last `window`."""

    page_size: int
    recurs: bool = False
    window: int = CONTEXT
    wrong_drafts: int = 3  # one of so many
    held: dict[int, list[int]] = field(factory=dict)  # tokens by page
    last: dict[int, int] = field(factory=dict)  # newest token by slot
    states: dict[int, list[int]] = field(factory=dict)  # by slot, the tokens that its state has gone through
    snapshots: dict[int, list[int]] = field(factory=dict)
    line: deque[list[Sent]] = field(factory=deque)

    def dispatch(self, step: Step) -> None:
        assert step.key.draws >= max(_draws(row, masked=step.key.steps == 1) for row in step.rows), "it cannot draw so"
        self.line.append([self._sent(row, masked=step.key.steps == 1) for row in step.rows])

    def fetch(self) -> Drawn:
        rows = self.line.popleft()
        # All tokens are stored before any is read, and so are states: rows are computed side by side.
        for row in rows:
            for at, token in enumerate(row.tokens, start=row.start):
                if row.fed:
                    self._write(row.pages, at, token)
            if self.recurs:
                self._begin(row)
        written = [(row, place) for row in rows for place in (row.states[1], *row.marks) if place]
        others = [(one.states[0], place) for one in rows for row, place in written if row is not one]
        assert not any(read == place for read, place in others), "read by one row and written by another"
        drawn = [self._run(row) for row in rows]
        drafts = [self._drafts(row, tokens) for row, tokens in zip(rows, drawn, strict=True)]
        return Drawn(drawn, [self._logprobs(row) for row in rows], drafts)

    def text(self, pages: Sequence[int], length: int) -> list[int]:
        """The first `length` tokens that are in these pages."""
        return [self.held[pages[at // self.page_size]][at % self.page_size] for at in range(length)]

    def _sent(self, row: Row, *, masked: bool) -> Sent:
        request = row.request
        assert request.slot is not None
        known = row.fed or (request.matcher is not None and row.start < len(request.tokens))
        first = request.tokens[row.start : row.start + (row.count if row.fed else 1)] if known else [-1]
        binds = masked and request.bound and row.draws > 0
        masks = [mask.copy() for mask in request.matcher.masks] if binds and request.matcher is not None else None
        return Sent(
            row.start,
            row.count,
            row.draws,
            request.slot,
            list(request.pages[0]),
            [*first, *row.guesses],
            row.fed,
            row.states,
            row.marks,
            row.drafts,
            masks,
        )

    def _begin(self, row: Sent) -> None:
        """Its state behind the tokens before it."""
        load, _ = row.states
        if row.start == 0:
            assert not load, "a state before the first token"
            self.states[row.slot] = []
        elif load:
            self.states[row.slot] = list(self.snapshots[load])

    def _run(self, row: Sent) -> list[int]:
        if row.fed:
            self._go_through(row, row.start + row.count, row.tokens)
            return [self._draw(row, row.start + row.count, 0)] if row.draws else []
        drawn: list[int] = []
        for i in range(row.count):
            known = row.tokens[i] if i < len(row.tokens) else -1
            token = self.last[row.slot] if known < 0 else known
            self._write(row.pages, row.start + i, token)
            self._go_through(row, row.start + i + 1, [token])
            if i < len(row.marks):
                self.snapshots[row.marks[i]] = list(self.states[row.slot])
            right = all(guess == said for guess, said in zip(row.tokens[1 : i + 1], drawn, strict=False))
            drawn.append(self._draw(row, row.start + i + 1, i) if right else -1)
        return drawn

    def _go_through(self, row: Sent, end: int, tokens: Sequence[int]) -> None:
        """Take its state on to the first `end` tokens, and leave a snapshot at the last page boundary before its last token."""
        if not self.recurs:
            return
        self.states[row.slot] += tokens
        count = 1 if len(row.tokens) > 1 and not row.fed else row.count
        boundary = (row.start + count - 1) // self.page_size * self.page_size
        before = end - len(tokens)
        if row.states[1] and before <= boundary < end:
            self.snapshots[row.states[1]] = self.states[row.slot][:boundary]

    def _draw(self, row: Sent, length: int, number: int) -> int:
        text = self._seen(row, length)
        assert not self.recurs or self.states[row.slot][-self.window :] == text, "a state of another text"
        self.last[row.slot] = drawn_after(text, row.allowed(number))
        return self.last[row.slot]

    def _drafts(self, row: Sent, drawn: Sequence[int]) -> list[int]:
        """Mostly what follows."""
        if not row.drafts:
            return []
        assert row.start + row.count + row.drafts - 2 < len(row.pages) * self.page_size, "guesses without a page"
        right = [token for token in drawn if token >= 0]
        text = [*self._seen(row, row.start + (row.count if row.fed else len(right))), right[-1]]
        found = answer(text, row.drafts, window=self.window)
        return [(token + (zlib.crc32(bytes(text)) % self.wrong_drafts == 0)) % VOCAB for token in found]

    def _logprobs(self, row: Sent) -> npt.NDArray[np.int32]:
        lines = np.zeros((row.draws, LOGPROBS), np.int32)
        for i in range(row.draws):
            length = row.start + row.count - row.draws + i + 1
            lines[i, :1].view(np.float32)[0] = logprob(self._seen(row, length))
        return lines

    def _seen(self, row: Sent, length: int) -> list[int]:
        """What the last of the first `length` tokens sees."""
        places = range(max(length - self.window, 0), length)
        return [self.held[row.pages[at // self.page_size]][at % self.page_size] for at in places]

    def _write(self, pages: Sequence[int], at: int, token: int) -> None:
        assert pages[at // self.page_size] != NOWHERE, "a token without a page"
        page = self.held.setdefault(pages[at // self.page_size], [-1] * self.page_size)
        page[at % self.page_size] = token


def _draws(row: Row, *, masked: bool) -> Draws:
    """What a program must be able to do for a row, as far as requests of these tests go."""
    sampling = row.request.sampling
    if row.draws and (sampling.logprobs is not None or (masked and row.request.bound)):
        return Draws.FULL
    return Draws.CUT if row.draws and sampling.temperature > 0 and sampling.top_p < 1 else Draws.PLAIN


@define(eq=False)
class Loop:
    """The engine's loop around a scheduler and the device above. `computed` counts the prompt tokens it was sent."""

    scheduler: Scheduler
    device: Device
    overlap: bool = True
    outputs: dict[int, list[Output]] = field(factory=dict)
    computed: dict[int, int] = field(factory=dict)
    flight: Step | None = None
    arrivals: int = 0
    steps: list[Step] = field(factory=list)

    def submit(self, id_: int, prompt: list[int], **options: Any) -> None:
        self.add(submit(id_, prompt, **options))

    def add(self, asked: Submit, matcher: Follower | None = None) -> None:
        self.arrivals += 1
        self.scheduler.add(from_submit(asked, arrival=self.arrivals, max_context=CONTEXT, matcher=matcher))

    def step(self) -> list[Output]:
        came = self.land() if self.flight is not None and self.flight.open_ended else []
        step = self.scheduler.next_batch()
        if step is not None:
            self.device.dispatch(step)
            self.steps.append(step)
            for row in step.rows:
                id_ = row.request.id
                self.computed[id_] = self.computed.get(id_, 0) + (row.count if row.fed else 0)
        before, self.flight = (self.flight, step) if self.overlap else (step, None)
        came += self._book(before)
        self.scheduler.check_integrity()
        return came

    def land(self) -> list[Output]:
        """Wait for the step under way."""
        step, self.flight = self.flight, None
        return self._book(step)

    def _book(self, step: Step | None) -> list[Output]:
        came = self.scheduler.absorb(step, self.device.fetch()) if step is not None else []
        for output in came:
            self.outputs.setdefault(output.request, []).append(output)
        return came

    def drain(self) -> None:
        while not self.scheduler.idle or self.flight is not None:
            self.step()

    def ask(self, id_: int, prompt: list[int], **options: Any) -> tuple[list[int], int]:
        """The answer to `prompt`, and how much of it was said to be cached."""
        self.submit(id_, prompt, **options)
        self.drain()
        return self.said(id_), self.outputs[id_][0].cached_tokens

    def said(self, id_: int) -> list[int]:
        return [token for output in self.outputs[id_] for token in output.tokens]


@frozen
class Kind:
    """Of an engine."""

    guesses: int = 0
    drafts: int = 0
    steps: int = 1
    recurs: bool = False
    window: int | None = None
    by_draws: bool = False
    overlap: bool = True


def new_loop(kind: Kind, *, size: int = 4, pages: int = 22, slots: int = 4, snapshots: int = 24) -> Loop:
    """A pool of few pages, and steps that all take a millisecond."""
    menu, pace = Menu(), Pace()
    buckets = declare(
        max_slots=slots, chunk_tokens=16, decode_steps=kind.steps, guesses=kind.guesses, by_draws=kind.by_draws
    )
    menu.add(buckets.keys())
    for key in menu._sizes[1]:
        pace.saw(key, 0.001, prompts=False)
    cache = Cache(
        [Pages(pages)],
        size,
        Naming(size, b"salt"),
        windows=(kind.window,),
        step_tokens=buckets.tokens[-1],
        snapshots=Pages(snapshots) if kind.recurs else None,
    )
    options = {"guesses": kind.guesses, "drafts": kind.drafts, "forward_only": kind.recurs}
    scheduler = Scheduler(cache, max_slots=slots, menu=menu, pace=pace, **options)
    return Loop(scheduler, Device(size, recurs=kind.recurs, window=kind.window or CONTEXT), overlap=kind.overlap)
