"""verify: each kind of fault is planted and found, what is right passes, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from commands import run
from conftest import Server

from kimera_sql import add_adapters, embeddings, geoids, sql
from kimera_sql.errors import QueryError, SchemaError, UnsupportedByServer
from kimera_sql.pytest_plugin import Verify
from kimera_sql.vectors import Vector
from kimera_sql.verify import calls, nulls
from kimera_sql.verify import run as verify
from kimera_sql.verify import server as prepare

RECORDS: Final = sys.modules[__name__]

STATE: Final = geoids.NewGeoid(state_vector=[1.0] * 1024, entropy=0.5, coherence_factor=0, energy_level=0)


@dataclass(frozen=True, slots=True)
class Dream:
    id: UUID
    timestamp: datetime
    entropy: float


@dataclass(frozen=True, slots=True)
class Tagged:
    id: UUID
    creation_context: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Strict:
    id: UUID
    creation_context: str


@dataclass(frozen=True, slots=True)
class Loose:
    id: UUID | None


@dataclass(frozen=True, slots=True)
class Whole:
    id: UUID
    state_vector: Vector


@dataclass(frozen=True, slots=True)
class NewDream:
    entropy: float
    metadata: dict[str, Any]


class NoRecord:
    pass


def planted(text: str, folder: Path, file: str = "dreams.sql") -> str:
    """Write *text* without its mark @@, and return the place of the mark as a fault gives it."""
    before, mark, after = text.partition("@@")
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(before + after)
    return f"{path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}: " if mark else f"{path}:"


def found(conn: psycopg.Connection | None, folder: Path, **options: Any) -> list[str]:
    return [str(fault) for fault in verify.verify(conn, folder, RECORDS, **options).faults]


GOOD = """\
-- name: by_phase(phase, limit)
-- Dreams of a phase, the newest first.
-- returns: Dream
SELECT id, timestamp, entropy
FROM geoid_states
WHERE metadata ->> 'phase' = :phase
ORDER BY timestamp DESC, id
LIMIT :limit;
"""


def query(statement: str, *notes: str, name: str = "one()") -> str:
    return f"-- name: {name}\n-- What it is for.\n{''.join(f'-- {note}{chr(10)}' for note in notes)}{statement};\n"


FAULTS: Final = {
    "syntax": (query("SELECT id FORM @@geoid_states", "returns: UUID"), "the server refuses it: syntax error"),
    "unknown column": (query("SELECT @@idd FROM geoid_states", "returns: UUID"), 'column "idd" does not exist'),
    "unknown table": (query("SELECT id FROM @@geoids", "returns: UUID"), 'relation "geoids" does not exist'),
    "unknown function": (query("SELECT @@nothing(1) AS a", "returns: int"), "function nothing(integer) does not exist"),
    "undeclared parameter": (
        query("SELECT id FROM geoid_states WHERE id = @@:id", "returns: UUID"),
        "the parameter id is not declared (expected none, found id)",
    ),
    "unused parameter": (
        query("SELECT 1 AS a", "returns: int", name="@@one(limit)^"),
        "the parameter limit is declared and not used",
    ),
    "array slice": (
        query("SELECT tags[1@@:2] AS a FROM geoid_states", "returns: list | None"),
        "the loader reads the array slice's :2 as a parameter",
    ),
    "array slice by name": (
        query("SELECT tags[1@@:last] AS a FROM geoid_states", "returns: list | None"),
        "the loader reads the array slice's :last as a parameter",
    ),
    "parameter in dollar quotes": (
        query("SELECT $$ @@:y $$ AS a", "returns: str"),
        "the loader reads :y in a dollar quote as a parameter",
    ),
    "apostrophe in dollar quotes": (
        query("SELECT $a$ it@@'s $a$ AS a", "returns: str"),
        "the loader reads the ' in a dollar quote as the begin of a string",
    ),
    "parameter in a trailing comment": (
        query("SELECT 1 AS a -- see @@:y\nFROM geoid_states", "returns: int"),
        "the loader reads :y in a comment behind code as a parameter",
    ),
    "apostrophe in a trailing comment": (
        query("SELECT 1 AS a -- the user@@'s\nFROM geoid_states", "returns: int"),
        "the loader reads the ' in a comment behind code as the begin of a string",
    ),
    "percent in a trailing comment": (
        query("SELECT 1 AS a -- 100 @@% sure\nFROM geoid_states", "returns: int"),
        "the database driver reads the % in a comment behind code",
    ),
    "single percent": (
        query("SELECT 5 @@% 2 AS a", "returns: int"),
        "psycopg reads a single % as a parameter; write %%",
    ),
    "single percent in a string": (
        query("SELECT id FROM geoid_states WHERE creation_context LIKE 'a@@%'", "returns: UUID"),
        "psycopg reads a single % as a parameter; write %%",
    ),
    "backslash in a string": (
        query(r"SELECT @@E'it\'s' AS a", "returns: str"),
        r"the loader takes the \' for the string's end",
    ),
    "name within a line": (
        query("SELECT 1 AS a, @@-- name: two()\n2 AS b", "returns: a int, b int"),
        "`-- name:` within a line is read as the begin of another query",
    ),
    "name line": (
        "-- name: @@one two()\n-- What it is for.\nSELECT 1;\n",
        "a name is written `-- name: thing(param, other)` and one of ^ $ ! # or nothing, not 'one two()'",
    ),
    "suffix": (
        "-- name: @@one()<!\n-- What it is for.\nSELECT 1;\n",
        "and one of ^ $ ! # or nothing, not 'one()<!'",
    ),
    "name twice": (
        query("SELECT 1 AS a", "returns: int") + query("SELECT 2 AS a", "returns: int", name="@@one()"),
        "a query of this name stands above already",
    ),
    "statement before the first name": (
        "@@SELECT 1;\n" + query("SELECT 2 AS a", "returns: int"),
        "what comes before the first `-- name:` is lost",
    ),
    "second statement": (
        query("SELECT 1 AS a;\n@@SELECT 2 AS b", "returns: int"),
        "a second statement under one name",
    ),
    "no statement": ("-- name: @@one()\n-- What it is for.\n", "there is no statement under this name"),
    "no comment": ("-- name: @@one()$\nSELECT 1;\n", "it has no comment that says what it is for"),
    "misspelt note": (
        query("SELECT 1 AS a", "returns: int", "@@return: int"),
        "'return: int' is no note; write `-- returns: `",
    ),
    "note in capitals": (
        query("SELECT 1 AS a", "returns: int", "@@Plan: custom"),
        "'Plan: custom' is no note; write `-- plan: `",
    ),
    "note without a blank": (
        query("SELECT 1 AS a", "returns: int", "@@not null:a"),
        "'not null:a' is no note; write `-- not null: `",
    ),
    "misspelt plan": (
        query("SELECT 1 AS a", "returns: int", "plan: @@costum"),
        "plan: 'costum' is none of its values (expected custom, found costum)",
    ),
    "misspelt dialect": (
        query("SELECT 1 AS a", "returns: int", "only: @@postgress"),
        "only: 'postgress' is none of its values (expected postgres or sqlite, found postgress)",
    ),
    "no returns": (
        query("SELECT id, creation_context FROM geoid_states", name="@@one()"),
        "write `-- returns: ` and a dataclass, or `id UUID, creation_context str | None`",
    ),
    "unknown dataclass": (
        query("SELECT id FROM geoid_states", "returns: @@Dreem"),
        "returns: test_verify has no dataclass Dreem",
    ),
    "no dataclass": (
        query("SELECT id FROM geoid_states", "returns: @@NoRecord"),
        "returns: test_verify.NoRecord is not a dataclass",
    ),
    "unknown type": (
        query("SELECT id FROM geoid_states", "returns: @@id uuid"),
        "returns: 'uuid' is no type that a column can have",
    ),
    "columns in another order": (
        query("SELECT id, @@entropy, timestamp FROM geoid_states", "returns: Dream"),
        "the columns are not the fields of Dream (expected id, timestamp, entropy, found id, entropy, timestamp)",
    ),
    "column too few": (
        query("SELECT id, @@timestamp FROM geoid_states", "returns: Dream"),
        "(expected id, timestamp, entropy, found id, timestamp)",
    ),
    "column too many": (
        query("SELECT id, timestamp, entropy, @@tags FROM geoid_states", "returns: Dream"),
        "(expected id, timestamp, entropy, found id, timestamp, entropy, tags)",
    ),
    "wrong type": (
        query("SELECT id, timestamp, entropy::numeric AS @@entropy FROM geoid_states", "returns: Dream"),
        "entropy is numeric, which is no float as Dream.entropy is (expected float8 or float4, found numeric)",
    ),
    "wrong type of items": (
        query("SELECT @@tags FROM geoid_states", "returns: tags list[int] | None"),
        "tags is text[], which is no list[int] | None as the note's tags is (expected int4[], found text[])",
    ),
    "column that can be NULL": (
        query("SELECT id, @@creation_context FROM geoid_states", "returns: Strict"),
        "creation_context can be NULL: make Strict.creation_context `str | None`, or write `-- not null:",
    ),
    "column that is never NULL": (
        query("SELECT @@id FROM geoid_states", "returns: Loose"),
        "id is never NULL: make Loose.id `UUID`, or write `-- nullable: id` if it can be",
    ),
    "outer join": (
        query(
            "SELECT state.id, step.@@target_id FROM geoid_states AS state\n"
            "LEFT JOIN cognitive_transitions AS step ON step.source_id = state.id",
            "returns: id UUID, target_id UUID",
        ),
        "target_id can be NULL: make the note's target_id `UUID | None`",
    ),
    "aggregate": (
        query("SELECT max(entropy) @@AS entropy FROM geoid_states", "returns: float").replace("@@AS ", "AS @@"),
        "entropy can be NULL",
    ),
    "untold nullability": (
        query("SELECT id, pg_get_indexdef(0) AS @@definition FROM geoid_states", "returns: id UUID, definition str"),
        "whether definition can be NULL is not to be told from the statement: write `-- not null: definition`",
    ),
    "note of no column": (
        query("SELECT id FROM geoid_states", "returns: UUID", "not null: @@ident"),
        "not null: there is no column ident (expected id, found ident)",
    ),
    "dimensions": (
        query("SELECT id, '[1,2]'::vector(2) AS @@state_vector FROM geoid_states", "returns: Whole"),
        "(expected vector(1024), found vector(2))",
    ),
    "unknown dimensions": (
        query("SELECT id, state_vector + state_vector AS @@state_vector FROM geoid_states", "returns: Whole"),
        "how many dimensions state_vector has is not known: cast it, as in state_vector::vector(1024)",
    ),
    "parameters of another dataclass": (
        query(
            "UPDATE geoid_states SET entropy = :entropy WHERE id = :id",
            "takes: @@NewDream",
            name="one(entropy, id)!",
        ),
        "the parameters are not those of NewDream (expected entropy, metadata, found entropy, id)",
    ),
    "parameter of another type": (
        query(
            "UPDATE geoid_states SET creation_context = @@:entropy, metadata = :metadata",
            "takes: NewDream",
            name="one(entropy, metadata)!",
        ),
        "the parameter entropy is text, which is not sent as float (expected float8 or float4, found text)",
    ),
    "type of no parameter": (
        query("UPDATE geoid_states SET entropy = :entropy", "takes: @@since datetime | None", name="one(entropy)!"),
        "the parameters are not those of since datetime | None",
    ),
    "many columns for one value": (
        query("SELECT id, entropy FROM geoid_states", "returns: @@Dream", name="one()$"),
        "returns: the suffix $ gives one value (expected one type, found Dream)",
    ),
    "rows of what gives a number": (
        query("DELETE FROM geoid_states", "returns: @@Dream", name="one()!"),
        "returns: a query with the suffix ! gives the number of rows it changed",
    ),
    "no rows": (query("DELETE FROM geoid_states", name="@@one()"), "it gives no rows: its suffix must be !"),
    "index of no use": (
        query("SELECT id FROM geoid_states ORDER BY entropy + 1, id", "returns: UUID", "uses: @@idx_geoid_entropy"),
        "its plan does not use idx_geoid_entropy (expected idx_geoid_entropy, found ",
    ),
    "unreadable need": (
        query("SELECT 1 AS a", "returns: int", "needs: @@postgres >= 16"),
        "needs: 'postgres >= 16' is none of `postgres 16`, `postgres below 17`, `vector 0.7`",
    ),
    "types of a COPY": (
        query(
            "COPY system_metrics (metric_name, metric_value) FROM STDIN (FORMAT BINARY)",
            "types: @@text, float4",
            name="one()#",
        ),
        "the types of a COPY are those of its columns (expected text, float8, found text, float4)",
    ),
    "column of a COPY": (
        query("@@COPY system_metrics (name) FROM STDIN (FORMAT BINARY)", "types: text", name="one()#"),
        'column "name" does not exist',
    ),
    "type that is not read": (
        query("SELECT pg_current_wal_lsn() AS @@lsn", "returns: Any", "not null: lsn"),
        "psycopg gives a column of the type pg_lsn as bytes; cast it, as in lsn::text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_in_its_place(pg_conn: psycopg.Connection, tmp_path: Path, fault: str) -> None:
    text, message = FAULTS[fault]
    place = planted(text, tmp_path)
    (only, *others) = found(pg_conn, tmp_path)
    assert only.startswith(place)
    assert message in only
    # What is misread can be misread in more than one way.
    assert not others or fault in ("name within a line", "apostrophe in a trailing comment")


def test_all_faults_are_found_in_one_run(pg_conn: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text(
        query("SELECT idd FROM geoid_states", "returns: UUID", name="a()")
        + query("SELECT 5 % 2 AS a", "returns: int", name="b()")
        + query("SELECT id FROM geoid_states", name="c()")
        + query("SELECT id FROM geoid_states WHERE id = :id", "returns: UUID", name="e()")
        + query("SELECT 1 AS a", "returns: str", name="f()")
    )
    (tmp_path / "b.sql").write_text(query("SELECT 1 AS a", "return: int", name="d()$"))
    faults = verify.verify(pg_conn, tmp_path, RECORDS).faults
    assert [(Path(fault.file).name, fault.query) for fault in faults] == [
        ("a.sql", "a"),
        ("a.sql", "b"),
        ("a.sql", "c"),
        ("a.sql", "e"),
        ("a.sql", "f"),
        ("b.sql", "d"),
    ]


def test_what_is_right_has_no_fault(pg_conn: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "dreams.sql").write_text(
        GOOD
        + query("SELECT id, creation_context, tags FROM geoid_states ORDER BY id", "returns: Tagged", name="tagged()")
        + query("SELECT id, state_vector FROM geoid_states ORDER BY id", "returns: Whole", name="whole()")
        + query("SELECT tags[1: 2] AS a, 'a %%' AS b, $$ y $$ AS c, \"id\"::text AS d\nFROM geoid_states\n"
                "-- the user's :own\nWHERE tags @> ARRAY[:a, :b]",
                "returns: a list | None, b str, c str, d str", name="odd(a, b)")
        + query("UPDATE geoid_states SET entropy = :entropy, metadata = :metadata", "takes: NewDream",
                name="change(entropy, metadata)!")
        + query("COPY system_metrics (metric_name, metric_value) FROM STDIN (FORMAT BINARY)", "types: text, float8",
                name="into()#")
        + query("SELECT id FROM geoid_states WHERE tags @> ARRAY[:tag] ORDER BY id", "returns: UUID",
                "uses: idx_geoid_tags", name="with_tag(tag)")
        + query("ANALYZE geoid_states", name="analyze()!")
        + query("SELECT 1 AS a", "returns: int", "needs: nothing", name="skipped()$")
    )  # fmt: skip
    report = verify.verify(pg_conn, tmp_path, RECORDS)
    assert [str(fault) for fault in report.faults] == []
    assert report.queries == 9
    assert report.skipped == (verify.Skipped("dreams.skipped", "the extension nothing"),)


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
    verify.verify(pg_conn, tmp_path, RECORDS)  # a fault says what is missing; the columns are of interest here
    queries, _ = verify._read(tmp_path, RECORDS)
    with prepare.throwaway(pg_conn, own_schema=False) as server:
        described = server.describe(queries[0].source, ())
    assert isinstance(described, prepare.Described)
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


def both(folder: Path, postgres: str, sqlite: str) -> str:
    planted(postgres.replace("@@", ""), folder, "postgres/dreams.sql")
    return planted(sqlite, folder, "sqlite/dreams.sql")


TWINS: Final = {
    "no twin": (
        query("SELECT 1 AS a", "returns: int"),
        query("SELECT 1 AS a", name="@@two()"),
        "postgres has no query of this name; write it, or `-- only: sqlite`",
    ),
    "another parameter": (
        query("SELECT id FROM geoid_states WHERE id = :id", "returns: UUID", name="one(id)"),
        query("SELECT id FROM geoid_states WHERE id = :ids", name="@@one(ids)"),
        "its parameters are not those of PostgreSQL's query (expected id, found ids)",
    ),
    "another column": (
        query("SELECT id, timestamp, entropy FROM geoid_states", "returns: Dream"),
        query("SELECT id, timestamp, energy_level AS @@energy FROM geoid_states"),
        "its columns are not those of PostgreSQL's query (expected id, timestamp, entropy, found id, timestamp, ",
    ),
    "another suffix": (
        query("SELECT id FROM geoid_states", "returns: UUID", name="one()^"),
        query("SELECT id FROM geoid_states", name="@@one()"),
        "its suffix is not that of PostgreSQL's query (expected ^, found none)",
    ),
    "only one of both": (
        query("SELECT 1 AS a", "returns: int"),
        query("SELECT 1 AS a", "only: @@sqlite"),
        "postgres has a query of this name as well",
    ),
    "refused by SQLite": (
        query("SELECT id FROM geoid_states", "returns: UUID"),
        query("SELECT id FROM @@geoids"),
        "SQLite refuses it: no such table: geoids",
    ),
    "syntax of SQLite": (
        query("SELECT id FROM geoid_states", "returns: UUID"),
        query("SELECT id FORM @@geoid_states"),
        'SQLite refuses it: near "geoid_states": syntax error',
    ),
    "columns of what SQLite returns": (
        query("DELETE FROM geoid_states RETURNING id, timestamp, entropy", "returns: Dream"),
        query("DELETE FROM geoid_states RETURNING id, @@entropy, timestamp"),
        "the columns are not the fields of Dream",
    ),
    "two percent signs": (
        query("SELECT 5 %% 2 AS a", "returns: int"),
        query("SELECT 5 @@%% 2 AS a"),
        "SQLite takes a single %",
    ),
    "index in SQLite": (
        query("SELECT 1 AS a", "returns: int"),
        query("SELECT 1 AS a", "uses: @@idx"),
        "uses: plans are PostgreSQL's",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", TWINS)
def test_the_dialects_are_compared(conn_newest: psycopg.Connection, tmp_path: Path, fault: str) -> None:
    postgres, sqlite, message = TWINS[fault]
    place = both(tmp_path, postgres, sqlite)
    faults = found(conn_newest, tmp_path)
    assert [fault for fault in faults if fault.startswith(place) and message in fault], faults


def test_a_query_of_one_dialect_says_so(conn_newest: psycopg.Connection, tmp_path: Path) -> None:
    place = planted(query("SELECT 1 AS a", "returns: int", name="@@one()"), tmp_path, "postgres/dreams.sql")
    planted(query("SELECT 1 AS a", "returns: int", "only: sqlite", name="two()"), tmp_path, "sqlite/dreams.sql")
    (fault,) = found(conn_newest, tmp_path)
    assert fault.startswith(place)
    assert fault.endswith("sqlite has no query of this name; write it, or `-- only: postgres`")
    planted(query("SELECT 1 AS a", "returns: int", "only: @@sqlite", name="one()"), tmp_path, "postgres/dreams.sql")
    (fault,) = found(conn_newest, tmp_path)
    assert fault.endswith("it is postgres's, and says that it is sqlite's alone")


CALLS: Final = {
    "_queries.find_by_id.fetchone(conn, ident=id)": (
        "geoids.find_by_id: the call does not pass the parameters that the file declares (expected id, found ident)"
    ),
    "_queries.find_by_id.fetchone(conn)": "(expected id, found none)",
    "_queries.count_all.fetchval(conn, int, id=1)": "(expected none, found id)",
    "_queries.find_by_idd.fetchone(conn, id=id)": "_queries.find_by_idd names a query that its file does not have",
    "sql.Queries('geoids').nothing": "names a query that its file does not have",
    "getattr(_queries, f'nothing_{id}')": "names a query that its file does not have",
    "getattr(_queries, f'similar_{id}').fetchall(conn, vector=id, other=1)": "geoids.similar_full: the call does not",
    "_queries.copy_in.execute(conn)": "geoids.copy_in: a COPY is run by its method copy",
    "_queries.count_all.fetchval(conn, str)": "fetchval is given another type than the note `returns` (expected int, ",
    "_queries.find_by_ids.fetchall(conn, GeoidSummary, ids=id)": (
        "the rows are made into another dataclass than the note says (expected Geoid, found GeoidSummary)"
    ),
    "_all(conn, GeoidSummary, _queries.find_by_ids)": "(expected Geoid, found GeoidSummary)",
    "_queries.find_by_id.fetchone(conn, **{'idd': id})": "(expected id, found idd)",
    "_queries.find_by_id.fetchone(conn, **given())": "(expected id, found ident)",
}


def called(folder: Path, call: str) -> list[str]:
    (folder / "code.py").write_text(
        "from kimera_sql import sql\n_queries = sql.Queries('geoids')\n\n\n"
        "def given():\n    return {'ident': 1}\n\n\n"
        f"def run(conn, id, where):\n    rows = {call}\n    return rows\n"
    )
    statements = {one.name: one for one in sql.statements("postgres", "geoids").values()}
    return [str(fault) for fault in calls.check(folder, statements)]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_passes_what_the_file_declares(tmp_path: Path, call: str) -> None:
    fault, *_ = called(tmp_path, call)
    assert fault.startswith(f"{tmp_path}/code.py:10:")
    assert CALLS[call] in fault


@pytest.mark.parametrize(
    "call",
    [
        "_queries.find_by_id.fetchone(conn, id=id)",
        "_queries.find_by_id.fetchone(conn, **{'id': id})",
        "_queries.find_by_id.fetchone(conn, **where)",
        "_queries.stream_all.stream(conn, chunk=10)",
        "_queries.find_by_ids.fetchall(conn, Geoid, ids=id)",
        "getattr(_queries, f'{id}_all')",
    ],
)
def test_a_right_call_has_no_fault(tmp_path: Path, call: str) -> None:
    assert called(tmp_path, call) == []


def test_the_shipped_queries_have_no_fault(server: Server) -> None:
    conninfo = server.create()
    try:
        with psycopg.connect(conninfo) as conn:
            assert [str(fault) for fault in verify.verify(conn).faults] == []
    finally:
        server.drop(conninfo)


def test_the_shipped_queries_and_the_code_are_those_of_the_snapshot() -> None:
    assert [str(fault) for fault in verify.verify(None).faults] == []


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
        verify.verify(conn)
        # The transaction that the caller is in goes on.
        assert state(conn) == before
        conn.rollback()
        assert state(conn) == before


def test_it_holds_nobody_up(database: str) -> None:
    with psycopg.connect(database) as other, psycopg.connect(database) as conn:
        other.execute("LOCK TABLE geoid_states IN ACCESS EXCLUSIVE MODE")
        assert [str(fault) for fault in verify.verify(conn).faults] == []


def test_a_role_that_may_make_no_schema_is_told_what_to_do(database: str) -> None:
    with psycopg.connect(database) as conn:
        conn.execute("CREATE ROLE kimera_reader")
        conn.execute("SET LOCAL ROLE kimera_reader")
        with pytest.raises(SchemaError, match=r"GRANT CREATE ON DATABASE"):
            verify.verify(conn)
        conn.rollback()


def test_a_database_that_is_only_read_is_told_so(conn_newest: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "dreams.sql").write_text(GOOD)
    conn_newest.read_only = True
    with pytest.raises(SchemaError, match=r"it needs a server that can be written to"):
        verify.verify(conn_newest, tmp_path, RECORDS)


def test_sqlite_is_no_server(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedByServer, match=r"connect to a server$"):
        verify.verify(sqlite3.connect(":memory:"), tmp_path)


def test_a_folder_without_queries_is_a_query_error(tmp_path: Path, conn_newest: psycopg.Connection) -> None:
    with pytest.raises(QueryError, match=r"has no \.sql files"):
        verify.verify(conn_newest, tmp_path)
    with pytest.raises(QueryError, match=r"has no \.sql files"):
        verify.verify(conn_newest, tmp_path / "nothing")


def test_a_file_that_is_not_text_is_a_fault(tmp_path: Path, conn_newest: psycopg.Connection) -> None:
    (tmp_path / "dreams.sql").write_bytes(b"-- name: a()\n\xff")
    (fault,) = found(conn_newest, tmp_path)
    assert "the file cannot be read" in fault


@pytest.fixture
def conn_newest(newest: Server) -> Any:
    conninfo = newest.create(template=newest.template)
    with psycopg.connect(conninfo) as conn:
        add_adapters(conn)
        yield conn
    newest.drop(conninfo)


@pytest.fixture
def kept(conn_newest: psycopg.Connection, tmp_path: Path) -> Path:
    """A folder with a query and its snapshot."""
    folder = tmp_path / "queries"
    folder.mkdir()
    (folder / "dreams.sql").write_text(GOOD)
    report = verify.verify(conn_newest, folder, RECORDS, update=True)
    assert (report.faults, report.written) == ((), (str(folder / "snapshot.txt"),))
    return folder


def test_the_snapshot_is_readable_and_settles(kept: Path, conn_newest: psycopg.Connection) -> None:
    text = (kept / "snapshot.txt").read_text()
    head, *lines = text.split("\n\n")[1].splitlines()
    assert head.startswith("postgres dreams.by_phase ")
    assert lines == [
        "    takes phase text",
        "    takes limit int8",
        "    gives id uuid",
        "    gives timestamp timestamptz",
        "    gives entropy float8",
    ]
    assert verify.verify(conn_newest, kept, RECORDS, update=True).written == ()
    assert found(None, kept) == found(conn_newest, kept) == []


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DESC, id", "DESC", "its text was changed after the snapshot was written"),
        ("by_phase(", "of_phase(", "the snapshot does not have it"),
        ("by_phase(phase, limit)", "by_phase(limit, phase)", "its text was changed after the snapshot was written"),
        ("limit)\n", "limit)^\n", "its interface is not that of the snapshot"),
        ("returns: Dream", "returns: Strict", "the columns are not the fields of Strict"),
        ("-- returns: Dream\n", "-- returns: id UUID, timestamp str, entropy float\n", "timestamp is timestamptz"),
        ("-- returns", "-- return", "is no note"),
        ("'phase'", "'%'", "psycopg reads a single %"),
    ],
)
def test_offline_a_change_is_found(kept: Path, old: str, new: str, message: str) -> None:
    change(kept / "dreams.sql", old, new)
    assert any(message in fault for fault in found(None, kept))


def test_offline_a_query_that_is_gone_is_found(kept: Path) -> None:
    (kept / "dreams.sql").write_text(query("SELECT 1 AS a", "returns: int", name="other()$"))
    assert any("dreams.by_phase: the snapshot has it for postgres, and it is gone" in one for one in found(None, kept))


def test_a_change_of_the_tables_is_found(kept: Path, conn_newest: psycopg.Connection) -> None:
    conn_newest.execute("ALTER TABLE geoid_states ALTER COLUMN entropy TYPE REAL")
    (fault,) = found(conn_newest, kept)
    assert "(expected gives entropy float8, found gives entropy float4)" in fault


def test_offline_needs_a_snapshot(kept: Path) -> None:
    (kept / "snapshot.txt").unlink()
    with pytest.raises(QueryError, match=r"there is no .*snapshot\.txt to compare with"):
        verify.verify(None, kept, RECORDS)
    with pytest.raises(QueryError, match=r"update it with one"):
        verify.verify(None, kept, RECORDS, update=True)


def test_a_damaged_snapshot_is_a_query_error(kept: Path) -> None:
    change(kept / "snapshot.txt", "    takes", "    take")
    with pytest.raises(QueryError, match=r"snapshot\.txt:5: '    take phase text' is not as"):
        verify.verify(None, kept, RECORDS)


def test_with_a_fault_nothing_is_written(kept: Path, conn_newest: psycopg.Connection) -> None:
    before = (kept / "snapshot.txt").read_text()
    change(kept / "dreams.sql", "geoid_states", "geoids")
    report = verify.verify(conn_newest, kept, RECORDS, update=True)
    assert len(report.faults) == 1
    assert report.written == ()
    assert (kept / "snapshot.txt").read_text() == before


# What the guide shows a user
GUIDE_SQL, GUIDE_RECORDS, GUIDE_QUERIES = re.findall(
    r"```(?:sql|python)\n(.*?)```",
    (Path(__file__).parent.parent / "docs/queries.md").read_text().partition("## A query of your own")[2],
    re.DOTALL,
)[:3]

USE = """\
from uuid import UUID
import psycopg
from queries import queries

