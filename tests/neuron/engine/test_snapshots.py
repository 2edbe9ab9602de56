"""Where snapshots of recurrent state stand along a prompt: what an edit, a branch or another end computes again."""

import pytest

from neuron_jax.engine.cache import Cache
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.requests import Request, from_submit
from tests.fakes.engines import submit, words

PAGE, CHUNK, LENGTH = 16, 512, 8000


def new_cache(snapshots: int = 32) -> Cache:
    return Cache([Pages(4000)], PAGE, Naming(PAGE, b"tests"), snapshots=Pages(snapshots))


def admitted(cache: Cache, tokens: list[int]) -> Request:
    request = from_submit(submit(1, tokens), arrival=1, max_context=10 * LENGTH)
    assert cache.admit(request, spare=0)
    request.fed = len(tokens)
    return request


def feed(cache: Cache, request: Request) -> list[int]:
    """Its prompt, row after row. Returns how long they were."""
    rows = []
    while request.to_feed:
        count = cache.feed(request, min(request.to_feed, CHUNK))
        cache.states(request, request.computed, count, fed=True)
        request.computed += count
        cache.publish(request, request.computed)
        cache.settle()
        rows.append(count)
    return rows


TEXT = words(LENGTH, seed=1)


@pytest.mark.parametrize("parted", [LENGTH, LENGTH - 1, LENGTH - 20, LENGTH - 47, LENGTH - 90, 5000, 2500, 1025, 600])
def test_little_is_computed_again_wherever_a_text_parts(parted: int) -> None:
    """A sixteenth of the text and a step, or where it ends otherwise three pages."""
    cache = new_cache()
    rows = feed(cache, first := admitted(cache, TEXT))
    cache.release(first)
    again = admitted(cache, TEXT[:parted] + words(60, seed=2))

    assert len(rows) <= LENGTH // CHUNK + 4
    assert parted - again.cached <= (3 * PAGE if parted > LENGTH - 3 * PAGE else LENGTH // 16 + CHUNK)
    feed(cache, again)
    cache.release(again)
    cache.check_idle()
    third = admitted(cache, TEXT[:parted] + words(60, seed=3))
    assert parted - third.cached < 2 * PAGE  # where two have parted a third may


def test_turn_after_turn_in_few_places() -> None:
    """Snapshots are forgotten, oldest first, and the newest turn is found."""
    cache = new_cache(snapshots=20)
    text = TEXT[:4000]
    for turn in range(12):
        request = admitted(cache, text)
        assert turn == 0 or len(text) - request.cached < 400
        feed(cache, request)
        cache.release(request)
        cache.check_idle()
        cache.check_integrity([])
        text = text + words(300, seed=turn)
    assert cache.snapshots is not None
    assert cache.snapshots.kept == 20


def test_a_short_prompt_is_one_row() -> None:
    cache = new_cache()

    assert feed(cache, admitted(cache, words(200, seed=4))) == [200]
