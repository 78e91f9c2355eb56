"""Writing again: rows over those of the same ids, or as new ones."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, Final, Literal
from uuid import UUID, uuid4

from ..checks import item_fault
from ..errors import InvalidValue
from ..model.upserts import Upserted
from ..sql.rows import check_encoding, columns
from . import sql
from .entity import Entity, New, Record
from .sql import Connection

_types = sql.Queries("types")

_AT_ONCE: Final = 250
"""Items that upsert_many holds in memory and writes together."""


class UpsertEntity(Entity[New, Record, UUID]):
    """An entity whose rows have UUIDs, and can be written again."""

    async def upsert(self, conn: Connection, new: New) -> Record:
        """Store *new* over the row of its id, or as a new row if there is none, and return it as it was stored.

        It is stored as insert would store it: what *new* leaves out is not kept from the row. That stays the same row,
        with all that refers to it. Raises as insert does.
        """
        return await self._write(conn, self._queries.upsert, new)

    async def upsert_many(
        self,
        conn: Connection,
        items: AsyncIterable[New] | Iterable[New],
        *,
        duplicates: Literal["last", "refuse"] = "last",
    ) -> Upserted:
        """Do what upsert does for each of *items* in turn, all or none, and return how many were new and how many not.

        Items of the same row: the last one is what is stored; with *duplicates* "refuse", InvalidValue names two, and
        the ids of all items are kept in memory to find them. *items* is read 250 at a time, and those are written in
        the order of their ids. Two callers at once who write the same rows in different orders, over more than 250
        items, can be in each other's way: the server then refuses one of the two (DeadlockDetected).
        Raises InvalidValue with the item's number, counted from 0; an error of *items* itself has a note of the number,
        and a driver's of which items were being written.
        """
        if duplicates not in ("last", "refuse"):
            raise InvalidValue(f"duplicates: expected 'last' or 'refuse', got {duplicates!r}")
        await self._learn_types(conn)
        inserted = count = 0
        seen: dict[UUID, int] | None = {} if duplicates == "refuse" else None
        async with sql.atomic(conn):
            async for rows in self._batches(conn, items):
                inserted += await self._upsert_batch(conn, rows, count, seen)
                count += len(rows)
        return Upserted(inserted, count - inserted)

    async def _learn_types(self, conn: Connection) -> None:
        """Learn anew of a type that has changed. Within a transaction of several statements it would be too late."""
        if self._vector is not None and sql.is_postgres(conn):
            await _types.vector.fetchall(conn)

    async def _batches(
        self, conn: Connection, items: AsyncIterable[New] | Iterable[New]
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the columns to write of *items* in batches."""
        encoding = conn.info.encoding if sql.is_postgres(conn) else "utf-8"
        rows: list[dict[str, Any]] = []
        number = -1
        async for values in self._rows(items, self._values):
            number += 1
            try:
                check_encoding(encoding, values)
            except InvalidValue as error:
                raise item_fault(number, error) from error
            rows.append(values)
            if len(rows) == _AT_ONCE:
                yield rows
                rows = []
        if rows:
            yield rows

    async def _upsert_batch(
        self, conn: Connection, rows: list[dict[str, Any]], first: int, seen: dict[UUID, int] | None
    ) -> int:
        """Upsert *rows*, the first of which is item number *first*, and return how many were new."""
        for number, row in enumerate(rows, start=first):
            row["id"] = row["id"] or uuid4()
            if seen is not None and (earlier := seen.setdefault(row["id"], number)) != number:
                raise InvalidValue(f"item {number}: it is of the same row as item {earlier} (id {row['id']})")
        last = list({row["id"]: row for row in rows}.values())
        try:
            return await self._upsert_rows(conn, last)
        except Exception as error:
            error.add_note(
                f"items {first} to {first + len(rows) - 1} (counted from 0) were being written; nothing was written"
            )
            raise

    async def _upsert_rows(self, conn: Connection, rows: list[dict[str, Any]]) -> int:
        """Upsert *rows*, which have different ids, and return how many were new."""
        if sql.is_postgres(conn):
            types = self._queries.copy_in.statement(conn).types
            new = [inserted for (inserted,) in await self._queries.upsert_many.fetchall(conn, **columns(types, rows))]
        else:
            there = await self.existing_ids(conn, [row["id"] for row in rows])
            stored = [row["id"] for row in rows if await self._queries.upsert.fetchone(conn, **row)]
            new = [id not in there for id in stored]
        if len(new) < len(rows):
            raise self._passed_over(f"{len(rows) - len(new):,} rows")
        return new.count(True)
