"""What distributing tables says and decides without a cluster; tests/ops/test_citus.py has the rest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import psycopg
import pytest
from commands import run
from strategies import unit
from test_doctor import HEALTHY
from test_postgres import EMBEDDING, GEOID, METRIC

from kimera_sql import drift, embeddings, geoids, indexes, metrics, sql
from kimera_sql.errors import UnsupportedByServer
from kimera_sql.ops import citus
from kimera_sql.ops.doctor import diagnose
from kimera_sql.ops.shards import Shard
from kimera_sql.search import Precision
from kimera_sql.search.plan import Options, decide, estimated_rows, used_by
from kimera_sql.tables import NAMES, VECTOR_TABLES

pytestmark = pytest.mark.ends


@pytest.mark.parametrize("call", [citus.plan, citus.plan_undo, citus.nodes, citus.distribute, citus.undistribute])
def test_a_server_without_citus_is_refused(pg_conn: psycopg.Connection, call: Callable[..., object]) -> None:
    with pytest.raises(UnsupportedByServer, match="has no Citus; on each node put it into shared_preload_libraries"):
        call(pg_conn)
    assert citus.placements(pg_conn) == []


def test_the_command_says_that_there_is_no_citus(database: str) -> None:
    for what in ("citus", "undistribute"):
        done = run("scale", what, "--dry-run", DATABASE_URL=database)
        assert done.returncode == 1
        assert "has no Citus" in done.stderr


def test_every_table_has_its_column() -> None:
    script = (sql.shipped("schema") / "citus.sql").read_text(encoding="utf-8")
    by = dict(re.findall(r"create_distributed_table\('(\w+)', '(\w+)'", script))
    references = dict.fromkeys(re.findall(r"create_reference_table\('(\w+)'", script))
    assert by | references == citus.COLUMNS
    assert citus.COLUMNS.keys() == {*NAMES}


def test_what_is_lost_by_distribution_is_no_drift() -> None:
    wanted = drift.expected()
    lacking = drift.differences(drift.distributed(wanted), wanted)
    assert [(one.table, one.expected) for one in lacking] == [
        ("cognitive_transitions", "PRIMARY KEY (id)"),
        ("cognitive_transitions", "FOREIGN KEY (target_id) REFERENCES geoid_states(id)"),
        ("system_metrics", "PRIMARY KEY (id)"),
    ]


def test_rows_are_estimated_over_all_shards() -> None:
    assert estimated_rows([{"Plan": {"Plan Rows": 7}}]) == 7
    tasks = [{"Remote Plan": [[{"Plan": {"Plan Rows": 7}}]]}]
    job = {"Task Count": 8, "Tasks Shown": "One of 8", "Tasks": tasks}
    assert estimated_rows([{"Plan": {"Plan Rows": 100000, "Distributed Query": {"Job": job}}}]) == 56


def test_the_doctor_finds_shards_that_are_lost_lame_or_too_many_on_one_node() -> None:
    shard = Shard("geoid_states", 1, "a:1", True, 9000, 0, 0, 0, 0, None, None, 0, 0, 0, 0)
    even = replace(HEALTHY, shards=(shard, replace(shard, number=2, node="b:2")))
    assert diagnose(even) == []
    lame = replace(shard, number=3, unusable_indexes=1, live_rows=20_000)
    lost = replace(shard, number=4, node="c:3", answered=False, live_rows=0)
    found = diagnose(replace(HEALTHY, shards=(*even.shards, lame, lost)))
    assert [(one.severity, one.subject) for one in found] == [
        ("error", "node c:3"),
        ("error", "shard 3 of geoid_states on a:1"),
        ("warning", "table geoid_states"),
    ]
    assert "some 29,000 rows on one node and 9,000 on another" in found[-1].found


def test_the_index_of_a_shard_is_recognized() -> None:
    assert used_by(["  ->  Index Scan using idx_geoid_vector_102008 on geoid_states_102008"], "idx_geoid_vector")
    assert not used_by(["  ->  Index Scan using idx_geoid_vector_hnsw on geoid_states"], "idx_geoid_vector")


@pytest.fixture
def filled(pg_conn: psycopg.Connection) -> psycopg.Connection:
    """Rows of three entities, and the function that schema/citus.sql makes."""
    script = (sql.shipped("schema") / "citus.sql").read_text(encoding="utf-8")
    (function,) = re.findall(r"CREATE FUNCTION .*?\);\n", script, re.DOTALL)
    pg_conn.execute(function.encode())
    geoids.insert_many(pg_conn, [replace(GEOID, id=None, state_vector=unit(n), entropy=n) for n in range(60)])
    embeddings.insert_many(
        pg_conn, [replace(EMBEDDING, embedding=unit(n), text_content=f"text {n % 30}") for n in range(60)]
    )
    metrics.insert_many(pg_conn, [replace(METRIC, metric_name=name) for name in ("load", "Heat", "load")])
    return pg_conn


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize(("table", "module"), [("geoid_states", geoids), ("semantic_embeddings", embeddings)])
def test_the_search_of_a_shard_finds_the_nearest(
    filled: psycopg.Connection, table: str, module: Any, precision: Precision
) -> None:
    if precision != "full" and filled.execute("SELECT to_regtype('halfvec')").fetchone() == (None,):
        return
    index = replace(indexes.build(filled, table, precision=precision), shards=8)
    plan = decide(VECTOR_TABLES[table], [index], 10, Options(ef_search=77), None)
    assert plan.scattered
    assert plan.reason == f"{index.name} with ef_search 77 on each of 8 shards"
    # It must not be off for the whole of a plan that was made before.
    assert plan.settings == {"hnsw.ef_search": "77", "hnsw.iterative_scan": "relaxed_order"}
    statement = getattr(sql.Queries(VECTOR_TABLES[table].entity), plan.query)
    parameters = dict.fromkeys(statement.statement(filled).parameters)
    given = {"vector": np.asarray(unit(3)), "with_vectors": False, "names": ["hnsw.ef_search"], "settings": ["77"]}
    rows = statement.fetchall(filled, **{**parameters, **given, **plan.parameters})
    # By signs alone every one of so few is a candidate.
    assert len(rows) == plan.parameters["candidates"] if precision != "binary" else len(rows) == 60
    exact = [hit.similarity for hit in module.similar(filled, unit(3), 10, exact=True)]
    assert sorted((row[-2] for row in rows), reverse=True)[:10] == pytest.approx(exact)
    assert filled.execute("SELECT current_setting('hnsw.ef_search')").fetchone() == ("77",)


@pytest.mark.parametrize("entity", ["geoids", "embeddings"])
def test_the_statements_for_shards_find_what_the_others_do(filled: psycopg.Connection, entity: str) -> None:
    queries = sql.Queries(entity)
    filters = dict.fromkeys(queries.count_matching.statement(filled).parameters)
    limited = {**filters, "limit": 7}
    assert queries.scattered_oldest.fetchall(filled, **limited) == queries.oldest_matching.fetchall(filled, **limited)
    asked = {**filters, "vector": np.asarray(unit(3)), "at_least": 0.01, "with_vectors": False}
    found, expected = (query.fetchall(filled, **asked) for query in (queries.scattered_within, queries.within))
    assert [row[0] for row in found] == [row[0] for row in expected]
    assert found


def test_names_and_texts_are_found_over_shards_as_elsewhere(filled: psycopg.Connection) -> None:
    queries = sql.Queries("metrics")
    assert queries.scattered_names.fetchall(filled) == queries.names.fetchall(filled) == [("Heat",), ("load",)]
    asked = {"texts": ["text 3", "none", "text 4"], "sources": [None, None, None]}
    queries = sql.Queries("embeddings")
    found: dict[int, Any] = dict(queries.scattered_ids_of_texts.fetchall(filled, **asked))
    expected = queries.ids_of_texts.fetchall(filled, **asked)
    assert [(found.get(place),) for place in (1, 2, 3)] == expected
    assert expected[1] == (None,)
    assert expected[0] != (None,)
