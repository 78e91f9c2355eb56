"""Which segments of WAL there are: in an archive since a base backup, and for a recovery."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import BackupError
from . import copy_wal
from .base_backups import BaseBackup, first_segment, system_identifier
from .wal import (
    first_gap,
    is_segment_size,
    position,
    segment_in,
    segment_name,
    segment_number,
    segment_timeline,
    timeline_starts,
)


def missing_segment(archive: Path, base: Path) -> str | None:
    """Return the first segment since the base backup *base* that *archive* lacks though it has later ones.

    Later ones are those of its server and timeline.
    """
    first, system = first_segment(base), system_identifier(base)
    timeline = segment_timeline(first)
    later = sorted(
        (name, file)
        for file in archive.iterdir()
        if (name := segment_in(file.name))
        and not _is_partial(file)
        and segment_timeline(name) == timeline
        and name >= first
        and not is_of_another(file, system)
    )
    if not later:
        return None
    _, oldest = later[0]
    size = _content_size(oldest)
    if not is_segment_size(size):
        raise BackupError(f"{oldest} is damaged: it has {size:,} bytes, and no segment of WAL is so large")
    numbers = {segment_number(name, size) for name, _ in later}
    gap = first_gap(numbers, segment_number(first, size), max(numbers))
    return None if gap is None else segment_name(timeline, gap, size)


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments that can be replayed on a base backup, by their numbers. size: bytes of each.

    first, ended: the numbers of those in which the backup begins and ends. timeline: the newest that there is.
    """

    archive: Path
    size: int
    first: int
    ended: int
    timeline: int
    paths: Mapping[int, Path]

    @property
    def last(self) -> int:
        """The number of the newest."""
        return max(self.paths, default=self.first)

    @property
    def last_whole(self) -> int | None:
        """The number of the newest that was not still being received."""
        return max((number for number, path in self.paths.items() if not _is_partial(path)), default=None)

    def gap(self) -> int | None:
        """Return the first segment that is missing although there are later ones, or which the backup needs."""
        return first_gap(self.paths, self.first, max(self.last, self.ended))

    def number_at(self, lsn: str) -> int:
        """Return the number of the segment in which the position *lsn* lies."""
        return position(lsn) // self.size

    def name(self, number: int) -> str:
        """Return the name of a segment, as one of the newest timeline."""
        return segment_name(self.timeline, number, self.size)


def find_segments(made: BaseBackup, archive: Path) -> Segments:
    """Return what there is for the base backup *made*, in *archive* and in the backup itself.

    Raises BackupError for an archive of another server, and for a segment that is cut off.
    """
    files = {
        name: path
        for folder in (made.path / "pg_wal", archive)
        if folder.is_dir()
        for path in sorted(folder.iterdir(), reverse=True)  # X after X.gz, and that after X.partial
        if (name := segment_in(path.name)) and path.is_file()
    }
    starts = _timeline_starts(archive, made.timeline)
    begin = next((path for name, path in sorted(files.items()) if segment_timeline(name) == made.timeline), None)
    if begin is None:
        raise BackupError(f"{archive} has no WAL of the timeline of {made.path}; is it the archive of this server?")
    size = _read_size(begin, made)
    first = position(made.start_lsn) // size
    paths: dict[int, Path] = {}
    for name, path in sorted(files.items()):
        start, number = starts.get(segment_timeline(name)), segment_number(name, size)
        if start is None or number < max(start // size, first):
            continue
        if _content_size(path) != size:
            raise BackupError(f"{path} is damaged: it has {_content_size(path):,} bytes, and a segment has {size:,}")
        _read_size(path, made)
        # By their names: the one of the newest timeline comes last, and is the one that the server takes.
        paths[number] = path
    return Segments(
        archive=archive,
        size=size,
        first=first,
        ended=(position(made.end_lsn) - 1) // size,
        timeline=max(starts),
        paths=paths,
    )


def _timeline_starts(archive: Path, first: int) -> dict[int, int]:
    """Return the timelines that lead from *first* to the newest that the server would follow, and where each begins."""
    newest = first
    while (archive / f"{newest + 1:08X}.history").exists():
        newest += 1
    if newest == first:
        return {first: 0}
    starts = timeline_starts((archive / f"{newest:08X}.history").read_text(), newest)
    if first not in starts:
        raise BackupError(f"timeline {newest} of {archive} does not descend from the backup's, {first}")
    return {timeline: start for timeline, start in starts.items() if timeline >= first}


def _read_size(path: Path, made: BaseBackup) -> int:
    """Return how large segments are, as the header of *path* has it, which must be of the backup's server."""
    header = _read_header(path)
    if header is None:
        raise BackupError(f"{path} is damaged: it is no segment of WAL")
    system, size = header
    if system != system_identifier(made.path):
        raise BackupError(f"{path} is of another server than {made.path}")
    return size


def is_of_another(path: Path, system: str | None) -> bool:
    """Return whether the segment *path* is of another server than *system*. A damaged one is of no server."""
    header = _read_header(path)
    return header is not None and header[0] != system


def _read_header(path: Path) -> tuple[str, int] | None:
    """Return the system identifier and the size that the header of *path* has, None where it is no segment."""
    try:
        header = next(copy_wal.read(str(path)), b"")[:40]
    except copy_wal.ArchiveError:
        return None
    if len(header) < 40:
        return None
    # XLogLongPageHeaderData: after 24 bytes the system identifier, then the sizes, in the machine's own byte order
    system, size, block = struct.unpack("=qII", header[24:])
    return (str(system), size) if is_segment_size(size) and block else None


def _content_size(path: Path) -> int:
    """Return how many bytes the file *path* has when it is unpacked."""
    size = path.stat().st_size
    if path.suffix != copy_wal.PACKED or size < 4:
        return size
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        # The last thing in a gzip file; one that is cut off has anything there
        return int.from_bytes(file.read(4), "little")


def _is_partial(path: Path) -> bool:
    """Return whether the segment *path* was still being received."""
    return path.suffix == ".partial"
