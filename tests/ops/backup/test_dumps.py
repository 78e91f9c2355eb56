"""Dumps are proven when they are made, and damage is found later."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_backups import SECRET, children, copied, flip, held_up, names, wait_for_pg_dump
from fix_servers import Server
from psycopg.conninfo import make_conninfo

from kimera_sql import SqlitePool, UnsupportedByServer
from kimera_sql.errors import BackupError, KimeraError
from kimera_sql.ops import backup
from kimera_sql.ops.backup import dumps, tools
from kimera_sql.ops.backup.dumps import describe_dump
from kimera_sql.ops.backup.files import locked

pytestmark = [pytest.mark.slow, pytest.mark.ends]


@pytest.fixture
def conn(filled: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(filled) as conn:
        yield conn


def test_a_dump_is_proven_and_closed_to_others(conn: psycopg.Connection, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "backups"
    made = backup.make_dump(conn, folder)
    assert made.path.parent == folder / "dumps"
    assert names(folder) == [made.path.with_suffix(suffix).name for suffix in (".dump", ".globals.sql", ".json")]
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "dumps")} == {0o700}
    assert backup.verify_backup(made.path) == describe_dump(made.path) == made
    assert (made.origin.database, made.origin.server_version) == (conn.info.dbname, conn.info.server_version)
    rows = {table.table: table.rows for table in made.contents.tables}
    assert rows["public.geoid_states"] == 40
    assert rows["public.cognitive_transitions"] == 39
    assert rows["public.semantic_embeddings"] == 5
    assert len(made.contents.searches) == 6
    assert all(search.found[0] == search.sample for search in made.contents.searches)
    assert {len(search.found) for search in made.contents.searches} == {5, 10}
    (listed,) = backup.list_backups(folder)
    assert (listed.kind, listed.name, listed.complete, listed.rows) == (
        "dump",
        made.path.name,
        True,
        sum(rows.values()),
    )
    assert listed.made_at == made.made_at


def test_two_dumps_have_two_names(conn: psycopg.Connection, tmp_path: Path) -> None:
    first, second = backup.make_dump(conn, tmp_path), backup.make_dump(conn, tmp_path)
    assert first.made_at < second.made_at
    assert [one.path for one in backup.list_backups(tmp_path)] == [second.path, first.path]
    assert backup.newest_dump(tmp_path) == second.path
    assert first.contents == second.contents


@pytest.mark.parametrize(
    ("make", "table", "said"),
    [
        ("", "portal_configurations", "no lock for 0.4 s: "),
        # One without rows of its own, which pg_dump alone locks
        ("CREATE TABLE parts (n INTEGER) PARTITION BY LIST (n)", "parts", "pg_dump failed (exit status 1)\n"),
    ],
)
def test_a_locked_table_is_waited_for_no_longer_than_half_a_minute(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, table: str, said: str
) -> None:
    assert dumps._LOCK_TIMEOUT == 30
    monkeypatch.setattr(dumps, "_LOCK_TIMEOUT", 0.4)
    with psycopg.connect(filled) as other:
        other.execute(make.encode())
        other.commit()
        other.execute(f"LOCK {table} IN ACCESS EXCLUSIVE MODE".encode())
        ran = run("backup", "dump", "--dir", str(tmp_path), DATABASE_URL=filled)
        held = f"{table} is locked against readers by process {other.info.backend_pid}"
        other.rollback()
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"kimera-sql: {said}")
    assert held in ran.stderr
    assert list((tmp_path / "dumps").iterdir()) == []


def test_what_is_written_after_the_snapshot_is_not_in_the_manifest(filled: str, tmp_path: Path) -> None:
    with psycopg.connect(filled) as conn, psycopg.connect(filled, autocommit=True) as other, held_up(filled):
        dumped: list[backup.Dump] = []
        dumping = threading.Thread(target=lambda: dumped.append(backup.make_dump(conn, tmp_path)))
        dumping.start()
        wait_for_pg_dump(other)
        other.execute("DELETE FROM system_metrics")
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'")
        dumping.join()
    (made,) = dumped
    assert {table.table: table.rows for table in made.contents.tables}["public.system_metrics"] == 1
    script = subprocess.run(
        [tools.find("pg_restore", None), "--data-only", "--table=system_metrics", "--file=-", made.path],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "search_ms" in script.stdout


def test_pg_dump_killed_half_way_leaves_nothing_and_prunes_nothing(
    filled: str, sample: backup.Dump, tmp_path: Path
) -> None:
    for day in (1, 20):
        copied(sample, tmp_path, datetime(2020, 1, day, 1, tzinfo=UTC))
    before = names(tmp_path)
    with psycopg.connect(filled) as conn:
        conn.execute("CREATE TABLE bulk AS SELECT n, md5(n::text) AS text FROM generate_series(1, 400000) AS n")
        conn.commit()
        failures: list[Exception] = []

        def dump() -> None:
            try:
                backup.make_dump(conn, tmp_path)
            except KimeraError as error:
                failures.append(error)

        dumping = threading.Thread(target=dump)
        dumping.start()
        while not any(partial.stat().st_size for partial in tmp_path.glob("dumps/.kimera_full_*.dump.partial")):
            assert dumping.is_alive()
            time.sleep(0.005)
        (pid,) = children("pg_dump")
        os.kill(pid, signal.SIGKILL)
        dumping.join()
        # The connection is as it was before.
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert [str(error) for error in failures] == ["pg_dump was ended by signal 9"]
    assert names(tmp_path) == before
    # Both are older than 30 days, but the older one is not 30 days older than the newest good one.
    assert backup.prune_backups(tmp_path, keep_days=30, keep=1) == []


@pytest.mark.ends
@pytest.mark.parametrize(
    ("signals", "code", "said"),
    [
        ([signal.SIGINT], 130, "interrupted"),
        ([signal.SIGTERM], 143, "terminated"),
        ([signal.SIGHUP], 129, "the terminal was closed"),
        # The second does not cut the cleaning up short.
        ([signal.SIGINT, signal.SIGINT, signal.SIGTERM], 130, "interrupted"),
    ],
)
def test_an_interrupted_command_ends_pg_dump_and_leaves_nothing(
    filled: str, tmp_path: Path, signals: list[signal.Signals], code: int, said: str
) -> None:
    with psycopg.connect(filled, autocommit=True) as other, held_up(filled):
        command = subprocess.Popen(
            [*COMMAND, "backup", "dump", "--dir", str(tmp_path)],
            env=environment(DATABASE_URL=filled),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_pg_dump(other)
        for number in signals:
            command.send_signal(number)
            time.sleep(0.05)
        stdout, stderr = command.communicate()
        assert (command.returncode, stdout, stderr) == (code, "", f"kimera-sql: {said}\n")
        assert children("pg_dump") == []
        assert names(tmp_path) == []


def test_a_second_dump_at_the_same_time_is_refused(filled: str, tmp_path: Path) -> None:
    with locked(tmp_path / "dumps"):
        refused = run("backup", "dump", "--dir", str(tmp_path), DATABASE_URL=filled)
    assert refused.returncode == 1
    assert "another backup or pruning is at work in" in refused.stderr


def test_what_a_killed_run_left_is_removed(conn: psycopg.Connection, tmp_path: Path) -> None:
    (tmp_path / "dumps").mkdir()
    (tmp_path / "dumps" / ".kimera_full_20200101_010000.dump.partial").write_text("half")
    made = backup.make_dump(conn, tmp_path)
    assert len(names(tmp_path)) == 3
    assert backup.list_backups(tmp_path)[0].path == made.path


@pytest.mark.needs("root")
def test_a_full_disk_leaves_nothing(conn: psycopg.Connection, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        with pytest.raises(BackupError, match="No space left on device") as caught:
            backup.make_dump(conn, tmp_path)
        assert caught.value.__notes__ == [f"the disk that {tmp_path}/dumps is on is full"]
        assert names(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("at", [0, 0.01, 0.3, 0.7, 1])
def test_a_flipped_bit_is_found(sample: backup.Dump, tmp_path: Path, at: float) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    backup.verify_backup(path)
    flip(path, at)
    with pytest.raises(BackupError, match="is damaged: its sha256 is not the manifest's"):
        backup.verify_backup(path)


@pytest.mark.parametrize("at", [0.6, 0.75, 0.9])  # past the table of contents, whose texts have no checksum
def test_a_flipped_bit_is_found_without_a_manifest(sample: backup.Dump, tmp_path: Path, at: float) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    path.with_suffix(".json").unlink()
    assert backup.verify_backup(path) is None
    flip(path, at)
    with pytest.raises(BackupError, match=r"cannot be decoded: pg_restore (failed|was ended)"):
        backup.verify_backup(path)


def test_what_is_short_empty_or_something_else_is_found(sample: backup.Dump, tmp_path: Path) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    whole = path.read_bytes()
    for content, said in ((whole[:-100], "bytes, and its manifest says"), (b"", "is empty")):
        path.write_bytes(content)
        with pytest.raises(BackupError, match=said):
            backup.verify_backup(path)
        assert not backup.list_backups(tmp_path)[0].complete
    path.with_suffix(".json").unlink()
    for content, said in (
        (whole[:-100], "cannot be decoded"),
        (b"", "is empty"),
        (b"-- SQL", "is no dump in pg_dump's custom format"),
    ):
        path.write_bytes(content)
        with pytest.raises(BackupError, match=said):
            backup.verify_backup(path)
    with pytest.raises(BackupError, match="No such file"):
        backup.verify_backup(path.with_name("missing"))


@pytest.mark.parametrize(
    "content", ["", "no JSON", "[]", "{}", '{"contents": 1}', '{"made_at": "x"}', '{"contents": {"tables": [1]}}']
)
def test_a_manifest_that_is_none_is_an_error(sample: backup.Dump, tmp_path: Path, content: str) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(BackupError, match="is no manifest"):
        backup.verify_backup(path)
    assert not backup.list_backups(tmp_path)[0].complete


def test_damaged_globals_are_found(sample: backup.Dump, tmp_path: Path) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    flip(path.with_suffix(".globals.sql"), 0.5)
    with pytest.raises(BackupError, match=r"globals.sql is damaged"):
        backup.verify_backup(path)
    path.with_suffix(".globals.sql").unlink()
    with pytest.raises(BackupError, match=r"globals.sql: No such file"):
        backup.verify_backup(path)


def test_the_password_is_nowhere(filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = make_conninfo(filled, password=SECRET)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    seen: dict[str, str] = {}
    with psycopg.connect(filled, autocommit=True) as other, held_up(filled):
        command = subprocess.Popen(
            [*COMMAND, "backup", "dump", "--dir", str(tmp_path / "backups")],
            env=environment(DATABASE_URL=planted),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_pg_dump(other)
        (pid,) = children("pg_dump")
        environ = Path(f"/proc/{pid}/environ").read_text()
        assert "planted-secret" not in environ
        (descriptor,) = re.findall("PGPASSFILE=/dev/fd/([0-9]+)", environ)
        passfile = Path(f"/proc/{pid}/fd/{descriptor}")
        assert "planted-secret" in passfile.read_text()
        assert str(passfile.readlink()).startswith("/memfd:")
        assert passfile.stat().st_mode & 0o777 == 0o600
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen[str(entry)] = entry.read_text(errors="replace")
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'")
        stdout, stderr = command.communicate()
    assert command.returncode == 0, stderr
    assert any("--snapshot=" in line for line in seen.values())
    written = {path.name: path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()}
    assert len(written) == 3
    for text in (stdout, stderr, *seen.values(), *written.values()):
        assert "planted-secret" not in text


def test_a_role_without_rights_is_told_so_and_leaves_nothing(server: Server, filled: str, tmp_path: Path) -> None:
    role = f"kimera_role_{os.getpid()}_{server.name}"
    with psycopg.connect(filled, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN".encode())
    try:
        refused = run("backup", "dump", "--dir", str(tmp_path), DATABASE_URL=make_conninfo(filled, user=role))
        assert refused.returncode == 1
        assert "permission denied for table" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert names(tmp_path) == []
        with psycopg.connect(filled, autocommit=True) as admin:
            admin.execute(f"GRANT pg_read_all_data TO {role}".encode())
            admin.execute(f"ALTER ROLE {role} PASSWORD '{SECRET.replace(chr(39), '')}'".encode())
        ran = run("backup", "dump", "--dir", str(tmp_path), "--json", DATABASE_URL=make_conninfo(filled, user=role))
        assert (ran.returncode, ran.stderr) == (0, "")
        made = Path(json.loads(ran.stdout)["path"])
        text = made.with_suffix(".globals.sql").read_text()
        assert f"CREATE ROLE {role}" in text
        assert "PASSWORD" not in text
    finally:
        with psycopg.connect(filled, autocommit=True) as admin:
            admin.execute(f"DROP ROLE {role}".encode())


@pytest.mark.parametrize("bad", ["a file in its place", "no permission", "a missing disk"])
def test_a_folder_that_cannot_be_used_is_an_error(conn: psycopg.Connection, tmp_path: Path, bad: str) -> None:
    folder = {"a file in its place": tmp_path / "file", "no permission": Path("/proc/backups")}.get(
        bad, Path("/dev/null/backups")
    )
    if bad == "a file in its place":
        folder.write_text("a file")
    with pytest.raises(BackupError, match=str(folder)):
        backup.make_dump(conn, folder)


def test_no_server_is_an_error(tmp_path: Path) -> None:
    refused = run("backup", "dump", "--dir", str(tmp_path / "b"), KIMERA_DB_PORT="1", KIMERA_DB_PASSWORD=SECRET)
    assert refused.returncode == 1
    assert refused.stderr.startswith("kimera-sql: no database could be reached")
    assert "planted" not in refused.stderr
    assert not (tmp_path / "b").exists()


def test_sqlite_is_an_error(tmp_path: Path) -> None:
    with SqlitePool(tmp_path / "kimera.db") as pool, pool.connection() as conn, pytest.raises(UnsupportedByServer):
        backup.make_dump(conn, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_manifest_holds_no_connection(conn: psycopg.Connection, tmp_path: Path) -> None:
    made = backup.make_dump(conn, tmp_path)
    assert "password" not in json.dumps(asdict(made), default=str)
    assert conn.info.host not in made.path.with_suffix(".json").read_text()
