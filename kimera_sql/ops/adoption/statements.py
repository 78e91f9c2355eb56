"""The statements that make tables into those of the migrations, in order."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg
from psycopg import sql as composed

from ... import drift, migrations, sql
from ...drift import Difference, Element
from ...sql.files import literal
from ...tables import NAMES
from .judging import FOREIGN_KEY, Judges, conversion

_queries = sql.Queries("adoption")
_migration_queries = sql.Queries("migrations")

SET_ASIDE: Final = "{}_set_aside"
"""The table that takes the rows of another that cannot be kept as they are."""


def setting_aside(conn: psycopg.Connection[Any], losing: Collection[str]) -> Iterator[tuple[str, composed.Composed]]:
    """Yield the statements that set aside the rows of *losing* that cannot be kept, each with what it is about."""
    elements, wanted = migrations.elements(conn), drift.expected()
    judges = Judges(elements, wanted, drift.differences(elements, wanted))
    # Rows that refer to others go before those.
    for table in [name for name in reversed(NAMES) if name in losing]:
        yield from _setting_aside(table, judges.judge(table))


def statements(conn: psycopg.Connection[Any], changes: Sequence[Difference]) -> Iterator[tuple[str, composed.Composed]]:
    """Yield the statements that make *changes*, in order, each with what it is about."""
    elements, wanted = migrations.elements(conn), drift.expected()
    converted = [one for one in changes if one.kind == "type" and one.found is not None]
    # A foreign key holds the types of both its columns, which are converted one after the other.
    keys = _queries.references_between.fetchall(conn, tables=list(NAMES)) if converted else []
    for table, name, _ in keys:
        yield table, _alter(table, [composed.SQL("DROP CONSTRAINT {}").format(composed.Identifier(name))])
    for one in changes:
        if one.kind == "table":
            yield one.table, drift.statement(one)
    defaults = {(one.table, one.name): one.definition for one in elements if one.kind == "default"}
    wanted_defaults = {(one.table, one.name): one for one in wanted if one.kind == "default"}
    for table in drift.TABLES:
        own = [one for one in changes if one.table == table]
        if clauses := list(_clauses(own, defaults, wanted_defaults)):
            yield table, _alter(table, clauses)
    if any(one.table == "system_metrics" and one.name == "id" for one in converted):
        yield from _widened_sequence(conn)
    for table, name, definition in keys:
        again = composed.SQL("ADD CONSTRAINT {} {}").format(
            composed.Identifier(name), composed.SQL(literal(definition))
        )
        yield table, _alter(table, [again])
    for one in changes:
        if one.kind == "constraint" and FOREIGN_KEY.fullmatch(one.expected or ""):
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
                conversion(composed.SQL("{}"), one.name, one.found, one.expected or ""),
            )
            if replaced is not None:
                yield drift.alteration(Difference(one.table, "default", one.name, replaced.definition, None))
        elif not (
            one.kind in ("table", "index", "statistics")
            or (one.kind == "default" and one.name in added)
            or (one.kind == "constraint" and FOREIGN_KEY.fullmatch(one.expected or ""))
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
