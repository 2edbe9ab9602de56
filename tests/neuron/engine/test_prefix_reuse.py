"""Pages found again by the scheduler, on a device of plain Python that keeps tokens where a real one keeps their KV.

What such a device draws is a hash of the tokens that it finds in the pages of a row: one wrong page, one wrong token.
"""

import random
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import define, field, frozen

from neuron_jax.engine.batch import Drawn, Step
from neuron_jax.engine.buckets import Menu, declare
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.requests import from_submit
from neuron_jax.engine.scheduler import Scheduler
from neuron_jax.workers.frames import Output
from tests.fakes.engines import submit, tokens

VOCAB, CONTEXT = 7, 120


def drawn_after(text: Sequence[int]) -> int:
    return zlib.crc32(bytes(text)) % VOCAB


def answer(prompt: Sequence[int], count: int, stop: Sequence[int] = ()) -> list[int]:
    """What any engine must say."""
    text = list(prompt)
    while len(text) < len(prompt) + count and not (len(text) > len(prompt) and text[-1] in stop):
        text.append(drawn_after(text))
    return text[len(prompt) :]


@frozen(eq=False)
class Sent:
    """A row as the device gets it: copies, because the host goes on with its own."""

    start: int
    count: int
    draws: int
    slot: int
    pages: list[int]
    fed: list[int]  # of a prompt


