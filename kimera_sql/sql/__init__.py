"""Named queries: queries/<dialect>/<entity>.sql, loaded once with aiosql, run by the connection's driver.

A query begins with its name, its parameters, and a suffix for what it gives: nothing for many rows, ^ for one row or
none, $ for one value, ! for the number of rows it changed, # for a COPY. The comment lines after it are its
documentation. Some of them are notes:

    -- plan: custom             plan it anew each time; a generic plan would be a bad one
    -- types: uuid, vector      the column types of a COPY ... FROM STDIN (FORMAT BINARY)

and others are for kimera_sql.verify, and for calling a query as a function:

    -- returns: Dream           a row becomes this dataclass, whose fields are the columns in their order
    -- returns: Dream, rank int, note str | None        it has further columns; then a row is a tuple
    -- returns: UUID            a row is this one value
    -- takes: NewDream          the parameters are this dataclass's fields
    -- takes: since datetime | None                     the types of some parameters, where NULL is one of them
    -- nullable: rank           columns that can be NULL, where that cannot be told from the statement
    -- not null: rank           columns that never are, although it looks as if they could be
    -- uses: idx_geoid_tags     the indexes that its plan must use
    -- needs: postgres 16       the least version of the server, or `vector 0.7`, or an extension's mere name;
                                `postgres below 17` is the other way round
    -- only: postgres           SQLite has no query of that name

A note can be repeated, which joins its lines with commas.
"""

from __future__ import annotations

import functools
import importlib
import re
import sqlite3
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final, LiteralString, Protocol, TypeAlias, TypeVar, cast

import psycopg
from aiosql.adapters.generic import GenericAdapter
from aiosql.adapters.pyformat import PyFormatAdapter
from aiosql.query_loader import QueryLoader
from aiosql.types import SQLOperationType
from aiosql.utils import SQLParseException

from .. import sqlite
from ..errors import QueryError
from . import postgres, shapes

Connection: TypeAlias = psycopg.Connection[Any] | sqlite3.Connection
Row: TypeAlias = tuple[Any, ...]
R = TypeVar("R")


def shipped(folder: str) -> Path:
    """Return where *folder* (queries or schema) stands: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / folder
    return inside if inside.is_dir() else package.parent / folder


NOTES: Final = ("plan", "types", "returns", "takes", "nullable", "not null", "uses", "needs", "only")
"""What a comment line that is a note begins with, before its colon."""

_NOTE: Final = re.compile(rf"({'|'.join(NOTES)}): +(.*\S)")

_SUFFIXES: Final = {
    SQLOperationType.SELECT: "",
    SQLOperationType.SELECT_ONE: "^",
    SQLOperationType.SELECT_VALUE: "$",
    SQLOperationType.INSERT_UPDATE_DELETE: "!",
    SQLOperationType.SCRIPT: "#",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One named statement of a .sql file, as it goes to the driver. suffix: of its name. doc: without the notes."""

    name: str
    text: LiteralString
    doc: str
    parameters: tuple[str, ...]
    suffix: str
    notes: Mapping[str, str]
    custom_plan: bool
    types: tuple[str, ...]
    declared: frozenset[str]

    def explained(self) -> Statement:
        """Return the EXPLAIN of this statement, with the same parameters."""
        return replace(self, text=f"EXPLAIN {self.text}")

    def listed(self, note: str) -> tuple[str, ...]:
        """Return the items of a note, () without it."""
        return tuple(part.strip() for part in self.notes.get(note, "").split(",") if part.strip())


def literal(text: Any) -> LiteralString:
    """Return *text*, which a .sql file holds and nobody's input, as the type that psycopg takes statements of."""
    return cast(LiteralString, text)


