"""The rows of the reports, one dataclass for each kind. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Rows: TypeAlias = "Sequence[DataclassInstance]"
"""What a report gives."""

VectorFault: TypeAlias = Literal["invalid", "untrained", "aged", "swollen", "unused", "untuned"]
"""What can be wrong with a vector index; see vectors."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A report that cannot be had. reason: why, and what to do."""

    reason: str


@dataclass(frozen=True, slots=True)
class Visibility:
    """The role that asks, and whether it sees what other roles do."""

    role: str
    sees_all: bool


@dataclass(frozen=True, slots=True)
class ServerState:
    """The server. version, pgvector: as they name themselves. connections: of clients, out of max_connections."""

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
    """A table's rows, as the statistics estimate them, and its upkeep. changed_rows: since the last ANALYZE."""

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
    """What a table takes on disk. other_bytes: TOAST, and the maps of free space and visibility."""

    table: str
    heap_bytes: int
    other_bytes: int
    index_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class IndexUse:
    """An index, and how much it is used. scanned_at: known since PostgreSQL 16. valid: its build was finished."""

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
    """How many of a table's blocks were in the server's cache. hit_ratio: TOAST included; None if none was read."""

    table: str
    heap_hit: int
    heap_read: int
    index_hit: int
    index_read: int
    hit_ratio: float | None


@dataclass(frozen=True, slots=True)
class StatementUse:
    """A statement of pg_stat_statements. query: None where it is hidden; ours have their name behind the first word.

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
class QueryUse:
    """A named query in pg_stat_statements, as "geoids.similar". It sums up all entries that have its name."""

    query: str
    calls: int
    rows: int
    total_seconds: float


@dataclass(frozen=True, slots=True)
class Connections:
    """Connections of one kind. role: None once it was dropped. state: as in pg_stat_activity, or "hidden".

    longest_seconds: the longest time that one of them has been in that state.
    """

    database: str
    role: str | None
    application: str
    state: str
    connections: int
    longest_seconds: float


@dataclass(frozen=True, slots=True)
class Blocked:
    """A session that waits for a lock, and one that it waits for. blocker_pid: 0 for a prepared transaction."""

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
    """An open transaction. pid: None for a prepared one, whose query is its identifier.

    idle_seconds: how long it has done nothing, None while it runs. held_transactions: the age of its snapshot, in
    transactions; VACUUM cannot remove the rows that died in these.
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
    """The files of the write-ahead log. waiting: those still to be archived."""

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
    """Checkpoints: timed, or requested because so much was written. buffers: how many they wrote."""

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
    """A connected standby. behind_bytes, behind_seconds: what it has not replayed; None where hidden."""

    application: str | None
    address: str | None
    state: str | None
    synchrony: str | None
    behind_bytes: int | None
    behind_seconds: float | None


@dataclass(frozen=True, slots=True)
class Standby:
    """This server as a standby. replayed_seconds_ago: the age of the last commit that it has replayed."""

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
    """A VACUUM, ANALYZE or index build in progress. done, total: of this phase; None where hidden."""

    pid: int
    operation: str
    relation: str | None
    phase: str | None
    done: int | None
    total: int | None


@dataclass(frozen=True, slots=True)
class Wraparound:
    """The age of a database's oldest transaction and multixact ids. used_ratio: of the 2^31 there is room for."""

    database: str
    transactions: int
    multixacts: int
    used_ratio: float


@dataclass(frozen=True, slots=True)
class Bloat:
    """A b-tree's size beside an estimate of a new one's, None while the width of a column is not known."""

    index: str
    table: str
    size_bytes: int
    expected_bytes: int | None
    wasted_bytes: int | None
    wasted_ratio: float | None


@dataclass(frozen=True, slots=True)
class VectorHealth:
    """A vector index. bytes_a_row, bytes_a_row_at_build: None without rows, or without a record of the build.

    growth: bytes_a_row over bytes_a_row_at_build. faults: see vectors.
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
    faults: tuple[VectorFault, ...]


@dataclass(frozen=True, slots=True)
class IndexRecall:
    """The recall of a vector index for k neighbours, as recall.tune has measured it.

    recall: the highest target that the index reaches, with setting as its ef_search or probes; 0 if it reaches none.
    """

    index: str
    table: str
    k: int
    recall: float
    setting: int | None
    measured_at: datetime


@dataclass(frozen=True, slots=True)
class SampledSearches:
    """What was sampled of a table's searches. sampled_at: when the last one was.

    The rest is what recall.check or recall.tune last measured of their recall: for k rows each, with its 95 %
    confidence interval. It is None where nothing was measured since the index was built.
    """

    table: str
    searches: int
    sampled_at: datetime
    k: int | None
    queries: int | None
    recall: float | None
    low: float | None
    high: float | None
    measured_at: datetime | None


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A connection pool of this process (psycopg_pool's get_stats). size: its connections, of which idle are free.

    waiting: requests that wait for a connection now; waited: all that ever had to, waited_seconds in total.
    used_seconds: the time that connections were in use, in total. errors: requests that got no connection.
    connecting_errors: attempts to connect that failed. lost: connections found broken when returned or checked.
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
