"""What callers really search for: a few of their searches, kept to tune and to measure recall with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import random
from typing import Any, Final

import psycopg

from ...search.measures import Recall
from ...search.plan import Plan
from ...tables import Table
from ...vectors import Vector
from ..pools import AsyncPooledConnection
from ..sql import Connection, Queries
from ..sql.postgres import Call

_queries = Queries("samples")

ENOUGH: Final = 100
"""The fewest searches that say something about recall."""


def offer(
    conn: Connection,
    table: Table,
    vectors: Sequence[Vector],
    k: int,
    chosen: Plan,
    conditions: Sequence[Mapping[str, Any]],
) -> None:
    """Pick some of the searches of *table* for *vectors* at random, to be kept once *conn* is back in its pool.

    Exact ones are not, nor those whose *conditions*, or row-level security, have a say in what they find.
    """
    if not isinstance(conn, AsyncPooledConnection) or conn.search_sample is None:
        return
    if chosen.index is None or chosen.index.guarded:
        return
    if any(value is not None for one in conditions for value in one.values()):
        return
    for vector in vectors:
        if random() * conn.search_sample < 1:  # noqa: S311 - nothing is gained by guessing it
            conn.afterwards.append(
                Call(_queries.keep.statement(conn), {"table_name": table.name, "vector": vector, "k": k})
            )


async def newest(conn: psycopg.AsyncConnection[Any], table: Table, limit: int) -> list[Vector]:
    """Return the newest *limit* vectors that were kept of the searches of *table*, each once."""
    return [query for (query,) in await _queries.newest.fetchall(conn, table_name=table.name, limit=limit)]


async def usual_k(conn: psycopg.AsyncConnection[Any], table: Table) -> int | None:
    """Return how many neighbours most of the searches of *table* were for, None if none was kept."""
    return await _queries.usual_k.fetchval(conn, int, table_name=table.name)


async def record(conn: psycopg.AsyncConnection[Any], table: Table, measured: Recall) -> None:
    """Keep *measured*, the recall of these searches, for monitoring and the doctor."""
    await _queries.record.execute(
        conn,
        table_name=table.name,
        k=measured.k,
        queries=measured.queries,
        recall=measured.recall,
        low=measured.low,
        high=measured.high,
        index_name=measured.index,
    )
