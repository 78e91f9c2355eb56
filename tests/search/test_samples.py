"""What callers search for: sampled by their pools without their noticing, in a table that cannot grow."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, TypeAlias

import numpy as np
import psycopg
import pytest
from fix_servers import Server
from fix_twins import Blocking
from psycopg.conninfo import make_conninfo
from psycopg.pq import Trace
from strategies import unit

from kimera_sql import Settings, SqlitePool, add_adapters, aio, embeddings, geoids, indexes, migrate, open_pool, sql
from kimera_sql.errors import UnsupportedByServer
from kimera_sql.ops import roles
from kimera_sql.search import recall

pytestmark = pytest.mark.ends

ROWS: Final = 60

Open: TypeAlias = Callable[..., Any]


@contextmanager
def asynchronous_pool(conninfo: str, settings: Settings) -> Iterator[Any]:
    """Lend an asynchronous pool that looks synchronous; see fix_twins."""
    with asyncio.Runner() as runner:

        async def opened() -> Any:
            return await aio.open_pool(conninfo, settings=settings)

        pool = runner.run(opened())
        try:
            yield Blocking(pool, runner)
        finally:
            runner.run(pool.close())


@pytest.fixture(params=["synchronous", "asynchronous"])
def opened(request: pytest.FixtureRequest) -> Open:
    """A function that opens a pool of each kind in turn, of one connection, which samples one search in so many."""

    def open_one(conninfo: str, search_sample: int | None = 1) -> Any:
        settings = Settings(pool_size=1, pool_overflow=0, pool_timeout=10, search_sample=search_sample)
        if request.param == "asynchronous":
            return asynchronous_pool(conninfo, settings)
        return open_pool(conninfo, settings=settings)

    return open_one


@pytest.fixture
def filled(database: str) -> str:
    """The conninfo of a database of the test's own, with states and an index of them."""
    with psycopg.connect(database) as conn:
        fill(conn)
    return database


def fill(conn: psycopg.Connection[Any]) -> None:
    add_adapters(conn)
    geoids.insert_many(conn, map(state, range(ROWS)))
    indexes.build(conn, "geoid_states")


def state(seed: int) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(seed), entropy=0, coherence_factor=0, energy_level=0, tags=["a"])


def kept(conninfo: str) -> list[tuple[str, list[float], int]]:
    """What is in the sample: tables, the first components of the vectors, and numbers of neighbours."""
    with psycopg.connect(conninfo) as conn:
        add_adapters(conn)
        rows = conn.execute(
            "SELECT table_name, query, k FROM kimera_sampled_searches ORDER BY sampled_at, k"
        ).fetchall()
    return [(table, query[:3].tolist(), k) for table, query, k in rows]


def searched(seed: int, k: int) -> tuple[str, list[float], int]:
    """What the sample has of a search for the states nearest to unit(seed)."""
    return "geoid_states", unit(seed)[:3].tolist(), k


def test_a_search_by_an_index_is_kept_when_the_connection_is_given_back(filled: str, opened: Open) -> None:
    with opened(filled) as pool:
        with pool.connection() as conn:
            geoids.similar(conn, unit(100), 7)
            assert kept(filled) == []
            geoids.similar_many(conn, [unit(101), unit(102)], k=8)
        found = sorted(kept(filled))
        # Three runs in a thousand have one take another's place.
        assert {*map(str, found)} <= {str(searched(seed, k)) for seed, k in ((100, 7), (101, 8), (102, 8))}
        assert len(found) > 1
        with pool.connection() as conn:
            geoids.count(conn)
        assert sorted(kept(filled)) == found  # none twice


def test_by_default_nothing_is_kept(filled: str, opened: Open) -> None:
    with opened(filled, None) as pool, pool.connection() as conn:
        geoids.similar(conn, unit(100), 7)
    assert kept(filled) == []


def test_one_search_in_so_many_is_kept(filled: str) -> None:
    with open_pool(filled, settings=Settings(search_sample=10)) as pool:
        for _ in range(10):
            with pool.connection() as conn:
                geoids.similar_many(conn, [unit(seed) for seed in range(100)], k=1)
    # 100 are expected; fewer than 50 or more than 170 come once in a million times.
    assert 50 < len(kept(filled)) < 170


def test_a_search_of_whose_result_more_than_the_vector_decides_is_not_kept(filled: str, opened: Open) -> None:
    with opened(filled) as pool, pool.connection() as conn:
        (first,) = geoids.latest(conn, 1)
        geoids.similar(conn, unit(100), 7, tags_any=["a"])
        geoids.similar(conn, unit(100), 7, exact=True)
        geoids.similar(conn, unit(100), 501)  # exact, because an index cannot be relied on for so many
        geoids.similar_to(conn, first.id, 7)
        embeddings.similar(conn, unit(100), 7)  # without an index
    assert kept(filled) == []


