# Generated from kimera_sql/aio/replicas.py by .ci/twins.py: change that one.
"""The pool of a cluster: writing on its primary, whichever server that is, and reading on its standbys."""

from __future__ import annotations

import logging
import os
import random
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from time import monotonic
from typing import Any, Final, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from . import servers, sql
from .errors import ConnectionFailed
from .pools import Pool, PooledConnection
from .replication import Cluster, Seen, as_text
from .secrecy import forget
from .settings import Settings
from .sql.bounds import BoundedConnection
from .sql.waits import ServerSilent
from .strategies import each_host, joined, target
from .twins import Lock, pause

logger = logging.getLogger(__name__)

_queries = sql.Queries("connect")

_LOOKS_AGAIN: Final = 0.5
"""Seconds between two looks at a server."""

_ANSWER: Final = 2
"""Seconds within which a server has to answer a look, and a connection to a standby has to be there."""

_POLLS_AGAIN: Final = 0.01
"""Seconds between two questions whether a standby has replayed what a reader waits for."""


class ClusterPool(Pool):
    """A pool of connections to the primary of a cluster, with one to each standby for reading.

    It looks at each server every half second. When another one has been promoted, it drops its connections and goes on
    with that one. It never writes to a server that it has seen another promoted past, nor reads from another cluster's.
    """

    def __init__(self, conninfo: str, settings: Settings, system: int) -> None:
        super().__init__(conninfo, settings)
        self._max_lag = settings.replica_max_lag
        self._replica_wait = settings.replica_wait
        self._cluster = Cluster(system, settings.replica_max_lag)
        self._primary: int | None = None
        self._noting = Lock()
        self._demands = conninfo_to_dict(conninfo)
        hosts = each_host({**self._demands, "target_session_attrs": "any"})
        self._servers = [_Server(number, host, settings, system) for number, host in enumerate(hosts)]

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool, and look at each server once, for two seconds at most. See psycopg's pool."""
        try:
            for server in self._servers:
                if server.pool.closed:
                    server.pool.open()
                    server.pool.run_task(_Watch(self, server))
            # A server that is not seen yet can be the primary's successor, or the standby that a first reader wants.
            deadline = monotonic() + _ANSWER
            while monotonic() < deadline and not all(server.looked_at for server in self._servers):
                pause(0.005)
            self._check_one_cluster()
            super().open(wait, timeout)
        except BaseException:
            self.close()
            raise

    def _check_one_cluster(self) -> None:
        """Raise ConnectionFailed for servers of several clusters: one would be written to, and another read from."""
        names = {server.system: server.name for server in self._servers if server.system is not None}
        if len(names) > 1:
            raise ConnectionFailed("these are servers of different clusters:\n  " + "\n  ".join(names.values()))

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool, within *timeout* seconds in all.

        In a process that was forked since it was opened, leave its connections to the parent.
        """
        each = timeout / (len(self._servers) + 1)
        with ExitStack() as stack:
            for server in self._servers:
                stack.callback(server.close, each)
            stack.callback(super().close, each)

    def _resolve_conninfo(self) -> str:
        # The known primary first: connecting to one that does not answer takes long.
        hosts = [conninfo_to_dict(self._servers[number].conninfo) for number in self._cluster.order(len(self._servers))]
        return make_conninfo("", **{**self._demands, **joined(hosts)})

    def _configure(self, connection: PooledConnection) -> None:
        super()._configure(connection)
        try:
            with connection.transaction():
                seen = servers.position(connection)
            connection.timeline = seen.timeline
            if fault := self._cluster.outdated(seen):
                raise psycopg.OperationalError(f"{target(connection.info.get_parameters())} is passed over: {fault}")
        except BaseException:
            connection.close()
            raise

    def _vet(self, connection: PooledConnection) -> None:
        # It may have been made while another server was promoted.
        if fault := self._cluster.overtaken(connection.timeline):
            connection.close()
            raise psycopg.OperationalError(fault)
        super()._vet(connection)

    @contextmanager
    def _reading(self, timeout: float | None, lsn: int) -> Iterator[PooledConnection]:
        began = monotonic()
        with ExitStack() as stack:
            left = self.timeout if timeout is None else timeout
            conn = self._enter_standby(stack, left, lsn)
            if conn is None:
                left -= monotonic() - began
                conn = stack.enter_context(super()._reading(max(left, 0), lsn))
            yield conn

    def _enter_standby(self, stack: ExitStack, seconds: float, lsn: int) -> PooledConnection | None:
        """Return a connection to a standby, which *stack* gives back, or None where none is fit."""
        deadline = monotonic() + seconds
        fit = self._cluster.standbys(monotonic(), self._max_lag)
        numbers = random.sample([*fit], len(fit))
        for number in sorted(numbers, key=lambda n: (-min(fit[n], lsn), self._servers[n].pool.lent)):
            server = self._servers[number]
            try:
                # Half of what is left is for the others, and for the primary.
                brief = min((deadline - monotonic()) / 2, _ANSWER)
                conn = stack.enter_context(server.pool.connection(brief, read_only=True))
                patience = min((deadline - monotonic()) / 2, self._replica_wait)
                if fit[number] >= lsn or self._replays(conn, lsn, patience):
                    return conn
                stack.close()
                break  # no other has replayed more
            except psycopg.OperationalError as error:
                logger.debug("no connection to %s: %s", server.name, error)
                stack.close()
        return None

    def _replays(self, conn: PooledConnection, lsn: int, seconds: float) -> bool:
        """Wait *seconds* at most until *conn*'s standby has replayed *lsn*, and return whether it has."""
        deadline = monotonic() + seconds
        conn.set_autocommit(True)
        while not (replayed := _queries.replayed.fetchval(conn, bool, lsn=as_text(lsn))):
            if monotonic() > deadline:
                break
            pause(_POLLS_AGAIN)
        conn.set_autocommit(False)
        return bool(replayed)

    def note(self, server: _Server, seen: Seen | None) -> None:
        """Take down what was *seen* of *server*, and go over to another primary if there is one."""
        with self._noting:
            self._cluster.note(server.number, seen)
            primary = self._cluster.primary()
            if primary is None or primary == self._primary:
                return
            before, self._primary = self._primary, primary
        if before is not None and not self.closed:
            logger.warning("%s is the primary now, and not %s", self._servers[primary].name, self._servers[before].name)
        if not self.closed:
            self.drain()


