"""Run statements on PostgreSQL with psycopg."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ...errors import InvalidValue, UnsupportedByServer
from ...sql.files import Statement
from ...sql.rows import STREAM_ENDED, Row, to_postgres
from ...twins import ALock
from ...vectors import keep_loaders

Connection: TypeAlias = psycopg.AsyncConnection[Any]

_cursor_numbers = itertools.count(1)

_INSERTED_AT_ONCE: Final = 100
"""Rows that are held in memory and sent together where they can't be sent by COPY."""

_copying: ContextVar[frozenset[int]] = ContextVar("_copying", default=frozenset())
"""The connections, by id, whose COPY the code that runs now is giving rows to."""

_pipelines: WeakKeyDictionary[Connection, ALock] = WeakKeyDictionary()


def _check_free(conn: Connection, what: str) -> None:
    """Raise InvalidValue where *what* would wait for ever: for the end of a COPY that waits for it."""
    if id(conn) in _copying.get():
        raise InvalidValue(
            f"conn: it is sending items and can run {what} only once they are sent; take what the items are made from "
            "through another connection"
        )


def _bind(conn: Connection, statement: Statement, parameters: Mapping[str, Any]) -> dict[str, Any]:
    statement.check(parameters)
    _check_free(conn, statement.name)
    return {name: to_postgres(value) for name, value in parameters.items()}


async def run(
    conn: Connection, statement: Statement, parameters: Mapping[str, Any], *, generic_plan: bool = False
) -> psycopg.AsyncCursor[Row]:
    """Run *statement* and return a cursor with its rows. In a pipeline the rows are there once the pipeline ends.

    *generic_plan* allows a prepared statement although the statement is noted `plan: custom`: with these parameters one
    plan is good for every run.
    """
    # Not conn.execute: the caller's connection may have another row or cursor factory.
    cursor = psycopg.AsyncCursor(conn, row_factory=tuple_row)
    keep_loaders(cursor)
    return await cursor.execute(
        statement.text,
        _bind(conn, statement, parameters),
        prepare=False if statement.custom_plan and not generic_plan else None,
        binary=True,
    )


def outside_transaction(conn: Connection) -> bool:
    """Return whether *conn* is in autocommit with no transaction open: each statement is then its own transaction."""
    return conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE


async def fetchall(conn: Connection, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]:
    """Run *statement* and return its rows."""
    cursor = await run(conn, statement, parameters)
    return await cursor.fetchall()


async def execute(conn: Connection, statement: Statement, parameters: Mapping[str, Any]) -> int:
    """Run *statement* and return the number of rows it changed."""
    cursor = await run(conn, statement, parameters)
    return cursor.rowcount


async def script(conn: Connection, text: str) -> None:
    """Run the statements of *text*, which has no parameters."""
    # Without parameters psycopg sends the text unchanged, all statements at once.
    await conn.execute(text.encode())


async def stream(
    conn: Connection, statement: Statement, parameters: Mapping[str, Any], chunk: int
) -> AsyncIterator[Row]:
    """Yield the rows of *statement* from a server-side cursor, *chunk* rows per round trip, in one transaction."""
    given = _bind(conn, statement, parameters)
    name = f"kimera_{next(_cursor_numbers)}"
    outside = outside_transaction(conn)
    cursor = psycopg.AsyncServerCursor(conn, name, row_factory=tuple_row)
    # No savepoint: closing the iterator early would roll back what the caller has written since.
    async with conn.transaction() if outside else nullcontext():
        try:
            keep_loaders(cursor)
            cursor.itersize = chunk
            await cursor.execute(statement.text, given, binary=True)
            with suppress(GeneratorExit):
                async for row in cursor:
                    yield row
                    # The rows that are here already would go on, and the next chunk fail.
                    if conn.pgconn.transaction_status == TransactionStatus.IDLE:
                        raise InvalidValue(STREAM_ENDED)
        except psycopg.errors.InvalidCursorName:
            raise InvalidValue(STREAM_ENDED) from None
        finally:
            # An iterator can outlive its transaction, and with it the server's cursor. CLOSE would then abort whatever
            # transaction the connection is in by now. A cursor that has not declared its name looks for it first.
            await psycopg.AsyncServerCursor(conn, name).close()
            await psycopg.AsyncCursor.close(cursor)


