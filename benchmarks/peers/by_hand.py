"""psycopg by hand, with its own means and with the pgvector client."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import numpy as np
import psycopg
from pgvector.psycopg.vector import register_vector_info
from psycopg.adapt import Dumper, Loader
from psycopg.postgres import types
from psycopg.pq import Format
from psycopg.types import TypeInfo
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from kimera_sql.vectors import DIMENSIONS, Vector

from .setting import (
    BYTES,
    CHUNK,
    CONNECTIONS,
    COPY_IN,
    COPY_OUT,
    EXACT,
    GET,
    GET_MANY,
    HYBRID,
    INSERT,
    METADATA,
    METRIC,
    RECORD,
    SIMILAR,
    STREAM,
    TAGS,
    TYPES,
    Client,
    Peer,
    Setting,
    loop,
)

AsyncClient: TypeAlias = psycopg.AsyncConnection[Any]


class _Dumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Vector) -> bytes:
        return b"\x04\x00\x00\x00" + obj.astype(">f4").tobytes()


class _Loader(Loader):
    format = Format.BINARY

    def load(self, data: Any) -> Vector:
        return np.frombuffer(data, ">f4", offset=4).astype(np.float32)


class _Ids(list[UUID]):
    """What is sent as UUID[] in binary; psycopg sends a list as text, at several times the cost."""


class _IdsDumper(Dumper):
    format = Format.BINARY
    oid = types["uuid"].array_oid

    def dump(self, obj: _Ids) -> bytes:
        return struct.pack(">iiIii", 1, 0, types["uuid"].oid, len(obj), 1) + b"".join(_field(id.bytes) for id in obj)


class _Psycopg(Peer):
    """A connection in autocommit, and a pool, of a plain psycopg."""

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        with psycopg.connect(setting.conninfo) as conn:
            self.vector = TypeInfo.fetch(conn, "vector")
        self.conn = self.connect(setting.tuned)

    def teach(self, conn: Client | AsyncClient) -> None:
        """Teach *conn* vectors, without a check of anything."""
        assert self.vector is not None  # noqa: S101 - the schema has it
        self.vector.register(conn)
        conn.adapters.register_dumper(np.ndarray, type("Dumper", (_Dumper,), {"oid": self.vector.oid}))
        conn.adapters.register_loader(self.vector.oid, _Loader)
        conn.adapters.register_dumper(_Ids, _IdsDumper)

    def connect(self, conninfo: str) -> Client:
        conn: Client = psycopg.connect(conninfo, autocommit=True, cursor_factory=psycopg.RawCursor)
        self.stack.callback(conn.close)
        self.teach(conn)
        return conn

    def open_pool(self, *, autocommit: bool = False, **options: Any) -> ConnectionPool[Client]:
        return self.stack.enter_context(
            ConnectionPool(
                self.setting.tuned,
                kwargs={"cursor_factory": psycopg.RawCursor, "autocommit": autocommit},
                configure=self.teach,
                min_size=CONNECTIONS,
                **options,
            )
        )

    @contextmanager
    def unsaved(self) -> Iterator[None]:
        with self.conn.transaction(force_rollback=True):
            yield

    def send(self, conn: Client, query: Vector) -> psycopg.Cursor[Any]:
        return conn.execute(SIMILAR, (query, self.setting.candidates), prepare=True, binary=True)

    def search(self, conn: Client, query: Vector) -> list[Any]:
        return self.send(conn, query).fetchall()


class ByHand(_Psycopg):
    """The floor: the statement that is needed and no more, prepared, in binary, in one round trip."""

    name = "psycopg by hand"

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        self.pool = self.open_pool()
        self.deep = self.connect(setting.given(**setting.deep))
        self.prepared = [] if setting.ids else list(copied(setting.rows))

    def insert(self, number: int) -> Any:
        return self._insert(self.conn, number)

    def pooled_insert(self, number: int) -> Any:
        with self.pool.connection() as conn:
            return self._insert(conn, number)

    def _insert(self, conn: Client, number: int) -> Any:
        given = (self.setting.row(number), Jsonb(METADATA), 0.5, 0.9, 1.2, TAGS)
        return conn.execute(INSERT, given, prepare=True, binary=True).fetchone()

    def record(self, number: int) -> Any:
        name, value, component, context = METRIC
        given = (name, value, component, Jsonb(context))
        return self.conn.execute(RECORD, given, prepare=True, binary=True).fetchone()

    def insert_many(self, count: int) -> None:
        """COPY bytes that were prepared beforehand: what the server can take."""
        with self.conn.cursor().copy(COPY_IN) as copy:
            for part in self.prepared:
                copy.write(part)

    def similar(self, number: int) -> list[Any]:
        return self.search(self.conn, self.setting.query(number))

    def exact(self, number: int) -> list[Any]:
        """As one writes it: the rows, sorted by their distance."""
        return self.conn.execute(EXACT, (self.setting.query(number),), prepare=True, binary=True).fetchall()

    def pooled_similar(self, number: int) -> list[Any]:
        with self.pool.connection() as conn:
            return self.search(conn, self.setting.query(number))

    def get(self, number: int) -> Any:
        return self.conn.execute(GET, (self.setting.id(number),), prepare=True, binary=True).fetchone()

    def pooled_get(self, number: int) -> Any:
        with self.pool.connection() as conn:
            return conn.execute(GET, (self.setting.id(number),), prepare=True, binary=True).fetchone()

    def get_many(self, number: int) -> list[Any]:
        ids = self.setting.some_ids(number)
        found = {row[0]: row for row in self.conn.execute(GET_MANY, (_Ids(ids),), prepare=True, binary=True)}
        return [found[id] for id in ids]

    def stream(self, count: int) -> int:
        """COPY TO, and the rows as Python's values."""
        with self.conn.cursor().copy(COPY_OUT) as copy:
            copy.set_types(TYPES)
            return sum(1 for _ in copy.rows())

    def many(self, number: int) -> list[Any]:
        return [self.search(self.conn, query) for query in self.setting.some_queries(number)]

    def checkout(self, number: int) -> Any:
        with self.pool.connection() as conn:
            return conn.execute("SELECT 1").fetchone()

    def hybrid(self, number: int) -> list[Any]:
        given = (self.setting.query(number), self.setting.text(number), self.setting.deep_candidates)
        return self.deep.execute(HYBRID, given, prepare=True, binary=True).fetchall()


