"""Vector indexes: building them once there are rows, rebuilding, dropping and listing them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql as composed

from .. import checks, search, sql
from ..errors import InvalidValue, NotFound, UnsupportedByServer
from ..sql import Connection, postgres
from . import TABLES, VectorIndex

_queries = sql.Queries("indexes")

_NAMES: Final = {"geoid_states": "idx_geoid_vector", "semantic_embeddings": "idx_embedding_vector"}
"""The specification's names, of its own kind of index; the others add their method and precision."""

_EXPRESSIONS: Final[Mapping[str, tuple[LiteralString, str]]] = {
    "full": ("{column}", "vector_cosine_ops"),
    "half": ("({column}::halfvec(1024))", "halfvec_cosine_ops"),
    "binary": ("(binary_quantize({column})::bit(1024))", "bit_hamming_ops"),
}

_VECTOR_BYTES: Final = {"full": 4096, "half": 2048, "binary": 128}

_LISTS: Final = 100
"""The specification's number of lists, which is pgvector's rule (rows / 1000) at 100,000 rows."""

GROWTH: Final = 2.0
"""How many times as many rows a table has as an ivfflat index was trained on when retraining is due.

Beyond twice, most rows had no part in the centroids that they are found by.
"""


@dataclass(frozen=True, slots=True)
class Building:
    """An index that is being built. phase: as pg_stat_progress_create_index names it. done, total: of that phase."""

    table: str
    phase: str
    done: int
    total: int


def build(
    conn: Connection,
    table: str,
    *,
    method: str = "hnsw",
    precision: str | None = None,
    lists: int | None = None,
    m: int | None = None,
    ef_construction: int | None = None,
    concurrently: bool = False,
) -> VectorIndex:
    """Build a vector index on *table*, geoid_states or semantic_embeddings, and return it.

    method: "hnsw", with *m* connections a node (2 to 100, 16 unless given) and *ef_construction* candidates (4 to
    1000, at least 2 *m*, 64 unless given); or "ivfflat", with *lists* lists: unless given the specification's 100 up
    to 100,000 rows, rows / 1000 up to a million and their square root beyond (pgvector's README).
    precision: "full", "half" (a third of the size, and faster) or "binary" (a twentieth), both ranked again with the
    vectors themselves; "half" unless given, "full" where pgvector is older than 0.7. ivfflat in full precision is the
    specification's own index and has its name.
    Readers go on meanwhile, and writers wait, unless *concurrently*: that needs an autocommit connection, and leaves
    nothing behind when it fails or is cancelled. maintenance_work_mem is raised for the build to what it needs, at
    most a quarter of the server's effective_cache_size.

    Searches use the index at once, with cautious settings until recall.tune has measured it. Raises InvalidValue for
    options that cannot be and for an empty table (an ivfflat index is trained on its rows), UnsupportedByServer for
    what the server's pgvector or SQLite lacks; psycopg's DuplicateTable passes through.
    """
    if not isinstance(conn, psycopg.Connection):
        raise UnsupportedByServer("SQLite has no vector indexes, and its searches are exact; use PostgreSQL for them")
    searched = _searched(table)
    if not getattr(_queries, f"has_rows_{table}").fetchval(conn, bool):
        raise InvalidValue(f"table: {table} is empty; insert rows first, what an index is like depends on them")
    pgvector = _pgvector(conn)
    precision = precision or ("half" if pgvector >= (0, 7) else "full")
    _check_kind(method, precision, pgvector)
    _check_concurrently(conn, concurrently)
    rows = _count(conn, table)
    options = _options(method, rows, lists=lists, m=m, ef_construction=ef_construction)
    name = _NAMES[table] if (method, precision) == ("ivfflat", "full") else f"{_NAMES[table]}_{method}_{precision}"
    expression, opclass = _EXPRESSIONS[precision]
    statement = composed.SQL(
        "CREATE INDEX {concurrently} {name} ON {table} USING {method} ({column} {opclass}) WITH ({options})"
    ).format(
        concurrently=composed.SQL("CONCURRENTLY" if concurrently else ""),
        name=composed.Identifier(name),
        table=composed.Identifier(table),
        method=composed.Identifier(method),
        column=composed.SQL(expression).format(column=composed.Identifier(searched.column)),
        opclass=composed.Identifier(opclass),
        options=composed.SQL(", ").join(
            composed.SQL("{} = {}").format(composed.Identifier(option), composed.Literal(value))
            for option, value in options.items()
        ),
    )
    _run(conn, statement, _memory(method, precision, rows, options), concurrently)
    _queries.record.execute(conn, index_name=name, rows=rows)
    # Those of an earlier index of this name, which was dropped behind our back
    _queries.forget_settings.execute(conn, index_name=name)
    # Searches with filters choose between the index and an exact scan by the planner's estimates.
    getattr(_queries, f"analyze_{table}").execute(conn)
    return find(conn, name)


