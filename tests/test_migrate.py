"""Schema files are applied once, in order, by any number of processes, and make the specification's schema."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from fix_connections import BOTH_TWINS, to_own_database
from fix_servers import Server
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from kimera_sql import SchemaError, drift, migrate, migrations, portals, sql
from kimera_sql.migrations import pending
from kimera_sql.vectors import DIMENSIONS

Connection = psycopg.Connection[Any]

ROOT = Path(__file__).parent.parent
NAMES = [
    "0001_extensions.sql",
    "0002_tables.sql",
    "0003_indexes.sql",
    "0004_vector_indexes.sql",
    "0005_upkeep.sql",
    "0006_index_files.sql",
    "0007_sampled_searches.sql",
    "0008_models.sql",
    "0009_bounds.sql",
]


@pytest.fixture
def conn(pg_conn: Connection) -> Connection:
    return pg_conn


@pytest.fixture(params=BOTH_TWINS)
def fresh(request: pytest.FixtureRequest, start: Callable[[str], Server]) -> Iterator[Any]:
    """A connection to a database of the test's own, with nothing in it."""
    with to_own_database(request.param, start, empty=True) as conn:
        yield conn


@pytest.fixture
def bare(empty_database: str) -> Iterator[Connection]:
    """A connection to the database of empty_database."""
    with psycopg.connect(empty_database) as conn:
        yield conn


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """A copy of the shipped schema that a test may change."""
    shutil.copytree(sql.shipped("schema"), tmp_path / "schema")
    return tmp_path / "schema"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A schema of two files."""
    folder = tmp_path / "small"
    write(folder, "0001_one.sql", "CREATE TABLE one (id INTEGER);")
    write(folder, "0003_three.sql", "CREATE TABLE three (id INTEGER);")
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / "postgres" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def recorded(conn: Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT name FROM kimera_migrations ORDER BY applied_at, name")]


def exists(conn: Connection, table: str) -> bool:
    row = conn.execute("SELECT to_regclass(%s) IS NOT NULL", [table]).fetchone()
    assert row is not None
    return bool(row[0])


def test_files_are_applied_in_order_and_recorded(fresh: Connection) -> None:
    assert migrate(fresh) == NAMES
    assert recorded(fresh) == NAMES


@pytest.mark.ends
def test_rows_with_longer_texts_than_new_ones_may_have_stay(bare: Connection, schema: Path) -> None:
    (schema / "postgres/0009_bounds.sql").unlink()
    migrate(bare, folder=schema)
    bare.execute(
        """
        INSERT INTO portal_configurations (
            source_dimension, target_dimension, radius, energy_requirement, stability_factor,
            configuration_parameters, status
        )
        VALUES (1, 2, 1, 1, 1, '{}', repeat('a', 3000))
        """
    )
    bare.commit()
    assert migrate(bare) == ["0009_bounds.sql"]
    (portal,) = portals.stream(bare)
    assert portal.status == "a" * 3000
    with pytest.raises(psycopg.errors.CheckViolation), bare.transaction():
        portals.mark_used(bare, portal.id)
    assert migrations.differences(bare) == []
    portals.set_status(bare, portal.id, "active")
    bare.execute("ALTER TABLE portal_configurations VALIDATE CONSTRAINT portal_configurations_status_length")
    assert migrations.differences(bare) == []
    bare.execute("ALTER TABLE portal_configurations DROP CONSTRAINT portal_configurations_status_length")
    (lost,) = migrations.differences(bare)
    assert str(lost) == "portal_configurations lacks the constraint CHECK ((octet_length(status) <= 2000)) NOT VALID"
    bare.execute(drift.statement(lost))
    assert migrations.differences(bare) == []


def test_rows_with_longer_texts_than_new_ones_may_have_stay_in_sqlite(tmp_path: Path, schema: Path) -> None:
    later = (schema / "sqlite/0003_bounds.sql").rename(tmp_path / "later.sql")
    with closing(sqlite3.connect(tmp_path / "file.db")) as conn:
        migrate(conn, folder=schema)
        conn.execute(
            """
            INSERT INTO portal_configurations VALUES (?, 1, 2, 1, 1, 1, '2026-11-27T00:00:00.000000Z', NULL, '{}', ?)
            """,
            [str(uuid4()), "a" * 3000],
        )
        later.rename(schema / "sqlite/0003_bounds.sql")
        conn.commit()
        assert migrate(conn, folder=schema) == ["0003_bounds.sql"]
        (portal,) = portals.stream(conn)
        assert portal.status == "a" * 3000
        portals.mark_used(conn, portal.id)
        with pytest.raises(sqlite3.IntegrityError, match=r"^portal_configurations\.status: longer than 2000 bytes$"):
            conn.execute("UPDATE portal_configurations SET status = status || 'a'")


def test_it_commits_where_the_caller_has_no_transaction(bare: Connection, empty_database: str) -> None:
    migrate(bare)
    with psycopg.connect(empty_database) as other:
        assert recorded(other) == NAMES


def test_it_works_on_an_autocommit_connection(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        assert migrate(conn) == NAMES


def test_the_connection_can_send_and_receive_vectors_afterwards(fresh: Connection) -> None:
    migrate(fresh)
    received = fresh.execute("SELECT %s", [ONES]).fetchone()
    assert received is not None
    assert received[0].tolist() == ONES.tolist()


@pytest.mark.parametrize("sqlstate", ["0A000", "22023", "42501", "58P01", "XX000"])
def test_a_server_that_offers_uuid_ossp_and_refuses_it_is_taken(
    newest: Server, open_folder: Path, sqlstate: str
) -> None:
    folder = open_folder / "extension"
    folder.mkdir()
    (folder / "uuid-ossp.control").write_text("default_version = '1.1'\n")
    (folder / "uuid-ossp--1.1.sql").write_text(
        f"DO $$BEGIN RAISE 'not on the list' USING ERRCODE = '{sqlstate}'; END$$;\n"
    )
    open_folder.chmod(0o755)
    conninfo = newest.create()
    try:
        with psycopg.connect(conninfo) as conn:
            if conn.info.server_version < 180000:
                pytest.skip("extension_control_path is new in PostgreSQL 18")
            conn.execute(f"SET extension_control_path TO '{open_folder}:$system'".encode())
            with pytest.raises(psycopg.Error, match="not on the list") as caught:
                conn.execute('CREATE EXTENSION "uuid-ossp"')
            assert caught.value.sqlstate == sqlstate
            conn.rollback()
            conn.execute(f"SET extension_control_path TO '{open_folder}:$system'".encode())
            conn.commit()
            told: list[str] = []
            conn.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))
            assert migrate(conn) == NAMES
            assert "uuid-ossp was not created, and is not needed: not on the list" in told
    finally:
        newest.drop(conninfo)


def test_a_second_run_applies_nothing(fresh: Connection) -> None:
    migrate(fresh)
    assert migrate(fresh) == []


def test_only_new_files_are_applied(fresh: Connection, small: Path) -> None:
    migrate(fresh, folder=small)
    write(small, "0004_four.sql", "CREATE TABLE four (id INTEGER);")
    assert migrate(fresh, folder=small) == ["0004_four.sql"]


def test_a_file_goes_to_the_server_as_it_is(fresh: Connection, small: Path) -> None:
    write(small, "0004_four.sql", "CREATE TABLE four AS SELECT '100%s :x' AS text; UPDATE four SET text = text || '%';")
    migrate(fresh, folder=small)
    assert fresh.execute("SELECT text FROM four").fetchone() == ("100%s :x%",)


def test_files_of_another_name_are_left_alone(fresh: Connection, small: Path) -> None:
    for name in ("README.md", "0002_two.sql.orig", "02_two.sql", "two.sql"):
        write(small, name, "this is no SQL")
    assert migrate(fresh, folder=small) == ["0001_one.sql", "0003_three.sql"]


def tables(conn: Connection) -> list[str]:
    """Every table of the database, with its schema."""
    found = conn.execute(
        "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname !~ '^(pg_|inf)' ORDER BY 1"
    )
    return [name for (name,) in found]


@pytest.mark.parametrize("place", ["database", "role"])
def test_the_tables_go_where_the_search_path_says(bare: Connection, empty_database: str, place: str) -> None:
    database, role = bare.info.dbname, f"kimera_test_{uuid4().hex}"
    bare.execute(f"CREATE ROLE {role} LOGIN SUPERUSER".encode())
    try:
        bare.execute('CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions; CREATE SCHEMA "Kimera\'s"')
        whose = f"DATABASE {database}" if place == "database" else f"ROLE {role}"
        bare.execute(f"""ALTER {whose} SET search_path = "Kimera's", public, extensions""".encode())
        bare.commit()
        with psycopg.connect(make_conninfo(empty_database, user=role)) as conn:
            assert migrate(conn) == NAMES
            assert migrate(conn) == []
            made = tables(conn)
            assert {name.partition(".")[0] for name in made} == {"Kimera's"}
        with psycopg.connect(empty_database, options="-c search_path=public") as lost:
            for ask in (pending, migrate):
                with pytest.raises(SchemaError) as caught:
                    ask(lost)
                assert str(caught.value) == (
                    'the tables are in schema "Kimera\'s" and pgvector is in schema extensions, which the search_path '
                    'of the role postgres (public) leaves out: ALTER ROLE postgres SET search_path = "Kimera\'s", '
                    "public, extensions (or ALTER DATABASE for all), and connect again"
                )
            assert tables(lost) == made
    finally:
        bare.rollback()
        bare.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())
        bare.commit()


def test_a_role_that_may_not_use_the_schema_makes_no_second_set(bare: Connection, empty_database: str) -> None:
    role = f"kimera_test_{uuid4().hex}"
    bare.execute("CREATE SCHEMA kimera; SET search_path = kimera, public")
    migrate(bare)
    made = tables(bare)
    bare.execute(f"CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}".encode())
    bare.execute(f"ALTER ROLE {role} SET search_path = kimera, public".encode())
    bare.commit()
    try:
        with (
            psycopg.connect(make_conninfo(empty_database, user=role)) as conn,
            pytest.raises(SchemaError, match=f"kimera, which .* may not use: GRANT USAGE ON SCHEMA kimera TO {role}$"),
        ):
            migrate(conn)
        assert tables(bare) == made
    finally:
        bare.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
        bare.commit()


def test_later_files_are_not_applied_beside_the_tables(fresh: Connection, small: Path) -> None:
    migrate(fresh, folder=small)
    fresh.execute("CREATE SCHEMA other; SET search_path = other, public")
    assert migrate(fresh, folder=small) == []
    write(small, "0004_four.sql", "CREATE TABLE four (id INTEGER);")
    with pytest.raises(
        SchemaError, match=r"^the tables are in schema public, .* SET search_path = public, other, public, and connect"
    ):
        migrate(fresh, folder=small)
    fresh.execute("SET search_path = public, other")
    assert migrate(fresh, folder=small) == ["0004_four.sql"]
    assert tables(fresh) == [f"public.{name}" for name in ("four", "kimera_migrations", "one", "three")]


def test_a_folder_without_files_is_refused(fresh: Connection, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no schema files in "):
        migrate(fresh, folder=tmp_path)


def test_tables_that_others_made_are_not_taken_for_ours(fresh: Connection) -> None:
    fresh.execute("CREATE TABLE portal_configurations (id UUID)")
    with pytest.raises(
        SchemaError, match=r"^the database has portal_configurations, which kimera_sql did not make; `k"
    ):
        migrate(fresh)
    assert not exists(fresh, "kimera_migrations")


def test_what_the_tables_lack_is_named(fresh: Connection) -> None:
    migrate(fresh)
    assert migrations.differences(fresh) == []
    fresh.execute("ALTER TABLE geoid_states DROP COLUMN tags; ALTER TABLE system_metrics ADD more TEXT NOT NULL")
    assert [str(one) for one in migrations.differences(fresh)] == [
        "geoid_states has no column tags",
        "system_metrics.more is NOT NULL and has no default, so nothing can be inserted",
    ]


MIGRATE = """
import sys, psycopg
from kimera_sql import migrate
with psycopg.connect(sys.argv[1]) as conn:
    print("ready", flush=True)
    sys.stdin.readline()
    print(*migrate(conn))
