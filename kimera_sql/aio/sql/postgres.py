"""Run statements on PostgreSQL with psycopg."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, TypeAlias

import psycopg
from psycopg.abc import Buffer, PQGen
from psycopg.copy import AsyncLibpqWriter
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import tuple_row
from psycopg.types import TypeInfo
from psycopg.waiting import Ready, Wait

from ...checks import item_fault
from ...errors import CommitUnknown, InvalidValue, UnsupportedByServer
from ...sql import binary
from ...sql.arrow import Batch
from ...sql.files import Statement, literal
from ...sql.loaders import use_own
from ...sql.rows import STREAM_ENDED, Row, check_encoding, to_postgres
from ...sql.waits import silence_timeout, tidy, was_lost
from ...twins import aeach
from . import types
from .bounds import NO_TIMEOUTS, committing, setting
from .sessions import new_cursor, session

Connection: TypeAlias = psycopg.AsyncConnection[Any]

_cursor_numbers = itertools.count(1)

_INSERTED_AT_ONCE: Final = 100
"""Rows that are held in memory and sent together where they can't be sent by COPY."""

_ENCODED_AT_ONCE: Final = 32
"""Rows of a COPY that are encoded together."""

_SENT_AT_ONCE: Final = 2**17
"""Bytes of a COPY that are collected and sent together."""

_COPY_LINE: Final = re.compile(r"^COPY .*, line (\d+)", re.MULTILINE)
"""Where a server's error is in a COPY. There can be lines of JSON above."""

_WRITING: Final = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b")

_WRITE_LOST: Final = (
    "the connection was lost while a statement ran in autocommit: whether it took effect is not known. Look for its "
    "rows before doing it again"
)

_STREAM_IDLE: Final = (
    "rows were being streamed, and the next ones were not taken in time: take them faster, or raise "
    "KIMERA_IDLE_IN_TRANSACTION_TIMEOUT"
)

_CHECKED: Final = 2**20
"""Bytes of a COPY that a server has checked within a second once it has them all: foreign keys and triggers."""

_copying: ContextVar[frozenset[int]] = ContextVar("_copying", default=frozenset())
"""The connections, by id, whose COPY the code that runs now is giving rows to."""


def _check_free(conn: Connection, what: str) -> None:
    """Raise InvalidValue where *what* would wait for ever: for the end of a COPY that waits for it."""
    if id(conn) in _copying.get():
        raise InvalidValue(
            f"conn: it is sending items and can run {what} only once they are sent; take what the items are made from "
            "through another connection"
        )


class Call(NamedTuple):
    """A statement and its parameters.

    generic_plan: allow a prepared statement although the statement is noted `plan: custom`, because with these
    parameters one plan is good for every run.
    """

    statement: Statement
    parameters: Mapping[str, Any]
    generic_plan: bool = False


class Result(NamedTuple):
    """What a statement gave. number: of the rows that it returned or changed."""

    rows: list[Row]
    number: int


def _bind(statement: Statement, parameters: Mapping[str, Any], encoding: str) -> dict[str, Any]:
    statement.check(parameters)
    check_encoding(encoding, parameters)
    return {name: to_postgres(value) for name, value in parameters.items()}


async def _send(cursor: psycopg.AsyncCursor[Row], call: Call, bound: Mapping[str, Any]) -> psycopg.AsyncCursor[Row]:
    return await cursor.execute(
        call.statement.text,
        bound,
        prepare=False if call.statement.custom_plan and not call.generic_plan else None,
        binary=True,
    )


async def _send_all(conn: Connection, calls: Sequence[Call], vector: TypeInfo | None) -> list[Result]:
    encoding = conn.info.encoding
    for call in calls:
        _check_free(conn, call.statement.name)
    # Before anything is sent: an error in the middle would leave a part undone in the caller's transaction.
    bound = [_bind(call.statement, call.parameters, encoding) for call in calls]
    kept = session(conn)
    before = tidy.set(all(call.statement.tidy for call in calls))
    try:
        async with kept.turn:
            if len(calls) == 1 and not conn.pgconn.pipeline_status:
                cursor = kept.cursor(calls[0].statement, encoding, vector)
                result = await _result(conn, await _send(cursor, calls[0], bound[0]))
                kept.free(cursor, calls[0].statement)
                return [result]
            async with _pipeline(conn):
                cursors = [await _send(new_cursor(conn), *one) for one in zip(calls, bound, strict=True)]
            # Outside the pipeline, because fetching inside it costs another round trip.
            return [await _result(conn, cursor) for cursor in cursors]
    finally:
        tidy.reset(before)


