"""Finding the database, and the pool of connections to it.

open_pool() asks the strategies in order. One that is not configured, or whose server does not answer, is passed
over; one whose server answers and refuses (a wrong password, no such database) is final, because going on to
another database would split the data without anyone noticing. For the same reason SQLite serves, unless told
otherwise, only where no server is configured at all.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final, overload

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.pq import PGconn, Ping
from psycopg.rows import TupleRow
from psycopg.types import TypeInfo
from psycopg_pool import ConnectionPool, PoolTimeout

from . import vectors
from .errors import ConnectionFailed, FallbackWarning, SettingsError
from .settings import Settings
from .sql.functions import add_functions
from .sqlite import SqlitePool

logger = logging.getLogger(__name__)

_KIMERA_DEFAULTS: Final = {"host": "localhost", "port": "5432", "dbname": "kimera_swm", "user": "kimera"}

_CONNECTION_DEFAULTS: Final = {
    "application_name": "Kimera SWM",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "5",
    # Keepalives see only idle peers. This bounds, in milliseconds, how long sent data may stay unacknowledged;
    # it equals idle + interval x count, as TCP_USER_TIMEOUT takes over from the count where both are set.
    "tcp_user_timeout": "80000",
}


# A server that takes connections, though not this one; and parameters that libpq refuses before it tries
_ANSWERS: Final = (Ping.OK, Ping.NO_ATTEMPT)


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to the database: a name for messages, and its libpq parameters if it is configured."""

    name: str
    parameters: Callable[[Settings], Mapping[str, str] | None]


def _kimera_credentials(settings: Settings) -> Mapping[str, str] | None:
    if settings.credentials is None:
        return None
    return {**_KIMERA_DEFAULTS, **settings.credentials}


def _database_url(settings: Settings) -> Mapping[str, str] | None:
    if settings.database_url is None:
        return None
    return parse(settings.database_url, source="DATABASE_URL")


STRATEGIES: Final = (
    Strategy("KIMERA_DB_*", _kimera_credentials),
    Strategy("DATABASE_URL", _database_url),
)


def parse(conninfo: str, *, source: str = "conninfo") -> dict[str, str]:
    """Return the libpq parameters of *conninfo*: a URL, SQLAlchemy's form of one, or keyword=value pairs.

    Raises SettingsError, which names *source* and never repeats *conninfo*: it can hold a password.
    """
    scheme, separator, rest = conninfo.strip().partition("://")
    if separator and "=" not in scheme:
        if scheme.partition("+")[0] not in ("postgresql", "postgres"):
            raise SettingsError(f"{source}: expected a URL that begins with postgresql://")
        conninfo = f"postgresql://{rest}"
    try:
        parameters = {name: str(value) for name, value in conninfo_to_dict(conninfo).items() if value is not None}
    except psycopg.Error:
        raise SettingsError(f"{source}: neither a postgresql:// URL nor keyword=value pairs") from None
    if not parameters:
        raise SettingsError(f"{source}: empty; give a postgresql:// URL or leave it out")
    # An @ or / that was not escaped leaves a part of the password in one of these, so they are not repeated.
    if "@" in parameters.get("host", "") or "@" in parameters.get("dbname", ""):
        raise SettingsError(f"{source}: write special characters of the password as %XX (@ is %40, / is %2F)")
    _check_port(parameters, source)
    return parameters


def _check_port(parameters: Mapping[str, str], source: str) -> None:
    ports = parameters.get("port", "").split(",")
    if not all(not port or (port.isdecimal() and 0 < int(port) < 2**16) for port in ports):
        raise SettingsError(
            f"{source}: the port is not a number from 1 to 65535; in a URL, write special characters as %XX"
        )


