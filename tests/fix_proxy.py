"""A proxy before a server, which stalls and cuts connections when a test says so.

Its threads are this process's. libpq's ping keeps Python's lock, so what pings (a pool that is opened while the server
is away) gets no answer from here; tests/relay.py is a process of its own for that.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, Literal

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_AT_ONCE: Final = 2**16


class Proxy:
    """Leads a TCP port of this machine to a server's socket.

    on_commit: what happens to a connection on which the client sends COMMIT. "before": it is cut, and the server never
    sees the COMMIT. "after": it is cut once the server has answered, and the client never sees the answer.
    """

    def __init__(self, conninfo: str) -> None:
        parameters = conninfo_to_dict(conninfo)
        self.on_commit: Literal["before", "after"] | None = None
        self._target = f"{parameters['host']}/.s.PGSQL.{parameters.get('port', 5432)}"
        self._running = threading.Event()
        self._running.set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.conninfo = make_conninfo(conninfo, host="127.0.0.1", port=self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Take nothing and give nothing from now on. Connections stay, and new ones are taken and kept waiting."""
        self._running.clear()

    def resume(self) -> None:
        """Carry on."""
        self._running.set()

    def cut(self) -> None:
        """End all connections."""
        for one in self._sockets:
            _end(one)
        self._sockets.clear()

    def close(self) -> None:
        """End everything."""
        _end(self._listener)
        self.cut()
        self.resume()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._target)
                self._sockets += [client, server]
                swallow = threading.Event()
                threading.Thread(target=self._forth, args=(client, server, swallow), daemon=True).start()
                threading.Thread(target=self._back, args=(server, client, swallow), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        with suppress(OSError):
            while data := self._taken(client):
                if self.on_commit and b"COMMIT" in data:
                    if self.on_commit == "before":
                        break
                    swallow.set()
                server.sendall(data)
        _end(client, server)

    def _back(self, server: socket.socket, client: socket.socket, swallow: threading.Event) -> None:
        with suppress(OSError):
            while (data := self._taken(server)) and not swallow.is_set():
                client.sendall(data)
        _end(client, server)

    def _taken(self, one: socket.socket) -> bytes:
        self._running.wait()
        data = one.recv(_AT_ONCE)
        # A stall takes effect on what arrives after it.
        self._running.wait()
        return data


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    """A proxy before a database of its own."""
    proxy = Proxy(database)
    yield proxy
    proxy.close()
