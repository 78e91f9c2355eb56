"""What is wrong with a database, and what to do: facts are gathered once, and findings decided from them alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar, cast

from .. import checks, sql
from ..errors import BackupError, InvalidValue
from ..search import indexes
from ..sql import Connection
from ..tables import VECTOR_TABLES
from . import monitoring, tuning
from .backup import dumps as backup
from .backup.dumps import Backup
from .monitoring import (
    Archiver,
    Bloat,
    Blocked,
    Database,
    IndexUse,
    ServerState,
    Slot,
    TableUse,
    Transaction,
    Unavailable,
)

_queries = sql.Queries("doctor")

T = TypeVar("T")

ERROR: Final = "error"
WARNING: Final = "warning"
NOTE: Final = "note"
SEVERITIES: Final = (ERROR, WARNING, NOTE)
"""error: data, or the service, is at risk now. warning: see to it soon. note: worth knowing."""

_RECENT: Final = timedelta(hours=26)
"""How old the newest backup may be: a day, and two hours for one that takes longer than yesterday's."""

_BIG: Final = 10_000
"""Rows from which on a search without an index takes more than some 14 ms."""

_ANALYSED: Final = 50
"""Rows from which on autovacuum would analyse a table (autovacuum_analyze_threshold)."""

_DEAD: Final = 1000
_IDLE: Final = 300.0
_OPEN: Final = 3600.0
_WAITING: Final = 60.0
_CROWDED: Final = 0.8
_WASTED_RATIO: Final = 0.5
_WASTED_BYTES: Final = 10 * 2**20
_UNUSED_BYTES: Final = 100 * 2**20
_HELD_BYTES: Final = 10 * 2**30
_OLD_IDS: Final = (0.25, 0.5)
"""Shares of the transaction ids' room: autovacuum freezes from 0.1 on and turns desperate at 0.75."""

_REPORTS: Final = (
    "databases",
    "tables",
    "indexes",
    "vectors",
    "bloat",
    "statements",
    "locks",
    "transactions",
    "archiver",
    "slots",
    "wraparound",
)

