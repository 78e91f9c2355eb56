"""Adopting a database that has Kimera's tables already: the specification's own, or those that an ORM made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import psycopg
from psycopg import sql as composed

from .. import drift, migrations, sql
from ..drift import Difference, Element
from ..errors import KimeraError, SchemaError
from ..progress import Bar
from ..search import indexes, recall
from ..search.recall import Recall
from ..sql import Connection
from ..sql.files import literal
from ..tables import NAMES, VECTOR_TABLES
from . import maintenance

_queries = sql.Queries("adoption")
_migration_queries = sql.Queries("migrations")

SET_ASIDE: Final = "{}_set_aside"
"""The table that takes the rows of another that cannot be kept as they are."""

_CONVERTIBLE: Final[Mapping[str, str]] = {
    "bigint": r"integer|smallint",
    "double precision": r"real|numeric.*|bigint|integer|smallint",
    "integer": r"bigint|smallint",
    "jsonb": r"json",
    "text[]": r"character.*\[\]",
    "timestamp with time zone": r"timestamp(\(\d\))? with(out)? time zone",
    "uuid": r"character.*|text",
    "vector(1024)": r"(vector|halfvec)(\(\d+\))?|(real|double precision|numeric.*)\[\]",
}
"""The types that become another, by the type that they become. Text comes of whatever is text to the server."""

_GUARDS: Final[Sequence[tuple[str, str, str, str]]] = (
    (r"integer", r"bigint", "{} NOT BETWEEN -2147483648 AND 2147483647", "is beyond 32 bits"),
    (
        r"double precision",
        r"numeric.*",
        "abs({0}) < 'Infinity' AND (abs({0}) > 1.7976931348623157e308 OR {0} <> 0 AND abs({0}) < 4.94e-324)",
        "is beyond double precision",
    ),
    (
        r"jsonb",
        r"json",
        # As in kimera_sql.checks, what follows an even number of backslashes; E, because a session can have plain
        # strings read that way or not.
        r"{}::text ~ E'(^|[^\\\\])(\\\\\\\\)*\\\\u0000'",
        "holds the NUL character, which JSONB cannot",
    ),
    (
        r"jsonb",
        r"json",
        r"regexp_replace({}::text, '\\u[Dd][89ABab]..\\u[Dd][C-Fc-f]..', '', 'g')"
        r" ~ '(^|[^\\])(\\\\)*\\u[Dd][89A-Fa-f]'",
        "holds half of a character (a lone surrogate), which JSONB cannot",
    ),
    (r"uuid", r".*", "{}::text !~* '^[0-9a-f]{{8}}(-?[0-9a-f]{{4}}){{3}}-?[0-9a-f]{{12}}$'", "is no UUID"),
    (r"vector.*", r"(vector|halfvec).*", "vector_dims({}) <> 1024", "has other dimensions than 1024"),
    (
        r"vector.*",
        r".*\[\]",
        "cardinality({0}) <> 1024 OR array_ndims({0}) <> 1",
        "has other dimensions than 1024",
    ),
    (
        r"vector.*",
        r".*\[\]",
        "EXISTS (SELECT FROM unnest({}) AS component WHERE component IS NULL OR NOT abs(component) <= 3.4028234e38)",
        "has components that are not finite numbers of single precision",
    ),
)
"""What a value cannot be converted for: the type wanted, the type found, the condition, and how to say it."""

_ALL: Final = composed.SQL("true")

_FOREIGN_KEY: Final = re.compile(r"FOREIGN KEY \((\w+)\) REFERENCES (\w+)\((\w+)\)")

_TOO_LONG: Final[Mapping[tuple[str, str], str]] = {
    ("btree", "text"): "pg_column_size({}) > 2600",
    ("gin", "text[]"): "EXISTS (SELECT FROM unnest({}) AS item WHERE octet_length(item) > 2600)",
}
"""What an index has no room for, by its method and its first column's type: its entries have at most 2,704 bytes."""