def ids(conn: psycopg.Connection) -> list[UUID]:
    return [dream.id for dream in queries.dreams.by_phase(conn, phase="rem", limit=10)]
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """What a user writes: a query, its dataclass, and the line that loads it."""
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql/dreams.sql").write_text(GUIDE_SQL)
    (tmp_path / "records.py").write_text(GUIDE_RECORDS)
    (tmp_path / "queries.py").write_text(GUIDE_QUERIES)
    (tmp_path / "use.py").write_text(USE)
    return tmp_path


def command(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KIMERA_", "DATABASE_"))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**kept, **variables}, capture_output=True, text=True, check=False
    )


CLI: Final = ("-c", "import sys; from kimera_sql.cli import main; sys.exit(main())")
VERIFY: Final = (*CLI, "verify", "sql", "--records", "records", "--stub", "queries.pyi")


def test_a_query_of_ones_own_is_typed_verified_and_runs(app: Path, database: str) -> None:
    updated = command(app, *VERIFY, "--update", DATABASE_URL=database)
    assert (updated.returncode, updated.stderr) == (0, "")
    assert updated.stdout.splitlines()[-1] == "1 queries, no fault against the server"
    assert {path.name for path in (app / "sql").iterdir()} == {"dreams.sql", "snapshot.txt"}
    assert command(app, *VERIFY, "--offline").returncode == 0
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        geoids.insert(
            conn,
            replace(STATE, metadata={"phase": "rem"}),
        )
    script = (
        "import sys, psycopg\nfrom use import queries\nwith psycopg.connect(sys.argv[1]) as conn:\n"
        "    (dream,) = queries.dreams.by_phase(conn, phase='rem', limit=10)\n"
        "    print(type(dream).__name__, dream.entropy)\n"
    )
    ran = command(app, "-c", script, database)
    assert (ran.stdout, ran.stderr) == ("Dream 0.5\n", "")


