"""Running a transaction again that failed through no fault of its own."""

from __future__ import annotations

import random
import sqlite3
from typing import Any, Final, Protocol, TypeVar

import psycopg

from .. import checks
from ..sql.waits import was_lost
from ..twins import apause
from .pools import AsyncPool
from .sql import Connection, is_postgres
from .sqlite import SqlitePool

T_co = TypeVar("T_co", covariant=True)

_FIRST_PAUSE: Final = 0.05
"""The most seconds before the second attempt; each further pause can be twice as long."""

_LONGEST_PAUSE: Final = 2.0


class Work(Protocol[T_co]):
    """What a transaction does on a connection."""

    async def __call__(self, conn: Any, /) -> T_co: ...


async def retry(
    pool: AsyncPool | SqlitePool,
    work: Work[T_co],
    *,
    attempts: int = 5,
    read_only: bool = False,
    after: str | None = None,
) -> T_co:
    """Run `work(conn)` in a transaction on a connection of *pool*, commit, and return what it gave.

    It is run again, up to *attempts* times in all and after a random pause of up to two seconds each time, when the
    transaction meets a serialization failure, a deadlock or a busy SQLite file, or when its connection is lost before
    COMMIT is sent. So *work* must do nothing that a rollback does not undo, and not commit. The last error passes
    through, with a note. *read_only* and *after* say what the pool is to lend: a standby cancels a query that is in the
    way of its replay, which counts as a serialization failure.

    CommitUnknown is never a reason to run it again, nor is a connection that is lost while it is in autocommit. Raises
    InvalidValue for *attempts* that are no number from 1 up.
    """
    checks.integer("attempts", attempts, least=1)
    attempt = 0
    while True:
        attempt += 1
        conn: Connection | None = None
        try:
            lending = pool.connection(read_only=True, after=after) if read_only else pool.connection()
            async with lending as conn:
                return await work(conn)
        except Exception as error:
            if not (_is_passing(error) or (conn is not None and _lost_uncommitted(conn, error))):
                raise
            if attempt == attempts:
                error.add_note(f"given up after {attempts} attempts")
                raise
        await apause(random.uniform(0, min(_FIRST_PAUSE * 2 ** (attempt - 1), _LONGEST_PAUSE)))  # noqa: S311


def _is_passing(error: Exception) -> bool:
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return isinstance(error, (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected))


def _lost_uncommitted(conn: Connection, error: Exception) -> bool:
    return is_postgres(conn) and not conn.autocommit and was_lost(conn, error)
