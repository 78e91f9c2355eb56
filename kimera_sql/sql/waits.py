"""Waits that end: the bound on a server's silence, and what a connection's loss says about a COMMIT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn

from ..errors import CommitUnknown

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
T = TypeVar("T")


class Silence(Exception):
    """The server has not answered in time. It never leaves a connection's wait."""


def impatient(gen: PQGen[T], pgconn: PGconn, patience: float) -> PQGen[T]:
    """Run *gen*, which waits for *pgconn*. Raises Silence where the socket is not ready for *patience* seconds."""
    deadline = None
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                deadline = None
            # Most answers come before there is anything to count.
            elif deadline is None:
                deadline = monotonic() + patience
            # A connection that only listens for notifications is idle, and may be for ever.
            elif monotonic() > deadline and pgconn.transaction_status == TransactionStatus.ACTIVE:
                raise Silence
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


def may_commit(conn: AnyConnection) -> bool:
    """Return whether a COMMIT that is sent now commits anything."""
    return conn.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.ACTIVE)


def was_lost(conn: AnyConnection, error: BaseException) -> bool:
    """Return whether *error* came of the loss of *conn*, so that what it was doing may or may not have taken effect.

    The server's own timeouts of transactions, which are InternalErrors, are no such loss: they come before a COMMIT.
    """
    return conn.broken and isinstance(error, psycopg.OperationalError) and not isinstance(error, CommitUnknown)


@contextmanager
def patience(conn: Any, seconds: float | None) -> Iterator[None]:
    """Let *conn* bear *seconds* of silence in the block, None for any, if it is one that gives up at all."""
    if not hasattr(conn, "patience"):
        yield
        return
    before = conn.patience
    conn.patience = seconds
    try:
        yield
    finally:
        conn.patience = before
