"""Restoring dumps: into a new database that is checked before it takes a name, and into a throwaway one as a drill."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, LiteralString
from uuid import uuid4

import psycopg
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo
from psycopg.errors import ObjectInUse

from ... import checks, sql
from ...errors import BackupError, InvalidValue
from ...progress import Bar
from ...sql import Connection
from . import dumps as backup
from . import tools
from .dumps import Contents, Dump, Origin
from .files import reported

_queries = sql.Queries("backup")

_JOBS: Final = min(4, os.cpu_count() or 1)
"""What pg_restore does at once."""

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

_DRILL_SETTINGS: Final = """\
listen_addresses = ''
unix_socket_directories = '{folder}'
fsync = off
full_page_writes = off
wal_level = minimal
max_wal_senders = 0
max_wal_size = 4GB
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """A database that was restored. compared: with a manifest. kept: the name of the one it replaced, if that stays."""

    database: str
    dump: Path
    tables: int
    rows: int
    compared: bool
    kept: str | None


@dataclass(frozen=True, slots=True)
class Drill:
    """What a drill found. searches: sample searches that were compared. differences: a sentence each, none at best."""

    dump: Path
    made_at: datetime
    server_version: str
    tables: int
    rows: int
    searches: int
    differences: tuple[str, ...]


def restore(conn: Connection, dump: Path, *, into: str, replace: bool = False, drop_old: bool = False) -> Restored:
    """Restore *dump* into the database *into* on *conn*'s server, all or nothing, and return what is there.

    *conn* is an autocommit connection to another database, by a role that may create databases. The dump is verified
    first. It goes into a database of another name, which is compared with the manifest, looked through for invalid
    indexes and analyzed, and only then gets its name. A database *into* that is there and not empty is refused,
    unless *replace*: then the two change places in one transaction, and the old one stays as
    *into*_before_YYYYMMDD_HHMMSS, unless *drop_old*. Its owner, settings and grants go over. Raises BackupError, and
    leaves *into* as it was and nothing else behind, also when clients are connected to it.
    """
    server = _server(conn)
    kept = _kept(into)
    if into == tools.parameters(server)["dbname"]:
        raise BackupError(f"{into} is the database of this connection; connect to another one, such as postgres")
    made = _verified(dump)
    old = _target(server, into, replace)
    with _filled(server, dump, made) as (name, found):
        faults = backup.differences(made.contents, found) if made else []
        faults += _check(server, name)
        if faults:
            raise BackupError(f"what {dump} restores is not what was dumped:" + "".join(f"\n  {one}" for one in faults))
        if old is not None:
            _take_over(server, old, name)
        _swap(server, name, into, kept if old is not None else None)
    # Looked at again: someone may have written there meanwhile, and now nobody finds it by its name.
    if old is not None and (drop_old or _is_empty(server, kept)):
        _drop(server, kept)
        old = None
    return Restored(into, dump, len(found.tables), found.rows, made is not None, kept if old is not None else None)


def drill(dump: Path, *, conn: Connection | None = None) -> Drill:
    """Restore *dump* where it harms nothing, and return in what it differs from what was dumped.

    Without *conn* that is a server of its own, made in a temporary folder and removed again, with the programs of the
    dump's version or a later one that this machine has with pgvector; the roles of the dump's globals are made there.
    With *conn*, an autocommit connection by a role that may create databases, it is a database of its own on that
    server. Row counts, checksums and sample searches are compared, and indexes must be valid. Raises BackupError for
    a dump that is damaged or has no manifest, and when it cannot be restored at all.
    """
    server = None if conn is None else _server(conn)
    made = _verified(dump)
    if made is None:
        raise BackupError(f"{dump} has no manifest to compare with; kimera-sql backup dump makes dumps with one")
    if server is not None:
        return _drilled(server, made)
    for initdb in tools.find_all("initdb", made.origin.server_version):
        with _throwaway(initdb, made.origin) as conninfo, psycopg.connect(conninfo, autocommit=True) as own:
            if made.origin.pgvector is None or _queries.offers_pgvector.fetchval(own, bool):
                _make_roles(own, made)
                return _drilled(own, made, "--no-tablespaces")
    raise BackupError(
        f"this machine has no PostgreSQL {made.origin.server_version // 10000} or later with pgvector to restore on; "
        "install one, or restore on the configured server (--on-server)"
    )


