"""What requests hold of the pools: groups with and without a window, what is given back, and what is found again."""

from neuron_jax.engine.cache import NOWHERE, Cache
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.requests import Request, from_submit
from tests.fakes.engines import submit

SIZE, WINDOW, STEP = 4, 8, 8
REACH = (WINDOW + STEP) // SIZE + 1


def cache(whole: int = 40, windowed: int = 10) -> Cache:
    """Pages of 4 tokens for layers that see everything, and for some that see 8."""
    naming = Naming(SIZE, b"tests")
    return Cache([Pages(whole), Pages(windowed)], SIZE, naming, windows=(None, WINDOW), step_tokens=STEP)


def request(tokens: int, id_: int = 1) -> Request:
    return from_submit(submit(id_, list(range(tokens))), arrival=id_, max_context=512)


def compute(held: Cache, one: Request, count: int, *others: Request) -> int:
    """What `Scheduler` does for the next tokens of a prompt."""
    count = held.feed(one, count)
    one.computed += count
    held.publish(one, one.computed)
    held.check_integrity([one, *others])
    return count


def test_a_window_holds_its_reach_however_long_the_text_is() -> None:
    held, one = cache(), request(100)
    assert held.admit(one, spare=0)
    assert [len(pages) for pages in one.pages] == [26, REACH]
    while one.computed < 100:
        assert compute(held, one, min(STEP, 100 - one.computed)) > 0
        assert held.groups[1].total - held.groups[1].free <= REACH

    assert [pages.count(NOWHERE) for pages in one.pages] == [0, (96 - WINDOW + 1) // SIZE]
    held.release(one)
    held.check_idle()


def test_a_prompt_goes_on_only_as_far_as_there_are_pages() -> None:
    """Another holds what it would need; when that leaves it goes on."""
    held, one, other = cache(windowed=REACH + 3), request(100), request(11, 2)
    assert held.admit(one, spare=0)
    assert held.admit(other, spare=0)
    assert held.groups[1].free == 0
    assert compute(held, one, 64, other) == REACH * SIZE
    assert compute(held, one, 64, other) == 3 * SIZE  # what the window has left meanwhile
    held.release(other)

    assert compute(held, one, 64) == 3 * SIZE + 3 * SIZE


def remembering() -> Cache:
    """A cache in which a text of 60 tokens was, which has left."""
    held, one = cache(), request(60)
    assert held.admit(one, spare=0)
    while one.computed < 60:
        compute(held, one, min(STEP, 60 - one.computed))
    held.release(one)
    return held


def test_a_text_is_found_as_far_as_every_window_is_there() -> None:
    held, again = remembering(), request(60, 2)
    assert held.admit(again, spare=0)

    assert again.computed == 56  # one page is left to compute
    assert [page for page in again.pages[1][:12] if page != NOWHERE] == []
    assert NOWHERE not in again.pages[1][12:]
    assert NOWHERE not in again.pages[0]
    held.release(again)


def test_without_the_last_window_nothing_of_it_is_found() -> None:
    """Others took the pages of the window: those of all tokens alone are of no use."""
    held, again = remembering(), request(60, 2)
    held.groups[1].give_back(held.groups[1].take(10))
    assert held.admit(again, spare=0)

    assert (again.computed, held.hit_tokens) == (0, 0)


def test_what_is_too_long_for_a_pool_is_known_before() -> None:
    held = cache(whole=20, windowed=REACH)

    assert held.holds(80)
    assert not held.holds(81)
    assert not cache(windowed=REACH - 1).holds(80)
