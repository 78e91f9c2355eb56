"""The folder of backups: one user at a time, whole files only, and errors that name the file."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ...errors import BackupError

PARTIAL: Final = ".partial"
"""What the name of a backup ends with, after a dot and its own name, while it is made."""


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
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BackupError(f"another backup or pruning is at work in {folder}; wait for it") from None
            for leftover in folder.glob(f".kimera_*{PARTIAL}"):
                leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
            yield folder
        finally:
            os.close(number)


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a BackupError that names the file, *path* if it names none."""
    try:
        yield
    except OSError as error:
        raise BackupError(f"{error.filename or path}: {error.strerror}") from error


def fsync(path: Path) -> None:
    """Wait until the file or folder *path* is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
