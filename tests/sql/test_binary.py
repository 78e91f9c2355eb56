"""Rows that are encoded here for COPY arrive as they were sent, and what cannot be sent is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import numpy as np
import pgvector
import psycopg
import pytest
from fix_connections import BOTH_TWINS, rolled_back
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from kimera_sql import InvalidValue, add_adapters, sql
from kimera_sql.checks import JsonObject
from kimera_sql.sql import binary

pytestmark = pytest.mark.ends

TYPES: Final = ("uuid", "timestamptz", "jsonb", "int4", "int8", "float8", "text", "text[]", "vector")
TEXTS: Final = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
ROWS: Final = st.tuples(
    st.uuids(),
    st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45))])),
    st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS, max_size=3),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    TEXTS,
    st.lists(TEXTS, max_size=3),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5).map(
        lambda numbers: np.array(numbers, dtype=np.float32)
    ),
)


@pytest.fixture(params=BOTH_TWINS)
def conn(request: pytest.FixtureRequest, shared: Callable[[str], str]) -> Iterator[Any]:
    with rolled_back(request.param, shared) as conn:
        conn.execute(
            "CREATE TEMP TABLE sent (place SERIAL, a UUID, b TIMESTAMPTZ, c JSONB, d INT4, e INT8, f FLOAT8, g TEXT, "
            "h TEXT[], i VECTOR)"
        )
        yield conn


@pytest.fixture
def queries(tmp_path: Path) -> Any:
    (tmp_path / "rows.sql").write_text(
        "-- name: copy_in()#\n-- Send rows.\n-- types: " + ", ".join(TYPES) + "\n"
        "COPY sent (a, b, c, d, e, f, g, h, i) FROM STDIN (FORMAT BINARY);\n\n"
        "-- name: copy_dates()#\n-- Send dates.\n-- types: date, text\n"
        "COPY dates (day, name) FROM STDIN (FORMAT BINARY);\n"
    )
    return sql.load(tmp_path).rows


def named(rows: Sequence[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip("abcdefghi", row, strict=False)) for row in rows)


def arrived(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT a, b, c, d, e, f, g, h, i FROM sent ORDER BY place", binary=True).fetchall()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS | st.tuples(*[st.none()] * len(TYPES)), max_size=4))
def test_rows_arrive_as_they_were_sent(conn: psycopg.Connection, queries: Any, rows: list[tuple[Any, ...]]) -> None:
    conn.execute("TRUNCATE sent")
    assert queries.copy_in.copy(conn, named(rows)) == len(rows)
    for row, back in zip(rows, arrived(conn), strict=True):
        for sent, found in zip(row, back, strict=True):
            if isinstance(sent, np.ndarray):
                assert np.array_equal(sent, found)
            else:
                assert sent == found or (sent != sent and found != found)


@given(st.lists(ROWS | st.tuples(*[st.none()] * len(TYPES)), max_size=4))
def test_rows_that_are_encoded_together_are_what_each_is_alone(rows: list[tuple[Any, ...]]) -> None:
    encode = binary.rows_encoder(TYPES, "utf-8")
    assert encode is not None
    assert encode(rows) == b"".join(encode([row]) for row in rows)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_vectors_of_any_precision_are_encoded_together(dtype: Any) -> None:
    encode = binary.rows_encoder(("vector",), "utf-8")
    assert encode is not None
    vectors = np.arange(12, dtype=dtype).reshape(3, 4)
    together = encode([[vector] for vector in vectors])
    assert together == b"".join(encode([[vector.astype(np.float32)]]) for vector in vectors)


def test_a_row_whose_values_are_used_again_for_the_next_is_sent_as_it_was(
    conn: psycopg.Connection, queries: Any
) -> None:
    def reused() -> Iterator[dict[str, Any]]:
        row: dict[str, Any] = dict.fromkeys("abcdefghi")
        row["h"], row["i"] = [], np.zeros(3, dtype=np.float32)
        for number in range(40):
            row["h"][:] = [str(number)]
            row["i"][:] = number
            yield row

    assert queries.copy_in.copy(conn, reused()) == 40
    assert [(row[7], row[8].tolist()) for row in arrived(conn)] == [([str(n)], [n] * 3) for n in range(40)]


def test_more_than_is_sent_at_once(conn: psycopg.Connection, queries: Any) -> None:
    vector = np.arange(1024, dtype=np.float32)
    rows: list[tuple[Any, ...]] = [
        (uuid4(), datetime.now(UTC), {}, place, 1, 1.0, "x", [], vector) for place in range(100)
    ]
    assert queries.copy_in.copy(conn, named(rows)) == 100
    assert [row[3] for row in arrived(conn)] == list(range(100))


def test_the_forms_of_the_clients_are_taken(conn: psycopg.Connection, queries: Any) -> None:
    row = (None, None, Jsonb([1]), np.int32(3), 4, np.float64(1.5), "x", ("y",), pgvector.Vector([1.0, 2.0]))
    queries.copy_in.copy(conn, named([row]))
    (found,) = arrived(conn)
    assert found[2:8] == ([1], 3, 4, 1.5, "x", ["y"])
    assert found[8].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, "x", "value 1, a str, cannot be sent as uuid"),
        (1, datetime(2026, 1, 1), "value 2, a datetime, cannot be sent as timestamptz"),
        (2, {"a": {1}}, "value 3, a dict, cannot be sent as jsonb"),
        (3, 2**31, "value 4, a int, cannot be sent as int4"),
        (5, "1.5", "value 6, a str, cannot be sent as float8"),
        (6, b"x", "value 7, a bytes, cannot be sent as text"),
        (7, [1], r"value 8, a list, cannot be sent as text\[\]"),
        (8, np.zeros((2, 2)), "expected one dimension"),
    ],
)
def test_a_value_of_another_type_is_named_and_nothing_is_written(
    conn: psycopg.Connection, queries: Any, place: int, value: Any, said: str
) -> None:
    good = [uuid4(), datetime.now(UTC), {}, 1, 2, 3.0, "x", ["y"], np.ones(3, dtype=np.float32)]
    bad = [value if at == place else one for at, one in enumerate(good)]
    with pytest.raises(InvalidValue, match=f"^item 1: .*{said}"):
        queries.copy_in.copy(conn, named([good, bad]))
    assert arrived(conn) == []


def test_of_rows_encoded_together_the_one_at_fault_is_named() -> None:
    encode = binary.rows_encoder(("int4", "text"), "utf-8")
    assert encode is not None
    with pytest.raises(InvalidValue, match=r"^value 2, a int, cannot be sent as text: "):
        encode([[1, "x"], [2, 3], [4, "y"]])


def test_too_few_values_are_told(conn: psycopg.Connection, queries: Any) -> None:
    with pytest.raises(InvalidValue, match="item 0: 2 values for 9 columns"):
        queries.copy_in.copy(conn, [{"a": UUID(int=1), "b": None}])


def broken_off() -> Iterator[dict[str, Any]]:
    yield {"day": datetime(2026, 11, 27, tzinfo=UTC).date(), "name": "x"}
    raise LookupError("the source ran dry")


BAD_ROWS: Final[dict[str, tuple[Callable[[], Any], type[Exception], str]]] = {
    "None": (lambda: [None], InvalidValue, "^item 0: AttributeError: "),
    "a list": (lambda: [{"day": None, "name": "x"}, [1, 2]], InvalidValue, "^item 1: AttributeError: "),
    "a value of another type": (
        lambda: [{"day": object(), "name": "x"}],
        InvalidValue,
        "^item 0: TypeError: ",
    ),
    "a source that breaks off": (broken_off, LookupError, r"^the source ran dry\nit came in place of item 1 "),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_whatever_is_wrong_with_a_row_of_ones_own_is_told_with_its_number(
    conn: psycopg.Connection, queries: Any, name: str
) -> None:
    conn.execute("CREATE TEMP TABLE dates (day DATE, name TEXT)")
    make, error, message = BAD_ROWS[name]
    with pytest.raises(error, match=message):
        queries.copy_dates.copy(conn, make())
    assert conn.execute("SELECT count(*) FROM dates").fetchone() == (0,)


def test_what_is_not_known_here_is_sent_by_psycopg(conn: psycopg.Connection, queries: Any) -> None:
    assert binary.rows_encoder(("date", "text"), "utf-8") is None
    conn.execute("CREATE TEMP TABLE dates (day DATE, name TEXT)")
    day = datetime(2026, 11, 27, tzinfo=UTC).date()
    assert queries.copy_dates.copy(conn, [{"day": day, "name": "x"}]) == 1
    assert conn.execute("SELECT day, name FROM dates").fetchall() == [(day, "x")]


def test_text_goes_in_the_encoding_of_the_session(conn: psycopg.Connection, queries: Any) -> None:
    conn.execute("SET client_encoding TO 'LATIN1'")
    queries.copy_in.copy(conn, named([(None,) * 6 + ("é", ["ü"], None)]))
    conn.execute("SET client_encoding TO 'UTF8'")
    add_adapters(conn)
    assert arrived(conn)[0][6:8] == ("é", ["ü"])


def test_the_item_is_named_though_the_server_tells_of_lines_of_json_too(conn: psycopg.Connection, queries: Any) -> None:
    document = JsonObject()
    document.text = '{"a": NaN}'
    rows = [[*[None] * 2, document, *[None] * 6]]
    with pytest.raises(psycopg.errors.InvalidTextRepresentation) as caught:
        queries.copy_in.copy(conn, named([[None] * 9, [None] * 9, *rows]))
    assert caught.value.__notes__ == ["item 2 (counted from 0) was refused; nothing was written"]
