"""Which servers of a cluster can be read from, and which is its primary, by what was last seen of each."""

from __future__ import annotations

import math
import re
import threading
from collections import deque
from dataclasses import dataclass

from .errors import InvalidValue


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server has said of itself.

    at: monotonic seconds, just before it was asked. system: its cluster. timeline: each promotion begins a higher one.
    lsn: up to where in the write-ahead log a primary has written, or a standby has replayed.
    """

    at: float
    system: int
    standby: bool
    timeline: int
    lsn: int


class Cluster:
    """What was last seen of each server of the cluster *system*; servers go by their number. Threads may share it.

    horizon: how many seconds of the primary's positions are kept.
    """

    def __init__(self, system: int, horizon: float) -> None:
        self._system = system
        self._horizon = horizon
        self._lock = threading.Lock()
        self._seen: dict[int, Seen] = {}
        self._timeline = 0
        self._written: deque[tuple[float, int]] = deque()

    def note(self, server: int, seen: Seen | None) -> None:
        """Take down what was *seen* of a server, None for one that does not answer."""
        with self._lock:
            if seen is None or seen.system != self._system:
                self._seen.pop(server, None)
                return
            self._seen[server] = seen
            if seen.timeline > self._timeline:  # also a standby's, of a primary that is not seen
                self._timeline = seen.timeline
                self._written.clear()
            if seen.standby or seen.timeline < self._timeline:
                return
            if self._written and self._written[-1][1] == seen.lsn:
                self._written.pop()  # the later time says more
            self._written.append((seen.at, seen.lsn))
            while self._written[0][0] < seen.at - self._horizon:
                self._written.popleft()

    def primary(self) -> int | None:
        """Return the server that takes writes, None where none was seen.

        Where several do, all but that of the highest timeline were promoted past, and nobody has told them.
        """
        with self._lock:
            return next((server for server, seen in self._seen.items() if self._leads(seen)), None)

    def outdated(self, seen: Seen) -> str | None:
        """Return why a server that takes writes is not the one to write to, None where it is."""
        if seen.system != self._system:
            return "it is a server of another cluster"
        return self.overtaken(seen.timeline)

    def overtaken(self, timeline: int) -> str | None:
        """Return why a server that takes writes on *timeline* is not the one to write to, None where it is."""
        return "another server has been promoted in its place" if timeline < self._timeline else None

    def order(self, servers: int) -> list[int]:
        """Return the numbers of *servers* servers in the order in which the primary is looked for."""
        with self._lock:
            passed = {n for n, seen in self._seen.items() if not seen.standby and not self._leads(seen)}
            leads = {n for n, seen in self._seen.items() if self._leads(seen)}
        left = set(range(servers)) - passed or range(servers)  # nobody leads: connecting tells why
        return sorted(left, key=lambda number: (number not in leads, number))

    def standbys(self, now: float, max_lag: float) -> dict[int, int]:
        """Return the standbys that have what was committed up to *max_lag* seconds ago, with the LSN of each."""
        with self._lock:
            return {
                n: seen.lsn
                for n, seen in self._seen.items()
                if self._follows(seen) and now - self._as_of(seen) <= max_lag
            }

    def _follows(self, seen: Seen) -> bool:
        return seen.standby and seen.timeline >= self._timeline

    def _leads(self, seen: Seen) -> bool:
        return not seen.standby and seen.timeline == self._timeline

    def _as_of(self, seen: Seen) -> float:
        """Return since when, at the latest, a standby lacks something that the primary has committed."""
        return next((at for at, lsn in reversed(self._written) if lsn <= seen.lsn), -math.inf)


def as_text(lsn: int) -> str:
    """Return *lsn* as PostgreSQL writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def as_number(lsn: str) -> int:
    """Return *lsn*, as PostgreSQL writes it, as a number of bytes. Raises InvalidValue for anything else."""
    if not isinstance(lsn, str) or not re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", lsn):
        raise InvalidValue(f"after must be what a pool's lsn() gave, such as '16/B374D848', got {lsn!r}")
    high, _, low = lsn.partition("/")
    return (int(high, 16) << 32) + int(low, 16)