async def _result(conn: Connection, cursor: psycopg.AsyncCursor[Row]) -> Result:
    await types.recognize(conn, cursor)
    rows = await cursor.fetchall() if cursor.pgresult and cursor.pgresult.nfields else []
    return Result(rows, cursor.rowcount)


def _writes(call: Call) -> bool:
    return _WRITING.search(call.statement.text) is not None


async def _run(conn: Connection, calls: Sequence[Call]) -> list[Result]:
    """Run *calls*, several in one pipeline, and return their results.

    If types or tables were dropped and created since *conn* first used them, *calls* are run again. In a transaction of
    the caller they are not, because it has failed with them.
    """
    alone = conn.pgconn.transaction_status == TransactionStatus.IDLE
    vector = await types.known(conn)
    try:
        return await _send_all(conn, calls, vector)
    except psycopg.Error as error:
        if alone and conn.autocommit and was_lost(conn, error) and any(map(_writes, calls)):
            raise CommitUnknown(_WRITE_LOST) from error
        if not (types.doubt(conn, error) and alone and conn.info.pipeline_status == PipelineStatus.OFF):
            raise
    await conn.rollback()
    return await _send_all(conn, calls, await types.known(conn))


def outside_transaction(conn: Connection) -> bool:
    """Return whether *conn* is in autocommit with no transaction open: each statement is then its own transaction."""
    return conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE


async def fetchall(conn: Connection, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]:
    """Run *statement* and return its rows."""
    (result,) = await _run(conn, [Call(statement, parameters)])
    return result.rows


async def fetchall_of(conn: Connection, calls: Sequence[Call], *, after: Sequence[Call] = ()) -> list[list[Row]]:
    """Run *calls* and *after* in one pipeline, and return the rows of each of *calls*."""
    results = await _run(conn, [*calls, *after])
    return [result.rows for result in results[: len(calls)]]


async def execute(conn: Connection, statement: Statement, parameters: Mapping[str, Any]) -> int:
    """Run *statement* and return the number of rows it changed."""
    (result,) = await _run(conn, [Call(statement, parameters)])
    return result.number


async def script(conn: Connection, text: str) -> None:
    """Run the statements of *text*, which has no parameters."""
    # Without parameters psycopg sends the text unchanged, all statements at once.
    await conn.execute(literal(text))


async def stream(
    conn: Connection,
    statement: Statement,
    parameters: Mapping[str, Any],
    chunk: int,
    *,
    before: Sequence[Call] = (),
    after: Sequence[Call] = (),
) -> AsyncIterator[Row]:
    """Yield the rows of *statement* from a server-side cursor, *chunk* rows per round trip, in one transaction.

    *before* runs in that transaction before the statement is planned, and *after* when it is, before any row is read.
    """
    _check_free(conn, statement.name)
    given = _bind(statement, parameters, conn.info.encoding)
    if conn.info.pipeline_status != PipelineStatus.OFF:
        raise InvalidValue("conn: it is in pipeline mode, in which no rows can be streamed; end that first")
    # No savepoint around the rows: closing the iterator early would roll back what the caller has written since.
    async with conn.transaction() if outside_transaction(conn) else nullcontext():
        cursor = await _declared(conn, statement, given, before, after)
        cursor.itersize = chunk
        try:
            with suppress(GeneratorExit):
                async for row in cursor:
                    yield row
                    # The rows that are here already would go on, and the next chunk fail.
                    if conn.pgconn.transaction_status == TransactionStatus.IDLE:
                        raise InvalidValue(STREAM_ENDED)
        except psycopg.errors.InvalidCursorName:
            raise InvalidValue(STREAM_ENDED) from None
        except psycopg.errors.IdleInTransactionSessionTimeout as error:
            error.add_note(_STREAM_IDLE)
            raise
        finally:
            # An iterator can outlive its transaction, and with it the server's cursor. CLOSE would then abort whatever
            # transaction the connection is in by now. A cursor that has not declared its name looks for it first.
            closing = psycopg.AsyncServerCursor(conn, cursor.name)
            try:
                await closing.close()
            finally:
                # Where the connection was lost or the task is cancelled meanwhile, the server is not told.
                for one in (closing, cursor):
                    await psycopg.AsyncCursor.close(one)


