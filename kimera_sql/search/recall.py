"""Recall, the share of the true nearest neighbours that a search finds: measured, and tuned to a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from .. import checks, search, sql
from ..errors import InvalidValue, UnsupportedByServer
from ..sql import Connection
from ..vectors import Vector, VectorLike, as_vector
from . import MAX_EF_SEARCH, TABLES, Options, VectorIndex

_queries = sql.Queries("recall")

TARGETS: Final = (0.95, 0.99)
"""The recalls that tune finds settings for unless told otherwise."""

KS: Final = (10, 100)
"""The numbers of neighbours that tune finds settings for."""

_Z: Final = NormalDist().inv_cdf(0.975)
"""Standard deviations either side of the mean that hold 95 % of a normal distribution."""

_CHUNK: Final = 2000
"""Vectors that are held in memory at once."""

# A distance is known to single precision: neighbours as near as this to the k-th are ties.
_TIE: Final = 1e-5

_BLOCK: Final = 200
"""How many queries tune asks before it looks whether a setting's recall is clear by now.

With one block alone, a few bad queries among them took ef_search from 49 to 107 and more in 43 of 200 tunings on 19,000
real vectors, for a recall of 0.95; with up to three blocks none was past 63, for a sixth more work.
"""

_NEIGHBOURS: Final = 20
"""How many of a row's neighbours the direction of a query made from it is taken from."""

_NEAR: Final = Options(probes=30, ef_search=200)
"""How they are searched for: whatever was tuned before, and exactly where there is no index."""

# How many times as far from its row such a query lies as the nearest other row does, and the share of the misses that a
# target allows which such queries may have. Vectors that had been held out had 0.6 to 1.8 times the misses of such
# queries, with hnsw and ivfflat, on real data and on five kinds of made data; 0.6 to 2.3 times those of nearer ones.
_DISTANCE: Final = 1.25
_MISSES: Final = 0.5


@dataclass(frozen=True, slots=True)
class Recall:
    """A measured recall. low, high: its 95 % confidence interval. queries: how many were asked, for k rows each.

    index: the name of the index that served them, None where searches were exact. setting: its probes or ef_search.
    """

    recall: float
    low: float
    high: float
    k: int
    queries: int
    index: str | None
    setting: int | None


@dataclass(frozen=True, slots=True)
class Tuned:
    """The setting that tune chose. setting: probes or ef_search, None where none reaches the target.

    recall: what it measured with the setting, or with the widest one where none does.
    """

    index: str
    k: int
    target: float
    setting: int | None
    recall: Recall


def measure(
    conn: Connection,
    table: str,
    *,
    sample: int = 100,
    k: int = 10,
    queries: Sequence[VectorLike] | None = None,
    probes: int | None = None,
    ef_search: int | None = None,
    recall: float | None = None,
) -> Recall:
    """Compare *table*'s searches with exact ones, and return the share of the true nearest that they find.

    *queries* are what is searched for; without them *sample* queries are made from rows picked at random, because a row
    itself is easier to find than what is asked in earnest: each is moved 1.25 times as far as its row is from the
    nearest other one, in the direction from one of its neighbours to another. The other options are those of similar.
    The interval is Wilson's (1927), with the sample that the spread between queries amounts to.
    Raises InvalidValue for a table without rows, and UnsupportedByServer on SQLite, whose searches are exact.
    """
    postgres, searched = _searched(conn, table)
    checks.limit(k, "k")
    asked = _asked(postgres, searched, sample, queries)
    options = Options(False, probes, ef_search, recall)
    shares = _shares(postgres, searched, asked, _truth(postgres, searched, asked, k), k, options)
    chosen = search.plan(postgres, searched, k, _nowhere(searched), options)
    return _recall(shares, k, chosen.index.name if chosen.index else None, chosen.setting)


