"""Finding the database, and the pool of connections to it.

open_pool() asks the strategies in order. One that is not configured, or whose server does not answer, is passed
over; one whose server answers and refuses (a wrong password, no such database) is final, because going on to
another database would split the data without anyone noticing. One that is starting or has no connection to spare is
waited for. For the same reason SQLite serves, unless told otherwise, only where no server is configured at all.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import weakref
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any, Final, Protocol, cast, overload

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout, error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus, PGconn, Ping, TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from psycopg_pool.base import AttemptWithBackoff

from ..errors import ConnectionFailed, InvalidValue, SettingsError
from ..secrecy import forget, forgetful
from ..settings import Settings
from ..sql import loaders
from ..sql.waits import ServerSilent, silence_timeout
from ..strategies import (
    complete,
    each_host,
    parse,
    redact,
    refusal,
    resolve,
    target,
    wants_writes,
    warn_of_fallback,
    ways,
)
from ..twins import ALock, acall, akept, apause, check_process, enqueue, is_readable
from . import sql
from .sql import Connection, bounds, is_postgres, is_sqlite, postgres, types
from .sql.sessions import Adapters, session
from .sqlite import SqlitePool, add_functions

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

_ASKED_AGAIN: Final = 0.2
"""Seconds between two attempts to connect to a server that is starting or has no connection to spare."""

_BRIEF: Final = 2.0
"""Seconds for which a server may be away before those who wait for a connection are told: a restart takes no longer."""

_TOO_MANY: Final = re.compile(
    "too many (clients|connections)|remaining connection slots"
    "|no more connections allowed|query_wait_timeout|client_login_timeout|server login has been failing"
)
"""What a server with no connection to spare says, and in the second line PgBouncer, whose server may be away.

libpq passes no error code of a failed connection on.
"""

_SEVERAL: Final = "Multiple connection attempts"
"""How psycopg begins to list what has become of several addresses of one name."""

_MOST_AFTERWARDS: Final = 100
"""The most statements that wait for a connection's return; the oldest are dropped."""


@overload
async def open_pool(conninfo: str, *, settings: Settings | None = None) -> AsyncPool: ...
@overload
async def open_pool(conninfo: None = None, *, settings: Settings | None = None) -> AsyncPool | SqlitePool: ...
@forgetful
async def open_pool(conninfo: str | None = None, *, settings: Settings | None = None) -> AsyncPool | SqlitePool:
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
        try:
            reached = await _try(complete(parameters, resolved, settings), resolved, name)
        except _Unreachable as error:
            attempts.append(f"{name} ({target(resolved)}): {error}")
            logger.warning("%s", attempts[-1])
            continue
        logger.info("%s (%s): connected", name, target(resolved))
        pool = AsyncPool(reached, settings)
        await pool.open()
        return pool
    if conninfo is None:
        if settings.sqlite_fallback == "always" or (settings.sqlite_fallback == "unconfigured" and not configured):
            return await _sqlite_pool(settings)
        # Commands that need a server rule SQLite out by themselves, and their users have set no such variable.
        if not configured or settings.sqlite_fallback != "never":
            attempts.append(f"SQLite: not tried (KIMERA_SQLITE_FALLBACK={settings.sqlite_fallback})")
    advice = "; set KIMERA_DB_HOST and its companions or DATABASE_URL" if conninfo is None else ""
    raise ConnectionFailed(f"no database could be reached{advice}:\n  " + "\n  ".join(attempts))


class _Turn:
    """Where a request for a connection stands in a pool's queue, if it had to join it."""

    place: Any = None


_turn: ContextVar[weakref.ref[_Turn] | None] = ContextVar("_turn", default=None)
"""The latest request of the code that runs now. Only getconn keeps it, so an interrupt leaves nothing of it."""


class _Unreachable(Exception):
    """No server answers."""


class _Answer(enum.Enum):
    """What a server that took no connection makes of it."""

    NONE = enum.auto()
    LATER = enum.auto()
    NO = enum.auto()


