"""The keys of a running gateway follow the database; requests never touch it."""

import asyncio
import contextlib
import logging
import pathlib

import pytest

from cortex_gateway.auth.guard import Guard
from cortex_gateway.auth.policy import INFER
from cortex_gateway.auth.store import KeyStore, StoreError
from cortex_gateway.errors import Unauthorized
from tests.fakes.keyring import Made, kept, made
from tests.fakes.waiting import until

SOON = 0.01


def passes(guard: Guard, key: Made) -> bool:
    scope = {"headers": [(b"x-api-key", key.text.encode())], "client": ("192.0.2.1", 1)}
    try:
        guard.identify(scope, INFER)
    except Unauthorized:
        return False
    return True


def test_what_commands_change_counts_without_a_restart(tmp_path: pathlib.Path) -> None:
    """A key that is made, and one that is revoked; also of a database that was not there at the start."""
    path, one, two = tmp_path / "state.db", made("one"), made("two")

    async def main() -> None:
        guard = Guard(required=True)
        async with guard.following(path, SOON):
            assert (passes(guard, one), guard.usable) == (False, 0)
            with contextlib.closing(KeyStore(path)) as store:
                store.add(one.key)
                await until(lambda: passes(guard, one))
                store.add(two.key)
                await until(lambda: passes(guard, two))
                store.revoke(one.key.id, 5.0)
                await until(lambda: not passes(guard, one))
            assert (passes(guard, two), guard.usable) == (True, 1)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_keys_are_there_from_the_first_request_on(tmp_path: pathlib.Path) -> None:
    """Nobody is refused because the gateway has just started."""
    key = made()

    async def main() -> None:
        guard = Guard(required=True)
        async with guard.following(kept(tmp_path / "state.db", [key])):
            assert passes(guard, key)

    asyncio.run(main())


def test_a_database_that_is_no_good_at_the_start_stops_it(tmp_path: pathlib.Path) -> None:
    """Rather than to refuse everybody, or to let everybody in."""
    path = tmp_path / "state.db"
    path.write_text("not a database, and long enough to be taken for one" * 99)

    async def main() -> None:
        async with Guard().following(path):
            raise AssertionError("not reached")

    with pytest.raises(StoreError, match="file is not a database"):
        asyncio.run(main())


def test_one_that_goes_bad_later_leaves_the_keys_in_force(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once, and what is put in its place counts."""
    path, one, two = tmp_path / "state.db", made("one"), made("two")

    async def main() -> None:
        guard = Guard(required=True)
        async with guard.following(kept(path, [one]), SOON):
            for ending in ("", "-wal", "-shm"):
                (tmp_path / f"state.db{ending}").unlink(missing_ok=True)
            await until(lambda: caplog.records)
            await asyncio.sleep(10 * SOON)
            assert passes(guard, one)
            other = kept(tmp_path / "other.db", [two])
            other.rename(path)
            await until(lambda: passes(guard, two))
            assert not passes(guard, one)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())

    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is gone; the keys that it had stay in force until it is back"
    ]


def test_without_a_database_nobody_is_known() -> None:
    """As in a gateway that is assembled by hand."""

    async def main() -> None:
        guard = Guard()
        async with guard.following(None):
            assert guard.usable == 0

    asyncio.run(main())
