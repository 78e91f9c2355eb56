"""Dumps are proven when they are made, and pruning never takes the last good ones."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from commands import COMMAND, environment, run
from conftest import Server
from psycopg.conninfo import make_conninfo
from strategies import unit

from kimera_sql import (
    InvalidValue,
    SqlitePool,
    UnsupportedByServer,
    add_adapters,
    embeddings,
    geoids,
    metrics,
    portals,
    transitions,
)
from kimera_sql.errors import BackupError, KimeraError
from kimera_sql.ops.backup import dumps as backup
from kimera_sql.ops.backup import tools
from kimera_sql.ops.backup.files import locked
from kimera_sql.sql import Connection

SECRET = "planted-secret: \\ 'ä'"


def fill(conn: Connection, rows: int = 40) -> None:
    states = [
        geoids.insert(
            conn,
            geoids.NewGeoid(
                state_vector=unit(number),
                entropy=number / 7,
                coherence_factor=-0.0,
                energy_level=1e300,
                metadata={"number": number, "text": "ä\n\\"},
                creation_context="" if number % 2 else None,
                tags=["a", "b"][: number % 3],
            ),
        )
        for number in range(rows)
    ]
    for source, target in itertools.pairwise(states):
        transitions.record(conn, source.id, target.id, "association", energy=0.1, error=1e-300)
    for number in range(5):
        embeddings.insert(
            conn, embeddings.NewEmbedding(text_content=f"text {number}", embedding=unit(number), source="test")
        )
    portals.insert(
        conn,
        portals.NewPortal(
            source_dimension=1,
            target_dimension=2,
            radius=0.1,
            energy_requirement=0.2,
            stability_factor=0.3,
            configuration_parameters={"phase": 1},
            status="active",
        ),
    )
    metrics.record(conn, "search_ms", 1 / 3, component="geoids")


@pytest.fixture
def filled(database: str) -> str:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn)
    return database


@pytest.fixture
def conn(filled: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(filled) as conn:
        yield conn


@pytest.fixture(scope="module")
def sample(newest: Server, tmp_path_factory: pytest.TempPathFactory) -> backup.Dump:
    """A dump to copy, of the newest server."""
    database = newest.create(template=newest.template)
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn, 3)
        conn.commit()
        made = backup.dump(conn, tmp_path_factory.mktemp("sample"))
    newest.drop(database)
    return made


def copied(sample: backup.Dump, folder: Path, moment: datetime) -> Path:
    """Put *sample* into *folder* as if it had been made at *moment*."""
    (folder / "dumps").mkdir(parents=True, exist_ok=True)
    path = folder / "dumps" / f"kimera_full_{moment:%Y%m%d_%H%M%S}.dump"
    for suffix in (".dump", ".globals.sql", ".json"):
        shutil.copy(sample.path.with_suffix(suffix), path.with_suffix(suffix))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def flip(path: Path, at: float) -> None:
    """Flip a bit of *path*, *at* of the way through it."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def test_a_dump_is_proven_and_closed_to_others(conn: psycopg.Connection, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "backups"
    made = backup.dump(conn, folder)
    assert made.path.parent == folder / "dumps"
    assert names(folder) == [made.path.with_suffix(suffix).name for suffix in (".dump", ".globals.sql", ".json")]
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "dumps")} == {0o700}
    assert backup.verify(made.path) == backup.manifest(made.path) == made
    assert (made.origin.database, made.origin.server_version) == (conn.info.dbname, conn.info.server_version)
    rows = {table.table: table.rows for table in made.contents.tables}
    assert rows["public.geoid_states"] == 40
    assert rows["public.cognitive_transitions"] == 39
    assert rows["public.semantic_embeddings"] == 5
    assert len(made.contents.searches) == 6
    assert all(search.found[0] == search.sample for search in made.contents.searches)
    assert {len(search.found) for search in made.contents.searches} == {5, 10}
    (listed,) = backup.existing(folder)
    assert (listed.kind, listed.name, listed.complete, listed.rows) == (
        "dump",
        made.path.name,
        True,
        sum(rows.values()),
    )
    assert listed.made_at == made.made_at


