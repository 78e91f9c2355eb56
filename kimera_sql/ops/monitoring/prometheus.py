"""The numbers of reports: as samples, as Prometheus' text format, and stored in system_metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias, get_args

from ... import metrics, sql
from ...leftovers import partial_file
from ...settings import Settings
from ...sql import Connection
from ...strategies import resolve, ways
from ..backup import Backup, BackupKind
from .reports import REPORTS
from .rows import Rows, ServerState, Unavailable, VectorFault, VectorHealth

COMPONENT: Final = "database"
"""The component that store_samples stores numbers under."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A number for a time series: a metric's name as in Prometheus, its value, and its labels."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)


_Values: TypeAlias = Iterator[tuple[dict[str, str], float | None]]
"""A metric's values, each with its labels. None: not known."""


@dataclass(frozen=True, slots=True)
class _Metric:
    """A metric. read: gets its values from the rows of its report."""

    name: str
    help: str
    read: Callable[[Sequence[Any]], _Values]

    @property
    def kind(self) -> str:
        return "counter" if self.name.endswith("_total") else "gauge"


def _each(attribute: str, *labels: str, **renamed: str) -> Callable[[Sequence[Any]], _Values]:
    """Return what reads *attribute* of each row, with the attributes *labels*, and *renamed*: label=attribute."""
    sources = {**{label: label for label in labels}, **renamed}

    def read(rows: Sequence[Any]) -> _Values:
        for row in rows:
            value = getattr(row, attribute)
            yield (
                {label: str(getattr(row, source) or "") for label, source in sources.items()},
                value.timestamp() if isinstance(value, datetime) else value,
            )

    return read


def _count(rows: Sequence[Any]) -> _Values:
    yield {}, len(rows)


def _distinct(attribute: str) -> Callable[[Sequence[Any]], _Values]:
    def read(rows: Sequence[Any]) -> _Values:
        yield {}, len({getattr(row, attribute) for row in rows})

    return read


def _most(attribute: str) -> Callable[[Sequence[Any]], _Values]:
    def read(rows: Sequence[Any]) -> _Values:
        yield {}, max((getattr(row, attribute) or 0 for row in rows), default=0)

    return read


def _up(reports: Sequence[tuple[str, Rows | Unavailable]]) -> _Values:
    for name, report in reports:
        if name == "server":
            yield {}, not isinstance(report, Unavailable)


def _available(reports: Sequence[tuple[str, Rows | Unavailable]]) -> _Values:
    for name, report in reports:
        yield {"report": name}, not isinstance(report, Unavailable)


def _time(rows: Sequence[ServerState]) -> _Values:
    for row in rows:
        yield {}, row.started_at.timestamp() + row.uptime_seconds


def _versions(rows: Sequence[ServerState]) -> _Values:
    for row in rows:
        yield {"version": row.version, "pgvector": row.pgvector or ""}, 1


def _faults(rows: Sequence[VectorHealth]) -> _Values:
    for row in rows:
        for fault in get_args(VectorFault):
            yield {"index": row.index, "fault": fault}, fault in row.faults


def _newest(rows: Sequence[Backup]) -> _Values:
    for kind in get_args(BackupKind):
        made = (row.made_at.timestamp() for row in rows if row.kind == kind and row.complete)
        yield {"kind": kind}, max(made, default=0)


_REPORTS: Final = "reports"
"""Under this name _METRICS has the metrics that say which reports there are."""

