"""What a database's tables lack of those that the migrations make, and the statements that would mend it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias, cast, get_args

from psycopg import sql as composed

from .errors import SchemaError
from .sql.files import literal, shipped
from .tables import BOOKKEEPING, NAMES

Kind: TypeAlias = Literal[
    "table", "type", "default", "not null", "constraint", "index", "statistics", "storage", "sampling", "option"
]
"""The kinds of elements. sampling: a column's statistics target; statistics: what CREATE STATISTICS makes."""

TABLES: Final = (*NAMES, *BOOKKEEPING)
"""The tables that the migrations make."""

TUNING: Final[tuple[Kind, ...]] = ("storage", "sampling", "option")
"""Kinds that change how fast a database is, and nothing that it does: an administrator's to choose."""

_UNNAMED: Final[tuple[Kind, ...]] = ("constraint", "index", "statistics")
"""Kinds whose names are of no matter."""

_HEADER: Final = """\
# What the migrations make, as PostgreSQL's catalogue has it: a table, a kind, a name and a definition in each line.
# Written by `kimera-sql verify --update`.
"""


@dataclass(frozen=True, slots=True)
class Element:
    """A part of a table. definition: what stands behind the name in DDL."""

    table: str
    kind: Kind
    name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Difference:
    """An element that is not as the migrations make it.

    found: what is there instead, None where there is nothing. expected: None for a column that is NOT NULL, has no
    default and is not of ours, so that nothing can be inserted.
    """

    table: str
    kind: Kind
    name: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        column = f"{self.table}.{self.name}"
        match self.kind:
            case "table":
                return f"there is no table {self.table}"
            case "type" if self.found is None:
                return f"{self.table} has no column {self.name}"
            case "type":
                return f"{column} is {self.found}, not {self.expected}"
            case "default":
                return f"{column} has no default ({self.expected})"
            case "not null" if self.expected is None:
                return f"{column} is NOT NULL and has no default, so nothing can be inserted"
            case "not null":
                return f"{column} can be NULL"
            case "constraint" | "index" | "statistics":
                return f"{self.table} lacks {_ARTICLES[self.kind]} {self.expected}"
            case "storage":
                return f"{column} is not stored {self.expected}"
            case "sampling":
                return f"{column} has no statistics target of {self.expected}"
            case "option":
                return f"{self.table} has no setting {self.name} = {self.expected}"


_ARTICLES: Final = {"constraint": "the constraint", "index": "an index", "statistics": "the statistics"}


def path() -> Path:
    """Return the file that lists what the migrations make."""
    return shipped("schema") / "postgres" / "catalogue.txt"


def text(elements: Iterable[Element]) -> str:
    """Return what that file says of *elements*."""
    lines = ("\t".join((one.table, one.kind, one.name, one.definition)).rstrip() for one in elements)
    return _HEADER + "".join(f"{line}\n" for line in lines)


def expected() -> list[Element]:
    """Return what the migrations make, in the order in which it can be made. Raises SchemaError for a damaged file."""
    found = []
    for line in path().read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            table, kind, name, definition, *more = [*line.split("\t"), ""]
            if kind not in get_args(Kind) or any(more):
                raise SchemaError(f"{path()}: {line!r} is not as `kimera-sql verify --update` writes it")
            found.append(Element(table, cast(Kind, kind), name, definition))
    return found


_DISTRIBUTED: Final[Mapping[tuple[str, str], str | None]] = {
    ("cognitive_transitions", "PRIMARY KEY (id)"): "PRIMARY KEY (id, source_id)",
    ("cognitive_transitions", "FOREIGN KEY (target_id) REFERENCES geoid_states(id)"): None,
    ("system_metrics", "PRIMARY KEY (id)"): "PRIMARY KEY (id, metric_name)",
}
"""The constraints that schema/citus.sql replaces by others, or by none."""


def distributed(wanted: Iterable[Element]) -> list[Element]:
    """Return what *wanted* is in a database whose tables Citus keeps in shards."""
    kept = ((one, _DISTRIBUTED.get((one.table, one.definition), one.definition)) for one in wanted)
    return [replace(one, definition=definition) for one, definition in kept if definition is not None]


