"""Restoring a dump: into a new database, which then takes its name, and the place of another one if need be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql as composed
from psycopg.errors import ObjectInUse

from ... import checks, sql
from ...errors import BackupError, InvalidValue
from ...sql import Connection
from . import tools
from .contents import settle
from .scratch import conninfo_of, drop_database, require_autocommit, require_dump, scratch_database

_queries = sql.Queries("backup")

_LONGEST_NAME: Final = 63
_KEPT: Final = "_before_%Y%m%d_%H%M%S"
"""What the name of a database that was replaced ends with."""

# Settings that are lists of names, each a value of its own (pg_dump's variable_is_guc_list_quote)
_LISTS: Final = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
)


@dataclass(frozen=True, slots=True)
class Restored:
    """A database that was restored. compared: with a manifest. kept: the name of the one it replaced, if that stays."""

    database: str
    dump: Path
    tables: int
    rows: int
    compared: bool
    kept: str | None


def restore_dump(conn: Connection, dump: Path, *, into: str, replace: bool = False, drop_old: bool = False) -> Restored:
    """Restore *dump* into the database *into* on *conn*'s server, all or nothing, and return what is there.

    *conn* is an autocommit connection to another database, by a role that may create databases. The dump is verified
    first. It goes into a database of another name, which is compared with the manifest, looked through for invalid
    indexes and analyzed, and only then gets its name. A database *into* that is there and not empty is refused,
    unless *replace*: then the two change places in one transaction, and the old one stays as
    *into*_before_YYYYMMDD_HHMMSS, unless *drop_old*. Its owner, settings and grants go over. Raises BackupError, and
    leaves *into* as it was and nothing else behind, also when clients are connected to it.
    """
    conn = require_autocommit(conn)
    kept = _kept_name(into)
    if into == tools.parameters(conn)["dbname"]:
        raise BackupError(f"{into} is the database of this connection; connect to another one, such as postgres")
    made = require_dump(dump)
    old = _find_old(conn, into, replace)
    with scratch_database(conn, dump, made) as scratch:
        if scratch.faults:
            faults = "".join(f"\n  {fault}" for fault in scratch.faults)
            raise BackupError(f"what {dump} restores is not what was dumped:{faults}")
        _keep_records(conn, scratch.name, made.origin.search_path if made else None)
        if old is not None:
            _take_over(conn, old, scratch.name)
        _swap(conn, scratch.name, into, kept if old is not None else None)
    # Looked at again: someone may have written there meanwhile, and now nobody finds it by its name.
    if old is not None and (drop_old or _is_empty(conn, kept)):
        drop_database(conn, kept)
        old = None
    return Restored(
        database=into,
        dump=dump,
        tables=len(scratch.contents.tables),
        rows=scratch.contents.rows,
        compared=made is not None,
        kept=kept if old is not None else None,
    )


def _kept_name(into: str) -> str:
    """Return the name of the database that *into* replaces, cut where both would not fit. Raises InvalidValue."""
    name = checks.text("into", into).encode()
    if not 0 < len(name) <= _LONGEST_NAME:
        raise InvalidValue(f"into: expected a name of 1 to {_LONGEST_NAME} bytes, got {len(name)}")
    suffix = f"{datetime.now(UTC):{_KEPT}}"
    return name[: _LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


@dataclass(frozen=True, slots=True)
class _Old:
    """A database that is to be replaced."""

    oid: int
    owner: str


def _find_old(conn: psycopg.Connection[Any], into: str, replace: bool) -> _Old | None:
    row = _queries.database.fetchone(conn, name=into)
    if row is None:
        return None
    oid, owner, clients = row
    if not (replace or _is_empty(conn, into)):
        raise BackupError(f"{into} is there and not empty; choose another name, or --replace it; nothing was changed")
    if clients:
        raise BackupError(f"{into} has {clients} client(s) connected; stop them first; nothing was changed")
    return _Old(oid, owner)


def _is_empty(conn: psycopg.Connection[Any], name: str) -> bool:
    with psycopg.connect(conninfo_of(conn, name)) as inside:
        return bool(_queries.is_empty.fetchval(inside, bool))


def _keep_records(conn: psycopg.Connection[Any], name: str, search_path: str | None) -> None:
    """Let what is recorded of the vector indexes of the database *name* go on to count."""
    with psycopg.connect(conninfo_of(conn, name)) as inside:
        settle(inside, search_path)
        if not _queries.has_records.fetchval(inside, bool):
            return  # of an older version, which init brings up to date
        _queries.keep_builds.execute(inside)
        _queries.keep_settings.execute(inside)


def _take_over(conn: psycopg.Connection[Any], old: _Old, name: str) -> None:
    """Give the database *name* the owner, the settings and the grants of *old*."""
    database = composed.Identifier(name)
    conn.execute(composed.SQL("ALTER DATABASE {} OWNER TO {}").format(database, composed.Identifier(old.owner)))
    for role, setting, value in _queries.database_settings.fetchall(conn, oid=old.oid):
        whose = composed.SQL("ROLE {} IN ").format(composed.Identifier(role)) if role else composed.SQL("")
        conn.execute(
            composed.SQL("ALTER {}DATABASE {} SET {} TO {}").format(
                whose,
                database,
                composed.SQL(".").join(map(composed.Identifier, setting.split("."))),
                composed.SQL(", ").join(map(composed.Literal, _split(value) if setting in _LISTS else [value])),
            )
        )
    grants = _queries.database_grants.fetchall(conn, oid=old.oid)
    if grants:
        conn.execute(composed.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
    for grantee, privilege, grantable in grants:
        conn.execute(
            composed.SQL("GRANT {} ON DATABASE {} TO {} {}").format(
                composed.SQL(privilege),
                database,
                composed.Identifier(grantee) if grantee else composed.SQL("PUBLIC"),
                composed.SQL("WITH GRANT OPTION" if grantable else ""),
            )
        )


def _split(names: str) -> list[str]:
    """Return the names of a list as PostgreSQL writes it: in double quotes where it needs them."""
    found = re.findall(r'"((?:[^"]|"")*)"|([^,\s]+)', names)
    return [quoted.replace('""', '"') or plain for quoted, plain in found] or [""]


def _swap(conn: psycopg.Connection[Any], name: str, into: str, kept: str | None) -> None:
    """Give the database *name* the name *into*, and the one that has it, if any, the name *kept*."""
    rename = composed.SQL("ALTER DATABASE {} RENAME TO {}")
    try:
        with conn.transaction():
            if kept is not None:
                conn.execute(rename.format(composed.Identifier(into), composed.Identifier(kept)))
            conn.execute(rename.format(composed.Identifier(name), composed.Identifier(into)))
    except ObjectInUse:
        raise BackupError(f"clients connected to {into} meanwhile; stop them first; nothing was changed") from None
