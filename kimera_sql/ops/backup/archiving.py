"""Continuous archiving: how the server's WAL gets into the archive, and out of it for a recovery."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import psycopg

from ... import checks, sql
from ...errors import BackupError, InvalidValue
from ...sql import Connection
from . import copy_wal, layout, tools
from .base_backups import require_replication
from .files import locked
from .wal import is_segment

_queries = sql.Queries("backup")

_PACKING: Final = 5.0
"""Seconds between two looks for segments that are whole."""


def _python() -> str:
    """Return a Python that the server's user can run: this one may be in somebody's home."""
    system = shutil.which("python3", path=os.defpath)
    return system if system is not None and not _for_all(sys.executable) else sys.executable


def _for_all(program: str) -> bool:
    """Return whether every user may run *program*."""
    path = Path(program).resolve()
    return path.is_file() and all(one.stat().st_mode & 0o001 for one in (path, *path.parents))


ARCHIVE_PROGRAM: Final = (_python(), "-I", "-S", os.path.abspath(copy_wal.__file__))
"""What archives WAL, and what brings it back: a program and its first arguments."""


def archive_settings(folder: Path, *, timeout: int = 300) -> dict[str, str]:
    """Return the server's settings that archive its WAL in *folder*/wal, by name.

    *timeout* is after how many seconds (1 to 86400) a segment is archived although it is not full: what can be lost at
    most. Raises InvalidValue.
    """
    wait = checks.integer("timeout", timeout, least=1, most=86400)
    return {
        "wal_level": "replica",
        "archive_mode": "on",
        "archive_command": _command("put", '"%p"', _in_archive(layout.wal_folder(folder))),
        "archive_timeout": f"{wait}s",
    }


def restore_command(archive: Path) -> str:
    """Return the restore_command for the archive *archive*. Raises InvalidValue."""
    return _command("get", _in_archive(archive), '"%p"')


def _command(verb: str, source: str, target: str) -> str:
    return " ".join([*map(_escaped, ARCHIVE_PROGRAM), verb, source, target])


def _in_archive(archive: Path) -> str:
    return f"{_escaped(str(archive.absolute()))}/%f"


def _escaped(text: str) -> str:
    """Return *text* as a word of the shell's, in a command in which PostgreSQL replaces %p, %f and %%."""
    if not text.isprintable():
        raise InvalidValue(f"folder: control characters cannot stand in the server's settings: {text!r}")
    return shlex.quote(text).replace("%", "%%")


def postgresql_conf(settings: dict[str, str]) -> str:
    """Return *settings* as lines of postgresql.conf."""
    return "".join(f"{name} = {_literal(value)}\n" for name, value in settings.items())


def _literal(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{escaped}'"


def receive_wal(conn: Connection, folder: Path, *, slot: str = "kimera_archive") -> None:
    """Receive the server's WAL into *folder*/wal until interrupted, each record as soon as it is written.

    It stands in for archive_command where the archive is on another machine. The replication slot *slot*, which is
    made if it is not there, keeps what was not received yet: while nobody receives it, the server's disk fills, up to
    max_slot_wal_keep_size. Segments that are whole are packed. Raises BackupError when the connection ends; starting
    it anew is the service manager's task. Raises it at once for an archive that archive_command writes into, and for
    one of another user, who could not read what this one receives.
    """
    conn = require_replication(conn)
    name = checks.text("slot", slot)
    if not (0 < len(name) < 64 and all(char in "abcdefghijklmnopqrstuvwxyz0123456789_" for char in name)):
        raise InvalidValue(f"slot: expected up to 63 of a to z, 0 to 9 and _, got {slot!r}")
    tool = tools.find("pg_receivewal", conn)
    parameters = {**tools.parameters(conn), "application_name": "kimera-sql receive-wal"}
    with locked(layout.wal_folder(folder)) as archive:
        _require_free(conn, archive)
        tools.run(tool, [f"--slot={name}", "--create-slot", "--if-not-exists", "--no-password"], parameters)
        copy_wal.claim(str(archive), copy_wal.RECEIVER)
        tools.run(
            tool,
            [f"--directory={archive.absolute()}", f"--slot={name}", "--synchronous", "--no-loop", "--no-password"],
            parameters,
            tick=_Packer(archive),
        )


def _require_free(conn: psycopg.Connection[Any], archive: Path) -> None:
    """Raise BackupError, or ArchiveError, where *archive* is another user's, or where the server archives there."""
    owner = archive.stat().st_uid
    if owner != os.geteuid():
        raise BackupError(
            f"{archive} belongs to the user {tools.user_name(owner)}, and this is {tools.user_name(os.geteuid())}: run "
            f"it as {tools.user_name(owner)}"
        )
    if archives_into(_queries.archive_command.fetchval(conn, str) or "", archive):
        raise BackupError(
            f"the server's archive_command writes into {archive}, and an archive has one writer: receive into another "
            "folder, or set archive_mode = off and restart the server"
        )
    copy_wal.refuse_other(str(archive), copy_wal.RECEIVER)


def archives_into(command: str, archive: Path) -> bool:
    """Return whether the archive_command *command* names *archive*, as it is or as archive_settings quotes it."""
    path = str(archive.absolute())
    return any(re.search(rf"(?<![\w./-]){re.escape(written)}(?![\w.-])", command) for written in (path, _escaped(path)))


@dataclass(slots=True)
class _Packer:
    """Packs the segments in *archive* that pg_receivewal has finished, when called, but not at every call."""

    archive: Path
    due: float = 0.0

    def __call__(self) -> None:
        if monotonic() < self.due:
            return
        for path in self.archive.iterdir():
            if is_segment(path.name):
                copy_wal.pack(str(path))
        self.due = monotonic() + _PACKING
