"""Behind PgBouncer, which lends a session of the server's for a transaction, or for as long as a client stays."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID

import psycopg
import pytest
from commands import run
from fix_servers import Server
from fix_twins import asynchronous
from pgbouncer import PgBouncer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import PoolTimeout
from strategies import unit

from kimera_sql import (
    CommitUnknown,
    ConnectionFailed,
    InvalidValue,
    Settings,
    SettingsError,
    add_adapters,
    aio,
    embeddings,
    geoids,
    indexes,
    metrics,
    open_pool,
    portals,
    retry,
    sql,
    transitions,
)
from kimera_sql.servers import behind_pooler
from kimera_sql.vectors import Vector

pytestmark = [pytest.mark.slow, pytest.mark.ends, pytest.mark.needs("pgbouncer")]

ROWS = 200
REFUSED = "what runs concurrently needs a session of its own; connect to the server and not to a pooler"
ONE = Settings(pool_size=1, pool_overflow=0)
LONG_AGO = datetime(1990, 1, 1, tzinfo=UTC)


def state(number: int) -> geoids.NewGeoid:
    return geoids.NewGeoid(
        state_vector=unit(number), entropy=number, coherence_factor=0, energy_level=0, tags=[str(number % 10)]
    )


@pytest.fixture(params=["transaction", "session"])
def pool_mode(request: pytest.FixtureRequest) -> str:
    """What PgBouncer lends a session for."""
    mode: str = request.param
    return mode


def filled(conninfo: str) -> str:
    """Insert the states and their index into the database *conninfo*, and return that."""
    with psycopg.connect(conninfo) as conn:
        add_adapters(conn)
        geoids.insert_many(conn, map(state, range(ROWS)))
        indexes.build(conn, "geoid_states")
    return conninfo


@pytest.fixture
def pooled(database: str, pool_mode: str, open_folder: Path) -> Iterator[str]:
    """The conninfo of a database with an index, by way of PgBouncer."""
    with PgBouncer(filled(database), open_folder, pool_mode) as bouncer:
        yield bouncer.conninfo


def test_a_pool_works_behind_it_by_itself(pooled: str) -> None:
    with open_pool(pooled) as pool:

        def work(number: int) -> None:
            for _ in range(8):
                with pool.connection() as conn:
                    found = geoids.similar(conn, unit(number), 3)
                    assert found[0].geoid.entropy == number
                    (hit,) = geoids.similar(conn, unit(number), 1, tags_any=[str(number % 10)])
                    assert geoids.get(conn, hit.geoid.id).entropy == number
                    assert sum(1 for _ in geoids.stream(conn, chunk=50)) == ROWS
                    metrics.insert_many(
                        conn, [metrics.NewMetric(metric_name="m", metric_value=number, component="c")] * 2
                    )
                with pool.connection() as conn:
                    conn.autocommit = True
                    assert geoids.similar(conn, unit(number), 1)[0].geoid.entropy == number

        with ThreadPoolExecutor(12) as executor:
            list(executor.map(work, range(12)))
        found = geoids.similar_many(pool, map(unit, range(9)), 1)
        assert [hit.geoid.entropy for (hit,) in found] == [*range(9)]
        with pool.connection() as conn:
            assert metrics.count(conn) == 12 * 8 * 2
            assert conn.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_rows_are_written_again_behind_it(pooled: str) -> None:
    items = [
        portals.NewPortal(
            id=UUID(int=number),
            source_dimension=number,
            target_dimension=0,
            radius=1,
            energy_requirement=1,
            stability_factor=1,
        )
        for number in range(300)
    ]
    with open_pool(pooled) as pool:

        def work(number: int) -> int:
            inserted = 0
            for turn in range(5):
                with pool.connection() as conn:
                    conn.autocommit = turn % 2 == 0
                    inserted += portals.upsert_many(conn, items).inserted
                    embeddings.upsert(conn, embeddings.NewEmbedding(text_content=f"text {turn}", embedding=unit(turn)))
            return inserted

        with ThreadPoolExecutor(8) as executor:
            assert sum(executor.map(work, range(8))) == 300
        with pool.connection() as conn:
            assert (portals.count(conn), embeddings.count(conn)) == (300, 5)


def test_an_asynchronous_pool_works_behind_it_by_itself(pooled: str) -> None:
    async def main() -> None:
        async with aio.open_pool(pooled) as pool:

            async def work(number: int) -> None:
                for _ in range(8):
                    async with pool.connection() as conn:
                        assert (await aio.geoids.similar(conn, unit(number), 3))[0].geoid.entropy == number
                        assert len(await aio.geoids.latest(conn, 7)) == 7

            await asyncio.gather(*map(work, range(12)))
            found = await aio.geoids.similar_many(pool, map(unit, range(9)), 1)
            assert [hit.geoid.entropy for (hit,) in found] == [*range(9)]

    asyncio.run(main())


def embedded(text: str) -> Vector:
    return unit(len(text))


def tour(conn: Any) -> Iterator[object]:
    """Yield what the functions of the entities give on *conn*, in autocommit; the rows are then as they were."""
    yield geoids.similar(conn, unit(7), 5)
    yield geoids.similar(conn, unit(7), 5, tags_any=["3"])
    yield geoids.similar_many(conn, [unit(1), unit(2)], 3)
    yield [*geoids.within(conn, unit(7), 0.05)]
    yield [*itertools.islice(geoids.similar_pages(conn, unit(7), 3), 4)]
    yield [*geoids.stream(conn, chunk=50)]
    yield [*geoids.pairs(conn, 0.1)]
    batches = [*geoids.stream_arrow(conn, chunk=50)]
    yield [batch.num_rows for batch in batches]
    yield geoids.delete_where(conn, batch=30, entropy=(0, None))
    for batch in batches:
        yield geoids.insert_arrow(conn, batch)

    made = [replace(state(ROWS + number), id=UUID(int=number), timestamp=LONG_AGO) for number in range(50)]
    yield geoids.insert_many(conn, made)
    yield [transitions.record(conn, UUID(int=one), UUID(int=one + 1), "t", energy=1).source_id for one in range(9)]
    path = transitions.path(conn, UUID(int=0), UUID(int=9))
    assert path is not None
    yield [one.target_id for one in path]
    yield geoids.prune(conn, LONG_AGO + timedelta(1), transitions="delete", batch=20)

    one = embeddings.get_or_create(conn, "the first text", embedded)
    yield embeddings.get_or_create(conn, "the first text", embedded) == one
    new = [embeddings.NewEmbedding(text_content=f"text {number}", embedding=unit(number)) for number in range(30)]
    yield embeddings.upsert_many(conn, new).inserted, embeddings.upsert_many(conn, new).updated
    indexes.build(conn, "semantic_embeddings")
    yield [hit.embedding.text_content for hit in embeddings.hybrid(conn, "text 5", unit(5), 1)]
    yield [hit.embedding.text_content for hit in embeddings.similar(conn, unit(5), 4)]
    (index,) = [index for index in indexes.existing(conn) if index.table == "semantic_embeddings"]
    indexes.drop(conn, index.name)
    yield embeddings.delete_where(conn, batch=10, until=datetime.now(UTC) + timedelta(1))

    yield metrics.insert_many(conn, [metrics.NewMetric(metric_name="m", metric_value=1, component="c")] * 20)
    yield [one.metric_value for one in metrics.latest(conn, "m", limit=3)]
    yield metrics.prune(conn, datetime.now(UTC) + timedelta(1), batch=7)


@pytest.mark.parametrize("twin", [psycopg.connect, asynchronous])
def test_each_function_gives_through_it_what_it_gives_on_the_server(
    twin: Any, newest: Server, pool_mode: str, open_folder: Path
) -> None:
    direct = filled(newest.create(template=newest.template))
    with PgBouncer(direct, open_folder, pool_mode) as bouncer:
        assert len({*bouncer.ask_each("SELECT pg_backend_pid()")}) == 4
        given = []
        for conninfo in (direct, bouncer.conninfo):
            with twin(conninfo) as conn:
                add_adapters(conn)
                conn.autocommit = True
                conn.prepare_threshold = None
                given.append([*tour(conn)])
        assert given[1] == given[0]
        assert bouncer.leftovers() == []
    newest.drop(direct)


def test_its_sessions_are_left_as_they_are_and_the_client_keeps_the_bound(pooled: str) -> None:
    with open_pool(pooled) as pool, pool.connection() as conn:
        assert conn.silence_timeout == 31
        assert conn.execute("SHOW statement_timeout").fetchone() == ("0",)
        conn.commit()
        conn.autocommit = True
        with sql.without_timeouts(conn, lock_timeout=5):
            assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_searches_are_sampled_and_no_setting_is_left_to_the_next_client(pooled: str, database: str) -> None:
    with open_pool(pooled, settings=Settings(search_sample=1)) as pool:
        for number in range(20):
            with pool.connection() as conn:
                geoids.similar(conn, unit(number), 3)
            with pool.connection() as conn:
                assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)
                assert conn.execute("SHOW synchronous_commit").fetchone() == ("on",)
    with psycopg.connect(database) as conn:
        kept = conn.execute("SELECT count(*) FROM kimera_sampled_searches").fetchone()
    assert kept is not None
    assert 10 < kept[0] <= 20  # some take each other's place


def test_what_needs_a_session_of_its_own_is_refused(pooled: str, database: str) -> None:
    with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as conn:
        add_adapters(conn)
        assert behind_pooler(conn)
        with pytest.raises(InvalidValue, match=f"^{REFUSED}$"):
            indexes.build(conn, "geoid_states", method="ivfflat", precision="full", concurrently=True)
        with pytest.raises(InvalidValue, match=r"^a renewal needs a session of its own"):
            embeddings.renew(conn, lambda texts: [unit(0)] * len(texts), model="any")
        (index,) = indexes.existing(conn)
    with psycopg.connect(database) as conn:
        assert not behind_pooler(conn)
    for command, said in {
        ("index", "retrain", index.name): f"kimera-sql: {REFUSED}\n",
        (
            "maintain",
            "reindex",
        ): "kimera-sql: upkeep needs a session of its own; connect to the server and not to a pooler\n",
    }.items():
        ran = run(*command, DATABASE_URL=pooled)
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", said)


@pytest.fixture
def bouncer(newest: Server, pool_mode: str, open_folder: Path) -> Iterator[PgBouncer]:
    """PgBouncer before a database with the schema, on the newest server."""
    database = newest.create(template=newest.template)
    with PgBouncer(database, open_folder, pool_mode) as running:
        yield running
    newest.drop(database)


def test_nothing_acknowledged_is_lost_whatever_becomes_of_it(bouncer: PgBouncer, newest: Server) -> None:
    """Its server's sessions are ended, it connects to the server anew, it is paused, and it is started again."""
    numbers, kept = itertools.count(), set[float]()
    ended = threading.Event()
    database = conninfo_to_dict(bouncer.conninfo)["dbname"]

    def end_sessions() -> None:
        with psycopg.connect(newest.conninfo, autocommit=True) as conn:
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database])

    def pause() -> None:
        bouncer.console("PAUSE")
        time.sleep(0.3)
        bouncer.console("RESUME")

    def restart() -> None:
        bouncer.stop()
        bouncer.start()

    with open_pool(bouncer.conninfo, settings=Settings(pool_size=4, pool_overflow=0)) as pool:

        def write() -> None:
            while not ended.is_set():
                new = metrics.NewMetric(metric_name="m", metric_value=next(numbers), component="c")

                def insert(conn: Any, new: metrics.NewMetric = new) -> None:
                    metrics.insert(conn, new)

                with suppress(CommitUnknown, PoolTimeout):
                    retry(pool, insert)
                    kept.add(new.metric_value)

        with ThreadPoolExecutor(4) as executor:
            writing = [executor.submit(write) for _ in range(4)]
            # In session mode a pause would wait until the pool is closed.
            events = [end_sessions, lambda: bouncer.console("RECONNECT"), lambda: bouncer.console("RELOAD"), restart]
            events[1:1] = [pause] if bouncer.mode == "transaction" else []
            try:
                for event in events:
                    event()
                    before, deadline = len(kept), time.monotonic() + 10
                    while len(kept) < before + 20:
                        assert time.monotonic() < deadline, "the pool does not recover"
                        time.sleep(0.01)
            finally:
                ended.set()
            for one in writing:
                one.result()
        with pool.connection() as conn:
            stored = {one.metric_value for one in metrics.stream(conn)}
    assert kept <= stored


