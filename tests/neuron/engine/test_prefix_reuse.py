"""Pages found again by the scheduler, on a device of plain Python that keeps tokens where a real one keeps their KV."""

import random

import pytest

from neuron_jax.engine.buckets import Menu, declare
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.scheduler import Scheduler
from tests.fakes.engines import tokens
from tests.fakes.plain_device import VOCAB, Device, Loop, answer


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
