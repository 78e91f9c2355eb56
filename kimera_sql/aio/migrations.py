"""Brings a database's schema up to date: schema/<dialect>/NNNN_<what>.sql, each applied once, in order."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Final

import psycopg
from psycopg.pq import TransactionStatus

from .. import drift
from ..drift import Difference, Element
from ..errors import SchemaError
from ..schema import Misplaced, Place, checksum, files, overlooked, require_home, to_apply
from ..tables import NAMES
from . import pools, sql
from .sql import Connection

logger = logging.getLogger(__name__)

_queries = sql.Queries("migrations")
_citus = sql.Queries("citus")

_LOCK_TIMEOUT: Final = 30.0
"""Seconds for which a file waits for a lock on a table: what comes meanwhile waits behind it."""


async def migrate(conn: Connection, *, folder: Path | None = None) -> list[str]:
    """Apply the schema files that *conn*'s database does not have yet, and return their names.

    Each file is one transaction (a savepoint if the caller is in a transaction), taken under an advisory lock, so
    any number of processes may call this at once. *folder* stands in for the schema folder that is shipped.

    Raises SchemaError for a file that was changed after it was applied, for a database that has files this version
    does not know, for one that has tables of these names which kimera_sql did not make, or has the tables in a schema
    that *conn*'s search path leaves out or does not begin with, and for a database in SQL_ASCII, which does not know
    what text is. A file that fails leaves nothing behind, and the driver's error has a note that names it.
    """
    known = files(sql.dialect(conn), folder)
    done = []
    if not known:
        raise SchemaError(f"no schema files in {folder or sql.shipped('schema')}")
    if sql.is_postgres(conn) and conn.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise SchemaError(
            f"the database {conn.info.dbname} has the encoding SQL_ASCII, which does not say what its text is; use one "
            "that was made with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
    # With nothing to do it changes nothing, so that whoever may read the database can ask. The question leaves no
    # transaction open, in which the files would be savepoints; SQLite's opens none, and BEGIN would have to write.
    async with sql.transaction(conn) if sql.is_postgres(conn) else nullcontext(), sql.without_timeouts(conn):
        complete = not await pending(conn, folder=folder)
    if complete:
        await pools.add_adapters(conn)
        return []
    for path in known:
        async with _seeing_others(conn), sql.transaction(conn), sql.without_timeouts(conn, _LOCK_TIMEOUT):
            # Whoever applies them now is waited for.
            async with sql.without_timeouts(conn, lock_timeout=0):
                await _queries.lock.execute(conn)
            if sql.is_postgres(conn):
                require_home(await _places(conn))
            await _queries.create_table.execute(conn)
            applied: dict[str, str] = dict(await _queries.applied.fetchall(conn))
            if path.name not in to_apply(applied, known):
                continue
            if not applied:
                await _check_strangers(conn)
            try:
                await sql.script(conn, path.read_text(encoding="utf-8"))
            except Exception as error:
                error.add_note(f"while applying {path.name}; nothing of it was kept")
                raise
            await _queries.record_applied.execute(conn, name=path.name, checksum=checksum(path))
        logger.info("applied %s", path.name)
        done.append(path.name)
    await pools.add_adapters(conn)
    return done


@asynccontextmanager
async def _seeing_others(conn: Connection) -> AsyncIterator[None]:
    """Let a transaction that the block begins see what others have committed while it waited for a lock.

    At a higher level of isolation it would go by a snapshot from before that.
    """
    if not sql.is_postgres(conn) or conn.info.transaction_status != TransactionStatus.IDLE:
        yield
        return
    before = conn.isolation_level
    await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    try:
        yield
    finally:
        await conn.set_isolation_level(before)


async def _check_strangers(conn: Connection) -> None:
    """Raise SchemaError where *conn*'s database has tables of ours that no file of schema/ made."""
    found = [name for (name,) in await _queries.present.fetchall(conn, tables=list(NAMES))]
    if found:
        remedy = (
            "`kimera-sql adopt --dry-run` says what it takes to take them over"
            if sql.is_postgres(conn)
            else "name another file, and bring their rows over yourself"
        )
        raise SchemaError(f"the database has {', '.join(found)}, which kimera_sql did not make; {remedy}")


async def pending(conn: Connection, *, folder: Path | None = None) -> list[str]:
    """Return the names of the schema files that *conn*'s database does not have yet. Raises SchemaError as migrate."""
    known = files(sql.dialect(conn), folder)
    applied: dict[str, str] = {}
    if await _queries.exists.fetchval(conn, bool):
        applied = dict(await _queries.applied.fetchall(conn))
    elif fault := await misplaced(conn):
        raise SchemaError(str(fault))
    return sorted(to_apply(applied, known))


async def record_all(conn: Connection) -> None:
    """Note that *conn*'s database, whose tables were made otherwise, has what all the schema files make."""
    await _queries.lock.execute(conn)
    await _queries.create_table.execute(conn)
    for path in files(sql.dialect(conn)):
        await _queries.record_applied.execute(conn, name=path.name, checksum=checksum(path))


async def elements(conn: Connection) -> list[Element]:
    """Return what *conn*'s database, on PostgreSQL, has of the tables that the migrations make."""
    return await _queries.elements.fetchall(conn, Element, tables=list(drift.TABLES))


async def differences(conn: Connection) -> list[Difference]:
    """Return how *conn*'s tables differ from those that the migrations make; on SQLite nothing is compared.

    What is only there to be fast, as storage and settings of autovacuum are, is an administrator's to choose.
    """
    if not sql.is_postgres(conn):
        return []
    wanted = drift.expected()
    if await _citus.distributed.fetchall(conn, tables=list(NAMES)):
        wanted = drift.distributed(wanted)
    found = drift.differences(await elements(conn), wanted)
    return [one for one in drift.causes(found) if one.kind not in drift.TUNING]


async def misplaced(conn: Connection) -> Misplaced | None:
    """Return why *conn* does not find the tables or the pgvector of its database; None if there is nothing to miss."""
    return overlooked(await _places(conn)) if sql.is_postgres(conn) else None


async def _places(conn: Connection) -> list[Place]:
    return await _queries.places.fetchall(conn, Place)
