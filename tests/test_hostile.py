"""The entities' own tests again, in sessions whose settings a role, a database or a user has made strange.

Left out is what is refused before anything is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import psycopg
import pytest
import test_embeddings
import test_entity
import test_geoids
import test_metrics
import test_portals
import test_transitions
from fix_servers import Server
from psycopg.conninfo import make_conninfo
from strategies import unit
from test_entity import kind as kind  # a fixture
from test_entity import writer as writer  # another
from test_postgres import EMBEDDING, GEOID, READS, VECTOR, fill

from kimera_sql import embeddings, geoids, indexes, metrics, migrate, portals, recall, transitions
from kimera_sql.migrations import pending
from kimera_sql.ops.doctor import examine
from kimera_sql.ops.monitoring import REPORTS
from kimera_sql.sql import Connection
from kimera_sql.verify import verify_queries

pytestmark = [pytest.mark.slow, pytest.mark.ends]

WORLDS: Final[dict[str, dict[str, str]]] = {
    "Berlin": {
        "TimeZone": "Europe/Berlin",
        "DateStyle": "SQL, DMY",
        "IntervalStyle": "sql_standard",
        "extra_float_digits": "-15",
        "bytea_output": "escape",
        "quote_all_identifiers": "on",
        "standard_conforming_strings": "off",
        "escape_string_warning": "off",
        "backslash_quote": "off",
        "transform_null_equals": "on",
        "array_nulls": "off",
    },
    "Kathmandu": {
        "TimeZone": "Asia/Kathmandu",
        "DateStyle": "German",
        "IntervalStyle": "postgres_verbose",
        "default_text_search_config": "pg_catalog.german",
        "default_transaction_isolation": "serializable",
        "default_transaction_deferrable": "on",
        "row_security": "off",
        "search_path": 'elsewhere, "$user", public, extensions',
    },
    "GB18030": {
        "client_encoding": "GB18030",
        "min_parallel_table_scan_size": "0",
        "min_parallel_index_scan_size": "0",
        "parallel_setup_cost": "0",
        "parallel_tuple_cost": "0",
        "work_mem": "64kB",
    },
    "SQL_ASCII": {
        "client_encoding": "SQL_ASCII",
        "plan_cache_mode": "force_generic_plan",
        "jit": "on",
        "jit_above_cost": "0",
        "from_collapse_limit": "1",
        "join_collapse_limit": "1",
        "cursor_tuple_fraction": "1",
    },
    "no plan is good": {
        f"enable_{name}": "off"
        for name in (
            "bitmapscan",
            "hashagg",
            "hashjoin",
            "indexonlyscan",
            "indexscan",
            "material",
            "memoize",
            "mergejoin",
            "nestloop",
            "seqscan",
            "sort",
        )
    },
}
"""Settings that a session can begin with, several strange ones at a time."""

CONFORMANCE: Final = (test_entity, test_geoids, test_transitions, test_metrics, test_portals, test_embeddings)


def inside(conninfo: str, world: str) -> psycopg.Connection[Any]:
    """Connect with the settings of a world, as a role or a database could have them."""
    settings = dict(WORLDS[world])
    encoding = settings.pop("client_encoding", "UTF8")
    options = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items())
    return psycopg.connect(make_conninfo(conninfo, options=options, client_encoding=encoding))


def made(server: Server, world: str) -> str:
    """Create a database with the schema for a world."""
    conninfo = server.create()
    with psycopg.connect(conninfo) as conn:
        conn.execute("CREATE SCHEMA elsewhere")
        if "search_path" in WORLDS[world]:
            conn.execute("CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions")
            conn.execute("SET search_path TO public, extensions")
        conn.commit()
        migrate(conn)
    return conninfo


@pytest.fixture(params=WORLDS, scope="module")
def world(request: pytest.FixtureRequest, newest: Server) -> Iterator[tuple[str, str]]:
    """A world, and the conninfo of a database for it."""
    conninfo = made(newest, request.param)
    yield request.param, conninfo
    newest.drop(conninfo)


@pytest.fixture
def conn(world: tuple[str, str]) -> Iterator[Connection]:
    name, conninfo = world
    with inside(conninfo, name) as conn:
        yield conn
        conn.rollback()


@pytest.fixture(autouse=True)
def _states(request: pytest.FixtureRequest) -> None:
    if request.function.__module__ == test_transitions.__name__:
        test_transitions.begin(request.getfixturevalue("conn"))


globals().update(
    {
        f"{name}_of_{module.__name__.removeprefix('test_')}": test
        for module in CONFORMANCE
        for name, test in vars(module).items()
        if name.startswith("test_") and "_bad_" not in name
    }
)


def test_the_settings_are_there(conn: psycopg.Connection[Any], world: tuple[str, str]) -> None:
    for name, value in WORLDS[world[0]].items():
        row = conn.execute("SELECT current_setting(%s)", [name]).fetchone()
        assert row is not None
        shown = row[0] if isinstance(row[0], str) else row[0].decode()
        assert shown.startswith(value), name


def test_the_schema_is_made_there(newest: Server, world: tuple[str, str]) -> None:
    name, _ = world
    conninfo = newest.create()
    try:
        with psycopg.connect(conninfo) as conn:
            conn.execute("CREATE SCHEMA elsewhere")
        with inside(conninfo, name) as conn:
            migrate(conn)
            assert pending(conn) == []
            fill(conn)
            conn.commit()
            assert indexes.build(conn, "geoid_states").name == "idx_geoid_vector_hnsw_half"
    finally:
        newest.drop(conninfo)


@pytest.fixture(scope="module")
def filled(world: tuple[str, str]) -> Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]:
    """A plain connection and one of the world, to a database with rows and indexes."""
    name, conninfo = world
    with psycopg.connect(conninfo, autocommit=True) as plain, inside(conninfo, name) as strange:
        plain.execute("SET search_path TO public, extensions")
        fill(plain)
        geoids.insert_many(plain, [replace(GEOID, state_vector=unit(n), entropy=n, id=None) for n in range(1, 300)])
        embeddings.insert_many(
            plain, [replace(EMBEDDING, embedding=unit(n), metadata={"é": "日"}) for n in range(1, 300)]
        )
        indexes.build(plain, "geoid_states")
        indexes.build(plain, "semantic_embeddings", method="ivfflat", precision="full", lists=10)
        yield plain, strange
        for module in (transitions, geoids, embeddings, portals, metrics):
            for row in module.stream(plain):
                module.delete(plain, row.id)


@pytest.mark.parametrize("name", [name for name in READS if name != "geoids.explain"])
def test_it_reads_what_a_plain_session_reads(
    filled: tuple[psycopg.Connection[Any], psycopg.Connection[Any]], name: str
) -> None:
    plain, strange = filled
    assert READS[name](strange) == READS[name](plain)
    strange.rollback()


def test_it_searches_by_the_index_and_measures_its_recall(
    filled: tuple[psycopg.Connection[Any], psycopg.Connection[Any]],
) -> None:
    _, strange = filled
    assert geoids.explain(strange, VECTOR, 1).used
    assert recall.measure(strange, "geoid_states", sample=20).recall > 0.9
    strange.rollback()


def test_it_is_reported_on_and_examined(filled: tuple[psycopg.Connection[Any], psycopg.Connection[Any]]) -> None:
    _, strange = filled
    for name, report in REPORTS.items():
        if name not in ("statements", "queries"):  # they need pg_stat_statements
            report(strange)
    examine(strange)
    strange.rollback()


def test_its_queries_are_verified(filled: tuple[psycopg.Connection[Any], psycopg.Connection[Any]]) -> None:
    _, strange = filled
    assert [str(fault) for fault in verify_queries(strange).faults] == []
    strange.rollback()
