"""The list of tables says what the catalogue of a migrated database says."""

from __future__ import annotations

import importlib
import re

import pytest
from fix_servers import NAMES as SERVERS

from kimera_sql import sql
from kimera_sql.errors import InvalidValue
from kimera_sql.sql import Connection, is_postgres
from kimera_sql.tables import BOOKKEEPING, NAMES, TABLES, VECTOR_TABLES, Table, with_vectors
from kimera_sql.vectors import DIMENSIONS

# The catalogue is asked: once a database, not once a twin.
each_database = pytest.mark.parametrize("conn", [*SERVERS, "sqlite"], indirect=True)


def tables(conn: Connection) -> set[str]:
    if is_postgres(conn):
        statement = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    else:
        statement = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    return {name for (name,) in conn.execute(statement)}


def vectors(conn: Connection) -> set[tuple[str, str, int]]:
    """Every column of vectors: its table, its name and its dimensions."""
    if is_postgres(conn):
        statement = (
            "SELECT relname, attname, atttypmod FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
            " WHERE atttypid = 'vector'::regtype AND relkind = 'r'"
        )
        return set(conn.execute(statement))
    # A vector is a BLOB whose length the table checks, four bytes a component.
    created = conn.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
    return {
        (table, column, int(length) // 4)
        for table, text in created
        for column, length in re.findall(r"(\w+) BLOB NOT NULL CHECK \(length\(\1\) = (\d+)", text)
    }


def references(conn: Connection) -> set[tuple[str, str]]:
    """The table and the one it refers to, of every foreign key."""
    if is_postgres(conn):
        statement = "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint WHERE contype = 'f'"
    else:
        statement = (
            "SELECT name, keys.\"table\" FROM sqlite_schema, pragma_foreign_key_list(name) AS keys WHERE type = 'table'"
        )
    return set(conn.execute(statement))


@each_database
def test_every_table_is_listed_and_every_listed_table_is_there(conn: Connection) -> None:
    # SQLite has no vector indexes to keep books of, and no renewals.
    bookkeeping = BOOKKEEPING if is_postgres(conn) else ("kimera_migrations", "kimera_models")
    assert tables(conn) == {*NAMES, *bookkeeping}
    assert len(NAMES) == len(set(NAMES))


@each_database
def test_every_column_of_vectors_is_listed_and_has_1024_dimensions(conn: Connection) -> None:
    listed = {(table.name, table.vector, DIMENSIONS) for table in VECTOR_TABLES.values()}
    if is_postgres(conn):
        listed.add(("kimera_sampled_searches", "query", DIMENSIONS))
    assert vectors(conn) == listed


@each_database
def test_foreign_keys_lead_to_tables_that_are_listed_before(conn: Connection) -> None:
    found = {(one, other) for one, other in references(conn) if one in NAMES}
    assert found
    for one, other in found:
        assert NAMES.index(other) < NAMES.index(one)


@pytest.mark.parametrize("table", TABLES, ids=NAMES)
def test_an_entity_is_a_module_with_queries_in_both_dialects(table: Table) -> None:
    assert importlib.import_module(f"kimera_sql.{table.entity}").entity
    assert all(sql.statements(dialect, table.entity) for dialect in ("postgres", "sqlite"))


@pytest.mark.parametrize("name", ["portal_configurations", "GEOID_STATES", "", None])
def test_a_table_without_vectors_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"^table: expected one of geoid_states, semantic_embeddings, got "):
        with_vectors(name)
