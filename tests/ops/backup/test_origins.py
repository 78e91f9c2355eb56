"""Backups are of a database and its server: those of another one neither stand for them nor endanger them."""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from commands import run
from fix_backups import base_backup, copied, fill, flip
from fix_servers import Server
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kimera_sql import add_adapters, embedded
from kimera_sql.errors import BackupError
from kimera_sql.ops import backup, doctor
from kimera_sql.ops.backup import tools
from kimera_sql.ops.backup.base_backups import first_segment, system_identifier

pytestmark = [pytest.mark.slow, pytest.mark.ends]

LAST = datetime(2026, 3, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def pair(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[backup.Dump, backup.Dump]:
    """Dumps of two databases of one server, which are gone."""
    made = []
    for rows in (3, 4):
        database = server.create(template=server.template)
        with psycopg.connect(database) as conn:
            add_adapters(conn)
            fill(conn, rows)
            conn.commit()
            made.append(backup.make_dump(conn, tmp_path_factory.mktemp("pair")))
        server.drop(database)
    first, second = made
    assert first.origin.system == second.origin.system
    return first, second


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Server]:
    """Another server of the newest version."""
    with embedded.server() as conninfo:
        yield Server("elsewhere", make_conninfo(conninfo, user="postgres", dbname="postgres"), "template1")


def test_the_origin_is_the_servers_identifier_and_the_database(server: Server, database: str, tmp_path: Path) -> None:
    role = f"kimera_role_{uuid4().hex[:8]}"
    with psycopg.connect(server.conninfo, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN IN ROLE pg_read_all_data PASSWORD '{role}'".encode())
    try:
        with psycopg.connect(make_conninfo(database, user=role, password=role)) as conn:
            made = backup.make_dump(conn, tmp_path)
            listed = backup.list_backups_of(conn, tmp_path)
    finally:
        with psycopg.connect(server.conninfo, autocommit=True) as admin:
            admin.execute(f"DROP ROLE {role}".encode())
    base = base_backup(server, tmp_path, LAST)
    assert made.origin.system == system_identifier(base)
    told = tools.run(tools.find("pg_controldata", made.origin.server_version), [base])
    assert f"Database system identifier:           {made.origin.system}\n" in told
    assert [(one.database, one.system) for one in listed] == [(made.origin.database, made.origin.system)]
    assert [(one.kind, one.database, one.system) for one in backup.list_backups(tmp_path)] == [
        ("dump", made.origin.database, made.origin.system),
        ("base", None, made.origin.system),
    ]


def test_prune_keeps_the_last_good_dumps_of_each_database(
    pair: tuple[backup.Dump, backup.Dump], tmp_path: Path
) -> None:
    first, second = pair
    only = copied(first, tmp_path, LAST - timedelta(days=100))
    daily = [copied(second, tmp_path, LAST - timedelta(days=age)) for age in (0, 1, 50, 200)]
    pruned = run("backup", "prune", "--dir", str(tmp_path), "--keep", "1", "--json")
    assert (pruned.returncode, pruned.stderr) == (0, "")
    assert [one["name"] for one in json.loads(pruned.stdout)] == [daily[2].name, daily[3].name]
    assert [(one.path, one.database) for one in backup.list_backups(tmp_path)] == [
        (daily[0], second.origin.database),
        (daily[1], second.origin.database),
        (only, first.origin.database),
    ]
    shown = run("backup", "list", "--dir", str(tmp_path)).stdout
    assert shown.count(f"  {first.origin.database}  ") == 1
    assert shown.count(f"  {second.origin.database}  ") == 2


def test_prune_removes_nothing_when_one_database_has_no_good_dump(
    pair: tuple[backup.Dump, backup.Dump], tmp_path: Path
) -> None:
    first, second = pair
    flip(copied(first, tmp_path, LAST - timedelta(days=300)), 0.5)
    for age in (0, 50, 200):
        copied(second, tmp_path, LAST - timedelta(days=age))
    told = (
        f"nothing was removed, as no dump of {first.origin.database} of the server {first.origin.system} "
        "is known to be good:\n.*is damaged"
    )
    with pytest.raises(BackupError, match=told):
        backup.prune_backups(tmp_path, keep=1)
    assert len(backup.list_backups(tmp_path)) == 4


def test_prune_leaves_a_dump_that_does_not_say_what_it_is_of(
    pair: tuple[backup.Dump, backup.Dump], tmp_path: Path
) -> None:
    unknown = [copied(pair[0], tmp_path, LAST - timedelta(days=age)) for age in (100, 200)]
    unknown[0].with_suffix(".json").unlink()
    unknown[1].with_suffix(".json").write_text("{}")
    with pytest.raises(BackupError, match="nothing was removed, as no dump says what it is of"):
        backup.prune_backups(tmp_path)
    known = [copied(pair[0], tmp_path, LAST - timedelta(days=age)) for age in (0, 50)]
    assert [one.name for one in backup.prune_backups(tmp_path, keep=1)] == [known[1].name]
    assert [(one.path, one.database, one.system) for one in backup.list_backups(tmp_path)[1:]] == [
        (path, None, None) for path in unknown
    ]


def test_drill_asks_which_database_where_there_are_several(
    server: Server, pair: tuple[backup.Dump, backup.Dump], tmp_path: Path
) -> None:
    first, second = pair
    older, newer = copied(first, tmp_path, LAST - timedelta(days=1)), copied(first, tmp_path, LAST)
    assert backup.newest_dump(tmp_path) == newer
    other = copied(second, tmp_path, LAST + timedelta(days=1))
    folder = ("--dir", str(tmp_path))
    asked = run("backup", "drill", *folder)
    both = sorted(f"{one.origin.database} of the server {one.origin.system}" for one in pair)
    assert (asked.returncode, asked.stdout) == (1, "")
    assert asked.stderr == (
        f"kimera-sql: {tmp_path / 'dumps'} has dumps of {both[0]}, of {both[1]}: name the database (--database)\n"
    )
    for made, path in ((first, newer), (second, other)):
        chosen = ("--database", made.origin.database)
        ran = run("backup", "drill", *folder, *chosen, "--on-server", "--json", DATABASE_URL=server.conninfo)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert (json.loads(ran.stdout)["dump"], json.loads(ran.stdout)["rows"]) == (str(path), made.contents.rows)
    with pytest.raises(BackupError, match=f"there is no dump of nowhere in {tmp_path / 'dumps'}"):
        backup.newest_dump(tmp_path, database="nowhere")
    # What lost its manifest is not passed over in silence.
    other.with_suffix(".json").unlink()
    assert backup.newest_dump(tmp_path) == other
    assert run("backup", "drill", str(older), "--database", first.origin.database).returncode == 2


def test_doctor_goes_by_the_backups_of_its_own_database(
    server: Server, pair: tuple[backup.Dump, backup.Dump], database: str, tmp_path: Path
) -> None:
    copied(pair[0], tmp_path, datetime.now(UTC))
    told = run("doctor", "--backups", str(tmp_path), DATABASE_URL=database)
    assert told.returncode == 1
    assert "ERROR    backups: this database has no verified one of the last day: there is none" in told.stdout
    base_backup(server, tmp_path, datetime.now(UTC))
    with psycopg.connect(database) as conn:
        assert "backups" not in {one.subject for one in doctor.examine(conn, backups=tmp_path)}


def test_a_restored_copy_on_another_server_is_another_database(
    newest: Server, elsewhere: Server, tmp_path: Path
) -> None:
    database = newest.create(template=newest.template)
    name = str(conninfo_to_dict(database)["dbname"])
    old = LAST - timedelta(days=400)
    with psycopg.connect(database) as conn:
        made = backup.make_dump(conn, tmp_path / "made")
    newest.drop(database)
    with psycopg.connect(elsewhere.conninfo, autocommit=True) as admin:
        backup.restore_dump(admin, made.path, into=name)
    path = copied(made, tmp_path, old)
    with psycopg.connect(make_conninfo(elsewhere.conninfo, dbname=name), autocommit=True) as conn:
        found = [one.found for one in doctor.examine(conn, backups=tmp_path) if one.subject == "backups"]
        assert found == ["this database has no verified one of the last day: there is none"]
        again = backup.make_dump(conn, tmp_path)
        assert backup.list_backups_of(conn, tmp_path)[0].path == again.path
        base_backup(newest, tmp_path, datetime.now(UTC))
        assert len(backup.list_backups_of(conn, tmp_path)) == 1
    assert (again.origin.database, again.origin.server_version) == (made.origin.database, made.origin.server_version)
    assert again.origin.system != made.origin.system
    assert backup.prune_backups(tmp_path, keep=1) == []
    assert path.exists()
    both = sorted((made.origin.system, again.origin.system))
    with pytest.raises(BackupError) as caught:
        backup.newest_dump(tmp_path, database=name)
    assert str(caught.value) == (
        f"{tmp_path / 'dumps'} has dumps of {name} of the server {both[0]}, of {name} of the server {both[1]}: "
        "name the dump, and give each server its own folder"
    )


def test_base_backups_of_two_servers_keep_their_own_wal(newest: Server, elsewhere: Server, tmp_path: Path) -> None:
    early = base_backup(elsewhere, tmp_path, LAST - timedelta(days=300))
    first = int(first_segment(early), 16)
    late = base_backup(newest, tmp_path, LAST)
    with psycopg.connect(newest.conninfo, autocommit=True) as conn:
        while int(first_segment(late), 16) < first + 4:
            conn.execute("SELECT pg_logical_emit_message(false, 'tests', 'written')")
            conn.execute("SELECT pg_switch_wal()")
            shutil.rmtree(late)
            late = base_backup(newest, tmp_path, LAST)
    last = int(first_segment(late), 16)
    archive = tmp_path / "wal"
    archive.mkdir()
    owners = dict.fromkeys(range(first - 1, first + 2), early)
    owners |= dict.fromkeys(range(first + 2, last + 1), late)
    for number, base in owners.items():
        shutil.copy(base / "pg_wal" / first_segment(base), archive / f"{number:024X}")
    planned = backup.prune_backups(tmp_path, dry_run=True)
    assert backup.prune_backups(tmp_path) == planned
    # Of each server what is older than its own oldest base backup; the names of the other's would be older still.
    assert {one.name for one in planned if one.kind == "wal"} == {
        f"{number:024X}" for number in (first - 1, *range(first + 2, last))
    }
    assert sorted(path.name for path in archive.iterdir()) == [f"{n:024X}" for n in (first, first + 1, last)]
    assert [one.path for one in backup.list_backups(tmp_path)] == [late, early]
    # What the archive has of the other server is no gap in what it has of this one.
    for number in (first, first + 1):
        (archive / f"{number:024X}").unlink()
    assert backup.verify_backup(early) is None


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be another user than root, whom no folder is closed to."""
    user = tools.server_user()
    if user is not None:
        os.seteuid(pwd.getpwnam(user).pw_uid)
    try:
        yield
    finally:
        if user is not None:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("at", "mode", "told"),
    [
        (".", None, "there is no folder {path}"),
        (".", "file", "there is no folder {path}"),
        (".", 0o000, "{path}/dumps: Permission denied"),
        ("dumps", "file", "{path}: Not a directory"),
        ("dumps", 0o000, "{path}: Permission denied"),
        ("dumps", 0o444, "{path}/kimera_full_20260301_010000.json: Permission denied"),
        ("dumps/kimera_full_20260301_010000.json", 0o000, "{path}: Permission denied"),
        ("base", "file", "{path}: Not a directory"),
        ("base", 0o000, "{path}: Permission denied"),
        ("base/kimera_base_20260301_010000", 0o000, "{path}/global/pg_control: Permission denied"),
    ],
)
def test_a_folder_that_cannot_be_read_is_not_an_empty_one(
    newest: Server, sample: backup.Dump, open_folder: Path, at: str, mode: int | str | None, told: str
) -> None:
    open_folder.chmod(0o755)
    folder = open_folder / "backups"
    copied(sample, folder, LAST)
    (folder / "base/kimera_base_20260301_010000/global").mkdir(parents=True)
    path = folder / at
    user = tools.server_user()
    for one in (folder, *folder.rglob("*")):
        if user is not None:
            shutil.chown(one, user)
    match mode:
        case None:
            shutil.rmtree(path)
        case "file":
            shutil.rmtree(path)
            path.touch()
        case int():
            path.chmod(mode)
    expected = told.format(path=path)
    try:
        with unprivileged():
            for command in ("list", "verify", "prune", "drill"):
                ran = run("backup", command, "--dir", str(folder))
                assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"kimera-sql: {expected}\n"), command
            ran = run("doctor", "--backups", str(folder), "--json", DATABASE_URL=newest.conninfo)
    finally:
        if isinstance(mode, int):
            path.chmod(0o700)
    assert ran.returncode == 1
    findings = [(one["severity"], one["found"]) for one in json.loads(ran.stdout) if one["subject"] == "backups"]
    assert findings == [("error", expected)]


def test_a_folder_without_backups_yet_is_an_empty_one(tmp_path: Path) -> None:
    assert backup.list_backups(tmp_path) == []
    assert backup.prune_backups(tmp_path) == []


def test_recover_tells_which_folder_it_may_not_enter(open_folder: Path) -> None:
    open_folder.chmod(0o755)
    closed = open_folder / "backups"
    (closed / "wal").mkdir(parents=True)
    user = tools.server_user()
    if user is not None:
        shutil.chown(closed, user)
    closed.chmod(0o000)
    places = ("--base", f"{closed}/base", "--archive", f"{closed}/wal", "--data-dir", f"{open_folder}/new")
    try:
        with unprivileged():
            ran = run("recover", *places, "--to-end")
    finally:
        closed.chmod(0o700)
    assert (ran.returncode, ran.stdout) == (1, "")
    # Before Python 3.14 is_dir tells the two apart.
    told = "{0}/base: Permission denied", "there is no folder {0}/base"
    assert ran.stderr in {f"kimera-sql: {one.format(closed)}\n" for one in told}
