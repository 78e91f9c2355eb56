"""What each function keeps on SQLite, in every way in which Python's sqlite3 begins and ends transactions."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from fix_twins import Blocking
from reference import seconds
from strategies import unit

from kimera_sql import (
    InvalidValue,
    SqlitePool,
    UnsupportedByServer,
    WrongModel,
    add_adapters,
    aio,
    embeddings,
    geoids,
    metrics,
    migrations,
    portals,
    sql,
    transfer,
    transitions,
)
from kimera_sql.sql.arrow import pyarrow
from kimera_sql.tables import NAMES

MODULES: Final[dict[str, Any]] = {
    "geoids": geoids,
    "transitions": transitions,
    "embeddings": embeddings,
    "portals": portals,
    "metrics": metrics,
}

MODES: Final[dict[str, dict[str, Any]]] = {
    "deferred": {},
    "immediate": {"isolation_level": "IMMEDIATE"},
    "none": {"isolation_level": None},
}
if sys.version_info >= (3, 12):
    MODES.update({"autocommit": {"autocommit": True}, "transactional": {"autocommit": False}})

AUTOCOMMIT: Final = {"none", "autocommit"}
"""The modes in which a statement outside a transaction is its own."""

ONE, OTHER, NEW = UUID(int=1), UUID(int=2), UUID(int=3)
STATE = geoids.NewGeoid(state_vector=unit(0), entropy=0, coherence_factor=0, energy_level=0, tags=["a"], id=ONE)
STEP = transitions.NewTransition(
    source_id=ONE, target_id=ONE, transition_energy=1, conservation_error=0, transition_type="drift", id=ONE
)
TEXT = embeddings.NewEmbedding(text_content="a", embedding=unit(1), id=ONE)
PORTAL = portals.NewPortal(
    source_dimension=1, target_dimension=2, radius=1, energy_requirement=1, stability_factor=1, status="active", id=ONE
)
METRIC = metrics.NewMetric(metric_name="load", metric_value=1, component="test", timestamp=seconds(0))


def insert_arrow(module: Any, conn: Any) -> Any:
    """Insert a row as the first one, under an id of its own."""
    (batch,) = islice(module.stream_arrow(conn), 1)
    columns = {name: batch.column(name).slice(0, 1) for name in batch.schema.names}
    (id,) = columns["id"].to_pylist()
    columns["id"] = pyarrow().array([str(NEW) if isinstance(id, str) else 7])
    return module.insert_arrow(conn, pyarrow().table(columns))


WRITERS: Final[dict[str, Callable[[Any], Any]]] = {
    "geoids.insert": lambda conn: geoids.insert(conn, replace(STATE, id=NEW)),
    "geoids.insert_many": lambda conn: geoids.insert_many(conn, [replace(STATE, id=None)] * 3),
    "geoids.delete": lambda conn: geoids.delete(conn, OTHER),
    "geoids.delete_where": lambda conn: geoids.delete_where(conn, tags_any=["a"], transitions="delete", batch=1),
    "geoids.prune": lambda conn: geoids.prune(conn, datetime.now(UTC), transitions="delete", batch=1),
    "geoids.update_metadata": lambda conn: geoids.update_metadata(conn, ONE, {"seen": True}),
    "geoids.add_tags": lambda conn: geoids.add_tags(conn, ONE, "b"),
    "geoids.remove_tags": lambda conn: geoids.remove_tags(conn, ONE, "a"),
    "transitions.insert": lambda conn: transitions.insert(conn, replace(STEP, id=NEW)),
    "transitions.insert_many": lambda conn: transitions.insert_many(conn, [replace(STEP, id=None)] * 3),
    "transitions.record": lambda conn: transitions.record(conn, ONE, OTHER, "jump", energy=1),
    "transitions.delete": lambda conn: transitions.delete(conn, ONE),
    "embeddings.insert": lambda conn: embeddings.insert(conn, replace(TEXT, id=NEW)),
    "embeddings.insert_many": lambda conn: embeddings.insert_many(conn, [replace(TEXT, id=None)] * 3),
    "embeddings.get_or_create": lambda conn: embeddings.get_or_create(conn, "new", lambda _: unit(2)),
    "embeddings.delete": lambda conn: embeddings.delete(conn, ONE),
    "embeddings.delete_where": lambda conn: embeddings.delete_where(conn, until=datetime.now(UTC), batch=1),
    "embeddings.prune": lambda conn: embeddings.prune(conn, datetime.now(UTC), batch=1),
    "portals.insert": lambda conn: portals.insert(conn, replace(PORTAL, id=NEW)),
    "portals.insert_many": lambda conn: portals.insert_many(conn, [replace(PORTAL, id=None)] * 3),
    "portals.mark_used": lambda conn: portals.mark_used(conn, ONE),
    "portals.set_status": lambda conn: portals.set_status(conn, ONE, "closed"),
    "portals.update_parameters": lambda conn: portals.update_parameters(conn, ONE, {"k": 1}),
    "portals.delete": lambda conn: portals.delete(conn, ONE),
    "metrics.insert": lambda conn: metrics.insert(conn, METRIC),
    "metrics.insert_many": lambda conn: metrics.insert_many(conn, [METRIC] * 3),
    "metrics.record": lambda conn: metrics.record(conn, "load", 1, component="test"),
    "metrics.prune": lambda conn: metrics.prune(conn, datetime.now(UTC), batch=1),
    "metrics.delete": lambda conn: metrics.delete(conn, 1),
    "geoids.upsert": lambda conn: geoids.upsert(conn, STATE),
    "geoids.upsert_many": lambda conn: geoids.upsert_many(conn, [STATE, replace(STATE, id=NEW)]),
    "geoids.replace_vector": lambda conn: geoids.replace_vector(conn, ONE, unit(2)),
    "embeddings.upsert": lambda conn: embeddings.upsert(conn, replace(TEXT, id=None)),
    "embeddings.upsert_many": lambda conn: embeddings.upsert_many(conn, [TEXT, replace(TEXT, id=None)]),
    "embeddings.replace_vector": lambda conn: embeddings.replace_vector(conn, ONE, unit(2)),
    "embeddings.name_model": lambda conn: embeddings.name_model(conn, "minilm"),
    "portals.upsert": lambda conn: portals.upsert(conn, PORTAL),
    "portals.upsert_many": lambda conn: portals.upsert_many(conn, [PORTAL, replace(PORTAL, id=NEW)]),
    **{f"{name}.insert_arrow": partial(insert_arrow, module) for name, module in MODULES.items()},
}


def wrong_model(conn: Any) -> None:
    with pytest.raises(WrongModel):
        embeddings.require_model(conn, "another")


def common(module: Any, id: Any) -> dict[str, Callable[[Any], Any]]:
    """What reads in every module."""
    return {
        "count": module.count,
        "get": lambda conn: module.get(conn, id),
        "get_many": lambda conn: module.get_many(conn, [id]),
        "stream": lambda conn: list(module.stream(conn)),
        "stream_arrow": lambda conn: list(module.stream_arrow(conn)),
    }


READERS: Final[dict[str, Callable[[Any], Any]]] = {
    **{
        f"{name}.{function}": read
        for name, module in MODULES.items()
        for function, read in common(module, 1 if module is metrics else ONE).items()
    },
    "geoids.find": lambda conn: geoids.find(conn, tags_any=["a"]),
    "geoids.latest": geoids.latest,
    "geoids.similar": lambda conn: geoids.similar(conn, unit(0), with_vectors=True),
    "geoids.similar_to": lambda conn: geoids.similar_to(conn, ONE),
    "geoids.similar_many": lambda conn: geoids.similar_many(conn, [unit(0), unit(1)]),
    "geoids.similar_pages": lambda conn: list(geoids.similar_pages(conn, unit(0), 1)),
    "geoids.within": lambda conn: list(geoids.within(conn, unit(0), 0.5)),
    "geoids.pairs": lambda conn: list(geoids.pairs(conn)),
    "embeddings.duplicates": lambda conn: list(embeddings.duplicates(conn)),
    "embeddings.model": embeddings.model,
    "embeddings.renewal": embeddings.renewal,
    "embeddings.renew": lambda conn: refused(embeddings.renew, conn, lambda texts: texts, model="other"),
    "embeddings.end_renewal": lambda conn: refused(embeddings.end_renewal, conn),
    "embeddings.require_model": wrong_model,
    "geoids.series": lambda conn: geoids.series(conn, timedelta(seconds=1)),
    "geoids.centroid": geoids.centroid,
    "geoids.explain": lambda conn: refused(geoids.explain, conn, unit(0)),
    "transitions.outgoing": lambda conn: transitions.outgoing(conn, ONE),
    "transitions.incoming": lambda conn: transitions.incoming(conn, ONE),
    "transitions.by_type": lambda conn: transitions.by_type(conn, "drift"),
    "transitions.between": lambda conn: transitions.between(conn, seconds(0), seconds(1)),
    "transitions.path": lambda conn: transitions.path(conn, ONE, OTHER),
    "transitions.trajectory": lambda conn: transitions.trajectory(conn, ONE),
    "transitions.energy_balance": transitions.energy_balance,
    "transitions.summary": lambda conn: transitions.summary(conn, timedelta(seconds=1)),
    "transitions.unbalanced": lambda conn: transitions.unbalanced(conn, 0),
    "embeddings.similar": lambda conn: embeddings.similar(conn, unit(0)),
    "embeddings.similar_many": lambda conn: embeddings.similar_many(conn, [unit(0)]),
    "embeddings.similar_pages": lambda conn: list(embeddings.similar_pages(conn, unit(0), 1)),
    "embeddings.within": lambda conn: list(embeddings.within(conn, unit(0), 0.5)),
    "embeddings.explain": lambda conn: refused(embeddings.explain, conn, unit(0)),
    "embeddings.hybrid": lambda conn: refused(embeddings.hybrid, conn, "a", unit(0)),
    "portals.between": lambda conn: portals.between(conn, 1, 2),
    "portals.by_status": lambda conn: portals.by_status(conn, "active"),
    "portals.route": lambda conn: portals.route(conn, 1, 2),
    "metrics.latest": lambda conn: metrics.latest(conn, "load"),
    "metrics.names": metrics.names,
    "metrics.series": lambda conn: metrics.series(conn, "load", bucket=timedelta(seconds=1), since=seconds(0)),
}


def refused(function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call what needs PostgreSQL."""
    with pytest.raises(UnsupportedByServer):
        function(*arguments, **options)


