# Generated from kimera_sql/aio/connect.py by .ci/twins.py: change that one.
"""Finding the database, and the pool of connections to it.

open_pool() asks the strategies in order. One that is not configured, or whose server does not answer, is passed
over; one whose server answers and refuses (a wrong password, no such database) is final, because going on to
another database would split the data without anyone noticing. For the same reason SQLite serves, unless told
otherwise, only where no server is configured at all.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, Final, overload

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.pq import PGconn, Ping, TransactionStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import ConnectionPool, PoolTimeout

from . import sql
from .errors import ConnectionFailed, SettingsError
from .secrecy import forgetful
from .settings import Settings
from .sql import Connection, is_postgres, is_sqlite, loaders, postgres, types
from .sqlite import SqlitePool, add_functions
from .strategies import complete, parse, redact, refusal, resolve, target, warn_of_fallback, ways
from .twins import Lock, call, check_process, is_readable, kept

logger = logging.getLogger(__name__)

_queries = sql.Queries("connect")

_AT_ONCE: Final = 0.01
"""Seconds to wait for a connection that is idle; psycopg's pool gives none without any."""

_JUST_USED: Final = 1.0
"""Seconds after its use for which a connection is asked nothing, unless its server has said something unasked."""

_MOST_AFTERWARDS: Final = 100
"""The most statements that wait for a connection's return; the oldest are dropped."""


@overload
def open_pool(conninfo: str, *, settings: Settings | None = None) -> Pool: ...
@overload
def open_pool(conninfo: None = None, *, settings: Settings | None = None) -> Pool | SqlitePool: ...
@forgetful
def open_pool(conninfo: str | None = None, *, settings: Settings | None = None) -> Pool | SqlitePool:
    """Open a pool of connections to the database that is configured.

    *conninfo*, a postgresql:// URL or libpq's keyword=value pairs, is the only one tried where it is given.
    Without it the strategies are tried in order: KIMERA_DB_HOST, _PORT, _NAME, _USER and _PASSWORD as soon as
    one of them is set, then DATABASE_URL. With neither, libpq's own variables are followed where they name a database
    (PGHOST, PGHOSTADDR, PGSERVICE, PGDATABASE), and with nothing configured at all an SQLite file for development
    serves, with a FallbackWarning. *settings* stands in for the environment's.

    Raises SettingsError for a setting that cannot be used, and ConnectionFailed, which lists each attempt and
    its cause, when no server takes the connection.
    """
    settings = settings or Settings.from_env()
    attempts = []
    configured = False
    for name, parameters in ways(settings) if conninfo is None else [("conninfo", parse(conninfo))]:
        if parameters is None:
            attempts.append(f"{name}: not set")
            continue
        configured = True
        resolved = resolve(parameters, name)
        full = complete(parameters, resolved, settings)
        if cause := _try(full, resolved, name):
            attempts.append(f"{name} ({target(resolved)}): {cause}")
            logger.warning("%s", attempts[-1])
            continue
        logger.info("%s (%s): connected", name, target(resolved))
        pool = Pool(full, settings)
        pool.open()
        return pool
    if conninfo is None:
        if settings.sqlite_fallback == "always" or (settings.sqlite_fallback == "unconfigured" and not configured):
            return _sqlite_pool(settings)
        # Commands that need a server rule SQLite out by themselves, and their users have set no such variable.
        if not configured or settings.sqlite_fallback != "never":
            attempts.append(f"SQLite: not tried (KIMERA_SQLITE_FALLBACK={settings.sqlite_fallback})")
    advice = "; set KIMERA_DB_HOST and its companions or DATABASE_URL" if conninfo is None else ""
    raise ConnectionFailed(f"no database could be reached{advice}:\n  " + "\n  ".join(attempts))


