"""The pool against a plain model of it: who owns what, what can be found, and what goes first."""

import random
from collections import Counter

import pytest

from neuron_jax.engine.pages import Pages, pages_for


def names(*words: str) -> list[bytes]:
    return [word.encode() for word in words]


def published(pages: Pages, *words: str) -> list[int]:
    """Own pages under these names."""
    taken = pages.take(len(words))
    for page, name in zip(taken, names(*words), strict=True):
        pages.publish(page, name)
    return taken


def test_low_pages_are_handed_out_first_and_none_is_page_0() -> None:
    pages = Pages(4)

    assert pages.take(2) == [1, 2]
    assert pages.take(2) == [3, 4]
    assert pages.free == 0


def test_what_was_published_is_found_after_its_owner_left() -> None:
    pages = Pages(4)
    a, b = published(pages, "a", "b")
    pages.give_back([a, b])

    assert pages.find(names("a", "b", "c")) == [a, b]
    assert pages.find(names("x", "b")) == []
    assert (pages.free, pages.kept) == (4, 2)


def test_a_page_is_found_by_its_name_alone() -> None:
    """Without those before it; 0, which is nobody's, where it is not known."""
    pages = Pages(4)
    _, second = published(pages, "a", "b")

    assert pages.get(b"b") == second
    assert pages.get(b"c") == 0


def test_no_pages_are_taken_where_none_are_wanted() -> None:
    pages = Pages(2)

    assert (pages.take(0), pages.free) == ([], 2)
    assert (pages.take(2), pages.take(0)) == ([1, 2], [])


def test_what_was_not_published_is_blank_again() -> None:
    pages = Pages(2)
    pages.give_back(pages.take(2))

    assert (pages.free, pages.kept) == (2, 0)


def test_a_shared_page_is_free_when_the_last_owner_left() -> None:
    pages = Pages(3)
    [a] = published(pages, "a")
    found = pages.find(names("a"))
    assert pages.unowned(found) == 0
    pages.share(found)
    pages.give_back([a])
    assert pages.free == 2

    pages.give_back(found)
    assert pages.free == 3
    assert pages.unowned(found) == 1


def test_the_first_page_of_a_name_stays_and_the_second_is_just_owned() -> None:
    pages = Pages(2)
    [first] = published(pages, "a")
    [second] = published(pages, "a")

    assert pages.find(names("a")) == [first]
    pages.give_back([second])
    assert pages.kept == 0
    pages.give_back([first])
    assert pages.kept == 1


def test_blank_pages_go_before_kept_ones_and_kept_ones_by_age() -> None:
    pages = Pages(4)
    for page in published(pages, "a", "b", "c"):
        pages.give_back([page])
    pages.share(found := pages.find(names("a")))
    pages.give_back(found)

    left = [[word for word in "abc" if pages.find(names(word))] for _ in range(4) if pages.take(1)]

    assert left == [["a", "b", "c"], ["a", "c"], ["a"], []]


def test_the_end_of_a_text_goes_before_its_beginning() -> None:
    """A page without the one before it would be of no use."""
    pages = Pages(3)
    pages.give_back(published(pages, "a", "b", "c"))
    pages.take(2)

    assert pages.find(names("a")) != []
    assert pages.find(names("b")) == pages.find(names("c")) == []


def test_a_page_that_is_free_cannot_be_published() -> None:
    pages = Pages(1)
    with pytest.raises(AssertionError):
        pages.publish(1, b"a")


@pytest.mark.parametrize(
    "owners",
    [[], [[1]], [[1, 2], [2], [2]], [[1], [2]], [[1, 2, 3], [2]]],
    ids=["nobody", "one lost", "once too often", "once too seldom", "free and owned"],
)
def test_wrong_books_are_noticed(owners: list[list[int]]) -> None:
    pages = Pages(3)
    published(pages, "a", "b")
    pages.share([2])

    with pytest.raises(AssertionError):
        pages.check_integrity(owners)
    pages.check_integrity([[1, 2], [2]])


def test_random_use_keeps_the_books_and_never_loses_content() -> None:
    """Pages hold words here; a name promises its word. Whatever happens in between, a found page has the right one."""
    rng = random.Random(5)
    pages = Pages(12)
    content: dict[int, str] = {}
    owners: list[list[int]] = []
    kept_once: Counter[str] = Counter()
    for _ in range(5000):
        action = rng.random()
        if action < 0.3 and pages.free >= 3:
            mine = pages.take(rng.randint(1, 3))
            content |= dict.fromkeys(mine, "")
            for page in mine:
                if rng.random() < 0.7:
                    content[page] = rng.choice("abcdefghij")
                    pages.publish(page, content[page].encode())
            owners.append(mine)
        elif action < 0.5:
            word = rng.choice("abcdefghij")
            found = pages.find([word.encode()])
            assert [content[page] for page in found] in ([], [word])
            kept_once[word] += pages.unowned(found)
            pages.share(found)
            owners.append(found)
        elif owners:
            pages.give_back(owners.pop(rng.randrange(len(owners))))
        pages.check_integrity(owners)

    assert len(kept_once) == 10
    assert min(kept_once.values()) > 0


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (160, 10)])
def test_a_page_that_is_begun_is_a_page(tokens: int, pages: int) -> None:
    """And one that is full is one, not two."""
    assert pages_for(tokens, 16) == pages


def test_what_is_forgotten_is_free_and_not_found() -> None:
    """Kept pages are blank again; one that somebody owns stays his, and may get another name."""
    pages = Pages(4)
    a, b = published(pages, "a", "b")
    pages.give_back([b])
    pages.forget()

    assert pages.find(names("a")) == pages.find(names("b")) == []
    assert (pages.free, pages.kept) == (3, 0)
    pages.publish(a, b"c")
    pages.check_integrity([[a]])
