"""Adopting a database that has Kimera's tables already: the specification's own, or those that an ORM made of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
from psycopg import sql as composed

from ... import drift, migrations, sql
from ...drift import Difference
from ...errors import KimeraError, SchemaError
from ...progress import Bar
from ...search import indexes, recall
from ...search.recall import Recall
from ...sql import Connection
from ...tables import NAMES, VECTOR_TABLES
from .. import maintenance
from .judging import FOREIGN_KEY, Judges
from .obstacles import Standing, count, fixed_columns, lost_columns, rehearse, too_long, unsuited
from .statements import SET_ASIDE, setting_aside, statements

_queries = sql.Queries("adoption")
_migration_queries = sql.Queries("migrations")


@dataclass(frozen=True, slots=True)
class Unfit:
    """Rows of a table that cannot be kept as they are, and why."""

    table: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What adopting a database takes.

    tables: those that are there, with their rows. changes: how its tables differ from those that the migrations make.
    unfit: the rows that must be set aside. obstacles: what has to be put right by hand first. notes: what stays as it
    is, and should be known.
    """

    tables: tuple[tuple[str, int], ...]
    changes: tuple[Difference, ...]
    unfit: tuple[Unfit, ...]
    obstacles: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was done. rebuilt: the ivfflat indexes that were trained anew. recall: of each table with a vector index."""

    plan: Plan
    rebuilt: tuple[str, ...]
    recall: tuple[Recall, ...]


def plan(conn: Connection) -> Plan:
    """Return what adopt would do with *conn*'s database, whose rows are counted and left as they are.

    Raises SchemaError where there is nothing to adopt, and UnsupportedByServer on SQLite.
    """
    server = sql.require_postgres(conn, "SQLite's tables are made by kimera_sql alone; there are none to adopt")
    with sql.transaction(server):
        return _plan(server)


def adopt(conn: Connection, *, set_aside: bool = False, lock_timeout: timedelta = maintenance.LOCK_TIMEOUT) -> Adoption:
    """Make the tables that *conn*'s database has into those that kimera_sql works with, and return what was done.

    Rows, ids, timestamps, columns and indexes of one's own stay. With *set_aside* rows that cannot be kept as they are
    move into tables of the same columns, geoid_states_set_aside and so on, with the reason. All that is one
    transaction, in which the tables are locked against everybody; the work is the server's, and no row comes here. Then
    tables are analyzed, ivfflat indexes trained anew on the rows there are, and recall measured. Timestamps without a
    time zone are read as UTC.

    *conn* must be in autocommit, outside a transaction and through no pooler, and its role must own the tables. Raises
    SchemaError, with nothing changed, where there is nothing to adopt, where something must be put right by hand first,
    for another role, and for rows that cannot be kept without *set_aside*; MaintenanceError where a lock is not granted
    within *lock_timeout*; UnsupportedByServer on SQLite. psycopg's errors pass through, with nothing changed.
    """
    server = maintenance.require_autocommit(conn)
    with sql.transaction(server), sql.without_timeouts(server):
        _queries.check_at_once.execute(server)
        standing = _standing(server)
        # Another role's table cannot even be locked.
        if unsuited(standing):
            _check(_plan(server), set_aside)
        maintenance.lock(server, [one.table for one in standing], lock_timeout)
        found = _plan(server)
        _check(found, set_aside)
        _carry_out(server, found)
    try:
        maintenance.analyze(server, lock_timeout=lock_timeout)
        rebuilt = maintenance.retrain(server, lock_timeout=lock_timeout)
        indexed = {index.table for index in indexes.existing(server) if index.usable}
        measured = tuple(
            recall.measure(server, table) for table in VECTOR_TABLES if table in indexed and count(server, table)
        )
    except (KimeraError, psycopg.Error) as error:
        error.add_note("the tables are adopted; this came after")
        raise
    return Adoption(found, tuple(one.index for one in rebuilt), measured)


def _standing(conn: psycopg.Connection[Any]) -> list[Standing]:
    """Return the tables there are. Raises SchemaError where there is nothing to adopt."""
    if _migration_queries.exists.fetchval(conn, bool) and _migration_queries.applied.fetchall(conn):
        raise SchemaError(
            "kimera_sql made this database's tables, or has adopted them; `kimera-sql init` keeps them up"
        )
    standing = _queries.standing.fetchall(conn, Standing, tables=list(NAMES))
    if not standing:
        raise SchemaError("there is nothing to adopt, as none of the tables is there; `kimera-sql init` makes them")
    return standing


def _plan(conn: psycopg.Connection[Any]) -> Plan:
    standing = _standing(conn)
    _queries.prepare.fetchall(conn)
    obstacles = unsuited(standing)
    elements = migrations.elements(conn)
    wanted = drift.expected()
    lacking = drift.differences(elements, wanted)
    obstacles += lost_columns(conn, lacking, wanted)
    obstacles += fixed_columns(conn, lacking, wanted)
    partitioned = {one.table for one in standing if one.kind == "p"}
    changes = tuple(
        one
        for one in lacking
        if one.expected is not None
        and not (one.kind in drift.TUNING and one.found)
        # The server takes them for the partitions alone.
        and not (one.kind == "option" and one.table in partitioned)
    )
    if not obstacles:
        obstacles += rehearse(conn, standing, changes)
        obstacles += too_long(conn, lacking, elements, wanted)
    if obstacles:
        return Plan((), tuple(lacking), (), tuple(obstacles), ())
    judges = Judges(elements, wanted, lacking)
    unfit = [
        Unfit(table, reason, rows)
        for table in NAMES
        if judges.has(table)
        for reason, rows in conn.execute(
            composed.SQL(
                "SELECT reason, count(*) FROM ({}) AS judged WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"
            ).format(judges.judge(table))
        ).fetchall()
    ]
    losing = {one.table for one in unfit}
    keys = [(one.table, key[1]) for one in wanted if (key := FOREIGN_KEY.fullmatch(one.definition))]
    reaching = _queries.reaching.fetchall(
        conn, tables=sorted(losing), children=[child for child, _ in keys], columns=[column for _, column in keys]
    )
    obstacles = [
        f"rows of {parent} must be set aside, and {what} involves other data in that: drop or disable it first"
        for parent, what, holds in reaching
        if not holds
    ]
    names = [SET_ASIDE.format(table) for table in losing]
    obstacles += [
        f"there is a table {name} already; rename it, the rows that cannot be kept are to go into one of that name"
        for (name,) in _migration_queries.present.fetchall(conn, tables=names)
    ]
    return Plan(
        tuple((one.table, count(conn, one.table)) for one in standing),
        changes,
        tuple(unfit),
        tuple(obstacles),
        (
            *(f"{one}: give it one, or drop NOT NULL" for one in lacking if one.expected is None),
            *(
                f"a row of {parent} that {what} refers to cannot be set aside, and stops the adoption"
                for parent, what, holds in reaching
                if holds
            ),
            *(
                f"the vectors that {one.table} has stay out of line; VACUUM FULL {one.table}, which locks it, brings "
                "them into its rows, where exact searches are up to 3.6 times as fast"
                for one in lacking
                if one.kind == "storage" and one.found is None
            ),
        ),
    )


def _check(found: Plan, set_aside: bool) -> None:
    if found.obstacles:
        raise SchemaError("; ".join(found.obstacles))
    if found.unfit and not set_aside:
        rows = "; ".join(f"{one.rows:,} of {one.table}: {one.reason}" for one in found.unfit)
        raise SchemaError(
            f"rows that cannot be kept as they are: {rows}; mend them, or have them set aside (--set-aside), which "
            "moves them into tables of their own; nothing was changed"
        )


def _carry_out(conn: psycopg.Connection[Any], found: Plan) -> None:
    conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
    steps = [*setting_aside(conn, {one.table for one in found.unfit}), *statements(conn, found.changes)]
    with Bar() as bar:
        for number, (label, statement) in enumerate(steps):
            bar.draw(label, number, len(steps))
            try:
                conn.execute(statement)
            except psycopg.Error as error:
                error.add_note(f"while adopting, at {label}; nothing was changed")
                raise
    if any(one.table == "system_metrics" and one.name == "id" for one in found.changes):
        sql.Queries("metrics").advance_ids.fetchval(conn, int)
    migrations.record_all(conn)
    if left := [one for one in migrations.differences(conn) if one.expected is not None]:
        raise SchemaError(f"the tables cannot be made alike: {'; '.join(map(str, left))}; nothing was changed")