def test_the_stub_gives_a_type_checker_the_functions(app: Path, database: str) -> None:
    assert command(app, *VERIFY, "--update", DATABASE_URL=database).returncode == 0
    stub = (app / "queries.pyi").read_text()
    assert "    def by_phase(self, conn: Connection, /, *, phase: str, limit: int) -> list[Dream]:\n" in stub
    checked = command(app, "-m", "mypy", "--strict", "use.py", "queries.pyi")
    assert checked.returncode == 0, checked.stdout
    change(app / "use.py", "phase=", "phases=")
    change(app / "use.py", "limit=10", "limit='10'")
    checked = command(app, "-m", "mypy", "--strict", "use.py")
    assert 'Unexpected keyword argument "phases"' in checked.stdout
    change(app / "queries.pyi", "limit: int", "limit: str")
    stale = command(app, *VERIFY, "--offline")
    assert stale.returncode == 1
    assert "queries.pyi:" in stale.stdout
    assert "the stub is not what the queries give" in stale.stdout


def test_every_kind_of_result_has_a_type_in_the_stub(conn_newest: psycopg.Connection, tmp_path: Path) -> None:
    folder = tmp_path / "sql"
    folder.mkdir()
    (folder / "dreams.sql").write_text(
        query("SELECT id, timestamp, entropy FROM geoid_states WHERE id = :id", "returns: Dream", name="one(id)^")
        + query("SELECT count(*) AS count FROM geoid_states", "returns: int", name="count()$")
        + query("SELECT creation_context FROM geoid_states", "returns: str | None", name="contexts()")
        + query("SELECT id, timestamp, entropy, 1 AS n FROM geoid_states", "returns: Dream, n int", name="ranked()")
        + query("SELECT 1 AS a, metadata FROM geoid_states", "returns: a int, metadata dict", name="pairs()")
        + query("SELECT 1 AS a", name="untold()$")
        + query("DELETE FROM geoid_states WHERE timestamp < :before AND tags @> :tags", name="prune(before, tags)!",)
        + query("UPDATE geoid_states SET entropy = :entropy, metadata = :metadata", "takes: NewDream",
                name="change(entropy, metadata)!")
        + query("SELECT id FROM geoid_states WHERE :since::timestamptz IS NULL OR timestamp > :since", "returns: UUID",
                "takes: since datetime | None", name="since(since)")
        + query("COPY system_metrics (metric_name) FROM STDIN (FORMAT BINARY)", "types: text", name="into()#")
    )  # fmt: skip
    report = verify.verify(conn_newest, folder, RECORDS, stub=tmp_path / "queries.pyi", update=True)
    assert [str(fault) for fault in report.faults] == []
    stub = (tmp_path / "queries.pyi").read_text()
    for signature in (
        "one(self, conn: Connection, /, *, id: UUID) -> Dream | None",
        "count(self, conn: Connection, /) -> int | None",
        "contexts(self, conn: Connection, /) -> list[str | None]",
        "ranked(self, conn: Connection, /) -> list[tuple[Dream, int]]",
        "pairs(self, conn: Connection, /) -> list[tuple[int, dict[str, Any]]]",
        "untold(self, conn: Connection, /) -> Any",
        "prune(self, conn: Connection, /, *, before: datetime, tags: list[str]) -> int",
        "change(self, conn: Connection, /, *, entropy: float, metadata: dict[str, Any]) -> int",
        "since(self, conn: Connection, /, *, since: datetime | None) -> list[UUID]",
    ):
        assert f"    def {signature}:\n" in stub
    assert "    into: Query\n" in stub
    compile(stub, "queries.pyi", "exec")


