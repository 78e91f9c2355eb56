"""verify: each kind of fault is planted and found, and what is right passes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psycopg
import pytest
from fix_verify import GOOD, RECORDS, both, found, planted, query

from kimera_sql.verify import Skipped, verify_queries

pytestmark = [pytest.mark.slow, pytest.mark.ends]

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
        "returns: fix_verify has no dataclass Dreem",
    ),
    "no dataclass": (
        query("SELECT id FROM geoid_states", "returns: @@NoRecord"),
        "returns: fix_verify.NoRecord is not a dataclass",
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
    "plan that JIT compiles": (
        query(
            "SELECT id FROM geoid_states, generate_series(1, 100000000) WHERE entropy = 1 "
            "ORDER BY state_vector <=> :vector, id LIMIT 5",
            "returns: UUID",
            "uses: @@idx_geoid_entropy",
            name="one(vector)",
        ),
        "it uses idx_geoid_entropy in a plan that a server with JIT compiles (expected a cost of at most 100,000, ",
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
    faults = verify_queries(pg_conn, tmp_path, RECORDS).faults
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
    report = verify_queries(pg_conn, tmp_path, RECORDS)
    assert [str(fault) for fault in report.faults] == []
    assert report.queries == 9
    assert report.skipped == (Skipped("dreams.skipped", "the extension nothing"),)


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
