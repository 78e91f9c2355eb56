"""Decide how a similarity search runs: with which index and settings, or exactly. It runs no SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, LiteralString, TypeAlias

from .. import checks
from ..errors import InvalidValue
from ..tables import Table

Method: TypeAlias = Literal["hnsw", "ivfflat"]
Precision: TypeAlias = Literal["half", "full", "binary"]

DEFAULT_RECALL: Final = 0.95
"""The recall of a search by default."""

MAX_EF_SEARCH: Final = 1000
"""pgvector's upper limit for hnsw.ef_search."""

_UNTUNED_EF_SEARCH: Final = 200
_UNTUNED_PROBES: Final = 3 / 4
"""The settings of an index that recall.tune has not measured: ef_search, and probes as a share of the lists.

On hard generated data, half of the lists found 0.957 to 0.978 of the neighbours, depending on the training, and once
0.9475. Two thirds found 0.983 or more in 30 trainings, but once 0.944 where the table had been emptied: then there was
nothing to train on.
"""

MOST_BY_INDEX: Final = MAX_EF_SEARCH // 2
"""The largest k for which ef_search leaves hnsw enough candidates. With a larger k a search is exact."""

# In microseconds: comparing one row exactly, and raising ef_search by one. Measured with 20,000 vectors (PostgreSQL
# 18.4, pgvector 0.8.5, half precision). They decide between an exact scan of the rows that pass a filter and a wider
# index scan.
_COST_OF_ROW: Final = 1.4
_COST_OF_EF: Final = 9.0

# On the same data: the cost of comparing a row in an ivfflat list, relative to the cost of comparing exactly a row that
# passes a filter (1.3 to 2 microseconds, because the rows that do not pass have to be read as well).
_COST_IN_LIST: Final[Mapping[Precision, float]] = {"full": 0.7, "half": 0.45, "binary": 0.2}

_ALONE: Final = 200
"""Candidates that a statement which searches by itself can have: see nearest_full in queries/postgres/geoids.sql."""

_CLUMP: Final = 6
"""A search of an hnsw index looks at this many rows at least. If they are all as far away, they may be identical.

Rows with one vector are linked to each other alone in the graph of such an index, so that a search that comes upon many
of them does not find its way out to rows that are nearer.
"""

_SCAN: Final[Mapping[str, str]] = {
    # A server compiles a plan that reads more than some 100,000 rows, whose vectors fill a page each, and each of its
    # parallel workers compiles it again.
    "jit": "off",
    # Rows that pass a filter are scattered over the table. Up to version 17 a server by default asks the disk for one
    # page after the other: with nothing in memory, comparing 5,000 rows took 560 ms, and 145 ms so.
    "effective_io_concurrency": "200",
}
"""The settings of an exact search, unless few rows pass its filters."""

_FEW: Final = 1000
"""Up to so many rows, settings would take longer to send than they save, and k rows to read again."""

_ALMOST_ALL: Final = 0.8
"""While no smaller share of an index's rows is left, searches need not look wider for them."""

EXPRESSIONS: Final[Mapping[Precision, tuple[LiteralString, str]]] = {
    "full": ("{column}", "vector_cosine_ops"),
    # Scaled to length 1: half precision has no numbers beyond 65,504 and next to none below 6e-8.
    "half": ("(l2_normalize({column})::halfvec(1024))", "halfvec_cosine_ops"),
    "binary": ("(binary_quantize({column})::bit(1024))", "bit_hamming_ops"),
}
"""For each precision, the index expression that our queries use, and its operator class."""

_PRECISIONS: Final[Mapping[str, tuple[Precision, str]]] = {
    opclass: (precision, served) for precision, (served, opclass) in EXPRESSIONS.items()
}

