"""What archive_command and restore_command run: it copies one file of WAL into the archive, or out of it.

    python -I -S copy_wal.py put pg_wal/NAME ARCHIVE/NAME
    python -I -S copy_wal.py get ARCHIVE/NAME pg_wal/RECOVERYXLOG
    python -I -S copy_wal.py check ARCHIVE

PostgreSQL runs it for every segment, as its own user. So it is run as a file, stands alone, and imports only what
starts at once. Segments are compressed into NAME.gz, which gunzip reads too.
"""

from __future__ import annotations

import fcntl
import os
import sys
import zlib
from collections.abc import Iterator
from io import BufferedRandom, BufferedReader

PACKED = ".gz"

ARCHIVE_COMMAND = "archive_command"
RECEIVER = "kimera-sql backup receive-wal"

_MARKS = {ARCHIVE_COMMAND: ".written_by_archive_command", RECEIVER: ".written_by_receive_wal"}
"""The empty files in an archive that say who writes there."""

_CHUNK = 2**20
_PACKED_CHUNK = 2**16  # zeros are a thousand times as long when they are unpacked
_GZIP = 31  # of zlib's window, with gzip's header and checksum
_LEVEL = 1  # level 6 takes up to four times as long, and saves a tenth

_MISSING = 1
_BROKEN = 200
"""Exit codes of get. PostgreSQL takes 1 for the end of the archive; above 125 it gives up rather than recover less."""


class ArchiveError(Exception):
    """A file cannot be archived, or cannot be read from the archive. No KimeraError: this file stands alone."""


def put(source: str, target: str) -> None:
    """Copy the file *source* to *target* so that it is there whole and on the disk, or not at all, with mode 0600.

    A segment becomes *target*.gz. What is there with the same content is success: PostgreSQL archives a file again
    when it was stopped before it knew. With other content it is another server's, and stays: ArchiveError. So it is
    where another archiver writes. The folder is not made: where it is missing, a disk is not mounted.
    """
    folder, name = os.path.split(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise ArchiveError(f"there is no folder {folder}; make it, or mount its disk")
    claim(folder, ARCHIVE_COMMAND)
    packed = is_segment(name) and not os.path.lexists(target)
    _write(source, target + PACKED if packed else target)


def pack(segment: str) -> None:
    """Put *segment*.gz in the place of *segment*, a file in an archive that is whole."""
    _write(segment, segment + PACKED)
    os.unlink(segment)


def claim(archive: str, archiver: str) -> None:
    """Mark the folder *archive* as the one that *archiver* writes into. ArchiveError where another does."""
    own = os.path.join(archive, _MARKS[archiver])
    new = not os.path.lexists(own)
    if new:
        os.close(os.open(own, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600))
    # Marked first, then looked: of two that begin at once, at least one sees the other.
    try:
        refuse_other(archive, archiver)
    except ArchiveError:
        if new:
            os.unlink(own)
        raise


def refuse_other(archive: str, archiver: str) -> None:
    """Raise ArchiveError where another than *archiver* writes into the folder *archive*."""
    for other, mark in _MARKS.items():
        path = os.path.join(archive, mark)
        if other != archiver and _is_there(path):
            raise ArchiveError(
                f"{archive} is already written by {other}, and an archive has one writer; give {archiver} another "
                f"folder, or put an end to {other} and remove {path}"
            )


def _write(source: str, target: str) -> None:
    folder, name = os.path.split(os.path.abspath(target))
    partial = os.path.join(folder, f".{name}.partial")
    with open(source, "rb") as reading, _locked(partial) as writing:
        try:
            if not os.path.lexists(target):
                writing.truncate()
                for chunk in _packed(reading) if target.endswith(PACKED) else _chunks(reading, _CHUNK):
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

    It may be packed, as *source*.gz. Where there is none, the segment that pg_receivewal was still writing,
    *source*.partial, stands in.
    """
    for path in (source, source + PACKED, f"{source}.partial"):
        if _is_there(path):
            with open(target, "wb") as writing:
                for chunk in read(path):
                    writing.write(chunk)
            return True
    if not os.path.isdir(os.path.dirname(os.path.abspath(source))):
        raise ArchiveError(f"there is no archive {os.path.dirname(source)}")
    return False


def check(archive: str) -> None:
    """Open every file of *archive*, and raise OSError for the first that this user may not read."""
    for name in sorted(os.listdir(archive)):
        if not name.startswith("."):
            open(os.path.join(archive, name), "rb").close()


def read(path: str) -> Iterator[bytes]:
    """Yield the content of *path*, unpacked. Raises ArchiveError where it cannot be."""
    with open(path, "rb") as file:
        if not path.endswith(PACKED):
            yield from _chunks(file, _CHUNK)
            return
        unpacking = zlib.decompressobj(_GZIP)
        try:
            for chunk in _chunks(file, _PACKED_CHUNK):
                yield unpacking.decompress(chunk)
        except zlib.error as error:
            raise ArchiveError(f"{path} is damaged: {error}") from None
        if not unpacking.eof:
            raise ArchiveError(f"{path} is damaged: it is cut off")


def _chunks(file: BufferedReader, size: int) -> Iterator[bytes]:
    while chunk := file.read(size):
        yield chunk


def _packed(file: BufferedReader) -> Iterator[bytes]:
    packing = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    for chunk in _chunks(file, _CHUNK):
        yield packing.compress(chunk)
    yield packing.flush()


def is_segment(name: str) -> bool:
    """Return whether *name* is that of a segment."""
    return len(name) == 24 and not name.strip("0123456789ABCDEF")


def _is_there(path: str) -> bool:
    try:
        os.stat(path)  # os.path.exists would take a folder that may not be read for an empty one
    except FileNotFoundError:
        return False
    return True


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
    return all(reading.read(len(chunk)) == chunk for chunk in read(path)) and not reading.read(1)


def _sync(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def main(arguments: list[str]) -> int:
    """Run put, get or check, and return the exit code."""
    verb, paths = (arguments[0], arguments[1:]) if arguments else ("", [])
    if len(paths) != {"put": 2, "get": 2, "check": 1}.get(verb):
        print("usage: copy_wal.py put|get SOURCE TARGET, or check ARCHIVE", file=sys.stderr)
        return _BROKEN
    try:
        if verb == "get":
            return 0 if get(*paths) else _MISSING
        if verb == "put":
            put(*paths)
        else:
            check(*paths)
        return 0
    except (OSError, ArchiveError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"kimera-sql: cannot {verb} {paths[0]}: {what}", file=sys.stderr)
        return 1 if verb == "put" else _BROKEN


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
