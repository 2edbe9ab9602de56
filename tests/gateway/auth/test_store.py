"""The database: what is kept, who may write at once, and what is said when it is no good."""

import concurrent.futures
import contextlib
import pathlib
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator

import attrs
import pytest

from cortex_gateway.auth.principal import Key, Limits
from cortex_gateway.auth.store import KeyReader, KeyStore, NameTakenError, StoreError

KEY = Key(id="0" * 12, name="laptop", digest=b"d" * 32, scopes=frozenset({"infer"}), created=10.0)
FULL = Key(
    id="1" * 12,
    name="ci",
    digest=bytes(range(32)),
    scopes=frozenset({"admin", "infer"}),
    models=("org/m", "é"),
    limits=Limits(requests_per_minute=1, tokens_per_minute=2, max_concurrent=3),
    created=11.5,
    expires=99.25,
    revoked=50.0,
)
ROOT = pathlib.Path(__file__).parents[3]
WRITER = """
import pathlib, sys
from cortex_gateway.auth.principal import Key
from cortex_gateway.auth.store import KeyStore
for number in range(10):
    store = KeyStore(pathlib.Path(sys.argv[1]))
    name = f"{sys.argv[2]}-{number}"
    store.add(Key(id=name, name=name, digest=b"d" * 32, scopes=frozenset({"infer"}), created=1.0))
    store.close()
"""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "deep" / "state.db"


@contextlib.contextmanager
def store(path: pathlib.Path) -> Iterator[KeyStore]:
    with contextlib.closing(KeyStore(path)) as it:
        yield it


@contextlib.contextmanager
def reader(path: pathlib.Path) -> Iterator[KeyReader]:
    with contextlib.closing(KeyReader(path)) as it:
        yield it


def known(path: pathlib.Path) -> tuple[Key, ...]:
    with reader(path) as it:
        return it.changed() or ()


def test_what_is_added_is_found_again(path: pathlib.Path) -> None:
    """Every field, the oldest key first."""
    with store(path) as it:
        it.add(FULL)
        it.add(KEY)

    assert known(path) == (KEY, FULL)


