"""Which requests compute what next: admission, chunked prefill, decode, preemption. Pure bookkeeping; no device, no clock."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import define, field

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.constraints.matcher import Matcher
from neuron_jax.engine.batch import Drawn, Row, Step
from neuron_jax.engine.buckets import GUESSING_ROWS, Draws, Menu
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.guesses import Guesser
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.packing import unpack_logprobs
from neuron_jax.engine.requests import Request, draws_by, is_cut, wants_everything
from neuron_jax.engine.room import Prompts, Streams, room
from neuron_jax.workers.frames import Output

Finish = Literal["stop", "complete", "length", "error"] | None

BURST = 0.1
"""Seconds that a step of several tokens may take: whoever arrives meanwhile waits for it."""


@define(eq=False)
class Scheduler:
    """Owner of the queue and the slots; what requests hold of the `cache` it asks for and gives back.

    Policy: requests are admitted in order of arrival while their tokens' pages are free with one page to spare for each
    running request. A step is the next token of all that decode and, in order of arrival, as many tokens of prompts as
    streams can bear: see `room`. Short prompts share a step so. While nobody waits for a turn, streams make several tokens
    in one step. When the pool is full the youngest request gives its pages back and is computed again later; its noise is
    keyed by position, so its text does not change.

    Where pages have names, those of prompts and answers can be found as they fill, and a request begins with those that hold
    its text's beginning already. A page can be found once the step that fills it is planned: who reads it comes in the
    same step or later.

    With `guesses`, a few requests that repeat themselves make several tokens a step, while there is no prompt: those guessed
    right, and one more. Where the model has `drafts`, its own guesses come with what a step draws, so the next is planned
    when that is known.

    Of a request whose `matcher` binds it what it drew must be known before the next is planned: its steps are `open_ended`.
    What its grammar forces is guessed. In a step of several tokens it is hoped that it draws what it may; if not, that is
    drawn again.

    A step that was handed out counts as done, except for the tokens it draws: `absorb` brings those, in the same order.
    """

    cache: Cache
    max_slots: int
    menu: Menu
    pace: Pace
    guesses: int = 0  # tokens ahead
    drafts: int = 0  # of these the model may guess by itself
    forward_only: bool = False  # texts have states that only guesses are taken back of
    preemptions: int = field(default=0, init=False)
    guessed_tokens: int = field(default=0, init=False)
    right_guesses: int = field(default=0, init=False)
    drafted_tokens: int = field(default=0, init=False)  # of the guesses, those of the model itself
    right_drafts: int = field(default=0, init=False)
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

    @property
    def prompts(self) -> list[tuple[int, int, int]]:
        """Of each prompt under way: its request, tokens that are computed or planned, those of them that were found."""
        return [(one.id, one.computed, one.cached) for one in self._admitted if one.to_feed]

    def add(self, request: Request) -> None:
        assert self.cache.holds(request.limit), "a request longer than the whole pool"
        if self.guesses and not wants_everything(request.sampling):
            request.guesser = Guesser()
            request.drafter = Guesser() if self.drafts else None
        self._waiting.append(request)

    def cancel(self, request_id: int) -> None:
        """Forget a request and free what it holds; unknown ids are ignored."""
        for request in [r for r in (*self._admitted, *self._waiting) if r.id == request_id]:
            self._drop(request)

    def begin_again(self) -> None:
        """Let all that run be computed anew from their texts, and none from what was kept of others: the next step has other
        weights. What steps under way would still draw is void."""
        while self._admitted:
            self._preempt(self._admitted[-1])
        self.cache.forget()

    def next_batch(self) -> Step | None:
        """The next step, with the pages for it granted; None when there is none, or none before `absorb` was called.

        After a step that is `open_ended`, `absorb` must come first.
        """
        self._admit()
        step = self._plan()
        # Each prompt was let in with the pages that a window and a step reach, and a spare one for each that runs.
        assert step or not self._admitted or any(request.ahead for request in self._admitted), "nobody can go on"
        self.cache.settle()
        return step

    @property
    def _feeds(self) -> bool:
        """Whether there is any token of a prompt to compute."""
        return any(request.to_feed for request in self._admitted)

    def _plan(self) -> Step | None:
        streams = [request for request in self._admitted if request.decoding]
        alone = not self._waiting and not self._feeds
        guessed = self._guessed(streams)
        asked = self._asked(streams)
        most = self.menu.most_steps(len(streams), _draws(streams))
        free = all(not request.binds(most) or (_may_hope(request) and not self.forward_only) for request in streams)
        steps = self._steps(streams) if alone and not guessed and not asked and free else 1
        if steps == 1:
            for request in streams:
                request.hope.wait()
        for request in streams:
            self._grow(request, steps + len(guessed.get(request, ())))
        rows = [self._next(r, steps, guessed.get(r, ())) for r in streams if r.slot is not None]
        for row in rows if asked else ():
            row.drafts = self._drafts(row)
        rows += self._prompts(rows)
        tokens = len(rows) if steps > 1 else sum(row.count for row in rows)
        if not rows:
            return None
        return Step(self.menu.fit(tokens, steps, max(row.draws_by(masked=steps == 1) for row in rows)), rows)

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
            elif step.key.steps > 1 and isinstance(request.matcher, Matcher):
                tokens = _allowed(row, request.matcher, tokens)
                if not tokens:
                    continue
            outputs.append(self._take(request, tokens, drawn, i))
            if row.drafts:
                request.drafted = (len(request.tokens), drawn.drafts[i])
        return outputs

    def check_idle(self) -> None:
        """Assert that all pages and slots are free, by their numbers alone."""
        assert self.idle, "somebody is being served"
        self.cache.check_idle()
        assert len(self._slots) == self.max_slots, f"{len(self._slots)} slots free of {self.max_slots}, and no owner"

    def check_integrity(self) -> None:
        """Assert that every page is free or has the owners that it should, and every slot is free or has one."""
        self.cache.check_integrity(self._admitted)
        slots = sorted([*self._slots, *(r.slot for r in self._admitted if r.slot is not None)])
        assert slots == list(range(self.max_slots)), f"slots lost or owned twice: {slots}"
        assert all(not r.pages and r.slot is None and not r.ahead for r in self._waiting)

    def _admit(self) -> None:
        while self._waiting and self._slots:
            request = self._waiting[0]
            # A lone request may take the last page: nobody else is there to need one.
            if not self.cache.admit(request, spare=len(self._admitted)):
                return
            self._waiting.popleft()
            request.slot = self._slots.pop()
            request.fed = len(request.tokens)
            self._admitted.append(request)
            self._admitted.sort(key=lambda r: r.arrival)

    def _feeding(self) -> Request | None:
        """Whose prompt comes next."""
        request = next((r for r in self._admitted if r.to_feed), None)
        if request is not None:
            self.cache.look_again(request)
        return request

    def _prompts(self, streams: Sequence[Row]) -> list[Row]:
        """The tokens of prompts that are computed beside the rows of streams."""
        rows: list[Row] = []
        left = 0
        while (request := self._feeding()) is not None:
            if not rows:
                left = self._room(request, streams)
            count = self.cache.feed(request, min(request.to_feed, left)) if left > 0 else 0
            if count <= 0:
                break
            rows.append(self._fed(request, count))
            left -= count
            if request.to_feed:
                break  # one row for each request: its state goes on where the row before ends
        return rows

    def _room(self, first: Request, rows: Sequence[Row]) -> int:
        """For how many tokens of prompts, that of `first` before others, there is room in a step with `rows` of streams."""
        feeding = [request for request in self._admitted if request.to_feed]
        running = sum(row.count for row in rows)
        at = sum(row.count * row.start for row in rows) / max(running, 1)
        behind = min(len(feeding) + len(self._waiting), self.max_slots) - 1
        prompts = Prompts(sum(request.to_feed for request in feeding), first.to_feed, first.computed)
        return room(Streams(running, at, running + behind), prompts, self.menu, self.pace)

    def _fed(self, request: Request, count: int) -> Row:
        """The next `count` tokens of its prompt."""
        draws = 1 if count == request.to_feed else 0
        states = self.cache.states(request, request.computed, count, fed=True)
        row = Row(request, request.stay, request.computed, count, draws, fed=True, states=states)
        request.computed += count
        request.ahead += draws
        self.cache.publish(request, request.computed)
        return row

    def _next(self, request: Request, steps: int, guesses: Sequence[int]) -> Row:
        """Its next `steps` tokens, or as many as it may still have; or the next one and those guessed."""
        count = 1 + len(guesses) if guesses else min(steps, request.limit - request.length)
        marks = self.cache.mark(request, len(guesses)) if guesses else ()
        states = self.cache.states(request, request.computed, 1 if guesses else count, fed=False)
        row = Row(request, request.stay, request.computed, count, count, guesses, states=states, marks=marks)
        row.drafted = bool(guesses) and guesses == _drafted(request)[: len(guesses)]
        request.computed += count
        request.ahead += count
        return row

    def _guessed(self, requests: Sequence[Request]) -> Mapping[Request, Sequence[int]]:
        """Guesses for each of `requests`, if there is room for them and they promise more tokens a second than none."""
        if not self.guesses or not 0 < len(requests) <= GUESSING_ROWS:
            return {}
        # What is forced is right: of that as much as there are rows for. Other guesses would take a prompt's room.
        most_forced = self.guesses * min(self.max_slots, GUESSING_ROWS) // len(requests)
        most_free = 0 if self._feeds else self.guesses
        guesses = {one: _guess(one, most_forced if one.bound else most_free) for one in requests}
        rows, most = len(requests), sum(map(len, guesses.values()))
        if not most or not self.cache.room(
            ((one, _last(one, 1 + len(guess))) for one, guess in guesses.items()), most + rows
        ):
            return {}
        right = sum(_expected(request, guess) for request, guess in guesses.items())
        return guesses if self._pays(requests, most, right) else {}

    def _pays(self, requests: Sequence[Request], most: int, right: float) -> bool:
        """Whether steps with `most` guesses for all of these promise more tokens a second than none, if so many are right."""
        rows, at = len(requests), sum(request.computed for request in requests) / len(requests)
        plain = self.pace.seconds(self.menu.fit(rows).tokens, at=at)
        # What was never measured is tried.
        return (rows + right) * plain >= rows * self.pace.usual(self.menu.fit(rows + most), at=at)

    def _asked(self, requests: Sequence[Request]) -> bool:
        """Whether the model shall guess what follows the next tokens of `requests`."""
        if not self.drafts or self._feeds or len(requests) > GUESSING_ROWS:
            return False
        able = [one.drafter for one in requests if one.drafter is not None and not one.bound]
        for drafter in able:
            drafter.look()
        right = sum(drafter.expected(self.drafts) for drafter in able)
        return bool(able) and self._pays(requests, self.drafts * len(able), right)

    def _drafts(self, row: Row) -> int:
        """How many tokens the model shall guess behind what `row` draws: each but the first takes a place in its pages."""
        request, end = row.request, row.start + row.count
        if request.drafter is None or request.bound:
            return 0
        room = min(len(pages) for pages in request.pages) * self.cache.page_size - end + 1
        return max(min(self.drafts, room, request.limit - end - 2), 0)

    def _settle(self, row: Row, tokens: list[int]) -> list[int]:
        """What was really drawn of an open-ended row: the tokens after the first wrong guess are computed again."""
        assert row.request.guesser is not None
        drawn = [token for token in tokens if token >= 0]
        row.request.computed -= row.draws - len(drawn)
        self.cache.rewind(row.request, row.start, len(drawn))
        teacher = row.request.drafter if row.drafted else row.request.guesser
        if not row.request.bound and teacher is not None:
            teacher.learn(len(row.guesses), len(drawn) - 1)
        self.drafted_tokens += row.drafted * len(row.guesses)
        self.right_drafts += row.drafted * (len(drawn) - 1)
        self.guessed_tokens += len(row.guesses)
        self.right_guesses += len(drawn) - 1
        return drawn

    def _steps(self, requests: Sequence[Request]) -> int:
        """How many tokens to make at once: several only when they come soon, somebody wants them all, and pages are free."""
        if not requests or not self.pace.measured:
            return 1
        draws = _draws(requests)
        steps = self.menu.most_steps(len(requests), draws)
        at = sum(request.computed for request in requests) / len(requests)
        seconds = steps * self.pace.seconds(self.menu.fit(len(requests), steps, draws).tokens, at=at)
        wanted = max(r.limit - r.length for r in requests) >= steps
        room = self.cache.room((request, _last(request, steps)) for request in requests)
        return steps if wanted and seconds <= BURST and room else 1

    def _grow(self, request: Request, steps: int) -> None:
        """Make sure that `request` has pages for a decode step, taking them from the youngest if need be."""
        while request.slot is not None and not self.cache.grow(request, _last(request, steps)):
            self._preempt(self._admitted[-1])

    def _preempt(self, victim: Request) -> None:
        self._release(victim)
        victim.computed = 0
        self._waiting.appendleft(victim)
        self.preemptions += 1

    def _release(self, request: Request) -> None:
        """Take back what `request` holds."""
        assert request.slot is not None
        self.cache.release(request)
        self._slots.append(request.slot)
        request.slot = None
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
        given = max(request.prompt_length + request.given - len(request.tokens), 0)
        stop = next((i for i, token in enumerate(tokens, 1) if i > given and token in request.stop_ids), None)
        tokens = tokens[:stop]
        problem = _followed(request, tokens) if stop is None else None
        cached = 0 if len(request.tokens) > request.prompt_length else request.cached
        request.tokens += tokens
        # The newest token is only stored by the step that draws the next, if there is one.
        self.cache.publish(request, len(request.tokens) - 1)
        finish = "error" if problem is not None else _finish(request, stopped=stop is not None)
        if finish is not None:
            self._drop(request)
        if problem is not None:
            return Output(request.id, [], finish="error", error=problem)
        if drawn.logprobs is None or not request.wants_logprobs:
            return Output(request.id, tokens, finish=finish, cached_tokens=cached)
        wanted = request.sampling.logprobs or 0
        chosen = [unpack_logprobs(words, wanted) for words in drawn.logprobs[line][: len(tokens)]]
        logprobs, alternatives = [c[0] for c in chosen], [c[1] for c in chosen]
        return Output(request.id, tokens, logprobs, alternatives, finish, cached_tokens=cached)


def _draws(streams: Sequence[Request]) -> Draws:
    """What a program must be able to do for the next tokens of `streams`, but for masks."""
    return max((draws_by(one, one.computed + 1) for one in streams), default=Draws.PLAIN)


def _last(request: Request, steps: int) -> int:
    """Tokens stored after `steps` more; the newest token itself is only stored by the step after."""
    return min(request.computed + steps, request.limit - 1)


def _may_hope(request: Request) -> bool:
    """Whether several tokens of one that is bound may be drawn before it is known which ones may come: never where what is
    drawn depends on what else may be, or is remembered, and not where thoughts are about to end.
    """
    if not isinstance(request.matcher, Matcher):
        return False
    drawn_alike = not is_cut(request.sampling) and request.guesser is not None
    return drawn_alike and not request.matcher.chooses and not request.hope.rest


def _allowed(row: Row, matcher: Matcher, tokens: list[int]) -> list[int]:
    """Those of `tokens` that may come; the first that may not, and what was drawn behind it, is computed again."""
    right = matcher.follows(tokens)
    row.request.hope.learn(len(tokens), right)
    row.request.computed -= len(tokens) - right
    return tokens[:right]


def _guess(request: Request, width: int) -> list[int]:
    if request.guesser is None:
        return []
    most = min(width, request.limit - request.length - 1)
    if request.matcher is not None and request.bound:
        forced = request.matcher.forced()[:most] if most > 0 else []
        return forced[: request.matcher.foresee(forced)] if forced else []
    if request.binds(1 + most):
        return []
    found, drafted = request.guesser.guess(request.tokens, ahead=request.ahead, most=most), _drafted(request)[:most]
    # The model knows better what comes next; what stood there before goes on for longer.
    return drafted if drafted and found[:1] != drafted[:1] else found


def _drafted(request: Request) -> list[int]:
    """What the model guesses to follow."""
    known, tokens = request.drafted
    return tokens if known == len(request.tokens) and not request.ahead else []


def _expected(request: Request, guesses: Sequence[int]) -> float:
    """How many of its guesses are right, on average; what a grammar forces is."""
    if request.bound:
        return len(guesses)
    teacher = request.drafter if guesses == _drafted(request)[: len(guesses)] else request.guesser
    return teacher.expected(len(guesses)) if teacher else 0


def _followed(request: Request, tokens: Sequence[int]) -> str | None:
    """Take its grammar behind `tokens`; what is wrong, if that cannot be."""
    if request.matcher is None:
        return None
    try:
        request.matcher.take(tokens)
    except GrammarError as error:
        return f"its constraint cannot be followed any further: {error}"
    return None


def _finish(request: Request, *, stopped: bool) -> Finish:
    if stopped:
        return "stop"
    if request.matcher is not None and request.matcher.complete:
        return "complete"
    return "length" if len(request.tokens) >= request.limit else None
