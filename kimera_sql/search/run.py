# Generated from kimera_sql/aio/search/run.py by .ci/twins.py: change that one.
"""Run a similarity search by its plan: with settings for that search only, and k rows if k rows match."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import psycopg

from .. import checks, sql
from ..errors import InvalidValue
from ..pools import Pool
from ..search import diversity as varied
from ..search.plan import Explanation, Options, Plan, decide, exactly, used_by
from ..sql import Connection, Queries, Row, postgres
from ..sql.rows import decode, mapper
from ..sqlite import SqlitePool
from ..tables import Table
from ..twins import at_once
from ..vectors import Vector
from . import catalogue, samples

S = TypeVar("S")
H = TypeVar("H")

Source: TypeAlias = Connection | Pool | SqlitePool
"""Where several searches can run: on one connection, or on those of a pool."""

_queries = Queries("search")

_VARIED: Final = 5
"""A search with diversity chooses from this many times k rows."""

COMPLETED: Final = exactly("the index gave too few rows")
"""How a search goes on when its index has no more to give."""

_SAME: Final = 1e-6
"""Cosine distances up to this are rounding's."""


def plan(
    conn: Connection,
    table: Table,
    k: int,
    where: Mapping[str, Any],
    options: Options,
    *,
    besides: Mapping[str, Any] | None = None,
) -> Plan:
    """Decide how to search for *k* rows that pass *where*; see rows for *besides*."""
    if not sql.is_postgres(conn):
        return exactly("SQLite's searches are exact")
    if options.exact:
        return decide(table, (), k, options, None)
    seen = catalogue.look(conn, table)
    filtered = seen.guarded or any(value is not None for value in where.values())
    if not filtered or not any(index.usable for index in seen.indexes):
        chosen = seen.plan(table, k, options)
        alone = chosen.simpler
        if alone is None or any(value is not None for value in (besides or {}).values()):
            return chosen
        return alone if catalogue.is_served(conn, table, alone, seen) else chosen
    return decide(table, seen.indexes, k, options, catalogue.matching(conn, table, where, besides or {}))


def rows(
    conn: Connection,
    table: Table,
    vectors: Sequence[Vector],
    k: int,
    where: Mapping[str, Any],
    options: Options,
    *,
    besides: Mapping[str, Any] | None = None,
    with_vectors: bool = False,
    complete: bool = True,
    sampled: bool = False,
    along: Sequence[postgres.Call] = (),
) -> list[list[Row]]:
    """Return the *k* rows nearest to each of *vectors* that pass *where*, nearest first, in one pipeline on PostgreSQL.

    The rows of *along*, other statements that go in the same pipeline, come behind them.
    The last two columns of a row are its similarity and, *with_vectors*, its vector (else NULL). *where* holds the
    filters' parameters; *besides*, further parameters that exclude almost no rows. If the index finds fewer than *k*
    rows, or nothing but rows that look identical, the search runs again exactly, unless *complete* is false. *sampled*:
    the search is a caller's, and can be picked for the sample.
    """
    for _ in range(2):
        chosen = plan(conn, table, k, where, options, besides=besides)
        wanted = max(k, chosen.least) if complete else k
        several = [_given(chosen, vector, wanted, with_vectors, where, besides) for vector in vectors]
        found, planned = _run(conn, table, chosen, several, along)
        if planned or not sql.is_postgres(conn):
            break
        catalogue.look(conn, table, fresh=True)
    if chosen.scattered:
        # The candidates of all shards, nearest by the index; here the exact distance decides.
        for place in range(len(vectors)):
            found[place] = sorted(found[place], key=lambda row: (-row[-2], row[0]))[:wanted]
    if complete and chosen.index is not None:
        for place, vector in enumerate(vectors):
            # The probed lists, or the widest index scan, can hold too few rows that pass the filters.
            if len(found[place]) < k or _look_identical(found[place], chosen.least):
                parameters = _given(COMPLETED, vector, k, with_vectors, where, besides)
                (found[place],), _ = _run(conn, table, COMPLETED, [parameters])
    if sampled:
        samples.offer(conn, table, vectors, k, chosen, [where, besides or {}])
    if wanted > k:
        found[: len(vectors)] = [rows[:k] for rows in found[: len(vectors)]]
    return found


