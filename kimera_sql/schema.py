"""The files of the schema: which there are, and which of them a database lacks. Nothing is run here."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .errors import SchemaError
from .sql.files import Dialect, shipped


def files(dialect: Dialect, folder: Path | None = None) -> list[Path]:
    """Return the schema files of *dialect*, in the order in which they are applied."""
    return sorted(((folder or shipped("schema")) / dialect).glob("[0-9][0-9][0-9][0-9]_*.sql"))


def to_apply(applied: dict[str, str], known: list[Path]) -> set[str]:
    """Return the names still to apply, after comparing *applied*, names and checksums, with the files.

    Raises SchemaError as migrations.migrate does.
    """
    names = {path.name for path in known}
    if unknown := sorted(applied.keys() - names):
        raise SchemaError(f"the database has {', '.join(unknown)}, which this version lacks; upgrade kimera-sql")
    for path in known:
        if path.name in applied and applied[path.name] != checksum(path):
            raise SchemaError(
                f"{path.name} was changed after it was applied; restore it, and put the change into a new file"
            )
    todo = names - applied.keys()
    if applied and (late := sorted(name for name in todo if name < max(applied))):
        raise SchemaError(f"{', '.join(late)} comes before {max(applied)}, which is applied; give it a higher number")
    return todo


def checksum(path: Path) -> str:
    """Return the checksum of a file."""
    # A checkout on another system may have other line ends; that is no change.
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()
