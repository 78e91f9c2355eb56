"""The reports: functions that read the server's statistics and change nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar, overload

import psycopg
from psycopg_pool import ConnectionPool

from ... import checks, migrations, sql
from ...errors import BackupError, InvalidValue, UnsupportedByServer
from ...search import VectorIndex, indexes
from ...sql import Connection
from ..backup import list_backups
from ..shards import Shard, by_table
from .rows import (
    Archiver,
    Bloat,
    Blocked,
    Cache,
    Checkpoints,
    Connections,
    Database,
    IndexRecall,
    IndexUse,
    Io,
    PoolUse,
    Progress,
    QueryUse,
    Replica,
    Rows,
    SampledSearches,
    ServerState,
    Size,
    Slot,
    Standby,
    StatementUse,
    TableUse,
    Transaction,
    Unavailable,
    VectorFault,
    VectorHealth,
    Visibility,
    Wal,
    WalFiles,
    Wraparound,
)

_queries = sql.Queries("monitoring")

R = TypeVar("R")

_PATIENCE: Final = "2s"
"""How long a report of collect waits for a lock; asking for a table's size takes one."""

_SWOLLEN: Final = 1.5
"""By what factor a vector index's bytes a row have to grow after its build until a rebuild pays."""

_SMALL: Final = 2**20
"""Bytes under which a vector index is not called swollen: pages are too coarse a measure."""

_PASSWORD: Final = re.compile(r"(password)(\s*=?\s*E?'+(?:[^']|'')*'?|\s*=\s*[^\s']+)", re.IGNORECASE)
"""A password in a statement: ALTER ROLE ... PASSWORD '...', or a conninfo's. The server may have cut off its end."""


def visibility(conn: Connection) -> Visibility:
    """Return the role that asks, and whether it sees other roles' sessions and statements, as pg_monitor's do."""
    return _one(conn, Visibility, _queries.sees_all)


def server(conn: Connection) -> ServerState:
    """Return the server's version, age and number of connections."""
    return _one(conn, ServerState, _queries.server)


def databases(conn: Connection) -> list[Database]:
    """Return every database that takes connections, by name."""
    return _all(conn, Database, _queries.databases)


def tables(conn: Connection) -> list[TableUse]:
    """Return the tables of this database, the largest first."""
    shards = by_table(conn)
    found = [_use(one, shards.get(one.table, [])) for one in _all(conn, TableUse, _queries.tables)]
    return sorted(found, key=lambda one: -one.live_rows)


def _use(table: TableUse, shards: Sequence[Shard]) -> TableUse:
    """Return *table* with what is said of its *shards*, if it has any: their sums, and the earliest times."""
    if not shards:
        return table
    vacuumed, analyzed = ([getattr(one, name) for one in shards] for name in ("vacuumed_at", "analyzed_at"))
    return TableUse(
        table=table.table,
        live_rows=sum(one.live_rows for one in shards),
        dead_rows=sum(one.dead_rows for one in shards),
        changed_rows=sum(one.changed_rows for one in shards),
        table_scans=sum(one.table_scans for one in shards),
        index_scans=sum(one.index_scans for one in shards),
        vacuumed_at=None if None in vacuumed else min(vacuumed),
        analyzed_at=None if None in analyzed else min(analyzed),
    )


def sizes(conn: Connection) -> list[Size]:
    """Return what the tables of this database take, the largest first."""
    shards = by_table(conn)
    found = [_size(one, shards.get(one.table, [])) for one in _all(conn, Size, _queries.sizes)]
    return sorted(found, key=lambda one: -one.total_bytes)


def _size(table: Size, shards: Sequence[Shard]) -> Size:
    """Return *table* with what its *shards* take, if it has any."""
    if not shards:
        return table
    heap, other, index = (
        sum(getattr(one, name) for one in shards) for name in ("heap_bytes", "other_bytes", "index_bytes")
    )
    return Size(table.table, heap, other, index, heap + other + index)


def index_use(conn: Connection) -> list[IndexUse]:
    """Return the indexes of this database, the most used first."""
    return _all(conn, IndexUse, _queries.indexes)