def test_a_full_one_is_waited_for(newest: Server, open_folder: Path) -> None:
    with PgBouncer(newest.conninfo, open_folder, "transaction", max_client_conn=1) as bouncer:
        other = psycopg.connect(bouncer.conninfo)
        timer = threading.Timer(0.5, other.close)
        timer.start()
        with open_pool(bouncer.conninfo, settings=ONE):
            timer.join()
        with (
            psycopg.connect(bouncer.conninfo),
            pytest.raises(ConnectionFailed, match=r"no more connections allowed \(max_client_conn\)$"),
        ):
            open_pool(make_conninfo(bouncer.conninfo, connect_timeout=2))


def test_one_without_a_session_to_spare_is_waited_for(newest: Server, open_folder: Path) -> None:
    few = {"default_pool_size": 1, "query_wait_timeout": 1}
    with (
        PgBouncer(newest.conninfo, open_folder, "transaction", **few) as bouncer,
        psycopg.connect(bouncer.conninfo) as other,
    ):
        other.execute("SELECT 1")
        with open_pool(bouncer.conninfo, settings=ONE) as pool:
            with pytest.raises(PoolTimeout, match=r"the last attempt to connect failed: query_wait_timeout$"):
                pool.getconn(timeout=2.5)
            other.rollback()
            with pool.connection(timeout=10) as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)


