"""Upkeep: VACUUM and ANALYZE, rebuilding vector indexes while they serve, and deleting old rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, LiteralString

import psycopg
from psycopg import sql as composed

from .. import checks, embeddings, geoids, metrics, migrations, sql
from ..errors import InvalidValue, KimeraError, MaintenanceError, SchemaError
from ..search import VectorIndex, indexes, recall
from ..search.indexes import Building
from ..servers import require_session
from ..sql import Connection, postgres
from ..tables import NAMES, VECTOR_TABLES
from .shards import by_table

logger = logging.getLogger(__name__)

_queries = sql.Queries("maintenance")

LOCK_TIMEOUT: Final = timedelta(seconds=30)
"""How long upkeep waits for a lock unless told otherwise."""

_LONGEST_TIMEOUT: Final = timedelta(days=24)
"""PostgreSQL's lock_timeout is an INTEGER of milliseconds."""

PRUNED: Final = ("geoid_states", "semantic_embeddings", "system_metrics")
"""The tables that prune deletes from; transitions go with their states."""

_POLL: Final = 0.1
"""Seconds between two looks at which transactions are in the way."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What this role may do with a table. present: the table exists."""

    table: str
    present: bool
    owned: bool
    may_vacuum: bool


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """A table after its VACUUM. rows: the planner's estimate. size: in bytes, with its indexes.

    dead: rows that were deleted or replaced, but had to be kept because an open transaction can still see them.
    """

    table: str
    rows: int
    dead: int
    size: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A vector index that was rebuilt. rows: how many it was built from. size_before, size: in bytes.

    tuned: the recalls that it had been tuned for, and has been tuned for again.
    """

    index: str
    table: str
    rows: int
    size_before: int
    size: int
    tuned: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Holder:
    """Another session's transaction for whose end a rebuild must wait. pid: None for a prepared one.

    locks: it has a lock on the table; otherwise just a snapshot of the database.
    """

    transaction: str
    pid: int | None
    locks: bool


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many old rows of a table were deleted."""

    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class Step:
    """A step of run_all. done: what it did, in words. error: why it failed. One of the two is None."""

    name: str
    done: str | None
    error: str | None


def vacuum(conn: Connection, *, lock_timeout: timedelta = LOCK_TIMEOUT) -> list[Vacuumed]:
    """VACUUM (ANALYZE) the tables, and return their state afterwards.

    *conn* must be in autocommit, outside a transaction and through no pooler. Its role must own the tables or the
    database, or have MAINTAIN on the tables (PostgreSQL 17): the server itself would skip a table with a mere warning.
    Raises MaintenanceError for any other role, and where a lock is not granted within *lock_timeout*; SchemaError where
    the tables are missing; UnsupportedByServer on SQLite.
    """
    server = require_autocommit(conn)
    _require_vacuum(server)
    with _patience(server, lock_timeout):
        return [_vacuum(server, table, lock_timeout) for table in NAMES]


def analyze(conn: Connection, *, lock_timeout: timedelta = LOCK_TIMEOUT) -> list[str]:
    """ANALYZE the tables, for the planner's estimates, and return their names.

    It needs and raises what vacuum does.
    """
    server = require_autocommit(conn)
    _require_vacuum(server)
    with _patience(server, lock_timeout):
        for table in NAMES:
            _run(server, "ANALYZE {}", table, lock_timeout)
    return list(NAMES)


def reindex(
    conn: Connection, names: Iterable[str] | None = None, *, lock_timeout: timedelta = LOCK_TIMEOUT
) -> list[Rebuilt]:
    """Rebuild vector indexes while they serve, those of *names* or all, and tune again those that had been tuned.

    First it drops what killed builds left behind. Before each index it waits for the transactions to end that hold a
    lock on the table or a snapshot of the database: the rebuild could not finish without that, and dropping an
    unfinished index takes the very lock. *lock_timeout* limits this wait. Once a rebuild has begun, it waits for later
    transactions without a limit, because giving up would throw its work away; working tells for which process.
    *conn* must be in autocommit, outside a transaction and through no pooler, and its role must own the tables.
    An index that fails does not stop the others; MaintenanceError is raised at the end. It is raised for any other role
    too; NotFound for a name that no index has, SchemaError where the tables are missing, UnsupportedByServer on SQLite.
    """
    server = require_autocommit(conn)
    _require_owner(server)
    with _patience(server, lock_timeout):
        wanted = None if names is None else [indexes.find(server, name).name for name in names]
        _clean(server, lock_timeout)
        found = indexes.existing(server)
        return _rebuild_all(server, [one for one in found if wanted is None or one.name in wanted], lock_timeout)


