"""Run named queries on a connection to either database. Only this module decides which driver to use."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol, TypeAlias, TypeGuard, TypeVar, overload

import aiosqlite
import psycopg

from ...errors import QueryError, UnsupportedByServer
from ...sql.arrow import Batch
from ...sql.files import Dialect, Statement, statements
from ...sql.rows import Row, decode, mapper, noted_mapper
from ...twins import aeach
from . import bounds, postgres, sqlite

Connection: TypeAlias = psycopg.AsyncConnection[Any] | aiosqlite.Connection
R = TypeVar("R")
T = TypeVar("T")


class Driver(Protocol):
    """The functions that the modules postgres and sqlite both have: each runs statements on its own connections."""

    async def fetchall(self, conn: Any, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]: ...
    async def execute(self, conn: Any, statement: Statement, parameters: Mapping[str, Any]) -> int: ...
    def stream(
        self, conn: Any, statement: Statement, parameters: Mapping[str, Any], chunk: int
    ) -> AsyncIterator[Row]: ...
    async def copy(self, conn: Any, statement: Statement, rows: AsyncIterable[Mapping[str, Any]]) -> int: ...
    async def copy_batches(self, conn: Any, statement: Statement, batches: Iterable[Batch]) -> int: ...
    async def script(self, conn: Any, text: str) -> None: ...
    def atomic(self, conn: Any) -> AbstractAsyncContextManager[None]: ...
    def transaction(self, conn: Any) -> AbstractAsyncContextManager[None]: ...
    def snapshot(self, conn: Any) -> AbstractAsyncContextManager[None]: ...


_DRIVERS: Final[Mapping[Dialect, Driver]] = {"postgres": postgres, "sqlite": sqlite}


def is_postgres(conn: Connection) -> TypeGuard[psycopg.AsyncConnection[Any]]:
    """Return whether *conn* is a connection to PostgreSQL."""
    return isinstance(conn, psycopg.AsyncConnection)


def is_sqlite(conn: Connection) -> TypeGuard[aiosqlite.Connection]:
    """Return whether *conn* is a connection to SQLite."""
    return isinstance(conn, aiosqlite.Connection)


def require_postgres(conn: Connection, why: str) -> psycopg.AsyncConnection[Any]:
    """Return *conn* if it is a connection to PostgreSQL. Raises UnsupportedByServer, with *why* as message, if not."""
    if not is_postgres(conn):
        raise UnsupportedByServer(why)
    return conn


def dialect(conn: Connection) -> Dialect:
    """Return the dialect of *conn*, postgres or sqlite, which names its folder of queries. Raises TypeError."""
    if is_postgres(conn):
        return "postgres"
    if is_sqlite(conn):
        return "sqlite"
    raise TypeError(f"expected a psycopg.AsyncConnection or aiosqlite.Connection, got {type(conn).__name__}")


def _driver(conn: Connection) -> Driver:
    return _DRIVERS[dialect(conn)]


async def noted(items: AsyncIterable[T] | Iterable[T]) -> AsyncIterator[T]:
    """Yield each of *items*. An error of theirs gets a note of the item that it came in place of, unless it says so."""
    number = 0
    try:
        async for item in aeach(items):
            yield item
            number += 1
    except Exception as error:
        if f"item {number}" not in str(error):
            error.add_note(f"it came in place of item {number} (counted from 0); nothing was written")
        raise


class Queries:
    """The named queries of one entity: `Queries("geoids").find_by_id.fetchone(conn, Geoid, id=...)`.

    They are kimera_sql's own, or those of *folder* with the dataclasses of the module *records*.
    """

    def __init__(self, entity: str, folder: Path | None = None, records: ModuleType | None = None) -> None:
        self.entity = entity
        self._folder = folder
        self._records = records

    def __getattr__(self, name: str) -> Query:
        query = self.__dict__[name] = Query(self.entity, name, self._folder, self._records)
        return query


@dataclass(frozen=True, slots=True)
class Query:
    """One named query. Its methods take a connection, then the query's parameters by name.

    They raise QueryError for a parameter that is missing, or that the query does not declare.
    """

    entity: str
    name: str
    folder: Path | None = None
    records: ModuleType | None = None

    def statement(self, conn: Connection) -> Statement:
        """Return the statement in *conn*'s dialect. Raises QueryError if the file has no query of this name."""
        spoken = dialect(conn)
        try:
            return statements(spoken, self.entity, self.folder)[self.name]
        except KeyError:
            raise QueryError(f"{self.entity}.sql ({spoken}) has no query {self.name}") from None

    async def __call__(self, conn: Connection, /, **parameters: Any) -> Any:
        """Run the query and return its result in the form that its suffix and its note `returns` define; see load."""
        statement = self.statement(conn)
        if statement.suffix == "!":
            return await self.execute(conn, **parameters)
        if statement.suffix == "#":
            raise QueryError(f"{statement.name} is a COPY: call its method copy(conn, rows)")
        make = noted_mapper(dialect(conn), self.entity, self.name, self.folder, self.records)
        rows = await _driver(conn).fetchall(conn, statement, parameters)
        if not statement.suffix:
            return [make(row) for row in rows]
        return make(rows[0]) if rows else None

    @overload
    async def fetchall(self, conn: Connection, /, **parameters: Any) -> list[Row]: ...
    @overload
    async def fetchall(self, conn: Connection, record: type[R], /, **parameters: Any) -> list[R]: ...
    async def fetchall(
        self, conn: Connection, record: type[R] | None = None, /, **parameters: Any
    ) -> list[R] | list[Row]:
        """Run the query and return all rows: tuples, or *record*, a dataclass whose fields are the columns in order."""
        rows = await _driver(conn).fetchall(conn, self.statement(conn), parameters)
        return rows if record is None else list(map(mapper(dialect(conn), record), rows))

    @overload
    async def fetchone(self, conn: Connection, /, **parameters: Any) -> Row | None: ...
    @overload
    async def fetchone(self, conn: Connection, record: type[R], /, **parameters: Any) -> R | None: ...
    async def fetchone(self, conn: Connection, record: type[R] | None = None, /, **parameters: Any) -> R | Row | None:
        """Run the query and return its first row, in the form of fetchall, or None if there is no row."""
        rows = await _driver(conn).fetchall(conn, self.statement(conn), parameters)
        if not rows:
            return None
        return rows[0] if record is None else mapper(dialect(conn), record)(rows[0])

    async def fetchval(self, conn: Connection, kind: type[R], /, **parameters: Any) -> R | None:
        """Run the query and return the first column of its first row as a *kind*; None for no row and for NULL."""
        row = await self.fetchone(conn, **parameters)
        if row is None or row[0] is None:
            return None
        return decode(dialect(conn), kind, row[0])

    async def execute(self, conn: Connection, /, **parameters: Any) -> int:
        """Run the query and return the number of rows it changed."""
        return await _driver(conn).execute(conn, self.statement(conn), parameters)

    def stream(self, conn: Connection, /, *, chunk: int = 1000, **parameters: Any) -> AsyncIterator[Row]:
        """Yield the query's rows, fetched *chunk* at a time.

        They are those that there were when it began; on SQLite only if no index puts them in order (ORDER BY +column).
        Raises InvalidValue if the transaction is committed or rolled back before the last row.
        """
        return _driver(conn).stream(conn, self.statement(conn), parameters, chunk)

    async def copy(self, conn: Connection, rows: AsyncIterable[Mapping[str, Any]]) -> int:
        """Write *rows*, all or none, with a COPY or an INSERT of one row, and return how many there were.

        A COPY takes the values of a row in the order of its columns. A row that is at fault here raises InvalidValue
        with its number, counted from 0; an error of *rows* itself or of the driver has a note of the number.
        """
        given = rows if self.folder is None else noted(rows)  # entities note theirs, by the items that they are made of
        return await _driver(conn).copy(conn, self.statement(conn), given)

    async def copy_batches(self, conn: Connection, batches: Iterable[Batch]) -> int:
        """Write the rows of *batches*, which are Arrow's, as copy does."""
        return await _driver(conn).copy_batches(conn, self.statement(conn), batches)