def _look_identical(rows: Sequence[Row], least: int) -> bool:
    """Return whether all of *rows*, nearest first, are equally far from the query, and are not the query itself."""
    if least == 1 or len(rows) < least:
        return False
    nearest, farthest = rows[0][-2], rows[-1][-2]
    return bool(nearest == farthest and nearest < 1 - _SAME)


def _given(
    chosen: Plan,
    vector: Vector,
    k: int,
    with_vectors: bool,
    where: Mapping[str, Any],
    besides: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the parameters of the statement of *chosen*."""
    if chosen.scattered:
        late = {"names": list(chosen.settings), "settings": list(chosen.settings.values())}
        return {"vector": vector, "with_vectors": with_vectors, **(besides or {}), **where, **chosen.parameters, **late}
    excluding = {} if chosen.alone else {**(besides or {}), **where}
    return {"vector": vector, "k": k, "with_vectors": with_vectors, **excluding, **chosen.parameters}


def _run(
    conn: Connection,
    table: Table,
    chosen: Plan,
    several: Sequence[Mapping[str, Any]],
    along: Sequence[postgres.Call] = (),
) -> tuple[list[list[Row]], bool]:
    """Run *chosen* for each of *several* sets of parameters, and *along*, with its settings for these runs only.

    Return the rows of each, and whether the index was still the one that was planned with.
    """
    query = getattr(Queries(table.entity), chosen.query)
    if not sql.is_postgres(conn):
        return [query.fetchall(conn, **parameters) for parameters in several], True
    generic = "plan_cache_mode" in chosen.settings
    searches = [postgres.Call(query.statement(conn), parameters, generic) for parameters in several]
    if chosen.alone:
        found = postgres.fetchall_of(conn, [*searches, *along])
        any_missing = not all(found[: len(searches)])
        if any_missing and not postgres.outside_transaction(conn):
            # The setting is put back with the rows.
            _queries.put_back.fetchall(conn, names=list(chosen.settings))
        hits = [[row[:-1] for row in rows] for rows in found[: len(searches)]]
        return hits + found[len(searches) :], not any_missing
    if chosen.scattered or not chosen.settings:
        return postgres.fetchall_of(conn, [*searches, *along]), True
    index = chosen.index
    change, undo = settings(conn, chosen)
    # Outside a transaction the pipeline is its own transaction, and the settings end with it.
    restore = not postgres.outside_transaction(conn)
    changed, *found = postgres.fetchall_of(conn, [change, *searches, *along], after=[undo] if restore else [])
    return found, index is None or changed[0][-1] == index.filenode


def settings(conn: psycopg.Connection[Any], chosen: Plan) -> tuple[postgres.Call, postgres.Call]:
    """Return the calls that put the settings of *chosen* in force, and that undo it."""
    names, values = list(chosen.settings), list(chosen.settings.values())
    index = chosen.index and chosen.index.oid
    return (
        postgres.Call(_queries.set_local.statement(conn), {"names": names, "values": values, "index": index}),
        postgres.Call(_queries.put_back.statement(conn), {"names": names}),
    )


def reader(conn: Connection, summary: type[S], hit: Callable[[S, float, Vector | None], H]) -> Callable[[Row], H]:
    """Return the function that makes a *hit* from a row: from its columns as a *summary*, its similarity and vector."""
    dialect = sql.dialect(conn)
    make = mapper(dialect, summary)

    def read(row: Row) -> H:
        *columns, similarity, vector = row
        return hit(make(tuple(columns)), similarity, None if vector is None else decode(dialect, np.ndarray, vector))

    return read


def nearest(
    conn: Connection,
    table: Table,
    summary: type[S],
    vectors: Sequence[Vector],
    k: int,
    where: Mapping[str, Any],
    options: Options,
    *,
    besides: Mapping[str, Any] | None = None,
    at_least: float | None = None,
    with_vectors: bool = False,
    diversity: float = 0.0,
) -> list[list[tuple[S, float, Vector | None]]]:
    """Return the hits for each of *vectors*: the row as a *summary*, its similarity, and its vector or None.

    The vector comes only *with_vectors*. Rows that are less similar than *at_least* are left out. With a *diversity*
    above 0, the *k* hits are chosen from _VARIED times as many to be unlike each other; see geoids.similar.
    Raises InvalidValue for a diversity outside 0 to 1, and for an *at_least* outside -1 to 1.
    """
    least = checks.optional(checks.similarity, "at_least", at_least)
    if not 0 <= checks.number("diversity", diversity) <= 1:
        raise InvalidValue(f"diversity: {diversity} is not within 0 to 1")
    k = checks.limit(k, "k")
    wanted = k * _VARIED if diversity else k
    several = rows(
        conn,
        table,
        vectors,
        wanted,
        where,
        options,
        besides=besides,
        with_vectors=with_vectors or diversity > 0,
        sampled=True,
    )
    read = reader(conn, summary, lambda row, similarity, vector: (row, similarity, vector))
    hits = [[read(row) for row in found if least is None or row[-2] >= least] for found in several]
    return [_unlike(found, k, diversity, with_vectors) for found in hits] if diversity else hits


def nearest_to_many(
    conn: Source,
    table: Table,
    summary: type[S],
    vectors: Sequence[Vector],
    k: int,
    where: Mapping[str, Any],
    options: Options,
    *,
    besides: Mapping[str, Any] | None = None,
    at_least: float | None = None,
    around: Callable[[Connection], AbstractContextManager[None]] | None = None,
) -> list[list[tuple[S, float, Vector | None]]]:
    """Return what nearest does. Given a pool, *vectors* are shared out among its idle connections.

    *around* gives what the searches of a connection are to run in.
    """

    def search(conn: Connection, share: Sequence[Vector]) -> list[list[tuple[S, float, Vector | None]]]:
        with around(conn) if around is not None else nullcontext():
            return nearest(conn, table, summary, share, k, where, options, besides=besides, at_least=at_least)

    if isinstance(conn, SqlitePool):
        with conn.connection() as file:
            return search(file, vectors)
    if not isinstance(conn, Pool):
        return search(conn, vectors)
    with conn.connections(len(vectors)) as lent:
        shares = {one: vectors[number :: len(lent)] for number, one in enumerate(lent)}
        found = at_once({one: partial(search, one, share) for one, share in shares.items()})
        return [found[number % len(lent)][number // len(lent)] for number in range(len(vectors))]


def _unlike(
    found: list[tuple[S, float, Vector | None]], k: int, diversity: float, with_vectors: bool
) -> list[tuple[S, float, Vector | None]]:
    relevance = np.array([similarity for _, similarity, _ in found])
    places = varied.most_marginal([hit[2] for hit in found if hit[2] is not None], relevance, k, diversity)
    return [found[place] if with_vectors else (*found[place][:2], None) for place in places]


def explain(
    conn: Connection,
    table: Table,
    vector: Vector,
    k: int,
    where: Mapping[str, Any],
    options: Options,
    *,
    besides: Mapping[str, Any] | None = None,
) -> Explanation:
    """Explain how a search would run, without running it. Raises UnsupportedByServer on SQLite."""
    server = sql.require_postgres(conn, "SQLite has no plans to explain: its searches are exact")
    k = checks.limit(k, "k")
    chosen = plan(server, table, k, where, options, besides=besides)
    statement = getattr(Queries(table.entity), chosen.query).statement(server).explained()
    parameters = _given(chosen, vector, k, False, where, besides)
    if (catalogue.look(server, table)).distributed:
        # Citus explains no statement that has a parameter of an extension's type.
        statement = statement.with_text("vector", "vector")
        parameters["vector"] = str(vector.tolist())
    settings = {} if chosen.alone or chosen.scattered else chosen.settings
    with sql.atomic(server), server.transaction() as undone:
        if settings:
            _queries.set_local.fetchall(server, names=list(settings), values=list(settings.values()), index=None)
        lines = [line for (line,) in postgres.fetchall(server, statement, parameters)]
        # Nothing was written. Rolling back undoes the settings, which releasing the savepoint would keep.
        raise psycopg.Rollback(undone)
    index = chosen.index.name if chosen.index else None
    used = index is not None and used_by(lines, index)
    # The vector has 10,000 characters that nobody wants to read.
    shown = re.sub(r"'\[[^']*\]'::", "$vector::", "\n".join(lines))
    return Explanation(index, used, chosen.reason, dict(chosen.settings), shown)