_FAULTS: Final[Mapping[str, str]] = {
    r".*_vector_norm": "its vector is zero, or of a norm that is not within 1e-15 to 1e18",
    r".*_object": "its JSON is no object",
    r".*_not_negative": "its energy is negative",
}
"""How to say that a row fails a constraint, by the constraint's name."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A table as it stands. kind: as pg_class has it. schema: quoted. first: new tables would be made beside it."""

    table: str
    kind: str
    owned: bool
    schema: str
    first: bool
    may_create: bool
    role: str


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

    *conn* must be in autocommit, outside a transaction, and its role must own the tables. Raises SchemaError, with
    nothing changed, where there is nothing to adopt, where something must be put right by hand first, for another role,
    and for rows that cannot be kept without *set_aside*; MaintenanceError where a lock is not granted within
    *lock_timeout*; UnsupportedByServer on SQLite. psycopg's errors pass through, with nothing changed.
    """
    server = maintenance.require_autocommit(conn)
    with sql.transaction(server):
        _queries.check_at_once.execute(server)
        standing = _standing(server)
        # Another role's table cannot even be locked.
        if _unsuited(standing):
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
            recall.measure(server, table) for table in VECTOR_TABLES if table in indexed and _count(server, table)
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


def _unsuited(standing: Sequence[Standing]) -> list[str]:
    """Return what keeps this role from changing these tables at all."""
    obstacles = [f"{one.table} is no table" for one in standing if one.kind not in "rp"]
    if foreign := [one.table for one in standing if not one.owned]:
        obstacles.append(f"role {standing[0].role} does not own {', '.join(foreign)}; run this as their owner")
    if apart := [one for one in standing if not one.first]:
        obstacles.append(
            f"schema {apart[0].schema} has {', '.join(one.table for one in apart)}, and new tables would be made in "
            "another: let the search path begin with it"
        )
    elif closed := {one.schema for one in standing if not one.may_create}:
        obstacles.append(f"role {standing[0].role} has no CREATE privilege on schema {', '.join(closed)}")
    return obstacles


def _plan(conn: psycopg.Connection[Any]) -> Plan:
    standing = _standing(conn)
    _queries.prepare.fetchall(conn)
    obstacles = _unsuited(standing)
    elements = migrations.elements(conn)
    wanted = drift.expected()
    lacking = drift.differences(elements, wanted)
    obstacles += _lost_columns(conn, lacking, wanted)
    obstacles += _fixed_columns(conn, lacking, wanted)
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
        obstacles += _rehearse(conn, standing, changes)
        obstacles += _too_long(conn, lacking, elements, wanted)
    if obstacles:
        return Plan((), tuple(lacking), (), tuple(obstacles), ())
    judges = _Judges(elements, wanted, lacking)
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
    keys = [(one.table, key[1]) for one in wanted if (key := _FOREIGN_KEY.fullmatch(one.definition))]
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
        tuple((one.table, _count(conn, one.table)) for one in standing),
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


def _count(conn: psycopg.Connection[Any], table: str, condition: composed.Composable = _ALL) -> int:
    counting = composed.SQL("SELECT count(*) FROM {} WHERE {}").format(composed.Identifier(table), condition)
    (row,) = conn.execute(counting)
    return int(row[0])


def _lost_columns(
    conn: psycopg.Connection[Any], lacking: Sequence[Difference], wanted: Sequence[Element]
) -> Iterator[str]:
    """Yield the columns that rows there are would have to have, and nobody can say what."""
    given = {(one.table, one.name) for one in wanted if one.kind == "default"}
    needed = {(one.table, one.name) for one in wanted if one.kind == "not null"} - given
    for one in lacking:
        lost = one.kind == "type" and one.found is None and (one.table, one.name) in needed
        if lost and _queries.has_rows.fetchval(conn, bool, table=one.table):
            yield f"{one}, which every row has: rename the column that it is, or add it"


def _fixed_columns(
    conn: psycopg.Connection[Any], lacking: Sequence[Difference], wanted: Sequence[Element]
) -> Iterator[str]:
    """Yield the columns that cannot be made into those of the migrations, and what keeps them as they are."""
    traits = _queries.traits.fetchall(conn, tables=list(NAMES))
    wordy = {(table, column) for table, column, is_wordy, _ in traits if is_wordy}
    ours = {(one.table, one.name) for one in wanted if one.kind == "type"}
    for table, column, _, generated in traits:
        if generated and (table, column) in ours:
            yield f"{table}.{column} is a generated column, which kimera_sql could not write: make it an ordinary one"
    converted = [one for one in lacking if one.kind == "type" and one.found is not None]
    for one in converted:
        known = re.fullmatch(_CONVERTIBLE.get(one.expected or "", ""), one.found or "")
        if not known and not (one.expected == "text" and (one.table, one.name) in wordy):
            yield f"{one}, and nothing here converts it: convert it, or rename it"
    for table, column, holder in _queries.holding.fetchall(
        conn,
        tables=[one.table for one in converted],
        columns=[one.name for one in converted],
        types=[one.expected for one in converted],
    ):
        yield f"{table}.{column} must change its type, which {holder} prevents: drop it, and create it again afterwards"


def _too_long(
    conn: psycopg.Connection[Any], lacking: Sequence[Difference], elements: Sequence[Element], wanted: Sequence[Element]
) -> Iterator[str]:
    """Yield the columns with values that an index to be made has no room for.

    Setting the rows aside would not help: an index of a table that is not written anew has its deleted rows too.
    """
    there = {(one.table, one.name) for one in elements if one.kind == "type"}
    types = {(one.table, one.name): one.definition for one in wanted if one.kind == "type"}
    for one in lacking:
        made = re.match(r"(\w+) \((\w+)", one.expected or "") if one.kind == "index" else None
        if made is None or (one.table, made[2]) not in there:
            continue
        if condition := _TOO_LONG.get((made[1], types[one.table, made[2]])):
            column = composed.Identifier(made[2])
            rows = _count(conn, one.table, composed.SQL(literal(condition)).format(column))
            if rows:
                yield f"{one.table}.{made[2]} is too long for its index in {rows:,} rows: shorten it to 2,000 bytes"


def _rehearse(
    conn: psycopg.Connection[Any], standing: Sequence[Standing], changes: tuple[Difference, ...]
) -> list[str]:
    """Make *changes* to empty copies of the tables, and return what the server refuses.

    The copies have the checks, indexes and generated columns of the tables, which may not bear the changes.
    """
    step = "the start"
    with conn.transaction(force_rollback=True):
        try:
            for one in standing:
                # A table's name is the copy's as soon as that is there.
                name = composed.Identifier(one.table)
                conn.execute(composed.SQL("CREATE TEMPORARY TABLE {} (LIKE {} INCLUDING ALL)").format(name, name))
            _queries.rehearse.fetchval(conn, str)
            for table, statement in _statements(conn, Plan((), changes, (), (), ())):
                step = table
                conn.execute(statement)
        except psycopg.Error as error:
            said = [error.diag.message_primary or str(error), *filter(None, [error.diag.message_detail])]
            return [f"a trial on empty copies of the tables fails at {step}: {': '.join(said)}"]
    return []


def _check(found: Plan, set_aside: bool) -> None:
    if found.obstacles:
        raise SchemaError("; ".join(found.obstacles))
    if found.unfit and not set_aside:
        rows = "; ".join(f"{one.rows:,} of {one.table}: {one.reason}" for one in found.unfit)
        raise SchemaError(
            f"rows that cannot be kept as they are: {rows}; mend them, or have them set aside (--set-aside), which "
            "moves them into tables of their own; nothing was changed"
        )


class _Judges:
    """Makes, for each table, the SELECT that says of each row why it cannot be kept: place, part, key and reason."""

    def __init__(self, found: Sequence[Element], wanted: Sequence[Element], lacking: Sequence[Difference]) -> None:
        self._types = {(one.table, one.name): one.definition for one in found if one.kind == "type"}
        self._wanted = wanted
        self._lacking = lacking
        self._reasons = {table: self._reasons_of(table) for table in NAMES}
        self._parents = {table: self._parents_of(table) for table in NAMES}

    def has(self, table: str) -> bool:
        """Return whether a row of *table* could be unfit at all."""
        return bool(self._reasons[table] or self._parents[table])

    def judge(self, table: str) -> composed.Composed:
        """Return the SELECT for *table*."""
        joins: list[composed.Composable] = []
        reasons = list(self._reasons[table])
        for number, (column, parent, key) in enumerate(self._parents[table]):
            name = composed.Identifier(f"parent_{number}")
            kept = (
                composed.SQL("SELECT DISTINCT key FROM ({}) AS judged WHERE reason IS NULL").format(self.judge(parent))
                if self.has(parent)
                else composed.SQL("SELECT DISTINCT {} AS key FROM {}").format(
                    composed.Identifier(key), composed.Identifier(parent)
                )
            )
            same = self._types[table, column] == self._types.get((parent, key))
            condition = "{}.key = candidate.{}" if same else "{}.key::text = candidate.{}::text"
            joins.append(
                composed.SQL(f"LEFT JOIN ({{}}) AS {{}} ON {condition}").format(
                    kept, name, name, composed.Identifier(column)
                )
            )
            reasons.append(
                (composed.SQL("{}.key IS NULL").format(name), f"{column} refers to no row of {parent} that is kept")
            )
        whens = (
            composed.SQL("WHEN {} THEN {}").format(condition, composed.Literal(reason)) for condition, reason in reasons
        )
        return composed.SQL(
            "SELECT candidate.ctid AS place, candidate.tableoid AS part, {key} AS key, CASE {whens} END AS reason "
            "FROM {table} AS candidate {joins}"
        ).format(
            key=self._key(table),
            whens=composed.SQL(" ").join(whens),
            table=composed.Identifier(table),
            joins=composed.SQL(" ").join(joins),
        )

    def _key(self, table: str) -> composed.Composable:
        there = (table, "id") in self._types
        return composed.SQL("candidate.id") if there else composed.SQL("NULL")

    def _parents_of(self, table: str) -> list[tuple[str, str, str]]:
        """Return column, table and column of those references of *table* that may lead to no row that is kept."""
        unheld = {one.expected for one in self._lacking if one.table == table}
        found = []
        for one in self._wanted:
            if one.table == table and (parts := _FOREIGN_KEY.fullmatch(one.definition)):
                column, parent, key = parts.groups()
                there = (table, column) in self._types and (parent, key) in self._types
                if there and (one.definition in unheld or self._reasons[parent]):
                    found.append((column, parent, key))
        return found

    def _reasons_of(self, table: str) -> list[tuple[composed.Composable, str]]:
        """Return the conditions under which a row of *table* cannot be kept for its own sake, in order."""
        reasons: list[tuple[composed.Composable, str]] = []
        if not any(owner == table for owner, _ in self._types):
            return reasons
        lacking = [one for one in self._lacking if one.table == table]
        for one in lacking:
            there = self._types.get((table, one.name))
            column = composed.SQL("candidate.{}").format(composed.Identifier(one.name))
            if one.kind == "not null" and one.expected is not None and there is not None:
                reasons.append((composed.SQL("{} IS NULL").format(column), f"{one.name} is NULL"))
            elif one.kind == "type" and there is not None:
                reasons += [
                    (composed.SQL(literal(condition)).format(column), f"{one.name} {fault}")
                    for wanted, found, condition, fault in _GUARDS
                    if re.fullmatch(wanted, one.expected or "") and re.fullmatch(found, there)
                ]
        # A column that is missing gets its default, with which no CHECK is failed.
        for one in drift.causes(lacking):
            if one.kind == "constraint" and (one.expected or "").startswith("CHECK "):
                condition = composed.SQL("NOT (SELECT {} FROM (SELECT {}) AS converted)").format(
                    composed.SQL(literal((one.expected or "").removeprefix("CHECK "))), self._converted(table)
                )
                said = (fault for name, fault in _FAULTS.items() if re.fullmatch(name, one.name))
                reasons.append((condition, next(said, f"it fails {one.expected}")))
            elif one.kind == "constraint" and (one.expected or "").startswith("PRIMARY KEY (id"):
                copies = composed.SQL(
                    "row_number() OVER (PARTITION BY candidate.id ORDER BY candidate.tableoid, candidate.ctid) > 1"
                )
                reasons.append((copies, "another row has its id"))
        return reasons

    def _converted(self, table: str) -> composed.Composed:
        """Return *table*'s columns as they will be."""
        return composed.SQL(", ").join(
            composed.SQL("{} AS {}").format(
                _conversion(composed.SQL("candidate.{}"), one.name, self._types[table, one.name], one.definition),
                composed.Identifier(one.name),
            )
            for one in self._wanted
            if one.table == table and one.kind == "type" and (table, one.name) in self._types
        )