def test_no_function_is_forgotten() -> None:
    functions = {
        f"{name}.{function}"
        for name, module in MODULES.items()
        for function in module.__all__
        if inspect.isroutine(getattr(module, function))
    }
    assert functions == WRITERS.keys() | READERS.keys()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "kimera.db"
    with SqlitePool(path) as pool, pool.connection() as conn:
        migrations.migrate(conn)
        geoids.insert_many(conn, [STATE, replace(STATE, id=OTHER)])
        transitions.insert(conn, STEP)
        embeddings.insert(conn, TEXT)
        portals.insert(conn, PORTAL)
        metrics.insert(conn, METRIC)
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    """A file with some rows of each entity."""
    return Path(shutil.copy(template, tmp_path))


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["synchronous", "asynchronous"])
def opened(request: pytest.FixtureRequest, mode: str) -> Iterator[Callable[[Path], Any]]:
    """A function that opens a file in the mode, for the synchronous functions and the asynchronous in turn."""

    def connect(path: Path) -> sqlite3.Connection:
        conn: sqlite3.Connection = sqlite3.connect(path, check_same_thread=False, **MODES[mode])
        add_adapters(conn)
        return conn

    if request.param == "synchronous":
        yield connect
        return
    with asyncio.Runner() as runner:

        async def connected(path: Path) -> aio.sqlite.Connection:
            conn = aio.sqlite.Connection(lambda: connect(path), iter_chunk_size=64)
            await conn
            return conn

        yield lambda path: Blocking(runner.run(connected(path)), runner)