def cache(conn: Connection) -> list[Cache]:
    """Return how much of each table was found in the server's cache, the one with the most misses first."""
    return _all(conn, Cache, _queries.cache)


def statements(conn: Connection, *, limit: int = 10) -> list[StatementUse]:
    """Return the statements of this database that took the most time in total, from pg_stat_statements.

    Raises UnsupportedByServer where that is not set up, with what to do, and InvalidValue for a *limit* below 1.
    """
    found = _of_statements(conn, StatementUse, _queries.statements, limit)
    return [replace(one, query=_masked(one.query)) for one in found]


def queries(conn: Connection, *, limit: int = 20) -> list[QueryUse]:
    """Return the named queries that took the most time in total in this database: kimera_sql's and those of sql.load.

    Raises what statements raises.
    """
    return _of_statements(conn, QueryUse, _queries.queries, limit)


def _of_statements(conn: Connection, record: type[R], query: sql.Query, limit: int) -> list[R]:
    most = checks.limit(limit)
    advice = (
        "put pg_stat_statements into shared_preload_libraries, restart the server, and run CREATE EXTENSION "
        "pg_stat_statements in this database"
    )
    if not _queries.has_statements.fetchval(_server(conn), bool):
        raise UnsupportedByServer(f"pg_stat_statements is not installed: {advice}")
    try:
        with sql.atomic(conn):
            return _all(conn, record, query, limit=most)
    except psycopg.errors.ObjectNotInPrerequisiteState:
        raise UnsupportedByServer(f"the server has not loaded pg_stat_statements: {advice}") from None
    except psycopg.errors.UndefinedTable:
        raise UnsupportedByServer("pg_stat_statements is in a schema that is not in this role's search_path") from None


def connections(conn: Connection) -> list[Connections]:
    """Return the clients' connections, counted by database, role, application and state."""
    return _all(conn, Connections, _queries.connections)


def blocked(conn: Connection) -> list[Blocked]:
    """Return each session that waits for a lock with each one that it waits for, the longest wait first."""
    return [
        replace(one, query=_masked(one.query), blocker_query=_masked(one.blocker_query))
        for one in _all(conn, Blocked, _queries.blocked)
    ]


def transactions(conn: Connection, *, longer_than: float = 60.0) -> list[Transaction]:
    """Return other sessions' and prepared transactions that have been open for *longer_than* seconds, oldest first."""
    seconds = checks.number("longer_than", longer_than)
    if not 0 <= seconds <= 10**9:
        raise InvalidValue(f"longer_than: {seconds:g} is not within 0 to 1000000000 seconds")
    found = _all(conn, Transaction, _queries.transactions, seconds=seconds)
    return [replace(one, query=_masked(one.query)) for one in found]


def wal(conn: Connection) -> Wal:
    """Return how far the write-ahead log has come, and what was written to it."""
    return _one(conn, Wal, _queries.wal)


def wal_files(conn: Connection) -> WalFiles:
    """Return what the write-ahead log takes on disk. Raises psycopg's InsufficientPrivilege without pg_monitor."""
    return _one(conn, WalFiles, _queries.wal_files)


def archiver(conn: Connection) -> Archiver:
    """Return how archiving is doing."""
    return _one(conn, Archiver, _queries.archiver)


def checkpoints(conn: Connection) -> Checkpoints:
    """Return how many checkpoints there were, and what they wrote."""
    new = _server(conn).info.server_version >= 170000
    return _one(conn, Checkpoints, _queries.checkpoints if new else _queries.checkpoints_before_17)


def io(conn: Connection) -> list[Io]:
    """Return what each kind of process reads and writes. Raises UnsupportedByServer before PostgreSQL 16."""
    if _server(conn).info.server_version < 160000:
        raise UnsupportedByServer("statistics of input and output need PostgreSQL 16 (pg_stat_io)")
    return _all(conn, Io, _queries.io)


def replicas(conn: Connection) -> list[Replica]:
    """Return the standbys that are connected to this server, by name."""
    return _all(conn, Replica, _queries.replicas)


def standby(conn: Connection) -> list[Standby]:
    """Return how far this server is behind its primary; on a primary an empty list."""
    return _all(conn, Standby, _queries.standby)


