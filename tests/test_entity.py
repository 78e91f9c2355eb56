"""What all five entities have in common: insert, insert_many, get, get_many, delete, count and stream."""

from __future__ import annotations

import threading
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
import pytest
from fix_twins import Blocking, asynchronous
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    ABSENT,
    BAD_IDS,
    BAD_INTEGERS,
    BAD_LIMITS,
    BAD_MOMENTS,
    BAD_NUMBERS,
    BAD_OBJECTS,
    BAD_TEXTS,
    BAD_VECTORS,
    IntegrityErrors,
    assert_stored,
    seconds,
)
from strategies import (
    ids,
    json_objects,
    new_embeddings,
    new_geoids,
    new_metrics,
    new_portals,
    numbers,
    optional_moments,
    texts,
    unit,
)

from kimera_sql import embeddings, geoids, metrics, portals, transitions
from kimera_sql.errors import InvalidValue, NotFound, VectorError
from kimera_sql.sql import Connection

pytestmark = pytest.mark.ends

STATES = (UUID(int=1), UUID(int=2))
VECTOR = unit(0)


@dataclass(frozen=True)
class Kind:
    """One entity. make: an item, at so many seconds after START. bad: values that a field refuses."""

    module: ModuleType
    items: st.SearchStrategy[Any]
    make: Callable[[int], Any]
    bad: dict[str, tuple[Any, ...]]
    clock: str = "timestamp"
    states: tuple[UUID, ...] = ()

    def begin(self, conn: Connection) -> None:
        """Undo what an earlier example wrote, and add the states that transitions need."""
        conn.rollback()
        for state in self.states:
            geoids.insert(conn, replace(GEOIDS.make(0), id=state))

    def timeless(self, item: Any) -> Any:
        return replace(item, **{self.clock: None})


GEOIDS = Kind(
    geoids,
    new_geoids,
    lambda n: geoids.NewGeoid(
        state_vector=VECTOR, entropy=0.5, coherence_factor=0.5, energy_level=1, timestamp=seconds(n)
    ),
    {
        "id": BAD_IDS[:-1],
        "timestamp": BAD_MOMENTS,
        "metadata": (*BAD_OBJECTS, None),
        "entropy": (*BAD_NUMBERS, None),
        "coherence_factor": (*BAD_NUMBERS, None),
        "energy_level": (*BAD_NUMBERS, None),
        "creation_context": BAD_TEXTS,
        "tags": ("abc", 5, np.array(1), None, [1], ["a", None], ["\0"], ["\ud800"]),
        "state_vector": BAD_VECTORS,
    },
)
TRANSITIONS = Kind(
    transitions,
    st.builds(
        transitions.NewTransition,
        source_id=st.sampled_from(STATES),
        target_id=st.sampled_from(STATES),
        transition_energy=numbers,
        conservation_error=numbers,
        transition_type=texts,
        timestamp=optional_moments,
        metadata=json_objects,
        id=ids,
    ),
    lambda n: transitions.NewTransition(
        source_id=STATES[0],
        target_id=STATES[1],
        transition_energy=1,
        conservation_error=0,
        transition_type="drift",
        timestamp=seconds(n),
    ),
    {
        "id": BAD_IDS[:-1],
        "source_id": BAD_IDS,
        "target_id": BAD_IDS,
        "transition_energy": (*BAD_NUMBERS, None),
        "conservation_error": (*BAD_NUMBERS, None),
        "transition_type": (*BAD_TEXTS, None),
        "timestamp": BAD_MOMENTS,
        "metadata": (*BAD_OBJECTS, None),
    },
    states=STATES,
)
EMBEDDINGS = Kind(
    embeddings,
    new_embeddings,
    lambda n: embeddings.NewEmbedding(text_content=f"text {n}", embedding=VECTOR, timestamp=seconds(n)),
    {
        "id": BAD_IDS[:-1],
        "text_content": (*BAD_TEXTS, None),
        "timestamp": BAD_MOMENTS,
        "source": BAD_TEXTS,
        "metadata": (*BAD_OBJECTS, None),
        "embedding": BAD_VECTORS,
    },
)
PORTALS = Kind(
    portals,
    new_portals,
    lambda n: portals.NewPortal(
        source_dimension=1,
        target_dimension=2,
        radius=1,
        energy_requirement=1,
        stability_factor=1,
        creation_timestamp=seconds(n),
    ),
    {
        "id": BAD_IDS[:-1],
        "source_dimension": BAD_INTEGERS,
        "target_dimension": BAD_INTEGERS,
        "radius": (*BAD_NUMBERS, None),
        "energy_requirement": (*BAD_NUMBERS, None, -1),
        "stability_factor": (*BAD_NUMBERS, None),
        "creation_timestamp": BAD_MOMENTS,
        "last_used_timestamp": BAD_MOMENTS,
        "configuration_parameters": (*BAD_OBJECTS, None),
        "status": (*BAD_TEXTS, None),
    },
    clock="creation_timestamp",
)
METRICS = Kind(
    metrics,
    new_metrics,
    lambda n: metrics.NewMetric(metric_name="load", metric_value=n, component="core", timestamp=seconds(n)),
    {
        "timestamp": BAD_MOMENTS,
        "metric_name": (*BAD_TEXTS, None),
        "metric_value": (*BAD_NUMBERS, None),
        "component": (*BAD_TEXTS, None),
        "context": (*BAD_OBJECTS, None),
    },
)
KINDS = {"geoids": GEOIDS, "transitions": TRANSITIONS, "embeddings": EMBEDDINGS, "portals": PORTALS, "metrics": METRICS}
BAD_FIELDS = [
    pytest.param(kind, field, value, id=f"{name}-{field}-{number}")
    for name, kind in KINDS.items()
    for field, values in kind.bad.items()
    for number, value in enumerate(values)
]