def read_notes(lines: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Divide the comment lines of a query, without their dashes, into its documentation and its notes."""
    doc, notes = [], dict[str, str]()
    for line in lines:
        if found := _NOTE.fullmatch(line.strip()):
            key, value = found.groups()
            notes[key] = f"{notes[key]}, {value}" if key in notes else value
        else:
            doc.append(line)
    return "\n".join(doc), notes


def query_file(dialect: str, entity: str, folder: Path | None = None) -> Path:
    """Return the file of an entity's queries. A *folder* without folders of dialects is PostgreSQL's."""
    parent = folder or shipped("queries")
    flat = dialect == "postgres" and not (parent / "postgres").is_dir() and not (parent / "sqlite").is_dir()
    return (parent if flat else parent / dialect) / f"{entity}.sql"


@functools.cache
def statements(dialect: str, entity: str, folder: Path | None = None) -> dict[str, Statement]:
    """Read the queries of an entity: those that are shipped, or those of *folder*.

    Raises QueryError for a file that is missing or cannot be parsed.
    """
    path = query_file(dialect, entity, folder)
    adapter = {"postgres": PyFormatAdapter, "sqlite": GenericAdapter}[dialect]()  # type: ignore[no-untyped-call]
    loader = QueryLoader(adapter, record_classes=None)
    try:
        data = loader.load_query_data_from_file(path, encoding="utf-8")
    except (OSError, UnicodeDecodeError, SQLParseException) as error:
        raise QueryError(f"{path.name} ({dialect}): {error}") from error
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
            # The name goes along, so that pg_stat_statements and the server's log show it.
            text=literal(f"/* {entity}.{name} */ {datum.sql.rstrip(';')}"),
            doc=doc,
            parameters=parameters,
            suffix=_SUFFIXES[datum.operation_type],
            notes=MappingProxyType(notes),
            custom_plan=notes.get("plan") == "custom",
            types=(),
            declared=frozenset(parameters),
        )
        read[name] = replace(statement, types=statement.listed("types"))
    return read


class Driver(Protocol):
    """What the modules postgres and sqlite offer: running a statement on a connection of theirs."""

    @property
    def DECODERS(self) -> Mapping[type, Callable[[Any], Any]]: ...  # noqa: N802 - a constant of the modules

    def fetchall(self, conn: Any, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]: ...
    def execute(self, conn: Any, statement: Statement, parameters: Mapping[str, Any]) -> int: ...
    def stream(self, conn: Any, statement: Statement, parameters: Mapping[str, Any], chunk: int) -> Iterator[Row]: ...
    def copy(self, conn: Any, statement: Statement, rows: Iterable[Mapping[str, Any]]) -> int: ...
    def script(self, conn: Any, text: str) -> None: ...
    def atomic(self, conn: Any) -> AbstractContextManager[None]: ...
    def transaction(self, conn: Any) -> AbstractContextManager[None]: ...
    def snapshot(self, conn: Any) -> AbstractContextManager[None]: ...


_DRIVERS: Final[Mapping[str, Driver]] = {"postgres": postgres, "sqlite": sqlite}


def dialect(conn: Connection) -> str:
    """Return the name of the folder whose queries *conn* understands: postgres or sqlite."""
    if isinstance(conn, psycopg.Connection):
        return "postgres"
    if isinstance(conn, sqlite3.Connection):
        return "sqlite"
    raise TypeError(f"expected a psycopg.Connection or sqlite3.Connection, got {type(conn).__name__}")


def _driver(conn: Connection) -> Driver:
    return _DRIVERS[dialect(conn)]


class Queries:
    """The named queries of one entity: `Queries("geoids").find_by_id.fetchone(conn, id=...)`.

    They are those that are shipped, or those of *folder* with the dataclasses of *records*.
    """

    def __init__(self, entity: str, folder: Path | None = None, records: ModuleType | None = None) -> None:
        self.entity = entity
        self._folder = folder
        self._records = records

    def __getattr__(self, name: str) -> Query:
        return Query(self.entity, name, self._folder, self._records)


class Library:
    """The queries of a folder: `library.<file>.<name>(conn, ...)`; see load."""

    def __init__(self, folder: Path, files: Mapping[str, Queries]) -> None:
        self.folder = folder
        self._files = files

    def __dir__(self) -> Iterable[str]:
        return sorted(self._files)

    def __getattr__(self, name: str) -> Queries:
        try:
            return self._files[name]
        except KeyError:
            raise AttributeError(f"{self.folder} has no {name}.sql; there are {', '.join(self._files)}") from None


def load(folder: Path | str, records: ModuleType | str | None = None) -> Library:
    """Load the queries of *folder*, whose dataclasses are in the module *records*, to be called as functions.

    `load("sql", "app.records").dreams.by_phase(conn, phase="rem")` runs by_phase of sql/dreams.sql, and gives what its
    suffix says: a list, one row or None, one value, or the number of rows changed; rows are what its note `returns`
    says. *folder* has .sql files for PostgreSQL, or folders postgres and sqlite that have them.
    Raises QueryError for a file that cannot be parsed and for a dataclass that is not there.
    """
    folder = Path(folder)
    module = importlib.import_module(records) if isinstance(records, str) else records
    files = {}
    for dialect, entity in entities(folder):
        for name, statement in statements(dialect, entity, folder).items():
            try:
                shape = shapes.parse(statement.notes["returns"]) if "returns" in statement.notes else None
                if shape and shape.record:
                    shapes.find_record(module, shape.record)
            except QueryError as error:
                raise QueryError(f"{entity}.sql ({dialect}): {name}: returns: {error}") from None
        files[entity] = Queries(entity, folder, module)
    return Library(folder, files)


def entities(folder: Path | None = None) -> list[tuple[str, str]]:
    """Return the dialect and the entity of every file of queries, of PostgreSQL first. Raises QueryError for none."""
    found = [
        (dialect, path.stem)
        for dialect in _DRIVERS
        for path in sorted(query_file(dialect, "x", folder).parent.glob("*.sql"))
    ]
    if not found:
        raise QueryError(f"{folder} has no .sql files, nor have its folders postgres and sqlite")
    return found


@dataclass(frozen=True, slots=True)
class Query:
    """One named query. Its methods take a connection, then the query's parameters by name.

    They raise QueryError for a parameter that it does not declare, or that is missing.
    """

    entity: str
    name: str
    folder: Path | None = None
    records: ModuleType | None = None

    def statement(self, conn: Connection) -> Statement:
        """Return the statement in *conn*'s dialect. Raises QueryError when the file has none of this name."""
        return self._statement(dialect(conn))

    def _statement(self, dialect: str) -> Statement:
        try:
            return statements(dialect, self.entity, self.folder)[self.name]
        except KeyError:
            raise QueryError(f"{self.entity}.sql ({dialect}) has no query {self.name}") from None

    def _checked(self, conn: Connection, parameters: Mapping[str, Any]) -> Statement:
        statement = self.statement(conn)
        if parameters.keys() != statement.declared:
            raise QueryError(
                f"{statement.name} takes ({', '.join(statement.parameters)}), not ({', '.join(parameters)})"
            )
        return statement

    def __call__(self, conn: Connection, /, **parameters: Any) -> Any:
        """Run it as its suffix says, and return what its note `returns` says; see load."""
        statement = self.statement(conn)
        if statement.suffix == "!":
            return self.execute(conn, **parameters)
        if statement.suffix == "#":
            raise QueryError(f"{statement.name} is a COPY: call its method copy(conn, rows)")
        rows = self.fetchall(conn, **parameters)
        make = self._maker(conn, statement)
        if not statement.suffix:
            return [make(row) for row in rows]
        return make(rows[0]) if rows else None

    def _maker(self, conn: Connection, statement: Statement) -> Callable[[Row], Any]:
        note = statement.notes.get("returns")
        if note is None and dialect(conn) == "sqlite" and query_file("postgres", self.entity, self.folder).exists():
            note = self._statement("postgres").notes.get("returns")  # said once for both
        if note is None:
            return (lambda row: row[0]) if statement.suffix == "$" else (lambda row: row)
        shape = shapes.parse(note)
        module = self.records or (None if self.folder else importlib.import_module(f"kimera_sql.{self.entity}"))
        record = shapes.find_record(module, shape.record) if shape.record else None
        if record and not shape.columns:
            return mapper(conn, record)
        kinds = [kind for _, kind in (*(shapes.record_kinds(record) if record else ()), *shape.columns)]

        def make(row: Row) -> Any:
            values = [
                None if value is None else decode(conn, kind.kind, value)
                for kind, value in zip(kinds, row, strict=True)
            ]
            if record is None:
                return values[0] if shape.columns[0][0] == "" else tuple(values)
            own = len(kinds) - len(shape.columns)
            return (record(*values[:own]), *values[own:])

        return make

    def fetchall(self, conn: Connection, /, **parameters: Any) -> list[Row]:
        """Run it and return all its rows."""
        return _driver(conn).fetchall(conn, self._checked(conn, parameters), parameters)

    def fetchone(self, conn: Connection, /, **parameters: Any) -> Row | None:
        """Run it and return its first row, None without one."""
        rows = self.fetchall(conn, **parameters)
        return rows[0] if rows else None

    def fetchval(self, conn: Connection, kind: type[R], /, **parameters: Any) -> R | None:
        """Run it and return the first column of its first row as a *kind*, None without a row or for NULL."""
        row = self.fetchone(conn, **parameters)
        if row is None or row[0] is None:
            return None
        return decode(conn, kind, row[0])

    def execute(self, conn: Connection, /, **parameters: Any) -> int:
        """Run it and return the number of rows it changed."""
        return _driver(conn).execute(conn, self._checked(conn, parameters), parameters)

    def stream(self, conn: Connection, /, *, chunk: int = 1000, **parameters: Any) -> Iterator[Row]:
        """Yield its rows, *chunk* of them fetched at a time."""
        return _driver(conn).stream(conn, self._checked(conn, parameters), parameters, chunk)

    def copy(self, conn: Connection, rows: Iterable[Mapping[str, Any]]) -> int:
        """Send *rows* through it, all or none, and return how many there were.

        Their values are in the order of its columns. A driver's error carries a note with the number of the row.
        """
        return _driver(conn).copy(conn, self.statement(conn), rows)


def atomic(conn: Connection) -> AbstractContextManager[None]:
    """Make the block all or nothing without ending the caller's transaction, which it begins where none is open.

    On an autocommit connection outside a transaction the block is a transaction of its own.
    """
    return _driver(conn).atomic(conn)


def transaction(conn: Connection) -> AbstractContextManager[None]:
    """Make the block a transaction that is committed at its end, or a savepoint where the caller has one open."""
    return _driver(conn).transaction(conn)


def snapshot(conn: Connection) -> AbstractContextManager[None]:
    """Let the block read the database as it is at its begin; *conn* is outside a transaction and writes nothing."""
    return _driver(conn).snapshot(conn)


def script(conn: Connection, text: str) -> None:
    """Run the statements of *text*, which has no parameters."""
    _driver(conn).script(conn, text)


def decode(conn: Connection, kind: type[R], value: Any) -> R:
    """Return *value*, a column of a row of *conn*, as a *kind*."""
    decoder: Callable[[Any], R] | None = _driver(conn).DECODERS.get(kind)
    return decoder(value) if decoder else cast(R, value)


def records(conn: Connection, record: type[R], rows: Iterable[Row]) -> list[R]:
    """Make *record*, a dataclass whose fields are the query's columns in order, from each of *rows*."""
    return list(map(mapper(conn, record), rows))


def mapper(conn: Connection, record: type[R]) -> Callable[[Row], R]:
    """Return the function that makes *record* from a row of *conn*."""
    make: Callable[[Row], R] = _mapper(dialect(conn), cast(Hashable, record))
    return make


@functools.cache
def _mapper(dialect: str, record: Any) -> Callable[[Row], Any]:
    kinds = [kind.kind for _, kind in shapes.record_kinds(record)]
    decoders = _DRIVERS[dialect].DECODERS
    decoded = [(index, kind, decoders[kind]) for index, kind in enumerate(kinds) if kind in decoders]

    def make(row: Row) -> Any:
        values = list(row)
        for index, kind, decode in decoded:
            if values[index] is not None:
                values[index] = decode(values[index])
            elif kind is tuple:
                values[index] = ()
        return record(*values)

    return make if decoded else lambda row: record(*row)