@overload
def open_pool(conninfo: str, *, settings: Settings | None = None) -> Pool: ...
@overload
def open_pool(conninfo: None = None, *, settings: Settings | None = None) -> Pool | SqlitePool: ...
def open_pool(conninfo: str | None = None, *, settings: Settings | None = None) -> Pool | SqlitePool:
    """Open a pool of connections to the database that is configured.

    *conninfo*, a postgresql:// URL or libpq's keyword=value pairs, is the only one tried where it is given.
    Without it the strategies are tried in order: KIMERA_DB_HOST, _PORT, _NAME, _USER and _PASSWORD as soon as
    one of them is set, then DATABASE_URL, then, with nothing configured, an SQLite file for development, with a
    FallbackWarning. *settings* stands in for the environment's.

    Raises SettingsError for a setting that cannot be used, and ConnectionFailed, which lists each attempt and
    its cause, when no server takes the connection.
    """
    settings = settings or Settings.from_env()
    strategies: tuple[Strategy, ...] = STRATEGIES
    if conninfo is not None:
        strategies = (Strategy("conninfo", lambda _: parse(conninfo)),)
    attempts = []
    configured = False
    for strategy in strategies:
        parameters = strategy.parameters(settings)
        if parameters is None:
            attempts.append(f"{strategy.name}: not set")
            continue
        configured = True
        full = _conninfo(parameters, settings, strategy.name)
        if cause := _try(full, parameters):
            attempts.append(f"{strategy.name} ({_target(parameters)}): {cause}")
            logger.warning("%s", attempts[-1])
            continue
        logger.info("%s (%s): connected", strategy.name, _target(parameters))
        return Pool(full, settings)
    if conninfo is None:
        if settings.sqlite_fallback == "always" or (settings.sqlite_fallback == "unconfigured" and not configured):
            return _sqlite_pool(settings)
        attempts.append(f"SQLite: not tried (KIMERA_SQLITE_FALLBACK={settings.sqlite_fallback})")
    raise ConnectionFailed(
        "no database could be reached; set KIMERA_DB_HOST and its companions or DATABASE_URL:\n  "
        + "\n  ".join(attempts)
    )


def _conninfo(parameters: Mapping[str, str], settings: Settings, source: str) -> str:
    _check_port(parameters, source)
    return make_conninfo("", **{**_CONNECTION_DEFAULTS, "connect_timeout": str(settings.connect_timeout), **parameters})


def _target(parameters: Mapping[str, str]) -> str:
    return " ".join(f"{key}={parameters[key]}" for key in ("host", "port", "dbname", "user") if key in parameters)


def _try(conninfo: str, parameters: Mapping[str, str]) -> str | None:
    """Connect once, and return why the server could not be reached, None if it could.

    Raises ConnectionFailed if it answered and refused.
    """
    try:
        psycopg.connect(conninfo).close()
    except psycopg.OperationalError as error:
        cause = _redact(str(error).strip(), parameters)
        # libpq tells no error code of a failed connection; a ping tells whether there is a server.
        unreachable = isinstance(error, ConnectionTimeout) or PGconn.ping(conninfo.encode()) not in _ANSWERS
        if not unreachable:
            raise ConnectionFailed(
                f"the server answered and refused, so nothing else was tried:\n  {_target(parameters)}: {cause}"
            ) from None
        return cause
    except psycopg.ProgrammingError as error:
        raise SettingsError(_redact(str(error), parameters)) from None
    return None


def _sqlite_pool(settings: Settings) -> SqlitePool:
    pool = SqlitePool(
        settings.sqlite_path, size=settings.pool_size + settings.pool_overflow, timeout=settings.pool_timeout
    )
    logger.info("SQLite (%s): opened", pool.path)
    _warn_of_fallback(pool.path.absolute())
    return pool


@functools.cache  # once for each file
def _warn_of_fallback(path: Path) -> None:
    warnings.warn(
        f"no PostgreSQL server serves: using the SQLite file {path}. Set KIMERA_DB_HOST and its companions or "
        "DATABASE_URL for a server, or KIMERA_SQLITE_FALLBACK=never to get an error instead",
        FallbackWarning,
        stacklevel=4,
    )