@pytest.fixture(params=list(KINDS.values()), ids=list(KINDS))
def kind(request: pytest.FixtureRequest, conn: Connection) -> Kind:
    """Each entity in turn, with what its rows need."""
    kind: Kind = request.param
    kind.begin(conn)
    return kind


@given(data=st.data())
def test_what_insert_returns_is_what_was_given_and_what_get_finds(
    conn: Connection, kind: Kind, data: st.DataObject
) -> None:
    kind.begin(conn)
    new = data.draw(kind.items)
    stored = kind.module.insert(conn, new)
    assert_stored(new, stored)
    assert kind.module.get(conn, stored.id) == stored


@given(data=st.data())
def test_insert_many_stores_what_was_given_and_stream_yields_it_the_oldest_first(
    conn: Connection, kind: Kind, data: st.DataObject
) -> None:
    kind.begin(conn)
    drawn = data.draw(st.lists(kind.items, max_size=6, unique_by=lambda new: getattr(new, "id", None) or object()))
    items = []
    for new in drawn:
        changes: dict[str, Any] = {kind.clock: getattr(new, kind.clock) or seconds(0)}
        if kind.module is not metrics:
            changes["id"] = new.id or uuid4()
        items.append(replace(new, **changes))
    assert kind.module.insert_many(conn, items) == len(items)
    stored = list(kind.module.stream(conn))
    items.sort(key=lambda new: (getattr(new, kind.clock), getattr(new, "id", 0)))
    for new, row in zip(items, stored, strict=True):
        assert_stored(new, row)


def test_insert_many_gives_an_id_and_a_time_to_items_without(conn: Connection, kind: Kind) -> None:
    items = [kind.timeless(kind.make(n)) for n in range(3)]
    kind.module.insert_many(conn, iter(items))
    rows = list(kind.module.stream(conn))
    assert len({row.id for row in rows}) == 3
    assert all(getattr(row, kind.clock).utcoffset() is not None for row in rows)


def test_rows_without_a_time_are_in_the_order_of_their_inserts(conn: Connection, kind: Kind) -> None:
    rows = [kind.module.insert(conn, kind.timeless(kind.make(n))) for n in range(3)]
    times = [getattr(row, kind.clock) for row in rows]
    assert times == sorted(set(times))


def test_a_time_in_another_zone_is_the_same_moment(conn: Connection, kind: Kind) -> None:
    elsewhere = seconds(0).astimezone(timezone(timedelta(hours=5, minutes=45)))
    stored = kind.module.insert(conn, replace(kind.make(0), **{kind.clock: elsewhere}))
    assert getattr(stored, kind.clock) == seconds(0)


def test_insert_many_of_nothing_is_0(conn: Connection, kind: Kind) -> None:
    assert kind.module.insert_many(conn, []) == 0
    assert kind.module.count(conn) == 0