@define(eq=False)
class Device:
    """Runs steps in the order in which they were dispatched, when they are fetched."""

    page_size: int
    held: dict[int, list[int]] = field(factory=dict)  # tokens by page
    last: dict[int, int] = field(factory=dict)  # newest token by slot
    line: deque[list[Sent]] = field(factory=deque)

    def dispatch(self, step: Step) -> None:
        self.line.append([self._sent(row) for row in step.rows])

    def fetch(self) -> Drawn:
        rows = self.line.popleft()
        # All tokens are stored before any is read.
        for row in rows:
            for at, token in enumerate(row.fed, start=row.start):
                self._write(row.pages, at, token)
        return Drawn([self._run(row) for row in rows], None)

    def text(self, pages: Sequence[int], length: int) -> list[int]:
        return [self.held[pages[at // self.page_size]][at % self.page_size] for at in range(length)]

    def _sent(self, row: Any) -> Sent:
        request = row.request
        assert request.slot is not None
        fed = request.tokens[row.start : row.start + row.count] if row.fed else []
        return Sent(row.start, row.count, row.draws, request.slot, list(request.pages[0]), fed)

    def _run(self, row: Sent) -> list[int]:
        if row.fed:
            return [self._draw(row, row.start + row.count)] if row.draws else []
        return [self._decode(row, at) for at in range(row.start, row.start + row.count)]

    def _decode(self, row: Sent, at: int) -> int:
        self._write(row.pages, at, self.last[row.slot])
        return self._draw(row, at + 1)

    def _draw(self, row: Sent, length: int) -> int:
        self.last[row.slot] = drawn_after(self.text(row.pages, length))
        return self.last[row.slot]

    def _write(self, pages: Sequence[int], at: int, token: int) -> None:
        page = self.held.setdefault(pages[at // self.page_size], [-1] * self.page_size)
        page[at % self.page_size] = token


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

    def submit(self, id_: int, prompt: list[int], **options: Any) -> None:
        self.arrivals += 1
        self.scheduler.add(from_submit(submit(id_, prompt, **options), arrival=self.arrivals, max_context=CONTEXT))

    def step(self) -> list[Output]:
        step = self.scheduler.next_batch()
        if step is not None:
            self.device.dispatch(step)
            for row in step.rows:
                id_ = row.request.id
                self.computed[id_] = self.computed.get(id_, 0) + (row.count if row.fed else 0)
        if self.overlap:
            step, self.flight = self.flight, step
        came = self.scheduler.absorb(step, self.device.fetch()) if step is not None else []
        for output in came:
            self.outputs.setdefault(output.request, []).append(output)
        self.scheduler.check_integrity()
        return came

    def drain(self) -> None:
        while not self.scheduler.idle or self.flight is not None:
            self.step()

    def ask(self, id_: int, prompt: list[int], **options: Any) -> tuple[list[int], int]:
        """The answer to `prompt`, and how much of it was said to be cached."""
        self.submit(id_, prompt, **options)
        self.drain()
        return tokens(self.outputs[id_]), self.outputs[id_][0].cached_tokens


def new_loop(
    *,
    pages: int = 40,
    size: int = 4,
    slots: int = 4,
    steps: int = 1,
    overlap: bool = True,
    salt: bytes | None = b"salt",
) -> Loop:
    menu = Menu()
    menu.add(declare(max_slots=slots, chunk_tokens=16, decode_steps=steps).keys())
    naming = Naming(size, salt) if salt is not None else None
    cache = Cache([Pages(pages)], size, naming)
    scheduler = Scheduler(cache, max_slots=slots, menu=menu, pace=Pace())
    return Loop(scheduler, Device(size), overlap=overlap)


def words(count: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(count)]


@pytest.mark.parametrize(("length", "cached"), [(22, 20), (21, 20), (20, 16), (4, 0), (3, 0)])
def test_a_prompt_that_was_seen_is_computed_from_its_last_page_on(length: int, cached: int) -> None:
    """Full pages only, and always at least one token, so that there is something to draw after."""
    it = new_loop()
    prompt = words(length)
    cold = it.ask(1, prompt)
    warm = it.ask(2, prompt)

    assert cold == (answer(prompt, 12), 0)
    assert warm == (answer(prompt, 12), cached)
    assert it.computed == {1: length, 2: length - cached}


def test_the_next_turn_finds_what_was_generated() -> None:
    """All full pages but for the last token, which was drawn and never fed."""
    it = new_loop()
    prompt = words(10)
    said, _ = it.ask(1, prompt, max_tokens=15)
    longer = [*prompt, *said, *words(5, seed=2)]

    assert it.ask(2, longer, max_tokens=3) == (answer(longer, 3), 24)


def test_only_a_common_beginning_is_found() -> None:
    it = new_loop()
    prompt = words(16)
    it.ask(1, prompt)
    other = [*prompt[:9], (prompt[9] + 1) % VOCAB, *prompt[10:]]

    assert it.ask(2, other) == (answer(other, 12), 8)
    assert it.ask(3, [(prompt[0] + 1) % VOCAB, *prompt[1:]])[1] == 0


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    """Whoever is second looks again when its turn has come."""
    it = new_loop()
    prompt = words(33)
    for id_ in range(4):
        it.submit(id_, prompt)
    it.drain()

    assert it.computed == {0: 33, 1: 1, 2: 1, 3: 1}
    assert [it.outputs[id_][0].cached_tokens for id_ in range(4)] == [0, 32, 32, 32]
    assert (it.scheduler.cache.lookup_tokens, it.scheduler.cache.hit_tokens) == (4 * 33, 3 * 32)
    assert all(tokens(it.outputs[id_]) == answer(prompt, 12) for id_ in range(4))


def test_the_cache_takes_no_room_from_requests() -> None:
    """Kept pages are free pages: a request that needs them all gets them."""
    it = new_loop(pages=10)
    for id_ in range(5):
        it.ask(id_, words(20, seed=id_))
    assert it.scheduler.cache.kept > 0

    prompt = words(30, seed=9)
    assert it.ask(9, prompt, max_tokens=10)[0] == answer(prompt, 10)


def test_a_request_fits_where_its_beginning_is_shared() -> None:
    """Two texts that would not fit side by side, with most of their pages in common."""
    it = new_loop(pages=12)
    prompt = words(32)
    it.submit(1, prompt, max_tokens=8)
    while 1 not in it.outputs:
        it.step()
    it.submit(2, prompt, max_tokens=2)
    it.drain()

    assert it.scheduler.preemptions == 0
    assert {output.request for output in it.outputs[2]} == {2}
    assert it.outputs[2][0].cached_tokens == 28


def test_what_a_cancelled_request_had_computed_stays() -> None:
    """Page by page, from the moment its step was handed out."""
    it = new_loop()
    prompt = words(40)
    it.submit(1, prompt)
    it.step()
    it.step()
    it.scheduler.cancel(1)

    assert it.ask(2, prompt) == (answer(prompt, 12), 32)


def test_a_preempted_request_finds_its_pages_again_and_does_not_call_them_cached() -> None:
    it = new_loop(pages=12)
    prompts = {id_: words(14, seed=id_) for id_ in range(3)}
    for id_, prompt in prompts.items():
        it.submit(id_, prompt, max_tokens=12)
    it.drain()

    assert it.scheduler.preemptions > 0
    assert sum(it.computed.values()) < sum(map(len, prompts.values())) + it.scheduler.preemptions * 14
    assert {id_: tokens(out) for id_, out in it.outputs.items()} == {id_: answer(p, 12) for id_, p in prompts.items()}
    assert not any(output.cached_tokens for out in it.outputs.values() for output in out)
    assert it.scheduler.cache.hit_tokens == 0


def test_without_names_nothing_is_found_or_kept() -> None:
    it = new_loop(salt=None)
    prompt = words(20)
    it.ask(1, prompt)

    assert it.ask(2, prompt) == (answer(prompt, 12), 0)
    assert it.computed == {1: 20, 2: 20}
    assert (it.scheduler.cache.kept, it.scheduler.cache.lookup_tokens) == (0, 0)


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("overlap", [True, False])
def test_whatever_is_shared_cancelled_or_preempted_every_text_is_right(size: int, steps: int, overlap: bool) -> None:
    """Conversations that go on from earlier ones, in a pool too small for them, with steps of several tokens."""
    rng = random.Random(size * steps)
    it = new_loop(pages=90 // size, size=size, steps=steps, overlap=overlap)
    texts: list[list[int]] = [words(30)]
    expected: dict[int, list[int]] = {}
    for id_ in range(400):
        known = rng.choice(texts[-12:])
        prompt = [*known[: rng.randrange(len(known))], *words(rng.randint(1, 6), seed=id_)][:60]
        count, stop = rng.randint(1, 25), tuple(words(1, seed=id_)) if rng.random() < 0.5 else ()
        it.submit(id_, prompt, max_tokens=count, stop=stop)
        expected[id_] = answer(prompt, count, stop)
        texts.append(prompt + expected[id_])
        for _ in range(rng.randrange(12)):
            it.step()
        if rng.random() < 0.3:
            victim = rng.choice(list(expected))
            it.scheduler.cancel(victim)
            it.scheduler.check_integrity()
            if not it.outputs.get(victim) or it.outputs[victim][-1].finish is None:
                del expected[victim]
    it.drain()

    for id_, text in expected.items():
        assert tokens(it.outputs[id_]) == text
    assert it.scheduler.preemptions > 0
    assert it.scheduler.cache.hit_tokens > it.scheduler.cache.lookup_tokens // 4
    assert it.scheduler.cache.free == it.scheduler.cache.total
    for text in texts:
        names: list[bytes] = []
        Naming(size, b"salt").extend(names, text, len(text) // size)
        found = it.scheduler.cache.groups[0].find(names)
        assert it.device.text(found, len(found) * size) == text[: len(found) * size]
