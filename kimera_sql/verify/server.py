"""What PostgreSQL makes of a query when it prepares it: types, columns, nullability and plans. Nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import sql as composed
from psycopg.pq import DiagnosticField, ExecStatus, Format

from .. import sql
from ..errors import SchemaError
from ..schema import files
from ..sql.files import literal
from ..vectors import DIMENSIONS
from . import nulls
from .nulls import Catalogue, Column
from .text import COPY, Fault, Source

_queries = sql.Queries("verify")

_PLANNED: Final = re.compile(r"(SELECT|INSERT|UPDATE|DELETE|WITH|VALUES|TABLE|MERGE|\()", re.IGNORECASE)
"""How a statement begins that is no utility statement."""

_USED: Final = re.compile(r"(?:Index (?:Only )?Scan(?: Backward)? using|Bitmap Index Scan on) (\S+)")

_COST: Final = re.compile(r"\(cost=\S+\.\.(\S+) ")
"""The cost of a plan or of a part of one, the whole plan's first."""

_SETTINGS: Final = {
    # Nothing that goes on in the database is to be held up.
    "lock_timeout": "5s",
    # What the server says is read as text, and plans are to show what queries can use, whatever the session is set to.
    "client_encoding": "UTF8",
    "quote_all_identifiers": "off",
    "enable_bitmapscan": "on",
    "enable_indexonlyscan": "on",
    "enable_indexscan": "on",
    "enable_nestloop": "on",
}
"""Settings of the whole transaction."""