def test_two_dumps_have_two_names(conn: psycopg.Connection, tmp_path: Path) -> None:
    first, second = backup.dump(conn, tmp_path), backup.dump(conn, tmp_path)
    assert first.made_at < second.made_at
    assert [one.path for one in backup.existing(tmp_path)] == [second.path, first.path]
    assert backup.newest_dump(tmp_path) == second.path
    assert first.contents == second.contents


def test_what_is_written_after_the_snapshot_is_not_in_the_manifest(filled: str, tmp_path: Path) -> None:
    with psycopg.connect(filled) as conn, psycopg.connect(filled, autocommit=True) as other, held_up(filled):
        dumped: list[backup.Dump] = []
        dumping = threading.Thread(target=lambda: dumped.append(backup.dump(conn, tmp_path)))
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


@contextlib.contextmanager
def held_up(database: str) -> Iterator[None]:
    """Let pg_dump wait for a table that nothing else reads, until the session `holder` ends."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS waited_for (number INTEGER) PARTITION BY RANGE (number)")
    holder = psycopg.connect(database, application_name="holder")
    holder.execute("LOCK TABLE waited_for")
    try:
        yield
    finally:
        holder.close()


def wait_for_pg_dump(conn: psycopg.Connection) -> None:
    for _ in range(1000):
        if conn.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'"
        ).rowcount:
            return
        time.sleep(0.02)
    raise TimeoutError("pg_dump does not wait for the lock")


def children(program: str) -> list[int]:
    """The processes of *program* that this one, or a child of it, has started."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            parents[pid] = int(rest.split()[1])
            if name == program:
                found.append(pid)

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in found if ours(pid)]


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
                backup.dump(conn, tmp_path)
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
    assert backup.prune(tmp_path, keep_days=30, keep=1) == []