def test_what_it_refuses_is_told_at_once(newest: Server, open_folder: Path) -> None:
    users = open_folder / "users"
    users.write_text('"kimera" "right"\n')
    settings = {"auth_type": "md5", "auth_file": users, "server_login_retry": 1}
    with PgBouncer(newest.conninfo, open_folder, "transaction", **settings) as bouncer:
        right = make_conninfo(bouncer.conninfo, user="kimera", password="right")
        for change, said in (
            ({"password": "wrong"}, "password authentication failed"),
            ({"user": "nobody"}, "password authentication failed"),
            ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
            ({"options": "-csearch_path=public"}, "unsupported startup parameter: options"),
        ):
            with pytest.raises(ConnectionFailed, match=f"^the server answered and refused.*(?s:.)*{said}$"):
                open_pool(make_conninfo(right, **change))
        with open_pool(right) as pool, pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_is_away_behind_it_is_waited_for(newest: Server, open_folder: Path) -> None:
    away = make_conninfo(newest.conninfo, host="/nonexistent", connect_timeout=2)
    with (
        PgBouncer(away, open_folder, "transaction", client_login_timeout=1) as bouncer,
        pytest.raises(ConnectionFailed, match=r"^the server answered(?s:.)*client_login_timeout \(server down\)$"),
    ):
        open_pool(bouncer.conninfo)


