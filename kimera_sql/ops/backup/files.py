"""Work on a folder of backups: one process at a time, names that are free, files that are on the disk.

What the operating system refuses becomes a BackupError that names the file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ...errors import BackupError
from . import copy_wal, layout


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Make *folder* if need be and let no other backup or pruning use it meanwhile; failures are BackupErrors.

    What an earlier run left unfinished there is removed first.
    """
    with reported(folder):
        for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
            missing.mkdir(0o700)
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            claim(number, folder, "backup or pruning")
            for leftover in folder.glob(layout.UNFINISHED):
                leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
            yield folder
        finally:
            os.close(number)


def claim(descriptor: int, folder: Path, work: str) -> None:
    """Lock an open file of *folder* for *work*, until it is closed. Raises BackupError if another process has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BackupError(f"another {work} is at work in {folder}; wait for it") from None


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a BackupError that names the file, *path* if it names none.

    An ArchiveError becomes one as well. A program that has found no room gets a note that names the disk, *path*'s.
    """
    try:
        yield
    except copy_wal.ArchiveError as error:
        raise BackupError(str(error)) from error
    except OSError as error:
        names = " to ".join(map(str, filter(None, (error.filename, error.filename2)))) or path
        raise BackupError(f"{names}: {error.strerror}") from error
    except BackupError as error:
        if os.strerror(errno.ENOSPC) in str(error):
            error.add_note(f"the disk that {path} is on is full")
        raise


def free_path(folder: Path, name: Callable[[datetime], str]) -> tuple[datetime, Path]:
    """Return the present second and what *name* makes of it in *folder*, or the first second after it that is free."""
    while True:
        now = datetime.now(UTC).replace(microsecond=0)
        path = folder / name(now)
        if not any(folder.glob(f"{path.stem}*")):
            return now, path
        time.sleep(0.1)


def fsync(path: Path) -> None:
    """Wait until the file or folder *path* is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
