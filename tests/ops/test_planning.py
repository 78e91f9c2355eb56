"""What a number of vectors costs: figures that were measured, a model that was checked against them, and a plan."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
from commands import run
from hypothesis import given
from hypothesis import strategies as st

from kimera_sql import cli
from kimera_sql.cli.plan import HEADER, cells
from kimera_sql.errors import InvalidValue
from kimera_sql.ops import planning
from kimera_sql.ops.planning import Figure
from kimera_sql.search import kinds

ROOT: Final = Path(__file__).parent.parent.parent
PAGE: Final = (ROOT / "docs" / "scale.md").read_text()
GB: Final = 2**30

RAW: Final = {"hnsw half": 2048, "hnsw binary": 128, "hnsw full": 4096, "ivfflat half": 2048, "ivfflat full": 4096}
"""Bytes of a vector in each kind of index."""

ROWS: Final = st.integers(1, 10**12) | st.floats(0, 12).map(lambda power: int(10**power))
RECALLS: Final = st.floats(0.95, 0.99)


def line(words: list[str]) -> str:
    return f"| {' | '.join(words)} |\n"


@given(ROWS, RECALLS)
def test_no_index_is_smaller_than_its_vectors(rows: int, recall: float) -> None:
    for one in planning.estimates(rows, recall):
        assert one.size.value >= rows * RAW.get(one.index, 0)
        assert one.table.value >= rows * 4096
        assert one.memory.value > (one.size.value or one.table.value)


@given(ROWS, ROWS, RECALLS)
def test_more_rows_cost_more(one: int, other: int, recall: float) -> None:
    few, many = (planning.estimates(rows, recall) for rows in sorted((one, other)))
    for less, more in zip(few, many, strict=True):
        for name in ("table", "size", "memory", "build", "table_wait", "wait"):
            assert getattr(less, name).value <= getattr(more, name).value
        assert 0 < more.searches.value <= less.searches.value
        # 1 %: as far as two measurements of one thing differ
        assert 0 < more.inserts.value <= 1.01 * less.inserts.value


@given(ROWS, RECALLS, RECALLS)
def test_a_higher_recall_costs_more(rows: int, one: float, other: float) -> None:
    low, high = (planning.estimates(rows, recall) for recall in sorted((one, other)))
    for less, more in zip(low, high, strict=True):
        assert less.searches.value >= more.searches.value > 0
        assert less.size == more.size


def memory_of(plan: planning.Plan) -> int:
    return plan.fleets[0].machines * plan.fleets[0].memory


@given(
    ROWS,
    st.floats(0, 1e9),
    st.floats(0, 1e9),
    RECALLS,
    st.integers(2**27, 2**44),
    st.integers(1, 4096),
)
def test_more_searches_take_more_machines(
    rows: int, one: float, other: float, recall: float, memory: int, cores: int
) -> None:
    few, many = (planning.plan(rows, qps, recall, memory=memory, cores=cores) for qps in sorted((one, other)))
    assert memory_of(few) <= memory_of(many)
    for plan in (few, many):
        for fleet in plan.fleets:
            assert fleet.searches >= plan.qps
            assert fleet.rows * fleet.shards >= rows
            assert fleet.machines == fleet.shards * (1 + fleet.replicas)
            assert fleet.size + fleet.build_memory <= fleet.memory


@given(ROWS, ROWS, st.floats(0, 1e6), RECALLS)
def test_more_rows_take_more_shards(one: int, other: int, qps: float, recall: float) -> None:
    few, many = (planning.plan(rows, qps, recall) for rows in sorted((one, other)))
    assert few.fleets[0].shards <= many.fleets[0].shards


def test_first_a_smaller_index_then_a_bigger_machine_then_replicas_then_shards() -> None:
    def best(rows: float, qps: float, memory: int = 64) -> tuple[str, int, int, int]:
        fleet = planning.plan(rows, qps, 0.95, memory=memory * GB).fleets[0]
        return fleet.index, fleet.memory // GB, fleet.shards, fleet.replicas

    assert best(1000, 100) == ("none", 64, 1, 0)
    assert best(2e6, 10) == ("hnsw half", 64, 1, 0)
    assert best(2e6, 10, memory=8) == ("hnsw binary", 8, 1, 0)
    assert best(20e6, 100) == ("hnsw half", 256, 1, 0)
    assert best(20e6, 10_000) == ("hnsw half", 1024, 1, 0)
    assert best(20e6, 20_000) == ("hnsw half", 1024, 1, 1)
    assert best(100e6, 100) == ("hnsw half", 1024, 1, 0)
    assert best(1e9, 100) == ("hnsw half", 1024, 8, 0)


def test_the_page_says_what_a_machine_and_an_index_hold() -> None:
    def memory(rows: float) -> float:
        return planning.estimates(rows, 0.95)[0].memory.value / GB

    def reaches(rows: float) -> bool:
        return planning.estimates(rows, 0.95)[1].setting.value > 0

    assert (
        "With 64 GB and hnsw in half\nprecision, one machine holds 7.9 million vectors; with 1 TB, 126 million." in PAGE
    )
    assert memory(7.9e6) < 64 < memory(8e6)
    assert memory(126e6) < 1024 < memory(127e6)
    assert "reaches its limit at 5.7 million rows" in PAGE
    assert reaches(5.7e6)
    assert not reaches(5.9e6)


def test_few_cores_keep_postgresqls_workers() -> None:
    def workers(cores: int) -> set[str]:
        settings = planning.plan(1000, 1, 0.95, cores=cores).settings
        return {one.value for one in settings if one.name in ("max_worker_processes", "max_parallel_workers")}

    assert (workers(2), workers(16)) == ({"8"}, {"16"})


def test_a_table_is_split_where_no_ef_search_reaches_the_recall() -> None:
    whole = {one.index: one for one in planning.estimates(30e6, 0.99)}["hnsw half"]
    assert whole.setting.value == 0
    assert whole.searches == planning.estimates(30e6, 0.99)[-1].searches
    fleet = planning.plan(30e6, 100, 0.99).fleets[0]
    assert (fleet.index, fleet.shards) == ("hnsw half", 3)
    part = {one.index: one for one in planning.estimates(fleet.rows, 0.99)}["hnsw half"]
    assert 900 < part.setting.value <= 1000


def test_a_search_that_finds_its_table_in_memory_does_not_wait_for_the_disk() -> None:
    def bound(memory: int) -> str:
        (fleet,) = (one for one in planning.plan(5e6, 1, 0.95, memory=memory).fleets if one.index == "hnsw binary")
        return fleet.bound

    assert (bound(32 * GB), bound(128 * GB)) == ("disk", "cores")


@pytest.mark.parametrize(
    ("kind", "rows"), [(kind, rows) for kind, sizes in planning.MEASURED.items() if kind for rows in sizes]
)
def test_the_size_of_an_index_was_foreseen(kind: Any, rows: int) -> None:
    method, precision = kind
    options = kinds.options(method, rows, lists=None, m=None, ef_construction=None)
    assert kinds.size(method, precision, rows, options) == pytest.approx(planning.MEASURED[kind][rows].size, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "recall", "bases"),
    [
        (100_000, 0.95, ("measured", "measured", "measured")),
        (300_000, 0.99, ("measured", "measured", "measured")),
        (100_000, 0.97, ("measured", "measured", "interpolated")),
        (200_000, 0.95, ("modelled", "interpolated", "interpolated")),
        (300_001, 0.95, ("modelled", "modelled", "modelled")),
    ],
)
def test_each_figure_says_what_it_rests_on(rows: int, recall: float, bases: tuple[str, ...]) -> None:
    half = planning.estimates(rows, recall)[0]
    assert (half.size.basis, half.build.basis, half.searches.basis) == bases
    assert half.memory.basis == "modelled"


@pytest.mark.parametrize("rows", [10**5, 3 * 10**5, 10**6, 10**7, 10**8, 10**9])
def test_the_page_has_these_figures(rows: int) -> None:
    assert line([f"{rows:,} rows", *HEADER[1:]]) in PAGE
    for one in planning.estimates(rows, 0.95):
        assert line(cells(one)) in PAGE


def test_the_page_says_how_well_300_000_rows_were_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {kind: sizes for kind, sizes in planning.MEASURED.items() if 300_000 in sizes}
    found = [planning.estimates(300_000, recall) for recall in planning.RECALLS]
    few = {kind: {100_000: sizes[100_000]} for kind, sizes in measured.items()}
    monkeypatch.setattr(planning, "MEASURED", few)
    foreseen = [planning.estimates(300_000, recall) for recall in planning.RECALLS]

    def off(foreseen: Figure, found: Figure) -> str:
        assert found.basis == "measured"
        return f"{foreseen.value / found.value - 1:+.0%}" if found.value else "-"

    by_name = [{one.index: one for one in several} for several in found]
    for low, high in zip(*foreseen, strict=True):
        then, better = (several[low.index] for several in by_name)
        pairs = (
            (low.size, then.size),
            (low.build, then.build),
            (low.inserts, then.inserts),
            (low.searches, then.searches),
            (high.searches, better.searches),
        )
        assert line([low.index, *(off(*pair) for pair in pairs)]) in PAGE


def test_the_figures_are_what_the_benchmark_measured() -> None:
    found = json.loads((ROOT / "benchmarks" / "scale.json").read_text())["measured"]
    indexes = {(one["index"], one["rows"]): one for one in found["index"]}
    inserts = {(one["index"], one["rows"]): one for one in found["inserts"]}
    searches = {(one["index"], one["rows"], str(one["setting"]).partition(" by ")[0]): one for one in found["search"]}
    for kind, sizes in planning.MEASURED.items():
        for rows, measured in sizes.items():
            where = ("none" if kind is None else "/".join(kind), rows)
            assert measured.insert == pytest.approx(inserts[where]["single CPU ms"], rel=0.005)
            if kind is None:
                assert measured.search == pytest.approx(searches[*where, "exact"]["CPU ms"], rel=0.005)
                continue
            assert measured.size == indexes[where]["bytes"]
            assert measured.build == pytest.approx(indexes[where]["build CPU s"], rel=0.005)
            tuned = [searches[*where, f"{recall:g}"] for recall in planning.RECALLS]
            assert measured.setting == tuple(int(one["setting"].partition(" by ")[2]) for one in tuned)
            assert measured.search == pytest.approx([one["CPU ms"] for one in tuned], rel=0.005)
            assert measured.pages == pytest.approx([one["index buffers"] for one in tuned], rel=0.005)
    tables = {one["rows"]: one["table bytes"] + one["other indexes bytes"] for one in found["table"]}
    assert tables == planning.TABLES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 0}, "rows: 0 is not a whole number from 1 to 1e+12"),
        ({"rows": 1.5}, "rows: 1.5 is not a whole number"),
        ({"rows": 1e30}, "rows: 1e+30 is not a whole number"),
        ({"rows": float("nan")}, "rows: nan is not a finite number"),
        ({"rows": "5"}, "rows: expected a number, got str"),
        ({"rows": True}, "rows: expected a number, got bool"),
        ({"qps": -1}, "qps: -1 is not within 0 to 1e+09"),
        ({"qps": float("inf")}, "qps: inf is not a finite number"),
        ({"recall": 1.5}, "recall: 1.5 is not within 0.95 to 0.99"),
        ({"recall": 0.5}, "recall: 0.5 is not within 0.95 to 0.99"),
        ({"memory": 2**20}, "memory: 1MB is not within 128MB to 16TB"),
        ({"cores": 0}, "cores: 0 is not within 1 to 4096"),
        ({"cores": 1.5}, "cores: expected an integer"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{re.escape(message)}"):
        planning.plan(**{"rows": 1000, "qps": 1, "recall": 0.95} | arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rows nan --qps 1", "--rows: nan is not a finite number"),
        ("--rows -5 --qps 1", "--rows: -5 is not a whole number"),
        ("--rows 0 --qps 1", "--rows: 0 is not a whole number"),
        ("--rows 1e30 --qps 1", "--rows: 1e+30 is not a whole number"),
        ("--rows many --qps 1", "argument --rows: invalid float value: 'many'"),
        ("--rows 5 --qps -1", "--qps: -1 is not within"),
        ("--rows 5 --qps 1 --recall 1.5", "--recall: 1.5 is not within"),
        ("--rows 5 --qps 1 --ram 1MB", "--ram: 1MB is not within"),
        ("--rows 5 --qps 1 --ram much", "argument --ram: expected a size such as 8GB"),
        ("--rows 5 --qps 1 --cores 0", "--cores: 0 is not within"),
        ("--qps 1", "the following arguments are required: --rows"),
    ],
)
def test_the_command_refuses_it_as_wrong_usage(words: str, message: str) -> None:
    ran = run("plan", *words.split())
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"kimera-sql plan: error: {message}" in ran.stderr


def test_the_command_prints_the_plan() -> None:
    ran = run("plan", "--rows", "50e6", "--qps", "500")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("50,000,000 vectors, 500 searches a second at a recall of 0.95\n")
    shown = [re.split(r" {2,}", text) for text in ran.stdout.splitlines()]
    for one in planning.estimates(50e6, 0.95):
        assert cells(one) in shown
    plan = planning.plan(50e6, 500, 0.95)
    for setting in plan.settings:
        assert f"\n{setting.name} = {setting.value}\n" in ran.stdout
    (build,) = (text for text in ran.stdout.splitlines() if "kimera-sql index build" in text)
    options, _, command = build.partition(" kimera-sql ")
    assert options == f"PGOPTIONS='-c maintenance_work_mem={plan.fleets[0].build_memory // 2**20 + 1}MB'"
    chosen = cli.parse(command.replace("TABLE", "geoid_states").split())
    assert (chosen.method, chosen.precision) == ("hnsw", "half")
    assert "KIMERA_DB_REPLICAS" not in ran.stdout


def test_the_command_says_how_to_read_from_replicas() -> None:
    ran = run("plan", "--rows", "1e6", "--qps", "1e6")
    assert planning.plan(1e6, 1e6, 0.95).fleets[0].replicas > 0
    assert "KIMERA_DB_REPLICAS" in ran.stdout


def test_what_needs_no_index_has_none_to_build() -> None:
    told = run("plan", "--rows", "1000", "--qps", "1").stdout
    assert "\nmaintenance_work_mem = 4GB\n" in told
    assert "index build" not in told


def test_json_has_every_figure_with_its_basis() -> None:
    told = json.loads(run("plan", "--rows", "100_000", "--qps", "1", "--recall", "0.99", "--json").stdout)
    assert (told["rows"], told["qps"], told["recall"]) == (100_000, 1, 0.99)
    figures = {one["index"]: one for one in told["estimates"]}
    measured = planning.MEASURED["hnsw", "half"][100_000]
    assert figures["hnsw half"]["size"] == {"value": measured.size, "basis": "measured"}
    assert figures["hnsw half"]["memory"]["basis"] == "modelled"
    assert told["fleets"][0]["index"] == "hnsw half"
    assert told["settings"][0]["name"] == "shared_buffers"