# A plan is to show whether an index can serve, not what is cheapest for a few rows: it may find rows, order them, or
# find them in no order, as GIN alone does.
_PLANNING: Final = (
    {"enable_seqscan": "off", "enable_sort": "on", "enable_hashjoin": "off", "enable_mergejoin": "off"},
    {"enable_seqscan": "off", "enable_sort": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"},
    {"enable_seqscan": "off", "enable_indexscan": "off", "enable_indexonlyscan": "off"},
)

_SAMPLES: Final[Mapping[str, str]] = {
    "vector": f"[{','.join(['1'] * DIMENSIONS)}]",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "timestamptz": "2020-01-01 00:00:00+00",
    "timestamp": "2020-01-01 00:00:00",
    "date": "2020-01-01",
    "interval": "1 hour",
    "bool": "false",
    "jsonb": "{}",
    "json": "{}",
    "text": "text",
    "varchar": "text",
}
"""A value of each type to plan with; numbers are 10, and arrays are empty."""


@dataclass(frozen=True, slots=True)
class Described:
    """What the server says of a query: its parameters as (name, type), and its result as (name, type, nullable).

    nullable: None where it cannot be told.
    """

    parameters: tuple[tuple[str, str], ...] = ()
    columns: tuple[tuple[str, str, bool | None], ...] = ()


class Preparer:
    """Has a server prepare queries, in a transaction that the caller rolls back."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn
        self._version: int = _queries.server_version.fetchval(conn, int) or 0
        self._extensions: dict[str, str] = dict(_queries.extensions.fetchall(conn))
        self._functions: dict[int, str] = dict(_queries.functions.fetchall(conn))
        self._operators: dict[int, str] = dict(_queries.operators.fetchall(conn))
        self._columns: dict[tuple[int, int], tuple[bool, int]] = {}
        self._types: dict[int, tuple[str, str]] = {
            oid: (f"{item}[]" if item else name, written) for oid, name, item, written in _queries.types.fetchall(conn)
        }

    def lacks(self, needs: Sequence[str]) -> str | None:
        """Return what the server lacks of *needs*, None if it has all. Raises ValueError for one that is unreadable."""
        for need in needs:
            found = re.fullmatch(r"(?P<what>[\w-]+)(?P<below> below)?(?: (?P<version>\d+(?:\.\d+)*))?", need)
            if found is None or (found["below"] and not found["version"]):
                raise ValueError(need)
            what, has = found["what"], self._extensions.get(found["what"])
            if what == "postgres":
                has = str(self._version // 10000)
            if has is None:
                return f"the extension {what}"
            if found["version"] and (sql.version(has) < sql.version(found["version"])) != bool(found["below"]):
                return f"{need}: it has {has}"
        return None

    def describe(self, source: Source, types: Sequence[str]) -> Described | Fault:
        """Have the server prepare a query; a COPY's parameters are its columns, whose *types* the file notes."""
        if copy := COPY.match(source.text):
            return self._describe_copy(source, copy, types)
        with self._undone():
            prepared = self._conn.pgconn.prepare(b"", source.text.encode())
            if prepared.status != ExecStatus.COMMAND_OK:
                return _refused(source, prepared)
            described = self._conn.pgconn.describe_prepared(b"")
        parameters = tuple(
            (name, self._type(described.param_type(place))) for place, name in enumerate(source.parameters)
        )
        known = self._told(source, [described.param_type(place) for place in range(described.nparams)])
        columns = []
        for place in range(described.nfields):
            one = known[place] if place < len(known) else Column(None)
            modifier = described.fmod(place)
            type_ = self._type(described.ftype(place), one.modifier if modifier == -1 else modifier)
            columns.append(((described.fname(place) or b"").decode(), type_, one.nullable))
        return Described(parameters, tuple(columns))

    def _describe_copy(self, source: Source, copy: re.Match[str], types: Sequence[str]) -> Described | Fault:
        names = [name.strip() for name in copy["columns"].split(",")]
        table = composed.SQL(".").join(map(composed.Identifier, copy["table"].split(".")))
        listed = composed.SQL(", ").join(map(composed.Identifier, names))
        select = composed.SQL("SELECT {} FROM {}").format(listed, table).as_bytes(self._conn)
        with self._undone():
            prepared = self._conn.pgconn.prepare(b"", select)
            if prepared.status != ExecStatus.COMMAND_OK:
                return source.fault(source.offsets[0], _said(prepared, DiagnosticField.MESSAGE_PRIMARY))
            described = self._conn.pgconn.describe_prepared(b"")
        oids = [described.ftype(place) for place in range(described.nfields)]
        noted = [oid for (oid,) in _queries.type_oids.fetchall(self._conn, names=list(types))]
        if noted != oids:
            return source.fault(
                source.note_offset("types"),
                "the types of a COPY are those of its columns",
                expected=", ".join(map(self._type, oids)),
                found=", ".join(types) or "none",
            )
        return Described(tuple(zip(names, map(self._type, oids), strict=True)))

    def _type(self, oid: int, modifier: int = -1) -> str:
        name = self._types.get(oid, (str(oid), ""))[0]
        return f"{name}({modifier})" if name in ("vector", "halfvec") and modifier > 0 else name

    def readable(self, type_: str) -> bool:
        """Whether psycopg turns a type into a value of its own; what it does not know comes as bytes."""
        plain = type_.removesuffix("[]").partition("(")[0]
        if plain in ("vector", "halfvec"):
            return True  # theirs are registered where they are used
        oid = next((oid for oid, (name, _) in self._types.items() if name == plain), 0)
        return self._conn.adapters.get_loader(oid, Format.BINARY) is not None

    def _told(self, source: Source, types: Sequence[int]) -> list[Column]:
        """Return what the parse tree of the query says about its columns; nothing of a utility statement."""
        if not _PLANNED.match(source.text):
            return []
        create = composed.SQL(
            "CREATE FUNCTION pg_temp.kimera_verify({types}) RETURNS void LANGUAGE sql BEGIN ATOMIC {text}\n; END"
        ).format(
            types=composed.SQL(", ").join(_text(self._types[oid][1]) for oid in types),
            text=_text(source.text),
        )
        with self._undone():
            try:
                # As bytes psycopg looks for no parameters in it.
                self._conn.execute(create.as_bytes(self._conn))
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
                raise SchemaError(
                    "verify learns which columns can be NULL from a temporary function, which it rolls back: it needs "
                    f"a server that can be written to and TEMPORARY on the database ({error.diag.message_primary})"
                ) from None
            except psycopg.Error:
                return []  # the server prepares it and keeps no tree of it, as of EXPLAIN
            tree = nulls.parse(_queries.body.fetchval(self._conn, str) or "()")
        unseen = nulls.tables(tree) - {table for table, _ in self._columns}
        for table, number, not_null, modifier in _queries.columns.fetchall(self._conn, tables=sorted(unseen)):
            self._columns[table, number] = not_null, modifier
        return nulls.columns(tree, Catalogue(self._functions, self._operators, self._columns))

    def indexes(self, source: Source, parameters: Sequence[tuple[str, str]]) -> dict[str, float]:
        """Return the indexes that plans of a query use, and what the cheapest plan with each costs.

        What can be left out of the query's typed *parameters* is.
        """
        values = {
            name: "NULL" if source.leaves_out(name) else f"'{_sample(type_)}'::{type_}" for name, type_ in parameters
        }
        text = composed.SQL("EXPLAIN ") + _text(source.filled(values))
        used: dict[str, float] = {}
        for settings in _PLANNING:
            with self._undone():
                _queries.settings.fetchall(self._conn, names=list(settings), values=list(settings.values()))
                # As bytes psycopg looks for no parameters in it.
                plan = "\n".join(line for (line,) in self._conn.execute(text.as_bytes(self._conn)))
            cost = float(_COST.findall(plan)[0])
            for name in _USED.findall(plan):
                used[name] = min(cost, used.get(name, cost))
        return used

    @contextmanager
    def _undone(self) -> Iterator[None]:
        with self._conn.transaction(force_rollback=True):
            yield


@contextmanager
def throwaway(conn: psycopg.Connection[Any], *, own_schema: bool) -> Iterator[Preparer]:
    """Lend a Preparer in a transaction that is rolled back; with *own_schema*, the shipped tables are made in it."""
    with conn.transaction(force_rollback=True), sql.without_timeouts(conn):
        # psycopg's prepared statements would outlive the tables that they are about.
        prepare, conn.prepare_threshold = conn.prepare_threshold, None
        try:
            if own_schema:
                _make_schema(conn)
            _queries.settings.fetchall(conn, names=list(_SETTINGS), values=list(_SETTINGS.values()))
            yield Preparer(conn)
        finally:
            conn.prepare_threshold = prepare


def _make_schema(conn: psycopg.Connection[Any]) -> None:
    path = _queries.search_path.fetchval(conn, str)
    try:
        _queries.create_schema.execute(conn)
    except psycopg.errors.InsufficientPrivilege:
        raise SchemaError(
            "verify makes the tables in a schema that it rolls back, and this role may make none: GRANT CREATE ON "
            "DATABASE to it, or verify on a server of its own: kimera-sql --embedded DIR verify"
        ) from None
    except psycopg.errors.DuplicateSchema:
        raise SchemaError("there is a schema kimera_verify, which verify needs for itself: drop it") from None
    _queries.settings.fetchall(conn, names=["search_path"], values=[f"kimera_verify, {path}"])
    for file in files("postgres"):
        sql.script(conn, file.read_text(encoding="utf-8"))
    sql.Queries("migrations").create_table.execute(conn)


def _text(text: str) -> composed.SQL:
    return composed.SQL(literal(text))


def _sample(type_: str) -> str:
    return "{}" if type_.endswith("[]") else _SAMPLES.get(type_, "10")


def _said(result: psycopg.pq.abc.PGresult, field: DiagnosticField) -> str:
    return (result.error_field(field) or b"").decode(errors="replace")


def _refused(source: Source, result: psycopg.pq.abc.PGresult) -> Fault:
    position = _said(result, DiagnosticField.STATEMENT_POSITION)
    at = min(int(position) - 1, len(source.offsets) - 1) if position else 0
    message = "the server refuses it: " + _said(result, DiagnosticField.MESSAGE_PRIMARY)
    if hint := _said(result, DiagnosticField.MESSAGE_HINT):
        message += f" ({hint})"
    return source.fault(source.offsets[at], message)
