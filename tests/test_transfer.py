"""Copying a database into another, between SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from commands import run
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import seconds
from strategies import new_embeddings, new_geoids, new_metrics, new_portals, unit

from kimera_sql import CopyError, SqlitePool, add_adapters, embeddings, geoids, metrics, migrate, portals, transitions
from kimera_sql.sql import Connection
from kimera_sql.transfer import Copied, copy

MODULES = (geoids, transitions, embeddings, portals, metrics)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqlitePool(tmp_path / "kimera.db") as pool, pool.connection() as conn:
        migrate(conn)
    return tmp_path / "kimera.db"


@pytest.fixture
def file(path: Path) -> Iterator[Connection]:
    with SqlitePool(path) as pool, pool.connection() as conn:
        yield conn


@pytest.fixture
def server_conn(database: str) -> Iterator[Connection]:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        yield conn


def fill(conn: Connection) -> None:
    states = [
        geoids.NewGeoid(
            state_vector=unit(number),
            entropy=number / 7,
            coherence_factor=-0.0,
            energy_level=1e300,
            metadata={"number": number, "float": 1e22, "deep": [{"text": "ä"}, None, True]},
            creation_context="" if number % 2 else None,
            tags=["a", "b"][: number % 3],
            timestamp=seconds(number / 7),
            id=UUID(int=number),
        )
        for number in range(1500)
    ]
    geoids.insert_many(conn, states)
    transitions.insert_many(
        conn,
        [
            transitions.NewTransition(
                source_id=UUID(int=number),
                target_id=UUID(int=number + 1),
                transition_energy=0.1,
                conservation_error=1e-17,
                transition_type="next",
                timestamp=seconds(number / 3),
            )
            for number in range(1499)
        ],
    )
    embeddings.insert(conn, embeddings.NewEmbedding(text_content="a\nb", embedding=unit(7), source="s"))
    portals.insert(
        conn,
        portals.NewPortal(source_dimension=1, target_dimension=-2, radius=1, energy_requirement=0, stability_factor=3),
    )
    for number in range(3):
        metrics.record(conn, "number", number, component="test")
    conn.commit()


def everything(conn: Connection) -> list[list[Any]]:
    return [list(module.stream(conn)) for module in MODULES]


def there_and_back(source: Connection, target: Connection) -> None:
    fill(source)
    copied = copy(source, target)
    target.commit()
    assert [(table.table, table.rows, table.skipped) for table in copied] == [
        ("geoid_states", 1500, 0),
        ("cognitive_transitions", 1499, 0),
        ("semantic_embeddings", 1, 0),
        ("portal_configurations", 1, 0),
        ("system_metrics", 3, 0),
    ]
    assert everything(target) == everything(source)


def test_sqlite_to_postgres(file: Connection, server_conn: Connection) -> None:
    there_and_back(file, server_conn)
    assert metrics.record(server_conn, "number", 9, component="test").id == 4


def test_postgres_to_sqlite(file: Connection, server_conn: Connection) -> None:
    there_and_back(server_conn, file)
    assert metrics.record(file, "number", 9, component="test").id == 4


def test_ids_that_are_there_are_refused_and_nothing_is_copied(file: Connection, server_conn: Connection) -> None:
    state = geoids.insert(file, geoids.NewGeoid(state_vector=unit(1), entropy=0, coherence_factor=0, energy_level=0))
    metrics.record(file, "number", 1, component="test")
    file.commit()
    metrics.record(server_conn, "another", 1, component="test")
    server_conn.commit()
    with pytest.raises(CopyError, match="system_metrics: the target has the id 1 already"):
        copy(file, server_conn)
    assert geoids.get_many(server_conn, [state.id]) == []


def test_rows_that_are_there_are_skipped_where_told(file: Connection, server_conn: Connection) -> None:
    fill(file)
    copy(file, server_conn)
    later = metrics.record(file, "number", 4, component="test")
    file.commit()
    again = copy(file, server_conn, skip_existing=True)
    assert [(table.rows, table.skipped) for table in again] == [(0, 1500), (0, 1499), (0, 1), (0, 1), (1, 3)]
    assert metrics.get(server_conn, later.id) == later


def test_an_empty_database_is_copied(file: Connection, server_conn: Connection) -> None:
    assert {table.rows for table in copy(file, server_conn)} == {0}
    assert metrics.record(server_conn, "first", 1, component="test").id <= 2


def test_a_row_that_arrives_otherwise_is_an_error(file: Connection, server_conn: Connection) -> None:
    assert isinstance(server_conn, psycopg.Connection)
    fill(file)
    server_conn.execute(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.metric_value = NEW.metric_value + 1; RETURN NEW; END $$"
    )
    server_conn.execute(
        "CREATE TRIGGER spoil BEFORE INSERT ON system_metrics FOR EACH ROW WHEN (NEW.id = 2) EXECUTE FUNCTION spoil()"
    )
    with pytest.raises(CopyError, match="system_metrics: the rows that arrived are not those that were sent"):
        copy(file, server_conn)
    assert geoids.count(server_conn) == 0


@pytest.fixture(params=["to PostgreSQL", "to SQLite"])
def ends(request: pytest.FixtureRequest, file: Connection, server_conn: Connection) -> tuple[Connection, Connection]:
    """A source that has a metric and a table of its user, and a target; in both directions."""
    source, target = (file, server_conn) if request.param == "to PostgreSQL" else (server_conn, file)
    metrics.record(source, "number", 1, component="test")
    source.execute("CREATE TABLE dreams (id INTEGER)")
    source.commit()
    return source, target


def test_an_unknown_table_is_refused_by_name_and_nothing_is_copied(ends: tuple[Connection, Connection]) -> None:
    source, target = ends
    with pytest.raises(CopyError, match=r"^dreams: not known to .*\(--leave-out TABLE\); nothing was copied$"):
        copy(source, target)
    assert everything(target) == [[]] * 5


def test_all_unknown_tables_are_named_but_those_left_out(ends: tuple[Connection, Connection]) -> None:
    source, target = ends
    source.execute("CREATE TABLE moods (id INTEGER)")
    source.execute("CREATE TABLE words (id INTEGER)")
    source.commit()
    with pytest.raises(CopyError, match=r"^dreams, moods, words: "):
        copy(source, target)
    with pytest.raises(CopyError, match=r"^dreams, words: "):
        copy(source, target, leave_out=["moods"])
    assert everything(target) == [[]] * 5


def test_a_table_that_is_left_out_lets_the_rest_go(ends: tuple[Connection, Connection]) -> None:
    source, target = ends
    copied = copy(source, target, leave_out=["dreams"])
    assert [table.rows for table in copied] == [0, 0, 0, 0, 1]
    assert everything(target) == everything(source)
    with pytest.raises((psycopg.errors.UndefinedTable, sqlite3.OperationalError), match="dreams"):
        target.execute("SELECT id FROM dreams")


@settings(max_examples=10)
@given(data=st.data())
def test_whatever_a_database_holds_arrives_as_it_is(
    data: st.DataObject, file: Connection, server_conn: Connection
) -> None:
    for module, items in (
        (geoids, new_geoids),
        (embeddings, new_embeddings),
        (portals, new_portals),
        (metrics, new_metrics),
    ):
        drawn: list[Any] = data.draw(st.lists(items, max_size=3))
        module.insert_many(file, [replace(item, **fresh(item)) for item in drawn])
    file.commit()
    copied: list[Copied] = copy(file, server_conn)
    assert sum(table.rows for table in copied) == sum(len(rows) for rows in everything(file))
    server_conn.rollback()


def fresh(item: Any) -> dict[str, None]:
    """What makes *item* insertable beside any other: no id of its own."""
    return {"id": None} if hasattr(item, "id") else {}


def command(path: Path, database: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("copy", *arguments, KIMERA_SQLITE_PATH=str(path), DATABASE_URL=database)


def test_the_command_moves_a_development_database(path: Path, file: Connection, empty_database: str) -> None:
    fill(file)
    moved = command(path, empty_database, "--from", "sqlite", "--to", "postgres")
    assert (moved.returncode, moved.stderr) == (0, "")
    assert "geoid_states                1,500 copied          0 skipped" in moved.stdout
    with psycopg.connect(empty_database) as conn:
        add_adapters(conn)
        assert everything(conn) == everything(file)
    again = command(path, empty_database, "--from", "sqlite", "--to", "postgres")
    assert again.returncode == 1
    assert "the target has the id" in again.stderr
    skipped = command(path, empty_database, "--from", "sqlite", "--to", "postgres", "--skip-existing")
    assert skipped.returncode == 0


@pytest.mark.parametrize(("source", "target"), [("sqlite", "postgres"), ("postgres", "sqlite")])
def test_the_command_leaves_out_what_it_is_told_to(path: Path, database: str, source: str, target: str) -> None:
    arguments = ("--from", source, "--to", target)
    with sqlite3.connect(path) as file, psycopg.connect(database) as server:
        (file if source == "sqlite" else server).execute("CREATE TABLE dreams (id INTEGER)")
    file.close()
    refused = command(path, database, *arguments)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("kimera-sql: dreams: not known to kimera_sql")
    moved = command(path, database, *arguments, "--leave-out", "dreams")
    assert (moved.returncode, moved.stderr) == (0, "")
    assert "geoid_states                    0 copied          0 skipped" in moved.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "sqlite", "--to", "sqlite"), "--from and --to are both sqlite"),
        (("--from", "sqlite", "--to", "postgres"), "there is no SQLite file"),
    ],
)
def test_the_command_refuses_what_cannot_be(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    ran = command(tmp_path / "missing.db", "postgresql://localhost:1/kimera", *arguments)
    assert ran.returncode == 1
    assert said in ran.stderr
    assert not (tmp_path / "missing.db").exists()
