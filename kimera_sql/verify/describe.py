"""Fills in the interfaces of queries: from what PostgreSQL says as it prepares them, and SQLite in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace

from . import memory
from .interfaces import Interface, Result
from .queries import Query
from .server import Preparer
from .text import Fault


def on_postgres(preparer: Preparer, query: Query, kept: Mapping[tuple[str, str], Interface]) -> Iterator[Fault]:
    """Have the server prepare a query; of one that it lacks something for, take what the snapshot has *kept*."""
    source, statement = query.source, query.statement
    if not source.readable:
        return
    try:
        query.lacks = preparer.lacks(statement.listed("needs"))
    except ValueError as error:
        message = (
            f"needs: {str(error)!r} is none of `postgres 16`, `postgres below 17`, `vector 0.7`, `pg_stat_statements`"
        )
        yield source.fault(source.note_offset("needs"), message)
        return
    if query.lacks is not None:
        before = kept.get(query.key)
        if before and before.checksum == query.interface.checksum:
            query.interface = before
        return
    described = preparer.describe(source, statement.types)
    if isinstance(described, Fault):
        yield described
        return
    told = {**dict.fromkeys(statement.listed("nullable"), True), **dict.fromkeys(statement.listed("not null"), False)}
    columns = tuple(Result(name, type_, told.get(name, nullable)) for name, type_, nullable in described.columns)
    query.interface = replace(
        query.interface, prepared=True, parameters=described.parameters or query.interface.parameters, columns=columns
    )
    for column in columns:
        if statement.suffix not in ("!", "#") and not preparer.readable(column.type):
            message = f"psycopg gives a column of the type {column.type} as bytes; cast it, as in {column.name}::text"
            yield source.fault(source.column_offset(column.name), message)


def on_sqlite(queries: Iterable[Query]) -> Iterator[Fault]:
    """Have SQLite prepare its queries, in a database in memory."""
    with ExitStack() as stack:
        conn = None
        for query in queries:
            if query.dialect == "sqlite" and query.source.readable:
                if conn is None:
                    conn = memory.open_empty()
                    stack.callback(conn.close)
                names = memory.columns(conn, query.source)
                if isinstance(names, Fault):
                    yield names
                else:
                    columns = tuple(Result(name, "", None) for name in names)
                    query.interface = replace(query.interface, prepared=True, columns=columns)