# Names and units follow https://prometheus.io/docs/practices/naming/: base units, _total for counters. Moments are
# timestamps, because an age stands still in a file that is no longer written.
_METRICS: Final[Mapping[str, Sequence[_Metric]]] = {
    _REPORTS: (
        _Metric("kimera_up", "1 if the database could be reached, else 0.", _up),
        _Metric("kimera_report_available", "0 for a report that could not be had.", _available),
    ),
    "server": (
        _Metric("kimera_collected_timestamp_seconds", "When these numbers were read.", _time),
        _Metric("kimera_server_info", "Versions of the server and of pgvector; always 1.", _versions),
        _Metric("kimera_server_start_time_seconds", "When the server started.", _each("started_at")),
        _Metric("kimera_server_standby", "1 on a standby.", _each("standby")),
        _Metric("kimera_server_connections", "Connections of clients.", _each("connections")),
        _Metric("kimera_server_max_connections", "The setting.", _each("max_connections")),
    ),
    "databases": (
        _Metric("kimera_database_size_bytes", "Size of a database.", _each("size_bytes", datname="database")),
        _Metric("kimera_database_commits_total", "Transactions committed.", _each("commits", datname="database")),
        _Metric("kimera_database_rollbacks_total", "Transactions rolled back.", _each("rollbacks", datname="database")),
        _Metric(
            "kimera_database_blocks_hit_total",
            "Blocks found in the server's cache.",
            _each("blocks_hit", datname="database"),
        ),
        _Metric(
            "kimera_database_blocks_read_total",
            "Blocks not found in the server's cache.",
            _each("blocks_read", datname="database"),
        ),
        _Metric("kimera_database_deadlocks_total", "Deadlocks.", _each("deadlocks", datname="database")),
        _Metric(
            "kimera_database_temporary_bytes_total",
            "Written to temporary files.",
            _each("temporary_bytes", datname="database"),
        ),
        _Metric(
            "kimera_database_checksum_failures_total",
            "Pages whose checksum was wrong.",
            _each("checksum_failures", datname="database"),
        ),
    ),
    "sizes": (_Metric("kimera_table_size_bytes", "Size of a table with all.", _each("total_bytes", "table")),),
    "tables": (
        _Metric("kimera_table_live_rows", "Rows, estimated.", _each("live_rows", "table")),
        _Metric("kimera_table_dead_rows", "Dead rows, estimated.", _each("dead_rows", "table")),
        _Metric("kimera_table_scans_total", "Scans of the table.", _each("table_scans", "table")),
    ),
    "indexes": (
        _Metric("kimera_index_size_bytes", "Size of an index.", _each("size_bytes", "index", "table")),
        _Metric("kimera_index_scans_total", "Scans of an index.", _each("scans", "index", "table")),
        _Metric("kimera_index_valid", "0 for an unfinished index.", _each("valid", "index", "table")),
    ),
    "vectors": (
        _Metric(
            "kimera_vector_index_growth_ratio", "Bytes a row now over those at the build.", _each("growth", "index")
        ),
        _Metric("kimera_vector_index_fault", "1 where the vector index has the fault.", _faults),
    ),
    "recall": (
        _Metric(
            "kimera_vector_index_recall_ratio",
            "Highest recall for k neighbours that the index was measured to reach, 0 if it missed every target.",
            _each("recall", "index", "k"),
        ),
        _Metric(
            "kimera_vector_index_recall_measured_timestamp_seconds",
            "When that recall was measured.",
            _each("measured_at", "index", "k"),
        ),
    ),
    "sampled": (
        _Metric("kimera_sampled_searches", "Searches of a table that are in the sample.", _each("searches", "table")),
        _Metric(
            "kimera_sampled_last_timestamp_seconds", "When the last one was sampled.", _each("sampled_at", "table")
        ),
        _Metric("kimera_sampled_recall_ratio", "Recall of these searches, measured.", _each("recall", "table")),
        _Metric("kimera_sampled_recall_low_ratio", "Low end of its 95 % interval.", _each("low", "table")),
        _Metric("kimera_sampled_recall_high_ratio", "High end of its 95 % interval.", _each("high", "table")),
        _Metric("kimera_sampled_recall_queries", "Searches that it was measured with.", _each("queries", "table")),
        _Metric(
            "kimera_sampled_recall_measured_timestamp_seconds",
            "When it was measured.",
            _each("measured_at", "table"),
        ),
    ),
    "bloat": (_Metric("kimera_btree_wasted_bytes", "Waste in a b-tree, estimated.", _each("wasted_bytes", "index")),),
    "cache": (
        _Metric(
            "kimera_table_cache_hit_ratio",
            "A table's blocks found in the server's cache.",
            _each("hit_ratio", "table"),
        ),
    ),
    "queries": (
        _Metric("kimera_query_calls_total", "Calls of a named query.", _each("calls", "query")),
        _Metric("kimera_query_rows_total", "Rows that a named query gave or changed.", _each("rows", "query")),
        _Metric("kimera_query_seconds_total", "Time that a named query took.", _each("total_seconds", "query")),
    ),
    "connections": (
        _Metric(
            "kimera_connections",
            "Connections of clients by who and in which state.",
            _each("connections", "role", "application", "state", datname="database"),
        ),
    ),
    "locks": (
        _Metric("kimera_blocked_sessions", "Sessions that wait for a lock.", _distinct("pid")),
        _Metric("kimera_blocked_longest_seconds", "Longest wait for a lock.", _most("waiting_seconds")),
    ),
    "transactions": (
        _Metric("kimera_long_transactions", "Transactions open for a minute.", _count),
        _Metric(
            "kimera_long_transaction_longest_seconds", "Age of the oldest transaction of those.", _most("open_seconds")
        ),
    ),
    "wal": (_Metric("kimera_wal_written_bytes_total", "Write-ahead log written.", _each("bytes")),),
    "wal-files": (
        _Metric("kimera_wal_size_bytes", "Write-ahead log on disk.", _each("bytes")),
        _Metric("kimera_wal_waiting_files", "Files that wait to be archived.", _each("waiting")),
    ),
    "archiver": (
        _Metric("kimera_archived_files_total", "Files archived.", _each("archived")),
        _Metric("kimera_archiving_failures_total", "Attempts that failed.", _each("failed")),
        _Metric("kimera_archived_last_timestamp_seconds", "When the last file was archived.", _each("archived_at")),
        _Metric("kimera_archiving_failing", "1 when the last attempt failed.", _each("failing")),
    ),
    "backups": (
        _Metric(
            "kimera_backup_last_timestamp_seconds",
            "When the newest verified backup of a kind was begun, 0 if there is none.",
            _newest,
        ),
    ),
    "checkpoints": (
        _Metric("kimera_checkpoints_timed_total", "Checkpoints by time.", _each("timed")),
        _Metric("kimera_checkpoints_requested_total", "Other checkpoints.", _each("requested")),
        _Metric(
            "kimera_checkpoint_write_seconds_total", "Time spent on writing at checkpoints.", _each("write_seconds")
        ),
    ),
    "io": (
        _Metric("kimera_io_read_bytes_total", "Read.", _each("read_bytes", "process", "object", "context")),
        _Metric("kimera_io_written_bytes_total", "Written.", _each("written_bytes", "process", "object", "context")),
    ),
    "replicas": (
        _Metric(
            "kimera_replica_behind_bytes",
            "Write-ahead log that a standby has not replayed.",
            _each("behind_bytes", "application", "address"),
        ),
        _Metric(
            "kimera_replica_behind_seconds", "The same in time.", _each("behind_seconds", "application", "address")
        ),
    ),
    "standby": (
        _Metric(
            "kimera_standby_replayed_seconds_ago",
            "Age of the last commit that this standby has replayed.",
            _each("replayed_seconds_ago"),
        ),
    ),
    "slots": (
        _Metric("kimera_slot_active", "1 while a slot is in use.", _each("active", "slot")),
        _Metric("kimera_slot_held_bytes", "Write-ahead log that a slot keeps.", _each("held_bytes", "slot")),
    ),
    "wraparound": (
        _Metric(
            "kimera_wraparound_used_ratio",
            "Transaction ids used up, of the 2^31 there is room for.",
            _each("used_ratio", datname="database"),
        ),
    ),
    "pool": (
        _Metric("kimera_pool_connections", "Connections of a pool.", _each("size", "pool")),
        _Metric("kimera_pool_idle_connections", "Those that are free.", _each("idle", "pool")),
        _Metric("kimera_pool_max_connections", "The most it opens.", _each("max_size", "pool")),
        _Metric("kimera_pool_waiting_requests", "Requests that wait.", _each("waiting", "pool")),
        _Metric("kimera_pool_requests_total", "Requests.", _each("requests", "pool")),
        _Metric("kimera_pool_waited_requests_total", "Requests that waited.", _each("waited", "pool")),
        _Metric("kimera_pool_waited_seconds_total", "Time waited.", _each("waited_seconds", "pool")),
        _Metric("kimera_pool_used_seconds_total", "Time in use.", _each("used_seconds", "pool")),
        _Metric("kimera_pool_errors_total", "Requests that got no connection.", _each("errors", "pool")),
        _Metric(
            "kimera_pool_connecting_errors_total",
            "Attempts to connect that failed.",
            _each("connecting_errors", "pool"),
        ),
        _Metric("kimera_pool_lost_connections_total", "Connections found broken.", _each("lost", "pool")),
    ),
}
"""The metrics of each report, and those of all."""

