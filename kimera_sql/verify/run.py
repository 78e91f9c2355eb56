"""What the commands `verify` and `queries` do: reads, prepares, checks and compares, each in a module of its own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg

from .. import drift, migrations, sql
from ..errors import QueryError
from ..sql import Connection
from ..sql.files import entities, statements
from . import alike, calls, checks, describe, plans, snapshot
from . import queries as files
from . import stub as stubs
from .interfaces import Interface, Listed, Report, Skipped
from .queries import Query
from .server import throwaway
from .text import Fault


def verify_queries(
    conn: Connection | None,
    folder: Path | str | None = None,
    records: ModuleType | str | None = None,
    *,
    stub: Path | str | None = None,
    async_stub: Path | str | None = None,
    update: bool = False,
) -> Report:
    """Check every query of *folder*, or every one that is shipped, and return all faults at once.

    On *conn*, a PostgreSQL connection, each is prepared and none is run. All happens in one transaction (a savepoint
    in the caller's) that is rolled back: the shipped tables are made in a schema of their own, filled with a few rows
    for plans; queries of a *folder* of yours meet the tables that the database has. SQLite's are prepared in memory.
    Without *conn* the queries and the code are compared with the snapshot that stands beside the queries.
    Checked are: the text, for what the loader would misread; the notes (see kimera_sql.sql); names, parameters and
    columns of the two dialects; parameters and conditions of queries that find the same another way; names, types and
    nullability of columns against the dataclasses of *records*, or of kimera_sql.<entity>; the calls in this package;
    the indexes that plans use; the snapshot; and *stub*, a .pyi file for the module of yours that holds
    `queries = sql.load(...)`, or *async_stub*, for one that uses the sql of kimera_sql.aio. With *update* the snapshot
    and the stubs are written instead, unless there is a fault.
    Raises QueryError for a folder without queries, and offline without a snapshot; UnsupportedByServer for an SQLite
    connection; SchemaError where the role may make no schema.
    """
    server = None
    if conn is not None:
        why = "verify prepares queries on PostgreSQL, and SQLite's in memory: connect to a server"
        server = sql.require_postgres(conn, why)
    if conn is None and update:
        raise QueryError("the snapshot is written from what a server says; update it with one")
    if (stub is not None or async_stub is not None) and folder is None:
        raise QueryError("a stub is for a folder of queries of your own: name it")
    folder = None if folder is None else Path(folder)
    module = importlib.import_module(records) if isinstance(records, str) else records
    queries, faults = files.read(folder, module)
    beside = (folder or sql.shipped("queries")) / snapshot.NAME
    kept = snapshot.read(beside)
    made = ""
    if server is not None:
        found, made = _prepare(server, queries, kept, own=folder is None)
        faults += found
    elif beside.exists():
        for query in queries:
            query.interface = snapshot.remembered(query, kept)
    else:
        raise QueryError(f"there is no {beside} to compare with; `kimera-sql verify --update` writes it")
    for query in queries:
        if query.interface.prepared:
            faults += [*checks.check_notes(query), *checks.check_result(query), *checks.check_parameters(query)]
    faults += [*checks.check_parity(queries), *alike.check(queries)]
    if folder is None:
        # Of a name that both dialects have PostgreSQL's, which come first
        faults += calls.check(files.PACKAGE, {query.statement.name: query.statement for query in reversed(queries)})
    texts = {beside: snapshot.text(query.interface for query in queries)}
    if made:
        texts[drift.path()] = made
    for path, asynchronous in ((stub, False), (async_stub, True)):
        if path is not None and not faults:
            told = [(query.entity, query.statement, query.note, query.interface.parameters) for query in queries]
            texts[Path(path)] = stubs.text(told, module, asynchronous=asynchronous)
    written = []
    if not update:
        faults += snapshot.compare(queries, kept, beside) if beside.exists() else []
        faults += [fault for path, text in texts.items() if path != beside for fault in stubs.compare(path, text)]
    elif not faults:
        written = [str(path) for path, text in texts.items() if _write(path, text)]
    ordered = sorted(set(faults), key=lambda fault: (fault.file, fault.line, fault.column, fault.message))
    skipped = [Skipped(query.statement.name, query.lacks) for query in queries if query.lacks is not None]
    return Report(tuple(ordered), len(queries), tuple(skipped), tuple(written))


def _prepare(
    conn: psycopg.Connection[Any], queries: Sequence[Query], kept: Mapping[tuple[str, str], Interface], *, own: bool
) -> tuple[list[Fault], str]:
    """Learn the interfaces of *queries* from the server and from SQLite, look at plans, and list what schema/ makes."""
    faults: list[Fault] = []
    with throwaway(conn, own_schema=own) as preparer:
        made = drift.text(migrations.elements(conn)) if own else ""
        for query in queries:
            if query.dialect == "postgres":
                faults += describe.on_postgres(preparer, query, kept)
        faults += plans.check(conn, preparer, queries, own=own)
    return [*faults, *describe.on_sqlite(queries)], made


def _write(path: Path, text: str) -> bool:
    """Write *text* to *path* unless it is there, and say whether it was not."""
    try:
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QueryError(f"{path} cannot be written: {error.strerror}") from error
    return True


def listed(folder: Path | str | None = None) -> list[Listed]:
    """Return the queries of *folder*, or those that are shipped, by file and in its order, each name once."""
    folder = None if folder is None else Path(folder)
    found: dict[str, Listed] = {}
    for dialect, entity in entities(folder):
        for one in statements(dialect, entity, folder).values():
            known = found.get(one.name)
            found[one.name] = (
                replace(known, dialects=(*known.dialects, dialect))
                if known
                else Listed(
                    one.name,
                    one.parameters,
                    one.suffix,
                    one.notes.get("returns"),
                    (dialect,),
                    " ".join(one.doc.split()),
                )
            )
    return list(found.values())