def test_the_command_tells_all_faults_and_exits_with_1(app: Path, database: str) -> None:
    change(app / "sql/dreams.sql", "entropy FROM", "entropie FROM")
    plain = command(app, *VERIFY, DATABASE_URL=database)
    assert (plain.returncode, plain.stderr) == (1, "")
    assert plain.stdout.startswith('sql/dreams.sql:4:12: by_phase: the server refuses it: column "entropie" does not')
    assert plain.stdout.endswith("1 queries, 1 fault against the server\n")
    told = command(app, *VERIFY, "--json", DATABASE_URL=database)
    assert told.returncode == 1
    (fault,) = json.loads(told.stdout)["faults"]
    assert (fault["file"], fault["line"], fault["column"], fault["query"]) == ("sql/dreams.sql", 4, 12, "by_phase")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "nothing"), "kimera-sql: nothing has no .sql files"),
        (("verify", "sql", "--records", "nowhere"), "kimera-sql: --records nowhere: No module named 'nowhere'"),
        (("verify", "sql", "--offline"), "kimera-sql: there is no sql/snapshot.txt to compare with"),
        (("verify", "sql", "--offline", "--update"), "kimera-sql: the snapshot is written from what a server says"),
        (("verify", "--stub", "queries.pyi"), "kimera-sql: a stub is for a folder of queries of your own: name it"),
        (("queries", "nothing"), "kimera-sql: nothing has no .sql files"),
        (("verify", "sql/dreams.sql"), "kimera-sql: sql/dreams.sql has no .sql files"),
        (
            ("verify", "sql", "--records", "records", "--stub", "no/where.pyi", "--update"),
            "kimera-sql: no/where.pyi cannot be written: No such file or directory",
        ),
    ],
)
def test_a_wrong_command_says_why(app: Path, database: str, arguments: tuple[str, ...], said: str) -> None:
    ran = command(app, *CLI, *arguments, DATABASE_URL=database)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(said)


