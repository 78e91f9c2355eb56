# Generated from kimera_sql/aio/sql/load.py by .ci/twins.py: change that one.
"""Load a folder of your own .sql files as functions."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from ..errors import QueryError
from ..sql import shapes
from ..sql.files import entities, statements
from .run import Queries


class Library:
    """The queries of a folder, called as `library.<file>.<name>(conn, ...)`; see load."""

    def __init__(self, folder: Path, files: Mapping[str, Queries]) -> None:
        self.folder = folder
        self._files = files

    def __dir__(self) -> Iterable[str]:
        return sorted(self._files)

    def __getattr__(self, name: str) -> Queries:
        try:
            return self._files[name]
        except KeyError:
            raise AttributeError(f"{self.folder} has no {name}.sql; there are {', '.join(self._files)}") from None


def load(folder: Path | str, records: ModuleType | str | None = None) -> Library:
    """Load the queries of *folder* as functions, with the dataclasses of the module *records*.

    `load("sql", "app.records").dreams.by_phase(conn, phase="rem")` runs by_phase of sql/dreams.sql. Its suffix decides
    what it returns: a list, one row or None, one value, or the number of rows changed. Its note `returns` decides what
    a row becomes. *folder* has .sql files for PostgreSQL, or folders postgres and sqlite with .sql files.
    Raises QueryError for a file that cannot be parsed and for a dataclass that does not exist.
    """
    folder = Path(folder)
    module = importlib.import_module(records) if isinstance(records, str) else records
    files = {}
    for dialect, entity in entities(folder):
        for name, statement in statements(dialect, entity, folder).items():
            try:
                shape = shapes.parse(statement.notes["returns"]) if "returns" in statement.notes else None
                if shape and shape.record:
                    shapes.find_record(module, shape.record)
            except QueryError as error:
                raise QueryError(f"{entity}.sql ({dialect}): {name}: returns: {error}") from None
        files[entity] = Queries(entity, folder, module)
    return Library(folder, files)