def existing(conn: Connection) -> list[VectorIndex]:
    """Return the vector indexes that searches can use, by table and name. On SQLite there are none."""
    if not isinstance(conn, psycopg.Connection):
        return []
    return [index for table in TABLES.values() for index in search.vector_indexes(conn, table)]


def find(conn: Connection, name: str) -> VectorIndex:
    """Return the vector index *name*. Raises NotFound."""
    for index in existing(conn):
        if index.name == name:
            return index
    raise NotFound(f"no vector index has the name {name}")


def aged(conn: Connection, *, growth: float = GROWTH) -> list[VectorIndex]:
    """Return the ivfflat indexes that retrain would give better centroids, by table and name.

    They are those whose table has more than *growth* times the rows_at_build, twice unless given, and those that
    kimera_sql did not build, of which nobody knows whether there were rows at all. The rows are counted, not estimated.
    On SQLite there are none. Raises InvalidValue for a growth below 1.
    """
    if checks.number("growth", growth) < 1:
        raise InvalidValue(f"growth: {growth} is below 1")
    trained = [index for index in existing(conn) if index.method == "ivfflat" and index.usable]
    counts = {table: _count(conn, table) for table in dict.fromkeys(index.table for index in trained)}
    return [
        index for index in trained if index.rows_at_build is None or counts[index.table] > growth * index.rows_at_build
    ]


def retrain(conn: Connection, name: str) -> VectorIndex:
    """Build the index *name* anew while it serves, and return it.

    An ivfflat index takes new centroids from the rows that are there now; see aged for when. What recall.tune
    stored is dropped: tune again. *conn* must be in autocommit. Raises NotFound.
    """
    index = find(conn, name)
    assert isinstance(conn, psycopg.Connection)  # noqa: S101 - SQLite has no index to be found
    _check_concurrently(conn, True)
    rows = _count(conn, index.table)
    options = {"m": index.m or 0, "lists": index.lists or 0}
    statement = composed.SQL("REINDEX INDEX CONCURRENTLY {}").format(composed.Identifier(name))
    _run(conn, statement, _memory(index.method, index.precision, rows, options), concurrently=True)
    _queries.record.execute(conn, index_name=name, rows=rows)
    _queries.forget_settings.execute(conn, index_name=name)
    search.forget(conn)
    return find(conn, name)


def drop(conn: Connection, name: str) -> None:
    """Drop the vector index *name* and what is recorded of it. Raises NotFound."""
    find(conn, name)
    _drop(conn, name)
    _queries.forget.execute(conn, index_name=name)
    _queries.forget_settings.execute(conn, index_name=name)
    search.forget(conn)


def clean(conn: Connection) -> list[str]:
    """Drop the unfinished indexes that a killed build left on the vector tables, and return their names."""
    if not isinstance(conn, psycopg.Connection):
        return []
    left = [name for (name,) in _queries.invalid.fetchall(conn)]
    # One that waits for its lock on the table holds up nobody else so.
    concurrently = postgres.outside_transaction(conn)
    for name in left:
        _drop(conn, name, concurrently=concurrently)
    return left


def building(conn: Connection) -> list[Building]:
    """Return the builds on the vector tables that go on now, by whichever connection. On SQLite there are none."""
    if not isinstance(conn, psycopg.Connection):
        return []
    return sql.records(conn, Building, _queries.building.fetchall(conn))


def _count(conn: Connection, table: str) -> int:
    rows: int = getattr(_queries, f"count_rows_{table}").fetchval(conn, int)
    return rows


def _searched(table: str) -> search.Table:
    if table not in TABLES:
        raise InvalidValue(f"table: expected one of {', '.join(TABLES)}, got {table!r}")
    return TABLES[table]


def _pgvector(conn: Connection) -> tuple[int, ...]:
    return postgres.version(_queries.pgvector_version.fetchval(conn, str) or "0")


def _check_kind(method: str, precision: str, pgvector: tuple[int, ...]) -> None:
    if method not in ("hnsw", "ivfflat"):
        raise InvalidValue(f"method: expected hnsw or ivfflat, got {method!r}")
    if precision not in _EXPRESSIONS:
        raise InvalidValue(f"precision: expected one of {', '.join(_EXPRESSIONS)}, got {precision!r}")
    if precision != "full" and pgvector < (0, 7):
        version = ".".join(map(str, pgvector))
        raise UnsupportedByServer(f"indexes in {precision} precision need pgvector 0.7, the server has {version}")