def test_verify_takes_no_sqlite_file_for_a_server(tmp_path: Path) -> None:
    ran = command(tmp_path, *CLI, "verify")
    assert ran.returncode == 1
    assert ran.stderr.startswith("kimera-sql: no database")
    assert list(tmp_path.iterdir()) == []


def test_the_queries_are_listed() -> None:
    ran = run("queries")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "geoids.vector_of(id)$ -> Vector\n    The vector of a state.\n" in ran.stdout
    assert "geoids.copy_in()#\n    Add many states.\n" in ran.stdout
    assert "(postgres alone)" in ran.stdout
    listed = {one["name"]: one for one in json.loads(run("queries", "--json").stdout)}
    assert listed["metrics.prune"]["parameters"] == ["older_than", "batch"]
    assert listed["metrics.prune"]["dialects"] == ["postgres", "sqlite"]


FIXTURE_TEST = """\
def test_queries(kimera_verify):
    kimera_verify("sql", "records"{conninfo})
"""


def test_the_fixture_fails_a_test_with_every_fault(app: Path, database: str) -> None:
    pytest_ = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_app.py")
    (app / "test_app.py").write_text(FIXTURE_TEST.format(conninfo=f", conninfo={database!r}"))
    passed = command(app, *pytest_)
    assert passed.returncode == 0, passed.stdout
    change(app / "sql/dreams.sql", "entropy FROM", "entropie FROM")
    failed = command(app, *pytest_)
    assert failed.returncode == 1
    assert "sql/dreams.sql:4:12: by_phase: the server refuses it" in failed.stdout
    (app / "test_app.py").write_text(FIXTURE_TEST.format(conninfo=""))
    assert "there is no sql/snapshot.txt" in command(app, *pytest_).stdout


