"""Exact searches: the very nearest, ties in the order of their ids, by every plan and in every transaction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimera_sql import add_adapters, embeddings, geoids, model, sql
from kimera_sql.search.plan import exactly
from kimera_sql.vectors import DIMENSIONS, Vector

PLANS: Final = {
    "as the server likes": [],
    "in parallel": ["max_parallel_workers_per_gather = 2"],
    "in parallel without workers": ["max_parallel_workers_per_gather = 2", "max_parallel_workers = 0"],
    "not in parallel": ["max_parallel_workers_per_gather = 0"],
}
FREE: Final = ["parallel_setup_cost = 0", "parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0"]

CORNERS: Final = st.sampled_from(list(product((-1, 1), repeat=4)))
"""Between any two of these every cosine is a half, one or zero: similarities are the same in any arithmetic."""


def vector(corner: Sequence[int], scale: float = 1) -> Vector:
    return np.array([*corner, *[0] * (DIMENSIONS - len(corner))], np.float32) * np.float32(scale)


def insert(conn: psycopg.Connection, rows: Sequence[tuple[Sequence[int], float, bool]]) -> dict[UUID, Vector]:
    """Insert *rows*, each a corner, a length and whether it has the tag, as states and as embeddings."""
    # The ids are in another order than the rows.
    made = {
        UUID(int=(number + 1) * 7919 % 10007): vector(corner, scale) for number, (corner, scale, _) in enumerate(rows)
    }
    for (id, one), (_, _, tagged) in zip(made.items(), rows, strict=True):
        tag = "some" if tagged else "others"
        geoids.insert(
            conn,
            geoids.NewGeoid(id=id, state_vector=one, entropy=0, coherence_factor=0, energy_level=0, tags=[tag]),
        )
        embeddings.insert(conn, embeddings.NewEmbedding(id=id, text_content=str(id), embedding=one, source=tag))
    return made


def nearest(made: dict[UUID, Vector], query: Vector, k: int) -> list[tuple[UUID, float, bytes]]:
    one = query / np.linalg.norm(query)
    similar = {id: float(np.dot(one, other / np.linalg.norm(other))) for id, other in made.items()}
    best = sorted(similar, key=lambda id: (-similar[id], id))[:k]
    return [(id, similar[id], made[id].tobytes()) for id in best]


@pytest.fixture(params=PLANS)
def conn(request: pytest.FixtureRequest, pg_conn: psycopg.Connection) -> psycopg.Connection:
    """A connection to each server, whose transaction makes it plan in one way."""
    settings = PLANS[request.param]
    for setting in [*settings, *(FREE if settings else ())]:
        pg_conn.execute(f"SET LOCAL {setting}".encode())
    if settings:
        for table in ("geoid_states", "semantic_embeddings"):
            pg_conn.execute(f"ALTER TABLE {table} SET (parallel_workers = 2)".encode())
        # Pages that other tests' rows have left make it look as if workers saved nothing.
        pg_conn.execute("TRUNCATE geoid_states, semantic_embeddings CASCADE")
        # A table without pages is planned without workers. These rows leave theirs.
        insert(pg_conn, [((1, 1, 1, 1), 1, False)] * 20)
        for table in ("geoid_states", "semantic_embeddings"):
            pg_conn.execute(f"DELETE FROM {table}".encode())  # noqa: S608 - a constant
        plan = geoids.explain(pg_conn, vector((1, 1, 1, 1)), exact=True).plan
        assert ("Gather" in plan) == request.param.startswith("in parallel")
    # Left to itself, the server goes by the pages that other tests' rows have left.
    return pg_conn


@given(
    rows=st.lists(st.tuples(CORNERS, st.sampled_from([0.5, 1, 2]), st.booleans()), max_size=40),
    corner=CORNERS,
    k=st.integers(1, 50),
    filtered=st.booleans(),
    with_vectors=st.booleans(),
)
def test_the_nearest_are_numpys_with_ties_by_id(
    conn: psycopg.Connection, rows: Any, corner: Any, k: int, filtered: bool, with_vectors: bool
) -> None:
    with conn.transaction(force_rollback=True):
        made = insert(conn, rows)
        query = vector(corner, 4)
        if filtered:
            made = {id: one for (id, one), (_, _, tagged) in zip(made.items(), rows, strict=True) if tagged}
        expected = nearest(made, query, k)
        states = geoids.similar(
            conn, query, k, exact=True, with_vectors=with_vectors, tags_any=["some"] if filtered else None
        )
        texts = embeddings.similar(
            conn, query, k, exact=True, with_vectors=with_vectors, source="some" if filtered else None
        )
        found = [
            [(hit.geoid.id, hit.similarity) for hit in states],
            [(hit.embedding.id, hit.similarity) for hit in texts],
        ]
        assert found == [[(id, similarity) for id, similarity, _ in expected]] * 2
        for hits in (states, texts):
            kept = [hit.vector for hit in hits]
            assert [None if one is None else one.tobytes() for one in kept] == [
                one if with_vectors else None for _, _, one in expected
            ]


def test_distances_are_the_servers_to_the_last_bit(pg_conn: psycopg.Connection) -> None:
    random = np.random.default_rng(0)
    query, *others = random.standard_normal((60, DIMENSIONS)).astype(np.float32)
    for one in others:
        geoids.insert(pg_conn, geoids.NewGeoid(state_vector=one, entropy=0, coherence_factor=0, energy_level=0))
    rows = pg_conn.execute("SELECT id, state_vector <=> %s FROM geoid_states", [query]).fetchall()
    expected = sorted((distance, id) for id, distance in rows)[:40]
    hits = geoids.similar(pg_conn, query, 40, exact=True)
    assert [(hit.geoid.id, hit.similarity) for hit in hits] == [(id, 1 - distance) for distance, id in expected]


def test_a_column_of_ones_own_may_have_any_name(pg_conn: psycopg.Connection) -> None:
    made = insert(pg_conn, [((1, 1, 1, 1), 1, True), ((1, 1, 1, -1), 1, True)])
    for name in ("distance", "similarity", "nearest", "k"):
        pg_conn.execute(f"ALTER TABLE geoid_states ADD {name} INTEGER DEFAULT 7".encode())
    (hit, other) = geoids.similar(pg_conn, vector((1, 1, 1, -1)), exact=True)
    assert {hit.geoid.id, other.geoid.id} == set(made)
    assert (hit.similarity, other.similarity) == (1, 0.5)


@pytest.fixture
def committed(database: str) -> str:
    """The conninfo of a database of the test's own with a hundred committed states."""
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        insert(conn, [((1, 1, 1, 1 - 2 * (number % 2)), 1, True) for number in range(100)])
    return database


