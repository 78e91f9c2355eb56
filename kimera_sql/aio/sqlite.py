"""SQLite, the database for development, for asynchronous programs: opening a file, and a pool of connections to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiosqlite
from psycopg_pool import PoolClosed, PoolTimeout

from .. import sqlite
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

    `async with pool.connection() as conn` commits at the end, or rolls back on an exception. *size* connections at most
    are open at once, and a task waits *timeout* seconds for one.
    """

    def __init__(self, path: Path | str, *, size: int = 15, timeout: float = 30.0) -> None:
        self.path = sqlite.named(path)
        self._timeout = timeout
        self._size = size
        self._free = asyncio.BoundedSemaphore(size)
        self._idle: deque[Connection] = deque()
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
        if not self._idle and not self._closed:
            self._idle.append(await connect(self.path))

    async def close(self) -> None:
        """Close the idle connections; one that is in use is closed when it comes back."""
        self._closed = True
        while self._idle and os.getpid() == self._process:
            await self._idle.popleft().close()

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        """Lend a connection; raises PoolTimeout when none is free for *timeout* seconds, PoolClosed after close."""
        if self._closed:
            raise PoolClosed("the pool is closed")
        check_process(self._process)
        seconds = self._timeout if timeout is None else timeout
        try:
            await asyncio.wait_for(self._free.acquire(), seconds)
        except TimeoutError:
            raise PoolTimeout(
                f"couldn't get a connection after {seconds:.2f} sec; all {self._size} are in use"
            ) from None
        try:
            conn = self._idle.pop() if self._idle else await connect(self.path)
            try:
                yield conn
                await end(conn, "COMMIT")
            except sqlite3.OperationalError as error:
                sqlite.name_file(error, self.path)
                raise
            finally:
                # A cancelled task gives its connection back all the same, with nothing left open.
                await asyncio.shield(self._take_back(conn))
        finally:
            self._free.release()

    async def _take_back(self, conn: Connection) -> None:
        await end(conn, "ROLLBACK")  # what failed, or was cancelled, or could not be committed
        self._idle.append(conn)
        if self._closed:
            await self.close()
