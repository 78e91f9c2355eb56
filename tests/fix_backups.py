"""What the tests of backups share: a database with rows of every kind, a dump of one, and damage."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from fix_servers import Server
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo
from strategies import unit

from kimera_sql import add_adapters, embeddings, geoids, metrics, portals, transitions
from kimera_sql.ops import backup
from kimera_sql.ops.backup import tools
from kimera_sql.sql import Connection

SECRET = "planted-secret: \\ 'ä'"


def fill(conn: Connection, rows: int = 40) -> None:
    states = [
        geoids.insert(
            conn,
            geoids.NewGeoid(
                state_vector=unit(number),
                entropy=number / 7,
                coherence_factor=-0.0,
                energy_level=1e300,
                metadata={"number": number, "text": "ä\n\\"},
                creation_context="" if number % 2 else None,
                tags=["a", "b"][: number % 3],
            ),
        )
        for number in range(rows)
    ]
    for source, target in itertools.pairwise(states):
        transitions.record(conn, source.id, target.id, "association", energy=0.1, error=1e-300)
    for number in range(5):
        embeddings.insert(
            conn, embeddings.NewEmbedding(text_content=f"text {number}", embedding=unit(number), source="test")
        )
    portals.insert(
        conn,
        portals.NewPortal(
            source_dimension=1,
            target_dimension=2,
            radius=0.1,
            energy_requirement=0.2,
            stability_factor=0.3,
            configuration_parameters={"phase": 1},
            status="active",
        ),
    )
    metrics.record(conn, "search_ms", 1 / 3, component="geoids")


@pytest.fixture
def filled(database: str) -> str:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn)
    return database


@pytest.fixture(scope="module")
def sample(newest: Server, tmp_path_factory: pytest.TempPathFactory) -> backup.Dump:
    """A dump to copy, of the newest server."""
    database = newest.create(template=newest.template)
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn, 3)
        conn.commit()
        made = backup.make_dump(conn, tmp_path_factory.mktemp("sample"))
    newest.drop(database)
    return made


def copied(sample: backup.Dump, folder: Path, moment: datetime) -> Path:
    """Put *sample* into *folder* as if it had been made at *moment*."""
    (folder / "dumps").mkdir(parents=True, exist_ok=True)
    path = folder / "dumps" / f"kimera_full_{moment:%Y%m%d_%H%M%S}.dump"
    for suffix in (".dump", ".globals.sql", ".json"):
        shutil.copy(sample.path.with_suffix(suffix), path.with_suffix(suffix))
    return path


def base_backup(server: Server, folder: Path, moment: datetime) -> Path:
    """Make a base backup as if *moment* were now."""
    (folder / "base").mkdir(parents=True, exist_ok=True)
    path = folder / "base" / f"kimera_base_{moment:%Y%m%d_%H%M%S}"
    with psycopg.connect(server.conninfo) as conn:
        tools.run(
            tools.find("pg_basebackup", conn),
            [f"--pgdata={path}", "--checkpoint=fast", "--manifest-checksums=SHA256"],
            tools.parameters(conn),
        )
    os.utime(path / "backup_manifest", (moment.timestamp(), moment.timestamp()))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def flip(path: Path, at: float) -> None:
    """Flip a bit of *path*, *at* of the way through it."""
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 4
    path.write_bytes(content)


@contextmanager
def held_up(database: str) -> Iterator[None]:
    """Let pg_dump wait for a table that nothing else reads, until the session `holder` ends."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS waited_for (number INTEGER) PARTITION BY RANGE (number)")
    holder = psycopg.connect(database, application_name="holder")
    holder.execute("LOCK TABLE waited_for")
    try:
        yield
    finally:
        holder.close()


def wait_for_pg_dump(conn: psycopg.Connection) -> None:
    for _ in range(1000):
        if conn.execute(
            "SELECT FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'"
        ).rowcount:
            return
        time.sleep(0.02)
    raise TimeoutError("pg_dump does not wait for the lock")


def processes_with(variable: str) -> list[str]:
    """The command lines of the processes that have *variable*, NAME=VALUE, in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def children(program: str) -> list[int]:
    """The processes of *program* that this one, or a child of it, has started."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            parents[pid] = int(rest.split()[1])
            if name == program:
                found.append(pid)

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in found if ours(pid)]


@pytest.fixture
def admin(server: Server) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.conninfo, autocommit=True) as conn:
        yield conn


@pytest.fixture
def name(server: Server) -> Iterator[str]:
    """The name for a database, which is dropped in the end, as are those that it replaced."""
    name = f"Restored ä {uuid4().hex}"
    yield name
    with psycopg.connect(server.conninfo, autocommit=True) as conn:
        for one in databases(conn):
            if one.startswith(name[:39]):
                database = composed.Identifier(one)
                conn.execute(composed.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(database))
                conn.execute(composed.SQL("DROP DATABASE {} WITH (FORCE)").format(database))


def databases(conn: psycopg.Connection) -> list[str]:
    return [row[0] for row in conn.execute("SELECT datname FROM pg_database ORDER BY datname")]


def inside(server: Server, name: str) -> psycopg.Connection:
    return psycopg.connect(make_conninfo(server.conninfo, dbname=name), autocommit=True)


def make_old(server: Server, admin: psycopg.Connection, name: str) -> None:
    """Make a database *name* that is to be replaced, with a table in it."""
    admin.execute(composed.SQL("CREATE DATABASE {}").format(composed.Identifier(name)))
    with inside(server, name) as conn:
        conn.execute("CREATE TABLE precious (number INTEGER)")
        conn.execute("INSERT INTO precious VALUES (42)")


def precious(server: Server, name: str) -> int:
    with inside(server, name) as conn:
        row = conn.execute("SELECT number FROM precious").fetchone()
    assert row is not None
    return int(row[0])
