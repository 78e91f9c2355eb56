"""Tables as files and back: Parquet, JSON Lines, and numpy's .npy and .npz with JSON Lines beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import sql
from ..checks import item_fault
from ..entity import Entity, of_table
from ..errors import InvalidValue
from ..progress import progress
from ..sql import Connection
from ..tables import Table, named
from . import arrays, jsonlines, parquet
from .names import new_file, reported
from .sources import Source

__all__ = ["Loaded", "Unloaded", "load", "unload"]


@dataclass(frozen=True, slots=True)
class Unloaded:
    """What was written of a table: how many rows, and into which files."""

    table: str
    rows: int
    files: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """How many rows were inserted into a table, and how many were set aside."""

    table: str
    rows: int
    set_aside: int


def unload(conn: Connection, table: str, path: Path, *, force: bool = False) -> Unloaded:
    """Write every row of *table*, the oldest first, into the file *path*, whose suffix says how.

    .parquet and .jsonl hold whole rows; .npy and .npz hold the vectors, and a file of the same name with the suffix
    .jsonl the other columns. *conn* is outside a transaction, and the rows are those that there were at the begin.
    The files get their names once they are whole and on the disk; their mode is 0600.
    Raises FileError if a file cannot be written, or is there already, unless *force*; InvalidValue for another suffix,
    or where a table has no vectors; and NotInstalled where pyarrow is needed and missing.
    """
    listed = named(table)
    entity, (suffix, vector) = of_table(listed), _format(listed, path)
    paths = (path, arrays.beside(path)) if suffix in arrays.SUFFIXES else (path,)
    with reported(path, "nothing was written"), ExitStack() as stack:
        files = [stack.enter_context(new_file(one, force=force)) for one in paths]
        stack.enter_context(sql.snapshot(conn))
        stack.enter_context(sql.without_timeouts(conn))
        total = entity.count(conn)
        rows = stack.enter_context(closing(entity.stream(conn)))  # type: ignore[type-var]
        records = progress(rows, total, table)
        if suffix == ".parquet":
            parquet.write(files[0], entity.record, records)
        elif suffix == ".jsonl":
            jsonlines.write(files[0], records, vector)
        else:
            arrays.write(files[0], files[1], records, vector, total, zipped=suffix == ".npz")
    return Unloaded(table, total, paths)


def load(conn: Connection, table: str, path: Path, *, set_aside: Path | None = None) -> Loaded:
    """Insert the rows of the file *path* into *table*, all or none, ids and times kept; a row without gets new ones.

    The files are those of unload. A row that cannot be stored raises InvalidValue with its number, counted from 0; or
    it is written into the new file *set_aside*, a JSON object a line, and the others are inserted. What the server
    alone refuses, as an id that is taken, is an error in any case. Raises FileError for a file that cannot be read.
    """
    listed = named(table)
    entity, (suffix, vector) = of_table(listed), _format(listed, path)
    with reported(path, "nothing was loaded"), ExitStack() as stack:
        if suffix == ".parquet":
            if set_aside is None:
                return Loaded(table, entity.insert_arrow(conn, stack.enter_context(parquet.reader(path, table))), 0)
            source = stack.enter_context(parquet.source(path))
        elif suffix == ".jsonl":
            source = stack.enter_context(jsonlines.source(path))
        else:
            source = stack.enter_context(arrays.source(path, vector))
        aside = None if set_aside is None else jsonlines.Aside(stack.enter_context(new_file(set_aside)))
        try:
            rows = _insert(conn, entity, _items(entity, source, table, aside))
        except Exception as error:
            if aside is not None and aside.rows and hasattr(error, "__notes__"):
                error.add_note("rows that were set aside are not counted there")
            raise
        return Loaded(table, rows, aside.rows if aside else 0)


def _format(table: Table, path: Path) -> tuple[str, str]:
    """Return the suffix of *path*, and the table's column of vectors, "" without one. Raises InvalidValue."""
    suffix, vector = path.suffix.lower(), table.vector or ""
    if suffix not in (".parquet", ".jsonl", *arrays.SUFFIXES):
        raise InvalidValue(f"path: {path} has none of the suffixes .parquet, .jsonl, .npy and .npz")
    if suffix in arrays.SUFFIXES and not vector:
        raise InvalidValue(f"path: {path} would hold vectors, which {table.name} has not; use .parquet or .jsonl")
    return suffix, vector


def _items(entity: Entity[Any, Any, Any], source: Source, table: str, aside: jsonlines.Aside | None) -> Iterator[Any]:
    """Yield the items that the rows of *source* are. A bad one goes to *aside*, or raises InvalidValue."""
    kind = None
    for number, row in enumerate(progress(source.rows, source.total, table)):
        try:
            row = source.values(row)
            item = entity.item(row)
            if kind not in (None, type(item)):
                raise InvalidValue("id: either all rows have one or none has")
        except InvalidValue as error:
            if aside is None:
                raise item_fault(number, error) from error
            aside.add(number, error, row)
            continue
        kind = type(item)
        yield item


def _insert(conn: Connection, entity: Entity[Any, Any, Any], items: Iterator[Any]) -> int:
    first = next(items, None)
    if first is None:
        return 0
    insert = entity.insert_as_they_are if isinstance(first, entity.record) else entity.insert_many
    return insert(conn, itertools.chain([first], items))