def _try(conninfo: str, parameters: Mapping[str, str], source: str) -> str | None:
    """Connect once, and return why the server could not be reached, None if it could.

    Raises ConnectionFailed if it answered and refused, SettingsError if libpq refused to try.
    """
    try:
        tried = psycopg.Connection.connect(conninfo)
        tried.close()
    except psycopg.OperationalError as error:
        cause = redact(str(error).strip(), parameters)
        if isinstance(error, ConnectionTimeout):
            return cause
        # libpq tells no error code of a failed connection; a ping tells whether there is a server.
        answer = call(PGconn.ping, conninfo.encode())
        if answer == Ping.NO_ATTEMPT:
            raise SettingsError(f"{source}: {redact(refusal(conninfo), parameters)}") from None
        # It finds none whose TLS is not what sslmode demands, so it asks once more without.
        plain = make_conninfo(conninfo, sslmode="disable").encode()
        if answer == Ping.OK or call(PGconn.ping, plain) == Ping.OK:
            raise ConnectionFailed(
                f"the server answered and refused, so nothing else was tried:\n  {target(parameters)}: {cause}"
            ) from None
        return cause
    return None


def _sqlite_pool(settings: Settings) -> SqlitePool:
    pool = SqlitePool(
        settings.sqlite_path, size=settings.pool_size + settings.pool_overflow, timeout=settings.pool_timeout
    )
    pool.open()
    logger.info("SQLite (%s): opened", pool.path)
    warn_of_fallback(pool.path.absolute())
    return pool


class PooledConnection(psycopg.Connection[TupleRow]):
    """A connection that knows its age, and that leaves word for its pool when connecting failed.

    opened_at, used_at: monotonic seconds; used_at is when the pool got it back last. shared: what the connections of
    its pool have in common; searches keep there what they have seen of the catalogue. search_sample: see Settings; None
    once a search could not be kept. afterwards: statements that the pool runs when it has got the connection back.
    """

    opened_at: float
    used_at: float
    has_vectors: bool
    shared: dict[str, Any]
    search_sample: int | None
    afterwards: deque[postgres.Call]

    @classmethod
    def connect(  # type: ignore[override]
        cls,
        conninfo: str = "",
        *,
        failures: deque[psycopg.Error],
        shared: dict[str, Any],
        search_sample: int | None,
        **kwargs: Any,
    ) -> PooledConnection:
        try:
            connection = super().connect(conninfo, **kwargs)
        except psycopg.Error as error:
            # Anew: its frames and its pgconn know the password.
            failures.append(type(error)(str(error)))
            raise
        failures.clear()
        assert isinstance(connection, PooledConnection)  # noqa: S101 - narrows the type for mypy
        connection.opened_at = monotonic()
        connection.used_at = -_JUST_USED  # never
        connection.has_vectors = False
        connection.shared = shared
        connection.search_sample = search_sample
        connection.afterwards = deque(maxlen=_MOST_AFTERWARDS)
        return connection


