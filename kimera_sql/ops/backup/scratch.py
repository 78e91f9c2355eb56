"""What restores and drills begin with: a dump in a new database whose name nobody knows, compared with its manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, LiteralString
from uuid import uuid4

import psycopg
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo

from ... import sql
from ...errors import BackupError, InvalidValue
from ...progress import Bar
from ...secrecy import Secret, forgetful, reveal
from ...servers import require_session
from ...sql import Connection
from . import layout, tools
from .contents import Contents, differences, read_contents, settle
from .dumps import Dump, Origin, verify_dump
from .files import reported

_queries = sql.Queries("backup")

_JOBS: Final = min(4, os.cpu_count() or 1)
"""What pg_restore does at once."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What a new database holds after a restore. faults: in what it is not what was dumped, a sentence each."""

    contents: Contents
    faults: tuple[str, ...]


def require_autocommit(conn: Connection) -> psycopg.Connection[Any]:
    """Return *conn*, an autocommit connection to PostgreSQL. Raises InvalidValue for any other."""
    conn = sql.require_postgres(conn, "a dump of pg_dump's is restored on PostgreSQL, not into SQLite")
    if not conn.autocommit:
        raise InvalidValue("conn: databases are made outside transactions; open it with autocommit=True")
    require_session(conn, "a restore")
    return conn


def require_dump(path: Path) -> Dump | None:
    """Verify the dump *path*, and return its manifest, None without one. Raises BackupError."""
    with reported(path):
        if not path.is_file():
            raise BackupError(f"there is no dump {path}")
    return verify_dump(path)


@contextmanager
def new_database(
    conn: psycopg.Connection[Any], dump: Path, made: Dump | None, *, tablespace: str | None = None
) -> Iterator[str]:
    """Make an empty database for *dump*, whose manifest is *made*, and yield its name. If the block fails, drop it.

    Those that killed runs have left go first, as far as this role may drop them.
    """
    for left in left_databases(conn):
        with suppress(psycopg.Error), sql.without_timeouts(conn):
            conn.execute(composed.SQL("DROP DATABASE IF EXISTS {}").format(composed.Identifier(left)))
    name = f"kimera_restore_{uuid4().hex}"
    parameters = tools.parameters(conn)
    try:
        # Before it is made: nobody is to take it for one that was left.
        _queries.claim_restore.execute(conn, name=name)
        with sql.without_timeouts(conn):
            conn.execute(_create(name, made.origin if made else None, tablespace))
        yield name
    except BaseException as error:
        try:
            with _connect(parameters, autocommit=True) if conn.closed else nullcontext(conn) as own:
                drop_database(own, name)
        except (psycopg.Error, BackupError):
            error.add_note(f"the half-made database {name} could not be dropped; the next restore or drill drops it")
        if isinstance(error, BackupError) and re.search('role ".*" does not exist', str(error)):
            error.add_note(f"the roles of a dump's server are in its globals: psql -f {layout.globals_file(dump)}")
        raise
    finally:
        with suppress(psycopg.Error):  # a connection that is lost keeps nothing
            _queries.release_restore.execute(conn, name=name)


def left_databases(conn: Connection) -> list[str]:
    """Return the half-made databases on *conn*'s server that restores and drills left which were killed."""
    return [name for (name,) in _queries.left_restores.fetchall(conn)]


def fill_database(conn: psycopg.Connection[Any], name: str, dump: Path, made: Dump | None, *options: str) -> Filled:
    """Restore *dump*, whose manifest is *made*, into the new database *name*, with pg_restore's *options*.

    It is compared with the manifest, looked through for invalid indexes and analyzed.
    """
    _fill(conn, _pg_restore(conn, made), dump, name, made.origin.size if made else 0, options)
    with connect(conn, name) as inside:
        settle(inside, made.origin.search_path if made else None)
        contents = read_contents(inside)
    faults = differences(made.contents, contents) if made else []
    with connect(conn, name, autocommit=True) as inside:
        faults += [f"the index {index} is invalid" for (index,) in _queries.invalid_indexes.fetchall(inside)]
        with sql.without_timeouts(inside):
            _queries.analyze.execute(inside)
    return Filled(contents, tuple(faults))


