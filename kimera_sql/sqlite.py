"""SQLite, the database for development: opening a file, and a pool of connections to it."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Final

from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from .errors import ConnectionFailed, SettingsError, UnsupportedByServer
from .replication import as_number
from .sql.functions import add_functions as add_functions
from .sql.sqlite import end
from .twins import check_process

OLDEST: Final = (3, 37)
"""The first SQLite that has STRICT tables."""

_BUSY_TIMEOUT: Final = 30.0
"""Seconds to wait for another writer, as long as a pool waits for a connection."""

_LOOK_AGAIN: Final = 0.1
"""Seconds after which a thread that waits for a connection looks for a free one by itself."""

# A row with its vector takes some 4.3 kB. At this size of page 7 of them fit; with the default of 4096 a vector
# spills over into pages of its own, and a search takes half as long again.
_PAGE_SIZE: Final = 32768

_IN_MEMORY: Final = ("", ":memory:")

_OF_THE_DISK: Final = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
)


def connect(path: Path | str) -> sqlite3.Connection:
    """Open *path*, made with mode 0600 if it is not there, ready for the entities' functions.

    Foreign keys are enforced, the journal is a WAL, and a transaction that writes takes its lock as it begins, so
    that writers wait for each other instead of failing. What cannot be written can still be read; where not even its
    folder can be written, as on a read-only device, nobody else may change it meanwhile. Raises ConnectionFailed.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise UnsupportedByServer(f"SQLite {sqlite3.sqlite_version} is too old; STRICT tables need 3.37")
    try:
        name, writable = (str(path), True) if str(path) in _IN_MEMORY else _prepare(Path(path))
        conn = sqlite3.connect(
            name, uri=not writable, timeout=_BUSY_TIMEOUT, isolation_level="IMMEDIATE", check_same_thread=False
        )
        try:
            if writable:
                conn.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
                conn.execute("PRAGMA journal_mode = WAL")
            else:
                conn.execute("PRAGMA schema_version")  # looks into it, so that what is wrong is known now
            conn.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            conn.close()
            raise
    except (sqlite3.Error, OSError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise ConnectionFailed(f"SQLite ({path}): {cause}") from error
    add_functions(conn)
    return conn


def _prepare(path: Path) -> tuple[str, bool]:
    """Make the file *path* if it is not there. Return how SQLite is to call it, and whether it can be written."""
    path = Path(os.path.realpath(path))
    # SQLite would make it, and its -wal and -shm with it, as the umask has it. One that is there must not be opened:
    # closing it would undo the locks that SQLite has on it in this process.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    open_folder = os.access(path.parent, os.W_OK)
    if open_folder and os.access(path, os.W_OK):
        return str(path), True
    # Without a -wal, SQLite has to be told that nobody makes one; with it, told so it would pass over what is in it.
    closed = not open_folder and not path.with_name(f"{path.name}-wal").exists()
    return f"{path.as_uri()}?mode=ro{'&immutable=1' if closed else ''}", False


def name_file(error: sqlite3.OperationalError, path: Path) -> None:
    """Give *error* a note with *path* if it is about the disk that the SQLite file is on."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_DISK:
        error.add_note(f"of the SQLite file {path.absolute()}")


def named(path: Path | str) -> Path:
    """Return *path*, of a file that several connections can open. Raises SettingsError for a database in memory."""
    if str(path) in _IN_MEMORY or str(path).startswith("file:"):
        raise SettingsError(
            f"{str(path)!r}: each connection of a pool would have a database of its own; name a file, or use one "
            "connection (kimera_sql.sqlite.connect)"
        )
    return Path(path)


class _Place:
    """The right to one of a pool's connections, for as long as it exists."""


class SqlitePool:
    """Connections to one SQLite file, with the contract of psycopg's pool.

    `with pool.connection() as conn` commits at the end, or rolls back on an exception. Every block has a connection of
    its own, so what a borrower makes of it ends with it. Any number of threads may use the pool; *size* connections at
    most are open at once, and a thread waits *timeout* seconds for one, *max_waiting* threads at most if it is not 0.
    """

    def __init__(self, path: Path | str, *, size: int = 15, timeout: float = 30.0, max_waiting: int = 0) -> None:
        self.path = named(path)
        self._timeout = timeout
        self._size = size
        self._max_waiting = max_waiting
        self._waiting: set[object] = set()
        # Whoever is interrupted may never come to give a place back. That it is gone is noticed here all the same, by
        # what is written in C, which no interrupt reaches.
        self._taken: set[weakref.ref[_Place]] = set()
        self._dropped: deque[weakref.ref[_Place]] = deque()
        self._given_back: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        # Fails here, and not at the first use, when there can be no such file. While it is open, no other is the last
        # one, which would have to empty the journal as it is closed.
        self._first = connect(self.path)

    def __repr__(self) -> str:
        return f"SqlitePool({str(self.path)!r})"

    def __enter__(self) -> SqlitePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Do nothing: the pool is open as soon as it is made, as psycopg's pool is."""

    def close(self) -> None:
        """Lend no more connections; one that is in use is closed when it comes back."""
        self._closed = True
        if os.getpid() == self._process:
            self._first.close()

    @contextmanager
    def connection(
        self, timeout: float | None = None, *, read_only: bool = False, after: str | None = None
    ) -> Iterator[sqlite3.Connection]:
        """Lend a connection, one that takes no writes if *read_only*. *after* is for servers with replicas.

        Raises InvalidValue for an *after* that no lsn() gave, PoolTimeout when none is free for *timeout* seconds,
        TooManyRequests when too many wait for one, and PoolClosed after close.
        """
        if after is not None:
            as_number(after)
        if self._closed:
            raise PoolClosed("the pool is closed")
        check_process(self._process)
        place = self._take(self._timeout if timeout is None else timeout)
        try:
            with closing(connect(self.path)) as conn:
                if read_only:
                    conn.execute("PRAGMA query_only = ON")
                yield conn
                end(conn, "COMMIT")
        except sqlite3.OperationalError as error:
            name_file(error, self.path)
            raise
        finally:
            self._taken.discard(weakref.ref(place))
            if self._waiting:
                self._given_back.put(None)

    def lsn(self) -> str:
        """Return a place that every connection has reached. See Pool.lsn."""
        return "0/0"

    def _take(self, seconds: float) -> _Place:
        """Wait for a place, *seconds* at most."""
        deadline = monotonic() + seconds
        one = object()
        try:
            while (place := self._free_place()) is None:
                if self._max_waiting and len(self._waiting - {one}) >= self._max_waiting:
                    raise TooManyRequests(f"{self._max_waiting} wait for a connection already")
                self._waiting.add(one)
                if (left := deadline - monotonic()) <= 0:
                    raise PoolTimeout(f"couldn't get a connection after {seconds:.2f} sec; all {self._size} are in use")
                # Nobody says so when a place was dropped.
                with suppress(Empty):
                    self._given_back.get(timeout=min(left, _LOOK_AGAIN))
            return place
        finally:
            self._waiting.discard(one)

    def _free_place(self) -> _Place | None:
        with self._lock:
            while self._dropped:
                self._taken.discard(self._dropped.pop())
            if len(self._taken) == self._size:
                return None
            place = _Place()
            self._taken.add(weakref.ref(place, self._dropped.append))
            return place
