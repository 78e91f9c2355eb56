"""Verifies every named query against a real server without running it; see verify."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, Final, get_args
from uuid import UUID

import numpy as np
import psycopg

from .. import sql
from ..errors import QueryError, UnsupportedByServer
from ..search import Method, Precision, indexes, kinds
from ..sql import Connection, Statement, shapes
from ..sql.files import entities, literal, query_file, statements
from ..sql.shapes import Kind, Shape
from ..tables import VECTOR_TABLES
from ..vectors import DIMENSIONS
from . import calls, memory, text
from . import stub as stubs
from .server import Described, Server, seed, throwaway
from .text import Fault, Source

__all__ = ["Fault", "Interface", "Listed", "Report", "Result", "Skipped", "listed", "verify"]

_PACKAGE: Final = Path(__file__).parents[1]

SNAPSHOT: Final = "snapshot.txt"
"""The file, in the folder of the queries, that keeps what verify found."""

_HEADER: Final = """\
# The interface of each query as PostgreSQL and SQLite see it, with a checksum of its text.
# Written by `kimera-sql verify --update`; `kimera-sql verify --offline` compares it with the queries and the code.
"""

_ROWS: Final = 400
"""Rows a table that plans are checked on."""

_READ_AS: Final[Mapping[type, tuple[str, ...]]] = {
    bool: ("bool",),
    bytes: ("bytea",),
    date: ("date",),
    datetime: ("timestamptz", "timestamp"),
    Decimal: ("numeric",),
    dict: ("jsonb", "json"),
    float: ("float8", "float4"),
    int: ("int4", "int8", "int2", "oid"),
    str: ("text", "varchar", "bpchar", "name", "char"),
    time: ("time", "timetz"),
    timedelta: ("interval",),
    UUID: ("uuid",),
}
"""The types of columns that psycopg reads as each of Python's, the usual one first."""

_SENT_TOO: Final[Mapping[type, tuple[str, ...]]] = {int: ("float8", "float4", "numeric"), float: ("numeric",)}
"""What PostgreSQL takes beside these for a parameter."""


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


@dataclass(slots=True)
class _Query:
    """A query with all that is known of it. note: its `returns`, which is said once for both dialects."""

    dialect: str
    entity: str
    source: Source
    statement: Statement
    module: ModuleType | None
    interface: Interface
    note: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.dialect, self.statement.name


def verify(
    conn: Connection | None,
    folder: Path | str | None = None,
    records: ModuleType | str | None = None,
    *,
    stub: Path | str | None = None,
    update: bool = False,
) -> Report:
    """Check every query of *folder*, or every one that is shipped, and return all faults at once.

    On *conn*, a PostgreSQL connection, each is prepared and none is run. All happens in one transaction (a savepoint
    in the caller's) that is rolled back: the shipped tables are made in a schema of their own, filled with a few rows
    for plans; queries of a *folder* of yours meet the tables that the database has. SQLite's are prepared in memory.
    Without *conn* the queries and the code are compared with the snapshot that stands beside the queries.
    Checked are: the text, for what the loader would misread; the notes (see kimera_sql.sql); names, parameters and
    columns of the two dialects; names, types and nullability of columns against the dataclasses of *records*, or of
    kimera_sql.<entity>; the calls in this package; the indexes that plans use; the snapshot, and *stub*, a .pyi file
    for the module of yours that holds `queries = sql.load(...)`. With *update* these two are written instead, unless
    there is a fault.
    Raises QueryError for a folder without queries, and offline without a snapshot; UnsupportedByServer for an SQLite
    connection; SchemaError where the role may make no schema.
    """
    if conn is not None and not isinstance(conn, psycopg.Connection):
        raise UnsupportedByServer("verify prepares queries on PostgreSQL, and SQLite's in memory: connect to a server")
    if conn is None and update:
        raise QueryError("the snapshot is written from what a server says; update it with one")
    if stub is not None and folder is None:
        raise QueryError("a stub is for a folder of queries of your own: name it")
    folder = None if folder is None else Path(folder)
    module = importlib.import_module(records) if isinstance(records, str) else records
    queries, faults = _read(folder, module)
    snapshot = (folder or sql.shipped("queries")) / SNAPSHOT
    kept = _read_snapshot(snapshot)
    if conn is None and not snapshot.exists():
        raise QueryError(f"there is no {snapshot} to compare with; `kimera-sql verify --update` writes it")
    skipped: list[Skipped] = []
    if conn is None:
        for query in queries:
            query.interface = _remembered(query, kept)
    else:
        with throwaway(conn, own_schema=folder is None) as server:
            for query in queries:
                if query.dialect == "postgres":
                    faults += _describe(server, query, kept, skipped)
            faults += _check_plans(conn, server, queries, own=folder is None)
    faults += _describe_sqlite(queries if conn is not None else [])
    for query in queries:
        if query.interface.prepared:
            faults += [*_check_result(query), *_check_parameters(query)]
    faults += _check_parity(queries)
    if folder is None:
        faults += calls.check(
            # Of a name that both dialects have PostgreSQL's, which come first
            _PACKAGE,
            {query.statement.name: query.statement for query in reversed(queries)},
        )
    files = {snapshot: _snapshot(query.interface for query in queries)}
    if stub is not None and not faults:
        files[Path(stub)] = stubs.write(
            [(query.entity, query.statement, query.note, query.interface.parameters) for query in queries], module
        )
    written = []
    if not update:
        faults += _compare(queries, kept, snapshot) if snapshot.exists() else []
        faults += [fault for path, text in files.items() if path != snapshot for fault in _compare_stub(path, text)]
    elif not faults:
        written = [str(path) for path, text in files.items() if _write(path, text)]
    ordered = sorted(set(faults), key=lambda fault: (fault.file, fault.line, fault.column, fault.message))
    return Report(tuple(ordered), len(queries), tuple(skipped), tuple(written))


