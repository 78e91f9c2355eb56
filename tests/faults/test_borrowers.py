"""A connection comes out of a pool as new, whatever its last borrower has made of it."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_servers import Server
from fix_twins import Blocking
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from psycopg.types.string import TextLoader
from strategies import unit
from test_postgres import READS, WRITES, fill

from kimera_sql import Settings, SqlitePool, aio, geoids, migrate, open_pool

ONE = Settings(pool_size=1, pool_overflow=0, pool_timeout=10)


@pytest.fixture(params=["threads", "tasks"])
def pool(request: pytest.FixtureRequest, database: str) -> Iterator[Any]:
    """A pool of one connection, or one of asynchronous connections that look the same."""
    with ExitStack() as stack:
        if request.param == "threads":
            yield stack.enter_context(open_pool(database, settings=ONE))
        else:
            runner = stack.enter_context(asyncio.Runner())
            opened = Blocking(runner.run(aio.open_pool(database, settings=ONE).__aenter__()), runner)
            stack.callback(opened.close)
            yield opened


def state(seed: int = 0) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(seed), entropy=seed, coherence_factor=0, energy_level=0)


def column(conn: Any, query: str) -> list[Any]:
    return [row[0] for row in conn.execute(query).fetchall()]


# What a borrower does, and what the next one asks.
LEFT: dict[str, tuple[str, str]] = {
    "a setting": ("SET work_mem = '13MB'", "SHOW work_mem"),
    "a setting of nobody's": ("SET my.own = 'x'", "SELECT coalesce(nullif(current_setting('my.own', true), ''), '-')"),
    "the time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW timezone"),
    "the encoding": ("SET client_encoding = 'LATIN1'", "SHOW client_encoding"),
    "the search path": ("SET search_path = pg_catalog", "SHOW search_path"),
    "a short timeout": ("SET statement_timeout = 20", "SHOW statement_timeout"),
    "transactions that only read": ("SET default_transaction_read_only = on", "SHOW transaction_read_only"),
    "their isolation": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW transaction_isolation",
    ),
    "a role": ("SET ROLE pg_monitor", "SELECT current_user"),
    "another user": ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user"),
    "a temporary table": (
        "CREATE TEMPORARY TABLE geoid_states (id int)",
        "SELECT count(*) FROM pg_class WHERE relpersistence = 't'",
    ),
    "an advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    "LISTEN": ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()"),
    "an open cursor": (
        "DECLARE left_open CURSOR WITH HOLD FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE is_holdable",
    ),
    "a prepared name": ("PREPARE mine AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"),
    "a sequence's value": (
        "CREATE TEMPORARY SEQUENCE numbers; SELECT nextval('numbers')",
        "SELECT count(*) FROM pg_class WHERE relname = 'numbers'",
    ),
}


@pytest.mark.ends
def test_what_a_borrower_leaves_in_the_session_is_gone(pool: Any) -> None:
    with pool.connection() as conn:
        served_by = conn.info.backend_pid
        before = {what: column(conn, ask) for what, (_, ask) in LEFT.items()}
    without_effect = []
    for what, (leave, ask) in LEFT.items():
        with pool.connection() as conn:
            conn.execute(leave)
            conn.commit()
            if column(conn, ask) == before[what]:
                without_effect.append(what)
        with pool.connection() as conn:
            assert {what: column(conn, ask) for what, (_, ask) in LEFT.items()} == before, what
            assert conn.info.backend_pid == served_by
    assert without_effect == []


SESSION = """
    SELECT
        (SELECT json_object_agg(name, setting ORDER BY name) FROM pg_settings WHERE source = 'session')::text,
        (SELECT count(*) FROM pg_cursors WHERE is_holdable),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_class WHERE relpersistence = 't'),
        (SELECT count(*) FROM pg_prepared_statements WHERE from_sql),
        (SELECT count(*) FROM pg_listening_channels()),
        current_user
