"""What vectors cost by each kind of index, and how many machines serve them: as measured, or by a model.

docs/scale.md states the model. It runs no SQL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from .. import checks
from ..errors import InvalidValue
from ..search import Method, Precision, kinds
from ..search.plan import MAX_EF_SEARCH
from . import tuning

Basis: TypeAlias = Literal["measured", "interpolated", "modelled"]

Kind: TypeAlias = tuple[Method, Precision] | None
"""A kind of index, or None for exact searches without one."""

MEMORY: Final = 64 * 2**30
CORES: Final = 16
"""The smallest machine to consider, unless told otherwise."""

LARGEST: Final = 2**40
"""The memory of the largest machine to consider, unless the smallest has more."""

CACHED: Final = 3 / 4
"""The share of a machine's memory for indexes, tables and builds. The rest is for connections and the system."""

BUSY: Final = 0.7
"""The share of a machine's cores that searches may keep busy. Beyond it they wait for one another."""

READ: Final = 0.1
"""Milliseconds that a disk takes to read a page from anywhere. This and the next two are assumed, of an NVMe disk."""

STREAMED: Final = 0.008
"""Milliseconds to read a page that follows another one."""

READS: Final = 100_000
"""How many pages a disk reads from anywhere in a second."""

PATIENCE: Final = 20.0
"""Milliseconds of CPU time that an exact search may take before an index is worth having."""

_SPARE: Final = 1.25
"""How many times kinds.memory a build gets; see indexes.build."""

_WORKERS: Final = 8
"""PostgreSQL's default for max_worker_processes and max_parallel_workers."""

_BASES: Final[tuple[Basis, ...]] = ("measured", "interpolated", "modelled")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, and what it rests on."""

    value: float
    basis: Basis


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a kind of index costs with so many rows. CPU time is the server's, on cores like those that were measured.

    index: such as "hnsw half", or "none" for exact searches. table: bytes on disk, with the indexes on other columns.
    size: bytes of the vector index. memory: bytes that a machine needs for searches to find the index in memory, also
    while it is built anew; without an index, to find the table there. build: seconds of CPU time. inserts, searches:
    how many a core does in a second. setting: the ef_search or probes of those searches, 0 for exact ones, as there are
    where no ef_search reaches the recall. table_wait, wait: milliseconds that a search waits for the disk if the table
    is there, and if the index is too.
    """

    index: str
    table: Figure
    size: Figure
    memory: Figure
    build: Figure
    inserts: Figure
    setting: Figure
    searches: Figure
    table_wait: Figure
    wait: Figure


@dataclass(frozen=True, slots=True)
class Fleet:
    """Machines that serve a table by an index of one kind.

    memory, cores: of each. shards: the tables that the rows are split into, each with so many *rows*. replicas: the
    standbys of each shard. searches: how many a second all serve, and *bound* what keeps them from more. size,
    build_memory: bytes of the index of a shard, and of maintenance_work_mem for building it.
    """

    index: str
    machines: int
    memory: int
    cores: int
    shards: int
    replicas: int
    rows: int
    searches: float
    bound: Literal["cores", "disk"]
    size: int
    build_memory: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What so many rows cost, and the machines that serve *qps* searches a second.

    fleets: one for each kind of index that is worth it; the first is recommended. settings: of its servers.
    """

    rows: int
    qps: float
    recall: float
    estimates: tuple[Estimate, ...]
    fleets: tuple[Fleet, ...]
    settings: tuple[tuning.Recommendation, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What was measured with a number of rows. What depends on the recall is a pair, for those of RECALLS.

    size: bytes of the index. build: CPU seconds. insert: CPU milliseconds of an INSERT of one row. setting: the
    ef_search or probes that recall.tune chose. search: CPU milliseconds. pages: of the index that a search reads.
    """

    size: int
    build: float
    insert: float
    setting: float | tuple[float, float]
    search: float | tuple[float, float]
    pages: float | tuple[float, float]


RECALLS: Final = (0.95, 0.99)
"""The recalls that were measured: what searches asked for after recall.tune, not what they had."""