def slots(conn: Connection) -> list[Slot]:
    """Return the replication slots, by name."""
    return _all(conn, Slot, _queries.slots)


def progress(conn: Connection) -> list[Progress]:
    """Return the VACUUMs, ANALYZEs and index builds in progress in this database."""
    return _all(conn, Progress, _queries.progress)


def wraparound(conn: Connection) -> list[Wraparound]:
    """Return how much of the room for transaction ids each database has used up, the most first."""
    return _all(conn, Wraparound, _queries.wraparound)


def bloat(conn: Connection) -> list[Bloat]:
    """Return the b-trees, with an estimate of how much of each is wasted, the most wasted first.

    The estimate fills leaf pages, up to the fillfactor, with the known number of entries of their average width. It
    follows PostgreSQL's documentation ("Database Page Layout", "B-Tree Indexes: Deduplication"). The width of a column
    that this role may not read, or that was never analysed, is not known unless its type fixes it. An index on several
    columns with many equal values may take less than estimated.
    """
    return _all(conn, Bloat, _queries.btree_bloat)


def vectors(conn: Connection) -> list[VectorHealth]:
    """Return the vector indexes that searches can use, with their faults.

    invalid: its build was not finished, or it covers a part of the table. untrained: ivfflat, built from fewer rows
    than it has lists, or from an unknown number, as when kimera_sql did not build it. aged: ivfflat, on a table with
    more than twice the rows it was built from, or less than half of them (indexes.GROWTH). swollen: it takes more than
    1.5 times the bytes a row that it took when built. unused: never scanned. untuned: recall.tune has not measured it.
    """
    return [_health(index) for index in indexes.existing(_server(conn))]


def _health(index: VectorIndex) -> VectorHealth:
    now = index.size / index.rows if index.rows else None
    built = index.size_at_build / index.rows_at_build if index.size_at_build and index.rows_at_build else None
    growth = now / built if now and built else None
    faults: dict[VectorFault, bool] = {
        "invalid": not index.usable,
        # On Citus each shard has as many lists.
        "untrained": index.lists is not None
        and (index.rows_at_build is None or index.rows_at_build < index.lists * (index.shards or 1)),
        "aged": index.lists is not None
        and index.rows_at_build is not None
        and not 1 / indexes.GROWTH <= index.live / max(index.rows_at_build, 1) <= indexes.GROWTH,
        "swollen": growth is not None and growth > _SWOLLEN and index.size > _SMALL,
        "unused": not index.scans,
        "untuned": not index.tuned,
    }
    return VectorHealth(
        index=index.name,
        table=index.table,
        method=index.method,
        precision=index.precision,
        size_bytes=index.size,
        rows=index.rows,
        rows_at_build=index.rows_at_build,
        bytes_a_row=now,
        bytes_a_row_at_build=built,
        growth=growth,
        scans=index.scans,
        faults=tuple(name for name, found in faults.items() if found),
    )


def recalls(conn: Connection) -> list[IndexRecall]:
    """Return the recall of each vector index that recall.tune has measured since it was built, by name and k."""
    return _all(conn, IndexRecall, _queries.recalls)


def sampled(conn: Connection) -> list[SampledSearches]:
    """Return what was sampled of each table's searches, with their recall as it was last measured, by table."""
    return _all(conn, SampledSearches, _queries.sampled)


def backups(folder: Path) -> Rows | Unavailable:
    """Return the backups in *folder*, the newest first; it is Unavailable if they cannot be read."""
    try:
        return list_backups(folder)
    except BackupError as error:
        return Unavailable(str(error))


