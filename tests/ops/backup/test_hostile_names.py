"""Databases whose names look like conninfo, options or SQL are backed up like any other; nothing leads elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fix_servers import Server
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo

from kimera_sql import migrate
from kimera_sql.ops import backup

pytestmark = [pytest.mark.slow, pytest.mark.ends]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who waits for a password on a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.mark.parametrize(
    "pattern", ["host=127.0.0.1 port={port}", 'postgresql://127.0.0.1:{port}/it\'s a "database" \\ ☃\n--help']
)
def test_a_database_of_any_name_is_dumped_and_restored(
    server: Server, listener: socket.socket, tmp_path: Path, pattern: str
) -> None:
    name = pattern.format(port=listener.getsockname()[1])
    restored = f"-{name[:40]}"
    with psycopg.connect(server.conninfo, autocommit=True) as admin:
        admin.execute(composed.SQL("CREATE DATABASE {}").format(composed.Identifier(name)))
        try:
            with psycopg.connect(make_conninfo(server.conninfo, dbname=name)) as conn:
                migrate(conn)
                conn.commit()
                made = backup.make_dump(conn, tmp_path)
            assert made.origin.database == name
            assert backup.restore_dump(admin, made.path, into=restored).database == restored
            with psycopg.connect(make_conninfo(server.conninfo, dbname=restored)) as conn:
                assert migrate(conn) == []
        finally:
            for one in (name, restored):
                admin.execute(composed.SQL("DROP DATABASE IF EXISTS {}").format(composed.Identifier(one)))
    with pytest.raises(BlockingIOError):
        listener.accept()
