"""The arithmetic of recall: confidence intervals, the settings to try, and queries made from rows. It runs no SQL."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .. import checks
from ..errors import InvalidValue
from ..vectors import Vector, as_vector
from .plan import MAX_EF_SEARCH, Method, Options, VectorIndex

TARGETS: Final = (0.95, 0.99)
"""The recalls that tune finds settings for by default."""

KS: Final = (10, 100)
"""The numbers of neighbours that tune finds settings for."""

_Z: Final = NormalDist().inv_cdf(0.975)
"""Standard deviations on either side of the mean that hold 95 % of a normal distribution."""

# Distances have single precision: neighbours this close to the k-th count as ties.
_TIE: Final = 1e-5

WORST: Final = 0.8
"""The recall that all but RARE of the queries are to have, whatever the mean is."""

RARE: Final = 0.01
"""The share of the queries that may have less."""

BLOCK: Final = 200
"""How many queries tune runs before it checks whether a setting's recall is decided.

On 19,000 real vectors and for a mean recall of 0.95, one block alone was too few: in 43 of 200 tunings a few bad
queries raised ef_search from 49 to 107 or more. With up to three blocks it was never above 63.
"""

FEW: Final = 100
"""How many queries tune runs for the largest of KS: with so many neighbours their recalls hardly differ."""

NEIGHBOURS: Final = 20
"""How many of a row's nearest neighbours give the direction in which a query made from the row is moved."""

NEAR: Final = Options(probes=30, ef_search=60)
"""How those neighbours are searched for: independent of earlier tuning, and exactly if there is no index."""

# _DISTANCE: the angle between such a query and its row, as a multiple of the angle to the row's nearest neighbour.
# _MISSES: the share of a target's misses that such queries may have. Held-out vectors had 0.6 to 1.8 times as many
# misses as such queries, with hnsw and ivfflat, on real data and on five kinds of generated data. Compared with queries
# nearer to their rows they had 0.6 to 2.3 times as many.
# _POOR: likewise for queries with a recall below WORST. Held-out sentence embeddings had 2.0 to 2.4 times as many of
# them, and those are few enough to be a matter of luck.
_DISTANCE: Final = 1.25
_MISSES: Final = 0.5
_POOR: Final = 1 / 4


@dataclass(frozen=True, slots=True)
class Recall:
    """A measured recall: the mean over the queries. low, high: its 95 % confidence interval.

    p1, p10: the recall that all but the worst hundredth and the worst tenth of the queries have. poor: the share of
    the queries with a recall below WORST. queries: how many were run, for k rows each. index: the name of the index
    they used, None if the searches were exact. setting: its probes or ef_search.
    """

    recall: float
    low: float
    high: float
    p1: float
    p10: float
    poor: float
    k: int
    queries: int
    index: str | None
    setting: int | None


