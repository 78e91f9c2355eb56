"""Dumps of a database: made with pg_dump, proven when they are made, and verified again at any time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from ... import sql
from ...errors import BackupError
from ...progress import Bar
from ...servers import require_session
from ...settings import milliseconds
from ...sql import Connection
from ..shards import distributed
from . import layout, tools
from .contents import Contents, SearchContent, TableContent, read_contents, settle
from .files import free_path, fsync, locked, reported, sha256
from .properties import Grant, Properties, Setting, read_properties

_queries = sql.Queries("backup")

_LOCK_TIMEOUT: Final = 30.0
"""How long a dump waits for a table that is locked against readers."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The database that a dump is of. server_version: as psycopg counts it, 150005. size: bytes.

    system: the server's system identifier, which initdb gives and every copy of the server's files keeps.
    provider, lc_collate, lc_ctype, locale: as pg_database has them. bootstrap: the role its server was made with.
    search_path: the schemas in which the dump's connection looked names up. owners: the roles that own what is in it.
    roles: all that it names.
    """

    database: str
    system: str
    server_version: int
    pgvector: str | None
    encoding: str
    provider: str
    lc_collate: str
    lc_ctype: str
    locale: str | None
    bootstrap: str
    search_path: str
    owners: tuple[str, ...]
    roles: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Dump:
    """What the manifest beside a dump says. size: bytes. tool_version: pg_dump's, as psycopg counts a server's."""

    path: Path
    size: int
    sha256: str
    globals_sha256: str
    made_at: datetime
    verified_at: datetime
    tool_version: int
    origin: Origin
    properties: Properties
    contents: Contents


def make_dump(conn: Connection, folder: Path) -> Dump:
    """Dump *conn*'s database and the server's roles into *folder*, prove the dump, and return its manifest.

    *conn* is outside a transaction, and no pooler's. Row counts, checksums and sample searches are taken from the
    snapshot that the dump is of. The archive is decoded to its end before it gets its name. Folders are made with mode
    0700, files with 0600. The verifiers of the roles' passwords are saved by a superuser alone. Raises BackupError when
    anything fails, when a table stays locked against readers for 30 s, and for tables that Citus distributes; then
    nothing new is in the folder. SQLite raises UnsupportedByServer.
    """
    conn = sql.require_postgres(conn, "an SQLite database is backed up as a file: sqlite3 FILE \".backup 'COPY'\"")
    # pg_dump makes settings of its session, which a pooler would lend to somebody else with them.
    require_session(conn, "a dump")
    with sql.transaction(conn):
        scattered = distributed(conn)
    if scattered:
        raise BackupError(
            "the tables are distributed by Citus, and pg_dump reads each shard as it is at another moment: back up "
            "every node with `kimera-sql backup base`, or run `kimera-sql scale undistribute` first"
        )
    pg_dump, pg_dumpall, pg_restore = (tools.find(name, conn) for name in ("pg_dump", "pg_dumpall", "pg_restore"))
    with locked(layout.dump_folder(folder)) as place:
        made_at, path = free_path(place, layout.dump_name)
        globals_, manifest = layout.globals_file(path), layout.manifest_file(path)
        # The dump last: where there is one, there is all of it.
        partial = {final: layout.partial(final) for final in (globals_, manifest, path)}
        try:
            for file in partial.values():
                file.touch(0o600)
            patiently = sql.without_timeouts(conn, _LOCK_TIMEOUT)
            with _lock_holders_told(conn), sql.snapshot(conn), patiently:
                settle(conn)
                (origin,) = _queries.describe.fetchall(conn, Origin)
                properties = read_properties(conn, origin.database)
                assert properties is not None  # noqa: S101 - it is the database of this connection
                snapshot = _queries.export_snapshot.fetchval(conn, str)
                contents = read_contents(conn)
                _dump_database(conn, pg_dump, partial[path], f"--snapshot={snapshot}", origin.size)
                _dump_roles(conn, pg_dumpall, partial[globals_])
            _decode(pg_restore, partial[path])
            made = Dump(
                path=path,
                size=partial[path].stat().st_size,
                sha256=sha256(partial[path]),
                globals_sha256=sha256(partial[globals_]),
                made_at=made_at,
                verified_at=datetime.now(UTC),
                tool_version=tools.program_version(pg_dump),
                origin=origin,
                properties=properties,
                contents=contents,
            )
            partial[manifest].write_text(_to_json(made), encoding="utf-8")
            for file in partial.values():
                fsync(file)
            for final, file in partial.items():
                file.rename(final)
            fsync(place)
        except BaseException:
            for file in (*partial.values(), *partial.keys()):
                file.unlink(missing_ok=True)
            raise
    return made


@contextmanager
def _lock_holders_told(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Name whoever holds the lock that a dump did not get, in its own connection or in that of pg_dump."""
    try:
        yield
    except (psycopg.errors.LockNotAvailable, BackupError) as error:
        held = [] if conn.closed else _locked_tables(conn)
        if isinstance(error, BackupError):
            for one in held:
                error.add_note(one)
            raise
        what = "; ".join(held) or "a table was locked against readers"
        raise BackupError(f"no lock for {_LOCK_TIMEOUT:g} s: {what}; end its transaction or try later") from error


