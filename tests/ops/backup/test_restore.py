"""Restored is what was dumped, to the row and the bit, or nothing has changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_backups import SECRET, copied, databases, fill, flip, inside, make_old, precious
from fix_clusters import arguments_of_all
from fix_servers import Server
from psycopg import sql as composed
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kimera_sql import InvalidValue, SqlitePool, UnsupportedByServer, add_adapters, geoids, migrate
from kimera_sql.errors import BackupError, KimeraError
from kimera_sql.ops import backup
from kimera_sql.ops.backup import Dump, restore_dump, run_drill, tools
from kimera_sql.ops.backup.contents import differences, read_contents, settle
from kimera_sql.search import indexes, recall

pytestmark = [pytest.mark.slow, pytest.mark.ends]

TABLES = ("geoid_states", "cognitive_transitions", "semantic_embeddings", "portal_configurations", "system_metrics")


@pytest.fixture(scope="module")
def source(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dump, dict[str, bytes]]:
    """A dump of a database with a row of every kind and an index, and the rows in binary; the database is gone."""
    database = server.create(template=server.template)
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        fill(conn)
        indexes.build(conn, "geoid_states")
        recall.tune(conn, "geoid_states", target=0.9, sample=5)
        made, rows = backup.make_dump(conn, tmp_path_factory.mktemp("source")), binary(conn)
    server.drop(database)
    return made, rows


def binary(conn: psycopg.Connection) -> dict[str, bytes]:
    """Every row of the five tables as PostgreSQL sends it in binary."""
    held = {}
    for table in TABLES:
        statement = composed.SQL("COPY (SELECT * FROM {} ORDER BY id) TO STDOUT (FORMAT BINARY)")
        with conn.cursor().copy(statement.format(composed.Identifier(table))) as copy:
            held[table] = b"".join(map(bytes, copy))
    return held


def test_restored_is_what_was_dumped(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str
) -> None:
    made, rows = source
    assert made.origin.database not in databases(admin)
    before = databases(admin)
    done = restore_dump(admin, made.path, into=name)
    assert (done.database, done.tables, done.rows, done.compared, done.kept) == (
        name,
        len(made.contents.tables),
        made.contents.rows,
        True,
        None,
    )
    assert sorted({*before, name}) == databases(admin)
    with inside(server, name) as conn:
        add_adapters(conn)
        assert binary(conn) == rows
        (index,) = indexes.existing(conn)
        assert index.usable
        assert index.rows_at_build is not None
        assert index.tuned.keys() == {(10, 0.9), (100, 0.9)}
        assert conn.execute("SELECT FROM pg_stats WHERE tablename = 'geoid_states'").rowcount
        state = next(iter(geoids.stream(conn)))
        assert geoids.similar_to(conn, state.id, k=5, exact=True)[0].similarity <= 1
        with backup_settled(conn):
            found = read_contents(conn)
        # The records of the index say which file it is in now.
        records = ("public.kimera_vector_indexes", "public.kimera_recall_settings")
        for faults in (differences(made.contents, found), differences(found, made.contents)):
            assert {fault.split()[0] for fault in faults} == set(records)


@pytest.mark.parametrize(
    "made",
    [
        "CREATE VIEW shown AS SELECT 1 AS number",
        "CREATE FUNCTION one() RETURNS INTEGER LANGUAGE sql AS 'SELECT 1'",
        "CREATE SEQUENCE numbers",
        "CREATE SCHEMA other",
        "SELECT lo_create(1)",
    ],
)
def test_a_database_without_tables_need_not_be_empty(
    server: Server,
    admin: psycopg.Connection,
    source: tuple[Dump, dict[str, bytes]],
    empty_database: str,
    made: str,
) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute("CREATE EXTENSION vector")
        conn.execute(made.encode())
    with pytest.raises(BackupError, match="is there and not empty"):
        restore_dump(admin, source[0].path, into=str(conninfo_to_dict(empty_database)["dbname"]))


@contextlib.contextmanager
def backup_settled(conn: psycopg.Connection) -> Iterator[None]:
    with conn.transaction():
        settle(conn)
        yield


def test_a_database_with_tables_is_refused_and_untouched(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str
) -> None:
    make_old(server, admin, name)
    before = databases(admin)
    with pytest.raises(BackupError, match="is there and not empty; choose another name, or --replace it"):
        restore_dump(admin, source[0].path, into=name)
    assert databases(admin) == before
    assert precious(server, name) == 42


def test_an_empty_database_is_filled(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str
) -> None:
    admin.execute(composed.SQL("CREATE DATABASE {}").format(composed.Identifier(name)))
    with inside(server, name) as conn:
        conn.execute("CREATE EXTENSION vector")
    before = databases(admin)
    assert restore_dump(admin, source[0].path, into=name).kept is None
    assert databases(admin) == before
    with inside(server, name) as conn:
        assert binary(conn) == source[1]


def test_replace_changes_places_and_keeps_what_the_old_one_had(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str
) -> None:
    make_old(server, admin, name)
    role = f'kimera "role" {uuid4().hex[:8]}'
    owner, database = composed.Identifier(role), composed.Identifier(name)
    admin.execute(composed.SQL("CREATE ROLE {}").format(owner))
    try:
        for statement in (
            "ALTER DATABASE {database} OWNER TO {owner}",
            "ALTER DATABASE {database} SET work_mem TO '7MB'",
            'ALTER DATABASE {database} SET search_path TO "$user", public, "Odd, \'name\'"',
            "ALTER DATABASE {database} SET kimera.note TO 'it''s = here'",
            "ALTER ROLE {owner} IN DATABASE {database} SET work_mem TO '9MB'",
            "REVOKE ALL ON DATABASE {database} FROM PUBLIC",
            "GRANT CONNECT ON DATABASE {database} TO {owner} WITH GRANT OPTION",
        ):
            admin.execute(composed.SQL(statement).format(owner=owner, database=database))

        def properties(one: str) -> list[Any]:
            cursor = admin.execute(
                "SELECT datdba::regrole::text, datacl::text, ARRAY(SELECT setrole::regrole::text || setconfig::text"
                " FROM pg_db_role_setting WHERE setdatabase = pg_database.oid ORDER BY 1)"
                " FROM pg_database WHERE datname = %s",
                [one],
            )
            return list(cursor.fetchone() or ())

        before = properties(name)
        assert len(before[2]) == 2
        done = restore_dump(admin, source[0].path, into=name, replace=True)
        assert done.kept is not None
        assert done.kept.startswith(f"{name[:39]}_before_20")
        assert precious(server, done.kept) == 42
        assert properties(name) == before
        with inside(server, name) as conn:
            assert binary(conn) == source[1]
            assert conn.execute("SHOW work_mem").fetchone() == ("7MB",)
        for one in (name, done.kept):
            admin.execute(composed.SQL("DROP DATABASE {}").format(composed.Identifier(one)))
    finally:
        for one in (one for one in databases(admin) if one.startswith(name[:39])):
            admin.execute(composed.SQL("DROP DATABASE {}").format(composed.Identifier(one)))
        admin.execute(composed.SQL("DROP ROLE {}").format(owner))


def test_the_old_one_is_dropped_when_asked(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str
) -> None:
    make_old(server, admin, name)
    before = databases(admin)
    assert restore_dump(admin, source[0].path, into=name, replace=True, drop_old=True).kept is None
    assert databases(admin) == before
    with inside(server, name) as conn:
        assert binary(conn) == source[1]


def test_a_live_database_is_not_replaced(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str
) -> None:
    make_old(server, admin, name)
    before = databases(admin)
    with (
        psycopg.connect(make_conninfo(server.conninfo, dbname=name, application_name="Kimera SWM")) as client,
        inside(server, name) as other,
    ):
        first, second = sorted(
            ((client.info.backend_pid, "Kimera SWM"), (other.info.backend_pid, "no application name"))
        )
        with pytest.raises(BackupError) as caught:
            restore_dump(admin, source[0].path, into=name, replace=True)
    user = admin.info.user
    assert str(caught.value) == (
        f"clients are connected to {name}: process {first[0]} ({first[1]}, role {user}), process {second[0]} "
        f"({second[1]}, role {user}); stop them, or end them with --disconnect; nothing was changed"
    )
    assert databases(admin) == before
    assert precious(server, name) == 42


def test_a_client_that_comes_meanwhile_stops_the_swap(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str
) -> None:
    make_old(server, admin, name)
    before = databases(admin)
    failures: list[Exception] = []

    def replace_it() -> None:
        try:
            restore_dump(admin, source[0].path, into=name, replace=True)
        except KimeraError as error:
            failures.append(error)

    restoring = threading.Thread(target=replace_it)
    restoring.start()
    with psycopg.connect(server.conninfo, autocommit=True) as other:
        # Then it has found that there were no clients.
        for _ in range(1000):
            if any(one.startswith("kimera_restore_") for one in databases(other)):
                break
            time.sleep(0.01)
    with inside(server, name) as client:
        pid = client.info.backend_pid
        restoring.join()
    assert [str(error) for error in failures] == [
        f"clients are connected to {name}: process {pid} (no application name, role "
        f"{admin.info.user}); stop them, or end them with --disconnect; nothing was changed"
    ]
    assert databases(admin) == before
    assert precious(server, name) == 42


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "manifest", "missing", "text", "folder"])
def test_a_damaged_dump_is_refused_before_anything_is_touched(
    server: Server,
    admin: psycopg.Connection,
    source: tuple[Dump, dict[str, bytes]],
    name: str,
    tmp_path: Path,
    damage: str,
) -> None:
    path = copied(source[0], tmp_path, source[0].made_at)
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.with_suffix(".json").unlink()
            os.truncate(path, path.stat().st_size // 2)
        case "flipped":
            flip(path, 0.6)
        case "manifest":
            path.with_suffix(".json").write_text("{}")
        case "missing":
            path.unlink()
        case "text":
            path.with_suffix(".json").unlink()
            path.write_text("DROP TABLE geoid_states;")
        case _:
            path = tmp_path
    make_old(server, admin, name)
    before = databases(admin)
    # What verify says, not what a restore ends with.
    told = "is empty|cannot be decoded|is damaged: its sha256|is no manifest|there is no dump|is no dump"
    with pytest.raises(BackupError, match=told):
        restore_dump(admin, path, into=name, replace=True)
    with pytest.raises(BackupError, match=told):
        run_drill(path)
    assert databases(admin) == before
    assert precious(server, name) == 42


def test_a_dump_that_is_not_what_its_manifest_says_is_not_kept(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str, tmp_path: Path
) -> None:
    made = source[0]
    path = copied(made, tmp_path, made.made_at)
    values = json.loads(path.with_suffix(".json").read_text())
    values["contents"]["tables"][1]["rows"] += 1
    path.with_suffix(".json").write_text(json.dumps(values))
    make_old(server, admin, name)
    before = databases(admin)
    with pytest.raises(BackupError, match=r"is not what was dumped:\n  public.geoid_states has 40 rows instead of 41"):
        restore_dump(admin, path, into=name, replace=True)
    assert databases(admin) == before
    assert precious(server, name) == 42
    done = run_drill(path, conn=admin)
    assert done.differences == ("public.geoid_states has 40 rows instead of 41",)
    assert databases(admin) == before


def test_a_failing_restore_leaves_nothing(server: Server, admin: psycopg.Connection, name: str, tmp_path: Path) -> None:
    role = f"kimera_role_{uuid4().hex[:8]}"
    database = server.create(template=server.template)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {role}".encode())
        conn.execute(f"ALTER TABLE portal_configurations OWNER TO {role}".encode())
        made = backup.make_dump(conn, tmp_path)
    server.drop(database)
    admin.execute(f"DROP ROLE {role}".encode())
    make_old(server, admin, name)
    before = databases(admin)
    with pytest.raises(BackupError, match=rf'role "{role}" does not exist') as caught:
        restore_dump(admin, made.path, into=name, replace=True)
    assert "globals.sql" in "".join(caught.value.__notes__)
    assert databases(admin) == before
    assert precious(server, name) == 42
    # A server of the drill's own gets the roles from the dump.
    assert run_drill(made.path).differences == ()


def test_a_dump_without_a_manifest_is_restored_and_not_compared(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], name: str, tmp_path: Path
) -> None:
    path = copied(source[0], tmp_path, source[0].made_at)
    path.with_suffix(".json").unlink()
    done = restore_dump(admin, path, into=name)
    assert (done.compared, done.rows) == (False, source[0].contents.rows)
    with inside(server, name) as conn:
        assert binary(conn) == source[1]
    with pytest.raises(BackupError, match="has no manifest to compare with"):
        run_drill(path)


@pytest.mark.parametrize(
    ("extension", "tables"), [("extensions", "public"), ("public", "Kimera's"), ("extensions", "Kimera's")]
)
def test_a_database_with_a_search_path_is_restored_and_compared(
    server: Server,
    admin: psycopg.Connection,
    empty_database: str,
    name: str,
    tmp_path: Path,
    extension: str,
    tables: str,
) -> None:
    source = str(conninfo_to_dict(empty_database)["dbname"])
    schemas = [composed.Identifier(schema) for schema in (tables, extension)]
    path = composed.SQL("ALTER DATABASE {} SET search_path TO {}")
    with psycopg.connect(empty_database, autocommit=True) as conn:
        for schema in schemas:
            conn.execute(composed.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(schema))
        conn.execute(composed.SQL("CREATE EXTENSION vector SCHEMA {}").format(schemas[1]))
        conn.execute(path.format(composed.Identifier(source), composed.SQL(", ").join(schemas)))
    with psycopg.connect(empty_database, autocommit=True) as conn:
        migrate(conn)
        fill(conn)
        indexes.build(conn, "geoid_states")
        recall.tune(conn, "geoid_states", target=0.9, sample=5)
        made, rows = backup.make_dump(conn, tmp_path), binary(conn)
    assert made.contents.searches
    assert restore_dump(admin, made.path, into=name).compared
    admin.execute(path.format(composed.Identifier(name), composed.SQL(", ").join(schemas)))
    with inside(server, name) as conn:
        add_adapters(conn)
        assert binary(conn) == rows
        assert len(geoids.similar(conn, next(iter(geoids.stream(conn))).state_vector, k=5)) == 5
    drilled = run_drill(made.path, conn=admin)
    assert (drilled.differences, drilled.searches) == ((), len(made.contents.searches))
    restore_dump(admin, made.path, into=name, replace=True, drop_old=True)
    with inside(server, name) as conn:
        assert binary(conn) == rows
    made.path.with_suffix(".json").unlink()
    assert not restore_dump(admin, made.path, into=name, replace=True, drop_old=True).compared


def test_bad_names_and_connections_are_refused(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]], tmp_path: Path
) -> None:
    path = source[0].path
    for into in ("", "x" * 64, "ä" * 32):
        with pytest.raises(InvalidValue, match="into: expected a name of 1 to 63 bytes"):
            restore_dump(admin, path, into=into)
    with pytest.raises(InvalidValue, match="into"):
        restore_dump(admin, path, into=7)  # type: ignore[arg-type]
    with pytest.raises(BackupError, match="is the database of this connection; connect to another one"):
        restore_dump(admin, path, into=admin.info.dbname, replace=True)
    with psycopg.connect(server.conninfo) as conn:
        with pytest.raises(InvalidValue, match="autocommit"):
            restore_dump(conn, path, into="new")
        with pytest.raises(InvalidValue, match="autocommit"):
            run_drill(path, conn=conn)
    with SqlitePool(tmp_path / "kimera.db") as pool, pool.connection() as file:
        with pytest.raises(UnsupportedByServer):
            restore_dump(file, path, into="new")
        with pytest.raises(UnsupportedByServer):
            run_drill(path, conn=file)


def test_a_role_that_may_not_make_databases_is_told_so(
    server: Server, admin: psycopg.Connection, source: tuple[Dump, dict[str, bytes]]
) -> None:
    role = f"kimera_role_{uuid4().hex[:8]}"
    admin.execute(f"CREATE ROLE {role} LOGIN".encode())
    before = databases(admin)
    try:
        with (
            psycopg.connect(make_conninfo(server.conninfo, user=role), autocommit=True) as conn,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied to create database"),
        ):
            restore_dump(conn, source[0].path, into="new")
        assert databases(admin) == before
    finally:
        admin.execute(f"DROP ROLE {role}".encode())


def test_a_drill_proves_a_dump_on_a_server_of_its_own(
    source: tuple[Dump, dict[str, bytes]], open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = source[0]
    open_folder.chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(open_folder))
    # They lead no drill to another server.
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
    monkeypatch.setenv("PGPORT", "5499")
    done = run_drill(made.path)
    assert done.differences == ()
    assert (done.tables, done.rows, done.searches) == (len(made.contents.tables), made.contents.rows, 6)
    # Of the dump's version, or a later one where only that has pgvector.
    assert int(done.server_version.partition(".")[0]) >= made.origin.server_version // 10000
    assert list(open_folder.iterdir()) == []
    assert servers(open_folder) == []


def test_a_drill_runs_no_commands_of_the_globals(source: tuple[Dump, dict[str, bytes]], tmp_path: Path) -> None:
    path = copied(source[0], tmp_path, source[0].made_at)
    globals_, values = path.with_suffix(".globals.sql"), json.loads(path.with_suffix(".json").read_text())
    role = f"kimera_role_{uuid4().hex[:8]}"
    globals_.write_text(f"{globals_.read_text()}\n\\! touch {tmp_path}/ran\nCREATE ROLE {role};\n")
    values["globals_sha256"] = hashlib.sha256(globals_.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(values))
    assert run_drill(path).differences == ()
    assert not (tmp_path / "ran").exists()
    globals_.write_text(f"{globals_.read_text()}CREATE ROLE {role};\n")
    values["globals_sha256"] = hashlib.sha256(globals_.read_bytes()).hexdigest()
    path.with_suffix(".json").write_text(json.dumps(values))
    with pytest.raises(BackupError, match=f'globals.sql cannot be run: role "{role}" already exists'):
        run_drill(path)


def servers(folder: Path) -> list[str]:
    """The servers that run on data in *folder*."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            program, *arguments = entry.read_text(errors="replace").split("\0")
            if program.endswith("postgres") and any(one.startswith(str(folder)) for one in arguments):
                found.append(program)
    return found