def test_an_interrupted_command_ends_pg_dump_and_leaves_nothing(filled: str, tmp_path: Path) -> None:
    with psycopg.connect(filled, autocommit=True) as other, held_up(filled):
        command = subprocess.Popen(
            [*COMMAND, "backup", "dump", "--dir", str(tmp_path)],
            env=environment(DATABASE_URL=filled),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for_pg_dump(other)
        command.send_signal(signal.SIGINT)
        stdout, stderr = command.communicate()
        assert (command.returncode, stdout, stderr) == (130, "", "kimera-sql: interrupted\n")
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
    made = backup.dump(conn, tmp_path)
    assert len(names(tmp_path)) == 3
    assert backup.existing(tmp_path)[0].path == made.path


def test_a_full_disk_leaves_nothing(conn: psycopg.Connection, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no permission to mount a small disk")
    try:
        with pytest.raises(BackupError, match="No space left on device"):
            backup.dump(conn, tmp_path)
        assert names(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("at", [0, 0.01, 0.3, 0.7, 1])
def test_a_flipped_bit_is_found(sample: backup.Dump, tmp_path: Path, at: float) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    backup.verify(path)
    flip(path, at)
    with pytest.raises(BackupError, match="is damaged: its sha256 is not the manifest's"):
        backup.verify(path)


@pytest.mark.parametrize("at", [0.6, 0.75, 0.9])  # past the table of contents, whose texts have no checksum
def test_a_flipped_bit_is_found_without_a_manifest(sample: backup.Dump, tmp_path: Path, at: float) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    path.with_suffix(".json").unlink()
    assert backup.verify(path) is None
    flip(path, at)
    with pytest.raises(BackupError, match=r"cannot be decoded: pg_restore (failed|was ended)"):
        backup.verify(path)


def test_what_is_short_empty_or_something_else_is_found(sample: backup.Dump, tmp_path: Path) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    whole = path.read_bytes()
    for content, said in ((whole[:-100], "bytes, and its manifest says"), (b"", "is empty")):
        path.write_bytes(content)
        with pytest.raises(BackupError, match=said):
            backup.verify(path)
        assert not backup.existing(tmp_path)[0].complete
    path.with_suffix(".json").unlink()
    for content, said in (
        (whole[:-100], "cannot be decoded"),
        (b"", "is empty"),
        (b"-- SQL", "is no dump in pg_dump's custom format"),
    ):
        path.write_bytes(content)
        with pytest.raises(BackupError, match=said):
            backup.verify(path)
    with pytest.raises(BackupError, match="No such file"):
        backup.verify(path.with_name("missing"))


@pytest.mark.parametrize(
    "content", ["", "no JSON", "[]", "{}", '{"contents": 1}', '{"made_at": "x"}', '{"contents": {"tables": [1]}}']
)
def test_a_manifest_that_is_none_is_an_error(sample: backup.Dump, tmp_path: Path, content: str) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(BackupError, match="is no manifest"):
        backup.verify(path)
    assert not backup.existing(tmp_path)[0].complete


def test_damaged_globals_are_found(sample: backup.Dump, tmp_path: Path) -> None:
    path = copied(sample, tmp_path, sample.made_at)
    flip(path.with_suffix(".globals.sql"), 0.5)
    with pytest.raises(BackupError, match=r"globals.sql is damaged"):
        backup.verify(path)
    path.with_suffix(".globals.sql").unlink()
    with pytest.raises(BackupError, match=r"globals.sql: No such file"):
        backup.verify(path)


def test_prune_counts_from_the_newest_good_dump(sample: backup.Dump, tmp_path: Path) -> None:
    last = datetime(2026, 3, 1, 1, tzinfo=UTC)
    paths = [copied(sample, tmp_path, last - timedelta(days=age)) for age in range(40)]
    planned = backup.prune(tmp_path, dry_run=True)
    assert all(path.exists() for path in paths)
    assert backup.prune(tmp_path) == planned
    assert sorted(one.name for one in planned) == sorted(path.name for path in paths[31:])
    assert len(names(tmp_path)) == 3 * 31
    assert backup.prune(tmp_path) == []


def test_forty_days_of_failing_backups_keep_the_last_good_ones(sample: backup.Dump, tmp_path: Path) -> None:
    last = datetime(2026, 3, 1, 1, tzinfo=UTC)
    good = [copied(sample, tmp_path, last - timedelta(days=10 * age)) for age in range(3)]
    for day in range(1, 41):
        failed = copied(sample, tmp_path, last + timedelta(days=day))
        match day % 3:
            case 0:
                failed.write_bytes(b"")
            case 1:
                failed.with_suffix(".json").unlink()
            case _:
                flip(failed, 0.5)
        backup.prune(tmp_path, keep_days=1, keep=3)
        assert all(path.exists() for path in good)
    newest = copied(sample, tmp_path, last + timedelta(days=41))
    backup.prune(tmp_path, keep_days=1, keep=1)
    left = [one.path for one in backup.existing(tmp_path)]
    assert left == [newest, failed]


def test_prune_without_a_good_backup_removes_nothing(sample: backup.Dump, tmp_path: Path) -> None:
    for age in range(3):
        path = copied(sample, tmp_path, sample.made_at - timedelta(days=100 * age))
        flip(path, 0.5)
    before = names(tmp_path)
    with pytest.raises(BackupError, match=r"nothing was removed, as no dump is known to be good:\n.*is damaged"):
        backup.prune(tmp_path)
    assert names(tmp_path) == before


def test_prune_leaves_what_is_not_its_own(sample: backup.Dump, tmp_path: Path) -> None:
    for age in (0, 100):
        copied(sample, tmp_path, sample.made_at - timedelta(days=age))
    foreign = [tmp_path / "dumps" / name for name in ("notes.txt", "kimera_full_99999999_999999.dump", "old.dump")]
    for path in foreign:
        path.write_text("mine")
    assert len(backup.prune(tmp_path, keep=1)) == 1
    assert all(path.read_text() == "mine" for path in foreign)


@pytest.mark.parametrize("options", [{"keep_days": 0}, {"keep_days": -1}, {"keep": 0}, {"keep_days": 10**9}])
def test_prune_refuses_to_keep_nothing(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InvalidValue):
        backup.prune(tmp_path, **options)  # type: ignore[arg-type]


def base_backup(server: Server, folder: Path, moment: datetime) -> Path:
    """Make a base backup as if *moment* were now."""
    (folder / "base").mkdir(parents=True, exist_ok=True)
    path = folder / "base" / f"kimera_base_{moment:%Y%m%d_%H%M%S}"
    with psycopg.connect(server.conninfo) as conn:
        tools.run(
            tools.find("pg_basebackup", conn),
            [f"--pgdata={path}", "--checkpoint=fast", "--manifest-checksums=SHA256"],
            tools.parameters(conn),
        )
    os.utime(path / "backup_manifest", (moment.timestamp(), moment.timestamp()))
    return path


def start(base: Path) -> str:
    return (base / "backup_label").read_text().partition("(file ")[2][:24]


def test_base_backups_are_listed_verified_and_pruned_with_their_wal(server: Server, tmp_path: Path) -> None:
    last = datetime(2026, 3, 1, 1, tzinfo=UTC)
    bases = []
    for age in (33, 32, 31, 10, 0):
        with psycopg.connect(server.conninfo, autocommit=True) as conn:
            conn.execute("SELECT pg_switch_wal()")
        bases.append(base_backup(server, tmp_path, last - timedelta(days=age)))
    archive = tmp_path / "wal"
    archive.mkdir()
    segments = sorted(
        {file.name for base in bases for file in (base / "pg_wal").iterdir() if file.is_file() and len(file.name) == 24}
    )
    first = int(segments[0], 16)
    for number in range(first, int(segments[-1], 16) + 1):
        (archive / f"{number:024X}").write_bytes(b"")
        os.truncate(archive / f"{number:024X}", 2**24)
    listed = backup.existing(tmp_path)
    assert [one.path for one in listed] == bases[::-1]
    major = {"postgres18": "18", "postgres15": "15"}.get(server.name)
    assert {(one.kind, one.complete) for one in listed} == {("base", True)}
    assert major is None or {one.server_version for one in listed} == {major}
    for base in bases:
        assert backup.verify(base) is None

    planned = backup.prune(tmp_path, keep_days=30, dry_run=True)
    assert all(base.exists() for base in bases)
    removed = backup.prune(tmp_path, keep_days=30)
    assert removed == planned
    # The newest that had ended before the 30 days began stays: recovery to their first moment starts from it.
    assert [one.name for one in removed if one.kind == "base"] == [bases[1].name, bases[0].name]
    assert [one.path for one in backup.existing(tmp_path)] == bases[:1:-1]
    left = sorted(path.name for path in archive.iterdir())
    assert left[0] == start(bases[2])
    assert [one.name for one in removed if one.kind == "wal"] == [
        f"{number:024X}" for number in range(first, int(start(bases[2]), 16))
    ]
    assert backup.prune(tmp_path, keep_days=30) == []

    flip(bases[-1] / "PG_VERSION", 0)
    with pytest.raises(BackupError):
        backup.verify(bases[-1])
    (bases[-2] / "global" / "pg_control").unlink()
    with pytest.raises(BackupError, match=r"(?s)is damaged: .*global/pg_control"):
        backup.verify(bases[-2])
    # The last good one stays, however old, and so does its WAL.
    assert backup.prune(tmp_path, keep_days=1) == []
    (archive / left[1]).unlink()
    with pytest.raises(BackupError, match=f"lacks the WAL segment {left[1]}"):
        backup.verify(bases[2])
    with pytest.raises(BackupError, match="nothing was removed, as no base is known to be good"):
        backup.prune(tmp_path, keep_days=1)
    assert [one.path for one in backup.existing(tmp_path)] == bases[:1:-1]


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
        (passfile,) = tmp_path.rglob("passfile")
        assert passfile.stat().st_mode & 0o777 == 0o600
        assert passfile.parent.stat().st_mode & 0o777 == 0o700
        assert "planted-secret" in passfile.read_text()
        (pid,) = children("pg_dump")
        assert "planted-secret" not in Path(f"/proc/{pid}/environ").read_text()
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                seen[str(entry)] = entry.read_text(errors="replace")
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'holder'")
        stdout, stderr = command.communicate()
    assert command.returncode == 0, stderr
    assert not passfile.exists()
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
        backup.dump(conn, folder)


def test_no_server_is_an_error(tmp_path: Path) -> None:
    refused = run("backup", "dump", "--dir", str(tmp_path / "b"), KIMERA_DB_PORT="1", KIMERA_DB_PASSWORD=SECRET)
    assert refused.returncode == 1
    assert refused.stderr.startswith("kimera-sql: no database could be reached")
    assert "planted" not in refused.stderr
    assert not (tmp_path / "b").exists()


def test_sqlite_is_an_error(tmp_path: Path) -> None:
    with SqlitePool(tmp_path / "kimera.db") as pool, pool.connection() as conn, pytest.raises(UnsupportedByServer):
        backup.dump(conn, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def fake_tool(folder: Path, name: str, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
    path.chmod(0o755)
    return path


def test_a_tool_older_than_its_server_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_folders", lambda _: iter([tmp_path / "old", tmp_path / "new", tmp_path / "newer"]))
    old = fake_tool(tmp_path / "old", "pg_dump", "15.5 (Debian 15.5-1)")
    with pytest.raises(BackupError) as caught:
        tools.find("pg_dump", 180004)
    assert str(caught.value).startswith(f"{old} is version 15.5, and the server is 18.4: a tool must not be older")
    assert "postgresql-client-18" in str(caught.value)
    newer, new = fake_tool(tmp_path / "new", "pg_dump", "19.1"), fake_tool(tmp_path / "newer", "pg_dump", "18.0")
    assert tools.find("pg_dump", 180004) == new
    assert tools.find("pg_dump", 160001) == new
    assert tools.find("pg_dump", 150000) == old
    assert tools.find("pg_dump", None) == newer
    with pytest.raises(BackupError, match=r"pg_dump must be of version 16; install .* postgresql-client-16"):
        tools.find("pg_dump", 160001, exact=True)
    broken = fake_tool(tmp_path / "old", "psql", "none")
    with pytest.raises(BackupError, match=f"psql was not found; {broken} does not run; install"):
        tools.find("psql", None)
    with pytest.raises(BackupError, match=r"pg_ctl was not found; install .* package postgresql-16\)"):
        tools.find("pg_ctl", 160001)


def test_the_servers_own_tools_come_first(pg_conn: psycopg.Connection) -> None:
    tool = tools.find("pg_dump", pg_conn)
    assert tools.version(tool) == pg_conn.info.server_version


def test_a_failing_tool_is_an_error_without_secrets(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "no login with $(cat $PGPASSFILE) at $PGHOST as $PGUSER" >&2\nexit 3\n')
    tool.chmod(0o755)
    with pytest.raises(BackupError) as caught:
        tools.run(tool, [], {"password": "plain", "host": "h", "user": "u"})
    assert str(caught.value) == "tool failed (exit status 3)\n  no login with *:*:*:*:*** at h as u"
    with pytest.raises(BackupError, match="cannot be run: No such file"):
        tools.run(tmp_path / "missing", [])


def test_a_tool_sees_no_other_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "elsewhere")
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    monkeypatch.setenv("PGPASSWORD", "other")
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nenv | grep ^PG | sort\n")
    tool.chmod(0o755)
    assert tools.run(tool, [], {"port": "7", "dbname": "d"}) == "PGDATABASE=d\nPGPORT=7\n"


def test_a_tool_ends_with_what_started_it(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\nexec sleep 1000\n")
    tool.chmod(0o755)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tools.run(tool, [], tick=interrupt)
    assert children("sleep") == []


def test_differences_are_told(sample: backup.Dump) -> None:
    held = sample.contents
    assert backup.differences(held, held) == []
    first, second, *others = held.tables
    changed = replace(
        held,
        tables=(replace(first, rows=7), replace(second, checksum="0"), *others[1:], replace(first, table="public.new")),
        searches=(replace(held.searches[0], found=()), *held.searches[1:]),
    )
    assert backup.differences(held, changed) == [
        f"{first.table} has 7 rows instead of {first.rows}",
        f"{second.table} has other values: checksum 0 instead of {second.checksum}",
        f"{others[0].table} is missing",
        "public.new should not be there",
        f"the search for {held.searches[0].sample} in {held.searches[0].table} finds other rows",
    ]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE geoid_states SET coherence_factor = 0 WHERE id = (SELECT id FROM geoid_states LIMIT 1)",
        "UPDATE geoid_states SET creation_context = NULL WHERE creation_context = ''",
        "UPDATE system_metrics SET metric_value = 0.33333333333333337",
        "UPDATE semantic_embeddings SET embedding = (SELECT array_agg(v * 1.0000001)::vector(1024)"
        " FROM unnest(embedding::real[]) AS v)",
    ],
)
def test_the_smallest_change_changes_a_checksum(conn: psycopg.Connection, change: str) -> None:
    backup.settle(conn)
    before = backup.contents(conn)
    assert backup.contents(conn) == before
    assert conn.execute(change.encode()).rowcount
    (told,) = backup.differences(before, backup.contents(conn))
    assert "has other values" in told


def test_the_commands_list_verify_and_prune(sample: backup.Dump, tmp_path: Path) -> None:
    folder = ("--dir", str(tmp_path))
    assert run("backup", "list", *folder).stdout == f"there are no backups in {tmp_path}\n"
    assert run("backup", "verify", *folder).returncode == 1
    paths = [copied(sample, tmp_path, sample.made_at - timedelta(days=age)) for age in (0, 40, 80)]
    listed = json.loads(run("backup", "list", *folder, "--json").stdout)
    assert [one["path"] for one in listed] == [str(path) for path in paths]
    assert run("backup", "list", *folder).stdout.count("yes") == 3
    verified = run("backup", "verify", *folder)
    assert (verified.returncode, verified.stdout.count(": good\n"), verified.stderr) == (0, 3, "")
    tried = run("backup", "prune", *folder, "--keep", "1", "--dry-run")
    assert (tried.returncode, tried.stdout.splitlines()[-1]) == (0, "nothing was removed yet (--dry-run)")
    assert [one["name"] for one in json.loads(run("backup", "prune", *folder, "--keep", "1", "--json").stdout)] == [
        paths[1].name,
        paths[2].name,
    ]
    flip(paths[0], 0.5)
    damaged = run("backup", "verify", *folder, "--json")
    assert damaged.returncode == 1
    assert "sha256" in json.loads(damaged.stdout)[0]["fault"]
    assert run("backup", "verify", str(paths[0])).stdout.startswith("DAMAGED  ")
    assert run("backup", "prune", *folder).returncode == 1
    assert run("backup", "verify").returncode == 1


def test_the_schedule_is_daily_at_one_and_quotes_its_folder(tmp_path: Path) -> None:
    printed = backup.schedule(tmp_path / "it's 100% here")
    assert "OnCalendar=*-*-* 01:00:00 UTC\n" in printed
    assert "\n0 1 * * * root " in printed
    assert "100\\% here" in printed
    assert "100%% here" in printed
    assert printed.count("--keep-days 30") == 2
    line = next(line for line in printed.splitlines() if line.startswith("0 1")).replace("\\%", "%")
    script = line.partition("&& ")[2].replace("kimera-sql", "printf '%s\\n'")
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.splitlines().count(str(tmp_path / "it's 100% here")) == 3
    failing = line.partition("&& ")[2].replace("kimera-sql", "! echo")
    said = subprocess.run(["sh", "-c", failing], capture_output=True, text=True, check=False).stdout
    assert said.startswith("backup dump ")
    assert said.count("\n") == 1
    assert run("backup", "schedule", "--dir", str(tmp_path)).stdout.startswith("# /etc/systemd/system/")


def test_a_manifest_holds_no_connection(conn: psycopg.Connection, tmp_path: Path) -> None:
    made = backup.dump(conn, tmp_path)
    assert "password" not in json.dumps(asdict(made), default=str)
    assert conn.info.host not in made.path.with_suffix(".json").read_text()
