"""Checks of what was found of a query: its result, its parameters, and the parity of the dialects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import ModuleType
from typing import Final
from uuid import UUID

import numpy as np

from ..errors import QueryError
from ..sql import shapes
from ..sql.shapes import Kind, Shape
from ..vectors import DIMENSIONS
from .interfaces import Result
from .queries import Query
from .text import Fault, Source

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


def check_notes(query: Query) -> Iterator[Fault]:
    """Look for the columns that the notes `nullable` and `not null` name."""
    source, names = query.source, [column.name for column in query.interface.columns]
    for note in ("nullable", "not null"):
        for name in query.statement.listed(note):
            if name not in names:
                yield source.fault(
                    source.note_offset(note),
                    f"{note}: there is no column {name}",
                    expected=", ".join(names),
                    found=name,
                )


def check_result(query: Query) -> Iterator[Fault]:
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


def check_parameters(query: Query) -> Iterator[Fault]:
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


def check_parity(queries: Sequence[Query]) -> Iterator[Fault]:
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


def _check_twins(query: Query, twin: Query) -> Iterator[Fault]:
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
