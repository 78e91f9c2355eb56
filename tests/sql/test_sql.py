"""The loader of named queries, the ways to run one, and every query that is shipped."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import psycopg
import pytest
from fix_connections import BOTH_TWINS, NEWEST_TWINS, rolled_back, to_own_database
from fix_servers import Server
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from reference import ABSENT
from strategies import unit

from kimera_sql import add_adapters, embeddings, geoids, metrics, portals, sql, transitions
from kimera_sql.errors import QueryError
from kimera_sql.sql import Queries, Statement
from kimera_sql.sql.files import DIALECTS, Dialect
from kimera_sql.sql.postgres import Connection

FILES: Final = sorted((sql.shipped("queries") / "postgres").glob("*.sql"))
SHIPPED: Final = [
    pytest.param(statement, id=statement.name)
    for path in FILES
    for statement in sql.statements("postgres", path.stem).values()
]
HEADER: Final = re.compile(r"^-- name: (\w+)\(.*\)(.?)$", re.MULTILINE)
MANY_ROWS: Final = {
    path.stem: [
        sql.statements("postgres", path.stem)[name] for name, kind in HEADER.findall(path.read_text()) if not kind
    ]
    for path in FILES
}


@dataclass(frozen=True)
class Entity:
    """What an entity's queries have to agree with. vector: its vector column."""

    module: ModuleType
    new: type[Any]
    record: type[Any]
    vector: str | None = None

    @property
    def name(self) -> str:
        return self.module.__name__.rpartition(".")[2]

    @property
    def statements(self) -> dict[str, Statement]:
        return sql.statements("postgres", self.name)

    @property
    def columns(self) -> list[str]:
        return [field.name for field in fields(self.record)]


ENTITIES: Final = [
    Entity(geoids, geoids.NewGeoid, geoids.Geoid, "state_vector"),
    Entity(transitions, transitions.NewTransition, transitions.Transition),
    Entity(embeddings, embeddings.NewEmbedding, embeddings.Embedding, "embedding"),
    Entity(portals, portals.NewPortal, portals.Portal),
    Entity(metrics, metrics.NewMetric, metrics.Metric),
]


@pytest.fixture(params=BOTH_TWINS)
def conn(request: pytest.FixtureRequest, shared: Callable[[str], str]) -> Iterator[Any]:
    with rolled_back(request.param, shared) as conn:
        yield conn


@pytest.fixture(params=NEWEST_TWINS)
def autocommit(request: pytest.FixtureRequest, start: Callable[[str], Server]) -> Iterator[Any]:
    """An autocommit connection to a database of the test's own on the newest server."""
    with to_own_database(request.param, start, autocommit=True) as conn:
        yield conn


@pytest.fixture(params=ENTITIES, ids=lambda entity: entity.name)
def entity(request: pytest.FixtureRequest) -> Entity:
    entity: Entity = request.param
    return entity


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty queries/postgres/spy.sql, beside what a COPY needs."""
    (tmp_path / "postgres").mkdir()
    shutil.copy(sql.shipped("queries") / "postgres" / "bounds.sql", tmp_path / "postgres")
    monkeypatch.setattr("kimera_sql.sql.files.shipped", lambda _: tmp_path)
    sql.statements.cache_clear()
    yield tmp_path / "postgres" / "spy.sql"
    sql.statements.cache_clear()


def listed(text: str) -> list[str]:
    """The columns in the first parentheses of an INSERT or a COPY."""
    match = re.search(r"\(([^)]*)\)", text)
    assert match
    return [name.strip() for name in match[1].split(",")]


def test_a_statement_has_its_name_text_parameters_and_notes(spy: Path) -> None:
    spy.write_text("""
-- name: plain(b, a)
-- What it is for.
-- On a line of its own.
SELECT :a::integer, :b::text
WHERE true;

-- name: planned(a)^
-- What it is for.
-- plan: custom
SELECT :a::integer;

