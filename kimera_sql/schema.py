"""The files of the schema: which there are, and which of them a database lacks. Nothing is run here."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import SchemaError
from .sql.files import Dialect, shipped


@dataclass(frozen=True, slots=True)
class Place:
    """A schema that has the record of what was applied (tables), or else pgvector. schema, role: quoted as in SQL.

    usable: the role of the connection may use the schema. found: its search path leads to what the schema has.
    first: it makes tables there. path: that search path.
    """

    tables: bool
    schema: str
    usable: bool
    found: bool
    first: bool
    path: str
    role: str


@dataclass(frozen=True, slots=True)
class Misplaced:
    """Why a connection does not find what its database has, and what to do."""

    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.found}: {self.advice}"


def overlooked(places: Sequence[Place]) -> Misplaced | None:
    """Return why a connection does not find the tables or the pgvector of its database; None if it finds both."""
    tables = [place for place in places if place.tables]
    lost = [] if any(place.found for place in tables) else tables[:1]
    known = [place.schema for place in lost]
    lost += [place for place in places if not (place.tables or place.found or place.schema in known)]
    if not lost:
        return None
    role, path = lost[0].role, lost[0].path
    what = " and ".join(f"{'the tables are' if one.tables else 'pgvector is'} in schema {one.schema}" for one in lost)
    if closed := [one.schema for one in lost if not one.usable]:
        return Misplaced(
            f"{what}, which the role {role} may not use", f"GRANT USAGE ON SCHEMA {', '.join(closed)} TO {role}"
        )
    wanted = [one.schema for one in lost if one.tables] + [path] + [one.schema for one in lost if not one.tables]
    return Misplaced(
        f"{what}, which the search_path of the role {role} ({path}) leaves out",
        f"ALTER ROLE {role} SET search_path = {', '.join(wanted)} (or ALTER DATABASE for all), and connect again",
    )


def require_home(places: Sequence[Place]) -> None:
    """Raise SchemaError unless a connection finds what its database has, and makes further tables beside the others."""
    if fault := overlooked(places):
        raise SchemaError(str(fault))
    for place in places:
        if place.tables and place.found and not place.first:
            raise SchemaError(
                f"the tables are in schema {place.schema}, and new ones would be made elsewhere, because it is not "
                f"the first of the search_path ({place.path}): ALTER ROLE {place.role} SET search_path = "
                f"{place.schema}, {place.path}, and connect again"
            )


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