def _check_concurrently(conn: psycopg.Connection[Any], concurrently: bool) -> None:
    if concurrently and not postgres.outside_transaction(conn):
        raise InvalidValue("conn: what runs concurrently needs an autocommit connection outside a transaction")


def _options(
    method: str, rows: int, *, lists: int | None, m: int | None, ef_construction: int | None
) -> dict[str, int]:
    if method == "ivfflat":
        if m is not None or ef_construction is not None:
            raise InvalidValue("m and ef_construction are options of hnsw")
        rule = _LISTS if rows <= 1000 * _LISTS else rows // 1000 if rows <= 10**6 else math.isqrt(rows)
        return {"lists": rule if lists is None else checks.integer("lists", lists, least=1, most=32768)}
    if lists is not None:
        raise InvalidValue("lists is an option of ivfflat")
    nodes = checks.integer("m", 16 if m is None else m, least=2, most=100)
    wanted = max(64, 2 * nodes) if ef_construction is None else ef_construction
    return {"m": nodes, "ef_construction": checks.integer("ef_construction", wanted, least=2 * nodes, most=1000)}


def _memory(method: str, precision: str, rows: int, options: dict[str, int]) -> int:
    """Return the bytes that a build needs so that it does not slow down."""
    size = _VECTOR_BYTES[precision]
    if method == "hnsw":
        # The whole graph: a vector, twice m neighbours of 16 bytes at the lowest level and m at the ones above, of
        # which there are few, and the node itself (pgvector's hnsw.h).
        return rows * (size + 3 * options["m"] * 16 + 200)
    # The rows that the centroids are taken from, 50 a list, and Elkan's bounds (pgvector's ivfkmeans.c).
    samples = min(rows, 50 * options["lists"])
    return options["lists"] * (2 * size + 4 * (samples + options["lists"])) + samples * (size + 8)


def _run(conn: psycopg.Connection[Any], statement: composed.Composed, needed: int, concurrently: bool) -> None:
    """Run *statement* with the memory and the workers it can use; on failure drop the unfinished index."""
    allowed, machine, workers = _queries.resources.fetchone(conn) or (0, 0, 0)
    memory = max(allowed, min(int(needed * 1.25), machine // 4))
    try:
        _build(conn, statement, memory, workers, concurrently)
    except psycopg.errors.DiskFull:
        # Parallel workers share the memory through /dev/shm, which containers keep small.
        _build(conn, statement, memory, 0, concurrently)
    search.forget(conn)


def _build(
    conn: psycopg.Connection[Any], statement: composed.Composed, memory: int, workers: int, concurrently: bool
) -> None:
    settings = (f"{memory // 1024}kB", str(workers))
    before = _queries.settings.fetchone(conn) or settings
    # Concurrently there is no transaction that the settings could end with.
    scope = composed.SQL("SESSION" if concurrently else "LOCAL")

    def put(values: tuple[str, ...]) -> None:
        for name, value in zip(("maintenance_work_mem", "max_parallel_maintenance_workers"), values, strict=True):
            conn.execute(
                composed.SQL("SET {} {} = {}").format(scope, composed.Identifier(name), composed.Literal(value))
            )

    with nullcontext() if concurrently else sql.atomic(conn):
        try:
            put(settings)
            conn.execute(statement)
        except BaseException as error:
            if concurrently and not conn.closed:
                put(before)
                # Only what is invalid: one who waited for a lock in vain has begun nothing, and the name may be taken.
                if not isinstance(error, psycopg.errors.DuplicateTable):
                    _clean_after(conn, error)
            raise
        # The caller's transaction may go on, and his session does.
        put(before)


def _clean_after(conn: psycopg.Connection[Any], error: BaseException) -> None:
    try:
        clean(conn)
    except psycopg.Error as fault:
        # What the build waited for in vain may still be in the way.
        error.add_note(f"an unfinished index could not be dropped ({fault}); `kimera-sql index clean` does it later")


def _drop(conn: Connection, name: str, *, concurrently: bool = False) -> None:
    assert isinstance(conn, psycopg.Connection)  # noqa: S101 - SQLite has no index to be dropped
    statement = "DROP INDEX CONCURRENTLY IF EXISTS {}" if concurrently else "DROP INDEX IF EXISTS {}"
    conn.execute(composed.SQL(statement).format(composed.Identifier(name)))
