"""What goes on in the server and how it is doing: reports that are read from its statistics and change nothing.

A report is a function that takes a PostgreSQL connection and returns frozen dataclasses, a row each. A role that is a
member of pg_monitor sees everything; what another role is not shown is None, "hidden", or an Unavailable of collect.
Passwords in statements are masked. Sizes are in bytes, times in seconds. Counters count since the server's statistics
were last reset.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, overload

import psycopg
from psycopg_pool import ConnectionPool

from .. import checks, metrics, sql
from ..errors import InvalidValue, UnsupportedByServer
from ..search import VectorIndex, indexes
from ..sql import Connection

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_queries = sql.Queries("monitoring")

R = TypeVar("R")

_PATIENCE: Final = "2s"
"""How long a report of collect waits for a lock, which asking for a table's size takes."""

_SWOLLEN: Final = 1.5
"""How many times a vector index's bytes a row after its build say that a rebuild would pay."""

_SMALL: Final = 2**20
"""Bytes under which a vector index is not called swollen: pages are too coarse a measure."""

_PASSWORD: Final = re.compile(r"(password)(\s*=?\s*E?'+(?:[^']|'')*'?|\s*=\s*[^\s']+)", re.IGNORECASE)
"""A password in a statement: ALTER ROLE ... PASSWORD '...', or a conninfo's. A statement that was cut has no end."""

COMPONENT: Final = "database"
"""The component that record stores the numbers under."""


@dataclass(frozen=True, slots=True)
class Server:
    """The server. version, pgvector: as they name themselves. connections: of clients, of max_connections."""

    version: str
    pgvector: str | None
    started_at: datetime
    uptime_seconds: float
    standby: bool
    connections: int
    max_connections: int


@dataclass(frozen=True, slots=True)
class Database:
    """A database. size_bytes: None where this role may not ask. hit_ratio: blocks found in the server's cache."""

    database: str
    size_bytes: int | None
    connections: int
    commits: int
    rollbacks: int
    blocks_hit: int
    blocks_read: int
    hit_ratio: float | None
    deadlocks: int
    temporary_bytes: int
    checksum_failures: int | None
    counted_since: datetime | None


@dataclass(frozen=True, slots=True)
class TableUse:
    """A table's rows, by the statistics' estimate, and its care. changed_rows: since it was analysed."""

    table: str
    live_rows: int
    dead_rows: int
    changed_rows: int
    table_scans: int
    index_scans: int
    vacuumed_at: datetime | None
    analyzed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Size:
    """What a table takes. other_bytes: TOAST and the maps of free space and visibility."""

    table: str
    heap_bytes: int
    other_bytes: int
    index_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class IndexUse:
    """An index and how much it is used. scanned_at: known since PostgreSQL 16. valid: its build was finished."""

    index: str
    table: str
    method: str
    scans: int
    entries_read: int
    rows_fetched: int
    scanned_at: datetime | None
    size_bytes: int
    is_unique: bool
    valid: bool


@dataclass(frozen=True, slots=True)
class Cache:
    """How many of a table's blocks were found in the server's cache. hit_ratio: with its TOAST; None unread."""

    table: str
    heap_hit: int
    heap_read: int
    index_hit: int
    index_read: int
    hit_ratio: float | None


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement of pg_stat_statements. query: None where it is hidden; ours begin with their name.

    read_seconds: spent on reading blocks, 0 while track_io_timing is off.
    """

    query: str | None
    calls: int
    rows: int
    total_seconds: float
    mean_seconds: float
    max_seconds: float
    hit_ratio: float | None
    read_seconds: float | None


@dataclass(frozen=True, slots=True)
class Connections:
    """Connections of one kind. role: None once it was dropped. state: as pg_stat_activity has it, or hidden.

    longest_seconds: in that state.
    """

    database: str
    role: str | None
    application: str
    state: str
    connections: int
    longest_seconds: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """One who waits for a lock, and one of those who hold it up. blocker_pid: 0 for a prepared transaction."""

    pid: int
    role: str | None
    application: str
    waiting_seconds: float
    kind: str
    mode: str
    relation: str | None
    query: str
    blocker_pid: int
    blocker_application: str | None
    blocker_state: str | None
    blocker_query: str | None


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction that is open. pid: None for a prepared one, whose query is its identifier.

    idle_seconds: how long it has done nothing, None while it runs. held_transactions: the age of its snapshot, in
    transactions whose dead rows no VACUUM can remove.
    """

    pid: int | None
    database: str
    role: str | None
    application: str | None
    state: str
    open_seconds: float
    idle_seconds: float | None
    held_transactions: int | None
    query: str


