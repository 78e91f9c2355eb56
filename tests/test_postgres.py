"""What the entities promise on PostgreSQL alone: transactions, settings, cursors, and errors of the driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from fix_connections import BOTH_TWINS, rolled_back
from fix_servers import Server
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from reference import ABSENT, seconds
from strategies import unit

from kimera_sql import add_adapters, embeddings, geoids, metrics, portals, sql, transitions
from kimera_sql.embeddings import NewEmbedding
from kimera_sql.errors import InvalidValue, NotFound, SchemaError
from kimera_sql.geoids import NewGeoid
from kimera_sql.metrics import NewMetric
from kimera_sql.portals import NewPortal
from kimera_sql.search import indexes, run
from kimera_sql.search.plan import Explanation, Plan
from kimera_sql.sql.arrow import pyarrow
from kimera_sql.sql.postgres import Connection
from kimera_sql.tables import Table
from kimera_sql.transitions import NewTransition
from kimera_sql.vectors import Vector

VECTOR = unit(0)
STATE = UUID(int=1)
GEOID = NewGeoid(state_vector=VECTOR, entropy=0.5, coherence_factor=0.5, energy_level=1, tags=["a"], id=STATE)
STEP = NewTransition(
    source_id=STATE, target_id=STATE, transition_energy=1, conservation_error=0, transition_type="drift"
)
EMBEDDING = NewEmbedding(text_content="text", embedding=VECTOR)
PORTAL = NewPortal(source_dimension=1, target_dimension=2, radius=1, energy_requirement=1, stability_factor=1, id=STATE)
METRIC = NewMetric(metric_name="load", metric_value=1, component="core")
ONE_STATE = pyarrow().table(
    {"state_vector": [VECTOR], "entropy": [0.5], "coherence_factor": [0.5], "energy_level": [1.0]}
)
ONE_TEXT = pyarrow().table({"text_content": ["text"], "embedding": [VECTOR]})

WRITES: dict[str, Callable[[Connection], object]] = {
    "geoids.insert": lambda conn: geoids.insert(conn, replace(GEOID, id=None)),
    "geoids.insert_many": lambda conn: geoids.insert_many(conn, [replace(GEOID, id=None)]),
    "geoids.upsert": lambda conn: geoids.upsert(conn, replace(GEOID, entropy=0.7)),
    "geoids.upsert_many": lambda conn: geoids.upsert_many(conn, [replace(GEOID, id=None), GEOID]),
    "geoids.replace_vector": lambda conn: replace_vector_of_another(conn, geoids, GEOID),
    "embeddings.upsert": lambda conn: embeddings.upsert(conn, EMBEDDING),
    "embeddings.upsert_many": lambda conn: embeddings.upsert_many(conn, [EMBEDDING, replace(EMBEDDING, id=STATE)]),
    "embeddings.replace_vector": lambda conn: replace_vector_of_another(conn, embeddings, EMBEDDING),
    "portals.upsert": lambda conn: portals.upsert(conn, PORTAL),
    "portals.upsert_many": lambda conn: portals.upsert_many(conn, [PORTAL, replace(PORTAL, id=None)]),
    "geoids.update_metadata": lambda conn: geoids.update_metadata(conn, STATE, {"n": 1}),
    "geoids.add_tags": lambda conn: geoids.add_tags(conn, STATE, "b"),
    "geoids.remove_tags": lambda conn: geoids.remove_tags(conn, STATE, "a"),
    "transitions.insert_many": lambda conn: transitions.insert_many(conn, [STEP]),
    "transitions.record": lambda conn: transitions.record(conn, STATE, STATE, "rest", energy=0),
    "embeddings.insert_many": lambda conn: embeddings.insert_many(conn, [EMBEDDING]),
    "embeddings.get_or_create": lambda conn: embeddings.get_or_create(conn, "new", lambda _: VECTOR),
    "portals.insert_many": lambda conn: portals.insert_many(conn, [replace(PORTAL, id=None)]),
    "portals.mark_used": lambda conn: portals.mark_used(conn, STATE),
    "portals.set_status": lambda conn: portals.set_status(conn, STATE, "closed"),
    "portals.update_parameters": lambda conn: portals.update_parameters(conn, STATE, {"n": 1}),
    "portals.delete": lambda conn: portals.delete(conn, STATE),
    "metrics.insert_many": lambda conn: metrics.insert_many(conn, [METRIC]),
    "metrics.record": lambda conn: metrics.record(conn, "load", 1, component="core"),
    "metrics.prune": lambda conn: metrics.prune(conn, seconds(10**9), batch=1),
    "embeddings.prune": lambda conn: embeddings.prune(conn, seconds(10**9), batch=1),
    "geoids.prune": lambda conn: prune_one_of_two(conn),
    "geoids.insert_arrow": lambda conn: geoids.insert_arrow(conn, ONE_STATE),
    "embeddings.insert_arrow": lambda conn: embeddings.insert_arrow(conn, ONE_TEXT),
}
READS: dict[str, Callable[[Connection], object]] = {
    "geoids.get": lambda conn: geoids.get(conn, STATE),
    "geoids.get_many": lambda conn: geoids.get_many(conn, [STATE]),
    "geoids.count": lambda conn: geoids.count(conn),
    "geoids.stream": lambda conn: list(geoids.stream(conn)),
    "geoids.stream unordered": lambda conn: list(geoids.stream(conn, ordered=False)),
    "geoids.find": lambda conn: geoids.find(conn),
    "geoids.similar": lambda conn: geoids.similar(conn, VECTOR, 1),
    "geoids.similar exactly": lambda conn: geoids.similar(conn, VECTOR, exact=True),
    "geoids.similar_to": lambda conn: geoids.similar_to(conn, STATE),
    "geoids.similar_many": lambda conn: geoids.similar_many(conn, [VECTOR, VECTOR], 1),
    "geoids.within": lambda conn: list(geoids.within(conn, VECTOR, 0.5)),
    "geoids.similar_pages": lambda conn: list(geoids.similar_pages(conn, VECTOR)),
    "geoids.explain": lambda conn: geoids.explain(conn, VECTOR, 1),
    "geoids.pairs": lambda conn: list(geoids.pairs(conn)),
    "geoids.series": lambda conn: geoids.series(conn, timedelta(1)),
    "geoids.centroid": lambda conn: np.asarray(geoids.centroid(conn)).tolist(),
    "transitions.summary": lambda conn: transitions.summary(conn, timedelta(1)),
    "transitions.path": lambda conn: transitions.path(conn, STATE, ABSENT),
    "transitions.trajectory": lambda conn: transitions.trajectory(conn, STATE),
    "transitions.energy_balance": lambda conn: transitions.energy_balance(conn),
    "embeddings.similar": lambda conn: embeddings.similar(conn, VECTOR, 1),
    "embeddings.within": lambda conn: list(embeddings.within(conn, VECTOR, 0.5)),
    "embeddings.similar_pages": lambda conn: list(embeddings.similar_pages(conn, VECTOR)),
    "embeddings.duplicates": lambda conn: list(embeddings.duplicates(conn)),
    "embeddings.hybrid": lambda conn: embeddings.hybrid(conn, "text", VECTOR),
    "embeddings.get_or_create": lambda conn: embeddings.get_or_create(conn, "text", lambda _: VECTOR),
    "portals.route": lambda conn: portals.route(conn, 1, 2),
    "metrics.latest": lambda conn: metrics.latest(conn, "load"),
    "metrics.series": lambda conn: metrics.series(conn, "load", bucket=timedelta(1), since=seconds(0)),
    "metrics.names": lambda conn: metrics.names(conn),
    "geoids.stream_arrow": lambda conn: list(geoids.stream_arrow(conn)),
    "embeddings.stream_arrow": lambda conn: list(embeddings.stream_arrow(conn)),
}

SETTINGS = {
    "hnsw.ef_search": "77",
    "hnsw.iterative_scan": "strict_order",
    "ivfflat.probes": "7",
    "ivfflat.iterative_scan": "off",
    "enable_seqscan": "on",
    "enable_sort": "on",
    "jit": "on",
    "plan_cache_mode": "force_custom_plan",
    "effective_io_concurrency": "3",
}
SEARCHES: dict[str, Callable[[Connection], object]] = {
    "by hnsw": lambda conn: geoids.similar(conn, VECTOR, 1),
    "by hnsw with filters": lambda conn: geoids.similar(conn, VECTOR, 1, ef_search=2, entropy=(0, None)),
    "by hnsw, several": lambda conn: geoids.similar_many(conn, [VECTOR, unit(1)], 1, ef_search=2, entropy=(0, None)),
    "by hnsw for more than there are": lambda conn: geoids.similar(conn, VECTOR, 450, ef_search=2),
    "by ivfflat": lambda conn: embeddings.similar(conn, VECTOR, 1),
    "by ivfflat with filters": lambda conn: embeddings.similar(conn, VECTOR, 1, probes=1, since=seconds(0)),
    "hybrid": lambda conn: embeddings.hybrid(conn, "text", VECTOR, 1),
    "exactly": lambda conn: geoids.similar(conn, VECTOR, exact=True),
    "by hnsw, then exactly, page after page": lambda conn: list(geoids.similar_pages(conn, VECTOR)),
    "explained": lambda conn: geoids.explain(conn, VECTOR, 1, ef_search=2, entropy=(0, None)),
}


def prune_one_of_two(conn: Connection) -> geoids.Gone:
    """Insert two more states, and delete one of them."""
    geoids.insert_many(conn, [replace(GEOID, id=None, timestamp=seconds(at)) for at in (0, 9)])
    return geoids.prune(conn, seconds(1), batch=1)


def replace_vector_of_another(conn: Connection, module: Any, new: Any) -> None:
    """Insert another row like *new*, and replace its vector."""
    module.replace_vector(conn, module.insert(conn, replace(new, id=None)).id, unit(7))


def fill(conn: Connection) -> None:
    """Insert a row of each entity."""
    geoids.insert(conn, GEOID)
    transitions.insert(conn, STEP)
    embeddings.insert(conn, EMBEDDING)
    portals.insert(conn, PORTAL)
    metrics.insert(conn, METRIC)


def everything(conn: Connection) -> list[list[Any]]:
    return [list(module.stream(conn)) for module in (geoids, transitions, embeddings, portals, metrics)]


def status(conn: Connection) -> TransactionStatus:
    return conn.info.transaction_status


def transaction(conn: Connection) -> object:
    return conn.execute("SELECT pg_current_xact_id()::text").fetchone()


def settings(conn: Connection) -> dict[str, str]:
    """What searches set; pgvector before 0.8 has no iterative scans."""
    conn.execute("SELECT '[1]'::vector")
    rows = conn.execute("SELECT name, current_setting(name, true) FROM unnest(%s::text[]) AS name", [list(SETTINGS)])
    return {name: value for name, value in rows.fetchall() if value is not None}


def changed(conn: Connection, scope: str) -> dict[str, str]:
    """Set all of them to what no search does, and return them."""
    for name in settings(conn):
        conn.execute(f"SET {scope} {name} = {SETTINGS[name]}".encode())
    return settings(conn)


@pytest.fixture(params=BOTH_TWINS)
def conn(request: pytest.FixtureRequest, shared: Callable[[str], str]) -> Iterator[Any]:
    with rolled_back(request.param, shared) as conn:
        yield conn


@pytest.fixture
def committed(database: str) -> str:
    """The conninfo of a database of the test's own, with a committed row of each entity."""
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        fill(conn)
    return database