_SETTINGS: Final = (
    "archive_command",
    "archive_library",
    "autovacuum",
    "data_checksums",
    "fsync",
    "full_page_writes",
    "reserved_connections",
    "superuser_reserved_connections",
    "track_counts",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know or to do. severity: error, warning or note. subject: what it is about. advice: what to do."""

    severity: str
    subject: str
    found: str
    advice: str


@dataclass(frozen=True, slots=True)
class Session:
    """Who asks. role_limit, database_limit: connections that the role and the database may have, -1 for any number."""

    role: str
    superuser: bool
    role_limit: int
    database_limit: int


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension, its version in this database, and the one that the server has files of."""

    name: str
    installed: str
    available: str | None


@dataclass(frozen=True, slots=True)
class Transport:
    """How the connection goes. host: a name, an address or a socket's folder. password: the server asked for one."""

    host: str
    password: bool
    tls: bool

    @property
    def local(self) -> bool:
        """Whether it stays on this machine."""
        if self.host in ("", "localhost") or self.host.startswith(("/", "@")):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What findings are decided from. now: when they were gathered. unavailable: reports that could not be had, why.

    checked: settings beside the recommended ones, and checked_fault why they could not be compared.
    pool_connections: what the pools of all processes can open together. backups: None where no folder was given,
    and backups_fault says why one that was given could not be read. building: tables an index is being built on.
    """

    now: datetime
    server: ServerState
    server_version: int
    session: Session
    transport: Transport
    sees_all: bool = True
    has_schema: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    checked: tuple[tuning.Check, ...] = ()
    checked_fault: str | None = None
    extensions: tuple[Extension, ...] = ()
    databases: tuple[Database, ...] = ()
    tables: tuple[TableUse, ...] = ()
    indexes: tuple[IndexUse, ...] = ()
    vectors: tuple[monitoring.VectorHealth, ...] = ()
    building: tuple[str, ...] = ()
    bloat: tuple[Bloat, ...] = ()
    locks: tuple[Blocked, ...] = ()
    transactions: tuple[Transaction, ...] = ()
    archiver: tuple[Archiver, ...] = ()
    slots: tuple[Slot, ...] = ()
    wraparound: tuple[monitoring.Wraparound, ...] = ()
    pool_connections: int = 0
    backups: tuple[Backup, ...] | None = None
    backups_fault: str | None = None
    unavailable: Mapping[str, str] = field(default_factory=dict)


# What the release notes of PostgreSQL (https://www.postgresql.org/docs/release/) and the changelog and advisories of
# pgvector say, for the versions that kimera_sql works with: the fault, how grave, and for each major version the
# minor releases from the first up to, not including, the second.
_SERVER_FAULTS: Final = (
    (
        ERROR,
        {15: (0, 6), 16: (0, 2)},
        "GIN indexes, such as those on tags and metadata, could be corrupted by concurrent updates",
        "update the server to {fixed} or later, then run REINDEX INDEX CONCURRENTLY on the GIN indexes",
    ),
    (
        WARNING,
        {15: (9, 10), 16: (5, 6), 17: (1, 2)},
        "it breaks extensions that were built for another release, and ALTER ROLE ... SET role has no effect",
        "update the server to {fixed} or later",
    ),
    (
        WARNING,
        {15: (16, 17), 16: (12, 13), 17: (8, 9), 18: (2, 3)},
        "substring() can fail on long texts that are not ASCII, and standbys of an older primary can stop",
        "update the server to {fixed} or later",
    ),
    (
        WARNING,
        {15: (0, 19), 16: (0, 15), 17: (0, 11), 18: (0, 6)},
        "it lacks security fixes of August 2026, among them of an overrun that lets a user run code (CVE-2026-14669)",
        "update the server to {fixed} or later",
    ),
)

_PGVECTOR_FAULTS: Final = (
    (
        ERROR,
        ((0, 6), (0, 8, 2)),
        "parallel builds of hnsw indexes, which indexes.build makes, write past a buffer (CVE-2026-3172)",
        "update pgvector to 0.8.2 or later; until then SET max_parallel_maintenance_workers = 0",
    ),
    (
        WARNING,
        ((0,), (0, 8, 3)),
        "VACUUM can corrupt hnsw indexes (fixed in 0.8.3)",
        "update pgvector, then rebuild them: kimera-sql index retrain",
    ),
    (
        WARNING,
        ((0,), (0, 8, 7)),
        "builds of ivfflat indexes can write past a buffer (fixed in 0.8.7)",
        "update pgvector",
    ),
)


def examine(
    conn: Connection,
    *,
    backups: Path | None = None,
    pool_connections: int = 15,
    processes: int = 1,
    memory: int | None = None,
) -> list[Finding]:
    """Return what is wrong with the database and its server, the gravest first.

    backups: the folder of kimera_sql.backup, whose newest backup is to be of the last 26 hours. pool_connections: the
    most that the pool of one process opens, of which there are *processes*. memory: bytes of the server's machine,
    which is known without it where that is this one. Raises InvalidValue for a number that cannot be, and
    UnsupportedByServer on SQLite.
    """
    return diagnose(
        gather(conn, backups=backups, pool_connections=pool_connections, processes=processes, memory=memory)
    )


def gather(
    conn: Connection,
    *,
    backups: Path | None = None,
    pool_connections: int = 15,
    processes: int = 1,
    memory: int | None = None,
) -> Facts:
    """Return the facts that diagnose decides from; see examine."""
    in_all = checks.limit(pool_connections, "pool_connections") * checks.limit(processes, "processes")
    if memory is not None:
        tuning.recommend(memory)
    conn = sql.require_postgres(conn, "SQLite keeps no statistics; monitoring needs PostgreSQL")
    server = monitoring.server(conn)
    transport = Transport(
        host=conn.info.hostaddr or conn.info.host,
        password=conn.pgconn.used_password,
        tls=bool(conn.pgconn.ssl_in_use),
    )
    reports = monitoring.collect(conn, _REPORTS)
    found, fault = _backups(backups)
    checked, checked_fault = _checked(conn, memory, in_all)

    def rows(name: str, kind: type[T]) -> tuple[T, ...]:
        report = reports[name]
        return () if isinstance(report, Unavailable) else cast(tuple[T, ...], tuple(report))

    return Facts(
        now=datetime.now(UTC),
        server=server,
        server_version=conn.info.server_version,
        session=_queries.session.fetchall(conn, Session)[0],
        transport=transport,
        sees_all=monitoring.visibility(conn).sees_all,
        has_schema=_queries.has_schema.fetchval(conn, bool) or False,
        settings=dict(_queries.settings.fetchall(conn, names=list(_SETTINGS))),
        checked=checked,
        checked_fault=checked_fault,
        extensions=tuple(_queries.extensions.fetchall(conn, Extension)),
        databases=rows("databases", Database),
        tables=rows("tables", TableUse),
        indexes=rows("indexes", IndexUse),
        vectors=rows("vectors", monitoring.VectorHealth),
        building=tuple(one.table for one in indexes.building(conn)),
        bloat=rows("bloat", Bloat),
        locks=rows("locks", Blocked),
        transactions=rows("transactions", Transaction),
        archiver=rows("archiver", Archiver),
        slots=rows("slots", Slot),
        wraparound=rows("wraparound", monitoring.Wraparound),
        pool_connections=in_all,
        backups=found,
        backups_fault=fault,
        unavailable={name: report.reason for name, report in reports.items() if isinstance(report, Unavailable)},
    )


def _checked(conn: Connection, memory: int | None, connections: int) -> tuple[tuple[tuning.Check, ...], str | None]:
    try:
        return tuple(tuning.check(conn, memory=memory, connections=connections)), None
    except InvalidValue as error:
        return (), str(error)


def _backups(folder: Path | None) -> tuple[tuple[Backup, ...] | None, str | None]:
    if folder is None:
        return None, None
    if not folder.is_dir():
        return None, f"there is no folder {folder}"
    try:
        return tuple(backup.existing(folder)), None
    except BackupError as error:
        return None, str(error)


def diagnose(facts: Facts) -> list[Finding]:
    """Return what *facts* give cause for, the gravest first. It looks at nothing else."""
    found = [finding for check in _CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _versions(facts: Facts) -> Iterator[Finding]:
    major, minor = divmod(facts.server_version, 10000)
    for severity, releases, found, advice in _SERVER_FAULTS:
        first, fixed = releases.get(major, (0, 0))
        if first <= minor < fixed:
            yield Finding(
                severity, f"PostgreSQL {facts.server.version}", found, advice.format(fixed=f"{major}.{fixed}")
            )
    if facts.server.pgvector is None:
        yield Finding(
            ERROR, "pgvector", "this database does not have it", "CREATE EXTENSION vector, then kimera-sql init"
        )
        return
    version = sql.version(facts.server.pgvector)
    for severity, (since, until), found, advice in _PGVECTOR_FAULTS:
        if since <= version < until:
            yield Finding(severity, f"pgvector {facts.server.pgvector}", found, advice)


def _extensions(facts: Facts) -> Iterator[Finding]:
    for one in facts.extensions:
        if one.available not in (None, one.installed):
            yield Finding(
                WARNING,
                f"extension {one.name}",
                f"this database has {one.installed}, the server's files are {one.available}",
                f'ALTER EXTENSION "{one.name}" UPDATE',
            )


def _schema(facts: Facts) -> Iterator[Finding]:
    if not facts.has_schema:
        yield Finding(
            ERROR,
            "schema",
            f"the tables are not there, or {facts.session.role} may not see them",
            "run kimera-sql init",
        )


def _settings(facts: Facts) -> Iterator[Finding]:
    for name, harm in (
        ("fsync", "a crash of the machine can destroy the data"),
        ("full_page_writes", "a crash of the machine can leave torn pages"),
        ("autovacuum", "dead rows pile up, statistics age, and transaction ids run out"),
        ("track_counts", "autovacuum does not know what to do"),
    ):
        if facts.settings.get(name) == "off":
            yield Finding(ERROR, name, f"is off: {harm}", f"ALTER SYSTEM SET {name} = on, and reload")
    if facts.settings.get("data_checksums") == "off":
        yield Finding(
            WARNING,
            "data_checksums",
            "are off: what a disk corrupts is read as if it were right",
            "stop the server and run pg_checksums --enable",
        )


def _recommendations(facts: Facts) -> Iterator[Finding]:
    if facts.checked_fault is not None:
        yield Finding(
            NOTE,
            "settings",
            f"were not compared with the recommendation: {facts.checked_fault}",
            "kimera-sql doctor --ram 8GB",
        )
    for one in facts.checked:
        if one.serious:
            yield Finding(
                NOTE,
                one.name,
                f"is {one.current}; {one.recommended} is recommended: {one.reason}",
                "kimera-sql config recommend",
            )
        if one.pending_restart:
            yield Finding(NOTE, one.name, "was changed, and the change waits for a restart", "restart the server")


def _checksums(facts: Facts) -> Iterator[Finding]:
    for one in facts.databases:
        if one.checksum_failures:
            yield Finding(
                ERROR,
                f"database {one.database}",
                f"{one.checksum_failures:,} pages had a wrong checksum: the disk has corrupted data",
                "find them in the server's log, replace the disk, and restore from a backup",
            )


def _session(facts: Facts) -> Iterator[Finding]:
    if facts.session.superuser:
        yield Finding(
            WARNING,
            f"role {facts.session.role}",
            "is a superuser, for whom no privilege and no limit holds",
            "connect as a role with the privileges that are needed, and no more",
        )
    transport = facts.transport
    if transport.password and not transport.tls and not transport.local:
        yield Finding(
            ERROR,
            f"connection to {transport.host}",
            "a password and all data go over the network without TLS",
            "set ssl = on in the server, and sslmode=verify-full in the conninfo",
        )


def _connections(facts: Facts) -> Iterator[Finding]:
    reserved = sum(
        int(facts.settings.get(name, 0)) for name in ("superuser_reserved_connections", "reserved_connections")
    )
    limits = {
        "max_connections without the reserved": facts.server.max_connections - reserved,
        f"the limit of role {facts.session.role}": facts.session.role_limit,
        "the limit of this database": facts.session.database_limit,
    }
    for name, limit in limits.items():
        if 0 <= limit < facts.pool_connections:
            yield Finding(
                ERROR,
                "pools",
                f"they can open {facts.pool_connections:,} connections, {name} is {limit:,}",
                "lower KIMERA_POOL_SIZE and KIMERA_POOL_OVERFLOW, raise the limit, or put a pooler before the server",
            )
    if facts.server.connections >= _CROWDED * facts.server.max_connections:
        yield Finding(
            WARNING,
            "connections",
            f"{facts.server.connections:,} of {facts.server.max_connections:,} are taken",
            "see who holds them: kimera-sql monitor connections",
        )


def _tables(facts: Facts) -> Iterator[Finding]:
    for one in facts.tables:
        if one.live_rows >= _ANALYSED and one.analyzed_at is None:
            yield Finding(
                WARNING,
                f"table {one.table}",
                f"has some {one.live_rows:,} rows and was never analysed, so queries on it are planned blindly",
                f"ANALYZE {one.table}",
            )
        if one.dead_rows > max(_DEAD, one.live_rows / 2):
            yield Finding(
                WARNING,
                f"table {one.table}",
                f"has {one.dead_rows:,} dead rows beside {one.live_rows:,}",
                f"VACUUM (ANALYZE) {one.table}; if that does not help, an old transaction or slot holds them",
            )


def _vector_indexes(facts: Facts) -> Iterator[Finding]:
    if "vectors" in facts.unavailable:
        return
    usable = {one.table for one in facts.vectors if "invalid" not in one.faults}
    for one in facts.tables:
        if one.table in VECTOR_TABLES and one.live_rows >= _BIG and one.table not in usable | set(facts.building):
            yield Finding(
                WARNING,
                f"table {one.table}",
                f"has some {one.live_rows:,} rows and no vector index, so every search compares them all",
                f"kimera-sql index build {one.table}",
            )
    for index in facts.vectors:
        for fault in index.faults:
            if fault == "invalid" and index.table in facts.building:
                continue
            severity, found, advice = _VECTOR_FAULTS[fault]
            yield Finding(severity, f"index {index.index}", found, advice.format(name=index.index, table=index.table))


_VECTOR_FAULTS: Final = {
    "invalid": (
        ERROR,
        "was not finished, or has a part of the rows alone: searches pass it over",
        "kimera-sql index clean, then index build {table}",
    ),
    "untrained": (
        WARNING,
        "was built from fewer rows than it has lists, or not by kimera-sql: its lists may mean nothing",
        "kimera-sql index retrain {name}",
    ),
    "aged": (WARNING, "has more than twice the rows that its lists were made for", "kimera-sql index retrain {name}"),
    "swollen": (WARNING, "takes more than 1.5 times the bytes a row of its build", "kimera-sql index retrain {name}"),
    "unused": (NOTE, "was never used since the statistics began", "kimera-sql index drop {name}, unless it is new"),
    "untuned": (
        WARNING,
        "was never measured, so searches use it with cautious settings",
        "kimera-sql index tune {table}",
    ),
}


def _other_indexes(facts: Facts) -> Iterator[Finding]:
    vectors = {one.index for one in facts.vectors}
    for one in facts.indexes:
        if one.index in vectors:
            continue
        if not one.valid and one.table not in facts.building:
            yield Finding(
                ERROR,
                f"index {one.index}",
                "is invalid: a build that was not finished left it, and writing keeps it up for nothing",
                f"DROP INDEX CONCURRENTLY {one.index}, and build it again",
            )
        elif not one.scans and not one.is_unique and one.size_bytes > _UNUSED_BYTES:
            yield Finding(
                NOTE,
                f"index {one.index}",
                f"takes {_mb(one.size_bytes)} and was never used since the statistics began",
                "see whether a query needs it; on standbys too",
            )
    for tree in facts.bloat:
        if (tree.wasted_bytes or 0) > _WASTED_BYTES and (tree.wasted_ratio or 0) > _WASTED_RATIO:
            yield Finding(
                WARNING,
                f"index {tree.index}",
                f"some {_mb(tree.wasted_bytes or 0)} of its {_mb(tree.size_bytes)} are waste",
                f"REINDEX INDEX CONCURRENTLY {tree.index}",
            )


def _transactions(facts: Facts) -> Iterator[Finding]:
    for one in facts.transactions:
        who = f"prepared transaction {one.query}" if one.pid is None else f"session {one.pid} of {one.role}"
        end = f"ROLLBACK PREPARED '{one.query}'" if one.pid is None else f"SELECT pg_terminate_backend({one.pid})"
        if (one.idle_seconds or 0) > _IDLE:
            yield Finding(
                WARNING,
                who,
                f"has been idle in a transaction for {_span(one.idle_seconds or 0)}, with its locks held",
                f"end it ({end}), and set idle_in_transaction_session_timeout",
            )
        elif one.open_seconds > _OPEN:
            yield Finding(
                WARNING,
                who,
                f"has been open for {_span(one.open_seconds)}; no VACUUM removes what has died since",
                f"see whether it is still wanted, else {end}",
            )
    for waiting in facts.locks:
        if waiting.waiting_seconds > _WAITING:
            yield Finding(
                WARNING,
                f"session {waiting.pid} of {waiting.role}",
                f"has waited {_span(waiting.waiting_seconds)} for a lock that {waiting.blocker_pid} holds",
                "kimera-sql monitor locks",
            )


def _wal(facts: Facts) -> Iterator[Finding]:
    for one in facts.archiver:
        if one.mode == "off":
            yield Finding(
                NOTE,
                "archiving",
                "is off, so a backup can be restored as it was made, and no later moment",
                "kimera-sql backup archive-command",
            )
        elif facts.settings.get("archive_command", "?") in ("", "(disabled)") and not facts.settings.get(
            "archive_library"
        ):
            yield Finding(
                ERROR,
                "archiving",
                "is on without an archive_command: the write-ahead log piles up until the disk is full",
                "kimera-sql backup archive-command",
            )
        elif one.failing:
            yield Finding(
                ERROR,
                "archiving",
                f"fails since {one.failed_at:%Y-%m-%d %H:%M} with {one.last_failed}; the disk fills up",
                "see the server's log for what archive_command says",
            )
    for slot in facts.slots:
        if slot.wal_status == "lost":
            yield Finding(
                ERROR,
                f"slot {slot.slot}",
                "has lost write-ahead log that its standby needs",
                f"make the standby anew, and SELECT pg_drop_replication_slot('{slot.slot}')",
            )
        elif not slot.active and slot.held_bytes is not None:
            yield Finding(
                ERROR if slot.held_bytes > _HELD_BYTES else WARNING,
                f"slot {slot.slot}",
                f"is not in use and keeps {_mb(slot.held_bytes)} of write-ahead log, and all there will be",
                f"connect its standby, or SELECT pg_drop_replication_slot('{slot.slot}')",
            )


def _wraparound(facts: Facts) -> Iterator[Finding]:
    for one in facts.wraparound:
        if one.used_ratio > _OLD_IDS[0]:
            yield Finding(
                ERROR if one.used_ratio > _OLD_IDS[1] else WARNING,
                f"database {one.database}",
                f"has used {one.used_ratio:.0%} of its transaction ids; at the end it takes no more writes",
                "end old transactions, drop old slots, then VACUUM (FREEZE) its oldest tables",
            )


def _recent_backup(facts: Facts) -> Iterator[Finding]:
    if facts.backups_fault is not None:
        yield Finding(ERROR, "backups", facts.backups_fault, "give the folder of the backups")
    elif facts.backups is None:
        yield Finding(NOTE, "backups", "were not looked at", "give their folder: kimera-sql doctor --backups DIR")
    else:
        good = [one for one in facts.backups if one.complete]
        newest = max((one.made_at for one in good), default=None)
        if newest is None or facts.now - newest > _RECENT:
            when = "there is none" if newest is None else f"the newest is of {newest:%Y-%m-%d %H:%M} UTC"
            yield Finding(ERROR, "backups", f"no verified one of the last day: {when}", "kimera-sql backup dump")


def _hidden(facts: Facts) -> Iterator[Finding]:
    if not facts.sees_all:
        yield Finding(
            NOTE,
            f"role {facts.session.role}",
            "is not shown what other roles' sessions do, so they were not looked at",
            f"GRANT pg_monitor TO {facts.session.role}",
        )
    for name, reason in facts.unavailable.items():
        yield Finding(NOTE, f"report {name}", "could not be had", reason)


def _mb(size: int) -> str:
    return f"{size / 2**20:,.0f} MB"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


_CHECKS: Final[Sequence[Callable[[Facts], Iterator[Finding]]]] = (
    _versions,
    _extensions,
    _schema,
    _settings,
    _recommendations,
    _checksums,
    _session,
    _connections,
    _tables,
    _vector_indexes,
    _other_indexes,
    _transactions,
    _wal,
    _wraparound,
    _recent_backup,
    _hidden,
)