_PREFERENCE: Final[tuple[tuple[Method, Precision], ...]] = (
    ("hnsw", "half"),
    ("hnsw", "full"),
    ("hnsw", "binary"),
    ("ivfflat", "half"),
    ("ivfflat", "full"),
    ("ivfflat", "binary"),
)


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """A vector index that a search can use.

    lists: for ivfflat. m, ef_construction: for hnsw. They are None for the other method. size: in bytes. scans: since
    the server's statistics were reset. rows: the planner's estimate for the table. live, dead: rows that can be found,
    and rows that were deleted or replaced and not vacuumed away yet, by the server's statistics. guarded: whether
    row-level security may hide rows of the table. rows_at_build, size_at_build, built_at: None for an index that
    kimera_sql did not build. usable: valid and complete. tuned: maps (k, target recall) to the probes or ef_search that
    reach it, None if none does. oid, filenode: of the index, and of the file that it is in. pgvector: the extension's
    version. shards: how many shards of Citus the table has, each with such an index of its own; None if it has none.
    """

    name: str
    table: str
    method: Method
    precision: Precision
    lists: int | None
    m: int | None
    ef_construction: int | None
    usable: bool
    size: int
    scans: int
    rows: int
    live: int
    dead: int
    guarded: bool
    rows_at_build: int | None
    size_at_build: int | None
    built_at: datetime | None
    tuned: Mapping[tuple[int, float], int | None]
    oid: int
    filenode: int
    pgvector: tuple[int, ...]
    shards: int | None = None

    @property
    def iterative(self) -> bool:
        """Whether pgvector can scan iteratively until enough rows pass the filters (since 0.8.0)."""
        return self.pgvector >= (0, 8)


@dataclass(frozen=True, slots=True)
class Options:
    """The caller's options for a search; see geoids.similar. Raises InvalidValue for one out of range."""

    exact: bool = False
    probes: int | None = None
    ef_search: int | None = None
    recall: float | None = None

    def __post_init__(self) -> None:
        for name, most in (("probes", 32768), ("ef_search", MAX_EF_SEARCH)):
            if (value := getattr(self, name)) is not None:
                # As an int: one of numpy's would wrap around in the arithmetic of plans.
                object.__setattr__(self, name, checks.integer(name, value, least=1, most=most))
        if self.recall is not None and not 0 < checks.number("recall", self.recall) <= 1:
            raise InvalidValue(f"recall: {self.recall} is not above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run a search. query: the name of the statement. index: None for an exact search.

    parameters: the statement's parameters besides those of every search. settings: server settings, for this statement
    only. reason: in words. setting: probes or ef_search. least: how many rows to look at, even if fewer are asked for.
    alone: the statement has no filters, and puts its settings in force by itself. simpler: such a plan of the same
    search, for where nothing excludes a row and the planner goes by the index.
    """

    query: str
    index: VectorIndex | None
    parameters: Mapping[str, int | str]
    settings: Mapping[str, str]
    reason: str
    setting: int | None = None
    least: int = 1
    alone: bool = False
    simpler: Plan | None = None

    @property
    def scattered(self) -> bool:
        """Whether each shard of Citus searches for itself, with *settings* that the statement takes to it."""
        return self.index is not None and self.index.shards is not None


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a search runs. index: its name, None for an exact search. used: whether the server's plan uses it.

    reason: in words. settings: the server settings for this search. plan: the server's, as EXPLAIN prints it.
    """

    index: str | None
    used: bool
    reason: str
    settings: Mapping[str, str]
    plan: str

    def __str__(self) -> str:
        warning = "" if self.used or self.index is None else "\nBUT the server's plan does not use this index:"
        return f"Search runs {'by ' if self.index else ''}{self.reason}.{warning}\n{self.plan}"


def used_by(lines: Sequence[str], index: str) -> bool:
    """Return whether a plan, as EXPLAIN prints it, is by *index*."""
    # With quote_all_identifiers every name has quotes, and on a shard its number behind it.
    using = re.compile(rf'Index Scan using "?{re.escape(index)}(_\d+)?"? ')
    return any(using.search(line) for line in lines)


def estimated_rows(plans: Sequence[Any]) -> int:
    """Return how many rows a query finds by its plan, as EXPLAIN (FORMAT JSON) has it.

    Of a query that goes to several shards Citus shows the plan on one of them: the others are taken to be like it.
    """
    (found,) = plans
    job = found["Plan"].get("Distributed Query", {}).get("Job")
    if job is None:
        return int(found["Plan"]["Plan Rows"])
    ((shard,),) = job["Tasks"][0]["Remote Plan"]
    return int(shard["Plan"]["Plan Rows"]) * int(job["Task Count"])


def vector_index(table: Table, row: Sequence[Any]) -> VectorIndex | None:
    """Return the index that *row*, of the query vector_indexes, describes, or None if our queries cannot use it."""
    name, method, opclass, expression, usable, options, size, scans, *counts, tuned, oid, filenode, pgvector = row
    rows, live, dead, guarded, rows_at_build, size_at_build, built_at = counts
    if opclass not in _PRECISIONS:
        return None
    precision, served = _PRECISIONS[opclass]
    # The server quotes every name where quote_all_identifiers is on.
    if expression.replace('"', "") != served.format(column=table.vector):
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
        live=live,
        dead=dead,
        guarded=guarded,
        rows_at_build=rows_at_build,
        size_at_build=size_at_build,
        built_at=built_at,
        tuned={(k, target): setting for k, target, setting in tuned},
        oid=oid,
        filenode=filenode,
        pgvector=pgvector,
    )


