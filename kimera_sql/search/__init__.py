"""How a similarity query runs: by which index, with which settings, or exactly.

Three promises: similarities are exact, whatever the index; k rows come back when k rows match; and the recall that
was asked for is met, because an index's settings are those that recall.tune measured for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import psycopg

from .. import checks, sql
from ..errors import InvalidValue, UnsupportedByServer
from ..sql import Connection, Query, Row, postgres
from ..vectors import Vector

_queries = sql.Queries("search")

DEFAULT_RECALL: Final = 0.95
"""The recall that a search has unless told otherwise."""

MAX_EF_SEARCH: Final = 1000
"""pgvector's limit of hnsw.ef_search."""

_UNTUNED_EF_SEARCH: Final = 200
_UNTUNED_PROBES: Final = 2 / 3
"""What an index that recall.tune has not seen is searched with: ef_search, and the share of its lists.

Half of the lists found 0.957 to 0.978 of the neighbours in hard made data, from one training to the next, and once
0.9475; two thirds found 0.983 and more in 30 trainings.
"""

_MOST_BY_INDEX: Final = MAX_EF_SEARCH // 2
"""The k past which ef_search cannot leave hnsw enough to choose from, and a search is exact."""

_VARIED: Final = 5
"""How many times k rows diversity chooses from."""

_FRESH: Final = 30.0
"""Seconds for which a connection's look at the catalogue holds."""

_ESTIMATES: Final = 1000
"""The filters of which a connection remembers how many rows pass them."""

# Measured with 20,000 vectors (PostgreSQL 18.4, pgvector 0.8.5, half precision), in microseconds: a row compared
# exactly, and one more of ef_search. They weigh an exact scan of what a filter leaves against a wider index scan.
_COST_OF_ROW: Final = 1.4
_COST_OF_EF: Final = 9.0

# The same data: what a row in an ivfflat list costs to compare, against one that passes a filter and is compared
# exactly (1.3 to 2 microseconds, as the rows that do not pass have to be read as well).
_COST_IN_LIST: Final = {"full": 0.7, "half": 0.45, "binary": 0.2}

_PRECISIONS: Final = {
    "vector_cosine_ops": ("full", "{column}"),
    "halfvec_cosine_ops": ("half", "({column}::halfvec(1024))"),
    "bit_hamming_ops": ("binary", "(binary_quantize({column})::bit(1024))"),
}
"""Operator classes, and the very expression that a query of ours can be served by."""

_HNSW_ALONE: Final = ["hnsw.ef_search", "enable_sort", "plan_cache_mode"]
"""The settings of a search by hnsw without filters."""

