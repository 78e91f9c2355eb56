"""Deleting many rows, a batch at a time.

On an autocommit connection each batch is a transaction of its own, otherwise all are the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SchemaError
from . import sql
from .sql import Connection


async def delete(conn: Connection, query: sql.Query, batch: int, parameters: Mapping[str, Any]) -> int:
    """Run *query*, which deletes at most *batch* rows, until none is left, and return how many there were."""
    rows = 0
    try:
        while deleted := await query.execute(conn, batch=batch, **parameters):
            rows += deleted
    except Exception as error:
        _note(error, rows)
        raise
    return rows


async def delete_found(
    conn: Connection,
    find: sql.Query,
    delete: sql.Query,
    batch: int,
    parameters: Mapping[str, Any],
    *,
    along: sql.Query | None = None,
    locked: bool = True,
) -> tuple[int, int]:
    """Delete the rows whose ids *find* gives, until there are none, and what refers to them with *along*.

    *locked*: nobody else can delete them once *find* has given them. Return how many rows *delete*
    deleted, and how many *along* did.
    """
    rows = others = 0
    try:
        while deleted := await _delete_batch(conn, find, delete, batch, parameters, along, locked):
            rows, others = rows + deleted[0], others + deleted[1]
    except Exception as error:
        _note(error, rows)
        raise
    return rows, others


async def _delete_batch(
    conn: Connection,
    find: sql.Query,
    delete: sql.Query,
    batch: int,
    parameters: Mapping[str, Any],
    along: sql.Query | None,
    locked: bool,
) -> tuple[int, int] | None:
    async with sql.atomic(conn):
        found = await find.fetchall(conn, limit=batch, **parameters)
        if not found:
            return None
        ids = [id for (id,) in found]
        others = await along.execute(conn, ids=ids) if along else 0
        rows = await delete.execute(conn, ids=ids)
        if rows < len(ids) and (locked or (not rows and found == await find.fetchall(conn, limit=batch, **parameters))):
            # They would be found again and again.
            raise SchemaError(
                f"{delete.entity}: a trigger, a rule or row-level security of the table kept {len(ids) - rows:,} rows"
            )
        return rows, others


def _note(error: Exception, rows: int) -> None:
    if rows:
        error.add_note(
            f"earlier batches had deleted {rows:,} rows, which stay deleted unless their transaction is rolled back"
        )
