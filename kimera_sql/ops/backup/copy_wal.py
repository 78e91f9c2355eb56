"""What archive_command and restore_command run: it copies one file of WAL into the archive, or out of it.

    python -I -S copy_wal.py put pg_wal/NAME ARCHIVE/NAME
    python -I -S copy_wal.py get ARCHIVE/NAME pg_wal/RECOVERYXLOG

PostgreSQL runs it for every segment, as its own user. So it is run as a file, stands alone, and imports only what
starts at once.
"""

import fcntl
import os
import sys
from io import BufferedRandom, BufferedReader

_CHUNK = 2**20

_MISSING = 1
_BROKEN = 200
"""Exit codes of get. PostgreSQL takes 1 for the end of the archive; above 125 it gives up rather than recover less."""


class ArchiveError(Exception):
    """A file cannot be archived, or cannot be read from the archive. No KimeraError: this file stands alone."""


def put(source: str, target: str) -> None:
    """Copy the file *source* to *target* so that it is there whole and on the disk, or not at all, with mode 0600.

    A *target* that is there with the same content is success: PostgreSQL archives a file again when it was stopped
    before it knew. One with other content is another server's, and stays: ArchiveError. The folder is not made: where
    it is missing, a disk is not mounted.
    """
    folder, name = os.path.split(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise ArchiveError(f"there is no folder {folder}; make it, or mount its disk")
    partial = os.path.join(folder, f".{name}.partial")
    with open(source, "rb") as reading, _locked(partial) as writing:
        try:
            if not os.path.lexists(target):
                writing.truncate()
                while chunk := reading.read(_CHUNK):
                    writing.write(chunk)
                writing.flush()
                os.fsync(writing.fileno())
                os.rename(partial, target)
            elif _same(reading, target):
                # An earlier run may have been killed before it knew that the disk has it.
                _sync(target)
                os.unlink(partial)
            else:
                raise ArchiveError(
                    f"{target} is there with other content, and was left as it is; does another server archive there?"
                )
        except BaseException:
            if os.path.lexists(partial):
                os.unlink(partial)
            raise
    _sync(folder)


def get(source: str, target: str) -> bool:
    """Copy the file *source* of the archive to *target*, and return whether the archive has it.

    Where there is none, the segment that pg_receivewal was still writing, *source*.partial, stands in.
    """
    for path in (source, f"{source}.partial"):
        try:
            os.stat(path)  # os.path.exists would take a folder that may not be read for an empty one
        except FileNotFoundError:
            continue
        with open(path, "rb") as reading, open(target, "wb") as writing:
            while chunk := reading.read(_CHUNK):
                writing.write(chunk)
        return True
    if not os.path.isdir(os.path.dirname(os.path.abspath(source))):
        raise ArchiveError(f"there is no archive {os.path.dirname(source)}")
    return False


def _locked(partial: str) -> BufferedRandom:
    """Open *partial*, which a run that was killed may have left, for this process alone."""
    writing = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b")
    try:
        fcntl.flock(writing, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it open before may have renamed it meanwhile: then it is the archived file itself.
        if os.fstat(writing.fileno()).st_ino == os.stat(partial).st_ino:
            return writing
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        writing.close()
        raise
    writing.close()
    raise ArchiveError(f"another process is archiving to {partial} at this moment")


def _same(reading: BufferedReader, path: str) -> bool:
    with open(path, "rb") as other:
        while True:
            chunk = reading.read(_CHUNK)
            if chunk != other.read(_CHUNK):
                return False
            if not chunk:
                return True


def _sync(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def main(arguments: list[str]) -> int:
    """Run put or get, and return the exit code."""
    if len(arguments) != 3 or arguments[0] not in ("put", "get"):
        print("usage: copy_wal.py put|get SOURCE TARGET", file=sys.stderr)
        return _BROKEN
    verb, source, target = arguments
    try:
        if verb == "put":
            put(source, target)
            return 0
        return 0 if get(source, target) else _MISSING
    except (OSError, ArchiveError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"kimera-sql: cannot {verb} {source}: {what}", file=sys.stderr)
        return 1 if verb == "put" else _BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
