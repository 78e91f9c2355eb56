"""What keeps tables from being adopted, and has to be put right by hand first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql as composed

from ... import sql
from ...drift import Difference, Element
from ...sql.files import literal
from ...tables import NAMES
from .judging import CONVERTIBLE
from .statements import statements

_queries = sql.Queries("adoption")

_ALL: Final = composed.SQL("true")

_TOO_LONG: Final[Mapping[tuple[str, str], str]] = {
    ("btree", "text"): "pg_column_size({}) > 2600",
    ("gin", "text[]"): "EXISTS (SELECT FROM unnest({}) AS item WHERE octet_length(item) > 2600)",
}
"""What an index has no room for, by its method and its first column's type: its entries have at most 2,704 bytes."""


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


def unsuited(standing: Sequence[Standing]) -> list[str]:
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


def count(conn: psycopg.Connection[Any], table: str, condition: composed.Composable = _ALL) -> int:
    counting = composed.SQL("SELECT count(*) FROM {} WHERE {}").format(composed.Identifier(table), condition)
    (row,) = conn.execute(counting)
    return int(row[0])


def lost_columns(
    conn: psycopg.Connection[Any], lacking: Sequence[Difference], wanted: Sequence[Element]
) -> Iterator[str]:
    """Yield the columns that rows there are would have to have, and nobody can say what."""
    given = {(one.table, one.name) for one in wanted if one.kind == "default"}
    needed = {(one.table, one.name) for one in wanted if one.kind == "not null"} - given
    for one in lacking:
        lost = one.kind == "type" and one.found is None and (one.table, one.name) in needed
        if lost and _queries.has_rows.fetchval(conn, bool, table=one.table):
            yield f"{one}, which every row has: rename the column that it is, or add it"


def fixed_columns(
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
        known = re.fullmatch(CONVERTIBLE.get(one.expected or "", ""), one.found or "")
        if not known and not (one.expected == "text" and (one.table, one.name) in wordy):
            yield f"{one}, and nothing here converts it: convert it, or rename it"
    for table, column, holder in _queries.holding.fetchall(
        conn,
        tables=[one.table for one in converted],
        columns=[one.name for one in converted],
        types=[one.expected for one in converted],
    ):
        yield f"{table}.{column} must change its type, which {holder} prevents: drop it, and create it again afterwards"


def too_long(
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
            rows = count(conn, one.table, composed.SQL(literal(condition)).format(column))
            if rows:
                yield f"{one.table}.{made[2]} is too long for its index in {rows:,} rows: shorten it to 2,000 bytes"


def rehearse(conn: psycopg.Connection[Any], standing: Sequence[Standing], changes: tuple[Difference, ...]) -> list[str]:
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
            for table, statement in statements(conn, changes):
                step = table
                conn.execute(statement)
        except psycopg.Error as error:
            said = [error.diag.message_primary or str(error), *filter(None, [error.diag.message_detail])]
            return [f"a trial on empty copies of the tables fails at {step}: {': '.join(said)}"]
    return []
