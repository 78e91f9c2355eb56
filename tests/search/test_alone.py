"""An hnsw search that nothing filters is one statement, which sets ef_search for itself and puts it back."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import numpy as np
import psycopg
import pytest

from kimera_sql import add_adapters, embeddings, geoids, indexes, sql
from kimera_sql.search import Precision, looks

pytestmark = pytest.mark.ends

ROWS = 600
VECTORS = np.random.default_rng(1).standard_normal((ROWS, 1024)).astype(np.float32)


@pytest.fixture(params=["half", "full", "binary"])
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def conn(database: str, precision: Precision) -> Iterator[psycopg.Connection]:
    """An autocommit connection to a database with states, texts and their indexes."""
    with psycopg.connect(database, autocommit=True) as conn:
        if precision != "full" and conn.execute("SELECT to_regtype('halfvec')").fetchone() == (None,):
            pytest.skip("the server's pgvector has no such index")
        add_adapters(conn)
        states = (
            geoids.NewGeoid(state_vector=vector, entropy=place, coherence_factor=0, energy_level=0)
            for place, vector in enumerate(VECTORS)
        )
        texts = (
            embeddings.NewEmbedding(text_content=str(place), embedding=vector, source="s")
            for place, vector in enumerate(VECTORS)
        )
        geoids.insert_many(conn, states)
        embeddings.insert_many(conn, texts)
        for table in ("geoid_states", "semantic_embeddings"):
            indexes.build(conn, table, precision=precision)
        # The planner would rather read so few rows from end to end than go by an index in full precision.
        conn.execute("SET random_page_cost = 0.1")
        yield conn


def ef_search(conn: psycopg.Connection) -> str | None:
    conn.execute("SELECT vector_dims('[1]'::vector)")
    row = conn.execute("SELECT current_setting('hnsw.ef_search')").fetchone()
    return row[0] if row else None


def sent(conn: psycopg.Connection) -> set[str]:
    """Return the names of the statements that *conn* has prepared."""
    rows = conn.execute("SELECT substring(statement FROM '/\\* (\\S+) \\*/') FROM pg_prepared_statements").fetchall()
    return {name for (name,) in rows if name}


def test_it_finds_what_is_there_by_the_index(conn: psycopg.Connection, precision: Precision) -> None:
    said = geoids.explain(conn, VECTORS[5], ef_search=150)
    assert said.used
    assert said.settings == {"hnsw.ef_search": "150"}
    assert f"idx_geoid_vector_hnsw_{precision}" in said.plan
    for place in range(12):
        hits = geoids.similar(conn, VECTORS[place], 3, ef_search=150, with_vectors=True)
        exact = geoids.similar(conn, VECTORS[place], 3, exact=True, with_vectors=True)
        assert hits[0].geoid.entropy == place
        assert hits[0].similarity == pytest.approx(1, abs=1e-6)
        assert hits[0] == exact[0]
        assert embeddings.similar(conn, VECTORS[place], 1, ef_search=150)[0].embedding.text_content == str(place)
    assert {f"geoids.nearest_{precision}", f"embeddings.nearest_{precision}"} <= sent(conn)
    many = geoids.similar_many(conn, VECTORS[:4], 2, ef_search=150)
    assert [hits[0].geoid.entropy for hits in many] == [0, 1, 2, 3]


def test_the_setting_of_the_session_and_of_the_transaction_is_as_it_was(conn: psycopg.Connection) -> None:
    for _ in range(7):
        before = ef_search(conn)
        geoids.similar(conn, VECTORS[0], ef_search=150)
        assert ef_search(conn) == before
    conn.execute("SET hnsw.ef_search = 77")
    geoids.similar(conn, VECTORS[0], ef_search=150)
    assert ef_search(conn) == "77"
    with conn.transaction():
        geoids.similar(conn, VECTORS[0], ef_search=150)
        assert ef_search(conn) == "77"
        conn.execute("SET LOCAL hnsw.ef_search = 88")
        with conn.transaction():
            geoids.similar_many(conn, VECTORS[:3], ef_search=150)
            embeddings.similar(conn, VECTORS[0], ef_search=120)
            assert ef_search(conn) == "88"
        assert ef_search(conn) == "88"
    assert ef_search(conn) == "77"


def test_it_is_as_it_was_after_a_search_that_finds_nothing_or_fails(conn: psycopg.Connection) -> None:
    conn.execute("SET hnsw.ef_search = 77")
    with conn.transaction(force_rollback=True):
        conn.execute("DELETE FROM geoid_states")
        assert geoids.similar(conn, VECTORS[0], ef_search=150) == []
        assert ef_search(conn) == "77"
    with conn.transaction():
        with conn.transaction(force_rollback=True):
            conn.execute("ALTER TABLE geoid_states RENAME COLUMN entropy TO disorder")
            with pytest.raises(psycopg.errors.UndefinedColumn), conn.transaction():
                geoids.similar(conn, VECTORS[0], ef_search=150)
            assert ef_search(conn) == "77"
        assert ef_search(conn) == "77"


def test_the_setting_is_in_force_when_the_index_is_read(conn: psycopg.Connection, precision: Precision) -> None:
    """With ef_search = 1 an index scan of pgvector gives one row, so the search is completed exactly."""
    statement = getattr(sql.Queries("geoids"), f"nearest_{precision}")
    (index,) = (index for index in indexes.existing(conn) if index.table == "geoid_states")
    given = {"vector": VECTORS[0], "k": 10, "candidates": 10, "with_vectors": False}
    given |= {"index": index.oid, "filenode": index.filenode}
    for _ in range(8):
        assert len(statement.fetchall(conn, **given, ef_search="1")) < 10
        assert len(statement.fetchall(conn, **given, ef_search="40")) == 10
    assert len(geoids.similar(conn, VECTORS[0], ef_search=1)) == 10


def test_what_excludes_a_row_or_filters_is_searched_with_its_conditions(conn: psycopg.Connection) -> None:
    one = geoids.similar(conn, VECTORS[3], 1)[0].geoid
    assert one.id not in {hit.geoid.id for hit in geoids.similar_to(conn, one.id, 5)}
    assert geoids.similar_to(conn, one.id, 5)[0].similarity < 0.5
    assert all(hit.geoid.entropy < 50 for hit in geoids.similar(conn, VECTORS[3], 5, entropy=(None, 49)))


def test_where_the_planner_would_read_the_table_it_is_told_not_to(conn: psycopg.Connection) -> None:
    conn.execute("SET random_page_cost = 10000")
    looks.forget(conn)
    said = geoids.explain(conn, VECTORS[5], ef_search=150)
    assert said.used
    assert said.settings["enable_seqscan"] == "off"
    assert geoids.similar(conn, VECTORS[5], 1)[0].geoid.entropy == 5
    assert geoids.similar_to(conn, geoids.similar(conn, VECTORS[5], 1)[0].geoid.id, 1)


def test_an_unknown_state_is_not_searched_for(conn: psycopg.Connection) -> None:
    with pytest.raises(LookupError):
        geoids.similar_to(conn, uuid4())
