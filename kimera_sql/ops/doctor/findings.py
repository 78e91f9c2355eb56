"""Findings, decided from facts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from ... import drift, sql
from ...search.plan import DEFAULT_RECALL
from ...search.samples import ENOUGH
from ...settings import Settings
from ...tables import VECTOR_TABLES
from ..monitoring import VectorFault
from .facts import Facts
from .known_faults import PGVECTOR_FAULTS, SERVER_FAULTS
from .severity import SEVERITIES, Severity

_RECENT_BACKUP: Final = timedelta(hours=26)
"""How old the newest backup may be: a day, and two hours in case it takes longer than yesterday's."""

_BIG_ROWS: Final = 10_000
"""Rows from which on a search without an index takes more than some 14 ms."""

_ANALYSED_ROWS: Final = 50
"""Rows from which on autovacuum would analyse a table (autovacuum_analyze_threshold)."""

_OLD_IDS_RATIO: Final = 0.25
_ANCIENT_IDS_RATIO: Final = 0.5
"""Shares of the room for transaction ids: autovacuum freezes from 0.1 on, and turns desperate at 0.75."""

_OLD_RECALL: Final = timedelta(days=7)
"""How old a measured recall may be of searches that go on being sampled."""

_DEAD_ROWS: Final = 1000
_IDLE_SECONDS: Final = 300.0
_OPEN_SECONDS: Final = 3600.0
_WAITING_SECONDS: Final = 60.0
_CROWDED_RATIO: Final = 0.8
_WASTED_RATIO: Final = 0.5
_WASTED_BYTES: Final = 10 * 2**20
_UNUSED_BYTES: Final = 100 * 2**20
_HELD_BYTES: Final = 10 * 2**30
_UNBALANCED: Final = 2
_BEHIND_SECONDS: Final = Settings().replica_max_lag
_BEHIND_BYTES: Final = 256 * 2**20

_VECTOR_FAULTS: Final[Mapping[VectorFault, tuple[Severity, str, str]]] = {
    "invalid": (
        "error",
        "was not finished, or has a part of the rows alone: searches pass it over",
        "kimera-sql index clean, then index build {table}",
    ),
    "untrained": (
        "warning",
        "was built from fewer rows than it has lists, or not by kimera-sql: its lists may mean nothing",
        "kimera-sql index retrain {name}",
    ),
    "aged": (
        "warning",
        "has more than twice the rows that its lists were made for, or less than half",
        "kimera-sql index retrain {name}",
    ),
    "swollen": ("warning", "takes more than 1.5 times the bytes a row of its build", "kimera-sql index retrain {name}"),
    "unused": ("note", "was never used since the statistics began", "kimera-sql index drop {name}, unless it is new"),
    "untuned": (
        "warning",
        "was never measured, so searches use it with cautious settings",
        "kimera-sql index tune {table}",
    ),
}
"""How grave each fault of a vector index is, what it means, and what to do."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know or to do. subject: what it is about. advice: what to do."""

    severity: Severity
    subject: str
    found: str
    advice: str


def diagnose(facts: Facts) -> list[Finding]:
    """Return what *facts* give cause for, the gravest first. It looks at nothing else."""
    found = [finding for check in _CHECKS for finding in check(facts)]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


def _versions(facts: Facts) -> Iterator[Finding]:
    major, minor = divmod(facts.server_version, 10000)
    for fault in SERVER_FAULTS:
        first, fixed = fault.releases.get(major, (0, 0))
        if first <= minor < fixed:
            yield Finding(
                fault.severity,
                f"PostgreSQL {facts.server.version}",
                fault.found,
                fault.advice.format(fixed=f"{major}.{fixed}"),
            )
    if facts.server.pgvector is None:
        yield Finding(
            "error", "pgvector", "this database does not have it", "CREATE EXTENSION vector, then kimera-sql init"
        )
        return
    version = sql.version(facts.server.pgvector)
    for known in PGVECTOR_FAULTS:
        if known.since <= version < known.fixed:
            yield Finding(known.severity, f"pgvector {facts.server.pgvector}", known.found, known.advice)