-- name: copied()#
-- types: uuid, text[] , vector
COPY t FROM STDIN;
""")
    plain, planned, copied = sql.statements("postgres", "spy").values()
    assert (plain.name, plain.custom_plan, plain.types) == ("spy.plain", False, ())
    assert plain.doc == "What it is for.\nOn a line of its own."
    assert set(plain.parameters) == {"a", "b"}
    assert plain.text == "SELECT /* spy.plain */ %(a)s::integer, %(b)s::text\nWHERE true"
    assert planned.custom_plan
    assert copied.types == ("uuid", "text[]", "vector")


def test_a_file_is_read_once(spy: Path) -> None:
    spy.write_text("-- name: one()$\nSELECT 1;\n")
    first = sql.statements("postgres", "spy")
    spy.unlink()
    assert sql.statements("postgres", "spy") is first


def test_a_missing_file_is_a_query_error() -> None:
    with pytest.raises(QueryError, match=r"^none\.sql \(postgres\): "):
        sql.statements("postgres", "none")


def test_a_missing_query_is_a_query_error(conn: Connection) -> None:
    with pytest.raises(QueryError, match=r"^geoids\.sql \(postgres\) has no query nothing$"):
        Queries("geoids").nothing.fetchall(conn)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-- name: one()$\nSELECT 1;\n\n-- name: one()$\nSELECT 2;\n", "one stands twice"),
        ("-- name: one two()$\nSELECT 1;\n", "one two"),
        ("-- name: one(a)$\nSELECT :b;\n", "b"),
        ("-- name: one()$\n", "one"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_a_query_error(spy: Path, text: str, message: str) -> None:
    spy.write_text(text)
    with pytest.raises(QueryError, match=rf"^spy\.sql \(postgres\): .*{message}"):
        sql.statements("postgres", "spy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for queries."""
    return tmp_path_factory.mktemp("any")


# Whatever a tokenizer could stumble over, some of it in the right order
PIECES: Final = st.sampled_from(
    [
        *(
            "-- name: a()",
            "-- name: b(x)^",
            "-- name: c(x, y)!",
            "-- name: d()#",
            "-- name: e()$",
            "-- name:",
            "--name :",
        ),
        *("-- returns: int", "-- returns: ", "-- returns: Foo, a int | None", "-- types: uuid", "-- record_class: Foo"),
        *("SELECT", "FROM t", "COPY t FROM STDIN (FORMAT BINARY)", ":x", ":y", ":1", ":class", "::int", "[1:2]", "|"),
        *("'", '"', "$$", "$a$", "/*", "*/", "--", ";", "(", ")", ",", "%", "%s", "\\", "é", "\0", "\t", "E'", "", " "),
    ]
)
TEXTS: Final = st.lists(st.tuples(PIECES, st.sampled_from(["", " ", "\n", "\r\n"])).map("".join), max_size=30)


@pytest.mark.parametrize("dialect", DIALECTS)
@example(text="-- name:")
@example(text="-- name: \n\n")
@example(text="-- name: a(class)\nSELECT :class")
@given(text=TEXTS.map("".join))
@settings(max_examples=150)
def test_any_text_is_loaded_or_a_query_error_with_its_line(folder: Path, dialect: Dialect, text: str) -> None:
    for one in DIALECTS:
        shutil.rmtree(folder / one, ignore_errors=True)
    (folder / dialect).mkdir()
    (folder / dialect / "any.sql").write_text(text, encoding="utf-8", newline="")
    sql.statements.cache_clear()
    said = ""
    try:
        sql.load(folder)
    except QueryError as error:
        said = str(error)
    named = r"line \d+: |\w+ stands twice|\w+: the suffix must be|\w+: returns: "
    assert not said or re.match(rf"any\.sql \({dialect}\): ({named})", said), said


