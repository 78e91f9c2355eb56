"""Many searches at once, on one connection or on those of a pool that are idle."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Final

import numpy as np
import psycopg
import pytest
from psycopg_pool import PoolTimeout
from strategies import unit

from kimera_sql import Pool, Settings, SqlitePool, add_adapters, aio, embeddings, geoids, indexes, migrate, open_pool
from kimera_sql.sql import Connection
from kimera_sql.twins import at_once

pytestmark = pytest.mark.ends

ROWS: Final = 300
VECTORS: Final = [unit(seed) for seed in range(ROWS)]
QUERIES: Final = [unit(-seed % 1000 + 1000) for seed in range(13)]
SIZE: Final = 4
FOREVER: Final = "SELECT pg_sleep(60)"


def fill(conn: Connection) -> None:
    geoids.insert_many(
        conn,
        [
            geoids.NewGeoid(state_vector=one, entropy=number, coherence_factor=0, energy_level=0)
            for number, one in enumerate(VECTORS)
        ],
    )
    embeddings.insert_many(
        conn,
        [embeddings.NewEmbedding(text_content=str(number), embedding=one) for number, one in enumerate(VECTORS)],
    )


def settings(size: int = SIZE, **others: Any) -> Settings:
    return Settings(pool_size=size, pool_overflow=0, **others)


@pytest.fixture
def filled(database: str) -> str:
    """The conninfo of a database of the test's own with states that have an index, and embeddings that have none."""
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn)
        indexes.build(conn, "geoid_states")
    return database


@pytest.fixture
def pool(filled: str) -> Iterator[Pool]:
    with open_pool(filled, settings=settings()) as pool:
        pool.wait()
        yield pool


def back(pool: Pool) -> bool:
    """Whether all connections are in the pool, and none is broken."""
    with pool.connections(SIZE) as lent:
        results = [conn.execute("SELECT 1").fetchone() for conn in lent]
    return results == [(1,)] * SIZE


@pytest.mark.parametrize("count", [0, 1, 2, SIZE, len(QUERIES)])
@pytest.mark.parametrize("options", [{}, {"exact": True}], ids=str)
def test_a_pool_finds_what_a_connection_finds(pool: Pool, count: int, options: dict[str, Any]) -> None:
    queries = QUERIES[:count]
    with pool.connection() as conn:
        states = geoids.similar_many(conn, queries, 5, entropy=(10, None), **options)
        texts = embeddings.similar_many(conn, queries, 5, **options)
    assert [len(hits) for hits in states] == [len(hits) for hits in texts] == [5] * count
    assert geoids.similar_many(pool, iter(queries), 5, entropy=(10, None), **options) == states
    assert embeddings.similar_many(pool, queries, 5, **options) == texts
    assert back(pool)


def test_an_asynchronous_pool_finds_the_same(filled: str) -> None:
    async def found() -> tuple[Any, Any]:
        async with aio.open_pool(filled, settings=settings()) as pool:
            states = await aio.geoids.similar_many(pool, QUERIES, 5)
            return states, await aio.embeddings.similar_many(pool, QUERIES, 5)

    with psycopg.connect(filled) as conn:
        add_adapters(conn)
        expected = geoids.similar_many(conn, QUERIES, 5), embeddings.similar_many(conn, QUERIES, 5)
    assert asyncio.run(found()) == expected


def test_pools_of_sqlite_find_the_same_on_one_connection(tmp_path: Path) -> None:
    async def found() -> Any:
        async with aio.SqlitePool(tmp_path / "file.db") as pool:
            return await aio.geoids.similar_many(pool, QUERIES, 5)

    with SqlitePool(tmp_path / "file.db") as pool:
        with pool.connection() as conn:
            migrate(conn)
            fill(conn)
            expected = geoids.similar_many(conn, QUERIES, 5)
        assert geoids.similar_many(pool, QUERIES, 5) == expected
    assert asyncio.run(found()) == expected


