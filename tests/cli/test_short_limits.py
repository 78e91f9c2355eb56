"""Operations that take long, run by a role whose own timeouts are shorter than they take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from commands import run
from fix_servers import Server
from psycopg.conninfo import make_conninfo
from strategies import unit

from kimera_sql import SqlitePool, add_adapters, aio, embeddings, geoids, indexes, migrate, recall
from kimera_sql.files import load, unload
from kimera_sql.ops import backup, maintenance
from kimera_sql.transfer import copy
from kimera_sql.verify.server import throwaway

pytestmark = pytest.mark.slow

LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout")
LIMIT = 0.25
SLOW = f"""
CREATE SCHEMA slow;
CREATE FUNCTION slow.sleep() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
    IF COALESCE(current_setting('slow.slept', true), '') = '' THEN
        PERFORM pg_sleep({LIMIT} * 1.2), set_config('slow.slept', 'yes', true);
    END IF;
END $$;
CREATE FUNCTION slow.event() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM slow.sleep(); END $$;
CREATE FUNCTION slow.trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM slow.sleep(); RETURN NULL; END $$;
CREATE FUNCTION slow.value(float) RETURNS float IMMUTABLE LANGUAGE plpgsql
    AS $$ BEGIN PERFORM slow.sleep(); RETURN $1; END $$;
CREATE EVENT TRIGGER slow ON ddl_command_start WHEN TAG IN ('CREATE INDEX', 'REINDEX', 'CREATE SCHEMA', 'DROP TABLE')
    EXECUTE FUNCTION slow.event();
CREATE TRIGGER slow AFTER INSERT OR DELETE ON geoid_states FOR EACH STATEMENT EXECUTE FUNCTION slow.trigger();
CREATE INDEX ON geoid_states (slow.value(entropy)) WHERE entropy = 0;
"""
"""What makes each operation's work take longer than LIMIT, once in each transaction."""


def states(number: int) -> list[geoids.NewGeoid]:
    return [
        geoids.NewGeoid(state_vector=unit(seed), entropy=seed, coherence_factor=0, energy_level=0)
        for seed in range(number)
    ]


@pytest.fixture
def hurried(newest: Server) -> Iterator[str]:
    """The conninfo of a role without silence_timeout, of a database that is slow."""
    conninfo = newest.create(template=newest.template)
    owner = make_conninfo(conninfo, user="hurried")
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute("CREATE ROLE hurried SUPERUSER LOGIN")
        add_adapters(conn)
        geoids.insert_many(conn, states(9))
        conn.execute(SLOW.encode())
        for limit in LIMITS:
            conn.execute(f"ALTER ROLE hurried SET {limit} = '{LIMIT}s'".encode())
    yield owner
    newest.drop(conninfo)
    with psycopg.connect(newest.conninfo, autocommit=True) as conn:
        conn.execute("DROP ROLE hurried")


def limits(conn: psycopg.Connection) -> set[object]:
    return {conn.execute(f"SHOW {limit}".encode()).fetchone() for limit in LIMITS}


def test_operations_take_the_time_they_need(hurried: str, tmp_path: Path) -> None:
    with psycopg.connect(hurried, autocommit=True) as conn, SqlitePool(tmp_path / "file.db") as pool:
        add_adapters(conn)
        with pytest.raises(psycopg.errors.TransactionTimeout), psycopg.connect(hurried, autocommit=True) as other:
            other.execute("REINDEX TABLE geoid_states")
        with pool.connection() as file:
            migrate(file)
            assert copy(conn, file)[0].rows == 9
        unload(conn, "geoid_states", tmp_path / "rows.jsonl")
        assert maintenance.prune(conn, timedelta(milliseconds=1), ["geoid_states"])[0].rows == 9
        load(conn, "geoid_states", tmp_path / "rows.jsonl")
        assert geoids.insert_many(conn, states(3))
        index = indexes.build(conn, "geoid_states")
        recall.tune(conn, "geoid_states", sample=10)
        assert maintenance.reindex(conn)[0].index == index.name
        indexes.drop(conn, index.name)
        indexes.build(conn, "geoid_states", concurrently=True)
        assert all(step.done for step in maintenance.run_all(conn, metrics_age=timedelta(days=1)))
        embeddings.name_model(conn, "old")
        embeddings.renew(conn, lambda texts: [unit(1)] * len(texts), model="new")
        assert embeddings.end_renewal(conn)
        backup.make_dump(conn, tmp_path / "dumps")
        with throwaway(conn, own_schema=True):
            pass
        assert limits(conn) == {("250ms",)}


def test_operations_take_it_within_a_transaction_too(hurried: str) -> None:
    with psycopg.connect(hurried) as conn:
        add_adapters(conn)
        with conn.transaction(force_rollback=True):
            indexes.build(conn, "geoid_states")
            assert limits(conn) == {("250ms",)}
        assert indexes.existing(conn) == []
        assert limits(conn) == {("250ms",)}


def test_an_asynchronous_build_takes_it_too(hurried: str) -> None:
    async def build() -> bool:
        async with await psycopg.AsyncConnection.connect(hurried, autocommit=True) as conn:
            await aio.add_adapters(conn)
            return (await aio.indexes.build(conn, "geoid_states", concurrently=True)).usable

    assert asyncio.run(build())


def test_commands_take_it_too(hurried: str, tmp_path: Path) -> None:
    dumps = str(tmp_path / "dumps")
    for command in (
        ["unload", "geoid_states", str(tmp_path / "rows.jsonl")],
        ["index", "build", "geoid_states"],
        ["backup", "dump", "--dir", dumps],
        ["backup", "drill", "--dir", dumps, "--on-server"],
    ):
        ran = run("--dsn", hurried, *command)
        assert ran.returncode == 0, (command, ran.stderr)


def test_a_schema_is_made_in_the_time_it_takes(hurried: str) -> None:
    with psycopg.connect(hurried, autocommit=True) as conn:
        conn.execute("SET transaction_timeout = 0")
        conn.execute("SET statement_timeout = 0")
        conn.execute("DROP SCHEMA public CASCADE")
        conn.execute("CREATE SCHEMA public")
    with psycopg.connect(hurried, autocommit=True) as conn:
        assert len(migrate(conn)) > 7
