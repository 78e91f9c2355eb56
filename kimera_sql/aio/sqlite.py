"""SQLite, the database for development, for asynchronous programs: opening a file, and a pool of connections to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from .. import sqlite
from ..replication import as_number
from ..twins import check_process
from .sql.sqlite import end


class Connection(aiosqlite.Connection):
    """A connection that connect has opened, in a thread of its own."""


async def connect(path: Path | str) -> Connection:
    """Open *path* as kimera_sql.sqlite.connect does. Raises ConnectionFailed."""
    conn = Connection(lambda: sqlite.connect(path), iter_chunk_size=64)
    # A thread that nobody has ended would keep the program from ending.
    conn._thread.daemon = True
    await conn
    return conn


async def add_functions(conn: aiosqlite.Connection) -> None:
    """Do nothing: connect has registered the SQL functions. Raises TypeError for a connection of another origin."""
    if not isinstance(conn, Connection):
        raise TypeError("expected a connection of kimera_sql.aio.sqlite.connect, which registers the SQL functions")


class SqlitePool:
    """Connections to one SQLite file, with the contract of psycopg's AsyncConnectionPool.

    `async with pool.connection() as conn` commits at the end, or rolls back on an exception. Every block has a
    connection of its own, so what a borrower makes of it ends with it. *size* connections at most are open at once, and
    a task waits *timeout* seconds for one, *max_waiting* tasks at most if it is not 0.
    """

    def __init__(self, path: Path | str, *, size: int = 15, timeout: float = 30.0, max_waiting: int = 0) -> None:
        self.path = sqlite.named(path)
        self._timeout = timeout
        self._size = size
        self._max_waiting = max_waiting
        self._waiting = 0
        self._free = asyncio.BoundedSemaphore(size)
        self._first: Connection | None = None
        self._closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"SqlitePool({str(self.path)!r})"

    async def __aenter__(self) -> SqlitePool:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Open a first connection, so that what is wrong with the file is known now. Raises ConnectionFailed."""
        # While it is open, no other is the last one, which would have to empty the journal as it is closed.
        if self._first is None and not self._closed:
            self._first = await connect(self.path)

    async def close(self) -> None:
        """Lend no more connections; one that is in use is closed when it comes back."""
        self._closed = True
        if self._first is not None and os.getpid() == self._process:
            await self._first.close()

    @asynccontextmanager
    async def connection(
        self, timeout: float | None = None, *, read_only: bool = False, after: str | None = None
    ) -> AsyncIterator[Connection]:
        """Lend a connection, one that takes no writes if *read_only*. *after* is for servers with replicas.

        Raises InvalidValue for an *after* that no lsn() gave, PoolTimeout when none is free for *timeout* seconds,
        TooManyRequests when too many wait for one, and PoolClosed after close.
        """
        if after is not None:
            as_number(after)
        if self._closed:
            raise PoolClosed("the pool is closed")
        check_process(self._process)
        await self._take(self._timeout if timeout is None else timeout)
        try:
            conn = await connect(self.path)
            try:
                if read_only:
                    await conn.execute("PRAGMA query_only = ON")
                yield conn
                await end(conn, "COMMIT")
            except sqlite3.OperationalError as error:
                sqlite.name_file(error, self.path)
                raise
            finally:
                # A cancelled task gives its connection back all the same, with nothing left open.
                await asyncio.shield(conn.close())
        finally:
            self._free.release()

    async def lsn(self) -> str:
        """Return a place that every connection has reached. See AsyncPool.lsn."""
        return "0/0"

    async def _take(self, seconds: float) -> None:
        if not self._free.locked():
            await self._free.acquire()  # at once
            return
        if self._max_waiting and self._waiting >= self._max_waiting:
            raise TooManyRequests(f"{self._waiting} wait for a connection already")
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError:
            raise PoolTimeout(
                f"couldn't get a connection after {seconds:.2f} sec; all {self._size} are in use"
            ) from None
        finally:
            self._waiting -= 1