def _write(path: Path, text: str) -> bool:
    """Write *text* to *path* unless it is there, and say whether it was not."""
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QueryError(f"{path} cannot be written: {error.strerror}") from error
    return True


def listed(folder: Path | str | None = None) -> list[Listed]:
    """Return the queries of *folder*, or those that are shipped, by file and in its order, each name once."""
    folder = None if folder is None else Path(folder)
    found: dict[str, Listed] = {}
    for dialect, entity in entities(folder):
        for one in statements(dialect, entity, folder).values():
            known = found.get(one.name)
            found[one.name] = (
                replace(known, dialects=(*known.dialects, dialect))
                if known
                else Listed(
                    one.name,
                    one.parameters,
                    one.suffix,
                    one.notes.get("returns"),
                    (dialect,),
                    " ".join(one.doc.split()),
                )
            )
    return list(found.values())


def _read(folder: Path | None, module: ModuleType | None) -> tuple[list[_Query], list[Fault]]:
    """Read all files, and return their queries and what is wrong with how they are written."""
    queries: list[_Query] = []
    faults: list[Fault] = []
    for dialect, entity in entities(folder):
        path = query_file(dialect, entity, folder)
        sources, wrong = text.read(path, dialect)
        faults += wrong
        loaded: dict[str, Statement] = {}
        try:
            loaded = statements.__wrapped__(dialect, entity, folder)
        except QueryError as error:
            if not wrong:
                faults.append(Fault(str(path), 1, 1, None, str(error)))
        of = module if folder is not None else _shipped_module(entity)
        for source in sources:
            # One query that cannot be loaded is to hide nothing that is wrong with the others.
            statement = loaded.get(source.name) or _stated(entity, source)
            meant = tuple(name for name, _ in source.used)
            names = tuple(re.findall(r"%\((\w+)\)s", statement.text))
            if source.name in loaded and source.readable and dialect == "postgres" and names != meant:
                source.readable = False
                message = "the loader reads other parameters than the text has"
                faults.append(source.fault(None, message, expected=", ".join(meant), found=", ".join(names)))
            parameters = tuple((name, "") for name in source.parameters)
            checksum = hashlib.sha256(" ".join(source.text.split()).encode()).hexdigest()[:12]
            unseen = Interface(dialect, statement.name, statement.suffix, checksum, False, parameters, ())
            queries.append(_Query(dialect, entity, source, statement, of, unseen, statement.notes.get("returns")))
    notes = {query.statement.name: query.note for query in queries if query.dialect == "postgres"}
    for query in queries:
        query.note = query.note or notes.get(query.statement.name)
    return queries, faults


def _stated(entity: str, source: Source) -> Statement:
    notes = {note: value for note, (value, _) in source.notes.items()}
    name, declared = f"{entity}.{source.name}", frozenset(source.parameters)
    statement = Statement(name, literal(source.text), "", source.parameters, source.suffix, notes, False, (), declared)
    return replace(statement, types=statement.listed("types"))