def _server(conn: Connection) -> psycopg.Connection[Any]:
    server = sql.require_postgres(conn, "a dump of pg_dump's is restored on PostgreSQL, not into SQLite")
    if not server.autocommit:
        raise InvalidValue("conn: databases are made outside transactions; open it with autocommit=True")
    return server


def _drilled(conn: psycopg.Connection[Any], made: Dump, *options: str) -> Drill:
    with _filled(conn, made.path, made, *options) as (name, found):
        faults = (*backup.differences(made.contents, found), *_check(conn, name))
        _drop(conn, name)
    return Drill(
        dump=made.path,
        made_at=made.made_at,
        server_version=tools.version_text(conn.info.server_version),
        tables=len(found.tables),
        rows=found.rows,
        searches=len(found.searches),
        differences=faults,
    )


def _verified(dump: Path) -> Dump | None:
    with reported(dump):
        if not dump.is_file():
            raise BackupError(f"there is no dump {dump}")
    return backup.verify(dump)


def _kept(into: str) -> str:
    """Return the name of the database that *into* replaces, cut where both would not fit. Raises InvalidValue."""
    name = checks.text("into", into).encode()
    if not 0 < len(name) <= _LONGEST_NAME:
        raise InvalidValue(f"into: expected a name of 1 to {_LONGEST_NAME} bytes, got {len(name)}")
    suffix = f"{datetime.now(UTC):{_KEPT}}"
    return name[: _LONGEST_NAME - len(suffix)].decode(errors="ignore") + suffix


@dataclass(frozen=True, slots=True)
class _Target:
    """A database that is to be replaced."""

    oid: int
    owner: str


def _target(conn: psycopg.Connection[Any], into: str, replace: bool) -> _Target | None:
    row = _queries.database.fetchone(conn, name=into)
    if row is None:
        return None
    oid, owner, clients = row
    if not (replace or _is_empty(conn, into)):
        raise BackupError(f"{into} is there and not empty; choose another name, or --replace it; nothing was changed")
    if clients:
        raise BackupError(f"{into} has {clients} client(s) connected; stop them first; nothing was changed")
    return _Target(oid, owner)


def _is_empty(conn: psycopg.Connection[Any], name: str) -> bool:
    with psycopg.connect(_conninfo(conn, name)) as inside:
        return bool(_queries.is_empty.fetchval(inside, bool))


@contextmanager
def _filled(
    conn: psycopg.Connection[Any], dump: Path, made: Dump | None, *options: str
) -> Iterator[tuple[str, Contents]]:
    """Yield the name and the contents of a new database with what *dump* holds; it is dropped if the block fails."""
    pg_restore = tools.find("pg_restore", max(conn.info.server_version, made.tool_version if made else 0))
    name = f"kimera_restore_{uuid4().hex}"
    try:
        conn.execute(_create(name, made.origin if made else None))
        parameters = {**tools.parameters(conn), "dbname": name}
        total = made.origin.size if made else 0
        with Bar() as bar:
            tools.run(
                pg_restore,
                ["--no-password", "--exit-on-error", f"--jobs={_JOBS}", f"--dbname={name}", *options, dump.absolute()],
                parameters,
                tick=lambda: bar.draw("restoring", _queries.database_size.fetchval(conn, int, name=name) or 0, total),
            )
        with psycopg.connect(_conninfo(conn, name)) as inside:
            backup.settle(inside)
            found = backup.contents(inside)
        yield name, found
    except BaseException as error:
        try:
            _drop(conn, name)
        except psycopg.Error:
            error.add_note(f"the half-made database {name} could not be dropped; drop it")
        if isinstance(error, BackupError) and re.search('role ".*" does not exist', str(error)):
            error.add_note(
                f"the roles of a dump's server are in its globals: psql -f {dump.with_suffix('.globals.sql')}"
            )
        raise


