"""kimera-sql load and unload: tables as files, and back."""

from __future__ import annotations

import io
import json
import pickle
import resource
import sqlite3
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
import pytest
from commands import run
from fix_servers import NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import seconds
from strategies import damaged, unit
from test_arrow import TABLES, VECTORS, columns, empty, state, without_pyarrow

from kimera_sql import add_adapters, embeddings, geoids, metrics, migrate, portals, sqlite, transitions
from kimera_sql.errors import FileError, InvalidValue, VectorError
from kimera_sql.files import Loaded, load, unload
from kimera_sql.sql import Connection
from kimera_sql.sql.arrow import pyarrow

pa = pyarrow()
parquet = pyarrow("pyarrow.parquet")

NAMED: Final = {
    geoids: "geoid_states",
    embeddings: "semantic_embeddings",
    transitions: "cognitive_transitions",
    portals: "portal_configurations",
    metrics: "system_metrics",
}
FORMATS: Final = [
    (module, suffix)
    for module in NAMED
    for suffix in (".parquet", ".jsonl", *([".npy", ".npz"] if module in (geoids, embeddings) else []))
]
SUFFIXES: Final = (".parquet", ".jsonl", ".npy", ".npz")

# A subnormal number and zeros of both signs survive beside others.
ODD: Final = np.array([1e-45, -0.0, 0.0, -1e-40, 7.038531e-26, *[0.25] * 1019], np.float32)


