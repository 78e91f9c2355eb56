"""SQL functions for queries/sqlite that PostgreSQL has and SQLite lacks, under PostgreSQL's names.

gen_random_uuid, clock_timestamp, date_bin, percentile_cont and others are registered from Python, because the sqlite3
module of many Pythons cannot load extensions.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import numpy as np

from .rows import to_sqlite


def add_functions(conn: sqlite3.Connection) -> None:
    """Register the SQL functions of queries/sqlite on *conn*."""
    functions: dict[str, tuple[int, Callable[..., Any], bool]] = {
        "gen_random_uuid": (0, lambda: str(uuid4()), False),
        "clock_timestamp": (0, lambda: to_sqlite(datetime.now(UTC)), False),
        "json_contains": (2, lambda whole, part: _contains(json.loads(whole), json.loads(part)), True),
        "json_overlaps": (2, lambda one, other: not set(json.loads(one)).isdisjoint(json.loads(other)), True),
        "json_merge": (2, lambda whole, changes: to_sqlite({**json.loads(whole), **json.loads(changes)}), True),
        "json_add": (2, _with, True),
        "json_remove_all": (2, _without, True),
        "date_bin": (3, _date_bin, True),
    }
    for name, (arguments, function, deterministic) in functions.items():
        conn.create_function(name, arguments, _null_on_null(function), deterministic=deterministic)
    # Called for every row of a search, on columns that are never NULL
    conn.create_function("cosine_distance", 2, _CosineDistance(), deterministic=True)
    aggregates: dict[str, tuple[int, Callable[[], Any]]] = {
        "percentile_cont": (2, _PercentileCont),
        "vector_avg": (1, _VectorAvg),
        "fewest_steps": (7, _FewestSteps),
        "cheapest_steps": (7, _CheapestSteps),
    }
    for name, (arguments, aggregate) in aggregates.items():
        conn.create_aggregate(name, arguments, aggregate)


def _null_on_null(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        return None if None in arguments else function(*arguments)

    return called


class _CosineDistance:
    """1 - cosine of two BLOBs of little-endian float32. The second is the query vector, the same for every row.

    NULL where there is none: a BLOB of another length, NaN, or a norm whose square single precision does not hold.
    """

    def __init__(self) -> None:
        self._blob = b""
        self._vector = np.zeros(0, dtype="<f4")
        self._square = 0.0

    def __call__(self, one: bytes, other: bytes) -> float | None:
        if other != self._blob:
            self._vector = np.frombuffer(other, dtype="<f4")
            self._square = float(np.dot(self._vector, self._vector))
            self._blob = other
        if len(one) != len(other):
            return None
        vector = np.frombuffer(one, dtype="<f4")
        # One root of the product, as pgvector takes it: so a vector's cosine with itself is 1, and no digit less.
        square = float(np.vdot(vector, vector))  # unlike dot, it does not warn of what overflows
        if not 0 < square < math.inf:
            return None
        cosine = float(np.dot(vector, self._vector)) / math.sqrt(square * self._square)
        return 1.0 - max(-1.0, min(1.0, cosine))


def _contains(whole: Any, part: Any) -> bool:
    """Return whether *whole* contains *part*, as jsonb @> in PostgreSQL: every part, at the same level."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(key in whole and _contains(whole[key], value) for key, value in part.items())
    if isinstance(whole, list) and isinstance(part, list):
        return all(any(_contains(item, wanted) for item in whole) for wanted in part)
    # In Python True == 1, in JSON it does not.
    return isinstance(whole, bool) == isinstance(part, bool) and bool(whole == part)


def _with(items: str, new: str) -> str:
    had = json.loads(items)
    return json.dumps(had + [item for item in dict.fromkeys(json.loads(new)) if item not in had])


def _without(items: str, unwanted: str) -> str:
    gone = set(json.loads(unwanted))
    return json.dumps([item for item in json.loads(items) if item not in gone])


def _date_bin(width: int, moment: str, origin: str) -> str:
    begin = datetime.fromisoformat(origin)
    step = timedelta(microseconds=width)
    return str(to_sqlite(begin + (datetime.fromisoformat(moment) - begin) // step * step))


class _PercentileCont:
    """PostgreSQL's percentile_cont(fraction) WITHIN GROUP (ORDER BY value)."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._fraction = 0.0

    def step(self, fraction: float, value: float) -> None:
        self._fraction = fraction
        self._values.append(value)

    def finalize(self) -> float | None:
        if not self._values:
            return None
        self._values.sort()
        low, rest = divmod(self._fraction * (len(self._values) - 1), 1)
        below, above = self._values[int(low)], self._values[math.ceil(low + rest)]
        return below + rest * (above - below)


class _VectorAvg:
    """The mean of BLOBs of little-endian float32, added up in double precision as pgvector's avg does."""

    def __init__(self) -> None:
        self._sum: Any = 0.0
        self._count = 0

    def step(self, blob: bytes) -> None:
        self._sum = self._sum + np.frombuffer(blob, dtype="<f4").astype(np.float64)
        self._count += 1

    def finalize(self) -> bytes | None:
        return (self._sum / self._count).astype("<f4").tobytes() if self._count else None


class _Ways:
    """Collects the edges of a graph, and finds a path through it breadth-first: one step per level."""

    def __init__(self) -> None:
        self._edges: dict[Any, list[tuple[float, str, Any]]] = {}
        self._start: Any = None
        self._goal: Any = None
        self._most = 0

    def step(self, id: str, source: Any, target: Any, weight: float, start: Any, goal: Any, most: int) -> None:
        self._edges.setdefault(source, []).append((weight, id, target))
        self._start, self._goal, self._most = start, goal, most

    def _levels(self, *, total: bool) -> Iterator[tuple[float, list[str]]]:
        """Yield each level's best path to the goal as (weight, ids). weight: of all steps if *total*, else the last."""
        level: dict[Any, tuple[float, list[str], list[Any]]] = {self._start: (0.0, [], [self._start])}
        for _ in range(self._most):
            following: dict[Any, tuple[float, list[str], list[Any]]] = {}
            for place, (weight, ids, places) in level.items():
                for cost, id, target in self._edges.get(place, ()):
                    reached = weight + cost if total else cost
                    best = following.get(target)
                    if target not in places and (best is None or (reached, id) < (best[0], best[1][-1])):
                        following[target] = (reached, [*ids, id], [*places, target])
            if not following:
                return
            if self._goal in following:
                yield following[self._goal][:2]
            level = following


class _FewestSteps(_Ways):
    """The edge ids of the path of fewest edges from start to goal, as a JSON array; NULL if there is none."""

    def finalize(self) -> str | None:
        return next((json.dumps(ids) for _, ids in self._levels(total=False)), None)


class _CheapestSteps(_Ways):
    """The edge ids of the path of least total weight from start to goal, as a JSON array; NULL if there is none."""

    def finalize(self) -> str | None:
        ways = [(weight, len(ids), ids) for weight, ids in self._levels(total=True)]
        return json.dumps(min(ways)[2]) if ways else None
