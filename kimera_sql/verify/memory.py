"""What SQLite makes of a query when it prepares it. Its columns have names; types and nullability it does not tell."""

from __future__ import annotations

import re
import sqlite3
from typing import Final

from ..migrations import migrate
from ..sqlite import connect
from .text import Fault, Source

_WRITES: Final = re.compile(r"(?:INSERT\s+(?:OR\s+\w+\s+)?INTO|UPDATE|DELETE\s+FROM)\s+(\w+)", re.IGNORECASE)
_READS: Final = re.compile(r"(?:SELECT|WITH|VALUES)\b", re.IGNORECASE)


def open_empty() -> sqlite3.Connection:
    """Open a database in memory that has the shipped tables."""
    conn = connect(":memory:")
    migrate(conn)
    return conn


def columns(conn: sqlite3.Connection, source: Source) -> list[str] | Fault:
    """Have SQLite prepare a query, and return the names of its columns."""
    nothing = dict.fromkeys(source.parameters)
    try:
        conn.execute(f"EXPLAIN {source.text}", nothing)
        listed = _listed(source)
        if listed is None:
            return []
        cursor = conn.execute(listed, nothing)
    except sqlite3.Error as error:
        return source.fault(_place(source, str(error)), f"SQLite refuses it: {error}")
    return [str(column[0]) for column in cursor.description]


def _listed(source: Source) -> str | None:
    """Return a query of no rows that has the same columns: what writes is not run to learn them."""
    if written := _WRITES.match(source.text):
        _, returning, returned = source.text.partition("RETURNING")
        return f"SELECT {returned} FROM {written[1]} LIMIT 0" if returning else None  # noqa: S608 - in memory
    if _READS.match(source.text):
        return f"SELECT * FROM ({source.text}) LIMIT 0"  # noqa: S608 - in memory
    return None


def _place(source: Source, message: str) -> int | None:
    """Return where the word stands that SQLite names in its message."""
    named = re.search(r'near "(.+?)"|no such \w+: (?:\w+\.)?(\w+)', message)
    word = named and (named[1] or named[2])
    return next((token.offset for token in source.tokens if token.text.strip('"') == word), source.offsets[0])
