"""Cognitive transitions: lists, paths, trajectories and the balance of energy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import fsum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    ABSENT,
    BAD_IDS,
    BAD_LIMITS,
    BAD_MOMENTS,
    BAD_NUMBERS,
    BAD_OBJECTS,
    BAD_SPANS,
    BAD_TEXTS,
    IntegrityErrors,
    near,
    seconds,
)
from strategies import unit

from kimera_sql import geoids, transitions
from kimera_sql.errors import InvalidValue
from kimera_sql.sql import Connection
from kimera_sql.transitions import Bucket, EnergyBalance, NewTransition, Transition

pytestmark = pytest.mark.ends

STATES = [UUID(int=number) for number in range(1, 8)]
A, B, C, D, E, F, G = STATES
VECTOR = unit(0)
eighths = st.integers(-8, 8).map(lambda number: number / 8)
steps = st.lists(
    st.builds(
        NewTransition,
        source_id=st.sampled_from(STATES),
        target_id=st.sampled_from(STATES),
        transition_energy=eighths,
        conservation_error=eighths,
        transition_type=st.sampled_from(["drift", "jump", "rest"]),
        timestamp=st.integers(0, 6).map(seconds),
        id=st.uuids(),
    ),
    max_size=20,
    unique_by=lambda new: new.id,
)
states = st.sampled_from(STATES)
limits = st.integers(1, 12)


@pytest.fixture(autouse=True)
def _states(conn: Connection) -> None:
    begin(conn)


def begin(conn: Connection) -> None:
    """Undo what an earlier example wrote, and add the states."""
    conn.rollback()
    state = geoids.NewGeoid(state_vector=VECTOR, entropy=0, coherence_factor=0, energy_level=0)
    geoids.insert_many(conn, (replace(state, id=id) for id in STATES))


def fill(conn: Connection, news: list[NewTransition]) -> list[Transition]:
    """Begin anew with *news*, and return their rows, the oldest first."""
    begin(conn)
    transitions.insert_many(conn, news)
    return list(transitions.stream(conn))


def step(source: UUID, target: UUID, at: int = 0, **changes: Any) -> NewTransition:
    new = NewTransition(
        source_id=source,
        target_id=target,
        transition_energy=1,
        conservation_error=0,
        transition_type="drift",
        timestamp=seconds(at),
    )
    return replace(new, **changes)


def newest_first(rows: list[Transition]) -> list[Transition]:
    return sorted(sorted(rows, key=lambda row: row.id), key=lambda row: row.timestamp, reverse=True)


def reference_path(rows: list[Transition], source: UUID, target: UUID) -> list[Transition] | None:
    """The fewest steps, breadth first; from the target back, each is the one of least energy, then id."""
    distance = {source: 0}
    level = 0
    while target not in distance:
        reached = {row.target_id for row in rows if distance.get(row.source_id) == level} - distance.keys()
        if not reached:
            return None
        level += 1
        distance |= dict.fromkeys(reached, level)
    way: list[Transition] = []
    while target != source:
        last = [row for row in rows if row.target_id == target and distance.get(row.source_id) == distance[target] - 1]
        way.insert(0, min(last, key=lambda row: (row.transition_energy, row.id)))
        target = way[0].source_id
    return way


def reference_trajectory(rows: list[Transition], state: UUID, max_steps: int) -> list[Transition]:
    way: list[Transition] = []
    for row in rows:
        if row.source_id == state and len(way) < max_steps:
            way.append(row)
            state = row.target_id
    return way


@given(news=steps, state=states, limit=limits)
def test_outgoing_and_incoming_return_the_newest_first(
    conn: Connection, news: list[NewTransition], state: UUID, limit: int
) -> None:
    rows = newest_first(fill(conn, news))
    assert transitions.outgoing(conn, state, limit=limit) == [row for row in rows if row.source_id == state][:limit]
    assert transitions.incoming(conn, state, limit=limit) == [row for row in rows if row.target_id == state][:limit]


@given(news=steps, limit=limits)
def test_by_type_returns_the_newest_first(conn: Connection, news: list[NewTransition], limit: int) -> None:
    rows = newest_first(fill(conn, news))
    expected = [row for row in rows if row.transition_type == "drift"]
    assert transitions.by_type(conn, "drift", limit=limit) == expected[:limit]


@given(news=steps, since=st.integers(0, 7).map(seconds), until=st.integers(0, 7).map(seconds), limit=limits)
def test_between_returns_the_oldest_first_from_since_up_to_not_including_until(
    conn: Connection, news: list[NewTransition], since: Any, until: Any, limit: int
) -> None:
    expected = [row for row in fill(conn, news) if since <= row.timestamp < until]
    assert transitions.between(conn, since, until, limit=limit) == expected[:limit]


@given(news=steps, tolerance=eighths, limit=limits)
def test_unbalanced_returns_the_worst_first(
    conn: Connection, news: list[NewTransition], tolerance: float, limit: int
) -> None:
    rows = [row for row in fill(conn, news) if abs(row.conservation_error) > tolerance]
    rows.sort(key=lambda row: (-abs(row.conservation_error), row.id))
    assert transitions.unbalanced(conn, tolerance, limit=limit) == rows[:limit]


def test_a_list_has_100_transitions_unless_told(conn: Connection) -> None:
    transitions.insert_many(conn, [step(A, B, conservation_error=1) for _ in range(101)])
    lists = [
        transitions.outgoing(conn, A),
        transitions.incoming(conn, B),
        transitions.by_type(conn, "drift"),
        transitions.between(conn, seconds(0), seconds(1)),
        transitions.unbalanced(conn, 0),
    ]
    assert [len(rows) for rows in lists] == [100] * 5


@given(news=steps, source=states, target=states)
@settings(max_examples=100)
def test_path_is_the_shortest(conn: Connection, news: list[NewTransition], source: UUID, target: UUID) -> None:
    rows = fill(conn, news)
    assert transitions.path(conn, source, target) == reference_path(rows, source, target)


@given(news=steps, max_steps=st.integers(1, 4))
def test_path_takes_no_more_than_max_steps(conn: Connection, news: list[NewTransition], max_steps: int) -> None:
    rows = fill(conn, news)
    shortest = reference_path(rows, A, G)
    expected = shortest if shortest is not None and len(shortest) <= max_steps else None
    assert transitions.path(conn, A, G, max_steps=max_steps) == expected


def test_path_takes_20_steps_unless_told(conn: Connection) -> None:
    chain = [UUID(int=number) for number in range(100, 122)]
    state = geoids.NewGeoid(state_vector=VECTOR, entropy=0, coherence_factor=0, energy_level=0)
    geoids.insert_many(conn, (replace(state, id=id) for id in chain))
    transitions.insert_many(conn, map(step, chain, chain[1:]))
    assert [row.target_id for row in transitions.path(conn, chain[0], chain[20]) or []] == chain[1:21]
    assert transitions.path(conn, chain[0], chain[21]) is None
    assert len(transitions.path(conn, chain[0], chain[21], max_steps=21) or []) == 21


def test_path_in_cycles_ends(conn: Connection) -> None:
    fill(conn, [step(A, A), step(A, B), step(B, A), step(B, C), step(C, B), step(C, C)])
    assert [row.target_id for row in transitions.path(conn, A, C) or []] == [B, C]
    assert transitions.path(conn, A, D) is None


def test_path_through_a_dense_graph_ends(conn: Connection) -> None:
    fill(conn, [step(source, target, at) for at in range(3) for source in STATES[:-1] for target in STATES[:-1]])
    assert len(transitions.path(conn, A, F, max_steps=2**31 - 1) or []) == 1
    assert transitions.path(conn, A, G, max_steps=2**31 - 1) is None


def test_path_follows_the_direction(conn: Connection) -> None:
    fill(conn, [step(B, A)])
    assert transitions.path(conn, A, B) is None


def test_path_from_a_state_to_itself_is_empty(conn: Connection) -> None:
    fill(conn, [step(A, A)])
    assert transitions.path(conn, A, A) == []


def test_path_prefers_the_least_energy_where_ways_are_as_short(conn: Connection) -> None:
    fill(conn, [step(A, B, transition_energy=energy, id=UUID(int=id)) for id, energy in enumerate((3, -1, 2))])
    assert [row.transition_energy for row in transitions.path(conn, A, B) or []] == [-1]


@given(news=steps, state=states, max_steps=st.integers(1, 8))
def test_trajectory_takes_the_first_transition_after_the_one_before(
    conn: Connection, news: list[NewTransition], state: UUID, max_steps: int
) -> None:
    rows = fill(conn, news)
    assert transitions.trajectory(conn, state, max_steps=max_steps) == reference_trajectory(rows, state, max_steps)


def test_trajectory_goes_through_a_state_as_often_as_time_does(conn: Connection) -> None:
    fill(conn, [step(A, B, 1), step(B, A, 2), step(A, A, 3), step(A, B, 4), step(B, C, 0)])
    assert [row.target_id for row in transitions.trajectory(conn, A)] == [B, A, A, B]


def test_trajectory_takes_100_steps_unless_told(conn: Connection) -> None:
    fill(conn, [step(A, A, at) for at in range(101)])
    assert len(transitions.trajectory(conn, A)) == 100


def test_trajectory_of_a_state_without_transitions_is_empty(conn: Connection) -> None:
    fill(conn, [step(B, A)])
    assert transitions.trajectory(conn, A) == []


@given(
    news=steps,
    since=st.none() | st.integers(0, 7).map(seconds),
    until=st.none() | st.integers(0, 7).map(seconds),
)
def test_energy_balance_sums_up_each_type(conn: Connection, news: list[NewTransition], since: Any, until: Any) -> None:
    types = defaultdict(list)
    for row in fill(conn, news):
        if (since is None or since <= row.timestamp) and (until is None or row.timestamp < until):
            types[row.transition_type].append(row)
    expected = []
    for name, rows in sorted(types.items()):
        energies = [row.transition_energy for row in rows]
        errors = [row.conservation_error for row in rows]
        total = fsum(energies)
        mean = near(total / len(rows))
        expected.append(EnergyBalance(name, len(rows), total, mean, fsum(errors), max(map(abs, errors))))
    assert transitions.energy_balance(conn, since=since, until=until) == expected


@given(
    news=steps,
    bucket=st.sampled_from([1e-6, 0.7, 3, 3600, 1e7]).map(lambda length: timedelta(seconds=length)),
    since=st.none() | st.integers(0, 7).map(seconds),
    until=st.none() | st.integers(0, 7).map(seconds),
)
def test_summary_sums_up_each_bucket(
    conn: Connection, news: list[NewTransition], bucket: timedelta, since: Any, until: Any
) -> None:
    buckets = defaultdict(list)
    for row in fill(conn, news):
        if (since is None or since <= row.timestamp) and (until is None or row.timestamp < until):
            buckets[row.timestamp - (row.timestamp - datetime(1970, 1, 1, tzinfo=UTC)) % bucket].append(row)
    expected = []
    for start, rows in sorted(buckets.items()):
        numbers = []
        for values in ([row.transition_energy for row in rows], [row.conservation_error for row in rows]):
            numbers += [near(fsum(values) / len(values)), min(values), max(values)]
        expected.append(Bucket(start, len(rows), *numbers))
    assert transitions.summary(conn, bucket, since=since, until=until) == expected


def test_summary_has_the_means_of_numbers_of_any_size(conn: Connection) -> None:
    fill(conn, [step(A, B, transition_energy=1.7e308, conservation_error=number) for number in (1e300, -1e300, 3)])
    (found,) = transitions.summary(conn, timedelta(days=1))
    assert found.mean_energy == pytest.approx(1.7e308)
    assert found.mean_error == 1


def test_energy_balance_takes_numbers_whose_squares_overflow(conn: Connection) -> None:
    fill(conn, [step(A, B, transition_energy=energy) for energy in (1e200, 0)])
    (found,) = transitions.energy_balance(conn)
    assert (found.total_energy, found.mean_energy) == (1e200, 5e199)


def test_record_inserts_a_transition_that_happens_now(conn: Connection) -> None:
    first = transitions.record(conn, A, B, "jump", energy=2, error=-0.5, metadata={"n": 1})
    second = transitions.record(conn, B, A, "rest", energy=0)
    assert transitions.get(conn, first.id) == first
    assert (first.source_id, first.target_id, first.transition_type) == (A, B, "jump")
    assert (first.transition_energy, first.conservation_error, first.metadata) == (2, -0.5, {"n": 1})
    assert (second.conservation_error, second.metadata) == (0, {})
    assert first.timestamp < second.timestamp


@pytest.mark.parametrize(("source", "target"), [(ABSENT, A), (A, ABSENT)])
def test_a_transition_needs_both_states(conn: Connection, source: UUID, target: UUID) -> None:
    with pytest.raises(IntegrityErrors):
        transitions.insert(conn, step(source, target))


def test_insert_many_needs_the_states_too(conn: Connection) -> None:
    with pytest.raises(IntegrityErrors):
        transitions.insert_many(conn, [step(A, B), step(B, ABSENT)])
    assert transitions.count(conn) == 0


def test_a_state_can_be_deleted_after_its_transitions(conn: Connection) -> None:
    (row,) = fill(conn, [step(A, B)])
    transitions.delete(conn, row.id)
    assert geoids.delete(conn, A) is True


@pytest.mark.parametrize("state", [A, B])
def test_a_state_that_transitions_use_is_kept(conn: Connection, state: UUID) -> None:
    fill(conn, [step(A, B)])
    with pytest.raises(IntegrityErrors):
        geoids.delete(conn, state)


RECORD = {"source_id": A, "target_id": B, "transition_type": "drift", "energy": 1}
BAD: list[tuple[Callable[..., Any], dict[str, Any], str, tuple[Any, ...]]] = [
    (transitions.outgoing, {}, "state_id", BAD_IDS),
    (transitions.incoming, {}, "state_id", BAD_IDS),
    (transitions.trajectory, {}, "state_id", BAD_IDS),
    (transitions.path, {"target_id": A}, "source_id", BAD_IDS),
    (transitions.path, {"source_id": A}, "target_id", BAD_IDS),
    (transitions.outgoing, {"state_id": A}, "limit", BAD_LIMITS),
    (transitions.incoming, {"state_id": A}, "limit", BAD_LIMITS),
    (transitions.by_type, {"transition_type": "drift"}, "limit", BAD_LIMITS),
    (transitions.between, {"since": seconds(0), "until": seconds(1)}, "limit", BAD_LIMITS),
    (transitions.unbalanced, {"tolerance": 0}, "limit", BAD_LIMITS),
    (transitions.path, {"source_id": A, "target_id": B}, "max_steps", BAD_LIMITS),
    (transitions.trajectory, {"state_id": A}, "max_steps", BAD_LIMITS),
    (transitions.by_type, {}, "transition_type", (*BAD_TEXTS, None)),
    (transitions.between, {"until": seconds(0)}, "since", (*BAD_MOMENTS, None)),
    (transitions.between, {"since": seconds(0)}, "until", (*BAD_MOMENTS, None)),
    (transitions.energy_balance, {}, "since", BAD_MOMENTS),
    (transitions.energy_balance, {}, "until", BAD_MOMENTS),
    (transitions.summary, {}, "bucket", BAD_SPANS),
    (transitions.summary, {"bucket": timedelta(1)}, "since", BAD_MOMENTS),
    (transitions.summary, {"bucket": timedelta(1)}, "until", BAD_MOMENTS),
    (transitions.unbalanced, {}, "tolerance", (*BAD_NUMBERS, None)),
    (transitions.record, RECORD, "metadata", BAD_OBJECTS),
    (transitions.record, RECORD, "source_id", BAD_IDS),
    (transitions.record, RECORD, "target_id", BAD_IDS),
    (transitions.record, RECORD, "transition_type", (*BAD_TEXTS, None)),
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
    assert transitions.count(conn) == 0