def _create(name: str, origin: Origin | None) -> composed.Composed:
    parts = [composed.SQL("CREATE DATABASE {} TEMPLATE template0").format(composed.Identifier(name))]
    if origin is not None:
        options: dict[LiteralString, str] = {
            "ENCODING": origin.encoding,
            "LC_COLLATE": origin.lc_collate,
            "LC_CTYPE": origin.lc_ctype,
        }
        if origin.provider != "c" and origin.locale is not None:
            providers: dict[str, LiteralString] = {"i": "icu", "b": "builtin"}
            kind = providers[origin.provider]
            options |= {"LOCALE_PROVIDER": kind, f"{kind.upper()}_LOCALE": origin.locale}
        parts += [
            composed.SQL("{} {}").format(composed.SQL(option), composed.Literal(value))
            for option, value in options.items()
        ]
    return composed.SQL(" ").join(parts)


def _check(conn: psycopg.Connection[Any], name: str) -> list[str]:
    """Analyze the database *name*, and return what is wrong with its indexes."""
    with psycopg.connect(_conninfo(conn, name), autocommit=True) as inside:
        invalid = [f"the index {index} is invalid" for (index,) in _queries.invalid_indexes.fetchall(inside)]
        _queries.analyze.execute(inside)
    return invalid


def _take_over(conn: psycopg.Connection[Any], old: _Target, name: str) -> None:
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
    rename = composed.SQL("ALTER DATABASE {} RENAME TO {}")
    try:
        with conn.transaction():
            if kept is not None:
                conn.execute(rename.format(composed.Identifier(into), composed.Identifier(kept)))
            conn.execute(rename.format(composed.Identifier(name), composed.Identifier(into)))
    except ObjectInUse:
        raise BackupError(f"clients connected to {into} meanwhile; stop them first; nothing was changed") from None


def _drop(conn: psycopg.Connection[Any], name: str) -> None:
    conn.execute(composed.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(composed.Identifier(name)))


def _conninfo(conn: psycopg.Connection[Any], name: str) -> str:
    return make_conninfo("", **{**tools.parameters(conn), "dbname": name})


@contextmanager
def _throwaway(initdb: Path, origin: Origin) -> Iterator[str]:
    """Run an empty server with the programs beside *initdb* in a temporary folder, and yield a superuser's conninfo."""
    pg_ctl = initdb.with_name("pg_ctl")
    user = tools.server_user()
    with reported(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="kimera_sql_") as parent:
        data, log = Path(parent) / "data", Path(parent) / "log"
        if user is not None:
            # The folder stays closed to all but the server's user, and root.
            shutil.chown(parent, user)
        settings = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", f"--username={origin.bootstrap}"]
        tools.run(initdb, [*settings, f"--pgdata={data}"], user=user)
        with (data / "postgresql.conf").open("a") as conf:
            conf.write(_DRILL_SETTINGS.format(folder=parent.replace("'", "''")))
        try:
            try:
                tools.run(pg_ctl, ["start", "--wait", "--silent", f"--pgdata={data}", f"--log={log}"], user=user)
            except BackupError as error:
                said = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-5:]) if log.exists() else ""
                raise BackupError(f"the throwaway server did not start: {error}\n{said.rstrip()}") from None
            yield make_conninfo("", host=parent, user=origin.bootstrap, dbname="postgres")
        finally:
            if (data / "postmaster.pid").exists():
                tools.run(pg_ctl, ["stop", "--mode=immediate", "--wait", "--silent", f"--pgdata={data}"], user=user)


def _make_roles(conn: psycopg.Connection[Any], made: Dump) -> None:
    """Make the roles of the dump's globals on a new server."""
    bootstrap = made.origin.bootstrap
    unwanted = (
        # The role that the server was made with is there already.
        f"CREATE ROLE {bootstrap};",
        composed.SQL("CREATE ROLE {};").format(composed.Identifier(bootstrap)).as_string(conn),
        # Not for psql, whose commands could do anything to this machine, and not for folders that it lacks
        "\\",
        "CREATE TABLESPACE ",
        "ALTER TABLESPACE ",
        "COMMENT ON TABLESPACE ",
    )
    path = made.path.with_suffix(".globals.sql")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    wanted = [line for line in lines if not line.startswith(unwanted) and " ON TABLESPACE " not in line]
    try:
        sql.script(conn, "".join(wanted))
    except psycopg.Error as error:
        raise BackupError(f"{path} cannot be run: {error}") from error