def _extensions(facts: Facts) -> Iterator[Finding]:
    for one in facts.extensions:
        if one.available not in (None, one.installed):
            yield Finding(
                "warning",
                f"extension {one.name}",
                f"this database has {one.installed}, the server's files are {one.available}",
                f'ALTER EXTENSION "{one.name}" UPDATE',
            )


def _schema(facts: Facts) -> Iterator[Finding]:
    if facts.misplaced is not None:
        yield Finding("error", "schema", facts.misplaced.found, facts.misplaced.advice)
    elif not facts.has_schema:
        yield Finding(
            "error",
            "schema",
            f"the tables are not there, or {facts.session.role} may not see them",
            "run kimera-sql init",
        )
    elif facts.schema_fault is not None:
        yield Finding("error", "schema", facts.schema_fault, "use the version of kimera-sql that made the schema")
    elif not facts.has_record:
        yield Finding(
            "error",
            "schema",
            "has tables of these names that kimera_sql did not make",
            "kimera-sql adopt --dry-run says what it takes to take them over",
        )
    else:
        if facts.pending:
            yield Finding("error", "schema", f"lacks {', '.join(facts.pending)}", "run kimera-sql init")
        for one in facts.drift:
            # An index that is missing makes searches slow, anything else makes results wrong or writing fail.
            yield Finding(
                "warning" if one.kind in ("index", "statistics") else "error",
                f"table {one.table}",
                f"is not as the migrations make it: {one}",
                "restore it from a backup"
                if one.kind == "table"
                else drift.statement(one, concurrently=True).as_string(),
            )
    for login in facts.lost:
        if login.role is not None:
            yield Finding(
                "warning",
                f"role {login.role}",
                f"may read the tables, and does not find them or pgvector by its search_path ({login.path})",
                login.remedy,
            )


def _settings(facts: Facts) -> Iterator[Finding]:
    for name, harm in (
        ("fsync", "a crash of the machine can destroy the data"),
        ("full_page_writes", "a crash of the machine can leave torn pages"),
        ("autovacuum", "dead rows pile up, statistics age, and transaction ids run out"),
        ("track_counts", "autovacuum does not know what to do"),
    ):
        if facts.settings.get(name) == "off":
            yield Finding("error", name, f"is off: {harm}", f"ALTER SYSTEM SET {name} = on, and reload")
    if facts.settings.get("data_checksums") == "off":
        yield Finding(
            "warning",
            "data_checksums",
            "are off: what a disk corrupts is read as if it were right",
            "stop the server and run pg_checksums --enable",
        )

    if facts.compiles:
        yield Finding(
            "note",
            "jit",
            "is on: searches by index turn it off for themselves, but exact ones and SQL of your own can be compiled "
            "for longer than they run",
            "ALTER DATABASE ... SET jit = off, unless the database serves long analytical queries too",
        )


def _recommendations(facts: Facts) -> Iterator[Finding]:
    if facts.checked_fault is not None:
        yield Finding(
            "note",
            "settings",
            f"were not compared with the recommendation: {facts.checked_fault}",
            "kimera-sql doctor --ram 8GB",
        )
    if serious := [one for one in facts.checked if one.serious]:
        values = ", ".join(f"{one.name} is {one.current} ({one.recommended})" for one in serious)
        yield Finding(
            "note",
            "settings",
            f"are more than twice or less than half of what is recommended (in brackets): {values}",
            "kimera-sql config recommend, which gives the reasons",
        )
    if pending := [one.name for one in facts.checked if one.pending_restart]:
        yield Finding(
            "note", "settings", f"were changed, and wait for a restart: {', '.join(pending)}", "restart the server"
        )


def _checksums(facts: Facts) -> Iterator[Finding]:
    for one in facts.databases:
        if one.checksum_failures:
            yield Finding(
                "error",
                f"database {one.database}",
                f"{one.checksum_failures:,} pages had a wrong checksum: the disk has corrupted data",
                "find them in the server's log, replace the disk, and restore from a backup",
            )


