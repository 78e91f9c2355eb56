"""Servers of the tests' own that archive their WAL, for base backups and recovery."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_servers import WHEELS, programs
from psycopg.conninfo import make_conninfo

from kimera_sql import add_adapters
from kimera_sql.ops.backup import archive_settings, postgresql_conf, tools

PASSWORD = "planted-secret"

NAMES = [name for name in ("postgres18", "postgres15") if name in WHEELS]

# Small segments on one of the two, so that none is taken for granted
_SEGMENT_MB = {"postgres18": 16, "postgres15": 1}

_CONF = """
listen_addresses = ''
unix_socket_directories = '{folder}'
fsync = off
autovacuum = off
"""

_HBA = """\
local replication refused reject
local all secretive scram-sha-256
local replication secretive scram-sha-256
local all all trust
local replication all trust
"""


@dataclass(frozen=True)
class Cluster:
    """A server that archives into backups/wal. conninfo: a superuser's."""

    name: str
    binaries: Path
    folder: Path
    backups: Path
    conninfo: str

    @property
    def wal(self) -> Path:
        return self.backups / "wal"

    def connect(self, **parameters: str) -> psycopg.Connection[Any]:
        conn = psycopg.connect(make_conninfo(self.conninfo, **parameters), autocommit=True)
        add_adapters(conn)
        return conn

    def switch(self) -> None:
        """Begin a new segment of WAL, and wait for the one before to be archived."""
        with self.connect() as conn:
            # An empty segment is not switched.
            conn.execute("SELECT pg_logical_emit_message(false, 'tests', 'written')")
            row = conn.execute("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").fetchone()
            assert row is not None
            conn.execute("SELECT pg_switch_wal()")
        for _ in range(3000):
            if (self.wal / f"{row[0]}.gz").exists():
                return
            time.sleep(0.02)
        raise TimeoutError(f"{row[0]} was not archived: {(self.folder / 'log').read_text()[-2000:]}")


@contextmanager
def cluster(name: str) -> Iterator[Cluster]:
    """Make a server, run it, and remove it. Its programs come first on PATH meanwhile."""
    binaries = programs(name)
    user = tools.server_user()
    with (
        tempfile.TemporaryDirectory(prefix="kimera_test_") as parent,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
        folder = Path(parent)
        folder.chmod(0o755)
        backups, data = folder / "backups", folder / "data"
        for made in (backups, backups / "wal", data):
            made.mkdir(0o700)
            if user is not None:
                shutil.chown(made, user)
        initdb = ["--auth=trust", "--no-sync", "--username=postgres", "--locale=C", "--encoding=UTF8"]
        tools.run(binaries / "initdb", [*initdb, f"--wal-segsize={_SEGMENT_MB[name]}", f"--pgdata={data}"], user=user)
        (data / "pg_hba.conf").write_text(_HBA)
        with (data / "postgresql.conf").open("a") as conf:
            conf.write(_CONF.format(folder=data) + postgresql_conf(archive_settings(backups)))
        start(binaries, data, folder / "log")
        try:
            yield Cluster(
                name, binaries, folder, backups, make_conninfo("", host=str(data), user="postgres", dbname="postgres")
            )
        finally:
            if (data / "postmaster.pid").exists():
                stop(binaries, data)


@contextmanager
def standby(primary: Cluster, name: str = "reader") -> Iterator[str]:
    """Run a standby that streams from *primary* under a name, and yield a superuser's conninfo of it."""
    data, user = primary.folder / name, tools.server_user()
    data.mkdir(0o700)
    if user is not None:
        shutil.chown(data, user)
    source = make_conninfo(primary.conninfo, dbname="", application_name=name)
    arguments = [f"--pgdata={data}", f"--dbname={source}", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
    tools.run(primary.binaries / "pg_basebackup", arguments, user=user)
    (data / ".s.PGSQL.5432.lock").unlink()  # the primary's, which keeps its socket among its data
    with (data / "postgresql.conf").open("a") as conf:
        conf.write(f"unix_socket_directories = '{data}'\n")
    try:
        start(primary.binaries, data, primary.folder / f"{name}.log")
        yield make_conninfo(primary.conninfo, host=str(data))
    finally:
        if (data / "postmaster.pid").exists():
            stop(primary.binaries, data)


def start(binaries: Path, data: Path, log: Path) -> None:
    log.touch(0o666)
    log.chmod(0o666)
    tools.run(binaries / "pg_ctl", ["start", "-w", "-s", f"-D{data}", f"-l{log}"], user=tools.server_user())


def stop(binaries: Path, data: Path) -> None:
    tools.run(binaries / "pg_ctl", ["stop", "-w", "-s", "-mimmediate", f"-D{data}"], user=tools.server_user())


def arguments_of_all() -> str:
    """Return the arguments of all processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.append((process / "cmdline").read_bytes())
        except OSError:
            continue  # it has ended
    return b"\n".join(found).decode(errors="replace")


def files_with(text: str, *folders: Path) -> list[Path]:
    """Return the files in *folders* that have *text* in them."""
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]
