"""The answers that are kept, in SQLite: for a time, up to a size, each for the key that asked. Knows no dialect and no route.

The database is made when the first answer is kept. One thread has it: a disk may take its time, and the event loop may not.
"""

import asyncio
import contextlib
import functools
import logging
import os
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from attrs import define, field, frozen

from cortex_gateway.dialects.dialect import Kept
from cortex_gateway.errors import AnswersUnusable

log = logging.getLogger(__name__)
APPLICATION = 0x43545841  # "CTXA": tells our database from another program's
VERSION = 1
BUSY_SECS = 10.0
LONGEST_CHAIN = 4096
_SCHEMA = (
    """CREATE TABLE answers (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, previous TEXT, input BLOB NOT NULL, answer BLOB NOT NULL,
        size INTEGER NOT NULL, used REAL NOT NULL, running INTEGER NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX by_use ON answers (used)",
    "CREATE INDEX by_owner ON answers (owner, used, size)",
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {VERSION}",
)
P = ParamSpec("P")
R = TypeVar("R")


@frozen(kw_only=True)
class Bounds:
    """How long and how much is kept: seconds since an answer was last used, and bytes of all together."""

    keep_secs: float
    max_bytes: int


@define
class AnswerStore:
    """The database itself. Every call may wait for the disk, and raises AnswersUnusable.

    `path` None: in memory. `now` gives seconds since 1970.
    """

    path: pathlib.Path | None
    bounds: Bounds
    now: Callable[[], float] = time.time
    _db: sqlite3.Connection | None = field(default=None, init=False, repr=False)
    _size: int = field(default=0, init=False)

    def keep(self, owner: str, kept: Kept, *, running: bool) -> None:
        """Add it or replace it; what is too old or too much is forgotten. `running`: it is to be replaced once more."""
        with self._transaction(make=True) as db:
            assert db is not None
            self._put(db, owner, kept, running=running)

    def change(self, owner: str, identity: str, make: Callable[[Kept], Kept]) -> Kept | None:
        """One of this owner's, made anew in one go; None where there is none. Where `make` raises nothing has changed."""
        with self._transaction() as db:
            found = None if db is None else self._find(db, owner, identity)
            if db is None or found is None:
                return None
            changed = make(found)
            self._put(db, owner, changed, running=False)
            return changed

    def get(self, owner: str, identity: str) -> Kept | None:
        """One of this owner's."""
        with self._transaction() as db:
            return None if db is None else self._find(db, owner, identity)

    def chain(self, owner: str, identity: str) -> tuple[Kept, ...] | None:
        """It and those before it, the oldest first; None where one is missing. All of them count as used now."""
        found: list[Kept] = []
        with self._transaction() as db:
            wanted: str | None = identity
            while wanted is not None:
                kept = self._find(db, owner, wanted) if db and len(found) < LONGEST_CHAIN else None
                if kept is None:
                    return None
                found.append(kept)
                wanted = kept.previous
            if db:
                db.executemany("UPDATE answers SET used = ? WHERE id = ?", [(self.now(), one.id) for one in found])
        return tuple(reversed(found))

    def forget(self, owner: str, identity: str) -> bool:
        """Whether it was there."""
        with self._transaction() as db:
            return db is not None and self._drop(db, "owner = ? AND id = ?", owner, identity) > 0

    def close(self) -> None:
        if self._db:
            self._db.close()
        self._db = None

    def _put(self, db: sqlite3.Connection, owner: str, kept: Kept, *, running: bool) -> None:
        size = len(kept.input) + len(kept.answer)
        if size > self.bounds.max_bytes:
            raise AnswersUnusable(f"it has {size} bytes, and all together may have {self.bounds.max_bytes}")
        row = (kept.id, owner, kept.previous, kept.input, kept.answer, size, self.now(), running)
        self._drop(db, "id = ?", kept.id)
        self._drop(db, "used < ?", self.now() - self.bounds.keep_secs)
        db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._size += size
        while self._size > self.bounds.max_bytes and self._drop_one(db):
            pass

    def _find(self, db: sqlite3.Connection, owner: str, identity: str) -> Kept | None:
        row = db.execute(
            "SELECT id, previous, input, answer FROM answers WHERE id = ? AND owner = ? AND used >= ?",
            (identity, owner, self.now() - self.bounds.keep_secs),
        ).fetchone()
        return None if row is None else Kept(*row)

    def _drop(self, db: sqlite3.Connection, where: str, *values: object) -> int:
        sizes = db.execute(f"DELETE FROM answers WHERE {where} RETURNING size", values).fetchall()  # noqa: S608
        self._size -= sum(size for (size,) in sizes)
        return len(sizes)

    def _drop_one(self, db: sqlite3.Connection) -> bool:
        """The one that was not used for longest, of the owner who has most: nobody pushes out what others have."""
        most = db.execute("SELECT owner FROM answers GROUP BY owner ORDER BY sum(size) DESC LIMIT 1").fetchone()
        if most is None:
            return False
        oldest = "id = (SELECT id FROM answers WHERE owner = ? ORDER BY used LIMIT 1)"
        return self._drop(db, oldest, most[0]) > 0

    @contextlib.contextmanager
    def _transaction(self, *, make: bool = False) -> Iterator[sqlite3.Connection | None]:
        """All or nothing. Without `make` there is None where there is no database yet."""
        with self._told():
            db = self._opened(make=make)
            if db is None:
                yield None
                return
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                self._size = _size(db)
                raise
            db.execute("COMMIT")

    def _opened(self, *, make: bool) -> sqlite3.Connection | None:
        if self._db is not None:
            return self._db
        if self.path is not None and not self.path.exists():
            if not make:
                return None
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        where = ":memory:" if self.path is None else self.path
        db = sqlite3.connect(where, timeout=BUSY_SECS, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the table where it is new. What ran when another gateway ended runs no more."""
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        application, version = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if tables and (application, version) != (APPLICATION, VERSION):
            raise AnswersUnusable(f"{self.path} is not a database of kept answers of this version; move it away")
        if not tables:
            for statement in _SCHEMA:
                db.execute(statement)
        db.execute("DELETE FROM answers WHERE running")
        self._size = _size(db)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise AnswersUnusable(f"{self.path}: answers cannot be kept there: {error}") from error


def _size(db: sqlite3.Connection) -> int:
    """Of all of them, in bytes."""
    return int(db.execute("SELECT coalesce(sum(size), 0) FROM answers").fetchone()[0])


@define
class Answers:
    """The same in an event loop, one call after the other in a thread of its own. Close it."""

    store: AnswerStore
    _closed: bool = field(default=False, init=False)
    _thread: ThreadPoolExecutor = field(
        factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="answers"), init=False, repr=False
    )

    async def keep(self, owner: str, kept: Kept, *, running: bool = False) -> None:
        """See `AnswerStore.keep`. Where that fails the log says so: the answer itself is as good."""
        try:
            await self._call(self.store.keep, owner, kept, running=running)
        except AnswersUnusable as error:
            log.error("answer %s is not kept: %s", kept.id, error)  # noqa: TRY400 -- a trace tells the operator nothing

    async def put(self, owner: str, kept: Kept) -> None:
        """As `keep`, for what is nothing where it is not kept: raises AnswersUnusable."""
        await self._call(self.store.keep, owner, kept, running=False)

    async def change(self, owner: str, identity: str, make: Callable[[Kept], Kept]) -> Kept | None:
        """See `AnswerStore.change`; `make` runs in the store's thread. Raises AnswersUnusable."""
        return await self._call(self.store.change, owner, identity, make)

    async def get(self, owner: str, identity: str) -> Kept | None:
        return await self._call(self.store.get, owner, identity)

    async def chain(self, owner: str, identity: str) -> tuple[Kept, ...] | None:
        return await self._call(self.store.chain, owner, identity)

    async def several(self, owner: str, identities: Iterable[str]) -> tuple[Kept, ...]:
        """Those that are there."""
        found = [await self.get(owner, identity) for identity in sorted(identities)]
        return tuple(kept for kept in found if kept is not None)

    async def forget(self, owner: str, identity: str) -> bool:
        return await self._call(self.store.forget, owner, identity)

    async def close(self) -> None:
        """After what is under way."""
        last = self._call(self.store.close)
        self._closed = True
        await last
        self._thread.shutdown()

    def _call(self, work: Callable[P, R], *values: P.args, **named: P.kwargs) -> "asyncio.Future[R]":
        if self._closed:
            raise AnswersUnusable("the gateway has closed the database of answers")
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._thread, functools.partial(work, *values, **named))
