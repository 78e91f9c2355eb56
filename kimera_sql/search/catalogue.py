# Generated from kimera_sql/aio/search/catalogue.py by .ci/twins.py: change that one.
"""Read the vector indexes, and estimates of how many rows pass filters, from the server's catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final

import numpy as np
import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from .. import sql
from ..search import looks
from ..search.looks import Look
from ..search.plan import Plan, VectorIndex, estimated_rows, used_by, vector_index
from ..sql import Connection, Queries, postgres
from ..tables import Table, named
from ..vectors import DIMENSIONS

_queries = Queries("search")
_citus = Queries("citus")

_ANY: Final = np.ones(DIMENSIONS, dtype=np.float32)
"""A vector to plan with; all have the same plan."""


def look(conn: psycopg.Connection[Any], table: Table, *, fresh: bool = False) -> Look:
    """Return the vector indexes of *table* that our queries can use. A cached look is good enough unless *fresh*."""
    known = None if fresh else looks.last(conn, table.name)
    if known is not None:
        return known
    info = conn.info
    idle = info.transaction_status == TransactionStatus.IDLE and info.pipeline_status == PipelineStatus.OFF
    listed, placed = postgres.fetchall_of(
        conn,
        [
            postgres.Call(_queries.vector_indexes.statement(conn), {"table": table.name}),
            postgres.Call(_citus.distributed.statement(conn), {"tables": [table.name]}),
        ],
    )
    found: list[VectorIndex] = []
    for *row, pgvector in listed:
        if (index := vector_index(table, (*row, sql.version(pgvector)))) is not None:
            found.append(index)
    if placed and found:
        found = _over_shards(conn, table, found)
    if idle and not conn.autocommit:
        # The transaction is for the search to begin: then it can be run again where types were created anew.
        conn.rollback()
    return looks.keep(conn, table.name, tuple(found), distributed=bool(placed))


def _over_shards(conn: psycopg.Connection[Any], table: Table, indexes: Sequence[VectorIndex]) -> list[VectorIndex]:
    """Return *indexes* with the rows of all shards; those that were deleted and not vacuumed away yet are not known."""
    shards = _citus.shards.fetchval(conn, int, table=table.name)
    if shards is None:
        return []
    filters = dict.fromkeys(Queries(table.entity).matching_plan.statement(conn).parameters)
    rows = _estimate_over_shards(conn, table, filters)
    return [
        replace(index, rows=rows or 0, live=rows or index.rows_at_build or 0, dead=0, shards=shards)
        for index in indexes
    ]


def is_distributed(conn: Connection, table: str) -> bool:
    """Return whether Citus keeps the rows of the table of this name in shards. It is cached as looks are."""
    return sql.is_postgres(conn) and (look(conn, named(table))).distributed


def _estimate(conn: psycopg.Connection[Any], table: Table, parameters: Mapping[str, Any]) -> int:
    """Return how many rows pass the filters in *parameters* by the server's plan."""
    plans = Queries(table.entity).matching_plan.fetchval(conn, list, **parameters)
    return estimated_rows(plans) if plans else 0


def _estimate_over_shards(conn: psycopg.Connection[Any], table: Table, parameters: Mapping[str, Any]) -> int | None:
    """Do the same with Citus.

    None where it explains no plan: in a transaction that has used a reference table, of which this node has a copy.
    """
    try:
        with nullcontext() if conn.info.transaction_status == TransactionStatus.IDLE else sql.atomic(conn):
            return _estimate(conn, table, parameters)
    except psycopg.errors.InternalError_:
        return None


def matching(conn: psycopg.Connection[Any], table: Table, where: Mapping[str, Any], besides: Mapping[str, Any]) -> int:
    """Return the planner's estimate of how many rows pass *where*. It is cached as long as the look at *table*.

    Where row-level security guards the table it is not: what the policies hide can change from search to search. Where
    nobody can tell it is 0, so that every row is compared.
    """
    seen = look(conn, table)
    key = repr(where)
    estimate = None if seen.guarded else seen.estimate(key)
    if estimate is None:
        by = _estimate_over_shards if seen.distributed else _estimate
        estimate = by(conn, table, {**dict.fromkeys(besides), **where})
        if estimate is None:
            return 0
        seen.remember(key, estimate)
    return estimate


def is_served(conn: psycopg.Connection[Any], table: Table, alone: Plan, seen: Look) -> bool:
    """Return whether the server runs the statement of *alone* by its index. It is cached as long as the look.

    Without settings the choice is the planner's, which reads small tables from end to end.
    """
    served = seen.served(alone.query)
    if served is None:
        statement = getattr(Queries(table.entity), alone.query).statement(conn).explained()
        given = {"vector": _ANY, "k": alone.least, "with_vectors": False, **alone.parameters}
        lines = [line for (line,) in postgres.fetchall(conn, statement, given)]
        served = alone.index is not None and used_by(lines, alone.index.name)
        seen.remember_served(alone.query, served)
    return served