def _redact(message: str, parameters: Mapping[str, str]) -> str:
    password = parameters.get("password")
    return message.replace(password, "***") if password else message


class PooledConnection(psycopg.Connection[TupleRow]):
    """A connection that knows its age, and that leaves word for its pool when connecting failed.

    shared: what the connections of its pool have in common; searches keep there what they have seen of the catalogue.
    """

    opened_at: float
    has_vectors: bool
    shared: dict[str, Any]

    @classmethod
    def connect(  # type: ignore[override]
        cls, conninfo: str = "", *, failures: deque[psycopg.Error], shared: dict[str, Any], **kwargs: Any
    ) -> PooledConnection:
        try:
            connection = super().connect(conninfo, **kwargs)
        except psycopg.Error as error:
            failures.append(error)
            raise
        failures.clear()
        assert isinstance(connection, PooledConnection)  # noqa: S101 - narrows the type for mypy
        connection.opened_at = monotonic()
        connection.has_vectors = False
        connection.shared = shared
        return connection


class Pool(ConnectionPool[PooledConnection]):
    """psycopg's ConnectionPool with the habits of SQLAlchemy's QueuePool: pre-ping, recycle and overflow.

    `with pool.connection() as conn` commits at the end, or rolls back on an exception. Every connection has the
    vector adapters. A connection that fails its check, or is older than pool_recycle seconds, makes the pool drop
    all its idle connections at once: after a server restart they are all stale.
    """

    def __init__(self, conninfo: str, settings: Settings) -> None:
        self._failures: deque[psycopg.Error] = deque(maxlen=1)
        self._recycle = settings.pool_recycle
        self._cleared_at = 0.0
        self._clearing = threading.Lock()
        super().__init__(
            conninfo,
            connection_class=PooledConnection,
            kwargs={"failures": self._failures, "shared": {}},
            min_size=settings.pool_size,
            max_size=settings.pool_size + settings.pool_overflow,
            timeout=settings.pool_timeout,
            max_lifetime=settings.pool_recycle,
            max_idle=60.0,
            configure=add_adapters,
            check=self._vet,
            name="kimera_sql",
            open=True,
        )

    def getconn(self, timeout: float | None = None) -> PooledConnection:
        """Take a connection out of the pool; raises PoolTimeout, chained to the cause if connecting failed."""
        try:
            return super().getconn(timeout)
        except PoolTimeout as error:
            if not self._failures:
                raise PoolTimeout(
                    f"{error}; all {self.max_size} connections are in use: shorten what holds them, or raise "
                    "KIMERA_POOL_OVERFLOW"
                ) from None
            cause = self._failures[-1]
            raise PoolTimeout(f"{error}; the last attempt to connect failed: {cause}") from cause

    def _vet(self, connection: PooledConnection) -> None:
        try:
            if monotonic() - connection.opened_at > self._recycle:
                raise psycopg.OperationalError("the connection is past its age")
            self.check_connection(connection)
            if not connection.has_vectors:
                add_adapters(connection)
        except psycopg.Error:
            connection.close()
            with self._clearing:
                if connection.opened_at > self._cleared_at:
                    self._cleared_at = monotonic()
                    self.drain()
            raise


def add_adapters(connection: psycopg.Connection[Any] | sqlite3.Connection) -> None:
    """Make a connection of your own ready for the entities' functions; a pool's connections are.

    On PostgreSQL it registers the vector adapters, or nothing while the database has no pgvector; on SQLite the SQL
    functions that the queries use.
    """
    if isinstance(connection, sqlite3.Connection):
        add_functions(connection)
        return
    types = [TypeInfo.fetch(connection, name) for name in vectors.TYPES]
    if types[0] is None:
        return
    vectors.register(connection, filter(None, types))
    if isinstance(connection, PooledConnection):
        connection.has_vectors = True