"""


def test_of_eight_processes_at_once_each_file_is_applied_by_one(empty_database: str) -> None:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", MIGRATE, empty_database],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(8)
        ]
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=60) for process in processes]
    assert [errors for _, errors in told] == [""] * 8
    assert sorted(name for output, _ in told for name in output.split()) == NAMES
    with psycopg.connect(empty_database) as conn:
        assert recorded(conn) == NAMES


@pytest.mark.parametrize("level", psycopg.IsolationLevel, ids=lambda level: level.name)
def test_those_who_wait_see_what_was_applied_at_any_isolation_level(
    newest: Server, level: psycopg.IsolationLevel
) -> None:
    conninfo = newest.create()
    together = Barrier(3)

    def applied(_: int) -> list[str]:
        with psycopg.connect(conninfo) as conn:
            conn.isolation_level = level
            together.wait(30)
            names = migrate(conn)
            assert conn.isolation_level == level
            return names

    with ThreadPoolExecutor(3) as threads:
        assert sorted(name for names in threads.map(applied, range(3)) for name in names) == NAMES
    newest.drop(conninfo)


def test_a_changed_file_is_refused_by_name(fresh: Connection, schema: Path) -> None:
    migrate(fresh, folder=schema)
    path = schema / "postgres/0002_tables.sql"
    path.write_bytes(path.read_bytes() + b"-- changed\n")
    with pytest.raises(SchemaError, match=r"^0002_tables\.sql was changed after it was applied"):
        migrate(fresh, folder=schema)


def test_other_line_ends_are_no_change(fresh: Connection, schema: Path) -> None:
    migrate(fresh, folder=schema)
    for path in (schema / "postgres").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert migrate(fresh, folder=schema) == []


def test_a_file_that_only_the_database_knows_is_refused_by_name(fresh: Connection, small: Path) -> None:
    migrate(fresh, folder=small)
    (small / "postgres/0003_three.sql").unlink()
    with pytest.raises(SchemaError, match=r"^the database has 0003_three\.sql, which this version lacks"):
        migrate(fresh, folder=small)


def test_a_late_file_with_a_lower_number_is_refused_by_name(fresh: Connection, small: Path) -> None:
    migrate(fresh, folder=small)
    write(small, "0002_two.sql", "CREATE TABLE two (id INTEGER);")
    with pytest.raises(SchemaError, match=r"^0002_two\.sql comes before 0003_three\.sql, which is applied"):
        migrate(fresh, folder=small)
    assert not exists(fresh, "two")


def fail(conn: Connection, folder: Path) -> psycopg.Error:
    write(folder, "0004_four.sql", "CREATE TABLE four (id INTEGER); SELECT 1 / 0;")
    with pytest.raises(psycopg.errors.DivisionByZero) as failed:
        migrate(conn, folder=folder)
    return failed.value


def test_a_failing_file_is_named_in_a_note(fresh: Connection, small: Path) -> None:
    assert fail(fresh, small).__notes__ == ["while applying 0004_four.sql; nothing of it was kept"]


def test_a_failing_file_leaves_nothing_behind_and_those_before_it_stay(fresh: Connection, small: Path) -> None:
    fail(fresh, small)
    assert not exists(fresh, "four")
    assert recorded(fresh) == ["0001_one.sql", "0003_three.sql"]


def test_a_failing_file_can_be_corrected_and_applied(fresh: Connection, small: Path) -> None:
    fail(fresh, small)
    write(small, "0004_four.sql", "CREATE TABLE four (id INTEGER);")
    assert migrate(fresh, folder=small) == ["0004_four.sql"]


def test_a_failing_file_leaves_the_callers_transaction_usable(fresh: Connection, small: Path) -> None:
    with fresh.transaction():
        fresh.execute("CREATE TABLE callers (id INTEGER)")
        fail(fresh, small)
    assert exists(fresh, "callers")


def test_a_rollback_of_the_callers_transaction_takes_all_with_it(fresh: Connection) -> None:
    with fresh.transaction(force_rollback=True):
        assert migrate(fresh) == NAMES
    assert not exists(fresh, "geoid_states")
    assert not exists(fresh, "kimera_migrations")


def test_an_empty_database_has_every_file_pending(fresh: Connection) -> None:
    assert pending(fresh) == NAMES
    assert not exists(fresh, "kimera_migrations")


def test_a_migrated_database_has_no_file_pending(conn: Connection) -> None:
    assert pending(conn) == []


def test_a_file_that_was_not_applied_is_pending(conn: Connection) -> None:
    conn.execute("DELETE FROM kimera_migrations WHERE name = %s", [NAMES[-1]])
    assert pending(conn) == NAMES[-1:]


def test_pending_refuses_a_database_of_a_later_version(conn: Connection) -> None:
    conn.execute("INSERT INTO kimera_migrations (name, checksum) VALUES ('9999_later.sql', '')")
    with pytest.raises(SchemaError, match=r"^the database has 9999_later\.sql"):
        pending(conn)


# The specification's tables: name, type, default. NOT NULL is a fourth item of "spec" where the specification has it,
# and "ours" where only this schema does: timestamps and JSON are never NULL.
ID = ("id", "uuid", "gen_random_uuid()", "spec")
TIMESTAMP = ("timestamp", "timestamp with time zone", "CURRENT_TIMESTAMP", "ours")
METADATA = ("metadata", "jsonb", "'{}'::jsonb", "ours")
NUMBER = "double precision"
TABLES: dict[str, set[tuple[str, str, str | None, str | None]]] = {
    "geoid_states": {
        ID,
        TIMESTAMP,
        ("state_vector", "vector(1024)", None, "spec"),
        METADATA,
        ("entropy", NUMBER, None, "spec"),
        ("coherence_factor", NUMBER, None, "spec"),
        ("energy_level", NUMBER, None, "spec"),
        ("creation_context", "text", None, None),
        ("tags", "text[]", None, None),
    },
    "cognitive_transitions": {
        ID,
        ("source_id", "uuid", None, "spec"),
        ("target_id", "uuid", None, "spec"),
        ("transition_energy", NUMBER, None, "spec"),
        ("conservation_error", NUMBER, None, "spec"),
        ("transition_type", "text", None, "spec"),
        TIMESTAMP,
        METADATA,
    },
    "semantic_embeddings": {
        ID,
        ("text_content", "text", None, "spec"),
        ("embedding", "vector(1024)", None, "spec"),
        TIMESTAMP,
        ("source", "text", None, None),
        METADATA,
    },
    "portal_configurations": {
        ID,
        ("source_dimension", "integer", None, "spec"),
        ("target_dimension", "integer", None, "spec"),
        ("radius", NUMBER, None, "spec"),
        ("energy_requirement", NUMBER, None, "spec"),
        ("stability_factor", NUMBER, None, "spec"),
        ("creation_timestamp", "timestamp with time zone", "CURRENT_TIMESTAMP", "ours"),
        ("last_used_timestamp", "timestamp with time zone", None, None),
        ("configuration_parameters", "jsonb", None, "spec"),
        ("status", "text", None, "spec"),
    },
    "system_metrics": {
        ("id", "bigint", "nextval('system_metrics_id_seq'::regclass)", "spec"),
        TIMESTAMP,
        ("metric_name", "text", None, "spec"),
        ("metric_value", NUMBER, None, "spec"),
        ("component", "text", None, "spec"),
        ("context", "jsonb", "'{}'::jsonb", "ours"),
    },
}

KEYS = {
    ("geoid_states", "PRIMARY KEY (id)"),
    ("cognitive_transitions", "PRIMARY KEY (id)"),
    ("cognitive_transitions", "FOREIGN KEY (source_id) REFERENCES geoid_states(id)"),
    ("cognitive_transitions", "FOREIGN KEY (target_id) REFERENCES geoid_states(id)"),
    ("semantic_embeddings", "PRIMARY KEY (id)"),
    ("portal_configurations", "PRIMARY KEY (id)"),
    ("system_metrics", "PRIMARY KEY (id)"),
}

# Without idx_geoid_vector and idx_embedding_vector, which indexes.build makes once there are rows to train them on
INDEXES = {
    ("idx_geoid_timestamp", "geoid_states", 'btree ("timestamp")'),
    ("idx_geoid_entropy", "geoid_states", "btree (entropy)"),
    ("idx_geoid_tags", "geoid_states", "gin (tags)"),
    ("idx_transitions_source", "cognitive_transitions", "btree (source_id)"),
    ("idx_transitions_target", "cognitive_transitions", "btree (target_id)"),
    ("idx_transitions_type", "cognitive_transitions", "btree (transition_type)"),
    ("idx_transitions_timestamp", "cognitive_transitions", 'btree ("timestamp")'),
    ("idx_embedding_source", "semantic_embeddings", "btree (source)"),
    ("idx_portal_dimensions", "portal_configurations", "btree (source_dimension, target_dimension)"),
    ("idx_portal_status", "portal_configurations", "btree (status)"),
    ("idx_metrics_timestamp", "system_metrics", 'btree ("timestamp")'),
    ("idx_metrics_name", "system_metrics", "btree (metric_name)"),
    ("idx_metrics_component", "system_metrics", "btree (component)"),
    (
        "idx_embedding_words",
        "semantic_embeddings",
        """gin (to_tsvector('english'::regconfig, "left"(text_content, 100000)))""",
    ),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_the_specifications_columns(conn: Connection, table: str) -> None:
    found = conn.execute(
        """
        SELECT attname, format_type(atttypid, atttypmod), pg_get_expr(adbin, adrelid), attnotnull
        FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
        """,
        [table],
    ).fetchall()
    assert set(found) == {(*column, required is not None) for *column, required in TABLES[table]}


def test_the_tables_are_the_specifications_and_those_of_our_records(conn: Connection) -> None:
    found = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert {name for (name,) in found} == {
        *TABLES,
        "kimera_migrations",
        "kimera_models",
        "kimera_recall_settings",
        "kimera_renewal_queue",
        "kimera_sampled_recalls",
        "kimera_sampled_searches",
        "kimera_text_locks",
        "kimera_vector_indexes",
    }


def test_the_keys_are_the_specifications(conn: Connection) -> None:
    found = conn.execute(
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype IN ('p', 'f', 'u') AND conrelid::regclass::text = ANY(%s)",
        [list(TABLES)],
    ).fetchall()
    assert sorted(found) == sorted(KEYS)


def test_the_specifications_indexes_are_there(conn: Connection) -> None:
    found = conn.execute(
        "SELECT indexname, tablename, split_part(indexdef, ' USING ', 2) FROM pg_indexes WHERE schemaname = 'public'"
    ).fetchall()
    assert INDEXES - set(found) == set()


ONES = np.ones(DIMENSIONS, np.float32)
ROWS: dict[str, dict[str, Any]] = {
    "geoid_states": {"state_vector": ONES, "entropy": 0, "coherence_factor": 0, "energy_level": 0},
    "cognitive_transitions": {"transition_energy": 0, "conservation_error": 0, "transition_type": "association"},
    "semantic_embeddings": {"text_content": "a text", "embedding": ONES},
    "portal_configurations": {
        "source_dimension": 1,
        "target_dimension": 2,
        "radius": 0,
        "energy_requirement": 0,
        "stability_factor": 0,
        "configuration_parameters": Jsonb({}),
        "status": "active",
    },
    "system_metrics": {"metric_name": "search_ms", "metric_value": 0, "component": "geoids"},
}


def insert(conn: Connection, table: str, **changes: Any) -> Any:
    row = ROWS[table] | changes
    if table == "cognitive_transitions":
        state = insert(conn, "geoid_states")
        row = {"source_id": state, "target_id": state} | row
    inserted = conn.execute(
        psycopg.sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
            psycopg.sql.Identifier(table),
            psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, row)),
            psycopg.sql.SQL(", ").join(map(psycopg.sql.Placeholder, row)),
        ),
        row,
    ).fetchone()
    assert inserted is not None
    return inserted[0]


@pytest.mark.parametrize("table", TABLES)
def test_what_the_specification_requires_is_enough_for_a_row(conn: Connection, table: str) -> None:
    assert insert(conn, table)


@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table, column)
        for table, columns in TABLES.items()
        for column, _, _, required in sorted(columns, key=str)
        if required
    ],
)
def test_null_is_refused(conn: Connection, table: str, column: str) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation) as refused:
        insert(conn, table, **{column: None})
    assert refused.value.diag.column_name == column


@pytest.mark.parametrize("end", ["source_id", "target_id"])
def test_a_transition_of_a_state_that_is_not_there_is_refused(conn: Connection, end: str) -> None:
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        insert(conn, "cognitive_transitions", **{end: uuid4()})


VECTORS = [("geoid_states", "state_vector"), ("semantic_embeddings", "embedding")]


def long(norm: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.full(DIMENSIONS, norm / DIMENSIONS**0.5, np.float32)


@pytest.mark.parametrize("norm", [0, 0.99e-15, 1.01e18], ids=["zero", "small", "large"])
@pytest.mark.parametrize(("table", "column"), VECTORS)
def test_a_vector_without_a_cosine_distance_is_refused(conn: Connection, table: str, column: str, norm: float) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        insert(conn, table, **{column: long(norm)})
    assert refused.value.diag.constraint_name == f"{table}_vector_norm"


@pytest.mark.parametrize("norm", [1.01e-15, 0.99e18], ids=["small", "large"])
@pytest.mark.parametrize(("table", "column"), VECTORS)
def test_a_vector_just_within_the_bounds_has_a_cosine_distance(
    conn: Connection, table: str, column: str, norm: float
) -> None:
    insert(conn, table, **{column: long(norm)})
    found = conn.execute(f"SELECT {column} <=> %s FROM {table}", [ONES]).fetchone()  # noqa: S608
    assert found == (pytest.approx(0, abs=1e-6),)


@pytest.mark.parametrize("json", [[], "text", 1, None], ids=str)
@pytest.mark.parametrize(
    ("table", "column", "constraint"),
    [
        ("geoid_states", "metadata", "geoid_states_metadata_object"),
        ("cognitive_transitions", "metadata", "cognitive_transitions_metadata_object"),
        ("semantic_embeddings", "metadata", "semantic_embeddings_metadata_object"),
        ("portal_configurations", "configuration_parameters", "portal_configurations_parameters_object"),
        ("system_metrics", "context", "system_metrics_context_object"),
    ],
)
def test_json_that_is_no_object_is_refused(
    conn: Connection, table: str, column: str, constraint: str, json: object
) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        insert(conn, table, **{column: Jsonb(json)})
    assert refused.value.diag.constraint_name == constraint


def test_a_portal_that_gives_energy_is_refused(conn: Connection) -> None:
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        insert(conn, "portal_configurations", energy_requirement=-0.1)
    assert refused.value.diag.constraint_name == "portal_configurations_energy_not_negative"
