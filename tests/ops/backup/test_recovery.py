"""Point-in-time recovery: between two commits, and no harm when it cannot be done."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_clusters import NAMES, PASSWORD, Cluster, cluster, files_with, start, stop
from psycopg.conninfo import make_conninfo

from kimera_sql import geoids, migrate
from kimera_sql.errors import BackupError, InvalidValue
from kimera_sql.ops import backup
from kimera_sql.ops.backup import Target, tools
from kimera_sql.ops.backup.base_backups import describe_base
from kimera_sql.ops.backup.clone import Clone

pytestmark = [pytest.mark.slow, pytest.mark.ends]

Rows = list[tuple[Any, ...]]

CONTENTS = "SELECT id, metadata ->> 'name', vector_send(state_vector) FROM geoid_states ORDER BY timestamp, id"


@dataclass(frozen=True)
class History:
    """A server's history: a row before the base backup, "first" and "second" after it, each with a segment's end."""

    cluster: Cluster
    base: Path
    before: datetime
    between: datetime
    lsn: str
    xid: int
    segments: list[str]
    rows: Rows

    @property
    def wal(self) -> Path:
        return self.cluster.wal


@pytest.fixture(scope="module", params=NAMES)
def history(request: pytest.FixtureRequest) -> Iterator[History]:
    with cluster(request.param) as made, made.connect() as conn:
        conn.execute("CREATE EXTENSION vector")
        conn.execute(f"CREATE ROLE secretive LOGIN REPLICATION PASSWORD '{PASSWORD}'".encode())
        migrate(conn)
        with made.connect() as anew:
            insert(anew, "old")
            before = now(anew)
            time.sleep(1)  # the time in a manifest is to the second
            base = backup.make_base(anew, made.backups).path
            time.sleep(1)
            segments = []
            xid = insert(anew, "first")
            between = now(anew)
            anew.execute("SELECT pg_create_restore_point('between')")
            lsn = value(anew, "SELECT pg_current_wal_insert_lsn()::text")
            for name in ("second", "third", "fourth"):
                segments.append(value(anew, "SELECT pg_walfile_name(pg_current_wal_lsn())"))
                made.switch()
                insert(anew, name)
            made.switch()
            yield History(made, base, before, between, lsn, xid, segments, anew.execute(CONTENTS).fetchall())


def insert(conn: psycopg.Connection[Any], name: str) -> int:
    """Insert a row, and return the transaction's number."""
    vector = np.random.default_rng(len(name)).standard_normal(1024)
    with conn.transaction():
        new = geoids.NewGeoid(
            state_vector=vector, entropy=0.4, coherence_factor=0.9, energy_level=1.2, metadata={"name": name}
        )
        geoids.insert(conn, new)
        return int(value(conn, "SELECT pg_current_xact_id()::text"))


def value(conn: psycopg.Connection[Any], query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def now(conn: psycopg.Connection[Any]) -> datetime:
    moment = value(conn, "SELECT clock_timestamp()")
    assert isinstance(moment, datetime)
    return moment


@pytest.fixture
def data(history: History) -> Iterator[Path]:
    """Where to recover to; what runs there is stopped in the end."""
    path = history.cluster.folder / "re covered 'it'"
    yield path
    if (path / "postmaster.pid").exists():
        stop(history.cluster.binaries, path)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def archive(history: History) -> Iterator[Path]:
    """A copy of the archive, unpacked, to be damaged."""
    path = history.cluster.folder / "a 'copy' 100%f"
    shutil.copytree(history.wal, path)
    for packed in path.glob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    if user := tools.server_user():
        for one in (path, *path.iterdir()):
            shutil.chown(one, user)
    yield path
    shutil.rmtree(path)


def contents(data: Path) -> Rows:
    with psycopg.connect(make_conninfo("", host=str(data), user="postgres", dbname="postgres")) as conn:
        return conn.execute(CONTENTS).fetchall()


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["time", "name", "lsn", "xid"])
def test_between_two_commits_the_first_is_kept_and_the_second_is_not(history: History, data: Path, kind: str) -> None:
    target = {
        "time": Target(time=history.between),
        "name": Target(name="between"),
        "lsn": Target(lsn=history.lsn),
        "xid": Target(xid=history.xid),
    }[kind]
    recovered = backup.recover(history.base, history.wal, data, target, keep_running=True)
    found = contents(data)
    assert [row[1] for row in found] == ["old", "first"]
    assert found == history.rows[:2]
    assert recovered.last_commit is not None
    assert history.before < recovered.last_commit <= history.between
    assert recovered.stopped.startswith("recovery stopping ")
    assert (recovered.timeline, recovered.running, recovered.data_dir) == (2, True, data)
    assert recovered.segments >= 1


