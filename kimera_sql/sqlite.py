"""Running statements on SQLite, the database for development: its connections, its pool, and its SQL functions.

queries/sqlite calls what PostgreSQL has built in and SQLite lacks by PostgreSQL's names where there is one:
gen_random_uuid, clock_timestamp, date_bin, percentile_cont. The functions are registered from Python, because many
Pythons have a sqlite3 that can load no extension.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

import numpy as np
from psycopg_pool import PoolClosed, PoolTimeout

from .errors import ConnectionFailed, UnsupportedByServer

if TYPE_CHECKING:
    from .sql import Row, Statement

OLDEST: Final = (3, 37)
"""The first SQLite that has STRICT tables."""

_BUSY_TIMEOUT: Final = 30.0
"""Seconds to wait for another writer, as long as a pool waits for a connection."""

# A row with its vector takes some 4.3 kB. At this size of page 7 of them fit; with the default of 4096 a vector
# spills over into pages of its own, and a search takes half as long again.
_PAGE_SIZE: Final = 32768


def connect(path: Path | str) -> sqlite3.Connection:
    """Open *path*, made if it is not there, ready for the entities' functions.

    Foreign keys are enforced, the journal is a WAL, and a transaction that writes takes its lock as it begins, so
    that writers wait for each other instead of failing. Raises ConnectionFailed.
    """
    if sqlite3.sqlite_version_info < OLDEST:
        raise UnsupportedByServer(f"SQLite {sqlite3.sqlite_version} is too old; STRICT tables need 3.37")
    try:
        conn = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level="IMMEDIATE", check_same_thread=False)
        try:
            conn.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
            conn.execute("PRAGMA journal_mode = WAL")
            conn.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            conn.close()
            raise
    except sqlite3.Error as error:
        raise ConnectionFailed(f"SQLite ({path}): {error}") from error
    add_functions(conn)
    return conn


class SqlitePool:
    """Connections to one SQLite file, with the contract of psycopg's pool.

    `with pool.connection() as conn` commits at the end, or rolls back on an exception. Any number of threads may
    use it; *size* connections at most are open at once, and a thread waits *timeout* seconds for one.
    """

    def __init__(self, path: Path | str, *, size: int = 15, timeout: float = 30.0) -> None:
        self.path = Path(path)
        self._timeout = timeout
        self._size = size
        self._free = threading.BoundedSemaphore(size)
        self._idle: deque[sqlite3.Connection] = deque()
        self._closed = False
        # Fails here, and not at the first use, when there can be no such file.
        self._idle.append(connect(self.path))

    def __repr__(self) -> str:
        return f"SqlitePool({str(self.path)!r})"

    def __enter__(self) -> SqlitePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections; one that is in use is closed when it comes back."""
        self._closed = True
        while self._idle:
            self._idle.popleft().close()

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[sqlite3.Connection]:
        """Lend a connection; raises PoolTimeout when none is free for *timeout* seconds, PoolClosed after close."""
        if self._closed:
            raise PoolClosed("the pool is closed")
        seconds = self._timeout if timeout is None else timeout
        if not self._free.acquire(timeout=seconds):
            raise PoolTimeout(f"couldn't get a connection after {seconds:.2f} sec; all {self._size} are in use")
        try:
            try:
                conn = self._idle.pop()
            except IndexError:
                conn = connect(self.path)
            try:
                with conn:
                    yield conn
            finally:
                conn.rollback()  # what a failed commit left open
                self._idle.append(conn)
                if self._closed:
                    self.close()
        finally:
            self._free.release()


def add_functions(conn: sqlite3.Connection) -> None:
    """Register the SQL functions of queries/sqlite on *conn*."""
    functions: dict[str, tuple[int, Callable[..., Any], bool]] = {
        "gen_random_uuid": (0, lambda: str(uuid4()), False),
        "clock_timestamp": (0, lambda: encode(datetime.now(UTC)), False),
        "json_contains": (2, lambda whole, part: _contains(json.loads(whole), json.loads(part)), True),
        "json_overlaps": (2, lambda one, other: not set(json.loads(one)).isdisjoint(json.loads(other)), True),
        "json_merge": (2, lambda whole, changes: encode({**json.loads(whole), **json.loads(changes)}), True),
        "json_add": (2, _with, True),
        "json_remove_all": (2, _without, True),
        "date_bin": (3, _date_bin, True),
    }
    for name, (arguments, function, deterministic) in functions.items():
        conn.create_function(name, arguments, _null_on_null(function), deterministic=deterministic)
    # Called for every row of a search, on columns that are never NULL
    conn.create_function("cosine_distance", 2, _CosineDistance(), deterministic=True)
    aggregates: dict[str, tuple[int, Callable[[], Any]]] = {
        "percentile_cont": (2, _PercentileCont),
        "fewest_steps": (7, _FewestSteps),
        "cheapest_steps": (7, _CheapestSteps),
    }
    for name, (arguments, aggregate) in aggregates.items():
        conn.create_aggregate(name, arguments, aggregate)


