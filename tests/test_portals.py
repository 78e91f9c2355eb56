"""Portal configurations: lists, changes and the cheapest route."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    ABSENT,
    BAD_IDS,
    BAD_INTEGERS,
    BAD_LIMITS,
    BAD_MOMENTS,
    BAD_OBJECTS,
    BAD_TEXTS,
    same_json,
    seconds,
)
from strategies import json_objects, texts

from kimera_sql import portals
from kimera_sql.errors import InvalidValue, NotFound
from kimera_sql.portals import NewPortal, Portal
from kimera_sql.sql import Connection

pytestmark = pytest.mark.ends

dimensions = st.integers(-1, 5)
statuses = st.sampled_from(["active", "active", "active", "closed"])
news_of_all_kinds = st.lists(
    st.builds(
        NewPortal,
        source_dimension=dimensions,
        target_dimension=dimensions,
        radius=st.just(1.0),
        energy_requirement=st.integers(0, 12).map(lambda number: number / 4),
        stability_factor=st.just(1.0),
        status=statuses,
        creation_timestamp=st.integers(0, 3).map(seconds),
        id=st.uuids(),
    ),
    max_size=20,
    unique_by=lambda new: new.id,
)
limits = st.integers(1, 12)


def fill(conn: Connection, news: list[NewPortal]) -> list[Portal]:
    """Begin anew with *news*, and return their rows, the oldest first."""
    conn.rollback()
    portals.insert_many(conn, news)
    return list(portals.stream(conn))


def portal(source: int, target: int, energy: float = 1, **changes: Any) -> NewPortal:
    new = NewPortal(
        source_dimension=source, target_dimension=target, radius=1, energy_requirement=energy, stability_factor=1
    )
    return replace(new, **changes)


def least_energy(rows: list[Portal], source: int, target: int, max_steps: int) -> float | None:
    """Dijkstra's algorithm over pairs of a dimension and the number of steps to it."""
    queue = [(0.0, 0, source)]
    done = set()
    while queue:
        energy, steps, dimension = heapq.heappop(queue)
        if dimension == target:
            return energy
        if (steps, dimension) in done or steps == max_steps:
            continue
        done.add((steps, dimension))
        for row in rows:
            if row.source_dimension == dimension and row.status == "active":
                heapq.heappush(queue, (energy + row.energy_requirement, steps + 1, row.target_dimension))
    return None


@given(news=news_of_all_kinds, source=dimensions, target=dimensions, limit=limits)
def test_between_returns_the_cheapest_first_whatever_their_status(
    conn: Connection, news: list[NewPortal], source: int, target: int, limit: int
) -> None:
    rows = fill(conn, news)
    expected = [row for row in rows if (row.source_dimension, row.target_dimension) == (source, target)]
    expected.sort(key=lambda row: (row.energy_requirement, row.id))
    assert portals.between(conn, source, target, limit=limit) == expected[:limit]


@given(news=news_of_all_kinds, status=st.sampled_from(["active", "closed", "lost"]), limit=limits)
def test_by_status_returns_the_newest_first(conn: Connection, news: list[NewPortal], status: str, limit: int) -> None:
    rows = [row for row in fill(conn, news) if row.status == status]
    rows.sort(key=lambda row: row.id)
    rows.sort(key=lambda row: row.creation_timestamp, reverse=True)
    assert portals.by_status(conn, status, limit=limit) == rows[:limit]


def test_a_list_has_100_portals_unless_told(conn: Connection) -> None:
    fill(conn, [portal(1, 2) for _ in range(101)])
    assert len(portals.between(conn, 1, 2)) == len(portals.by_status(conn, "active")) == 100


@given(news=news_of_all_kinds, source=dimensions, target=dimensions, max_steps=st.integers(1, 4) | st.just(20))
@settings(max_examples=100)
def test_route_takes_the_least_energy_of_all_ways_within_max_steps(
    conn: Connection, news: list[NewPortal], source: int, target: int, max_steps: int
) -> None:
    rows = fill(conn, news)
    found = portals.route(conn, source, target, max_steps=max_steps)
    expected = least_energy(rows, source, target, max_steps)
    if found is None:
        assert expected is None
        return
    assert sum(row.energy_requirement for row in found) == expected
    assert len(found) <= max_steps
    at = source
    for row in found:
        assert row in rows
        assert (row.source_dimension, row.status) == (at, "active")
        at = row.target_dimension
    assert at == target


def test_route_takes_a_detour_that_is_cheaper(conn: Connection) -> None:
    fill(conn, [portal(1, 4, 10), portal(1, 2), portal(2, 3), portal(3, 4)])
    assert [row.target_dimension for row in portals.route(conn, 1, 4) or []] == [2, 3, 4]
    assert [row.target_dimension for row in portals.route(conn, 1, 4, max_steps=2) or []] == [4]


def test_route_goes_by_the_energy_of_the_whole_way(conn: Connection) -> None:
    fill(conn, [portal(1, 2, 10), portal(2, 4, 1), portal(1, 3, 1), portal(3, 4, 2), portal(4, 5, 1)])
    assert [row.target_dimension for row in portals.route(conn, 1, 5) or []] == [3, 4, 5]


def test_route_takes_the_cheapest_of_parallel_portals_and_active_ones_alone(conn: Connection) -> None:
    fill(conn, [portal(1, 2, 3), portal(1, 2, 2), portal(1, 2, 1, status="closed")])
    assert [row.energy_requirement for row in portals.route(conn, 1, 2) or []] == [2]


