"""The supervisor of an embedded server: a process that runs the server while it has users, and stops it with the last.

kimera_sql.embedded starts it as a program; it imports nothing else of ours. A user is a connection to its socket. The
kernel closes that with the user's process, whatever ended the process, so no list of users has to be kept or trusted.
"""

from __future__ import annotations

import ctypes
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

SOCKET: Final = "kimera.socket"
"""The supervisor's own socket, beside the server's."""

LONGEST: Final = 103 - len("/.s.PGSQL.5432")
"""Bytes of a folder's path that can hold a server's socket: macOS allows no more, and Linux four more."""

READY: Final = b"ready"
"""What a user is told whose server runs. Anything else is why it does not."""

STARTING: Final = 600.0
"""Seconds that the server may take to start: it may have to recover from a crash."""

STOPPING: Final = 60.0
"""Seconds that the server may take to stop, before it is stopped at once."""

UNFINISHED: Final = ".unfinished"
"""The folder in the data folder in which initdb works, so that a killed one leaves nothing that looks like data."""

FINISHED: Final = ".finished"
"""The same folder once initdb is done, until all that it has made is in its place."""

_DYING: Final = 3.0
"""Seconds to wait for the processes of a server that was killed, or whose supervisor was."""

_TICK: Final = 0.01
"""Seconds between two looks at a server that starts."""

_LONG: Final = 16 * 2**20
"""Bytes of the server's log from which on a start begins a new one."""

_HEADER: Final = """\
# Written by kimera_sql.embedded at each start, for the memory of this machine.
# Settings of your own: ALTER SYSTEM SET ..., which prevails.
"""

_HERE: Final = Path("/proc/self/cwd")
"""Linux's name for the folder of a process, which leads there even where its user may not enter those above it."""

_PR_SET_PDEATHSIG: Final = 1


class _Failed(Exception):
    """The server does not run; the message says why."""