def _conversion(form: composed.SQL, column: str, found: str, wanted: str) -> composed.Composed:
    """Return the expression that makes *wanted* of a column, which *form* writes, of the type *found*."""
    value = form.format(composed.Identifier(column))
    if found == wanted:
        return value
    if found.endswith("without time zone"):
        return composed.SQL("{} AT TIME ZONE 'UTC'").format(value)
    return composed.SQL("{}::{}").format(value, composed.SQL(literal(wanted)))


def _carry_out(conn: psycopg.Connection[Any], found: Plan) -> None:
    conn.execute("CREATE EXTENSION IF NOT EXISTS vector")
    steps = [*_statements(conn, found)]
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


def _statements(conn: psycopg.Connection[Any], found: Plan) -> Iterator[tuple[str, composed.Composed]]:
    """Yield the statements that adopt the tables, in order, each with what it is about."""
    elements, wanted = migrations.elements(conn), drift.expected()
    judges = _Judges(elements, wanted, drift.differences(elements, wanted))
    losing = {one.table for one in found.unfit}
    # Rows that refer to others go before those.
    for table in [name for name in reversed(NAMES) if name in losing]:
        yield from _setting_aside(table, judges.judge(table))
    converted = [one for one in found.changes if one.kind == "type" and one.found is not None]
    # A foreign key holds the types of both its columns, which are converted one after the other.
    keys = _queries.references_between.fetchall(conn, tables=list(NAMES)) if converted else []
    for table, name, _ in keys:
        yield table, _alter(table, [composed.SQL("DROP CONSTRAINT {}").format(composed.Identifier(name))])
    for one in found.changes:
        if one.kind == "table":
            yield one.table, drift.statement(one)
    defaults = {(one.table, one.name): one.definition for one in elements if one.kind == "default"}
    wanted_defaults = {(one.table, one.name): one for one in wanted if one.kind == "default"}
    for table in drift.TABLES:
        changes = [one for one in found.changes if one.table == table]
        if clauses := list(_clauses(changes, defaults, wanted_defaults)):
            yield table, _alter(table, clauses)
    if any(one.table == "system_metrics" and one.name == "id" for one in converted):
        yield from _widened_sequence(conn)
    for table, name, definition in keys:
        again = composed.SQL("ADD CONSTRAINT {} {}").format(
            composed.Identifier(name), composed.SQL(literal(definition))
        )
        yield table, _alter(table, [again])
    for one in found.changes:
        if one.kind == "constraint" and _FOREIGN_KEY.fullmatch(one.expected or ""):
            yield one.table, drift.statement(one)
        elif one.kind in ("index", "statistics"):
            taken = _migration_queries.present.fetchall(conn, tables=[one.name])
            # The index that has the name is the user's, and stays.
            yield one.table, drift.statement(replace(one, found="") if taken else one)