def retrain(
    conn: Connection, *, growth: float = indexes.GROWTH, lock_timeout: timedelta = LOCK_TIMEOUT
) -> list[Rebuilt]:
    """Rebuild the ivfflat indexes whose table has more than *growth* times the rows they were trained on.

    They are those that indexes.aged returns. It needs and raises what reindex does.
    """
    server = require_autocommit(conn)
    _require_owner(server)
    with _patience(server, lock_timeout):
        _clean(server, lock_timeout)
        return _rebuild_all(server, indexes.aged(server, growth=growth), lock_timeout)


def prune(
    conn: Connection,
    age: timedelta,
    tables: Iterable[str] | None = None,
    *,
    transitions: Literal["refuse", "delete"] = "refuse",
    dry_run: bool = False,
) -> list[Pruned]:
    """Delete the rows of *tables*, or of all PRUNED, that are older than *age*, and return how many there were of each.

    *transitions* and *dry_run* are those of geoids.prune. States go first, so that where they are refused nothing is
    deleted. Raises InvalidValue for another table, and for an age that is not above zero and up to a century.
    """
    wanted = PRUNED if tables is None else list(tables)
    if unknown := [table for table in wanted if table not in PRUNED]:
        raise InvalidValue(f"tables: expected some of {', '.join(PRUNED)}, got {unknown[0]!r}")
    moment = datetime.now(UTC) - checks.span("age", age)
    pruned: list[Pruned] = []
    try:
        with sql.without_timeouts(conn):
            if "geoid_states" in wanted:
                gone = geoids.prune(conn, moment, transitions=transitions, dry_run=dry_run)
                pruned += [Pruned("geoid_states", gone.states), Pruned("cognitive_transitions", gone.transitions)]
            if "semantic_embeddings" in wanted:
                pruned.append(Pruned("semantic_embeddings", embeddings.prune(conn, moment, dry_run=dry_run)))
            if "system_metrics" in wanted:
                pruned.append(Pruned("system_metrics", metrics.prune(conn, moment, dry_run=dry_run)))
    except Exception as error:
        for one in () if dry_run else pruned:
            error.add_note(f"{one.table}: {one.rows:,} rows had been deleted before")
        raise
    return pruned


def run_all(
    conn: Connection, *, metrics_age: timedelta | None = None, lock_timeout: timedelta = LOCK_TIMEOUT
) -> list[Step]:
    """Prune metrics older than *metrics_age* (none without it), rebuild the vector indexes, then vacuum and analyze.

    VACUUM comes last because it removes the rows that were pruned, and is fastest on a fresh vector index (pgvector's
    README). A step that fails does not stop the next one, unless the connection is lost. Cancelling ends them all.
    """
    server = require_autocommit(conn)
    _checked(lock_timeout)  # a wrong one is the caller's error, not a step that failed

    def prune_metrics() -> str:
        if metrics_age is None:
            return "not asked for"
        (pruned,) = prune(server, metrics_age, ["system_metrics"])
        return f"{pruned.rows:,} metrics deleted"

    def rebuild() -> str:
        return f"{len(reindex(server, lock_timeout=lock_timeout))} vector indexes rebuilt"

    def clear() -> str:
        return f"{len(vacuum(server, lock_timeout=lock_timeout))} tables vacuumed and analyzed"

    steps: list[Step] = []
    plan: dict[str, Callable[[], str]] = {"prune-metrics": prune_metrics, "reindex": rebuild, "vacuum": clear}
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
    """Return the VACUUMs and the vector index builds in progress, of all connections. On SQLite there are none."""
    if not sql.is_postgres(conn):
        return []
    vacuums = _queries.vacuuming.fetchall(conn, Building, tables=list(NAMES))
    return [*indexes.building(conn), *vacuums]