class _Server:
    """A server of a cluster: a pool of connections for reading from it, and a connection to look at it.

    system: see Seen. looked_at: whether it was, or was found not to answer.
    """

    def __init__(self, number: int, conninfo: str, settings: Settings, system: int) -> None:
        self.number = number
        self.conninfo = conninfo
        self.name = target({name: str(value) for name, value in conninfo_to_dict(conninfo).items()})
        self.pool = Pool(conninfo, replace(settings, search_sample=None), min_size=0, patience=0)
        self.system: int | None = None
        self.looked_at = False
        self._expected = system
        self._process = os.getpid()
        self._conn: BoundedConnection | None = None
        self._fault: str | None = None

    def look(self) -> Seen | None:
        """Ask the server where it is, and return None if it does not answer."""
        seen, fault = None, None
        try:
            if self._conn is None:
                brief = make_conninfo(self.conninfo, connect_timeout=_ANSWER)
                # A pooler may stand between, so nothing is prepared.
                self._conn = BoundedConnection.connect(brief, autocommit=True, prepare_threshold=None)
                self._conn.silence_timeout = _ANSWER
            seen = servers.position(self._conn)
            self.system = seen.system
            if seen.system != self._expected:
                fault = "it is a server of another cluster, and not read from"
        except psycopg.Error as error:
            fault = "it is silent" if isinstance(error, ServerSilent) else str(error).strip()
            forget(error, None)
            self._disconnect()
        if bool(fault) != bool(self._fault):
            logger.warning("%s: %s", self.name, fault or "it answers again")
        self._fault = fault
        if self.pool.closed:
            self._disconnect()
        return seen

    def close(self, timeout: float) -> None:
        """Close the pool, and the connection unless it is a parent process's."""
        self.pool.close(timeout)
        if os.getpid() == self._process:
            self._disconnect()

    def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()


class _Watch:
    """A task for the workers of a server's pool: to look at the server, again and again."""

    def __init__(self, cluster: ClusterPool, server: _Server) -> None:
        self._cluster = weakref.ref(cluster)
        self._server = server

    def tick(self) -> None:
        """Join the pool's queue. A pool's scheduler calls it."""
        self._server.pool.run_task(self)

    def run(self) -> None:
        cluster, server = self._cluster(), self._server
        if cluster is None or server.pool.closed:
            return
        try:
            cluster.note(server, server.look())
        finally:
            server.looked_at = True
            del cluster
            server.pool.schedule_task(cast(Any, self), _LOOKS_AGAIN)
