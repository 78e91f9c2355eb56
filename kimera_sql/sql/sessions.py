# Generated from kimera_sql/aio/sql/sessions.py by .ci/twins.py: change that one.
"""What is kept for each connection between its statements, first of all their cursors.

A new cursor of psycopg's finds out how each value is sent and each column is read. For a short statement that costs as
much as all else that psycopg does, and a cursor that runs the same statement again spares it.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeAlias

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.rows import tuple_row
from psycopg.types import TypeInfo

from ..sql.files import Statement
from ..sql.loaders import use_own
from ..sql.rows import Row
from ..twins import Lock

Connection: TypeAlias = psycopg.Connection[Any]
Cursor: TypeAlias = psycopg.Cursor[Row]


def new_cursor(conn: Connection) -> Cursor:
    """Return a cursor that reads values as kimera_sql does, whatever row or cursor factory and loaders *conn* has."""
    cursor = psycopg.Cursor(conn, row_factory=tuple_row)
    use_own(cursor)
    return cursor


class Adapters:
    """What a connection knew of types when this was made; nothing that is registered on the connection changes it."""

    def __init__(self, conn: Connection) -> None:
        self.connection: None = None
        self.adapters = AdaptersMap(conn.adapters)


class Session:
    """What is kept for one connection.

    usual: what a pool's connection goes back to knowing of types when it is lent again; what learn finds is added here.
    turn: the lock of those who share it; only its holder may use the cursors.
    doubted: whether the types that the connection knows may have changed in the database.
    strangers: the types, by oid, that results have had and that are not pgvector's.
    """

    def __init__(self, conn: Connection) -> None:
        self.usual: Adapters | None = None
        self.turn = Lock()
        self.doubted = False
        self.strangers: set[int] = set()
        # A cursor that is kept must not keep its connection, which its user may have let go of.
        self._conn = weakref.proxy(conn)
        self._made_for: tuple[str, TypeInfo | None] = ("", None)
        self._cursors: dict[str, Cursor] = {}

    def cursor(self, statement: Statement, encoding: str, vector: TypeInfo | None) -> Cursor:
        """Return a cursor for *statement*.

        That of one of kimera_sql's own statements is kept while the session's *encoding* and pgvector's type are the
        same. For others the caller may register types on the connection at any time.
        """
        if not statement.shipped:
            return new_cursor(self._conn)
        if self._made_for != (encoding, vector):
            self._cursors.clear()
            self._made_for = (encoding, vector)
        cursor = self._cursors.get(statement.text)
        if cursor is None:
            cursor = self._cursors[statement.text] = new_cursor(self._conn)
        return cursor

    def free(self, cursor: Cursor, statement: Statement) -> None:
        """Free the result of *cursor*, the cursor of *statement*, if it is kept. The rows have been read."""
        # What a caller's own loaders have made of other results may be a view of them.
        if statement.shipped and cursor.pgresult is not None:
            cursor.pgresult.clear()


_sessions: weakref.WeakKeyDictionary[Connection, Session] = weakref.WeakKeyDictionary()


def session(conn: Connection) -> Session:
    """Return what is kept for *conn*."""
    return _sessions.get(conn) or _sessions.setdefault(conn, Session(conn))
