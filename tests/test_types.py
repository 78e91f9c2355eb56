"""Connections whose types nobody has registered, or whose types have changed since, give vectors all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pgvector
import psycopg
import pytest
from fix_twins import asynchronous
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format, TransactionStatus
from psycopg.types import TypeInfo
from strategies import unit
from test_postgres import EMBEDDING, GEOID, READS, STATE, VECTOR, WRITES, fill

from kimera_sql import add_adapters, embeddings, geoids, migrate, open_pool, sql
from kimera_sql.errors import SchemaError
from kimera_sql.sql.postgres import Connection
from kimera_sql.vectors import register

pytestmark = pytest.mark.ends

SENT_OR_RECEIVED = {
    name: call
    for name, call in {**READS, **WRITES}.items()
    if name.startswith(("geoids.", "embeddings.")) and not name.endswith(("_metadata", "_tags", ".explain"))
}
"""What sends vectors or gets them, and does so first."""

QUERIES = """
-- name: half(given)$
-- returns: Vector
SELECT :given::halfvec;

-- name: fetched()$
-- returns: Vector
SELECT '[1.5,2.5]'::halfvec;

-- name: mood()$
-- returns: Any
SELECT 'glad'::mood;
"""


@pytest.fixture
def committed(database: str) -> str:
    """The conninfo of a database of the test's own, with a committed row of each entity."""
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn)
    return database


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Queries of the test's own."""
    (tmp_path / "own.sql").write_text(QUERIES)
    return sql.load(tmp_path).own


def recreate(conninfo: str) -> None:
    """Drop the extension and create it again, as a restore does, and with it the columns and what was in them."""
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute("DROP EXTENSION vector CASCADE")
        conn.execute("TRUNCATE geoid_states, semantic_embeddings CASCADE")
        conn.execute("CREATE EXTENSION vector")
        conn.execute("ALTER TABLE geoid_states ADD state_vector VECTOR(1024) NOT NULL")
        conn.execute("ALTER TABLE semantic_embeddings ADD embedding VECTOR(1024) NOT NULL")
        add_adapters(conn)
        geoids.insert(conn, GEOID)
        embeddings.insert(conn, EMBEDDING)


def last_statement(conninfo: str, conn: Connection) -> str:
    with psycopg.connect(conninfo) as other:
        row = other.execute("SELECT query FROM pg_stat_activity WHERE pid = %s", [conn.info.backend_pid]).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("call", [*READS.values(), *WRITES.values()], ids=[*READS, *WRITES])
def test_a_connection_without_adapters_gives_what_one_with_them_gives(
    committed: str, call: Callable[[Connection], object], autocommit: bool
) -> None:
    with psycopg.connect(committed, autocommit=autocommit) as bare:
        found = call(bare)
    with psycopg.connect(committed, autocommit=autocommit) as conn:
        add_adapters(conn)
        if call in READS.values():
            assert found == call(conn)
        assert np.array_equal(geoids.get(conn, STATE).state_vector, VECTOR)


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("runs", [1, 8], ids=["not prepared", "prepared"])
def test_a_connection_outlives_the_extension(committed: str, runs: int, autocommit: bool) -> None:
    with ExitStack() as stack:
        old = {}
        for name, call in SENT_OR_RECEIVED.items():
            conn = old[name] = stack.enter_context(psycopg.connect(committed, autocommit=autocommit))
            add_adapters(conn)
            for _ in range(runs):
                call(conn)
            conn.rollback()
        recreate(committed)
        new = stack.enter_context(psycopg.connect(committed, autocommit=True))
        add_adapters(new)
        for name, call in SENT_OR_RECEIVED.items():
            if name in WRITES:
                call(old[name])
            else:
                assert call(old[name]) == call(new), name
            old[name].rollback()


