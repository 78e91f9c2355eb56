# Generated from kimera_sql/aio/search/unbounded.py by .ci/twins.py: change that one.
"""Searches that don't say how many rows they want: all that are similar enough, or page after page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from .. import sql
from ..search.plan import MOST_BY_INDEX, Options
from ..sql import Connection, Queries, postgres
from ..sql.rows import Row
from ..tables import Table
from ..vectors import Vector
from . import catalogue, run

H = TypeVar("H")

_FIRST: Final = 100
"""How many rows an index is asked for at first."""

_CHUNK: Final = 1000
"""How many rows are fetched at a time where all are compared."""


@dataclass(frozen=True, slots=True)
class Search(Generic[H]):
    """A search of *table* by *vector*. read: makes a hit from a row. Otherwise as run.rows."""

    conn: Connection
    table: Table
    read: Callable[[Row], H]
    vector: Vector
    where: Mapping[str, Any]
    options: Options
    besides: Mapping[str, Any]
    with_vectors: bool

    def within(self, at_least: float) -> Iterator[H]:
        """Yield every row that is at least as similar as *at_least*, the most similar first."""
        for k in (_FIRST, MOST_BY_INDEX):
            found = self._by_index(k)
            if found is None:
                break
            # There can be more of them unless the last one found is none.
            if len(found) < k or found[-1][-2] < at_least:
                for row in found:
                    if row[-2] >= at_least:
                        yield self.read(row)
                return
        with closing(self._compared(at_least)) as rows:  # type: ignore[type-var]
            for row in rows:
                yield self.read(row)

    def pages(self, size: int) -> Iterator[list[H]]:
        """Yield every row once, *size* at a time; see geoids.similar_pages."""
        page: list[H] = []
        with closing(self._once(max(size, _FIRST))) as rows:  # type: ignore[type-var]
            for row in rows:
                page.append(self.read(row))
                if len(page) == size:
                    yield page
                    page = []
        if page:
            yield page

    def _once(self, first: int) -> Iterator[Row]:
        """Yield every row once: the nearest *first* by an index, then as many as it serves for, then all others."""
        given = set[Any]()
        for k in (first, MOST_BY_INDEX):
            found = self._by_index(k)
            if found is None:
                break
            for row in found:
                if row[0] not in given:
                    yield row
            given.update(row[0] for row in found)
            if len(found) < k:
                return
        with closing(self._compared(-1)) as rows:  # type: ignore[type-var]
            for row in rows:
                if row[0] not in given:
                    yield row

    def _by_index(self, k: int) -> list[Row] | None:
        """Return the *k* nearest rows, or None if every row would have to be compared to find them."""
        chosen = run.plan(self.conn, self.table, k, self.where, self.options, besides=self.besides)
        # How many lists are enough was measured for as many rows.
        if chosen.index is None or (chosen.index.method == "ivfflat" and k > _FIRST):
            return None
        (found,) = run.rows(
            self.conn,
            self.table,
            [self.vector],
            k,
            self.where,
            self.options,
            besides=self.besides,
            with_vectors=self.with_vectors,
        )
        return found

    def _compared(self, at_least: float) -> Iterator[Row]:
        """Compare every row, and yield those that are at least as similar as *at_least*, the most similar first."""
        conn = self.conn
        queries = Queries(self.table.entity)
        distributed = catalogue.is_distributed(conn, self.table.name)
        query = queries.scattered_within if distributed else queries.within
        parameters = {"vector": self.vector, "at_least": at_least, "with_vectors": self.with_vectors, **self.where}
        if not sql.is_postgres(conn):
            return query.stream(conn, chunk=_CHUNK, **parameters)
        change, undo = run.settings(conn, run.COMPLETED)
        return postgres.stream(conn, query.statement(conn), parameters, _CHUNK, before=[change], after=[undo])
