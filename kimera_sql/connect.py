# Generated from kimera_sql/aio/connect.py by .ci/twins.py: change that one.
"""Finding the database.

open_pool() asks the strategies in order. One that is not configured, or whose server does not answer, is passed
over; one whose server answers and refuses (a wrong password, no such database) is final, because going on to
another database would split the data without anyone noticing. One that is starting or has no connection to spare is
waited for. For the same reason SQLite serves, unless told otherwise, only where no server is configured at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Final, overload

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import PGconn, Ping

from . import servers
from .errors import ConnectionFailed, SettingsError
from .pools import Pool
from .replicas import ClusterPool
from .secrecy import forgetful
from .servers import Answer
from .settings import Settings, check_replicas
from .sqlite import SqlitePool
from .strategies import (
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
    with_replicas,
)
from .twins import call, pause

logger = logging.getLogger(__name__)

_ASKED_AGAIN: Final = 0.2
"""Seconds between two attempts to connect to a server that is starting or has no connection to spare."""


@overload
def open_pool(conninfo: str, *, replicas: Sequence[str] = (), settings: Settings | None = None) -> Pool: ...
@overload
def open_pool(
    conninfo: None = None, *, replicas: Sequence[str] = (), settings: Settings | None = None
) -> Pool | SqlitePool: ...
@forgetful
def open_pool(
    conninfo: str | None = None, *, replicas: Sequence[str] = (), settings: Settings | None = None
) -> Pool | SqlitePool:
    """Open a pool of connections to the database that is configured.

    *conninfo*, a postgresql:// URL or libpq's keyword=value pairs, is the only one tried where it is given.
    Without it the strategies are tried in order: KIMERA_DB_HOST, _PORT, _NAME, _USER and _PASSWORD as soon as
    one of them is set, then DATABASE_URL. With neither, libpq's own variables are followed where they name a database
    (PGHOST, PGHOSTADDR, PGSERVICE, PGDATABASE), and with nothing configured at all an SQLite file for development
    serves, with a FallbackWarning. *settings* stands in for the environment's.

    *replicas* are further servers of the same cluster, as "HOST" or "HOST:PORT" each; the conninfo, or the first
    strategy that is configured, says the rest. Where neither they nor a *conninfo* is given, Settings.replicas serve.
    With replicas, or several hosts in the conninfo, `pool.connection(read_only=True)` reads from standbys, and the pool
    goes over to the standby that is promoted when the primary is lost.

    Raises SettingsError for a setting that cannot be used, and ConnectionFailed, which lists each attempt and
    its cause, when no server takes the connection.
    """
    settings = settings or Settings.from_env()
    attempts = []
    configured = False
    source = "replicas"
    if conninfo is None and not replicas:
        replicas, source = settings.replicas, "KIMERA_DB_REPLICAS"
    check_replicas(source, replicas)
    for name, parameters in ways(settings) if conninfo is None else [("conninfo", parse(conninfo))]:
        if parameters is None:
            attempts.append(f"{name}: not set")
            continue
        resolved = resolve(parameters, name)
        if replicas and not configured:
            resolved = with_replicas(resolved, replicas, source)
        configured = True
        try:
            pool = _try(complete(parameters, resolved, settings), resolved, name, settings)
        except _Unreachable as error:
            attempts.append(f"{name} ({target(resolved)}): {error}")
            logger.warning("%s", attempts[-1])
            continue
        logger.info("%s (%s): connected", name, target(resolved))
        pool.open()
        return pool
    if replicas and not configured:
        raise SettingsError(f"{source}: of which server? Set KIMERA_DB_HOST and its companions or DATABASE_URL")
    if conninfo is None:
        if settings.sqlite_fallback == "always" or (settings.sqlite_fallback == "unconfigured" and not configured):
            return _sqlite_pool(settings)
        # Commands that need a server rule SQLite out by themselves, and their users have set no such variable.
        if not configured or settings.sqlite_fallback != "never":
            attempts.append(f"SQLite: not tried (KIMERA_SQLITE_FALLBACK={settings.sqlite_fallback})")
    advice = "; set KIMERA_DB_HOST and its companions or DATABASE_URL" if conninfo is None else ""
    raise ConnectionFailed(f"no database could be reached{advice}:\n  " + "\n  ".join(attempts))


class _Unreachable(Exception):
    """No server answers."""


def _try(conninfo: str, parameters: Mapping[str, str], source: str, settings: Settings) -> Pool:
    """Connect once, and return a pool that is still to be opened.

    A server that is starting, is shutting down or has no connection to spare gets the time that connecting may take.
    Raises _Unreachable if no server answered, ConnectionFailed if it answered and refused, SettingsError if libpq
    refused to try.
    """
    demanded = parameters.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS")
    several = len([*each_host(conninfo_to_dict(conninfo))]) > 1
    if several:
        conninfo = make_conninfo(conninfo, target_session_attrs=demanded or "read-write")
    deadline = monotonic() + float(conninfo_to_dict(conninfo)["connect_timeout"] or 0)
    answered = False
    while True:
        try:
            tried = psycopg.Connection.connect(conninfo)
            break
        except psycopg.OperationalError as error:
            cause = redact(str(error).strip(), parameters)
            answer = servers.ask(conninfo, error)
        if answer is Answer.NO and call(PGconn.ping, conninfo.encode()) == Ping.NO_ATTEMPT:
            raise SettingsError(f"{source}: {redact(refusal(conninfo), parameters)}") from None
        answered = answered or answer is not Answer.NONE
        if not answered:
            raise _Unreachable(cause)
        if answer is Answer.NO or monotonic() > deadline:
            raise ConnectionFailed(
                f"the server answered and refused, so nothing else was tried:\n  {target(parameters)}: {cause}"
            ) from None
        pause(_ASKED_AGAIN)
    with tried:
        # Once it has written, a pool is not to go on with a server that takes no more writes: it looks for the one that
        # does. Where it began with a standby, or was told which server to take, that is what is wanted.
        if several and wants_writes(conninfo_to_dict(conninfo)):
            try:
                return ClusterPool(conninfo, settings, (servers.position(tried)).system)
            except psycopg.Error as error:
                logger.warning("%s: its standbys are not read from: %s", source, redact(str(error), parameters))
        if demanded is None and servers.takes_writes(tried) is True:
            conninfo = make_conninfo(conninfo, target_session_attrs="read-write")
    return Pool(conninfo, settings)


def _sqlite_pool(settings: Settings) -> SqlitePool:
    pool = SqlitePool(
        settings.sqlite_path,
        size=settings.pool_size + settings.pool_overflow,
        timeout=settings.pool_timeout,
        max_waiting=settings.pool_max_waiting,
    )
    pool.open()
    logger.info("SQLite (%s): opened", pool.path)
    warn_of_fallback(pool.path.absolute())
    return pool