def atomic(conn: Connection) -> AbstractAsyncContextManager[None]:
    """Make the block atomic without ending the caller's transaction; if none is open, it begins one.

    On an autocommit connection outside a transaction, the block is a transaction of its own.
    """
    return _driver(conn).atomic(conn)


def transaction(conn: Connection) -> AbstractAsyncContextManager[None]:
    """Run the block in a transaction that is committed at its end, or in a savepoint if the caller has one open."""
    return _driver(conn).transaction(conn)


def snapshot(conn: Connection) -> AbstractAsyncContextManager[None]:
    """Give the block a consistent view of the database. *conn* must be outside a transaction, and write nothing.

    With SQLite's autocommit=False a transaction is always open: the view is then that transaction's.
    """
    return _driver(conn).snapshot(conn)


def without_timeouts(conn: Connection, lock_timeout: float | None = None) -> AbstractAsyncContextManager[None]:
    """Let the block take as long as it needs, whatever the role, the database and the session allow a statement.

    It waits *lock_timeout* seconds for each lock of PostgreSQL's, 0 for any number; None leaves that to the session. In
    autocommit the session's settings are changed for the block, otherwise the transaction's, which is begun if need be.
    """
    return bounds.without_timeouts(conn, lock_timeout) if is_postgres(conn) else nullcontext()


async def script(conn: Connection, text: str) -> None:
    """Run the statements of *text*, which has no parameters."""
    await _driver(conn).script(conn, text)
