"""asyncpg with the pgvector client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from psycopg.conninfo import conninfo_to_dict

from kimera_sql.vectors import Vector

from .setting import (
    CHUNK,
    COLUMNS,
    CONNECTIONS,
    GET,
    GET_MANY,
    INSERT,
    METADATA,
    METRIC,
    RECORD,
    SIMILAR,
    STREAM,
    TAGS,
    Peer,
    Setting,
    loop,
)


class Asyncpg(Peer):
    name = "asyncpg and pgvector's client"

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        import asyncpg
        from pgvector.asyncpg import register_vector

        async def prepare(conn: Any) -> None:
            await register_vector(conn)
            await conn.set_type_codec(
                "jsonb",
                encoder=lambda value: b"\x01" + json.dumps(value).encode(),
                decoder=lambda data: json.loads(data[1:]),
                schema="pg_catalog",
                format="binary",
            )

        async def connect() -> tuple[Any, Any]:
            given = conninfo_to_dict(setting.conninfo)
            names = {"host": "host", "port": "port", "user": "user", "password": "password", "database": "dbname"}
            options = {
                "server_settings": {**setting.every, **setting.settings},
                **{name: given[theirs] for name, theirs in names.items() if theirs in given},
            }
            conn = await asyncpg.connect(**options)
            await prepare(conn)
            pool = await asyncpg.create_pool(**options, min_size=CONNECTIONS, max_size=CONNECTIONS, init=prepare)
            return conn, pool

        super().__init__(setting, stack)
        self.conn, self.pool = loop.run_until_complete(connect())
        stack.callback(lambda: loop.run_until_complete(self.pool.close()))
        stack.callback(lambda: loop.run_until_complete(self.conn.close()))

    @contextmanager
    def unsaved(self) -> Iterator[None]:
        transaction = self.conn.transaction()
        loop.run_until_complete(transaction.start())
        try:
            yield
        finally:
            loop.run_until_complete(transaction.rollback())

    async def insert(self, number: int) -> Any:
        return await self._insert(self.conn, number)

    async def pooled_insert(self, number: int) -> Any:
        async with self.pool.acquire() as conn:
            return await self._insert(conn, number)

    async def _insert(self, conn: Any, number: int) -> Any:
        return await conn.fetchrow(INSERT, self.setting.row(number), METADATA, 0.5, 0.9, 1.2, TAGS)

    async def record(self, number: int) -> Any:
        return await self.conn.fetchrow(RECORD, *METRIC)

    async def insert_many(self, count: int) -> None:
        now = datetime.now(UTC)
        await self.conn.copy_records_to_table(
            "geoid_states",
            columns=[*COLUMNS.split(", "), "state_vector"],
            records=((uuid4(), now, METADATA, 0.5, 0.9, 1.2, None, TAGS, row) for row in self.setting.rows[:count]),
        )

    async def similar(self, number: int) -> list[Any]:
        return await self._search(self.conn, self.setting.query(number))

    async def pooled_similar(self, number: int) -> list[Any]:
        async with self.pool.acquire() as conn:
            return await self._search(conn, self.setting.query(number))

    async def _search(self, conn: Any, query: Vector) -> list[Any]:
        rows: list[Any] = await conn.fetch(SIMILAR, query, self.setting.candidates)
        return rows

    async def get(self, number: int) -> Any:
        return await self._get(self.conn, number)

    async def pooled_get(self, number: int) -> Any:
        async with self.pool.acquire() as conn:
            return await self._get(conn, number)

    async def _get(self, conn: Any, number: int) -> Any:
        row = await conn.fetchrow(GET, self.setting.id(number))
        return row, row["state_vector"].to_numpy()

    async def get_many(self, number: int) -> list[Any]:
        ids = self.setting.some_ids(number)
        rows = await self.conn.fetch(GET_MANY, ids)
        found = {row["id"]: (row, row["state_vector"].to_numpy()) for row in rows}
        return [found[id] for id in ids]

    async def stream(self, count: int) -> int:
        async with self.conn.transaction():
            rows: AsyncIterator[Any] = self.conn.cursor(STREAM, prefetch=CHUNK)
            return sum([1 async for row in rows if row["state_vector"].to_numpy() is not None])

    async def many(self, number: int) -> list[Any]:
        async def search(query: Vector) -> list[Any]:
            async with self.pool.acquire() as conn:
                return await self._search(conn, query)

        return list(await asyncio.gather(*map(search, self.setting.some_queries(number))))

    async def checkout(self, number: int) -> Any:
        async with self.pool.acquire() as conn:
            return await conn.fetchval("SELECT 1")