async def _declared(
    conn: Connection,
    statement: Statement,
    given: Mapping[str, Any],
    before: Sequence[Call],
    after: Sequence[Call],
    *,
    again: bool = True,
) -> psycopg.AsyncServerCursor[Row]:
    """Declare a server-side cursor for *statement*, *again* if types have changed since *conn* first used them."""
    await types.known(conn)
    cursor = psycopg.AsyncServerCursor(conn, f"kimera_{next(_cursor_numbers)}", row_factory=tuple_row)
    use_own(cursor)
    try:
        async with atomic(conn):
            if before:
                await _run(conn, before)
            await cursor.execute(statement.text, given, binary=True)
            if await types.recognize(conn, cursor):
                await cursor.execute(statement.text, given, binary=True)
            if after:
                await _run(conn, after)
    except BaseException as error:
        await psycopg.AsyncCursor.close(cursor)
        if isinstance(error, psycopg.Error) and types.doubt(conn, error) and again:
            return await _declared(conn, statement, given, before, after, again=False)
        raise
    return cursor


class CopyRefused(UnsupportedByServer):
    """The server takes no COPY into a table that row-level security guards. No row was taken from the caller."""


async def copy(conn: Connection, statement: Statement, rows: AsyncIterable[Mapping[str, Any]]) -> int:
    """Send *rows* through *statement* and return how many there were. All rows are written, or none.

    *statement* is a COPY ... FROM STDIN (FORMAT BINARY), with the values of a row in the order of its columns, or an
    INSERT of one row. A server error of a COPY has a note with the row's number, counted from 0, if the server reports
    it (not for foreign keys, which it checks after the last row). Raises CopyRefused.
    """
    await types.known(conn)
    if statement.suffix != "#":
        return await _insert(conn, statement, rows)
    async with atomic(conn), setting(conn, NO_TIMEOUTS), psycopg.AsyncCursor(conn) as cursor:
        async with _copy(cursor, statement) as copy:
            await _write(copy, statement, rows, conn.info.encoding)
        return cursor.rowcount


async def copy_batches(conn: Connection, statement: Statement, batches: Iterable[Batch]) -> int:
    """Send the rows of *batches* as copy does."""
    await types.known(conn)
    if statement.suffix != "#":
        return await _insert(conn, statement, aeach(row for batch in batches for row in batch.rows()))
    async with atomic(conn), setting(conn, NO_TIMEOUTS), psycopg.AsyncCursor(conn) as cursor:
        async with _copy(cursor, statement) as copy:
            await _write_batches(copy, statement, batches, conn.info.encoding)
        return cursor.rowcount


class _CopyWriter(AsyncLibpqWriter):
    """Sends what a COPY takes, and reads what the server says meanwhile.

    A server that has much to say, such as a notice for each row, waits until somebody reads it, and takes no more rows.
    psycopg's own writer waits until it takes more, for ever.
    """

    _sent = 0

    async def write(self, data: Buffer) -> None:
        """Send *data*, or leave some of it to be sent with what comes next."""
        self._sent += len(data)
        self._unflushed += len(data)
        flush = self._unflushed >= self.flush_threshold
        if flush:
            self._unflushed = 0
        await self.connection.wait(_put(self.connection.pgconn, data, flush=flush))

    async def finish(self, exc: BaseException | None = None) -> None:
        """End the COPY, by an error if there is one."""
        await self.connection.wait(_flush(self.connection.pgconn))
        known = getattr(self.connection, "silence_timeout", None)
        with silence_timeout(self.connection, None if known is None else known + self._sent / _CHECKED):
            await super().finish(exc)


def _put(pgconn: PGconn, data: Buffer, *, flush: bool) -> PQGen[None]:
    while pgconn.put_copy_data(data) == 0:
        yield Wait.RW
    if flush:
        yield from _flush(pgconn)


def _flush(pgconn: PGconn) -> PQGen[None]:
    """Send what is left, until the socket takes more. flush reads what has come where it can't send."""
    while pgconn.flush():
        yield Wait.RW
    while not ((yield Wait.RW) & Ready.W):
        pgconn.consume_input()


@asynccontextmanager
async def _copy(cursor: psycopg.AsyncCursor[Any], statement: Statement) -> AsyncIterator[psycopg.AsyncCopy]:
    begun = False
    try:
        async with cursor.copy(statement.text, writer=_CopyWriter(cursor)) as copy:
            begun = True
            before = _copying.set(_copying.get() | {id(cursor.connection)})
            try:
                yield copy
            finally:
                _copying.reset(before)
    except psycopg.Error as error:
        if not begun and isinstance(error, psycopg.errors.FeatureNotSupported):
            raise CopyRefused(str(error)) from error
        if found := _COPY_LINE.search(error.diag.context or ""):
            error.add_note(f"item {int(found[1]) - 1} (counted from 0) was refused; nothing was written")
        raise


