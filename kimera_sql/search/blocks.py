"""The arithmetic of pairs: which rows of a block are similar to which later ones, exactly. It runs no SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

Places: TypeAlias = NDArray[np.int32]
Vectors: TypeAlias = NDArray[np.float32]
Similarities: TypeAlias = NDArray[np.float64]

_TILE: Final = 1024
"""Rows of a block that are compared at once."""

_MOST: Final = 4_000_000
"""Pairs that a block holds, 16 bytes each. With more it gives up rows, which the next block takes."""

_VERIFIED: Final = 256
"""Pairs whose vectors are compared at once: 1 MB for each of the two sides stays in the processor's cache."""

_AXES: Final = (64, 128, 256, 512)
"""How many axes to try for the bounds."""

_FEW: Final = 1e-3
"""The share of all pairs that the bounds may leave: comparing whole vectors takes some 300 times as long."""

_WORTH_IT: Final = 1024
"""Rows from which on axes save more time than it takes to find them."""

_SAMPLE: Final = 2048
"""The axes are found with up to so many rows."""

_SLACK: Final = 1e-4
"""Bounds are made larger by this: in single precision they can be too small by some 1e-6."""

_SAME: Final = 1 - 1e-9
"""Vectors with such a similarity have the same direction: in double precision errors are some 1e-15."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The ids of two similar rows, the smaller one first, and their similarity: 1 - cosine distance."""

    first: UUID
    second: UUID
    similarity: float


class Block:
    """Some rows of a table, and the pairs whose first row is one of them.

    Each row has a place among all the rows, and the first row of a pair has the smaller place. Nearly all pairs are
    ruled out by a bound: for vectors of length 1, the cosine is at most p·q + rs, where p and q are their components
    along some axes, and r and s the lengths of what is left of them (by Cauchy and Schwarz). The axes are those along
    which the rows are longest (their principal components). Pairs that may be similar are compared in double precision.
    """

    def __init__(self, chunks: Sequence[tuple[Places, Vectors]], end: int, similarity: float) -> None:
        self.end = end
        """The place that the next block begins at."""
        self._places = np.concatenate([places for places, _ in chunks])
        self._vectors = np.concatenate([vectors for _, vectors in chunks])
        self._least = min(similarity, _SAME)
        self._axes = _axes(self._vectors[:: len(self._vectors) // _SAMPLE + 1], self._least)
        self._parts = _parts(self._vectors, self._axes)
        self._found = [(self._places[:0], self._places[:0], np.empty(0))]
        self._count = 0

    def compare(self, places: Places, vectors: Vectors) -> None:
        """Find the pairs with the rows at *places*, which ascend."""
        parts = _parts(vectors, self._axes).T
        row = 0
        while row < len(self._places) and np.any(self._places[row] < places):
            maybe = np.flatnonzero(self._parts[row : row + _TILE] @ parts >= self._least)
            first, second = np.divmod(maybe, len(places))
            first += row
            later = self._places[first] < places[second]
            first, second = first[later], second[later]
            for begin in range(0, len(first), _VERIFIED):
                one, other = first[begin : begin + _VERIFIED], second[begin : begin + _VERIFIED]
                similarities = _cosines(self._vectors[one], vectors[other])
                kept = similarities >= self._least
                self._found.append((self._places[one[kept]], places[other[kept]], similarities[kept]))
                self._count += int(np.count_nonzero(kept))
            while self._count > _MOST and len(self._places) > 1:
                self._halve()
            row += _TILE

    def pairs(self) -> tuple[Places, Places, Similarities]:
        """Return the places of the first rows, those of the second rows, and the similarities, in this order."""
        first, second, similarities = (np.concatenate(column) for column in zip(*self._found, strict=True))
        order = np.lexsort((second, first))
        return first[order], second[order], similarities[order]

    def _halve(self) -> None:
        """Give up the second half of the rows, with their pairs."""
        half = len(self._places) // 2
        self._places, self._vectors, self._parts = self._places[:half], self._vectors[:half], self._parts[:half]
        kept = [first <= self._places[-1] for first, _, _ in self._found]
        self._found = [
            (first[mine], second[mine], similarities[mine])
            for (first, second, similarities), mine in zip(self._found, kept, strict=True)
        ]
        self._count = sum(int(np.count_nonzero(mine)) for mine in kept)
        self.end = int(self._places[-1]) + 1


def _axes(sample: Vectors, least: float) -> Vectors:
    """Return the axes that bound the similarities of *sample* well enough, shape (dimensions, number)."""
    if len(sample) < _WORTH_IT:
        return np.eye(sample.shape[1], dtype=np.float32)
    units = _units(sample)
    _, axes = np.linalg.eigh(units.T @ units)  # along the last ones the rows are longest
    for number in _AXES:
        few = axes[:, -number:]
        parts = _parts(sample, few)
        maybe = parts[::2] @ parts[1::2].T >= least
        if np.count_nonzero(maybe) <= _FEW * maybe.size:
            return few
    return axes


def _parts(vectors: Vectors, axes: Vectors) -> Vectors:
    """Return the components of *vectors*, scaled to length 1, along *axes*, and the length of what is left."""
    along = _units(vectors) @ axes
    # The product of two of these lengths is larger by the slack or more (Cauchy and Schwarz again).
    left = np.sqrt(1 + _SLACK - np.einsum("ij,ij->i", along, along))
    return np.column_stack([along, left])


def _units(vectors: Vectors) -> Vectors:
    units: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def _cosines(one: Vectors, other: Vectors) -> Similarities:
    """Return the cosine of each of *one* with its counterpart in *other*."""
    return np.clip(_products(one, other) / np.sqrt(_products(one, one) * _products(other, other)), -1, 1)


def _products(one: Vectors, other: Vectors) -> Similarities:
    products: Similarities = np.einsum("ij,ij->i", one, other, dtype=np.float64)
    return products