@pytest.fixture
def indexed(committed: str) -> str:
    """The same with an hnsw and an ivfflat index, and rows for which they are worth it."""
    with psycopg.connect(committed) as conn:
        add_adapters(conn)
        geoids.insert_many(conn, [replace(GEOID, state_vector=unit(n), id=None) for n in range(1, 300)])
        embeddings.insert_many(conn, [replace(EMBEDDING, embedding=unit(n)) for n in range(1, 300)])
        indexes.build(conn, "geoid_states")
        indexes.build(conn, "semantic_embeddings", method="ivfflat", precision="full", lists=10)
    return committed


@pytest.fixture
def autocommit(committed: str) -> Iterator[Connection]:
    with psycopg.connect(committed, autocommit=True) as conn:
        add_adapters(conn)
        yield conn


@pytest.mark.parametrize("call", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
def test_an_open_transaction_stays_open(conn: Connection, call: Callable[[Connection], object]) -> None:
    fill(conn)
    before = transaction(conn)
    call(conn)
    assert transaction(conn) == before


@pytest.mark.parametrize("call", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
def test_a_transaction_block_of_the_caller_stays_open(conn: Connection, call: Callable[[Connection], object]) -> None:
    with conn.transaction(force_rollback=True):
        fill(conn)
        call(conn)
        assert geoids.get(conn, STATE).id == STATE
    assert everything(conn) == [[]] * 5


def test_what_is_written_on_an_idle_connection_is_left_to_its_commit(committed: str) -> None:
    with psycopg.connect(committed) as conn:
        add_adapters(conn)
        before = everything(conn)
        for name, call in WRITES.items():
            conn.rollback()
            call(conn)
            assert status(conn) == TransactionStatus.INTRANS, name
            assert everything(conn) != before, name
            conn.rollback()
            assert everything(conn) == before, name


def test_what_is_read_on_an_idle_connection_begins_a_transaction_as_any_statement_does(committed: str) -> None:
    with psycopg.connect(committed) as conn:
        add_adapters(conn)
        for name, call in READS.items():
            conn.rollback()
            call(conn)
            assert status(conn) == TransactionStatus.INTRANS, name


def test_on_an_autocommit_connection_nothing_stays_open(autocommit: Connection) -> None:
    for name, call in {**READS, **WRITES}.items():
        call(autocommit)
        assert status(autocommit) == TransactionStatus.IDLE, name


def test_on_an_autocommit_connection_writes_are_committed(autocommit: Connection, database: str) -> None:
    geoids.insert_many(autocommit, [replace(GEOID, id=None)])
    embeddings.get_or_create(autocommit, "new", lambda _: VECTOR)
    with psycopg.connect(database) as other:
        add_adapters(other)
        assert (geoids.count(other), embeddings.count(other)) == (2, 2)


def test_on_an_autocommit_connection_a_failed_insert_many_leaves_nothing(autocommit: Connection) -> None:
    with pytest.raises(InvalidValue):
        geoids.insert_many(autocommit, [replace(GEOID, id=None), replace(GEOID, entropy=float("nan"))])
    with pytest.raises(psycopg.errors.UniqueViolation):
        geoids.insert_many(autocommit, [replace(GEOID, id=None), GEOID])
    assert geoids.count(autocommit) == 1


def test_on_an_autocommit_connection_a_stream_that_is_closed_early_keeps_what_was_written(
    autocommit: Connection,
) -> None:
    metrics.insert_many(autocommit, [METRIC] * 5)
    rows = metrics.stream(autocommit, chunk=2)
    next(rows)
    metrics.insert(autocommit, METRIC)
    del rows
    assert status(autocommit) == TransactionStatus.IDLE
    assert metrics.count(autocommit) == 7


def test_on_an_autocommit_connection_an_unordered_stream_leaves_no_transaction(autocommit: Connection) -> None:
    metrics.insert_many(autocommit, [METRIC] * 5)
    rows = metrics.stream(autocommit, ordered=False)
    next(rows)
    del rows
    assert status(autocommit) == TransactionStatus.IDLE
    assert len(list(metrics.stream(autocommit, ordered=False))) == 6
    assert status(autocommit) == TransactionStatus.IDLE


def test_a_stream_left_by_an_exception_leaves_the_transaction_to_the_caller(conn: Connection) -> None:
    metrics.insert_many(conn, [METRIC] * 5)
    with pytest.raises(LookupError):  # noqa: PT012
        for _ in metrics.stream(conn, chunk=2):
            metrics.insert(conn, METRIC)
            raise LookupError
    assert metrics.count(conn) == 6


def test_a_stream_may_outlive_a_transaction_block_that_it_began_in(conn: Connection) -> None:
    metrics.insert_many(conn, [METRIC] * 5)
    with conn.transaction():
        rows = metrics.stream(conn, chunk=2)
        next(rows)
    assert len(list(rows)) == 4


@pytest.mark.parametrize(("chunk", "another"), [(2, False), (1000, False), (2, True)])
def test_a_stream_ends_with_its_transaction(database: str, chunk: int, another: bool) -> None:
    with psycopg.connect(database) as conn:
        add_adapters(conn)
        metrics.insert_many(conn, [METRIC] * 5)
        rows = metrics.stream(conn, chunk=chunk)
        next(rows)
        conn.commit()
        if another:
            metrics.count(conn)
        with pytest.raises(InvalidValue, match=r"^conn: its transaction ended while rows were being streamed"):
            list(rows)
        conn.rollback()
        assert metrics.count(conn) >= 5


def test_a_stream_fetches_a_chunk_at_a_time(conn: Connection) -> None:
    metrics.insert_many(conn, [METRIC] * 5)
    rows = metrics.stream(conn, chunk=2)
    next(rows)
    (name,) = [row[0] for row in conn.execute("SELECT name FROM pg_cursors").fetchall()]
    left = conn.execute(f"FETCH ALL FROM {name}".encode()).fetchall()
    assert len(left) == 3


def test_prune_on_an_autocommit_connection_keeps_each_batch(autocommit: Connection, database: str) -> None:
    metrics.insert_many(autocommit, [replace(METRIC, timestamp=seconds(n)) for n in range(4)])
    autocommit.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'kept'; END$$;
        CREATE TRIGGER refuse BEFORE DELETE ON system_metrics
            FOR EACH ROW WHEN (OLD.timestamp >= '2024-05-17 12:30:03+00') EXECUTE FUNCTION refuse();
    """)
    with pytest.raises(psycopg.errors.RaiseException):
        metrics.prune(autocommit, seconds(10), batch=2)
    assert [row.timestamp for row in metrics.stream(autocommit)][:2] == [seconds(2), seconds(3)]


@pytest.mark.parametrize("autocommit", [True, False])
def test_get_or_create_embeds_once_when_two_ask_at_once(database: str, autocommit: bool) -> None:
    asked: list[str] = []
    inside = threading.Event()

    def embed(text: str) -> Vector:
        asked.append(text)
        inside.set()
        with psycopg.connect(database, autocommit=True) as watcher:
            for _ in range(1000):
                waiting = watcher.execute("""
                    SELECT FROM pg_stat_activity
                    WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'advisory'
                """)
                if waiting.rowcount:
                    return VECTOR
                time.sleep(0.01)
        raise TimeoutError("the other one did not wait")

    def ask() -> embeddings.Embedding:
        with psycopg.connect(database, autocommit=autocommit) as conn:
            add_adapters(conn)
            return embeddings.get_or_create(conn, "text", embed)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ask)
        assert inside.wait(20)
        second = threads.submit(ask)
        assert first.result(30) == second.result(30)
    assert asked == ["text"]


def test_get_or_create_embeds_again_when_the_first_one_rolls_back(database: str) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database) as other:
        add_adapters(one)
        add_adapters(other)
        lost = embeddings.get_or_create(one, "text", lambda _: VECTOR)
        one.rollback()
        found = embeddings.get_or_create(other, "text", lambda _: unit(1))
        assert found.id != lost.id
        assert found.embedding[0] == unit(1)[0]


def test_get_or_create_in_repeatable_read_fails_to_serialize_where_it_does_not_see_the_row_of_another(
    database: str,
) -> None:
    with psycopg.connect(database) as one, psycopg.connect(database) as other:
        add_adapters(one)
        add_adapters(other)
        one.rollback()
        one.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        assert embeddings.count(one) == 0
        theirs = embeddings.get_or_create(other, "text", lambda _: VECTOR)
        other.commit()
        with pytest.raises(psycopg.errors.SerializationFailure):
            embeddings.get_or_create(one, "text", lambda _: pytest.fail("it embeds a text that is stored"))
        one.rollback()
        assert embeddings.get_or_create(one, "text", lambda _: VECTOR) == theirs


STORING: dict[str, Callable[[Connection, str], object]] = {
    "get_or_create": lambda conn, text: embeddings.get_or_create(conn, text, lambda _: VECTOR),
    "upsert": lambda conn, text: embeddings.upsert(conn, NewEmbedding(text_content=text, embedding=VECTOR)),
    "upsert_many": lambda conn, text: embeddings.upsert_many(conn, [NewEmbedding(text_content=text, embedding=VECTOR)]),
}


@pytest.mark.parametrize("level", psycopg.IsolationLevel, ids=lambda level: level.name)
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_text_is_stored_once_however_many_store_it_at_once(
    newest: Server, level: psycopg.IsolationLevel, autocommit: bool
) -> None:
    database = newest.create(template=newest.template)
    together = threading.Barrier(8)

    def store(number: int) -> None:
        with psycopg.connect(database, autocommit=autocommit) as conn:
            conn.isolation_level = level
            add_adapters(conn)
            together.wait(30)
            for text in range(40):
                kind = list(STORING)[number % 2] if text < 35 else "upsert_many"
                try:
                    STORING[kind](conn, str(text))
                    conn.commit()
                except psycopg.errors.SerializationFailure:
                    assert level > psycopg.IsolationLevel.READ_COMMITTED
                    conn.rollback()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(store, range(8)))
    with psycopg.connect(database) as conn:
        stored = conn.execute("SELECT text_content FROM semantic_embeddings").fetchall()
    assert sorted(int(text) for (text,) in stored) == list(range(40))
    newest.drop(database)


def without_plan(found: Any) -> Any:
    """What was found, but for a plan: the server may have analysed a table meanwhile."""
    return replace(found, plan="") if isinstance(found, Explanation) else found


@pytest.mark.ends
@pytest.mark.parametrize("call", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
def test_rows_do_not_depend_on_the_connections_factories(
    conn: Connection, call: Callable[[Connection], object]
) -> None:
    fill(conn)
    with conn.transaction(force_rollback=True):
        expected = call(conn)
    conn.row_factory = dict_row
    conn.cursor_factory = psycopg.ClientCursor
    found = call(conn)
    assert type(found) is type(expected)
    if call in READS.values():
        assert without_plan(found) == without_plan(expected)


def test_a_connection_that_made_dicts_from_the_start_gets_the_adapters(committed: str) -> None:
    with psycopg.connect(committed, row_factory=dict_row, cursor_factory=psycopg.ClientCursor) as conn:
        add_adapters(conn)
        assert everything(conn)[0] == [geoids.get(conn, STATE)]


@pytest.mark.parametrize("bad", [0, 3])
def test_an_item_that_is_taken_is_named_in_a_note(conn: Connection, bad: int) -> None:
    fill(conn)
    items = [replace(GEOID, id=None) for _ in range(5)]
    items[bad] = GEOID
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        geoids.insert_many(conn, items)
    assert caught.value.__notes__ == [f"item {bad} (counted from 0) was refused; nothing was written"]
    assert geoids.count(conn) == 1


def test_an_item_without_its_states_is_refused(conn: Connection) -> None:
    fill(conn)
    with pytest.raises(psycopg.errors.ForeignKeyViolation, match=str(ABSENT)):
        transitions.insert_many(conn, [STEP, replace(STEP, target_id=ABSENT)])
    assert transitions.count(conn) == 1


def test_a_failed_insert_many_keeps_the_transaction_usable_and_what_it_did(conn: Connection) -> None:
    fill(conn)
    before = transaction(conn)
    with pytest.raises(InvalidValue):
        geoids.insert_many(conn, [replace(GEOID, id=None), replace(GEOID, entropy=float("nan"))])
    with pytest.raises(psycopg.errors.UniqueViolation):
        geoids.insert_many(conn, [replace(GEOID, id=None), GEOID])
    assert transaction(conn) == before
    assert [row.id for row in geoids.stream(conn)] == [STATE]


def test_a_failed_embed_keeps_the_transaction_usable_and_what_it_did(conn: Connection) -> None:
    fill(conn)
    before = transaction(conn)
    with pytest.raises(ZeroDivisionError):
        embeddings.get_or_create(conn, "new", lambda _: [1 / 0])
    assert transaction(conn) == before
    assert embeddings.count(conn) == 1


def test_a_state_that_transitions_use_outlives_its_delete(committed: str) -> None:
    with psycopg.connect(committed) as conn:
        add_adapters(conn)
        with pytest.raises(psycopg.errors.ForeignKeyViolation), conn.transaction():
            geoids.delete(conn, STATE)
        assert geoids.get(conn, STATE).id == STATE


def test_a_missing_row_does_not_break_the_transaction(conn: Connection) -> None:
    fill(conn)
    with pytest.raises(NotFound):
        geoids.get(conn, ABSENT)
    assert geoids.count(conn) == 1


def test_searches_change_every_setting(indexed: str) -> None:
    with psycopg.connect(indexed) as conn:
        add_adapters(conn)
        by_hnsw = geoids.explain(conn, VECTOR, 1, ef_search=2, entropy=(0, None)).settings
        by_ivfflat = embeddings.explain(conn, VECTOR, 1, probes=1, since=seconds(0)).settings
        unfiltered = {
            **embeddings.explain(conn, VECTOR, 1, probes=1).settings,
            **geoids.explain(conn, VECTOR, 1).settings,
        }
        exactly = geoids.explain(conn, VECTOR, 1, exact=True).settings
        assert {*by_hnsw, *by_ivfflat, *unfiltered, *exactly} == settings(conn).keys()
        before = changed(conn, "LOCAL")
        assert not {**by_hnsw, **by_ivfflat, **unfiltered, **exactly}.items() & before.items()


def test_searches_leave_the_settings_of_a_transaction_as_they_were(indexed: str) -> None:
    with psycopg.connect(indexed) as conn:
        add_adapters(conn)
        for name, search_of in SEARCHES.items():
            conn.rollback()
            default = settings(conn)
            search_of(conn)
            assert settings(conn) == default, name
            before = changed(conn, "LOCAL")
            search_of(conn)
            assert settings(conn) == before, name
            conn.commit()
            assert settings(conn) == default, name


def test_searches_leave_the_settings_of_an_autocommit_connection_as_they_were(indexed: str) -> None:
    with psycopg.connect(indexed, autocommit=True) as conn:
        add_adapters(conn)
        for name, search_of in SEARCHES.items():
            conn.execute("RESET ALL")
            default = settings(conn)
            search_of(conn)
            assert settings(conn) == default, name
            before = changed(conn, "SESSION")
            search_of(conn)
            assert settings(conn) == before, name


@pytest.mark.parametrize("search_of", SEARCHES.values(), ids=SEARCHES)
def test_a_search_as_the_first_statement_of_a_session_leaves_the_defaults(
    indexed: str, search_of: Callable[[Connection], object]
) -> None:
    with psycopg.connect(indexed) as fresh, psycopg.connect(indexed) as conn:
        add_adapters(conn)
        search_of(conn)
        assert settings(conn) == settings(fresh)
        conn.commit()
        assert settings(conn) == settings(fresh)


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_search_that_fails_leaves_the_settings_and_the_transaction_as_they_were(
    indexed: str, autocommit: bool
) -> None:
    with psycopg.connect(indexed, autocommit=autocommit) as conn:
        add_adapters(conn)
        geoids.similar(conn, VECTOR)
        before = settings(conn)
        conn.execute("ALTER TABLE geoid_states RENAME COLUMN energy_level TO other")
        conn.commit()
        with pytest.raises(psycopg.errors.UndefinedColumn):
            geoids.similar(conn, VECTOR)
        assert status(conn) == (TransactionStatus.IDLE if autocommit else TransactionStatus.INERROR)
        conn.rollback()
        assert settings(conn) == before
        assert geoids.count(conn) == 300


def test_a_search_that_fails_in_a_savepoint_leaves_the_settings_as_they_were(indexed: str) -> None:
    with psycopg.connect(indexed) as conn:
        add_adapters(conn)
        conn.execute("ALTER TABLE geoid_states RENAME COLUMN energy_level TO other")
        before = changed(conn, "LOCAL")
        with pytest.raises(psycopg.errors.UndefinedColumn), conn.transaction():
            geoids.similar(conn, VECTOR)
        assert settings(conn) == before
        assert geoids.count(conn) == 300


def test_the_settings_hold_for_the_search_alone(
    pg_conn: Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "spy.sql").write_text("""
-- name: seen(name)
SELECT current_setting(:name);
""")
    before = settings(pg_conn)
    sql.statements("postgres", "search")
    monkeypatch.setattr("kimera_sql.sql.files.shipped", lambda _: tmp_path)
    given = {"hnsw.ef_search": "10", "ivfflat.probes": "3", "enable_sort": "off"}
    chosen = Plan("seen", None, {}, given, "")
    found, _ = run._run(pg_conn, Table("spy", "spy"), chosen, [{"name": name} for name in given])
    assert found == [[(value,)] for value in given.values()]
    assert settings(pg_conn) == before


def test_a_broken_connection_raises_the_drivers_error(database: str) -> None:
    with closing(psycopg.connect(database)) as conn:
        add_adapters(conn)
        conn.close()
        with pytest.raises(psycopg.OperationalError):
            geoids.insert_many(conn, [GEOID])


def test_no_rows_are_streamed_in_pipeline_mode(conn: Connection) -> None:
    with conn.pipeline(), pytest.raises(InvalidValue, match=r"^conn: it is in pipeline mode"):
        next(geoids.stream(conn))
    with conn.pipeline(), pytest.raises(InvalidValue, match=r"^conn: it is in pipeline mode"):
        next(geoids.stream(conn, ordered=False))


def test_a_row_that_a_trigger_passes_over_is_an_error(conn: Connection) -> None:
    conn.execute("CREATE FUNCTION pass_over() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    conn.execute("CREATE TRIGGER pass_over BEFORE INSERT ON geoid_states FOR EACH ROW EXECUTE FUNCTION pass_over()")
    with pytest.raises(SchemaError, match="a trigger or a rule of the table passed the row over"):
        geoids.insert(conn, NewGeoid(state_vector=unit(1), entropy=0, coherence_factor=0, energy_level=0))
