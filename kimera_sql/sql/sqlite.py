# Generated from kimera_sql/aio/sql/sqlite.py by .ci/twins.py: change that one.
"""Run statements on SQLite, the development database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal

from ..checks import item_fault
from ..errors import InvalidValue
from ..sql.arrow import Batch
from ..sql.files import Statement
from ..sql.rows import STREAM_ENDED, Row, to_sqlite
from ..twins import each

_CHUNK: Final = 1000
"""Rows that are held in memory at once."""

_LEGACY: Final = -1
"""sqlite3.LEGACY_TRANSACTION_CONTROL, new in Python 3.12 as the attribute autocommit is."""


def _control(conn: sqlite3.Connection) -> int:
    """Return how *conn* controls transactions: autocommit is True or False, or _LEGACY and isolation_level decides."""
    # sqlite3 keeps a connection of sqlite3's, and has no autocommit of its own.
    return int(getattr(getattr(conn, "_conn", conn), "autocommit", _LEGACY))


def _autocommit(conn: sqlite3.Connection) -> bool:
    """Return whether a statement outside a transaction is a transaction of its own on *conn*."""
    control = _control(conn)
    return conn.isolation_level is None if control == _LEGACY else bool(control)


def _run(conn: sqlite3.Connection, statement: Statement, parameters: Mapping[str, Any]) -> sqlite3.Cursor:
    statement.check(parameters)
    cursor = conn.cursor()
    cursor.row_factory = None  # the caller's connection may have another
    return cursor.execute(statement.text, {name: to_sqlite(value) for name, value in parameters.items()})


def fetchall(conn: sqlite3.Connection, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]:
    """Run *statement* and return its rows."""
    cursor = _run(conn, statement, parameters)
    return list(map(tuple, cursor.fetchall()))


def execute(conn: sqlite3.Connection, statement: Statement, parameters: Mapping[str, Any]) -> int:
    """Run *statement* and return the number of rows it changed."""
    cursor = _run(conn, statement, parameters)
    return cursor.rowcount


def script(conn: sqlite3.Connection, text: str) -> None:
    """Run the statements of *text*, which has no parameters, in the open transaction."""
    # executescript would commit the transaction.
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            conn.execute(statement)
            statement = ""


def stream(conn: sqlite3.Connection, statement: Statement, parameters: Mapping[str, Any], chunk: int) -> Iterator[Row]:
    """Yield the rows of *statement*, *chunk* of them fetched at a time."""
    cursor = _run(conn, statement, parameters)
    inside, autocommit, changes = conn.in_transaction, _autocommit(conn), conn.total_changes
    try:
        while rows := cursor.fetchmany(chunk):
            for row in rows:
                yield tuple(row)
                # SQLite would go on, PostgreSQL cannot. A transaction that began and ended meanwhile has left changes.
                if not conn.in_transaction and (inside or (not autocommit and conn.total_changes != changes)):
                    raise InvalidValue(STREAM_ENDED)
    finally:
        cursor.close()


def copy(conn: sqlite3.Connection, statement: Statement, rows: Iterable[Mapping[str, Any]]) -> int:
    """Run *statement* for each of *rows*, all or none, and return how many there were.

    An error of the driver has a note with the row's number, counted from 0.
    """
    sent = number = 0

    def counted(chunk: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        nonlocal sent
        for row in chunk:
            sent += 1
            yield row

    def send(chunk: list[dict[str, Any]]) -> None:
        try:
            conn.executemany(statement.text, counted(chunk))
        except (sqlite3.Error, OverflowError) as error:  # the second for an integer that is none of SQLite's
            if sent:
                error.add_note(f"item {sent - 1} (counted from 0) was refused; nothing was written")
            raise

    chunk: list[dict[str, Any]] = []
    with atomic(conn):
        for row in rows:
            try:
                chunk.append({name: to_sqlite(value) for name, value in row.items()})
            except Exception as error:
                raise item_fault(number, error) from error
            number += 1
            if len(chunk) == _CHUNK:
                send(chunk)
                chunk.clear()
        send(chunk)
    return number


def copy_batches(conn: sqlite3.Connection, statement: Statement, batches: Iterable[Batch]) -> int:
    """Run *statement* for each row of *batches* as copy does."""
    return copy(conn, statement, each(row for batch in batches for row in batch.rows()))


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """Give the block a consistent view of the database, unaffected by concurrent writes; see sql.snapshot."""
    if not _control(conn):
        # A transaction is open at all times, and is such a view.
        yield
        return
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")


@contextmanager
def atomic(conn: sqlite3.Connection) -> Iterator[None]:
    """Make the block atomic without ending the caller's transaction; see sql.atomic."""
    if _autocommit(conn):
        with transaction(conn):
            yield
    else:
        if not conn.in_transaction:
            conn.execute("BEGIN IMMEDIATE")
        with _savepoint(conn):
            yield


def end(conn: sqlite3.Connection, how: Literal["COMMIT", "ROLLBACK"]) -> None:
    """End the open transaction, if there is one. In autocommit, conn.commit() and conn.rollback() may not do it."""
    if not _autocommit(conn):
        (conn.commit() if how == "COMMIT" else conn.rollback())
    elif conn.in_transaction:
        conn.execute(how)


@contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[None]:
    """Run the block in a transaction, or in a savepoint inside the caller's; see sql.transaction."""
    if conn.in_transaction:
        with _savepoint(conn):
            yield
        return
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


@contextmanager
def _savepoint(conn: sqlite3.Connection) -> Iterator[None]:
    conn.execute("SAVEPOINT kimera")
    try:
        yield
    except BaseException:
        # After some errors, such as a full disk, SQLite itself rolls back the whole transaction.
        if conn.in_transaction:
            conn.execute("ROLLBACK TO kimera")
            conn.execute("RELEASE kimera")
        raise
    conn.execute("RELEASE kimera")
