"""The backups in a folder, of both kinds: listed, and verified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

from ...errors import BackupError
from . import layout, tools
from .base_backups import first_segment, verify_base
from .dumps import Dump, describe_dump, verify_dump
from .files import reported
from .segments import missing_segment

BackupKind: TypeAlias = Literal["dump", "base"]


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup in the folder. size: bytes. rows: of a dump.

    server_version: as "15.5", of a base backup the major alone. complete: it has its manifest, as every one has
    that was proven when it was made; a damage since then is what verify_backup finds.
    """

    kind: BackupKind
    name: str
    made_at: datetime
    size: int
    server_version: str | None
    rows: int | None
    complete: bool
    path: Path


def list_backups(folder: Path) -> list[Backup]:
    """Return the backups in *folder*, dumps and base backups, the newest first. Raises BackupError."""
    with reported(folder):
        return sorted((*_dumps(folder), *_bases(folder)), key=lambda one: (one.made_at, one.kind), reverse=True)


def newest_dump(folder: Path) -> Path:
    """Return the newest dump in *folder*. Raises BackupError when there is none."""
    for one in list_backups(folder):
        if one.kind == "dump":
            return one.path
    raise BackupError(f"there is no dump in {layout.dump_folder(folder)}; kimera-sql backup dump makes one")


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
        if archive.is_dir() and (gap := missing_segment(archive, first_segment(path))):
            raise BackupError(f"{archive} lacks the WAL segment {gap}: nothing later can be recovered from {path}")
    return None


def _dumps(folder: Path) -> Iterator[Backup]:
    for path in layout.dump_folder(folder).glob("*"):
        if (made_at := layout.dump_time(path)) and path.is_file():
            try:
                made = describe_dump(path)
            except BackupError:
                made = None
            size = path.stat().st_size
            yield Backup(
                kind="dump",
                name=path.name,
                made_at=made_at,
                size=size,
                server_version=tools.version_text(made.origin.server_version) if made else None,
                rows=made.contents.rows if made else None,
                complete=made is not None and made.size == size,
                path=path,
            )


def _bases(folder: Path) -> Iterator[Backup]:
    for path in layout.base_folder(folder).glob("*"):
        if (made_at := layout.base_time(path)) and path.is_dir():
            version = path / "PG_VERSION"
            yield Backup(
                kind="base",
                name=path.name,
                made_at=made_at,
                size=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
                server_version=version.read_text().strip() if version.is_file() else None,
                rows=None,
                complete=(path / "backup_manifest").is_file(),
                path=path,
            )