def _null_on_null(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        return None if None in arguments else function(*arguments)

    return called


def encode(value: Any) -> Any:
    """Return *value* as SQLite stores it."""
    match value:
        case UUID():
            return str(value)
        case datetime():
            # In UTC and of one width, so that text sorts as time does
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case timedelta():
            return value // timedelta(microseconds=1)
        case dict():
            return json.dumps(value, allow_nan=False)
        case list():
            return json.dumps([encode(item) for item in value], allow_nan=False)
        case np.ndarray():
            return value.astype("<f4", copy=False).tobytes()
        case _:
            return value


DECODERS: Final[dict[type, Callable[[Any], Any]]] = {
    UUID: UUID,
    datetime: datetime.fromisoformat,
    dict: json.loads,
    tuple: lambda text: tuple(json.loads(text)),
    np.ndarray: lambda blob: np.frombuffer(blob, dtype="<f4").astype(np.float32, copy=False),
    bool: bool,
    float: float,  # RETURNING gives a REAL that is a whole number as an int
}
"""How what SQLite stores becomes a value of each type; a type that is not here comes as it is."""


def _run(conn: sqlite3.Connection, statement: Statement, parameters: Mapping[str, Any]) -> sqlite3.Cursor:
    cursor = conn.cursor()
    cursor.row_factory = None  # the caller's connection may have another
    return cursor.execute(statement.text, {name: encode(value) for name, value in parameters.items()})


def fetchall(conn: sqlite3.Connection, statement: Statement, parameters: Mapping[str, Any]) -> list[Row]:
    """Run *statement* and return its rows."""
    return _run(conn, statement, parameters).fetchall()


def execute(conn: sqlite3.Connection, statement: Statement, parameters: Mapping[str, Any]) -> int:
    """Run *statement* and return the number of rows it changed."""
    return _run(conn, statement, parameters).rowcount


def script(conn: sqlite3.Connection, text: str) -> None:
    """Run the statements of *text*, which has no parameters, in the transaction that is open."""
    # executescript would commit it.
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            conn.execute(statement)
            statement = ""


def stream(conn: sqlite3.Connection, statement: Statement, parameters: Mapping[str, Any], chunk: int) -> Iterator[Row]:
    """Yield the rows of *statement*, *chunk* of them fetched at a time."""
    cursor = _run(conn, statement, parameters)
    try:
        while rows := cursor.fetchmany(chunk):
            yield from rows
    finally:
        cursor.close()


def copy(conn: sqlite3.Connection, statement: Statement, rows: Iterable[Mapping[str, Any]]) -> int:
    """Run *statement* for each of *rows*, all or none, and return how many there were.

    An error carries a note with the number of the row, counted from 0.
    """
    number = -1

    def encoded() -> Iterator[dict[str, Any]]:
        nonlocal number
        for number, row in enumerate(rows):  # noqa: B007 - told to the error below
            yield {name: encode(value) for name, value in row.items()}

    try:
        with atomic(conn):
            conn.executemany(statement.text, encoded())
    except sqlite3.Error as error:
        error.add_note(f"item {number} (counted from 0) was refused; nothing was written")
        raise
    return number + 1


@contextmanager
def snapshot(conn: sqlite3.Connection) -> Iterator[None]:
    """Let the block read the database as it is now, whatever others write meanwhile; see sql.snapshot."""
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")


@contextmanager
def atomic(conn: sqlite3.Connection) -> Iterator[None]:
    """Make the block all or nothing without ending the caller's transaction; see sql.atomic."""
    if conn.isolation_level is None:
        with transaction(conn):
            yield
    else:
        if not conn.in_transaction:
            conn.execute("BEGIN IMMEDIATE")
        with _savepoint(conn):
            yield


@contextmanager
def transaction(conn: sqlite3.Connection) -> Iterator[None]:
    """Make the block a transaction, or a savepoint inside the caller's; see sql.transaction."""
    if conn.in_transaction:
        with _savepoint(conn):
            yield
        return
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


@contextmanager
def _savepoint(conn: sqlite3.Connection) -> Iterator[None]:
    conn.execute("SAVEPOINT kimera")
    try:
        yield
    except BaseException:
        # SQLite ends the whole transaction by itself after some errors, such as a full disk.
        if conn.in_transaction:
            conn.execute("ROLLBACK TO kimera")
            conn.execute("RELEASE kimera")
        raise
    conn.execute("RELEASE kimera")


class _CosineDistance:
    """1 - cosine of two vectors; the second one, what is searched for, is the same from row to row."""

    def __init__(self) -> None:
        self._blob = b""
        self._vector = np.zeros(0, dtype="<f4")
        self._norm = 0.0

    def __call__(self, one: bytes, other: bytes) -> float:
        if other != self._blob:
            self._vector = np.frombuffer(other, dtype="<f4")
            self._norm = math.sqrt(np.dot(self._vector, self._vector))
            self._blob = other
        vector = np.frombuffer(one, dtype="<f4")
        cosine = float(np.dot(vector, self._vector)) / (math.sqrt(np.dot(vector, vector)) * self._norm)
        return 1.0 - max(-1.0, min(1.0, cosine))


def _contains(whole: Any, part: Any) -> bool:
    """PostgreSQL's jsonb @>: every part of *part* is somewhere in *whole* at the same level."""
    if isinstance(whole, dict) and isinstance(part, dict):
        return all(key in whole and _contains(whole[key], value) for key, value in part.items())
    if isinstance(whole, list) and isinstance(part, list):
        return all(any(_contains(item, wanted) for item in whole) for wanted in part)
    # To Python True is 1, to JSON it is not.
    return isinstance(whole, bool) == isinstance(part, bool) and bool(whole == part)


def _with(items: str, new: str) -> str:
    had = json.loads(items)
    return json.dumps(had + [item for item in dict.fromkeys(json.loads(new)) if item not in had])


def _without(items: str, unwanted: str) -> str:
    gone = set(json.loads(unwanted))
    return json.dumps([item for item in json.loads(items) if item not in gone])


def _date_bin(width: int, moment: str, origin: str) -> str:
    begin = datetime.fromisoformat(origin)
    step = timedelta(microseconds=width)
    return str(encode(begin + (datetime.fromisoformat(moment) - begin) // step * step))


class _PercentileCont:
    """PostgreSQL's percentile_cont(fraction) WITHIN GROUP (ORDER BY value)."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._fraction = 0.0

    def step(self, fraction: float, value: float) -> None:
        self._fraction = fraction
        self._values.append(value)

    def finalize(self) -> float | None:
        if not self._values:
            return None
        self._values.sort()
        low, rest = divmod(self._fraction * (len(self._values) - 1), 1)
        below, above = self._values[int(low)], self._values[math.ceil(low + rest)]
        return below + rest * (above - below)


class _Ways:
    """Collects the edges of a graph, and finds a way through it level by level, one step a level."""

    def __init__(self) -> None:
        self._edges: dict[Any, list[tuple[float, str, Any]]] = {}
        self._start: Any = None
        self._goal: Any = None
        self._most = 0

    def step(self, id: str, source: Any, target: Any, weight: float, start: Any, goal: Any, most: int) -> None:
        self._edges.setdefault(source, []).append((weight, id, target))
        self._start, self._goal, self._most = start, goal, most

    def _levels(self, *, total: bool) -> Iterator[tuple[float, list[str]]]:
        """Yield each level's best way to the goal, by the weight of the last step or in *total*: weight and ids."""
        level: dict[Any, tuple[float, list[str], list[Any]]] = {self._start: (0.0, [], [self._start])}
        for _ in range(self._most):
            following: dict[Any, tuple[float, list[str], list[Any]]] = {}
            for place, (weight, ids, places) in level.items():
                for cost, id, target in self._edges.get(place, ()):
                    reached = weight + cost if total else cost
                    best = following.get(target)
                    if target not in places and (best is None or (reached, id) < (best[0], best[1][-1])):
                        following[target] = (reached, [*ids, id], [*places, target])
            if not following:
                return
            if self._goal in following:
                yield following[self._goal][:2]
            level = following


class _FewestSteps(_Ways):
    """The ids of the fewest edges from start to goal, as a JSON array; NULL when there is no way."""

    def finalize(self) -> str | None:
        return next((json.dumps(ids) for _, ids in self._levels(total=False)), None)


class _CheapestSteps(_Ways):
    """The ids of the edges from start to goal that weigh least in all, as a JSON array; NULL when there is no way."""

    def finalize(self) -> str | None:
        ways = [(weight, len(ids), ids) for weight, ids in self._levels(total=True)]
        return json.dumps(min(ways)[2]) if ways else None
