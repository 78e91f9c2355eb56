"""Convert values for the database, and rows from it. Pure functions that take the dialect as an argument."""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MemberDescriptorType, ModuleType
from typing import Any, Final, TypeAlias, TypeVar, cast
from uuid import UUID

import numpy as np
import psycopg
from psycopg.adapt import Dumper
from psycopg.postgres import types
from psycopg.pq import Format
from psycopg.types.json import Jsonb

from ..errors import InvalidValue, SchemaError
from ..vectors import Vector
from . import shapes
from .binary import array, array_of, codec, json_text, uuid
from .files import Dialect, query_file, statements

Row: TypeAlias = tuple[Any, ...]
R = TypeVar("R")

STREAM_ENDED: Final = (
    "conn: its transaction ended while rows were being streamed; end it after the last row, or write through another "
    "connection"
)
"""What a stream raises InvalidValue with."""


class _Ids(list[UUID]):
    """UUIDs that are sent as UUID[] in binary. psycopg sends a list as text, which takes seven times as long."""


class _IdsDumper(Dumper):
    format = Format.BINARY
    oid = types["uuid"].array_oid

    def dump(self, obj: _Ids) -> bytes:
        return array(types["uuid"].oid, [uuid(id) for id in obj])


psycopg.adapters.register_dumper(_Ids, _IdsDumper)


@dataclass(frozen=True, slots=True)
class Column:
    """One column's values of many rows, which are sent as an array. type: the column's, by the server's name."""

    type: str
    values: Sequence[Any]


class _ColumnDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Column) -> bytes:
        conn = cast("psycopg.Connection[Any]", self.connection)
        element = conn.adapters.types[obj.type.removesuffix("[]")]
        return array_of(obj.type, element.oid, obj.values, conn.info.encoding)


psycopg.adapters.register_dumper(Column, _ColumnDumper)


