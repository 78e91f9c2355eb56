"""Whether the plans of queries use the indexes that their notes name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, get_args

import psycopg
from psycopg import sql as composed

from .. import sql
from ..search import Method, Precision, indexes, kinds
from ..tables import TABLES, VECTOR_TABLES
from .queries import Query
from .server import Preparer
from .text import Fault

_ROWS: Final = 400
"""Rows a table that plans are checked on."""

_COMPILED: Final = 100_000
"""The cost above which PostgreSQL compiles a plan, unless told otherwise (jit_above_cost)."""

_DISTANCE: Final = re.compile(r"<(?:=|-|#|~|\+|%)>")
"""pgvector's operators of distance."""


def check(conn: psycopg.Connection[Any], preparer: Preparer, queries: Sequence[Query], *, own: bool) -> Iterator[Fault]:
    """Check that plans use the indexes that the note `uses` names; the shipped tables get rows and vector indexes."""
    noted = [query for query in queries if "uses" in query.statement.notes]
    for query in noted:
        if query.dialect != "postgres":
            yield query.source.fault(query.source.note_offset("uses"), "uses: plans are PostgreSQL's")
    planned = [
        query for query in noted if query.dialect == "postgres" and query.interface.prepared and query.lacks is None
    ]
    if own and planned:
        _seed(conn)
        for name in sorted({name for query in planned for name in query.statement.listed("uses")}):
            _build(conn, name)
    for query in planned:
        place = query.source.note_offset("uses")
        try:
            used = preparer.indexes(query.source, query.interface.parameters)
        except psycopg.Error as error:
            yield query.source.fault(place, f"uses: it cannot be planned: {error}")
            continue
        for name in query.statement.listed("uses"):
            if name not in used:
                message = f"its plan does not use {name}"
                yield query.source.fault(place, message, expected=name, found=", ".join(used) or "no index")
            elif used[name] > _COMPILED and _DISTANCE.search(query.statement.text):
                # A search takes milliseconds, and compiling its plan a hundred times as long.
                message = f"it uses {name} in a plan that a server with JIT compiles"
                yield query.source.fault(
                    place, message, expected=f"a cost of at most {_COMPILED:,}", found=f"{used[name]:,.0f}"
                )


def _seed(conn: psycopg.Connection[Any]) -> None:
    """Fill the shipped tables."""
    for table in TABLES:
        sql.Queries(table.entity).seed.execute(conn, rows=_ROWS)
        conn.execute(composed.SQL("ANALYZE {}").format(composed.Identifier(table.name)))


def _build(conn: psycopg.Connection[Any], name: str) -> None:
    """Build the vector index of this name, if it is one of kimera_sql.indexes."""
    for table in VECTOR_TABLES.values():
        for method in get_args(Method):
            for precision in get_args(Precision):
                if name == kinds.name(table, method, precision):
                    indexes.build(conn, table.name, method=method, precision=precision)
