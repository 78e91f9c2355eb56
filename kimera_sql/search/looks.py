"""What was seen of the catalogue lately, so that a search need not ask: shared by the connections of a pool.

A look holds for 30 seconds, and no longer than until an index is built, dropped or tuned by this process. What a
transaction has changed and not committed yet is seen by its own connection alone.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from psycopg.pq import TransactionStatus

from .plan import VectorIndex

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

_FRESH: Final = 30.0
"""Seconds for which a look holds."""

_MOST_ESTIMATES: Final = 1000
"""The filters of which a look remembers how many rows pass them."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a table. at: on the monotonic clock. changes: how many this process had made by then."""

    indexes: tuple[VectorIndex, ...]
    at: float
    changes: int
    _estimates: dict[str, int] = field(default_factory=dict)

    def estimate(self, filters: str) -> int | None:
        """Return how many rows pass *filters* by the planner's estimate, None where it was not asked."""
        return self._estimates.get(filters)

    def remember(self, filters: str, rows: int) -> None:
        """Keep an estimate."""
        if len(self._estimates) >= _MOST_ESTIMATES:
            self._estimates.clear()
        self._estimates[filters] = rows


class _Changes:
    """Counts the changes that this process makes, and knows the connections whose changes nobody else sees yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._open: WeakSet[AnyConnection] = WeakSet()

    def made(self, conn: AnyConnection) -> None:
        with self._lock:
            self._count += 1
            if conn.info.transaction_status != TransactionStatus.IDLE:
                self._open.add(conn)

    def seen_by(self, conn: AnyConnection) -> tuple[int, bool]:
        """Return how many changes there are, and whether *conn* has some of its own."""
        if not self._open:
            return self._count, False
        with self._lock:
            ended = [one for one in self._open if one.closed or one.info.transaction_status == TransactionStatus.IDLE]
            for one in ended:
                self._open.discard(one)
                self._count += 1  # now the others see them too, or they are undone
            return self._count, conn in self._open


_changes = _Changes()
_own: WeakKeyDictionary[AnyConnection, dict[str, Look]] = WeakKeyDictionary()


def _looks(conn: AnyConnection, *, private: bool) -> dict[str, Look]:
    shared: dict[str, Look] | None = None if private else getattr(conn, "shared", None)
    return _own.setdefault(conn, {}) if shared is None else shared


def last(conn: AnyConnection, table: str) -> Look | None:
    """Return what is known of *table*, None where that is nothing or out of date."""
    changes, private = _changes.seen_by(conn)
    look = _looks(conn, private=private).get(table)
    if look is None or look.changes != changes or monotonic() - look.at >= _FRESH:
        return None
    return look


def keep(conn: AnyConnection, table: str, indexes: tuple[VectorIndex, ...]) -> Look:
    """Keep what *conn* has just seen of *table*, and return it."""
    changes, private = _changes.seen_by(conn)
    look = Look(indexes, monotonic(), changes)
    _looks(conn, private=private)[table] = look
    return look


def forget(conn: AnyConnection) -> None:
    """Let every look be renewed: *conn* has built, dropped or tuned an index."""
    _changes.made(conn)
