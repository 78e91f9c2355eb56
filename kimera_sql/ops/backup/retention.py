"""Retention: which backups may go, and never the last good ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias

from ... import checks
from ...errors import BackupError
from . import copy_wal, layout, tools
from .base_backups import first_segment, major_version, system_identifier
from .files import fsync, locked, reported
from .inventory import Backup, list_backups, verify_backup
from .segments import is_of_another

RemovedKind: TypeAlias = Literal["dump", "base", "wal"]


@dataclass(frozen=True, slots=True)
class Removed:
    """What prune_backups removed, or would. size: bytes."""

    kind: RemovedKind
    name: str
    size: int


def prune_backups(folder: Path, *, keep_days: int = 30, keep: int = 3, dry_run: bool = False) -> list[Removed]:
    """Remove what is older than *keep_days* in *folder*, and return it; with *dry_run* only return it.

    The dumps of each database, and the base backups of each server, count for themselves alone; what does not say
    what it is of stays. Days are counted back from the newest of them that verifies now, not from today: while backups
    fail, nothing ages. The newest *keep* dumps that verify stay at any age. Of base backups the newest that verifies
    and had ended before those days stays too, so that every moment of them can be recovered; that server's WAL goes
    that no base backup left there needs. Raises BackupError, and removes nothing, when no dump of a database, or no
    base backup of a server, verifies.
    """
    days = timedelta(days=checks.integer("keep_days", keep_days, least=1, most=36525))
    least = checks.limit(keep, "keep")
    with reported(folder):
        found = list_backups(folder)
        dumps: list[Backup] = []
        for group in _by_origin([one for one in found if one.kind == "dump"]):
            dumps += _old_dumps(group, days, least)
        bases: list[Backup] = []
        wal: list[Path] = []
        for group in _by_origin([one for one in found if one.kind == "base"]):
            old, wal_from = _old_bases(group, days)
            bases += old
            wal += _old_wal(folder, wal_from)
        removed = [Removed(one.kind, one.name, one.size) for one in (*dumps, *bases)]
        removed += [Removed("wal", file.name, file.stat().st_size) for file in wal]
        if removed and not dry_run:
            with locked(layout.dump_folder(folder)) as place:
                _remove_dumps(place, dumps)
                _remove_bases(folder, bases)
                for file in wal:
                    file.unlink()
    return removed


def _by_origin(backups: Sequence[Backup]) -> list[list[Backup]]:
    """Return *backups*, of one kind, by what they are of. Raises BackupError when there are some and none says it."""
    groups: dict[str, list[Backup]] = {}
    for one in backups:
        if one.system is not None:
            groups.setdefault(one.origin, []).append(one)
    if backups and not groups:
        raise BackupError(f"nothing was removed, as no {backups[0].kind} says what it is of: their manifests are gone")
    return list(groups.values())


def _old_dumps(dumps: Sequence[Backup], days: timedelta, keep: int) -> list[Backup]:
    """Return which of *dumps*, of one database and the newest first, may go."""
    good = _good(dumps, keep)
    return [one for one in dumps if one.made_at < good[0].made_at - days and one not in good]


def _old_bases(bases: Sequence[Backup], days: timedelta) -> tuple[list[Backup], Path]:
    """Return which of *bases*, of one server and the newest first, may go, and the oldest usable one that stays."""
    good = _good(bases, 1)
    before = good[0].made_at - days
    for one in bases:
        if one.complete and _ended_at(one) < before and not _fault(one):
            return [older for older in bases if older.made_at < one.made_at], one.path
    return [], [one for one in bases if one.complete][-1].path


def _good(backups: Sequence[Backup], count: int) -> list[Backup]:
    """Return the first *count* of *backups* that verify. Raises BackupError when none does."""
    good: list[Backup] = []
    faults = []
    for one in backups:
        if len(good) == count:
            break
        if fault := _fault(one):
            faults.append(f"\n  {fault}")
        else:
            good.append(one)
    if not good:
        one = backups[0]
        raise BackupError(
            f"nothing was removed, as no {one.kind} of {one.origin} is known to be good:{''.join(faults)}"
        )
    return good


def _fault(one: Backup) -> str | None:
    """Return what is wrong with a backup, None where it verifies."""
    if not one.complete:
        return f"{one.path} does not have its manifest, or is not as long as that says"
    try:
        verify_backup(one.path)
    except BackupError as error:
        return str(error)
    return None


def _ended_at(base: Backup) -> datetime:
    # The manifest is written at the end. A copy that has a later time only makes an older backup stay.
    written = datetime.fromtimestamp((base.path / "backup_manifest").stat().st_mtime, UTC)
    return max(base.made_at, written)


def _old_wal(folder: Path, base: Path) -> list[Path]:
    """Return the archive's files of the server of *base*, a base backup, that come before what it needs."""
    archive = layout.wal_folder(folder)
    if not archive.is_dir():
        return []
    # It goes by names alone, which are another server's too: with -n it only prints them, a path on each line.
    tool = tools.find("pg_archivecleanup", major_version(base) * 10000)
    older = tools.run(tool, ["-n", "-x", copy_wal.PACKED, archive.absolute(), first_segment(base)])
    system = system_identifier(base)
    return sorted(path for path in map(Path, older.splitlines()) if not is_of_another(path, system))


def _remove_dumps(place: Path, dumps: Sequence[Backup]) -> None:
    # Renamed first, they are what was left unfinished: a removal that is cut short is finished by the next run.
    for one in dumps:
        files = (one.path, layout.globals_file(one.path), layout.manifest_file(one.path))
        doomed = [file.rename(layout.partial(file)) for file in files if file.exists()]
        for file in doomed:
            file.unlink()
    fsync(place)


def _remove_bases(folder: Path, bases: Sequence[Backup]) -> None:
    # A removal that is cut short leaves no half of a backup under a backup's name.
    for one in bases:
        one.path.rename(layout.doomed(one.path))
    for doomed in layout.base_folder(folder).glob(layout.DOOMED_BASES):
        shutil.rmtree(doomed)
