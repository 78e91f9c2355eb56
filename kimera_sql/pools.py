# Generated from kimera_sql/aio/pools.py by .ci/twins.py: change that one.
"""The pool of connections to a server, and what is done to each of them before it is lent."""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any, Final, Protocol, cast

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout
from psycopg_pool.base import AttemptWithBackoff

from . import servers, sql
from .replication import as_number, as_text
from .secrecy import forget
from .servers import Answer
from .settings import Settings
from .sql import Connection, bounds, is_postgres, is_sqlite, loaders, postgres, types
from .sql.sessions import Adapters, session
from .sql.waits import ServerSilent, silence_timeout
from .sqlite import add_functions
from .strategies import parse, resolve, wants_writes
from .twins import Lock, check_process, enqueue, is_readable, kept

logger = logging.getLogger(__name__)

_queries = sql.Queries("connect")
_schema = sql.Queries("migrations")
_types = sql.Queries("types")

_AT_ONCE: Final = 0.01
"""Seconds to wait for a connection that is idle; psycopg's pool gives none without any."""

_ANSWER: Final = 5.0
"""Seconds within which a server has to answer while a connection is set up or checked."""

_deadline: ContextVar[float] = ContextVar("_deadline")
"""When the code that runs now wants its connection, in monotonic seconds."""

_JUST_USED: Final = 1.0
"""Seconds after its use for which a connection is asked nothing, unless its server has said something unasked."""

_BRIEF: Final = 2.0
"""Seconds for which a server may be away before those who wait for a connection are told: a restart takes no longer."""

_MOST_AFTERWARDS: Final = 100
"""The most statements that wait for a connection's return; the oldest are dropped."""


class _Turn:
    """Where a request for a connection stands in a pool's queue, if it had to join it."""

    place: Any = None


_turn: ContextVar[weakref.ref[_Turn] | None] = ContextVar("_turn", default=None)
"""The latest request of the code that runs now. Only getconn keeps it, so an interrupt leaves nothing of it."""


_AS_NEW: Final = (
    "close_cursors",
    "reset_user",
    "reset_role",
    "reset_settings",
    "stop_listening",
    "unlock",
    "drop_temporary",
    "forget_sequences",
)
"""The statements that take back what a borrower has made of a session, in their order."""

_LASTING: Final = frozenset(
    {"as_new", "_pool", "opened_at", "used_at", "untidy", "has_vectors", "search_sample", "timeline"}
)
"""The attributes of a pool's connection that stay as they are when it is lent again."""


class PooledConnection(bounds.BoundedConnection):
    """A connection that knows its age, and how it was when it was new.

    opened_at, used_at: monotonic seconds; used_at is when the pool got it back last. has_session: whether the server's
    session is its alone, as none is behind a pooler. shared: what the connections of its pool have in common; searches
    keep there what they have seen of the catalogue. search_sample: see Settings; None once a search could not be kept.
    afterwards: statements that the pool runs when it has got the connection back. as_new: what renew goes back to.
    timeline: of the primary that a pool with replicas has connected to.
    """

    opened_at: float
    used_at: float
    has_session: bool
    has_vectors: bool
    shared: dict[str, Any]
    search_sample: int | None
    timeline: int
    afterwards: deque[postgres.Call]
    as_new: tuple[dict[str, Any], int | None, int | None] | None

    @classmethod
    def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, shared: dict[str, Any], search_sample: int | None, **kwargs: Any
    ) -> PooledConnection:
        connection = super().connect(conninfo, **kwargs)
        assert isinstance(connection, PooledConnection)  # noqa: S101 - narrows the type for mypy
        connection.silence_timeout = _ANSWER
        connection.opened_at = monotonic()
        connection.used_at = -_JUST_USED  # never
        connection.has_session = False
        connection.has_vectors = False
        connection.shared = shared
        connection.search_sample = search_sample
        connection.timeline = 0
        connection.afterwards = deque(maxlen=_MOST_AFTERWARDS)
        connection.as_new = None
        return connection

    def renew(self) -> None:
        """Make this object as it was when it was lent for the first time, whatever was set or registered on it."""
        now, kept = vars(self), session(self)
        if self.as_new is None or kept.usual is None:
            kept.usual = Adapters(self)
            attributes = {name: value for name, value in now.items() if name not in _LASTING}
            self.as_new = attributes, self.prepare_threshold, self.prepared_max
        attributes, self.prepare_threshold, self.prepared_max = self.as_new
        for name in now.keys() - attributes.keys() - _LASTING:
            del now[name]
        now.update(attributes)
        self._adapters = AdaptersMap(kept.usual.adapters)
        for left in (self._notice_handlers, self._notify_handlers, self._notifies_backlog):
            if left:
                left.clear()