def _shipped_module(entity: str) -> ModuleType | None:
    """Return the module of this name, wherever in the package it stands save for the commands; None without one."""
    for path in (*_PACKAGE.rglob(f"{entity}.py"), *_PACKAGE.rglob(f"{entity}/__init__.py")):
        inside = path.relative_to(_PACKAGE.parent).with_suffix("").parts
        if "cli" not in inside:
            return importlib.import_module(".".join(inside).removesuffix(".__init__"))
    return None


def _remembered(query: _Query, kept: Mapping[tuple[str, str], Interface]) -> Interface:
    """Return what the snapshot knows of a query, under what the file says itself."""
    now, before = query.interface, kept.get(query.key)
    if before is None or before.checksum != now.checksum:
        return now
    types = dict(before.parameters)
    named = before.parameters if now.suffix == "#" else tuple((name, types.get(name, "")) for name, _ in now.parameters)
    return replace(before, suffix=now.suffix, parameters=named)


def _describe(
    server: Server,
    query: _Query,
    kept: Mapping[tuple[str, str], Interface],
    skipped: list[Skipped],
) -> Iterator[Fault]:
    source, statement = query.source, query.statement
    if not source.readable:
        return
    try:
        lacks = server.lacks(statement.listed("needs"))
    except ValueError as error:
        message = (
            f"needs: {str(error)!r} is none of `postgres 16`, `postgres below 17`, `vector 0.7`, `pg_stat_statements`"
        )
        yield source.fault(source.note_offset("needs"), message)
        return
    if lacks is not None:
        skipped.append(Skipped(statement.name, lacks))
        before = kept.get(query.key)
        if before and before.checksum == query.interface.checksum:
            query.interface = before
        return
    described = server.describe(source, statement.types)
    if isinstance(described, Fault):
        yield described
        return
    told = {**dict.fromkeys(statement.listed("nullable"), True), **dict.fromkeys(statement.listed("not null"), False)}
    columns = tuple(Result(name, type_, told.get(name, nullable)) for name, type_, nullable in described.columns)
    for note in ("nullable", "not null"):
        for name in statement.listed(note):
            if name not in [column.name for column in columns]:
                yield source.fault(
                    source.note_offset(note),
                    f"{note}: there is no column {name}",
                    expected=", ".join(column.name for column in columns),
                    found=name,
                )
    query.interface = replace(
        query.interface, prepared=True, parameters=described.parameters or query.interface.parameters, columns=columns
    )
    for column in columns:
        if statement.suffix not in ("!", "#") and not server.readable(column.type):
            message = f"psycopg gives a column of the type {column.type} as bytes; cast it, as in {column.name}::text"
            yield source.fault(source.column_offset(column.name), message)


def _describe_sqlite(queries: Iterable[_Query]) -> Iterator[Fault]:
    with ExitStack() as stack:
        conn = None
        for query in queries:
            if query.dialect == "sqlite" and query.source.readable:
                if conn is None:
                    conn = memory.open_empty()
                    stack.callback(conn.close)
                names = memory.columns(conn, query.source)
                if isinstance(names, Fault):
                    yield names
                else:
                    columns = tuple(Result(name, "", None) for name in names)
                    query.interface = replace(query.interface, prepared=True, columns=columns)


def _check_result(query: _Query) -> Iterator[Fault]:
    """Compare the columns with the dataclass, or the columns, of the note `returns`."""
    source, suffix, columns = query.source, query.interface.suffix, query.interface.columns
    place = source.note_offset("returns")
    if suffix in ("!", "#"):
        if "returns" in source.notes:
            yield source.fault(place, f"returns: a query with the suffix {suffix} gives the number of rows it changed")
        return
    if not columns:
        yield source.fault(None, "it gives no rows: its suffix must be !")
        return
    if query.note is None:
        if suffix == "$" and len(columns) == 1:
            return
        suggested = ", ".join(f"{column.name} {_python(column)}" for column in columns)
        if query.dialect == "postgres" or all(column.type for column in columns):
            yield source.fault(
                None, f"no note says what its rows become: write `-- returns: ` and a dataclass, or `{suggested}`"
            )
        return
    try:
        shape = shapes.parse(query.note)
        wanted = _wanted(shape, query.module)
    except QueryError as error:
        yield source.fault(place, f"returns: {error}")
        return
    if suffix == "$" and len(wanted) != 1:
        yield source.fault(place, "returns: the suffix $ gives one value", expected="one type", found=query.note)
        return
    names, found = [name for name, _ in wanted], [column.name for column in columns]
    if names == [""]:
        names = found[:1]
    if names != found and not (query.dialect == "sqlite" and len(names) == len(found) == 1):
        wrong = next((name for name, other in zip(found, names, strict=False) if name != other), found[-1])
        yield source.fault(
            source.column_offset(wrong),
            f"the columns are not the fields of {query.note}",
            expected=", ".join(names),
            found=", ".join(found),
        )
    kinds = dict(zip(names, (kind for _, kind in wanted), strict=True))
    for column in columns:
        if column.name in kinds and query.dialect == "postgres":
            yield from _check_column(source, column, kinds[column.name], shape)


