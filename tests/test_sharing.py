"""Connections and pools that are shared: by threads, by a forked process, by the items of one's own COPY."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolClosed
from strategies import unit

from kimera_sql import (
    InvalidValue,
    Settings,
    SettingsError,
    SqlitePool,
    add_adapters,
    aio,
    geoids,
    indexes,
    metrics,
    migrate,
    open_pool,
)


def state(seed: int = 0) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(seed), entropy=seed, coherence_factor=0, energy_level=0)


def in_child(work: Callable[[], object]) -> int:
    """Run *work* in a forked process, and return its exit status: 0 where it raised PoolClosed, 1 for anything else."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
        except PoolClosed as error:
            status = 0 if "open a pool in the child" in str(error) else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_process_cannot_use_the_pool_and_leaves_it_to_its_parent(database: str) -> None:
    with open_pool(database) as pool:
        with pool.connection() as conn:
            metrics.record(conn, "load", 1, component="core")

        def borrow() -> None:
            with pool.connection():
                pass

        def close_and_borrow() -> None:
            pool.close()
            borrow()

        assert in_child(borrow) == 0
        assert in_child(close_and_borrow) == 0
        for _ in range(20):
            with pool.connection() as conn:
                assert [metric.metric_value for metric in metrics.latest(conn, "load")] == [1]


def test_a_forked_process_cannot_use_the_files_pool(tmp_path: Path) -> None:
    with SqlitePool(tmp_path / "file.db") as pool:
        with pool.connection() as conn:
            migrate(conn)

        def borrow() -> None:
            pool.close()
            with pool.connection():
                pass

        def borrow_alone() -> None:
            with pool.connection():
                pass

        assert in_child(borrow_alone) == 0
        assert in_child(borrow) == 2  # it is closed there
        with pool.connection() as conn:
            assert metrics.count(conn) == 0


@pytest.mark.parametrize("path", [":memory:", "", "file:kimera?mode=memory"])
def test_a_pool_needs_a_file_that_all_its_connections_can_open(path: str) -> None:
    with pytest.raises(SettingsError, match=r"each connection of a pool would have a database of its own"):
        SqlitePool(path)
    with pytest.raises(SettingsError, match=r"each connection of a pool would have a database of its own"):
        aio.SqlitePool(path)


def test_threads_that_share_a_connection_search_through_it(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        geoids.insert_many(conn, map(state, range(200)))
        indexes.build(conn, "geoid_states")

        def search(seed: int) -> list[float]:
            return [geoids.similar(conn, unit((seed + n) % 200), 1)[0].geoid.entropy for n in range(10)]

        with ThreadPoolExecutor(8) as executor:
            found = list(executor.map(search, range(0, 160, 10)))
        assert found == [[float((seed + n) % 200) for n in range(10)] for seed in range(0, 160, 10)]


def test_items_made_from_the_same_connection_are_an_error_at_once(database: str) -> None:
    with psycopg.connect(database) as conn, psycopg.connect(database) as other:
        for one in (conn, other):
            add_adapters(one)
        geoids.insert_many(conn, map(state, range(5)))
        conn.commit()

        def copies(source: Any) -> Iterator[geoids.NewGeoid]:
            for found in geoids.stream(source):
                yield state(int(found.entropy) + 100)

        with pytest.raises(InvalidValue, match=r"^conn: it is sending items and can run geoids\.stream_all only once"):
            geoids.insert_many(conn, copies(conn))
        conn.rollback()
        assert geoids.insert_many(conn, copies(other)) == 5
        assert geoids.count(conn) == 10


def test_asynchronous_items_made_from_the_same_connection_are_an_error_at_once(database: str) -> None:
    async def main() -> None:
        async with aio.open_pool(database) as pool, pool.connection() as conn:
            await aio.geoids.insert_many(conn, map(state, range(5)))

            async def copies() -> AsyncIterator[geoids.NewGeoid]:
                yield state(int((await aio.geoids.latest(conn, 1))[0].entropy))

            with pytest.raises(InvalidValue, match=r"^conn: it is sending items and can run geoids\.find only once"):
                await aio.geoids.insert_many(conn, copies())

    asyncio.run(main())


def test_a_stream_that_outlives_its_borrower_loses_nothing_of_the_next(database: str) -> None:
    with open_pool(database, settings=Settings(pool_size=1, pool_overflow=0)) as pool:
        with pool.connection() as conn:
            geoids.insert_many(conn, map(state, range(20)))
        with pool.connection() as conn:
            left = geoids.stream(conn, chunk=5)
            next(left)
        with pool.connection() as conn:
            saved = geoids.insert(conn, state(99))
            assert isinstance(left, Generator)
            left.close()
        with pool.connection() as conn:
            assert geoids.get(conn, saved.id) == saved


def test_what_a_borrower_makes_of_a_connection_is_taken_back(database: str) -> None:
    with open_pool(database, settings=Settings(pool_size=1, pool_overflow=0)) as pool:
        with pool.connection() as conn:
            conn.autocommit = True
            conn.read_only = True
            conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
            conn.deferrable = True
            conn.row_factory = psycopg.rows.namedtuple_row
        with suppress(ZeroDivisionError), pool.connection() as conn:
            geoids.insert(conn, state())
            raise ZeroDivisionError
        with pool.connection() as conn:
            assert geoids.count(conn) == 0
            assert conn.execute("SHOW transaction_isolation").fetchone() == ("read committed",)