def exactly(reason: str, rows: int | None = None) -> Plan:
    """Return the plan that compares every row that passes the filters: some *rows*, where that is known."""
    if rows is not None and rows <= _FEW:
        return Plan("similar_few", None, {}, {}, f"exactly: {reason}")
    return Plan("similar_exact", None, {}, _SCAN, f"exactly: {reason}")


def decide(table: Table, indexes: Sequence[VectorIndex], k: int, options: Options, matching: int | None) -> Plan:
    """Decide how to search *table* for *k* rows.

    *matching* is the planner's estimate of how many rows pass the filters, None where nothing filters them.
    """
    if options.exact:
        return exactly("it was asked for")
    usable = [index for index in indexes if index.usable]
    if not usable:
        return exactly(f"{table.name} has no vector index that could be used")
    if k > MOST_BY_INDEX:
        return exactly(f"k is more than the {MOST_BY_INDEX} that an index can be relied on for")
    index = min(usable, key=lambda index: _PREFERENCE.index((index.method, index.precision)))
    setting = _setting(index, k, options)
    if setting is None:
        wanted = options.recall or DEFAULT_RECALL
        return exactly(f"no setting of {index.name} reaches a recall of {wanted:g}")
    reason = f"{index.name} with {'ef_search' if index.method == 'hnsw' else 'probes'} {setting}"
    candidates = max(_candidates(index, k, setting), _CLUMP)
    rows, left = _population(index, matching)
    filtered = left is not None
    if left is not None:
        if index.method == "ivfflat":
            # The k nearest of the rows that are left are as far away as this many nearest of all.
            setting = _setting(index, math.ceil(k * rows / left), options) or index.lists or setting
        if _exact_is_cheaper(index, left, rows, setting):
            return exactly(f"some {left:,} of {rows:,} rows are left to search", left)
        if index.method == "hnsw":
            # Scan enough rows that as many are left as the setting asks for.
            setting = min(MAX_EF_SEARCH, math.ceil(setting * rows / left))
        reason += f", widened to {setting} as some {left:,} of {rows:,} rows are left to search"
    settings = _settings(index, setting, filtered=filtered)
    others = [other for other in usable if other.precision == index.precision and other.method != index.method]
    for other in others:
        # The planner may choose an index on the same expression by the other method. That must not lose rows: index is
        # the one that is tuned, and what the other was tuned on may be long ago. It also makes the choice less likely.
        settings |= _settings(other, other.lists or MAX_EF_SEARCH, filtered=filtered)
    hnsw = index.method == "hnsw"
    least = _CLUMP if hnsw else 1
    if index.shards is not None:
        # A shard's server has made its plan by the time it learns of them.
        late = {name: value for name, value in settings.items() if name.startswith(("hnsw.", "ivfflat."))}
        late[f"{index.method}.iterative_scan"] = "relaxed_order"
        reason += f" on each of {index.shards} shards"
        return Plan(
            f"scattered_{index.precision}", index, {"candidates": candidates}, late, reason, setting, least=least
        )
    chosen = Plan(
        f"similar_{index.precision}", index, {"candidates": candidates}, settings, reason, setting, least=least
    )
    if not hnsw or filtered or others or index.pgvector >= (0, 9) or candidates > _ALONE:
        return chosen
    alone = replace(
        chosen,
        query=f"nearest_{index.precision}",
        parameters={
            "candidates": candidates,
            "ef_search": str(setting),
            "index": index.oid,
            "filenode": index.filenode,
        },
        settings={"hnsw.ef_search": str(setting)},
        alone=True,
    )
    return replace(chosen, simpler=alone)