class Pool(ConnectionPool[PooledConnection]):
    """psycopg's ConnectionPool with the habits of SQLAlchemy's QueuePool: pre-ping, recycle and overflow.

    A connection that was in use a moment ago is not pinged unless there is something to read from its server, as there
    is from one that has ended it: the ping would be half of a short visit to the database.
    `with pool.connection() as conn` commits at the end, or rolls back on an exception. Every connection has the
    vector adapters. A connection that fails its check, or is older than pool_recycle seconds, makes the pool drop
    all its idle connections at once: after a server restart they are all stale.
    """

    def __init__(self, conninfo: str, settings: Settings) -> None:
        self._failures: deque[psycopg.Error] = deque(maxlen=1)
        self._recycle = settings.pool_recycle
        self._prepared_statements = settings.prepared_statements
        self._cleared_at = 0.0
        self._clearing = Lock()
        self._process = os.getpid()
        super().__init__(
            conninfo,
            connection_class=PooledConnection,
            kwargs={"failures": self._failures, "shared": {}, "search_sample": settings.search_sample},
            min_size=settings.pool_size,
            max_size=settings.pool_size + settings.pool_overflow,
            timeout=settings.pool_timeout,
            max_lifetime=settings.pool_recycle,
            max_idle=60.0,
            configure=self._configure,
            check=self._vet,
            name="kimera_sql",
            open=False,
        )

    def getconn(self, timeout: float | None = None) -> PooledConnection:
        """Take a connection out of the pool; raises PoolTimeout, chained to the cause if connecting failed.

        Raises PoolClosed in a process that was forked since the pool was opened.
        """
        check_process(self._process)
        try:
            return kept(super().getconn(timeout), self.putconn)
        except PoolTimeout as error:
            if not self._failures:
                raise PoolTimeout(
                    f"{error}; all {self.max_size} connections are in use: shorten what holds them, or raise "
                    "KIMERA_POOL_OVERFLOW"
                ) from None
            cause = self._failures[-1]
            raise PoolTimeout(f"{error}; the last attempt to connect failed: {cause}") from cause

    def putconn(self, conn: PooledConnection) -> None:
        """Give a connection back to the pool."""
        try:
            if conn.afterwards and not self.closed and os.getpid() == self._process:
                _run_afterwards(conn)
        finally:
            conn.used_at = monotonic()
            super().putconn(conn)

    @contextmanager
    def connections(self, most: int) -> Iterator[list[PooledConnection]]:
        """Lend one connection, for which it waits, and up to *most* with those that are idle now; all in autocommit."""
        lent = [self.getconn()]
        try:
            with suppress(PoolTimeout):  # somebody else was quicker
                while len(lent) < most and self.get_stats()["pool_available"]:
                    lent.append(self.getconn(_AT_ONCE))
            for connection in lent:
                connection.set_autocommit(True)
            yield lent
        finally:
            for connection in lent:
                self.putconn(connection)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool. In a process that was forked since it was opened, leave its connections to the parent."""
        if os.getpid() == self._process:
            super().close(timeout)

    def _configure(self, connection: PooledConnection) -> None:
        loaders.prepare(connection)
        add_adapters(connection)
        wanted = self._prepared_statements
        if wanted == "never" or (wanted == "direct" and behind_pooler(connection)):
            connection.prepare_threshold = None

    def _vet(self, connection: PooledConnection) -> None:
        try:
            if monotonic() - connection.opened_at > self._recycle:
                raise psycopg.OperationalError("the connection is past its age")
            if monotonic() - connection.used_at > _JUST_USED or is_readable(connection.fileno()):
                self.check_connection(connection)
            _restore(connection)
            if not connection.has_vectors:
                add_adapters(connection)
        except psycopg.Error:
            connection.close()
            with self._clearing:
                if connection.opened_at > self._cleared_at:
                    self._cleared_at = monotonic()
                    self.drain()
            raise


def _run_afterwards(connection: PooledConnection) -> None:
    """Run what *connection*'s user has left to be run, in one round trip and a transaction of its own.

    The user is not to notice it, so it waits for no lock, and an error only keeps the connection from leaving more.
    """
    if connection.info.transaction_status != TransactionStatus.IDLE:
        return  # the pool rolls it back; the next return will do
    calls = [*connection.afterwards]
    connection.afterwards.clear()
    hurry = postgres.Call(_queries.hurry.statement(connection), {})
    try:
        connection.set_autocommit(True)
        postgres.fetchall_of(connection, [hurry], after=calls)
    except Exception as error:
        connection.search_sample = None
        logger.debug("what a connection's user had left to be run failed: %s", error)


def _restore(connection: PooledConnection) -> None:
    """Take back what an earlier user of *connection* has made of it; a plain SET alone stays, as with every pool.

    It is done when the connection is taken: a pool's own reset would hand every connection back by way of a worker.
    """
    connection.row_factory = tuple_row
    if connection.autocommit:
        connection.set_autocommit(False)
    if connection.isolation_level is not None:
        connection.set_isolation_level(None)
    if connection.read_only is not None:
        connection.set_read_only(None)
    if connection.deferrable is not None:
        connection.set_deferrable(None)


def behind_pooler(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a pooler, such as PgBouncer, stands between *connection* and the server.

    In transaction mode each transaction can have another of the server's processes. What a session keeps, such as SET
    and prepared statements, is then another session's.
    """
    with connection.transaction():
        return _queries.backend_pid.fetchval(connection, int) != connection.info.backend_pid


def add_adapters(connection: Connection) -> None:
    """Make a connection of your own ready for the entities' functions; a pool's connections are.

    On PostgreSQL it registers the vector adapters, or nothing while the database has no pgvector; on SQLite the SQL
    functions that the queries use.
    """
    if is_sqlite(connection):
        add_functions(connection)
    elif is_postgres(connection):
        with connection.transaction():  # leaves the connection idle, which a pool insists on
            has_vectors = types.learn(connection)
        if isinstance(connection, PooledConnection):
            connection.has_vectors = has_vectors
