"""A cache of the catalogue, shared by the connections of a pool, so that a search need not query the catalogue.

A look (one table's entry) is valid for two seconds, or until this process builds, drops or tunes an index, or a search
finds that its index was dropped or rebuilt. Changes that a transaction has not committed yet are visible to its own
connection only.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import psycopg
from psycopg.pq import TransactionStatus

from ..tables import VECTOR_TABLES, Table
from .plan import Options, Plan, VectorIndex, decide

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

K = TypeVar("K")
V = TypeVar("V")

_FRESH: Final = 2.0
"""Seconds for which a look is valid."""

_FRESH_WITHOUT: Final = 0.1
"""Seconds for which it is where it shows no index: a search then compares every row, and takes longer than a look."""

_MOST_REMEMBERED: Final = 1000
"""The most filters whose estimates a look keeps, and the most plans."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was read about a table. distributed: whether Citus keeps its rows in shards.

    at: monotonic seconds. changes: the count of this process's changes at that time.
    """

    indexes: tuple[VectorIndex, ...]
    distributed: bool
    at: float
    changes: int
    _plans: dict[tuple[int, Options], Plan] = field(default_factory=dict)
    _estimates: dict[str, int] = field(default_factory=dict)
    _served: dict[str, bool] = field(default_factory=dict)

    @property
    def guarded(self) -> bool:
        """Whether row-level security may hide rows of the table from a search by index."""
        return any(index.guarded for index in self.indexes)

    def plan(self, table: Table, k: int, options: Options) -> Plan:
        """Return how to search *table* for *k* rows without filters, decided once."""
        if (k, options) not in self._plans:
            _remember(self._plans, (k, options), decide(table, self.indexes, k, options, None))
        return self._plans[k, options]

    def estimate(self, filters: str) -> int | None:
        """Return the planner's estimate of how many rows pass *filters*, None if it is not known yet."""
        return self._estimates.get(filters)

    def remember(self, filters: str, rows: int) -> None:
        """Store the estimate *rows* for *filters*."""
        _remember(self._estimates, filters, rows)

    def served(self, statement: str) -> bool | None:
        """Return whether the server's plan of *statement* is by an index, None if it is not known yet."""
        return self._served.get(statement)

    def remember_served(self, statement: str, served: bool) -> None:
        """Store whether the server's plan of *statement* is by an index."""
        self._served[statement] = served


def _remember(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= _MOST_REMEMBERED:
        known.clear()
    known[key] = value


class _Changes:
    """Counts the changes that this process makes, and tracks the connections whose changes are not committed yet."""

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
        """Return the number of changes, and whether *conn* has uncommitted ones of its own."""
        if not self._open:
            return self._count, False
        with self._lock:
            ended = [one for one in self._open if one.closed or one.info.transaction_status == TransactionStatus.IDLE]
            for one in ended:
                self._open.discard(one)
                self._count += 1  # committed, the others see them too; or rolled back
            return self._count, conn in self._open


_changes = _Changes()
_own: WeakKeyDictionary[AnyConnection, dict[str, Look]] = WeakKeyDictionary()


_apart: WeakSet[AnyConnection] = WeakSet()


@contextmanager
def apart(conn: AnyConnection) -> Iterator[None]:
    """Let *conn*, which finds other tables by these names than the others of its pool, look for itself."""
    _own.pop(conn, None)
    _apart.add(conn)
    try:
        yield
    finally:
        _apart.discard(conn)
        _own.pop(conn, None)


def _looks(conn: AnyConnection, *, private: bool) -> dict[str, Look]:
    shared: dict[str, Look] | None = None if private or conn in _apart else getattr(conn, "shared", None)
    return _own.setdefault(conn, {}) if shared is None else shared


def last(conn: AnyConnection, table: str) -> Look | None:
    """Return the valid look at *table*, None if there is none."""
    changes, private = _changes.seen_by(conn)
    look = _looks(conn, private=private).get(table)
    if look is None or look.changes != changes:
        return None
    slow = table in VECTOR_TABLES and not any(index.usable for index in look.indexes)
    return look if monotonic() - look.at < (_FRESH_WITHOUT if slow else _FRESH) else None


def keep(conn: AnyConnection, table: str, indexes: tuple[VectorIndex, ...], *, distributed: bool) -> Look:
    """Store what *conn* has just read about *table*, and return it."""
    changes, private = _changes.seen_by(conn)
    look = Look(indexes, distributed, monotonic(), changes)
    _looks(conn, private=private)[table] = look
    return look


def forget(conn: AnyConnection) -> None:
    """Invalidate all looks, because *conn* has built, dropped or tuned an index."""
    _changes.made(conn)
