"""kimera_sql, synchronous and asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

import psycopg

from kimera_sql import Pool, Settings, add_adapters, aio, embeddings, geoids, metrics, open_pool
from kimera_sql.vectors import Vector

from .setting import CHUNK, CONNECTIONS, METADATA, METRIC, TAGS, Client, K, Peer, Setting, loop


def settings() -> Settings:
    return Settings(pool_size=CONNECTIONS, pool_overflow=0)


def state(vector: Vector, id: UUID | None = None) -> geoids.NewGeoid:
    return geoids.NewGeoid(
        id=id, state_vector=vector, entropy=0.5, coherence_factor=0.9, energy_level=1.2, metadata=METADATA, tags=TAGS
    )


class _Ours(Peer):
    """A connection in autocommit and a pool."""

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        self.conn: Client = psycopg.connect(setting.given(), autocommit=True)
        stack.callback(self.conn.close)
        add_adapters(self.conn)
        self.pool: Pool = stack.enter_context(open_pool(setting.given(), settings=settings()))

    @contextmanager
    def unsaved(self) -> Iterator[None]:
        with self.conn.transaction(force_rollback=True):
            yield

    def search(self, conn: Client, query: Vector) -> list[geoids.Hit]:
        return geoids.similar(conn, query, K)


class Ours(_Ours):
    name = "kimera_sql"

    def insert(self, number: int) -> geoids.Geoid:
        return geoids.insert(self.conn, state(self.setting.row(number)))

    def pooled_insert(self, number: int) -> geoids.Geoid:
        with self.pool.connection() as conn:
            return geoids.insert(conn, state(self.setting.row(number)))

    def record(self, number: int) -> metrics.Metric:
        name, value, component, context = METRIC
        return metrics.record(self.conn, name, value, component=component, context=context)

    def insert_many(self, count: int) -> None:
        geoids.insert_many(self.conn, map(state, self.setting.rows[:count]))

    def similar(self, number: int) -> list[geoids.Hit]:
        return self.search(self.conn, self.setting.query(number))

    def exact(self, number: int) -> list[geoids.Hit]:
        return geoids.similar(self.conn, self.setting.query(number), K, exact=True)

    def pooled_similar(self, number: int) -> list[geoids.Hit]:
        with self.pool.connection() as conn:
            return self.search(conn, self.setting.query(number))

    def get(self, number: int) -> geoids.Geoid:
        return geoids.get(self.conn, self.setting.id(number))

    def pooled_get(self, number: int) -> geoids.Geoid:
        with self.pool.connection() as conn:
            return geoids.get(conn, self.setting.id(number))

    def get_many(self, number: int) -> list[geoids.Geoid]:
        return geoids.get_many(self.conn, self.setting.some_ids(number))

    def stream(self, count: int) -> int:
        return sum(1 for _ in geoids.stream(self.conn, chunk=CHUNK))

    def many(self, number: int) -> list[Any]:
        return geoids.similar_many(self.conn, self.setting.some_queries(number), K)

    def checkout(self, number: int) -> Any:
        with self.pool.connection() as conn:
            return conn.execute("SELECT 1").fetchone()

    def hybrid(self, number: int) -> list[embeddings.Fused]:
        return embeddings.hybrid(self.conn, self.setting.text(number), self.setting.query(number), K)


class OursInTransaction(_Ours):
    """The same in a transaction of the caller's, on a connection of the pool's."""

    name = "kimera_sql, in a transaction"

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        self.conn = stack.enter_context(self.pool.connection())

    def similar(self, number: int) -> list[geoids.Hit]:
        return self.search(self.conn, self.setting.query(number))

    def get(self, number: int) -> geoids.Geoid:
        return geoids.get(self.conn, self.setting.id(number))


class OursUnordered(_Ours):
    name = "kimera_sql, unordered"

    def stream(self, count: int) -> int:
        return sum(1 for _ in geoids.stream(self.conn, ordered=False))


class OursOneByOne(_Ours):
    name = "kimera_sql, a loop"

    def many(self, number: int) -> list[Any]:
        return [self.search(self.conn, query) for query in self.setting.some_queries(number)]


class OursByPool(_Ours):
    name = "kimera_sql, a pool"

    def many(self, number: int) -> list[Any]:
        return geoids.similar_many(self.pool, self.setting.some_queries(number), K)


class OursAsynchronous(Peer):
    name = "kimera_sql.aio, tasks and a pool"

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        self.pool = loop.run_until_complete(aio.open_pool(setting.given(), settings=settings()))
        stack.callback(lambda: loop.run_until_complete(self.pool.close()))

    async def many(self, number: int) -> list[Any]:
        async def search(query: Vector) -> list[Any]:
            async with self.pool.connection() as conn:
                return await aio.geoids.similar(conn, query, K)

        return list(await asyncio.gather(*map(search, self.setting.some_queries(number))))
