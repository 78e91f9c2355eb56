"""Transactions that are run again when they failed through no fault of their own, and those that are not."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import psycopg
import pytest
from fix_proxy import Proxy
from fix_twins import Blocking, blocking

from kimera_sql import CommitUnknown, InvalidValue, SqlitePool, aio, open_pool, retry

END_MYSELF = "SELECT pg_terminate_backend(pg_backend_pid())"


class Work:
    """A transaction that runs statements, which can be others at each attempt. attempts: how many there were."""

    def __init__(self, statements: Callable[[int], Iterator[str]]) -> None:
        self._statements = statements
        self.attempts = 0

    def of(self, pool: Any, **options: Any) -> Any:
        if isinstance(pool, Blocking):
            return pool._runner.run(aio.retry(pool._target, self._later, **options))
        return retry(pool, self._now, **options)

    def _now(self, conn: Any) -> int:
        self.attempts += 1
        for statement in self._statements(self.attempts):
            conn.execute(statement)
        return self.attempts

    async def _later(self, conn: Any) -> int:
        self.attempts += 1
        for statement in self._statements(self.attempts):
            await conn.execute(statement)
        return self.attempts


@pytest.fixture
def pool(proxy: Proxy, pool_of: Callable[..., Any]) -> Any:
    with psycopg.connect(proxy.server) as conn:
        conn.execute("CREATE TABLE t AS SELECT id, 0 AS n FROM generate_series(1, 2) AS id")
    return pool_of(proxy.conninfo)


def stored(proxy: Proxy) -> list[int]:
    with psycopg.connect(proxy.server) as conn:
        return [n for (n,) in conn.execute("SELECT n FROM t ORDER BY id")]


def test_a_serialization_failure_is_one_more_attempt(proxy: Proxy, pool: Any) -> None:
    def statements(attempt: int) -> Iterator[str]:
        yield "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
        yield "SELECT n FROM t"
        if attempt == 1:
            with psycopg.connect(proxy.server) as other:
                other.execute("UPDATE t SET n = 5")
        yield "UPDATE t SET n = n + 1"

    assert Work(statements).of(pool) == 2
    assert stored(proxy) == [6, 6]


def test_a_reader_is_run_again_too(proxy: Proxy, pool: Any) -> None:
    def statements(attempt: int) -> Iterator[str]:
        yield "SELECT n FROM t"
        if attempt == 1:
            # What a standby says when a query is in the way of its replay.
            yield "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$"

    assert Work(statements).of(pool, read_only=True) == 2
    writing = Work(lambda _: iter(["UPDATE t SET n = 9"]))
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        writing.of(pool, read_only=True)
    assert (writing.attempts, stored(proxy)) == (1, [0, 0])


def test_a_deadlock_is_one_more_attempt(proxy: Proxy) -> None:
    with psycopg.connect(proxy.server) as conn:
        conn.execute("CREATE TABLE t AS SELECT id, 0 AS n FROM generate_series(1, 2) AS id")
    both = Barrier(2)

    def works(first: int) -> Work:
        def statements(attempt: int) -> Iterator[str]:
            yield f"SELECT id FROM t WHERE id = {first} FOR UPDATE"  # noqa: S608
            if attempt == 1:
                both.wait()
            yield "UPDATE t SET n = n + 1"

        return Work(statements)

    pair = works(1), works(2)
    with open_pool(proxy.server) as pool, ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda work: work.of(pool), pair))
    assert (stored(proxy), sum(work.attempts for work in pair)) == ([2, 2], 3)


def test_a_connection_lost_before_its_commit_is_one_more_attempt(proxy: Proxy, pool: Any) -> None:
    def statements(attempt: int) -> Iterator[str]:
        yield "UPDATE t SET n = n + 1"
        if attempt == 1:
            yield END_MYSELF
        elif attempt == 2:
            proxy.cut()
            yield "SELECT 1"

    assert Work(statements).of(pool) == 3
    assert stored(proxy) == [1, 1]


def test_a_session_that_ends_behind_its_begin_is_one_more_attempt(proxy: Proxy, pool: Any) -> None:
    def statements(attempt: int) -> Iterator[str]:
        if attempt == 1:
            proxy.fail_at("BEGIN", "ended")
        yield "UPDATE t SET n = n + 1"

    assert Work(statements).of(pool) == 2
    assert stored(proxy) == [1, 1]


def test_it_ends_with_the_last_error_and_says_how_often_it_was_tried(proxy: Proxy, pool: Any) -> None:
    work = Work(lambda _: iter([END_MYSELF]))
    with pytest.raises(psycopg.errors.AdminShutdown) as caught:
        work.of(pool, attempts=3)
    assert (work.attempts, caught.value.__notes__) == (3, ["given up after 3 attempts"])


def test_a_commit_whose_outcome_is_unknown_is_not_tried_again(proxy: Proxy, pool: Any) -> None:
    def statements(_: int) -> Iterator[str]:
        yield "UPDATE t SET n = n + 1"
        proxy.fail_at("COMMIT", "after")

    work = Work(statements)
    with pytest.raises(CommitUnknown):
        work.of(pool)
    assert (work.attempts, stored(proxy)) == (1, [1, 1])


@pytest.mark.parametrize("statement", ["COMMIT", "SELECT 1 / 0"])
def test_other_errors_are_not_tried_again(pool: Any, statement: str) -> None:
    """After a COMMIT of its own, a statement of the work that fails is not one of a transaction that left nothing."""
    work = Work(lambda _: iter([statement, "SELECT 1 / 0"]))
    with pytest.raises(psycopg.errors.DivisionByZero):
        work.of(pool)
    assert work.attempts == 1


def test_what_was_lost_in_autocommit_is_not_tried_again(proxy: Proxy) -> None:
    attempts = 0

    def work(conn: Any) -> None:
        nonlocal attempts
        attempts += 1
        conn.autocommit = True
        conn.execute(END_MYSELF)

    with open_pool(proxy.server) as pool, pytest.raises(psycopg.errors.AdminShutdown):
        retry(pool, work)
    assert attempts == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_busy_sqlite_file_is_one_more_attempt(tmp_path: Path, asynchronous: bool) -> None:
    path = tmp_path / "file.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE t (n)")

    def statements(attempt: int) -> Iterator[str]:
        yield "PRAGMA busy_timeout = 0"
        other.execute("BEGIN IMMEDIATE" if attempt == 1 else "COMMIT")
        yield "INSERT INTO t VALUES (1)"

    with (
        asyncio.Runner() as runner,
        blocking(aio.SqlitePool(path), runner) if asynchronous else SqlitePool(path) as pool,
    ):
        assert Work(statements).of(pool) == 2
    assert other.execute("SELECT n FROM t").fetchall() == [(1,)]
    other.close()


def test_attempts_are_a_number_from_one_up(pool: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^attempts: 0 is not within 1 to "):
        Work(lambda _: iter([])).of(pool, attempts=0)
