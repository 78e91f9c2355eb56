"""verify: calls in the package pass what the files declare."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

import pytest
from fix_verify import change

import kimera_sql
from kimera_sql import sql
from kimera_sql.tables import TABLES
from kimera_sql.verify import calls

pytestmark = pytest.mark.slow

CALLS: Final = {
    "_queries.find_by_id.fetchone(conn, ident=id)": (
        "geoids.find_by_id: the call does not pass the parameters that the file declares (expected id, found ident)"
    ),
    "_queries.find_by_id.fetchone(conn)": "(expected id, found none)",
    "_queries.count_all.fetchval(conn, int, id=1)": "(expected none, found id)",
    "_queries.find_by_idd.fetchone(conn, id=id)": "_queries.find_by_idd names a query that its file does not have",
    "sql.Queries(id).find_by_id.fetchone(conn, ids=id)": "geoids.find_by_id: the call does not pass the parameters",
    "sql.Queries(id).find_by_idd": "names a query that its file does not have",
    "sql.Queries('geoids').nothing": "names a query that its file does not have",
    "getattr(_queries, f'nothing_{id}')": "names a query that its file does not have",
    "getattr(_queries, f'similar_{id}').fetchall(conn, vector=id, other=1)": "geoids.similar_full: the call does not",
    "_queries.copy_in.execute(conn)": "geoids.copy_in: a COPY is run by its method copy",
    "_queries.count_all.fetchval(conn, str)": "fetchval is given another type than the note `returns` (expected int, ",
    "_queries.find_by_ids.fetchall(conn, GeoidSummary, ids=id)": (
        "the rows are made into another dataclass than the note says (expected Geoid, found GeoidSummary)"
    ),
    "_all(conn, GeoidSummary, _queries.find_by_ids, ids=id)": "(expected Geoid, found GeoidSummary)",
    "_all(conn, Geoid, _queries.find_by_ids, id=id)": "(expected ids, found id)",
    "_all(conn, Geoid, _queries.find_by_ids if id else _queries.find_by_id, ids=id)": "geoids.find_by_id: the call",
    "_all(conn, id, query=_queries.find_by_id, **given())": "(expected id, found ident)",
    "_all(conn, id, _queries.find_by_idd, id=id)": "_queries.find_by_idd names a query that its file does not have",
    "_queries.find_by_id.fetchone(conn, **{'idd': id})": "(expected id, found idd)",
    "_queries.find_by_id.fetchone(conn, **given())": "(expected id, found ident)",
}


def called(folder: Path, call: str, *, awaited: bool = False) -> list[str]:
    prefix, waiting = ("async ", "await ") if awaited and "getattr" not in call else ("", "")
    (folder / "code.py").write_text(
        "from kimera_sql import sql\n_queries = sql.Queries('geoids')\n\n\n"
        "def given():\n    return {'ident': 1}\n\n\n"
        f"{prefix}def run(conn, id, where):\n    rows = {waiting}{call}\n    return rows\n\n\n"
        f"{prefix}def _all(conn, record, query, **parameters):\n"
        f"    return {waiting}query.fetchall(conn, record, **parameters)\n"
    )
    statements = {one.name: one for one in sql.statements("postgres", "geoids").values()}
    return [str(fault) for fault in calls.check(folder, statements)]


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_passes_what_the_file_declares(tmp_path: Path, call: str, awaited: bool) -> None:
    fault, *_ = called(tmp_path, call, awaited=awaited)
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
        "_all(conn, Geoid, _queries.find_by_ids, ids=id)",
        "_all(conn, Geoid, _queries.find_by_ids, **where)",
        "getattr(sql.Queries(id), where).fetchall(conn, anything=1)",
        "sql.Queries(id).find_by_id.fetchone(conn, id=id)",
    ],
)
def test_a_right_call_has_no_fault(tmp_path: Path, call: str) -> None:
    assert called(tmp_path, call) == []


FILTERS: Final = """\
def where(**filters):
    checked = {"since": filters.get("since"), **times(filters)}
    return checked


