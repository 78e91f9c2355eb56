"""What the tests of verify share: dataclasses, queries with a fault planted, and fixtures."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from fix_servers import Server

from kimera_sql import add_adapters, geoids, sql
from kimera_sql.vectors import Vector
from kimera_sql.verify import verify_queries

RECORDS: Final = sys.modules[__name__]

STATE: Final = geoids.NewGeoid(state_vector=[1.0] * 1024, entropy=0.5, coherence_factor=0, energy_level=0)


@dataclass(frozen=True, slots=True)
class Dream:
    id: UUID
    timestamp: datetime
    entropy: float


@dataclass(frozen=True, slots=True)
class Tagged:
    id: UUID
    creation_context: str | None
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Strict:
    id: UUID
    creation_context: str


@dataclass(frozen=True, slots=True)
class Loose:
    id: UUID | None


@dataclass(frozen=True, slots=True)
class Whole:
    id: UUID
    state_vector: Vector


@dataclass(frozen=True, slots=True)
class NewDream:
    entropy: float
    metadata: dict[str, Any]


class NoRecord:
    pass


def planted(text: str, folder: Path, file: str = "dreams.sql") -> str:
    """Write *text* without its mark @@, and return the place of the mark as a fault gives it."""
    before, mark, after = text.partition("@@")
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(before + after)
    return f"{path}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}: " if mark else f"{path}:"


def found(conn: psycopg.Connection | None, folder: Path, **options: Any) -> list[str]:
    return [str(fault) for fault in verify_queries(conn, folder, RECORDS, **options).faults]


GOOD = """\
-- name: by_phase(phase, limit)
-- Dreams of a phase, the newest first.
-- returns: Dream
SELECT id, timestamp, entropy
FROM geoid_states
WHERE metadata ->> 'phase' = :phase
ORDER BY timestamp DESC, id
LIMIT :limit;
"""


def query(statement: str, *notes: str, name: str = "one()") -> str:
    return f"-- name: {name}\n-- What it is for.\n{''.join(f'-- {note}{chr(10)}' for note in notes)}{statement};\n"


def both(folder: Path, postgres: str, sqlite: str) -> str:
    planted(postgres.replace("@@", ""), folder, "postgres/dreams.sql")
    return planted(sqlite, folder, "sqlite/dreams.sql")


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def conn_newest(newest: Server) -> Any:
    conninfo = newest.create(template=newest.template)
    with psycopg.connect(conninfo) as conn:
        add_adapters(conn)
        yield conn
    newest.drop(conninfo)


@pytest.fixture
def kept(conn_newest: psycopg.Connection, tmp_path: Path) -> Path:
    """A folder with a query and its snapshot."""
    folder = tmp_path / "queries"
    folder.mkdir()
    (folder / "dreams.sql").write_text(GOOD)
    report = verify_queries(conn_newest, folder, RECORDS, update=True)
    assert (report.faults, report.written) == ((), (str(folder / "snapshot.txt"),))
    return folder


@pytest.fixture
def shipped_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A copy of the folder of shipped queries that verify takes for the folder itself."""
    shutil.copytree(sql.shipped("queries"), tmp_path / "queries")
    shipped: Callable[[str], Path] = sql.shipped
    moved = lambda folder: tmp_path / folder if folder == "queries" else shipped(folder)  # noqa: E731
    monkeypatch.setattr("kimera_sql.sql.files.shipped", moved)
    monkeypatch.setattr(sql, "shipped", moved)
    sql.statements.cache_clear()
    yield tmp_path / "queries"
    # The tests that follow in this process load the package's own again.
    sql.statements.cache_clear()
