"""Base backups: a copy of all the server's files, made with pg_basebackup and verified."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg

from ... import sql
from ...errors import BackupError, InvalidValue
from ...leftovers import temporary_folder
from ...progress import Bar
from ...servers import require_session
from ...sql import Connection
from ..shards import distributed
from . import copy_wal, layout, tools
from .configuration import COPY, copy_configuration, read_configuration
from .files import free_path, fsync, locked, reported, sha256
from .wal import is_segment, position, segment_name

_queries = sql.Queries("backup")

_NOT_LISTED: Final = {"backup_manifest", "postgresql.auto.conf", "recovery.signal", "standby.signal", COPY}
"""What pg_verifybackup passes over, the last because it is told to."""


@dataclass(frozen=True, slots=True)
class BaseBackup:
    """What the manifest of a base backup says. size: bytes, without WAL. major: the server's version.

    Recovery from it begins at start_lsn on timeline, and cannot stop before end_lsn. started_at is to the second.
    lacking: what is not in the backup, a sentence each: configuration outside the data folder and, of one that was just
    made, the other nodes of Citus.
    """

    path: Path
    size: int
    major: int
    started_at: datetime
    timeline: int
    start_lsn: str
    end_lsn: str
    lacking: tuple[str, ...]


def make_base(conn: Connection, folder: Path) -> BaseBackup:
    """Make a base backup of *conn*'s server in *folder*, verify it, and return what it is.

    *conn* is an autocommit connection by a role with REPLICATION, which pg_hba.conf must let connect for replication.
    The WAL that the backup itself needs goes along, over a second such connection, and so does a copy of the
    configuration that is outside the data folder, as far as it can be read. It is on the disk and went through
    pg_verifybackup before it gets its name. Raises BackupError when anything fails; then nothing new is in the folder.
    SQLite raises UnsupportedByServer.
    """
    conn = require_replication(conn)
    if outside := [name for (name,) in _queries.outside_tablespaces.fetchall(conn)]:
        raise BackupError(
            f"the server has tablespaces outside its data folder ({', '.join(outside)}), which a base backup would put "
            "in the same places here; use pg_basebackup with --tablespace-mapping"
        )
    pg_basebackup = tools.find("pg_basebackup", conn)
    with locked(layout.base_folder(folder)) as place:
        _, path = free_path(place, layout.base_name)
        partial = layout.partial(path)
        partial.mkdir(0o700)
        try:
            _copy_server(conn, pg_basebackup, partial, path.name)
            # Where the server lets its group read, pg_basebackup does too.
            partial.chmod(0o700)
            copy_configuration(conn, partial)
            verify_base(partial)
            made = describe_base(partial)
            # pg_basebackup has synced what it wrote.
            partial.rename(path)
            fsync(place)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    if distributed(conn):
        apart = "the other nodes of Citus have rows of this database, and are not in the backup: back up each of them"
        made = replace(made, lacking=(*made.lacking, apart))
    return replace(made, path=path)


def require_replication(conn: Connection) -> psycopg.Connection[Any]:
    """Return *conn*, an autocommit connection to PostgreSQL by a role that may make base backups and receive WAL.

    Raises BackupError for another role, InvalidValue without autocommit or behind a pooler, and UnsupportedByServer for
    SQLite.
    """
    conn = sql.require_postgres(
        conn, "an SQLite database has no base backups; copy it: sqlite3 FILE \".backup 'COPY'\""
    )
    if not conn.autocommit:
        raise InvalidValue("conn: expected an autocommit connection")
    require_session(conn, "replication")
    row = _queries.replication_role.fetchone(conn)
    if row is not None and not row[1]:
        raise BackupError(
            f"the role {row[0]} may not make base backups or receive WAL; a superuser can allow it: "
            f'ALTER ROLE "{row[0]}" REPLICATION'
        )
    return conn


def _copy_server(conn: psycopg.Connection[Any], pg_basebackup: Path, target: Path, name: str) -> None:
    application = f"kimera-sql {name}"
    with Bar() as bar:

        def draw() -> None:
            row = _queries.base_progress.fetchone(conn, application=application)
            if row is not None and row[1]:
                bar.draw("base backup", *row)

        tools.run(
            pg_basebackup,
            [
                f"--pgdata={target.absolute()}",
                "--format=plain",
                "--wal-method=stream",
                "--checkpoint=fast",
                "--manifest-checksums=SHA256",
                f"--label={name}",
                "--no-password",
            ],
            {**tools.parameters(conn), "application_name": application},
            tick=draw,
        )


def verify_base(path: Path, *, archive: Path | None = None) -> None:
    """Compare every file of the base backup *path* with its manifest, and read the WAL that it needs.

    That WAL is its own, or the *archive*'s where it has none. pg_verifybackup does so; where the server's version of it
    is missing or does not run, as in the embedded PostgreSQL 18, the same is done here, with pg_waldump. Raises
    BackupError for what is missing or damaged.
    """
    made = describe_base(path)
    try:
        tool = tools.find("pg_verifybackup", made.major * 10000, exact=True)
    except BackupError:
        tool = None
    try:
        with _wal_of(made, archive) as wal_folder:
            if tool is not None:
                tools.run(tool, ["--quiet", f"--ignore={COPY}", f"--wal-directory={wal_folder}", path.absolute()])
            else:
                _compare(path)
                _read_wal(made, wal_folder)
    except BackupError as error:
        raise BackupError(f"{path} is damaged: {error}") from None


@contextmanager
def _wal_of(made: BaseBackup, archive: Path | None) -> Iterator[Path]:
    """Give a folder with the WAL that *made* needs: its own, or an unpacked copy of the *archive*'s."""
    own = (made.path / "pg_wal").absolute()
    if archive is None or any(is_segment(file.name) for file in own.glob("*")):
        yield own
        return
    with temporary_folder() as folder:
        with reported(archive):
            _fetch_wal(made, archive, folder)
        yield folder


