"""Read the vector indexes, and estimates of how many rows pass filters, from the server's catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from ...search import looks
from ...search.looks import Look
from ...search.plan import VectorIndex, vector_index
from ...tables import Table
from .. import sql
from ..sql import Queries

_queries = Queries("search")


async def look(conn: psycopg.AsyncConnection[Any], table: Table, *, fresh: bool = False) -> Look:
    """Return the vector indexes of *table* that our queries can use. A cached look is good enough unless *fresh*."""
    known = None if fresh else looks.last(conn, table.name)
    if known is not None:
        return known
    found: list[VectorIndex] = []
    for *row, pgvector in await _queries.vector_indexes.fetchall(conn, table=table.name):
        if (index := vector_index(table, (*row, sql.version(pgvector)))) is not None:
            found.append(index)
    return looks.keep(conn, table.name, tuple(found))


async def matching(
    conn: psycopg.AsyncConnection[Any], table: Table, where: Mapping[str, Any], besides: Mapping[str, Any]
) -> int:
    """Return the planner's estimate of how many rows pass *where*. It is cached as long as the look at *table*.

    Where row-level security guards the table it is not: what the policies hide can change from search to search.
    """
    seen = await look(conn, table)
    key = repr(where)
    estimate = None if seen.guarded else seen.estimate(key)
    if estimate is None:
        parameters = {**dict.fromkeys(besides), **where}
        plans = await Queries(table.entity).matching_plan.fetchval(conn, list, **parameters)
        estimate = int(plans[0]["Plan"]["Plan Rows"]) if plans else 0
        seen.remember(key, estimate)
    return estimate
