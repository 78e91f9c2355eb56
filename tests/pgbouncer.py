"""A PgBouncer of a test's own, before the server of a database."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from fix_servers import free_port
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kimera_sql.ops.backup import tools

_LEFT: Final = """
SELECT *
FROM (VALUES
    ((SELECT array_agg(name || '=' || setting) FROM pg_settings WHERE source = 'session' AND name <> ALL (
        ARRAY['client_encoding', 'application_name', 'DateStyle', 'TimeZone', 'standard_conforming_strings']
    ))),
    ((SELECT array_agg(name) FROM pg_prepared_statements)),
    ((SELECT array_agg(name) FROM pg_cursors WHERE is_holdable)),
    ((SELECT array_agg(objid::text) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())),
    ((SELECT array_agg(relname::text) FROM pg_class WHERE relnamespace = pg_my_temp_schema()))
) AS kept (names)
WHERE names IS NOT NULL
"""
"""What a session has that a new one has not. PgBouncer itself looks after the settings that are left out."""


class PgBouncer:
    """PgBouncer before the server of *database*, with *mode* as its pool_mode and other *settings*.

    conninfo: the way to the database through it; server: the way past it. Its sessions take turns, so that in
    transaction mode no two transactions in a row are in the same one.
    """

    def __init__(self, database: str, folder: Path, mode: str, **settings: object) -> None:
        server, port = conninfo_to_dict(database), free_port()
        self._port = port
        self.server = database
        self.conninfo = make_conninfo(database, host="127.0.0.1", port=port)
        self._console = make_conninfo("", host="127.0.0.1", port=port, user="console", dbname="pgbouncer")
        self._file = folder / "pgbouncer.ini"
        self.mode = mode
        given: dict[str, object] = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "admin_users": "console",
            "pool_mode": mode,
            "default_pool_size": 4 if mode == "transaction" else 20,  # one for each client
            "server_round_robin": 1,
            **settings,
        }
        lines = [f"{name} = {value}" for name, value in given.items()]
        way = f"* = host={server['host']} port={server.get('port', 5432)} user={server['user']}"
        folder.chmod(0o755)
        self._file.write_text("\n".join(["[databases]", way, "[pgbouncer]", *lines, ""]))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._process = subprocess.Popen(["pgbouncer", self._file], user=tools.server_user(), stderr=subprocess.DEVNULL)
        for _ in range(200):
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self._port)):
                return
            time.sleep(0.02)
        self.stop()
        raise TimeoutError("PgBouncer takes no connections")

    def stop(self) -> None:
        """End it, with the connections of its clients."""
        self._process.terminate()
        self._process.wait()

    def console(self, command: str) -> None:
        """Give *command* to its administration console."""
        with psycopg.connect(self._console, autocommit=True) as conn:
            conn.execute(command.encode())

    def ask_each(self, query: str) -> list[Any]:
        """Return the rows that *query* gives in its sessions with the database."""
        with ExitStack() as stack:
            clients = [stack.enter_context(psycopg.connect(self.conninfo)) for _ in range(4)]
            # In transactions that are open at once, which no two have the same session for.
            return [row for client in clients for row in client.execute(query.encode()).fetchall()]

    def leftovers(self) -> list[Any]:
        """Return what its sessions would give to whoever gets them next: settings, names, locks, temporary tables."""
        return self.ask_each(_LEFT)