"""
HOT = {
    "geoids.similar",
    "geoids.get",
    "geoids.get_many",
    "geoids.insert",
    "geoids.upsert",
    "geoids.find",
    "metrics.record",
}


@pytest.mark.ends
def test_after_the_entities_functions_there_is_nothing_to_take_back(pool: Any) -> None:
    with pool.connection() as conn:
        fill(conn)
    tidy = set()
    for name, call in {**READS, **WRITES}.items():
        with pool.connection() as conn:
            before = conn.execute(SESSION).fetchone()
        with pool.connection() as conn:
            with conn.transaction(force_rollback=True):
                call(conn)
            if not conn.untidy:
                tidy.add(name)
        with pool.connection() as conn:
            assert conn.execute(SESSION).fetchone() == before, name
    assert tidy >= HOT, HOT - tidy


def test_it_takes_one_round_trip_to_lend_a_connection_and_none_after_them(newest: Server, tmp_path: Path) -> None:
    database = newest.create(template=newest.template)
    with open_pool(database, settings=ONE) as pool, (tmp_path / "trace").open("w+") as trace:
        for work, sent in ((geoids.count, 0), (lambda conn: conn.execute("SELECT 1"), 1), (geoids.count, 0)):
            with pool.connection() as conn:
                work(conn)
            trace.truncate(0)
            conn.pgconn.trace(trace.fileno())
            with pool.connection():
                conn.pgconn.untrace()
            lines = [line for line in Path(trace.name).read_text().splitlines() if "\tF\t" in line]
            assert len(lines) == sent
            assert all("connect.reset_settings" in line for line in lines)
    newest.drop(database)


def leave_attributes(conn: Any) -> None:
    conn.row_factory = dict_row
    conn.cursor_factory = conn.server_cursor_factory = object
    conn.prepare_threshold = None
    conn.prepared_max = 1
    conn.note = "a borrower's own"
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    conn.read_only = True
    conn.add_notice_handler(print)
    conn.add_notify_handler(print)
    conn.adapters.register_loader("int4", TextLoader)
    conn.autocommit = True


def attributes(conn: Any) -> list[Any]:
    return [
        *(getattr(conn, name).__name__ for name in ("row_factory", "cursor_factory", "server_cursor_factory")),
        *(conn.prepare_threshold, conn.prepared_max, hasattr(conn, "note"), conn.autocommit),
        *(conn.isolation_level, conn.read_only, conn.deferrable),
        *(len(conn._notice_handlers), len(conn._notify_handlers)),
    ]


@pytest.mark.ends
def test_what_a_borrower_sets_on_the_object_is_gone(pool: Any) -> None:
    with pool.connection() as conn:
        before = attributes(conn)
        leave_attributes(conn)
    with pool.connection() as conn:
        assert attributes(conn) == before
        assert column(conn, "SELECT 1::int4") == [1]
        saved = geoids.insert(conn, state())
        assert geoids.get(conn, saved.id) == saved


@pytest.mark.ends
def test_after_autocommit_a_block_that_raises_is_undone(pool: Any) -> None:
    with pool.connection() as conn:
        conn.autocommit = True
    with suppress(ZeroDivisionError), pool.connection() as conn:
        geoids.insert(conn, state())
        raise ZeroDivisionError
    with pool.connection() as conn:
        assert geoids.count(conn) == 0


@pytest.mark.ends
def test_what_the_driver_has_prepared_stays_prepared(pool: Any) -> None:
    prepared = "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql AND statement LIKE '%%metrics.latest%%'"
    for _ in range(8):
        with pool.connection() as conn:
            conn.execute("SELECT 1 /* metrics.latest */", prepare=True)
    with pool.connection() as conn:
        assert column(conn, prepared.replace("%%", "%")) == [1]
        conn.execute("DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$")  # which the driver does not notice
    with pool.connection() as conn:
        conn.execute("SELECT 1 /* metrics.latest */", prepare=True)


@pytest.mark.ends
def test_a_roles_search_path_leads_nowhere_else(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        role = sql.Identifier(f"astray_{conn.info.dbname}")
        conn.execute("CREATE SCHEMA evil; CREATE TABLE evil.geoid_states (LIKE public.geoid_states)")
        conn.execute(
            sql.SQL(
                "CREATE ROLE {0} LOGIN; ALTER ROLE {0} SET search_path = evil, public;"
                "GRANT USAGE ON SCHEMA evil TO {0}; GRANT ALL ON ALL TABLES IN SCHEMA evil, public TO {0}"
            ).format(role)
        )
        try:
            with open_pool(make_conninfo(database, user=role.as_string().strip('"')), settings=ONE) as pool:
                with pool.connection() as lent:
                    geoids.insert(lent, state())
                with pool.connection() as lent:
                    lent.execute("CREATE TEMPORARY TABLE geoid_states (LIKE public.geoid_states)")
                    geoids.insert(lent, state(1))
            assert conn.execute("SELECT count(*) FROM public.geoid_states").fetchone() == (2,)
            assert conn.execute("SELECT count(*) FROM evil.geoid_states").fetchone() == (0,)
        finally:
            conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(role))


@pytest.mark.ends
def test_a_pool_that_was_open_before_the_schema_finds_it(empty_database: str) -> None:
    with open_pool(empty_database, settings=ONE) as pool:
        with pool.connection() as conn:
            before = column(conn, "SHOW search_path")
            migrate(conn)
        with pool.connection() as conn:
            assert before != column(conn, "SHOW search_path") == ["public, pg_temp"]


@pytest.mark.ends
def test_replaced_connections_leave_nothing_in_memory(database: str) -> None:
    with open_pool(database, settings=ONE) as pool:

        def replace(times: int) -> None:
            for _ in range(times):
                with pool.connection() as conn:
                    geoids.count(conn)
                    conn.opened_at -= 10_000  # past its age

        tracemalloc.start()
        try:
            replace(60)
            before = held()
            replace(60)
            classes, size = (now - then for now, then in zip(held(), before, strict=True))
        finally:
            tracemalloc.stop()
    assert classes == 0
    assert size < 60 * 500


def held() -> tuple[int, int]:
    """Return the number of classes that there are, and the bytes that are held in memory."""
    gc.collect()
    return sum(isinstance(one, type) for one in gc.get_objects()), tracemalloc.get_traced_memory()[0]


SQLITE: dict[str, tuple[Callable[[sqlite3.Connection], object], str]] = {
    "autocommit": (lambda conn: setattr(conn, "isolation_level", None), "SELECT 1"),
    "a row factory": (lambda conn: setattr(conn, "row_factory", lambda *_: ("made up",)), "SELECT 1"),
    "a PRAGMA": (lambda conn: conn.execute("PRAGMA foreign_keys = OFF"), "PRAGMA foreign_keys"),
    "a file": (lambda conn: conn.execute("ATTACH ':memory:' AS more"), "SELECT count(*) FROM pragma_database_list"),
    "a temporary table": (
        lambda conn: conn.execute("CREATE TEMPORARY TABLE geoid_states (id)"),
        "SELECT count(*) FROM pragma_table_info('geoid_states')",
    ),
    "a function": (lambda conn: conn.create_function("abs", 1, lambda _: 0), "SELECT abs(-1)"),
}


def test_what_a_borrower_of_a_file_leaves_is_gone(tmp_path: Path) -> None:
    def seen(conn: sqlite3.Connection) -> list[Any]:
        return [conn.isolation_level, *(column(conn, ask) for _, ask in SQLITE.values())]

    with SqlitePool(tmp_path / "file.db", size=1) as pool:
        with pool.connection() as conn:
            migrate(conn)
        with pool.connection() as conn:
            before = seen(conn)
        for what, (leave, _) in SQLITE.items():
            with pool.connection() as conn:
                leave(conn)
                assert seen(conn) != before, what
            with suppress(ZeroDivisionError), pool.connection() as conn:
                assert seen(conn) == before, what
                geoids.insert(conn, state())
                raise ZeroDivisionError
            with pool.connection() as conn:
                assert geoids.count(conn) == 0, what


def test_what_a_borrower_task_of_a_file_leaves_is_gone(tmp_path: Path) -> None:
    async def left() -> None:
        async with aio.SqlitePool(tmp_path / "file.db", size=1) as pool:
            async with pool.connection() as conn:
                await aio.migrate(conn)
            async with pool.connection() as conn:
                await conn.execute("PRAGMA foreign_keys = OFF")
                conn.isolation_level = None
            async with pool.connection() as conn:
                assert conn.isolation_level == "IMMEDIATE"
                async with conn.execute("PRAGMA foreign_keys") as cursor:
                    assert await cursor.fetchone() == (1,)

    asyncio.run(left())