@pytest.fixture(params=[NAMES[0], "sqlite"])
def conn(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """An autocommit connection to a database of the test's own."""
    if request.param == "sqlite":
        with closing(sqlite.connect(":memory:")) as file:
            file.isolation_level = None
            migrate(file)
            yield file
    else:
        server = request.getfixturevalue("newest")
        conninfo = server.create(template=server.template)
        with psycopg.connect(conninfo, autocommit=True) as conn:
            add_adapters(conn)
            yield conn
        server.drop(conninfo)


@pytest.mark.parametrize(("module", "suffix"), FORMATS, ids=lambda value: getattr(value, "__name__", value))
@settings(max_examples=8)
@given(data=st.data())
def test_what_was_unloaded_and_loaded_again_is_what_there_was(
    conn: Connection, tmp_path: Path, module: ModuleType, suffix: str, data: st.DataObject
) -> None:
    for other in reversed(TABLES):
        empty(conn, other)
    if module is transitions:
        geoids.insert(conn, state(1, id=UUID(int=7)))
    items = data.draw(st.lists(TABLES[module], max_size=4, unique_by=lambda item: id(item)))
    module.insert_many(conn, items)
    if module is geoids:
        geoids.insert(conn, state(0, state_vector=ODD, coherence_factor=-0.0, energy_level=5e-324))
    before = list(module.stream(conn))
    path = tmp_path / f"rows{suffix}"
    assert unload(conn, NAMED[module], path, force=True).rows == len(before)
    empty(conn, module)
    assert load(conn, NAMED[module], path) == Loaded(NAMED[module], len(before), 0)
    after = list(module.stream(conn))
    assert after == before
    assert [exact(row) for row in after] == [exact(row) for row in before]


def exact(row: Any) -> list[Any]:
    """A row's values; vectors are bytes, and numbers text, because -0.0 equals 0.0."""
    values = (getattr(row, name) for name in type(row).__match_args__)
    return [value.tobytes() if isinstance(value, np.ndarray) else repr(value) for value in values]


@pytest.fixture
def filled(conn: Connection) -> Connection:
    geoids.insert_many(conn, [state(number, id=UUID(int=number), timestamp=seconds(number)) for number in range(5)])
    return conn


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_are_the_owners_alone_and_nothing_else_is_left(filled: Connection, tmp_path: Path, suffix: str) -> None:
    found = unload(filled, "geoid_states", tmp_path / f"s{suffix}")
    assert sorted(found.files) == sorted(tmp_path.iterdir())
    assert {stat.S_IMODE(file.stat().st_mode) for file in found.files} == {0o600}


def test_what_other_programs_read(filled: Connection, tmp_path: Path) -> None:
    before = list(geoids.stream(filled))
    for suffix in SUFFIXES:
        unload(filled, "geoid_states", tmp_path / f"{suffix[1:]}{suffix}")
    vectors = np.array([row.state_vector for row in before])
    assert np.array_equal(np.load(tmp_path / "npy.npy"), vectors)
    assert np.array_equal(np.load(tmp_path / "npz.npz")["state_vector"], vectors)
    table = parquet.read_table(tmp_path / "parquet.parquet")
    assert table.column("id").to_pylist() == [str(row.id) for row in before]
    lines = [json.loads(line) for line in (tmp_path / "jsonl.jsonl").read_text().splitlines()]
    assert lines[1]["timestamp"] == "2024-05-17T12:30:01+00:00"
    assert lines[1].keys() == set(table.column_names)
    others = [json.loads(line) for line in (tmp_path / "npy.jsonl").read_text().splitlines()]
    assert others == [{name: value for name, value in line.items() if name != "state_vector"} for line in lines]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_there_is_kept_unless_force(filled: Connection, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"s{suffix}"
    path.with_suffix(".jsonl" if suffix.startswith(".np") else suffix).write_text("mine")
    with pytest.raises(FileError, match="there is such a file already; --force overwrites it"):
        unload(filled, "geoid_states", path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]
    unload(filled, "geoid_states", path, force=True)
    empty(filled, geoids)
    assert load(filled, "geoid_states", path).rows == 5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_nothing(filled: Connection, tmp_path: Path, suffix: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        with pytest.raises(FileError, match=r"s\.\w+: File too large; nothing was written$"):
            unload(filled, "geoid_states", tmp_path / f"s{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    assert geoids.count(filled) == 5


def test_a_folder_that_is_missing_is_named(filled: Connection, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"/none/s\.jsonl: there is no such folder$"):
        unload(filled, "geoid_states", tmp_path / "none" / "s.jsonl")


def test_other_suffixes_and_tables_are_refused(conn: Connection, tmp_path: Path) -> None:
    for function in (load, unload):
        with pytest.raises(InvalidValue, match=r"^path: .*s\.csv has none of the suffixes .parquet, .jsonl, .npy and"):
            function(conn, "geoid_states", tmp_path / "s.csv")
        with pytest.raises(InvalidValue, match=r"^path: .*s\.npy would hold vectors, which system_metrics has not"):
            function(conn, "system_metrics", tmp_path / "s.npy")
        with pytest.raises(InvalidValue, match=r"^table: expected one of geoid_states, .*, got 'states'$"):
            function(conn, "states", tmp_path / "s.npy")


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


GOOD: Final = {
    "entropy": 1.0,
    "coherence_factor": 0.0,
    "energy_level": 1.0,
}
WHOLE: Final = {**GOOD, "state_vector": VECTORS[0].tolist()}

BAD_ROWS: Final[dict[str, tuple[Any, str]]] = {
    "no JSON": (b"{", "not JSON: "),
    "an empty line": (b"", "not JSON: "),
    "no UTF-8": (b'{"a": "\xff"}', "not JSON: "),
    "an array": ([1], "expected a JSON object, got list"),
    "deep": (b"[" * 99999, "not JSON: "),
    "a number beyond": ({**WHOLE, "entropy": 10**400}, "entropy: a number beyond double precision"),
    "a missing column": ({**WHOLE, "entropy": None}, "entropy: missing"),
    "an unknown column": ({**WHOLE, "mood": 1}, "mood: there is no such field; the fields are id, timestamp, "),
    "another dimension": ({**WHOLE, "state_vector": [1.0] * 1023}, r"state_vector: expected shape \(1024,\), got"),
    "text in a vector": ({**WHOLE, "state_vector": ["1"] * 1024}, "state_vector: "),
    "NaN": ({**WHOLE, "state_vector": [float("nan")] * 1024}, "state_vector: NaN at index 0"),
    "a bad id": ({**WHOLE, "id": "1"}, "id: '1' is not a UUID"),
    "a bad time": ({**WHOLE, "timestamp": "yesterday"}, "timestamp: "),
    "a time without zone": ({**WHOLE, "timestamp": "2024-01-01T00:00:00"}, "timestamp: .*has no time zone"),
    "bad metadata": ({**WHOLE, "metadata": [1]}, "metadata: expected a dict, got list"),
    "bad tags": ({**WHOLE, "tags": "a"}, "tags: expected a sequence of str, got str"),
    "NUL": ({**WHOLE, "creation_context": "\0"}, "creation_context: .*NUL"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_named_by_number_and_nothing_is_loaded(conn: Connection, tmp_path: Path, what: str) -> None:
    row, message = BAD_ROWS[what]
    path = tmp_path / "s.jsonl"
    path.write_bytes(lines(WHOLE, WHOLE, row, WHOLE))
    with pytest.raises(InvalidValue, match=f"^item 2: {message}"):
        load(conn, "geoid_states", path)
    assert geoids.count(conn) == 0


def test_bad_rows_can_be_set_aside(conn: Connection, tmp_path: Path) -> None:
    path, aside = tmp_path / "s.jsonl", tmp_path / "bad.jsonl"
    bad = [row for row, _ in BAD_ROWS.values()]
    path.write_bytes(lines(bad[0], WHOLE, *bad[1:], WHOLE))
    assert load(conn, "geoid_states", path, set_aside=aside) == Loaded("geoid_states", 2, len(bad))
    assert geoids.count(conn) == 2
    told = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [one["item"] for one in told] == [0, *range(2, len(bad) + 1)]
    assert told[0]["row"] == "{"
    assert told[list(BAD_ROWS).index("an unknown column")]["row"] == {**WHOLE, "mood": 1}
    with pytest.raises(FileError, match="there is such a file already"):
        load(conn, "geoid_states", path, set_aside=aside)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_of_every_format_can_be_set_aside(filled: Connection, tmp_path: Path, suffix: str) -> None:
    path, aside = tmp_path / f"s{suffix}", tmp_path / "bad.jsonl"
    if suffix == ".parquet":
        parquet.write_table(pa.table({**columns(), "entropy": [0.0, float("nan"), 1.0]}), path)
    elif suffix == ".jsonl":
        path.write_bytes(lines(WHOLE, {**WHOLE, "entropy": float("nan")}, WHOLE))
    else:
        np.save(path, VECTORS) if suffix == ".npy" else np.savez(path, VECTORS)
        path.with_suffix(".jsonl").write_bytes(lines(GOOD, {**GOOD, "entropy": float("nan")}, GOOD))
    assert load(filled, "geoid_states", path, set_aside=aside) == Loaded("geoid_states", 2, 1)
    (told,) = map(json.loads, aside.read_text().splitlines())
    assert (told["item"], told["error"]) == (1, "entropy: nan is not a finite number")
    assert "nan" in told["row"].lower()
    assert geoids.count(filled) == 7


def test_what_the_server_refuses_ends_the_load(filled: Connection, tmp_path: Path) -> None:
    path, aside = tmp_path / "s.jsonl", tmp_path / "bad.jsonl"
    path.write_bytes(lines(WHOLE, {**WHOLE, "id": str(UUID(int=3))}))
    with pytest.raises(Exception, match=r"(?i)unique") as caught:
        load(filled, "geoid_states", path, set_aside=aside)
    refused = "item 1 (counted from 0) was refused; nothing was written"
    assert caught.value.__notes__ == [refused]
    path.write_bytes(lines(WHOLE, {}, {**WHOLE, "id": str(UUID(int=3))}))
    with pytest.raises(Exception, match=r"(?i)unique") as caught:
        load(filled, "geoid_states", path, set_aside=aside)
    assert caught.value.__notes__ == [refused, "rows that were set aside are not counted there"]
    assert geoids.count(filled) == 5
    assert not aside.exists()


def test_metrics_have_ids_all_or_none(conn: Connection, tmp_path: Path) -> None:
    row = {"metric_name": "m", "metric_value": 1, "component": "c"}
    path = tmp_path / "m.jsonl"
    path.write_bytes(lines(row, row))
    assert load(conn, "system_metrics", path).rows == 2
    path.write_bytes(lines(row, {**row, "id": 77, "timestamp": "2024-01-01T00:00:00Z"}))
    with pytest.raises(InvalidValue, match=r"^item 1: id: either all rows have one or none has$"):
        load(conn, "system_metrics", path)
    path.write_bytes(lines({**row, "id": "77", "timestamp": "2024-01-01T00:00:00Z"}))
    with pytest.raises(InvalidValue, match=r"^item 0: id: expected an integer, got str$"):
        load(conn, "system_metrics", path)
    assert metrics.count(conn) == 2


ARRAYS: Final[dict[str, Callable[[], Any]]] = {
    "float16": lambda: VECTORS.astype(np.float16),
    "float64": lambda: VECTORS.astype(np.float64),
    "big-endian": lambda: VECTORS.astype(">f4"),
    "integers": lambda: np.arange(1, 3 * 1024 + 1).reshape(3, 1024),
}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".npz compressed"])
@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_of_other_numbers_are_taken(conn: Connection, tmp_path: Path, what: str, suffix: str) -> None:
    array = ARRAYS[what]()
    path = tmp_path / f"s{suffix.split()[0]}"
    save = {".npy": np.save, ".npz": np.savez, ".npz compressed": np.savez_compressed}[suffix]
    save(path, array)
    path.with_suffix(".jsonl").write_bytes(lines(*[{**GOOD, "entropy": number} for number in range(3)]))
    assert load(conn, "geoid_states", path).rows == 3
    rows = sorted(geoids.stream(conn), key=lambda row: row.entropy)
    assert np.array_equal([row.state_vector for row in rows], array.astype(np.float32))


class Evil:
    def __reduce__(self) -> Any:
        return print, ("a pickle was run",)


def saved(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


BAD_ARRAYS: Final[dict[str, tuple[str, bytes, str]]] = {
    "no array": (".npy", b"PK\3\4", "magic string"),
    "nothing": (".npy", b"", "EOF"),
    "no zip": (".npz", b"\x93NUMPY", "not a zip file"),
    "objects": (".npy", saved(np.array([Evil()] * 3)), r"expected an array of numbers with two dimensions, got object"),
    "a pickle": (".npy", pickle.dumps(Evil()), "magic string"),
    "one dimension": (".npy", saved(VECTORS[0]), r"two dimensions, got float32 with shape \(1024,\)"),
    "columns first": (".npy", saved(np.asfortranarray(VECTORS)), "ascontiguousarray"),
    "one too few": (".npy", saved(VECTORS[:2]), "has 2 vectors and s.jsonl 3 lines"),
    "cut off": (".npy", saved(VECTORS)[:-1], "it ends after vector 2; nothing was loaded"),
}


@pytest.mark.parametrize("what", BAD_ARRAYS)
def test_a_file_that_is_no_array_is_refused(
    conn: Connection, tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    suffix, content, message = BAD_ARRAYS[what]
    path = tmp_path / f"s{suffix}"
    path.write_bytes(content)
    path.with_suffix(".jsonl").write_bytes(lines(GOOD, GOOD, GOOD))
    with pytest.raises(FileError, match=f"{path}.*{message}"):
        load(conn, "geoid_states", path)
    assert capfd.readouterr().out == ""
    assert geoids.count(conn) == 0


def test_a_damaged_archive_is_refused(conn: Connection, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, VECTORS)
    data = bytearray(path.read_bytes())
    data[6000] ^= 1
    path.write_bytes(data)
    (tmp_path / "s.jsonl").write_bytes(lines(GOOD, GOOD, GOOD))
    with pytest.raises(FileError, match="CRC"):
        load(conn, "geoid_states", path)
    assert geoids.count(conn) == 0


HEADS: Final = {
    "a bracket that is left open": (".npy", b"'shape'", 0, b"("),
    "a way to compress that nobody knows": (".npz", b"PK\1\2", 10, b"\x63"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_damaged_head_is_told(tmp_path: Path, name: str) -> None:
    suffix, field, offset, broken = HEADS[name]
    path = tmp_path / f"s{suffix}"
    (np.save if suffix == ".npy" else np.savez)(path, VECTORS)
    (tmp_path / "s.jsonl").write_bytes(lines(GOOD, GOOD, GOOD))
    content = bytearray(path.read_bytes())
    content[content.index(field) + offset] = broken[0]
    path.write_bytes(content)
    with closing(sqlite3.connect(":memory:")) as file:
        migrate(file)
        with pytest.raises(FileError, match=rf"s{suffix}: .+; nothing was loaded$"):
            load(file, "geoid_states", path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_file_is_loaded_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damaged") / f"s{suffix}"
    with closing(sqlite.connect(":memory:")) as file:
        migrate(file)
        geoids.insert_many(file, [state(n, id=UUID(int=n), timestamp=seconds(n)) for n in range(3)])
        file.commit()
        unload(file, "geoid_states", path)
        file.execute("DELETE FROM geoid_states")
        file.commit()
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        try:
            loaded = load(file, "geoid_states", path).rows
        except (FileError, InvalidValue, sqlite3.IntegrityError):
            loaded = 0
        assert geoids.count(file) == loaded


def test_of_several_arrays_the_one_of_the_columns_name_is_taken(conn: Connection, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    (tmp_path / "s.jsonl").write_bytes(lines(GOOD, GOOD, GOOD))
    np.savez(path, ids=np.arange(3), state_vector=VECTORS)
    assert load(conn, "geoid_states", path).rows == 3
    np.savez(path, ids=np.arange(3), vectors=VECTORS)
    with pytest.raises(FileError, match=r"it has no array state_vector, but ids\.npy, vectors\.npy"):
        load(conn, "geoid_states", path)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(FileError, match="but nothing"):
        load(conn, "geoid_states", path)


def test_vectors_alone_are_no_rows(conn: Connection, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", VECTORS)
    with pytest.raises(FileError, match=r"s\.npy: there is no s\.jsonl beside it, which has the columns that are no"):
        load(conn, "geoid_states", tmp_path / "s.npy")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_missing_is_named(conn: Connection, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FileError, match=r"/s\.\w+: No such file or directory; nothing was loaded$"):
        load(conn, "geoid_states", tmp_path / f"s{suffix}")


def test_a_file_that_is_no_parquet_is_refused(conn: Connection, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    for content in (b"", b"{}\n" * 100):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"s\.parquet: .*(magic bytes|0 bytes).*; nothing was loaded$"):
            load(conn, "geoid_states", path)


def test_a_damaged_parquet_leaves_nothing(conn: Connection, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    parquet.write_table(pa.table(columns(3000)), path, row_group_size=1000, compression="zstd")
    data = bytearray(path.read_bytes())
    middle = len(data) * 2 // 3
    data[middle : middle + 5000] = bytes(5000)
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"s\.parquet: .*; nothing was loaded$") as caught:
        load(conn, "geoid_states", path)
    assert "\n" not in str(caught.value)
    assert geoids.count(conn) == 0


@pytest.mark.parametrize(
    ("change", "message"), [({"entropy": None}, "lacks the column 'entropy'"), ({"mood": [1, 2, 3]}, "'mood' is none")]
)
def test_columns_of_a_parquet_are_checked(conn: Connection, tmp_path: Path, change: Any, message: str) -> None:
    data = {name: column for name, column in {**columns(), **change}.items() if column is not None}
    parquet.write_table(pa.table(data), tmp_path / "s.parquet")
    with pytest.raises(InvalidValue, match=message):
        load(conn, "geoid_states", tmp_path / "s.parquet")


@pytest.mark.slow
def test_a_wrong_dimension_in_a_late_row(conn: Connection, tmp_path: Path) -> None:
    vectors = pa.array([unit(0)] * 5_000)
    kind = pa.list_(pa.float32())
    with parquet.ParquetWriter(
        tmp_path / "s.parquet",
        pa.schema([(name, pa.float64()) for name in GOOD]).append(pa.field("state_vector", kind)),
    ) as writer:
        for number in range(15):
            column = pa.array([*vectors.to_pylist()[:-1], [1.0] * 1023], kind) if number == 13 else vectors.cast(kind)
            writer.write_table(pa.table({**{name: [1.0] * 5_000 for name in GOOD}, "state_vector": column}))
    with pytest.raises(VectorError, match=r"^item 69999: state_vector: expected shape \(1024,\), got \(1023,\)$"):
        load(conn, "geoid_states", tmp_path / "s.parquet")
    assert geoids.count(conn) == 0


def test_without_pyarrow_parquet_is_refused_and_the_rest_works(tmp_path: Path) -> None:
    said = without_pyarrow(
        f"""
from pathlib import Path
from kimera_sql import NotInstalled, geoids, migrate, sqlite
from kimera_sql.files import load, unload
with sqlite.connect(":memory:") as conn:
    conn.isolation_level = None
    migrate(conn)
    for suffix in ("jsonl", "npz", "parquet"):
        for function in (unload, load):
            try:
                print(function(conn, "geoid_states", Path({str(tmp_path)!r}) / f"s{{suffix}}.{{suffix}}").rows)
            except NotInstalled as error:
                print(error)
"""
    )
    *works, one, other = said.splitlines()
    assert works == ["0"] * 4
    assert one == other
    assert one.endswith("pip install 'kimera-sql[arrow]'")
    assert not list(tmp_path.glob("*parquet*"))


@pytest.mark.ends
@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_lost_connection_leaves_nothing(
    database: str, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"s{suffix}"
    with psycopg.connect(database, autocommit=True) as other:
        add_adapters(other)
        geoids.insert_many(other, [state(number % 7) for number in range(1500)])

        def cut(rows: Iterator[Any], total: int, label: str) -> Iterator[Any]:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            yield from rows

        for function in (unload, load):
            if function is load:
                monkeypatch.undo()
                unload(other, "geoid_states", path)
                empty(other, geoids)
            before = sorted(tmp_path.iterdir())
            with psycopg.connect(database, autocommit=True) as conn:
                add_adapters(conn)
                pid = conn.info.backend_pid
                monkeypatch.setattr("kimera_sql.files.progress", cut)
                with pytest.raises(psycopg.OperationalError):
                    function(conn, "geoid_states", path)
            assert sorted(tmp_path.iterdir()) == before
        assert geoids.count(other) == 0


@pytest.mark.ends
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_role_without_rights_gets_the_servers_error(database: str, tmp_path: Path, suffix: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        geoids.insert_many(conn, [state(number) for number in range(3)])
        unload(conn, "geoid_states", tmp_path / f"s{suffix}")
        before = sorted(tmp_path.iterdir())
        conn.execute("SET ROLE pg_read_all_data")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            load(conn, "geoid_states", tmp_path / f"s{suffix}")
        conn.execute("SET ROLE pg_monitor")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            unload(conn, "geoid_states", tmp_path / f"other{suffix}")
        assert sorted(tmp_path.iterdir()) == before
        conn.execute("RESET ROLE")
        assert geoids.count(conn) == 3


def test_the_commands(database: str, tmp_path: Path) -> None:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        geoids.insert_many(conn, [state(number) for number in range(5)])
    path = str(tmp_path / "s.parquet")
    ran = run("unload", "geoid_states", path, DATABASE_URL=database)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"5 rows of geoid_states written into {path}\n", "")
    ran = run("unload", "geoid_states", path, DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (
        1,
        f"kimera-sql: {path}: there is such a file already; --force overwrites it\n",
    )
    ran = run("load", "geoid_states", path, DATABASE_URL=database)
    assert ran.returncode == 1
    assert "item 0 (counted from 0) was refused; nothing was written" in ran.stderr
    rows = tmp_path / "new.jsonl"
    rows.write_bytes(lines(WHOLE, {}, WHOLE))
    ran = run("load", "geoid_states", str(rows), DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (1, "kimera-sql: item 1: state_vector: missing\n")
    aside = tmp_path / "bad.jsonl"
    ran = run("load", "geoid_states", str(rows), "--set-aside", str(aside), DATABASE_URL=database)
    assert (ran.returncode, ran.stdout) == (0, "2 rows loaded into geoid_states\n")
    assert ran.stderr == f"kimera-sql: 1 row was set aside in {aside}\n"
    ran = run("load", "geoid_states", str(tmp_path / "s.csv"), DATABASE_URL=database)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"kimera-sql: FILE: {tmp_path}/s.csv has none of the suffixes")
    with psycopg.connect(database) as conn:
        assert conn.execute("SELECT count(*) FROM geoid_states").fetchone() == (7,)
