"""The drill: a dump is restored where it harms nothing, as proof that it can be."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo

from ... import sql
from ...errors import BackupError
from ...leftovers import temporary_folder
from ...sql import Connection
from . import layout, tools
from .dumps import Dump, Origin
from .files import reported
from .private_server import serving
from .scratch import drop_database, fill_database, new_database, require_autocommit, require_dump

_queries = sql.Queries("backup")

_SETTINGS: Final = {
    "listen_addresses": "",
    "port": "5432",
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
}


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


def run_drill(dump: Path, *, conn: Connection | None = None) -> Drill:
    """Restore *dump* where it harms nothing, and return in what it differs from what was dumped.

    Without *conn* that is a server of its own, made in a temporary folder and removed again, with the programs of the
    dump's version or a later one that this machine has with pgvector; the roles of the dump's globals are made there.
    With *conn*, an autocommit connection by a role that may create databases, it is a database of its own on that
    server. Row counts, checksums and sample searches are compared, and indexes must be valid. Raises BackupError for
    a dump that is damaged or has no manifest, and when it cannot be restored at all.
    """
    server = None if conn is None else require_autocommit(conn)
    made = require_dump(dump)
    if made is None:
        raise BackupError(f"{dump} has no manifest to compare with; kimera-sql backup dump makes dumps with one")
    if server is not None:
        return _drill_on(server, made)
    for initdb in tools.find_all("initdb", made.origin.server_version):
        with _throwaway(initdb, made.origin) as conninfo, psycopg.connect(conninfo, autocommit=True) as own:
            if made.origin.pgvector is None or _queries.offers_pgvector.fetchval(own, bool):
                _make_roles(own, made)
                return _drill_on(own, made, "--no-tablespaces")
    raise BackupError(
        f"this machine has no PostgreSQL {made.origin.server_version // 10000} or later with pgvector to restore on; "
        "install one, or restore on the configured server (--on-server)"
    )


def _drill_on(conn: psycopg.Connection[Any], made: Dump, *options: str) -> Drill:
    with new_database(conn, made.path, made) as name:
        filled = fill_database(conn, name, made.path, made, *options)
        drop_database(conn, name)
    return Drill(
        dump=made.path,
        made_at=made.made_at,
        server_version=tools.version_text(conn.info.server_version),
        tables=len(filled.contents.tables),
        rows=filled.contents.rows,
        searches=len(filled.contents.searches),
        differences=filled.faults,
    )


@contextmanager
def _throwaway(initdb: Path, origin: Origin) -> Iterator[str]:
    """Run an empty server with the programs beside *initdb* in a temporary folder, and yield a superuser's conninfo."""
    user = tools.server_user()
    with reported(Path(tempfile.gettempdir())), temporary_folder() as parent:
        data, log = parent / "data", parent / "log"
        if user is not None:
            # The folder stays closed to all but the server's user, and root.
            shutil.chown(parent, user)
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", f"--username={origin.bootstrap}"]
        tools.run(initdb, [*options, f"--pgdata={data}"], user=user)
        sockets = str(parent).replace('"', '""')
        settings = {**_SETTINGS, "unix_socket_directories": f'"{sockets}"'}
        server = serving(initdb.with_name("postgres"), data, log, user=user, settings=settings, stop=signal.SIGQUIT)
        with ExitStack() as stack:
            try:
                stack.enter_context(server)
            except BackupError as error:
                said = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-5:])
                raise BackupError(f"the throwaway server did not start: {error}\n{said.rstrip()}") from None
            try:
                # With hostaddr and port, which libpq would take from PGHOSTADDR and PGPORT.
                yield make_conninfo(
                    "", host=str(parent), hostaddr="", port=5432, user=origin.bootstrap, dbname="postgres"
                )
            except psycopg.OperationalError as error:
                raise BackupError(f"the throwaway server failed: {error}") from error


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
    path = layout.globals_file(made.path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    wanted = [line for line in lines if not line.startswith(unwanted) and " ON TABLESPACE " not in line]
    try:
        sql.script(conn, "".join(wanted))
    except psycopg.Error as error:
        raise BackupError(f"{path} cannot be run: {error}") from error