@dataclass(frozen=True, slots=True)
class Wal:
    """The write-ahead log. full_pages: pages written whole. buffers_full: writes because its buffers were full."""

    position: str
    records: int
    full_pages: int
    bytes: int
    buffers_full: int
    counted_since: datetime | None


@dataclass(frozen=True, slots=True)
class WalFiles:
    """The files of the write-ahead log. waiting: to be archived."""

    files: int
    bytes: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Archiver:
    """Archiving. mode: off, on or always. failing: the last attempt failed."""

    mode: str
    archived: int
    last_archived: str | None
    archived_at: datetime | None
    failed: int
    last_failed: str | None
    failed_at: datetime | None
    failing: bool


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Checkpoints: because it was time, or because so much was written (requested). buffers: written by them."""

    timed: int
    requested: int
    write_seconds: float
    sync_seconds: float
    buffers: int
    counted_since: datetime | None


@dataclass(frozen=True, slots=True)
class Io:
    """Reads and writes of one kind of process on one kind of object (pg_stat_io)."""

    process: str
    object: str
    context: str
    reads: int
    read_bytes: int
    writes: int
    written_bytes: int
    hits: int
    evictions: int
    fsyncs: int


@dataclass(frozen=True, slots=True)
class Replica:
    """A standby that is connected. behind_bytes, behind_seconds: what it has not replayed; None where hidden."""

    application: str | None
    address: str | None
    state: str | None
    synchrony: str | None
    behind_bytes: int | None
    behind_seconds: float | None


@dataclass(frozen=True, slots=True)
class Standby:
    """This server as a standby. replayed_seconds_ago: the age of the last commit it has replayed."""

    received: str | None
    replayed: str | None
    behind_bytes: int | None
    replayed_seconds_ago: float | None


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot. held_bytes: of write-ahead log that it keeps. held_transactions: see Transaction."""

    slot: str
    kind: str
    active: bool
    wal_status: str | None
    held_bytes: int | None
    held_transactions: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """A VACUUM, ANALYZE or build of an index that goes on. done, total: of the phase; None where hidden."""

    pid: int
    operation: str
    relation: str | None
    phase: str | None
    done: int | None
    total: int | None


@dataclass(frozen=True, slots=True)
class Wraparound:
    """How old a database's oldest transaction and multixact ids are. used_ratio: of the 2^31 there is room for."""

    database: str
    transactions: int
    multixacts: int
    used_ratio: float


@dataclass(frozen=True, slots=True)
class Bloat:
    """A b-tree's size and an estimate of what a new one would take; None while a column's width is not known."""

    index: str
    table: str
    size_bytes: int
    expected_bytes: int | None
    wasted_bytes: int | None
    wasted_ratio: float | None


