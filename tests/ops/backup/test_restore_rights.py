"""A restore by a role with few privileges, into a database with clients, limits, grants and an owner of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import LiteralString
from uuid import uuid4

import psycopg
import pytest
from commands import run
from fix_backups import databases, inside, make_old, precious
from fix_servers import Server
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo

from kimera_sql.errors import BackupError
from kimera_sql.ops import backup
from kimera_sql.ops.backup import Dump, restore_dump
from kimera_sql.ops.backup.properties import read_properties

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _with_programs_of_its_version(server: Server) -> None:
    if server.name == "postgres16":
        pytest.skip("its wheel has no pg_restore, and a later one sets what it does not know")


@pytest.fixture
def role(server: Server, name: str) -> Iterator[Callable[..., str]]:
    """A function that makes a role and returns its name; dropped in the end, behind the databases."""
    made: list[str] = []

    def make(attributes: LiteralString = "") -> str:
        made.append(f"kimera role {uuid4().hex[:8]}")
        with psycopg.connect(server.conninfo, autocommit=True) as conn:
            execute(conn, f"CREATE ROLE {{0}} LOGIN {attributes}", made[-1])
        return made[-1]

    yield make
    with psycopg.connect(server.conninfo, autocommit=True) as conn:
        for one in databases(conn):
            if one.startswith(name[:39]):
                execute(conn, "ALTER DATABASE {} IS_TEMPLATE false", one)
                execute(conn, "DROP DATABASE {} WITH (FORCE)", one)
        for one in made:
            execute(conn, "DROP ROLE {}", one)


def execute(conn: psycopg.Connection, statement: LiteralString, *names: str) -> None:
    conn.execute(composed.SQL(statement).format(*map(composed.Identifier, names)))


@pytest.fixture(scope="module")
def plain(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Dump:
    """A dump without extensions, of a table that is the bootstrap role's."""
    database = server.create()
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("CREATE TABLE words AS SELECT 'a' AS word")
        made = backup.make_dump(conn, tmp_path_factory.mktemp("plain"))
    server.drop(database)
    return made


def owned_dump(server: Server, owner: str, folder: Path, *, template: str = "template1", rows: int = 1) -> Dump:
    """A dump of a database that belongs to *owner*, as does a table in it; the database is gone."""
    database = server.create(template=template)
    with psycopg.connect(database, autocommit=True) as conn:
        execute(conn, "ALTER DATABASE {} OWNER TO {}", conn.info.dbname, owner)
        conn.execute("CREATE TABLE words AS SELECT 'a' AS word FROM generate_series(1, %s)", [rows])
        execute(conn, "ALTER TABLE words OWNER TO {}", owner)
        made = backup.make_dump(conn, folder)
    server.drop(database)
    return made


def as_role(server: Server, role: str) -> psycopg.Connection:
    return psycopg.connect(make_conninfo(server.conninfo, user=role), autocommit=True)


@pytest.fixture
def tablespace(server: Server) -> Iterator[str]:
    name = f"kimera_test_{uuid4().hex}"
    with psycopg.connect(server.conninfo, autocommit=True) as conn:
        conn.execute("SET allow_in_place_tablespaces = on")
        execute(conn, "CREATE TABLESPACE {} LOCATION ''", name)
        yield name
        execute(conn, "DROP TABLESPACE {}", name)


