"""What searches tell the planner has no side effects: JIT compiles no plan, no setting that is left behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any, get_args

import numpy as np
import psycopg
import pytest
from strategies import unit

from kimera_sql import add_adapters, geoids, indexes
from kimera_sql.search import Method, Precision

ROWS = 300
FILTERS: tuple[dict[str, Any], ...] = ({}, {"tags_any": ["a"]}, {"entropy": (10, None)}, {"metadata": {"even": True}})
SETTINGS = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "jit", "plan_cache_mode", "hnsw.ef_search")


@pytest.fixture
def conn(database: str) -> Iterator[psycopg.Connection]:
    with closing(psycopg.connect(database, autocommit=True)) as conn:
        add_adapters(conn)
        geoids.insert_many(
            conn,
            (
                geoids.NewGeoid(
                    state_vector=unit(seed),
                    entropy=seed,
                    coherence_factor=0,
                    energy_level=0,
                    tags=["a"] if seed % 5 else [],
                    metadata={"even": seed % 2 == 0},
                )
                for seed in range(ROWS)
            ),
        )
        yield conn


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("method", get_args(Method))
def test_no_search_is_planned_at_a_cost_that_jit_would_compile(
    conn: psycopg.Connection, method: Method, precision: Precision
) -> None:
    if precision != "full" and conn.execute("SELECT to_regtype('halfvec')").fetchone() == (None,):
        return
    indexes.build(conn, "geoid_states", method=method, precision=precision)
    row = conn.execute("SELECT current_setting('jit_above_cost')::float").fetchone()
    assert row is not None
    for filters in FILTERS:
        for ef_search, probes in ((40, 5), (200, 50)):
            said = geoids.explain(conn, unit(3), 10, ef_search=ef_search, probes=probes, **filters)
            (cost,) = re.findall(r"\.\.([\d.]+) rows", said.plan.splitlines()[0])
            assert said.settings.get("jit") == "off" or float(cost) < row[0], said.plan
            if not filters:
                assert float(cost) < row[0], said.plan
            assert said.used == (said.index is not None), said.plan


def test_the_settings_of_the_session_are_as_they_were(conn: psycopg.Connection) -> None:
    indexes.build(conn, "geoid_states")

    def settings() -> list[tuple[str, ...]]:
        conn.execute("SELECT vector_dims('[1]'::vector)")
        return [conn.execute("SELECT current_setting(%s)", [name]).fetchone() or () for name in SETTINGS]

    before = settings()
    for filters in FILTERS:
        geoids.similar(conn, unit(1), 5, **filters)
        assert settings() == before
        with conn.transaction():
            geoids.similar(conn, unit(1), 5, **filters)
            assert settings() == before


def test_an_index_is_recognised_where_the_server_quotes_every_name(conn: psycopg.Connection) -> None:
    name = indexes.build(conn, "geoid_states").name
    conn.execute("SET quote_all_identifiers = on")
    assert [index.name for index in indexes.existing(conn)] == [name]
    assert geoids.explain(conn, unit(1)).index == name


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64])
def test_integers_of_numpy_do_not_wrap_around(conn: psycopg.Connection, kind: type[Any]) -> None:
    for method in get_args(Method):
        indexes.build(conn, "geoid_states", method=method)
        most: Any = kind(120)
        for options in ({}, {"diversity": 0.5}, {"tags_any": ["a"]}, {"tags_any": ["a"], "ef_search": most}):
            assert len(geoids.similar(conn, unit(1), most, probes=most, **options)) == 120
        for index in indexes.existing(conn):
            indexes.drop(conn, index.name)