def test_a_search_that_row_level_security_has_a_say_in_is_not_kept(filled: str, opened: Open) -> None:
    with psycopg.connect(filled) as conn:
        conn.execute("ALTER TABLE geoid_states ENABLE ROW LEVEL SECURITY")
    with opened(filled) as pool, pool.connection() as conn:
        geoids.similar(conn, unit(100), 7)
    assert kept(filled) == []


def test_measuring_and_tuning_are_no_searches_of_a_caller(filled: str, opened: Open) -> None:
    with opened(filled) as pool, pool.connection() as conn:
        recall.measure(conn, "geoid_states", sample=5)
        recall.tune(conn, "geoid_states", sample=5)
    assert kept(filled) == []


def search_and_fail(conn: Any) -> None:
    geoids.insert(conn, state(1))
    geoids.similar(conn, unit(100), 7)
    raise ZeroDivisionError


def test_a_search_is_kept_although_its_transaction_is_rolled_back(filled: str, opened: Open) -> None:
    with opened(filled) as pool:
        with pytest.raises(ZeroDivisionError), pool.connection() as conn:
            search_and_fail(conn)
        assert kept(filled) == [searched(100, 7)]
        with pool.connection() as conn:
            assert geoids.count(conn) == ROWS


def test_a_connection_that_is_given_back_in_a_transaction_has_it_rolled_back(filled: str) -> None:
    with open_pool(filled, settings=Settings(pool_size=1, pool_overflow=0, search_sample=1)) as pool:
        conn = pool.getconn()
        geoids.insert(conn, state(1))
        geoids.similar(conn, unit(100), 7)
        pool.putconn(conn)
        assert kept(filled) == []
        with pool.connection() as conn:
            assert geoids.count(conn) == ROWS
        assert kept(filled) == [searched(100, 7)]


def test_the_next_to_borrow_the_connection_notices_nothing(filled: str, opened: Open) -> None:
    with opened(filled) as pool:
        with pool.connection() as conn:
            geoids.similar(conn, unit(100), 7)
        with pool.connection() as conn:
            assert not conn.autocommit
            settings = [conn.execute(f"SHOW {name}").fetchone() for name in ("lock_timeout", "synchronous_commit")]
            assert settings == [("10s",), ("on",)]
    assert len(kept(filled)) == 1


def test_of_many_searches_on_a_connection_the_last_are_kept(filled: str, opened: Open) -> None:
    with opened(filled) as pool, pool.connection() as conn:
        geoids.similar_many(conn, [unit(seed) for seed in range(250)], k=1)
    found = kept(filled)
    assert 80 < len(found) <= 100  # some take each other's place: 95 are left on average, with a deviation of 2
    assert {tuple(query) for _, query, _ in found} <= {tuple(unit(seed)[:3].tolist()) for seed in range(150, 250)}


def test_the_table_cannot_grow(pg_conn: psycopg.Connection[Any]) -> None:
    keep = sql.Queries("samples").keep
    with pg_conn.pipeline():
        for number in range(2500):
            keep.execute(pg_conn, table_name="geoid_states", vector=unit(number % 10), k=number + 1)
    rows = pg_conn.execute("SELECT place, k FROM kimera_sampled_searches").fetchall()
    assert 850 < len(rows) <= 1000
    assert min(place for place, _ in rows) >= 0
    assert max(place for place, _ in rows) <= 999
    # The older ones have made room: of the first 1,000 some 200 are left, of the last 1,000 some 630.
    assert sum(k <= 1000 for _, k in rows) < 350 < 500 < sum(k > 1500 for _, k in rows)
    with pytest.raises(psycopg.errors.CheckViolation):
        pg_conn.execute("UPDATE kimera_sampled_searches SET place = 1000 WHERE place = %s", [rows[0][0]])


def messages(conn: Any, work: Callable[[], object]) -> list[tuple[str, ...]]:
    """Return the messages, of either side, that *work* exchanges through *conn*: their direction, length and kind."""
    with TemporaryFile("w+") as file:
        conn.pgconn.trace(file.fileno())
        conn.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS | Trace.REGRESS_MODE)
        try:
            work()
        finally:
            conn.pgconn.untrace()
        file.seek(0)
        # The text of a statement goes on in lines of its own.
        lines = [tuple(line.split()[:3]) for line in file if line.startswith(("F\t", "B\t"))]
    # When a pipeline is flushed, and when answers come in between, is a matter of time.
    return sorted(line for line in lines if line[-1] != "Flush")