def times(filters):
    return {"limit": 1, "until": None}
"""

KNOWN: Final = [
    "from .model.steps import where\n@_queries.between.fetchall(conn, **where(**filters))",
    "from .model.steps import where as narrowed\n@_queries.between.fetchall(conn, **narrowed(**filters))",
    "from .model import steps\n@_queries.between.fetchall(conn, **steps.where(**filters))",
    "from .model.steps import where\n@_queries.between.fetchall(conn, **{**where(**filters)})",
    "from .model.steps import where\n@parameters = where(**filters)\n    _queries.between.fetchall(conn, **parameters)",
    "from .model.steps import where\n@k, found = 1, where()\n    _queries.between.fetchall(conn, **found)",
    "@from .model.steps import where\n    _queries.between.fetchall(conn, **where(**filters))",
    "from .model.steps import times\n@_queries.between.fetchall(conn, since=1, **times(filters))",
]


def packaged(folder: Path, code: str, filters: str) -> list[str]:
    imported, _, body = code.partition("@")
    (folder / "model").mkdir()
    (folder / "model/__init__.py").touch()
    (folder / "model/steps.py").write_text(filters)
    (folder / "steps.py").write_text(
        f"from . import sql\n{imported}_queries = sql.Queries('transitions')\n\n\ndef run(conn, filters):\n    {body}\n"
    )
    statements = {one.name: one for one in sql.statements("postgres", "transitions").values()}
    return [str(fault) for fault in calls.check(folder, statements)]


@pytest.mark.parametrize("code", KNOWN)
def test_parameters_made_by_an_imported_function_are_known(tmp_path: Path, code: str) -> None:
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    assert packaged(tmp_path / "right", code, FILTERS) == []
    (fault,) = packaged(tmp_path / "wrong", code, FILTERS.replace('"until"', '"till"'))
    assert "transitions.between: the call does not pass the parameters that the file declares" in fault
    assert re.search(r"\(expected since, until, limit, found since, (limit, till|till, limit)\)$", fault)


UNKNOWN: Final = [
    "from .model.steps import where\n@where = filters\n    _queries.between.fetchall(conn, **where)",
    "from .model.steps import where\n@for where in filters:\n        _queries.between.fetchall(conn, **where())",
    "from .model.nothing import where\n@_queries.between.fetchall(conn, **where())",
    "from elsewhere import where\n@_queries.between.fetchall(conn, **where())",
    "from .steps import where\n@_queries.between.fetchall(conn, **where())",
    "from .model.steps import where\n@def inner(where):\n        def innermost():\n"
    "            _queries.between.fetchall(conn, **where())",
    "@def inner(kind):\n        return lambda: _queries.count_all.fetchval(conn, kind)",
    "@def inner(kind):\n        def innermost():\n            return _queries.count_all.fetchval(conn, kind)",
    "@def again():\n        return again()\n    _queries.between.fetchall(conn, **again())",
    "@filters = filters\n    _queries.between.fetchall(conn, **filters)",
]


@pytest.mark.parametrize("code", UNKNOWN)
def test_of_what_is_not_known_nothing_is_said(tmp_path: Path, code: str) -> None:
    assert packaged(tmp_path, code, FILTERS.replace('"until"', '"till"')) == []


EACH: Final = sorted(table.entity for table in TABLES)

ENTITIES: Final = {
    "column renamed": (
        ("model/geoids.py", '"entropy": checks', '"entropie": checks'),
        [
            "entity.py: geoids.insert: the call does not pass the parameters that the file declares",
            "entity.py: geoids.copy_in: the rows do not have the columns of the COPY in their order",
            "entity.py: geoids.copy_in: the rows do not have the columns of the COPY in their order",
            "upserts.py: geoids.upsert: the call does not pass the parameters that the file declares",
        ],
    ),
    "columns in another order": (
        (
            "model/transitions.py",
            '"source_id": checks.identifier("source_id", new.source_id),\n'
            '        "target_id": checks.identifier("target_id", new.target_id),\n',
            '"target_id": checks.identifier("target_id", new.target_id),\n'
            '        "source_id": checks.identifier("source_id", new.source_id),\n',
        ),
        [
            "entity.py: transitions.copy_in: the rows do not have the columns of the COPY in their order",
            "entity.py: transitions.copy_in: the rows do not have the columns of the COPY in their order",
        ],
    ),
    "filter dropped": (
        ("model/geoids.py", '"metadata": checks.optional(', '"since": checks.optional('),
        [
            f"geoids.py: geoids.{name}: the call does not pass the parameters"
            for name in ("centroid", "count_matching", "find", "series")
        ],
    ),
    "filter renamed": (
        ("model/embeddings.py", 'Filters)\n    return {\n        "source"', 'Filters)\n    return {\n        "sauce"'),
        [
            f"embeddings.py: embeddings.{name}: the call does not pass the parameters"
            for name in ("count_matching", "matching_words")
        ],
    ),
    "parameter of a pipelined query renamed": (
        ("embeddings.py", '{"words": search_words(text), "limit"', '{"words": search_words(text), "most"'),
        ["embeddings.py: embeddings.matching_words: the call does not pass the parameters"],
    ),
    "parameter of every entity renamed": (
        ("entity.py", "existing_ids.fetchall(conn, ids=", "existing_ids.fetchall(conn, id="),
        [f"entity.py: {entity}.existing_ids: the call" for entity in EACH],
    ),
    "query of every entity renamed": (
        ("entity.py", "self._queries.delete_by_id.", "self._queries.delete."),
        [
            f"entity.py: {entity}.delete: self._queries.delete names a query that its file does not have"
            for entity in EACH
        ],
    ),
    "parameter handed on renamed": (
        ("geoids.py", "_queries.add_tags, tuple, id, tags=", "_queries.add_tags, tuple, id, tag="),
        ["geoids.py: geoids.add_tags: the call does not pass the parameters that the file declares (expected id, tag"],
    ),
    "type handed on": (
        ("portals.py", "_queries.mark_used, datetime,", "_queries.mark_used, dict,"),
        ["portals.py: portals.mark_used: fetchval is given another type than the note `returns` (expected datetime, "],
    ),
    "dataclass handed on": (
        ("geoids.py", "Entity(_queries, NewGeoid, Geoid,", "Entity(_queries, NewGeoid, GeoidSummary,"),
        [
            "entity.py: geoids.find_by_id: the rows are made into another dataclass than the note says",
            "entity.py: geoids.find_by_ids: the rows are made into another dataclass than the note says",
        ],
    ),
    "query handed on": (
        ("metrics.py", "advance_ids=_queries.advance_ids", "advance_ids=_queries.names"),
        ["entity.py: metrics.names: fetchval is given another type than the note `returns` (expected str, found int)"]
        * 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("drift", ENTITIES)
def test_what_the_entities_have_in_common_is_checked_for_each(tmp_path: Path, drift: str) -> None:
    (file, old, new), messages = ENTITIES[drift]
    package = Path(kimera_sql.__file__).parent
    shutil.copytree(package / "model", tmp_path / "model")
    for module in ("entity", "upserts", *EACH):
        shutil.copy(package / f"{module}.py", tmp_path)
    statements = {one.name: one for entity in (*EACH, "types") for one in sql.statements("postgres", entity).values()}
    assert list(calls.check(tmp_path, statements)) == []
    change(tmp_path / file, old, new)
    placed = [str(fault).removeprefix(f"{tmp_path}/") for fault in calls.check(tmp_path, statements)]
    faults = sorted(re.sub(r":\d+:\d+: ", ": ", fault, count=1) for fault in placed)
    assert len(faults) == len(messages)
    for fault, message in zip(faults, sorted(messages), strict=True):
        assert fault.startswith(message)