class CopyRefused(UnsupportedByServer):
    """The server takes no COPY into a table that row-level security guards. No row was taken from the caller."""


async def copy(conn: Connection, statement: Statement, rows: AsyncIterable[Mapping[str, Any]]) -> int:
    """Send *rows* through *statement* and return how many there were. All rows are written, or none.

    *statement* is a COPY ... FROM STDIN (FORMAT BINARY), with the values of a row in the order of its columns, or an
    INSERT of one row. A server error of a COPY has a note with the row's number, counted from 0, if the server reports
    it (not for foreign keys, which it checks after the last row). Raises CopyRefused.
    """
    if statement.suffix != "#":
        return await _insert(conn, statement, rows)
    begun = False
    try:
        async with atomic(conn), psycopg.AsyncCursor(conn) as cursor:
            async with cursor.copy(statement.text) as copy:
                begun = True
                copy.set_types(statement.types)
                before = _copying.set(_copying.get() | {id(conn)})
                try:
                    async for row in rows:
                        await copy.write_row([to_postgres(value) for value in row.values()])
                finally:
                    _copying.reset(before)
            return cursor.rowcount
    except psycopg.Error as error:
        if not begun and isinstance(error, psycopg.errors.FeatureNotSupported):
            raise CopyRefused(str(error)) from error
        _, found, line = (error.diag.context or "").partition(", line ")
        digits = "".join(itertools.takewhile(str.isdigit, line))
        if found and digits:
            error.add_note(f"item {int(digits) - 1} (counted from 0) was refused; nothing was written")
        raise


async def _insert(conn: Connection, statement: Statement, rows: AsyncIterable[Mapping[str, Any]]) -> int:
    count = 0
    chunk: list[dict[str, Any]] = []
    async with atomic(conn), psycopg.AsyncCursor(conn) as cursor:
        async for row in rows:
            chunk.append(_bind(conn, statement, row))
            if len(chunk) == _INSERTED_AT_ONCE:
                await cursor.executemany(statement.text, chunk)
                count += len(chunk)
                chunk.clear()
        if chunk:
            await cursor.executemany(statement.text, chunk)
    return count + len(chunk)


@asynccontextmanager
async def pipeline(conn: Connection) -> AsyncIterator[None]:
    """Run the block in pipeline mode, one block at a time. One that is cancelled or interrupted closes *conn*.

    By then statements are sent whose results nobody will read, and psycopg leaves the connection in pipeline mode.
    """
    try:
        # Whoever shares the connection cannot enter the mode while another is in it.
        async with _pipelines.setdefault(conn, ALock()), conn.pipeline():
            yield
    except BaseException as error:
        if not isinstance(error, Exception):
            await conn.close()
        raise


@asynccontextmanager
async def snapshot(conn: Connection) -> AsyncIterator[None]:
    """Give the block a consistent view of the database, unaffected by concurrent writes; see sql.snapshot."""
    before = conn.isolation_level
    await conn.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
    try:
        async with conn.transaction():
            yield
    finally:
        await conn.set_isolation_level(before)


@asynccontextmanager
async def atomic(conn: Connection) -> AsyncIterator[None]:
    """Make the block atomic without ending the caller's transaction; see sql.atomic."""
    _check_free(conn, "a transaction")
    if not conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE:
        # conn.transaction() would commit at its end. An empty query makes psycopg send the caller's BEGIN first.
        await conn.execute("")
    async with conn.transaction():
        yield


@asynccontextmanager
async def transaction(conn: Connection) -> AsyncIterator[None]:
    """Run the block in a transaction, or in a savepoint inside the caller's; see sql.transaction."""
    async with conn.transaction():
        yield
