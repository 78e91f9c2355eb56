"""Vector indexes: build them once there are rows, list, rebuild and drop them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final

import psycopg
from psycopg import sql as composed

from ... import checks, tables
from ...errors import InvalidValue, NotFound
from ...search import kinds, looks
from ...search.kinds import Building
from ...search.plan import Method, Precision, VectorIndex
from ...tables import VECTOR_TABLES
from .. import sql
from ..servers import require_session
from ..sql import Connection, Queries, postgres
from . import catalogue

__all__ = [
    "GROWTH",
    "Building",
    "VectorIndex",
    "aged",
    "build",
    "building",
    "clean",
    "drop",
    "existing",
    "find",
    "retrain",
]

_queries = Queries("indexes")

GROWTH: Final = 2.0
"""The growth of a table, as a multiple of the rows its ivfflat index was trained on, at which to retrain the index.

Beyond twice the rows, most of them had no part in the centroids. Below half of them, most of the centroids stand for
rows that are gone.
"""


_LOCK_TIMEOUT: Final = 30.0
"""Seconds that a build waits for the lock that makes writers wait: those that come meanwhile wait behind it."""

_CLEANING: Final = 5.0
"""Seconds that a build that failed waits for the lock that dropping its unfinished index takes."""


async def build(
    conn: Connection,
    table: str,
    *,
    method: Method = "hnsw",
    precision: Precision | None = None,
    lists: int | None = None,
    m: int | None = None,
    ef_construction: int | None = None,
    concurrently: bool = False,
) -> VectorIndex:
    """Build a vector index on *table*, geoid_states or semantic_embeddings, and return it.

    method: "hnsw", with *m* connections per node (2 to 100, default 16) and *ef_construction* candidates (4 to 1000,
    at least 2 *m*; default 64, or 2 *m* if that is more); or "ivfflat", with *lists* lists. By default *lists* is the
    specification's 100 up to 100,000 rows, rows / 1000 up to a million rows, and their square root beyond (pgvector's
    README).
    precision: "full", "half" (a third of the size, and faster) or "binary" (a twentieth of the size). Hits from the
    last two are re-ranked with the stored vectors. The default is "half", or "full" with pgvector before 0.7. ivfflat
    in full precision is the specification's index and has its name.
    Readers carry on during the build. Writers wait, unless *concurrently*: then they carry on too. That needs an
    autocommit connection, and leaves nothing behind if the build fails or is cancelled. What a killed build of the same
    index has left is dropped first. For the build maintenance_work_mem is raised to what it needs, up to a quarter of
    the server's effective_cache_size.

    Searches use the index at once, with cautious settings until recall.tune has measured it. Raises InvalidValue for
    invalid options and for an empty table (an ivfflat index is trained on its rows), and UnsupportedByServer for what
    SQLite or the server's pgvector lacks. psycopg's DuplicateTable passes through.
    """
    server = sql.require_postgres(
        conn, "SQLite has no vector indexes, and its searches are exact; use PostgreSQL for them"
    )
    searched = tables.with_vectors(table)
    # A concurrent build makes nobody wait while it does.
    async with sql.without_timeouts(server, lock_timeout=0 if concurrently else _LOCK_TIMEOUT):
        rows = await _count(server, table)
        if not rows:
            raise InvalidValue(f"table: {table} is empty; insert rows first, what an index is like depends on them")
        pgvector = await _pgvector(server)
        precision = precision or ("half" if pgvector >= (0, 7) else "full")
        kinds.check_kind(method, precision, pgvector)
        await _check_concurrently(server, concurrently)
        options = kinds.options(method, rows, lists=lists, m=m, ef_construction=ef_construction)
        name = kinds.name(searched, method, precision)
        statement = kinds.statement(searched, method, precision, options, concurrently=concurrently)
        if name in await _unfinished(server):
            await _drop(server, name, concurrently=concurrently)
        await _run(server, statement, kinds.memory(method, precision, rows, options), concurrently)
        # Settings of an earlier index of this name that was dropped by plain SQL
        await _queries.forget_settings.execute(server, index_name=name)
        # Filtered searches choose between the index and an exact scan by the planner's estimates.
        await server.execute(composed.SQL("ANALYZE {}").format(composed.Identifier(table)))
        await _queries.record_build.execute(server, index_name=name, rows=rows)
        return await find(server, name)


async def existing(conn: Connection) -> list[VectorIndex]:
    """Return the vector indexes that searches can use, ordered by table and name. On SQLite there are none."""
    if not sql.is_postgres(conn):
        return []
    found: list[VectorIndex] = []
    for table in VECTOR_TABLES.values():
        seen = (await catalogue.look(conn, table, fresh=True)).indexes
        found += await _over_shards(conn, seen) if any(index.shards for index in seen) else seen
    return found


async def _over_shards(conn: Connection, indexes: Sequence[VectorIndex]) -> list[VectorIndex]:
    """Return *indexes*, of one distributed table, with the size and the scans of all shards."""
    used: dict[str, tuple[int, int]] = {
        name: (size, scans)
        for name, size, scans in await Queries("citus").index_use.fetchall(conn, table=indexes[0].table)
    }
    sized = ((index, used.get(index.name, (index.size, index.scans))) for index in indexes)
    return [replace(index, size=size, scans=scans) for index, (size, scans) in sized]


async def find(conn: Connection, name: str) -> VectorIndex:
    """Return the vector index *name*. Raises NotFound."""
    for index in await existing(conn):
        if index.name == name:
            return index
    raise NotFound(f"no vector index has the name {name}")


async def aged(conn: Connection, *, growth: float = GROWTH) -> list[VectorIndex]:
    """Return the ivfflat indexes to retrain because their centroids are out of date, ordered by table and name.

    These are the indexes whose table has more than *growth* times (default: twice) their rows_at_build or has shrunk to
    less than that part of them, and those that kimera_sql did not build, for which nobody knows how many rows there
    were. Rows are counted, not estimated.
    On SQLite there are none. Raises InvalidValue for a growth below 1.
    """
    if checks.number("growth", growth) < 1:
        raise InvalidValue(f"growth: {growth} is below 1")
    trained = [index for index in await existing(conn) if index.method == "ivfflat" and index.usable]
    counts = {table: await _count(conn, table) for table in dict.fromkeys(index.table for index in trained)}
    return [
        index
        for index in trained
        if index.rows_at_build is None
        or counts[index.table] > growth * index.rows_at_build
        or counts[index.table] * growth < index.rows_at_build
    ]


async def retrain(conn: Connection, name: str) -> VectorIndex:
    """Rebuild the index *name* while it serves, and return it.

    An ivfflat index gets new centroids from the current rows; aged says which indexes need that. The settings that
    recall.tune stored are dropped: tune again. Raises NotFound, and InvalidValue if *conn* is not in autocommit.
    """
    server = _with_indexes(conn, name)
    index = await find(server, name)
    await _check_concurrently(server, True)
    async with sql.without_timeouts(server, lock_timeout=0):
        rows = await _count(server, index.table)
        options = {"m": index.m or 0, "lists": index.lists or 0}
        statement = composed.SQL("REINDEX INDEX CONCURRENTLY {}").format(composed.Identifier(name))
        await _run(server, statement, kinds.memory(index.method, index.precision, rows, options), concurrently=True)
        await _queries.record_build.execute(server, index_name=name, rows=rows)
        await _queries.forget_settings.execute(server, index_name=name)
    looks.forget(server)
    return await find(server, name)


async def drop(conn: Connection, name: str) -> None:
    """Drop the vector index *name* and its records. Raises NotFound."""
    server = _with_indexes(conn, name)
    await find(server, name)
    await _drop(server, name)
    await _queries.forget.execute(server, index_name=name)
    await _queries.forget_settings.execute(server, index_name=name)
    looks.forget(server)


async def clean(conn: Connection) -> list[str]:
    """Drop the unfinished indexes that killed builds left on the vector tables, and return their names."""
    if not sql.is_postgres(conn):
        return []
    left = await _unfinished(conn)
    # Waiting for its lock on the table, a concurrent drop blocks nobody else.
    concurrently = postgres.outside_transaction(conn)
    async with sql.without_timeouts(conn):
        for name in left:
            await _drop(conn, name, concurrently=concurrently)
    return left


async def building(conn: Connection) -> list[Building]:
    """Return the builds in progress on the vector tables, by any connection. On SQLite there are none."""
    if not sql.is_postgres(conn):
        return []
    return await _queries.building.fetchall(conn, Building, tables=list(VECTOR_TABLES))


def _with_indexes(conn: Connection, name: str) -> psycopg.AsyncConnection[Any]:
    """Return *conn* if it is to PostgreSQL, which can have the index *name*. Raises NotFound."""
    if not sql.is_postgres(conn):
        raise NotFound(f"no vector index has the name {name}")
    return conn


async def _unfinished(conn: Connection) -> list[str]:
    return [name for (name,) in await _queries.invalid.fetchall(conn, tables=list(VECTOR_TABLES))]


async def _count(conn: Connection, table: str) -> int:
    return await Queries(VECTOR_TABLES[table].entity).count_all.fetchval(conn, int) or 0


async def _pgvector(conn: Connection) -> tuple[int, ...]:
    return sql.version(await _queries.pgvector_version.fetchval(conn, str) or "0")


async def _check_concurrently(conn: psycopg.AsyncConnection[Any], concurrently: bool) -> None:
    if not concurrently:
        return
    if not postgres.outside_transaction(conn):
        raise InvalidValue("conn: what runs concurrently needs an autocommit connection outside a transaction")
    await require_session(conn, "what runs concurrently")


async def _run(
    conn: psycopg.AsyncConnection[Any], statement: composed.Composed, needed: int, concurrently: bool
) -> None:
    """Run *statement* with the memory and workers it can use. A failed concurrent build drops its unfinished index."""
    allowed, machine, workers = await _queries.resources.fetchone(conn) or (0, 0, 0)
    memory = max(allowed, min(int(needed * 1.25), machine // 4))
    try:
        await _build(conn, statement, memory, workers, concurrently)
    except psycopg.errors.DiskFull:
        # Parallel workers share the memory through /dev/shm, which containers keep small.
        await _build(conn, statement, memory, 0, concurrently)
    looks.forget(conn)


async def _build(
    conn: psycopg.AsyncConnection[Any], statement: composed.Composed, memory: int, workers: int, concurrently: bool
) -> None:
    settings = (f"{memory // 1024}kB", str(workers))
    before = await _queries.settings.fetchone(conn) or settings
    # A concurrent build has no transaction that the settings could end with.
    scope = composed.SQL("SESSION" if concurrently else "LOCAL")

    async def put(values: tuple[str, ...]) -> None:
        for name, value in zip(("maintenance_work_mem", "max_parallel_maintenance_workers"), values, strict=True):
            await conn.execute(
                composed.SQL("SET {} {} = {}").format(scope, composed.Identifier(name), composed.Literal(value))
            )

    # Behind a pooler a transaction alone can have settings: those that the caller has made are not there.
    patiently = sql.without_timeouts(conn, lock_timeout=0 if concurrently else _LOCK_TIMEOUT)
    async with nullcontext() if concurrently else sql.atomic(conn), patiently:
        try:
            await put(settings)
            await conn.execute(statement)
        except BaseException as error:
            if concurrently and conn.closed:
                error.add_note("it may have left an unfinished index, which `kimera-sql index clean` drops")
            elif concurrently:
                await put(before)
                # clean drops only invalid indexes. A build that got no lock has created nothing, and an index of that
                # name may exist.
                if not isinstance(error, psycopg.errors.DuplicateTable):
                    await _clean_after(conn, error)
            raise
        # The caller's session goes on, and perhaps the transaction.
        await put(before)


async def _clean_after(conn: psycopg.AsyncConnection[Any], error: BaseException) -> None:
    # Whoever has cancelled the build wants no further wait.
    try:
        async with sql.without_timeouts(conn, lock_timeout=_CLEANING):
            await clean(conn)
    except psycopg.Error as fault:
        # The lock that the build did not get may still be held.
        error.add_note(f"an unfinished index could not be dropped ({fault}); `kimera-sql index clean` does it later")


async def _drop(conn: psycopg.AsyncConnection[Any], name: str, *, concurrently: bool = False) -> None:
    statement = "DROP INDEX CONCURRENTLY IF EXISTS {}" if concurrently else "DROP INDEX IF EXISTS {}"
    await conn.execute(composed.SQL(statement).format(composed.Identifier(name)))
