"""Running named queries on a connection, whichever database it is to. This is the one place that asks which."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol, TypeAlias, TypeGuard, TypeVar, overload

import psycopg

from ..errors import QueryError, UnsupportedByServer
from . import postgres, sqlite
from .files import Dialect, Statement, statements
from .rows import Row, decode, mapper, noted_mapper

Connection: TypeAlias = psycopg.Connection[Any] | sqlite3.Connection
R = TypeVar("R")


class Driver(Protocol):
    """What the modules postgres and sqlite offer: running a statement on a connection of theirs."""

    def fetchall(self, conn: Any, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]: ...
    def execute(self, conn: Any, statement: Statement, parameters: Mapping[str, Any]) -> int: ...
    def stream(self, conn: Any, statement: Statement, parameters: Mapping[str, Any], chunk: int) -> Iterator[Row]: ...
    def copy(self, conn: Any, statement: Statement, rows: Iterable[Mapping[str, Any]]) -> int: ...
    def script(self, conn: Any, text: str) -> None: ...
    def atomic(self, conn: Any) -> AbstractContextManager[None]: ...
    def transaction(self, conn: Any) -> AbstractContextManager[None]: ...
    def snapshot(self, conn: Any) -> AbstractContextManager[None]: ...


_DRIVERS: Final[Mapping[Dialect, Driver]] = {"postgres": postgres, "sqlite": sqlite}


def is_postgres(conn: Connection) -> TypeGuard[psycopg.Connection[Any]]:
    """Whether *conn* is to PostgreSQL."""
    return isinstance(conn, psycopg.Connection)


def require_postgres(conn: Connection, why: str) -> psycopg.Connection[Any]:
    """Return *conn*, a connection to PostgreSQL. Raises UnsupportedByServer with *why* for any other."""
    if not is_postgres(conn):
        raise UnsupportedByServer(why)
    return conn


def dialect(conn: Connection) -> Dialect:
    """Return the name of the folder whose queries *conn* understands: postgres or sqlite."""
    if is_postgres(conn):
        return "postgres"
    if isinstance(conn, sqlite3.Connection):
        return "sqlite"
    raise TypeError(f"expected a psycopg.Connection or sqlite3.Connection, got {type(conn).__name__}")


def _driver(conn: Connection) -> Driver:
    return _DRIVERS[dialect(conn)]


class Queries:
    """The named queries of one entity: `Queries("geoids").find_by_id.fetchone(conn, Geoid, id=...)`.

    They are those that are shipped, or those of *folder* with the dataclasses of *records*.
    """

    def __init__(self, entity: str, folder: Path | None = None, records: ModuleType | None = None) -> None:
        self.entity = entity
        self._folder = folder
        self._records = records

    def __getattr__(self, name: str) -> Query:
        return Query(self.entity, name, self._folder, self._records)


@dataclass(frozen=True, slots=True)
class Query:
    """One named query. Its methods take a connection, then the query's parameters by name.

    They raise QueryError for a parameter that it does not declare, or that is missing.
    """

    entity: str
    name: str
    folder: Path | None = None
    records: ModuleType | None = None

    def statement(self, conn: Connection) -> Statement:
        """Return the statement in *conn*'s dialect. Raises QueryError when the file has none of this name."""
        spoken = dialect(conn)
        try:
            return statements(spoken, self.entity, self.folder)[self.name]
        except KeyError:
            raise QueryError(f"{self.entity}.sql ({spoken}) has no query {self.name}") from None

    def __call__(self, conn: Connection, /, **parameters: Any) -> Any:
        """Run it as its suffix says, and return what its note `returns` says; see load."""
        statement = self.statement(conn)
        if statement.suffix == "!":
            return self.execute(conn, **parameters)
        if statement.suffix == "#":
            raise QueryError(f"{statement.name} is a COPY: call its method copy(conn, rows)")
        make = noted_mapper(dialect(conn), self.entity, self.name, self.folder, self.records)
        rows = _driver(conn).fetchall(conn, statement, parameters)
        if not statement.suffix:
            return [make(row) for row in rows]
        return make(rows[0]) if rows else None

    @overload
    def fetchall(self, conn: Connection, /, **parameters: Any) -> list[Row]: ...
    @overload
    def fetchall(self, conn: Connection, record: type[R], /, **parameters: Any) -> list[R]: ...
    def fetchall(self, conn: Connection, record: type[R] | None = None, /, **parameters: Any) -> list[R] | list[Row]:
        """Run it and return all its rows, each as a *record*: a dataclass whose fields are the columns in order."""
        rows = _driver(conn).fetchall(conn, self.statement(conn), parameters)
        return rows if record is None else list(map(mapper(dialect(conn), record), rows))

    @overload
    def fetchone(self, conn: Connection, /, **parameters: Any) -> Row | None: ...
    @overload
    def fetchone(self, conn: Connection, record: type[R], /, **parameters: Any) -> R | None: ...
    def fetchone(self, conn: Connection, record: type[R] | None = None, /, **parameters: Any) -> R | Row | None:
        """Run it and return its first row, as fetchall does, None without one."""
        rows = _driver(conn).fetchall(conn, self.statement(conn), parameters)
        if not rows:
            return None
        return rows[0] if record is None else mapper(dialect(conn), record)(rows[0])

    def fetchval(self, conn: Connection, kind: type[R], /, **parameters: Any) -> R | None:
        """Run it and return the first column of its first row as a *kind*, None without a row or for NULL."""
        row = self.fetchone(conn, **parameters)
        if row is None or row[0] is None:
            return None
        return decode(dialect(conn), kind, row[0])

    def execute(self, conn: Connection, /, **parameters: Any) -> int:
        """Run it and return the number of rows it changed."""
        return _driver(conn).execute(conn, self.statement(conn), parameters)

    def stream(self, conn: Connection, /, *, chunk: int = 1000, **parameters: Any) -> Iterator[Row]:
        """Yield its rows, *chunk* of them fetched at a time."""
        return _driver(conn).stream(conn, self.statement(conn), parameters, chunk)

    def copy(self, conn: Connection, rows: Iterable[Mapping[str, Any]]) -> int:
        """Send *rows* through it, all or none, and return how many there were.

        Their values are in the order of its columns. A driver's error carries a note with the number of the row.
        """
        return _driver(conn).copy(conn, self.statement(conn), rows)


def atomic(conn: Connection) -> AbstractContextManager[None]:
    """Make the block all or nothing without ending the caller's transaction, which it begins where none is open.

    On an autocommit connection outside a transaction the block is a transaction of its own.
    """
    return _driver(conn).atomic(conn)


def transaction(conn: Connection) -> AbstractContextManager[None]:
    """Make the block a transaction that is committed at its end, or a savepoint where the caller has one open."""
    return _driver(conn).transaction(conn)


def snapshot(conn: Connection) -> AbstractContextManager[None]:
    """Let the block read the database as it is at its begin; *conn* is outside a transaction and writes nothing."""
    return _driver(conn).snapshot(conn)


def script(conn: Connection, text: str) -> None:
    """Run the statements of *text*, which has no parameters."""
    _driver(conn).script(conn, text)