MEASURED: Final[Mapping[Kind, Mapping[int, _Measured]]] = {
    ("hnsw", "half"): {
        100_000: _Measured(272_752_640, 89.1, 5.55, (62, 132), (2.35, 4.44), (1540, 2870)),
        300_000: _Measured(818_241_536, 267, 6.2, (109, 341), (4.78, 12.2), (2440, 6660)),
    },
    ("hnsw", "binary"): {
        100_000: _Measured(43_401_216, 35.7, 3.44, (212, 802), (5.57, 18.5), (4230, 12100)),
        300_000: _Measured(130_146_304, 121, 3.63, (412, 971), (11.4, 26.6), (7370, 15300)),
    },
    ("hnsw", "full"): {
        100_000: _Measured(818_216_960, 123, 6.53, (56, 132), (2.73, 4.96), (1420, 2880)),
    },
    ("ivfflat", "half"): {
        100_000: _Measured(273_596_416, 6.34, 0.654, (26, 46), (21.5, 36.8), (10600, 18000)),
        300_000: _Measured(820_838_400, 23.2, 0.667, (50, 98), (55.9, 101), (24900, 44700)),
    },
    ("ivfflat", "full"): {
        100_000: _Measured(820_027_392, 7.13, 0.457, (29, 50), (37.3, 60.9), (35800, 59000)),
        300_000: _Measured(2_460_065_792, 29.3, 0.453, (50, 98), (85.2, 172), (73200, 134000)),
    },
    None: {
        100_000: _Measured(0, 0.0, 0.349, 0.0, 184, 0.0),
        300_000: _Measured(0, 0.0, 0.352, 0.0, 533, 0.0),
    },
}
"""What benchmarks/scale.py measured."""

TABLES: Final[Mapping[int, int]] = {100_000: 832_806_912, 300_000: 2_488_786_944}
"""The bytes of a table of so many rows, measured, with its indexes on other columns."""

CHOICE: Final[tuple[Kind, ...]] = (None, ("hnsw", "half"), ("hnsw", "binary"))
"""The kinds that are worth it: each of the others takes more memory or far more CPU time than one of these."""

_CANDIDATES: Final[Mapping[Precision, int]] = {"full": 10, "half": 15}
"""Rows of the table that a search for 10 neighbours reads. A binary index gives it as many as ef_search."""

_WIDENING: Final = 0.3
"""For the same recall, ef_search goes with this power of the rows. Measured with 2,000 to 19,000 of them."""

_WRITING: Final = 800
"""What writing a row into a list of ivfflat takes, as a number of centres to compare it with. Measured."""

_FIXED: Final[Mapping[str, float]] = {"search": 0.4, "insert": 0.35}
"""CPU milliseconds that do not grow with the rows: measured with one row in the table, and without a vector index."""


def _lists(rows: int) -> int:
    return kinds.options("ivfflat", rows, lists=None, m=None, ef_construction=None)["lists"]


def _levels(rows: int) -> float:
    # With one row there is no way to go, but a search takes a step.
    return math.log(max(rows, 2))


# How each quantity grows with the rows; see docs/scale.md.
_GROWTH: Final[Mapping[str, Mapping[str, Callable[[int], float]]]] = {
    "hnsw": {
        "build": lambda rows: rows * _levels(rows),
        "insert": _levels,
        "setting": lambda rows: rows**_WIDENING,
        "search": lambda rows: rows**_WIDENING,
        "pages": lambda rows: rows**_WIDENING,
    },
    "ivfflat": {
        "build": lambda rows: rows * (_WRITING + _lists(rows)),
        "insert": lambda rows: _WRITING + _lists(rows),
        "setting": lambda rows: math.sqrt(_lists(rows)),
        "search": lambda rows: rows / math.sqrt(_lists(rows)),
        "pages": lambda rows: rows / math.sqrt(_lists(rows)),
    },
    "none": {
        "build": lambda rows: 1,
        "insert": lambda rows: 1,
        "setting": lambda rows: 1,
        "search": lambda rows: rows,
        "pages": lambda rows: 1,
    },
}