def test_to_the_end_everything_is_there_to_the_bit(history: History, data: Path) -> None:
    recovered = backup.recover(history.base, history.wal, data, Target(), keep_running=True)
    found = contents(data)
    assert [row[1] for row in found] == ["old", "first", "second", "third", "fourth"]
    assert found == history.rows
    assert recovered.stopped == ""


def test_it_is_stopped_and_starts_again_as_a_server_of_its_own(history: History, data: Path) -> None:
    recovered = backup.recover(history.base, history.wal, data, Target(name="between"))
    assert not recovered.running
    assert not (data / "postmaster.pid").exists()
    assert not (data / "recovery.signal").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (data, *data.rglob("*")))
    before = listed(history.wal)
    # As somebody would who knows nothing of its history: with the settings that it has itself.
    conf = (data / "postgresql.conf").read_text()
    (data / "postgresql.conf").write_text(conf + backup.postgresql_conf({"unix_socket_directories": str(data)}))
    start(history.cluster.binaries, data, history.cluster.folder / "again.log")
    with psycopg.connect(
        make_conninfo("", host=str(data), user="postgres", dbname="postgres"), autocommit=True
    ) as conn:
        assert value(conn, "SHOW archive_mode") == "off"
        assert value(conn, "SHOW restore_command") == ""
        assert value(conn, "SHOW recovery_target_name") == ""
        conn.execute("CREATE TABLE written ()")
        conn.execute("SELECT pg_switch_wal()")
        conn.execute("CHECKPOINT")
        assert not value(conn, "SELECT pg_is_in_recovery()")
    assert listed(history.wal) == before
    assert not list(history.wal.glob("*.history"))


def test_the_clone_does_not_archive_while_it_runs(history: History, data: Path) -> None:
    before = listed(history.wal)
    backup.recover(history.base, history.wal, data, Target(name="between"), keep_running=True)
    with psycopg.connect(
        make_conninfo("", host=str(data), user="postgres", dbname="postgres"), autocommit=True
    ) as conn:
        assert value(conn, "SHOW archive_mode") == "off"
        assert value(conn, "SHOW listen_addresses") == ""
        conn.execute("SELECT pg_switch_wal()")
    assert listed(history.wal) == before


@pytest.mark.parametrize("damage", ["bit", "missing", "manifest"])
def test_a_tampered_base_backup_is_found_before_anything_is_made(history: History, data: Path, damage: str) -> None:
    base = history.cluster.folder / "tampered"
    shutil.copytree(history.base, base)
    victim = max((base / "base").rglob("*"), key=lambda path: path.stat().st_size)
    try:
        if damage == "bit":
            content = bytearray(victim.read_bytes())
            content[100] ^= 1
            victim.write_bytes(content)
        elif damage == "missing":
            victim.unlink()
        else:
            (base / "backup_manifest").write_text((base / "backup_manifest").read_text().replace("SHA256", "NONE", 1))
        with pytest.raises(BackupError, match=f"{base} is damaged: "):
            backup.recover(base, history.wal, data, Target())
    finally:
        shutil.rmtree(base)
    assert not data.exists()


def test_a_gap_is_named(history: History, data: Path, archive: Path) -> None:
    missing = history.segments[2]
    (archive / missing).unlink()
    with pytest.raises(BackupError, match=f"{archive} lacks the WAL segment {missing}: the end of the archive cannot"):
        backup.recover(history.base, archive, data, Target())
    assert not data.exists()
    last = history.rows[-1]
    with history.cluster.connect() as conn:
        row = conn.execute("SELECT timestamp FROM geoid_states WHERE id = %s", [last[0]]).fetchone()
    assert row is not None
    with pytest.raises(BackupError, match=f"was not found .* the archive lacks the WAL segment {missing}$"):
        backup.recover(history.base, archive, data, Target(time=row[0] - timedelta(milliseconds=1)))
    assert not data.exists()
    # What lies before the gap can still be had.
    backup.recover(history.base, archive, data, Target(time=history.between), keep_running=True)
    assert contents(data) == history.rows[:2]