def test_a_search_costs_what_it_did(filled: str, opened: Open) -> None:
    """Not one message more where the sample is off, or on and the search is not picked; nor is the return."""
    exchanged = {}
    for every in (None, 10**12, 1):
        with opened(filled, every) as pool:
            with pool.connection() as conn:
                for _ in range(10):  # the catalogue is known and the statement prepared
                    geoids.similar(conn, unit(100), 7, with_vectors=True)
            conn = pool.getconn()
            search = messages(conn, partial(geoids.similar, conn, unit(100), 7))
            conn.rollback()
            exchanged[every] = search, messages(conn, partial(pool.putconn, conn))
    assert len(exchanged[None][0]) > 3
    assert exchanged[None][1] == []
    assert exchanged[10**12] == exchanged[None]
    search, given_back = exchanged[1]
    assert search == exchanged[None][0]
    assert [kind for sent, _, kind in given_back if sent == "F"].count("Sync") == 1
    assert [kind for sent, _, kind in given_back if sent == "B"].count("ReadyForQuery") == 1


def test_a_connection_of_ones_own_keeps_nothing(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMERA_SEARCH_SAMPLE", "1")
    with psycopg.connect(filled) as conn:
        add_adapters(conn)
        geoids.similar(conn, unit(100), 7)
    assert kept(filled) == []


def test_the_environment_turns_it_on(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMERA_SEARCH_SAMPLE", "1")
    with open_pool(filled) as pool, pool.connection() as conn:
        geoids.similar(conn, unit(100), 7)
    assert kept(filled) == [searched(100, 7)]


def test_sqlite_searches_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KIMERA_SEARCH_SAMPLE", "1")
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as conn:
        migrate(conn)
        geoids.insert(conn, state(1))
        assert len(geoids.similar(conn, unit(1), 1)) == 1
        with pytest.raises(UnsupportedByServer, match=r"^SQLite's searches are exact"):
            recall.sampled(conn, "geoid_states")
        with pytest.raises(UnsupportedByServer, match=r"^SQLite's searches are exact"):
            recall.check(conn, "geoid_states")


SPOILED: Final = {
    "the role may not write": "REVOKE INSERT ON kimera_sampled_searches FROM {role}",
    "the table is not there": "DROP TABLE kimera_sampled_searches",
    "transactions only read": "ALTER ROLE {role} SET default_transaction_read_only = on",
    "the table refuses it": "ALTER TABLE kimera_sampled_searches ADD CHECK (k > 1000)",
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_search_that_cannot_be_kept_is_a_search(filled: str, opened: Open, role: str, spoil: str) -> None:
    with psycopg.connect(filled) as admin:
        admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}".encode())
        admin.execute(f"GRANT INSERT, UPDATE ON kimera_sampled_searches TO {role}".encode())
        admin.execute(spoil.format(role=role).encode())
    with opened(make_conninfo(filled, user=role)) as pool:
        for _ in range(3):
            with pool.connection() as conn:
                assert len(geoids.similar(conn, unit(100), 7)) == 7
                pid = conn.info.backend_pid
        # It is the same connection all along, which has given up.
        with pool.connection() as conn:
            assert conn.info.backend_pid == pid
            assert conn.search_sample is None
    with psycopg.connect(filled) as admin:
        if admin.execute("SELECT to_regclass('kimera_sampled_searches')").fetchone() != (None,):
            assert admin.execute("SELECT count(*) FROM kimera_sampled_searches").fetchone() == (0,)


def test_a_caller_does_not_wait_for_a_lock(filled: str, opened: Open) -> None:
    with opened(filled) as pool, psycopg.connect(filled) as other:
        with pool.connection() as conn:
            geoids.similar(conn, unit(100), 7)
            other.execute("LOCK TABLE kimera_sampled_searches")
            begun = time.monotonic()
        assert time.monotonic() - begun < 5
        with pool.connection() as conn:
            assert len(geoids.similar(conn, unit(100), 7)) == 7
    assert kept(filled) == []


PATHS: Final = ("''", "hostile, public", "hostile")


@pytest.mark.parametrize("path", PATHS)
def test_a_search_path_that_leads_elsewhere_harms_nobody(filled: str, opened: Open, path: str) -> None:
    with psycopg.connect(filled) as conn:
        conn.execute("CREATE SCHEMA hostile")
        conn.execute("CREATE TABLE hostile.kimera_sampled_searches (table_name INTEGER)")
        conn.execute(
            "CREATE FUNCTION hostile.random() RETURNS float8 LANGUAGE plpgsql AS $$BEGIN RAISE 'called'; END$$"
        )
    with opened(filled) as pool:
        with pool.connection() as conn:
            geoids.similar(conn, unit(100), 7)
            conn.execute(f"SET search_path = {path}".encode())
        with pool.connection() as conn:
            assert conn.execute("SELECT count(*) FROM hostile.kimera_sampled_searches").fetchone() == (0,)
            conn.execute("SET search_path = public")
            assert len(geoids.similar(conn, unit(100), 7)) == 7
    assert kept(filled) == []


def test_a_pool_that_was_closed_meanwhile_closes_the_connection(filled: str, opened: Open) -> None:
    with opened(filled) as pool:
        conn = pool.getconn()
        geoids.similar_many(conn, [unit(seed) for seed in range(200)], k=7)
        conn.commit()
        pool.close()
        pool.putconn(conn)
        assert conn.closed
    assert kept(filled) == []


def test_a_connection_that_is_lost_loses_what_was_picked(filled: str, opened: Open) -> None:
    with opened(filled) as pool, psycopg.connect(filled, autocommit=True) as admin:
        with pool.connection() as conn:
            geoids.similar(conn, unit(100), 7)
            conn.commit()
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
        with pool.connection() as conn:
            geoids.similar(conn, unit(101), 7)
    assert kept(filled) == [searched(101, 7)]


def test_a_forked_process_sends_nothing_and_its_parent_once(filled: str) -> None:
    with open_pool(filled, settings=Settings(pool_size=1, pool_overflow=0, search_sample=1)) as pool:
        conn = pool.getconn()
        geoids.similar(conn, unit(100), 7)
        conn.commit()
        pid = os.fork()
        if pid == 0:
            try:
                pool.putconn(conn)
            finally:
                os._exit(len(conn.afterwards))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert kept(filled) == []
        pool.putconn(conn)
        assert kept(filled) == [searched(100, 7)]
        with pool.connection() as conn:
            assert geoids.count(conn) == ROWS


@pytest.mark.slow
def test_the_roles_can_do_what_they_are_for(database: str, server: Server, opened: Open) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        fill(admin)
        prefix = f"sampled_{os.getpid()}"
        roles.create(admin, prefix=prefix)
        logins = {}
        try:
            for group in ("owner", "app", "readonly", "monitor"):
                logins[group] = f"{prefix}_{group}_login"
                admin.execute(f"CREATE ROLE {logins[group]} LOGIN IN ROLE {prefix}_{group}".encode())
            for group, stays in (("app", 1), ("readonly", None)):
                with opened(make_conninfo(database, user=logins[group])) as pool:
                    for _ in range(2):
                        with pool.connection() as conn:
                            assert len(geoids.similar(conn, unit(100), 7)) == 7
                    with pool.connection() as conn:
                        assert conn.search_sample == stays
            assert kept(database) in ([searched(100, 7)], [searched(100, 7)] * 2)
            for group in ("app", "readonly", "monitor"):
                with psycopg.connect(make_conninfo(database, user=logins[group]), autocommit=True) as conn:
                    assert conn.execute("SELECT table_name, k FROM kimera_sampled_searches").rowcount > 0
                    assert conn.execute("SELECT * FROM kimera_sampled_recalls").rowcount == 0
                    for forbidden in (
                        "SELECT query FROM kimera_sampled_searches",
                        "DELETE FROM kimera_sampled_searches",
                        "TRUNCATE kimera_sampled_searches",
                        "UPDATE kimera_sampled_searches SET place = 1",
                        "UPDATE kimera_sampled_recalls SET recall = 1",
                    ):
                        with pytest.raises(psycopg.errors.InsufficientPrivilege):
                            conn.execute(forbidden.encode())
            with psycopg.connect(make_conninfo(database, user=logins["owner"])) as conn:
                add_adapters(conn)
                assert np.array_equal(recall.sampled(conn, "geoid_states"), [unit(100)])
        finally:
            for name in logins.values():
                admin.execute(f"DROP ROLE IF EXISTS {name}".encode())
            for kind in ("owner", "app", "readonly", "monitor", "backup"):
                admin.execute(f"REASSIGN OWNED BY {prefix}_{kind} TO CURRENT_USER".encode())
                admin.execute(f"DROP OWNED BY {prefix}_{kind}".encode())
                admin.execute(f"DROP ROLE {prefix}_{kind}".encode())