def estimates(rows: float, recall: float) -> list[Estimate]:
    """Return what each kind of index costs with so many *rows*, where searches ask for that *recall*.

    Raises InvalidValue.
    """
    count, wanted = _checked(rows, recall)
    return [_estimate(kind, count, wanted) for kind in MEASURED]


def plan(rows: float, qps: float, recall: float, *, memory: int = MEMORY, cores: int = CORES) -> Plan:
    """Return the machines for so many *rows*, and for *qps* searches a second that ask for that *recall*.

    memory, cores: of the smallest machine to consider, in bytes; each next one has twice as much of both, up to
    LARGEST. The table is split into as few shards as can be. The machines chosen have the least memory together, and
    where that is equal they are the fewest. Raises InvalidValue.
    """
    count, wanted = _checked(rows, recall)
    if not 0 <= checks.number("qps", qps) <= 1e9:
        raise InvalidValue(f"qps: {qps:g} is not within 0 to 1e+09")
    checks.integer("cores", cores, least=1, most=4096)
    tuning.recommend(memory)  # refuses what no machine has
    every = [list(_fleets(kind, count, qps, wanted, memory, cores)) for kind in CHOICE]
    best = sorted((min(fleets, key=_cost) for fleets in every if fleets), key=_cost)
    return Plan(count, qps, wanted, tuple(estimates(count, wanted)), tuple(best), tuple(_settings(best[0])))


def _cost(fleet: Fleet) -> tuple[int, int, int]:
    """Return what is to be as little as can be, the most important first."""
    return fleet.shards, fleet.machines * fleet.memory, fleet.machines


def _fleets(kind: Kind, rows: int, qps: float, recall: float, memory: int, cores: int) -> Iterator[Fleet]:
    """Yield the fleets with an index of *kind*, one for each size of machines."""
    if kind is None and _figure(kind, rows, recall, "search").value > PATIENCE:
        return
    # So many rows to a shard that an ef_search reaches the recall
    narrow = math.ceil((_figure(kind, rows, recall, "setting").value / MAX_EF_SEARCH) ** (1 / _WIDENING))
    held = _estimate(kind, rows, recall).memory.value
    for step in range(max(int(math.log2(LARGEST / memory)), 0) + 1):
        shards = max(math.ceil(held / (memory << step)), narrow, 1)
        yield _fleet(kind, rows, qps, recall, memory << step, cores << step, shards)


def _fleet(kind: Kind, rows: int, qps: float, recall: float, memory: int, cores: int, shards: int) -> Fleet:
    part = math.ceil(rows / shards)
    one = _estimate(kind, part, recall)
    computed = BUSY * cores * one.searches.value
    cached = one.size.value + one.table.value <= CACHED * memory
    read = math.inf if cached else READS / _table_pages(kind, part, one.setting.value)
    replicas = max(math.ceil(qps / min(computed, read)) - 1, 0)
    return Fleet(
        index=one.index,
        machines=shards * (1 + replicas),
        memory=memory,
        cores=cores,
        shards=shards,
        replicas=replicas,
        rows=part,
        searches=min(computed, read) * (1 + replicas),
        bound="cores" if computed <= read else "disk",
        size=int(one.size.value),
        build_memory=_build_memory(kind, part),
    )


def _checked(rows: float, recall: float) -> tuple[int, float]:
    if not 1 <= checks.number("rows", rows) <= 1e12 or int(rows) != rows:
        raise InvalidValue(f"rows: {rows:g} is not a whole number from 1 to 1e+12")
    least, most = RECALLS
    if not least <= checks.number("recall", recall) <= most:
        raise InvalidValue(f"recall: {recall:g} is not within {least} to {most}, which were measured")
    return int(rows), recall


def _name(kind: Kind) -> str:
    return "none" if kind is None else " ".join(kind)


