"""Which requests compute what next: admission, chunked prefill, decode, preemption. Pure bookkeeping; no device, no clock."""

from collections import deque
from collections.abc import Mapping

from attrs import define, field

from neuron_jax.engine.batch import Batch, Row, Sampled
from neuron_jax.engine.pages import Pages, pages_for
from neuron_jax.engine.requests import Request
from neuron_jax.workers.frames import Output


@define(eq=False)
class Scheduler:
    """Owner of the queue, the slots and the pages.

    Policy: requests are admitted in order of arrival while their tokens' pages are free with one page to spare for each
    running request. Between two decode steps at most `chunk_tokens` prompt tokens are computed, so a long prompt never
    holds the running streams for longer than one chunk. When the pool is full the youngest request gives its pages back
    and is computed again later; its noise is keyed by position, so its text does not change.
    """

    pages: Pages
    page_size: int
    max_slots: int
    chunk_tokens: int
    preemptions: int = field(default=0, init=False)
    _waiting: deque[Request] = field(factory=deque, init=False)
    _admitted: list[Request] = field(factory=list, init=False)  # in order of arrival
    _slots: list[int] = field(init=False)
    _prefill_left: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._slots = list(range(self.max_slots - 1, -1, -1))
        self._prefill_left = self.chunk_tokens

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
        self._waiting.append(request)

    def cancel(self, request_id: int) -> None:
        """Forget a request and free what it holds; unknown ids are ignored."""
        for request in [r for r in (*self._admitted, *self._waiting) if r.id == request_id]:
            self._drop(request)

    def next_batch(self) -> Batch | None:
        """The next step's work, with the pages for it granted; None when there is none."""
        self._admit()
        decoding = any(r.decoding for r in self._admitted)
        extend = self._next_extend(self._prefill_left if decoding else self.chunk_tokens)
        if extend is not None:
            self._prefill_left -= extend.tokens
            return extend
        self._prefill_left = self.chunk_tokens
        return self._next_decode()

    def absorb(self, batch: Batch, sampled: Mapping[int, Sampled]) -> list[Output]:
        """Book a computed step. `sampled` is keyed by request id, for the rows that sample. Returns what came out."""
        outputs = []
        for row in batch.rows:
            row.request.computed += row.count
            if row.samples:
                outputs.append(self._absorb_token(row.request, sampled[row.request.id]))
        return outputs

    def check_integrity(self) -> None:
        """Assert that every page and every slot is free or has exactly one owner."""
        self.pages.check_integrity(r.pages for r in self._admitted)
        slots = sorted([*self._slots, *(r.slot for r in self._admitted if r.slot is not None)])
        assert slots == list(range(self.max_slots)), f"slots lost or owned twice: {slots}"
        assert all(not r.pages and r.slot is None for r in self._waiting)

    def _admit(self) -> None:
        while self._waiting and self._slots:
            request = self._waiting[0]
            need = pages_for(len(request.tokens) + 1, self.page_size)
            # A lone request may take the last page: nobody else is there to need one.
            spare = len(self._admitted)
            if need + spare > self.pages.free:
                return
            self._waiting.popleft()
            request.slot = self._slots.pop()
            request.pages = self.pages.take(need)
            self._admitted.append(request)
            self._admitted.sort(key=lambda r: r.arrival)

    def _next_extend(self, budget: int) -> Batch | None:
        request = next((r for r in self._admitted if r.to_compute > 1), None)
        # A sliver of budget waits for the next turn: small chunks cost nearly as much as large ones.
        if request is None or budget < min(request.to_compute, self.chunk_tokens // 4):
            return None
        count = min(request.to_compute, budget)
        return Batch((Row(request, request.computed, count, samples=count == request.to_compute),))

    def _next_decode(self) -> Batch | None:
        for request in [r for r in self._admitted if r.decoding]:
            self._grow(request)
        rows = [Row(r, r.computed, 1, samples=True) for r in self._admitted if r.decoding]
        return Batch(tuple(rows)) if rows else None

    def _grow(self, request: Request) -> None:
        """Make sure that `request` has a page for its next token, taking pages from the youngest if need be."""
        while request.slot is not None and pages_for(len(request.tokens), self.page_size) > len(request.pages):
            if self.pages.free:
                request.pages += self.pages.take(1)
            else:
                self._preempt(self._admitted[-1])

    def _preempt(self, victim: Request) -> None:
        self._release(victim)
        victim.computed = 0
        self._waiting.appendleft(victim)
        self.preemptions += 1

    def _release(self, request: Request) -> None:
        assert request.slot is not None
        self.pages.give_back(request.pages)
        self._slots.append(request.slot)
        request.pages, request.slot = [], None
        self._admitted.remove(request)

    def _drop(self, request: Request) -> None:
        if request.slot is None:
            self._waiting.remove(request)
        else:
            self._release(request)

    def _absorb_token(self, request: Request, sampled: Sampled) -> Output:
        stopped = sampled.token in request.stop_ids
        full = len(request.tokens) + 1 >= request.limit
        request_output = _output(request, sampled, stopped=stopped, full=full)
        if stopped or full:
            self._drop(request)
        else:
            request.tokens.append(sampled.token)
        return request_output


def _output(request: Request, sampled: Sampled, *, stopped: bool, full: bool) -> Output:
    wanted = request.sampling.logprobs is not None
    return Output(
        request=request.id,
        tokens=[sampled.token],
        logprobs=[sampled.logprob] if wanted else None,
        alternatives=[list(sampled.alternatives)] if wanted else None,
        finish="stop" if stopped else "length" if full else None,
    )
