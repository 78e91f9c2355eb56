"""Behind PgBouncer in transaction mode, where each transaction can have another of the server's processes."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from commands import run
from fix_servers import free_port
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from strategies import unit

from kimera_sql import (
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
    sql,
)
from kimera_sql.ops.backup import tools
from kimera_sql.servers import behind_pooler

pytestmark = [pytest.mark.slow, pytest.mark.ends, pytest.mark.needs("pgbouncer")]

ROWS = 200
REFUSED = "what runs concurrently needs a session of its own; connect to the server and not to a pooler"
CONFIGURATION = """
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""


def state(number: int) -> geoids.NewGeoid:
    return geoids.NewGeoid(
        state_vector=unit(number), entropy=number, coherence_factor=0, energy_level=0, tags=[str(number % 10)]
    )


@pytest.fixture
def pooled(database: str, open_folder: Path) -> Iterator[str]:
    """The conninfo of a database with an index, by way of PgBouncer."""
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        geoids.insert_many(conn, map(state, range(ROWS)))
        indexes.build(conn, "geoid_states")
    server = conninfo_to_dict(database)
    own = free_port()
    open_folder.chmod(0o755)
    file = open_folder / "pgbouncer.ini"
    text = CONFIGURATION.format(host=server["host"], port=server.get("port", 5432), own=own)
    file.write_text(text.replace("* =", f"* = user={server['user']}"))
    through = make_conninfo(database, host="127.0.0.1", port=own)
    with subprocess.Popen(["pgbouncer", file], user=tools.server_user(), stderr=subprocess.PIPE) as process:
        try:
            for _ in range(200):
                try:
                    psycopg.connect(through).close()
                    break
                except psycopg.OperationalError:
                    time.sleep(0.05)
            yield through
        finally:
            process.terminate()
            assert process.stderr
            process.stderr.read()


def test_a_pool_works_behind_it_by_itself(pooled: str) -> None:
    with open_pool(pooled) as pool:

        def work(number: int) -> None:
            for _ in range(15):
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
        with pool.connection() as conn:
            assert metrics.count(conn) == 12 * 15 * 2
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
                for _ in range(15):
                    async with pool.connection() as conn:
                        assert (await aio.geoids.similar(conn, unit(number), 3))[0].geoid.entropy == number
                        assert len(await aio.geoids.latest(conn, 7)) == 7

            await asyncio.gather(*map(work, range(12)))

    asyncio.run(main())


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
        (index,) = indexes.existing(conn)
    with psycopg.connect(database) as conn:
        assert not behind_pooler(conn)
    for command, said in {
        ("index", "retrain", index.name): f"kimera-sql: {REFUSED}\n",
        ("maintain", "reindex"): f"kimera-sql: not rebuilt: {index.name}: {REFUSED} (rebuilt: none)\n",
    }.items():
        ran = run(*command, DATABASE_URL=pooled)
        assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", said)


@pytest.mark.parametrize(
    ("choice", "direct", "through"), [("direct", 5, None), ("always", 5, 5), ("never", None, None)]
)
def test_prepared_statements_are_a_setting(
    pooled: str, database: str, choice: str, direct: int | None, through: int | None
) -> None:
    settings = Settings(prepared_statements=choice)
    for conninfo, threshold in ((database, direct), (pooled, through)):
        with open_pool(conninfo, settings=settings) as pool, pool.connection() as conn:
            assert conn.prepare_threshold == threshold


def test_another_choice_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^prepared_statements must be one of direct, always, never, got 'off'$"):
        Settings.from_env({"KIMERA_PREPARED_STATEMENTS": "off"})
