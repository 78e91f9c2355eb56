"""A clone: the files of a base backup in a folder of their own, and the server that replays WAL there."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import signal
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...errors import BackupError
from ...progress import Bar
from . import tools
from .base_backups import BaseBackup
from .configuration import COPY, Configuration, configure
from .files import claim
from .private_server import serving

_UNFINISHED: Final = "kimera_recovery.unfinished"
"""The file in a clone that is there until it has recovered, and whose lock says that somebody is at work."""

_PERSISTENT: Final = """\

# A recovered server does not archive into the archive that it came from. Give it one of its own before you change this.
archive_mode = 'off'
"""


@dataclass(frozen=True, slots=True)
class Clone:
    """A clone in the folder *data*, run by *pg_ctl* as the operating system's user *user*, None for this one."""

    data: Path
    pg_ctl: Path
    user: str | None

    def copy(self, made: BaseBackup, copied: Configuration) -> list[str]:
        """Copy the base backup *made* here, with modes 0700 and 0600, and make it ready for recovery.

        *copied* is its configuration. Returns what was left out of that or is missing, a sentence each.
        """
        if (made.path / "tablespace_map").exists():
            raise BackupError(
                f"{made.path} has tablespaces outside its folder; recover it with PostgreSQL's own programs"
            )
        self.data.chmod(0o700)
        control = Path("global/pg_control")
        done = 0
        with Bar() as bar:
            # The server does not start without this file: a copy that was cut off must not pass for a server.
            for path in (*(one for one in _walk(made.path) if one not in (control, Path(COPY))), control):
                source, target = made.path / path, self.data / path
                if source.is_dir():
                    target.mkdir(0o700)
                    continue
                shutil.copyfile(source, target)
                done += source.stat().st_size
                bar.draw("copying", done, made.size)
        notes = self._prepare(copied)
        self._hand_over()
        return notes

    def _prepare(self, copied: Configuration) -> list[str]:
        # Left behind by a standby that the backup was made of, it would make the server wait for more WAL for ever.
        (self.data / "standby.signal").unlink(missing_ok=True)
        # Of a socket in the old data folder, as an embedded server has it
        for lock in self.data.glob(".s.PGSQL.*.lock"):
            lock.unlink()
        (self.data / "recovery.signal").touch()
        self._log.touch()  # it is to belong to the server's user
        notes = configure(self.data, copied)
        with (self.data / "postgresql.auto.conf").open("a") as conf:
            conf.write(_PERSISTENT)
        return notes

    def _hand_over(self) -> None:
        owner = pwd.getpwnam(self.user) if self.user is not None else None
        for path in (self.data, *self.data.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
            if owner is not None:
                os.chown(path, owner.pw_uid, owner.pw_gid)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep the folder from other recoveries for the block; if it fails, make the folder again what it was.

        It is empty or not there, or what a recovery left that was killed, which goes first. Raises BackupError.
        """
        before = self.data.stat() if self.data.exists() else None
        self.data.mkdir(0o700, exist_ok=True)
        with _locked(self.data / _UNFINISHED):
            try:
                self._empty()
                yield
                (self.data / _UNFINISHED).unlink()
            except BaseException:
                self._remove(before)
                raise

    def replay(self, settings: Mapping[str, str], tick: Callable[[], object]) -> None:
        """Run the server, with nobody connected, until it has recovered, and stop it again.

        *settings* are added to those that keep it to itself. *tick* is called meanwhile. Raises BackupError when the
        server ends; what it said is in log().
        """
        postgres = self.pg_ctl.with_name("postgres")
        options = {**self._settings(), **settings}
        with serving(postgres, self.data, self._log, user=self.user, settings=options, stop=signal.SIGINT, tick=tick):
            pass

    def start(self) -> None:
        """Start the server, on a socket in its folder alone, to run on when this process has ended."""
        options = shlex.join(word for name, value in self._settings().items() for word in ("-c", f"{name}={value}"))
        where = [f"--pgdata={self.data}", f"--log={self._log}", f"--options={options}"]
        tools.run(self.pg_ctl, ["start", "--wait", "--silent", *where], user=self.user)

    def _settings(self) -> dict[str, str]:
        # On the command line they hold for this run alone, go before whatever files say, and hold no secret.
        return {
            "data_directory": str(self.data),
            "hba_file": str(self.data / "pg_hba.conf"),
            "ident_file": str(self.data / "pg_ident.conf"),
            "external_pid_file": str(self.data / "recovery.pid"),
            "listen_addresses": "",
            "unix_socket_directories": f'"{self.data}"',
            "port": "5432",
            "ssl": "off",
            # Off, no setting has to be as large as the old server's, and nobody sees what is not recovered yet.
            "hot_standby": "off",
            "archive_mode": "off",
            "recovery_min_apply_delay": "0",
            "logging_collector": "off",
            "log_destination": "stderr",
            "log_min_messages": "warning",
            "timezone": "UTC",
            "lc_messages": "C",
        }

    def log(self) -> str:
        """Return what the server has said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self.data / "recovery.log"

    def _empty(self) -> None:
        for path in self.data.iterdir():
            if path.name != _UNFINISHED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _remove(self, before: os.stat_result | None) -> None:
        self._empty()
        (self.data / _UNFINISHED).unlink(missing_ok=True)
        if before is None:
            self.data.rmdir()
        else:
            os.chown(self.data, before.st_uid, before.st_gid)
            self.data.chmod(stat.S_IMODE(before.st_mode))


def is_free(data: Path) -> bool:
    """Return whether a recovery can go into *data*: it is not there, or empty, or a recovery into it was cut short."""
    if data.is_symlink() or not data.exists():
        return not data.is_symlink()
    return data.is_dir() and ((data / _UNFINISHED).exists() or not any(data.iterdir()))


@contextmanager
def _locked(mark: Path) -> Iterator[None]:
    descriptor = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        claim(descriptor, mark.parent, "recovery")
        yield
    finally:
        os.close(descriptor)


def _walk(source: Path, inside: Path = Path()) -> Iterator[Path]:
    """Yield what is in *source*, relative to it, each folder before its contents."""
    for path in sorted((source / inside).iterdir()):
        yield inside / path.name
        if path.is_dir():
            yield from _walk(source, inside / path.name)