def test_a_gap_before_a_position_is_named_and_one_after_it_does_not_matter(
    history: History, data: Path, archive: Path
) -> None:
    (archive / history.segments[1]).unlink()
    late = f"0/{int(history.segments[2][16:], 16) * segment_size(history) + 40:X}"
    with pytest.raises(BackupError, match=f"lacks the WAL segment {history.segments[1]}: the position {late} cannot"):
        backup.recover(history.base, archive, data, Target(lsn=late))
    assert not data.exists()
    backup.recover(history.base, archive, data, Target(lsn=history.lsn), keep_running=True)
    assert contents(data) == history.rows[:2]


def segment_size(history: History) -> int:
    return len(gzip.decompress((history.wal / f"{history.segments[0]}.gz").read_bytes()))


def test_a_segment_that_is_cut_off_is_named(history: History, data: Path, archive: Path) -> None:
    path = archive / history.segments[1]
    os.truncate(path, 4096)
    with pytest.raises(BackupError, match=f"{path} is damaged: it has 4,096 bytes"):
        backup.recover(history.base, archive, data, Target())
    path.write_bytes(bytes(segment_size(history)))
    with pytest.raises(BackupError, match=f"{path} is damaged: it is no segment of WAL"):
        backup.recover(history.base, archive, data, Target())
    assert not data.exists()


def test_a_segment_that_is_damaged_inside_does_not_pass_for_the_end(
    history: History, data: Path, archive: Path
) -> None:
    path = archive / history.segments[1]
    content = bytearray(path.read_bytes())
    content[40:2000] = bytes(1960)
    path.write_bytes(content)
    with pytest.raises(BackupError, match=r"is damaged: nothing after \S+ can be read"):
        backup.recover(history.base, archive, data, Target())
    assert not data.exists()


