"""What is SQLite's own: its file, its pool, its locks, the fallback to it, and what it lacks."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from psycopg_pool import PoolClosed, PoolTimeout
from strategies import unit

from kimera_sql import (
    ConnectionFailed,
    FallbackWarning,
    Settings,
    SettingsError,
    SqlitePool,
    UnsupportedByServer,
    add_adapters,
    embeddings,
    geoids,
    metrics,
    migrate,
    open_pool,
    sqlite,
    strategies,
)
from kimera_sql.search import indexes
from kimera_sql.vectors import Vector

STATE = geoids.NewGeoid(state_vector=unit(0), entropy=0, coherence_factor=0, energy_level=0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with SqlitePool(tmp_path / "kimera.db") as pool, pool.connection() as conn:
        migrate(conn)
    return tmp_path / "kimera.db"


@pytest.fixture
def pool(path: Path) -> Iterator[SqlitePool]:
    with SqlitePool(path) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _warn_again() -> None:
    strategies.warn_of_fallback.cache_clear()


def add(path: Path, count: int) -> None:
    """Record *count* measurements, each in a transaction of its own that reads before it writes."""
    with SqlitePool(path) as pool:
        for _ in range(count):
            with pool.connection() as conn:
                metrics.count(conn)
                metrics.record(conn, "written", 1, component="test")


def test_the_pool_commits_on_success(pool: SqlitePool) -> None:
    with pool.connection() as conn:
        geoids.insert(conn, STATE)
    with pool.connection() as conn:
        assert geoids.count(conn) == 1


def test_the_pool_rolls_back_on_an_exception(pool: SqlitePool) -> None:
    def fail() -> None:
        with pool.connection() as conn:
            geoids.insert(conn, STATE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pool.connection() as conn:
        assert geoids.count(conn) == 0
        assert not conn.in_transaction


def test_the_pool_waits_no_longer_than_told(path: Path) -> None:
    with (
        SqlitePool(path, size=1, timeout=0.01) as pool,
        pool.connection(),
        pytest.raises(PoolTimeout, match="all 1 are in use"),
        pool.connection(),
    ):
        pass


def test_a_closed_pool_lends_nothing_and_closes_what_comes_back(path: Path) -> None:
    pool = SqlitePool(path)
    with pool.connection() as conn:
        pool.close()
        assert geoids.count(conn) == 0
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        conn.execute("SELECT 1")
    with pytest.raises(PoolClosed), pool.connection():
        pass


def test_many_threads_share_a_pool_and_lose_nothing(path: Path) -> None:
    shared = SqlitePool(path, size=4)

    def work() -> None:
        for _ in range(20):
            with shared.connection() as conn:
                metrics.record(conn, "written", 1, component="test")

    with shared:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with shared.connection() as conn:
            assert metrics.count(conn) == 160


def test_processes_that_write_at_once_wait_for_each_other(path: Path, pool: SqlitePool) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=add, args=(path, 100)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with pool.connection() as conn:
        assert metrics.count(conn) == 300


def test_a_killed_writer_leaves_nothing_half_done(path: Path, pool: SqlitePool) -> None:
    context = multiprocessing.get_context("spawn")
    began = context.Event()
    writer = context.Process(target=hold, args=(path, began))
    writer.start()
    assert began.wait(30)
    writer.kill()
    writer.join()
    with pool.connection() as conn:
        assert geoids.count(conn) == 0
        assert geoids.insert(conn, STATE)


def hold(path: Path, began: threading.Event) -> None:
    """Write 500 states, tell so, and wait with the transaction open."""
    with SqlitePool(path) as pool, pool.connection() as conn:
        geoids.insert_many(conn, [STATE] * 500)
        began.set()
        threading.Event().wait()


def test_get_or_create_embeds_once_when_two_threads_ask_at_once(pool: SqlitePool) -> None:
    calls: list[str] = []
    both = threading.Barrier(2)

    def embed(text: str) -> Vector:
        calls.append(text)
        return unit(1)

    def work() -> None:
        with pool.connection() as conn:
            both.wait()
            embeddings.get_or_create(conn, "once", embed)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == ["once"]


def test_a_transaction_of_the_caller_stays_open(pool: SqlitePool) -> None:
    with pool.connection() as conn:
        geoids.insert_many(conn, [STATE])
        assert conn.in_transaction
        conn.rollback()
        assert geoids.count(conn) == 0


def test_a_failed_insert_many_keeps_what_the_transaction_did(pool: SqlitePool) -> None:
    with pool.connection() as conn:
        first = geoids.insert(conn, STATE)
        with pytest.raises(sqlite3.IntegrityError) as caught:
            geoids.insert_many(conn, [STATE, replace(STATE, id=first.id)])
        assert caught.value.__notes__ == ["item 1 (counted from 0) was refused; nothing was written"]
        assert geoids.count(conn) == 1


def test_a_connection_of_the_callers_own_works(path: Path) -> None:
    conn = sqlite3.connect(path, isolation_level=None)
    conn.row_factory = sqlite3.Row
    add_adapters(conn)
    stored = geoids.insert(conn, STATE)
    assert geoids.insert_many(conn, [STATE]) == 1
    assert not conn.in_transaction
    assert geoids.get(conn, stored.id) == stored
    conn.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("state_vector", b"\0" * 4096),
        ("state_vector", b"\1" * 4092),
        ("metadata", "[]"),
        ("metadata", "{"),
        ("tags", "{}"),
        ("timestamp", "2026-11-23 12:00:00"),
        ("entropy", "much"),
        ("id", "7"),
    ],
)
def test_the_schema_refuses_what_cannot_be_read_back(pool: SqlitePool, column: str, value: object) -> None:
    with pool.connection() as conn:
        stored = geoids.insert(conn, STATE)
        with pytest.raises(sqlite3.IntegrityError):
            conn.execute(f"UPDATE geoid_states SET {column} = ? WHERE id = ?", (value, str(stored.id)))  # noqa: S608


def test_foreign_keys_wal_and_full_durability_are_on(pool: SqlitePool) -> None:
    with pool.connection() as conn:
        assert [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("foreign_keys", "journal_mode")] == [1, "wal"]
        assert conn.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_what_it_lacks_is_refused_with_what_to_use(pool: SqlitePool) -> None:
    with pool.connection() as conn, pytest.raises(UnsupportedByServer, match="use PostgreSQL"):
        indexes.build(conn, "geoid_states")


def test_with_nothing_configured_it_serves_and_warns_once(tmp_path: Path) -> None:
    settings = Settings(sqlite_path=tmp_path / "development.db")
    with pytest.warns(FallbackWarning, match=r"development\.db"), open_pool(settings=settings) as pool:
        assert isinstance(pool, SqlitePool)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_pool(settings=settings).close()


@pytest.mark.parametrize("fallback", ["unconfigured", "never"])
def test_a_server_that_is_down_is_no_reason_to_serve(tmp_path: Path, fallback: str) -> None:
    settings = Settings(
        credentials={"host": str(tmp_path)}, sqlite_path=tmp_path / "development.db", sqlite_fallback=fallback
    )
    with pytest.raises(ConnectionFailed) as failed:
        open_pool(settings=settings)
    assert ("SQLite: not tried (KIMERA_SQLITE_FALLBACK=unconfigured)" in str(failed.value)) == (fallback != "never")
    assert not (tmp_path / "development.db").exists()


def test_always_serves_where_a_server_is_down(tmp_path: Path) -> None:
    settings = Settings(
        credentials={"host": str(tmp_path)}, sqlite_path=tmp_path / "development.db", sqlite_fallback="always"
    )
    with pytest.warns(FallbackWarning), open_pool(settings=settings) as pool:
        assert isinstance(pool, SqlitePool)


def test_always_does_not_pass_over_a_refusal(newest_conninfo: dict[str, str], tmp_path: Path) -> None:
    settings = Settings(
        credentials={**newest_conninfo, "dbname": "there_is_none"},
        sqlite_path=tmp_path / "development.db",
        sqlite_fallback="always",
    )
    with pytest.raises(ConnectionFailed, match="answered and refused"):
        open_pool(settings=settings)
    assert not (tmp_path / "development.db").exists()


def test_never_refuses_where_nothing_is_configured(tmp_path: Path) -> None:
    settings = Settings(sqlite_path=tmp_path / "development.db", sqlite_fallback="never")
    with pytest.raises(ConnectionFailed, match="KIMERA_SQLITE_FALLBACK=never"):
        open_pool(settings=settings)
    assert not (tmp_path / "development.db").exists()


def test_the_environment_names_the_file_and_the_fallback(tmp_path: Path) -> None:
    settings = Settings.from_env({"KIMERA_SQLITE_PATH": str(tmp_path), "KIMERA_SQLITE_FALLBACK": "always"})
    assert (settings.sqlite_path, settings.sqlite_fallback) == (tmp_path, "always")
    with pytest.raises(SettingsError, match="sqlite_fallback must be one of unconfigured, always, never"):
        Settings.from_env({"KIMERA_SQLITE_FALLBACK": "sometimes"})


def test_a_file_that_cannot_be_is_a_failed_connection(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="SQLite"):
        SqlitePool(tmp_path / "missing" / "kimera.db")
    (tmp_path / "text.db").write_text("no database, but a text of some length " * 100)
    with pytest.raises(ConnectionFailed, match="not a database"):
        SqlitePool(tmp_path / "text.db")


def test_an_older_sqlite_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 36, 0))
    with pytest.raises(UnsupportedByServer, match=r"3\.37"):
        sqlite.connect(tmp_path / "kimera.db")


@pytest.fixture
def corrupt(path: Path) -> Iterator[tuple[sqlite3.Connection, UUID]]:
    """Three states, and the id of the second, which another program may write anything to."""
    with SqlitePool(path) as pool, pool.connection() as conn:
        kept = [geoids.insert(conn, replace(STATE, state_vector=unit(seed))) for seed in range(3)]
        conn.commit()
        conn.execute("PRAGMA ignore_check_constraints = ON")
        yield conn, kept[1].id
        conn.rollback()


BLOBS = {
    "NaN": np.full(1024, np.nan, "<f4").tobytes(),
    "one NaN": np.where(np.arange(1024) == 5, np.nan, 1).astype("<f4").tobytes(),
    "infinity": np.full(1024, np.inf, "<f4").tobytes(),
    "zero": bytes(4096),
    "too small": np.full(1024, 1e-30, "<f4").tobytes(),
    "too big": np.full(1024, 1e30, "<f4").tobytes(),
    "too short": bytes(4092),
    "no floats": bytes(4095),
    "empty": b"",
}


@pytest.mark.parametrize("name", BLOBS)
def test_a_vector_that_another_program_broke_is_found_by_no_search(
    corrupt: tuple[sqlite3.Connection, UUID], name: str
) -> None:
    conn, id = corrupt
    conn.execute("UPDATE geoid_states SET state_vector = ? WHERE id = ?", [BLOBS[name], str(id)])
    found = geoids.similar(conn, unit(2), k=3)
    assert len(found) == 2
    assert id not in {hit.geoid.id for hit in found}
    assert found[0].similarity == 1.0
    assert [hit.geoid.id for hit in geoids.within(conn, unit(2), -1)] == [hit.geoid.id for hit in found]
    (best,) = geoids.similar(conn, unit(2), k=1, with_vectors=True)
    assert best.similarity == 1.0
    assert [len(page) for page in geoids.similar_pages(conn, unit(2), 5)] == [2]


BROKEN = {
    "a vector with NaN": ("state_vector", BLOBS["one NaN"]),
    "a vector that is no floats": ("state_vector", BLOBS["no floats"]),
    "a timestamp": ("timestamp", "2026-13-41T99:00:00.000000Z"),
    "an id": ("id", "x" * 36),
    "JSON": ("metadata", "{"),
    "deep JSON": ("metadata", '{"a":' * 200_000 + "1" + "}" * 200_000),
    "tags": ("tags", "5"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_value_that_another_program_broke_is_an_error_where_it_is_read(
    corrupt: tuple[sqlite3.Connection, UUID], name: str
) -> None:
    conn, id = corrupt
    column, value = BROKEN[name]
    conn.execute(f"UPDATE geoid_states SET {column} = ? WHERE id = ?", [value, str(id)])  # noqa: S608
    with pytest.raises(sqlite3.DataError, match=r"^the stored value .{1,60} cannot be read: "):
        list(geoids.stream(conn))
    assert geoids.count(conn) == 3