def _clauses(
    changes: Sequence[Difference],
    found_defaults: Mapping[tuple[str, str], str],
    wanted_defaults: Mapping[tuple[str, str], Element],
) -> Iterator[composed.Composed]:
    """Yield the clauses of the one ALTER TABLE that makes *changes* to a table, so that it is read and written once."""
    added = {one.name for one in changes if one.kind == "type" and one.found is None}
    for one in changes:
        column = composed.Identifier(one.name)
        if one.kind == "type" and one.found is None:
            default = wanted_defaults.get((one.table, one.name))
            yield composed.SQL("{} {}").format(drift.alteration(one), _given(default))
        elif one.kind == "type" and one.found is not None:
            kept = found_defaults.get((one.table, one.name))
            replaced = wanted_defaults.get((one.table, one.name)) if kept not in (None, "sequence") else None
            if replaced is not None:
                # The server may not know how to convert the default of the old type.
                yield composed.SQL("ALTER COLUMN {} DROP DEFAULT").format(column)
            yield composed.SQL("ALTER COLUMN {} TYPE {} USING {}").format(
                column,
                composed.SQL(literal(one.expected or "")),
                _conversion(composed.SQL("{}"), one.name, one.found, one.expected or ""),
            )
            if replaced is not None:
                yield drift.alteration(Difference(one.table, "default", one.name, replaced.definition, None))
        elif not (
            one.kind in ("table", "index", "statistics")
            or (one.kind == "default" and one.name in added)
            or (one.kind == "constraint" and _FOREIGN_KEY.fullmatch(one.expected or ""))
        ):
            yield drift.alteration(one)


