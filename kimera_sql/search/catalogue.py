# Generated from kimera_sql/aio/search/catalogue.py by .ci/twins.py: change that one.
"""Read the vector indexes, and estimates of how many rows pass filters, from the server's catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from .. import sql
from ..search import looks
from ..search.looks import Look
from ..search.plan import Plan, VectorIndex, used_by, vector_index
from ..sql import Queries, postgres
from ..tables import Table
from ..vectors import DIMENSIONS

_queries = Queries("search")

_ANY: Final = np.ones(DIMENSIONS, dtype=np.float32)
"""A vector to plan with; all have the same plan."""


def look(conn: psycopg.Connection[Any], table: Table, *, fresh: bool = False) -> Look:
    """Return the vector indexes of *table* that our queries can use. A cached look is good enough unless *fresh*."""
    known = None if fresh else looks.last(conn, table.name)
    if known is not None:
        return known
    info = conn.info
    idle = info.transaction_status == TransactionStatus.IDLE and info.pipeline_status == PipelineStatus.OFF
    found: list[VectorIndex] = []
    for *row, pgvector in _queries.vector_indexes.fetchall(conn, table=table.name):
        if (index := vector_index(table, (*row, sql.version(pgvector)))) is not None:
            found.append(index)
    if idle and not conn.autocommit:
        # The transaction is for the search to begin: then it can be run again where types were created anew.
        conn.rollback()
    return looks.keep(conn, table.name, tuple(found))


def matching(conn: psycopg.Connection[Any], table: Table, where: Mapping[str, Any], besides: Mapping[str, Any]) -> int:
    """Return the planner's estimate of how many rows pass *where*. It is cached as long as the look at *table*.

    Where row-level security guards the table it is not: what the policies hide can change from search to search.
    """
    seen = look(conn, table)
    key = repr(where)
    estimate = None if seen.guarded else seen.estimate(key)
    if estimate is None:
        parameters = {**dict.fromkeys(besides), **where}
        plans = Queries(table.entity).matching_plan.fetchval(conn, list, **parameters)
        estimate = int(plans[0]["Plan"]["Plan Rows"]) if plans else 0
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
