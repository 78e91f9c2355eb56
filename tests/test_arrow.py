"""insert_arrow and stream_arrow: rows as record batches of pyarrow."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import seconds
from strategies import new_embeddings, new_geoids, new_metrics, new_portals, unit

from kimera_sql import add_adapters, embeddings, geoids, metrics, portals, transitions
from kimera_sql.errors import InvalidValue, VectorError
from kimera_sql.sql import Connection
from kimera_sql.sql.arrow import pyarrow

pa = pyarrow()

pytestmark = pytest.mark.ends

STATE: Final = UUID(int=7)

TABLES: Final[dict[ModuleType, st.SearchStrategy[Any]]] = {
    geoids: new_geoids,
    embeddings: new_embeddings,
    transitions: st.builds(
        transitions.NewTransition,
        source_id=st.just(STATE),
        target_id=st.just(STATE),
        transition_energy=st.floats(allow_nan=False, allow_infinity=False),
        conservation_error=st.just(-0.0),
        transition_type=st.sampled_from(["a", "ä"]),
    ),
    portals: new_portals,
    metrics: new_metrics,
}


def state(number: int, **values: Any) -> geoids.NewGeoid:
    given = {"entropy": 0.5, "coherence_factor": 0.0, "energy_level": 1.0, "state_vector": unit(number), **values}
    return geoids.NewGeoid(**given)


def columns(count: int = 3) -> dict[str, Any]:
    """What the least columns of states are, each a Python list or an Arrow array."""
    block = np.array([unit(number) for number in range(count)])
    return {
        "entropy": [float(number) for number in range(count)],
        "coherence_factor": [0.0] * count,
        "energy_level": [1.0] * count,
        "state_vector": pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), 1024),
    }


def empty(conn: Connection, module: ModuleType) -> None:
    for row in list(module.stream(conn)):
        module.delete(conn, row.id)


def entropies(conn: Connection) -> list[float]:
    return sorted(row.entropy for row in geoids.stream(conn))


@pytest.mark.parametrize("module", TABLES, ids=lambda module: module.__name__.rpartition(".")[2])
@settings(max_examples=10)
@given(data=st.data(), chunk=st.integers(1, 4))
def test_what_was_streamed_and_inserted_again_is_what_there_was(
    conn: Connection, module: ModuleType, data: st.DataObject, chunk: int
) -> None:
    for other in reversed(TABLES):
        empty(conn, other)
    if module is transitions:
        geoids.insert(conn, state(1, id=STATE))
    module.insert_many(conn, data.draw(st.lists(TABLES[module], max_size=5, unique_by=lambda item: id(item))))
    before = list(module.stream(conn))
    table = pa.Table.from_batches(module.stream_arrow(conn, chunk=chunk))
    assert table.num_rows == len(before)
    assert table.column_names == [field.name for field in fields(module.entity.record)]
    table.validate(full=True)
    empty(conn, module)
    assert module.insert_arrow(conn, table) == len(before)
    after = list(module.stream(conn))
    assert after == before
    assert [[str(getattr(row, name)) for name in table.column_names] for row in after] == [
        [str(getattr(row, name)) for name in table.column_names] for row in before
    ], "-0.0 is not 0.0"


def test_streamed_batches_say_what_they_hold(conn: Connection) -> None:
    geoids.insert_many(conn, [state(number, tags=["a", "b"], metadata={"ä": [1]}) for number in range(5)])
    batches = list(geoids.stream_arrow(conn, chunk=2))
    assert [batch.num_rows for batch in batches] == [2, 2, 1]
    types = {field.name: field.type for field in batches[0].schema}
    assert types == {
        "id": pa.string(),
        "timestamp": pa.timestamp("us", "UTC"),
        "metadata": pa.string(),
        "entropy": pa.float64(),
        "coherence_factor": pa.float64(),
        "energy_level": pa.float64(),
        "creation_context": pa.string(),
        "tags": pa.list_(pa.field("item", pa.string(), nullable=False)),
        "state_vector": pa.list_(pa.field("item", pa.float32(), nullable=False), 1024),
    }
    assert [field.name for field in batches[0].schema if field.nullable] == ["creation_context"]


def test_a_table_without_rows_is_one_empty_batch(conn: Connection) -> None:
    (batch,) = geoids.stream_arrow(conn)
    assert batch.num_rows == 0
    assert geoids.insert_arrow(conn, batch) == 0


@pytest.mark.parametrize("given", ["left out", "null", "some null"])
def test_what_is_left_out_is_as_insert_many_has_it(conn: Connection, given: str) -> None:
    data = columns()
    if given != "left out":
        some = given == "some null"
        data |= {
            "id": pa.array([str(STATE) if some else None, None, None], pa.string()),
            "timestamp": pa.array([seconds(1) if some else None, None, None], pa.timestamp("us", "UTC")),
            "metadata": pa.array(['{"a": 1}' if some else None, None, None], pa.string()),
            "tags": pa.array([["a"] if some else None, None, None], pa.list_(pa.string())),
            "creation_context": pa.array(["c" if some else None, None, None], pa.string()),
        }
    assert geoids.insert_arrow(conn, pa.table(data)) == 3
    rows = sorted(geoids.stream(conn), key=lambda row: row.entropy)
    assert len({row.id for row in rows}) == 3
    if given == "some null":
        first = rows.pop(0)
        assert (first.id, first.timestamp, first.metadata) == (STATE, seconds(1), {"a": 1})
        assert (first.tags, first.creation_context) == (("a",), "c")
    for row in rows:
        assert (row.id.version, row.metadata, row.tags, row.creation_context) == (4, {}, (), None)
        assert abs(row.timestamp - datetime.now(UTC)) < timedelta(hours=1)


VECTORS: Final = np.array([unit(number) for number in range(3)])
TYPES: Final[dict[str, tuple[str, Any]]] = {
    "large strings": ("creation_context", pa.array(["ä", "b", None], pa.large_string())),
    "string views": ("creation_context", pa.array(["ä", "b", None], pa.string_view())),
    "a dictionary": ("creation_context", pa.array(["ä", "b", "ä"]).dictionary_encode()),
    "float32": ("energy_level", pa.array([1, 2.5, 3], pa.float32())),
    "float16": ("energy_level", pa.array(np.array([1, 2.5, 3], np.float16))),
    "integers": ("energy_level", pa.array([1, 2, 3], pa.int8())),
    "binary ids": ("id", pa.array([UUID(int=number).bytes for number in (4, 5, 6)], pa.binary(16))),
    "uuids": ("id", pa.array([UUID(int=number).bytes for number in (4, 5, 6)], pa.uuid())),
    "ids without hyphens": ("id", pa.array([UUID(int=number).hex for number in (4, 5, 6)])),
    "capital ids": ("id", pa.array([str(UUID(int=number)).upper() for number in (14, 15, 2**127)])),
    "nanoseconds": ("timestamp", pa.array([seconds(number) for number in range(3)], pa.timestamp("ns", "UTC"))),
    "seconds of Nepal": ("timestamp", pa.array([seconds(0)] * 3, pa.timestamp("s", "Asia/Kathmandu"))),
    "large lists": ("tags", pa.array([["a"], [], ["ä", "a"]], pa.large_list(pa.large_string()))),
    "escapes": ("metadata", pa.array(['{"a": "\\u00e4\\\\u0000"}', " {} ", '{"b": 1e2}'])),
    "long texts": ("creation_context", pa.array(["ä" * 2000, "b", "c" * 9999])),
    "double vectors": ("state_vector", pa.array(list(VECTORS.astype(np.float64)), pa.list_(pa.float64()))),
    "half vectors": ("state_vector", pa.array(list(VECTORS.astype(np.float16)), pa.list_(pa.float16(), 1024))),
    "large lists of numbers": ("state_vector", pa.array(list(VECTORS), pa.large_list(pa.float32()))),
    "vectors of integers": ("state_vector", pa.array([[number + 1] * 1024 for number in range(3)])),
}


@pytest.mark.parametrize("what", TYPES)
def test_other_types_of_the_same_are_taken(conn: Connection, what: str) -> None:
    name, column = TYPES[what]
    assert geoids.insert_arrow(conn, pa.table({**columns(), name: column})) == 3
    arrow = sorted(geoids.stream(conn), key=lambda row: row.entropy)
    empty(conn, geoids)
    table = pa.table({**columns(), name: column})
    items: Any = [geoids.entity.item(row) for row in table.to_pylist()]
    geoids.insert_many(conn, items)
    items = sorted(geoids.stream(conn), key=lambda row: row.entropy)
    for one, other in zip(arrow, items, strict=True):
        for field in fields(geoids.Geoid):
            if field.name in (name, "metadata", "tags", "state_vector", "entropy"):
                assert np.array_equal(getattr(one, field.name), getattr(other, field.name)), field.name


VECTOR: Final = unit(1).tolist()
BAD: Final[dict[str, tuple[str, Any, str]]] = {
    "NaN": ("entropy", pa.array([0, 1, float("nan")]), "item 2: entropy: nan is not a finite number"),
    "infinity": ("energy_level", pa.array([0, float("inf"), 1]), "item 1: energy_level: inf is not"),
    "a null": ("entropy", pa.array([0, None, 1.0]), "item 1: entropy: missing"),
    "text for a number": ("entropy", pa.array(["1", "2", "3"]), "item 0: entropy: expected a number, got str"),
    "truth for a number": ("entropy", pa.array([True] * 3), "item 0: entropy: expected a number, got bool"),
    "no id": ("id", pa.array([None, None, "x"]), "item 2: id: 'x' is not a UUID"),
    "blanks in ids": ("id", pa.array([str(STATE).replace("00", "  ")] * 3), "item 0: id: "),
    "hyphens elsewhere": ("id", pa.array([f"{STATE.hex[:-1]}----7"] * 3), "item 0: id: '0000"),
    "a number for an id": ("id", pa.array([1, 2, 3]), "item 0: id: expected a uuid.UUID, got int"),
    "no zone": ("timestamp", pa.array([datetime(2024, 1, 1)] * 3), "item 0: timestamp: 2024-.* has no time zone"),
    "a year beyond": ("timestamp", pa.array([2**62] * 3).cast(pa.timestamp("us", "UTC")), "item 0: timestamp: "),
    "a part of a microsecond": ("timestamp", pa.array([1] * 3).cast(pa.timestamp("ns", "UTC")), "item 0: timestamp: "),
    "NUL": ("creation_context", pa.array(["a", "a\0b", "c"]), "item 1: creation_context: .*NUL"),
    "no UTF-8": (
        "creation_context",
        pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff", b"c"]).buffers()),
        "item 1: creation_context: ",
    ),
    "bytes for text": ("creation_context", pa.array([b"a"] * 3), "item 0: creation_context: expected a str, got bytes"),
    "no JSON": ("metadata", pa.array(["{}", "{", "{}"]), "item 1: metadata: "),
    "a JSON array": ("metadata", pa.array(["{}", "{}", "[1]"]), "item 2: metadata: expected a dict, got list"),
    "JSON's NaN": ("metadata", pa.array(["{}", "{}", '{"a": NaN}']), "item 2: metadata: not JSON"),
    "a JSON number beyond": ("metadata", pa.array(["{}", "{}", '{"a": 1e999}']), "item 2: metadata: not JSON"),
    "JSON's NUL": ("metadata", pa.array(["{}", "{}", '{"a": "\\u0000"}']), "item 2: metadata: .*NUL"),
    "JSON's surrogate": ("metadata", pa.array(["{}", "{}", '{"a": "\\ud800"}']), "item 2: metadata: not JSON"),
    "deep JSON": ("metadata", pa.array(["{}", "{}", '{"a":' * 99999 + "1" + "}" * 99999]), "item 2: metadata: "),
    "a long tag": ("tags", pa.array([["a"], [], ["ä" * 1001]]), "item 2: tags: 2002 bytes are too many"),
    "a null tag": ("tags", pa.array([["a"], ["a", None], []]), "item 1: tags: expected a str, got NoneType"),
    "text for tags": ("tags", pa.array(["a", "b", "c"]), "item 0: tags: expected a sequence of str, got str"),
    "the dimension of one": ("state_vector", pa.array([VECTOR, VECTOR, VECTOR[1:]]), "item 2: .*shape .1024,., got"),
    "the dimension of all": ("state_vector", pa.array([VECTOR[1:]] * 3, pa.list_(pa.float32(), 1023)), "item 0: state"),
    "a null among numbers": ("state_vector", pa.array([VECTOR, [None, *VECTOR[1:]], VECTOR]), "item 1: state_vector"),
    "a null vector": ("state_vector", pa.array([VECTOR, VECTOR, None]), "item 2: state_vector: missing"),
    "NaN in a vector": ("state_vector", pa.array([VECTOR, VECTOR, [float("nan"), *VECTOR[1:]]]), "item 2: .*NaN"),
    "the zero vector": ("state_vector", pa.array([VECTOR, [0.0] * 1024, VECTOR]), "item 1: .*zero vector"),
    "numbers beyond float32": ("state_vector", pa.array([[1e300] * 1024] * 3), "item 0: .*overflows"),
    "a norm beyond": ("state_vector", pa.array([[1e17] * 1024] * 3), "item 0: .*norm 3.2e.18"),
    "squares beyond": (
        "state_vector",
        pa.array([[1e30] * 1024] * 3, pa.list_(pa.float32(), 1024)),
        "item 0: .*norm 3.2",
    ),
    "text for vectors": ("state_vector", pa.array(["a", "b", "c"]), "item 0: state_vector: expected a numpy array"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_value_is_refused_by_number_and_name_and_nothing_is_written(conn: Connection, what: str) -> None:
    name, column, message = BAD[what]
    with pytest.raises(InvalidValue, match=f"^{message}") as caught:
        geoids.insert_arrow(conn, pa.table({**columns(), name: column}))
    assert isinstance(caught.value, VectorError) == (name == "state_vector" and "missing" not in message)
    assert geoids.count(conn) == 0


@pytest.mark.parametrize("module", [portals, metrics])
def test_what_other_tables_refuse_is_refused_too(conn: Connection, module: ModuleType) -> None:
    bad: dict[ModuleType, tuple[dict[str, Any], str]] = {
        portals: (
            {
                "source_dimension": [1, 2**31],
                "target_dimension": [1, 1],
                "radius": [1.0, 1.0],
                "energy_requirement": [1.0, 1.0],
                "stability_factor": [1.0, 1.0],
            },
            "item 1: source_dimension: 2147483648 is not within",
        ),
        metrics: (
            {"metric_name": ["a", "b"], "metric_value": [1.0, float("nan")], "component": ["c", "c"]},
            "item 1: metric_value: nan",
        ),
    }
    data, message = bad[module]
    with pytest.raises(InvalidValue, match=f"^{message}"):
        module.insert_arrow(conn, pa.table(data))
    assert module.count(conn) == 0


def test_ids_of_metrics_are_kept_and_new_ones_come_after_them(conn: Connection) -> None:
    data = {"id": [90001, 90003], "timestamp": [seconds(0)] * 2, "metric_name": ["a", "b"], "metric_value": [1.0, 2.0]}
    assert metrics.insert_arrow(conn, pa.table({**data, "component": ["c", "c"]})) == 2
    assert [row.id for row in metrics.stream(conn)] == [90001, 90003]
    assert metrics.insert_arrow(conn, pa.table({"metric_name": ["c"], "metric_value": [3], "component": ["c"]})) == 1
    assert max(row.id for row in metrics.stream(conn)) > 90003
    with pytest.raises(InvalidValue, match=r"^item 1: id: missing, while other rows have one$"):
        metrics.insert_arrow(conn, pa.table({**data, "id": [90004, None], "component": ["c", "c"]}))
    with pytest.raises(InvalidValue, match=r"^item 0: timestamp: missing, while there is an id$"):
        metrics.insert_arrow(conn, pa.table({**data, "timestamp": [None, seconds(0)], "component": ["c", "c"]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entropy": None}, "data: it lacks the column 'entropy'"),
        ({"mood": ["a", "b", "c"]}, "data: 'mood' is none of the columns id, timestamp, "),
    ],
)
def test_columns_are_checked_before_anything_is_sent(conn: Connection, change: Any, message: str) -> None:
    data = {name: column for name, column in {**columns(), **change}.items() if column is not None}
    with pytest.raises(InvalidValue, match=f"^{message}"):
        geoids.insert_arrow(conn, pa.table(data))


def test_a_column_that_is_there_twice_is_refused(conn: Connection) -> None:
    table = pa.table(columns())
    with pytest.raises(InvalidValue, match=r"^data: it has the column 'entropy' twice$"):
        geoids.insert_arrow(conn, table.append_column("entropy", table.column("entropy")))


@pytest.mark.parametrize("data", [None, [1], {"entropy": [1.0]}, "states.parquet"])
def test_what_is_not_arrow_is_refused(conn: Connection, data: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^data: expected a Table, RecordBatch or RecordBatchReader"):
        geoids.insert_arrow(conn, data)


def batches(count: int, bad: int | None = None) -> Iterator[Any]:
    """Batches of 1000 states; the vector of the one numbered *bad* has 1023 dimensions."""
    kind = pa.list_(pa.float32())
    for first in range(0, count, 1000):
        vectors = [VECTORS[number % 3] for number in range(first, first + 1000)]
        if bad is not None and first <= bad < first + 1000:
            vectors[bad - first] = vectors[bad - first][1:]
        data = {**columns(1000), "state_vector": pa.array(vectors, kind)}
        yield pa.RecordBatch.from_pydict(data)


def reader(rows: Iterator[Any]) -> Any:
    return pa.RecordBatchReader.from_batches(next(batches(1000)).schema, rows)


@pytest.mark.ends
def test_a_reader_is_read_as_it_is_sent(conn: Connection) -> None:
    assert geoids.insert_arrow(conn, reader(batches(2000))) == 2000
    assert geoids.count(conn) == 2000


@pytest.mark.slow
@pytest.mark.ends
def test_a_wrong_dimension_late_leaves_nothing(database: str) -> None:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        with pytest.raises(VectorError, match=r"^item 70000: state_vector: expected shape \(1024,\), got \(1023,\)$"):
            geoids.insert_arrow(conn, reader(batches(71_000, bad=70_000)))
        conn.commit()
        assert geoids.count(conn) == 0


@pytest.mark.ends
def test_an_error_of_the_data_passes_through_and_leaves_nothing(conn: Connection) -> None:
    def broken() -> Iterator[Any]:
        yield from batches(1000)
        raise LookupError("the disk is gone")

    with pytest.raises(LookupError, match="the disk is gone"):
        geoids.insert_arrow(conn, reader(broken()))
    assert geoids.count(conn) == 0


@pytest.mark.ends
def test_a_lost_connection_leaves_nothing(database: str) -> None:
    with psycopg.connect(database) as conn, psycopg.connect(database, autocommit=True) as other:
        add_adapters(conn)
        pid = conn.info.backend_pid

        def cut() -> Iterator[Any]:
            yield from batches(1000)
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            yield from batches(3000)

        with pytest.raises(psycopg.OperationalError):
            geoids.insert_arrow(conn, reader(cut()))
        assert other.execute("SELECT count(*) FROM geoid_states").fetchone() == (0,)


def test_an_id_that_is_taken_is_named_by_the_server(pg_conn: psycopg.Connection) -> None:
    data = {**columns(), "id": [str(UUID(int=number)) for number in (1, 2, 1)]}
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        geoids.insert_arrow(pg_conn, pa.table(data))
    assert caught.value.__notes__ == ["item 2 (counted from 0) was refused; nothing was written"]
    assert geoids.count(pg_conn) == 0


def test_a_text_that_the_session_cannot_send_is_refused(pg_conn: psycopg.Connection) -> None:
    pg_conn.execute("SET client_encoding TO LATIN1")
    data = {**columns(), "creation_context": ["ä", "b", "c"]}
    assert geoids.insert_arrow(pg_conn, pa.table(data)) == 3
    assert {row.creation_context for row in geoids.stream(pg_conn)} == {"ä", "b", "c"}
    with pytest.raises(InvalidValue, match=r"^item 2: creation_context: '→' cannot be sent"):
        geoids.insert_arrow(pg_conn, pa.table({**columns(), "creation_context": ["ä", "b", "→"]}))


@settings(max_examples=15)
@given(items=st.lists(new_geoids, min_size=1, max_size=4, unique_by=lambda item: item.id))
def test_rows_are_encoded_as_insert_many_encodes_them(pg_conn: psycopg.Connection, items: Any) -> None:
    """Whole batches take another way to the same bytes."""
    empty(pg_conn, geoids)
    geoids.insert_many(pg_conn, items)
    stored = pg_conn.execute("SELECT g::text FROM geoid_states AS g ORDER BY id").fetchall()
    table = pa.Table.from_batches(geoids.stream_arrow(pg_conn))
    empty(pg_conn, geoids)
    geoids.insert_arrow(pg_conn, table)
    assert pg_conn.execute("SELECT g::text FROM geoid_states AS g ORDER BY id").fetchall() == stored


def without_pyarrow(code: str) -> str:
    """What a process prints in which pyarrow cannot be imported."""
    blocked = "import sys\nsys.modules['pyarrow'] = None\n"
    ran = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=False)
    assert not ran.stderr, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("call", ["geoids.insert_arrow(conn, object())", "next(geoids.stream_arrow(conn))"])
def test_without_pyarrow_the_error_names_the_extra_and_all_else_works(call: str) -> None:
    said = without_pyarrow(
        f"""
from kimera_sql import NotInstalled, geoids, migrate, sqlite
with sqlite.connect(":memory:") as conn:
    migrate(conn)
    geoids.insert(conn, geoids.NewGeoid(state_vector=[1.0] * 1024, entropy=0, coherence_factor=0, energy_level=0))
    print(geoids.count(conn))
    try:
        {call}
    except NotInstalled as error:
        print(error)
"""
    )
    assert said.startswith("1\nArrow and Parquet need pyarrow, which cannot be imported (")
    assert said.endswith("pip install 'kimera-sql[arrow]'\n")


def test_importing_kimera_sql_does_not_import_pyarrow() -> None:
    code = "import sys\nfrom kimera_sql import aio, geoids, cli\nprint('pyarrow' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