async def _write(
    copy: psycopg.AsyncCopy, statement: Statement, rows: AsyncIterable[Mapping[str, Any]], encoding: str
) -> None:
    """Send *rows* through *copy*, encoded here if all their types are known here, else by psycopg."""
    encode = binary.rows_encoder(statement.types, encoding)
    if encode is None:
        copy.set_types(statement.types)
    # What a caller's own rows consist of may change once the next one is asked for.
    at_once = _ENCODED_AT_ONCE if statement.shipped else 1
    chunk, taken, item = bytearray(binary.BEGIN), list[list[Any]](), -1
    async for row in rows:
        item += 1
        try:
            check_encoding(encoding, row)
            taken.append(list(row.values()))
            if encode is None:
                await copy.write_row([to_postgres(value) for value in taken.pop()])
                continue
        except psycopg.OperationalError:
            raise
        except Exception as error:
            raise item_fault(item, error) from error
        if len(taken) == at_once:
            chunk += _encoded(encode, taken, item)
            taken.clear()
            if len(chunk) > _SENT_AT_ONCE:
                await copy.write(chunk)
                chunk = bytearray()
    if encode is not None:
        await copy.write(chunk + _encoded(encode, taken, item) + binary.END)


async def _write_batches(
    copy: psycopg.AsyncCopy, statement: Statement, batches: Iterable[Batch], encoding: str
) -> None:
    """Send each of *batches* through *copy*: whole if that can be, else by rows, of which one may be at fault."""
    await copy.write(binary.BEGIN)
    for batch in batches:
        whole = batch.encoded(statement.types) if binary.codec(encoding) == "utf-8" else None
        for sent in [_encoded_batch(batch, statement, encoding)] if whole is None else whole:
            await copy.write(sent)
    await copy.write(binary.END)


def _encoded_batch(batch: Batch, statement: Statement, encoding: str) -> bytes:
    encode = binary.rows_encoder(statement.types, encoding)
    assert encode is not None  # noqa: S101 - narrows the type: all types of shipped statements are known
    rows = list(batch.rows())
    for item, row in enumerate(rows, start=batch.number):
        try:
            check_encoding(encoding, row)
        except InvalidValue as error:
            raise item_fault(item, error) from error
    return encode([list(row.values()) for row in rows])


def _encoded(encode: Callable[[Sequence[Sequence[Any]]], bytes], rows: Sequence[Sequence[Any]], last: int) -> bytes:
    """Return *rows* encoded. Raises InvalidValue with the number of the row, of which the last one's is *last*."""
    try:
        return encode(rows)
    except InvalidValue:
        for item, row in enumerate(rows, start=last + 1 - len(rows)):
            try:
                encode([row])
            except InvalidValue as error:
                raise item_fault(item, error) from error
        raise


async def _insert(conn: Connection, statement: Statement, rows: AsyncIterable[Mapping[str, Any]]) -> int:
    count = 0
    chunk: list[dict[str, Any]] = []
    async with atomic(conn), setting(conn, NO_TIMEOUTS), psycopg.AsyncCursor(conn) as cursor:
        async for row in rows:
            _check_free(conn, statement.name)
            try:
                chunk.append(_bind(statement, row, conn.info.encoding))
            except Exception as error:
                raise item_fault(count + len(chunk), error) from error
            if len(chunk) == _INSERTED_AT_ONCE:
                await cursor.executemany(statement.text, chunk)
                count += len(chunk)
                chunk.clear()
        if chunk:
            await cursor.executemany(statement.text, chunk)
    return count + len(chunk)


@asynccontextmanager
async def _pipeline(conn: Connection) -> AsyncIterator[None]:
    """Run the block in pipeline mode. One that is cancelled or interrupted closes *conn*.

    By then statements are sent whose results nobody will read, and psycopg leaves the connection in pipeline mode.
    """
    try:
        async with conn.pipeline():
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
    async with committing(conn, conn.transaction()):
        yield


@asynccontextmanager
async def transaction(conn: Connection) -> AsyncIterator[None]:
    """Run the block in a transaction, or in a savepoint inside the caller's; see sql.transaction."""
    async with committing(conn, conn.transaction()):
        yield