@given(bad=st.integers(0, 12))
@settings(max_examples=5)
def test_a_failed_insert_many_names_the_item_leaves_nothing_and_reads_no_further(
    conn: Connection, kind: Kind, bad: int
) -> None:
    kind.begin(conn)
    kind.module.insert(conn, kind.make(0))
    taken = 0

    def items() -> Iterator[Any]:
        nonlocal taken
        for n in range(1000):
            taken += 1
            item = kind.make(n)
            yield replace(item, **{kind.clock: seconds(n).replace(tzinfo=None)}) if n == bad else item

    with pytest.raises(InvalidValue, match=f"^item {bad}: {kind.clock}: "):
        kind.module.insert_many(conn, items())
    assert taken == bad + 1
    assert kind.module.count(conn) == 1


def test_an_error_of_the_generator_passes_through_insert_many_and_leaves_nothing(conn: Connection, kind: Kind) -> None:
    kind.module.insert(conn, kind.make(0))

    def items() -> Iterator[Any]:
        yield kind.make(1)
        raise LookupError("the source ran dry")

    with pytest.raises(LookupError, match=r"^the source ran dry\n") as raised:
        kind.module.insert_many(conn, items())
    assert raised.value.__notes__ == ["it came in place of item 1 (counted from 0); nothing was written"]
    assert kind.module.count(conn) == 1


@pytest.mark.ends
@pytest.mark.parametrize("error", [KeyboardInterrupt, CancelledError, SystemExit])
def test_what_ends_the_program_passes_through_a_batch_as_it_is(
    conn: Connection, writer: str, error: type[BaseException]
) -> None:
    def items() -> Iterator[Any]:
        yield GEOIDS.make(0)
        raise error

    with pytest.raises(error) as raised:
        getattr(geoids, writer)(conn, items())
    assert not hasattr(raised.value, "__notes__")
    assert geoids.count(conn) == 0


class Broken(geoids.NewGeoid):
    """A state that cannot say what its entropy is."""

    __slots__ = ()

    @property
    def entropy(self) -> float:
        raise LookupError("the sensor is gone")


def broken() -> Broken:
    made, whole = object.__new__(Broken), GEOIDS.make(0)
    for field in fields(geoids.NewGeoid):
        getattr(geoids.NewGeoid, field.name).__set__(made, getattr(whole, field.name))
    return made


