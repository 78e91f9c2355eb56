"""A configuration outside the data folder, as Debian has it, goes with base backups and into recovered servers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_servers import free_port
from psycopg.conninfo import make_conninfo

from kimera_sql.errors import BackupError
from kimera_sql.ops import backup
from kimera_sql.ops.backup.base_backups import describe_base, verify_base
from kimera_sql.ops.backup.configuration import COPY, Configuration, configure, read_configuration

VERSION = max((path.parts[-3] for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default="", key=int)
"""The newest that Debian's packages have installed here."""

OUTSIDE = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d/10-memory.conf", "conf.d/deeper.inc")


@dataclass(frozen=True)
class Debian:
    """A cluster of pg_createcluster's. conninfo: a superuser's. folder: where its data, log and backups are."""

    name: str
    folder: Path
    conninfo: str

    @property
    def etc(self) -> Path:
        return Path("/etc/postgresql", VERSION, self.name)

    def connect(self, **parameters: str) -> psycopg.Connection[Any]:
        return psycopg.connect(make_conninfo(self.conninfo, **parameters), autocommit=True)


@pytest.fixture(scope="module")
def debian() -> Iterator[Debian]:
    name, port = f"kimera_test_{os.getpid()}", free_port()
    with tempfile.TemporaryDirectory(prefix="kimera_test_") as parent:
        folder = Path(parent)
        folder.chmod(0o755)
        for place in ("sockets", "backups", "backups/wal"):
            (folder / place).mkdir(0o700)
            shutil.chown(folder / place, "postgres")
        (folder / "sockets").chmod(0o755)
        with created(name, folder / "data", folder / "log", port, "--", "--auth=trust", "--no-sync"):
            made = Debian(name, folder, make_conninfo("", host=str(folder / "sockets"), port=port, user="postgres"))
            configured = backup.postgresql_conf(backup.archive_settings(folder / "backups"))
            own = {"listen_addresses": "127.0.0.2", "unix_socket_directories": str(folder / "sockets")}
            texts = {
                "conf.d/10-memory.conf": "shared_buffers = 48MB\nmax_connections = 123\ninclude 'deeper.inc'\n",
                "conf.d/deeper.inc": "shared_preload_libraries = 'pg_stat_statements'\n",
                "conf.d/20-own.conf": configured + backup.postgresql_conf(own) + "fsync = off\nssl = off\n",
                "conf.d/ignored.txt": "nonsense\n",
            }
            for path, text in texts.items():
                (made.etc / path).write_text(text)
            with (made.etc / "pg_hba.conf").open("a") as hba:
                hba.write("host all,replication all 127.0.0.2/32 trust\n")
            with (made.etc / "pg_ident.conf").open("a") as ident:
                ident.write("people root postgres\n")
            subprocess.run(["pg_ctlcluster", VERSION, name, "start"], check=True)
            with made.connect() as conn:
                conn.execute("CREATE TABLE notes AS SELECT 'before' AS note")
                conn.execute("CREATE ROLE nightly LOGIN REPLICATION")
                conn.execute("CREATE ROLE seeing LOGIN REPLICATION IN ROLE pg_read_all_settings")
            yield made


@contextmanager
def created(name: str, data: Path, log: Path, port: int, *options: str) -> Iterator[None]:
    """Make a cluster of Debian's of *data*, and drop it in the end."""
    command = ["pg_createcluster", VERSION, name, f"--datadir={data}", f"--logfile={log}", f"--port={port}", *options]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["pg_dropcluster", VERSION, name, "--stop"], check=True)