@pytest.mark.parametrize("autocommit", [True, False])
@pytest.mark.parametrize("workers", ["0", "8"])
@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
def test_exact_searches_run_where_nothing_can_be_written(
    committed: str, autocommit: bool, workers: str, isolation: str
) -> None:
    """As on a standby, with an open cursor, and with or without workers."""
    settings = {
        "default_transaction_read_only": "on",
        "default_transaction_isolation": isolation.replace(" ", "\\ "),
        "max_parallel_workers": workers,
        "parallel_setup_cost": "0",
        "parallel_tuple_cost": "0",
        "min_parallel_table_scan_size": "0",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    with psycopg.connect(committed, autocommit=autocommit, options=options) as conn:
        add_adapters(conn)
        expected = geoids.similar(conn, vector((1, 1, 1, 1)), 60, exact=True)
        assert [hit.similarity for hit in expected] == [1] * 50 + [0.5] * 10
        with conn.transaction(), conn.cursor("open") as cursor:
            cursor.itersize = 10
            cursor.execute("SELECT id FROM geoid_states ORDER BY id")
            ids = [next(cursor)[0]]
            assert geoids.similar(conn, vector((1, 1, 1, 1)), 60, exact=True) == expected
            ids += [id for (id,) in cursor]
            assert len(set(ids)) == 100


def test_what_is_switched_off_stays_off(pg_conn: psycopg.Connection) -> None:
    """A server without the means to read ahead refuses any effective_io_concurrency but 0."""
    settings = exactly("").settings
    pg_conn.execute("SET LOCAL effective_io_concurrency = 0")
    changed = sql.Queries("search").set_local.fetchall(
        pg_conn, names=list(settings), values=list(settings.values()), index=None
    )
    assert {now for _, _, now, _ in changed} == {"0", "off"}
    pg_conn.execute("SET LOCAL effective_io_concurrency = 3")
    changed = sql.Queries("search").set_local.fetchall(
        pg_conn, names=list(settings), values=list(settings.values()), index=None
    )
    assert {now for _, _, now, _ in changed} == {"200", "off"}


def test_few_rows_are_compared_without_settings() -> None:
    """Sending them would take longer than they save."""
    few, more, unknown = exactly("", 1000), exactly("", 1001), exactly("")
    assert (few.query, few.settings) == ("similar_few", {})
    assert more == unknown
    assert (more.query, set(more.settings)) == ("similar_exact", {"jit", "effective_io_concurrency"})


FILTERS: Final[dict[str, dict[str, Any]]] = {
    "geoids": {**model.geoids.where(tags_any=["some"]), "other_than": None},
    "embeddings": model.embeddings.where(source="some"),
}


@given(rows=st.lists(st.tuples(CORNERS, st.sampled_from([0.5, 1, 2]), st.booleans()), max_size=40), corner=CORNERS)
def test_few_rows_are_found_as_many_are(pg_conn: psycopg.Connection, rows: Any, corner: Any) -> None:
    with pg_conn.transaction(force_rollback=True):
        insert(pg_conn, rows)
        for entity, filters in FILTERS.items():
            queries = sql.Queries(entity)
            asked = {"vector": vector(corner, 4), "k": 15, "with_vectors": True, **filters}
            few, many = (query.fetchall(pg_conn, **asked) for query in (queries.similar_few, queries.similar_exact))
            assert [row[:-1] for row in few] == [row[:-1] for row in many]
            np.testing.assert_array_equal([row[-1] for row in few], [row[-1] for row in many])
