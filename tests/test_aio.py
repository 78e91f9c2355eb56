"""What is asynchronous programs' own: pools, cancellation, streams, asynchronous iterables and coroutine functions.

That the functions give what the synchronous ones do is for the entities' own tests, which run on both (fix_twins).
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import aiosqlite
import numpy as np
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolClosed, PoolTimeout
from strategies import unit

from kimera_sql import ConnectionFailed, FallbackWarning, InvalidValue, Settings, SettingsError, geoids
from kimera_sql import aio as kimera
from kimera_sql.aio import AsyncPool, SqlitePool
from kimera_sql.vectors import Vector


@dataclass(frozen=True, slots=True)
class Loaded:
    id: UUID
    entropy: float


def state(seed: int = 0, entropy: float = 0.0) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(seed), entropy=entropy, coherence_factor=0, energy_level=0)


async def filled(conn: Any, rows: int) -> None:
    await kimera.geoids.insert_many(conn, [state(seed, seed) for seed in range(rows)])


async def failing(pool: AsyncPool | SqlitePool) -> None:
    async with pool.connection() as conn:
        await filled(conn, 1)
        raise ZeroDivisionError


def test_a_pool_is_opened_by_await_and_by_async_with(database: str) -> None:
    async def main() -> None:
        pool = await kimera.open_pool(database)
        assert isinstance(pool, AsyncPool)
        async with pool.connection() as conn:
            assert await kimera.geoids.count(conn) == 0
        await pool.close()
        async with kimera.open_pool(database) as pool:
            assert (pool.min_size, pool.max_size) == (5, 15)
        assert pool.closed

    asyncio.run(main())


def test_it_commits_at_the_end_and_rolls_back_on_an_error(database: str) -> None:
    async def main() -> None:
        async with kimera.open_pool(database) as pool:
            async with pool.connection() as conn:
                await filled(conn, 1)
            with pytest.raises(ZeroDivisionError):
                await failing(pool)
            async with pool.connection() as conn:
                assert await kimera.geoids.count(conn) == 1

    asyncio.run(main())


def test_connections_that_the_server_ended_are_never_lent(database: str) -> None:
    async def main() -> None:
        async with kimera.open_pool(database) as pool:
            await pool.wait()
            with psycopg.connect(database, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            for _ in range(10):
                async with pool.connection(timeout=5) as conn:
                    assert await kimera.geoids.count(conn) == 0

    asyncio.run(main())


def test_a_connection_past_its_age_is_replaced(database: str) -> None:
    async def main() -> None:
        settings = Settings(pool_size=1, pool_overflow=0, pool_recycle=1)
        async with kimera.open_pool(database, settings=settings) as pool:
            async with pool.connection() as conn:
                first = conn.info.backend_pid
                conn.opened_at -= 10
            async with pool.connection() as conn:
                assert conn.info.backend_pid != first

    asyncio.run(main())


def test_a_timeout_tells_its_cause(database: str) -> None:
    async def main() -> None:
        settings = Settings(pool_size=1, pool_overflow=0)
        async with kimera.open_pool(database, settings=settings) as pool, pool.connection():
            with pytest.raises(PoolTimeout, match="all 1 connections are in use"):
                await pool.getconn(0.1)

    asyncio.run(main())


def test_no_server_is_an_error_that_lists_the_attempts() -> None:
    async def main() -> None:
        with pytest.raises(ConnectionFailed, match=r"conninfo \(host=127\.0\.0\.1 port=1"):
            await kimera.open_pool("postgresql://nobody:planted-secret@127.0.0.1:1/x")

    asyncio.run(main())


def test_libpqs_variables_alone_name_the_database(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    given = conninfo_to_dict(database)
    for key in variables.keys() & given.keys():
        monkeypatch.setenv(variables[key], str(given[key]))

    async def main() -> None:
        async with kimera.open_pool() as pool, pool.connection() as conn:
            await kimera.geoids.count(conn)
            assert isinstance(pool, AsyncPool)

    asyncio.run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_what_libpq_refuses_is_an_error_of_the_settings(host: str) -> None:
    async def main() -> None:
        with pytest.raises(SettingsError, match=r"^conninfo: invalid channel_binding value"):
            await kimera.open_pool(f"postgresql://{host}:1/x?channel_binding=maybe")

    asyncio.run(main())


def test_with_nothing_configured_the_file_serves(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.warns(FallbackWarning, match=r"development\.db"):  # noqa: PT031
            async with kimera.open_pool(settings=Settings(sqlite_path=tmp_path / "development.db")) as pool:
                async with pool.connection() as conn:
                    await kimera.migrate(conn)
                    await filled(conn, 3)
                with pytest.raises(ZeroDivisionError):
                    await failing(pool)
                async with pool.connection() as conn:
                    assert await kimera.geoids.count(conn) == 3

    asyncio.run(main())


def test_the_files_pool_is_bounded_and_closed(tmp_path: Path) -> None:
    async def main() -> None:
        async with SqlitePool(tmp_path / "file.db", size=1, timeout=0.1) as pool:
            async with pool.connection():
                with pytest.raises(PoolTimeout, match=r"after 0\.10 sec; all 1 are in use"):
                    async with pool.connection():
                        pass
            async with pool.connection() as conn:
                assert conn.in_transaction is False
        with pytest.raises(PoolClosed):
            async with pool.connection():
                pass

    asyncio.run(main())


def test_writers_to_a_file_wait_for_each_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with SqlitePool(tmp_path / "file.db") as pool:
            async with pool.connection() as conn:
                await kimera.migrate(conn)

            async def write() -> None:
                async with pool.connection() as conn:
                    await filled(conn, 5)

            await asyncio.gather(*(write() for _ in range(20)))
            async with pool.connection() as conn:
                assert await kimera.geoids.count(conn) == 100

    asyncio.run(main())


def test_a_file_of_another_origin_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with aiosqlite.connect(tmp_path / "file.db") as conn:
            with pytest.raises(TypeError, match=r"kimera_sql\.aio\.sqlite\.connect"):
                await kimera.add_adapters(conn)

    asyncio.run(main())


def test_a_synchronous_connection_is_a_type_error() -> None:
    with closing(sqlite3.connect(":memory:")) as file:
        conn: Any = file
        with pytest.raises(
            TypeError, match=r"expected a psycopg\.AsyncConnection or aiosqlite\.Connection, got Connection$"
        ):
            asyncio.run(kimera.geoids.count(conn))


def test_insert_many_takes_an_asynchronous_iterable(database: str) -> None:
    async def items(bad: int) -> AsyncIterator[geoids.NewGeoid]:
        for number in range(20):
            await asyncio.sleep(0)
            yield state(number, float("nan") if number == bad else number)

    async def main() -> None:
        async with kimera.open_pool(database) as pool, pool.connection() as conn:
            assert await kimera.geoids.insert_many(conn, items(-1)) == 20
            with pytest.raises(InvalidValue, match=r"^item 7: entropy"):
                await kimera.geoids.insert_many(conn, items(7))
            assert await kimera.geoids.count(conn) == 20

    asyncio.run(main())


def test_get_or_create_embeds_with_a_function_or_a_coroutine_function(database: str) -> None:
    calls = []

    async def embed(text: str) -> Vector:
        await asyncio.sleep(0.05)
        calls.append(text)
        return unit(len(text))

    async def main() -> None:
        async with kimera.open_pool(database) as pool:

            async def one() -> UUID:
                async with pool.connection() as conn:
                    return (await kimera.embeddings.get_or_create(conn, "a text", embed)).id

            ids = await asyncio.gather(*(one() for _ in range(8)))
            assert len(set(ids)) == 1
            async with pool.connection() as conn:
                await kimera.embeddings.get_or_create(conn, "another", lambda text: unit(len(text)))
        assert calls == ["a text"]

    asyncio.run(main())


def test_a_stream_that_is_left_early_and_closed_leaves_the_connection_usable(database: str) -> None:
    async def main() -> None:
        async with kimera.open_pool(database) as pool, pool.connection() as conn:
            await filled(conn, 30)
            async with aclosing(kimera.geoids.stream(conn, chunk=5)) as states:  # type: ignore[type-var]
                async for _ in states:
                    break
            assert await kimera.geoids.count(conn) == 30

    asyncio.run(main())


def test_a_stream_that_was_closed_leaves_nothing_to_do(database: str) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
            await kimera.add_adapters(conn)
            await filled(conn, 30)
            async with aclosing(kimera.geoids.stream(conn, chunk=5)) as states:  # type: ignore[type-var]
                async for _ in states:
                    break
            assert conn.info.transaction_status == TransactionStatus.IDLE
            async with conn.transaction():
                assert await kimera.geoids.count(conn) == 30
            assert conn.info.transaction_status == TransactionStatus.IDLE

    asyncio.run(main())


def test_loaded_queries_are_awaited(database: str, tmp_path: Path) -> None:
    (tmp_path / "states.sql").write_text(
        "-- name: calm(most)\n-- States.\n-- returns: Loaded\n"
        "SELECT id, entropy FROM geoid_states WHERE entropy <= :most ORDER BY entropy;\n\n"
        "-- name: forget(least)!\n-- States.\nDELETE FROM geoid_states WHERE entropy >= :least;\n"
    )
    queries = kimera.sql.load(tmp_path, __name__)

    async def main() -> None:
        async with kimera.open_pool(database) as pool, pool.connection() as conn:
            await filled(conn, 5)
            assert [one.entropy for one in await queries.states.calm(conn, most=1.0)] == [0, 1]
            assert await queries.states.forget(conn, least=3.0) == 2

    asyncio.run(main())


@pytest.mark.slow
@pytest.mark.ends
@pytest.mark.parametrize("index", [False, True])
def test_cancelled_at_random_points_the_pool_stays_whole(database: str, index: bool) -> None:
    """A thousand times in all. What is cancelled is done wholly or not at all; the next borrower notices nothing."""
    rows, batch, times = 300, 20, 500
    chance = random.Random(1)

    async def main() -> None:
        settings = Settings(pool_size=2, pool_overflow=0, search_sample=1)
        async with kimera.open_pool(database, settings=settings) as pool:
            async with pool.connection() as conn:
                await filled(conn, rows)
            if index:
                async with pool.connection() as conn:
                    await kimera.indexes.build(conn, "geoid_states")

            async def search() -> None:
                async with pool.connection() as conn:
                    await kimera.geoids.similar(conn, unit(chance.randrange(rows)), 5)
                    await kimera.geoids.similar_many(conn, [unit(1), unit(2)], 5)

            async def insert() -> None:
                async with pool.connection() as conn:
                    await kimera.geoids.insert_many(conn, [state(seed) for seed in range(batch)])

            stored = rows
            for number in range(times):
                task = asyncio.create_task(insert() if number % 5 == 0 else search())
                await asyncio.sleep(chance.random() * 0.008)
                task.cancel()
                done = await asyncio.gather(task, return_exceptions=True)
                assert done[0] is None or isinstance(done[0], asyncio.CancelledError), done
                if number % 10 == 0:
                    async with pool.connection(timeout=10) as conn:
                        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                        found = await kimera.geoids.count(conn)
                        assert found >= stored
                        assert (found - rows) % batch == 0
                        stored = found
                        assert len(await kimera.geoids.similar(conn, unit(3), 3)) == 3
            async with pool.connection(timeout=10), pool.connection(timeout=10):
                pass
            stats = pool.get_stats()
            assert (stats["pool_size"], stats["pool_available"]) == (2, 2)

    asyncio.run(main())


def test_a_cancellation_that_comes_with_the_connection_counts(database: str) -> None:
    async def main() -> None:
        async with kimera.open_pool(database, settings=Settings(pool_size=1, pool_overflow=0)) as pool:
            lent = await pool.getconn()
            waiting = asyncio.create_task(pool.getconn())
            while not pool.get_stats()["requests_waiting"]:
                await asyncio.sleep(0)
            await pool.putconn(lent)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            async with pool.connection(timeout=10):
                pass

    asyncio.run(main())


def test_a_timeout_of_asyncio_ends_a_statement(database: str) -> None:
    async def main() -> None:
        async with kimera.open_pool(database) as pool, pool.connection() as conn:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await conn.execute("SELECT pg_sleep(30)")
            await conn.rollback()
            assert await kimera.geoids.count(conn) == 0

    asyncio.run(main())


def test_searches_of_many_tasks_are_those_of_one(database: str) -> None:
    async def main() -> None:
        async with kimera.open_pool(database) as pool:
            async with pool.connection() as conn:
                await filled(conn, 50)

            async def nearest(seed: int) -> float:
                async with pool.connection() as conn:
                    (hit,) = await kimera.geoids.similar(conn, unit(seed), 1)
                    return hit.geoid.entropy

            found = await asyncio.gather(*(nearest(seed) for seed in range(50)))
            assert np.array_equal(found, np.arange(50))

    asyncio.run(main())