def test_a_drill_that_cannot_start_a_server_says_why(
    source: tuple[Dump, dict[str, bytes]], open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = open_folder / ("x" * 100)
    deep.mkdir()
    for folder in (open_folder, deep):
        folder.chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with pytest.raises(BackupError, match=r"the throwaway server did not start: (.|\n)*too long"):
        run_drill(source[0].path)
    assert list(deep.iterdir()) == []


def test_the_commands_restore_and_drill(
    server: Server, source: tuple[Dump, dict[str, bytes]], name: str, tmp_path: Path
) -> None:
    made = source[0]
    path = copied(made, tmp_path, made.made_at)
    url = make_conninfo(server.conninfo, dbname=made.origin.database, password=SECRET)  # a database that is gone
    ran = run("restore", str(path), "--into", name, DATABASE_URL=url)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == (
        f"{name}: {len(made.contents.tables)} tables, {made.contents.rows:,} rows, as they were dumped\n"
    )
    place = conninfo_to_dict(server.conninfo)
    variables = {f"PG{key.upper()}": str(place[key]) for key in ("host", "port", "user", "password") if place.get(key)}
    for configured in ({"DATABASE_URL": url}, {**variables, "PGDATABASE": made.origin.database}):
        again = run("restore", str(path), "--into", name, **configured)
        assert again.returncode == 1
        assert "--replace" in again.stderr
    replaced = run("restore", str(path), "--into", name, "--replace", "--json", DATABASE_URL=url)
    assert (replaced.returncode, replaced.stderr) == (0, "")
    assert json.loads(replaced.stdout)["kept"].startswith(f"{name[:39]}_before_")
    drilled = run(
        "backup", "drill", "--dir", str(tmp_path), "--on-server", DATABASE_URL=make_conninfo(url, dbname=name)
    )
    assert (drilled.returncode, drilled.stderr) == (0, "")
    assert drilled.stdout.endswith(", 6 searches, 0 differences\n")
    values = json.loads(path.with_suffix(".json").read_text())
    values["contents"]["searches"][0]["found"].reverse()
    path.with_suffix(".json").write_text(json.dumps(values))
    differing = run("backup", "drill", str(path), "--json")
    assert (differing.returncode, differing.stderr) == (1, "")
    assert "finds other rows" in json.loads(differing.stdout)["differences"][0]
    assert run("backup", "drill").returncode == 1
    for one in (ran, again, replaced, drilled):
        assert "planted-secret" not in one.stdout + one.stderr


@contextlib.contextmanager
def guarded(folder: Path) -> Iterator[str]:
    """Run a server that asks for a password, SECRET, and yield its conninfo without it."""
    initdb = tools.find("initdb", None)
    user, data, passfile = tools.server_user(), folder / "data", folder / "password"
    passfile.write_text(SECRET)
    if user is not None:
        shutil.chown(folder, user)
        shutil.chown(passfile, user)
    tools.run(
        initdb,
        ["--auth=scram-sha-256", f"--pwfile={passfile}", "--username=owner", "--no-sync", f"--pgdata={data}"],
        user=user,
    )
    with (data / "postgresql.conf").open("a") as conf:
        conf.write(f"listen_addresses = ''\nunix_socket_directories = '{folder}'\nfsync = off\n")
    pg_ctl = initdb.with_name("pg_ctl")
    tools.run(pg_ctl, ["start", "--wait", "--silent", f"--pgdata={data}", f"--log={folder}/log"], user=user)
    try:
        yield make_conninfo("", host=str(folder), user="owner", dbname="postgres")
    finally:
        tools.run(pg_ctl, ["stop", "--wait", "--silent", "--mode=immediate", f"--pgdata={data}"], user=user)


def test_passwords_reach_the_tools_and_nothing_else(open_folder: Path, tmp_path: Path) -> None:
    with guarded(open_folder) as conninfo:
        right, wrong = make_conninfo(conninfo, password=SECRET), make_conninfo(conninfo, password="planted-wrong")
        said = []
        for arguments, variables, code in (
            (("init",), {"DATABASE_URL": right}, 0),
            (("backup", "dump", "--dir", str(tmp_path / "b")), {"DATABASE_URL": right}, 0),
            (("backup", "dump", "--dir", str(tmp_path / "wrong")), {"DATABASE_URL": wrong}, 1),
            (("backup", "drill", "--dir", str(tmp_path / "b")), {}, 0),
            (("restore", "DUMP", "--into", "copy"), {"DATABASE_URL": right}, 0),
            (("restore", "DUMP", "--into", "copy"), {"DATABASE_URL": wrong}, 1),
            (("monitor",), {"DATABASE_URL": right}, 0),
            (("doctor",), {"DATABASE_URL": right}, 1),
            (("maintain", "all"), {"DATABASE_URL": right}, 0),
            (("config", "check"), {"DATABASE_URL": right}, 1),
        ):
            dumps = [str(path) for path in (tmp_path / "b").rglob("*.dump")]
            command = [*COMMAND, *(dumps[0] if one == "DUMP" else one for one in arguments)]
            with (tmp_path / "said").open("w+") as both:
                ran = subprocess.Popen(command, env=environment(**variables), stdout=both, stderr=subprocess.STDOUT)
                while ran.poll() is None:
                    said.append(arguments_of_all())
                    time.sleep(0.02)
                both.seek(0)
                said.append(both.read())
            assert ran.returncode == code, said[-1]
        assert all(any(tool in text for text in said) for tool in ("bin/pg_dump", "bin/pg_restore"))
        (tmp_path / "said").unlink()
        assert not (tmp_path / "wrong").exists()
        files = [path for path in (*tmp_path.rglob("*"), open_folder / "log") if path.is_file()]
        assert len(files) == 4
        said += [path.read_text(errors="replace") for path in files]
        for text in said:
            assert "planted" not in text
        (globals_,) = tmp_path.rglob("*.globals.sql")
        assert "SCRAM-SHA-256$" in globals_.read_text()
        with psycopg.connect(right, dbname="copy") as conn:
            assert conn.execute("SELECT FROM kimera_migrations").rowcount > 0
    assert conninfo_to_dict(conninfo).get("password") is None


def test_a_database_gets_its_locale_back(server: Server, admin: psycopg.Connection, name: str, tmp_path: Path) -> None:
    database = composed.Identifier(name)
    create = "CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
    admin.execute(composed.SQL(create).format(database))
    with inside(server, name) as conn:
        conn.execute("CREATE TABLE words (word TEXT)")
        conn.execute("INSERT INTO words VALUES ('ä')")
        made = backup.make_dump(conn, tmp_path)
    admin.execute(composed.SQL("DROP DATABASE {}").format(database))
    restore_dump(admin, made.path, into=name)
    shown = "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = %s"
    assert admin.execute(shown, [name]).fetchone() == ("LATIN1", "C", "C")
    with inside(server, name) as conn:
        assert conn.execute("SELECT word FROM words").fetchone() == ("ä",)
    assert run_drill(made.path, conn=admin).differences == ()