class Unreadable(Mapping[str, Any]):
    """A mapping that cannot be read."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        raise LookupError("the keys are gone")

    def __getitem__(self, key: str) -> Any:
        raise LookupError(key)


MISFITS: dict[str, tuple[Callable[[], Any], str, type[Exception]]] = {
    "None": (lambda: None, "expected a NewGeoid or Geoid, got NoneType", InvalidValue),
    "a dict": (lambda: {"entropy": 1}, "expected a NewGeoid or Geoid, got dict", InvalidValue),
    "another entity's": (lambda: METRICS.make(0), "expected a NewGeoid or Geoid, got NewMetric", InvalidValue),
    "an attribute that raises": (broken, "LookupError: the sensor is gone", LookupError),
    "a value that raises": (
        lambda: replace(GEOIDS.make(0), metadata=Unreadable()),
        "LookupError: the keys are gone",
        LookupError,
    ),
    "tags that raise": (
        lambda: replace(GEOIDS.make(0), tags=(1 / zero for zero in (0,))),
        "ZeroDivisionError: division by zero",
        ZeroDivisionError,
    ),
}


@pytest.fixture(params=["insert_many", "upsert_many"])
def writer(request: pytest.FixtureRequest) -> str:
    """The name of a function that writes many items."""
    return str(request.param)


@pytest.mark.ends
@pytest.mark.parametrize("name", MISFITS)
def test_whatever_is_wrong_with_an_item_of_a_batch_is_told_with_its_number(
    conn: Connection, writer: str, name: str
) -> None:
    make, message, cause = MISFITS[name]
    good = GEOIDS.make(0)
    with pytest.raises(InvalidValue, match=f"^item 40: {message}$") as raised:
        getattr(geoids, writer)(conn, [good] * 40 + [make(), good])
    assert type(raised.value.__cause__) is cause
    assert geoids.count(conn) == 0
    assert getattr(geoids, writer)(conn, [good])  # the transaction goes on


def test_one_item_of_another_kind_is_refused(conn: Connection, kind: Kind) -> None:
    with pytest.raises(InvalidValue, match=r"^expected a New\w+ or \w+, got NoneType$"):
        kind.module.insert(conn, None)
    if not isinstance(conn, Blocking):
        with pytest.raises(InvalidValue, match=r"^item 0: expected a New\w+ or \w+, got NoneType$"):
            kind.module.entity.insert_as_they_are(conn, [None])
    assert kind.module.count(conn) == 0


@pytest.mark.parametrize(("kind", "field", "value"), BAD_FIELDS)
def test_a_bad_value_is_refused_by_name_and_nothing_is_written(
    conn: Connection, kind: Kind, field: str, value: Any
) -> None:
    kind.begin(conn)
    item = replace(kind.make(1), **{field: value})
    error = VectorError if value is not None and kind.bad[field] is BAD_VECTORS else InvalidValue
    with pytest.raises(error, match=f"^{field}: "):
        kind.module.insert(conn, item)
    with pytest.raises(error, match=f"^item 1: {field}: "):
        kind.module.insert_many(conn, [kind.make(0), item])
    assert kind.module.count(conn) == 0


@pytest.mark.parametrize("value", [3, Fraction(3), np.float32(3), np.int16(3)])
def test_any_real_number_is_taken_for_a_float(conn: Connection, value: Any) -> None:
    assert METRICS.module.insert(conn, replace(METRICS.make(0), metric_value=value)).metric_value == 3.0


def test_a_year_that_utc_does_not_have_is_refused(conn: Connection, kind: Kind) -> None:
    west = datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))
    with pytest.raises(InvalidValue, match=f"^{kind.clock}: .* is outside the years 1 to 9999 in UTC$"):
        kind.module.insert(conn, replace(kind.make(0), **{kind.clock: west}))


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_the_first_and_the_last_moment_are_stored(conn: Connection, kind: Kind, moment: datetime) -> None:
    assert getattr(kind.module.insert(conn, replace(kind.make(0), **{kind.clock: moment})), kind.clock) == moment


def test_get_of_an_id_that_no_row_has_raises_not_found(conn: Connection, kind: Kind) -> None:
    absent: Any = 2**63 - 1 if kind is METRICS else ABSENT
    with pytest.raises(NotFound, match=str(absent)):
        kind.module.get(conn, absent)


def test_get_many_keeps_the_order_repeats_and_leaves_out_what_is_missing(conn: Connection, kind: Kind) -> None:
    a, b, c = (kind.module.insert(conn, kind.make(n)) for n in range(3))
    absent: Any = 2**63 - 1 if kind is METRICS else ABSENT
    assert kind.module.get_many(conn, (id for id in [c.id, a.id, absent, c.id, b.id])) == [c, a, c, b]


def test_get_many_of_no_ids_is_empty(conn: Connection, kind: Kind) -> None:
    assert kind.module.get_many(conn, []) == []


@pytest.mark.parametrize("bad", BAD_IDS)
def test_a_bad_id_is_refused(conn: Connection, kind: Kind, bad: Any) -> None:
    if kind is METRICS and bad == 5:
        bad = 2**63
    with pytest.raises(InvalidValue, match=r"^id: "):
        kind.module.get(conn, bad)
    with pytest.raises(InvalidValue, match=r"^ids\[1\]: "):
        kind.module.get_many(conn, [1 if kind is METRICS else UUID(int=1), bad])
    with pytest.raises(InvalidValue, match=r"^id: "):
        kind.module.delete(conn, bad)
    assert kind.module.count(conn) == 0


def test_delete_removes_one_row_and_says_whether_there_was_one(conn: Connection, kind: Kind) -> None:
    gone, kept = (kind.module.insert(conn, kind.make(n)) for n in range(2))
    assert kind.module.delete(conn, gone.id) is True
    assert kind.module.delete(conn, gone.id) is False
    assert list(kind.module.stream(conn)) == [kept]


@pytest.mark.parametrize("kind", [kind for name, kind in KINDS.items() if name != "metrics"])
def test_an_id_that_is_taken_is_refused_by_the_database(conn: Connection, kind: Kind) -> None:
    kind.begin(conn)
    stored = kind.module.insert(conn, kind.make(0))
    with pytest.raises(IntegrityErrors):
        kind.module.insert(conn, replace(kind.make(1), id=stored.id))


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_stream_yields_all_rows_whatever_the_chunk(conn: Connection, kind: Kind, chunk: int) -> None:
    kind.module.insert_many(conn, [kind.make(n) for n in (6, 2, 4, 0, 5, 1, 3)])
    rows = list(kind.module.stream(conn, chunk=chunk))
    assert [getattr(row, kind.clock) for row in rows] == [seconds(n) for n in range(7)]


@pytest.mark.parametrize("chunk", [1, 1000])
def test_an_unordered_stream_yields_the_same_rows(conn: Connection, kind: Kind, chunk: int) -> None:
    assert list(kind.module.stream(conn, ordered=False)) == []
    kind.module.insert_many(conn, [kind.make(n) for n in (6, 2, 4, 0, 5, 1, 3)])
    rows = list(kind.module.stream(conn, chunk=chunk, ordered=False))
    assert sorted(rows, key=lambda row: (getattr(row, kind.clock), row.id)) == list(kind.module.stream(conn))


def test_an_unordered_stream_that_is_closed_early_leaves_the_transaction_as_it_was(
    conn: Connection, kind: Kind
) -> None:
    kind.module.insert_many(conn, [kind.make(n) for n in range(5)])
    rows = kind.module.stream(conn, ordered=False)
    next(rows)
    rows.close()
    kind.module.insert(conn, kind.make(5))
    assert kind.module.count(conn) == 6


@pytest.mark.parametrize("bad", BAD_LIMITS)
def test_stream_refuses_a_bad_chunk_at_the_call(conn: Connection, kind: Kind, bad: Any) -> None:
    kind.module.insert(conn, kind.make(0))
    with pytest.raises(InvalidValue, match=r"^chunk: "):
        kind.module.stream(conn, chunk=bad)
    assert kind.module.count(conn) == 1


def test_what_is_written_during_a_stream_stays_when_it_is_closed_early(conn: Connection, kind: Kind) -> None:
    kind.module.insert_many(conn, [kind.make(n) for n in range(5)])
    rows = kind.module.stream(conn, chunk=2)
    next(rows)
    kind.module.insert(conn, kind.make(5))
    rows.close()
    assert kind.module.count(conn) == 6


def test_a_stream_yields_the_rows_that_there_were_when_it_began(conn: Connection, kind: Kind) -> None:
    kind.module.insert_many(conn, [kind.make(n) for n in range(5)])
    before = list(kind.module.stream(conn))
    rows = kind.module.stream(conn, chunk=2)
    seen = [next(rows)]
    kind.module.delete(conn, before[3].id)
    for row in rows:
        kind.module.insert(conn, kind.make(5 + len(seen)))
        seen.append(row)
    assert seen == before


def test_a_stream_whose_transaction_has_ended_says_so(conn: Any, kind: Kind) -> None:
    kind.module.insert_many(conn, [kind.make(n) for n in range(5)])
    rows = kind.module.stream(conn)
    next(rows)
    conn.rollback()
    with pytest.raises(InvalidValue, match=r"^conn: its transaction ended while rows were being streamed"):
        next(rows)
    assert kind.module.count(conn) == 0


def test_two_streams_can_be_read_side_by_side(conn: Connection, kind: Kind) -> None:
    kind.module.insert_many(conn, [kind.make(n) for n in range(5)])
    pairs = list(zip(kind.module.stream(conn, chunk=2), kind.module.stream(conn, chunk=3), strict=True))
    assert len(pairs) == 5
    assert all(one == other for one, other in pairs)


def test_rows_are_hashable_and_frozen(conn: Connection, kind: Kind) -> None:
    stored = kind.module.insert(conn, kind.make(0))
    assert {stored, kind.module.get(conn, stored.id)} == {stored}
    with pytest.raises(AttributeError):
        stored.id = None


@pytest.mark.parametrize("kind", ["synchronous", "asynchronous"])
def test_a_server_that_says_much_while_rows_come_is_heard(database: str, kind: str) -> None:
    """It waits until its notices are read, and takes no more rows: they must not wait for it in turn."""
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute(
            "CREATE FUNCTION talk() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN RAISE NOTICE '%', repeat('x', 2000); RETURN NEW; END$$"
        )
        owner.execute("CREATE TRIGGER talk BEFORE INSERT ON system_metrics FOR EACH ROW EXECUTE FUNCTION talk()")
    items = [metrics.NewMetric(metric_name="m", metric_value=1, component="c")] * 20_000
    with psycopg.connect(database) if kind == "synchronous" else asynchronous(database) as conn:
        inserted: list[int] = []
        inserting = threading.Thread(target=lambda: inserted.append(metrics.insert_many(conn, items)), daemon=True)
        inserting.start()
        inserting.join(120)
        assert inserted == [len(items)]
