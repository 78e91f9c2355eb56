"""verify: the snapshot shows every change, without a server."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from fix_verify import RECORDS, change, found, query

from kimera_sql.errors import QueryError
from kimera_sql.pytest_plugin import Verify
from kimera_sql.verify import verify_queries

pytestmark = pytest.mark.slow


def test_the_snapshot_is_readable_and_settles(kept: Path, conn_newest: psycopg.Connection) -> None:
    text = (kept / "snapshot.txt").read_text()
    head, *lines = text.split("\n\n")[1].splitlines()
    assert head.startswith("postgres dreams.by_phase ")
    assert lines == [
        "    takes phase text",
        "    takes limit int8",
        "    gives id uuid",
        "    gives timestamp timestamptz",
        "    gives entropy float8",
    ]
    assert verify_queries(conn_newest, kept, RECORDS, update=True).written == ()
    assert found(None, kept) == found(conn_newest, kept) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("DESC, id", "DESC", "its text was changed after the snapshot was written"),
        ("by_phase(", "of_phase(", "the snapshot does not have it"),
        ("by_phase(phase, limit)", "by_phase(limit, phase)", "its text was changed after the snapshot was written"),
        ("limit)\n", "limit)^\n", "its interface is not that of the snapshot"),
        ("returns: Dream", "returns: Strict", "the columns are not the fields of Strict"),
        ("-- returns: Dream\n", "-- returns: id UUID, timestamp str, entropy float\n", "timestamp is timestamptz"),
        ("-- returns", "-- return", "is no note"),
        ("'phase'", "'%'", "psycopg reads a single %"),
    ],
)
def test_offline_a_change_is_found(kept: Path, old: str, new: str, message: str) -> None:
    change(kept / "dreams.sql", old, new)
    assert any(message in fault for fault in found(None, kept))


def test_offline_a_query_that_is_gone_is_found(kept: Path) -> None:
    (kept / "dreams.sql").write_text(query("SELECT 1 AS a", "returns: int", name="other()$"))
    assert any("dreams.by_phase: the snapshot has it for postgres, and it is gone" in one for one in found(None, kept))


def test_a_change_of_the_tables_is_found(kept: Path, conn_newest: psycopg.Connection) -> None:
    conn_newest.execute("ALTER TABLE geoid_states ALTER COLUMN entropy TYPE REAL")
    (fault,) = found(conn_newest, kept)
    assert "(expected gives entropy float8, found gives entropy float4)" in fault


def test_offline_needs_a_snapshot(kept: Path) -> None:
    (kept / "snapshot.txt").unlink()
    with pytest.raises(QueryError, match=r"there is no .*snapshot\.txt to compare with"):
        verify_queries(None, kept, RECORDS)
    with pytest.raises(QueryError, match=r"update it with one"):
        verify_queries(None, kept, RECORDS, update=True)


def test_a_damaged_snapshot_is_a_query_error(kept: Path) -> None:
    change(kept / "snapshot.txt", "    takes", "    take")
    with pytest.raises(QueryError, match=r"snapshot\.txt:5: '    take phase text' is not as"):
        verify_queries(None, kept, RECORDS)


def test_a_damaged_column_in_a_snapshot_is_a_query_error(kept: Path) -> None:
    change(kept / "snapshot.txt", "    gives id uuid", "    gives id")
    with pytest.raises(QueryError, match=r"snapshot\.txt:7: '    gives id' is not as"):
        verify_queries(None, kept, RECORDS)


def test_offline_a_note_of_no_column_is_found(kept: Path) -> None:
    change(kept / "dreams.sql", "-- returns: Dream\n", "-- returns: Dream\n-- not null: ident\n")
    (fault,) = found(None, kept)
    assert fault.endswith("not null: there is no column ident (expected id, timestamp, entropy, found ident)")


def test_with_a_fault_nothing_is_written(kept: Path, conn_newest: psycopg.Connection) -> None:
    before = (kept / "snapshot.txt").read_text()
    change(kept / "dreams.sql", "geoid_states", "geoids")
    report = verify_queries(conn_newest, kept, RECORDS, update=True)
    assert len(report.faults) == 1
    assert report.written == ()
    assert (kept / "snapshot.txt").read_text() == before


def test_the_fixture_compares_with_the_snapshot(kimera_verify: Verify, kept: Path) -> None:
    kimera_verify(kept, RECORDS)
    change(kept / "dreams.sql", "DESC, id", "DESC")
    with pytest.raises(pytest.fail.Exception, match="its text was changed"):
        kimera_verify(kept, RECORDS)