def test_all_that_a_database_has_goes_over_to_the_one_that_replaces_it(
    server: Server, admin: psycopg.Connection, plain: Dump, tablespace: str, name: str, role: Callable[..., str]
) -> None:
    make_old(server, admin, name)
    owner, guest = role(), role()
    for statement in (
        "ALTER DATABASE {0} SET TABLESPACE {3}",
        "ALTER DATABASE {0} OWNER TO {1}",
        "ALTER DATABASE {0} CONNECTION LIMIT 7 IS_TEMPLATE true",
        "COMMENT ON DATABASE {0} IS 'it''s ours'",
        "ALTER DATABASE {0} SET work_mem TO '7MB'",
        'ALTER ROLE {2} IN DATABASE {0} SET search_path TO a, "B"',
        "REVOKE ALL ON DATABASE {0} FROM PUBLIC, {1}",
        "GRANT CONNECT ON DATABASE {0} TO {2}",
    ):
        execute(admin, statement, name, owner, guest, tablespace)
    before = read_properties(admin, name)
    assert before is not None
    assert (before.owner, before.connection_limit, before.is_template) == (owner, 7, True)
    assert (before.tablespace, before.comment) == (tablespace, "it's ours")
    assert (len(before.settings), before.grants) == (2, (backup.Grant(guest, "CONNECT", grantable=False),))
    done = restore_dump(admin, plain.path, into=name, replace=True)
    assert done.remains == ()
    assert done.kept is not None
    assert read_properties(admin, name) == before
    assert read_properties(admin, done.kept) == before
    assert precious(server, done.kept) == 42
    time.sleep(1)  # The name of the old one has the second in it.
    again = restore_dump(admin, plain.path, into=name, replace=True, drop_old=True)
    assert (again.kept, again.remains) == (None, ())
    assert read_properties(admin, name) == before
    assert len([one for one in databases(admin) if one.startswith(name[:39])]) == 2
    # The tablespace is dropped before the databases are.
    for one in (name, done.kept):
        execute(admin, "ALTER DATABASE {} IS_TEMPLATE false", one)
        execute(admin, "DROP DATABASE {}", one)


@pytest.mark.parametrize("grants", ["none", "default", "some"])
def test_a_new_database_gets_what_the_dumped_one_had(
    server: Server, admin: psycopg.Connection, name: str, role: Callable[..., str], tmp_path: Path, grants: str
) -> None:
    owner, guest = role(), role()
    make_old(server, admin, name)
    for statement in (
        "ALTER DATABASE {0} OWNER TO {1}",
        "ALTER DATABASE {0} CONNECTION LIMIT 7",
        "COMMENT ON DATABASE {0} IS 'ours'",
        "ALTER DATABASE {0} SET search_path TO kimera, public",
        "ALTER ROLE {2} IN DATABASE {0} SET work_mem TO '9MB'",
        *(["REVOKE ALL ON DATABASE {0} FROM PUBLIC, {1}"] if grants != "default" else []),
        *(["GRANT CONNECT ON DATABASE {0} TO {2} WITH GRANT OPTION"] if grants == "some" else []),
    ):
        execute(admin, statement, name, owner, guest)
    before = read_properties(admin, name)
    with inside(server, name) as conn:
        made = backup.make_dump(conn, tmp_path)
    assert made.properties == before
    assert backup.list_backups(tmp_path)[0].complete
    execute(admin, "DROP DATABASE {}", name)
    assert restore_dump(admin, made.path, into=name).remains == ()
    assert read_properties(admin, name) == before
    assert precious(server, name) == 42
    execute(admin, "DROP DATABASE {}", name)
    made.path.with_suffix(".json").unlink()
    bare = restore_dump(admin, made.path, into=name)
    assert bare.remains == (
        f"{name} belongs to {admin.info.user}, with the default limits, settings and grants: there is no manifest that "
        "has others",
    )