def rights(conn: psycopg.Connection[Any]) -> list[Rights]:
    """Return what the role of *conn* may do with each of the tables. Raises SchemaError where one is missing."""
    found = _queries.rights.fetchall(conn, Rights, tables=list(NAMES))
    if missing := [one.table for one in found if not one.present]:
        absent = f"there is no table {', '.join(missing)}; kimera-sql init makes the schema"
        raise SchemaError(str(migrations.misplaced(conn) or absent))
    return found


def require_autocommit(conn: Connection) -> psycopg.Connection[Any]:
    """Return *conn*, if it is to PostgreSQL, in autocommit and through no pooler.

    Raises InvalidValue and UnsupportedByServer.
    """
    server = sql.require_postgres(conn, "SQLite needs no upkeep but VACUUM, which `sqlite3 FILE VACUUM` runs")
    if not postgres.outside_transaction(server):
        raise InvalidValue("conn: upkeep needs an autocommit connection outside a transaction")
    require_session(server, "upkeep")
    return server


def _require_owner(conn: psycopg.Connection[Any]) -> None:
    _refuse(conn, [one.table for one in rights(conn) if not one.owned])


def _require_vacuum(conn: psycopg.Connection[Any]) -> None:
    _refuse(conn, [one.table for one in rights(conn) if not one.may_vacuum])


def _refuse(conn: psycopg.Connection[Any], refused: Sequence[str]) -> None:
    """Raise MaintenanceError if there are tables that this role may not do the work on."""
    if refused:
        raise MaintenanceError(
            f"role {conn.info.user} does not own {', '.join(refused)}; run this as their owner or a member of its role"
        )


def _checked(lock_timeout: timedelta) -> float:
    """Return *lock_timeout* in seconds. Raises InvalidValue."""
    if not isinstance(lock_timeout, timedelta):
        raise InvalidValue(f"lock_timeout: expected a timedelta, got {type(lock_timeout).__name__}")
    if not timedelta(milliseconds=1) <= lock_timeout <= _LONGEST_TIMEOUT:
        raise InvalidValue(f"lock_timeout: {lock_timeout} is not within a millisecond to 24 days")
    return lock_timeout.total_seconds()


def lock(conn: psycopg.Connection[Any], tables: Sequence[str], lock_timeout: timedelta) -> None:
    """Lock *tables* against everybody to the end of the transaction. Raises MaintenanceError after *lock_timeout*."""
    names = composed.SQL(", ").join(composed.Identifier(table) for table in tables)
    try:
        with sql.without_timeouts(conn, _checked(lock_timeout)), conn.transaction():
            conn.execute(composed.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(names))
    except psycopg.errors.LockNotAvailable as error:
        pids = _locking(conn, tables)
        raise MaintenanceError(
            f"{', '.join(tables)} could not be locked within {_seconds(lock_timeout)}, because of a "
            f"transaction{_of(pids)}; end it, try later or wait longer"
        ) from error


@contextmanager
def _patience(conn: psycopg.Connection[Any], lock_timeout: timedelta) -> Iterator[None]:
    """Let the session take as long as it needs, but wait for a lock no longer than *lock_timeout*."""
    try:
        with sql.without_timeouts(conn, _checked(lock_timeout)):
            yield
    except psycopg.errors.LockNotAvailable as error:
        # Even listing the indexes waits for a transaction that has locked their table exclusively.
        raise _locked(conn, list(VECTOR_TABLES), lock_timeout) from error


def _vacuum(conn: psycopg.Connection[Any], table: str, lock_timeout: timedelta) -> Vacuumed:
    _run(conn, "VACUUM (ANALYZE) {}", table, lock_timeout)
    (vacuumed,) = _queries.state.fetchall(conn, Vacuumed, table=table)
    if shards := by_table(conn).get(table):
        return Vacuumed(
            table,
            rows=sum(one.live_rows for one in shards),
            dead=sum(one.dead_rows for one in shards),
            size=sum(one.heap_bytes + one.other_bytes + one.index_bytes for one in shards),
        )
    return vacuumed