MEASURED: Final = frozenset(_METRICS) & REPORTS.keys()
"""The reports of collect that samples reads numbers from."""


def samples(reports: Mapping[str, Rows | Unavailable]) -> list[Sample]:
    """Return the numbers of *reports*, as collect returns them.

    {"pool": [pool(...)]} and {"backups": backups(...)} can be among them. {"server": Unavailable(...)} alone says that
    the database could not be reached. True is 1 and False 0. What is not known is left out. Where two rows have the
    same labels, the larger one counts.
    """
    available = {name: rows for name, rows in reports.items() if not isinstance(rows, Unavailable)}
    readable: dict[str, Sequence[Any]] = {_REPORTS: list(reports.items()), **available}
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for report, rows in readable.items():
        for metric in _METRICS.get(report, ()):
            for labels, value in metric.read(rows):
                if value is not None and math.isfinite(value):
                    key = metric.name, tuple(labels.items())
                    found[key] = max(found.get(key, -math.inf), float(value))
    return [Sample(name, value, dict(labels)) for (name, labels), value in found.items()]


def target_labels(conn: Connection) -> dict[str, str]:
    """Return the labels that tell the numbers of this database from those of another: database and server."""
    info = sql.require_postgres(conn, "SQLite keeps no statistics; monitoring needs PostgreSQL").info
    return {"database": info.dbname, "server": f"{info.host}:{info.port}"}