def test_statement_mode_is_refused(newest: Server, open_folder: Path) -> None:
    with (
        PgBouncer(newest.conninfo, open_folder, "statement") as bouncer,
        open_pool(bouncer.conninfo, settings=ONE) as pool,
        pytest.raises(PoolTimeout, match="transaction blocks not allowed in statement pooling mode"),
    ):
        pool.getconn()


@pytest.mark.parametrize(
    ("setting", "statements"), [("query_timeout", ["SELECT pg_sleep(5)"]), ("idle_transaction_timeout", ["", ""])]
)
def test_its_own_timeouts_cost_their_connection_alone(
    newest: Server, open_folder: Path, setting: str, statements: list[LiteralString]
) -> None:
    def work(conn: psycopg.Connection) -> None:
        for statement in statements:
            conn.execute(statement)
            time.sleep(1.5)

    with (
        PgBouncer(newest.conninfo, open_folder, "transaction", **{setting: 1}) as bouncer,
        open_pool(bouncer.conninfo, settings=ONE) as pool,
    ):
        with pytest.raises(psycopg.OperationalError), pool.connection() as conn:
            work(conn)
        with pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("choice", "direct", "through"), [("direct", 5, None), ("always", 5, 5), ("never", None, None)]
)
def test_prepared_statements_are_a_setting(
    bouncer: PgBouncer, choice: str, direct: int | None, through: int | None
) -> None:
    settings = Settings(prepared_statements=choice)
    for conninfo, threshold in ((bouncer.server, direct), (bouncer.conninfo, through)):
        with open_pool(conninfo, settings=settings) as pool, pool.connection() as conn:
            assert conn.prepare_threshold == threshold


def test_another_choice_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^prepared_statements must be one of direct, always, never, got 'off'$"):
        Settings.from_env({"KIMERA_PREPARED_STATEMENTS": "off"})