def test_route_takes_20_steps_unless_told(conn: Connection) -> None:
    fill(conn, [portal(number, number + 1) for number in range(21)])
    assert len(portals.route(conn, 0, 20) or []) == 20
    assert portals.route(conn, 0, 21) is None
    assert len(portals.route(conn, 0, 21, max_steps=21) or []) == 21


def test_route_through_a_dense_graph_ends(conn: Connection) -> None:
    fill(conn, [portal(source, target, 0) for source in range(8) for target in range(8)])
    assert len(portals.route(conn, 0, 7, max_steps=2**31 - 1) or []) == 1
    assert portals.route(conn, 0, 8, max_steps=2**31 - 1) is None


def test_route_from_a_dimension_to_itself_is_empty(conn: Connection) -> None:
    fill(conn, [portal(1, 1)])
    assert portals.route(conn, 1, 1) == []


def test_mark_used_notes_the_moment(conn: Connection) -> None:
    used, other = (portals.insert(conn, portal(1, 2)) for _ in range(2))
    assert portals.mark_used(conn, used.id, at=seconds(1)) == seconds(1)
    assert portals.get(conn, used.id) == replace(used, last_used_timestamp=seconds(1))
    assert portals.get(conn, other.id) == other


def test_mark_used_takes_now_unless_told(conn: Connection) -> None:
    stored = portals.insert(conn, portal(1, 2))
    first = portals.mark_used(conn, stored.id)
    assert stored.creation_timestamp < first < portals.mark_used(conn, stored.id)


def test_mark_used_keeps_a_later_moment(conn: Connection) -> None:
    stored = portals.insert(conn, portal(1, 2, last_used_timestamp=seconds(2)))
    assert portals.mark_used(conn, stored.id, at=seconds(1)) == seconds(2)
    assert portals.get(conn, stored.id) == stored


@given(status=texts)
def test_set_status_changes_the_status_alone(conn: Connection, status: str) -> None:
    conn.rollback()
    stored, other = (portals.insert(conn, portal(1, 2)) for _ in range(2))
    portals.set_status(conn, stored.id, status)
    assert portals.get(conn, stored.id) == replace(stored, status=status)
    assert portals.get(conn, other.id) == other


@given(parameters=json_objects, changes=json_objects)
def test_update_parameters_merges_at_the_top_level(
    conn: Connection, parameters: dict[str, Any], changes: dict[str, Any]
) -> None:
    conn.rollback()
    stored = portals.insert(conn, portal(1, 2, configuration_parameters=parameters))
    merged = portals.update_parameters(conn, stored.id, changes)
    assert same_json(merged, {**parameters, **changes})
    assert portals.get(conn, stored.id) == replace(stored, configuration_parameters=merged)


def close(conn: Connection, id: UUID) -> None:
    portals.set_status(conn, id, "closed")


def change_parameters(conn: Connection, id: UUID) -> object:
    return portals.update_parameters(conn, id, {"n": 1})


BY_ID: list[Callable[..., object]] = [portals.mark_used, close, change_parameters]


@pytest.mark.parametrize("function", BY_ID)
def test_what_asks_for_a_missing_portal_raises_not_found(conn: Connection, function: Callable[..., object]) -> None:
    fill(conn, [portal(1, 2)])
    with pytest.raises(NotFound, match=str(ABSENT)):
        function(conn, ABSENT)


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("function", BY_ID)
def test_a_bad_id_is_refused(conn: Connection, function: Callable[..., object], bad: Any) -> None:
    rows = fill(conn, [portal(1, 2)])
    with pytest.raises(InvalidValue, match=r"^id: "):
        function(conn, bad)
    assert list(portals.stream(conn)) == rows


BAD: list[tuple[Callable[..., Any], dict[str, Any], str, tuple[Any, ...]]] = [
    (portals.between, {"target_dimension": 1}, "source_dimension", BAD_INTEGERS),
    (portals.between, {"source_dimension": 1}, "target_dimension", BAD_INTEGERS),
    (portals.between, {"source_dimension": 1, "target_dimension": 2}, "limit", BAD_LIMITS),
    (portals.by_status, {}, "status", (*BAD_TEXTS, None)),
    (portals.by_status, {"status": "active"}, "limit", BAD_LIMITS),
    (portals.route, {"target_dimension": 1}, "source_dimension", BAD_INTEGERS),
    (portals.route, {"source_dimension": 1}, "target_dimension", BAD_INTEGERS),
    (portals.route, {"source_dimension": 1, "target_dimension": 2}, "max_steps", BAD_LIMITS),
    (portals.mark_used, {"id": ABSENT}, "at", BAD_MOMENTS),
    (portals.set_status, {"id": ABSENT}, "status", (*BAD_TEXTS, None)),
    (portals.update_parameters, {"id": ABSENT}, "changes", (*BAD_OBJECTS, None)),
]


@pytest.mark.parametrize(
    ("function", "arguments", "field", "bad"),
    [(function, arguments, field, bad) for function, arguments, field, values in BAD for bad in values],
)
def test_a_bad_argument_is_refused(
    conn: Connection, function: Callable[..., Any], arguments: dict[str, Any], field: str, bad: Any
) -> None:
    with pytest.raises(InvalidValue, match=rf"^{field}: "):
        function(conn, **{**arguments, field: bad})
    assert portals.count(conn) == 0