def _population(index: VectorIndex, matching: int | None) -> tuple[int, int | None]:
    """Return how many rows *index* was built on or holds, and how many of them a search can find, None for almost all.

    Filters, row-level security and deletes alike leave rows that are further apart than those the index was tuned on.
    """
    rows = max(index.live + index.dead, index.rows_at_build or 0, 1)
    if matching is not None:
        # The planner takes the rows to be as dense as they were when it last counted them.
        rows = max(rows, matching)
        return rows, max(min(matching, math.ceil(matching * index.live / max(index.rows, 1))), 1)
    return rows, None if index.live >= _ALMOST_ALL * rows else max(index.live, 1)


def _setting(index: VectorIndex, k: int, options: Options) -> int | None:
    """Return the ef_search or probes for *k*, or None if recall.tune found that none reaches the recall."""
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
        # No less than what a lower recall needs
        lower = list(index.tuned.values())
        return None if None in lower else max(cautious, *(setting or 0 for setting in lower), 0)
    tuned_k = min((tuned_k for tuned_k, _ in measured if tuned_k >= k), default=max(measured)[0])
    target = min(target for at, target in measured if at == tuned_k)
    setting = index.tuned[tuned_k, target]
    if setting is None or index.method == "ivfflat":
        return setting
    # Above the largest k that was measured, ef_search grows with k.
    return min(MAX_EF_SEARCH, math.ceil(setting * max(1.0, k / tuned_k)))


def _candidates(index: VectorIndex, k: int, setting: int) -> int:
    """Return how many of the index's nearest rows to re-rank exactly."""
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
    # A search takes milliseconds. On a stock server compiling its plan took 158 of them, once its cost was past
    # jit_above_cost, as it is with enable_sort = off: that adds 1e10 for the candidates that the plan has to sort.
    settings["jit"] = "off"
    if not filtered:
        # The one other way to choose from.
        settings["enable_seqscan"] = "off"
        # Without filters one plan is good for every vector, and planning took an eighth of a search's time.
        settings["plan_cache_mode"] = "force_generic_plan"
        if index.pgvector >= (0, 9):
            settings[f"{index.method}.iterative_scan"] = "off"  # the default changes with 0.9
        return settings
    # Another index, of a filter, would have to sort what it finds.
    settings["enable_sort"] = "off"
    if index.iterative:
        # Re-ranking restores the exact order, so the relaxed one is enough.
        settings[f"{index.method}.iterative_scan"] = "relaxed_order"
    return settings


def _exact_is_cheaper(index: VectorIndex, left: int, rows: int, setting: int) -> bool:
    if index.method == "ivfflat":
        # Both compare vectors one by one: all rows that are left, or all rows in the lists that are probed.
        return left <= rows * setting / (index.lists or setting) * _COST_IN_LIST[index.precision]
    return left * _COST_OF_ROW <= setting * rows / max(left, 1) * _COST_OF_EF
