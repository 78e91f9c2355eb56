"""What the tests of the entities compare with, in plain Python."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray

IntegrityErrors: Final = (psycopg.IntegrityError, sqlite3.IntegrityError)
"""What each driver raises for a key that is taken or missing."""

START: Final = datetime(2024, 5, 17, 12, 30, tzinfo=UTC)
ABSENT: Final = UUID(int=2**128 - 1)
"""An id that no row has."""

BAD_LIMITS: Final[tuple[Any, ...]] = (0, -1, True, 1.5, 2**31, "1", None)
BAD_IDS: Final[tuple[Any, ...]] = ("x", str(ABSENT), 5, None)
BAD_TEXTS: Final[tuple[Any, ...]] = ("a\0b", "\ud800", b"a", 5)
BAD_NUMBERS: Final[tuple[Any, ...]] = (float("nan"), float("inf"), -float("inf"), 10**400, True, 1j, "1")
BAD_INTEGERS: Final[tuple[Any, ...]] = (1.0, True, 2**31, -(2**31) - 1, "1", None)
BAD_MOMENTS: Final[tuple[Any, ...]] = (
    START.replace(tzinfo=None),
    START.date(),
    START.isoformat(),
    0,
)
BAD_SPANS: Final[tuple[Any, ...]] = (
    timedelta(0),
    timedelta(-1),
    timedelta.max,
    1,
    float("nan"),
    "1 day",
    None,
)
BAD_OBJECTS: Final[tuple[Any, ...]] = (
    [],
    "{}",
    0,
    {"a": float("nan")},
    {"a": {1}},
    {"a": START},
    {"a": "\0"},
    {"\0": 1},
    {"a": ["\ud800"]},
)
BAD_VECTORS: Final[tuple[Any, ...]] = (
    None,
    [],
    "vector",
    np.ones(3, np.float32),
    np.ones((1, 1024), np.float32),
    np.zeros(1024, np.float32),
    np.full(1024, np.nan),
    [*[1.0] * 1023, float("inf")],
    np.full(1024, 1e30),
    ["1"] * 1024,
)


def seconds(count: float) -> datetime:
    """A moment *count* seconds after START."""
    return START + timedelta(seconds=count)


def near(value: float) -> Any:
    """Equal to what differs from *value* by rounding alone."""
    return pytest.approx(value, rel=1e-9, abs=1e-6)


def same_json(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same; JSONB writes a big float in full, so that it comes back as an int."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same_json(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same_json, one, other))
    if {type(one), type(other)} == {int, float}:
        return float(one) == float(other)
    return type(one) is type(other) and bool(one == other)


def contains(whole: Any, part: Any) -> bool:
    """What PostgreSQL's @> says of two JSON values inside an object."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            key in whole and contains(whole[key], value) for key, value in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and all(any(contains(item, value) for item in whole) for value in part)
    return same_json(whole, part)


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The cosine similarity of two vectors, in double precision."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def assert_stored(new: Any, stored: Any) -> None:
    """Assert that *stored* has everything of *new*, and an id and a time of its own where *new* gives none."""
    for field in fields(new):
        given, found = getattr(new, field.name), getattr(stored, field.name)
        if given is None and field.name == "id":
            assert isinstance(found, UUID)
        elif given is None and field.name in ("timestamp", "creation_timestamp"):
            assert found.utcoffset() is not None
        elif isinstance(given, np.ndarray):
            assert (found.dtype, found.shape, found.flags.writeable) == (np.float32, (1024,), False)
            np.testing.assert_array_equal(found, given)
        elif isinstance(given, dict):
            assert same_json(given, found)
        elif isinstance(given, list):
            assert found == tuple(given)
        else:
            assert (type(found), found) == (type(given), given)


def assert_nearest(found: list[tuple[UUID, float]], expected: Iterable[tuple[UUID, float]], k: int) -> None:
    """Assert that *found* are the ids and similarities of the *k* most similar of *expected*, save for ties."""
    similarities = dict(expected)
    best = sorted(similarities.values(), reverse=True)[:k]
    assert [similarity for _, similarity in found] == sorted((similarity for _, similarity in found), reverse=True)
    np.testing.assert_allclose([similarity for _, similarity in found], best, rtol=0, atol=1e-6)
    np.testing.assert_allclose([similarities[id] for id, _ in found], best, rtol=0, atol=1e-6)
    assert len({id for id, _ in found}) == len(best)


def clustered(rows: int, seed: int = 0) -> NDArray[np.float32]:
    """Vectors that are hard to search: clusters of unequal size, which overlap, and noise in every direction."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((60, 1024))
    shares = 1 / np.arange(1, 61)
    cluster = random.choice(60, rows, p=shares / shares.sum())
    within = random.standard_normal((rows, 24)) @ random.standard_normal((24, 1024)) / np.sqrt(24)
    noise = random.standard_normal((rows, 1024))
    vectors: NDArray[np.float32] = (0.5 * centres[cluster] + within + 0.4 * noise).astype(np.float32)
    return vectors


def cosines(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """The cosine similarity of each of *queries*, a row each, to each of *vectors*, a column each."""
    one, other = queries.astype(np.float64), vectors.astype(np.float64)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    return one @ other.T


def shares_found(found: Sequence[Sequence[float]], similarities: NDArray[np.float64], k: int) -> list[float]:
    """The share of the *k* nearest that each query found, by the similarities of its hits and of all; ties count."""
    assert {len(one) for one in found} == {k}
    worst = np.sort(similarities, axis=1)[:, -k]
    return [float(np.mean(np.array(one) >= least - 1e-5)) for one, least in zip(found, worst, strict=True)]
