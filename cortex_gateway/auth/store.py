"""The keys in SQLite: added and revoked by commands, read by a running gateway. Knows no request and no rule.

One database, write-ahead log: a gateway reads while a command writes. A gateway opens it for reading only.
"""

import contextlib
import json
import os
import pathlib
import sqlite3
import time
from collections.abc import Iterator

from attrs import define, field

from cortex_gateway.auth.principal import SCOPES, Key, Limits
from neuron_jax.common.errors import UserError

APPLICATION = 0x43545831  # "CTX1": tells our database from another program's
VERSION = 1
BUSY_SECS = 10.0
READER_BUSY_SECS = 2.0
_SCHEMA = (
    """CREATE TABLE keys (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, digest BLOB NOT NULL, scopes TEXT NOT NULL, models TEXT,
        requests_per_minute INTEGER, tokens_per_minute INTEGER, max_concurrent INTEGER,
        created REAL NOT NULL, expires REAL, revoked REAL)""",
    "CREATE UNIQUE INDEX one_key_of_a_name ON keys (name) WHERE revoked IS NULL",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)
_COLUMNS = "id, name, digest, scopes, models, requests_per_minute, tokens_per_minute, max_concurrent, created, expires, revoked"


class StoreError(UserError):
    """The database cannot be used, or not for this. The message says which, why, and what to do."""


class NameTakenError(StoreError):
    """There is a key of that name."""


@define
class KeyStore:
    """The database as a command uses it, made where there is none. Close it."""

    path: pathlib.Path
    _db: sqlite3.Connection = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        with _told(self.path):
            _make_file(self.path)
            self._db = sqlite3.connect(self.path, timeout=BUSY_SECS, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def add(self, key: Key) -> None:
        """Keep it. Raises NameTakenError."""
        limits = key.limits
        row = (
            key.id,
            key.name,
            key.digest,
            json.dumps([scope for scope in SCOPES if scope in key.scopes]),
            None if key.models is None else json.dumps(key.models),
            limits.requests_per_minute,
            limits.tokens_per_minute,
            limits.max_concurrent,
            key.created,
            key.expires,
            key.revoked,
        )
        with _told(self.path), _transaction(self._db):
            if self._db.execute("SELECT 1 FROM keys WHERE name = ? AND revoked IS NULL", (key.name,)).fetchone():
                raise NameTakenError(f"there is a key {key.name!r} already: revoke it first, or take another name")
            self._db.execute(f"INSERT INTO keys ({_COLUMNS}) VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608

    def revoke(self, identity: str, now: float) -> None:
        """From now on it is refused. One that was revoked before stays as it was."""
        with _told(self.path), _transaction(self._db):
            self._db.execute("UPDATE keys SET revoked = ? WHERE id = ? AND revoked IS NULL", (now, identity))

    def _prepare(self) -> None:
        """Make the table where the file is new. Two commands may do so at once; then one waits for the other."""
        deadline = time.monotonic() + BUSY_SECS
        while True:
            try:
                with _told(self.path):
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._create()
            except StoreError as error:
                # Going over to the write-ahead log does not wait for other connections, whatever the timeout says.
                if not _is_locked(error.__cause__) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def _create(self) -> None:
        with _transaction(self._db):
            if _is_ours(self._db, self.path):
                return
            for statement in _SCHEMA:
                self._db.execute(statement)


@define
class KeyReader:
    """The database as a gateway follows it: opened once it is there, anew when another file has taken its place."""

    path: pathlib.Path
    _db: sqlite3.Connection | None = field(default=None, init=False, repr=False)
    _file: tuple[int, int] | None = field(default=None, init=False)  # device and inode
    _version: int | None = field(default=None, init=False)

    def changed(self) -> tuple[Key, ...] | None:
        """All keys where any may have changed since the last call, else None. May be called from any one thread at a time.

        No file is no keys; but one that has been there must not vanish. Raises StoreError; then the next call reads anew.
        """
        try:
            with _told(self.path):
                return self._look()
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        if self._db:
            self._db.close()
        self._db = self._version = None

    def _look(self) -> tuple[Key, ...] | None:
        file = _identity(self.path)
        if file is None:
            if self._file is None:
                return ()
            raise StoreError(f"{self.path} is gone; the keys that it had stay in force until it is back")
        if file != self._file or self._db is None:
            self.close()
            self._db = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro",
                uri=True,
                timeout=READER_BUSY_SECS,
                isolation_level=None,
                check_same_thread=False,
            )
            self._file = file
        (version,) = self._db.execute("PRAGMA data_version").fetchone()  # differs once another connection has written
        if version == self._version:
            return None
        found = _read(self._db) if _is_ours(self._db, self.path) else ()
        self._version = version
        return found


def _is_ours(db: sqlite3.Connection, path: pathlib.Path) -> bool:
    """Whether it has our tables; False for an empty one. Raises StoreError for another program's, or a newer cortex's."""
    # In one statement, which sees one moment: another command may be making the tables just now.
    (application, version, tables) = db.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_application_id, pragma_user_version"
    ).fetchone()
    if application != APPLICATION and tables:
        raise StoreError(f"{path} is the database of another program: let [auth] state name another file")
    if version > VERSION:
        raise StoreError(f"{path} was written by a newer cortex (version {version}; this one knows {VERSION})")
    return bool(tables)


def _read(db: sqlite3.Connection) -> tuple[Key, ...]:
    return tuple(_key(row) for row in db.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created, id"))  # noqa: S608


def _key(row: tuple[object, ...]) -> Key:
    identity, name, digest, scopes, models, requests, tokens, concurrent, created, expires, revoked = row
    return Key(
        id=str(identity),
        name=str(name),
        digest=bytes(digest),  # type: ignore[call-overload]  # a BLOB
        scopes=frozenset(json.loads(str(scopes))),
        models=None if models is None else tuple(json.loads(str(models))),
        limits=Limits(requests_per_minute=requests, tokens_per_minute=tokens, max_concurrent=concurrent),  # type: ignore[arg-type]
        created=created,  # type: ignore[arg-type]
        expires=expires,  # type: ignore[arg-type]
        revoked=revoked,  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, and one writer at a time."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    """What goes wrong, with the file and the way out."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: the keys cannot be kept there: {error.filename}: {error.strerror}") from error
    except sqlite3.OperationalError as error:
        raise StoreError(
            f"{path}: the keys cannot be reached: {error}; it and its folder must be this user's ([auth] state moves it)"
        ) from error
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        raise StoreError(
            f"{path}: the keys cannot be read: {error}; put a copy from before in its place, or move it away and make new keys"
        ) from error


def _is_locked(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
    )


def _make_file(path: pathlib.Path) -> None:
    """An empty file that only its owner reads: root makes it for whom the folder belongs to. SQLite's other files follow it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            if os.geteuid() == 0:
                folder = path.parent.stat()
                with contextlib.suppress(OSError):  # an owner that this container has no number for
                    os.fchown(made, folder.st_uid, folder.st_gid)
        finally:
            os.close(made)


def _identity(path: pathlib.Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
