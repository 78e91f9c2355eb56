"""What the tests of monitoring and of the doctor share: connections, roles, rows, and servers of their own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo
from strategies import unit

from kimera_sql import add_adapters, geoids
from kimera_sql.ops.backup import tools
from kimera_sql.sql.postgres import Connection
from kimera_sql.vectors import Vector

T = TypeVar("T")


@contextmanager
def connected(database: str, **parameters: str) -> Iterator[Connection]:
    with psycopg.connect(make_conninfo(database, **parameters), autocommit=True) as conn:
        add_adapters(conn)
        yield conn


@pytest.fixture
def own_conn(database: str) -> Iterator[Connection]:
    """An autocommit connection to a database of the test's own."""
    with connected(database) as conn:
        yield conn


@pytest.fixture
def role(database: str) -> Iterator[str]:
    """A role that may log in and nothing else."""
    name = f"kimera_test_{uuid4().hex}"
    with connected(database) as conn:
        conn.execute(composed.SQL("CREATE ROLE {} LOGIN").format(composed.Identifier(name)))
        yield name
        conn.execute(composed.SQL("DROP OWNED BY {}").format(composed.Identifier(name)))
        conn.execute(composed.SQL("DROP ROLE {}").format(composed.Identifier(name)))


def grant(conn: Connection, what: str, role: str) -> None:
    conn.execute(composed.SQL(f"GRANT {what} TO {{}}").format(composed.Identifier(role)))


def fill(conn: Connection, count: int) -> None:
    geoids.insert_many(
        conn,
        [
            geoids.NewGeoid(state_vector=unit(seed), entropy=0, coherence_factor=0, energy_level=0)
            for seed in range(count)
        ],
    )


def keep(conn: Connection, *queries: Vector, k: int = 10) -> None:
    """Put *queries* into the sample of searches, as a pool's connections do, each in a place of its own."""
    for place, query in enumerate(queries):
        conn.execute(
            "INSERT INTO kimera_sampled_searches (table_name, place, query, k) VALUES ('geoid_states', %s, %b, %s)",
            [place, query, k],
        )


def extension(conn: Connection) -> str:
    """Return the version of the server's pgvector."""
    row = conn.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    assert row
    return str(row[0])


def until(look: Callable[[], T]) -> T:
    """Return what *look* gives as soon as that is something; the server's statistics lag behind a little."""
    for _ in range(600):
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("it never came to be")


def only(rows: list[T], **fields: Any) -> T:
    """Return the one of *rows* that has *fields*."""
    (row,) = [row for row in rows if all(getattr(row, name) == value for name, value in fields.items())]
    return row


@contextmanager
def own_server(binaries: Path, folder: Path) -> Iterator[Callable[..., str]]:
    """Give a function that starts a server of the programs in *binaries* with settings, and returns its conninfo."""
    user = tools.server_user()
    if user:
        shutil.chown(folder, user)

    def control(name: str, *arguments: str) -> None:
        subprocess.run(
            [binaries / name, "-D", folder / "data", *arguments],
            user=user,
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=120,
        )

    def stop() -> None:
        if (folder / "data/postmaster.pid").exists():
            control("pg_ctl", "-m", "fast", "stop")

    def start(**settings: str) -> str:
        stop()
        given = {"listen_addresses": "", "unix_socket_directories": str(folder), **settings}
        options = " ".join(f"-c {name}='{value}'" for name, value in given.items())
        control("pg_ctl", "-l", str(folder / "log"), "-w", "-o", options, "start")
        return make_conninfo(host=str(folder), user="postgres", dbname="postgres")

    control("initdb", "-A", "trust", "-U", "postgres", "--no-sync")
    try:
        yield start
    finally:
        stop()