@pytest.mark.parametrize("options", [(), ("--drop-old",)])
def test_a_database_that_takes_no_connections_is_replaced(
    server: Server, admin: psycopg.Connection, plain: Dump, name: str, options: tuple[str, ...]
) -> None:
    make_old(server, admin, name)
    execute(admin, "ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
    with pytest.raises(BackupError, match=r"is there, and cannot be looked into .*; nothing was changed"):
        restore_dump(admin, plain.path, into=name)
    ran = run("restore", str(plain.path), "--into", name, "--replace", *options, DATABASE_URL=server.conninfo)
    assert (ran.returncode, ran.stderr) == (0, "")
    closed = f"{name} takes no connections, as before: ALTER DATABASE ... ALLOW_CONNECTIONS true opens it\n"
    assert ran.stdout.endswith(closed)
    assert ("the database that it replaced is" in ran.stdout) == (not options)
    with pytest.raises(psycopg.OperationalError, match="not currently accepting connections"):
        inside(server, name)
    for one in [one for one in databases(admin) if one.startswith(name[:39])]:
        execute(admin, "ALTER DATABASE {} ALLOW_CONNECTIONS true", one)
        with inside(server, one) as conn:
            found = conn.execute("SELECT to_regclass('words') IS NOT NULL, to_regclass('precious') IS NOT NULL")
            assert found.fetchone() == (one == name, one != name)


def test_an_old_database_that_cannot_be_dropped_is_told_and_no_error(
    server: Server, admin: psycopg.Connection, plain: Dump, name: str
) -> None:
    make_old(server, admin, name)
    with inside(server, name) as conn:
        # It belongs to its database, and keeps it from being dropped.
        conn.execute("CREATE SUBSCRIPTION kimera CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false)")
    try:
        ran = run(
            "restore",
            str(plain.path),
            "--into",
            name,
            "--replace",
            "--drop-old",
            "--json",
            DATABASE_URL=server.conninfo,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        told = json.loads(ran.stdout)
        assert told["kept"].startswith(f"{name[:39]}_before_")
        (left,) = told["remains"]
        assert left.startswith(f"{told['kept']}, the database that it replaced, could not be dropped: ")
        assert precious(server, told["kept"]) == 42
    finally:
        for one in databases(admin):
            if one.startswith(name[:39]):
                with inside(server, one) as conn:
                    mine = "SELECT FROM pg_subscription JOIN pg_database AS d ON d.oid = subdbid AND d.datname = %s"
                    if conn.execute(mine, [one]).rowcount:
                        conn.execute("ALTER SUBSCRIPTION kimera SET (slot_name = NONE)")
                        conn.execute("DROP SUBSCRIPTION kimera")


def test_clients_are_ended_when_asked_and_kept_out_meanwhile(
    server: Server, admin: psycopg.Connection, plain: Dump, name: str
) -> None:
    make_old(server, admin, name)
    client = inside(server, name)
    ended = threading.Event()

    def come_again() -> None:
        """Connect as a service does: over and over, and at once when the connection is lost."""
        while not ended.is_set():
            try:
                with inside(server, name) as conn:
                    conn.execute("SELECT pg_sleep(10)")
            except psycopg.Error:
                time.sleep(0.001)

    services = [threading.Thread(target=come_again) for _ in range(4)]
    for service in services:
        service.start()
    try:
        ran = run(
            "restore",
            str(plain.path),
            "--into",
            name,
            "--replace",
            "--disconnect",
            "--json",
            DATABASE_URL=server.conninfo,
        )
    finally:
        ended.set()
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND query LIKE '%%sleep%%'",
            [name],
        )
        for service in services:
            service.join()
    assert (ran.returncode, ran.stderr) == (0, "")
    with pytest.raises(psycopg.OperationalError):
        client.execute("SELECT 1")
    kept = json.loads(ran.stdout)["kept"]
    assert precious(server, kept) == 42
    with inside(server, name) as conn:
        assert conn.execute("SELECT word FROM words").fetchone() == ("a",)


def test_a_swap_that_fails_leaves_the_database_open(
    server: Server, admin: psycopg.Connection, name: str, tmp_path: Path
) -> None:
    large = owned_dump(server, admin.info.user, tmp_path, rows=300_000)
    make_old(server, admin, name)
    before = read_properties(admin, name)
    failures: list[Exception] = []
    moment = datetime.now(UTC)

    def replace_it() -> None:
        try:
            restore_dump(admin, large.path, into=name, replace=True, disconnect=True)
        except BackupError as error:
            failures.append(error)

    restoring = threading.Thread(target=replace_it)
    restoring.start()
    with psycopg.connect(server.conninfo, autocommit=True) as other:
        # pg_restore runs, so the rehearsal was a success.
        while restoring.is_alive():
            if other.execute("SELECT FROM pg_stat_activity WHERE application_name = 'pg_restore'").rowcount:
                break
        for seconds in range(2):
            taken = f"{name[:39]}_before_{moment + timedelta(seconds=seconds):%Y%m%d_%H%M%S}"
            execute(other, "CREATE DATABASE {}", taken)
    restoring.join()
    assert len(failures) == 1
    assert "already exists; nothing was changed" in str(failures[0])
    assert read_properties(admin, name) == before
    assert precious(server, name) == 42
    assert not [one for one in databases(admin) if one.startswith("kimera_restore_")]


def test_a_role_that_can_only_make_databases_is_told_before_anything_starts(
    server: Server, admin: psycopg.Connection, plain: Dump, name: str, role: Callable[..., str], tmp_path: Path
) -> None:
    maker = role("CREATEDB")
    before = databases(admin)
    vectors = owned_dump(server, maker, tmp_path, template=server.template)
    own = owned_dump(server, maker, tmp_path)
    make_old(server, admin, name)
    with as_role(server, maker) as conn:
        for dump, into, replace, told in (
            (plain, "new", False, f"the role {maker} cannot make new: must be "),
            (own, name, True, f"the role {maker} cannot replace {name}: must be "),
            (vectors, "new", False, f"the role {maker} may not create the extension vector, which the dump has; "),
        ):
            with pytest.raises(BackupError) as caught:
                restore_dump(conn, dump.path, into=into, replace=replace)
            assert str(caught.value).startswith(told)
            assert str(caught.value).endswith("; nothing was changed")
            assert not getattr(caught.value, "__notes__", [])
        assert databases(admin) == sorted([*before, name])
        assert precious(server, name) == 42
        # What it may, it can.
        done = restore_dump(conn, own.path, into=f"{name[:39]}_new")
        assert done.rows == 1
        assert restore_dump(conn, own.path, into=f"{name[:39]}_new", replace=True).kept is not None
        properties = read_properties(admin, f"{name[:39]}_new")
        assert properties is not None
        assert properties.owner == maker


def test_a_dump_of_another_owners_tables_takes_a_member(
    server: Server, admin: psycopg.Connection, name: str, role: Callable[..., str], tmp_path: Path
) -> None:
    maker, owner = role("CREATEDB"), role()
    made = owned_dump(server, owner, tmp_path)
    # The database itself is to be the maker's.
    manifest = made.path.with_suffix(".json")
    values = json.loads(manifest.read_text())
    values["properties"]["owner"] = maker
    manifest.write_text(json.dumps(values))
    before = databases(admin)
    with (
        as_role(server, maker) as conn,
        pytest.raises(BackupError, match=f"the role {maker} is no member of {owner}, which owns what the dump has"),
    ):
        restore_dump(conn, made.path, into=name)
    assert databases(admin) == before
    values["origin"]["roles"] = [*values["origin"]["roles"], 'gone "1"', "gone 2"]
    manifest.write_text(json.dumps(values))
    with pytest.raises(BackupError, match='role "gone "1"", "gone 2" does not exist on this server; noth') as caught:
        restore_dump(admin, made.path, into=name)
    assert "globals.sql" in "".join(caught.value.__notes__)
    assert databases(admin) == before


def test_clients_of_other_roles_are_seen_and_take_a_right_to_end(
    server: Server, admin: psycopg.Connection, name: str, role: Callable[..., str], tmp_path: Path
) -> None:
    maker, guest = role("CREATEDB"), role()
    own = owned_dump(server, maker, tmp_path)
    make_old(server, admin, name)
    execute(admin, "ALTER DATABASE {} OWNER TO {}", name, maker)
    before = databases(admin)
    with (
        as_role(server, maker) as conn,
        psycopg.connect(make_conninfo(server.conninfo, user=guest, dbname=name, application_name="psql")) as client,
    ):
        who = f"process {client.info.backend_pid} (psql, role {guest})"
        for disconnect, told in (
            (False, f"clients are connected to {name}: {who}; stop them, or end them with --disconnect; "),
            (True, f"the role {maker} may not end the clients of {name}: {who}; that takes pg_signal_backend, "),
        ):
            with pytest.raises(BackupError) as caught:
                restore_dump(conn, own.path, into=name, replace=True, disconnect=disconnect)
            assert str(caught.value).startswith(told)
        assert client.execute("SELECT 1").fetchone() == (1,)
        assert databases(admin) == before
        execute(admin, "GRANT pg_signal_backend TO {}", maker)
        assert restore_dump(conn, own.path, into=name, replace=True, disconnect=True).kept is not None
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
    with inside(server, name) as conn:
        assert conn.execute("SELECT word FROM words").fetchone() == ("a",)
