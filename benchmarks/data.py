"""Vectors for the benchmarks: made ones that are hard to search, or those of a file; and the truth about them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kimera_sql.search import measures
from kimera_sql.vectors import DIMENSIONS, Vector

_ROWS_PER_CLUSTER = 100
_LATENT_DIMENSIONS = 64
_SPREAD = 2.0
_FALL = 0.3
_NOISE = 0.5
_CHUNK = 4096


@dataclass(frozen=True)
class Data:
    """Vectors of length 1 and shape (n, 1024).

    rows: what the table holds. queries: what is searched for, none of them a row. fresh: rows to be inserted later.
    """

    name: str
    rows: Vector
    queries: Vector
    fresh: Vector


class UnusableFile(Exception):
    """The file of --vectors cannot be used."""


def made(rows: int, queries: int, fresh: int, seed: int) -> Data:
    """Return vectors that are hard to search: clusters of unequal size that run into one another.

    All lie near one space of few dimensions. The sizes of the clusters follow a power law. Within a cluster the
    vectors spread wider than the centres do, each cluster in directions of its own. Queries are drawn as rows are.
    """
    random = np.random.default_rng(seed)
    total = rows + queries + fresh
    clusters = max(rows // _ROWS_PER_CLUSTER, 8)
    weights = 1 / np.arange(1, clusters + 1)
    cluster_of = random.choice(clusters, size=total, p=weights / weights.sum())
    spread = np.arange(1, _LATENT_DIMENSIONS + 1) ** -_FALL
    spread *= _SPREAD * np.sqrt(_LATENT_DIMENSIONS) / np.linalg.norm(spread)
    embedding = random.standard_normal((_LATENT_DIMENSIONS, DIMENSIONS), dtype=np.float32)
    vectors = _NOISE * math.sqrt(_LATENT_DIMENSIONS) * random.standard_normal((total, DIMENSIONS), dtype=np.float32)
    for cluster in range(clusters):
        members = np.flatnonzero(cluster_of == cluster)
        centre = random.standard_normal(_LATENT_DIMENSIONS)
        around = random.standard_normal((len(members), _LATENT_DIMENSIONS)) * random.permutation(spread)
        vectors[members] += (centre + around).astype(np.float32) @ embedding
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Data(f"made, seed {seed}", vectors[:rows], vectors[rows : rows + queries], vectors[rows + queries :])


def loaded(path: Path, rows: int, queries: int, fresh: int, seed: int) -> Data:
    """Return the vectors of *path*: .npy, .npz (`embeddings`, perhaps `queries`) or .hdf5 (`train`, `test`).

    What the file lacks of *queries* and *fresh* ones is taken from its rows, at most a tenth of them for each.
    Raises UnusableFile.
    """
    every, asked = _read(path)
    for array in (every, asked):
        if array.ndim != 2 or array.shape[1] > DIMENSIONS:
            raise UnusableFile(f"{path}: expected rows of at most {DIMENSIONS} dimensions, got shape {array.shape}")
    random = np.random.default_rng(seed)
    rotation = _rotation(random, every.shape[1]) if every.shape[1] < DIMENSIONS else None
    order = random.permutation(len(every))
    few = max(len(every) // 10, 1)
    if not len(asked):
        taken, order = np.split(order, [min(queries, few)])
        asked = every[np.sort(taken)]
    rows = min(rows, len(order) - min(fresh, few))
    kept, later = np.sort(order[:rows]), np.sort(order[rows : rows + fresh])
    return Data(
        path.name,
        _turned(every[kept], rotation),
        _turned(asked[:queries], rotation),
        _turned(every[later], rotation),
    )


def multiplied(rows: Vector, count: int) -> Vector:
    """Return *count* vectors: *rows*, and copies of each, moved to where a row could be (see measures.moved)."""
    if count > len(rows) * (measures.NEIGHBOURS + 1):
        raise UnusableFile(
            f"{len(rows):,} rows give at most {len(rows) * (measures.NEIGHBOURS + 1):,} with their copies"
        )
    if count <= len(rows):
        return rows[:count]
    near = np.empty((len(rows), measures.NEIGHBOURS), dtype=np.int64)
    for number, cosines in enumerate(similarities(rows, rows)):
        cosines[number] = -1
        few = np.argpartition(-cosines, measures.NEIGHBOURS)[: measures.NEIGHBOURS]
        near[number] = few[np.argsort(-cosines[few])]
    every = np.empty((count, DIMENSIONS), dtype=np.float32)
    every[: len(rows)] = rows
    for number in range(len(rows), count):
        copy, row = divmod(number, len(rows))
        every[number] = measures.moved(rows[row], list(rows[near[row]]), copy)
    return every


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    match path.suffix:
        case ".npy":
            every = np.load(path)
            return every, every[:0]
        case ".npz":
            with np.load(path) as arrays:
                if "embeddings" not in arrays:
                    raise UnusableFile(f"{path}: has no array `embeddings`")
                every = arrays["embeddings"]
                return every, arrays["queries"] if "queries" in arrays else every[:0]
        case ".hdf5" | ".h5":
            import h5py

            with h5py.File(path) as arrays:
                if "train" not in arrays or "test" not in arrays:
                    raise UnusableFile(f"{path}: has no datasets `train` and `test`")
                return arrays["train"][:], arrays["test"][:]
    raise UnusableFile(f"{path}: expected .npy, .npz or .hdf5")


def _rotation(random: np.random.Generator, dimensions: int) -> Vector:
    # Padded with zeros alone, most components would have no sign that binary quantisation could tell.
    turned, _ = np.linalg.qr(random.standard_normal((DIMENSIONS, DIMENSIONS)))
    rotation: Vector = turned[:dimensions].astype(np.float32)
    return rotation


def _turned(vectors: NDArray[Any], rotation: Vector | None) -> Vector:
    """Return *vectors* of length 1, with a *rotation* padded with zeros to 1024 dimensions; every cosine is kept."""
    turned = np.empty((len(vectors), DIMENSIONS), dtype=np.float32)
    for start in range(0, len(vectors), _CHUNK):
        part = vectors[start : start + _CHUNK].astype(np.float32)
        turned[start : start + _CHUNK] = part if rotation is None else part @ rotation
    norms = np.linalg.norm(turned, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        raise UnusableFile("zero or infinite vectors have no cosine")
    turned /= norms
    return turned


def similarities(rows: Vector, queries: Vector) -> Iterator[Vector]:
    """Yield the cosines of each of *queries* with all *rows*."""
    for start in range(0, len(queries), 64):
        yield from queries[start : start + 64] @ rows.T


def nearest(rows: Vector, queries: Vector, k: int) -> Vector:
    """Return the cosines of the *k* nearest to each of *queries*, the greatest first: shape (queries, k or fewer)."""
    k = min(k, len(rows))
    return np.stack([-np.sort(np.partition(-row, k - 1)[:k]) for row in similarities(rows, queries)])


def contrast(rows: Vector, queries: Vector) -> float:
    """Return how many times farther a row is on average than the 10th nearest, by cosine distance; 1 is hardest."""
    ratios = []
    for row in similarities(rows, queries[:100]):
        tenth = np.partition(row, -10)[-10]
        ratios.append((1 - row.mean()) / max(1 - tenth, 1e-9))
    return float(np.median(ratios))
