"""What docs/architecture.md says of extending the package, followed on a copy of the project: it names all of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from fix_servers import Server

from kimera_sql import sql

PROJECT: Final = sql.shipped("queries").parent
FOLDERS: Final = ("kimera_sql", "queries", "schema")

pytestmark = pytest.mark.slow


class Copy:
    """A copy of the project. change returns how many places it changed; touched: the files that were."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        self.touched: set[str] = set()
        self._server = server
        for name in FOLDERS:
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))

    def change(self, file: str, pattern: str, into: str, *, count: int = 0) -> None:
        text, changed = re.subn(pattern, into, (self.folder / file).read_text(encoding="utf-8"), count=count)
        assert changed, f"{file} has no {pattern}"
        (self.folder / file).write_text(text, encoding="utf-8")
        self.touched.add(file)

    def add(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text, encoding="utf-8")
        self.touched.add(file)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KIMERA_", "DATABASE_"))}
        kept |= {"PYTHONPATH": str(self.folder), "PYTHONWARNINGS": "ignore", **environment}
        return subprocess.run(
            [sys.executable, *arguments], env=kept, cwd=self.folder, capture_output=True, text=True, timeout=120
        )

    def verify(self, *options: str) -> str:
        """Run `kimera-sql verify` on a server, and return what it prints."""
        conninfo = self._server.create()
        try:
            command = "import sys; from kimera_sql.cli import main; sys.exit(main())"
            ran = self.run("-c", command, "verify", *options, DATABASE_URL=conninfo)
            assert not ran.stderr, ran.stderr
            return ran.stdout
        finally:
            self._server.drop(conninfo)

    def both(self, code: str) -> list[str]:
        """Run *code* with a migrated `conn` on PostgreSQL and on SQLite, and return what each prints."""
        opened = """
import numpy as np
from kimera_sql import geoids, migrate, open_pool, transfer
with open_pool() as pool, pool.connection() as conn:
    migrate(conn)
"""
        conninfo = self._server.create()
        try:
            script = opened + "".join(f"    {line}\n" for line in code.strip().splitlines())
            several = [
                self.run("-c", script, DATABASE_URL=conninfo),
                self.run("-c", script, KIMERA_SQLITE_PATH=str(self.folder / "file.db")),
            ]
        finally:
            self._server.drop(conninfo)
        assert [ran.stderr for ran in several] == ["", ""]
        return [ran.stdout for ran in several]


@pytest.fixture
def copy(tmp_path: Path, newest: Server) -> Copy:
    return Copy(tmp_path, newest)


def add_filter(copy: Copy) -> None:
    copy.change(
        "kimera_sql/model/geoids.py",
        r"(    entropy: tuple\[float \| None, float \| None\] \| None\n)",
        r"\1    energy: tuple[float | None, float | None] | None\n",
    )
    copy.change(
        "kimera_sql/model/geoids.py",
        r'(    least, most = checks.limits\("entropy".*\n)',
        r'\1    energy_least, energy_most = checks.limits("energy", filters.get("energy"))\n',
    )
    copy.change(
        "kimera_sql/model/geoids.py",
        r'(        "entropy_max": most,\n)',
        r'\1        "energy_min": energy_least,\n        "energy_max": energy_most,\n',
    )
    for dialect, cast in (("postgres", "::float8"), ("sqlite", "")):
        file = f"queries/{dialect}/geoids.sql"
        copy.change(file, r"entropy_min, entropy_max,", "entropy_min, entropy_max, energy_min, energy_max,")
        copy.change(
            file,
            r"( +)AND \(:entropy_max.*\n",
            rf"\g<0>\1AND (:energy_min{cast} IS NULL OR energy_level >= :energy_min)\n"
            rf"\1AND (:energy_max{cast} IS NULL OR energy_level <= :energy_max)\n",
        )


FILTERED: Final = """
for energy in range(10):
    geoids.insert(conn, geoids.NewGeoid(
        state_vector=np.eye(1, 1024, energy)[0], entropy=0, coherence_factor=0, energy_level=energy))
print([hit.geoid.energy_level for hit in geoids.similar(conn, np.eye(1, 1024, 5)[0], energy=(3, 6))][:1])
print(sorted(state.energy_level for state in geoids.find(conn, energy=(3, 6))))
"""


def test_a_filter(copy: Copy) -> None:
    add_filter(copy)
    assert "no fault" in copy.verify("--update")
    assert copy.both(FILTERED) == ["[5.0]\n[3.0, 4.0, 5.0, 6.0]\n"] * 2
    assert copy.touched == {"kimera_sql/model/geoids.py", "queries/postgres/geoids.sql", "queries/sqlite/geoids.sql"}


