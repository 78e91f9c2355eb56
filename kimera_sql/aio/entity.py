"""What the five entities have in common: the same seven functions over queries of the same names."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar, get_type_hints
from uuid import uuid4

from .. import checks
from ..errors import InvalidValue, NotFound, SchemaError
from ..sql import arrow, plain
from ..sql.rows import decode, mapper
from ..tables import Table
from . import sql
from .sql import Connection
from .sql.postgres import CopyRefused
from .sql.run import noted

New = TypeVar("New")
Record = TypeVar("Record", bound="_Identified")
Id = TypeVar("Id")
T = TypeVar("T")


class _Identified(Protocol):
    @property
    def id(self) -> Any: ...


class Entity(Generic[New, Record, Id]):
    """The functions that a module of one entity offers as its own.

    queries: the entity's named queries.
    new: the dataclass of an item to insert.
    record: the dataclass of a whole row, its fields in the order of the columns.
    values: turns a new item into the columns to write, in the order of the query copy_in, or raises InvalidValue.
    identifier: checks an id.
    clock: the column that holds when a row was made, the server's clock unless given.
    vector: the vector column, if there is one; it is the record's last field and is not sent back by insert.
    copy_with_ids: the query of insert_as_they_are, copy_in unless that leaves the id out.
    advance_ids: the query that lets the ids which the database makes go on after those.
    """

    def __init__(
        self,
        queries: sql.Queries,
        new: type[New],
        record: type[Record],
        values: Callable[[New | Record], dict[str, Any]],
        identifier: Callable[[str, Id], Id],
        *,
        clock: str = "timestamp",
        vector: str | None = None,
        copy_with_ids: sql.Query | None = None,
        advance_ids: sql.Query | None = None,
    ) -> None:
        self._queries = queries
        self._new = new
        self.record = record
        self._columns = values
        self._identifier = identifier
        self._clock = clock
        self._vector = vector
        self._copy_with_ids = copy_with_ids or queries.copy_in
        self._advance_ids = advance_ids

    async def insert(self, conn: Connection, new: New) -> Record:
        """Insert *new* and return the row as it was stored.

        Raises InvalidValue (VectorError for a vector) before any SQL is sent, and SchemaError if a trigger or a rule of
        the table passes the row over.
        """
        return await self._write(conn, self._queries.insert, new)

    async def insert_many(self, conn: Connection, items: AsyncIterable[New] | Iterable[New]) -> int:
        """Insert *items*, all or none and on PostgreSQL by COPY where that can be, and return how many there were.

        *items* is read as it is sent, a few dozen at a time. An item that is refused here raises InvalidValue with
        the item's number, counted from 0; one that the server refuses raises the driver's error, with a note of the
        number where the server tells it. An error of *items* itself passes through, with a note of the number.
        """
        now = await self._queries.now.fetchval(conn, datetime)

        async def rows() -> AsyncIterator[dict[str, Any]]:
            async for values in self._rows(items, self._values):
                self._complete(values, now)
                yield values

        try:
            return await self._queries.copy_in.copy(conn, rows())
        except CopyRefused:
            return await self._queries.insert.copy(conn, rows())

    def _complete(self, values: dict[str, Any], now: datetime | None) -> None:
        """Give *values*, the columns to write, a new id and the time *now* where they have none."""
        if "id" in values and values["id"] is None:
            values["id"] = uuid4()
        if values[self._clock] is None:
            values[self._clock] = now

    def item(self, given: Mapping[str, Any]) -> New | Record:
        """Return the item that *given* is, values by name; ids and times can be text, and None counts as left out.

        It is a record only if it has an id that new items have no field for. Raises InvalidValue as insert_many.
        """
        return self._read(given)[0]

    def _read(self, given: Mapping[str, Any]) -> tuple[New | Record, dict[str, Any]]:
        """Return the item that *given* is, and its columns to write."""
        item = plain.item(self._new, self.record, given)
        values = self._values(item)
        if isinstance(item, self.record):
            self._identifier("id", item.id)
            if getattr(item, self._clock) is None:
                raise InvalidValue(f"{self._clock}: missing, while there is an id")
        return item, values

    async def existing_ids(self, conn: Connection, ids: Iterable[Id]) -> set[Id]:
        """Return those of *ids* that rows have."""
        kind = get_type_hints(self.record)["id"]
        found = await self._queries.existing_ids.fetchall(conn, ids=list(ids))
        return {decode(sql.dialect(conn), kind, id) for (id,) in found}

    async def insert_as_they_are(self, conn: Connection, records: AsyncIterable[Record] | Iterable[Record]) -> int:
        """Insert *records* with their ids and times, all or none, and return how many there were."""
        inserted = await self._copy_with_ids.copy(conn, self._rows(records, self._with_id))
        if self._advance_ids is not None:
            await self._advance_ids.fetchval(conn, int)
        return inserted

    async def get(self, conn: Connection, id: Id) -> Record:
        """Return the row of *id*. Raises NotFound."""
        found = await self._queries.find_by_id.fetchone(conn, self.record, id=self._identifier("id", id))
        if found is None:
            raise NotFound(f"no row has the id {id}")
        return found

    async def get_many(self, conn: Connection, ids: Iterable[Id]) -> list[Record]:
        """Return the rows of *ids* in their order; an id that no row has is left out, a repeated one repeats."""
        wanted = [self._identifier(f"ids[{number}]", id) for number, id in enumerate(ids)]
        records = await self._queries.find_by_ids.fetchall(conn, self.record, ids=list(dict.fromkeys(wanted)))
        found = {record.id: record for record in records}
        return [found[id] for id in wanted if id in found]

    async def delete(self, conn: Connection, id: Id) -> bool:
        """Delete the row of *id* and say whether there was one."""
        return await self._queries.delete_by_id.execute(conn, id=self._identifier("id", id)) == 1

    async def update(self, conn: Connection, query: sql.Query, kind: type[T], id: Id, **parameters: Any) -> T:
        """Run *query*, an UPDATE ... RETURNING of one column of *kind*, for the row of *id*. Raises NotFound."""
        value = await query.fetchval(conn, kind, id=self._identifier("id", id), **parameters)
        if value is None:
            raise NotFound(f"no row has the id {id}")
        return value

    async def count(self, conn: Connection) -> int:
        """Return the number of rows."""
        return await self._queries.count_all.fetchval(conn, int) or 0

    def stream(self, conn: Connection, *, chunk: int = 1000, ordered: bool = True) -> AsyncIterator[Record]:
        """Yield every row, the oldest first, *chunk* of them fetched at a time.

        PostgreSQL sends them from a server-side cursor, in one transaction that lasts until the iterator ends or is
        closed. They are the rows that there were when it began. What the caller writes meanwhile stays, even when the
        iterator is closed early. Raises InvalidValue if the transaction is committed or rolled back before that.

        Unless *ordered*, they come in the order in which they are stored, which is none to rely on, but faster.
        """
        make = mapper(sql.dialect(conn), self.record)
        query = self._queries.stream_all if ordered else self._queries.stream_unordered
        return self._made(query.stream(conn, chunk=checks.limit(chunk, "chunk")), make)

    async def _made(self, rows: AsyncIterator[sql.Row], make: Callable[[sql.Row], Record]) -> AsyncIterator[Record]:
        # Else the rows would be closed some time after the records, by whoever frees them.
        async with aclosing(rows):  # type: ignore[type-var]
            async for row in rows:
                yield make(row)

    async def insert_arrow(self, conn: Connection, data: arrow.ArrowData) -> int:
        """Insert the rows of *data*, all or none, and return how many there were; by name, as insert_many does.

        *data* is a Table, a RecordBatch or a RecordBatchReader of pyarrow, or another library's data frame that gives
        Arrow's stream; it is read as it is sent. Its columns are those of stream_arrow; what an item can leave out, a
        column or a null can too. Other widths of numbers, texts and lists are taken as well.
        Raises NotInstalled without pyarrow (the extra `arrow`), and InvalidValue as insert_many.
        """
        reader = arrow.reader(data, self._new, self.record)
        now = await self._queries.now.fetchval(conn, datetime)
        advance_ids = self._advance_ids if "id" in reader.schema.names else None

        def columns(given: Mapping[str, Any]) -> dict[str, Any]:
            item, values = self._read(given)
            self._complete(values, now)
            if advance_ids is None:
                return values
            if not isinstance(item, self.record):
                raise InvalidValue("id: missing, while other rows have one")
            return {"id": item.id, **values}

        missing = {**plain.optional(self._new), "id": uuid4, self._clock: lambda: now}
        into = arrow.Writing(columns, missing, tuple(plain.kinds(self.record)) if self._vector else ())
        batches = arrow.batches(reader, into)
        if advance_ids is not None:
            inserted = await self._copy_with_ids.copy_batches(conn, batches)
            await advance_ids.fetchval(conn, int)
            return inserted
        try:
            return await self._queries.copy_in.copy_batches(conn, batches)
        except CopyRefused:
            return await self._queries.insert.copy_batches(conn, batches)

    async def stream_arrow(self, conn: Connection, *, chunk: int = 1000) -> AsyncIterator[arrow.RecordBatch]:
        """Yield every row, the oldest first, in record batches of pyarrow of *chunk* rows; otherwise as stream does.

        Vectors are fixed-size lists of float32 without nulls, ids are strings, JSON is its text, and times are
        microseconds in UTC. Without a row, there is one batch, which is empty.
        Raises NotInstalled without pyarrow (the extra `arrow`).
        """
        arrow.pyarrow()
        rows = self.stream(conn, chunk=chunk)
        records: list[Record] = []
        some = False
        async with aclosing(rows):  # type: ignore[type-var]
            async for record in rows:
                records.append(record)
                if len(records) == chunk:
                    yield arrow.batch(self.record, records)
                    records, some = [], True
        if records or not some:
            yield arrow.batch(self.record, records)

    async def _write(self, conn: Connection, query: sql.Query, new: New) -> Record:
        values = self._values(new)
        row = await query.fetchone(conn, **values)
        if row is None:
            raise self._passed_over("the row")
        if self._vector is not None:
            row = (*row, values[self._vector])
        return mapper(sql.dialect(conn), self.record)(row)

    def _values(self, new: New | Record) -> dict[str, Any]:
        """Return the columns to write of *new*. Raises InvalidValue."""
        if not isinstance(new, (self._new, self.record)):
            raise InvalidValue(f"expected a {self._new.__name__} or {self.record.__name__}, got {type(new).__name__}")
        return self._columns(new)

    def _with_id(self, record: Record) -> dict[str, Any]:
        """Return the columns to write of *record*, and its id even if the database makes it otherwise."""
        values = self._values(record)  # first, because it looks whether this is a record
        return {"id": record.id, **values}

    async def _rows(
        self, items: AsyncIterable[Any] | Iterable[Any], columns: Callable[[Any], dict[str, Any]]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the *columns* to write of each of *items*.

        Raises InvalidValue with the item's number for whatever an item is at fault with.
        """
        number = -1
        async for item in noted(items):
            number += 1
            try:
                values = columns(item)
            except Exception as error:
                raise checks.item_fault(number, error) from error
            yield values

    def _passed_over(self, what: str) -> SchemaError:
        return SchemaError(f"{self._queries.entity}: a trigger or a rule of the table passed {what} over")


def of_table(table: Table) -> Entity[Any, Any, Any]:
    """Return the entity of *table*."""
    entity: Entity[Any, Any, Any] = importlib.import_module(f"{__package__}.{table.entity}").entity
    return entity