@pytest.mark.parametrize("damage", ["bit", "cut off", "empty"])
def test_a_packed_segment_that_is_damaged_is_named(history: History, data: Path, archive: Path, damage: str) -> None:
    name = history.segments[1]
    packed = archive / f"{name}.gz"
    content = bytearray((history.wal / packed.name).read_bytes())
    if damage == "bit":
        content[-6] ^= 1  # of its checksum: many bits of packed zeros change nothing
    packed.write_bytes(content[: {"bit": None, "cut off": len(content) // 2, "empty": 0}[damage]])
    packed.chmod(0o644)
    (archive / name).unlink()
    with pytest.raises(BackupError, match=f"{packed} is damaged: "):
        backup.recover(history.base, archive, data, Target())
    assert not data.exists()


def test_what_was_still_being_received_is_replayed(history: History, data: Path, archive: Path) -> None:
    last = max(path for path in archive.iterdir() if len(path.name) == 24)
    last.rename(last.with_name(f"{last.name}.partial"))
    recovered = backup.recover(history.base, archive, data, Target(), keep_running=True)
    assert contents(data) == history.rows
    assert recovered.segments >= 1


@pytest.mark.needs("root")
def test_a_file_of_another_user_is_named_before_anything_is_made(history: History, data: Path, archive: Path) -> None:
    path = archive / history.segments[2]
    os.chown(path, 0, 0)
    path.chmod(0o600)
    with pytest.raises(
        BackupError, match=rf"as the user \w+, cannot read .* give it all files .*\n.*{path.name}: Perm"
    ):
        backup.recover(history.base, archive, data, Target())
    assert not data.exists()


def test_a_base_backup_without_wal_is_verified_with_the_archives(history: History, data: Path) -> None:
    base = history.cluster.folder / "without wal"
    shutil.copytree(history.base, base)
    try:
        for segment in (base / "pg_wal").glob("0*"):
            segment.unlink()
        assert backup.recover(base, history.wal, data, Target()).timeline == 2
        with pytest.raises(BackupError, match="lacks the WAL segment"):
            backup.recover(base, history.base / "global", data.with_name("none"), Target())
    finally:
        shutil.rmtree(base)


def test_the_archive_of_another_server_is_told(history: History, data: Path, archive: Path) -> None:
    for path in archive.glob("0*"):
        content = bytearray(path.read_bytes())
        content[24] ^= 1
        path.write_bytes(content)
    with pytest.raises(BackupError, match="is of another server than"):
        backup.recover(history.base, archive, data, Target())
    assert not data.exists()


@pytest.mark.parametrize("existed", [True, False])
def test_a_target_before_the_backups_end_is_told(history: History, data: Path, existed: bool) -> None:
    if existed:
        data.mkdir(0o755)
    made = describe_base(history.base)
    for target, told in (
        (Target(time=history.before), "begun at "),
        (Target(time=made.started_at), "begun at "),
        (Target(lsn=made.start_lsn), f"ends at {made.end_lsn}"),
        (Target(lsn="0/1"), f"ends at {made.end_lsn}"),
    ):
        with pytest.raises(BackupError, match=r"is before the end of the base backup .* take an older") as failed:
            backup.recover(history.base, history.wal, data, target)
        assert told in str(failed.value)
    assert data.exists() == existed
    assert not existed or not list(data.iterdir())


def test_a_target_past_the_archives_end_is_told_with_its_last_commit(history: History, data: Path) -> None:
    data.mkdir(0o750)
    with pytest.raises(
        BackupError, match=r"the time .* was not found .*; the last commit there is of 20\d\d-"
    ) as failed:
        backup.recover(history.base, history.wal, data, Target(time=datetime.now(UTC)))
    last = datetime.fromisoformat(str(failed.value).rpartition(" of ")[2])
    assert history.between < last < datetime.now(UTC)
    assert list(data.iterdir()) == []
    assert (data.stat().st_mode & 0o777, data.stat().st_uid) == (0o750, os.geteuid())
    for target in (Target(name="never made"), Target(xid=history.xid + 1000)):
        with pytest.raises(BackupError, match="was not found between the end of the base backup") as failed:
            backup.recover(history.base, history.wal, data, target)
        assert "SELECT pg_switch_wal()" in failed.value.__notes__[0]
    with pytest.raises(BackupError, match="the position FF/0 is past the end of the archive") as failed:
        backup.recover(history.base, history.wal, data, Target(lsn="FF/0"))
    assert "SELECT pg_switch_wal()" in failed.value.__notes__[0]
    assert list(data.iterdir()) == []
    assert processes(data) == ""


def processes(data: Path) -> str:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return "".join(line for line in found if str(data) in line and "pytest" not in line)


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(history: History, data: Path) -> None:
    data.mkdir(0o755)
    (data / "note").write_text("kept")
    for path in (data, data / "note"):
        with pytest.raises(BackupError, match=f"{path} is not empty; name a new folder; nothing was changed"):
            backup.recover(history.base, history.wal, path, Target())
    assert (data / "note").read_text() == "kept"
    assert data.stat().st_mode & 0o777 == 0o755


def test_folders_that_cannot_be_are_told(history: History, data: Path) -> None:
    for base, wal, target, told in (
        (data, history.wal, data, "there is no folder"),
        (history.base, data, data, "there is no folder"),
        (history.wal, history.wal, data, "is no base backup"),
        (history.base, history.wal, data / "a/b", "there is no folder"),
        (history.base, history.wal, history.base / "new", "is inside"),
        (history.base, history.wal, history.wal / "new", "is inside"),
        (history.base, history.wal, data.with_name("x" * 200), "too long for the socket"),
        (history.base, history.wal, data.with_name("$HOME"), "has a character that pg_ctl cannot take"),
        (history.base, history.base / "global", data, "cannot read|cannot be reached|has no WAL|past"),
    ):
        with pytest.raises(BackupError, match=told):
            backup.recover(base, wal, target, Target(name="between"))
    assert not data.exists()


def test_a_user_that_cannot_run_a_server_is_told(history: History, data: Path) -> None:
    for user in ("no-such-user", "root"):
        with pytest.raises(BackupError, match=r"there is no user no-such-user|does not run as root|only root can"):
            backup.recover(history.base, history.wal, data, Target(), os_user=user)
    if os.geteuid() == 0:
        with pytest.raises(BackupError, match=r"as the user nobody, cannot read .* --os-user"):
            backup.recover(history.base, history.wal, data, Target(), os_user="nobody")
    assert not data.exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"time": datetime(2026, 1, 1)},
            "time: 2026-01-01T00:00:00 has no time zone",
        ),
        ({"time": "2026-01-01 00:00 UTC"}, "time: expected a datetime, got str"),
        ({"time": datetime.now(UTC) + timedelta(days=1)}, "is in the future"),
        ({"name": ""}, "name: expected a restore point's name of 1 to 63 bytes"),
        ({"name": "x" * 64}, "name: expected a restore point's name of 1 to 63 bytes"),
        ({"name": "a\0b"}, "name: "),
        ({"lsn": ""}, "lsn: expected a position such as 0/3000148, got ''"),
        ({"lsn": "123456789/0"}, "lsn: expected a position"),
        ({"lsn": 7}, "lsn: expected a str"),
        ({"xid": 2}, "xid: 2 is not within"),
        ({"xid": True}, "xid: expected an integer"),
        ({"xid": 2**63}, "xid: "),
        ({"name": "a", "xid": 5}, "give one of time, name, lsn and xid, not name and xid"),
    ],
)
def test_a_target_that_cannot_be_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidValue) as failed:
        Target(**fields)
    assert told in str(failed.value)


