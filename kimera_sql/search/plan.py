"""How a similarity query is to run: by which index, with which settings, or exactly. Decided from facts alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

from .. import checks
from ..errors import InvalidValue
from ..tables import Table

Method: TypeAlias = Literal["hnsw", "ivfflat"]
Precision: TypeAlias = Literal["half", "full", "binary"]

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

# Measured with 20,000 vectors (PostgreSQL 18.4, pgvector 0.8.5, half precision), in microseconds: a row compared
# exactly, and one more of ef_search. They weigh an exact scan of what a filter leaves against a wider index scan.
_COST_OF_ROW: Final = 1.4
_COST_OF_EF: Final = 9.0

# The same data: what a row in an ivfflat list costs to compare, against one that passes a filter and is compared
# exactly (1.3 to 2 microseconds, as the rows that do not pass have to be read as well).
_COST_IN_LIST: Final[Mapping[Precision, float]] = {"full": 0.7, "half": 0.45, "binary": 0.2}

_PRECISIONS: Final[Mapping[str, tuple[Precision, str]]] = {
    "vector_cosine_ops": ("full", "{column}"),
    "halfvec_cosine_ops": ("half", "({column}::halfvec(1024))"),
    "bit_hamming_ops": ("binary", "(binary_quantize({column})::bit(1024))"),
}
"""Operator classes, and the very expression that a query of ours can be served by."""

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

    lists: of ivfflat; m, ef_construction: of hnsw; None for the other. size: bytes. scans: since the server's
    statistics began. rows: the table's, by the planner's estimate. rows_at_build, size_at_build, built_at: None for an
    index that kimera_sql did not build. usable: valid and whole. tuned: (k, target recall) to the setting that reaches
    it, probes or ef_search; None where none does. pgvector: the extension's version.
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


@dataclass(frozen=True, slots=True)
class Plan:
    """How a search is to run. query: the name of the statement. index: None for an exact search.

    parameters: what the statement takes beside the search's own. settings: the server's, for this statement alone.
    reason: in words. setting: probes or ef_search.
    """

    query: str
    index: VectorIndex | None
    parameters: Mapping[str, int]
    settings: Mapping[str, str]
    reason: str
    setting: int | None = None


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


def vector_index(table: Table, row: Sequence[Any]) -> VectorIndex | None:
    """Return the index that a row of the query vector_indexes is about, None where no query of ours can use it."""
    name, method, opclass, expression, usable, options, size, scans, rows, *built, tuned, pgvector = row
    if opclass not in _PRECISIONS:
        return None
    precision, served = _PRECISIONS[opclass]
    if expression != served.format(column=table.vector):
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
        pgvector=pgvector,
    )


def exactly(reason: str) -> Plan:
    """Return the plan of comparing every row that passes the filters."""
    return Plan("similar_exact", None, {}, {}, f"exactly: {reason}")


def decide(table: Table, indexes: Sequence[VectorIndex], k: int, options: Options, matching: int | None) -> Plan:
    """Decide how a search of *table* for *k* rows is to run.

    *matching* is the planner's estimate of how many rows pass the filters, None where there are none.
    """
    if options.exact:
        return exactly("it was asked for")
    usable = [index for index in indexes if index.usable]
    if not usable:
        return exactly(f"{table.name} has no vector index that could be used")
    if k > _MOST_BY_INDEX:
        return exactly(f"k is more than the {_MOST_BY_INDEX} that an index can be relied on for")
    index = min(usable, key=lambda index: _PREFERENCE.index((index.method, index.precision)))
    setting = _setting(index, k, options)
    if setting is None:
        wanted = options.recall or DEFAULT_RECALL
        return exactly(f"no setting of {index.name} reaches a recall of {wanted:g}")
    reason = f"{index.name} with {'ef_search' if index.method == 'hnsw' else 'probes'} {setting}"
    candidates = _candidates(index, k, setting)
    if matching is not None:
        rows = max(index.rows, matching, 1)
        if index.method == "ivfflat":
            # The k nearest of those that match are as far away as this many of all.
            setting = _setting(index, math.ceil(k * rows / max(matching, 1)), options) or index.lists or setting
        if _exact_is_cheaper(index, matching, rows, setting):
            return exactly(f"the filters leave some {matching:,} of {rows:,} rows")
        if index.method == "hnsw":
            # As many must be looked at as leave the setting's number once the filters have had their share.
            setting = min(MAX_EF_SEARCH, math.ceil(setting * rows / max(matching, 1)))
        reason += f", widened to {setting} for filters that leave some {matching:,} of {rows:,} rows"
    filtered = matching is not None
    settings = _settings(index, setting, filtered=filtered)
    for other in usable:
        # The planner may as well take an index of the same expression and the other method.
        if other.precision == index.precision and other.method != index.method:
            settings |= _settings(other, _setting(other, k, options) or other.lists or MAX_EF_SEARCH, filtered=filtered)
    return Plan(f"similar_{index.precision}", index, {"candidates": candidates}, settings, reason, setting)


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


def _exact_is_cheaper(index: VectorIndex, matching: int, rows: int, setting: int) -> bool:
    if index.method == "ivfflat":
        # Both compare vectors one by one: all that match, or all in the lists that are looked into.
        return matching <= rows * setting / (index.lists or setting) * _COST_IN_LIST[index.precision]
    return matching * _COST_OF_ROW <= setting * rows / max(matching, 1) * _COST_OF_EF
