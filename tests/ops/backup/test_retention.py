"""Pruning never takes the last good backups."""

from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from commands import run
from fix_backups import base_backup, copied, flip, names
from fix_servers import Server

from kimera_sql import InvalidValue
from kimera_sql.errors import BackupError
from kimera_sql.ops import backup

pytestmark = [pytest.mark.slow, pytest.mark.ends]


def test_prune_counts_from_the_newest_good_dump(sample: backup.Dump, tmp_path: Path) -> None:
    last = datetime(2026, 3, 1, 1, tzinfo=UTC)
    paths = [copied(sample, tmp_path, last - timedelta(days=age)) for age in range(40)]
    planned = backup.prune_backups(tmp_path, dry_run=True)
    assert all(path.exists() for path in paths)
    assert backup.prune_backups(tmp_path) == planned
    assert sorted(one.name for one in planned) == sorted(path.name for path in paths[31:])
    assert len(names(tmp_path)) == 3 * 31
    assert backup.prune_backups(tmp_path) == []


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
        backup.prune_backups(tmp_path, keep_days=1, keep=3)
        assert all(path.exists() for path in good)
    newest = copied(sample, tmp_path, last + timedelta(days=41))
    backup.prune_backups(tmp_path, keep_days=1, keep=1)
    left = [one.path for one in backup.list_backups(tmp_path)]
    # Those without their manifests stay too, as nothing says whose last ones they are.
    unknown = [path for path in sorted(failed.parent.glob("*.dump"))[::-1] if not path.with_suffix(".json").exists()]
    assert (len(unknown), unknown[0]) == (14, failed)
    assert left == [newest, *unknown]


def test_prune_without_a_good_backup_removes_nothing(sample: backup.Dump, tmp_path: Path) -> None:
    for age in range(3):
        path = copied(sample, tmp_path, sample.made_at - timedelta(days=100 * age))
        flip(path, 0.5)
    before = names(tmp_path)
    with pytest.raises(
        BackupError,
        match=r"nothing was removed, as no dump of \w+ of the server \d+ is known to be good:\n.*is damaged",
    ):
        backup.prune_backups(tmp_path)
    assert names(tmp_path) == before


def test_prune_leaves_what_is_not_its_own(sample: backup.Dump, tmp_path: Path) -> None:
    for age in (0, 100):
        copied(sample, tmp_path, sample.made_at - timedelta(days=age))
    foreign = [tmp_path / "dumps" / name for name in ("notes.txt", "kimera_full_99999999_999999.dump", "old.dump")]
    for path in foreign:
        path.write_text("mine")
    assert len(backup.prune_backups(tmp_path, keep=1)) == 1
    assert all(path.read_text() == "mine" for path in foreign)


@pytest.mark.parametrize("options", [{"keep_days": 0}, {"keep_days": -1}, {"keep": 0}, {"keep_days": 10**9}])
def test_prune_refuses_to_keep_nothing(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(InvalidValue):
        backup.prune_backups(tmp_path, **options)  # type: ignore[arg-type]


def stored(number: int) -> str:
    """What a segment is called in an archive of which every second one is packed."""
    return f"{number:024X}{'.gz' * (number % 2)}"


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
        path = archive / stored(number)
        path.write_bytes(gzip.compress(bytes(2**24), 1) if path.suffix else b"")
        if not path.suffix:
            os.truncate(path, 2**24)
    listed = backup.list_backups(tmp_path)
    assert [one.path for one in listed] == bases[::-1]
    major = {"postgres18": "18", "postgres15": "15"}.get(server.name)
    assert {(one.kind, one.complete) for one in listed} == {("base", True)}
    assert major is None or {one.server_version for one in listed} == {major}
    for base in bases:
        assert backup.verify_backup(base) is None

    planned = backup.prune_backups(tmp_path, keep_days=30, dry_run=True)
    assert all(base.exists() for base in bases)
    removed = backup.prune_backups(tmp_path, keep_days=30)
    assert removed == planned
    # The newest that had ended before the 30 days began stays: recovery to their first moment starts from it.
    assert [one.name for one in removed if one.kind == "base"] == [bases[1].name, bases[0].name]
    assert [one.path for one in backup.list_backups(tmp_path)] == bases[:1:-1]
    left = sorted(path.name for path in archive.iterdir())
    assert left[0] == stored(int(start(bases[2]), 16))
    removed_wal = [one for one in removed if one.kind == "wal"]
    assert [one.name for one in removed_wal] == [stored(number) for number in range(first, int(start(bases[2]), 16))]
    assert {one.name.endswith(".gz"): one.size < 2**24 for one in removed_wal} == {True: True, False: False}
    assert backup.prune_backups(tmp_path, keep_days=30) == []

    flip(bases[-1] / "PG_VERSION", 0)
    with pytest.raises(BackupError):
        backup.verify_backup(bases[-1])
    (bases[-2] / "global" / "pg_control").unlink()
    with pytest.raises(BackupError, match=r"(?s)is damaged: .*global/pg_control"):
        backup.verify_backup(bases[-2])
    # The last good one stays, however old, and so does its WAL.
    assert backup.prune_backups(tmp_path, keep_days=1) == []
    (archive / left[1]).unlink()
    with pytest.raises(BackupError, match=f"lacks the WAL segment {left[1][:24]}:"):
        backup.verify_backup(bases[2])
    with pytest.raises(BackupError, match=r"nothing was removed, as no base of the server \d+ is known to be good"):
        backup.prune_backups(tmp_path, keep_days=1)
    assert [one.path for one in backup.list_backups(tmp_path)] == bases[:1:-1]


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
