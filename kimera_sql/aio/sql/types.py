"""Which of pgvector's types a connection knows, and learning them anew where they have changed."""

from __future__ import annotations

from typing import Any, TypeAlias

import psycopg
from psycopg.abc import AdaptContext
from psycopg.types import TypeInfo

from ...sql.files import statements
from ...sql.loaders import strangers
from ...sql.rows import Row
from ...vectors import TYPES, register
from .sessions import new_cursor, session

Connection: TypeAlias = psycopg.AsyncConnection[Any]


async def learn(conn: Connection, *contexts: AdaptContext) -> bool:
    """Register pgvector's types on *conn* and *contexts* as the database has them now; return whether it has them."""
    named = statements("postgres", "types")
    cursor = new_cursor(conn)
    if session(conn).doubted:
        # psycopg goes on with a prepared statement that has failed.
        await cursor.execute(named["forget_prepared"].text)
        session(conn).doubted = False
    await cursor.execute(named["find"].text, {"names": list(TYPES)}, binary=True)
    found = [
        TypeInfo(name, oid, array_oid, regtype=regtype, delimiter=delimiter)
        for name, oid, array_oid, regtype, delimiter in await cursor.fetchall()
    ]
    if "vector" not in {info.name for info in found}:
        return False
    kept = session(conn).usual
    for context in (conn, *contexts, *((kept,) if kept else ())):
        register(context, found)
    return True


async def known(conn: Connection) -> TypeInfo | None:
    """Return pgvector's type. Learn all if nobody has registered them on *conn*, or if a statement failed for them."""
    info = conn.adapters.types.get("vector")
    if info is None or session(conn).doubted:
        await learn(conn)
        info = conn.adapters.types.get("vector")
    return info


async def recognize(conn: Connection, cursor: psycopg.AsyncCursor[Row]) -> bool:
    """Learn the types if *cursor*'s result has one that is new to *conn*, and return whether it had.

    ALTER EXTENSION UPDATE adds types; after DROP and CREATE EXTENSION they have other oids.
    """
    strange = strangers(cursor)
    if not strange or session(conn).strangers.issuperset(strange):
        return False
    await learn(conn, cursor)
    session(conn).strangers.update(strangers(cursor))
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
        session(conn).doubted = True
        error.add_note("the next transaction will know the types that were created since this connection began")
    return outdated