def _wanted(shape: Shape, module: ModuleType | None) -> list[tuple[str, Kind]]:
    own = shapes.record_kinds(shapes.find_record(module, shape.record)) if shape.record else []
    return [*own, *shape.columns]


def _check_column(source: Source, column: Result, kind: Kind, shape: Shape) -> Iterator[Fault]:
    at, name = source.column_offset(column.name), column.name
    field = f"{shape.record}.{name}" if shape.record and name not in dict(shape.columns) else f"the note's {name}"
    if kind.kind is np.ndarray and column.type in ("vector", "halfvec"):
        message = f"how many dimensions {name} has is not known: cast it, as in {name}::{column.type}({DIMENSIONS})"
        yield source.fault(at, message, expected=f"{column.type}({DIMENSIONS})", found=column.type)
    elif not _accepts(kind, column.type):
        yield source.fault(
            at, f"{name} is {column.type}, which is no {kind} as {field} is", expected=_types(kind), found=column.type
        )
    plain = replace(kind, optional=False)
    # NULL for an array becomes an empty tuple.
    if kind.kind is object or (kind.kind is tuple and not kind.optional):
        return
    if column.nullable and not kind.optional:
        message = f"{name} can be NULL: make {field} `{plain} | None`, or write `-- not null: {name}` if it never is"
        yield source.fault(at, message, expected=f"{plain} | None", found=kind)
    elif column.nullable is False and kind.optional:
        message = f"{name} is never NULL: make {field} `{plain}`, or write `-- nullable: {name}` if it can be"
        yield source.fault(at, message, expected=plain, found=kind)
    elif column.nullable is None and not kind.optional:
        message = (
            f"whether {name} can be NULL is not to be told from the statement: write `-- not null: {name}`, "
            f"or make {field} `{plain} | None`"
        )
        yield source.fault(at, message, expected="a note", found="none")


def _check_parameters(query: _Query) -> Iterator[Fault]:
    """Compare the parameters with the dataclass, or the types, of the note `takes`."""
    source = query.source
    note, place = query.statement.notes.get("takes"), source.note_offset("takes")
    if note is None:
        return
    types = dict(query.interface.parameters)
    try:
        shape = shapes.parse(note)
        wanted = _wanted(shape, query.module)
    except QueryError as error:
        yield source.fault(place, f"takes: {error}")
        return
    names = [name for name, _ in wanted]
    unknown = [name for name in names if name not in types]
    missing = [name for name in types if name not in names] if shape.record else []
    if unknown or missing:
        yield source.fault(
            place,
            f"the parameters are not those of {note}",
            expected=", ".join(sorted(names)),
            found=", ".join(sorted(types)),
        )
    for name, kind in wanted:
        if types.get(name) and not _accepts(kind, types[name], sent=True):
            yield source.fault(
                source.parameter_offset(name),
                f"the parameter {name} is {types[name]}, which is not sent as {kind}",
                expected=_types(kind),
                found=types[name],
            )


def _accepts(kind: Kind, type_: str, *, sent: bool = False) -> bool:
    """Whether a column of a type becomes a kind, or a parameter of it is sent as one."""
    if kind.kind is object:
        return True
    if kind.kind is np.ndarray:
        return re.fullmatch(rf"(vector|halfvec)\({DIMENSIONS}\)" if not sent else "vector|halfvec", type_) is not None
    if kind.kind in (list, tuple):
        if type_ in ("json", "jsonb"):
            return not sent
        return type_.endswith("[]") and _accepts(Kind(kind.item), type_.removesuffix("[]"), sent=sent)
    return type_ in _READ_AS.get(kind.kind, ()) or (sent and type_ in _SENT_TOO.get(kind.kind, ()))