def test_a_filter_that_one_statement_forgets(copy: Copy) -> None:
    add_filter(copy)
    file = copy.folder / "queries/postgres/geoids.sql"
    text = file.read_text(encoding="utf-8")
    begin = text.index("-- name: similar_half")
    end = text.index("-- name: similar_binary")
    half = re.sub(r" +AND \(:energy_\w+.*\n", "", text[begin:end].replace("energy_min, energy_max, ", ""))
    file.write_text(text[:begin] + half + text[end:], encoding="utf-8")
    assert "similar_half" in copy.verify("--update")


def add_column(copy: Copy) -> None:
    for dialect in ("postgres", "sqlite"):
        number = 1 + max(int(path.name[:4]) for path in (copy.folder / "schema" / dialect).glob("[0-9]*.sql"))
        copy.add(f"schema/{dialect}/{number:04}_mood.sql", "ALTER TABLE geoid_states ADD COLUMN mood TEXT;\n")
    model = "kimera_sql/model/geoids.py"
    copy.change(model, r"(    tags: Sequence\[str\] = \(\)\n)", r"\1    mood: str | None = None\n")
    copy.change(model, r"(    tags: tuple\[str, \.\.\.\]\n)", r"\1    mood: str | None\n")
    copy.change(
        model,
        r'(        "tags": checks.labels.*\n)',
        r'\1        "mood": checks.optional(checks.text, "mood", new.mood),\n',
    )
    for dialect in ("postgres", "sqlite"):
        file = f"queries/{dialect}/geoids.sql"
        copy.change(file, r"creation_context, tags\b", "creation_context, tags, mood")
        copy.change(file, r"(:creation_context,\s+:tags)\b", r"\1, :mood")
        copy.change(file, r"( +)tags = excluded\.tags,\n", r"\g<0>\1mood = excluded.mood,\n")
    copy.change("queries/postgres/geoids.sql", r"( +):tags::text\[\],\n", r"\g<0>\1:mood::text[],\n")
    copy.change("queries/postgres/geoids.sql", r"tags::text\[\], state_vector", "tags::text[], mood, state_vector")
    copy.change("queries/postgres/geoids.sql", r"text\[\], vector", "text[], text, vector")


def test_a_column(copy: Copy) -> None:
    add_column(copy)
    assert "no fault" in copy.verify("--update")
    code = """
new = dict(state_vector=np.ones(1024), entropy=0, coherence_factor=0, energy_level=0, mood="calm")
print(geoids.get(conn, geoids.insert(conn, geoids.NewGeoid(**new)).id).mood)
print(geoids.insert_many(conn, [geoids.NewGeoid(**new)]), [state.mood for state in geoids.latest(conn)])
again = [geoids.NewGeoid(**{**new, "id": state.id, "mood": "wild"}) for state in geoids.latest(conn)]
print(geoids.upsert_many(conn, again[:1]).updated, geoids.upsert(conn, again[1]).mood)
print([state.mood for state in geoids.latest(conn)])
"""
    assert copy.both(code) == ["calm\n1 ['calm', 'calm']\n1 wild\n['wild', 'wild']\n"] * 2
    schema = {file for file in copy.touched if file.startswith("schema/")}
    assert len(schema) == 2
    assert copy.touched - schema == {
        "kimera_sql/model/geoids.py",
        "queries/postgres/geoids.sql",
        "queries/sqlite/geoids.sql",
    }


def add_entity(copy: Copy) -> None:
    """Make dreams of portals: another table, other names, the same functions."""
    for dialect in ("postgres", "sqlite"):
        folder = copy.folder / "schema" / dialect
        number = 1 + max(int(path.name[:4]) for path in folder.glob("[0-9]*.sql"))
        columns = {
            "postgres": "id UUID PRIMARY KEY DEFAULT gen_random_uuid(), "
            "timestamp TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP, what TEXT NOT NULL",
            "sqlite": "id TEXT PRIMARY KEY NOT NULL, timestamp TEXT NOT NULL, what TEXT NOT NULL",
        }
        strict = " STRICT" if dialect == "sqlite" else ""
        copy.add(f"schema/{dialect}/{number:04}_dreams.sql", f"CREATE TABLE dreams ({columns[dialect]}){strict};\n")
        copy.add(f"queries/{dialect}/dreams.sql", queries(dialect))
    copy.add("kimera_sql/model/dreams.py", MODEL)
    copy.add("kimera_sql/dreams.py", MODULE)
    copy.change("kimera_sql/tables.py", r'(    Table\("system_metrics".*\n)', r'\1    Table("dreams", "dreams"),\n')
    copy.change(
        "kimera_sql/__init__.py", r"(    from \. import embeddings.*\n)", r"    from . import dreams as dreams\n\1"
    )
    copy.change("kimera_sql/__init__.py", r'(    "embeddings": "embeddings",\n)', r'    "dreams": "dreams",\n\1')


