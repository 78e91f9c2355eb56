"""Base backups are whole and verified, or not there; the server archives with the settings that are printed."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from commands import COMMAND, environment, run
from fix_clusters import NAMES, PASSWORD, Cluster, arguments_of_all, cluster, files_with

from kimera_sql.errors import BackupError, InvalidValue, UnsupportedByServer
from kimera_sql.ops import backup
from kimera_sql.ops.backup import files, tools
from kimera_sql.ops.backup.archiving import archives_into
from kimera_sql.ops.backup.base_backups import describe_base, verify_base

pytestmark = [pytest.mark.slow, pytest.mark.ends]


@pytest.fixture(scope="module", params=NAMES)
def archiving(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster(request.param) as made:
        with made.connect() as conn:
            conn.execute(
                "CREATE TABLE notes AS SELECT n, repeat('note', 100) AS note FROM generate_series(1, 1000) AS n"
            )
            conn.execute(f"CREATE ROLE secretive LOGIN REPLICATION PASSWORD '{PASSWORD}'".encode())
            conn.execute("CREATE ROLE modest LOGIN")
            conn.execute("CREATE ROLE refused LOGIN REPLICATION")
        yield made


@pytest.fixture
def folder(archiving: Cluster, tmp_path: Path) -> Path:
    return tmp_path / "backups"


def test_a_base_backup_is_made_and_verified(archiving: Cluster, folder: Path) -> None:
    with archiving.connect() as conn:
        made = backup.make_base(conn, folder)
        assert made.major == conn.info.server_version // 10000
    assert made.path.parent == folder / "base"
    assert made.path.name.startswith("kimera_base_")
    assert [path.name for path in (folder / "base").iterdir()] == [made.path.name]
    assert (made.path / "backup_manifest").is_file()
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in made.path.rglob("*"))
    assert describe_base(made.path) == made
    assert made.timeline == 1
    assert int(made.end_lsn.partition("/")[2], 16) > int(made.start_lsn.partition("/")[2], 16)
    verify_base(made.path)


def test_two_in_a_row_have_names_of_their_own(archiving: Cluster, folder: Path) -> None:
    with archiving.connect() as conn:
        made = [backup.make_base(conn, folder) for _ in range(2)]
    assert len({one.path for one in made}) == 2
    assert all(one.path.is_dir() for one in made)


def test_a_changed_bit_or_a_missing_file_is_found(archiving: Cluster, folder: Path) -> None:
    with archiving.connect() as conn:
        path = backup.make_base(conn, folder).path
    largest = max((path / "base").rglob("*"), key=lambda one: one.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(BackupError, match="checksum mismatch for file") as failed:
        verify_base(path)
    assert str(failed.value).startswith(f"{path} is damaged: ")
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    verify_base(path)
    (path / "base" / "foreign").touch()
    with pytest.raises(BackupError, match="is present on disk but not in the manifest"):
        verify_base(path)
    (path / "base" / "foreign").unlink()
    largest.unlink()
    with pytest.raises(BackupError, match="is present in the manifest but not on disk"):
        verify_base(path)


def test_damaged_wal_of_its_own_is_found(archiving: Cluster, folder: Path) -> None:
    with archiving.connect() as conn:
        path = backup.make_base(conn, folder).path
    for segment in (path / "pg_wal").glob("0*"):
        segment.write_bytes(bytes(segment.stat().st_size))
    with pytest.raises(BackupError, match="WAL parsing failed"):
        verify_base(path)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"WAL-Ranges": [], "Files": []}', "\0", "nonsense"])
def test_what_is_no_manifest_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "backup_manifest").write_text(text)
    with pytest.raises(BackupError, match="its manifest or PG_VERSION cannot be read"):
        describe_base(tmp_path)


def test_what_is_no_base_backup_is_told(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(BackupError, match="is no base backup: it has no backup_manifest"):
            verify_base(path)


def test_a_role_that_may_not_is_told_so(archiving: Cluster, folder: Path) -> None:
    with archiving.connect(user="modest") as conn:
        with pytest.raises(BackupError, match=r'the role modest may not .* ALTER ROLE "modest" REPLICATION'):
            backup.make_base(conn, folder)
        with pytest.raises(BackupError, match="the role modest may not"):
            backup.receive_wal(conn, folder)
    assert not folder.exists()


def test_what_pg_basebackup_is_refused_leaves_nothing(archiving: Cluster, folder: Path) -> None:
    with (
        archiving.connect(user="refused") as conn,
        pytest.raises(BackupError, match=r"pg_basebackup failed .*\n.*pg_hba.conf rejects replication connection"),
    ):
        backup.make_base(conn, folder)
    assert list(folder.rglob("*")) == [folder / "base"]


def test_killed_half_way_leaves_no_final_name_and_the_next_one_cleans_up(archiving: Cluster, folder: Path) -> None:
    with archiving.connect() as conn:
        conn.execute("CREATE TABLE bulk AS SELECT n, md5(n::text) AS text FROM generate_series(1, 400000) AS n")
    variables = environment(DATABASE_URL=archiving.conninfo)
    process = subprocess.Popen([*COMMAND, "backup", "base", "--dir", str(folder)], env=variables)
    while not list(folder.glob("base/.kimera_base_*.partial/*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(folder.glob("base/kimera_base_*")) == []
    with archiving.connect() as conn:
        conn.execute("DROP TABLE bulk")
        # pg_basebackup outlives its parent for as long as it has something to receive.
        while conn.execute("SELECT FROM pg_stat_replication").rowcount:
            time.sleep(0.05)
        made = backup.make_base(conn, folder)
    assert [path.name for path in (folder / "base").iterdir()] == [made.path.name]


@pytest.mark.needs("root")
def test_a_full_disk_leaves_nothing(archiving: Cluster, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", tmp_path], check=True)
    try:
        ran = run("backup", "base", "--dir", str(tmp_path), DATABASE_URL=archiving.conninfo)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith("kimera-sql: pg_basebackup failed (exit status 1)\n")
        assert "No space left on device" in ran.stderr
        assert list(tmp_path.rglob("*")) == [tmp_path / "base"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_two_at_once_are_refused(archiving: Cluster, folder: Path) -> None:
    with (
        archiving.connect() as conn,
        files.locked(folder / "base"),
        pytest.raises(BackupError, match="another backup or pruning is at work"),
    ):
        backup.make_base(conn, folder)
    assert list(folder.rglob("*")) == [folder / "base"]


def test_tablespaces_elsewhere_are_refused_by_name(archiving: Cluster, folder: Path) -> None:
    place = archiving.folder / "place"
    place.mkdir(0o700)
    if user := tools.server_user():
        shutil.chown(place, user)
    with archiving.connect() as conn:
        conn.execute(f"CREATE TABLESPACE elsewhere LOCATION '{place}'".encode())
        try:
            with pytest.raises(BackupError, match=r"tablespaces outside its data folder \(elsewhere\)"):
                backup.make_base(conn, folder)
        finally:
            conn.execute("DROP TABLESPACE elsewhere")
    assert not folder.exists()


def test_a_connection_in_a_transaction_and_sqlite_are_refused(archiving: Cluster, folder: Path) -> None:
    with archiving.connect() as conn:
        conn.autocommit = False
        with pytest.raises(InvalidValue, match="conn: expected an autocommit connection"):
            backup.make_base(conn, folder)
    with (
        closing(sqlite3.connect(":memory:")) as file,
        pytest.raises(UnsupportedByServer, match="an SQLite database has no base backups"),
    ):
        backup.make_base(file, folder)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_told(archiving: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with archiving.connect() as conn, pytest.raises(BackupError, match="file"):
        backup.make_base(conn, tmp_path / "file")


def test_the_command_shows_no_password(archiving: Cluster, folder: Path) -> None:
    conninfo = f"{archiving.conninfo} user=secretive password={PASSWORD}"
    process = subprocess.Popen(
        [*COMMAND, "backup", "base", "--dir", str(folder), "--json"],
        env=environment(DATABASE_URL=conninfo),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    seen = ""
    while process.poll() is None:
        seen += arguments_of_all()
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (0, "")
    assert json.loads(stdout)["timeline"] == 1
    assert "pg_basebackup" in seen
    assert PASSWORD not in seen + stdout + stderr + (archiving.folder / "log").read_text()
    assert files_with(PASSWORD, folder) == []


def test_a_wrong_password_is_not_repeated(archiving: Cluster, folder: Path) -> None:
    ran = run(
        "backup", "base", "--dir", str(folder),
        DATABASE_URL=f"{archiving.conninfo} user=secretive password=wrong-{PASSWORD}",
    )  # fmt: skip
    assert ran.returncode == 1
    assert "password authentication failed" in ran.stderr
    assert PASSWORD not in ran.stdout + ran.stderr
    assert not folder.exists()


def test_the_server_archives_with_the_printed_settings(archiving: Cluster) -> None:
    for _ in range(2):
        archiving.switch()
    with archiving.connect() as conn:
        row = conn.execute("SELECT failed_count FROM pg_stat_archiver").fetchone()
    assert row == (0,)
    assert {path.stat().st_mode & 0o777 for path in archiving.wal.iterdir()} == {0o600}
    assert [path.name for path in archiving.wal.glob(".*")] == [".written_by_archive_command"]
    sizes = [path.stat().st_size for path in archiving.wal.glob("*.gz")]
    assert sizes
    assert min(sizes) < 2**18


def test_settings_for_a_folder_with_every_kind_of_character(archiving: Cluster, open_folder: Path) -> None:
    """The server takes the setting as it is meant, and the shell runs it."""
    folder = open_folder / "a b'c\"d$e%f%%\\g;#"
    (folder / "wal").mkdir(parents=True)
    segment = open_folder / "segment"
    segment.write_bytes(b"content")
    settings = backup.archive_settings(folder)
    with archiving.connect() as conn:
        before = (archiving.folder / "data/postgresql.auto.conf").read_text()
        try:
            (archiving.folder / "data/postgresql.auto.conf").write_text(before + backup.postgresql_conf(settings))
            row = conn.execute(
                "SELECT setting FROM pg_file_settings WHERE name = 'archive_command' ORDER BY seqno DESC"
            ).fetchone()
        finally:
            (archiving.folder / "data/postgresql.auto.conf").write_text(before)
    assert row == (settings["archive_command"],)
    command = settings["archive_command"].replace("%%", "\0").replace("%p", str(segment)).replace("%f", "NAME")
    subprocess.run(["sh", "-c", command.replace("\0", "%")], check=True)
    assert (folder / "wal/NAME").read_bytes() == b"content"


@pytest.mark.parametrize("timeout", [0, -1, 86401, True, "300", 1.5])
def test_a_timeout_that_cannot_be_is_refused(tmp_path: Path, timeout: int) -> None:
    with pytest.raises(InvalidValue, match="timeout"):
        backup.archive_settings(tmp_path, timeout=timeout)


def test_a_folder_with_a_line_break_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="control characters"):
        backup.archive_settings(tmp_path / "a\nb")


def test_the_command_prints_the_settings(tmp_path: Path) -> None:
    ran = run("backup", "archive-command", "--dir", str(tmp_path), "--timeout", "60")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "\nwal_level = 'replica'\narchive_mode = 'on'\narchive_command = '" in ran.stdout
    assert f'put "%p" {shlex.quote(str(tmp_path))}/wal/%f\'\n' in ran.stdout
    assert ran.stdout.endswith("\narchive_timeout = '60s'\n")
    told = run("backup", "archive-command", "--dir", str(tmp_path), "--json")
    assert json.loads(told.stdout) == backup.archive_settings(tmp_path)
    refused = run("backup", "archive-command", "--dir", str(tmp_path), "--timeout", "0")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "timeout: 0 is not within 1 to 86400" in refused.stderr


def test_wal_is_received_until_stopped(archiving: Cluster, folder: Path) -> None:
    conninfo = f"{archiving.conninfo} user=secretive password={PASSWORD}"
    command = [*COMMAND, "backup", "receive-wal", "--dir", str(folder), "--slot", "tests"]
    with archiving.connect() as conn:
        for end in (signal.SIGINT, signal.SIGTERM):
            process = subprocess.Popen(
                command,
                env=environment(DATABASE_URL=conninfo),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            while not conn.execute("SELECT FROM pg_stat_replication WHERE state = 'streaming'").rowcount:
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            assert PASSWORD not in arguments_of_all()
            conn.execute("CREATE TABLE received ()")
            conn.execute("DROP TABLE received")
            row = conn.execute("SELECT pg_walfile_name(pg_current_wal_lsn())").fetchone()
            assert row is not None
            conn.execute("SELECT pg_switch_wal()")
            while not (folder / "wal" / f"{row[0]}.gz").exists():
                assert process.poll() is None, process.communicate()
                time.sleep(0.02)
            process.send_signal(end)
            stdout, stderr = process.communicate()
            assert process.returncode in (130, 128 + signal.SIGTERM)
            assert PASSWORD not in stdout + stderr
            while conn.execute("SELECT FROM pg_stat_replication").rowcount:
                time.sleep(0.02)
        assert {path.stat().st_mode & 0o777 for path in (folder / "wal").iterdir()} == {0o600}
        conn.execute("SELECT pg_drop_replication_slot('tests')")


def test_a_receiver_whose_server_ends_the_connection_is_an_error(archiving: Cluster, folder: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "backup", "receive-wal", "--dir", str(folder), "--slot", "tests"],
        env=environment(DATABASE_URL=archiving.conninfo),
        stderr=subprocess.PIPE,
        text=True,
    )
    with archiving.connect() as conn:
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE state = 'streaming'"
        while not conn.execute(ended.encode()).rowcount:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        _, stderr = process.communicate()
        conn.execute("SELECT pg_drop_replication_slot('tests')")
    assert process.returncode == 1
    assert stderr.startswith("kimera-sql: pg_receivewal failed")


def test_an_archive_that_the_server_writes_into_is_not_received_into(archiving: Cluster, tmp_path: Path) -> None:
    """Neither before the server has archived anything there, as its setting says it will, nor afterwards."""
    archiving.switch()
    planned = tmp_path / "it's"
    with archiving.connect() as conn:
        before = (archiving.folder / "data/postgresql.auto.conf").read_text()
        for command in (
            backup.archive_settings(planned)["archive_command"],
            f'cp %p "{planned}/wal/%f"',
        ):
            conn.execute(f"ALTER SYSTEM SET archive_command = $${command}$$".encode())
            conn.execute("SELECT pg_reload_conf()")
            while conn.execute("SELECT FROM pg_settings WHERE setting = %s", [command]).rowcount == 0:
                time.sleep(0.02)
            with pytest.raises(BackupError, match=r"the server's archive_command writes into .* has one writer"):
                backup.receive_wal(conn, planned)
        (archiving.folder / "data/postgresql.auto.conf").write_text(before)
        conn.execute("SELECT pg_reload_conf()")
        assert list((planned / "wal").iterdir()) == []
        elsewhere = tmp_path / "copy"
        shutil.copytree(archiving.wal, elsewhere / "wal")
        with pytest.raises(BackupError, match="is already written by archive_command, and an archive has one writer"):
            backup.receive_wal(conn, elsewhere)
        assert conn.execute("SELECT FROM pg_replication_slots").rowcount == 0


@pytest.mark.parametrize("folder", ["/a/b", "/a b/it's", "/a/b%f"])
def test_a_command_that_archives_elsewhere_is_not_taken_for_one_that_archives_here(folder: str) -> None:
    archive = Path(folder, "wal")
    own = backup.archive_settings(Path(folder))["archive_command"]
    for command in (own, f"test ! -f {archive}/%f && cp %p {archive}", f'cp %p "{archive}/%f"', f"cp -t {archive} %p"):
        assert archives_into(command, archive)
    elsewhere = backup.archive_settings(Path(folder + "2"))["archive_command"]
    for command in ("", elsewhere, f"cp %p {archive}2/%f", f"cp %p /mnt{archive}/%f", f"cp %p {archive}-old/%f"):
        assert not archives_into(command, archive)


@pytest.mark.needs("root")
def test_an_archive_of_another_user_is_not_received_into(archiving: Cluster, folder: Path) -> None:
    (folder / "wal").mkdir(parents=True)
    shutil.chown(folder / "wal", "nobody")
    with archiving.connect() as conn, pytest.raises(BackupError, match="belongs to the user nobody, and this is root"):
        backup.receive_wal(conn, folder)
    assert list((folder / "wal").iterdir()) == []


@pytest.mark.parametrize("slot", ["", "Upper", "with space", "x" * 64, "a;b"])
def test_a_slot_name_that_cannot_be_is_refused(archiving: Cluster, folder: Path, slot: str) -> None:
    with archiving.connect() as conn, pytest.raises(InvalidValue, match="slot: expected up to 63 of"):
        backup.receive_wal(conn, folder, slot=slot)
    assert not folder.exists()