def copied(rows: Vector) -> Iterator[bytes]:
    """Yield what COPY BINARY takes for *rows*, in large pieces."""
    now = int((datetime.now(UTC) - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1e6)
    tags = struct.pack(">iiiii", 1, 0, 25, len(TAGS), 1) + b"".join(_field(tag.encode()) for tag in TAGS)
    between = b"".join(
        map(
            _field,
            (
                struct.pack(">q", now),
                b"\x01" + json.dumps(METADATA).encode(),
                *(struct.pack(">d", value) for value in (0.5, 0.9, 1.2)),
                None,
                tags,
            ),
        )
    )
    parts = bytearray(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    for row in rows:
        vector = _field(struct.pack(">HH", DIMENSIONS, 0) + row.astype(">f4").tobytes())
        parts += struct.pack(">h", len(TYPES)) + _field(uuid4().bytes) + between + vector
        if len(parts) > BYTES:
            yield bytes(parts)
            parts.clear()
    yield bytes(parts + b"\xff\xff")


def _field(value: bytes | None) -> bytes:
    return struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value


class Autocommit(_Psycopg):
    """The same with a pool of connections in autocommit, which spares BEGIN and COMMIT."""

    name = "psycopg by hand, pool in autocommit"

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        self.pool = self.open_pool(autocommit=True)

    def pooled_similar(self, number: int) -> list[Any]:
        with self.pool.connection() as conn:
            return self.search(conn, self.setting.query(number))


class Pinging(_Psycopg):
    """The same with psycopg_pool's own check of each connection that is taken."""

    name = "psycopg by hand, pool with a check"

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        self.pool = self.open_pool(check=ConnectionPool.check_connection)

    def checkout(self, number: int) -> Any:
        with self.pool.connection() as conn:
            return conn.execute("SELECT 1").fetchone()


class Pipelined(_Psycopg):
    """The same in psycopg's pipeline mode."""

    name = "psycopg by hand, in a pipeline"

    def many(self, number: int) -> list[Any]:
        with self.conn.pipeline():
            cursors = [self.send(self.conn, query) for query in self.setting.some_queries(number)]
        return [cursor.fetchall() for cursor in cursors]


class Asynchronous(_Psycopg):
    """The same by tasks, which share a pool."""

    name = "psycopg by hand, tasks and a pool"

    def __init__(self, setting: Setting, stack: ExitStack) -> None:
        super().__init__(setting, stack)
        self.tasks_pool = loop.run_until_complete(self._open())
        stack.callback(lambda: loop.run_until_complete(self.tasks_pool.close()))

    async def _open(self) -> AsyncConnectionPool[AsyncClient]:
        async def configure(conn: AsyncClient) -> None:
            self.teach(conn)

        pool: AsyncConnectionPool[AsyncClient] = AsyncConnectionPool(
            self.setting.tuned,
            kwargs={"cursor_factory": psycopg.AsyncRawCursor},
            configure=configure,
            min_size=CONNECTIONS,
            open=False,
        )
        await pool.open(wait=True)
        return pool

    async def many(self, number: int) -> list[Any]:
        async def search(query: Vector) -> list[Any]:
            async with self.tasks_pool.connection() as conn:
                given = (query, self.setting.candidates)
                return await (await conn.execute(SIMILAR, given, prepare=True, binary=True)).fetchall()

        return list(await asyncio.gather(*map(search, self.setting.some_queries(number))))


class Unread(_Psycopg):
    """COPY TO, of which nothing is read but the bytes."""

    name = "psycopg by hand, bytes of COPY TO"

    def stream(self, count: int) -> int:
        with self.conn.cursor().copy(COPY_OUT) as copy:
            return sum(1 for _ in copy)


class Ordered(_Psycopg):
    """A cursor in the order of kimera_sql's stream."""

    name = "psycopg by hand, ordered cursor"

    def stream(self, count: int) -> int:
        with self.conn.transaction(), psycopg.ServerCursor(self.conn, "ordered") as cursor:
            cursor.itersize = CHUNK
            cursor.execute(f"{STREAM} ORDER BY timestamp, id", binary=True)
            return sum(1 for _ in cursor)


class PgvectorClient(_Psycopg):
    """The same statements with the pgvector client's adapters, and arrays as results."""

    name = "psycopg and pgvector's client"

    def teach(self, conn: Client | AsyncClient) -> None:
        register_vector_info(conn, self.vector)

    def insert(self, number: int) -> Any:
        given = (self.setting.row(number), Jsonb(METADATA), 0.5, 0.9, 1.2, TAGS)
        return self.conn.execute(INSERT, given, prepare=True, binary=True).fetchone()

    def insert_many(self, count: int) -> None:
        now = datetime.now(UTC)
        with self.conn.cursor().copy(COPY_IN) as copy:
            copy.set_types(TYPES)
            for row in self.setting.rows[:count]:
                copy.write_row((uuid4(), now, Jsonb(METADATA), 0.5, 0.9, 1.2, None, TAGS, row))

    def similar(self, number: int) -> list[Any]:
        return self.search(self.conn, self.setting.query(number))

    def get(self, number: int) -> Any:
        row = self.conn.execute(GET, (self.setting.id(number),), prepare=True, binary=True).fetchone()
        return row and (*row[:-1], row[-1].to_numpy())

    def get_many(self, number: int) -> list[Any]:
        ids = self.setting.some_ids(number)
        rows = self.conn.execute(GET_MANY, (ids,), prepare=True, binary=True)
        found = {row[0]: (*row[:-1], row[-1].to_numpy()) for row in rows}
        return [found[id] for id in ids]

    def stream(self, count: int) -> int:
        with self.conn.transaction(), psycopg.ServerCursor(self.conn, "unordered") as cursor:
            cursor.itersize = CHUNK
            cursor.execute(STREAM, binary=True)
            return sum(1 for row in cursor if row[-1].to_numpy() is not None)
