"""Libraries that keep vectors in tables of their own."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import psycopg

from kimera_sql.vectors import DIMENSIONS, Vector

from .setting import CHUNK, METADATA, K, Peer, Setting


class Vecs(Peer):
    """A table of its own, with an index of its own on vectors in full precision."""

    name = "vecs"
    slow = True

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        import vecs

        super().__init__(setting, stack)
        client = vecs.create_client(setting.url("psycopg2").render_as_string(hide_password=False))
        stack.callback(client.disconnect)
        self.ef_search = int(setting.settings.get("hnsw.ef_search", 40))
        self.states = client.get_or_create_collection("geoids", dimension=DIMENSIONS)
        if setting.ids:
            names = list(map(str, setting.ids))
            self.states.upsert(zip(names, setting.rows, [METADATA] * len(names), strict=True))
            self.states.create_index(measure=vecs.IndexMeasure.cosine_distance, method=vecs.IndexMethod.hnsw)

    def insert_many(self, count: int) -> None:
        self.states.upsert((str(uuid4()), row, METADATA) for row in self.setting.rows[:count])

    def pooled_similar(self, number: int) -> list[Any]:
        found: list[Any] = self.states.query(
            self.setting.query(number), K, include_value=True, include_metadata=True, ef_search=self.ef_search
        )
        return found

    def pooled_get(self, number: int) -> Any:
        return self.states[str(self.setting.id(number))]

    def get_many(self, number: int) -> list[Any]:
        found: list[Any] = self.states.fetch(map(str, self.setting.some_ids(number)))
        return found


class LangchainPostgres(Peer):
    """Tables of its own, with an index on vectors in full precision, which it leaves to its user to make."""

    name = "langchain-postgres"
    slow = True

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        from langchain_core.embeddings import DeterministicFakeEmbedding
        from langchain_postgres.vectorstores import PGVector

        super().__init__(setting, stack)
        self.states = PGVector(
            DeterministicFakeEmbedding(size=DIMENSIONS),  # never asked: the vectors are given
            connection=setting.url("psycopg").render_as_string(hide_password=False),
            embedding_length=DIMENSIONS,
            collection_name="geoids",
            create_extension=False,
        )
        if setting.ids:
            for start in range(0, len(setting.ids), CHUNK):
                self._add(setting.rows[start : start + CHUNK], list(map(str, setting.ids[start : start + CHUNK])))
            with psycopg.connect(setting.conninfo) as conn:
                conn.execute("CREATE INDEX ON langchain_pg_embedding USING hnsw (embedding vector_cosine_ops)")

    def _add(self, rows: Vector, ids: list[str]) -> None:
        self.states.add_embeddings([""] * len(rows), list(rows), [METADATA] * len(rows), ids)

    def insert_many(self, count: int) -> None:
        for start in range(0, count, CHUNK):
            rows = self.setting.rows[start : min(start + CHUNK, count)]
            self._add(rows, [str(uuid4()) for _ in rows])

    def pooled_similar(self, number: int) -> list[Any]:
        found: list[Any] = self.states.similarity_search_with_score_by_vector(list(self.setting.query(number)), K)
        return found

    def get_many(self, number: int) -> list[Any]:
        found: list[Any] = self.states.get_by_ids(list(map(str, self.setting.some_ids(number))))
        return found
