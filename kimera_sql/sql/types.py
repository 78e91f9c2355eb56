# Generated from kimera_sql/aio/sql/types.py by .ci/twins.py: change that one.
"""Which of pgvector's types a connection knows, and learning them anew where they have changed."""

from __future__ import annotations

from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from psycopg.abc import AdaptContext
from psycopg.rows import tuple_row
from psycopg.types import TypeInfo

from ..sql.files import statements
from ..sql.loaders import strangers, use_own
from ..sql.rows import Row
from ..vectors import TYPES, register

Connection: TypeAlias = psycopg.Connection[Any]

_doubted: WeakSet[Connection] = WeakSet()
"""Connections that are to learn anew which types there are."""

_strangers: WeakKeyDictionary[Connection, set[int]] = WeakKeyDictionary()
"""For each connection the types, by oid, that results have had and that are not pgvector's."""


def learn(conn: Connection, *contexts: AdaptContext) -> bool:
    """Register pgvector's types on *conn* and *contexts* as the database has them now; return whether it has them."""
    named = statements("postgres", "types")
    cursor = psycopg.Cursor(conn, row_factory=tuple_row)
    use_own(cursor)
    if conn in _doubted:
        # psycopg goes on with a prepared statement that has failed.
        cursor.execute(named["forget_prepared"].text)
        _doubted.discard(conn)
    cursor.execute(named["find"].text, {"names": list(TYPES)}, binary=True)
    found = [
        TypeInfo(name, oid, array_oid, regtype=regtype, delimiter=delimiter)
        for name, oid, array_oid, regtype, delimiter in cursor.fetchall()
    ]
    if "vector" not in {info.name for info in found}:
        return False
    for context in (conn, *contexts):
        register(context, found)
    return True


def know(conn: Connection) -> None:
    """Learn the types if nobody has registered them on *conn*, or if a statement has failed for them."""
    if conn.adapters.types.get("vector") is None or conn in _doubted:
        learn(conn)


def recognize(conn: Connection, cursor: psycopg.Cursor[Row]) -> bool:
    """Learn the types if *cursor*'s result has one that is new to *conn*, and return whether it had.

    ALTER EXTENSION UPDATE adds types; after DROP and CREATE EXTENSION they have other oids.
    """
    strange = strangers(cursor)
    if not strange or _strangers.get(conn, set()).issuperset(strange):
        return False
    learn(conn, cursor)
    _strangers.setdefault(conn, set()).update(strangers(cursor))
    return True


def doubt(conn: Connection, error: psycopg.Error) -> bool:
    """Return whether *error* can come from types that have changed since *conn* learned of them.

    If so, the next statement on *conn* learns them anew.
    """
    if error.sqlstate is None:
        outdated = isinstance(error, psycopg.ProgrammingError)  # psycopg knows no way to send a value
    elif isinstance(error, psycopg.errors.FeatureNotSupported):
        outdated = error.diag.source_file == "plancache.c"  # a prepared statement has another result
    elif isinstance(error, (psycopg.errors.InternalError_, psycopg.errors.UndefinedObject)):
        known = (conn.adapters.types.get(name) for name in TYPES)
        outdated = any(info is not None and str(info.oid) in str(error) for info in known)
    else:
        outdated = False
    if outdated:
        _doubted.add(conn)
        error.add_note("the next transaction will know the types that were created since this connection began")
    return outdated
