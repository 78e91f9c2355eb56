"""Base backups, and the archive of WAL that makes every moment since them recoverable.

The folder's layout is that of the module backup.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Any, Final

import psycopg

from ... import checks, sql
from ...errors import BackupError, InvalidValue
from ...progress import Bar
from ...sql import Connection
from . import archiving as archive
from . import tools
from .files import PARTIAL, fsync, locked, reported

_queries = sql.Queries("basebackup")

_CHANGED_BY_RECOVERY: Final = {"backup_manifest", "postgresql.auto.conf", "recovery.signal", "standby.signal"}
"""What pg_verifybackup passes over."""


def _for_all(program: str) -> bool:
    """Return whether every user may run *program*."""
    path = Path(program).resolve()
    return path.is_file() and all(one.stat().st_mode & 0o001 for one in (path, *path.parents))


def _python() -> str:
    """Return a Python that the server's user can run: this one may be in somebody's home."""
    system = shutil.which("python3", path=os.defpath)
    return system if system is not None and not _for_all(sys.executable) else sys.executable


PROGRAM: Final = (_python(), "-I", "-S", os.path.abspath(archive.__file__))
"""What archives WAL, and what brings it back."""


@dataclass(frozen=True, slots=True)
class BaseBackup:
    """What the manifest of a base backup says. size: bytes, without WAL. major: the server's version.

    Recovery from it begins at start_lsn on timeline, and cannot stop before end_lsn. started_at is to the second.
    """

    path: Path
    size: int
    major: int
    started_at: datetime
    timeline: int
    start_lsn: str
    end_lsn: str


def make(conn: Connection, folder: Path) -> BaseBackup:
    """Make a base backup of *conn*'s server in *folder*, verify it, and return what it is.

    *conn* is an autocommit connection by a role with REPLICATION, which pg_hba.conf must let connect for replication.
    The WAL that the backup itself needs goes along, over a second such connection. It is on the disk and went through
    pg_verifybackup before it gets its name. Raises BackupError when anything fails; then nothing new is in the folder.
    SQLite raises UnsupportedByServer.
    """
    server = _replicating(conn)
    if outside := [name for (name,) in _queries.tablespaces.fetchall(server)]:
        raise BackupError(
            f"the server has tablespaces outside its data folder ({', '.join(outside)}), which a base backup would put "
            "in the same places here; use pg_basebackup with --tablespace-mapping"
        )
    pg_basebackup = tools.find("pg_basebackup", server)
    with locked(folder / "base") as bases:
        path = _free_name(bases)
        partial = bases / f".{path.name}{PARTIAL}"
        application = f"kimera-sql {path.name}"
        partial.mkdir(0o700)
        with Bar() as bar:

            def draw() -> None:
                row = _queries.progress.fetchone(server, application=application)
                if row is not None and row[1]:
                    bar.draw("base backup", *row)

            try:
                tools.run(
                    pg_basebackup,
                    [
                        f"--pgdata={partial.absolute()}",
                        "--format=plain",
                        "--wal-method=stream",
                        "--checkpoint=fast",
                        "--manifest-checksums=SHA256",
                        f"--label={path.name}",
                        "--no-password",
                    ],
                    {**tools.parameters(server), "application_name": application},
                    tick=draw,
                )
                # Where the server lets its group read, pg_basebackup does too.
                partial.chmod(0o700)
                verify(partial)
                made = describe(partial)
                # pg_basebackup has synced what it wrote.
                partial.rename(path)
                fsync(bases)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return replace(made, path=path)


def verify(base: Path, *, archive: Path | None = None) -> None:
    """Compare every file of a base backup with its manifest, and read the WAL that it needs.

    That WAL is its own, or the *archive*'s where it has none. pg_verifybackup does so; where the server's version of it
    is missing or does not run, as in the embedded PostgreSQL 18, the same is done here, with pg_waldump. Raises
    BackupError for what is missing or damaged.
    """
    made = describe(base)
    own = any(len(file.name) == 24 for file in (base / "pg_wal").glob("*"))
    wal = (base / "pg_wal" if own or archive is None else archive).absolute()
    try:
        tool = tools.find("pg_verifybackup", made.major * 10000, exact=True)
    except BackupError:
        tool = None
    try:
        if tool is not None:
            tools.run(tool, ["--quiet", f"--wal-directory={wal}", base.absolute()])
        else:
            _compare(base)
            _read_wal(made, wal)
    except BackupError as error:
        raise BackupError(f"{base} is damaged: {error}") from None


def describe(base: Path) -> BaseBackup:
    """Return what the manifest of the base backup *base* says. Raises BackupError when it is none."""
    with reported(base):
        try:
            manifest = json.loads((base / "backup_manifest").read_bytes())
            files = {one["Path"]: one for one in manifest["Files"] if "Path" in one}
            ranges = manifest["WAL-Ranges"]
            # The server sends this file first, when the backup has just begun.
            label = files["backup_label"]["Last-Modified"]
            return BaseBackup(
                path=base,
                size=sum(one["Size"] for one in manifest["Files"]),
                major=int((base / "PG_VERSION").read_text()),
                started_at=datetime.strptime(label, "%Y-%m-%d %H:%M:%S GMT").replace(tzinfo=UTC),
                timeline=int(ranges[0]["Timeline"]),
                start_lsn=str(ranges[0]["Start-LSN"]),
                end_lsn=str(ranges[-1]["End-LSN"]),
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BackupError(f"{base} is no base backup: it has no {Path(error.filename).name}") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BackupError(f"{base} is damaged: its manifest or PG_VERSION cannot be read: {error!r}") from None


def _compare(base: Path) -> None:
    """Compare *base* with its manifest: https://www.postgresql.org/docs/current/backup-manifest-format.html."""
    with reported(base):
        content = (base / "backup_manifest").read_bytes()
        manifest = json.loads(content)
        checked = content[: content.rstrip(b"\n").rfind(b"\n") + 1]
        if hashlib.sha256(checked).hexdigest() != manifest.get("Manifest-Checksum"):
            raise BackupError("manifest checksum mismatch")
        unlisted = {path.relative_to(base).as_posix() for path in base.rglob("*") if not path.is_dir()}
        for file in manifest["Files"]:
            name = file["Path"] if "Path" in file else os.fsdecode(bytes.fromhex(file["Encoded-Path"]))
            if name in _CHANGED_BY_RECOVERY:
                continue
            if name not in unlisted:
                raise BackupError(f'"{name}" is present in the manifest but not on disk')
            unlisted.remove(name)
            size = (base / name).stat().st_size
            if size != file["Size"]:
                raise BackupError(f'"{name}" has size {size} on disk but size {file["Size"]} in the manifest')
            if file.get("Checksum-Algorithm") != "SHA256":
                raise BackupError(f'"{name}" has no SHA256 in the manifest: this takes pg_verifybackup')
            with (base / name).open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != file["Checksum"]:
                    raise BackupError(f'checksum mismatch for file "{name}"')
        for name in sorted(unlisted - _CHANGED_BY_RECOVERY):
            if not name.startswith("pg_wal/"):
                raise BackupError(f'"{name}" is present on disk but not in the manifest')


