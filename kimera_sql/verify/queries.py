"""The queries of every file, each with all that is known of it."""

from __future__ import annotations

import hashlib
import importlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Final

from ..errors import QueryError
from ..sql import Statement
from ..sql.files import entities, literal, query_file, statements
from . import text
from .interfaces import Interface
from .text import Fault, Source

PACKAGE: Final = Path(__file__).parents[1]


@dataclass(slots=True)
class Query:
    """A query with all that is known of it.

    module: where its dataclasses are. note: its `returns`, which is said once for both dialects. lacks: what the server
    at hand does not have of what it needs.
    """

    dialect: str
    entity: str
    source: Source
    statement: Statement
    module: ModuleType | None
    interface: Interface
    note: str | None = None
    lacks: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.dialect, self.statement.name


def read(folder: Path | None, module: ModuleType | None) -> tuple[list[Query], list[Fault]]:
    """Read all files, and return their queries and what is wrong with how they are written."""
    queries: list[Query] = []
    faults: list[Fault] = []
    for dialect, entity in entities(folder):
        path = query_file(dialect, entity, folder)
        sources, wrong = text.read(path, dialect)
        faults += wrong
        loaded: dict[str, Statement] = {}
        try:
            loaded = statements.__wrapped__(dialect, entity, folder)
        except QueryError as error:
            if not wrong:
                faults.append(Fault(str(path), 1, 1, None, str(error)))
        of = module if folder is not None else _shipped_module(entity)
        for source in sources:
            # One query that cannot be loaded is to hide nothing that is wrong with the others.
            statement = loaded.get(source.name) or _stated(entity, source)
            meant = tuple(name for name, _ in source.used)
            names = tuple(re.findall(r"%\((\w+)\)s", statement.text))
            if source.name in loaded and source.readable and dialect == "postgres" and names != meant:
                source.readable = False
                message = "the loader reads other parameters than the text has"
                faults.append(source.fault(None, message, expected=", ".join(meant), found=", ".join(names)))
            parameters = tuple((name, "") for name in source.parameters)
            checksum = hashlib.sha256(" ".join(source.text.split()).encode()).hexdigest()[:12]
            unseen = Interface(dialect, statement.name, statement.suffix, checksum, False, parameters, ())
            queries.append(Query(dialect, entity, source, statement, of, unseen, statement.notes.get("returns")))
    notes = {query.statement.name: query.note for query in queries if query.dialect == "postgres"}
    for query in queries:
        query.note = query.note or notes.get(query.statement.name)
    return queries, faults


def _stated(entity: str, source: Source) -> Statement:
    notes = {note: value for note, (value, _) in source.notes.items()}
    name, declared = f"{entity}.{source.name}", frozenset(source.parameters)
    statement = Statement(name, literal(source.text), "", source.parameters, source.suffix, notes, False, (), declared)
    return replace(statement, types=statement.listed("types"))


def _shipped_module(entity: str) -> ModuleType | None:
    """Return the module of this name, wherever in the package it stands save for the commands; None without one."""
    for path in (*PACKAGE.rglob(f"{entity}.py"), *PACKAGE.rglob(f"{entity}/__init__.py")):
        inside = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if "cli" not in inside:
            return importlib.import_module(".".join(inside).removesuffix(".__init__"))
    return None