@dataclass(frozen=True, slots=True)
class Tuned:
    """The setting that tune chose. setting: probes or ef_search, None if none reaches the target.

    recall: the recall measured with the setting, or with the widest one if none reaches the target.
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


@dataclass(frozen=True, slots=True)
class Promise:
    """What a setting has to keep: a *mean* recall, and a recall of *worst* for all but a share *rare* of queries."""

    mean: float
    worst: float
    rare: float

    @classmethod
    def of(cls, target: float, worst: float, *, made: bool) -> Promise:
        """Return the promise of *target* and *worst*, which is stricter for queries *made* from rows."""
        return cls(1 - (1 - target) * _MISSES, worst, RARE * _POOR) if made else cls(target, worst, RARE)

    def is_kept(self, shares: Sequence[float], k: int, of: int) -> bool | None:
        """Return whether *shares*, the recalls of the first queries *of* so many, keep it; None if more have to run."""
        low, high = interval(shares, k)
        poor = int(np.sum(np.asarray(shares) < self.worst))
        allowed = math.floor(self.rare * of + 1e-9)
        if high < self.mean or poor > allowed:
            return False
        if len(shares) == of:
            return low >= self.mean
        return True if low >= self.mean and not self.worst else None


GUESS: Final[Mapping[Method, int]] = {"hnsw": 20, "ivfflat": 5}
"""The setting that tune tries first."""

_GALLOP: Final = 4
"""Steps from one setting to the next while none has been found that is wide enough: about 1.5 times as wide."""


def ladder(index: VectorIndex, k: int) -> list[int]:
    """Return the settings to try, ascending, each about 1.1 times the one before it."""
    least, most = (k, MAX_EF_SEARCH) if index.method == "hnsw" else (1, index.lists or 1)
    steps = {min(most, math.ceil(least * 1.1**step)) for step in range(math.ceil(math.log(most / least, 1.1)) + 1)}
    return sorted(steps)


class Bisection:
    """Search for the first of *steps* that passes a test, given that every later step passes it too.

    It begins at the step *first*, and goes up by leaps until one passes: wide settings take long to try.
    Try *step* and call answer with the result, until *step* is None. Then *found* is the first step that passes, or
    None if none does.
    """

    def __init__(self, steps: Sequence[int], first: int = 0) -> None:
        self._steps = steps
        self._low, self._high = 0, len(steps)
        self._leap = bisect_left(steps, first)

    @property
    def _at(self) -> int:
        if self._high < len(self._steps):
            return (self._low + self._high) // 2
        return min(max(self._low, self._leap), self._high - 1)

    @property
    def step(self) -> int | None:
        return self._steps[self._at] if self._low < self._high else None

    @property
    def found(self) -> int | None:
        return self._steps[self._low] if self._low < len(self._steps) else None

    def answer(self, reaches: bool) -> None:
        at = self._at
        self._leap = at + _GALLOP
        self._low, self._high = (self._low, at) if reaches else (at + 1, self._high)


def moved(row: Vector, near: Sequence[Vector], number: int) -> Vector:
    """Return *row* moved to a place where a row could be but none is. Shape (1024,), float32, norm 1.

    *row* has norm 1. *near*: its nearest neighbours, of norm 1, without *row* itself. *number* chooses the direction.
    Without two distinct neighbours *row* is not moved.
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
    """Collects the similarities of each query's *k* nearest rows, a chunk of rows at a time."""

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
        """Return the similarities, ascending: shape (k, queries), or (rows, queries) if there are fewer than k rows."""
        return np.sort(self._best, axis=0)


def unit(vector: Vector) -> Vector:
    """Return *vector* scaled to norm 1, as float32."""
    return (vector / np.linalg.norm(vector)).astype(np.float32, copy=False)


def share(similarities: Sequence[float], truth: NDArray[np.float32]) -> float:
    """Return the share of the true nearest neighbours among hits of these *similarities*; ties count as found.

    *truth*: the similarities of the true nearest neighbours, ascending, shape (k,).
    """
    worst = float(truth[0]) - _TIE
    return sum(similarity >= worst for similarity in similarities) / len(truth)


def summary(shares: Sequence[float], k: int, index: str | None, setting: int | None) -> Recall:
    """Return the recall over *shares*, one share per query."""
    low, high = interval(shares, k)
    p1, p10 = np.quantile(shares, (0.01, 0.1), method="lower")
    poor = float(np.mean(np.asarray(shares) < WORST))
    return Recall(float(np.mean(shares)), low, high, float(p1), float(p10), poor, k, len(shares), index, setting)


def interval(shares: Sequence[float], k: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval for the mean of *shares*, one per query, each of *k* neighbours."""
    count, mean = len(shares), float(np.mean(shares))
    # The neighbours of one query tend to be found or missed together, so k of them count for less than k samples.
    spread = float(np.var(shares)) / count
    worth = min(max(mean * (1 - mean) / spread, count), count * k) if spread else count * k
    centre = (mean + _Z**2 / (2 * worth)) / (1 + _Z**2 / worth)
    half = _Z / (1 + _Z**2 / worth) * math.sqrt(mean * (1 - mean) / worth + _Z**2 / (4 * worth**2))
    # The mean is always within the interval, except for rounding.
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