@dataclass(frozen=True, slots=True)
class VectorHealth:
    """A vector index. bytes_a_row, bytes_a_row_at_build: None without rows or without a record of the build.

    growth: the one over the other. faults: of invalid, untrained, aged, swollen, unused and untuned; see vectors.
    """

    index: str
    table: str
    method: str
    precision: str
    size_bytes: int
    rows: int
    rows_at_build: int | None
    bytes_a_row: float | None
    bytes_a_row_at_build: float | None
    growth: float | None
    scans: int
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool of this process (psycopg_pool's get_stats). size: its connections, of which idle are free.

    waiting: requests for a connection that wait now; waited: all that had to. waited_seconds: in all. used_seconds:
    that connections were out. errors: requests that got none. connecting_errors: attempts to connect that failed.
    lost: connections found broken when they came back or were checked.
    """

    pool: str
    size: int
    idle: int
    max_size: int
    waiting: int
    requests: int
    waited: int
    waited_seconds: float
    used_seconds: float
    errors: int
    connecting_errors: int
    lost: int


@dataclass(frozen=True, slots=True)
class Visibility:
    """Who asks, and whether it sees what other roles do."""

    role: str
    sees_all: bool


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A report that cannot be had. reason: why, and what to do."""

    reason: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A number for a time series: a metric's name as in Prometheus, its value, and its labels."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


def visibility(conn: Connection) -> Visibility:
    """Return who asks, and whether it is shown other roles' sessions and statements (pg_monitor gives that)."""
    return _one(conn, Visibility, _queries.sees_all)


def server(conn: Connection) -> Server:
    """Return the server's version, age and number of connections."""
    return _one(conn, Server, _queries.server)


def databases(conn: Connection) -> list[Database]:
    """Return every database that takes connections, by name."""
    return _all(conn, Database, _queries.databases)


def tables(conn: Connection) -> list[TableUse]:
    """Return the tables of this database, the largest first."""
    return _all(conn, TableUse, _queries.tables)


def sizes(conn: Connection) -> list[Size]:
    """Return what the tables of this database take, the largest first."""
    return _all(conn, Size, _queries.sizes)


def index_use(conn: Connection) -> list[IndexUse]:
    """Return the indexes of this database, the most used first."""
    return _all(conn, IndexUse, _queries.indexes)


def cache(conn: Connection) -> list[Cache]:
    """Return how well the server's cache serves each table, the one with the most misses first."""
    return _all(conn, Cache, _queries.cache)


def statements(conn: Connection, *, limit: int = 10) -> list[Statement]:
    """Return the statements of this database that took the longest in all, with pg_stat_statements.

    Raises UnsupportedByServer where that is not set up, with what to do, and InvalidValue for a *limit* below 1.
    """
    most = checks.limit(limit)
    advice = (
        "put pg_stat_statements into shared_preload_libraries, restart the server, and run CREATE EXTENSION "
        "pg_stat_statements in this database"
    )
    if not _queries.has_statements.fetchval(_server(conn), bool):
        raise UnsupportedByServer(f"pg_stat_statements is not installed: {advice}")
    try:
        with sql.atomic(conn):
            found = _all(conn, Statement, _queries.statements, limit=most)
    except psycopg.errors.ObjectNotInPrerequisiteState:
        raise UnsupportedByServer(f"the server has not loaded pg_stat_statements: {advice}") from None
    except psycopg.errors.UndefinedTable:
        raise UnsupportedByServer("pg_stat_statements is in a schema that is not in this role's search_path") from None
    return [replace(one, query=_masked(one.query)) for one in found]


def connections(conn: Connection) -> list[Connections]:
    """Return the clients' connections, counted by database, role, application and state."""
    return _all(conn, Connections, _queries.connections)


def blocked(conn: Connection) -> list[Blocked]:
    """Return who waits for a lock with who holds it up, a pair each, the longest wait first."""
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
    """Return how far the write-ahead log is and what was written to it."""
    return _one(conn, Wal, _queries.wal)


def wal_files(conn: Connection) -> WalFiles:
    """Return what the write-ahead log takes on disk; it needs pg_monitor (psycopg's InsufficientPrivilege)."""
    return _one(conn, WalFiles, _queries.wal_files)


def archiver(conn: Connection) -> Archiver:
    """Return how archiving goes."""
    return _one(conn, Archiver, _queries.archiver)


def checkpoints(conn: Connection) -> Checkpoints:
    """Return how many checkpoints there were, and why."""
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
    """Return how far this server is behind as a standby; on a primary nothing."""
    return _all(conn, Standby, _queries.standby)


def slots(conn: Connection) -> list[Slot]:
    """Return the replication slots, by name."""
    return _all(conn, Slot, _queries.slots)


def progress(conn: Connection) -> list[Progress]:
    """Return the VACUUMs, ANALYZEs and builds of indexes that go on in this database."""
    return _all(conn, Progress, _queries.progress)


def wraparound(conn: Connection) -> list[Wraparound]:
    """Return how much of the room for transaction ids each database has used up, the most first."""
    return _all(conn, Wraparound, _queries.wraparound)


def bloat(conn: Connection) -> list[Bloat]:
    """Return the b-trees with an estimate of what of their size is waste, the most first.

    The estimate fills leaf pages with the known number of entries of their average width, as the layout of pages
    and of b-trees in PostgreSQL's documentation has it ("Database Page Layout", "B-Tree Indexes: Deduplication"),
    up to the fillfactor. The widths of columns that this role may not read, or that were never analysed, are not
    known unless their type fixes them. An index over several columns with many equal values may take less.
    """
    return _all(conn, Bloat, _queries.btree_bloat)


def vectors(conn: Connection) -> list[VectorHealth]:
    """Return the vector indexes that searches can use, with their faults.

    invalid: a build that was not finished, or an index of a part of the table. untrained: ivfflat, built from fewer
    rows than it has lists, or from nobody knows how many, as when kimera_sql did not build it. aged: ivfflat, on more
    than twice the rows it was built from (indexes.GROWTH). swollen: more than 1.5 times the bytes a row of its build.
    unused: never scanned. untuned: recall.tune has not seen it.
    """
    return [_health(index) for index in indexes.existing(_server(conn))]


def _health(index: VectorIndex) -> VectorHealth:
    now = index.size / index.rows if index.rows else None
    built = index.size_at_build / index.rows_at_build if index.size_at_build and index.rows_at_build else None
    growth = now / built if now and built else None
    faults = {
        "invalid": not index.usable,
        "untrained": index.lists is not None and (index.rows_at_build is None or index.rows_at_build < index.lists),
        "aged": index.lists is not None
        and index.rows_at_build is not None
        and index.rows > indexes.GROWTH * index.rows_at_build,
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


def pool(pool: ConnectionPool[Any]) -> PoolUse:
    """Return how *pool*, of open_pool or psycopg_pool's own, is used. Raises UnsupportedByServer for SQLite's."""
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


Rows: TypeAlias = "Sequence[DataclassInstance]"

REPORTS: Final[Mapping[str, Callable[[Connection], Rows]]] = {
    "server": lambda conn: [server(conn)],
    "databases": databases,
    "sizes": sizes,
    "tables": tables,
    "indexes": index_use,
    "vectors": vectors,
    "bloat": bloat,
    "cache": cache,
    "statements": statements,
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
    """Return the reports of *names*, all of REPORTS unless given, by name.

    One that this role may not have, that the server lacks or that waits for a lock for 2 s is an Unavailable; the
    caller's transaction goes on. Raises InvalidValue for a name that there is not, and UnsupportedByServer on SQLite.
    """
    wanted = list(REPORTS if names is None else dict.fromkeys(names))
    if unknown := [name for name in wanted if name not in REPORTS]:
        raise InvalidValue(f"names: there is no report {unknown[0]!r}; there are {', '.join(REPORTS)}")
    _server(conn)
    return {name: _attempt(conn, REPORTS[name]) for name in wanted}


def _attempt(conn: Connection, report: Callable[[Connection], Rows]) -> Rows | Unavailable:
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
        return Unavailable(f"{_said(error)}; GRANT pg_monitor, or SELECT on that table, to {role}")
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedFunction, psycopg.errors.UndefinedObject) as error:
        return Unavailable(f"{_said(error)}; run kimera-sql init")
    except psycopg.errors.LockNotAvailable:
        return Unavailable(f"a table was locked for more than {_PATIENCE}; see the report locks")


def _said(error: psycopg.Error) -> str:
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


# ---- Time series ----

_Values: TypeAlias = Iterator[tuple[dict[str, str], Any]]


@dataclass(frozen=True, slots=True)
class _Metric:
    """A metric: its name, gauge or counter, what it is, the report it is read from, and how."""

    name: str
    kind: str
    help: str
    report: str
    read: Callable[[Rows], _Values]


def _each(field: str, *labels: str) -> Callable[[Rows], _Values]:
    def read(rows: Rows) -> _Values:
        for row in rows:
            yield {label: str(getattr(row, label) or "") for label in labels}, getattr(row, field)

    return read


def _count(rows: Rows) -> _Values:
    yield {}, len(rows)


def _distinct(field: str) -> Callable[[Rows], _Values]:
    def read(rows: Rows) -> _Values:
        yield {}, len({getattr(row, field) for row in rows})

    return read


def _most(field: str) -> Callable[[Rows], _Values]:
    def read(rows: Rows) -> _Values:
        yield {}, max((getattr(row, field) or 0 for row in rows), default=0)

    return read


def _faults(rows: Rows) -> _Values:
    for row in rows:
        assert isinstance(row, VectorHealth)  # noqa: S101 - the report vectors has no other
        for fault in ("invalid", "untrained", "aged", "swollen", "unused", "untuned"):
            yield {"index": row.index, "fault": fault}, fault in row.faults


def _information(rows: Rows) -> _Values:
    for row in rows:
        assert isinstance(row, Server)  # noqa: S101 - the report server has no other
        yield {"version": row.version, "pgvector": row.pgvector or ""}, 1


# Names and units as https://prometheus.io/docs/practices/naming/ has them: base units, _total for counters.
_METRICS: Final = (
    _Metric("kimera_server_info", "gauge", "Versions of the server and of pgvector; always 1.", "server", _information),
    _Metric(
        "kimera_server_uptime_seconds", "gauge", "Time since the server started.", "server", _each("uptime_seconds")
    ),
    _Metric("kimera_server_standby", "gauge", "1 on a standby.", "server", _each("standby")),
    _Metric("kimera_server_connections", "gauge", "Connections of clients.", "server", _each("connections")),
    _Metric("kimera_server_max_connections", "gauge", "The setting.", "server", _each("max_connections")),
    _Metric("kimera_database_size_bytes", "gauge", "Size of a database.", "databases", _each("size_bytes", "database")),
    _Metric(
        "kimera_database_commits_total", "counter", "Transactions committed.", "databases", _each("commits", "database")
    ),
    _Metric(
        "kimera_database_rollbacks_total",
        "counter",
        "Transactions rolled back.",
        "databases",
        _each("rollbacks", "database"),
    ),
    _Metric(
        "kimera_database_blocks_hit_total",
        "counter",
        "Blocks found in the server's cache.",
        "databases",
        _each("blocks_hit", "database"),
    ),
    _Metric(
        "kimera_database_blocks_read_total",
        "counter",
        "Blocks not found in the server's cache.",
        "databases",
        _each("blocks_read", "database"),
    ),
    _Metric("kimera_database_deadlocks_total", "counter", "Deadlocks.", "databases", _each("deadlocks", "database")),
    _Metric(
        "kimera_database_temporary_bytes_total",
        "counter",
        "Written to temporary files.",
        "databases",
        _each("temporary_bytes", "database"),
    ),
    _Metric(
        "kimera_database_checksum_failures_total",
        "counter",
        "Pages whose checksum was wrong.",
        "databases",
        _each("checksum_failures", "database"),
    ),
    _Metric("kimera_table_size_bytes", "gauge", "Size of a table with all.", "sizes", _each("total_bytes", "table")),
    _Metric("kimera_table_live_rows", "gauge", "Rows, estimated.", "tables", _each("live_rows", "table")),
    _Metric("kimera_table_dead_rows", "gauge", "Dead rows, estimated.", "tables", _each("dead_rows", "table")),
    _Metric("kimera_table_scans_total", "counter", "Scans of the table.", "tables", _each("table_scans", "table")),
    _Metric("kimera_index_size_bytes", "gauge", "Size of an index.", "indexes", _each("size_bytes", "index", "table")),
    _Metric("kimera_index_scans_total", "counter", "Scans of an index.", "indexes", _each("scans", "index", "table")),
    _Metric("kimera_index_valid", "gauge", "0 for an unfinished index.", "indexes", _each("valid", "index", "table")),
    _Metric(
        "kimera_vector_index_growth_ratio",
        "gauge",
        "Bytes a row now over those at the build.",
        "vectors",
        _each("growth", "index"),
    ),
    _Metric("kimera_vector_index_fault", "gauge", "1 where the vector index has the fault.", "vectors", _faults),
    _Metric(
        "kimera_btree_wasted_bytes", "gauge", "Waste in a b-tree, estimated.", "bloat", _each("wasted_bytes", "index")
    ),
    _Metric(
        "kimera_table_cache_hit_ratio",
        "gauge",
        "A table's blocks found in the server's cache.",
        "cache",
        _each("hit_ratio", "table"),
    ),
    _Metric(
        "kimera_connections",
        "gauge",
        "Connections of clients by who and in which state.",
        "connections",
        _each("connections", "database", "role", "application", "state"),
    ),
    _Metric("kimera_blocked_sessions", "gauge", "Sessions that wait for a lock.", "locks", _distinct("pid")),
    _Metric("kimera_blocked_longest_seconds", "gauge", "Longest wait for a lock.", "locks", _most("waiting_seconds")),
    _Metric("kimera_long_transactions", "gauge", "Transactions open for a minute.", "transactions", _count),
    _Metric(
        "kimera_long_transaction_longest_seconds",
        "gauge",
        "Age of the oldest transaction of those.",
        "transactions",
        _most("open_seconds"),
    ),
    _Metric("kimera_wal_written_bytes_total", "counter", "Write-ahead log written.", "wal", _each("bytes")),
    _Metric("kimera_wal_size_bytes", "gauge", "Write-ahead log on disk.", "wal-files", _each("bytes")),
    _Metric("kimera_wal_waiting_files", "gauge", "Files that wait to be archived.", "wal-files", _each("waiting")),
    _Metric("kimera_archived_files_total", "counter", "Files archived.", "archiver", _each("archived")),
    _Metric("kimera_archiving_failures_total", "counter", "Attempts that failed.", "archiver", _each("failed")),
    _Metric("kimera_archiving_failing", "gauge", "1 when the last attempt failed.", "archiver", _each("failing")),
    _Metric("kimera_checkpoints_timed_total", "counter", "Checkpoints by time.", "checkpoints", _each("timed")),
    _Metric("kimera_checkpoints_requested_total", "counter", "Other checkpoints.", "checkpoints", _each("requested")),
    _Metric(
        "kimera_checkpoint_write_seconds_total",
        "counter",
        "Time spent on writing at checkpoints.",
        "checkpoints",
        _each("write_seconds"),
    ),
    _Metric(
        "kimera_io_read_bytes_total", "counter", "Read.", "io", _each("read_bytes", "process", "object", "context")
    ),
    _Metric(
        "kimera_io_written_bytes_total",
        "counter",
        "Written.",
        "io",
        _each("written_bytes", "process", "object", "context"),
    ),
    _Metric(
        "kimera_replica_behind_bytes",
        "gauge",
        "Write-ahead log that a standby has not replayed.",
        "replicas",
        _each("behind_bytes", "application", "address"),
    ),
    _Metric(
        "kimera_replica_behind_seconds",
        "gauge",
        "The same in time.",
        "replicas",
        _each("behind_seconds", "application", "address"),
    ),
    _Metric(
        "kimera_standby_replayed_seconds_ago",
        "gauge",
        "Age of the last commit that this standby has replayed.",
        "standby",
        _each("replayed_seconds_ago"),
    ),
    _Metric("kimera_slot_active", "gauge", "1 while a slot is in use.", "slots", _each("active", "slot")),
    _Metric(
        "kimera_slot_held_bytes", "gauge", "Write-ahead log that a slot keeps.", "slots", _each("held_bytes", "slot")
    ),
    _Metric(
        "kimera_wraparound_used_ratio",
        "gauge",
        "Transaction ids used up, of the 2^31 there is room for.",
        "wraparound",
        _each("used_ratio", "database"),
    ),
    _Metric("kimera_pool_connections", "gauge", "Connections of a pool.", "pool", _each("size", "pool")),
    _Metric("kimera_pool_idle_connections", "gauge", "Those that are free.", "pool", _each("idle", "pool")),
    _Metric("kimera_pool_max_connections", "gauge", "The most it opens.", "pool", _each("max_size", "pool")),
    _Metric("kimera_pool_waiting_requests", "gauge", "Requests that wait.", "pool", _each("waiting", "pool")),
    _Metric("kimera_pool_requests_total", "counter", "Requests.", "pool", _each("requests", "pool")),
    _Metric("kimera_pool_waited_requests_total", "counter", "Requests that waited.", "pool", _each("waited", "pool")),
    _Metric("kimera_pool_waited_seconds_total", "counter", "Time waited.", "pool", _each("waited_seconds", "pool")),
    _Metric("kimera_pool_used_seconds_total", "counter", "Time in use.", "pool", _each("used_seconds", "pool")),
    _Metric("kimera_pool_errors_total", "counter", "Requests that got no connection.", "pool", _each("errors", "pool")),
    _Metric(
        "kimera_pool_connecting_errors_total",
        "counter",
        "Attempts to connect that failed.",
        "pool",
        _each("connecting_errors", "pool"),
    ),
    _Metric(
        "kimera_pool_lost_connections_total", "counter", "Connections found broken.", "pool", _each("lost", "pool")
    ),
)


MEASURED: Final = frozenset(metric.report for metric in _METRICS) & REPORTS.keys()
"""The reports that samples reads numbers from."""


def samples(reports: Mapping[str, Rows | Unavailable]) -> list[Sample]:
    """Return the numbers of *reports*, as collect returns them; {"pool": [pool(...)]} can be among them.

    Yes and no are 1 and 0. What is not known is left out. Where two rows have the same labels the larger one counts.
    """
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for metric in _METRICS:
        rows = reports.get(metric.report)
        if rows is None or isinstance(rows, Unavailable):
            continue
        for labels, value in metric.read(rows):
            if value is not None and math.isfinite(value):
                key = metric.name, tuple(labels.items())
                found[key] = max(found.get(key, -math.inf), float(value))
    return [Sample(name, value, dict(labels)) for (name, labels), value in found.items()]


def exposition(samples: Iterable[Sample]) -> str:
    """Return *samples*, which samples made, in Prometheus' text format 0.0.4.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    lines: dict[str, list[str]] = {}
    for sample in samples:
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
        number = f"{sample.value:.0f}" if sample.value.is_integer() else repr(sample.value)
        name = f"{sample.name}{{{labels}}}" if labels else sample.name
        lines.setdefault(sample.name, []).append(f"{name} {number}\n")
    text = []
    for metric in _METRICS:
        if metric.name in lines:
            text += [f"# HELP {metric.name} {metric.help}\n", f"# TYPE {metric.name} {metric.kind}\n"]
            text += lines[metric.name]
    return "".join(text)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def record(conn: Connection, samples: Iterable[Sample]) -> int:
    """Store *samples* into system_metrics, all or none, and return how many there were.

    metric_name is the sample's name, component "database", context its labels; all have the same time.
    """
    return metrics.insert_many(
        conn,
        (
            metrics.NewMetric(
                metric_name=sample.name, metric_value=sample.value, component=COMPONENT, context=dict(sample.labels)
            )
            for sample in samples
        ),
    )
