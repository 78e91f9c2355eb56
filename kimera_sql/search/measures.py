"""Recall as numbers: what was measured, its interval, which settings are tried, and queries made from rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..errors import InvalidValue
from ..vectors import Vector, as_vector
from .plan import MAX_EF_SEARCH, Options, VectorIndex

TARGETS: Final = (0.95, 0.99)
"""The recalls that tune finds settings for unless told otherwise."""

KS: Final = (10, 100)
"""The numbers of neighbours that tune finds settings for."""

_Z: Final = NormalDist().inv_cdf(0.975)
"""Standard deviations either side of the mean that hold 95 % of a normal distribution."""

# A distance is known to single precision: neighbours as near as this to the k-th are ties.
_TIE: Final = 1e-5

BLOCK: Final = 200
"""How many queries tune runs before it looks whether a setting's recall is clear by now.

With one block alone, a few bad queries among them took ef_search from 49 to 107 and more in 43 of 200 tunings on 19,000
real vectors, for a recall of 0.95; with up to three blocks none was past 63, for a sixth more work.
"""

NEIGHBOURS: Final = 20
"""How many of a row's neighbours the direction of a query made from it is taken from."""

NEAR: Final = Options(probes=30, ef_search=200)
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


def wanted(target: float | Sequence[float] | None) -> list[float]:
    """Return the targets to tune for. Raises InvalidValue for one that is not between 0 and 1."""
    several = TARGETS if target is None else target if isinstance(target, Sequence) else (target,)
    for one in several:
        if not 0 < checks.number("target", one) < 1:
            raise InvalidValue(f"target: {one} is not between 0 and 1")
    return list(several)


def aim(target: float, *, made: bool) -> float:
    """Return the recall at which a setting counts as reaching *target*; *made*: the queries were made from rows."""
    return 1 - (1 - target) * _MISSES if made else target


def ladder(index: VectorIndex, k: int) -> list[int]:
    """Return the settings to try, each some 1.3 times the one before it."""
    least, most = (k, MAX_EF_SEARCH) if index.method == "hnsw" else (1, index.lists or 1)
    steps = {min(most, math.ceil(least * 1.3**step)) for step in range(math.ceil(math.log(most / least, 1.3)) + 1)}
    return sorted(steps)


class Bisection:
    """Finds the first of *steps* that reaches something, which every one after it does too, in few trials.

    Give the answer to each *step* to try, until it is None; then *found* is the first, None where none reaches it.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps = steps
        self._low, self._high = 0, len(steps)

    @property
    def step(self) -> int | None:
        return self._steps[(self._low + self._high) // 2] if self._low < self._high else None

    @property
    def found(self) -> int | None:
        return self._steps[self._low] if self._low < len(self._steps) else None

    def answer(self, reaches: bool) -> None:
        middle = (self._low + self._high) // 2
        self._low, self._high = (self._low, middle) if reaches else (middle + 1, self._high)


def moved(row: Vector, near: Sequence[Vector], number: int) -> Vector:
    """Return *row*, of length 1, moved to where a row could lie but none does.

    *near*: the rows nearest to it, of length 1, itself left out. *number* chooses the direction.
    """
    if len(near) < 2:
        return as_vector(row)
    along = near[number % len(near)] - near[number % len(near) - 1]
    along -= (along @ row) * row
    length = np.linalg.norm(along)
    angle = min(_DISTANCE * math.acos(np.clip(near[0] @ row, -1, 1)), math.pi / 2)
    if length < _TIE:
        return as_vector(row)
    return as_vector((math.cos(angle) * row + math.sin(angle) / length * along).astype(np.float32))


class Truth:
    """Collects the similarities of the *k* nearest of all rows to each of *queries*, a chunk of rows at a time."""

    def __init__(self, queries: Sequence[Vector], k: int) -> None:
        self._queries = np.stack([unit(query) for query in queries]).T
        self._k = k
        self._best = np.full((0, len(queries)), -np.inf, dtype=np.float32)

    def add(self, chunk: Sequence[Vector]) -> None:
        """Compare all queries with the rows of *chunk*."""
        vectors = np.stack(chunk)
        similarities = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ self._queries
        together = np.concatenate([self._best, similarities])
        self._best = together if len(together) <= self._k else np.partition(together, -self._k, axis=0)[-self._k :]

    def similarities(self) -> NDArray[np.float32]:
        """Return them, ascending: shape (k, queries), or (rows, queries) where there are fewer rows."""
        return np.sort(self._best, axis=0)


def unit(vector: Vector) -> Vector:
    """Return *vector* scaled to length 1."""
    return (vector / np.linalg.norm(vector)).astype(np.float32, copy=False)


def share(similarities: Sequence[float], truth: NDArray[np.float32]) -> float:
    """Return the share of the true nearest, whose similarities are *truth*, that hits have; ties count."""
    worst = float(truth[0]) - _TIE
    return sum(similarity >= worst for similarity in similarities) / len(truth)


def summary(shares: Sequence[float], k: int, index: str | None, setting: int | None) -> Recall:
    """Return the recall that *shares*, one a query, amount to."""
    low, high = interval(shares, k)
    return Recall(float(np.mean(shares)), low, high, k, len(shares), index, setting)


def interval(shares: Sequence[float], k: int) -> tuple[float, float]:
    """Return Wilson's interval at 95 % for the mean of *shares*, one a query, each of *k* neighbours."""
    count, mean = len(shares), float(np.mean(shares))
    # Neighbours of one query are found or missed together, so k of them are worth less than k samples.
    spread = float(np.var(shares)) / count
    worth = min(max(mean * (1 - mean) / spread, count), count * k) if spread else count * k
    centre = (mean + _Z**2 / (2 * worth)) / (1 + _Z**2 / worth)
    half = _Z / (1 + _Z**2 / worth) * math.sqrt(mean * (1 - mean) / worth + _Z**2 / (4 * worth**2))
    # The mean is within it, but for rounding.
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
