"""The names and places in a folder of backups, as the package's docstring shows them. Nothing here is read."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

UNFINISHED: Final = ".kimera_*.partial"
"""The backups that are being made, or whose making was cut short."""

DOOMED_BASES: Final = ".kimera_base_*.doomed"
"""The base backups that are being removed, or whose removal was cut short."""

_STAMP: Final = "%Y%m%d_%H%M%S"
_DUMP: Final = re.compile(r"kimera_full_(\d{8}_\d{6})\.dump")
_BASE: Final = re.compile(r"kimera_base_(\d{8}_\d{6})")


def dump_folder(folder: Path) -> Path:
    """Return where the dumps of the backups in *folder* are."""
    return folder / "dumps"


def base_folder(folder: Path) -> Path:
    """Return where the base backups in *folder* are."""
    return folder / "base"


def wal_folder(folder: Path) -> Path:
    """Return where the archive of WAL in *folder* is."""
    return folder / "wal"


def archive_beside(base: Path) -> Path:
    """Return where the archive of WAL is that belongs to the base backup *base*."""
    return wal_folder(base.parent.parent)


def dump_name(made_at: datetime) -> str:
    """Return the name of a dump made at a moment in UTC."""
    return f"kimera_full_{made_at:{_STAMP}}.dump"


def base_name(made_at: datetime) -> str:
    """Return the name of a base backup begun at a moment in UTC."""
    return f"kimera_base_{made_at:{_STAMP}}"


def dump_time(path: Path) -> datetime | None:
    """Return when the dump *path* was made, None where the name is not a dump's."""
    return _time(_DUMP, path.name)


def base_time(path: Path) -> datetime | None:
    """Return when the base backup *path* was begun, None where the name is not a base backup's."""
    return _time(_BASE, path.name)


def _time(pattern: re.Pattern[str], name: str) -> datetime | None:
    found = pattern.fullmatch(name)
    try:
        return datetime.strptime(found[1], _STAMP).replace(tzinfo=UTC) if found else None
    except ValueError:
        return None


def globals_file(dump: Path) -> Path:
    """Return where the roles of the dump *dump*'s server are."""
    return dump.with_suffix(".globals.sql")


def manifest_file(dump: Path) -> Path:
    """Return where the manifest of the dump *dump* is."""
    return dump.with_suffix(".json")


def partial(path: Path) -> Path:
    """Return what *path* is called while it is being made."""
    return path.with_name(f".{path.name}.partial")


def doomed(path: Path) -> Path:
    """Return what the base backup *path* is called while it is being removed."""
    return path.with_name(f".{path.name}.doomed")
