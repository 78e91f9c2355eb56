"""Read the .sql files with aiosql, once: each statement's name, parameters and notes. Nothing is run here."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, LiteralString, TypeAlias, cast, get_args

from aiosql.adapters.generic import GenericAdapter
from aiosql.adapters.pyformat import PyFormatAdapter
from aiosql.query_loader import QueryLoader
from aiosql.types import SQLOperationType
from aiosql.utils import SQLParseException

from ..errors import QueryError

Dialect: TypeAlias = Literal["postgres", "sqlite"]
"""The name of a dialect's folder of queries."""

DIALECTS: Final[tuple[Dialect, ...]] = get_args(Dialect)

NOTES: Final = ("plan", "types", "returns", "takes", "nullable", "not null", "uses", "needs", "only", "like")
"""The keys of notes. A note is a comment line `key: value`."""

_NOTE: Final = re.compile(rf"({'|'.join(NOTES)}): +(.*\S)")

_NAME: Final = re.compile(r"--\s*name\s*:")
"""What a query begins with for aiosql."""

_FIRST_WORD: Final = re.compile(r"\(*\w*")

_TIDY: Final = re.compile(r"\W*(SELECT|WITH|INSERT|UPDATE|DELETE)\b")
_UNTIDY: Final = re.compile(r"(\bfalse|%\(local\)s)\) AS |advisory_lock(_shared)?\(")
"""How a statement begins that can be tidy, and what is in one that is not: a set_config or a lock of the session's."""

_SUFFIXES: Final = {
    SQLOperationType.SELECT: "",
    SQLOperationType.SELECT_ONE: "^",
    SQLOperationType.SELECT_VALUE: "$",
    SQLOperationType.INSERT_UPDATE_DELETE: "!",
    SQLOperationType.SCRIPT: "#",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One named statement of a .sql file, as the driver gets it.

    suffix: its name's suffix. doc: without the notes. shipped: whether it is one of kimera_sql's own. tidy: whether it
    is known to leave nothing in its session.
    """

    name: str
    text: LiteralString
    doc: str
    parameters: tuple[str, ...]
    suffix: str
    notes: Mapping[str, str]
    custom_plan: bool
    types: tuple[str, ...]
    declared: frozenset[str]
    shipped: bool = False
    tidy: bool = False

    def check(self, parameters: Mapping[str, Any]) -> None:
        """Raise QueryError unless *parameters* are exactly those that the statement declares."""
        if parameters.keys() != self.declared:
            raise QueryError(f"{self.name} takes ({', '.join(self.parameters)}), not ({', '.join(parameters)})")

    def explained(self) -> Statement:
        """Return this statement with EXPLAIN in front; its parameters stay the same."""
        return replace(self, text=f"EXPLAIN {self.text}")

    def with_text(self, parameter: str, type_: str) -> Statement:
        """Return this statement with *parameter*, which is of *type_*, to be given as text."""
        text = self.text.replace(f"%({parameter})s", f"%({parameter})s::text::{type_}")
        return replace(self, text=literal(text))

    def listed(self, note: str) -> tuple[str, ...]:
        """Return the items of the note *note*, () if the statement does not have it."""
        return tuple(part.strip() for part in self.notes.get(note, "").split(",") if part.strip())


def _named(name: str, text: str) -> str:
    """Return *text* with *name* behind its first word, for pg_stat_statements, pg_stat_activity and the server's log.

    In front of that word it would be lost: pg_stat_statements leaves out what comes before it since PostgreSQL 18.
    """
    return _FIRST_WORD.sub(lambda first: f"{first[0]} /* {name} */", text, count=1).lstrip()


def literal(text: Any) -> LiteralString:
    """Return *text* as a LiteralString, the type psycopg takes for statements. It must come from a .sql file."""
    return cast(LiteralString, text)


def shipped(folder: str) -> Path:
    """Return the path of *folder* (queries or schema): inside the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


def read_notes(lines: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Split the comment lines of a query, without their dashes, into its documentation and its notes."""
    doc, notes = [], dict[str, str]()
    for line in lines:
        if found := _NOTE.fullmatch(line.strip()):
            key, value = found.groups()
            notes[key] = f"{notes[key]}, {value}" if key in notes else value
        else:
            doc.append(line)
    return "\n".join(doc), notes


def query_file(dialect: Dialect, entity: str, folder: Path | None = None) -> Path:
    """Return the path of an entity's query file. A *folder* that has no dialect folders is for PostgreSQL."""
    parent = folder or shipped("queries")
    flat = dialect == "postgres" and not any((parent / one).is_dir() for one in DIALECTS)
    return (parent if flat else parent / dialect) / f"{entity}.sql"


def entities(folder: Path | None = None) -> list[tuple[Dialect, str]]:
    """Return the dialect and entity of every query file, PostgreSQL first. Raises QueryError if there is none."""
    found: list[tuple[Dialect, str]] = [
        (dialect, path.stem)
        for dialect in DIALECTS
        for path in sorted(query_file(dialect, "x", folder).parent.glob("*.sql"))
    ]
    if not found:
        raise QueryError(f"{folder} has no .sql files, nor have its folders postgres and sqlite")
    return found


def _line_of_fault(loader: QueryLoader, text: str) -> int:
    """Return the line of the first query of *text* that *loader* cannot parse, 1 if each of them alone can be."""
    starts = [found.start() for found in _NAME.finditer(text)]
    for start, end in pairwise([*starts, len(text)]):
        try:
            loader.load_query_data_from_sql(text[start:end], [])
        except Exception:  # as in statements
            return 1 + text.count("\n", 0, start)
    return 1


@functools.cache
def statements(dialect: Dialect, entity: str, folder: Path | None = None) -> dict[str, Statement]:
    """Return the statements of an entity by name: kimera_sql's own, or those of *folder*.

    Raises QueryError for a file that is missing or cannot be parsed.
    """
    path = query_file(dialect, entity, folder)
    adapter = {"postgres": PyFormatAdapter, "sqlite": GenericAdapter}[dialect]()  # type: ignore[no-untyped-call]
    loader = QueryLoader(adapter, record_classes=None)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"{path.name} ({dialect}): {error}") from error
    try:
        data = loader.load_query_data_from_sql(text, [], path)
    except Exception as error:  # what aiosql does not expect comes as an IndexError, a ValueError ...
        said = str(error) if isinstance(error, SQLParseException) else f"it cannot be parsed ({error})"
        raise QueryError(f"{path.name} ({dialect}): line {_line_of_fault(loader, text)}: {said}") from error
    read: dict[str, Statement] = {}
    for datum in data:
        name = datum.query_name
        if name in read:
            raise QueryError(f"{path.name} ({dialect}): {name} stands twice")
        if datum.operation_type not in _SUFFIXES:
            raise QueryError(f"{path.name} ({dialect}): {name}: the suffix must be one of ^ $ ! # or nothing")
        doc, notes = read_notes(datum.doc_comments.splitlines())
        parameters = tuple(datum.parameters or ())
        statement = Statement(
            name=f"{entity}.{name}",
            text=literal(_named(f"{entity}.{name}", datum.sql.rstrip(";"))),
            doc=doc,
            parameters=parameters,
            suffix=_SUFFIXES[datum.operation_type],
            notes=MappingProxyType(notes),
            custom_plan=notes.get("plan") == "custom",
            types=(),
            declared=frozenset(parameters),
            shipped=folder is None,
            tidy=folder is None and _TIDY.match(datum.sql) is not None and _UNTIDY.search(datum.sql) is None,
        )
        read[name] = replace(statement, types=statement.listed("types"))
    return read
