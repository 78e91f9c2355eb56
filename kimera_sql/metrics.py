# Generated from kimera_sql/aio/metrics.py by .ci/twins.py: change that one.
"""System metrics: measurements over time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from . import batches, checks, sql
from .entity import Entity
from .model.metrics import Bucket, Metric, NewMetric, identifier, values
from .search import catalogue
from .sql import Connection

__all__ = [
    "Bucket",
    "Metric",
    "NewMetric",
    "count",
    "delete",
    "entity",
    "get",
    "get_many",
    "insert",
    "insert_arrow",
    "insert_many",
    "latest",
    "names",
    "prune",
    "record",
    "series",
    "stream",
    "stream_arrow",
]

_queries = sql.Queries("metrics")

entity = Entity(
    _queries,
    NewMetric,
    Metric,
    values,
    identifier,
    copy_with_ids=_queries.copy_in_with_ids,
    advance_ids=_queries.advance_ids,
)
insert = entity.insert
insert_many = entity.insert_many
insert_arrow = entity.insert_arrow
get = entity.get
get_many = entity.get_many
delete = entity.delete
count = entity.count
stream = entity.stream
stream_arrow = entity.stream_arrow


def record(
    conn: Connection, name: str, value: float, *, component: str, context: Mapping[str, Any] | None = None
) -> Metric:
    """Insert a measurement taken now: insert, without writing out a NewMetric."""
    return insert(
        conn,
        NewMetric(
            metric_name=name, metric_value=value, component=component, context={} if context is None else context
        ),
    )


def latest(conn: Connection, name: str, *, component: str | None = None, limit: int = 1) -> list[Metric]:
    """Return the newest measurements of a metric, of one component or of all, the newest first."""
    return _queries.latest.fetchall(
        conn,
        Metric,
        metric_name=checks.text("name", name),
        component=checks.optional(checks.text, "component", component),
        limit=checks.limit(limit),
    )


def series(
    conn: Connection,
    name: str,
    *,
    bucket: timedelta,
    since: datetime,
    until: datetime | None = None,
    component: str | None = None,
) -> list[Bucket]:
    """Return a metric from *since* up to, not including, *until* (now if None), in buckets of time, oldest first.

    Buckets are counted from 1970-01-01 UTC, and those without a measurement are left out.
    """
    return _queries.series.fetchall(
        conn,
        Bucket,
        metric_name=checks.text("name", name),
        component=checks.optional(checks.text, "component", component),
        bucket=checks.span("bucket", bucket),
        since=checks.moment("since", since),
        until=checks.moment("until", datetime.now(UTC) if until is None else until),
    )


def names(conn: Connection) -> list[str]:
    """Return the names of all metrics, in order."""
    distributed = catalogue.is_distributed(conn, "system_metrics")
    query = _queries.scattered_names if distributed else _queries.names
    return [row[0] for row in query.fetchall(conn)]


def prune(conn: Connection, older_than: datetime, *, batch: int = 10_000, dry_run: bool = False) -> int:
    """Delete the measurements from before *older_than* (aware), *batch* at a time, and return how many there were.

    On an autocommit connection each batch is a transaction of its own, so that a long prune holds nothing up and
    keeps what it has done if it is stopped; otherwise all are the caller's transaction. *dry_run* only counts.
    """
    moment, size = checks.moment("older_than", older_than), checks.limit(batch, "batch")
    if dry_run:
        return _queries.count_older.fetchval(conn, int, older_than=moment) or 0
    return batches.delete(conn, _queries.prune, size, {"older_than": moment})