def _session(facts: Facts) -> Iterator[Finding]:
    if facts.session.superuser:
        yield Finding(
            "warning",
            f"role {facts.session.role}",
            "is a superuser, for whom no privilege and no limit holds",
            "connect as a role with the privileges that are needed, and no more",
        )
    transport = facts.transport
    if transport.password and not transport.tls and not transport.local:
        yield Finding(
            "error",
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
                "error",
                "pools",
                f"they can open {facts.pool_connections:,} connections, {name} is {limit:,}",
                "lower KIMERA_POOL_SIZE and KIMERA_POOL_OVERFLOW, raise the limit, or put a pooler before the server",
            )
    if facts.server.connections >= _CROWDED_RATIO * facts.server.max_connections:
        yield Finding(
            "warning",
            "connections",
            f"{facts.server.connections:,} of {facts.server.max_connections:,} are taken",
            "see who holds them: kimera-sql monitor connections",
        )


def _tables(facts: Facts) -> Iterator[Finding]:
    for one in facts.tables:
        if one.live_rows >= _ANALYSED_ROWS and one.analyzed_at is None:
            yield Finding(
                "warning",
                f"table {one.table}",
                f"has some {one.live_rows:,} rows and was never analysed, so queries on it are planned blindly",
                f"ANALYZE {one.table}",
            )
        if one.dead_rows > max(_DEAD_ROWS, one.live_rows / 2):
            yield Finding(
                "warning",
                f"table {one.table}",
                f"has {one.dead_rows:,} dead rows beside {one.live_rows:,}",
                f"VACUUM (ANALYZE) {one.table}; if that does not help, an old transaction or slot holds them",
            )


