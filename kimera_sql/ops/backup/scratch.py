"""What restores and drills begin with: a dump in a new database whose name nobody knows, compared with its manifest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
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
from ...sql import Connection
from . import layout, tools
from .contents import Contents, differences, read_contents, settle
from .dumps import Dump, Origin, verify_dump
from .files import reported

_queries = sql.Queries("backup")

_JOBS: Final = min(4, os.cpu_count() or 1)
"""What pg_restore does at once."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """A new database with what a dump holds. faults: in what it is not what was dumped, a sentence each."""

    name: str
    contents: Contents
    faults: tuple[str, ...]


def require_autocommit(conn: Connection) -> psycopg.Connection[Any]:
    """Return *conn*, an autocommit connection to PostgreSQL. Raises InvalidValue without autocommit."""
    conn = sql.require_postgres(conn, "a dump of pg_dump's is restored on PostgreSQL, not into SQLite")
    if not conn.autocommit:
        raise InvalidValue("conn: databases are made outside transactions; open it with autocommit=True")
    return conn


def require_dump(path: Path) -> Dump | None:
    """Verify the dump *path*, and return its manifest, None without one. Raises BackupError."""
    with reported(path):
        if not path.is_file():
            raise BackupError(f"there is no dump {path}")
    return verify_dump(path)


@contextmanager
def scratch_database(conn: psycopg.Connection[Any], dump: Path, made: Dump | None, *options: str) -> Iterator[Scratch]:
    """Restore *dump*, whose manifest is *made*, with pg_restore's *options*, and yield the database that it is in.

    It is compared with the manifest, looked through for invalid indexes and analyzed. It is dropped if the block fails;
    else it is the block's.
    """
    pg_restore = tools.find("pg_restore", max(conn.info.server_version, made.tool_version if made else 0))
    name = f"kimera_restore_{uuid4().hex}"
    try:
        conn.execute(_create(name, made.origin if made else None))
        _fill(conn, pg_restore, dump, name, made.origin.size if made else 0, options)
        with psycopg.connect(conninfo_of(conn, name)) as inside:
            settle(inside, made.origin.search_path if made else None)
            contents = read_contents(inside)
        faults = differences(made.contents, contents) if made else []
        with psycopg.connect(conninfo_of(conn, name), autocommit=True) as inside:
            faults += [f"the index {index} is invalid" for (index,) in _queries.invalid_indexes.fetchall(inside)]
            _queries.analyze.execute(inside)
        yield Scratch(name, contents, tuple(faults))
    except BaseException as error:
        try:
            drop_database(conn, name)
        except psycopg.Error:
            error.add_note(f"the half-made database {name} could not be dropped; drop it")
        if isinstance(error, BackupError) and re.search('role ".*" does not exist', str(error)):
            error.add_note(f"the roles of a dump's server are in its globals: psql -f {layout.globals_file(dump)}")
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
    conn.execute(composed.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(composed.Identifier(name)))


def conninfo_of(conn: psycopg.Connection[Any], name: str) -> str:
    """Return the conninfo of the database *name* on *conn*'s server."""
    return make_conninfo("", **{**tools.parameters(conn), "dbname": name})
