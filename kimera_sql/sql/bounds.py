# Generated from kimera_sql/aio/sql/bounds.py by .ci/twins.py: change that one.
"""The bounds of a connection's waits, and what operations do that take longer than a statement may."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

from ..errors import CommitUnknown
from ..settings import milliseconds
from ..sql.files import statements
from ..sql.waits import ServerSilent, Silence, impatient, is_tidy, may_commit, silence_timeout, was_lost
from .sessions import new_cursor

Connection: TypeAlias = psycopg.Connection[Any]
T = TypeVar("T")

_MARGIN: Final = 1.0
"""Seconds that a server has to say that a statement took too long, before its client takes it for lost."""

NO_TIMEOUTS: Final = {
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
}
"""The server's settings of what takes as long as it needs."""

_ENDED_BEHIND: Final = "results from command"
"""What psycopg says of a BEGIN or a COMMIT whose answer is followed by the end of the session."""

_COMMIT_LOST: Final = (
    "the connection was lost during COMMIT: whether the transaction took effect is not known. Look for its rows by "
    "their ids before doing it again"
)


class BoundedConnection(psycopg.Connection[TupleRow]):
    """A connection that does not wait for a silent server for ever, and that knows when a COMMIT's outcome is unknown.

    silence_timeout: after how many seconds of silence it gives up and is closed. Where it is None, the server is asked
    after a minute whether it is there, on another connection, and is given up if it does not answer.
    untidy: whether something may be left in its session. What goes by its pgconn alone is not noticed.
    """

    silence_timeout: float | None = None
    untidy: bool = True

    def wait(self, gen: PQGen[T], *arguments: Any, **options: Any) -> T:
        """Wait for *gen* as psycopg does. Raises OperationalError where the server is silent or ends the session."""
        if not is_tidy(gen):
            self.untidy = True
        try:
            return super().wait(impatient(gen, self.pgconn, self.silence_timeout), *arguments, **options)
        except Silence as silence:
            self.pgconn.finish()
            raise ServerSilent(str(silence)) from None
        except psycopg.InternalError as error:
            if _ENDED_BEHIND not in str(error):
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError("the server has ended the session") from error

    def commit(self) -> None:
        """Commit. Raises CommitUnknown if the connection is lost meanwhile."""
        sent = may_commit(self)
        try:
            super().commit()
        except psycopg.OperationalError as error:
            if sent and was_lost(self, error):
                raise CommitUnknown(_COMMIT_LOST) from error
            raise

    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Any:
        """Return psycopg's block of a transaction. Raises CommitUnknown if the connection is lost while it commits."""
        block = super().transaction(savepoint_name, force_rollback)
        return block if force_rollback else committing(self, block)


@contextmanager
def committing(conn: Connection, block: AbstractContextManager[T]) -> Iterator[T]:
    """Enter *block*, a transaction's. Raises CommitUnknown if *conn* is lost while its end commits."""
    outermost = conn.pgconn.transaction_status == TransactionStatus.IDLE
    sent = False
    try:
        with block as entered:
            yield entered
            sent = outermost and may_commit(conn)
    except psycopg.OperationalError as error:
        if sent and was_lost(conn, error):
            raise CommitUnknown(_COMMIT_LOST) from error
        raise


def put(conn: Connection, settings: Mapping[str, str], *, local: bool) -> dict[str, str]:
    """Set the server's *settings*, those that it knows, and return what they were.

    They hold to the end of the transaction if *local*, else of the session. Behind a pooler, whose sessions are other
    clients' too, there is none to set them for, and nothing is done.
    """
    given = {
        "names": list(settings),
        "settings": list(settings.values()),
        "local": local,
        "pid": conn.info.backend_pid,
    }
    cursor = new_cursor(conn)
    cursor.execute(statements("postgres", "bounds")["put"].text, given, binary=True)
    return {name: before for name, before, _ in cursor.fetchall()}


def statement_timeout(conn: Connection) -> float:
    """Return how many seconds a statement may take in this session; 0 for any number."""
    cursor = new_cursor(conn)
    cursor.execute(statements("postgres", "bounds")["statement_timeout"].text, binary=True)
    (seconds,) = cursor.fetchone() or (0.0,)
    return float(seconds)


def silence_timeout_for(statement_timeout: float) -> float | None:
    """Return how long to bear the silence of a server whose statements may take *statement_timeout* seconds."""
    return statement_timeout + _MARGIN if statement_timeout else None


@contextmanager
def setting(conn: Connection, settings: Mapping[str, str]) -> Iterator[None]:
    """Run the block with the server's *settings*, and put back what they were.

    In autocommit they are the session's, otherwise those of the transaction, which is begun if need be.
    """
    local = not (conn.autocommit and conn.info.transaction_status == TransactionStatus.IDLE)
    before = put(conn, settings, local=local)
    try:
        yield
    finally:
        # A transaction that has failed or ended has put its own back.
        status = conn.info.transaction_status
        if status == TransactionStatus.INTRANS or (status == TransactionStatus.IDLE and not local):
            put(conn, before, local=local)


@contextmanager
def without_timeouts(conn: Connection, lock_timeout: float | None = None) -> Iterator[None]:
    """Let the block take as long as it needs, whatever the role, the database and the session allow a statement.

    It waits *lock_timeout* seconds for a lock, 0 for any number; None leaves that to the session. See setting.
    """
    patiently = {} if lock_timeout is None else {"lock_timeout": milliseconds(lock_timeout)}
    with setting(conn, {**NO_TIMEOUTS, **patiently}), silence_timeout(conn, None):
        yield