def _fetch_wal(made: BaseBackup, archive: Path, target: Path) -> None:
    first = first_segment(made.path)
    if not copy_wal.get(str(archive / first), str(target / first)):
        raise BackupError(f"{archive} lacks the WAL segment {first}")
    size = (target / first).stat().st_size
    for part in _wal_ranges(made):
        for number in range(position(part["Start-LSN"]) // size, (position(part["End-LSN"]) - 1) // size + 1):
            name = segment_name(int(part["Timeline"]), number, size)
            copy_wal.get(str(archive / name), str(target / name))


def _wal_ranges(made: BaseBackup) -> list[dict[str, Any]]:
    ranges: list[dict[str, Any]] = json.loads((made.path / "backup_manifest").read_bytes())["WAL-Ranges"]
    return ranges


def _compare(path: Path) -> None:
    """Compare a base backup with its manifest: https://www.postgresql.org/docs/current/backup-manifest-format.html."""
    with reported(path):
        content = (path / "backup_manifest").read_bytes()
        manifest = json.loads(content)
        checked = content[: content.rstrip(b"\n").rfind(b"\n") + 1]
        if hashlib.sha256(checked).hexdigest() != manifest.get("Manifest-Checksum"):
            raise BackupError("manifest checksum mismatch")
        unlisted = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
        for file in manifest["Files"]:
            name = file["Path"] if "Path" in file else os.fsdecode(bytes.fromhex(file["Encoded-Path"]))
            if name in _NOT_LISTED:
                continue
            if name not in unlisted:
                raise BackupError(f'"{name}" is present in the manifest but not on disk')
            unlisted.remove(name)
            size = (path / name).stat().st_size
            if size != file["Size"]:
                raise BackupError(f'"{name}" has size {size} on disk but size {file["Size"]} in the manifest')
            if file.get("Checksum-Algorithm") != "SHA256":
                raise BackupError(f'"{name}" has no SHA256 in the manifest: this takes pg_verifybackup')
            if sha256(path / name) != file["Checksum"]:
                raise BackupError(f'checksum mismatch for file "{name}"')
        for name in sorted(unlisted - _NOT_LISTED):
            if not name.startswith("pg_wal/"):
                raise BackupError(f'"{name}" is present on disk but not in the manifest')


def _read_wal(made: BaseBackup, wal_folder: Path) -> None:
    tool = tools.find("pg_waldump", made.major * 10000, exact=True)
    for part in _wal_ranges(made):
        where = [f"--timeline={part['Timeline']}", f"--start={part['Start-LSN']}", f"--end={part['End-LSN']}"]
        try:
            tools.run(tool, ["--quiet", f"--path={wal_folder}", *where])
        except BackupError as error:
            raise BackupError(f"WAL parsing failed for timeline {part['Timeline']}: {error}") from None


def describe_base(path: Path) -> BaseBackup:
    """Return what the manifest of the base backup *path* says. Raises BackupError when it is none."""
    with reported(path):
        try:
            manifest = json.loads((path / "backup_manifest").read_bytes())
            files = {one["Path"]: one for one in manifest["Files"] if "Path" in one}
            ranges = manifest["WAL-Ranges"]
            # The server sends this file first, when the backup has just begun.
            label = files["backup_label"]["Last-Modified"]
            return BaseBackup(
                path=path,
                size=sum(one["Size"] for one in manifest["Files"]),
                major=major_version(path),
                started_at=datetime.strptime(label, "%Y-%m-%d %H:%M:%S GMT").replace(tzinfo=UTC),
                timeline=int(ranges[0]["Timeline"]),
                start_lsn=str(ranges[0]["Start-LSN"]),
                end_lsn=str(ranges[-1]["End-LSN"]),
                lacking=read_configuration(path).lacking,
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BackupError(f"{path} is no base backup: it has no {Path(error.filename).name}") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BackupError(f"{path} is damaged: its manifest or PG_VERSION cannot be read: {error!r}") from None


def major_version(path: Path) -> int:
    """Return the major version of the server that the base backup *path* is of."""
    version = path / "PG_VERSION"
    text = version.read_text().strip()
    if not text.isdecimal():
        raise BackupError(f"{version} is damaged")
    return int(text)


def system_identifier(path: Path) -> str | None:
    """Return the system identifier of the server that the base backup *path* is of, None where it is missing."""
    try:
        with (path / "global/pg_control").open("rb") as file:
            # In the byte order of the machine, as the server wrote it
            (number,) = struct.unpack("=q", file.read(8))
    except (FileNotFoundError, struct.error):
        return None
    return str(number)


def first_segment(path: Path) -> str:
    """Return the name of the segment of WAL in which recovery from the base backup *path* begins."""
    label = path / "backup_label"
    found = re.search(r"^START WAL LOCATION: .*\(file ([0-9A-F]{24})\)$", label.read_text(), re.MULTILINE)
    if not found:
        raise BackupError(f"{label} names no WAL segment")
    return found[1]
