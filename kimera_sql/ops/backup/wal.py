"""The arithmetic of WAL: positions, and the names and numbers of its segments. Nothing here reads a file.

A position (LSN) counts bytes, and is written as two halves: 0/3000148. WAL is cut into segments of one size, numbered
from 0. The name of a segment, such as 000000010000000000000003, is its timeline, then its number in two parts.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from .copy_wal import PACKED
from .copy_wal import is_segment as is_segment

_LSN: Final = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_HALF: Final = 2**32


def is_lsn(text: str) -> bool:
    """Return whether *text* is a position as PostgreSQL writes it."""
    return _LSN.fullmatch(text) is not None


def position(lsn: str) -> int:
    """Return the position 0/3000148 as a number of bytes."""
    high, _, low = lsn.partition("/")
    return int(high, 16) * _HALF + int(low, 16)


def segment_in(name: str) -> str | None:
    """Return the name of the segment that a file of an archive holds, None where it holds none.

    It can be packed (.gz), or be still received (.partial).
    """
    segment = name.removesuffix(PACKED).removesuffix(".partial")
    return segment if is_segment(segment) else None


def is_segment_size(size: int) -> bool:
    """Return whether a server can have segments of *size* bytes."""
    return 2**20 <= size <= 2**30 and size & (size - 1) == 0


def segment_name(timeline: int, number: int, size: int) -> str:
    """Return the name of a segment, where segments have *size* bytes."""
    high, low = divmod(number, _HALF // size)
    return f"{timeline:08X}{high:08X}{low:08X}"


def segment_timeline(name: str) -> int:
    """Return the timeline of the segment *name*."""
    return int(name[:8], 16)


def segment_number(name: str, size: int) -> int:
    """Return the number of the segment *name*, where segments have *size* bytes."""
    return int(name[8:16], 16) * (_HALF // size) + int(name[16:], 16)


def first_gap(numbers: Container[int], first: int, last: int) -> int | None:
    """Return the first number from *first* to *last* that is not among *numbers*."""
    return next((number for number in range(first, last + 1) if number not in numbers), None)


def timeline_starts(history: str, timeline: int) -> dict[int, int]:
    """Return where each timeline begins, from the first to *timeline*; *history* is the latter's history file."""
    lines = [line.split(None, 2) for line in history.splitlines()]
    ancestors = [(int(line[0]), position(line[1])) for line in lines if len(line) > 1 and line[0].isdecimal()]
    timelines = [*(ancestor for ancestor, _ in ancestors), timeline]
    return dict(zip(timelines, [0, *(end for _, end in ancestors)], strict=True))
