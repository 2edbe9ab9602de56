"""Which requests compute what next: admission, chunked prefill, decode, preemption. Pure bookkeeping; no device, no clock."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import define, field

from neuron_jax.engine.batch import Drawn, Row, Step
from neuron_jax.engine.buckets import GUESSING_ROWS, Menu
from neuron_jax.engine.guesses import Guesser
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.packing import unpack_logprobs
from neuron_jax.engine.pages import Pages, pages_for
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.requests import Request, wants_everything
from neuron_jax.workers.frames import Output

Finish = Literal["stop", "length"] | None

GAP = 2.6
"""What a step with prompts may take, in steps without: a stream's slowest gap is then under three times its median gap, with
a little room for error."""

BURST = 0.1
"""Seconds that a step of several tokens may take: whoever arrives meanwhile waits for it."""

LEAST = 8
"""Tokens of prompts that each step beside running streams brings on, however slow that is."""


@define(eq=False)
class Scheduler:
    """Owner of the queue, the slots and the pages.

    Policy: requests are admitted in order of arrival while their tokens' pages are free with one page to spare for each
    running request. A step is the next token of all that decode and, in order of arrival, as many tokens of prompts as
    streams can bear: so that it takes at most `GAP` times what it would without them. Short prompts share a step so. While
    nobody waits for a turn, streams make several tokens in one step. When the pool is full the youngest request gives its
    pages back and is computed again later; its noise is keyed by position, so its text does not change.

    With `naming`, the pages of prompts and answers can be found as they fill, and a request begins with those that hold its
    text's beginning already. A page can be found once the step that fills it is planned: who reads it comes in the same
    step or later.

    With `guessing`, a few requests that repeat themselves make several tokens a step: those guessed right, and one more.

    A step that was handed out counts as done, except for the tokens it draws: `absorb` brings those, in the same order.
    """

    pages: Pages
    page_size: int
    max_slots: int
    menu: Menu
    pace: Pace
    naming: Naming | None = None
    guesses: int = 0  # tokens ahead
    preemptions: int = field(default=0, init=False)
    lookup_tokens: int = field(default=0, init=False)  # of prompts whose beginnings were looked for
    hit_tokens: int = field(default=0, init=False)  # of these, found
    guessed_tokens: int = field(default=0, init=False)
    right_guesses: int = field(default=0, init=False)
    _waiting: deque[Request] = field(factory=deque, init=False)
    _admitted: list[Request] = field(factory=list, init=False)  # in order of arrival
    _slots: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._slots = list(range(self.max_slots - 1, -1, -1))

    @property
    def running(self) -> int:
        return len(self._admitted)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._admitted

    def add(self, request: Request) -> None:
        assert pages_for(request.limit, self.page_size) <= self.pages.total, "a request longer than the whole pool"
        if self.guesses and not wants_everything(request.sampling):
            request.guesser = Guesser()
        self._waiting.append(request)

    def cancel(self, request_id: int) -> None:
        """Forget a request and free what it holds; unknown ids are ignored."""
        for request in [r for r in (*self._admitted, *self._waiting) if r.id == request_id]:
            self._drop(request)

    def next_batch(self) -> Step | None:
        """The next step, with the pages for it granted; None when there is none, or none before `absorb` was called.

        After a step that is `open_ended`, `absorb` must come first.
        """
        self._admit()
        streams = [request for request in self._admitted if request.decoding]
        alone = not self._waiting and not any(request.to_feed for request in self._admitted)
        guessed = self._guessed(streams)
        steps = self._steps(streams) if alone and not guessed else 1
        for request in streams:
            self._grow(request, steps + len(guessed.get(request, ())))
        rows = [_next(r, steps, guessed.get(r, ())) for r in streams if r.slot is not None]
        rows += self._prompts(rows)
        tokens = len(rows) if steps > 1 else sum(row.count for row in rows)
        return Step(self.menu.fit(tokens, steps), rows) if rows else None

    def absorb(self, step: Step, drawn: Drawn) -> list[Output]:
        """Book the tokens of a computed step. Returns what came out, in the order of arrival."""
        outputs = []
        for i, row in enumerate(step.rows):
            request = row.request
            # Ended, cancelled or preempted while the step was under way: what it drew is void.
            if row.draws == 0 or row.stay != request.stay:
                continue
            request.ahead -= row.draws
            tokens = drawn.tokens[i][: row.draws]
            if row.guesses:
                tokens = self._settle(row, tokens)
            outputs.append(self._take(request, tokens, drawn, i))
        return outputs

    def check_idle(self) -> None:
        """Assert that all pages and slots are free, by their numbers alone."""
        assert self.idle, "somebody is being served"
        assert self.pages.free == self.pages.total, f"{self.pages.free} pages free of {self.pages.total}, and no owner"
        assert len(self._slots) == self.max_slots, f"{len(self._slots)} slots free of {self.max_slots}, and no owner"

    def check_integrity(self) -> None:
        """Assert that every page is free or has the owners that it should, and every slot is free or has one."""
        self.pages.check_integrity(r.pages for r in self._admitted)
        slots = sorted([*self._slots, *(r.slot for r in self._admitted if r.slot is not None)])
        assert slots == list(range(self.max_slots)), f"slots lost or owned twice: {slots}"
        assert all(not r.pages and r.slot is None and not r.ahead for r in self._waiting)

    def _admit(self) -> None:
        while self._waiting and self._slots:
            request = self._waiting[0]
            found = self._find(request)
            need = pages_for(len(request.tokens) + 1, self.page_size) - len(found)
            # A lone request may take the last page: nobody else is there to need one.
            spare = len(self._admitted)
            if need + self.pages.unowned(found) + spare > self.pages.free:
                return
            self._waiting.popleft()
            request.slot = self._slots.pop()
            self._share(request, found)
            request.pages += self.pages.take(need)
            request.fed = len(request.tokens)
            if self.naming is not None and request.stay == 0:
                self.lookup_tokens += request.prompt_length
            self._admitted.append(request)
            self._admitted.sort(key=lambda r: r.arrival)

    def _feeding(self) -> Request | None:
        """Whose prompt comes next."""
        request = next((r for r in self._admitted if r.to_feed), None)
        if request is not None and request.computed == request.found * self.page_size:
            # Nothing of it was computed yet: others may have computed its beginning since it was admitted.
            self._share(request, self._find(request))
        return request

    def _find(self, request: Request) -> list[int]:
        """The pages that hold the beginning of its text, so that at least one token is left to compute."""
        if self.naming is None:
            return []
        full = (len(request.tokens) - 1) // self.page_size
        self.naming.extend(request.names, request.tokens, full)
        return self.pages.find(request.names[:full])

    def _share(self, request: Request, found: Sequence[int]) -> None:
        """Let `request` begin with the pages `found`; the first of them may be what it has already, others replace its own."""
        more = found[request.found :]
        self.pages.share(more)
        self.pages.give_back(request.pages[request.found : len(found)])
        request.pages[request.found : len(found)] = more
        request.found = request.published = len(found)
        request.computed = len(found) * self.page_size
        # What a preempted request finds again it has computed itself.
        if request.stay == 0:
            self.hit_tokens += len(more) * self.page_size
            request.cached = request.computed

    def _publish(self, request: Request, tokens: int) -> None:
        """Let the pages be found that are full of the first `tokens` tokens."""
        full = tokens // self.page_size
        if self.naming is None or full <= request.published:
            return
        self.naming.extend(request.names, request.tokens, full)
        for i in range(request.published, full):
            self.pages.publish(request.pages[i], request.names[i])
        request.published = full

    def _prompts(self, streams: Sequence[Row]) -> list[Row]:
        """The tokens of prompts that are computed beside the rows of streams."""
        rows: list[Row] = []
        left = 0
        while (request := self._feeding()) is not None:
            if not rows:
                left = self._room(request, streams)
            if left <= 0:
                break
            rows.append(self._fed(request, left))
            left -= rows[-1].count
        return rows

    def _room(self, first: Request, streams: Sequence[Row]) -> int:
        """For how many tokens of prompts, that of `first` before others, there is room in a step with `streams`."""
        sizes, pace, at = self.menu.tokens, self.pace, first.computed
        running = sum(row.count for row in streams)
        depth = sum(row.count * row.start for row in streams)
        feeding = [request for request in self._admitted if request.to_feed]
        # Streams compare a pause with the gaps that they will have when all those run that come behind this prompt.
        behind = min(len(feeding) + len(self._waiting), self.max_slots) - 1
        coming = self.menu.fit(min(max(running + behind, 1), sizes[-1])).tokens
        if running and pace.measured and not pace.bounds(coming):
            return 0  # a step of streams alone tells what they are used to
        plain = pace.seconds(coming, at=depth / running if running else at)
        most = pace.most(GAP * plain, sizes, lambda size: (depth + (size - running) * at) / size)
        if running:
            size = max(most, next((size for size in sizes if size >= running + LEAST), sizes[-1]))
        else:  # nobody is kept waiting
            size = max(most, pace.cut(first.to_feed, sizes, at=at))
        wanted = running + sum(request.to_feed for request in feeding)
        return pace.cut(wanted, [allowed for allowed in sizes if allowed <= size], at=at) - running

    def _fed(self, request: Request, most: int) -> Row:
        """The next tokens of its prompt."""
        count = min(request.to_feed, most)
        draws = 1 if count == request.to_feed else 0
        row = Row(request, request.stay, request.computed, count, draws, fed=True)
        request.computed += count
        request.ahead += draws
        self._publish(request, request.computed)
        return row

    def _guessed(self, requests: Sequence[Request]) -> Mapping[Request, Sequence[int]]:
        """Guesses for each of `requests`, if there is room for them and they promise more tokens a second than none."""
        if not self.guesses or not 0 < len(requests) <= GUESSING_ROWS:
            return {}
        guesses = {request: _guess(request, self.guesses) for request in requests}
        rows, most = len(requests), sum(map(len, guesses.values()))
        missing = sum(max(self._missing(request, 1 + len(guess)), 0) for request, guess in guesses.items())
        if not most or missing > self.pages.free:
            return {}
        right = sum(request.guesser.expected(len(guess)) for request, guess in guesses.items() if request.guesser)
        at = sum(request.computed for request in requests) / rows
        plain, usual = (
            self.pace.seconds(self.menu.fit(rows).tokens, at=at),
            self.pace.usual(self.menu.fit(rows + most), at=at),
        )
        # What was never measured is tried.
        return guesses if (rows + right) * plain >= rows * usual else {}

    def _settle(self, row: Row, tokens: list[int]) -> list[int]:
        """What was really drawn of an open-ended row: the tokens after the first wrong guess are computed again."""
        assert row.request.guesser is not None
        drawn = [token for token in tokens if token >= 0]
        row.request.computed -= row.draws - len(drawn)
        row.request.guesser.learn(len(row.guesses), len(drawn) - 1)
        self.guessed_tokens += len(row.guesses)
        self.right_guesses += len(drawn) - 1
        return drawn

    def _steps(self, requests: Sequence[Request]) -> int:
        """How many tokens to make at once: several only when they come soon, somebody wants them all, and pages are free."""
        if not requests or not self.pace.measured:
            return 1
        steps = self.menu.most_steps(len(requests))
        at = sum(request.computed for request in requests) / len(requests)
        seconds = steps * self.pace.seconds(self.menu.fit(len(requests), steps).tokens, at=at)
        wanted = max(r.limit - r.length for r in requests) >= steps
        pages = sum(max(self._missing(r, steps), 0) for r in requests)
        return steps if wanted and seconds <= BURST and pages <= self.pages.free else 1

    def _missing(self, request: Request, steps: int) -> int:
        """Pages that `request` lacks for `steps` more tokens; the newest token itself is only stored by the step after."""
        last = min(request.computed + steps, request.limit - 1)
        return pages_for(last, self.page_size) - len(request.pages)

    def _grow(self, request: Request, steps: int) -> None:
        """Make sure that `request` has pages for a decode step, taking them from the youngest if need be."""
        while request.slot is not None and (missing := self._missing(request, steps)) > 0:
            if self.pages.free:
                request.pages += self.pages.take(min(missing, self.pages.free))
            else:
                self._preempt(self._admitted[-1])

    def _preempt(self, victim: Request) -> None:
        self._release(victim)
        victim.computed = 0
        self._waiting.appendleft(victim)
        self.preemptions += 1

    def _release(self, request: Request) -> None:
        """Take back what `request` holds. Steps under way may still write there, before any that a new owner could be in."""
        assert request.slot is not None
        self.pages.give_back(request.pages)
        self._slots.append(request.slot)
        request.pages, request.slot, request.found = [], None, 0
        request.stay += 1
        request.ahead = 0
        self._admitted.remove(request)

    def _drop(self, request: Request) -> None:
        if request.slot is None:
            self._waiting.remove(request)
        else:
            self._release(request)

    def _take(self, request: Request, tokens: list[int], drawn: Drawn, line: int) -> Output:
        """Book what `request` drew, up to the token that ends it."""
        stop = next((i for i, token in enumerate(tokens, start=1) if token in request.stop_ids), None)
        tokens = tokens[:stop]
        cached = 0 if len(request.tokens) > request.prompt_length else request.cached
        request.tokens += tokens
        # The newest token is only stored by the step that draws the next, if there is one.
        self._publish(request, len(request.tokens) - 1)
        finish: Finish = "stop" if stop is not None else "length" if len(request.tokens) >= request.limit else None
        if finish is not None:
            self._drop(request)
        if drawn.logprobs is None or not request.wants_logprobs:
            return Output(request.id, tokens, finish=finish, cached_tokens=cached)
        wanted = request.sampling.logprobs or 0
        chosen = [unpack_logprobs(words, wanted) for words in drawn.logprobs[line][: len(tokens)]]
        logprobs, alternatives = [c[0] for c in chosen], [c[1] for c in chosen]
        return Output(request.id, tokens, logprobs, alternatives, finish, cached_tokens=cached)


def _next(request: Request, steps: int, guesses: Sequence[int]) -> Row:
    """Its next `steps` tokens, or as many as it may still have; or the next one and those guessed."""
    count = 1 + len(guesses) if guesses else min(steps, request.limit - request.length)
    row = Row(request, request.stay, request.computed, count, count, guesses)
    request.computed += count
    request.ahead += count
    return row


def _guess(request: Request, width: int) -> list[int]:
    if request.guesser is None:
        return []
    most = min(width, request.limit - request.length - 1)
    return request.guesser.guess(request.tokens, ahead=request.ahead, most=most)
