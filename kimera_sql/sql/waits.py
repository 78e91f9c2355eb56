"""Waits that end: the bound on a server's silence, and what a connection's loss says about a COMMIT."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.waiting import Wait

from ..errors import CommitUnknown

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]
T = TypeVar("T")

tidy: Final[ContextVar[bool]] = ContextVar("tidy", default=False)
"""Whether what the code that runs now sends to its server leaves nothing in the session."""

_OF_TRANSACTIONS: Final = frozenset({"_commit_gen", "_rollback_gen", "_enter_gen", "_exit_gen", "_set_read_only_gen"})
"""What psycopg begins and ends transactions with, and what says how, of which the server hears with the next BEGIN."""

_UNHURRIED: Final = 60.0
"""Seconds of silence after which a server that may take as long as it needs is asked whether it is there."""

_ANSWER: Final = 5.0
"""Seconds within which it has to answer that."""

_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
"""What a client may begin with. A server answers it by one byte, before anything else of the client's is looked at."""


class ServerSilent(psycopg.OperationalError):
    """The server has not answered in time, and its connection has been closed."""


class Silence(Exception):
    """The server has not answered in time. It never leaves a connection's wait."""


def impatient(gen: PQGen[T], pgconn: PGconn, timeout: float | None) -> PQGen[T]:
    """Run *gen*, which waits for *pgconn*. Raises Silence where the socket is not ready for *timeout* seconds.

    Where *timeout* is None, it raises Silence once the server does not answer on another connection either.
    """
    deadline = None
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if ready:
                deadline = None
            # Most answers come before there is anything to count.
            elif deadline is None:
                deadline = monotonic() + (_UNHURRIED if timeout is None else timeout)
            # A connection that only listens for notifications is idle, and may be for ever.
            elif monotonic() > deadline and pgconn.transaction_status == TransactionStatus.ACTIVE:
                if timeout is not None:
                    raise Silence(
                        f"the server was silent for {timeout:.1f} s, and the connection has been closed; statements "
                        "that take longer need a higher KIMERA_STATEMENT_TIMEOUT"
                    )
                ready = yield from _inquired(pgconn, wanted)
                deadline = None
            wanted = gen.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


def _inquired(pgconn: PGconn, wanted: Wait) -> PQGen[int]:
    """Wait on until the server answers on another connection, and return what *pgconn* is ready for by then.

    A refusal is an answer: what has led to the server once need not do so twice. Raises Silence where there is none.
    """
    family, address = _address(pgconn)
    deadline, asked = monotonic() + _ANSWER, False
    with socket.socket(family) as asking:
        asking.setblocking(False)
        if asking.connect_ex(address) not in (0, errno.EINPROGRESS, errno.EAGAIN):
            return 0
        while not (ready := (yield wanted)):
            try:
                asked = asked or asking.send(_SSL_REQUEST) > 0
                asking.recv(1)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.ENOTCONN):
                    return 0
                if error.errno == errno.ENOTCONN and family == socket.AF_UNIX:
                    asking.connect_ex(address)  # there was no room in the server's queue
                if monotonic() > deadline:
                    raise Silence(
                        f"the server was silent for {_UNHURRIED:g} s and does not answer another connection either, so "
                        "this one has been closed"
                    ) from None
            else:
                return 0
        return ready


def _address(pgconn: PGconn) -> tuple[socket.AddressFamily, Any]:
    host, port = (pgconn.hostaddr or pgconn.host).decode(), pgconn.port.decode()
    if host.startswith(("/", "@")):
        # The @ is libpq's way to write the NUL of an abstract name.
        return socket.AF_UNIX, f"{host}/.s.PGSQL.{port}".replace("@", "\0", host.startswith("@"))
    return socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))


def is_tidy(gen: PQGen[Any]) -> bool:
    """Return whether *gen*, which is about to be waited for, leaves nothing in the session."""
    return tidy.get() or getattr(gen, "__name__", "") in _OF_TRANSACTIONS


def may_commit(conn: AnyConnection) -> bool:
    """Return whether a COMMIT that is sent now commits anything."""
    return conn.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.ACTIVE)


def was_lost(conn: AnyConnection, error: BaseException) -> bool:
    """Return whether *error* came of the loss of *conn*, so that what it was doing may or may not have taken effect.

    The server's own timeouts of transactions, which are InternalErrors, are no such loss: they come before a COMMIT.
    """
    return conn.broken and isinstance(error, psycopg.OperationalError) and not isinstance(error, CommitUnknown)


@contextmanager
def silence_timeout(conn: Any, seconds: float | None) -> Iterator[None]:
    """Let *conn* bear *seconds* of silence in the block, None for any, if it is one that gives up at all."""
    if not hasattr(conn, "silence_timeout"):
        yield
        return
    before = conn.silence_timeout
    conn.silence_timeout = seconds
    try:
        yield
    finally:
        conn.silence_timeout = before