def _estimate(kind: Kind, rows: int, recall: float) -> Estimate:
    """Return what an index of *kind* costs with so many *rows*."""
    table = _grown(rows, TABLES, lambda rows: rows)
    size = _size(kind, rows)
    held = table.value if kind is None else size.value + _build_memory(kind, rows)
    insert = _figure(kind, rows, recall, "insert")
    setting = _figure(kind, rows, recall, "setting")
    # As similar does where no setting reaches the recall
    used = None if kind is not None and kind[0] == "hnsw" and setting.value > MAX_EF_SEARCH + 0.5 else kind
    search = _figure(used, rows, recall, "search")
    pages = _figure(used, rows, recall, "pages").value
    table_pages = _table_pages(used, rows, setting.value)
    read = STREAMED if used is None else READ
    return Estimate(
        index=_name(kind),
        table=table,
        size=size,
        memory=Figure(held / CACHED, "modelled"),
        build=_figure(kind, rows, recall, "build"),
        setting=Figure(0, setting.basis) if used is None else setting,
        inserts=Figure(1000 / insert.value, insert.basis),
        searches=Figure(1000 / search.value, search.basis),
        table_wait=Figure(table_pages * read, "modelled"),
        wait=Figure((pages + table_pages) * read, "modelled"),
    )


def _table_pages(kind: Kind, rows: int, setting: float) -> float:
    """Return how many pages of the table a search for 10 neighbours reads."""
    return rows if kind is None else _CANDIDATES.get(kind[1], setting)


def _size(kind: Kind, rows: int) -> Figure:
    """Return the bytes of an index of *kind*."""
    if kind is None:
        return Figure(0, "measured")
    if rows in MEASURED[kind]:
        return Figure(MEASURED[kind][rows].size, "measured")
    return Figure(kinds.size(*kind, rows, _options(kind, rows)), "modelled")


def _build_memory(kind: Kind, rows: int) -> int:
    """Return the bytes of maintenance_work_mem with which an index of *kind* is built at full speed."""
    return 0 if kind is None else int(_SPARE * kinds.memory(*kind, rows, _options(kind, rows)))


def _options(kind: tuple[Method, Precision], rows: int) -> dict[str, int]:
    return kinds.options(kind[0], rows, lists=None, m=None, ef_construction=None)


def _figure(kind: Kind, rows: int, recall: float, what: str) -> Figure:
    """Return the quantity of that name, as _Measured has it, for an index of *kind* with *rows* rows."""
    measured = {size: _at_recall(getattr(one, what), recall) for size, one in MEASURED[kind].items()}
    values = {size: figure.value for size, figure in measured.items()}
    grown = _grown(rows, values, _GROWTH["none" if kind is None else kind[0]][what], _FIXED.get(what, 0))
    bases: list[Basis] = [grown.basis, *(figure.basis for figure in measured.values())]
    return Figure(grown.value, max(bases, key=_BASES.index))


def _grown(rows: int, measured: Mapping[int, float], grows: Callable[[int], float], fixed: float = 0) -> Figure:
    """Return what was *measured* by the number of rows, for another number. fixed: what of it does not grow."""
    if rows in measured:
        return Figure(measured[rows], "measured")
    least, most = min(measured), max(measured)
    if least < rows < most:
        share = math.log(rows / least) / math.log(most / least)
        return Figure(measured[least] ** (1 - share) * measured[most] ** share, "interpolated")
    near = most if rows > most else least
    return Figure(fixed + (measured[near] - fixed) * grows(rows) / grows(near), "modelled")


def _at_recall(value: float | tuple[float, float], recall: float) -> Figure:
    """Return a measured value at *recall*: its logarithm goes with that of the share of neighbours that are missed."""
    if not isinstance(value, tuple):
        return Figure(value, "measured")
    low, high = value
    share = math.log((1 - recall) / (1 - RECALLS[0])) / math.log((1 - RECALLS[1]) / (1 - RECALLS[0]))
    return Figure(low ** (1 - share) * high**share, "measured" if recall in RECALLS else "interpolated")


def _settings(fleet: Fleet) -> Iterator[tuning.Recommendation]:
    """Yield the settings of each server of *fleet*."""
    yield from tuning.recommend(fleet.memory)
    workers = max(fleet.cores, _WORKERS)
    yield tuning.Recommendation("max_worker_processes", f"{workers}", True, "one for each core")
    yield tuning.Recommendation(
        "max_parallel_workers", f"{workers}", False, "one for each core; builds take half of them"
    )
