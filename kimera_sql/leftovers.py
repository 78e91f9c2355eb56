"""Temporary files and folders of which none is left for good, even by a process that is killed.

Whoever uses one holds a lock on it, which ends with the process. The next user removes those that nobody has locked.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Final

_FOLDER: Final = "kimera_scratch_"
_PARTIAL: Final = ".kimera_partial"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder of mode 0700 where temporary files go, and remove it in the end."""
    _remove_left(Path(tempfile.gettempdir()), f"{_FOLDER}*")
    with _locked(lambda: Path(tempfile.mkdtemp(prefix=_FOLDER))) as folder:
        yield folder


@contextmanager
def partial_file(path: Path, *, mode: int = 0o600) -> Iterator[Path]:
    """Make a hidden file beside *path*, for what is to become *path* once it is whole.

    The block renames or links it then. What is still there in the end is removed.
    """

    def make() -> Path:
        partial = path.with_name(f".{path.name}.{token_hex(4)}{_PARTIAL}")
        partial.touch(mode, exist_ok=False)
        return partial

    _remove_left(path.parent, f".*{_PARTIAL}")
    with _locked(make) as partial:
        yield partial


@contextmanager
def _locked(make: Callable[[], Path]) -> Iterator[Path]:
    """Give what *make* makes, locked."""
    path, descriptor = _claim(make)
    try:
        yield path
    finally:
        try:
            _remove(path)
        except BaseException:  # a Ctrl-C just now
            _remove(path)
            raise
        finally:
            os.close(descriptor)


def _claim(make: Callable[[], Path]) -> tuple[Path, int]:
    while True:
        path = make()
        # Before it is locked, somebody may take it for a leftover.
        with suppress(FileNotFoundError):
            descriptor = _open(path)
            with suppress(OSError):  # a file system without locks, where nobody can take it for one
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)


def _remove_left(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        with suppress(OSError):  # it is another user's, or in use
            descriptor = _open(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(descriptor)


def _open(path: Path) -> int:
    # Neither a link nor a pipe that somebody put there is to lead us on.
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