async def _try(conninfo: str, parameters: Mapping[str, str], source: str) -> str:
    """Connect once, and return the conninfo for the pool.

    A server that is starting, is shutting down or has no connection to spare gets the time that connecting may take.
    Raises _Unreachable if no server answered, ConnectionFailed if it answered and refused, SettingsError if libpq
    refused to try.
    """
    deadline = monotonic() + float(conninfo_to_dict(conninfo)["connect_timeout"] or 0)
    answered = False
    while True:
        try:
            tried = await psycopg.AsyncConnection.connect(conninfo)
            break
        except psycopg.OperationalError as error:
            cause = redact(str(error).strip(), parameters)
            answer = await _ask(conninfo, error)
        if answer is _Answer.NO and await acall(PGconn.ping, conninfo.encode()) == Ping.NO_ATTEMPT:
            raise SettingsError(f"{source}: {redact(refusal(conninfo), parameters)}") from None
        answered = answered or answer is not _Answer.NONE
        if not answered:
            raise _Unreachable(cause)
        if answer is _Answer.NO or monotonic() > deadline:
            raise ConnectionFailed(
                f"the server answered and refused, so nothing else was tried:\n  {target(parameters)}: {cause}"
            ) from None
        await apause(_ASKED_AGAIN)
    async with tried:
        # Once it has written, a pool is not to go on with a server that takes no more writes: it looks for the one that
        # does. Where it began with a standby, or was told which server to take, that is what is wanted.
        given = conninfo_to_dict(conninfo).get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
        if given is None and _takes_writes(tried) is True:
            return make_conninfo(conninfo, target_session_attrs="read-write")
    return conninfo


async def _ask(conninfo: str, error: psycopg.Error) -> _Answer:
    """Return what the servers of *conninfo* make of an attempt to connect that ended with *error*."""
    if _TOO_MANY.search(str(error)):
        return _Answer.LATER
    hosts = [*each_host(conninfo_to_dict(conninfo))]
    if isinstance(error, ConnectionTimeout) and len(hosts) == 1 and _SEVERAL not in str(error):
        return _Answer.NONE
    # Of several hosts the error is the last one's, and libpq tells no error code of a failed connection. A ping tells
    # whether there is a server, and whether it is starting or shutting down.
    answers = set()
    for host in hosts:
        answer = await acall(PGconn.ping, host.encode())
        if answer == Ping.NO_RESPONSE:
            # It finds none whose TLS is not what sslmode demands, so it asks once more without.
            answer = await acall(PGconn.ping, make_conninfo(host, sslmode="disable").encode())
        answers.add(answer)
    if Ping.REJECT in answers:
        return _Answer.LATER
    return _Answer.NONE if answers == {Ping.NO_RESPONSE} else _Answer.NO


def _takes_writes(connection: psycopg.AsyncConnection[Any]) -> bool | None:
    """Return whether *connection*'s server takes writes, by what it has said of itself; None where it says nothing."""
    said = [connection.info.parameter_status(name) for name in ("in_hot_standby", "default_transaction_read_only")]
    return None if None in said else "on" not in said


async def _sqlite_pool(settings: Settings) -> SqlitePool:
    pool = SqlitePool(
        settings.sqlite_path,
        size=settings.pool_size + settings.pool_overflow,
        timeout=settings.pool_timeout,
        max_waiting=settings.pool_max_waiting,
    )
    await pool.open()
    logger.info("SQLite (%s): opened", pool.path)
    warn_of_fallback(pool.path.absolute())
    return pool


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

_LASTING: Final = frozenset({"as_new", "_pool", "opened_at", "used_at", "untidy", "has_vectors", "search_sample"})
"""The attributes of a pool's connection that stay as they are when it is lent again."""


class AsyncPooledConnection(bounds.BoundedConnection):
    """A connection that knows its age, and how it was when it was new.

    opened_at, used_at: monotonic seconds; used_at is when the pool got it back last. has_session: whether the server's
    session is its alone, as none is behind a pooler. shared: what the connections of its pool have in common; searches
    keep there what they have seen of the catalogue. search_sample: see Settings; None once a search could not be kept.
    afterwards: statements that the pool runs when it has got the connection back. as_new: what renew goes back to.
    """

    opened_at: float
    used_at: float
    has_session: bool
    has_vectors: bool
    shared: dict[str, Any]
    search_sample: int | None
    afterwards: deque[postgres.Call]
    as_new: tuple[dict[str, Any], int | None, int | None] | None

    @classmethod
    async def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, shared: dict[str, Any], search_sample: int | None, **kwargs: Any
    ) -> AsyncPooledConnection:
        connection = await super().connect(conninfo, **kwargs)
        assert isinstance(connection, AsyncPooledConnection)  # noqa: S101 - narrows the type for mypy
        connection.silence_timeout = _ANSWER
        connection.opened_at = monotonic()
        connection.used_at = -_JUST_USED  # never
        connection.has_session = False
        connection.has_vectors = False
        connection.shared = shared
        connection.search_sample = search_sample
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

    async def run(self) -> None: ...


