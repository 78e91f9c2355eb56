"""Hits that are unlike each other: maximal marginal relevance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..vectors import Vector


def most_marginal(vectors: Sequence[Vector], relevance: NDArray[Any], k: int, diversity: float) -> list[int]:
    """Return the places of *k* of *vectors* by maximal marginal relevance, the most relevant first.

    Each next one has the greatest (1 - diversity) * similarity - diversity * (similarity to the nearest one taken):
    Carbonell and Goldstein, The Use of MMR, SIGIR 1998. *relevance*: the similarity of each, shape (len(vectors),).
    """
    if not vectors:
        return []
    directions = np.stack(vectors).astype(np.float64)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    taken: list[int] = []
    nearest_taken = np.zeros(len(vectors))
    for _ in range(min(k, len(vectors))):
        worth = (1 - diversity) * relevance - diversity * nearest_taken
        worth[taken] = -np.inf
        best = int(worth.argmax())
        to_best = directions @ directions[best]
        nearest_taken = np.maximum(nearest_taken, to_best) if taken else to_best
        taken.append(best)
    return taken