def pool(pool: ConnectionPool[Any]) -> PoolUse:
    """Return how *pool*, from open_pool or from psycopg_pool, is used. Raises UnsupportedByServer for SQLite's."""
    if not isinstance(pool, ConnectionPool):
        raise UnsupportedByServer(f"a {type(pool).__name__} keeps no statistics; a pool of PostgreSQL connections does")
    # What has not happened yet is left out of get_stats.
    stats = pool.get_stats()
    return PoolUse(
        pool=pool.name,
        size=stats.get("pool_size", 0),
        idle=stats.get("pool_available", 0),
        max_size=stats.get("pool_max", 0),
        waiting=stats.get("requests_waiting", 0),
        requests=stats.get("requests_num", 0),
        waited=stats.get("requests_queued", 0),
        waited_seconds=stats.get("requests_wait_ms", 0) / 1000,
        used_seconds=stats.get("usage_ms", 0) / 1000,
        errors=stats.get("requests_errors", 0),
        connecting_errors=stats.get("connections_errors", 0),
        lost=stats.get("connections_lost", 0) + stats.get("returns_bad", 0),
    )


REPORTS: Final[Mapping[str, Callable[[Connection], Rows]]] = {
    "server": lambda conn: [server(conn)],
    "databases": databases,
    "sizes": sizes,
    "tables": tables,
    "indexes": index_use,
    "vectors": vectors,
    "recall": recalls,
    "sampled": sampled,
    "bloat": bloat,
    "cache": cache,
    "statements": statements,
    "queries": queries,
    "connections": connections,
    "locks": blocked,
    "transactions": transactions,
    "progress": progress,
    "wal": lambda conn: [wal(conn)],
    "wal-files": lambda conn: [wal_files(conn)],
    "archiver": lambda conn: [archiver(conn)],
    "checkpoints": lambda conn: [checkpoints(conn)],
    "io": io,
    "replicas": replicas,
    "standby": standby,
    "slots": slots,
    "wraparound": wraparound,
}
"""The reports of collect, by name."""


def collect(conn: Connection, names: Iterable[str] | None = None) -> dict[str, Rows | Unavailable]:
    """Return the reports of *names*, all of REPORTS unless given, by name; see attempt for those that cannot be had.

    Raises InvalidValue for an unknown name, and UnsupportedByServer on SQLite.
    """
    wanted = list(REPORTS if names is None else dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in REPORTS]:
        raise InvalidValue(f"names: there is no report {unknown[0]!r}; there are {', '.join(REPORTS)}")
    _server(conn)
    return {name: attempt(conn, REPORTS[name]) for name in wanted}


def attempt(conn: Connection, report: Callable[[Connection], R]) -> R | Unavailable:
    """Return what *report* gives, without harm to the caller's transaction where it fails.

    It is an Unavailable where this role may not have the report, where the server lacks it, and where it waits for a
    lock for more than 2 s. Raises UnsupportedByServer on SQLite.
    """
    _server(conn)
    try:
        with sql.atomic(conn):
            before = _queries.lock_timeout.fetchval(conn, str)
            _queries.set_lock_timeout.fetchval(conn, str, duration=_PATIENCE)
            rows = report(conn)
            # The caller's transaction goes on with its own; after an error the savepoint sees to that.
            _queries.set_lock_timeout.fetchval(conn, str, duration=before)
            return rows
    except UnsupportedByServer as error:
        return Unavailable(str(error))
    except psycopg.errors.InsufficientPrivilege as error:
        role = visibility(conn).role
        return Unavailable(f"{_message(error)}; GRANT pg_monitor, or SELECT on that table, to {role}")
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedObject) as error:
        return Unavailable(str(migrations.misplaced(conn) or f"{_message(error)}; run kimera-sql init"))
    except psycopg.errors.LockNotAvailable:
        return Unavailable(f"a table was locked for more than {_PATIENCE}; see the report locks")


def _message(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error)


@overload
def _masked(query: str) -> str: ...
@overload
def _masked(query: str | None) -> str | None: ...
def _masked(query: str | None) -> str | None:
    """Return *query* without the passwords in it."""
    return query if query is None else _PASSWORD.sub(r"\1 ***", query)


def _server(conn: Connection) -> psycopg.Connection[Any]:
    return sql.require_postgres(conn, "SQLite keeps no statistics; monitoring needs PostgreSQL")


def _all(conn: Connection, record: type[R], query: sql.Query, **parameters: Any) -> list[R]:
    return query.fetchall(_server(conn), record, **parameters)


def _one(conn: Connection, record: type[R], query: sql.Query) -> R:
    (row,) = _all(conn, record, query)
    return row
