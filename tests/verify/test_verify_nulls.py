"""verify: whether a column can be NULL is told from PostgreSQL's parse tree."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg
import pytest
from fix_verify import RECORDS, found, query

from kimera_sql.verify import nulls, queries, verify_queries
from kimera_sql.verify.server import Described, throwaway

pytestmark = [pytest.mark.slow, pytest.mark.ends]

NULLS: Final = {
    "SELECT entropy, creation_context, 1 AS a, NULL AS b FROM geoid_states": "-n-n",
    "SELECT COALESCE(creation_context, ''), COALESCE(creation_context, NULL), NULLIF(id, id) FROM geoid_states": "-nn",
    "SELECT CASE WHEN true THEN id END, CASE WHEN true THEN id ELSE id END FROM geoid_states": "n-",
    "SELECT count(*), sum(entropy), array_agg(id) FROM geoid_states": "-nn",
    "SELECT entropy, max(id::text), max(creation_context) FROM geoid_states GROUP BY entropy": "--n",
    "SELECT entropy, sum(entropy) FILTER (WHERE true) FROM geoid_states GROUP BY entropy": "-n",
    "SELECT entropy, count(*) FROM geoid_states GROUP BY ROLLUP (entropy)": "n-",
    "SELECT a.id, b.id FROM geoid_states a LEFT JOIN geoid_states b ON true": "-n",
    "SELECT a.id, b.id FROM geoid_states a RIGHT JOIN geoid_states b ON true": "n-",
    "SELECT a.id, b.id FROM geoid_states a FULL JOIN geoid_states b ON a.id = b.id": "nn",
    "SELECT a.id, b.id, c.id FROM geoid_states a LEFT JOIN (geoid_states b JOIN geoid_states c ON true) ON true": "-nn",
    "SELECT id FROM geoid_states a JOIN geoid_states b USING (id)": "-",
    "SELECT id FROM (SELECT id FROM geoid_states) AS s UNION SELECT NULL": "n",
    "SELECT id FROM geoid_states UNION ALL SELECT source_id FROM cognitive_transitions": "-",
    "WITH one AS (SELECT id, tags FROM geoid_states) SELECT id, tags FROM one": "-n",
    "WITH RECURSIVE n AS (SELECT 1 AS a, NULL::int AS b UNION ALL SELECT b, a FROM n) SELECT a, b FROM n": "nn",
    "WITH RECURSIVE n AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM n) SELECT a FROM n": "-",
    "SELECT EXISTS (SELECT 1), (SELECT id FROM geoid_states), (SELECT count(*) FROM geoid_states)": "-n-",
    "SELECT ARRAY(SELECT id FROM geoid_states), ARRAY[NULL], metadata ->> 'a', metadata FROM geoid_states": "--n-",
    "SELECT entropy + 1, entropy > 1, entropy IS NULL, lower(creation_context) FROM geoid_states": "---n",
    "SELECT n, place FROM generate_series(1, 3) WITH ORDINALITY AS s (n, place)": "--",
    "SELECT n FROM unnest(ARRAY[1]) AS s (n)": "?",
    "SELECT rolname, rolsuper FROM pg_roles": "??",
    "SELECT a, b FROM (VALUES (1, NULL), (2, 3)) AS v (a, b)": "-n",
    "SELECT row_number() OVER (), lag(id) OVER () FROM geoid_states": "-?",
    "UPDATE geoid_states SET tags = '{}' RETURNING id, tags": "-n",
    "INSERT INTO system_metrics (metric_name, metric_value, component) VALUES ('', 0, '') RETURNING id, context": "--",
    "DELETE FROM geoid_states RETURNING id, creation_context": "-n",
}  # fmt: skip


@pytest.mark.parametrize("statement", NULLS)
def test_nullability_is_told_from_the_statement(pg_conn: psycopg.Connection, tmp_path: Path, statement: str) -> None:
    (tmp_path / "dreams.sql").write_text(query(statement, name="one()^"))
    verify_queries(pg_conn, tmp_path, RECORDS)  # a fault says what is missing; the columns are of interest here
    read, _ = queries.read(tmp_path, RECORDS)
    with throwaway(pg_conn, own_schema=False) as preparer:
        described = preparer.describe(read[0].source, ())
    assert isinstance(described, Described)
    assert "".join({None: "?", True: "n", False: "-"}[null] for _, _, null in described.columns) == NULLS[statement]


def test_the_old_and_the_new_row_can_be_missing(conn_newest: psycopg.Connection, tmp_path: Path) -> None:
    if conn_newest.info.server_version < 180000:
        pytest.skip("RETURNING old and new came with PostgreSQL 18")
    insert = "INSERT INTO system_metrics (metric_name, metric_value, component) VALUES ('', 0, '')"
    (tmp_path / "dreams.sql").write_text(
        query(f"{insert} RETURNING old.id AS a, new.id AS b", "returns: a int | None, b int", name="one()^")
        + query("DELETE FROM system_metrics RETURNING old.id AS a, new.id AS b",
                "returns: a int, b int | None", name="three()")
        + query("UPDATE system_metrics SET component = '' RETURNING old.id AS a, new.id AS b",
                "returns: a int, b int", name="two()")
    )  # fmt: skip
    assert found(conn_newest, tmp_path) == []


def test_a_node_tree_is_read() -> None:
    tree = nulls.parse(r'({A :x <> :y ("a b" c\ d) :z 4 [ 1 2 ] :n {B :v -1}})')
    assert tree == [{"": "A", "x": None, "y": ['"a b"', r"c\ d"], "z": "4", "n": {"": "B", "v": "-1"}}]
