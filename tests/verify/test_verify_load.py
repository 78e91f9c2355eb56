"""Queries of one's own, loaded and called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from fix_connections import NEWEST_TWINS, rolled_back
from fix_verify import GOOD, RECORDS, STATE, Dream, both, query

from kimera_sql import aio, embeddings, geoids, sql
from kimera_sql.errors import QueryError

pytestmark = pytest.mark.slow


@pytest.fixture(params=NEWEST_TWINS)
def conn_newest(request: pytest.FixtureRequest, shared: Callable[[str], str]) -> Iterator[Any]:
    with rolled_back(request.param, shared) as conn:
        yield conn


def test_a_loaded_query_gives_what_its_suffix_says(conn_newest: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "dreams.sql").write_text(
        GOOD
        + query("SELECT id, timestamp, entropy FROM geoid_states WHERE id = :id", "returns: Dream", name="one(id)^")
        + query("SELECT entropy FROM geoid_states", "returns: float", name="entropy()$")
        + query(
            "SELECT id, timestamp, entropy, 1 AS rank FROM geoid_states", "returns: Dream, rank int", name="ranked()"
        )
        + query("SELECT 1 AS a, 2 AS b", "returns: a int, b int", name="pair()^")
        + query("SELECT 1 AS a, 2 AS b", name="plain()")
        + query("UPDATE geoid_states SET entropy = :entropy", name="change(entropy)!")
        + query("COPY system_metrics (metric_name) FROM STDIN (FORMAT BINARY)", "types: text", name="into()#")
    )
    dreams = sql.load(tmp_path, RECORDS).dreams
    saved = geoids.insert(conn_newest, STATE)
    dream = Dream(saved.id, saved.timestamp, 0.5)
    assert dreams.by_phase(conn_newest, phase="rem", limit=1) == []
    assert dreams.one(conn_newest, id=saved.id) == dream
    assert dreams.one(conn_newest, id=UUID(int=0)) is None
    assert dreams.entropy(conn_newest) == 0.5
    assert dreams.ranked(conn_newest) == [(dream, 1)]
    assert dreams.pair(conn_newest) == (1, 2)
    assert dreams.plain(conn_newest) == [(1, 2)]
    assert dreams.change(conn_newest, entropy=1) == 1
    with pytest.raises(QueryError, match=r"^dreams\.into is a COPY: call its method copy"):
        dreams.into(conn_newest)
    with pytest.raises(QueryError, match=r"^dreams\.one takes \(id\), not \(ids\)$"):
        dreams.one(conn_newest, ids=saved.id)
    for load in (sql.load, aio.sql.load):
        with pytest.raises(AttributeError, match=r"has no nightmares\.sql; there are dreams$"):
            load(tmp_path, RECORDS).nightmares  # noqa: B018
        assert dir(load(tmp_path, RECORDS)) == ["dreams"]


def test_a_loaded_query_gives_the_same_on_sqlite(conn: sql.Connection, tmp_path: Path) -> None:
    both(
        tmp_path,
        query("SELECT id, timestamp, entropy FROM geoid_states", "returns: Dream")
        + query("SELECT id, metadata FROM geoid_states", "returns: id UUID, metadata dict", name="pairs()")
        + query("SELECT id FROM geoid_states", "returns: UUID", name="ids()"),
        query("SELECT id, timestamp, entropy FROM geoid_states")
        + query("SELECT id, metadata FROM geoid_states", name="pairs()")
        + query("SELECT id FROM geoid_states", name="ids()"),
    )
    saved = geoids.insert(conn, STATE)
    dreams = sql.load(tmp_path, RECORDS).dreams
    assert dreams.one(conn) == [Dream(saved.id, saved.timestamp, 0.5)]
    assert dreams.pairs(conn) == [(saved.id, {})]
    assert dreams.ids(conn) == [saved.id]


@pytest.mark.parametrize("load", [sql.load, aio.sql.load])
def test_loading_what_is_wrong_is_a_query_error(load: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"has no \.sql files"):
        load(tmp_path)
    (tmp_path / "dreams.sql").write_text(query("SELECT 1 AS a", "returns: Dreem"))
    with pytest.raises(
        QueryError, match=r"^dreams\.sql \(postgres\): one: returns: fix_verify has no dataclass Dreem$"
    ):
        load(tmp_path, RECORDS)
    sql.statements.cache_clear()
    (tmp_path / "dreams.sql").write_text(query("SELECT 1 AS a", name="one()<!"))
    with pytest.raises(QueryError, match=r"the suffix must be one of"):
        load(tmp_path, RECORDS)


def test_a_shipped_query_can_be_called(conn: sql.Connection) -> None:
    queries = sql.Queries("geoids", records=geoids)
    saved = geoids.insert(conn, STATE)
    assert queries.find_by_id(conn, id=saved.id) == saved
    assert queries.count_all(conn) == 1
    assert embeddings.count(conn) == 0