def rows(path: Path) -> list[list[Any]]:
    """All rows that the file holds."""
    with closing(sqlite3.connect(path)) as conn:
        return [list(conn.execute(f"SELECT * FROM {table} ORDER BY 1")) for table in (*NAMES, "kimera_models")]  # noqa: S608


def schema(path: Path) -> list[str]:
    """The tables that the file holds."""
    with closing(sqlite3.connect(path)) as conn:
        return [name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]


@pytest.mark.parametrize("name", WRITERS)
def test_only_in_autocommit_is_anything_kept_without_a_commit(
    opened: Callable[[Path], Any], mode: str, path: Path, name: str
) -> None:
    before = rows(path)
    conn = opened(path)
    WRITERS[name](conn)
    assert conn.in_transaction == (mode not in AUTOCOMMIT)
    conn.close()
    assert (rows(path) != before) == (mode in AUTOCOMMIT)


@pytest.mark.parametrize("name", WRITERS)
def test_a_commit_keeps_and_a_rollback_takes_back(
    opened: Callable[[Path], Any], mode: str, path: Path, name: str
) -> None:
    before = rows(path)
    for end in ("ROLLBACK", "COMMIT"):
        conn = opened(path)
        if mode in AUTOCOMMIT:
            conn.execute("BEGIN")
        WRITERS[name](conn)
        assert conn.in_transaction
        conn.execute(end)
        conn.close()
        assert (rows(path) != before) == (end == "COMMIT")


