"""Run statements on SQLite, the development database."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal

import aiosqlite

from ...checks import item_fault
from ...errors import InvalidValue
from ...sql.arrow import Batch
from ...sql.files import Statement
from ...sql.rows import STREAM_ENDED, Row, to_sqlite
from ...twins import aeach

_CHUNK: Final = 1000
"""Rows that are held in memory at once."""

_LEGACY: Final = -1
"""sqlite3.LEGACY_TRANSACTION_CONTROL, new in Python 3.12 as the attribute autocommit is."""


def _control(conn: aiosqlite.Connection) -> int:
    """Return how *conn* controls transactions: autocommit is True or False, or _LEGACY and isolation_level decides."""
    # aiosqlite keeps a connection of sqlite3's, and has no autocommit of its own.
    return int(getattr(getattr(conn, "_conn", conn), "autocommit", _LEGACY))


def _autocommit(conn: aiosqlite.Connection) -> bool:
    """Return whether a statement outside a transaction is a transaction of its own on *conn*."""
    control = _control(conn)
    return conn.isolation_level is None if control == _LEGACY else bool(control)


async def _run(conn: aiosqlite.Connection, statement: Statement, parameters: Mapping[str, Any]) -> aiosqlite.Cursor:
    statement.check(parameters)
    cursor = await conn.cursor()
    cursor.row_factory = None  # the caller's connection may have another
    return await cursor.execute(statement.text, {name: to_sqlite(value) for name, value in parameters.items()})


async def fetchall(conn: aiosqlite.Connection, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]:
    """Run *statement* and return its rows."""
    cursor = await _run(conn, statement, parameters)
    return list(map(tuple, await cursor.fetchall()))


async def execute(conn: aiosqlite.Connection, statement: Statement, parameters: Mapping[str, Any]) -> int:
    """Run *statement* and return the number of rows it changed."""
    cursor = await _run(conn, statement, parameters)
    return cursor.rowcount


async def script(conn: aiosqlite.Connection, text: str) -> None:
    """Run the statements of *text*, which has no parameters, in the open transaction."""
    # executescript would commit the transaction.
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            await conn.execute(statement)
            statement = ""


async def stream(
    conn: aiosqlite.Connection, statement: Statement, parameters: Mapping[str, Any], chunk: int
) -> AsyncIterator[Row]:
    """Yield the rows of *statement*, *chunk* of them fetched at a time."""
    cursor = await _run(conn, statement, parameters)
    inside, autocommit, changes = conn.in_transaction, _autocommit(conn), conn.total_changes
    try:
        while rows := await cursor.fetchmany(chunk):
            for row in rows:
                yield tuple(row)
                # SQLite would go on, PostgreSQL cannot. A transaction that began and ended meanwhile has left changes.
                if not conn.in_transaction and (inside or (not autocommit and conn.total_changes != changes)):
                    raise InvalidValue(STREAM_ENDED)
    finally:
        await cursor.close()


async def copy(conn: aiosqlite.Connection, statement: Statement, rows: AsyncIterable[Mapping[str, Any]]) -> int:
    """Run *statement* for each of *rows*, all or none, and return how many there were.

    An error of the driver has a note with the row's number, counted from 0.
    """
    sent = number = 0

    def counted(chunk: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        nonlocal sent
        for row in chunk:
            sent += 1
            yield row

    async def send(chunk: list[dict[str, Any]]) -> None:
        try:
            await conn.executemany(statement.text, counted(chunk))
        except (sqlite3.Error, OverflowError) as error:  # the second for an integer that is none of SQLite's
            if sent:
                error.add_note(f"item {sent - 1} (counted from 0) was refused; nothing was written")
            raise

    chunk: list[dict[str, Any]] = []
    async with atomic(conn):
        async for row in rows:
            try:
                chunk.append({name: to_sqlite(value) for name, value in row.items()})
            except Exception as error:
                raise item_fault(number, error) from error
            number += 1
            if len(chunk) == _CHUNK:
                await send(chunk)
                chunk.clear()
        await send(chunk)
    return number


async def copy_batches(conn: aiosqlite.Connection, statement: Statement, batches: Iterable[Batch]) -> int:
    """Run *statement* for each row of *batches* as copy does."""
    return await copy(conn, statement, aeach(row for batch in batches for row in batch.rows()))


@asynccontextmanager
async def snapshot(conn: aiosqlite.Connection) -> AsyncIterator[None]:
    """Give the block a consistent view of the database, unaffected by concurrent writes; see sql.snapshot."""
    if not _control(conn):
        # A transaction is open at all times, and is such a view.
        yield
        return
    await conn.execute("BEGIN")
    try:
        yield
    finally:
        await conn.execute("ROLLBACK")


@asynccontextmanager
async def atomic(conn: aiosqlite.Connection) -> AsyncIterator[None]:
    """Make the block atomic without ending the caller's transaction; see sql.atomic."""
    if _autocommit(conn):
        async with transaction(conn):
            yield
    else:
        if not conn.in_transaction:
            await conn.execute("BEGIN IMMEDIATE")
        async with _savepoint(conn):
            yield


async def end(conn: aiosqlite.Connection, how: Literal["COMMIT", "ROLLBACK"]) -> None:
    """End the open transaction, if there is one. In autocommit, conn.commit() and conn.rollback() may not do it."""
    if not _autocommit(conn):
        await (conn.commit() if how == "COMMIT" else conn.rollback())
    elif conn.in_transaction:
        await conn.execute(how)


@asynccontextmanager
async def transaction(conn: aiosqlite.Connection) -> AsyncIterator[None]:
    """Run the block in a transaction, or in a savepoint inside the caller's; see sql.transaction."""
    if conn.in_transaction:
        async with _savepoint(conn):
            yield
        return
    await conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        await conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            await conn.execute("ROLLBACK")
        raise


@asynccontextmanager
async def _savepoint(conn: aiosqlite.Connection) -> AsyncIterator[None]:
    await conn.execute("SAVEPOINT kimera")
    try:
        yield
    except BaseException:
        # After some errors, such as a full disk, SQLite itself rolls back the whole transaction.
        if conn.in_transaction:
            await conn.execute("ROLLBACK TO kimera")
            await conn.execute("RELEASE kimera")
        raise
    await conn.execute("RELEASE kimera")