def test_a_pool_lends_what_is_idle_and_waits_for_one_alone(pool: Pool) -> None:
    def pids(most: int) -> set[int]:
        with pool.connections(most) as lent:
            assert all(conn.autocommit for conn in lent)
            return {conn.info.backend_pid for conn in lent}

    assert [len(pids(most)) for most in (0, 1, 3, SIZE, 99)] == [1, 1, 3, SIZE, SIZE]
    with pool.connection() as one:
        assert not one.autocommit
        assert len(pids(99) - {one.info.backend_pid}) == SIZE - 1
    with pool.connections(SIZE - 1):
        began = monotonic()
        assert len(pids(99)) == 1
        assert monotonic() - began < 1
    assert back(pool)


def test_none_free_is_waited_for(filled: str) -> None:
    with (
        open_pool(filled, settings=settings(1, pool_timeout=0.3)) as pool,
        pool.connection(),
        pytest.raises(PoolTimeout, match="all 1 connections are in use"),
    ):
        geoids.similar_many(pool, QUERIES)


def test_an_error_is_raised_and_all_connections_come_back(pool: Pool) -> None:
    with pool.connection() as conn:
        conn.execute("ALTER TABLE geoid_states RENAME COLUMN tags TO other")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        geoids.similar_many(pool, QUERIES)
    assert back(pool)


def test_an_error_in_a_thread_cancels_the_others(pool: Pool) -> None:
    began = monotonic()
    with pool.connections(3) as (one, other, another):
        calls: dict[Any, Callable[[], Any]] = {conn: partial(conn.execute, FOREVER) for conn in (one, other)}
        with pytest.raises(psycopg.errors.DivisionByZero):
            at_once({**calls, another: partial(another.execute, "SELECT pg_sleep(0.3), 1 / (random() * 0)::int")})
    assert monotonic() - began < 20
    assert back(pool)


def test_an_interrupt_cancels_all_threads(pool: Pool) -> None:
    def search() -> None:
        # Not before: an interrupt that comes too early ends the process that runs the tests.
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        at_once({conn: partial(conn.execute, FOREVER) for conn in lent})

    began = monotonic()
    with pool.connections(2) as lent, pytest.raises(KeyboardInterrupt):
        search()
    assert monotonic() - began < 20
    assert back(pool)


@pytest.mark.parametrize("how", ["an error", "a cancellation"])
def test_tasks_are_cancelled_together(filled: str, how: str) -> None:
    async def run() -> None:
        async with aio.open_pool(filled, settings=settings()) as pool:
            await pool.wait()
            async with pool.connections(3) as lent:
                queries = [FOREVER, FOREVER, "SELECT 1 / (random() * 0)::int" if how == "an error" else FOREVER]
                calls = {conn: partial(conn.execute, query) for conn, query in zip(lent, queries, strict=True)}
                if how == "an error":
                    with pytest.raises(psycopg.errors.DivisionByZero):
                        await at_once(calls)
                else:
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await at_once(calls)
            hits = await aio.geoids.similar_many(pool, QUERIES, 5)
            assert [len(one) for one in hits] == [5] * len(QUERIES)

    began = monotonic()
    asyncio.run(run())
    assert monotonic() - began < 20


def test_a_cancelled_search_gives_its_connections_back(filled: str) -> None:
    async def run() -> None:
        async with aio.open_pool(filled, settings=settings()) as pool:
            asked = [vector for vector in VECTORS for _ in range(20)]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await aio.geoids.similar_many(pool, asked, 100, exact=True)
            async with asyncio.timeout(20):
                while pool.get_stats()["pool_available"] < SIZE:
                    await asyncio.sleep(0.01)
            hits = await aio.geoids.similar_many(pool, np.array(QUERIES), 5)
            assert [len(one) for one in hits] == [5] * len(QUERIES)

    asyncio.run(run())
