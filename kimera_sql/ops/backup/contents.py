"""What a database holds at one moment: what a restore of its dump is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql as composed
from psycopg.rows import tuple_row

from ... import sql
from ...progress import Bar
from ...tables import VECTOR_TABLES

_queries = sql.Queries("backup")

_SAMPLES: Final = 3
_NEIGHBOURS: Final = 10
"""How many searches a table with vectors is tried with, and how many rows each is to find."""


@dataclass(frozen=True, slots=True)
class TableContent:
    """What a table holds. checksum: of its rows' values in any order, in hexadecimal."""

    table: str
    rows: int
    checksum: str


@dataclass(frozen=True, slots=True)
class SearchContent:
    """What an exact search for a stored vector finds. sample: the row's id. found: the nearest ids in order."""

    table: str
    sample: str
    found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a database holds at one moment."""

    tables: tuple[TableContent, ...]
    searches: tuple[SearchContent, ...]

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self.tables)


def settle(conn: psycopg.Connection[Any], search_path: str | None = None) -> None:
    """Make the open transaction of *conn* ready for read_contents, with another *search_path* where one is given."""
    _queries.settle.fetchval(conn, int, search_path=search_path)


def read_contents(conn: psycopg.Connection[Any]) -> Contents:
    """Return what *conn*'s database holds: rows and checksum of every table, and what exact searches find.

    Compare only what was read after settle in the same transaction.
    """
    tables, searches = [], []
    found = _queries.tables.fetchall(conn)
    with Bar() as bar:
        for number, (schema, name, visible) in enumerate(found):
            bar.draw(f"reading {name}", number, len(found))
            tables.append(_read_table(conn, schema, name))
            if visible and name in VECTOR_TABLES:
                searches += _read_searches(conn, name)
    return Contents(tuple(tables), tuple(searches))


def _read_table(conn: psycopg.Connection[Any], schema: str, name: str) -> TableContent:
    """Count the rows of a table, and add up the first 64 bits of each row's SHA-256.

    It is taken of the row's text: numbers are written there so that they are read back to the bit.
    """
    row = (
        psycopg.Cursor(conn, row_factory=tuple_row)
        .execute(
            composed.SQL(
                "SELECT count(*), COALESCE(sum(('x' || left(encode(sha256(convert_to((one.*)::text, 'UTF8')),"
                " 'hex'), 16))::bit(64)::bigint), 0) FROM ONLY {} AS one"
            ).format(composed.Identifier(schema, name))
        )
        .fetchone()
    )
    assert row is not None  # noqa: S101 - an aggregate has one row
    return TableContent(f"{schema}.{name}", row[0], f"{int(row[1]) % 2**64:016x}")


def _read_searches(conn: psycopg.Connection[Any], table: str) -> list[SearchContent]:
    query = sql.Queries(VECTOR_TABLES[table].entity).sample_searches
    found = query.fetchall(conn, samples=_SAMPLES, k=_NEIGHBOURS)
    return [SearchContent(table, sample, tuple(ids)) for sample, ids in found]


def differences(expected: Contents, found: Contents) -> list[str]:
    """Return in which tables and searches *found* is not what was *expected*, a sentence each."""
    there = {table.table: table for table in found.tables}
    faults = []
    for table in expected.tables:
        other = there.pop(table.table, None)
        if other is None:
            faults.append(f"{table.table} is missing")
        elif other.rows != table.rows:
            faults.append(f"{table.table} has {other.rows:,} rows instead of {table.rows:,}")
        elif other.checksum != table.checksum:
            faults.append(f"{table.table} has other values: checksum {other.checksum} instead of {table.checksum}")
    faults += [f"{name} should not be there" for name in there]
    searches = {(search.table, search.sample): search.found for search in found.searches}
    faults += [
        f"the search for {search.sample} in {search.table} finds other rows"
        for search in expected.searches
        if searches.get((search.table, search.sample)) != search.found
    ]
    return faults
