"""What verify finds of each query, and what it says at the end."""

from __future__ import annotations

from dataclasses import dataclass

from .text import Fault


@dataclass(frozen=True, slots=True)
class Result:
    """A result column. type: the server's, "" of SQLite. nullable: None where it cannot be told."""

    name: str
    type: str
    nullable: bool | None


@dataclass(frozen=True, slots=True)
class Interface:
    """What a query takes and gives. checksum: of its text. parameters: name and type, a COPY's columns among them.

    prepared: whether a server has seen it; what it needs may be missing from the one at hand.
    """

    dialect: str
    name: str
    suffix: str
    checksum: str
    prepared: bool
    parameters: tuple[tuple[str, str], ...]
    columns: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A query that could not be prepared, and what the server lacks for it."""

    query: str
    lacks: str


@dataclass(frozen=True, slots=True)
class Report:
    """What verify found. queries: how many there are. written: the files that were brought up to date."""

    faults: tuple[Fault, ...]
    queries: int
    skipped: tuple[Skipped, ...]
    written: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """A query for a list of them. dialects: where there is one of that name. suffix: see kimera_sql.sql."""

    name: str
    parameters: tuple[str, ...]
    suffix: str
    returns: str | None
    dialects: tuple[str, ...]
    doc: str
