"""Values that look right and would be stored wrongly, or not be known by name in an error."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import given
from numpy.lib.stride_tricks import as_strided
from strategies import json_objects, unit

from kimera_sql import InvalidValue, VectorError, checks, geoids
from kimera_sql.model.embeddings import depth
from kimera_sql.sql import Connection
from kimera_sql.vectors import as_vector


@pytest.mark.parametrize(
    "value", [{1: "a", "1": "b"}, {"a": {None: 1}}, {"a": [{True: 1}]}, {"a": ({2.5: 1},)}, {"a": {("b",): 1}}]
)
def test_a_key_of_json_that_is_no_str_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^metadata: a key of a JSON object is a str, got "):
        checks.json_object("metadata", value)


@given(json_objects)
def test_the_text_of_a_json_object_is_what_the_standard_library_makes_of_it(value: dict[str, Any]) -> None:
    checked = checks.json_object("metadata", value)
    assert checked == value
    assert checked.text == json.dumps(value)


@pytest.mark.parametrize(
    "value", [{"a": float("nan")}, {"a": [float("inf")]}, {"a": {1}}, {"a": "\ud800"}, {"\udfff": 1}]
)
def test_what_json_lacks_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^metadata: not JSON: "):
        checks.json_object("metadata", value)


def within_itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["a"] = [value]
    return value


def deep() -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit()):
        value = {"a": value}
    return value


def test_the_k_of_hybrid_is_named_as_it_was_given() -> None:
    with pytest.raises(InvalidValue, match=r"^k: 429496730 is not within 1 to 429496729$"):
        depth(429496730)


@pytest.mark.parametrize("value", [within_itself(), deep()], ids=["within itself", "deep"])
def test_json_without_an_end_is_refused(conn: Connection, value: Any) -> None:
    new = geoids.NewGeoid(state_vector=unit(1), entropy=0, coherence_factor=0, energy_level=0, metadata=value)
    with pytest.raises(InvalidValue, match=r"^metadata: not JSON: nested too deeply, or within itself$"):
        geoids.insert(conn, new)
    with pytest.raises(InvalidValue, match=r"^item 0: metadata: not JSON: nested too deeply, or within itself$"):
        geoids.insert_many(conn, [new])


def nested(levels: int) -> dict[str, Any]:
    value: Any = "the innermost"
    for level in range(levels - 1):
        value = [value] if level % 2 else {"a": value}
    return {"a": value}


@pytest.mark.ends
def test_json_has_at_most_100_levels(conn: Connection) -> None:
    new = geoids.NewGeoid(state_vector=unit(1), entropy=0, coherence_factor=0, energy_level=0, metadata=nested(100))
    stored = geoids.insert(conn, new)
    assert geoids.get(conn, stored.id).metadata == nested(100)
    assert geoids.find(conn, metadata=nested(100)) == geoids.latest(conn)
    with pytest.raises(InvalidValue, match=r"^changes: not JSON: nested too deeply, or within itself$"):
        geoids.update_metadata(conn, stored.id, nested(101))


@pytest.mark.ends
def test_deeper_json_of_another_program_is_an_error_where_it_is_read(pg_conn: psycopg.Connection) -> None:
    depth = 2 * sys.getrecursionlimit()
    stored = geoids.insert(
        pg_conn, geoids.NewGeoid(state_vector=unit(1), entropy=0, coherence_factor=0, energy_level=0)
    )
    pg_conn.execute("SET LOCAL max_stack_depth TO '6MB'")
    pg_conn.execute(
        "UPDATE geoid_states SET metadata = jsonb_build_object('a', %s::text::jsonb)", ["[" * depth + "]" * depth]
    )
    with pytest.raises(psycopg.DataError, match=r"^the server sent JSON that Python cannot read: "):
        geoids.get(pg_conn, stored.id)


def test_a_moment_that_is_none_is_named() -> None:
    from datetime import datetime

    class NaT(datetime):
        """As pandas has it: a datetime that equals nothing, itself included."""

        def __ne__(self, other: object) -> bool:
            return True

        __hash__ = datetime.__hash__

    with pytest.raises(InvalidValue, match=r"^timestamp: .* is no moment; give None for none$"):
        checks.moment("timestamp", NaT(2024, 1, 1))


def frozen(array: Any) -> Any:
    array.flags.writeable = False
    return array


def test_a_read_only_view_of_what_can_change_is_copied() -> None:
    whole = np.ones(1024, np.float32)
    taken = as_vector(frozen(whole[:]))
    whole[0] = 7
    assert taken[0] == 1


@pytest.mark.parametrize(
    "array",
    [
        frozen(np.asarray(np.random.default_rng(0).standard_normal((1024, 3)), np.float32)[:, 1]),
        frozen(np.broadcast_to(np.float32(1.5), (1024,))),
        frozen(as_strided(np.arange(1, 2049, dtype=np.float32), (1024,), (8,))),
    ],
    ids=["a column", "broadcast", "strided"],
)
def test_arrays_in_pieces_are_stored_whole(conn: Connection, array: Any) -> None:
    stored = geoids.insert(conn, geoids.NewGeoid(state_vector=array, entropy=0, coherence_factor=0, energy_level=0))
    assert geoids.get(conn, stored.id).state_vector.tolist() == array.tolist()


def test_an_array_that_nobody_can_change_is_taken_as_it_is() -> None:
    vector = as_vector(unit(1))
    assert as_vector(vector) is vector


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.ones(3, complex), "expected real numbers, got dtype complex128"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "expected real numbers, got a masked array"),
        (np.array(["2024-01-01"], "datetime64[D]"), r"expected real numbers, got dtype datetime64\[D\]"),
        (np.ones(16_001), "16,001 dimensions; pgvector's VECTOR has at most 16,000"),
    ],
    ids=["complex", "masked", "datetime64", "long"],
)
@pytest.mark.parametrize("placeholder", ["%b", "%t"])
def test_an_array_that_would_lose_a_part_is_not_sent(
    pg_conn: psycopg.Connection, placeholder: str, array: Any, fault: str
) -> None:
    with pytest.raises(VectorError, match=fault):
        pg_conn.execute(f"SELECT {placeholder}::vector".encode(), [array])


def test_tags_with_null_of_another_writer_can_be_added_to(pg_conn: psycopg.Connection) -> None:
    stored = geoids.insert(
        pg_conn, geoids.NewGeoid(state_vector=unit(1), entropy=0, coherence_factor=0, energy_level=0)
    )
    pg_conn.execute("UPDATE geoid_states SET tags = '{a,NULL}'")
    assert list(geoids.add_tags(pg_conn, stored.id, "b", "a")) == ["a", None, "b"]