def require_rights(conn: psycopg.Connection[Any], name: str, dump: Path, made: Dump | None) -> None:
    """Raise BackupError unless this role can restore *dump* into the new database *name*, which stays empty.

    It takes the extensions of the dump, the roles that it names, and membership in those that own what is in it. The
    roles are known from the manifest *made*.
    """
    listed = tools.run(_pg_restore(conn, made), ["--list", dump.absolute()])
    user = conn.info.user
    with connect(conn, name, autocommit=True) as inside, sql.without_timeouts(inside):
        for extension in re.findall(r"^\d+; 3079 \d+ EXTENSION - (.+?) *$", listed, re.MULTILINE):
            try:
                with inside.transaction(force_rollback=True):
                    inside.execute(
                        composed.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE").format(composed.Identifier(extension))
                    )
            except psycopg.errors.InsufficientPrivilege as error:
                raise BackupError(
                    f"the role {user} may not create the extension {extension}, which the dump has; restore as a "
                    "superuser; nothing was changed"
                ) from error
            except psycopg.Error as error:
                raise BackupError(
                    f"the dump has the extension {extension}: {error.diag.message_primary}; nothing was changed"
                ) from error
        if made is None:
            return
        if missing := [role for (role,) in _queries.missing_roles.fetchall(inside, names=[*made.origin.roles])]:
            raise BackupError(f"""role "{'", "'.join(missing)}" does not exist on this server; nothing was changed""")
        for owner in made.origin.owners:
            try:
                with inside.transaction(force_rollback=True):
                    inside.execute(composed.SQL("SET LOCAL ROLE {}").format(composed.Identifier(owner)))
            except psycopg.errors.InsufficientPrivilege as error:
                raise BackupError(
                    f"the role {user} is no member of {owner}, which owns what the dump has; restore as a member or a "
                    "superuser; nothing was changed"
                ) from error


def _pg_restore(conn: psycopg.Connection[Any], made: Dump | None) -> Path:
    return tools.find("pg_restore", max(conn.info.server_version, made.tool_version if made else 0))


def _create(name: str, origin: Origin | None, tablespace: str | None) -> composed.Composed:
    parts = [composed.SQL("CREATE DATABASE {} TEMPLATE template0").format(composed.Identifier(name))]
    if tablespace is not None:
        parts.append(composed.SQL("TABLESPACE {}").format(composed.Identifier(tablespace)))
    if origin is not None:
        options: dict[LiteralString, str] = {
            "ENCODING": origin.encoding,
            "LC_COLLATE": origin.lc_collate,
            "LC_CTYPE": origin.lc_ctype,
        }
        if origin.provider != "c" and origin.locale is not None:
            providers: dict[str, LiteralString] = {"i": "icu", "b": "builtin"}
            provider = providers[origin.provider]
            options |= {"LOCALE_PROVIDER": provider, f"{provider.upper()}_LOCALE": origin.locale}
        parts += [
            composed.SQL("{} {}").format(composed.SQL(option), composed.Literal(value))
            for option, value in options.items()
        ]
    return composed.SQL(" ").join(parts)


def _fill(
    conn: psycopg.Connection[Any], pg_restore: Path, dump: Path, name: str, size: int, options: tuple[str, ...]
) -> None:
    with Bar() as bar:
        tools.run(
            pg_restore,
            ["--no-password", "--exit-on-error", f"--jobs={_JOBS}", f"--dbname={name}", *options, dump.absolute()],
            {**tools.parameters(conn), "dbname": name},
            tick=lambda: bar.draw("restoring", _queries.database_size.fetchval(conn, int, name=name) or 0, size),
        )


def drop_database(conn: psycopg.Connection[Any], name: str) -> None:
    """Drop the database *name*, and its clients with it."""
    with sql.without_timeouts(conn):
        conn.execute(composed.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(composed.Identifier(name)))


def connect(conn: psycopg.Connection[Any], name: str, *, autocommit: bool = False) -> psycopg.Connection[Any]:
    """Connect to the database *name* on *conn*'s server, as *conn* is."""
    return _connect({**tools.parameters(conn), "dbname": name}, autocommit=autocommit)


@forgetful
def _connect(parameters: Mapping[str, str | Secret], *, autocommit: bool) -> psycopg.Connection[Any]:
    try:
        conninfo = make_conninfo("", **{keyword: reveal(value) for keyword, value in parameters.items()})
        return psycopg.connect(conninfo, autocommit=autocommit)
    except UnicodeEncodeError:
        raise BackupError("the password is not UTF-8, and psycopg takes no other to connect with") from None