def test_the_fixture_compares_with_the_snapshot(kimera_verify: Verify, kept: Path) -> None:
    kimera_verify(kept, RECORDS)
    change(kept / "dreams.sql", "DESC, id", "DESC")
    with pytest.raises(pytest.fail.Exception, match="its text was changed"):
        kimera_verify(kept, RECORDS)


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
    with pytest.raises(AttributeError, match=r"has no nightmares\.sql; there are dreams$"):
        sql.load(tmp_path, RECORDS).nightmares  # noqa: B018
    assert dir(sql.load(tmp_path, RECORDS)) == ["dreams"]


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


def test_loading_what_is_wrong_is_a_query_error(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"has no \.sql files"):
        sql.load(tmp_path)
    (tmp_path / "dreams.sql").write_text(query("SELECT 1 AS a", "returns: Dreem"))
    with pytest.raises(
        QueryError, match=r"^dreams\.sql \(postgres\): one: returns: test_verify has no dataclass Dreem$"
    ):
        sql.load(tmp_path, RECORDS)
    sql.statements.cache_clear()
    (tmp_path / "dreams.sql").write_text(query("SELECT 1 AS a", name="one()<!"))
    with pytest.raises(QueryError, match=r"the suffix must be one of"):
        sql.load(tmp_path, RECORDS)


