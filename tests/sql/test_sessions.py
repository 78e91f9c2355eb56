"""What is kept for a connection: it holds neither the connection nor results, and gives way to what changes."""

from __future__ import annotations

import gc
import weakref
from enum import Enum
from pathlib import Path

import psycopg
from psycopg.types import TypeInfo
from psycopg.types.enum import EnumInfo, register_enum
from strategies import unit

from kimera_sql import add_adapters, embeddings, geoids, sql
from kimera_sql.sql.postgres import Connection
from kimera_sql.sql.sessions import session
from kimera_sql.vectors import register


class Mood(Enum):
    GLAD = "glad"


def state(seed: int = 0) -> geoids.NewGeoid:
    return geoids.NewGeoid(state_vector=unit(seed), entropy=seed, coherence_factor=0, energy_level=0)


def word(text: str) -> embeddings.NewEmbedding:
    return embeddings.NewEmbedding(text_content=text, embedding=unit(1))


def test_a_connection_that_is_let_go_is_gone_at_once(database: str) -> None:
    conn = psycopg.connect(database)
    for _ in range(2):
        geoids.count(conn)
    conn.close()
    gone = weakref.ref(conn)
    gc.disable()
    try:
        del conn
        assert gone() is None
    finally:
        gc.enable()


def test_the_second_run_takes_the_cursor_of_the_first_and_no_result_stays_in_memory(pg_conn: Connection) -> None:
    ids = [geoids.insert(pg_conn, state(seed)).id for seed in range(3)]
    for _ in range(2):
        assert [found.id for found in geoids.get_many(pg_conn, ids)] == ids
    statement = sql.statements("postgres", "geoids")["find_by_ids"]
    vector = pg_conn.adapters.types.get("vector")
    kept = session(pg_conn).cursor(statement, "utf-8", vector)
    assert kept is session(pg_conn).cursor(statement, "utf-8", vector)
    assert kept.pgresult is not None
    assert kept.pgresult.ntuples == 0


def test_texts_are_read_in_the_encoding_that_the_session_has_by_now(pg_conn: Connection) -> None:
    id = embeddings.insert(pg_conn, word("Zoë")).id
    for encoding in ("UTF8", "LATIN1", "UTF8"):
        pg_conn.execute(f"SET client_encoding TO {encoding}")
        assert embeddings.get(pg_conn, id).text_content == "Zoë"
        assert embeddings.insert(pg_conn, word("Noël")).text_content == "Noël"


def test_types_that_the_caller_registers_anew_are_used_at_once(database: str) -> None:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        geoids.insert(conn, state())
        conn.rollback()
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("DROP EXTENSION vector CASCADE")
            other.execute("TRUNCATE geoid_states CASCADE")
            other.execute("CREATE EXTENSION vector")
            other.execute("ALTER TABLE geoid_states ADD state_vector VECTOR(1024) NOT NULL")
        info = TypeInfo.fetch(conn, "vector")
        assert info is not None
        register(conn, [info])
        saved = geoids.insert(conn, state())
        assert geoids.get(conn, saved.id) == saved


def test_own_queries_heed_what_is_registered_between_two_runs(pg_conn: Connection, tmp_path: Path) -> None:
    (tmp_path / "moods.sql").write_text("-- name: mood()$\nSELECT 'glad'::mood;\n")
    mood = sql.load(tmp_path).moods.mood
    pg_conn.execute("CREATE TYPE mood AS ENUM ('glad')")
    assert mood(pg_conn) == b"glad"
    info = EnumInfo.fetch(pg_conn, "mood")
    assert info is not None
    register_enum(info, pg_conn, Mood, mapping={Mood.GLAD: "glad"})
    assert mood(pg_conn) is Mood.GLAD


def test_statements_in_a_pipeline_of_the_callers_have_their_results(pg_conn: Connection) -> None:
    first, second = (geoids.insert(pg_conn, state(seed)) for seed in (1, 2))
    with pg_conn.pipeline():
        assert geoids.delete(pg_conn, first.id)
        assert not geoids.delete(pg_conn, first.id)
        assert geoids.get(pg_conn, second.id) == second
        assert geoids.count(pg_conn) == 1