def _locked_tables(conn: psycopg.Connection[Any]) -> list[str]:
    with conn.transaction():
        return [
            f"{table} is locked against readers by {'a prepared transaction' if pid is None else f'process {pid}'}"
            for table, pid in _queries.locked_tables.fetchall(conn)
        ]


def _dump_database(conn: psycopg.Connection[Any], pg_dump: Path, file: Path, snapshot: str, size: int) -> None:
    with Bar() as bar:
        tools.run(
            pg_dump,
            [
                "--format=custom",
                "--no-password",
                f"--lock-wait-timeout={milliseconds(_LOCK_TIMEOUT)}",
                snapshot,
                f"--file={file}",
            ],
            tools.parameters(conn),
            tick=lambda: bar.draw("dumping", file.stat().st_size, size),
        )


def _dump_roles(conn: psycopg.Connection[Any], pg_dumpall: Path, file: Path) -> None:
    parameters = tools.parameters(conn)
    arguments = [
        "--globals-only",
        "--encoding=UTF8",
        "--no-password",
        # As conninfo, which a name such as host=... would pass for
        f"--database={make_conninfo('', dbname=str(parameters['dbname']))}",
        f"--file={file}",
    ]
    if not _queries.is_superuser.fetchval(conn, bool):
        arguments.append("--no-role-passwords")
    tools.run(pg_dumpall, arguments, parameters)


def verify_dump(path: Path) -> Dump | None:
    """Compare the dump *path* with its manifest, decode it to its end, and return what the manifest says.

    A dump without a manifest, which pg_dump alone has made, is only decoded, and gives None. Raises BackupError for
    what is damaged or missing.
    """
    with reported(path):
        size = path.stat().st_size
        if size == 0:
            raise BackupError(f"{path} is empty")
        made = describe_dump(path)
        if made is not None:
            if size != made.size:
                raise BackupError(f"{path} is damaged: it has {size:,} bytes, and its manifest says {made.size:,}")
            globals_ = layout.globals_file(path)
            for file, expected in ((path, made.sha256), (globals_, made.globals_sha256)):
                if sha256(file) != expected:
                    raise BackupError(f"{file} is damaged: its sha256 is not the manifest's")
        _decode(tools.find("pg_restore", made.tool_version if made else None), path)
    return made


def _decode(pg_restore: Path, path: Path) -> None:
    # Writing the script reads and decompresses everything; --list would stop after the table of contents.
    with path.open("rb") as file:
        if file.read(5) != b"PGDMP":
            raise BackupError(f"{path} is no dump in pg_dump's custom format")
    try:
        tools.run(pg_restore, ["--file=/dev/null", path.absolute()])
    except BackupError as error:
        raise BackupError(f"{path} cannot be decoded: {error}") from None


def describe_dump(path: Path) -> Dump | None:
    """Return what the manifest of the dump *path* says, None where it has none. Raises BackupError."""
    file = layout.manifest_file(path)
    try:
        values = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise BackupError(f"{file} is no manifest: {error}") from None
    try:
        return _from_json(path, values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackupError(f"{file} is no manifest of this version: {error!r}") from None


def _to_json(made: Dump) -> str:
    values = asdict(made)
    del values["path"]
    times = {name: values[name].isoformat() for name in ("made_at", "verified_at")}
    return json.dumps(values | times, indent=1)


def _from_json(path: Path, values: Any) -> Dump:
    contents, properties, origin = (values.pop(name) for name in ("contents", "properties", "origin"))
    grants = properties["grants"]
    return Dump(
        path=path,
        made_at=datetime.fromisoformat(values.pop("made_at")),
        verified_at=datetime.fromisoformat(values.pop("verified_at")),
        origin=Origin(**{**origin, "owners": tuple(origin["owners"]), "roles": tuple(origin["roles"])}),
        properties=Properties(
            **{
                **properties,
                "settings": tuple(Setting(**one) for one in properties["settings"]),
                "grants": None if grants is None else tuple(Grant(**one) for one in grants),
            }
        ),
        contents=Contents(
            tuple(TableContent(**table) for table in contents["tables"]),
            tuple(SearchContent(one["table"], one["sample"], tuple(one["found"])) for one in contents["searches"]),
        ),
        **values,
    )