def _run(conn: psycopg.Connection[Any], statement: LiteralString, table: str, lock_timeout: timedelta) -> None:
    text = composed.SQL(statement).format(composed.Identifier(table))
    try:
        conn.execute(text)
    except psycopg.errors.LockNotAvailable as error:
        raise _locked(conn, [table], lock_timeout) from error


def _clean(conn: psycopg.Connection[Any], lock_timeout: timedelta) -> None:
    try:
        dropped = indexes.clean(conn)
    except psycopg.errors.LockNotAvailable as error:
        pids = _locking(conn, VECTOR_TABLES)
        raise MaintenanceError(
            f"an unfinished index could not be dropped: its table was locked for {_seconds(lock_timeout)} by a "
            f"transaction{_of(pids)}; end it, try later or wait longer"
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
    _await_upkeep(conn, index.table, lock_timeout)
    new = indexes.retrain(conn, index.name)
    # The settings were measured on the index that is gone. Without rows there is nothing to measure.
    targets = sorted({target for _, target in index.tuned}) if new.rows_at_build else []
    if targets:
        recall.tune(conn, index.table, target=targets)
    return Rebuilt(index.name, index.table, new.rows_at_build or 0, index.size, new.size, tuple(targets))


def _await_transactions(conn: psycopg.Connection[Any], table: str, lock_timeout: timedelta) -> None:
    """Wait until the transactions that a rebuild must wait for now have ended; later ones are not waited for."""
    deadline = time.monotonic() + lock_timeout.total_seconds()
    waiting = _holders(conn, table)
    while waiting:
        if time.monotonic() > deadline:
            raise _held(waiting.values(), table, lock_timeout)
        # In the server and not here, because cancelling the connection wakes us only there.
        _queries.pause.fetchval(conn, str, seconds=_POLL)
        waiting = {transaction: one for transaction, one in _holders(conn, table).items() if transaction in waiting}


def _holders(conn: psycopg.Connection[Any], table: str) -> dict[str, Holder]:
    return {one.transaction: one for one in _queries.holders.fetchall(conn, Holder, table=table)}


def _locking(conn: psycopg.Connection[Any], tables: Iterable[str]) -> set[int | None]:
    """Return the processes whose transactions have a lock of any kind on one of *tables*."""
    return {one.pid for table in tables for one in _holders(conn, table).values() if one.locks}


def _held(holders: Collection[Holder], table: str, lock_timeout: timedelta) -> MaintenanceError:
    """Return the error for *holders*, whose end did not come in time."""
    if locking := {one.pid for one in holders if one.locks}:
        what = f"{table} was locked for {_seconds(lock_timeout)} by a transaction{_of(locking)}"
    else:
        whose = _of({one.pid for one in holders})
        what = f"a rebuild must wait for a transaction{whose}, which was open for {_seconds(lock_timeout)}"
    return MaintenanceError(f"{what}; end it, try later or wait longer")


def _await_upkeep(conn: psycopg.Connection[Any], table: str, lock_timeout: timedelta) -> None:
    """Wait for a VACUUM or another build to be done with *table*; autovacuum gives way."""
    try:
        with conn.transaction():
            conn.execute(
                composed.SQL("LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE").format(composed.Identifier(table))
            )
    except psycopg.errors.LockNotAvailable as error:
        raise _locked(conn, [table], lock_timeout) from error


def _locked(conn: psycopg.Connection[Any], tables: Sequence[str], lock_timeout: timedelta) -> MaintenanceError:
    """Return the error for a lock on one of *tables* that was not granted, with the processes that have it now."""
    lockers = _queries.lockers.fetchall(conn, tables=list(tables))
    names = ", ".join(dict.fromkeys(table for table, _ in lockers)) or " or ".join(tables)
    return MaintenanceError(
        f"{names} was locked for {_seconds(lock_timeout)} by a transaction{_of({pid for _, pid in lockers})}; "
        "end it, try later or wait longer"
    )


def _of(pids: Collection[int | None]) -> str:
    known = sorted(pid for pid in pids if pid is not None)
    return f" of process {', '.join(map(str, known))}" if known else ""


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():g} s"


def _told(error: Exception) -> str:
    return "; ".join([str(error).strip(), *getattr(error, "__notes__", ())])
