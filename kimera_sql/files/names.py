"""Files that get their names once they are whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import FileError
from ..leftovers import partial_file


@contextmanager
def reported(path: Path, rest: str) -> Iterator[None]:
    """Turn what the operating system refuses into a FileError that names the file, *path* if it names none.

    rest: what became of the work.
    """
    try:
        yield
    except OSError as error:
        raise FileError(f"{error.filename or path}: {error.strerror or error}; {rest}") from error


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Open a new file of mode 0600, which is *path* once the block has ended and it is on the disk.

    Raises FileError if there is a *path* already, unless *force*. If the block fails, there is no file.
    """
    if path.exists() and not force:
        raise FileError(f"{path}: there is such a file already; --force overwrites it")
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no such folder")
    with partial_file(path) as partial:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            partial.replace(path)
        else:
            os.link(partial, path)  # unlike a rename, it fails if somebody was faster
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