def configured_labels(settings: Settings) -> dict[str, str]:
    """Return the same for the database that open_pool tries first, which need not answer; nothing for SQLite."""
    for source, parameters in ways(settings):
        if parameters is not None:
            known = resolve(parameters, source)
            host = known.get("host") or known.get("hostaddr", "")
            return {"database": known["dbname"], "server": f"{host}:{known['port']}"}
    return {}


def exposition(numbers: Iterable[Sample], labels: Mapping[str, str]) -> str:
    """Return *numbers*, which come from samples, in Prometheus' text format 0.0.4.

    Every one gets *labels* besides its own, target_labels(conn) for instance. Without them the numbers of two databases
    cannot be told apart, and the node exporter drops those of one.
    https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    lines: dict[str, list[str]] = {}
    for sample in numbers:
        pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in {**labels, **sample.labels}.items())
        number = f"{sample.value:.0f}" if sample.value.is_integer() else repr(sample.value)
        name = f"{sample.name}{{{pairs}}}" if pairs else sample.name
        lines.setdefault(sample.name, []).append(f"{name} {number}\n")
    text = []
    for metric in (metric for measured in _METRICS.values() for metric in measured):
        if metric.name in lines:
            text += [f"# HELP {metric.name} {metric.help}\n", f"# TYPE {metric.name} {metric.kind}\n"]
            text += lines[metric.name]
    return "".join(text)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write_textfile(path: Path, text: str) -> None:
    """Put *text* into the file *path* in one step: who reads it meanwhile gets the old one whole."""
    # The node exporter, which is another user, reads every *.prom; the unfinished file is not called that.
    with partial_file(path, mode=0o666) as partial:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def store_samples(conn: Connection, numbers: Iterable[Sample]) -> int:
    """Store *numbers* in system_metrics, all or none, and return how many there were.

    metric_name is the sample's name, component "database", context its labels. All get the same time.
    """
    return metrics.insert_many(
        conn,
        (
            metrics.NewMetric(
                metric_name=sample.name, metric_value=sample.value, component=COMPONENT, context=dict(sample.labels)
            )
            for sample in numbers
        ),
    )