def test_the_line_is_that_of_the_query_at_fault(spy: Path) -> None:
    spy.write_text("/* two\nlines */\n-- name: one()$\nSELECT 1;\n\n-- name: two(a)$\nSELECT :b;\n")
    with pytest.raises(QueryError, match=r"^spy\.sql \(postgres\): line 6: undeclared parameter name in query two: b$"):
        sql.statements("postgres", "spy")
    spy.write_text("\n\n-- name:\n")
    with pytest.raises(QueryError, match=r"^spy\.sql \(postgres\): line 3: it cannot be parsed \(list index out of"):
        sql.statements("postgres", "spy")


def test_another_connection_is_a_type_error() -> None:
    other: Any = object()
    with pytest.raises(TypeError, match=r"got object$"):
        geoids.count(other)


def test_the_server_sees_the_name_of_a_statement(conn: Connection, spy: Path) -> None:
    spy.write_text("-- name: seen()$\nSELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid();\n")
    expected = "SELECT /* spy.seen */ query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    assert Queries("spy").seen.fetchval(conn, str) == expected


def test_a_statement_is_prepared_unless_its_plan_is_custom(conn: Connection) -> None:
    for _ in range(10):
        geoids.find(conn)
        geoids.count(conn)
    prepared = conn.execute("SELECT statement FROM pg_prepared_statements").fetchall()
    assert [str(row[0]).partition(" */")[0] for row in prepared] == ["SELECT /* geoids.count_all"]


def test_the_ways_to_run_a_query(conn: Connection, spy: Path) -> None:
    spy.write_text("""
-- name: numbers(until)
SELECT number, number * 2 AS double FROM generate_series(1, :until) AS number ORDER BY number;

-- name: change(least)!
UPDATE system_metrics SET metric_value = 0 WHERE metric_value >= :least;
""")
    conn.row_factory = dict_row
    queries = Queries("spy")
    assert queries.numbers.fetchall(conn, until=2) == [(1, 2), (2, 4)]
    assert queries.numbers.fetchone(conn, until=2) == (1, 2)
    assert queries.numbers.fetchone(conn, until=0) is None
    assert queries.numbers.fetchval(conn, int, until=2) == 1
    assert queries.numbers.fetchval(conn, int, until=0) is None
    assert list(queries.numbers.stream(conn, chunk=2, until=5)) == [(n, 2 * n) for n in range(1, 6)]
    assert queries.change.execute(conn, least=1) == 0


def test_copy_sends_rows_of_the_noted_types(pg_conn: Connection, spy: Path) -> None:
    pg_conn.execute("CREATE TEMPORARY TABLE t (id INTEGER, at TIMESTAMPTZ, tags TEXT[], context JSONB)")
    spy.write_text("""
-- name: into_t()#
-- types: int4, timestamptz, text[], jsonb
COPY t (id, at, tags, context) FROM STDIN (FORMAT BINARY);
""")
    rows: list[dict[str, Any]] = [
        {"id": 1, "at": None, "tags": ["a", "b"], "context": {"a": [None, 1.5]}},
        {"id": 2, "at": None, "tags": [], "context": {}},
    ]
    assert Queries("spy").into_t.copy(pg_conn, iter(rows)) == 2
    assert pg_conn.execute("SELECT * FROM t ORDER BY id").fetchall() == [tuple(row.values()) for row in rows]


def metric(conn: Connection) -> None:
    metrics.record(conn, "load", 1, component="core")


def metric_and_error(conn: Connection) -> None:
    with sql.atomic(conn):
        metric(conn)
        conn.execute("SELECT 1 / 0")


def test_atomic_leaves_the_transaction_that_it_begins_to_the_caller(conn: Connection) -> None:
    with sql.atomic(conn):
        metric(conn)
    assert conn.info.transaction_status == TransactionStatus.INTRANS
    assert metrics.count(conn) == 1
    conn.rollback()
    assert metrics.count(conn) == 0


def test_atomic_undoes_its_block_alone_on_an_error(conn: Connection) -> None:
    metric(conn)
    with pytest.raises(psycopg.errors.DivisionByZero):
        metric_and_error(conn)
    assert metrics.count(conn) == 1


