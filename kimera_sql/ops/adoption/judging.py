"""Which rows of a table cannot be kept as they are, and why: SELECTs that are made here and run elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from psycopg import sql as composed

from ... import drift
from ...drift import Difference, Element
from ...sql.files import literal
from ...tables import NAMES

CONVERTIBLE: Final[Mapping[str, str]] = {
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
        r"regexp_replace({}::text, E'\\\\u[Dd][89ABab]..\\\\u[Dd][C-Fc-f]..', '', 'g')"
        r" ~ E'(^|[^\\\\])(\\\\\\\\)*\\\\u[Dd][89A-Fa-f]'",
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

FOREIGN_KEY: Final = re.compile(r"FOREIGN KEY \((\w+)\) REFERENCES (\w+)\((\w+)\)")

_FAULTS: Final[Mapping[str, str]] = {
    r".*_vector_norm": "its vector is zero, or of a norm that is not within 1e-15 to 1e18",
    r".*_object": "its JSON is no object",
    r".*_not_negative": "its energy is negative",
}
"""How to say that a row fails a constraint, by the constraint's name."""


class Judges:
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
            if one.table == table and (parts := FOREIGN_KEY.fullmatch(one.definition)):
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
            if (one.expected or "").endswith(" NOT VALID"):
                continue
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
                conversion(composed.SQL("candidate.{}"), one.name, self._types[table, one.name], one.definition),
                composed.Identifier(one.name),
            )
            for one in self._wanted
            if one.table == table and one.kind == "type" and (table, one.name) in self._types
        )


def conversion(form: composed.SQL, column: str, found: str, wanted: str) -> composed.Composed:
    """Return the expression that makes *wanted* of a column, which *form* writes, of the type *found*."""
    value = form.format(composed.Identifier(column))
    if found == wanted:
        return value
    if found.endswith("without time zone"):
        return composed.SQL("{} AT TIME ZONE 'UTC'").format(value)
    return composed.SQL("{}::{}").format(value, composed.SQL(literal(wanted)))