def _given(default: Element | None) -> composed.SQL:
    """Return what gives a new column its value in the rows there are."""
    if default is None:
        return composed.SQL("")
    if default.definition == "sequence":
        return composed.SQL("GENERATED BY DEFAULT AS IDENTITY")
    return composed.SQL(literal(f"DEFAULT {default.definition}"))


def _widened_sequence(conn: psycopg.Connection[Any]) -> Iterator[tuple[str, composed.Composed]]:
    name = _queries.sequence.fetchval(conn, str)
    if name is not None:
        yield "system_metrics", composed.SQL("ALTER SEQUENCE {} AS bigint").format(composed.SQL(literal(name)))


def _alter(table: str, clauses: Sequence[composed.Composable]) -> composed.Composed:
    return composed.SQL("ALTER TABLE {} {}").format(composed.Identifier(table), composed.SQL(", ").join(clauses))


def _setting_aside(table: str, judge: composed.Composed) -> Iterator[tuple[str, composed.Composed]]:
    names = {"table": composed.Identifier(table), "aside": composed.Identifier(SET_ASIDE.format(table))}
    yield (
        f"setting aside rows of {table}",
        composed.SQL(
            "CREATE TABLE {aside} (LIKE {table}, kimera_reason TEXT NOT NULL, "
            "kimera_set_aside_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP)"
        ).format(**names),
    )
    yield (
        f"setting aside rows of {table}",
        composed.SQL(
            "WITH judged AS ({judge}), moved AS ("
            "DELETE FROM {table} AS unfit USING judged WHERE unfit.ctid = judged.place "
            "AND unfit.tableoid = judged.part AND judged.reason IS NOT NULL RETURNING unfit.*, judged.reason) "
            "INSERT INTO {aside} SELECT * FROM moved"
        ).format(judge=judge, **names),
    )
