"""numpy arrays are checked on their way in, and come back from a server bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pgvector
import psycopg
import pytest
from fix_servers import Server
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.adapt import PyFormat
from psycopg.conninfo import make_conninfo
from psycopg.pq import Format
from psycopg.types import TypeInfo
from strategies import damaged, unit, vectors

from kimera_sql import VectorError, add_adapters, geoids
from kimera_sql.vectors import DIMENSIONS, Vector, as_vector, same

Connection = psycopg.Connection[Any]

# Drawn as bit patterns up to the largest finite number of either sign: every finite float, subnormals and -0 too
singles = hnp.arrays(
    np.uint32, st.integers(1, DIMENSIONS), elements=st.integers(0, 0x7F7FFFFF) | st.integers(0x80000000, 0xFF7FFFFF)
).map(lambda patterns: patterns.view(np.float32))
halves = hnp.arrays(
    np.uint16, st.integers(1, DIMENSIONS), elements=st.integers(0, 0x7BFF) | st.integers(0x8000, 0xFBFF)
).map(lambda patterns: patterns.view(np.float16))
# Its shortest decimal, 7.038531e-26, is nearest to a double that rounds to the float32 above it.
TWICE_ROUNDED = np.array([0x15AE43FD, 0x95AE43FD], np.uint32).view(np.float32)


def bits(array: Vector) -> list[int]:
    found: list[int] = array.view(np.uint32).tolist()
    return found


def full(value: float, *, norm: bool = False) -> Vector:
    return np.full(DIMENSIONS, value / DIMENSIONS**0.5 if norm else value)


@pytest.fixture
def conn(pg_conn: Connection) -> Connection:
    return pg_conn


@pytest.fixture
def half_conn(conn: Connection) -> Connection:
    if TypeInfo.fetch(conn, "halfvec") is None:
        pytest.skip("this pgvector has no halfvec")
    return conn


def assert_taken(taken: Vector, numbers: Any) -> None:
    assert taken.dtype == np.float32
    assert taken.shape == (DIMENSIONS,)
    assert not taken.flags.writeable
    assert bits(taken) == bits(np.array(numbers, np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", ">f8", np.int8, np.int64, np.uint32])
def test_arrays_of_every_real_type_become_float32(dtype: Any) -> None:
    array = np.arange(DIMENSIONS).astype(dtype)
    assert_taken(as_vector(array), array)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("item", [float, int])
def test_lists_and_tuples_become_float32(kind: type, item: type) -> None:
    numbers = kind(item(number) for number in range(DIMENSIONS))
    assert_taken(as_vector(numbers), numbers)


@given(vectors)
def test_doubles_are_rounded_to_the_nearest_float32(vector: Vector) -> None:
    nudged = vector.astype(np.float64) * (1 + 2.0**-30)
    assert_taken(as_vector(nudged), vector)


def test_a_strided_view_is_taken() -> None:
    array = np.arange(2.0 * DIMENSIONS)
    assert_taken(as_vector(array[::2]), array[::2])


def test_what_is_writeable_is_copied() -> None:
    array = unit(1)
    taken = as_vector(array)
    array[0] = 7
    assert taken[0] != 7


def test_a_readonly_float32_array_is_returned_as_it_is() -> None:
    array = as_vector(unit(1))
    assert as_vector(array) is array


def test_the_callers_array_stays_writeable() -> None:
    array = unit(1)
    as_vector(array)
    assert array.flags.writeable


def test_another_number_of_dimensions_can_be_asked_for() -> None:
    assert as_vector([1, 2, 3], dimensions=3).tolist() == [1, 2, 3]


def with_item(value: Any) -> list[Any]:
    return [1.0] * 5 + [value] + [1.0] * (DIMENSIONS - 6)


def frozen(array: Vector) -> Vector:
    array.flags.writeable = False
    return array


FAULTS: dict[str, tuple[Any, str]] = {
    "short": ([1.0] * 1023, "expected shape (1024,), got (1023,)"),
    "long": (np.ones(1025), "expected shape (1024,), got (1025,)"),
    "empty": ([], "expected shape (1024,), got (0,)"),
    "no dimension": (np.array(1.0), "expected shape (1024,), got ()"),
    "two dimensions": (np.ones((1, DIMENSIONS)), "expected shape (1024,), got (1, 1024)"),
    "ragged": ([[1.0], [1.0, 2.0]], "its items are not all numbers"),
    "ragged at the end": ([1.0] * 1023 + [[2.0]], "its items are not all numbers"),
    "None": (None, "expected a numpy array, list or tuple, got NoneType"),
    "str": ("1" * DIMENSIONS, "expected a numpy array, list or tuple, got str"),
    "bytes": (bytes(DIMENSIONS), "expected a numpy array, list or tuple, got bytes"),
    "generator": (iter([1.0] * DIMENSIONS), "expected a numpy array, list or tuple, got list_iterator"),
    "bools": ([True] * DIMENSIONS, "expected real numbers, got dtype bool"),
    "strings": (["1"] * DIMENSIONS, "expected real numbers, got dtype <U1"),
    "objects": (np.ones(DIMENSIONS, object), "expected real numbers, got dtype object"),
    "a None among numbers": (with_item(None), "expected real numbers, got dtype object"),
    "integers past 64 bits": ([2**70] * DIMENSIONS, "expected real numbers, got dtype object"),
    "complex": (np.ones(DIMENSIONS, complex), "expected real numbers, got dtype complex128"),
    "NaN": (with_item(float("nan")), "NaN at index 5"),
    "NaN, readonly": (frozen(np.array(with_item(float("nan")), np.float32)), "NaN at index 5"),
    "signalling NaN": (frozen(np.full(DIMENSIONS, 0x7F800001, np.uint32).view(np.float32)), "NaN at index 0"),
    "infinity": (with_item(float("inf")), "an infinity at index 5"),
    "negative infinity": (np.array(with_item(float("-inf")), np.float16), "an infinity at index 5"),
    "past single precision": (with_item(-1e39), "-1e+39 at index 5 overflows single precision"),
    "zero": (full(0), "the zero vector has no direction"),
    "zero integers": ([0] * DIMENSIONS, "the zero vector has no direction"),
    "small": (full(0.99e-15, norm=True), "norm 9.9e-16 is outside 1e-15 to 1e+18"),
    "subnormal": (frozen(np.full(DIMENSIONS, 1e-45, np.float32)), "is outside 1e-15 to 1e+18"),
    "large": (full(1.01e18, norm=True), "norm 1.01e+18 is outside 1e-15 to 1e+18"),
    "squares overflow": (frozen(np.full(DIMENSIONS, 3e38, np.float32)), "norm 9.6e+39 is outside 1e-15 to 1e+18"),
}


@pytest.mark.parametrize(("value", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_its_field(value: Any, fault: str) -> None:
    with pytest.raises(VectorError) as refused:
        as_vector(value, field="state_vector")
    assert str(refused.value).startswith("state_vector: ")
    assert fault in str(refused.value)


@pytest.mark.parametrize("norm", [1.01e-15, 1.0, 0.99e18])
def test_norms_up_to_the_bounds_are_taken(norm: float) -> None:
    assert np.linalg.norm(as_vector(full(norm, norm=True)).astype(np.float64)) == pytest.approx(norm)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("placeholder", ["%b", "%t"])
@given(array=singles)
@example(array=TWICE_ROUNDED)
def test_float32_comes_back_bit_for_bit(conn: Connection, placeholder: str, binary: bool, array: Vector) -> None:
    row = conn.cursor(binary=binary).execute(f"SELECT {placeholder}::vector", [array]).fetchone()
    assert row is not None
    assert row[0].dtype == np.float32
    assert bits(row[0]) == bits(array)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("placeholder", ["%b", "%t"])
@given(array=halves)
def test_float16_comes_back_bit_for_bit(
    half_conn: Connection, placeholder: str, binary: bool, array: np.ndarray[tuple[int], np.dtype[np.float16]]
) -> None:
    row = half_conn.cursor(binary=binary).execute(f"SELECT {placeholder}::halfvec", [HalfVector(array)]).fetchone()
    assert row is not None
    assert row[0].dtype == np.float32
    assert bits(row[0]) == bits(array.astype(np.float32))


@pytest.mark.parametrize("placeholder", ["%b", "%t"])
def test_the_type_sent_needs_no_cast(conn: Connection, placeholder: str) -> None:
    row = conn.execute(f"SELECT pg_typeof({placeholder})::text", [unit(1)]).fetchone()
    assert row == ("vector",)


@pytest.mark.parametrize("placeholder", ["%b", "%t"])
def test_the_half_type_sent_needs_no_cast(half_conn: Connection, placeholder: str) -> None:
    row = half_conn.execute(f"SELECT pg_typeof({placeholder})::text", [HalfVector([1.0])]).fetchone()
    assert row == ("halfvec",)


@pytest.mark.parametrize("placeholder", ["%b", "%t"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int16, ">f4"])
def test_arrays_of_other_types_are_sent_as_float32(conn: Connection, placeholder: str, dtype: Any) -> None:
    row = conn.execute(f"SELECT {placeholder}::vector", [np.array([0, -3, 300], dtype)]).fetchone()
    assert row is not None
    assert row[0].tolist() == [0, -3, 300]


@pytest.mark.parametrize("binary", [True, False])
def test_what_comes_back_is_readonly(conn: Connection, binary: bool) -> None:
    row = conn.cursor(binary=binary).execute("SELECT '[1,2]'::vector").fetchone()
    assert row is not None
    assert not row[0].flags.writeable


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("placeholder", ["%b", "%t"])
def test_arrays_of_vectors_come_back_bit_for_bit(conn: Connection, placeholder: str, binary: bool) -> None:
    sent = [unit(1), unit(2)]
    row = conn.cursor(binary=binary).execute(f"SELECT {placeholder}::vector[]", [sent]).fetchone()
    assert row is not None
    assert list(map(bits, row[0])) == list(map(bits, sent))


@pytest.mark.parametrize("placeholder", ["%b", "%t"])
def test_an_array_of_two_dimensions_is_not_sent(conn: Connection, placeholder: str) -> None:
    with pytest.raises(VectorError, match=r"vector: expected one dimension, got shape \(2, 3\)"):
        conn.execute(f"SELECT {placeholder}::vector", [np.ones((2, 3))])


@pytest.mark.parametrize("kind", [pgvector.Vector, HalfVector])
def test_the_clients_own_vectors_are_taken(kind: type[Any]) -> None:
    given = kind(np.arange(1, DIMENSIONS + 1, dtype=np.float16))
    taken = as_vector(given)
    assert taken.dtype == np.float32
    assert (taken.shape, taken.flags.writeable) == ((DIMENSIONS,), False)
    assert taken.tolist() == given.to_list()
    with pytest.raises(VectorError, match=r"^field: expected shape \(1024,\), got \(2,\)$"):
        as_vector(kind([1.0, 2.0]), field="field")


@pytest.mark.parametrize("placeholder", ["%b", "%t"])
def test_the_clients_types_are_sent_as_the_servers(half_conn: Connection, placeholder: str) -> None:
    for sent, name in (
        (pgvector.Vector([1.5, 2.5]), "vector"),
        (HalfVector([1.5, 2.5]), "halfvec"),
        (pgvector.SparseVector([0, 2.5]), "sparsevec"),
        (pgvector.Bit([True, False]), "bit"),
    ):
        row = half_conn.execute(f"SELECT pg_typeof({placeholder})::text, {placeholder}::text", [sent, sent]).fetchone()
        assert row == (name, sent.to_text())


@pytest.mark.parametrize("binary", [True, False])
def test_a_sparse_vector_comes_back_as_the_clients(half_conn: Connection, binary: bool) -> None:
    row = half_conn.cursor(binary=binary).execute("SELECT '{2:1.5}/3'::sparsevec").fetchone()
    assert row == (pgvector.SparseVector([0, 1.5, 0]),)


def test_what_somebody_registers_later_changes_nothing_of_ours(conn: Connection) -> None:
    state = geoids.insert(conn, geoids.NewGeoid(state_vector=unit(1), entropy=0, coherence_factor=0, energy_level=0))
    register_vector(conn)
    row = conn.execute("SELECT state_vector FROM geoid_states").fetchone()
    assert isinstance(row, tuple)
    assert isinstance(row[0], pgvector.Vector)
    streamed = next(geoids.stream(conn))
    for found in (geoids.get(conn, state.id).state_vector, streamed.state_vector):
        assert isinstance(found, np.ndarray)
        assert not found.flags.writeable
    (hit,) = geoids.similar(conn, unit(1), 1, with_vectors=True)
    assert isinstance(hit.vector, np.ndarray)
    geoids.insert_many(conn, [geoids.NewGeoid(state_vector=unit(2), entropy=0, coherence_factor=0, energy_level=0)])
    assert [state.entropy for state in geoids.get_many(conn, [hit.geoid.id])] == [0]


def test_connections_share_the_classes_that_send(conn: Connection) -> None:
    # A class is never freed: one for each connection would fill the memory of a pool that recycles.
    before = conn.adapters.get_dumper(np.ndarray, PyFormat.BINARY)
    add_adapters(conn)
    assert conn.adapters.get_dumper(np.ndarray, PyFormat.BINARY) is before


@dataclass(frozen=True)
class Named:
    name: str
    vector: Vector | None


@dataclass(frozen=True)
class Other(Named):
    pass


def test_same_compares_arrays_by_their_numbers() -> None:
    assert same(Named("a", unit(1)), Named("a", unit(1)))


@pytest.mark.parametrize(
    "other", [Named("a", unit(2)), Named("b", unit(1)), Named("a", None), Other("a", unit(1)), "a", None]
)
def test_same_tells_others_apart(other: object) -> None:
    assert not same(Named("a", unit(1)), other)


FORMS: dict[str, tuple[str, Format, bytes]] = {
    "vector": ("vector", Format.BINARY, pgvector.Vector([1.5, -2, 3e-5, 4]).to_binary()),
    "vector as text": ("vector", Format.TEXT, b"[1.5,-2,3e-05,4]"),
    "halfvec": ("halfvec", Format.BINARY, pgvector.HalfVector([1.5, -2, 3, 4]).to_binary()),
    "halfvec as text": ("halfvec", Format.TEXT, b"[1.5,-2,3,4]"),
    "sparsevec": ("sparsevec", Format.BINARY, pgvector.SparseVector({1: 1.5, 7: -2}, 9).to_binary()),
    "sparsevec as text": ("sparsevec", Format.TEXT, b"{2:1.5,8:-2}/9"),
}


def sent_again(form: str, loaded: Any) -> bytes:
    """*loaded* in the form that it was loaded from."""
    if isinstance(loaded, pgvector.SparseVector):
        return loaded.to_binary()
    return HalfVector(loaded).to_binary() if form == "halfvec" else pgvector.Vector(loaded).to_binary()


@pytest.fixture(scope="module")
def knowing(newest: Server) -> Iterator[Connection]:
    with psycopg.connect(make_conninfo(newest.conninfo, dbname=newest.template)) as conn:
        add_adapters(conn)
        yield conn


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@settings(max_examples=60)
def test_damaged_bytes_are_a_vector_or_an_error(knowing: Connection, form: str, data: st.DataObject) -> None:
    name, format, whole = FORMS[form]
    info = knowing.adapters.types[name]
    loader = knowing.adapters.get_loader(info.oid, format)
    assert loader is not None
    given = data.draw(damaged(whole))
    try:
        loaded = loader(info.oid, knowing).load(given)
    except psycopg.DataError:
        return
    numbers = np.array(loaded.values() if isinstance(loaded, pgvector.SparseVector) else loaded)
    assert np.isfinite(numbers).all()
    if format == Format.BINARY:
        assert sent_again(form, loaded) == given
    else:
        # What this server reads as the same
        row = knowing.execute(f"SELECT %s::text::{name}", [given.decode()], binary=True).fetchone()
        assert row is not None
        assert sent_again(name, row[0]) == sent_again(name, loaded)


@pytest.mark.parametrize("form", FORMS)
def test_whole_bytes_are_a_vector(knowing: Connection, form: str) -> None:
    name, format, whole = FORMS[form]
    info = knowing.adapters.types[name]
    loader = knowing.adapters.get_loader(info.oid, format)
    assert loader is not None
    loaded = loader(info.oid, knowing).load(whole)
    assert (loaded.to_list() if isinstance(loaded, pgvector.SparseVector) else loaded.tolist())[1] in (-2.0, 1.5)


@pytest.mark.parametrize(
    ("form", "given"),
    [
        ("vector", b""),
        ("vector", b"\0\1\0"),
        ("vector", b"\0\0\0\0"),
        ("vector", b"\0\1\0\0" + bytes(3)),
        ("vector", b"\0\1\0\0" + bytes(8)),
        ("vector", b"\0\1\0\1" + bytes(4)),
        ("vector", b"\0\1\0\0\x7f\xc0\0\0"),
        ("vector", b"\0\1\0\0\x7f\x80\0\0"),
        ("vector", b"\x3e\x81\0\0" + bytes(4 * 16_001)),
        ("halfvec", b"\0\1\0\0\x7e\0"),
        ("halfvec", b"\0\1\0\0\x7c\0"),
        ("halfvec", b"\0\2\0\0" + bytes(2)),
        ("vector as text", b""),
        ("vector as text", b"[]"),
        ("vector as text", b"[1,2"),
        ("vector as text", b"(1,2)"),
        ("vector as text", b"[1,,2]"),
        ("vector as text", b"[1,2e]"),
        ("vector as text", b"[1,NaN]"),
        ("vector as text", b"[1,1e999]"),
        ("vector as text", b"[1 2]"),
        ("sparsevec", b"\0\0\0\1\0\0\0\1\0\0\0\0" + b"\0\0\0\1" + b"\x3f\x80\0\0"),
        ("sparsevec as text", b"{5:1}/4"),
        ("sparsevec as text", b"{2:1,1:1}/4"),
    ],
)
def test_bytes_that_are_no_vector_are_an_error(knowing: Connection, form: str, given: bytes) -> None:
    name, format, _ = FORMS[form]
    info = knowing.adapters.types[name]
    loader = knowing.adapters.get_loader(info.oid, format)
    assert loader is not None
    with pytest.raises(psycopg.DataError, match=r"^the server sent [\d,]+ (bytes|characters) that are no "):
        loader(info.oid, knowing).load(given)