def test_a_shipped_query_can_be_called(conn: sql.Connection) -> None:
    queries = sql.Queries("geoids", records=geoids)
    saved = geoids.insert(conn, STATE)
    assert queries.find_by_id(conn, id=saved.id) == saved
    assert queries.count_all(conn) == 1
    assert embeddings.count(conn) == 0


def test_the_shipped_schema_has_files_for_both_dialects() -> None:
    for dialect in ("postgres", "sqlite"):
        assert list((sql.shipped("schema") / dialect).glob("0001_*.sql"))


def test_a_shipped_index_that_cannot_serve_is_found(
    monkeypatch: pytest.MonkeyPatch, conn_newest: psycopg.Connection, tmp_path: Path
) -> None:
    shutil.copytree(sql.shipped("queries"), tmp_path / "queries")
    order = "geoid_states.state_vector::halfvec(1024) <=> :vector::halfvec(1024)"
    change(tmp_path / "queries/postgres/geoids.sql", f"ORDER BY {order}", f"ORDER BY 1 - ({order}) DESC")
    shipped: Callable[[str], Path] = sql.shipped
    moved = lambda folder: tmp_path / folder if folder == "queries" else shipped(folder)  # noqa: E731
    monkeypatch.setattr("kimera_sql.sql.files.shipped", moved)
    monkeypatch.setattr(sql, "shipped", moved)
    faults = [str(fault) for fault in verify.verify(conn_newest).faults]
    assert any("similar_half: its plan does not use idx_geoid_vector_hnsw_half" in fault for fault in faults)