def _types(kind: Kind) -> str:
    if kind.kind is np.ndarray:
        return f"vector({DIMENSIONS})"
    if kind.kind in (list, tuple):
        return "an array" if kind.item is object else f"{_types(Kind(kind.item)).split(' or ')[0]}[]"
    return " or ".join(_READ_AS.get(kind.kind, ("no type of PostgreSQL",)))


def _python(column: Result) -> str:
    """Return how a note writes the type of a column."""
    plain = column.type.removesuffix("[]")
    kind = next((kind for kind, types in _READ_AS.items() if plain in types), object)
    name = "Vector" if plain.startswith(("vector", "halfvec")) else str(Kind(kind))
    if column.type.endswith("[]"):
        name = f"list[{name}]"
    return name if column.nullable is False else f"{name} | None"


def _check_parity(queries: Sequence[_Query]) -> Iterator[Fault]:
    """Compare the two dialects. A file that only PostgreSQL has is its own affair."""
    by_key = {query.key: query for query in queries}
    files = {(query.dialect, query.entity) for query in queries}
    for query in queries:
        source, name = query.source, query.statement.name
        other = "sqlite" if query.dialect == "postgres" else "postgres"
        only = query.statement.notes.get("only")
        twin = by_key.get((other, name))
        if (other, query.entity) not in files and query.dialect == "postgres":
            continue
        if only is not None and only != query.dialect:
            yield source.fault(
                source.note_offset("only"), f"it is {query.dialect}'s, and says that it is {only}'s alone"
            )
        elif twin is None and only is None:
            yield source.fault(None, f"{other} has no query of this name; write it, or `-- only: {query.dialect}`")
        elif twin is not None and only is not None:
            yield source.fault(source.note_offset("only"), f"{other} has a query of this name as well")
        elif twin is not None and query.dialect == "postgres":
            yield from _check_twins(query, twin)


def _check_twins(query: _Query, twin: _Query) -> Iterator[Fault]:
    ours = [name for name, _ in query.interface.parameters]
    theirs = [name for name, _ in twin.interface.parameters]
    if ours != theirs:
        yield twin.source.fault(
            None,
            "its parameters are not those of PostgreSQL's query",
            expected=", ".join(ours),
            found=", ".join(theirs),
        )
    if (query.interface.suffix or "") != (twin.interface.suffix or "") and {
        query.interface.suffix,
        twin.interface.suffix,
    } != {"#", "!"}:
        yield twin.source.fault(
            None,
            "its suffix is not that of PostgreSQL's query",
            expected=query.interface.suffix or "none",
            found=twin.interface.suffix or "none",
        )
    both = query.interface.prepared and twin.interface.prepared
    if both and query.interface.suffix in ("", "^"):
        names = [[column.name for column in one.interface.columns] for one in (query, twin)]
        if names[0] != names[1]:
            yield twin.source.fault(
                twin.source.column_offset(next((a for a, b in zip(names[1], names[0], strict=False) if a != b), "")),
                "its columns are not those of PostgreSQL's query",
                expected=", ".join(names[0]),
                found=", ".join(names[1]),
            )


def _check_plans(
    conn: psycopg.Connection[Any], server: Server, queries: Sequence[_Query], *, own: bool
) -> Iterator[Fault]:
    """Check that plans use the indexes that the note `uses` names; the shipped tables get rows and vector indexes."""
    planned = [query for query in queries if "uses" in query.statement.notes and query.dialect == "postgres"]
    for query in queries:
        if "uses" in query.statement.notes and query.dialect != "postgres":
            yield query.source.fault(query.source.note_offset("uses"), "uses: plans are PostgreSQL's")
    planned = [
        query for query in planned if query.interface.prepared and not server.lacks(query.statement.listed("needs"))
    ]
    if own and planned:
        seed(conn, _ROWS)
        for name in sorted({name for query in planned for name in query.statement.listed("uses")}):
            _build(conn, name)
    for query in planned:
        described = Described(query.interface.parameters)
        try:
            used = server.indexes(query.source, described)
        except psycopg.Error as error:
            yield query.source.fault(query.source.note_offset("uses"), f"uses: it cannot be planned: {error}")
            continue
        for name in query.statement.listed("uses"):
            if name not in used:
                yield query.source.fault(
                    query.source.note_offset("uses"),
                    f"its plan does not use {name}",
                    expected=name,
                    found=", ".join(used) or "no index",
                )