class _Attempt(AttemptWithBackoff):
    """Attempts to connect that go on once a second, however long the server is away."""

    DELAY_BACKOFF = 1.0


class _Task(Protocol):
    """What a pool's workers run."""

    def run(self) -> None: ...


class _Growth:
    """A task for a pool's workers, which no interrupt reaches: to make a connection more, and those that were lost."""

    def __init__(self, pool: Pool) -> None:
        self._pool = weakref.ref(pool)

    def run(self) -> None:
        pool = self._pool()
        if pool is not None and not pool.closed:
            pool._grow()


class Pool(ConnectionPool[PooledConnection]):
    """psycopg's ConnectionPool with the habits of SQLAlchemy's QueuePool: pre-ping, recycle and overflow.

    `with pool.connection() as conn` commits at the end, or rolls back on an exception. Every connection has the
    vector adapters, and is as new: what an earlier borrower made of it is taken back, in the one round trip that also
    finds out whether its server is there. Where the borrower has called the entities' functions alone, which leave
    nothing behind, and a moment ago, neither is needed unless there is something to read from its server. A connection
    that fails this, is older than pool_recycle seconds, or finds that its server takes no more writes, makes the pool
    drop all its idle connections at once: they are all stale.
    """

    def __init__(
        self, conninfo: str, settings: Settings, *, min_size: int | None = None, patience: float = _BRIEF
    ) -> None:
        self._recycle = settings.pool_recycle
        self._patience = patience
        self._prepared_statements = settings.prepared_statements
        self._statement_timeout = settings.statement_timeout
        self._writes = wants_writes(conninfo_to_dict(conninfo))
        # What the conninfo says of the server's settings is heard before ours.
        options = resolve(parse(conninfo), "conninfo").get("options", "")
        self._bounds = {
            name: value
            for name, value in settings.session().items()
            if not re.search(rf"(-c\s*|--){name.replace('_', '[-_]')}=", options)
        }
        self._session_settings: dict[str, str] | None = None
        self._renewal: tuple[Mapping[str, str], str] | None = None
        self._lent: weakref.WeakSet[PooledConnection] = weakref.WeakSet()
        # An interrupt can come between any two steps of lending. What it has cost is sure to be noticed only here, when
        # the connection itself is gone; and only what is written in C is not interrupted in turn.
        self._counted: set[weakref.ref[PooledConnection]] = set()
        self._losses: deque[weakref.ref[PooledConnection]] = deque()
        self._failure: Exception | None = None
        self._failing_since = 0.0
        self._cleared_at = 0.0
        self._clearing = Lock()
        self._process = os.getpid()
        super().__init__(
            conninfo,
            connection_class=PooledConnection,
            kwargs={"shared": {}, "search_sample": settings.search_sample},
            min_size=settings.pool_size if min_size is None else min_size,
            max_size=settings.pool_size + settings.pool_overflow,
            timeout=settings.pool_timeout,
            max_waiting=settings.pool_max_waiting,
            max_lifetime=settings.pool_recycle,
            max_idle=60.0,
            configure=self._configure,
            check=self._vet,
            name="kimera_sql",
            open=False,
        )

    def connection(  # type: ignore[override]
        self, timeout: float | None = None, *, read_only: bool = False, after: str | None = None
    ) -> AbstractContextManager[PooledConnection]:
        """Lend a connection for a block, which commits at its end, or rolls back on an exception.

        If *read_only*, its transactions are READ ONLY. A pool with replicas then lends a connection to a standby that
        is at most replica_max_lag seconds behind. It has everything up to *after*, which lsn gave; replica_wait is how
        many seconds that is waited for. Where there is no such standby, it is a connection to the primary, as it is
        without replicas.

        Raises what getconn does, and InvalidValue for an *after* of another form.
        """
        lsn = 0 if after is None else as_number(after)
        return self._reading(timeout, lsn) if read_only else super().connection(timeout)

    @contextmanager
    def _reading(self, timeout: float | None, lsn: int) -> Iterator[PooledConnection]:
        with super().connection(timeout) as conn:
            conn.set_read_only(True)
            yield conn

    def lsn(self) -> str:
        """Return where in the write-ahead log the primary is now.

        A reader who is to see what was committed before passes it on: `connection(read_only=True, after=lsn)`.
        """
        with super().connection() as conn:
            return as_text((servers.position(conn)).lsn)

    @property
    def lent(self) -> int:
        """The number of connections that are in use."""
        return len(self._lent)

    def getconn(self, timeout: float | None = None) -> PooledConnection:
        """Take a connection out of the pool.

        Raises PoolTimeout, chained to the cause if connecting failed: at once, if no connection is left and the server
        refuses or has been away for two seconds. Raises TooManyRequests if as many wait as pool_max_waiting allows, and
        PoolClosed in a process that was forked since the pool was opened.
        """
        check_process(self._process)
        if self._losses:
            self.run_task(_Growth(self))
        began = monotonic()
        _deadline.set(began + (self.timeout if timeout is None else timeout))
        turn = _Turn()
        _turn.set(weakref.ref(turn))
        try:
            lent = kept(super().getconn(timeout), self.putconn)
        except PoolTimeout:
            raise self._none_lent(monotonic() - began) from self._failure
        finally:
            # psycopg leaves those who gave up, or were interrupted, in its queue until their turn comes.
            with suppress(ValueError):
                self._waiting.remove(turn.place)
        self._lent.add(lent)
        return lent

    def _none_lent(self, waited: float) -> PoolTimeout:
        message = f"couldn't get a connection after {waited:.2f} sec"
        if self._failure is not None:
            return PoolTimeout(f"{message}; the last attempt to connect failed: {self._failure}")
        if len(self._lent) < self.max_size:
            return PoolTimeout(f"{message}; {len(self._lent)} of {self.max_size} connections are in use")
        return PoolTimeout(
            f"{message}; all {self.max_size} connections are in use: shorten what holds them, or raise "
            "KIMERA_POOL_OVERFLOW"
        )

    def putconn(self, conn: PooledConnection) -> None:
        """Give a connection back to the pool."""
        try:
            if conn.pgconn.pipeline_status and not conn.broken:
                conn.close()  # it was left in the middle of what only its borrower knew
            if conn.afterwards and not self.closed and os.getpid() == self._process:
                _run_afterwards(conn)
        finally:
            conn.used_at = monotonic()
            self._lent.discard(conn)
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
            self._put_all(lent)

    def _put_all(self, lent: list[PooledConnection]) -> None:
        if lent:
            try:
                self.putconn(lent.pop())
            finally:  # a cancellation of one costs none of the others
                self._put_all(lent)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool, within *timeout* seconds in all.

        In a process that was forked since it was opened, leave its connections to the parent.
        """
        if os.getpid() == self._process:
            # It is waited that long for each of the workers, and for their scheduler.
            super().close(timeout / (self.num_workers + 1))

    def check(self) -> None:
        """Test the idle connections, and replace those that do not work."""
        idle = [*self._pool]
        super().check()
        for conn in idle:
            if conn.closed:
                self._counted.discard(weakref.ref(conn))  # another one is being made

    def _configure(self, connection: PooledConnection) -> None:
        try:
            loaders.prepare(connection)
            behind = servers.behind_pooler(connection)
            if self._prepared_statements == "never" or (self._prepared_statements == "direct" and behind):
                connection.prepare_threshold = None
            connection.has_session = not behind
            if connection.has_session:
                self._renew(connection)
            add_adapters(connection)
            with connection.transaction():
                seconds = self._statement_timeout if behind else bounds.statement_timeout(connection)
            connection.silence_timeout = bounds.silence_timeout_for(seconds)
        except BaseException:
            connection.close()
            raise

    def _vet(self, connection: PooledConnection) -> None:
        """Make *connection* as new, and find out whether it can be lent."""
        left = max(_deadline.get() - monotonic(), 0)
        hurried = left < _ANSWER
        try:
            if monotonic() - connection.opened_at > self._recycle:
                raise psycopg.OperationalError("the connection is past its age")
            connection.renew()
            with silence_timeout(connection, min(_ANSWER, left)):
                silent = monotonic() - connection.used_at < _JUST_USED and not is_readable(connection.fileno())
                if connection.has_session and (connection.untidy or not silent):
                    self._renew(connection)
                elif not silent:
                    self.check_connection(connection)
                if self._writes and servers.takes_writes(connection) is False:
                    raise psycopg.OperationalError("the server takes no more writes")
                if not connection.has_vectors:
                    add_adapters(connection)
        except psycopg.Error as error:
            # A server that is silent for as long as a caller in a hurry has may be well.
            stale = (connection.closed or error.sqlstate is None) and not (hurried and isinstance(error, ServerSilent))
            connection.close()
            with self._clearing:
                if stale and connection.opened_at > self._cleared_at:
                    self._cleared_at = monotonic()
                    self.drain()
            raise

    def _renew(self, connection: PooledConnection) -> None:
        """Make *connection*'s session as new, in one round trip."""
        if self._session_settings is None:
            names, values = [*self._bounds], [*self._bounds.values()]
            with connection.transaction():
                rows = _queries.shorter.fetchall(connection, names=names, settings=values)
            self._session_settings = dict(rows)
        prepared = self._send_renewal(connection, self._session_settings)
        # A borrower's PREPARE, or a DEALLOCATE of what the driver had prepared and goes on using.
        tampered = prepared != {*connection._prepared._names.values()}
        astray = "search_path" not in self._session_settings
        if tampered or astray:
            connection.set_autocommit(True)
            if tampered:
                _types.forget_prepared.execute(connection)
            if astray and (path := _schema.home.fetchval(connection, str)):
                # Anew, because another worker may go by the old ones now.
                self._session_settings = {**self._session_settings, "search_path": path}
                self._send_renewal(connection, self._session_settings)
            connection.set_autocommit(False)
        connection.untidy = "search_path" not in self._session_settings

    def _send_renewal(self, connection: PooledConnection, settings: Mapping[str, str]) -> set[bytes | None]:
        """Make *connection*'s session as new, and return the names of its prepared statements."""
        made = self._renewal
        if made is None or made[0] is not settings:
            made = self._renewal = settings, _renewal(connection, settings)
        # Without a cursor, which would begin a transaction and takes as long as the server.
        connection.pgconn.send_query(made[1].encode(connection.info.encoding))
        results = connection.wait(execute(connection.pgconn))
        for result in results:
            if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
                raise error_from_result(result, connection.info.encoding)
        return {results[-1].get_value(row, 0) for row in range(results[-1].ntuples)}

    def _connect(self, timeout: float | None = None) -> PooledConnection:
        try:
            connection = super()._connect(timeout)
        except Exception as error:
            # Anew: the frames of psycopg's know the password, and its pgconn does.
            forget(error, None)
            self._tell(type(error)(str(error)) if isinstance(error, psycopg.Error) else error)
            raise
        self._failure = None
        self._counted.add(weakref.ref(connection, self._losses.append))
        return connection

    def _tell(self, error: Exception) -> None:
        """Let those who wait know of *error*, unless a connection may yet be found for them."""
        if self._failure is None:
            self._failing_since = monotonic()
        self._failure = error
        if self._lent or not self._waiting:
            return
        if isinstance(error, psycopg.OperationalError):
            # Nothing else of this process runs during a ping, so it is kept short.
            answer = servers.ask(make_conninfo(self._resolve_conninfo(), connect_timeout=2), error)
            away = monotonic() - self._failing_since
            if answer is Answer.LATER or (answer in (Answer.NONE, Answer.NO_PRIMARY) and away < self._patience):
                return
        with self._lock:
            waiting = [*self._waiting]
            self._waiting.clear()
        for client in waiting:
            client.fail(PoolTimeout())

    def _add_connection(self, attempt: AttemptWithBackoff | None, growing: bool = False) -> None:
        super()._add_connection(attempt or _Attempt(timeout=self.reconnect_timeout), growing)

    def _maybe_grow_pool(self) -> None:
        if self._waiting and (latest := _turn.get()) is not None and (turn := latest()) is not None:
            turn.place = self._waiting[-1]  # psycopg has just put it there
        if self._losses or (self._nconns < self.max_size and not self._growing):
            self.run_task(_Growth(self))

    def run_task(self, task: _Task) -> None:
        """Let a worker run *task*."""
        enqueue(self._tasks, task)

    def _grow(self) -> None:
        with self._lock:
            while self._losses:
                self._counted.discard(self._losses.pop())
                self._nconns -= 1
            if self._waiting or self._nconns < self.min_size:
                super()._maybe_grow_pool()

    def _close_connection(self, conn: PooledConnection) -> None:
        self._counted.discard(weakref.ref(conn))
        super()._close_connection(conn)

    def _return_connection(self, conn: PooledConnection, from_getconn: bool) -> None:
        super()._return_connection(conn, from_getconn)
        if conn.closed:
            self._counted.discard(weakref.ref(conn))  # another one is being made


def _renewal(connection: psycopg.Connection[Any], settings: Mapping[str, str]) -> str:
    """Return the statements that make a session as new, give it *settings* and list what it has prepared, as one text.

    A text of several statements can have no parameters, so the values are put into it here.
    """
    texts = [getattr(_queries, name).statement(connection).text for name in _AS_NEW]
    client = psycopg.ClientCursor(cast(Any, connection))
    settle = _queries.settle.statement(connection).text
    texts += [client.mogrify(settle, {"name": name, "setting": setting}) for name, setting in settings.items()]
    return "; ".join([*texts, _queries.prepared.statement(connection).text])


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
