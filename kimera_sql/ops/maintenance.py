"""Upkeep: VACUUM and ANALYZE, rebuilding vector indexes while they serve, pruning metrics, and the roles."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql as composed

from .. import metrics, sql
from ..errors import InvalidValue, KimeraError, MaintenanceError, SchemaError
from ..search import VectorIndex, indexes, recall
from ..search.indexes import Building
from ..sql import Connection, postgres
from ..tables import BOOKKEEPING, NAMES

logger = logging.getLogger(__name__)

_queries = sql.Queries("maintenance")

LOCK_TIMEOUT: Final = timedelta(seconds=30)
"""How long upkeep waits for a lock unless told otherwise."""

_LONGEST: Final = timedelta(days=24)
"""lock_timeout is an INTEGER of milliseconds."""

_OLDEST: Final = timedelta(days=36525)

_POLL: Final = 0.1
"""Seconds between two looks at who is in the way."""


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """A table after its VACUUM. rows: the planner's estimate. size: bytes, with its indexes.

    dead: rows that were deleted or replaced and still had to be kept, because a transaction is open that can see them.
    """

    table: str
    rows: int
    dead: int
    size: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A vector index that was built anew. rows: what it was built from. size_before, size: bytes.

    tuned: the recalls that it was tuned for before, and has been tuned for again.
    """

    index: str
    table: str
    rows: int
    size_before: int
    size: int
    tuned: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A step of run_all. done: what it did, in words, None where it failed; then error says why."""

    name: str
    done: str | None
    error: str | None


def vacuum(conn: Connection, *, lock_timeout: timedelta = LOCK_TIMEOUT) -> list[Vacuumed]:
    """VACUUM (ANALYZE) the five tables, and return how they are now.

    *conn* is in autocommit, outside a transaction, and of a role that owns the tables or the database, or has MAINTAIN
    on them (PostgreSQL 17); the server itself would skip what a role may not vacuum, with no more than a warning.
    Raises MaintenanceError for another role and for a lock that is not to be had within *lock_timeout*, SchemaError
    where the tables are not there, and UnsupportedByServer on SQLite.
    """
    server = _server(conn)
    _require(server, "vacuumed")
    with _patience(server, lock_timeout):
        return [_vacuum(server, table, lock_timeout) for table in NAMES]


def analyze(conn: Connection, *, lock_timeout: timedelta = LOCK_TIMEOUT) -> list[str]:
    """ANALYZE the five tables, for the planner's estimates, and return their names.

    It needs and raises what vacuum does.
    """
    server = _server(conn)
    _require(server, "vacuumed")
    with _patience(server, lock_timeout):
        for table in NAMES:
            _run(server, "ANALYZE {}", table, lock_timeout)
    return list(NAMES)


def reindex(
    conn: Connection, names: Iterable[str] | None = None, *, lock_timeout: timedelta = LOCK_TIMEOUT
) -> list[Rebuilt]:
    """Build vector indexes anew while they serve, those of *names* or all, and tune them again that had been tuned.

    First it drops what killed builds left behind. Before each index it waits for the transactions that have a lock on
    the table to end, because a rebuild that gives up waiting half way has an unfinished index to drop, which takes that
    very lock. *conn* is in autocommit, outside a transaction, and of a role that owns the tables.
    One that fails does not keep it from the others. Raises MaintenanceError at the end then, and for another role;
    NotFound for a name that no index has, SchemaError where the tables are not there, UnsupportedByServer on SQLite.
    """
    server = _server(conn)
    _require(server, "owned")
    with _patience(server, lock_timeout):
        wanted = None if names is None else [indexes.find(server, name).name for name in names]
        _clean(server, lock_timeout)
        found = indexes.existing(server)
        return _rebuild_all(server, [one for one in found if wanted is None or one.name in wanted], lock_timeout)


def retrain(
    conn: Connection, *, growth: float = indexes.GROWTH, lock_timeout: timedelta = LOCK_TIMEOUT
) -> list[Rebuilt]:
    """Rebuild the ivfflat indexes whose table has more than *growth* times the rows they were trained on.

    They are those of indexes.aged. It needs and raises what reindex does.
    """
    server = _server(conn)
    _require(server, "owned")
    with _patience(server, lock_timeout):
        _clean(server, lock_timeout)
        return _rebuild_all(server, indexes.aged(server, growth=growth), lock_timeout)


def prune_metrics(conn: Connection, age: timedelta) -> int:
    """Delete the metrics that are older than *age*, and return how many there were; see metrics.prune.

    Raises InvalidValue for an age that is no timedelta above zero.
    """
    if not isinstance(age, timedelta) or not timedelta(0) < age <= _OLDEST:
        raise InvalidValue(f"age: expected a timedelta above zero, up to a century, got {age!r}")
    return metrics.prune(conn, datetime.now(UTC) - age)


def run_all(
    conn: Connection, *, metrics_age: timedelta | None = None, lock_timeout: timedelta = LOCK_TIMEOUT
) -> list[Step]:
    """Prune metrics older than *metrics_age* (none without it), rebuild the vector indexes, then vacuum and analyze.

    In this order, because VACUUM is what takes away the rows that were pruned, and is fastest on a vector index that is
    fresh (pgvector's README). A step that fails does not keep it from the next one, unless the connection is lost.
    Being cancelled ends it all.
    """
    server = _server(conn)
    _milliseconds(lock_timeout)

    def prune() -> str:
        return "not asked for" if metrics_age is None else f"{prune_metrics(server, metrics_age):,} metrics deleted"

    def rebuild() -> str:
        return f"{len(reindex(server, lock_timeout=lock_timeout))} vector indexes rebuilt"

    def clear() -> str:
        return f"{len(vacuum(server, lock_timeout=lock_timeout))} tables vacuumed and analyzed"

    steps: list[Step] = []
    plan: dict[str, Callable[[], str]] = {"prune-metrics": prune, "reindex": rebuild, "vacuum": clear}
    for name, step in plan.items():
        if server.closed:
            steps.append(Step(name, None, "not begun: the connection is lost"))
            continue
        try:
            steps.append(Step(name, step(), None))
        except psycopg.errors.QueryCanceled:
            raise
        except (KimeraError, psycopg.Error) as error:
            steps.append(Step(name, None, _told(error)))
    return steps


def working(conn: Connection) -> list[Building]:
    """Return the VACUUMs and the builds of vector indexes that go on now, by whichever connection. On SQLite none."""
    if not sql.is_postgres(conn):
        return []
    vacuums = _queries.vacuuming.fetchall(conn, Building, tables=list(NAMES))
    return [*indexes.building(conn), *vacuums]


def roles_sql() -> str:
    """Return the SQL that create_roles runs: schema/roles.sql, told the tables. By hand: psql --single-transaction."""
    lists = {"kimera.tables": NAMES, "kimera.bookkeeping": BOOKKEEPING}
    told = "".join(f"SET LOCAL {name} = '{{{','.join(tables)}}}';\n" for name, tables in lists.items())
    return told + (sql.shipped("schema") / "roles.sql").read_text(encoding="utf-8")


def create_roles(conn: Connection) -> None:
    """Make the roles of schema/roles.sql, or bring them up to date, in one transaction.

    Raises MaintenanceError for a role that may not, SchemaError where the tables are not there, and UnsupportedByServer
    on SQLite.
    """
    server = sql.require_postgres(conn, "SQLite has no roles; whoever can open the file can do everything")
    _rights(server)
    try:
        with sql.transaction(server):
            sql.script(server, roles_sql())
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.RaiseException) as error:
        hint = "; run this as a superuser" if isinstance(error, psycopg.errors.InsufficientPrivilege) else ""
        raise MaintenanceError(f"roles.sql: {error.diag.message_primary}{hint}; nothing was changed") from error


def _server(conn: Connection) -> psycopg.Connection[Any]:
    server = sql.require_postgres(conn, "SQLite needs no upkeep but VACUUM, which `sqlite3 FILE VACUUM` runs")
    if not postgres.outside_transaction(server):
        raise InvalidValue("conn: upkeep needs an autocommit connection outside a transaction")
    return server


def _rights(conn: psycopg.Connection[Any]) -> dict[str, dict[str, bool]]:
    rows = _queries.rights.fetchall(conn, tables=list(NAMES))
    if missing := [table for table, there, _, _ in rows if not there]:
        raise SchemaError(f"there is no table {', '.join(missing)}; kimera-sql init makes the schema")
    return {table: {"owned": owned, "vacuumed": vacuumed} for table, _, owned, vacuumed in rows}


def _require(conn: psycopg.Connection[Any], right: str) -> None:
    if refused := [table for table, rights in _rights(conn).items() if not rights[right]]:
        raise MaintenanceError(
            f"role {conn.info.user} does not own {', '.join(refused)}; run this as their owner or a member of its role"
        )


def _milliseconds(lock_timeout: timedelta) -> int:
    if not isinstance(lock_timeout, timedelta) or not timedelta(milliseconds=1) <= lock_timeout <= _LONGEST:
        raise InvalidValue(f"lock_timeout: expected a timedelta from a millisecond to 24 days, got {lock_timeout!r}")
    return lock_timeout // timedelta(milliseconds=1)


@contextmanager
def _patience(conn: psycopg.Connection[Any], lock_timeout: timedelta) -> Iterator[None]:
    """Let the session wait for a lock as long as *lock_timeout* at most."""
    value = f"{_milliseconds(lock_timeout)}ms"
    before, _ = _queries.set_lock_timeout.fetchone(conn, value=value) or ("0", "0")
    try:
        yield
    except psycopg.errors.LockNotAvailable as error:
        # The very look at what indexes there are waits for one who has locked their table altogether.
        raise MaintenanceError(
            f"a table with vectors was locked for {_seconds(lock_timeout)} by a transaction; "
            "end it, try later or wait longer"
        ) from error
    finally:
        if not conn.closed:
            _queries.set_lock_timeout.fetchone(conn, value=before)


def _vacuum(conn: psycopg.Connection[Any], table: str, lock_timeout: timedelta) -> Vacuumed:
    _run(conn, "VACUUM (ANALYZE) {}", table, lock_timeout)
    (vacuumed,) = _queries.state.fetchall(conn, Vacuumed, table=table)
    return vacuumed


def _run(conn: psycopg.Connection[Any], statement: LiteralString, table: str, lock_timeout: timedelta) -> None:
    text = composed.SQL(statement).format(composed.Identifier(table))
    try:
        conn.execute(text)
    except psycopg.errors.LockNotAvailable as error:
        raise _waited(conn, table, lock_timeout) from error


def _clean(conn: psycopg.Connection[Any], lock_timeout: timedelta) -> None:
    try:
        dropped = indexes.clean(conn)
    except psycopg.errors.LockNotAvailable as error:
        raise MaintenanceError(
            f"an unfinished index could not be dropped: its table was locked for {_seconds(lock_timeout)}"
        ) from error
    for name in dropped:
        logger.warning("dropped %s, which an interrupted build had left", name)


def _rebuild_all(
    conn: psycopg.Connection[Any], chosen: Sequence[VectorIndex], lock_timeout: timedelta
) -> list[Rebuilt]:
    rebuilt: list[Rebuilt] = []
    failed: dict[str, Exception] = {}
    for index in chosen:
        try:
            rebuilt.append(_rebuild(conn, index, lock_timeout))
        except (KimeraError, psycopg.Error) as error:
            if conn.closed or isinstance(error, psycopg.errors.QueryCanceled):
                raise
            failed[index.name] = error
    if failed:
        done = ", ".join(one.index for one in rebuilt) or "none"
        faults = "; ".join(f"{name}: {_told(error)}" for name, error in failed.items())
        raise MaintenanceError(f"not rebuilt: {faults} (rebuilt: {done})") from next(iter(failed.values()))
    return rebuilt


def _rebuild(conn: psycopg.Connection[Any], index: VectorIndex, lock_timeout: timedelta) -> Rebuilt:
    _await_transactions(conn, index.table, lock_timeout)
    try:
        new = indexes.retrain(conn, index.name)
    except psycopg.errors.LockNotAvailable as error:
        waited = _waited(conn, index.table, lock_timeout)
        for note in getattr(error, "__notes__", ()):
            waited.add_note(note)
        raise waited from error
    # The settings were measured on the index that is gone. Without rows there is nothing to measure.
    targets = sorted({target for _, target in index.tuned}) if new.rows_at_build else []
    if targets:
        recall.tune(conn, index.table, target=targets)
    return Rebuilt(index.name, index.table, new.rows_at_build or 0, index.size, new.size, tuple(targets))


def _await_transactions(conn: psycopg.Connection[Any], table: str, lock_timeout: timedelta) -> None:
    """Wait until each transaction has ended that has a lock on *table* now; later ones may begin meanwhile."""
    deadline = time.monotonic() + lock_timeout.total_seconds()
    waiting = set(_queries.holders.fetchall(conn, table=table))
    while waiting:
        if time.monotonic() > deadline:
            raise _waited(conn, table, lock_timeout)
        # Not asleep here, where whoever cancels the connection would not wake us.
        _queries.pause.fetchval(conn, str, seconds=_POLL)
        waiting &= set(_queries.holders.fetchall(conn, table=table))


def _waited(conn: psycopg.Connection[Any], table: str, lock_timeout: timedelta) -> MaintenanceError:
    pids = sorted({pid for _, pid in _queries.holders.fetchall(conn, table=table) if pid is not None})
    whose = f" of process {', '.join(map(str, pids))}" if pids else ""
    return MaintenanceError(
        f"{table} was locked for {_seconds(lock_timeout)} by a transaction{whose}; end it, try later or wait longer"
    )


def _seconds(time: timedelta) -> str:
    return f"{time.total_seconds():g} s"


def _told(error: Exception) -> str:
    return "; ".join([str(error).strip(), *getattr(error, "__notes__", ())])