def test_an_asynchronous_connection_outlives_it_too(committed: str) -> None:
    with asynchronous(committed) as conn:
        geoids.similar(conn, VECTOR, with_vectors=True)
        conn.rollback()
        recreate(committed)
        (hit,) = geoids.similar(conn, VECTOR, with_vectors=True)
        assert isinstance(hit.vector, np.ndarray)
        assert np.array_equal(geoids.insert(conn, replace(GEOID, id=None)).state_vector, VECTOR)


def test_a_pool_outlives_it(committed: str) -> None:
    with open_pool(committed) as pool, ExitStack() as stack:
        lent = [stack.enter_context(pool.connection()) for _ in range(pool.min_size)]
        for conn in lent:
            for _ in range(8):
                geoids.get(conn, STATE)
            conn.rollback()
        recreate(committed)
        for conn in lent:
            assert np.array_equal(geoids.get(conn, STATE).state_vector, VECTOR)
            assert np.array_equal(geoids.insert(conn, replace(GEOID, id=None)).state_vector, VECTOR)
            conn.rollback()


def test_within_a_transaction_the_error_says_that_the_next_one_will_do(committed: str) -> None:
    with psycopg.connect(committed, autocommit=True) as conn:
        add_adapters(conn)
        recreate(committed)
        with pytest.raises(psycopg.errors.InternalError_) as caught, conn.transaction():
            geoids.insert(conn, replace(GEOID, id=None))
        assert caught.value.__notes__ == [
            "the next transaction will know the types that were created since this connection began"
        ]
        with conn.transaction():
            assert np.array_equal(geoids.insert(conn, replace(GEOID, id=None)).state_vector, VECTOR)


def test_what_begins_a_transaction_before_it_sends_a_vector_works_the_second_time(committed: str) -> None:
    with psycopg.connect(committed) as conn:
        add_adapters(conn)
        recreate(committed)
        with pytest.raises(psycopg.errors.InternalError_):
            geoids.explain(conn, VECTOR)
        conn.rollback()
        assert geoids.explain(conn, VECTOR)


@pytest.mark.parametrize("connect", [psycopg.connect, asynchronous])
def test_within_a_transaction_the_result_of_a_prepared_statement_is_refused_once(
    committed: str, connect: Callable[[str], Any]
) -> None:
    with connect(committed) as conn:
        add_adapters(conn)
        for _ in range(8):
            geoids.get(conn, STATE)
            conn.commit()
        recreate(committed)
        conn.execute("SELECT 1")
        with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
            geoids.get(conn, STATE)
        assert "the next transaction" in caught.value.__notes__[0]
        conn.rollback()
        conn.execute("SELECT 1")
        assert np.array_equal(geoids.get(conn, STATE).state_vector, VECTOR)


@pytest.mark.parametrize("connect", [psycopg.connect, asynchronous])
def test_what_is_read_within_a_transaction_is_right_and_leaves_it_open(
    committed: str, connect: Callable[[str], Any]
) -> None:
    with connect(committed) as conn:
        add_adapters(conn)
        recreate(committed)
        conn.execute("CREATE TEMPORARY TABLE mine ()")
        assert np.array_equal(geoids.get(conn, STATE).state_vector, VECTOR)
        assert [state.state_vector.tolist() for state in geoids.stream(conn)] == [VECTOR.tolist()]
        assert conn.info.transaction_status == TransactionStatus.INTRANS
        assert conn.execute("SELECT FROM mine").rowcount == 0


def test_other_errors_are_not_doubted(committed: str) -> None:
    with psycopg.connect(committed) as conn:
        add_adapters(conn)
        with pytest.raises(psycopg.errors.UniqueViolation) as caught:
            geoids.insert(conn, GEOID)
        assert not hasattr(caught.value, "__notes__")
        assert conn.info.transaction_status == TransactionStatus.INERROR


@pytest.mark.parametrize("query", ["fetched", "half"])
def test_types_that_an_update_of_the_extension_adds_are_known(committed: str, own: Any, query: str) -> None:
    with psycopg.connect(committed, autocommit=True) as conn:
        if TypeInfo.fetch(conn, "halfvec") is None:
            pytest.skip("pgvector before 0.7 has no halfvec")
        vector = TypeInfo.fetch(conn, "vector")
        assert vector is not None
        register(conn, [vector])  # as where halfvec came later
        given = {"given": HalfVector([1.5, 2.5])} if query == "half" else {}
        found = getattr(own, query)(conn, **given)
        assert isinstance(found, np.ndarray)
        assert found.tolist() == [1.5, 2.5]


