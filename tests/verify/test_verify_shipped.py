"""verify: the shipped queries have no fault, nothing is run, and nothing is left behind."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_servers import Server
from fix_verify import GOOD, RECORDS, STATE, change, found, query

from kimera_sql import add_adapters, geoids, sql
from kimera_sql.errors import QueryError, SchemaError, UnsupportedByServer
from kimera_sql.verify import verify_queries

pytestmark = pytest.mark.slow


def test_the_shipped_queries_have_no_fault(server: Server) -> None:
    conninfo = server.create()
    try:
        with psycopg.connect(conninfo) as conn:
            assert [str(fault) for fault in verify_queries(conn).faults] == []
    finally:
        server.drop(conninfo)


def test_the_shipped_queries_and_the_code_are_those_of_the_snapshot() -> None:
    assert [str(fault) for fault in verify_queries(None).faults] == []


def test_nothing_is_run_and_nothing_is_left_behind(database: str, tmp_path: Path) -> None:
    (tmp_path / "dreams.sql").write_text(
        query("DELETE FROM geoid_states", name="one()!")
        + query("SELECT pg_sleep(3600)", name="two()!")
        + query("CREATE TABLE left_behind (a int)", name="three()!")
    )

    def state(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
        return conn.execute("""
            SELECT (SELECT count(*) FROM geoid_states), (SELECT count(*) FROM pg_class),
                (SELECT count(*) FROM pg_namespace), (SELECT count(*) FROM pg_proc),
                (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE '_pg3%'),
                current_setting('search_path'), current_setting('enable_seqscan'), current_setting('lock_timeout')
        """).fetchall()

    with psycopg.connect(database) as conn:
        add_adapters(conn)
        geoids.insert(conn, STATE)
        conn.commit()
        before = state(conn)
        assert found(conn, tmp_path) == []
        verify_queries(conn)
        # The transaction that the caller is in goes on.
        assert state(conn) == before
        conn.rollback()
        assert state(conn) == before


def test_it_holds_nobody_up(database: str) -> None:
    with psycopg.connect(database) as other, psycopg.connect(database) as conn:
        other.execute("LOCK TABLE geoid_states IN ACCESS EXCLUSIVE MODE")
        assert [str(fault) for fault in verify_queries(conn).faults] == []


def test_a_role_that_may_make_no_schema_is_told_what_to_do(database: str) -> None:
    with psycopg.connect(database) as conn:
        conn.execute("CREATE ROLE kimera_reader")
        conn.execute("SET LOCAL ROLE kimera_reader")
        with pytest.raises(SchemaError, match=r"GRANT CREATE ON DATABASE"):
            verify_queries(conn)
        conn.rollback()


def test_a_database_that_is_only_read_is_told_so(conn_newest: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "dreams.sql").write_text(GOOD)
    conn_newest.read_only = True
    with pytest.raises(SchemaError, match=r"it needs a server that can be written to"):
        verify_queries(conn_newest, tmp_path, RECORDS)


def test_sqlite_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedByServer, match=r"connect to a server$"):
        verify_queries(sqlite3.connect(":memory:"), tmp_path)


def test_a_folder_without_queries_is_a_query_error(tmp_path: Path, conn_newest: psycopg.Connection) -> None:
    with pytest.raises(QueryError, match=r"has no \.sql files"):
        verify_queries(conn_newest, tmp_path)
    with pytest.raises(QueryError, match=r"has no \.sql files"):
        verify_queries(conn_newest, tmp_path / "nothing")


def test_a_file_that_is_not_text_is_a_fault(tmp_path: Path, conn_newest: psycopg.Connection) -> None:
    (tmp_path / "dreams.sql").write_bytes(b"-- name: a()\n\xff")
    (fault,) = found(conn_newest, tmp_path)
    assert "the file cannot be read" in fault


def test_the_shipped_schema_has_files_for_both_dialects() -> None:
    for dialect in ("postgres", "sqlite"):
        assert list((sql.shipped("schema") / dialect).glob("0001_*.sql"))


def test_a_shipped_index_that_cannot_serve_is_found(conn_newest: psycopg.Connection, shipped_copy: Path) -> None:
    order = "l2_normalize(geoid_states.state_vector)::halfvec(1024) <=> l2_normalize(:vector)::halfvec(1024)"
    change(shipped_copy / "postgres/geoids.sql", f"ORDER BY {order}", f"ORDER BY 1 - ({order}) DESC")
    faults = [str(fault) for fault in verify_queries(conn_newest).faults]
    assert any("similar_half: its plan does not use idx_geoid_vector_hnsw_half" in fault for fault in faults)
