"""Databases of the tests' own, and connections to databases that tests share."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Final

import psycopg
import pytest
from fix_servers import NAMES, Server
from fix_twins import asynchronous

from kimera_sql import SqlitePool, add_adapters, migrate
from kimera_sql.sql import Connection


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


@pytest.fixture(scope="session")
def shared(start: Callable[[str], Server]) -> Iterator[Callable[[str], str]]:
    """A function that returns the conninfo of a server's database with the schema, or the path of SQLite's file."""
    with ExitStack() as stack:

        @cache
        def made(name: str) -> str:
            if name == "sqlite":
                path = stack.enter_context(tempfile.TemporaryDirectory(prefix="kimera_test_")) + "/shared.db"
                with SqlitePool(path) as pool, pool.connection() as conn:
                    migrate(conn)
                return path
            server = start(name)
            conninfo = server.create(template=server.template)
            stack.callback(server.drop, conninfo)
            return conninfo

        yield made


@contextmanager
def cancelled_soon(conn: psycopg.Connection) -> Iterator[None]:
    """Cancel what *conn* runs in the block, a moment after it has begun."""
    timer = threading.Timer(0.3, conn.cancel)  # cancel_safe of an asynchronous one needs the loop that is waiting
    timer.start()
    yield
    timer.join()


@contextmanager
def rolled_back(name: str, shared: Callable[[str], str]) -> Iterator[Connection]:
    """Lend a connection to the server of a name, or to sqlite; an asynchronous one if asynchronous- stands before."""
    where = shared(name.removeprefix("asynchronous-"))
    if name.startswith("asynchronous-"):
        with asynchronous(where) as conn:
            yield conn
    elif name == "sqlite":
        with SqlitePool(where) as pool, pool.connection() as file:
            yield file
            file.rollback()
    else:
        with psycopg.connect(where) as conn:
            add_adapters(conn)
            yield conn
            conn.rollback()


NEWEST_TWINS: Final = [f"{twin}{name}" for name in NAMES[:1] for twin in ("", "asynchronous-")]
"""Names of rolled_back's for connections of both kinds to the newest server."""

BOTH_TWINS: Final = [*NAMES, *NEWEST_TWINS[1:]]
"""The same for a connection to each server, and an asynchronous one to the newest."""


@contextmanager
def to_own_database(
    name: str, start: Callable[[str], Server], *, empty: bool = False, autocommit: bool = False
) -> Iterator[Any]:
    """Lend a connection as rolled_back does, but to a database of the test's own. It has the schema unless *empty*."""
    with ExitStack() as stack:

        def created(name: str) -> str:
            server = start(name)
            conninfo = server.create() if empty else server.create(template=server.template)
            stack.callback(server.drop, conninfo)
            return conninfo

        conn: Any = stack.enter_context(rolled_back(name, created))
        conn.autocommit = autocommit
        yield conn


@pytest.fixture(params=[*NAMES, "sqlite", *(f"asynchronous-{name}" for name in (*NAMES[:1], "sqlite"))])
def conn(request: pytest.FixtureRequest, shared: Callable[[str], str]) -> Iterator[Connection]:
    """A connection to a database with the schema on each server and on SQLite in turn; its work is rolled back.

    Then to the newest server and SQLite through an asynchronous one that looks synchronous; see fix_twins.
    """
    with rolled_back(request.param, shared) as conn:
        yield conn


@pytest.fixture(params=NAMES)
def pg_conn(request: pytest.FixtureRequest, shared: Callable[[str], str]) -> Iterator[psycopg.Connection]:
    """The same on each server alone."""
    with rolled_back(request.param, shared) as conn:
        assert isinstance(conn, psycopg.Connection)
        yield conn