def test_reading_begins_no_transaction_and_ends_none(opened: Callable[[Path], Any], mode: str, path: Path) -> None:
    conn = opened(path)
    for read in READERS.values():
        read(conn)
        assert conn.in_transaction == (mode == "transactional")
    if mode in AUTOCOMMIT:
        conn.execute("BEGIN")
    geoids.insert(conn, replace(STATE, id=NEW))
    for read in READERS.values():
        read(conn)
        assert conn.in_transaction
    conn.execute("ROLLBACK")
    assert geoids.count(conn) == 2
    conn.close()


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_stream_ends_with_its_transaction(opened: Callable[[Path], Any], mode: str, path: Path, end: str) -> None:
    conn = opened(path)
    states = geoids.stream(conn)
    seen = [next(states)]
    geoids.insert(conn, replace(STATE, id=NEW))
    getattr(conn, end)()
    if mode in AUTOCOMMIT or mode == "transactional":  # there was no transaction, or the next has begun
        seen.extend(states)
        assert [state.id for state in seen] == [ONE, OTHER]
    else:
        with pytest.raises(InvalidValue, match=r"^conn: its transaction ended while rows were being streamed"):
            next(states)
    assert geoids.count(conn) == (2 if end == "rollback" and mode not in AUTOCOMMIT else 3)
    conn.close()


def test_a_refused_batch_leaves_nothing_and_takes_nothing_along(
    opened: Callable[[Path], Any], mode: str, path: Path
) -> None:
    conn = opened(path)
    geoids.insert(conn, replace(STATE, id=NEW))
    with pytest.raises(sqlite3.IntegrityError):
        geoids.insert_many(conn, [replace(STATE, id=None), STATE])
    with pytest.raises(ZeroDivisionError):
        embeddings.get_or_create(conn, "new", lambda _: unit(1 // 0))
    conn.commit()
    conn.close()
    with SqlitePool(path) as pool, pool.connection() as other:
        assert (geoids.count(other), embeddings.count(other)) == (3, 1)


def test_a_schema_is_kept_unless_the_transaction_is_the_callers(
    opened: Callable[[Path], Any], mode: str, tmp_path: Path
) -> None:
    conn = opened(tmp_path / "new.db")
    migrations.migrate(conn)
    assert geoids.count(conn) == 0
    conn.close()
    assert bool(schema(tmp_path / "new.db")) == (mode != "transactional")
    conn = opened(tmp_path / "committed.db")
    migrations.migrate(conn)
    conn.commit()
    conn.close()
    assert schema(tmp_path / "committed.db")


def test_a_snapshot_does_not_show_what_others_commit_meanwhile(
    opened: Callable[[Path], Any], mode: str, path: Path
) -> None:
    with closing(opened(path)) as conn, closing(sqlite3.connect(path)) as other:
        add_adapters(other)
        with sql.snapshot(conn):
            assert metrics.count(conn) == 1
            metrics.insert(other, METRIC)
            other.commit()
            assert metrics.count(conn) == 1
        if mode == "transactional":
            conn.commit()
        assert metrics.count(conn) == 2
        assert not conn.in_transaction or mode == "transactional"


@pytest.mark.parametrize("lent", ["synchronous", "asynchronous"])
def test_a_pool_ends_the_transaction_of_a_borrower_who_changed_the_mode(path: Path, lent: str, mode: str) -> None:
    def write(conn: sqlite3.Connection) -> None:
        for name, value in MODES[mode].items():
            setattr(conn, name, value)
        if mode in AUTOCOMMIT:
            conn.execute("BEGIN")
        conn.execute("INSERT INTO system_metrics (metric_name, metric_value, component) VALUES ('load', 1, 'test')")

    def synchronous(end: Callable[[], Any]) -> None:
        with SqlitePool(path, size=1) as pool:
            with suppress(ZeroDivisionError), pool.connection() as conn:
                write(conn)
                end()
            with pool.connection() as conn:
                assert not conn.in_transaction

    async def asynchronous(end: Callable[[], Any]) -> None:
        async with aio.SqlitePool(path, size=1) as pool:
            with suppress(ZeroDivisionError):
                async with pool.connection() as conn:
                    write(conn._conn)
                    end()
            async with pool.connection() as conn:
                assert not conn.in_transaction

    def use(end: Callable[[], Any]) -> None:
        synchronous(end) if lent == "synchronous" else asyncio.run(asynchronous(end))

    before = rows(path)
    use(lambda: 1 // 0)
    assert rows(path) == before
    use(lambda: None)
    assert rows(path) != before


@pytest.mark.parametrize("opened", ["synchronous"], indirect=True)
def test_copy_reads_and_writes_in_every_mode(
    opened: Callable[[Path], Any], mode: str, path: Path, tmp_path: Path
) -> None:
    target_path = tmp_path / "target.db"
    with SqlitePool(target_path) as pool, pool.connection() as conn:
        migrations.migrate(conn)
    for committed in (False, True):
        source, target = opened(path), opened(target_path)
        transfer.copy(source, target, skip_existing=True)
        assert source.in_transaction == (mode == "transactional")
        assert target.in_transaction == (mode not in AUTOCOMMIT)
        if committed:
            target.commit()
        source.close()
        target.close()
        assert (rows(target_path) == rows(path)) == (committed or mode in AUTOCOMMIT)