def tune(
    conn: Connection,
    table: str,
    *,
    target: float | Sequence[float] | None = None,
    sample: int = 600,
    queries: Sequence[VectorLike] | None = None,
) -> list[Tuned]:
    """Find the cheapest probes or ef_search that reach a recall of *target*, and keep them.

    *target* is one or several, which are measured in one go; 0.95 and 0.99 unless given.

    It does so for 10 and for 100 neighbours, with queries as measure has them, and for the index that searches use.
    A setting counts as reaching the target when the low end of the measured recall's interval does; where queries are
    made from rows, which can be easier than fresh ones, it is to miss half of what the target allows. Of *sample* or
    *queries* 200 are asked at a time, until the interval is on one side of that or there are no more. Searches of this
    and every other process take the setting up within half a minute; one that asks for a recall that no setting reaches
    is exact.
    Raises InvalidValue for a table without rows or index, and UnsupportedByServer on SQLite.
    """
    several = TARGETS if target is None else target if isinstance(target, Sequence) else (target,)
    targets = [_target(one) for one in several]
    postgres, searched = _searched(conn, table)
    where = _nowhere(searched)
    index = search.plan(postgres, searched, KS[0], where, Options(probes=1, ef_search=1)).index
    if index is None:
        raise InvalidValue(f"table: {table} has no vector index to tune")
    asked = _asked(postgres, searched, sample, queries)
    chosen = []
    truth = _truth(postgres, searched, asked, max(KS))
    for k in KS:
        trial = _Trial(postgres, searched, index, asked, truth[-k:], k)
        for wanted in targets:
            aim = wanted if queries is not None else 1 - (1 - wanted) * _MISSES
            setting = _cheapest(_ladder(index, k), lambda step, aim=aim, trial=trial: trial.reaches(step, aim))  # type: ignore[misc]
            _queries.store.execute(postgres, index_name=index.name, k=k, target=wanted, setting=setting)
            chosen.append(Tuned(index.name, k, wanted, setting, trial.recall(setting or _ladder(index, k)[-1])))
    search.forget(postgres)
    return chosen


class _Trial:
    """What settings of an index find of the *k* nearest to each of *asked*, as far as it had to be measured.

    What a search makes good by an exact one, where its index gives too few, is no merit of the setting.
    """

    def __init__(
        self,
        conn: psycopg.Connection[object],
        table: search.Table,
        index: VectorIndex,
        asked: Sequence[Vector],
        truth: Vector,
        k: int,
    ) -> None:
        self._conn = conn
        self._table = table
        self._index = index
        self._asked = asked
        self._truth = truth
        self._k = k
        self._shares: dict[int, list[float]] = {}

    def reaches(self, setting: int, aim: float) -> bool:
        """Return whether *setting* has a recall of *aim* at the low end of its interval; ask only what that takes."""
        shares = self._shares.setdefault(setting, [])
        while True:
            low, high = _interval(shares, self._k) if shares else (0.0, 1.0)
            if low >= aim or high < aim or len(shares) == len(self._asked):
                return low >= aim
            options = Options(probes=setting, ef_search=min(setting, MAX_EF_SEARCH))
            block = slice(len(shares), len(shares) + _BLOCK)
            asked, truth = self._asked[block], self._truth[:, block]
            shares += _shares(self._conn, self._table, asked, truth, self._k, options, complete=False)

    def recall(self, setting: int) -> Recall:
        """Return the recall of a *setting* of which it is known whether it reaches an aim."""
        return _recall(self._shares[setting], self._k, self._index.name, setting)


def _target(target: float) -> float:
    if not 0 < checks.number("target", target) < 1:
        raise InvalidValue(f"target: {target} is not between 0 and 1")
    return target


def _searched(conn: Connection, table: str) -> tuple[psycopg.Connection[object], search.Table]:
    if not isinstance(conn, psycopg.Connection):
        raise UnsupportedByServer("SQLite's searches are exact: their recall is 1")
    if table not in TABLES:
        raise InvalidValue(f"table: expected one of {', '.join(TABLES)}, got {table!r}")
    return conn, TABLES[table]


def _nowhere(table: search.Table) -> dict[str, None]:
    """Return the parameters of a search without filters."""
    parameters = sql.statements("postgres", table.queries.entity)["matching_plan"].parameters
    return dict.fromkeys(parameters)


def _ladder(index: VectorIndex, k: int) -> list[int]:
    """Return the settings to try, each some 1.3 times the one before it."""
    least, most = (k, MAX_EF_SEARCH) if index.method == "hnsw" else (1, index.lists or 1)
    steps = {min(most, math.ceil(least * 1.3**step)) for step in range(math.ceil(math.log(most / least, 1.3)) + 1)}
    return sorted(steps)


def _cheapest(ladder: Sequence[int], reaches: Callable[[int], bool]) -> int | None:
    """Return the first step of *ladder* that *reaches*, which every one after it does too; None if none does."""
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high) // 2
        if reaches(ladder[middle]):
            high = middle
        else:
            low = middle + 1
    return ladder[low] if low < len(ladder) else None


