"""A proxy before a server, which stalls and cuts connections when a test says so.

Its threads are this process's. libpq's ping keeps Python's lock, so what pings (a pool that is opened while the server
is away) gets no answer from here; tests/relay.py is a process of its own for that.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Final, Literal

import pytest
from fix_servers import Server
from fix_twins import blocking
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kimera_sql import Settings, aio, open_pool

_AT_ONCE: Final = 2**16
_READY: Final = 6
"""The bytes of ReadyForQuery, at the end of what a server answers."""

_FIELDS: Final = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
_FATAL: Final = struct.pack("!ci", b"E", len(_FIELDS) + 4) + _FIELDS
"""What a server says to a client whose session an administrator ends."""


class Proxy:
    """Leads a TCP port of this machine to a server's socket. conninfo: of the port; server: of the socket."""

    def __init__(self, conninfo: str) -> None:
        parameters = conninfo_to_dict(conninfo)
        self.server = conninfo
        self._target = f"{parameters['host']}/.s.PGSQL.{parameters.get('port', 5432)}"
        self._fatal: tuple[bytes, str] | None = None
        self._running = threading.Event()
        self._running.set()
        self._sockets: list[socket.socket] = []
        self._failed: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.conninfo = make_conninfo(conninfo, host="127.0.0.1", port=self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def fail_at(self, text: str, when: Literal["before", "after", "silent", "ended"]) -> None:
        """Let a connection fail on which the client sends *text*.

        "before": it is cut, and the server never sees the text. "after": it is cut once the server has answered, and
        the client never sees the answer; nor does it if "silent", which cuts nothing. "ended": once, it is cut
        as by an administrator who ends the session right behind the answer.
        """
        self._fatal = text.encode(), when

    def stall(self) -> None:
        """Take nothing and give nothing from now on. Connections stay, and new ones are taken and kept waiting."""
        self._running.clear()

    def resume(self) -> None:
        """Carry on, without failures; connections that have failed are ended."""
        self._fatal = None
        self._running.set()
        for failed in self._failed:
            _end(*failed)

    def refuse(self) -> None:
        """Take no connections any more."""
        _end(self._listener)

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
                failing = threading.Event()
                threading.Thread(target=self._forth, args=(client, server, failing), daemon=True).start()
                threading.Thread(target=self._back, args=(server, client, failing), daemon=True).start()

    def _forth(self, client: socket.socket, server: socket.socket, failing: threading.Event) -> None:
        with suppress(OSError):
            while data := self._taken(client):
                if self._fatal and self._fatal[0] in data:
                    if self._fatal[1] == "before":
                        break
                    failing.set()
                    self._failed.append((client, server))
                server.sendall(data)
        _end(client, server)

    def _back(self, server: socket.socket, client: socket.socket, failing: threading.Event) -> None:
        with suppress(OSError):
            while data := self._taken(server):
                if not failing.is_set():
                    client.sendall(data)
                elif self._fatal and self._fatal[1] == "ended":
                    self._fatal = None
                    client.sendall(data[:-_READY] + _FATAL)
                    break
                elif self._fatal and self._fatal[1] == "after":
                    break
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
def proxy(newest: Server) -> Iterator[Proxy]:
    """A proxy before a database of its own, which has the schema."""
    conninfo = newest.create(template=newest.template)
    proxy = Proxy(conninfo)
    yield proxy
    proxy.close()
    newest.drop(conninfo)


@pytest.fixture(params=["synchronous", "asynchronous"])
def pool_of(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """A function that opens a pool of one connection: open_pool's, and its twin's that looks synchronous."""
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner()) if request.param == "asynchronous" else None

        def opened(conninfo: str, **settings: Any) -> Any:
            given = Settings(pool_size=1, pool_overflow=0, **settings)
            if runner is None:
                return stack.enter_context(open_pool(conninfo, settings=given))
            pool = blocking(aio.open_pool(conninfo, settings=given), runner)
            stack.callback(pool.close)
            return pool

        yield opened