def differences(found: Collection[Element], wanted: Iterable[Element]) -> list[Difference]:
    """Return what *found* lacks of *wanted*, in the order of that, and then what keeps rows out.

    A default of another value is as good, and so is an index or a constraint of another name.
    """
    named = {(one.table, one.kind, one.name): one.definition for one in found}
    defined = {(one.table, one.kind, one.definition) for one in found}
    wanted = list(wanted)
    lacking = []
    for one in wanted:
        there = named.get((one.table, one.kind, one.name))
        if one.kind in _UNNAMED:
            # A constraint that holds for all rows holds for new ones too.
            ways = one.definition, one.definition.removesuffix(" NOT VALID")
            same = any((one.table, one.kind, way) in defined for way in ways)
        else:
            same = there == one.definition or (one.kind == "default" and there is not None)
        if not same:
            lacking.append(Difference(one.table, one.kind, one.name, one.definition, there))
    known = {(one.table, one.name) for one in wanted if one.kind == "type"}
    tables = {one.table for one in wanted}
    lacking += [
        Difference(one.table, one.kind, one.name, None, "")
        for one in found
        if one.kind == "not null"
        and one.table in tables
        and (one.table, one.name) not in known
        and (one.table, "default", one.name) not in named
    ]
    return lacking


def causes(lacking: Collection[Difference]) -> list[Difference]:
    """Return *lacking* without what only follows from a table or a column that is missing."""
    tables = {one.table for one in lacking if one.kind == "table"}
    columns = {(one.table, one.name) for one in lacking if one.kind == "type" and one.found is None}

    def follows(one: Difference) -> bool:
        if one.kind == "table" or (one.kind == "type" and one.table not in tables):
            return False
        if one.table in tables or (one.table, one.name) in columns:
            return True
        return any(one.table == table and re.search(rf"\b{name}\b", one.expected or "") for table, name in columns)

    return [one for one in lacking if not follows(one)]


def statement(difference: Difference, *, concurrently: bool = False) -> composed.Composed:
    """Return the statement that mends *difference*, as far as the table's rows allow it.

    concurrently: an index is built while the table is written to, outside a transaction.
    """
    table, name = composed.Identifier(difference.table), composed.Identifier(_free_name(difference))
    match difference.kind:
        case "table":
            return composed.SQL("CREATE TABLE {} ()").format(table)
        case "index":
            how = composed.SQL("CREATE INDEX CONCURRENTLY" if concurrently else "CREATE INDEX")
            return composed.SQL("{} {} ON {} USING {}").format(how, name, table, _definition(difference))
        case "statistics":
            return composed.SQL("CREATE STATISTICS {} {}").format(name, _definition(difference))
        case _:
            return composed.SQL("ALTER TABLE {} {}").format(table, alteration(difference))


def alteration(difference: Difference) -> composed.Composed:
    """Return the clause of ALTER TABLE that mends *difference*, one that is of the table's columns or constraints."""
    column, definition = composed.Identifier(_free_name(difference)), _definition(difference)
    match difference.kind:
        case "type" if difference.found is None:
            clause = "ADD COLUMN {column} {definition}"
        case "type":
            clause = "ALTER COLUMN {column} TYPE {definition} USING {column}::{definition}"
        case "default" if difference.expected == "sequence":
            clause = "ALTER COLUMN {column} ADD GENERATED BY DEFAULT AS IDENTITY"
        case "default":
            clause = "ALTER COLUMN {column} SET DEFAULT {definition}"
        case "not null" if difference.expected is None:
            clause = "ALTER COLUMN {column} DROP NOT NULL"
        case "not null":
            clause = "ALTER COLUMN {column} SET NOT NULL"
        case "constraint":
            clause = "ADD CONSTRAINT {column} {definition}"
        case "storage":
            clause = "ALTER COLUMN {column} SET STORAGE {definition}"
        case "sampling":
            clause = "ALTER COLUMN {column} SET STATISTICS {definition}"
        case "option":
            clause = "SET ({column} = {definition})"
        case _:
            raise AssertionError(f"no clause of ALTER TABLE makes a {difference.kind}")
    return composed.SQL(clause).format(column=column, definition=definition)


def _definition(difference: Difference) -> composed.SQL:
    return composed.SQL(literal(difference.expected or ""))


def _free_name(difference: Difference) -> str:
    """Return the name of what is made. Another of the kind that has it keeps it."""
    taken = difference.kind in _UNNAMED and difference.found is not None
    return f"kimera_{difference.name}" if taken else difference.name
