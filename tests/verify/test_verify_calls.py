"""verify: calls in the package pass what the files declare."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from kimera_sql import sql
from kimera_sql.verify import calls

CALLS: Final = {
    "_queries.find_by_id.fetchone(conn, ident=id)": (
        "geoids.find_by_id: the call does not pass the parameters that the file declares (expected id, found ident)"
    ),
    "_queries.find_by_id.fetchone(conn)": "(expected id, found none)",
    "_queries.count_all.fetchval(conn, int, id=1)": "(expected none, found id)",
    "_queries.find_by_idd.fetchone(conn, id=id)": "_queries.find_by_idd names a query that its file does not have",
    "sql.Queries('geoids').nothing": "names a query that its file does not have",
    "getattr(_queries, f'nothing_{id}')": "names a query that its file does not have",
    "getattr(_queries, f'similar_{id}').fetchall(conn, vector=id, other=1)": "geoids.similar_full: the call does not",
    "_queries.copy_in.execute(conn)": "geoids.copy_in: a COPY is run by its method copy",
    "_queries.count_all.fetchval(conn, str)": "fetchval is given another type than the note `returns` (expected int, ",
    "_queries.find_by_ids.fetchall(conn, GeoidSummary, ids=id)": (
        "the rows are made into another dataclass than the note says (expected Geoid, found GeoidSummary)"
    ),
    "_all(conn, GeoidSummary, _queries.find_by_ids)": "(expected Geoid, found GeoidSummary)",
    "_queries.find_by_id.fetchone(conn, **{'idd': id})": "(expected id, found idd)",
    "_queries.find_by_id.fetchone(conn, **given())": "(expected id, found ident)",
}


def called(folder: Path, call: str) -> list[str]:
    (folder / "code.py").write_text(
        "from kimera_sql import sql\n_queries = sql.Queries('geoids')\n\n\n"
        "def given():\n    return {'ident': 1}\n\n\n"
        f"def run(conn, id, where):\n    rows = {call}\n    return rows\n"
    )
    statements = {one.name: one for one in sql.statements("postgres", "geoids").values()}
    return [str(fault) for fault in calls.check(folder, statements)]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_passes_what_the_file_declares(tmp_path: Path, call: str) -> None:
    fault, *_ = called(tmp_path, call)
    assert fault.startswith(f"{tmp_path}/code.py:10:")
    assert CALLS[call] in fault


@pytest.mark.parametrize(
    "call",
    [
        "_queries.find_by_id.fetchone(conn, id=id)",
        "_queries.find_by_id.fetchone(conn, **{'id': id})",
        "_queries.find_by_id.fetchone(conn, **where)",
        "_queries.stream_all.stream(conn, chunk=10)",
        "_queries.find_by_ids.fetchall(conn, Geoid, ids=id)",
        "getattr(_queries, f'{id}_all')",
    ],
)
def test_a_right_call_has_no_fault(tmp_path: Path, call: str) -> None:
    assert called(tmp_path, call) == []