def queries(dialect: str) -> str:
    """Return a file of queries for dreams."""
    text = QUERIES
    for mark, by_dialect in sorted(DIALECTS.items(), reverse=True):
        text = text.replace(mark, by_dialect[dialect])
    return text


DIALECTS: Final = {
    "@id": {"postgres": ":id::uuid", "sqlite": ":id"},
    "@timestamp": {"postgres": ":timestamp::timestamptz", "sqlite": ":timestamp"},
    "@ids": {"postgres": "= ANY(:ids)", "sqlite": "IN (SELECT value FROM json_each(:ids))"},
    "@copy": {
        "postgres": """\
-- name: copy_in()#
-- Add many dreams.
-- types: uuid, timestamptz, text
COPY dreams (id, timestamp, what) FROM STDIN (FORMAT BINARY);

-- name: seed(rows)!
-- Rows that verify plans the queries with.
-- only: postgres
INSERT INTO dreams (what) SELECT 'dream ' || number FROM generate_series(1, :rows) AS number;""",
        "sqlite": """\
-- name: copy_in(id, timestamp, what)!
-- Add many dreams.
INSERT INTO dreams (id, timestamp, what) VALUES (:id, :timestamp, :what);""",
    },
}

QUERIES: Final = """\
-- name: insert(id, timestamp, what)^
-- Add a dream.
-- takes: NewDream
-- returns: Dream
INSERT INTO dreams (id, timestamp, what)
VALUES (COALESCE(@id, gen_random_uuid()), COALESCE(@timestamp, clock_timestamp()), :what)
RETURNING id, timestamp, what;

-- name: now()$
-- What time it is.
-- returns: datetime
SELECT clock_timestamp();

@copy

-- name: find_by_id(id)^
-- One dream.
-- returns: Dream
SELECT id, timestamp, what FROM dreams WHERE id = :id;

-- name: find_by_ids(ids)
-- The dreams of a list of ids.
-- returns: Dream
SELECT id, timestamp, what FROM dreams WHERE id @ids ORDER BY id;

-- name: existing_ids(ids)
-- Which of a list of ids there are.
-- returns: UUID
SELECT id FROM dreams WHERE id @ids ORDER BY id;

-- name: delete_by_id(id)!
-- Remove a dream.
DELETE FROM dreams WHERE id = :id;

-- name: count_all()$
-- How many dreams there are.
-- returns: int
SELECT count(*) FROM dreams;

-- name: stream_all()
-- Every dream, the oldest first.
-- returns: Dream
SELECT id, timestamp, what FROM dreams ORDER BY timestamp, id;

-- name: stream_unordered()
-- Every dream, in no order.
-- returns: Dream
SELECT id, timestamp, what FROM dreams;
"""

MODEL: Final = '''\
"""The values of dreams: see kimera_sql.dreams."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from .. import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDream:
    """A dream to insert."""

    what: str
    timestamp: datetime | None = None
    id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Dream:
    """A stored dream."""

    id: UUID
    timestamp: datetime
    what: str


def values(new: NewDream | Dream) -> dict[str, Any]:
    """Return the columns to write."""
    return {
        "id": checks.optional(checks.identifier, "id", new.id),
        "timestamp": checks.optional(checks.moment, "timestamp", new.timestamp),
        "what": checks.text("what", new.what),
    }
'''

MODULE: Final = '''\
"""Dreams."""

from __future__ import annotations

from . import checks, sql
from .entity import Entity
from .model.dreams import Dream, NewDream, values

__all__ = ["Dream", "NewDream", "entity", "insert", "insert_many"]

_queries = sql.Queries("dreams")

entity = Entity(_queries, NewDream, Dream, values, checks.identifier)
insert = entity.insert
insert_many = entity.insert_many
'''


def test_an_entity(copy: Copy) -> None:
    add_entity(copy)
    assert "no fault" in copy.verify("--update")
    code = """
from kimera_sql import dreams
from kimera_sql.sqlite import SqlitePool
from kimera_sql.transfer import copy
dreams.insert_many(conn, [dreams.NewDream(what=f"{n}") for n in range(1000)])
conn.commit()
with SqlitePool("other.db") as others, others.connection() as other:
    migrate(other)
    print([(one.table, one.rows) for one in copy(conn, other)][-1], dreams.entity.count(other))
"""
    postgres, _ = copy.both(code.replace('"other.db"', 'f"{type(conn).__module__}.db"'))
    assert postgres == "('dreams', 1000) 1000\n"
    maintained = """
from kimera_sql.ops import maintenance
if hasattr(conn, "autocommit") and hasattr(conn, "pgconn"):
    conn.commit()
    conn.autocommit = True
    print([one.table for one in maintenance.vacuum(conn)][-1])
"""
    assert copy.both(maintained) == ["dreams\n", ""]
    assert len({file for file in copy.touched if not file.startswith("schema/")}) == 6