def test_the_command_recovers_and_says_what_was_reached(history: History, data: Path) -> None:
    ran = run(
        "recover", "--base", str(history.base), "--archive", str(history.wal), "--data-dir", str(data),
        "--to", history.between.isoformat(), "--json",
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    told = json.loads(ran.stdout)
    assert (told["timeline"], told["running"]) == (2, False)
    assert datetime.fromisoformat(told["last_commit"]) <= history.between
    assert PASSWORD not in ran.stdout + (data / "recovery.log").read_text()
    assert files_with(PASSWORD, data, history.base, history.wal) == []


@pytest.mark.parametrize(
    ("time", "told"),
    [
        (
            "2026-01-01T00:00:00",
            "--to: 2026-01-01T00:00:00 has no time zone; write one behind it, as in 2026-01-01T00:00:00+00:00",
        ),
        ("2026-01-01", "has no time zone; write one behind it, as in 2026-01-01T00:00:00+00:00"),
        ("2999-01-01T00:00:00+00:00", "--to: 2999-01-01T00:00:00+00:00 is in the future"),
        ("yesterday", "--to: expected a time such as 2025-07-04T08:15:00+00:00, got 'yesterday'"),
        ("", "--to: expected a time such as"),
    ],
)
def test_the_command_refuses_a_time_without_a_zone(tmp_path: Path, time: str, told: str) -> None:
    ran = run("recover", "--base", str(tmp_path), "--archive", str(tmp_path), "--data-dir", "x", "--to", time)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert told in ran.stderr


def test_a_target_must_be_chosen(tmp_path: Path) -> None:
    folders = ("--base", str(tmp_path), "--archive", str(tmp_path), "--data-dir", "x")
    for targets in ((), ("--to-end", "--to-name", "a")):
        assert run("recover", *folders, *targets).returncode == 2


def started(history: History, data: Path) -> subprocess.Popen[str]:
    """A command that recovers into *data*, whose server has begun to run."""
    process = subprocess.Popen(
        [
            *COMMAND,
            "recover",
            "--base",
            str(history.base),
            "--archive",
            str(history.wal),
            "--data-dir",
            str(data),
            "--to-end",
        ],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (data / "postmaster.pid").exists():
        assert process.poll() is None
        time.sleep(0.005)
    return process


def test_interrupted_it_leaves_neither_server_nor_folder(history: History, data: Path) -> None:
    process = started(history, data)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "kimera-sql: interrupted\n")
    assert not data.exists()
    assert processes(data) == ""


def test_a_killed_recovery_ends_its_server_and_the_next_one_begins_anew(history: History, data: Path) -> None:
    process = started(history, data)
    process.kill()
    process.communicate()
    for _ in range(500):
        if not processes(data):
            break
        time.sleep(0.02)
    assert processes(data) == ""
    assert (data / "kimera_recovery.unfinished").exists()
    (data / "of the one that was killed").touch()
    backup.recover(history.base, history.wal, data, Target())
    assert not (data / "kimera_recovery.unfinished").exists()
    assert not (data / "of the one that was killed").exists()


def test_a_recovery_that_is_at_work_is_left_alone(history: History, data: Path) -> None:
    with Clone(data, Path("pg_ctl"), None).claimed():
        with pytest.raises(BackupError, match=f"another recovery is at work in {re.escape(str(data))}; wait for it"):
            backup.recover(history.base, history.wal, data, Target())
        assert (data / "kimera_recovery.unfinished").exists()
