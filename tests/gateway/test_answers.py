"""The store of answers: whose they are, how long, how much, and that a disk's trouble stays the store's."""

import asyncio
import logging
import pathlib
import sqlite3
import stat

import pytest
from attrs import define

from cortex_gateway.answers import Answers, AnswerStore, Bounds
from cortex_gateway.dialects.dialect import Kept
from cortex_gateway.errors import AnswersUnusable

BOUNDS = Bounds(keep_secs=100, max_bytes=1000)


@define
class Clock:
    at: float = 0.0

    def __call__(self) -> float:
        return self.at


def kept(identity: str, previous: str | None = None, size: int = 10) -> Kept:
    return Kept(identity, previous, b"[]", b"x" * (size - 2))


def make(path: pathlib.Path | None = None, bounds: Bounds = BOUNDS) -> tuple[AnswerStore, Clock]:
    clock = Clock()
    return AnswerStore(path, bounds, clock), clock


def there(store: AnswerStore, *names: str, owner: str = "k") -> list[str]:
    return [name for name in names if store.get(owner, name)]


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_kept_is_there_for_its_owner(tmp_path: pathlib.Path, *, on_disk: bool) -> None:
    """And for nobody else, under whatever name; the file is its user's alone."""
    path = tmp_path / "new" / "answers.db" if on_disk else None
    store, _ = make(path)
    assert store.get("k", "a") is None
    store.keep("k", kept("a"), running=False)

    assert store.get("k", "a") == kept("a")
    assert store.get("other", "a") is None
    assert store.chain("other", "a") is None
    assert not store.forget("other", "a")
    assert store.forget("k", "a")
    assert store.get("k", "a") is None
    if path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.close()


def test_nothing_is_made_before_something_is_kept(tmp_path: pathlib.Path) -> None:
    """A gateway that keeps nothing writes nothing."""
    store, _ = make(tmp_path / "answers.db")

    assert store.get("k", "a") is None
    assert store.chain("k", "a") is None
    assert not store.forget("k", "a")
    assert list(tmp_path.iterdir()) == []


def test_a_chain_is_whole_or_not_there() -> None:
    """Oldest first; one that was forgotten takes those after it along."""
    store, _ = make()
    for identity, previous in (("a", None), ("b", "a"), ("c", "b")):
        store.keep("k", kept(identity, previous), running=False)
    whole = store.chain("k", "c")
    store.forget("k", "b")

    assert whole is not None
    assert [one.id for one in whole] == ["a", "b", "c"]
    assert store.chain("k", "c") is None
    assert store.chain("k", "a") is not None
    store.close()


def test_a_chain_that_bites_its_tail_ends() -> None:
    """Nobody can make one through the routes; a loop would never end."""
    store, _ = make()
    store.keep("k", kept("a", "a"), running=False)

    assert store.chain("k", "a") is None
    store.close()


def test_what_is_used_lives_on() -> None:
    """With all that it goes on from; the rest goes when its time is over."""
    store, clock = make()
    for identity, previous in (("a", None), ("b", "a"), ("x", None)):
        store.keep("k", kept(identity, previous), running=False)
    clock.at = 90
    store.chain("k", "b")
    clock.at = 150

    assert there(store, "a", "b", "x") == ["a", "b"]
    store.keep("k", kept("new"), running=False)
    clock.at = 0
    assert there(store, "x") == []
    store.close()


def test_who_has_most_loses_what_he_did_not_use() -> None:
    """Never more than the bound, and nobody pushes out what others have."""
    store, clock = make()
    store.keep("small", kept("s", size=100), running=False)
    for at, name in enumerate("abcd"):
        clock.at = at + 1
        store.keep("big", kept(name, size=300), running=False)

    assert there(store, "a", "b", "c", "d", owner="big") == ["b", "c", "d"]
    assert there(store, "s", owner="small") == ["s"]
    store.close()


def test_what_is_larger_than_all_may_be_is_not_kept() -> None:
    """It pushes out nobody."""
    store, _ = make()
    store.keep("k", kept("a"), running=False)
    with pytest.raises(AnswersUnusable, match="5000 bytes"):
        store.keep("k", kept("huge", size=5000), running=False)

    assert there(store, "a", "huge") == ["a"]
    store.close()


def test_one_that_is_kept_again_counts_once() -> None:
    """As a background answer is."""
    store, _ = make()
    for _ in range(50):
        store.keep("k", kept("a", size=600), running=True)

    assert there(store, "a") == ["a"]
    store.close()


def test_a_new_gateway_finds_what_was_kept_and_not_what_was_running(tmp_path: pathlib.Path) -> None:
    """Nobody makes the rest of it any more; the size is counted anew."""
    path = tmp_path / "answers.db"
    store, _ = make(path)
    store.keep("k", kept("done", size=900), running=False)
    store.keep("k", kept("running", size=50), running=True)
    store.close()
    again, clock = make(path)
    clock.at = 1

    assert there(again, "done", "running") == ["done"]
    again.keep("k", kept("more", size=200), running=False)
    assert there(again, "done", "more") == ["more"]
    again.close()


def test_another_program_s_database_is_left_alone(tmp_path: pathlib.Path) -> None:
    """Its name is told."""
    path = tmp_path / "answers.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    db.close()
    store, _ = make(path)

    with pytest.raises(AnswersUnusable, match=r"answers\.db"):
        store.keep("k", kept("a"), running=False)
    store.close()


def test_an_answer_that_cannot_be_kept_is_an_answer(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log tells the operator; asking for one tells the client."""

    async def main() -> None:
        (tmp_path / "answers.db").mkdir()
        answers = Answers(make(tmp_path / "answers.db")[0])
        await answers.keep("k", kept("a"))
        with pytest.raises(AnswersUnusable):
            await answers.get("k", "a")
        await answers.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())

    assert "answer a is not kept" in caplog.text


def test_many_at_once_are_kept_one_by_one() -> None:
    """In a thread that is no longer there after the end."""

    async def main() -> None:
        answers = Answers(make()[0])
        names = [f"a{at}" for at in range(50)]
        await asyncio.gather(*(answers.keep("k", kept(name)) for name in names))
        found = await answers.several("k", [*names, "not there"])
        await answers.close()

        assert sorted(one.id for one in found) == sorted(names)

    asyncio.run(main())


def test_what_is_changed_is_changed_at_once_or_not_at_all() -> None:
    """Its owner alone can; its size counts as it is then, and it counts as used."""
    store, clock = make()
    store.keep("k", kept("a"), running=False)
    clock.at = 90
    longer = kept("a", size=900)

    def fail(_: Kept) -> Kept:
        raise ValueError("no")

    assert store.change("other", "a", lambda _: longer) is None
    with pytest.raises(ValueError, match="no"):
        store.change("k", "a", fail)
    assert store.get("k", "a") == kept("a")
    assert store.change("k", "a", lambda _: longer) == longer
    clock.at = 150
    assert store.get("k", "a") == longer
    store.keep("k", kept("b", size=200), running=False)
    assert there(store, "a", "b") == ["b"]
    store.close()