def test_atomic_on_an_autocommit_connection_commits_or_undoes(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        with sql.atomic(conn):
            metric(conn)
        with pytest.raises(psycopg.errors.DivisionByZero):
            metric_and_error(conn)
        assert conn.info.transaction_status == TransactionStatus.IDLE
        assert metrics.count(conn) == 1


def test_a_snapshot_does_not_show_what_others_commit_meanwhile(autocommit: Connection) -> None:
    level = autocommit.isolation_level
    with psycopg.connect(autocommit.info.dsn) as other, sql.snapshot(autocommit):
        assert metrics.count(autocommit) == 0
        metric(other)
        other.commit()
        assert metrics.count(autocommit) == 0
    assert metrics.count(autocommit) == 1
    assert autocommit.isolation_level == level


def test_a_null_array_becomes_an_empty_tuple(conn: Connection) -> None:
    stored = geoids.insert(
        conn, geoids.NewGeoid(state_vector=unit(0), entropy=0, coherence_factor=0, energy_level=0, id=ABSENT)
    )
    conn.execute("UPDATE geoid_states SET tags = NULL")
    assert geoids.get(conn, ABSENT) == stored
    assert geoids.remove_tags(conn, ABSENT, "a") == ()
    conn.execute("UPDATE geoid_states SET tags = NULL")
    assert geoids.add_tags(conn, ABSENT, "a") == ("a",)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_of_a_file_is_loaded(path: Path) -> None:
    names = [name for name, _ in HEADER.findall(path.read_text())]
    assert list(sql.statements("postgres", path.stem)) == names
    # The body of a function has statements of its own.
    ends = re.findall(r";\n(?=\n-- name:|\Z)", path.read_text())
    assert len(names) == path.read_text().count("-- name:") == len(ends)


@pytest.mark.parametrize("statement", SHIPPED)
def test_every_query_is_documented_and_led_by_its_name(statement: Statement) -> None:
    assert statement.doc.splitlines()[0].strip()
    assert re.match(r"[A-Z]+ /\* (\S+) \*/(\s|$)", statement.text)[1] == statement.name  # type: ignore[index]
    assert set(re.findall(r"%\((\w+)\)s", statement.text)) == set(statement.parameters)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_query_of_many_rows_ends_in_an_order(path: Path) -> None:
    for statement in MANY_ROWS[path.stem]:
        # In any order: every row is read, what was written is counted, and names become a set.
        if not statement.name.endswith((".stream_vectors", ".stream_unordered", ".upsert_many", "connect.prepared")):
            assert re.search(r"\nORDER BY .*(\nLIMIT .*(\nFOR UPDATE)?)?$", statement.text), statement.name


def test_insert_and_copy_write_the_same_columns(conn: Connection, entity: Entity) -> None:
    copied = listed(entity.statements["copy_in"].text)
    written = entity.columns if "id" in {field.name for field in fields(entity.new)} else entity.columns[1:]
    assert copied == written
    assert listed(entity.statements["insert"].text) == copied
    assert sorted(entity.statements["insert"].parameters) == sorted(copied)
    assert {field.name for field in fields(entity.new)} == set(copied)


def test_every_list_of_an_entity_has_a_limit(entity: Entity) -> None:
    unlimited = {statement.name for statement in MANY_ROWS[entity.name] if "LIMIT" not in statement.text}
    assert unlimited <= {
        f"{entity.name}.{name}"
        for name in (
            "find_by_ids",
            "existing_ids",
            "stream_all",
            "stream_unordered",
            "stream_vectors",
            "energy_balance",
            "series",
            "summary",
            "names",
            "within",
            "matching_ids",
            "vectors_of",
            "upsert_many",
            "leading_from",
            "scattered_ids_of_texts",
            "scattered_names",
            "scattered_within",
        )
    }