def _asked(
    conn: psycopg.Connection[object], table: search.Table, sample: int, queries: Sequence[VectorLike] | None
) -> list[Vector]:
    if queries is not None:
        asked = [as_vector(query, field=f"queries[{number}]") for number, query in enumerate(queries)]
        if not asked:
            raise InvalidValue("queries: there are none")
        return asked
    picked = getattr(_queries, f"sample_{table.name}").fetchall(conn, rows=checks.limit(sample, "sample"))
    if not picked:
        raise InvalidValue(f"table: {table.name} has no rows")
    return [_moved(conn, table, row / np.linalg.norm(row), number) for number, (row,) in enumerate(picked)]


def _moved(conn: psycopg.Connection[object], table: search.Table, row: Vector, number: int) -> Vector:
    """Return *row*, of length 1, moved to where a row could lie but none does; *number* chooses the direction."""
    found = search.nearest(conn, table, row, _NEIGHBOURS + 1, _nowhere(table), _NEAR, with_vectors=True)
    near = [vector / np.linalg.norm(vector) for _, _, vector in found[1:] if vector is not None]
    if len(near) < 2:
        return as_vector(row)
    along = near[number % len(near)] - near[number % len(near) - 1]
    along -= (along @ row) * row
    length = np.linalg.norm(along)
    angle = min(_DISTANCE * math.acos(np.clip(near[0] @ row, -1, 1)), math.pi / 2)
    if length < _TIE:
        return as_vector(row)
    return as_vector((math.cos(angle) * row + math.sin(angle) / length * along).astype(np.float32))


def _truth(conn: psycopg.Connection[object], table: search.Table, asked: Sequence[Vector], k: int) -> Vector:
    """Return the similarities of the *k* nearest to each of *asked*, ascending, by comparing all rows.

    Its shape is (k, len(asked)), or (rows, len(asked)) where there are fewer. Raises InvalidValue where there are none.
    """
    matrix = np.stack([query / np.linalg.norm(query) for query in asked]).T
    best = np.full((0, len(asked)), -np.inf, dtype=np.float32)
    chunk: list[Vector] = []

    def merge(best: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors = np.stack(chunk)
        similarities = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ matrix
        together = np.concatenate([best, similarities])
        return together if len(together) <= k else np.partition(together, -k, axis=0)[-k:]

    for (vector,) in getattr(_queries, f"vectors_{table.name}").stream(conn, chunk=_CHUNK):
        chunk.append(vector)
        if len(chunk) == _CHUNK:
            best = merge(best)
            chunk.clear()
    if chunk:
        best = merge(best)
    if not len(best):
        raise InvalidValue(f"table: {table.name} has no rows")
    best.sort(axis=0)
    return best


def _shares(
    conn: psycopg.Connection[object],
    table: search.Table,
    asked: Sequence[Vector],
    truth: Vector,
    k: int,
    options: Options,
    *,
    complete: bool = True,
) -> list[float]:
    """Search for each of *asked*, and return the share of *truth* that it finds; ties count."""
    found = search.nearest_many(conn, table, asked, k, _nowhere(table), options, complete=complete)
    return [
        sum(similarity >= worst - _TIE for _, similarity, _ in hits) / len(truth)
        for hits, worst in zip(found, truth[0], strict=True)
    ]


def _recall(shares: Sequence[float], k: int, index: str | None, setting: int | None) -> Recall:
    low, high = _interval(shares, k)
    return Recall(float(np.mean(shares)), low, high, k, len(shares), index, setting)


def _interval(shares: Sequence[float], k: int) -> tuple[float, float]:
    """Return Wilson's interval at 95 % for the mean of *shares*, one a query, each of *k* neighbours."""
    count, mean = len(shares), float(np.mean(shares))
    # Neighbours of one query are found or missed together, so k of them are worth less than k samples.
    spread = float(np.var(shares)) / count
    worth = min(max(mean * (1 - mean) / spread, count), count * k) if spread else count * k
    centre = (mean + _Z**2 / (2 * worth)) / (1 + _Z**2 / worth)
    half = _Z / (1 + _Z**2 / worth) * math.sqrt(mean * (1 - mean) / worth + _Z**2 / (4 * worth**2))
    # The mean is within it, but for rounding.
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