class _Growth:
    """A task for a pool's workers, which no interrupt reaches: to make a connection more, and those that were lost."""

    def __init__(self, pool: AsyncPool) -> None:
        self._pool = weakref.ref(pool)

    async def run(self) -> None:
        pool = self._pool()
        if pool is not None and not pool.closed:
            await pool._grow()


class AsyncPool(AsyncConnectionPool[AsyncPooledConnection]):
    """psycopg's AsyncConnectionPool with the habits of SQLAlchemy's QueuePool: pre-ping, recycle and overflow.

    `with pool.connection() as conn` commits at the end, or rolls back on an exception. Every connection has the
    vector adapters, and is as new: what an earlier borrower made of it is taken back, in the one round trip that also
    finds out whether its server is there. Where the borrower has called the entities' functions alone, which leave
    nothing behind, and a moment ago, neither is needed unless there is something to read from its server. A connection
    that fails this, is older than pool_recycle seconds, or finds that its server takes no more writes, makes the pool
    drop all its idle connections at once: they are all stale.
    """

    def __init__(self, conninfo: str, settings: Settings) -> None:
        self._recycle = settings.pool_recycle
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
        self._lent: weakref.WeakSet[AsyncPooledConnection] = weakref.WeakSet()
        # An interrupt can come between any two steps of lending. What it has cost is sure to be noticed only here, when
        # the connection itself is gone; and only what is written in C is not interrupted in turn.
        self._counted: set[weakref.ref[AsyncPooledConnection]] = set()
        self._losses: deque[weakref.ref[AsyncPooledConnection]] = deque()
        self._failure: Exception | None = None
        self._failing_since = 0.0
        self._cleared_at = 0.0
        self._clearing = ALock()
        self._process = os.getpid()
        super().__init__(
            conninfo,
            connection_class=AsyncPooledConnection,
            kwargs={"shared": {}, "search_sample": settings.search_sample},
            min_size=settings.pool_size,
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

    async def getconn(self, timeout: float | None = None) -> AsyncPooledConnection:
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
            lent = await akept(super().getconn(timeout), self.putconn)
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

    async def putconn(self, conn: AsyncPooledConnection) -> None:
        """Give a connection back to the pool."""
        try:
            if conn.pgconn.pipeline_status and not conn.broken:
                await conn.close()  # it was left in the middle of what only its borrower knew
            if conn.afterwards and not self.closed and os.getpid() == self._process:
                await _run_afterwards(conn)
        finally:
            conn.used_at = monotonic()
            self._lent.discard(conn)
            await super().putconn(conn)

    @asynccontextmanager
    async def connections(self, most: int) -> AsyncIterator[list[AsyncPooledConnection]]:
        """Lend one connection, for which it waits, and up to *most* with those that are idle now; all in autocommit."""
        lent = [await self.getconn()]
        try:
            with suppress(PoolTimeout):  # somebody else was quicker
                while len(lent) < most and self.get_stats()["pool_available"]:
                    lent.append(await self.getconn(_AT_ONCE))
            for connection in lent:
                await connection.set_autocommit(True)
            yield lent
        finally:
            await self._put_all(lent)

    async def _put_all(self, lent: list[AsyncPooledConnection]) -> None:
        if lent:
            try:
                await self.putconn(lent.pop())
            finally:  # a cancellation of one costs none of the others
                await self._put_all(lent)

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool, within *timeout* seconds in all.

        In a process that was forked since it was opened, leave its connections to the parent.
        """
        if os.getpid() == self._process:
            # It is waited that long for each of the workers, and for their scheduler.
            await super().close(timeout / (self.num_workers + 1))

    async def check(self) -> None:
        """Test the idle connections, and replace those that do not work."""
        idle = [*self._pool]
        await super().check()
        for conn in idle:
            if conn.closed:
                self._counted.discard(weakref.ref(conn))  # another one is being made

    async def _configure(self, connection: AsyncPooledConnection) -> None:
        try:
            loaders.prepare(connection)
            behind = await behind_pooler(connection)
            if self._prepared_statements == "never" or (self._prepared_statements == "direct" and behind):
                connection.prepare_threshold = None
            connection.has_session = not behind
            if connection.has_session:
                await self._renew(connection)
            await add_adapters(connection)
            async with connection.transaction():
                seconds = self._statement_timeout if behind else await bounds.statement_timeout(connection)
            connection.silence_timeout = bounds.silence_timeout_for(seconds)
        except BaseException:
            await connection.close()
            raise

    async def _vet(self, connection: AsyncPooledConnection) -> None:
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
                    await self._renew(connection)
                elif not silent:
                    await self.check_connection(connection)
                if self._writes and _takes_writes(connection) is False:
                    raise psycopg.OperationalError("the server takes no more writes")
                if not connection.has_vectors:
                    await add_adapters(connection)
        except psycopg.Error as error:
            # A server that is silent for as long as a caller in a hurry has may be well.
            stale = (connection.closed or error.sqlstate is None) and not (hurried and isinstance(error, ServerSilent))
            await connection.close()
            async with self._clearing:
                if stale and connection.opened_at > self._cleared_at:
                    self._cleared_at = monotonic()
                    await self.drain()
            raise

    async def _renew(self, connection: AsyncPooledConnection) -> None:
        """Make *connection*'s session as new, in one round trip."""
        if self._session_settings is None:
            names, values = [*self._bounds], [*self._bounds.values()]
            async with connection.transaction():
                rows = await _queries.shorter.fetchall(connection, names=names, settings=values)
            self._session_settings = dict(rows)
        prepared = await self._send_renewal(connection, self._session_settings)
        # A borrower's PREPARE, or a DEALLOCATE of what the driver had prepared and goes on using.
        tampered = prepared != {*connection._prepared._names.values()}
        astray = "search_path" not in self._session_settings
        if tampered or astray:
            await connection.set_autocommit(True)
            if tampered:
                await _types.forget_prepared.execute(connection)
            if astray and (path := await _schema.home.fetchval(connection, str)):
                # Anew, because another worker may go by the old ones now.
                self._session_settings = {**self._session_settings, "search_path": path}
                await self._send_renewal(connection, self._session_settings)
            await connection.set_autocommit(False)
        connection.untidy = "search_path" not in self._session_settings

    async def _send_renewal(self, connection: AsyncPooledConnection, settings: Mapping[str, str]) -> set[bytes | None]:
        """Make *connection*'s session as new, and return the names of its prepared statements."""
        made = self._renewal
        if made is None or made[0] is not settings:
            made = self._renewal = settings, _renewal(connection, settings)
        # Without a cursor, which would begin a transaction and takes as long as the server.
        connection.pgconn.send_query(made[1].encode(connection.info.encoding))
        results = await connection.wait(execute(connection.pgconn))
        for result in results:
            if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
                raise error_from_result(result, connection.info.encoding)
        return {results[-1].get_value(row, 0) for row in range(results[-1].ntuples)}

    async def _connect(self, timeout: float | None = None) -> AsyncPooledConnection:
        try:
            connection = await super()._connect(timeout)
        except Exception as error:
            # Anew: the frames of psycopg's know the password, and its pgconn does.
            forget(error, None)
            await self._tell(type(error)(str(error)) if isinstance(error, psycopg.Error) else error)
            raise
        self._failure = None
        self._counted.add(weakref.ref(connection, self._losses.append))
        return connection

    async def _tell(self, error: Exception) -> None:
        """Let those who wait know of *error*, unless a connection may yet be found for them."""
        if self._failure is None:
            self._failing_since = monotonic()
        self._failure = error
        if self._lent or not self._waiting:
            return
        if isinstance(error, psycopg.OperationalError):
            # Nothing else of this process runs during a ping, so it is kept short.
            answer = await _ask(make_conninfo(str(self.conninfo), connect_timeout=2), error)
            away = monotonic() - self._failing_since
            if answer is _Answer.LATER or (answer is _Answer.NONE and away < _BRIEF):
                return
        async with self._lock:
            waiting = [*self._waiting]
            self._waiting.clear()
        for client in waiting:
            await client.fail(PoolTimeout())

    async def _add_connection(self, attempt: AttemptWithBackoff | None, growing: bool = False) -> None:
        await super()._add_connection(attempt or _Attempt(timeout=self.reconnect_timeout), growing)

    def _maybe_grow_pool(self) -> None:
        if self._waiting and (latest := _turn.get()) is not None and (turn := latest()) is not None:
            turn.place = self._waiting[-1]  # psycopg has just put it there
        if self._losses or (self._nconns < self.max_size and not self._growing):
            self.run_task(_Growth(self))

    def run_task(self, task: _Task) -> None:
        """Let a worker run *task*."""
        enqueue(self._tasks, task)

    async def _grow(self) -> None:
        async with self._lock:
            while self._losses:
                self._counted.discard(self._losses.pop())
                self._nconns -= 1
            if self._waiting or self._nconns < self.min_size:
                super()._maybe_grow_pool()

    async def _close_connection(self, conn: AsyncPooledConnection) -> None:
        self._counted.discard(weakref.ref(conn))
        await super()._close_connection(conn)

    async def _return_connection(self, conn: AsyncPooledConnection, from_getconn: bool) -> None:
        await super()._return_connection(conn, from_getconn)
        if conn.closed:
            self._counted.discard(weakref.ref(conn))  # another one is being made


def _renewal(connection: psycopg.AsyncConnection[Any], settings: Mapping[str, str]) -> str:
    """Return the statements that make a session as new, give it *settings* and list what it has prepared, as one text.

    A text of several statements can have no parameters, so the values are put into it here.
    """
    texts = [getattr(_queries, name).statement(connection).text for name in _AS_NEW]
    client = psycopg.ClientCursor(cast(Any, connection))
    settle = _queries.settle.statement(connection).text
    texts += [client.mogrify(settle, {"name": name, "setting": setting}) for name, setting in settings.items()]
    return "; ".join([*texts, _queries.prepared.statement(connection).text])


async def _run_afterwards(connection: AsyncPooledConnection) -> None:
    """Run what *connection*'s user has left to be run, in one round trip and a transaction of its own.

    The user is not to notice it, so it waits for no lock, and an error only keeps the connection from leaving more.
    """
    if connection.info.transaction_status != TransactionStatus.IDLE:
        return  # the pool rolls it back; the next return will do
    calls = [*connection.afterwards]
    connection.afterwards.clear()
    hurry = postgres.Call(_queries.hurry.statement(connection), {})
    try:
        await connection.set_autocommit(True)
        await postgres.fetchall_of(connection, [hurry], after=calls)
    except Exception as error:
        connection.search_sample = None
        logger.debug("what a connection's user had left to be run failed: %s", error)


async def behind_pooler(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Return whether a pooler, such as PgBouncer, stands between *connection* and the server.

    In transaction mode each transaction can have another of the server's processes. What a session keeps, such as SET
    and prepared statements, is then another session's.
    """
    async with connection.transaction():
        return await _queries.backend_pid.fetchval(connection, int) != connection.info.backend_pid


async def require_session(connection: psycopg.AsyncConnection[Any], what: str) -> None:
    """Raise InvalidValue behind a pooler, which has no session for *what* alone."""
    if await behind_pooler(connection):
        raise InvalidValue(f"{what} needs a session of its own; connect to the server and not to a pooler")


async def add_adapters(connection: Connection) -> None:
    """Make a connection of your own ready for the entities' functions; a pool's connections are.

    On PostgreSQL it registers the vector adapters, or nothing while the database has no pgvector; on SQLite the SQL
    functions that the queries use.
    """
    if is_sqlite(connection):
        await add_functions(connection)
    elif is_postgres(connection):
        async with connection.transaction():  # leaves the connection idle, which a pool insists on
            has_vectors = await types.learn(connection)
        if isinstance(connection, AsyncPooledConnection):
            connection.has_vectors = has_vectors