class _Supervisor:
    """Runs the server on the data in this process's folder, with the programs in *programs*, its socket in *sockets*.

    folder: the same folder, by its path. listener: the inherited socket that users connect to. settings: of the server,
    by name. temporary: the folder to remove at the end, None where the data is to stay.
    """

    def __init__(
        self,
        *,
        folder: str,
        sockets: str,
        programs: str,
        listener: int,
        settings: dict[str, str],
        temporary: str | None,
    ) -> None:
        self._folder = Path(folder)
        self._elsewhere = Path(sockets) if sockets != folder else None
        self._sockets = self._elsewhere or _reachable(self._folder)
        self._programs = Path(programs)
        self._listener = socket.socket(fileno=listener)
        self._settings = settings
        self._temporary = temporary

    def run(self) -> None:
        """Start the server, and stop it when the last user has ended."""
        try:
            self._make()
            self._configure()
            self._forget_dead_server()
            server = self._start()
        except Exception as error:  # nobody else would tell it
            self._refuse(str(error) or repr(error))
            self._remove()
            return
        last = self._serve(server)
        self._stop(server)
        self._remove()
        # Who ended last goes on when all is done.
        del last

    def _make(self) -> None:
        unfinished, finished = Path(UNFINISHED), Path(FINISHED)
        if not finished.exists() and not Path("PG_VERSION").exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            options = ["--auth=trust", "--encoding=UTF8", "--username=postgres"]
            if self._temporary is not None:
                options.append("--no-sync")
            command: list[str | Path] = [
                self._programs / "initdb",
                *options,
                f"--pgdata={_reachable(self._folder / unfinished)}",
            ]
            made = subprocess.run(  # noqa: S603 - a program of PostgreSQL's, no shell
                command,
                cwd=unfinished,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                preexec_fn=_end_with_parent,
                check=False,
            )
            if made.returncode != 0:
                raise _Failed("initdb failed" + _last_lines(made.stderr))
            unfinished.rename(finished)
        if finished.exists():
            for path in finished.iterdir():
                path.rename(path.name)
            finished.rmdir()

    def _configure(self) -> None:
        ours = Path("kimera.conf")
        ours.unlink(missing_ok=True)  # root's, where an earlier version wrote it
        ours.write_text(_HEADER + "".join(f"{name} = {value}\n" for name, value in self._settings.items()))
        main = Path("postgresql.conf")
        line = f"include_if_exists = '{ours.name}'\n".encode()
        if line not in main.read_bytes():
            with main.open("ab") as conf:
                conf.write(line)

    def _forget_dead_server(self) -> None:
        """Remove what a killed server has left, once no process of it is there.

        The number in postmaster.pid proves nothing: by now it can be that of any process. PostgreSQL itself would
        refuse to start beside such a process, and beside a file that was cut off.
        """
        pid_file = Path("postmaster.pid")
        if not pid_file.exists() or not Path("/proc/self").exists():
            return
        deadline = time.monotonic() + _DYING
        while running := self._servers():
            if time.monotonic() > deadline:
                raise _Failed(f"process {running[0]} of another PostgreSQL is at work there; stop it, or wait for it")
            time.sleep(_TICK)
        pid_file.unlink()

    def _servers(self) -> list[int]:
        """Return the processes of PostgreSQL that work in the folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                program = (process / "exe").readlink().name
                if program.startswith("postgres") and (process / "cwd").samefile("."):
                    found.append(int(process.name))
            except OSError:
                continue  # it has ended, or is another user's
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        log_file = Path("log")
        if log_file.exists() and log_file.stat().st_size > _LONG:
            log_file.replace("log.old")
        with log_file.open("ab") as log:
            before = log.tell()
            server = subprocess.Popen(  # noqa: S603 - a program of PostgreSQL's, no shell
                [self._programs / "postgres", "-D", _reachable(self._folder), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + STARTING
        while not is_ready(Path(), server.pid):
            if server.poll() is not None:
                with log_file.open("rb") as log:
                    log.seek(before)
                    raise _Failed("PostgreSQL has ended" + _last_lines(log.read()))
            if time.monotonic() > deadline:
                self._stop(server)
                raise _Failed(f"PostgreSQL was not ready after {STARTING:g} s")
            time.sleep(_TICK)
        return server

    def _serve(self, server: subprocess.Popen[bytes]) -> Any:
        """Welcome users until the last has ended, who is returned, or until the server has."""
        woken, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        users = 0
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while server.poll() is None:
                for key, _ in selector.select():
                    if key.fileobj is woken:
                        woken.recv(1)
                    elif key.fileobj is self._listener:
                        user, _ = self._listener.accept()
                        selector.register(user, selectors.EVENT_READ, user)
                        users += 1
                        _tell(user, READY)
                    else:
                        users -= 1
                        if users == 0:
                            return key.data
                        selector.unregister(key.data)
                        key.data.close()
        return None

    def _stop(self, server: subprocess.Popen[bytes]) -> None:
        # Data that is thrown away needs no checkpoint.
        numbers = [signal.SIGQUIT] if self._temporary is not None else [signal.SIGINT, signal.SIGQUIT]
        for number in (*numbers, signal.SIGKILL):
            server.send_signal(number)
            try:
                server.wait(STOPPING)
            except subprocess.TimeoutExpired:
                continue
            return

    def _refuse(self, reason: str) -> None:
        (self._sockets / SOCKET).unlink(missing_ok=True)
        self._listener.setblocking(False)
        while True:
            try:
                user, _ = self._listener.accept()
            except BlockingIOError:
                return
            with user:
                _tell(user, reason.encode(errors="surrogateescape"))

    def _remove(self) -> None:
        (self._sockets / SOCKET).unlink(missing_ok=True)
        if self._elsewhere is not None:
            shutil.rmtree(self._elsewhere, ignore_errors=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def is_ready(data: Path, pid: int) -> bool:
    """Return whether the server on *data*, which is the process *pid*, takes connections."""
    try:
        lines = (data / "postmaster.pid").read_bytes().splitlines()
    except FileNotFoundError:
        return False
    return lines[:1] == [str(pid).encode()] and len(lines) > 7 and lines[7].strip() == b"ready"


def _reachable(path: Path) -> Path:
    """Return *path*, the folder of a process that is to run, by a name that its user can follow."""
    return path if os.access(path, os.X_OK) else _HERE


def _tell(user: socket.socket, message: bytes) -> None:
    with suppress(OSError):  # it has ended
        user.sendall(message)


def _end_with_parent() -> None:
    """Have the kernel stop this process when its parent ends: a killed supervisor leaves no server behind.

    It goes by the thread that has forked, and a supervisor has one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() == 1:  # it has ended already
            os._exit(1)


def _last_lines(output: bytes) -> str:
    return "".join(f"\n  {line}" for line in output.decode(errors="replace").splitlines()[-5:])


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def main(arguments: Sequence[str]) -> None:
    """Leave the process that has started this one, and run the server that *arguments* describe in JSON."""
    order: dict[str, Any] = json.loads(arguments[0])
    if os.fork():
        os._exit(0)
    os.setsid()
    os.umask(0o077)
    os.chdir(order["folder"])
    if (owner := order.pop("owner")) is not None:
        _become(*owner)
    _Supervisor(**order).run()


if __name__ == "__main__":
    main(sys.argv[1:])