def columns(types: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Return *rows*, which all have the same columns, by these; *types* are theirs in their order."""
    return {name: Column(type, [row[name] for row in rows]) for name, type in zip(rows[0], types, strict=True)}


def to_postgres(value: Any) -> Any:
    """Return *value* in the form that psycopg sends."""
    if not isinstance(value, (dict, list)):
        return value
    if isinstance(value, dict):
        return Jsonb(value, dumps=json_text)
    if value and all(isinstance(item, UUID) for item in value):
        return _Ids(value)
    return value


def check_encoding(encoding: str, parameters: Mapping[str, Any]) -> None:
    """Raise InvalidValue for a text among *parameters* that a session in *encoding*, by Python's name, cannot send."""
    if codec(encoding) == "utf-8":
        return
    for name, value in parameters.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                try:
                    text.encode(encoding)
                except UnicodeEncodeError as error:
                    raise InvalidValue(
                        f"{name}: {text[error.start]!r} cannot be sent in the client_encoding of this session "
                        f"({encoding}); set it to UTF8"
                    ) from None


def to_sqlite(value: Any) -> Any:
    """Return *value* as SQLite stores it."""
    match value:
        case UUID():
            return str(value)
        case datetime():
            # In UTC and of fixed width, so that text sorts like time
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case timedelta():
            return value // timedelta(microseconds=1)
        case dict():
            return json_text(value)
        case list():
            return json_text([to_sqlite(item) for item in value])
        case np.ndarray():
            return value.astype("<f4", copy=False).tobytes()
        case _:
            return value


def _postgres_vector(value: Any) -> Any:
    """Return *value*, an array unless psycopg does not know the type of the column."""
    if isinstance(value, bytes):
        raise SchemaError(
            "the server sent a vector of a type that this session does not find: put the schema that pgvector is in on "
            "the search_path"
        )
    return value


def _from_sqlite(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return *decode*, but with sqlite3's DataError for a stored value that it cannot decode."""

    def decoded(value: Any) -> Any:
        try:
            return decode(value)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise sqlite3.DataError(f"the stored value {value!r:.50} cannot be read: {error}") from error

    return decoded


def _sqlite_vector(blob: bytes) -> Vector:
    array = np.frombuffer(blob, dtype="<f4").astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError("its numbers are not all finite")
    return array


_DECODERS: Final[Mapping[Dialect, Mapping[type, Callable[[Any], Any]]]] = {
    # psycopg returns arrays as lists.
    "postgres": {tuple: tuple, np.ndarray: _postgres_vector},
    "sqlite": {
        UUID: _from_sqlite(UUID),
        datetime: _from_sqlite(datetime.fromisoformat),
        dict: _from_sqlite(json.loads),
        tuple: _from_sqlite(lambda text: tuple(json.loads(text))),
        np.ndarray: _from_sqlite(_sqlite_vector),
        bool: bool,
        float: float,  # RETURNING gives a REAL that is a whole number as an int
    },
}
"""For each type, how to decode a database value. Values of other types are not converted."""


def decode(dialect: Dialect, kind: type[R], value: Any) -> R:
    """Return the database value *value*, which is not NULL, as a *kind*."""
    decoder = _DECODERS[dialect].get(kind)
    return cast(R, decoder(value) if decoder else value)


def mapper(dialect: Dialect, record: type[R]) -> Callable[[Row], R]:
    """Return the function that makes a *record*, a dataclass whose fields are the columns in order, from a row."""
    return cast("Callable[[Row], R]", _mapper(dialect, cast(Hashable, record)))


@functools.cache
def _mapper(dialect: Dialect, record: Any) -> Callable[[Row], Any]:
    """Write and compile the function for *record*, as dataclasses does its __init__."""
    fields = shapes.record_kinds(record)
    known: dict[str, Any] = {"record": record, "new": object.__new__}
    values = []
    for place, (_, kind) in enumerate(fields):
        value, known[f"decode{place}"] = f"value{place}", _DECODERS[dialect].get(kind.kind)
        null = "()" if kind.kind is tuple else "None"
        values.append(f"{null} if {value} is None else decode{place}({value})" if known[f"decode{place}"] else value)
    if _has_only_slots(record, [name for name, _ in fields]):
        # The __init__ of a frozen dataclass takes twice as long: it goes by object.__setattr__.
        known |= {f"set{place}": getattr(record, name).__set__ for place, (name, _) in enumerate(fields)}
        filled = [f"set{place}(made, {value})" for place, value in enumerate(values)]
        body = ["made = new(record)", *filled, "return made"]
    else:
        body = [f"return record({', '.join(values)})"]
    taken = "".join(f"value{place}, " for place in range(len(fields)))
    exec("\n    ".join(["def make(row):", f"{taken} = row", *body]), known)  # noqa: S102 - names and numbers alone
    return cast("Callable[[Row], Any]", known["make"])


def _has_only_slots(record: Any, names: Sequence[str]) -> bool:
    """Return whether the fields *names* are all that making a *record* fills, and nothing is done besides."""
    return (
        all(isinstance(getattr(record, name, None), MemberDescriptorType) for name in names)
        and record.__new__ is object.__new__
        and record.__init__.__code__.co_filename == "<string>"  # written by dataclasses, not by hand
        and not hasattr(record, "__post_init__")
    )


@functools.cache
def noted_mapper(
    dialect: Dialect, entity: str, name: str, folder: Path | None, records: ModuleType | None
) -> Callable[[Row], Any]:
    """Return the function that maps a row as the query's note `returns` says; see statements for *folder*.

    Without a note, it returns the row itself, or its one value if the query's suffix is $.
    """
    statement = statements(dialect, entity, folder)[name]
    note = statement.notes.get("returns")
    if note is None and dialect == "sqlite" and query_file("postgres", entity, folder).exists():
        twin = statements("postgres", entity, folder).get(name)
        note = twin.notes.get("returns") if twin else None  # said once for both
    if note is None:
        return (lambda row: row[0]) if statement.suffix == "$" else (lambda row: row)
    shape = shapes.parse(note)
    record = shapes.find_record(records, shape.record) if shape.record else None
    if record and not shape.columns:
        return mapper(dialect, record)
    kinds = [kind.kind for _, kind in (*(shapes.record_kinds(record) if record else ()), *shape.columns)]
    own = len(kinds) - len(shape.columns)

    def make(row: Row) -> Any:
        values = [
            None if value is None else decode(dialect, kind, value) for kind, value in zip(kinds, row, strict=True)
        ]
        if record is None:
            return values[0] if shape.columns[0][0] == "" else tuple(values)
        return (record(*values[:own]), *values[own:])

    return make