_PREFERENCE: Final = (
    ("hnsw", "half"),
    ("hnsw", "full"),
    ("hnsw", "binary"),
    ("ivfflat", "half"),
    ("ivfflat", "full"),
    ("ivfflat", "binary"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table with a vector column, and the queries that search it."""

    name: str
    column: str
    queries: sql.Queries


GEOID_STATES: Final = Table("geoid_states", "state_vector", sql.Queries("geoids"))
SEMANTIC_EMBEDDINGS: Final = Table("semantic_embeddings", "embedding", sql.Queries("embeddings"))
TABLES: Final = {table.name: table for table in (GEOID_STATES, SEMANTIC_EMBEDDINGS)}
"""The tables that have vectors, by name."""


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """A vector index that a search can use.

    method: hnsw or ivfflat. precision: full, half or binary. lists: of ivfflat; m, ef_construction: of hnsw; None for
    the other. size: bytes. scans: since the server's statistics began. rows: the table's, by the planner's estimate.
    rows_at_build, size_at_build, built_at: None for an index that kimera_sql did not build. usable: valid and whole.
    tuned: (k, target recall) to the setting that reaches it, probes or ef_search; None where none does.
    pgvector: the extension's version.
    """

    name: str
    table: str
    method: str
    precision: str
    lists: int | None
    m: int | None
    ef_construction: int | None
    usable: bool
    size: int
    scans: int
    rows: int
    rows_at_build: int | None
    size_at_build: int | None
    built_at: datetime | None
    tuned: Mapping[tuple[int, float], int | None]
    pgvector: tuple[int, ...]

    @property
    def iterative(self) -> bool:
        """Whether the server's pgvector can go on scanning until enough rows pass the filters (since 0.8.0)."""
        return self.pgvector >= (0, 8)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a search is to run. index: None for an exact one. reason: in words. setting: probes or ef_search."""

    query: Query
    index: VectorIndex | None
    parameters: Mapping[str, Any]
    settings: Mapping[str, str]
    reason: str
    setting: int | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How a caller wants a search to run; see geoids.similar."""

    exact: bool = False
    probes: int | None = None
    ef_search: int | None = None
    recall: float | None = None

    def __post_init__(self) -> None:
        if self.probes is not None:
            checks.integer("probes", self.probes, least=1, most=32768)
        if self.ef_search is not None:
            checks.integer("ef_search", self.ef_search, least=1, most=MAX_EF_SEARCH)
        if self.recall is not None and not 0 < checks.number("recall", self.recall) <= 1:
            raise InvalidValue(f"recall: {self.recall} is not above 0 and at most 1")


Found: TypeAlias = tuple[Row, float, Vector | None]
"""A row of a similarity query: the summary's columns, the similarity, and the vector if it was asked for."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What a connection has seen of a table. at: on the monotonic clock. matching: filters to the rows that pass."""

    at: float
    indexes: list[VectorIndex]
    matching: dict[str, int]


_looks: WeakKeyDictionary[psycopg.Connection[Any], dict[str, _Look]] = WeakKeyDictionary()


def forget(conn: Connection) -> None:
    """Drop what *conn* has seen of the catalogue; call it after an index was built, dropped or tuned."""
    if isinstance(conn, psycopg.Connection):
        _looks.pop(conn, None)


def vector_indexes(conn: psycopg.Connection[Any], table: Table, *, fresh: bool = True) -> list[VectorIndex]:
    """Return the vector indexes of *table* that queries of ours can use; unless *fresh*, as lately seen."""
    return _look(conn, table, fresh=fresh).indexes


def _look(conn: psycopg.Connection[Any], table: Table, *, fresh: bool = False) -> _Look:
    seen = _looks.setdefault(conn, {})
    if fresh or table.name not in seen or monotonic() - seen[table.name].at >= _FRESH:
        rows = _queries.vector_indexes.fetchall(conn, table=table.name)
        found = [index for row in rows if (index := _vector_index(table, row)) is not None]
        seen[table.name] = _Look(monotonic(), found, {})
    return seen[table.name]


def _vector_index(table: Table, row: Row) -> VectorIndex | None:
    name, method, opclass, expression, usable, options, size, scans, rows, *built, tuned, pgvector, _ = row
    precision, served = _PRECISIONS.get(opclass, ("", ""))
    if not precision or expression != served.format(column=table.column):
        return None
    given = {key: int(value) for key, value in (option.split("=") for option in options)}
    hnsw = method == "hnsw"
    return VectorIndex(
        name=name,
        table=table.name,
        method=method,
        precision=precision,
        # pgvector's own defaults
        lists=None if hnsw else given.get("lists", 100),
        m=given.get("m", 16) if hnsw else None,
        ef_construction=given.get("ef_construction", 64) if hnsw else None,
        usable=usable,
        size=size,
        scans=scans,
        rows=rows,
        rows_at_build=built[0],
        size_at_build=built[1],
        built_at=built[2],
        tuned={(k, target): setting for k, target, setting in tuned},
        pgvector=postgres.version(pgvector),
    )


def plan(conn: Connection, table: Table, k: int, where: Mapping[str, Any], options: Options) -> Plan:
    """Decide how a search for *k* rows that pass *where* is to run."""
    if not isinstance(conn, psycopg.Connection):
        return _exactly(table, "SQLite's searches are exact")
    if options.exact:
        return _exactly(table, "it was asked for")
    indexes = [index for index in vector_indexes(conn, table, fresh=False) if index.usable]
    if not indexes:
        return _exactly(table, f"{table.name} has no vector index that could be used")
    if k > _MOST_BY_INDEX:
        return _exactly(table, f"k is more than the {_MOST_BY_INDEX} that an index can be relied on for")
    index = min(indexes, key=lambda index: _PREFERENCE.index((index.method, index.precision)))
    setting = _setting(index, k, options)
    if setting is None:
        wanted = options.recall or DEFAULT_RECALL
        return _exactly(table, f"no setting of {index.name} reaches a recall of {wanted:g}")
    reason = f"{index.name} with {'ef_search' if index.method == 'hnsw' else 'probes'} {setting}"
    candidates = _candidates(index, k, setting)
    filtered = any(value is not None for name, value in where.items() if name != "other_than")
    if filtered:
        matching = _matching(conn, table, where)
        rows = max(index.rows, matching, 1)
        if index.method == "ivfflat":
            # The k nearest of those that match are as far away as this many of all.
            setting = _setting(index, math.ceil(k * rows / max(matching, 1)), options) or index.lists or setting
        if _exact_is_cheaper(index, matching, rows, setting):
            return _exactly(table, f"the filters leave some {matching:,} of {rows:,} rows")
        if index.method == "hnsw":
            # As many must be looked at as leave the setting's number once the filters have had their share.
            setting = min(MAX_EF_SEARCH, math.ceil(setting * rows / max(matching, 1)))
        reason += f", widened to {setting} for filters that leave some {matching:,} of {rows:,} rows"
    settings = _settings(index, setting, filtered=filtered)
    for other in indexes:
        # The planner may as well take an index of the same expression and the other method.
        if other.precision == index.precision and other.method != index.method:
            settings |= _settings(other, _setting(other, k, options) or other.lists or MAX_EF_SEARCH, filtered=filtered)
    query: Query = getattr(table.queries, f"similar_{index.precision}")
    return Plan(query, index, {"candidates": candidates}, settings, reason, setting)


def _exactly(table: Table, reason: str) -> Plan:
    return Plan(table.queries.similar_exact, None, {}, {}, f"exactly: {reason}")


def _setting(index: VectorIndex, k: int, options: Options) -> int | None:
    """Return the ef_search or probes for *k*, or None where recall.tune found that none will do."""
    given = options.ef_search if index.method == "hnsw" else options.probes
    if given is not None:
        return given
    wanted = options.recall or DEFAULT_RECALL
    if wanted == 1:
        return None
    measured = sorted((tuned_k, target) for tuned_k, target in index.tuned if target >= wanted)
    if not measured:
        cautious = math.ceil((index.lists or 1) * _UNTUNED_PROBES)
        if index.method == "hnsw":
            cautious = min(MAX_EF_SEARCH, max(_UNTUNED_EF_SEARCH, 4 * k))
        # No less than a lower recall takes
        lower = list(index.tuned.values())
        return None if None in lower else max(cautious, *(setting or 0 for setting in lower), 0)
    tuned_k = min((tuned_k for tuned_k, _ in measured if tuned_k >= k), default=max(measured)[0])
    target = min(target for at, target in measured if at == tuned_k)
    setting = index.tuned[tuned_k, target]
    if setting is None or index.method == "ivfflat":
        return setting
    # Past the greatest k that was measured ef_search grows with k.
    return min(MAX_EF_SEARCH, math.ceil(setting * max(1.0, k / tuned_k)))


def _candidates(index: VectorIndex, k: int, setting: int) -> int:
    """Return how many rows of the index's order the exact distance is to choose the k from."""
    if index.precision == "full":
        return k
    if index.precision == "half":
        return k + max(5, k // 4)
    return max(setting, k) if index.method == "hnsw" else max(100, 10 * k)


def _settings(index: VectorIndex, setting: int, *, filtered: bool) -> dict[str, str]:
    if index.method == "hnsw":
        settings = {"hnsw.ef_search": str(setting)}
    else:
        settings = {"ivfflat.probes": str(min(setting, index.lists or setting))}
    # It was decided for the index; the planner is not to decide otherwise.
    settings["enable_sort"] = "off"
    if not filtered:
        # Then one plan is as good for every vector, and planning took an eighth of a search.
        settings["plan_cache_mode"] = "force_generic_plan"
    elif index.iterative:
        # Order is restored by the exact distances, so the relaxed one will do.
        settings[f"{index.method}.iterative_scan"] = "relaxed_order"
    return settings


def _matching(conn: psycopg.Connection[Any], table: Table, where: Mapping[str, Any]) -> int:
    """Return the planner's estimate of how many rows pass *where*, which holds as long as a look at the catalogue."""
    seen = _look(conn, table).matching
    filters = {name: None if name == "other_than" else value for name, value in where.items()}
    key = repr(filters)
    if key not in seen:
        (explained,) = table.queries.matching_plan.fetchval(conn, list, **filters) or [{"Plan": {"Plan Rows": 0}}]
        if len(seen) == _ESTIMATES:
            seen.clear()
        seen[key] = int(explained["Plan"]["Plan Rows"])
    return seen[key]


def _exact_is_cheaper(index: VectorIndex, matching: int, rows: int, setting: int) -> bool:
    if index.method == "ivfflat":
        # Both compare vectors one by one: all that match, or all in the lists that are looked into.
        return matching <= rows * setting / (index.lists or setting) * _COST_IN_LIST[index.precision]
    return matching * _COST_OF_ROW <= setting * rows / max(matching, 1) * _COST_OF_EF


def nearest(
    conn: Connection,
    table: Table,
    vector: Vector,
    k: int,
    where: Mapping[str, Any],
    options: Options,
    *,
    with_vectors: bool = False,
) -> list[Found]:
    """Return the *k* rows nearest to *vector* that pass *where*: columns, similarity and, if asked for, vector."""
    chosen = plan(conn, table, k, where, options)
    parameters = {"vector": vector, "k": k, "with_vectors": with_vectors, **where}
    rows = _run(conn, chosen, [parameters])[0]
    if len(rows) < k and chosen.index is not None:
        # The index's lists, or its widest scan, held no more that pass the filters.
        rows = table.queries.similar_exact.fetchall(conn, **parameters)
    return [_found(conn, row) for row in rows]


def nearest_many(
    conn: Connection,
    table: Table,
    vectors: Sequence[Vector],
    k: int,
    where: Mapping[str, Any],
    options: Options,
    *,
    complete: bool = True,
) -> list[list[Found]]:
    """Return the rows nearest to each of *vectors*, as nearest does, all in one go.

    Unless *complete* they are what the index alone gives, which can be fewer than *k*.
    """
    chosen = plan(conn, table, k, where, options)
    several = [{"vector": vector, "k": k, "with_vectors": False, **where} for vector in vectors]
    results = _run(conn, chosen, several)
    if complete and chosen.index is not None:
        results = [
            rows if len(rows) >= k else table.queries.similar_exact.fetchall(conn, **parameters)
            for rows, parameters in zip(results, several, strict=True)
        ]
    return [[_found(conn, row) for row in rows] for rows in results]


def varied(
    conn: Connection,
    table: Table,
    vector: Vector,
    k: int,
    where: Mapping[str, Any],
    options: Options,
    *,
    with_vectors: bool,
    diversity: float,
) -> list[Found]:
    """Return nearest's rows or, with a *diversity* above 0, *k* unlike ones of _VARIED times as many; see similar."""
    if not 0 <= checks.number("diversity", diversity) <= 1:
        raise InvalidValue(f"diversity: {diversity} is not within 0 to 1")
    if not diversity:
        return nearest(conn, table, vector, k, where, options, with_vectors=with_vectors)
    found = nearest(conn, table, vector, k * _VARIED, where, options, with_vectors=True)
    chosen = [found[place] for place in _most_marginal(found, k, diversity)]
    return chosen if with_vectors else [(row, similarity, None) for row, similarity, _ in chosen]


def _found(conn: Connection, row: Row) -> Found:
    *columns, similarity, vector = row
    return tuple(columns), similarity, None if vector is None else sql.decode(conn, np.ndarray, vector)


def _run(conn: Connection, chosen: Plan, several: Sequence[Mapping[str, Any]]) -> list[list[Row]]:
    """Run *chosen* with each of *several* parameters, its settings in force for it alone."""
    if not isinstance(conn, psycopg.Connection):
        return [chosen.query.fetchall(conn, **parameters) for parameters in several]
    statement = chosen.query.statement(conn)
    if not chosen.settings and len(several) == 1:
        return [postgres.fetchall(conn, statement, {**several[0], **chosen.parameters})]
    # Outside a transaction the pipeline is one of its own, and the settings end with it.
    restore = not postgres.outside_transaction(conn)
    names, values = list(chosen.settings), list(chosen.settings.values())
    given: dict[str, Any] = {"names": names}
    change, undo = _queries.set_local.statement(conn), _queries.restore.statement(conn)
    if names == _HNSW_ALONE:
        given = {}
        change, undo = _queries.set_hnsw.statement(conn), _queries.restore_hnsw.statement(conn)
    generic = "plan_cache_mode" in chosen.settings
    with conn.pipeline():
        if names:
            postgres.send(conn, change, {**given, "values": values} if given else {"ef_search": values[0]})
        cursors = [
            postgres.send(conn, statement, {**parameters, **chosen.parameters}, generic_plan=generic)
            for parameters in several
        ]
        if names and restore:
            postgres.send(conn, undo, given)
    # Not before the pipeline's end: to fetch inside takes a round trip more.
    return [cursor.fetchall() for cursor in cursors]


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a search runs. index: its name, None for an exact one. used: whether the plan really uses it.

    reason: why so, in words. settings: what is set for it. plan: the server's, as EXPLAIN prints it.
    """

    index: str | None
    used: bool
    reason: str
    settings: Mapping[str, str]
    plan: str

    def __str__(self) -> str:
        warning = "" if self.used or self.index is None else "\nBUT the server's plan does not use this index:"
        return f"Search runs {'by ' if self.index else ''}{self.reason}.{warning}\n{self.plan}"


def explain(
    conn: Connection, table: Table, vector: Vector, k: int, where: Mapping[str, Any], options: Options
) -> Explanation:
    """Say how nearest would run, without running it. Raises UnsupportedByServer on SQLite."""
    if not isinstance(conn, psycopg.Connection):
        raise UnsupportedByServer("SQLite has no plans to explain: its searches are exact")
    chosen = plan(conn, table, k, where, options)
    statement = chosen.query.statement(conn).explained()
    parameters = {"vector": vector, "k": k, "with_vectors": False, **where, **chosen.parameters}
    with sql.atomic(conn), conn.transaction() as settings:
        if chosen.settings:
            _queries.set_local.fetchall(conn, names=list(chosen.settings), values=list(chosen.settings.values()))
        lines = [line for (line,) in postgres.fetchall(conn, statement, parameters)]
        # Nothing was written. Rolling back takes the settings with it, where a release would keep them.
        raise psycopg.Rollback(settings)
    name = chosen.index.name if chosen.index else None
    used = name is not None and any(f"Index Scan using {name} " in line for line in lines)
    # The vector is of no interest, and of 10,000 characters.
    shown = re.sub(r"'\[[^']*\]'::", "$vector::", "\n".join(lines))
    return Explanation(name, used, chosen.reason, dict(chosen.settings), shown)


def _most_marginal(found: Sequence[Found], k: int, diversity: float) -> list[int]:
    """Return the places of *k* of *found* by maximal marginal relevance, the most relevant first.

    Each next one has the greatest (1 - diversity) * similarity - diversity * (similarity to the nearest one taken):
    Carbonell and Goldstein, The Use of MMR, SIGIR 1998. *found* has vectors.
    """
    if not found:
        return []
    vectors = np.stack([vector for _, _, vector in found if vector is not None]).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = np.array([similarity for _, similarity, _ in found])
    taken: list[int] = []
    nearest_taken = np.zeros(len(found))
    for _ in range(min(k, len(found))):
        worth = (1 - diversity) * relevance - diversity * nearest_taken
        worth[taken] = -np.inf
        best = int(worth.argmax())
        to_best = vectors @ vectors[best]
        nearest_taken = np.maximum(nearest_taken, to_best) if taken else to_best
        taken.append(best)
    return taken
