"""Searches in memory, without a database: ids and similarities, in one thread."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import numpy as np

from kimera_sql.vectors import DIMENSIONS, Vector

from .setting import K, Peer, Setting


class _InMemory(Peer):
    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        self.ef_search = int(setting.settings.get("hnsw.ef_search", 40))
        if setting.ids:
            self.find = self.prepare()

    def prepare(self) -> Callable[[Vector], tuple[Any, Any]]:
        """Build the index, and return what finds the numbers of the nearest rows, and their similarities."""
        raise NotImplementedError

    def similar(self, number: int) -> list[tuple[UUID, float]]:
        numbers, similarities = self.find(self.setting.query(number))
        return [
            (self.setting.ids[place], similarity)
            for place, similarity in zip(numbers.tolist(), similarities.tolist(), strict=True)
        ]


class Numpy(_InMemory):
    name = "numpy in memory, exact"

    def prepare(self) -> Callable[[Vector], tuple[Any, Any]]:
        def find(query: Vector) -> tuple[Any, Any]:
            cosines = self.setting.rows @ query
            best = np.argpartition(-cosines, K)[:K]
            best = best[np.argsort(-cosines[best])]
            return best, cosines[best]

        return find


class Faiss(_InMemory):
    name = "faiss in memory, HNSWFlat"

    def prepare(self) -> Callable[[Vector], tuple[Any, Any]]:
        import faiss

        index: Any = faiss.IndexHNSWFlat(DIMENSIONS, 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 64
        index.add(self.setting.rows)
        faiss.omp_set_num_threads(1)
        index.hnsw.efSearch = self.ef_search

        def find(query: Vector) -> tuple[Any, Any]:
            cosines, numbers = index.search(query[None], K)
            return numbers[0], cosines[0]

        return find


class Hnswlib(_InMemory):
    name = "hnswlib in memory"

    def prepare(self) -> Callable[[Vector], tuple[Any, Any]]:
        import hnswlib

        index: Any = hnswlib.Index("cosine", DIMENSIONS)
        index.init_index(len(self.setting.rows), M=16, ef_construction=64)
        index.add_items(self.setting.rows)
        index.set_num_threads(1)
        index.set_ef(self.ef_search)

        def find(query: Vector) -> tuple[Any, Any]:
            numbers, distances = index.knn_query(query, K)
            return numbers[0], 1 - distances[0]

        return find