def _vector_indexes(facts: Facts) -> Iterator[Finding]:
    if "vectors" in facts.unavailable:
        return
    usable = {one.table for one in facts.vectors if "invalid" not in one.faults}
    for one in facts.tables:
        if one.table in VECTOR_TABLES and one.live_rows >= _BIG_ROWS and one.table not in usable | set(facts.building):
            yield Finding(
                "warning",
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


def _shards(facts: Facts) -> Iterator[Finding]:
    for node in sorted({one.node for one in facts.shards if not one.answered}):
        yield Finding(
            "error",
            f"node {node}",
            "does not answer, so what needs its shards fails",
            "start it, and see that the coordinator can connect to it",
        )
    for one in facts.shards:
        if one.unusable_indexes and one.table not in facts.building:
            yield Finding(
                "error",
                f"shard {one.number} of {one.table} on {one.node}",
                f"lacks {one.unusable_indexes} of the table's indexes, or has them unfinished",
                "drop the index on the coordinator, and build it again",
            )
    for table in dict.fromkeys(one.table for one in facts.shards):
        rows = Counter[str]()
        for one in facts.shards:
            if one.table == table and one.answered:
                rows[one.node] += one.live_rows
        most, least = max(rows.values(), default=0), min(rows.values(), default=0)
        if most >= _BIG_ROWS and most > _UNBALANCED * least:
            yield Finding(
                "warning",
                f"table {table}",
                f"has some {most:,} rows on one node and {least:,} on another, and searches wait for the slower one",
                "SELECT citus_rebalance_start(), which moves shards while they serve",
            )


def _sampled_searches(facts: Facts) -> Iterator[Finding]:
    for one in facts.sampled:
        if one.recall is None or one.low is None or one.high is None or one.measured_at is None:
            if one.searches >= ENOUGH:
                yield Finding(
                    "note",
                    f"searches of {one.table}",
                    f"are sampled, there are {one.searches:,}, and their recall was not measured with this index yet",
                    f"kimera-sql index check {one.table}",
                )
            continue
        if one.high < DEFAULT_RECALL:
            yield Finding(
                "warning",
                f"searches of {one.table}",
                f"had a recall of {one.recall:.3f} ({one.low:.3f} to {one.high:.3f}) at k={one.k} on "
                f"{one.measured_at:%Y-%m-%d %H:%M}, measured with {one.queries:,} that callers have made; "
                f"{DEFAULT_RECALL:g} is promised",
                f"kimera-sql index tune {one.table}",
            )
        if one.sampled_at - one.measured_at > _OLD_RECALL:
            yield Finding(
                "note",
                f"searches of {one.table}",
                f"are sampled, and their recall was last measured on {one.measured_at:%Y-%m-%d}",
                f"kimera-sql index check {one.table}",
            )


def _renewals(facts: Facts) -> Iterator[Finding]:
    for one in facts.renewals:
        if one.was_serving:
            yield Finding(
                "note",
                "embeddings",
                f"are of {one.serving}, and the vectors of {one.other}, {_mb(one.size)}, are kept as the way back",
                "kimera-sql embeddings drop, once nobody wants to go back",
            )
        else:
            yield Finding(
                "note",
                "embeddings",
                f"are of {one.serving}, and a renewal by {one.other}, begun on {one.since:%Y-%m-%d}, is not finished: "
                f"{one.waiting:,} vectors are still to be made",
                "kimera-sql embeddings renew goes on with it, and embeddings drop gives it up",
            )


def _other_indexes(facts: Facts) -> Iterator[Finding]:
    vectors = {one.index for one in facts.vectors}
    for one in facts.indexes:
        if one.index in vectors:
            continue
        if not one.valid and one.table not in facts.building:
            yield Finding(
                "error",
                f"index {one.index}",
                "is invalid: a build that was not finished left it, and writing keeps it up for nothing",
                f"DROP INDEX CONCURRENTLY {one.index}, and build it again",
            )
        elif not one.scans and not one.is_unique and one.size_bytes > _UNUSED_BYTES:
            yield Finding(
                "note",
                f"index {one.index}",
                f"takes {_mb(one.size_bytes)} and was never used since the statistics began",
                "see whether a query needs it; on standbys too",
            )
    for tree in facts.bloat:
        if (tree.wasted_bytes or 0) > _WASTED_BYTES and (tree.wasted_ratio or 0) > _WASTED_RATIO:
            yield Finding(
                "warning",
                f"index {tree.index}",
                f"some {_mb(tree.wasted_bytes or 0)} of its {_mb(tree.size_bytes)} are waste",
                f"REINDEX INDEX CONCURRENTLY {tree.index}",
            )


def _transactions(facts: Facts) -> Iterator[Finding]:
    for one in facts.transactions:
        who = f"prepared transaction {one.query}" if one.pid is None else f"session {one.pid} of {one.role}"
        end = f"ROLLBACK PREPARED '{one.query}'" if one.pid is None else f"SELECT pg_terminate_backend({one.pid})"
        if (one.idle_seconds or 0) > _IDLE_SECONDS:
            yield Finding(
                "warning",
                who,
                f"has been idle in a transaction for {_span(one.idle_seconds or 0)}, with its locks held",
                f"end it ({end}), and set idle_in_transaction_session_timeout",
            )
        elif one.open_seconds > _OPEN_SECONDS:
            yield Finding(
                "warning",
                who,
                f"has been open for {_span(one.open_seconds)}; no VACUUM removes what has died since",
                f"see whether it is still wanted, else {end}",
            )
    for waiting in facts.locks:
        if waiting.waiting_seconds > _WAITING_SECONDS:
            yield Finding(
                "warning",
                f"session {waiting.pid} of {waiting.role}",
                f"has waited {_span(waiting.waiting_seconds)} for a lock that {waiting.blocker_pid} holds",
                "kimera-sql monitor locks",
            )


def _wal(facts: Facts) -> Iterator[Finding]:
    command, library = facts.settings.get("archive_command"), facts.settings.get("archive_library")
    for one in facts.archiver:
        if one.mode == "off":
            yield Finding(
                "note",
                "archiving",
                "is off, so a backup can be restored as it was made, and no later moment",
                "kimera-sql backup archive-command",
            )
        elif command in ("", "(disabled)") and not library:
            yield Finding(
                "error",
                "archiving",
                "is on without an archive_command: the write-ahead log piles up until the disk is full",
                "kimera-sql backup archive-command",
            )
        elif one.failing:
            yield Finding(
                "error",
                "archiving",
                f"fails since {one.failed_at:%Y-%m-%d %H:%M} with {one.last_failed}; the disk fills up",
                "see the server's log for what archive_command says",
            )
    for slot in facts.slots:
        if slot.wal_status == "lost":
            yield Finding(
                "error",
                f"slot {slot.slot}",
                "has lost write-ahead log that its standby needs",
                f"make the standby anew, and SELECT pg_drop_replication_slot('{slot.slot}')",
            )
        elif not slot.active and slot.held_bytes is not None:
            yield Finding(
                "error" if slot.held_bytes > _HELD_BYTES else "warning",
                f"slot {slot.slot}",
                f"is not in use and keeps {_mb(slot.held_bytes)} of write-ahead log, and all there will be",
                f"connect its standby, or SELECT pg_drop_replication_slot('{slot.slot}')",
            )


def _replication(facts: Facts) -> Iterator[Finding]:
    for one in facts.replicas:
        who = f"standby {one.application or one.address}"
        if (one.behind_seconds or 0) > _BEHIND_SECONDS or (one.behind_bytes or 0) > _BEHIND_BYTES:
            lag = "" if one.behind_seconds is None else f"{_span(one.behind_seconds)} and "
            yield Finding(
                "warning",
                who,
                f"is {lag}{_mb(one.behind_bytes or 0)} of write-ahead log behind",
                "see its disk, its CPU and its longest queries (max_standby_streaming_delay)",
            )
    names = facts.settings.get("synchronous_standby_names")
    served = any(one.synchrony in ("sync", "quorum") for one in facts.replicas)
    if names and facts.sees_all and not facts.standby and not served:
        yield Finding(
            "error",
            "synchronous replication",
            f"waits for {names}, and none of them is connected: every commit waits until one is",
            "connect a standby of that name, or change synchronous_standby_names",
        )
    for standby in facts.standby:
        if standby.received is None:
            yield Finding(
                "warning",
                "this standby",
                "has received nothing from a primary since it started",
                "see the server's log, primary_conninfo, and pg_hba.conf of the primary",
            )
        elif (standby.behind_bytes or 0) > _BEHIND_BYTES:
            yield Finding(
                "warning",
                "this standby",
                f"has {_mb(standby.behind_bytes or 0)} of write-ahead log still to replay",
                "see whether replay is paused, and its longest queries (max_standby_streaming_delay)",
            )


def _wraparound(facts: Facts) -> Iterator[Finding]:
    for one in facts.wraparound:
        if one.used_ratio > _OLD_IDS_RATIO:
            yield Finding(
                "error" if one.used_ratio > _ANCIENT_IDS_RATIO else "warning",
                f"database {one.database}",
                f"has used {one.used_ratio:.0%} of its transaction ids; at the end it takes no more writes",
                "end old transactions, drop old slots, then VACUUM (FREEZE) its oldest tables",
            )


def _recent_backup(facts: Facts) -> Iterator[Finding]:
    if facts.backups_fault is not None:
        yield Finding("error", "backups", facts.backups_fault, "give the folder of the backups")
    elif facts.backups is None:
        yield Finding("note", "backups", "were not looked at", "give their folder: kimera-sql doctor --backups DIR")
    else:
        good = [one for one in facts.backups if one.complete]
        newest = max((one.made_at for one in good), default=None)
        if newest is None or facts.now - newest > _RECENT_BACKUP:
            when = "there is none" if newest is None else f"the newest is of {newest:%Y-%m-%d %H:%M} UTC"
            yield Finding(
                "error",
                "backups",
                f"this database has no verified one of the last day: {when}",
                "kimera-sql backup dump",
            )


def _half_made(facts: Facts) -> Iterator[Finding]:
    for name in facts.half_made:
        yield Finding(
            "warning",
            f"database {name}",
            "is half made: a restore or a drill that was killed left it",
            "the next restore, or drill on this server, drops it; or DROP DATABASE",
        )


def _hidden(facts: Facts) -> Iterator[Finding]:
    if not facts.sees_all:
        yield Finding(
            "note",
            f"role {facts.session.role}",
            "is not shown what other roles' sessions do, so they were not looked at",
            f"GRANT pg_monitor TO {facts.session.role}",
        )
    for reason in dict.fromkeys(facts.unavailable.values()):
        names = [name for name, why in facts.unavailable.items() if why == reason]
        subject = f"report{'' if len(names) == 1 else 's'} {', '.join(names)}"
        yield Finding("note", subject, "could not be had", reason)


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
    _shards,
    _sampled_searches,
    _renewals,
    _other_indexes,
    _transactions,
    _wal,
    _replication,
    _wraparound,
    _recent_backup,
    _half_made,
    _hidden,
)
