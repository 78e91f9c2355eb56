"""Which server of a cluster is its primary and which can be read from, decided from what was seen of each."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimera_sql import InvalidValue, SqlitePool, aio, metrics, migrate
from kimera_sql.replication import Cluster, Seen, as_number, as_text

SYSTEM = 7712947530613337493
METRIC = metrics.NewMetric(metric_name="seen", metric_value=1, component="test")


def primary(at: float, lsn: int, timeline: int = 1) -> Seen:
    return Seen(at, SYSTEM, False, timeline, lsn)


def standby(at: float, lsn: int, timeline: int = 1) -> Seen:
    return Seen(at, SYSTEM, True, timeline, lsn)


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.integers(0, 100), st.booleans(), st.booleans()), max_size=40),
    st.floats(3, 20),
)
def test_a_standby_that_is_lent_has_all_that_is_older_than_the_bound(steps: Any, max_lag: float) -> None:
    """The primary writes and the standby replays, a part or all, and each is seen or not."""
    cluster, now, written, replayed = Cluster(SYSTEM, max_lag), 0.0, 0, 0
    history = [(0.0, 0)]
    for seconds, bytes_, sees_primary, sees_standby in steps:
        now += seconds
        if sees_primary:
            written += bytes_
            history.append((now, written))
            cluster.note(0, primary(now, written))
        else:
            replayed = min(replayed + bytes_, written)
        if sees_standby:
            cluster.note(1, standby(now, replayed))
        if cluster.standbys(now, max_lag):
            assert replayed >= max(lsn for at, lsn in history if at <= now - max_lag or at == 0)


def test_a_standby_that_keeps_up_is_fresh_however_idle_the_primary_is() -> None:
    cluster = Cluster(SYSTEM, 3)
    for at in range(100):
        cluster.note(0, primary(at, 7))
        cluster.note(1, standby(at, 7))
        assert cluster.standbys(at + 0.5, 3) == {1: 7}
    # Nobody knows what a primary that is not seen has written.
    assert cluster.standbys(103, 3) == {}


def test_what_is_seen_of_a_server_last_counts() -> None:
    cluster = Cluster(SYSTEM, 3)
    assert (cluster.primary(), cluster.order(2), cluster.standbys(0, math.inf)) == (None, [0, 1], {})
    cluster.note(1, primary(0, 5))
    cluster.note(0, standby(0, 5))
    assert (cluster.primary(), cluster.order(3), cluster.standbys(1, 3)) == (1, [1, 0, 2], {0: 5})
    cluster.note(0, None)
    assert cluster.standbys(1, 3) == {}
    cluster.note(0, Seen(1, SYSTEM + 1, True, 0, 99))
    assert cluster.standbys(1, 3) == {}
    cluster.note(1, None)
    assert (cluster.primary(), cluster.order(2)) == (None, [0, 1])


def test_the_highest_timeline_leads() -> None:
    cluster = Cluster(SYSTEM, 3)
    cluster.note(0, primary(0, 100))
    cluster.note(2, standby(0, 100))
    cluster.note(1, primary(1, 50, timeline=2))
    assert (cluster.primary(), cluster.order(3)) == (1, [1, 2])
    # The standby still follows the old one, and may have what the new one's history lacks.
    assert cluster.standbys(1, 3) == {}
    cluster.note(2, standby(2, 60, timeline=2))
    assert cluster.standbys(2, 3) == {2: 60}
    cluster.note(1, primary(3, 150, timeline=2))
    assert cluster.standbys(9, 3) == {}
    assert "promoted in its place" in str(cluster.outdated(primary(3, 200)))
    assert cluster.outdated(primary(3, 200, timeline=2)) is None
    assert "another cluster" in str(cluster.outdated(Seen(3, 1, False, 9, 0)))
    cluster.note(1, None)
    assert (cluster.primary(), cluster.order(3), cluster.order(1)) == (None, [1, 2], [0])


@given(st.integers(0, 2**64 - 1))
def test_an_lsn_as_text_and_back(lsn: int) -> None:
    assert as_number(as_text(lsn)) == lsn


@pytest.mark.parametrize("lsn", ["", "0", "0/", "0/123456789", "x/1", " 0/1", "0/1\n", 7, b"0/1", None])
def test_what_is_no_lsn_is_refused(lsn: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^after must be what a pool's lsn\(\) gave"):
        as_number(lsn)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as conn:
        migrate(conn)
    return pool.path


def test_a_file_has_readers_that_write_nothing_too(path: Path) -> None:
    with SqlitePool(path) as pool:
        with pool.connection() as conn:
            metrics.insert(conn, METRIC)
        with pool.connection(read_only=True, after=pool.lsn()) as conn:
            assert metrics.count(conn) == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"), pool.connection(read_only=True) as conn:
            metrics.insert(conn, METRIC)
        with pool.connection() as conn:
            metrics.insert(conn, METRIC)
        with pytest.raises(InvalidValue, match="after"), pool.connection(read_only=True, after="soon"):
            pass


def test_an_asynchronous_file_has_them_too(path: Path) -> None:
    asyncio.run(read_and_write(path))


async def read_and_write(path: Path) -> None:
    async with aio.SqlitePool(path) as pool:
        async with pool.connection() as conn:
            await aio.metrics.insert(conn, METRIC)
        async with pool.connection(read_only=True, after=await pool.lsn()) as conn:
            assert await aio.metrics.count(conn) == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            async with pool.connection(read_only=True) as conn:
                await aio.metrics.insert(conn, METRIC)
        async with pool.connection() as conn:
            await aio.metrics.insert(conn, METRIC)
        with pytest.raises(InvalidValue, match="after"):
            async with pool.connection(read_only=True, after="soon"):
                pass