def _read_wal(made: BaseBackup, wal: Path) -> None:
    tool = tools.find("pg_waldump", made.major * 10000, exact=True)
    for part in json.loads((made.path / "backup_manifest").read_bytes())["WAL-Ranges"]:
        where = [f"--timeline={part['Timeline']}", f"--start={part['Start-LSN']}", f"--end={part['End-LSN']}"]
        try:
            tools.run(tool, ["--quiet", f"--path={wal}", *where])
        except BackupError as error:
            raise BackupError(f"WAL parsing failed for timeline {part['Timeline']}: {error}") from None


def archive_settings(folder: Path, *, timeout: int = 300) -> dict[str, str]:
    """Return the server's settings that archive its WAL in *folder*/wal, by name.

    *timeout* is after how many seconds (1 to 86400) a segment is archived although it is not full: what can be lost at
    most. Raises InvalidValue.
    """
    wait = checks.integer("timeout", timeout, least=1, most=86400)
    return {
        "wal_level": "replica",
        "archive_mode": "on",
        "archive_command": _command("put", '"%p"', _in_archive(folder / "wal")),
        "archive_timeout": f"{wait}s",
    }


def restore_command(archive: Path) -> str:
    """Return the restore_command for the archive *archive*. Raises InvalidValue."""
    return _command("get", _in_archive(archive), '"%p"')


def conf(settings: dict[str, str]) -> str:
    """Return *settings* as lines of postgresql.conf."""
    return "".join(f"{name} = {_literal(value)}\n" for name, value in settings.items())


def receive_wal(conn: Connection, folder: Path, *, slot: str = "kimera_archive") -> None:
    """Receive the server's WAL into *folder*/wal until interrupted, each record as soon as it is written.

    It stands in for archive_command where the archive is on another machine. The replication slot *slot*, which is
    made if it is not there, keeps what was not received yet: while nobody receives it, the server's disk fills, up to
    max_slot_wal_keep_size. Raises BackupError when the connection ends; starting it anew is the service manager's task.
    """
    server = _replicating(conn)
    name = checks.text("slot", slot)
    if not (0 < len(name) < 64 and all(char in "abcdefghijklmnopqrstuvwxyz0123456789_" for char in name)):
        raise InvalidValue(f"slot: expected up to 63 of a to z, 0 to 9 and _, got {slot!r}")
    tool = tools.find("pg_receivewal", server)
    parameters = {**tools.parameters(server), "application_name": "kimera-sql receive-wal"}
    with locked(folder / "wal") as wal:
        tools.run(tool, [f"--slot={name}", "--create-slot", "--if-not-exists", "--no-password"], parameters)
        tools.run(
            tool,
            [f"--directory={wal.absolute()}", f"--slot={name}", "--synchronous", "--no-loop", "--no-password"],
            parameters,
        )


def _replicating(conn: Connection) -> psycopg.Connection[Any]:
    conn = sql.require_postgres(
        conn, "an SQLite database has no base backups; copy it: sqlite3 FILE \".backup 'COPY'\""
    )
    if not conn.autocommit:
        raise InvalidValue("conn: expected an autocommit connection")
    row = _queries.role.fetchone(conn)
    if row is not None and not row[1]:
        raise BackupError(
            f"the role {row[0]} may not make base backups or receive WAL; a superuser can allow it: "
            f'ALTER ROLE "{row[0]}" REPLICATION'
        )
    return conn


def _free_name(bases: Path) -> Path:
    """Return the name for a backup that begins now, or in the next second where there is one of this."""
    while True:
        path = bases / f"kimera_base_{datetime.now(UTC):%Y%m%d_%H%M%S}"
        if not path.exists():
            return path
        sleep(0.1)


def _command(verb: str, source: str, target: str) -> str:
    return " ".join([*map(_escaped, PROGRAM), verb, source, target])


def _in_archive(folder: Path) -> str:
    return f"{_escaped(str(folder.absolute()))}/%f"


def _escaped(text: str) -> str:
    """Return *text* as a word of the shell's, in a command in which PostgreSQL replaces %p, %f and %%."""
    if not text.isprintable():
        raise InvalidValue(f"folder: control characters cannot stand in the server's settings: {text!r}")
    return shlex.quote(text).replace("%", "%%")


def _literal(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"
