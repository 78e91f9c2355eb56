"""System metrics: the latest, series in buckets of time, names and pruning."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import BAD_LIMITS, BAD_MOMENTS, BAD_NUMBERS, BAD_OBJECTS, BAD_SPANS, BAD_TEXTS, near, seconds

from kimera_sql import metrics
from kimera_sql.errors import InvalidValue
from kimera_sql.metrics import Bucket, Metric, NewMetric
from kimera_sql.sql import Connection

pytestmark = pytest.mark.ends

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
names = st.sampled_from(["load", "heat"])
components = st.sampled_from(["core", "edge"])
offsets = st.integers(0, 8).map(lambda number: seconds(number / 4))
news_of_all_kinds = st.lists(
    st.builds(
        NewMetric,
        metric_name=names,
        metric_value=st.floats(-1e6, 1e6),
        component=components,
        timestamp=offsets,
    ),
    max_size=20,
)


def fill(conn: Connection, news: list[NewMetric]) -> list[Metric]:
    """Begin anew with *news*, and return their rows, the oldest first."""
    conn.rollback()
    metrics.insert_many(conn, news)
    return list(metrics.stream(conn))


def metric(value: float = 0, at: float = 0, **changes: Any) -> NewMetric:
    new = NewMetric(metric_name="load", metric_value=value, component="core", timestamp=seconds(at))
    return replace(new, **changes)


@given(
    news=news_of_all_kinds,
    name=names | st.just("none"),
    component=st.none() | components | st.just("none"),
    limit=st.integers(1, 12),
)
def test_latest_returns_the_newest_first(
    conn: Connection, news: list[NewMetric], name: str, component: str | None, limit: int
) -> None:
    rows = [row for row in fill(conn, news) if row.metric_name == name and component in (None, row.component)]
    assert metrics.latest(conn, name, component=component, limit=limit) == rows[::-1][:limit]


def test_latest_takes_the_last_inserted_of_one_time(conn: Connection) -> None:
    fill(conn, [metric(1), metric(2), metric(3)])
    assert [row.metric_value for row in metrics.latest(conn, "load", limit=2)] == [3, 2]


def test_latest_returns_one_unless_told(conn: Connection) -> None:
    fill(conn, [metric(1), metric(2, 1)])
    assert [row.metric_value for row in metrics.latest(conn, "load")] == [2]


@given(
    news=news_of_all_kinds,
    bucket=st.sampled_from([1e-6, 0.25, 0.7, 3, 3600, 1e7]).map(lambda length: timedelta(seconds=length)),
    since=offsets,
    until=offsets,
    component=st.none() | components,
)
def test_series_sums_up_buckets_from_since_up_to_not_including_until(
    conn: Connection, news: list[NewMetric], bucket: timedelta, since: Any, until: Any, component: str | None
) -> None:
    buckets = defaultdict(list)
    for row in fill(conn, news):
        if row.metric_name == "load" and component in (None, row.component) and since <= row.timestamp < until:
            buckets[row.timestamp - (row.timestamp - EPOCH) % bucket].append(row.metric_value)
    expected = [
        Bucket(
            start,
            len(values),
            near(sum(values) / len(values)),
            min(values),
            max(values),
            near(float(np.percentile(values, 95))),
        )
        for start, values in sorted(buckets.items())
    ]
    assert metrics.series(conn, "load", bucket=bucket, since=since, until=until, component=component) == expected


def test_series_counts_days_from_midnight_in_utc(conn: Connection) -> None:
    fill(conn, [metric(1), metric(3, 60)])
    day = datetime(2024, 5, 17, tzinfo=UTC)
    (found,) = metrics.series(conn, "load", bucket=timedelta(days=1), since=day)
    assert found == Bucket(day, 2, 2, 1, 3, near(2.9))


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1.7e308] * 3, 1.7e308),
        ([1.7e308, -1.7e308, 3], 1),
        ([1e200, 0], 5e199),
        ([1e290, 9e289, 1], 1.9e290 / 3),
        ([5e-324, 5e-324], 5e-324),
    ],
)
def test_series_has_the_mean_of_numbers_of_any_size(conn: Connection, values: list[float], mean: float) -> None:
    fill(conn, [metric(value) for value in values])
    (found,) = metrics.series(conn, "load", bucket=timedelta(days=1), since=seconds(-1))
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert (found.min, found.max) == (min(values), max(values))


def test_series_goes_up_to_now_unless_told(conn: Connection) -> None:
    now = datetime.now(UTC)
    fill(conn, [metric(days, timestamp=now + timedelta(days)) for days in (-1, 1)])
    found = metrics.series(conn, "load", bucket=timedelta(days=1), since=now - timedelta(2))
    assert [(bucket.count, bucket.max) for bucket in found] == [(1, -1)]


@given(news=st.lists(st.builds(metric, metric_name=st.text("abc", max_size=3)), max_size=12))
def test_names_are_in_order_and_once_each(conn: Connection, news: list[NewMetric]) -> None:
    fill(conn, news)
    assert metrics.names(conn) == sorted({new.metric_name for new in news})


@given(news=news_of_all_kinds, older_than=offsets, batch=st.integers(1, 5) | st.just(10_000))
def test_prune_deletes_what_is_older_whatever_the_batch(
    conn: Connection, news: list[NewMetric], older_than: Any, batch: int
) -> None:
    rows = fill(conn, news)
    kept = [row for row in rows if row.timestamp >= older_than]
    assert metrics.prune(conn, older_than, batch=batch) == len(rows) - len(kept)
    assert list(metrics.stream(conn)) == kept


def test_a_dry_run_of_prune_counts_alone(conn: Connection) -> None:
    rows = fill(conn, [metric(at=at) for at in range(4)])
    assert metrics.prune(conn, seconds(3), dry_run=True) == 3
    assert list(metrics.stream(conn)) == rows


def test_record_inserts_a_measurement_taken_now(conn: Connection) -> None:
    first = metrics.record(conn, "load", 0.5, component="core", context={"n": 1})
    second = metrics.record(conn, "load", 1, component="core")
    assert metrics.get(conn, first.id) == first
    assert (first.metric_name, first.metric_value, first.component, first.context) == ("load", 0.5, "core", {"n": 1})
    assert second.context == {}
    assert first.timestamp < second.timestamp


def test_ids_rise_with_each_insert(conn: Connection) -> None:
    rows = fill(conn, [metric(number) for number in range(5)])
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert metrics.insert(conn, metric(5)).id > rows[-1].id


RECORD = {"name": "load", "value": 1, "component": "core"}
SERIES = {"name": "load", "bucket": timedelta(1), "since": seconds(0)}
BAD: list[tuple[Callable[..., Any], dict[str, Any], str, tuple[Any, ...]]] = [
    (metrics.latest, {}, "name", (*BAD_TEXTS, None)),
    (metrics.latest, {"name": "load"}, "component", BAD_TEXTS),
    (metrics.latest, {"name": "load"}, "limit", BAD_LIMITS),
    (metrics.series, SERIES, "name", (*BAD_TEXTS, None)),
    (metrics.series, SERIES, "bucket", BAD_SPANS),
    (metrics.series, SERIES, "since", (*BAD_MOMENTS, None)),
    (metrics.series, SERIES, "until", BAD_MOMENTS),
    (metrics.series, SERIES, "component", BAD_TEXTS),
    (metrics.prune, {}, "older_than", (*BAD_MOMENTS, None)),
    (metrics.prune, {"older_than": seconds(0)}, "batch", BAD_LIMITS),
    (metrics.record, RECORD, "context", BAD_OBJECTS),
    (metrics.record, RECORD, "component", (*BAD_TEXTS, None)),
]


@pytest.mark.parametrize(
    ("function", "arguments", "field", "bad"),
    [(function, arguments, field, bad) for function, arguments, field, values in BAD for bad in values],
)
def test_a_bad_argument_is_refused(
    conn: Connection, function: Callable[..., Any], arguments: dict[str, Any], field: str, bad: Any
) -> None:
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        function(conn, **{**arguments, field: bad})
    assert metrics.count(conn) == 0


@pytest.mark.parametrize("bad", BAD_NUMBERS)
def test_record_refuses_a_bad_value(conn: Connection, bad: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^metric_value: "):
        metrics.record(conn, "load", bad, component="core")
    assert metrics.count(conn) == 0
