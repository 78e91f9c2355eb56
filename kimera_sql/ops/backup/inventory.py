"""The backups in a folder, of both kinds: listed, and verified."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

from ... import sql
from ...errors import BackupError
from ...sql import Connection
from . import layout, tools
from .base_backups import system_identifier, verify_base
from .dumps import Dump, describe_dump, verify_dump
from .files import reported
from .segments import missing_segment

_queries = sql.Queries("backup")

BackupKind: TypeAlias = Literal["dump", "base"]


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup in the folder. size: bytes. rows: of a dump.

    database, system: the database that a dump is of, and the system identifier of its server. A base backup has every
    database of its server. Both are None where nothing says so: in a dump without a manifest, in a damaged backup.
    server_version: as "15.5", of a base backup the major alone. complete: it has its manifest, as every one has
    that was proven when it was made; a damage since then is what verify_backup finds.
    """

    kind: BackupKind
    name: str
    made_at: datetime
    database: str | None
    system: str | None
    size: int
    server_version: str | None
    rows: int | None
    complete: bool
    path: Path

    @property
    def origin(self) -> str:
        """What it is a backup of, in words."""
        server = f"the server {self.system}"
        return server if self.database is None else f"{self.database} of {server}"


def list_backups(folder: Path) -> list[Backup]:
    """Return the backups in *folder*, dumps and base backups, the newest first.

    Raises BackupError when the folder is missing or something in it cannot be read.
    """
    with reported(folder):
        if not folder.is_dir():
            raise BackupError(f"there is no folder {folder}")
        return sorted((*_dumps(folder), *_bases(folder)), key=lambda one: (one.made_at, one.kind), reverse=True)


def list_backups_of(conn: Connection, folder: Path) -> list[Backup]:
    """Return those backups in *folder* that have *conn*'s database: its dumps, and its server's base backups."""
    (identity,) = _queries.identify.fetchall(conn)
    system, database = identity
    return [one for one in list_backups(folder) if one.system == system and one.database in (None, database)]


def newest_dump(folder: Path, *, database: str | None = None) -> Path:
    """Return the newest dump in *folder*, or the newest of *database* there.

    Raises BackupError when there is none, and when the dumps to choose from are of several databases.
    """
    place = layout.dump_folder(folder)
    dumps = [one for one in list_backups(folder) if one.kind == "dump" and database in (None, one.database)]
    if not dumps:
        whose = "" if database is None else f" of {database}"
        raise BackupError(f"there is no dump{whose} in {place}; kimera-sql backup dump makes one")
    origins = sorted({one.origin for one in dumps if one.database is not None})
    if len(origins) > 1:
        advice = (
            "name the database (--database)"
            if database is None
            else "name the dump, and give each server its own folder"
        )
        raise BackupError(f"{place} has dumps of {', of '.join(origins)}: {advice}")
    return dumps[0].path


def verify_backup(path: Path) -> Dump | None:
    """Read all of the backup at *path*, and return the manifest of a dump.

    A dump goes through verify_dump. A base backup goes through verify_base with the archive beside it, which must have
    every segment since. Raises BackupError for what is damaged or missing.
    """
    with reported(path):
        if not path.is_dir():
            return verify_dump(path)
        archive = layout.archive_beside(path)
        verify_base(path, archive=archive)
        if archive.is_dir() and (gap := missing_segment(archive, path)):
            raise BackupError(f"{archive} lacks the WAL segment {gap}: nothing later can be recovered from {path}")
    return None


def _dumps(folder: Path) -> Iterator[Backup]:
    for entry in _entries(layout.dump_folder(folder)):
        path = Path(entry)
        if (made_at := layout.dump_time(path)) and entry.is_file():
            try:
                made = describe_dump(path)
            except BackupError:
                made = None
            size = path.stat().st_size
            yield Backup(
                kind="dump",
                name=path.name,
                made_at=made_at,
                database=made.origin.database if made else None,
                system=made.origin.system if made else None,
                size=size,
                server_version=tools.version_text(made.origin.server_version) if made else None,
                rows=made.contents.rows if made else None,
                complete=made is not None and made.size == size,
                path=path,
            )


def _bases(folder: Path) -> Iterator[Backup]:
    for entry in _entries(layout.base_folder(folder)):
        path = Path(entry)
        if (made_at := layout.base_time(path)) and entry.is_dir():
            version = path / "PG_VERSION"
            yield Backup(
                kind="base",
                name=path.name,
                made_at=made_at,
                database=None,
                system=system_identifier(path),
                size=_size(entry),
                server_version=version.read_text().strip() if version.is_file() else None,
                rows=None,
                complete=(path / "backup_manifest").is_file(),
                path=path,
            )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in *folder*, nothing where no such backup was made yet."""
    # Not glob, to which a folder that cannot be read is an empty one.
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _size(folder: os.DirEntry[str]) -> int:
    with os.scandir(folder) as entries:
        return sum(
            _size(one) if one.is_dir(follow_symlinks=False) else one.stat(follow_symlinks=False).st_size
            for one in entries
        )