def _build(conn: psycopg.Connection[Any], name: str) -> None:
    """Build the vector index of this name, if it is one of kimera_sql.indexes."""
    for table in VECTOR_TABLES.values():
        for method in get_args(Method):
            for precision in get_args(Precision):
                if name == kinds.name(table, method, precision):
                    indexes.build(conn, table.name, method=method, precision=precision)


def _snapshot(interfaces: Iterable[Interface]) -> str:
    return _HEADER + "".join("\n" + "\n".join(_lines(one)) + "\n" for one in interfaces)


def _lines(interface: Interface) -> list[str]:
    """Return an interface as the snapshot has it."""
    head = f"{interface.dialect} {interface.name}{interface.suffix} {interface.checksum}"
    words = {True: " null", False: "", None: " unknown"}
    return [
        head if interface.prepared else f"{head} not prepared",
        *(f"    takes {name} {type_}".rstrip() for name, type_ in interface.parameters),
        *(
            f"    gives {column.name} {column.type}{words[column.nullable]}"
            if column.type
            else f"    gives {column.name}"
            for column in interface.columns
        ),
    ]


def _read_snapshot(path: Path) -> dict[tuple[str, str], Interface]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise QueryError(f"{path} cannot be read: {error}") from error
    found: dict[tuple[str, str], Interface] = {}
    key = ("", "")
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        if head := re.fullmatch(r"(\w+) ([\w.]+?)([\^$!#]?) ([0-9a-f]{12})( not prepared)?", line):
            key = head[1], head[2]
            found[key] = Interface(head[1], head[2], head[3], head[4], not head[5], (), ())
        elif key in found and (takes := re.fullmatch(r"    takes (\w+) ?(\S*)", line)):
            found[key] = replace(found[key], parameters=(*found[key].parameters, (takes[1], takes[2])))
        elif key in found and (gives := re.fullmatch(r"    gives (.+)", line)):
            found[key] = replace(found[key], columns=(*found[key].columns, _result(key[0], gives[1])))
        else:
            raise QueryError(f"{path}:{number}: {line!r} is not as `kimera-sql verify --update` writes it")
    return found


def _result(dialect: str, text: str) -> Result:
    if dialect == "sqlite":
        return Result(text, "", None)
    name, type_, word = re.fullmatch(r"(.+?) (\S+)(?: (null|unknown))?", text).groups()  # type: ignore[union-attr]
    return Result(name, type_, {None: False, "null": True, "unknown": None}[word])


def _compare(queries: Sequence[_Query], kept: Mapping[tuple[str, str], Interface], snapshot: Path) -> Iterator[Fault]:
    """Compare what was found with the snapshot."""
    remedy = "run `kimera-sql verify --update` and look at the difference"
    for query in queries:
        before, now = kept.get(query.key), query.interface
        if not query.source.readable:
            continue
        if before is None:
            yield query.source.fault(None, f"the snapshot does not have it; {remedy}")
        elif before.checksum != now.checksum:
            message = f"its text was changed after the snapshot was written; {remedy}"
            yield query.source.fault(None, message, expected=before.checksum, found=now.checksum)
        elif before.prepared and now.prepared and before != now:
            old, new = _lines(before), _lines(now)
            gone = next((line for line in old if line not in new), "nothing").strip()
            come = next((line for line in new if line not in old), "nothing").strip()
            yield query.source.fault(
                None, f"its interface is not that of the snapshot; {remedy}", expected=gone, found=come
            )
    keys = {query.key for query in queries}
    for dialect, name in kept:
        if (dialect, name) not in keys:
            yield Fault(str(snapshot), 1, 1, name, f"the snapshot has it for {dialect}, and it is gone; {remedy}")


def _compare_stub(path: Path, text: str) -> Iterator[Fault]:
    try:
        there = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        yield Fault(str(path), 1, 1, None, f"the stub cannot be read ({error.strerror}); --update writes it")
        return
    wanted = text.splitlines()
    for number in range(max(len(there), len(wanted))):
        one, other = (lines[number] if number < len(lines) else "nothing" for lines in (wanted, there))
        if one != other:
            message = "the stub is not what the queries give; --update writes it anew"
            yield Fault(str(path), number + 1, 1, None, message, one.strip(), other.strip())
            return