def test_only_the_owner_reads_it_and_the_log_is_written_ahead(path: pathlib.Path) -> None:
    """SQLite's own files get the same rights."""
    with store(path) as it:
        it.add(KEY)
        files = sorted(path.parent.iterdir())
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    assert [file.name for file in files] == ["state.db", "state.db-shm", "state.db-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files if file.exists()} == {0o600}


def test_a_name_is_one_keys_until_it_is_revoked(path: pathlib.Path) -> None:
    """Then another may have it."""
    with store(path) as it:
        it.add(KEY)
        with pytest.raises(NameTakenError, match="'laptop'"):
            it.add(attrs.evolve(KEY, id="2" * 12))
        it.revoke(KEY.id, 77.0)
        it.add(attrs.evolve(KEY, id="2" * 12))
        it.revoke(KEY.id, 88.0)

    assert [(key.id, key.revoked) for key in known(path)] == [("0" * 12, 77.0), ("2" * 12, None)]


def test_a_reader_hears_of_every_change_and_of_nothing_else(path: pathlib.Path) -> None:
    """Also of the database being made after it."""
    with reader(path) as it:
        assert it.changed() == ()
        with store(path) as writer:
            assert it.changed() == ()
            writer.add(KEY)
            assert it.changed() == (KEY,)
            assert it.changed() is None
            writer.revoke(KEY.id, 9.0)
            assert it.changed() == (attrs.evolve(KEY, revoked=9.0),)
        assert it.changed() in (None, (attrs.evolve(KEY, revoked=9.0),))
        with store(path) as writer:
            writer.add(FULL)
        assert it.changed() == (attrs.evolve(KEY, revoked=9.0), FULL)


def test_another_file_in_its_place_is_read_instead(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """As when a backup is put back; while there is none, that is told."""
    with store(path) as it:
        it.add(KEY)
    other = tmp_path / "other.db"
    with store(other) as it:
        it.add(FULL)
    with reader(path) as it:
        assert it.changed() == (KEY,)
        for file in path.parent.iterdir():
            file.unlink()
        for _ in range(2):
            with pytest.raises(StoreError, match="is gone"):
                it.changed()
        other.rename(path)
        assert it.changed() == (FULL,)


def test_many_commands_may_write_at_once(path: pathlib.Path) -> None:
    """Each finds no file at first; none fails and nothing is lost."""
    path.parent.mkdir()

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", WRITER, str(path), name]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    with concurrent.futures.ThreadPoolExecutor() as pool, reader(path) as it:
        running = [pool.submit(run, name) for name in "abcd"]
        seen = 0
        while not all(one.done() for one in running):
            seen = max(seen, len(it.changed() or ()))
        ended = [one.result() for one in running]

    assert [one.stderr for one in ended] == [""] * 4
    assert {key.name for key in known(path)} == {f"{name}-{number}" for name in "abcd" for number in range(10)}
    assert seen <= 40


def test_a_command_waits_for_another_that_makes_the_database(path: pathlib.Path) -> None:
    """SQLite itself does not, while the log is not written ahead yet."""
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as db:
        db.execute("BEGIN IMMEDIATE")
        ending = threading.Timer(0.2, db.execute, ["COMMIT"])
        ending.start()
        with store(path) as it:
            it.add(KEY)
        ending.join()

    assert known(path) == (KEY,)


def garbage(path: pathlib.Path) -> None:
    path.write_bytes(b"this is no database at all, whatever its name says\n" * 200)


def cut(path: pathlib.Path) -> None:
    with store(path) as it:
        for number in range(60):
            it.add(attrs.evolve(KEY, id=f"{number:012}", name=f"n{number}"))
    path.write_bytes(path.read_bytes()[:9000])


def overwritten(path: pathlib.Path) -> None:
    with store(path) as it:
        it.add(KEY)
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + b"\xff" * (len(raw) - 4096))


def foreign(path: pathlib.Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE keys (id TEXT)")


def newer(path: pathlib.Path) -> None:
    with store(path) as it:
        it.add(KEY)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 7")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (garbage, "cannot be read: file is not a database; put a copy from before"),
        (cut, "cannot be read: database disk image is malformed; put a copy"),
        (overwritten, "cannot be read: database disk image is malformed"),
        (foreign, "database of another program"),
        (newer, "written by a newer cortex .version 7"),
    ],
)
def test_a_database_that_is_no_good_is_told_by_its_path(path: pathlib.Path, spoil: object, told: str) -> None:
    """To commands and to a gateway, again and again, and nothing is written to it."""
    assert callable(spoil)
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes()

    with reader(path) as it:
        for _ in range(2):
            with pytest.raises(StoreError, match=told) as caught:
                it.changed()
            assert str(path) in str(caught.value)
    with pytest.raises(StoreError, match=told), store(path) as writer:
        writer.add(FULL)
    if spoil is not newer:
        assert path.read_bytes()[100:] == before[100:]


def test_a_folder_that_cannot_be_used_is_told(tmp_path: pathlib.Path) -> None:
    """A file where a folder should be, and a folder where the file should be."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    with pytest.raises(StoreError, match=r"cannot be kept there: .*/file: File exists"):
        KeyStore(tmp_path / "file" / "state.db")
    with pytest.raises(StoreError, match="cannot be reached: unable to open database file; it and its folder must be"):
        KeyStore(tmp_path / "folder")
    with (
        pytest.raises(StoreError, match=r"cannot be reached: .*; it and its folder"),
        reader(tmp_path / "folder") as it,
    ):
        it.changed()


def test_a_lock_that_stays_is_told_and_not_waited_for_for_ever(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's transaction that does not end."""
    monkeypatch.setattr("cortex_gateway.auth.store.BUSY_SECS", 0.1)
    with store(path) as it:
        it.add(KEY)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked"), store(path) as it:
            it.add(FULL)
        assert known(path) == (KEY,)
