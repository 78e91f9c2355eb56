"""Copies everything from one database into another: from SQLite into PostgreSQL, and back."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import numpy as np

from . import sql
from .entity import Entity, of_table
from .errors import CopyError
from .progress import progress
from .sql import Connection
from .tables import BOOKKEEPING, NAMES, TABLES

_queries = sql.Queries("transfer")

_CHUNK: Final = 1000
"""Rows that are held in memory at once."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied of one table. checksum: of the rows' values, the same in both databases, in hexadecimal."""

    table: str
    rows: int
    skipped: int
    checksum: str


def copy(
    source: Connection, target: Connection, *, skip_existing: bool = False, leave_out: Collection[str] = ()
) -> list[Copied]:
    """Copy every row of *source* into *target*, ids and timestamps kept, and return what was copied of each table.

    Both have the schema, and neither is in a transaction. *source* is read as it is at the begin. All or nothing:
    the rows are in the transaction that is open on *target* afterwards, and the caller commits it; if *target* is in
    autocommit, they are committed.
    Raises CopyError for an id that *target* has already, unless *skip_existing* leaves such rows out; for a table of
    *source* that kimera_sql does not know, unless *leave_out* names it; and when the rows in *target* are
    not those of *source* in the end.
    """
    with sql.snapshot(source), sql.without_timeouts(source), sql.atomic(target), sql.without_timeouts(target):
        _check_tables(source, leave_out)
        return [_copy(table.name, of_table(table), source, target, skip_existing) for table in TABLES]


def _check_tables(source: Connection, leave_out: Collection[str]) -> None:
    """Raise CopyError where *source* has a table that nothing here knows how to copy."""
    known = {*NAMES, *BOOKKEEPING, *leave_out}
    if unknown := [name for (name,) in _queries.tables.fetchall(source) if name not in known]:
        raise CopyError(
            f"{', '.join(unknown)}: not known to kimera_sql, which copies its own tables; leave out by name what is "
            "not to be copied (--leave-out TABLE); nothing was copied"
        )


def _copy(
    table: str, entity: Entity[Any, Any, Any], source: Connection, target: Connection, skip_existing: bool
) -> Copied:
    total = entity.count(source)
    skipped = sent = arrived = rows = 0
    for chunk in _chunks(progress(entity.stream(source, chunk=_CHUNK), total, table)):
        existing = entity.existing_ids(target, [record.id for record in chunk])
        if existing and not skip_existing:
            raise CopyError(f"{table}: the target has the id {min(existing)} already; nothing was copied")
        new = [record for record in chunk if record.id not in existing]
        entity.insert_as_they_are(target, new)
        skipped += len(existing)
        rows += len(new)
        sent += sum(map(_digest, new))
        arrived += sum(map(_digest, entity.get_many(target, [record.id for record in new])))
    if rows + skipped != total or sent != arrived:
        raise CopyError(f"{table}: the rows that arrived are not those that were sent; nothing was copied")
    return Copied(table, rows, skipped, f"{sent % 2**64:016x}")


def _chunks(records: Iterator[Any]) -> Iterator[Sequence[Any]]:
    while chunk := list(itertools.islice(records, _CHUNK)):
        yield chunk


def _digest(record: Any) -> int:
    """Return a number that only an equal record has; a sum of them does not depend on the rows' order."""
    parts = (_canonical(getattr(record, field.name)) for field in fields(record))
    return int.from_bytes(hashlib.sha256(b"\0".join(parts)).digest()[:16])


def _canonical(value: Any) -> bytes:
    match value:
        case float():
            return struct.pack(">d", value + 0.0)  # -0.0 is 0.0
        case datetime():
            return value.astimezone(UTC).isoformat().encode()
        case np.ndarray():
            return value.tobytes()
        case dict():
            # PostgreSQL may write 1e23 as an integer: to JSON both are the same decimal.
            return repr(_decimals(json.loads(json.dumps(value), parse_float=Decimal, parse_int=Decimal))).encode()
        case _:
            return repr(value).encode()


def _decimals(value: Any) -> Any:
    match value:
        case dict():
            return sorted((key, _decimals(item)) for key, item in value.items())
        case list():
            return [_decimals(item) for item in value]
        case Decimal():
            return value.as_integer_ratio()
        case _:
            return value