@pytest.fixture
def new(debian: Debian) -> Iterator[Path]:
    """Where to recover to."""
    path = debian.folder / "recovered"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def value(conn: psycopg.Connection[Any], query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def archived(debian: Debian, note: str) -> None:
    with debian.connect() as conn:
        conn.execute("INSERT INTO notes VALUES (%s)", [note])
        name = value(conn, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        conn.execute("SELECT pg_switch_wal()")
    while not (debian.folder / f"backups/wal/{name}.gz").exists():
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.needs("root", "pg_createcluster")
def test_a_recovered_server_has_its_configuration_and_becomes_a_cluster(debian: Debian, new: Path) -> None:
    """With the commands that recover prints, as they are printed."""
    with debian.connect() as conn:
        made = backup.make_base(conn, debian.folder / "backups")
    assert made.lacking == ()
    assert (made.path / COPY).stat().st_mode & 0o777 == 0o600
    assert {str(debian.etc / name) for name in (*OUTSIDE, "conf.d/20-own.conf")} == set(
        read_configuration(made.path).files
    )
    archived(debian, "after")
    ran = run(
        "recover", "--base", str(made.path), "--archive", str(debian.folder / "backups/wal"), "--data-dir", str(new),
        "--to-end", "--json",
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    told = json.loads(ran.stdout)
    assert told["commands"] == [
        f"pg_createcluster {VERSION} {debian.name}_recovered --datadir={new}",
        f"pg_ctlcluster {VERSION} {debian.name}_recovered start",
    ]
    taken = [note for note in told["notes"] if note.startswith("left out of the configuration: port: ")]
    assert len(taken) == 1
    assert any("archive_mode, archive_command: the archive is the original server's" in note for note in told["notes"])
    name = f"{debian.name}_recovered"
    try:
        for command in told["commands"]:
            subprocess.run(["sh", "-c", command], check=True, capture_output=True)
        port = subprocess.run(["pg_lsclusters", "-h"], capture_output=True, text=True, check=True).stdout
        (port,) = [line.split()[2] for line in port.splitlines() if line.split()[1] == name]
        with psycopg.connect(f"host=/var/run/postgresql port={port} user=postgres") as conn:
            assert [note for (note,) in conn.execute("SELECT note FROM notes")] == ["before", "after"]
            shown = {
                setting: value(conn, f"SHOW {setting}")
                for setting in ("shared_preload_libraries", "shared_buffers", "max_connections", "archive_mode")
            }
            assert shown == {
                "shared_preload_libraries": "pg_stat_statements",
                "shared_buffers": "48MB",
                "max_connections": "123",
                "archive_mode": "off",
            }
            assert value(conn, "SELECT map_name FROM pg_ident_file_mappings") == "people"
            assert not value(conn, "SELECT pg_is_in_recovery()")
    finally:
        subprocess.run(["pg_dropcluster", VERSION, name, "--stop"], check=True)


@pytest.mark.slow
@pytest.mark.needs("root", "pg_createcluster")
def test_a_role_that_may_not_see_the_configuration_is_told_what_it_takes(debian: Debian, new: Path) -> None:
    conninfo = make_conninfo(debian.conninfo, user="nightly", dbname="postgres")
    ran = run("backup", "base", "--dir", str(debian.folder / "backups"), DATABASE_URL=conninfo)
    assert ran.returncode == 0
    assert ran.stderr == (
        "kimera-sql: the configuration is outside the data folder and not in the backup, as the role may not see where "
        'it is: GRANT pg_read_all_settings TO "nightly"\n'
    )
    base = max((debian.folder / "backups/base").iterdir())
    recovered = backup.recover(base, debian.folder / "backups/wal", new, backup.Target())
    assert recovered.notes[0] == describe_base(base).lacking[0]
    assert "pg_ident.conf is not in the backup; it is empty now" in recovered.notes
    assert "pg_hba.conf is not in the backup; the new one says 'local all all peer'" in recovered.notes
    # pg_createcluster refuses a folder without it.
    assert (new / "pg_ident.conf").read_text() == ""


@pytest.mark.slow
@pytest.mark.needs("root", "pg_createcluster")
def test_what_the_server_may_not_read_for_a_role_is_read_here_or_named(debian: Debian) -> None:
    with debian.connect(user="seeing", dbname="postgres") as conn:
        made = backup.make_base(conn, debian.folder / "backups")
    assert made.lacking == ()
    assert len(read_configuration(made.path).files) == len(OUTSIDE) + 1
    # An address that is not known to be this machine's
    with debian.connect(user="seeing", dbname="postgres", host="127.0.0.2") as conn:
        made = backup.make_base(conn, debian.folder / "backups")
    assert made.lacking == tuple(
        f"{debian.etc / name} is outside the data folder and not in the backup: the role may not read it, and the "
        "server is on another machine"
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf")
    )
    hidden = debian.etc / "conf.d/10-memory.conf"
    moved = hidden.rename(hidden.with_name("moved"))
    try:
        hidden.symlink_to("nowhere")
        with debian.connect() as conn:
            made = backup.make_base(conn, debian.folder / "backups")
        assert made.lacking == (f"{hidden} is outside the data folder and not in the backup: it is missing",)
    finally:
        hidden.unlink()
        moved.rename(hidden)


@pytest.mark.slow
@pytest.mark.needs("root", "pg_createcluster")
def test_a_copy_that_is_damaged_is_found(debian: Debian, new: Path) -> None:
    with debian.connect() as conn:
        base = backup.make_base(conn, debian.folder / "backups").path
    try:
        text = (base / COPY).read_text()
        for damaged in (text.replace("48MB", "84MB"), text[:-9], "[]"):
            (base / COPY).write_text(damaged)
            for verify in (verify_base, lambda path: backup.recover(path, path.parent, new, backup.Target())):
                with pytest.raises(BackupError, match=f"{COPY} is damaged: "):
                    verify(base)
    finally:
        shutil.rmtree(base)


@pytest.mark.slow
@pytest.mark.needs("root", "pg_createcluster")
def test_wal_is_received_by_a_role_with_replication_alone_and_recovered_from(debian: Debian, new: Path) -> None:
    """Segments that were packed, and the one that was still being received."""
    folder = debian.folder / "received"
    conninfo = make_conninfo(debian.conninfo, user="nightly", dbname="postgres")
    process = subprocess.Popen(
        [*COMMAND, "backup", "receive-wal", "--dir", str(folder)], env=environment(DATABASE_URL=conninfo)
    )
    try:
        with debian.connect() as conn:
            while not conn.execute("SELECT FROM pg_stat_replication WHERE state = 'streaming'").rowcount:
                assert process.poll() is None
                time.sleep(0.02)
            with debian.connect(user="nightly", dbname="postgres") as least:
                base = backup.make_base(least, folder).path
            for note in ("packed", "being received"):
                conn.execute("INSERT INTO notes VALUES (%s)", [note])
                name = value(conn, "SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
                if note == "packed":
                    conn.execute("SELECT pg_switch_wal()")
            previous = f"{int(name, 16) - 1:024X}"
            end = value(conn, "SELECT pg_current_wal_flush_lsn()::text")
            arrived = "SELECT FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn >= %s"
            while not ((folder / f"wal/{previous}.gz").exists() and conn.execute(arrived, [end]).rowcount):
                assert process.poll() is None
                time.sleep(0.05)
    finally:
        process.terminate()
        process.wait()
    with debian.connect() as conn:
        while conn.execute("SELECT FROM pg_replication_slots WHERE active").rowcount:
            time.sleep(0.02)
        conn.execute("SELECT pg_drop_replication_slot('kimera_archive')")
        expected = conn.execute("SELECT note FROM notes ORDER BY note").fetchall()
    assert (folder / f"wal/{name}.partial").exists()
    with pytest.raises(BackupError, match=r"the user postgres, cannot read .* \(chown -R\)"):
        backup.recover(base, folder / "wal", new, backup.Target(), os_user="postgres")
    subprocess.run(["chown", "-R", "postgres", folder], check=True)
    recovered = backup.recover(base, folder / "wal", new, backup.Target(), keep_running=True)
    try:
        query = ["psql", "-XAt", "-h", str(new), "-c", "SELECT note FROM notes ORDER BY note", "postgres"]
        # Its pg_hba.conf lets the operating system's user in.
        said = subprocess.run(query, check=True, capture_output=True, text=True, user="postgres", cwd="/").stdout
        assert said.splitlines() == [note for (note,) in expected]
    finally:
        if recovered.running:
            subprocess.run(
                [f"/usr/lib/postgresql/{VERSION}/bin/pg_ctl", "stop", "-s", "-mi", "-D", new],
                check=True,
                user="postgres",
                cwd="/",
            )


def configured(tmp_path: Path, conf: str, auto: str = "", **files: str) -> tuple[list[str], str, str]:
    """What becomes of a configuration: the notes, postgresql.conf and postgresql.auto.conf."""
    (tmp_path / "postgresql.auto.conf").write_text(auto)
    texts = {"/etc/own/main.conf": conf, **{f"/etc/own/{name}": text for name, text in files.items()}}
    notes = configure(tmp_path, Configuration({"config_file": "/etc/own/main.conf"}, texts, ()))
    return notes, (tmp_path / "postgresql.conf").read_text(), (tmp_path / "postgresql.auto.conf").read_text()


def test_what_is_included_stands_where_the_inclusion_stood(tmp_path: Path) -> None:
    _, text, _ = configured(
        tmp_path,
        "a.a = 1\ninclude_dir 'more'\nINCLUDE_IF_EXISTS = '../own/none'\ninclude = one\nz.z = 1\n",
        **{
            "more/2.conf": "a.two = 2",
            "more/1.conf": "include 'x/y.inc'",
            "more/x/y.inc": "a.y = 'it''s'",
            "one": "o.o = 1",
        },
    )
    kept = [line for line in text.splitlines() if not line.startswith("#")]
    assert kept == ["a.a = 1", "a.y = 'it''s'", "a.two = 2", "o.o = 1", "z.z = 1"]


def test_of_a_setting_that_stands_twice_the_last_one_stays(tmp_path: Path) -> None:
    """pg_createcluster changes the first line of a setting, and the server heeds the last."""
    _, text, _ = configured(tmp_path, "a.a = 1\nb.b = 1\nA.a 2\ninclude one\n", one="b.b = 2")
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["A.a 2", "b.b = 2"]


def test_no_value_that_was_left_out_stays_in_the_files(tmp_path: Path) -> None:
    notes, text, auto = configured(
        tmp_path,
        "Primary_ConnInfo 'password=of-the-standby'\nwork_mem = 4MB # kept\n#port = 1\n",
        "archive_command = 'push --key of-the-archive'\n"
        "synchronous_standby_names = 'a'\n"
        "recovery_target_time = 'now'\n",
    )
    assert "of-the" not in text + auto + "".join(notes)
    assert text.splitlines()[-2:] == ["work_mem = 4MB # kept", "#port = 1"]
    assert [line.split()[1] for line in auto.splitlines()] == [
        "archive_command",
        "synchronous_standby_names",
        "recovery_target_time",
    ]
    assert all(line.startswith("# ") for line in auto.splitlines())


def test_a_port_is_left_out_where_it_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        notes, text, _ = configured(tmp_path, f"port = {port}\n")
        assert f"left out of the configuration: port: something on this machine listens on {port}" in notes
        assert f"port = {port}" not in text
    assert f"port = {port}\n" in configured(tmp_path, f"port = {port}\n")[1]


def test_tls_is_left_out_where_its_files_are_not_there(tmp_path: Path) -> None:
    conf = (
        f"ssl = on\nssl_cert_file = '{tmp_path}/cert'\nssl_key_file = 'key'\nssl_ca_file = '/none/ca'\n"
        "ssl_crl_file = ''\n"
    )
    notes, text, _ = configured(tmp_path, conf)
    assert {line.split()[1] for line in text.splitlines() if "was left out" in line} == {
        "ssl",
        "ssl_cert_file",
        "ssl_key_file",
        "ssl_ca_file",
    }
    assert f"left out of the configuration: ssl: {tmp_path}/cert and {tmp_path}/key is not there" in notes
    for name in ("cert", "key"):
        (tmp_path / name).touch()
    _, text, _ = configured(tmp_path, conf)
    assert [line for line in text.splitlines() if "was left out" in line] == [
        "# ssl_ca_file was left out: /none/ca is not there"
    ]


def test_a_folder_for_sockets_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert "left out" not in configured(tmp_path, f"unix_socket_directories = '{tmp_path}, /tmp'\n")[1]
    assert "left out" in configured(tmp_path, f"unix_socket_directories = '{tmp_path}, /none'\n")[1]