def test_a_type_of_somebody_elses_is_asked_for_once(committed: str, own: Any) -> None:
    with psycopg.connect(committed, autocommit=True) as conn:
        add_adapters(conn)
        conn.execute("CREATE TYPE mood AS ENUM ('glad')")
        assert own.mood(conn) == b"glad"
        assert last_statement(committed, conn).startswith("SELECT /* types.find */")
        assert own.mood(conn) == b"glad"
        assert last_statement(committed, conn).startswith("SELECT /* own.mood */")


def test_a_connection_knows_an_extension_that_is_created_later(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        assert sql.Queries("migrations").exists.fetchval(conn, bool) is False
        with pytest.raises(psycopg.errors.UndefinedTable):
            geoids.count(conn)
        with psycopg.connect(empty_database) as other:
            migrate(other)
        geoids.insert_many(conn, [GEOID])
        assert np.array_equal(geoids.get(conn, STATE).state_vector, VECTOR)


def test_vectors_whose_type_is_not_found_are_no_bytes(committed: str) -> None:
    with psycopg.connect(committed, autocommit=True) as other:
        other.execute("CREATE SCHEMA hidden")
        other.execute("ALTER EXTENSION vector SET SCHEMA hidden")
    with psycopg.connect(committed, autocommit=True) as conn:
        for read in (
            lambda: geoids.get(conn, STATE),
            lambda: list(geoids.stream(conn)),
            lambda: geoids.similar_to(conn, STATE),
        ):
            with pytest.raises(SchemaError, match="search_path"):
                read()
        conn.execute("SET search_path TO public, hidden")
        assert np.array_equal(geoids.get(conn, STATE).state_vector, VECTOR)


def test_a_connection_with_the_clients_adapters_keeps_them(committed: str) -> None:
    with psycopg.connect(committed, autocommit=True) as conn:
        register_vector(conn)
        assert np.array_equal(geoids.get(conn, STATE).state_vector, VECTOR)
        geoids.insert(conn, replace(GEOID, id=None, state_vector=unit(1)))
        row = conn.execute("SELECT state_vector FROM geoid_states").fetchone()
        assert row is not None
        assert isinstance(row[0], pgvector.Vector)


@pytest.fixture
def idle(committed: str) -> Iterator[Connection]:
    with psycopg.connect(committed) as conn:
        yield conn


def test_adding_adapters_leaves_an_idle_connection_idle(idle: Connection) -> None:
    add_adapters(idle)
    assert idle.info.transaction_status == TransactionStatus.IDLE
    assert idle.adapters.types["vector"].oid > 0


class _Raw(Loader):
    def load(self, data: Buffer) -> Any:
        return bytes(data)


class _RawBinary(_Raw):
    format = Format.BINARY


def test_loaders_that_others_registered_change_nothing(pg_conn: Connection) -> None:
    saved = geoids.insert(pg_conn, replace(GEOID, id=None, metadata={"a": 1}, tags=["x"], creation_context="é"))
    before = geoids.get(pg_conn, saved.id)
    for name in ("uuid", "json", "jsonb", "timestamptz", "float8", "text"):
        for loader in (_Raw, _RawBinary):
            pg_conn.adapters.register_loader(name, loader)
    assert geoids.get(pg_conn, saved.id) == before
    assert geoids.get_many(pg_conn, [saved.id]) == [before]
    assert geoids.similar(pg_conn, before.state_vector, 1)[0].geoid.id == saved.id
    assert next(geoids.stream(pg_conn)).id
    # The caller's own statements are read as the caller said.
    assert pg_conn.execute("SELECT 'a'::text").fetchone() == (b"a",)
