"""Restoring a dump: into a new database, which then takes its name, and the place of another one if need be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
from .properties import Properties, give_properties, read_properties
from .scratch import (
    connect,
    drop_database,
    fill_database,
    new_database,
    require_autocommit,
    require_dump,
    require_rights,
)

_queries = sql.Queries("backup")

_LONGEST_NAME: Final = 63
_KEPT: Final = "_before_%Y%m%d_%H%M%S"
"""What the name of a database that was replaced ends with."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A database that was restored. compared: with a manifest. kept: the name of the one it replaced, if that stays.

    remains: what is left to do, or to know, a sentence each.
    """

    database: str
    dump: Path
    tables: int
    rows: int
    compared: bool
    kept: str | None
    remains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Client:
    """A session in a database. may_end: this role may end it."""

    pid: int
    role: str
    application: str
    may_end: bool


@dataclass(frozen=True, slots=True)
class _Swap:
    """The database *name* gets *properties* and the name *into*; the one that has it, *old*, gets the name *kept*.

    disconnect: the clients of the old one are ended.
    """

    name: str
    into: str
    kept: str
    old: Properties | None
    properties: Properties | None
    disconnect: bool


def restore_dump(
    conn: Connection,
    dump: Path,
    *,
    into: str,
    replace: bool = False,
    drop_old: bool = False,
    disconnect: bool = False,
) -> Restored:
    """Restore *dump* into the database *into* on *conn*'s server, all or nothing, and return what is there.

    *conn* is an autocommit connection to another database, through no pooler. The dump is verified first. It goes into
    a database of another name, which is compared with the manifest, looked through for invalid indexes and analyzed,
    and only then gets its name. A database *into* that is there and not empty is refused, unless *replace*: then the
    two change places in one transaction, and the old one stays as *into*_before_YYYYMMDD_HHMMSS, unless *drop_old*.

    The old one's owner, limits, settings, grants and comment go over; a database that is new gets those that the
    manifest has. Clients of the old one are refused, unless *disconnect*: then they are ended before the two change
    places, and nobody connects meanwhile.

    Its role must be allowed to do all that; this is tried out in a transaction that is rolled back, before the dump is
    restored. Raises BackupError, and leaves *into* as it was and nothing else behind.
    """
    conn = require_autocommit(conn)
    kept = _kept_name(into)
    if into == tools.parameters(conn)["dbname"]:
        raise BackupError(f"{into} is the database of this connection; connect to another one, such as postgres")
    made = require_dump(dump)
    old = _require_replaceable(conn, into, replace, disconnect)
    properties = old or (made.properties if made else None)
    with new_database(conn, dump, made, tablespace=properties.tablespace if properties else None) as name:
        swap = _Swap(name, into, kept, old, properties, disconnect)
        _change_places(conn, swap, rehearse=True)
        require_rights(conn, name, dump, made)
        filled = fill_database(conn, name, dump, made)
        if filled.faults:
            faults = "".join(f"\n  {fault}" for fault in filled.faults)
            raise BackupError(f"what {dump} restores is not what was dumped:{faults}")
        _keep_records(conn, name, made.origin.search_path if made else None)
        with _without_clients(conn, into, old) if old is not None and disconnect else nullcontext():
            _change_places(conn, swap)
    # From here on the database is restored: what fails is left to do, and no error.
    remains = list(_remains(conn, into, properties))
    if old is not None:
        try:
            # Looked at again: someone may have written there meanwhile, and now nobody finds it by its name.
            if drop_old or _is_empty(conn, kept):
                _drop_old(conn, kept)
                old = None
        except psycopg.Error as error:
            if drop_old:
                remains.append(f"{kept}, the database that it replaced, could not be dropped: {_told(error)}")
    return Restored(
        database=into,
        dump=dump,
        tables=len(filled.contents.tables),
        rows=filled.contents.rows,
        compared=made is not None,
        kept=kept if old is not None else None,
        remains=tuple(remains),
    )


def _kept_name(into: str) -> str:
    """Return the name of the database that *into* replaces, cut where both would not fit. Raises InvalidValue."""
    name = checks.text("into", into).encode()
    if not 0 < len(name) <= _LONGEST_NAME:
        raise InvalidValue(f"into: expected a name of 1 to {_LONGEST_NAME} bytes, got {len(name)}")
    suffix = f"{datetime.now(UTC):{_KEPT}}"
    return name[: _LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


def _require_replaceable(
    conn: psycopg.Connection[Any], into: str, replace: bool, disconnect: bool
) -> Properties | None:
    """Return the properties of the database *into*, None if there is none. Raises BackupError if it has to stay."""
    old = read_properties(conn, into)
    if old is None:
        return None
    # Before a look into it, which would count as one.
    clients = _clients(conn, into)
    if not replace:
        try:
            empty = _is_empty(conn, into)
        except psycopg.OperationalError as error:
            raise BackupError(
                f"{into} is there, and cannot be looked into ({_told(error)}); choose another name, or --replace it; "
                "nothing was changed"
            ) from error
        if not empty:
            raise BackupError(
                f"{into} is there and not empty; choose another name, or --replace it; nothing was changed"
            )
    if clients and not disconnect:
        raise _in_use(into, clients)
    if mighty := [client for client in clients if not client.may_end]:
        raise BackupError(
            f"the role {conn.info.user} may not end the clients of {into}: {_listed(mighty)}; that takes "
            "pg_signal_backend, and a superuser for superusers; nothing was changed"
        )
    if prepared := [gid for (gid,) in _queries.prepared.fetchall(conn, name=into)]:
        raise BackupError(
            f"{into} has prepared transactions: {', '.join(prepared)}; COMMIT or ROLLBACK PREPARED ends them; "
            "nothing was changed"
        )
    return old


def _clients(conn: psycopg.Connection[Any], name: str) -> list[_Client]:
    return [_Client(*row) for row in _queries.clients.fetchall(conn, name=name)]


def _in_use(into: str, clients: Sequence[_Client]) -> BackupError:
    who = f": {_listed(clients)}" if clients else ""
    return BackupError(
        f"clients are connected to {into}{who}; stop them, or end them with --disconnect; nothing was changed"
    )


def _listed(clients: Sequence[_Client]) -> str:
    return ", ".join(
        f"process {one.pid} ({one.application or 'no application name'}, role {one.role})" for one in clients
    )


def _change_places(conn: psycopg.Connection[Any], swap: _Swap, *, rehearse: bool = False) -> None:
    """Let the databases change places; as a rehearsal, raise BackupError for what would keep them from it."""
    try:
        with conn.transaction(force_rollback=rehearse):
            _run(conn, swap)
    except ObjectInUse as error:
        # The server looks for clients after everything else, for 5 s.
        if not (rehearse and swap.disconnect):
            raise _in_use(swap.into, _clients(conn, swap.into)) from error
    except (psycopg.ProgrammingError, psycopg.DataError) as error:
        verb = "make" if swap.old is None else "replace"
        raise BackupError(
            f"the role {conn.info.user} cannot {verb} {swap.into}: {_told(error)}; nothing was changed"
        ) from error


def _run(conn: psycopg.Connection[Any], swap: _Swap) -> None:
    rename = composed.SQL("ALTER DATABASE {} RENAME TO {}")
    name, into, kept = map(composed.Identifier, (swap.name, swap.into, swap.kept))
    if swap.properties is not None:
        give_properties(conn, swap.name, swap.properties)
    if swap.old is not None:
        conn.execute(rename.format(into, kept))
        _allow(conn, swap.kept, swap.old.allows_connections)
    conn.execute(rename.format(name, into))


@contextmanager
def _without_clients(conn: psycopg.Connection[Any], into: str, old: Properties) -> Iterator[None]:
    """Let nobody connect to the database *into*, and end who is; if the block fails, it is as open as it was."""
    _allow(conn, into, allowed=False)
    try:
        if stuck := [pid for pid, ended in _queries.end_clients.fetchall(conn, name=into) if not ended]:
            raise BackupError(
                f"process {', '.join(map(str, stuck))}, connected to {into}, did not end; nothing was changed"
            )
        yield
    except BaseException as error:
        try:
            _allow(conn, into, allowed=old.allows_connections)
        except psycopg.Error:
            error.add_note(f"nobody can connect to {into} now; ALTER DATABASE ... ALLOW_CONNECTIONS true mends that")
        raise


def _allow(conn: psycopg.Connection[Any], name: str, allowed: bool) -> None:
    conn.execute(composed.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(composed.Identifier(name), allowed))


def _drop_old(conn: psycopg.Connection[Any], kept: str) -> None:
    # A template cannot be dropped.
    conn.execute(composed.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(composed.Identifier(kept)))
    drop_database(conn, kept)


def _remains(conn: psycopg.Connection[Any], into: str, properties: Properties | None) -> Iterator[str]:
    if properties is None:
        yield (
            f"{into} belongs to {conn.info.user}, with the default limits, settings and grants: there is no manifest "
            "that has others"
        )
    elif not properties.allows_connections:
        yield f"{into} takes no connections, as before: ALTER DATABASE ... ALLOW_CONNECTIONS true opens it"


def _told(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error).strip()


def _is_empty(conn: psycopg.Connection[Any], name: str) -> bool:
    with connect(conn, name) as inside:
        return bool(_queries.is_empty.fetchval(inside, bool))


def _keep_records(conn: psycopg.Connection[Any], name: str, search_path: str | None) -> None:
    """Let what is recorded of the vector indexes of the database *name* go on to count."""
    with connect(conn, name) as inside:
        settle(inside, search_path)
        if not _queries.has_records.fetchval(inside, bool):
            return  # of an older version, which init brings up to date
        _queries.keep_builds.execute(inside)
        _queries.keep_settings.execute(inside)
