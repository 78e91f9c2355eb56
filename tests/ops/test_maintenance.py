"""Upkeep on real servers: what it does, what is in its way, and what it leaves behind; through the command line too."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Timer
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_connections import cancelled_soon
from fix_servers import Server
from psycopg.conninfo import make_conninfo
from strategies import unit

from kimera_sql import SqlitePool, add_adapters, embeddings, geoids, metrics, migrate, sql, sqlite, tables, transitions
from kimera_sql.cli import watch
from kimera_sql.errors import InUse, InvalidValue, MaintenanceError, NotFound, SchemaError, UnsupportedByServer
from kimera_sql.ops import maintenance
from kimera_sql.search import indexes, recall

pytestmark = [pytest.mark.slow, pytest.mark.ends]

Connection = psycopg.Connection[Any]

SPECIFIED: dict[str, Any] = {"method": "ivfflat", "precision": "full"}
SHORT = timedelta(milliseconds=300)
METRICS = ["system_metrics"]


@pytest.fixture
def conn(own_conn: Connection) -> Connection:
    return own_conn


@pytest.fixture
def stranger(server: Server, database: str) -> Iterator[str]:
    """The conninfo of a role that reads and writes rows and owns nothing."""
    name = f"kimera_test_{uuid4().hex}"
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"CREATE ROLE {name} LOGIN".encode())
        conn.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}".encode())
    yield make_conninfo(database, user=name)
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(f"DROP OWNED BY {name}".encode())
        conn.execute(f"DROP ROLE {name}".encode())


def fill(conn: Connection, rows: int = 30) -> None:
    new = [
        geoids.NewGeoid(state_vector=unit(seed), entropy=0, coherence_factor=0, energy_level=0) for seed in range(rows)
    ]
    geoids.insert_many(conn, new)


def old_metrics(conn: Connection, ages: list[float]) -> None:
    metrics.insert_many(
        conn,
        [
            metrics.NewMetric(
                metric_name="m", metric_value=1, component="c", timestamp=datetime.now(UTC) - timedelta(days=age)
            )
            for age in ages
        ],
    )


def invalid(conn: Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")]


def node(conn: Connection, name: str) -> int:
    """The number of an index's file, which a rebuild changes."""
    row = conn.execute("SELECT pg_relation_filenode(%s)", [name]).fetchone()
    assert row is not None
    return int(row[0])


@contextmanager
def holding(database: str, statement: str) -> Iterator[Connection]:
    """A transaction of somebody else that has run *statement* and stays open."""
    with psycopg.connect(database) as other:
        other.execute(statement.encode())
        yield other
        other.rollback()


# VACUUM and ANALYZE


def test_vacuum_takes_dead_rows_away_and_tells_the_planner(conn: Connection) -> None:
    fill(conn)
    conn.execute("DELETE FROM geoid_states WHERE id IN (SELECT id FROM geoid_states LIMIT 20)")
    conn.execute("SELECT pg_stat_force_next_flush()")
    done = maintenance.vacuum(conn)
    assert [one.table for one in done] == list(tables.NAMES)
    assert (done[0].rows, done[0].dead) == (10, 0)
    assert done[0].size > 0
    row = conn.execute(
        "SELECT min(vacuum_count), min(analyze_count) FROM pg_stat_user_tables WHERE relname = ANY(%s)",
        [list(tables.NAMES)],
    ).fetchone()
    assert row == (1, 1)


def test_vacuum_tells_of_dead_rows_that_somebody_can_still_see(conn: Connection, database: str) -> None:
    fill(conn)
    with psycopg.connect(database) as other:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("SELECT")
        conn.execute("DELETE FROM geoid_states")
        # Or the session's own count of them may come after that of VACUUM.
        conn.execute("SELECT pg_stat_force_next_flush()")
        assert maintenance.vacuum(conn)[0].dead == 30
    assert maintenance.vacuum(conn)[0].dead == 0


def test_analyze_tells_the_planner(conn: Connection) -> None:
    fill(conn)
    assert maintenance.analyze(conn) == list(tables.NAMES)
    assert conn.execute("SELECT reltuples FROM pg_class WHERE relname = 'geoid_states'").fetchone() == (30,)


@pytest.mark.parametrize("work", [maintenance.vacuum, maintenance.analyze])
def test_a_locked_table_is_waited_for_no_longer_than_told(conn: Connection, database: str, work: Any) -> None:
    with holding(database, "LOCK cognitive_transitions IN ACCESS EXCLUSIVE MODE") as other:
        pid = other.info.backend_pid
        said = rf"^cognitive_transitions was locked for 0\.3 s by a transaction of process {pid}; end it"
        with pytest.raises(MaintenanceError, match=said):
            work(conn, lock_timeout=SHORT)
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)
    work(conn, lock_timeout=SHORT)


@pytest.mark.parametrize("work", [maintenance.vacuum, maintenance.analyze, maintenance.reindex, maintenance.retrain])
def test_a_role_that_owns_nothing_is_refused(conn: Connection, stranger: str, work: Any) -> None:
    fill(conn)
    before = node(conn, indexes.build(conn, "geoid_states", **SPECIFIED).name)
    with psycopg.connect(stranger, autocommit=True) as other:
        add_adapters(other)
        with pytest.raises(MaintenanceError, match=r"^role kimera_test_\w+ does not own geoid_states, .+; run this as"):
            work(other)
    assert node(conn, "idx_geoid_vector") == before


def test_a_role_with_maintain_may_vacuum(conn: Connection, stranger: str) -> None:
    if conn.info.server_version < 170000:
        with pytest.raises(psycopg.errors.SyntaxError):
            conn.execute("GRANT MAINTAIN ON geoid_states TO PUBLIC")
        return
    conn.execute("GRANT MAINTAIN ON ALL TABLES IN SCHEMA public TO PUBLIC")
    with psycopg.connect(stranger, autocommit=True) as other:
        assert len(maintenance.vacuum(other)) == 5


@pytest.mark.parametrize(
    "work", [maintenance.vacuum, maintenance.analyze, maintenance.reindex, maintenance.retrain, maintenance.run_all]
)
def test_upkeep_needs_autocommit_and_a_sensible_patience(conn: Connection, database: str, work: Any) -> None:
    said = r"^conn: upkeep needs an autocommit connection"
    with psycopg.connect(database) as other, pytest.raises(InvalidValue, match=said):
        work(other)
    for wrong in (timedelta(0), timedelta(seconds=-1), timedelta(days=25), 5, None):
        with pytest.raises(InvalidValue, match=r"^lock_timeout: (expected a timedelta, got|.+ is not within a milli)"):
            work(conn, lock_timeout=wrong)


@pytest.mark.parametrize("work", [maintenance.vacuum, maintenance.analyze, maintenance.reindex, maintenance.retrain])
def test_without_the_tables_it_says_what_makes_them(empty_database: str, work: Any) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn, pytest.raises(SchemaError, match="kimera-sql init"):
        work(conn)


@pytest.mark.parametrize(
    "work", [maintenance.vacuum, maintenance.analyze, maintenance.reindex, maintenance.retrain, maintenance.run_all]
)
def test_sqlite_is_told_what_to_use(work: Any) -> None:
    with closing(sqlite.connect(":memory:")) as conn:
        with pytest.raises(UnsupportedByServer, match=r"sqlite3 FILE VACUUM"):
            work(conn)
        assert maintenance.working(conn) == []


# Vector indexes


def test_reindex_builds_anew_and_tunes_again_what_was_tuned(conn: Connection) -> None:
    fill(conn)
    for table, options in (("geoid_states", SPECIFIED), ("geoid_states", {"precision": "full"})):
        indexes.build(conn, table, **options)
    recall.tune(conn, "geoid_states", target=0.5, sample=5)
    before = {one.name: (node(conn, one.name), bool(one.tuned)) for one in indexes.existing(conn)}
    assert sorted(tuned for _, tuned in before.values()) == [False, True]
    fill(conn, 10)
    done = maintenance.reindex(conn)
    assert [one.index for one in done] == list(before)
    assert [(one.rows, one.table) for one in done] == [(40, "geoid_states")] * 2
    assert [one.tuned for one in done] == [(0.5,) if tuned else () for _, tuned in before.values()]
    for index in indexes.existing(conn):
        assert index.usable
        assert node(conn, index.name) != before[index.name][0]
        assert bool(index.tuned) == before[index.name][1]
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_reindex_of_one_leaves_the_others(conn: Connection) -> None:
    fill(conn)
    one = indexes.build(conn, "geoid_states", **SPECIFIED).name
    other = indexes.build(conn, "geoid_states", precision="full").name
    before = node(conn, other)
    assert [done.index for done in maintenance.reindex(conn, [one])] == [one]
    assert node(conn, other) == before
    with pytest.raises(NotFound, match=r"^no vector index has the name idx_geoid_tags$"):
        maintenance.reindex(conn, [one, "idx_geoid_tags"])


def test_without_vector_indexes_there_is_nothing_to_do(conn: Connection) -> None:
    assert maintenance.reindex(conn) == []
    assert maintenance.retrain(conn) == []


def test_reindex_of_a_table_that_was_emptied_does_not_tune(conn: Connection) -> None:
    fill(conn)
    indexes.build(conn, "geoid_states", precision="full")
    recall.tune(conn, "geoid_states", target=0.5, sample=5)
    conn.execute("DELETE FROM geoid_states")
    assert [(one.rows, one.tuned) for one in maintenance.reindex(conn)] == [(0, ())]


@pytest.mark.parametrize(
    "statement",
    [
        "LOCK geoid_states IN SHARE UPDATE EXCLUSIVE MODE",
        "DELETE FROM geoid_states",
        "SELECT id FROM geoid_states",
    ],
)
def test_a_rebuild_that_waits_in_vain_leaves_the_index_and_no_invalid_one(
    conn: Connection, database: str, statement: str
) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states", **SPECIFIED).name
    before = node(conn, name)
    with holding(database, statement) as other:
        with pytest.raises(
            MaintenanceError, match=rf"^not rebuilt: {name}: geoid_states was locked for 0\.3 s"
        ) as told:
            maintenance.reindex(conn, lock_timeout=SHORT)
        assert invalid(conn) == []
        assert f"process {other.info.backend_pid};" in str(told.value)
    assert node(conn, name) == before
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)
    assert len(maintenance.reindex(conn)) == 1


def test_a_table_that_is_locked_altogether_is_told(conn: Connection, database: str) -> None:
    fill(conn)
    before = node(conn, indexes.build(conn, "geoid_states", **SPECIFIED).name)
    with holding(database, "LOCK geoid_states IN ACCESS EXCLUSIVE MODE") as other:
        for work in (maintenance.reindex, maintenance.retrain):
            said = rf"^geoid_states was locked for 0\.3 s by a transaction of process {other.info.backend_pid}; end it"
            with pytest.raises(MaintenanceError, match=said):
                work(conn, lock_timeout=SHORT)
    assert node(conn, "idx_geoid_vector") == before
    assert invalid(conn) == []


@contextmanager
def snapshot(database: str) -> Iterator[Connection]:
    """Somebody's transaction that has locked no table of ours, but sees the database as it was."""
    with psycopg.connect(database) as other:
        other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        other.execute("SELECT 1")
        yield other
        other.rollback()


def test_a_snapshot_that_is_there_before_a_rebuild_is_told_before_anything_is_built(
    conn: Connection, database: str
) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states", **SPECIFIED).name
    before = node(conn, name)
    with snapshot(database) as other:
        said = rf"{name}: a rebuild must wait for a transaction of process {other.info.backend_pid}, which was open"
        with pytest.raises(MaintenanceError, match=said):
            maintenance.reindex(conn, lock_timeout=SHORT)
        assert (node(conn, name), invalid(conn)) == (before, [])
    assert len(maintenance.reindex(conn, lock_timeout=SHORT)) == 1


@pytest.mark.parametrize("begin", [snapshot, lambda database: holding(database, "SELECT id FROM geoid_states")])
def test_a_rebuild_is_not_given_up_for_a_transaction_that_began_meanwhile(
    conn: Connection, database: str, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states", **SPECIFIED).name
    before = node(conn, name)
    retrain = indexes.retrain
    with ExitStack() as stack:
        others: list[Connection] = []

        def late(*arguments: Any) -> Any:
            others.append(stack.enter_context(begin(database)))
            return retrain(*arguments)

        # The moment between the wait and the build is too short to be met otherwise.
        monkeypatch.setattr(indexes, "retrain", late)
        with ThreadPoolExecutor(1) as executor:
            done = executor.submit(maintenance.reindex, conn, lock_timeout=SHORT)
            try:
                with psycopg.connect(database, autocommit=True) as watching:
                    # Autovacuum may have a snapshot too, for a moment.
                    while {one.waits_for for one in maintenance.working(watching)}.isdisjoint(
                        other.info.backend_pid for other in others
                    ):
                        assert not done.done()
                        time.sleep(0.01)
                with pytest.raises(TimeoutError):
                    done.result(timeout=1)
            finally:
                stack.close()
            assert [one.index for one in done.result(timeout=60)] == [name]
    assert node(conn, name) != before
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)


def test_the_command_says_what_it_waits_for(conn: Connection, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states", **SPECIFIED).name
    retrain = indexes.retrain
    with snapshot(database) as other:
        pid = other.info.backend_pid
        other.rollback()

        def late(*arguments: Any) -> Any:
            other.execute("SELECT 1")
            Timer(1.5, other.rollback).start()
            return retrain(*arguments)

        monkeypatch.setattr(indexes, "retrain", late)
        monkeypatch.setattr(watch, "_PATIENCE", 0.3)
        ran = run("maintain", "reindex", "--lock-timeout", "0.2", DATABASE_URL=database)
    assert ran.stdout.startswith(f"rebuilt {name}: 30 rows, ")
    assert ran.returncode == 0
    assert ran.stderr == (
        f"kimera-sql: geoid_states: waiting for old snapshots: the transaction of process {pid} must end first\n"
    )


def test_a_cancelled_rebuild_does_not_wait_to_clean_up(
    conn: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states", **SPECIFIED).name
    monkeypatch.setattr(indexes, "_CLEANING", 0.2)
    with holding(database, "DELETE FROM geoid_states"), ThreadPoolExecutor(1) as executor:
        done = executor.submit(indexes.retrain, conn, name)
        with psycopg.connect(database, autocommit=True) as watching:
            while not any(one.waits_for for one in indexes.building(watching)):
                time.sleep(0.01)
        conn.cancel_safe()
        failed = done.exception(timeout=20)
        assert isinstance(failed, psycopg.errors.QueryCanceled)
        assert failed.__notes__[0].startswith("an unfinished index could not be dropped (")
    assert conn.execute("SHOW lock_timeout").fetchone() == ("0",)
    assert indexes.clean(conn) == [f"{name}_ccnew"]


def test_a_rebuild_waits_for_a_transaction_that_ends_in_time(conn: Connection, database: str) -> None:
    fill(conn)
    indexes.build(conn, "geoid_states", **SPECIFIED)
    with ThreadPoolExecutor(1) as executor:
        with holding(database, "DELETE FROM geoid_states"):
            done = executor.submit(maintenance.reindex, conn)
            with pytest.raises(TimeoutError):
                done.result(timeout=0.5)
        assert len(done.result(timeout=60)) == 1


def test_one_that_cannot_be_rebuilt_does_not_keep_the_others(conn: Connection, database: str) -> None:
    fill(conn)
    conn.execute("INSERT INTO semantic_embeddings (text_content, embedding) SELECT 'a', state_vector FROM geoid_states")
    first = indexes.build(conn, "geoid_states", **SPECIFIED).name
    second = indexes.build(conn, "semantic_embeddings", **SPECIFIED).name
    before = node(conn, first), node(conn, second)
    said = rf"^not rebuilt: {first}: .+ \(rebuilt: {second}\)$"
    with (
        holding(database, "LOCK geoid_states IN ROW EXCLUSIVE MODE"),
        pytest.raises(MaintenanceError, match=said),
    ):
        maintenance.reindex(conn, lock_timeout=SHORT)
    assert node(conn, first) == before[0]
    assert node(conn, second) != before[1]


def test_what_a_killed_rebuild_left_is_cleaned_up(
    conn: Connection, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states", **SPECIFIED).name
    with (
        psycopg.connect(database, autocommit=True) as victim,
        ThreadPoolExecutor(1) as executor,
        holding(database, "DELETE FROM geoid_states"),
    ):
        # It has made its new index, and waits for the writer.
        rebuilding: Future[Any] = executor.submit(victim.execute, f"REINDEX INDEX CONCURRENTLY {name}".encode())
        while not invalid(conn):
            assert not rebuilding.done()
            time.sleep(0.01)
        conn.execute("SELECT pg_terminate_backend(%s, 20000)", [victim.info.backend_pid])
        with pytest.raises(psycopg.OperationalError):
            rebuilding.result()
    assert invalid(conn) == [f"{name}_ccnew"]
    assert [one.index for one in maintenance.reindex(conn)] == [name]
    assert invalid(conn) == []
    assert f"dropped {name}_ccnew, which an interrupted build had left" in caplog.text


def test_a_leftover_that_cannot_be_dropped_now_is_told(conn: Connection, database: str) -> None:
    fill(conn)
    name = indexes.build(conn, "geoid_states", **SPECIFIED).name
    with holding(database, "DELETE FROM geoid_states") as other:
        with cancelled_soon(conn), pytest.raises(psycopg.errors.QueryCanceled) as failed:
            indexes.retrain(conn, name)
        (note,) = failed.value.__notes__
        assert note.startswith("an unfinished index could not be dropped (")
        assert note.endswith("; `kimera-sql index clean` does it later")
        said = rf"^an unfinished index could not be dropped: .+ of process {other.info.backend_pid}; end it"
        with pytest.raises(MaintenanceError, match=said):
            maintenance.reindex(conn, lock_timeout=SHORT)
    assert len(maintenance.reindex(conn)) == 1
    assert invalid(conn) == []


def test_retrain_picks_only_what_its_table_has_outgrown(conn: Connection) -> None:
    fill(conn, 10)
    aged = indexes.build(conn, "geoid_states", **SPECIFIED, lists=2).name
    fill(conn, 10)
    assert maintenance.retrain(conn) == []
    hnsw = indexes.build(conn, "geoid_states", precision="full").name
    conn.execute("INSERT INTO semantic_embeddings (text_content, embedding) SELECT 'a', state_vector FROM geoid_states")
    fresh = indexes.build(conn, "semantic_embeddings", **SPECIFIED, lists=2).name
    before = {name: node(conn, name) for name in (hnsw, fresh)}
    fill(conn, 1)
    assert [(one.index, one.rows) for one in maintenance.retrain(conn)] == [(aged, 21)]
    assert {name: node(conn, name) for name in before} == before
    assert maintenance.retrain(conn) == []
    assert [one.index for one in maintenance.retrain(conn, growth=1)] == []
    fill(conn, 1)
    assert [one.index for one in maintenance.retrain(conn, growth=1)] == [aged]


def test_retrain_picks_what_was_made_by_hand_once(conn: Connection) -> None:
    conn.execute("CREATE INDEX by_hand ON geoid_states USING ivfflat (state_vector vector_cosine_ops) WITH (lists = 2)")
    fill(conn)
    assert [(one.index, one.rows) for one in maintenance.retrain(conn)] == [("by_hand", 30)]
    assert maintenance.retrain(conn) == []


@pytest.mark.parametrize("growth", [0, 0.99, -1, math.nan, math.inf, "2", None])
def test_a_growth_below_1_is_refused(conn: Connection, growth: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^growth: "):
        maintenance.retrain(conn, growth=growth)


def test_working_tells_of_a_vacuum(conn: Connection, database: str) -> None:
    assert maintenance.working(conn) == []
    fill(conn, 300)
    conn.execute("DELETE FROM geoid_states WHERE id IN (SELECT id FROM geoid_states LIMIT 200)")
    with psycopg.connect(database, autocommit=True) as other, ThreadPoolExecutor(1) as executor:
        other.execute("SET vacuum_cost_delay = 50; SET vacuum_cost_limit = 1; SET client_min_messages = error")
        vacuuming = executor.submit(maintenance.vacuum, other)
        while not (seen := maintenance.working(conn)):
            assert not vacuuming.done()
        other.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            vacuuming.result()
    assert seen[0].table == "geoid_states"
    assert seen[0].phase
    assert 0 <= seen[0].done <= seen[0].total


# Metrics


def test_prune_deletes_what_is_older(conn: Connection) -> None:
    old_metrics(conn, [100, 31, 29, 0])
    assert maintenance.prune(conn, timedelta(days=30), METRICS) == [maintenance.Pruned("system_metrics", 2)]
    assert maintenance.prune(conn, timedelta(days=30), METRICS) == [maintenance.Pruned("system_metrics", 0)]
    assert metrics.count(conn) == 2


def old_rows(conn: Connection) -> None:
    """Two states with a transition, an embedding and a metric, all 100 days old."""
    then = datetime.now(UTC) - timedelta(days=100)
    new = geoids.NewGeoid(state_vector=unit(0), entropy=0, coherence_factor=0, energy_level=0, timestamp=then)
    one, other = geoids.insert(conn, new), geoids.insert(conn, new)
    transitions.record(conn, one.id, other.id, "drift", energy=1)
    embeddings.insert(conn, embeddings.NewEmbedding(text_content="a", embedding=unit(0), timestamp=then))
    old_metrics(conn, [100])


def counts(conn: Connection) -> list[int]:
    return [module.count(conn) for module in (geoids, transitions, embeddings, metrics)]


def test_prune_deletes_old_rows_of_every_kind(conn: Connection) -> None:
    fill(conn, 3)
    old_rows(conn)
    before = counts(conn)
    expected = [
        maintenance.Pruned(table, rows)
        for table, rows in (
            ("geoid_states", 2),
            ("cognitive_transitions", 1),
            ("semantic_embeddings", 1),
            ("system_metrics", 1),
        )
    ]
    assert maintenance.prune(conn, timedelta(days=30), transitions="delete", dry_run=True) == expected
    assert counts(conn) == before
    refusal = r"^1 transitions lead from or to the 2 states; transitions='delete' deletes them"
    for dry_run in (True, False):
        with pytest.raises(InUse, match=refusal):
            maintenance.prune(conn, timedelta(days=30), dry_run=dry_run)
        assert counts(conn) == before
    assert maintenance.prune(conn, timedelta(days=30), transitions="delete") == expected
    assert counts(conn) == [count - one.rows for count, one in zip(before, expected, strict=True)]


def test_a_prune_that_fails_says_what_had_been_deleted(conn: Connection) -> None:
    old_rows(conn)
    conn.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'kept'; END$$;
        CREATE TRIGGER refuse BEFORE DELETE ON semantic_embeddings FOR EACH ROW EXECUTE FUNCTION refuse();
    """)
    with pytest.raises(psycopg.errors.RaiseException) as raised:
        maintenance.prune(conn, timedelta(days=30), transitions="delete")
    assert raised.value.__notes__ == [
        "geoid_states: 2 rows had been deleted before",
        "cognitive_transitions: 1 rows had been deleted before",
    ]
    assert counts(conn) == [0, 0, 1, 1]


@pytest.mark.parametrize("table", ["cognitive_transitions", "portal_configurations", "geoids", "", None])
def test_other_tables_are_not_pruned(conn: Connection, table: Any) -> None:
    old_rows(conn)
    with pytest.raises(InvalidValue, match=r"^tables: expected some of geoid_states, semantic_embeddings, system_metr"):
        maintenance.prune(conn, timedelta(days=30), ["system_metrics", table])
    assert counts(conn) == [2, 1, 1, 1]


@pytest.mark.parametrize("age", [timedelta(0), timedelta(days=-1), timedelta(days=10**6), 30, None])
def test_an_age_that_is_none_is_refused(conn: Connection, age: Any) -> None:
    old_metrics(conn, [1])
    with pytest.raises(InvalidValue, match=r"^age: (expected a timedelta, got|.+ is not above zero)"):
        maintenance.prune(conn, age, METRICS)
    assert metrics.count(conn) == 1


# All of it


def test_all_does_everything_in_order(conn: Connection) -> None:
    fill(conn)
    old_metrics(conn, [100, 1])
    name = indexes.build(conn, "geoid_states", **SPECIFIED).name
    before = node(conn, name)
    steps = maintenance.run_all(conn, metrics_age=timedelta(days=30))
    assert [(step.name, step.done, step.error) for step in steps] == [
        ("prune-metrics", "1 metrics deleted", None),
        ("reindex", "1 vector indexes rebuilt", None),
        ("vacuum", "5 tables vacuumed and analyzed", None),
    ]
    assert node(conn, name) != before
    row = conn.execute("SELECT reltuples FROM pg_class WHERE relname = 'system_metrics'").fetchone()
    assert row == (1,)


def test_all_deletes_nothing_unless_asked(conn: Connection) -> None:
    old_metrics(conn, [10_000])
    assert maintenance.run_all(conn)[0].done == "not asked for"
    assert metrics.count(conn) == 1


def test_all_goes_on_after_a_step_that_failed(conn: Connection, database: str) -> None:
    fill(conn)
    indexes.build(conn, "geoid_states", **SPECIFIED)
    with holding(database, "LOCK geoid_states IN ROW EXCLUSIVE MODE"):
        steps = maintenance.run_all(conn, metrics_age=timedelta(days=-1), lock_timeout=SHORT)
    assert [step.done for step in steps] == [None, None, "5 tables vacuumed and analyzed"]
    assert (steps[0].error or "") == "age: -1 day, 0:00:00 is not above zero and up to a century"
    assert (steps[1].error or "").startswith("not rebuilt: idx_geoid_vector: geoid_states was locked for 0.3 s")


def test_all_ends_when_the_connection_is_lost(conn: Connection, database: str) -> None:
    fill(conn)
    indexes.build(conn, "geoid_states", **SPECIFIED)
    with holding(database, "LOCK geoid_states IN ROW EXCLUSIVE MODE") as other, ThreadPoolExecutor(1) as executor:
        running = executor.submit(maintenance.run_all, conn)
        time.sleep(0.3)
        other.execute("SELECT pg_terminate_backend(%s, 20000)", [conn.info.backend_pid])
        steps = running.result(timeout=60)
    assert steps[1].done is None
    assert steps[2].error == "not begun: the connection is lost"


# The command line


def test_each_command(database: str) -> None:
    def maintain(*arguments: str) -> str:
        ran = run("maintain", *arguments, DATABASE_URL=database)
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    with psycopg.connect(database, autocommit=True) as conn:
        add_adapters(conn)
        fill(conn)
        old_metrics(conn, [100, 1])
        assert maintain("reindex") == "there are no vector indexes\n"
        indexes.build(conn, "geoid_states", **SPECIFIED, lists=2)
        assert maintain("vacuum").splitlines()[0].split() == ["table", "rows", "dead", "size"]
        assert [one["rows"] for one in json.loads(maintain("vacuum", "--json"))] == [30, 0, 0, 0, 2]
        assert maintain("analyze").splitlines()[0] == "analyzed geoid_states"
        assert json.loads(maintain("analyze", "--json")) == list(tables.NAMES)
        assert maintain("retrain") == "no ivfflat index has aged\n"
        assert maintain("reindex").startswith("rebuilt idx_geoid_vector: 30 rows, ")
        assert [one["rows"] for one in json.loads(maintain("reindex", "idx_geoid_vector", "--json"))] == [30]
        fill(conn, 40)
        assert [one["rows"] for one in json.loads(maintain("retrain", "--growth", "2", "--json"))] == [70]
        assert maintain("prune", "system_metrics", "--older-than", "30") == "system_metrics: 1 rows deleted\n"
        pruned = json.loads(maintain("prune", "system_metrics", "--older-than", "0.5d", "--json"))
        assert pruned == [{"table": "system_metrics", "rows": 1}]
        old_rows(conn)
        assert maintain("prune", "--older-than", "90d", "--transitions", "delete", "--dry-run") == (
            "geoid_states: 2 rows would be deleted\ncognitive_transitions: 1 rows would be deleted\n"
            "semantic_embeddings: 1 rows would be deleted\nsystem_metrics: 1 rows would be deleted\n"
        )
        refused = run("maintain", "prune", "--older-than", "90d", DATABASE_URL=database)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.startswith("kimera-sql: 1 transitions lead from or to the 2 states; ")
        assert maintain("prune", "--older-than", "90d", "--transitions", "delete") == (
            "geoid_states: 2 rows deleted\ncognitive_transitions: 1 rows deleted\n"
            "semantic_embeddings: 1 rows deleted\nsystem_metrics: 1 rows deleted\n"
        )
        assert maintain("all") == (
            "prune-metrics: not asked for\nreindex: 1 vector indexes rebuilt\nvacuum: 5 tables vacuumed and analyzed\n"
        )


def test_all_exits_with_1_when_a_step_failed(conn: Connection, database: str) -> None:
    fill(conn)
    indexes.build(conn, "geoid_states", **SPECIFIED)
    with holding(database, "DELETE FROM geoid_states"):
        ran = run("maintain", "all", "--lock-timeout", "0.3", DATABASE_URL=database)
        told = run("maintain", "all", "--lock-timeout", "0.3", "--json", DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "FAILED  reindex: not rebuilt: idx_geoid_vector" in ran.stdout
    assert "\nvacuum: 5 tables" in ran.stdout
    assert told.returncode == 1
    assert [step["error"] is None for step in json.loads(told.stdout)] == [True, False, True]


def test_interrupted_while_it_waits_it_ends_at_once_and_begins_nothing_more(conn: Connection, database: str) -> None:
    fill(conn)
    before = node(conn, indexes.build(conn, "geoid_states", **SPECIFIED).name)
    with holding(database, "DELETE FROM geoid_states"):
        command = subprocess.Popen(
            [*COMMAND, "maintain", "all", "--lock-timeout", "3600"],
            env=environment(DATABASE_URL=database),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not conn.execute(
            "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT /* maintenance.pause */%'"
        ).rowcount:
            assert command.poll() is None
            time.sleep(0.01)
        command.send_signal(signal.SIGINT)
        stdout, stderr = command.communicate(timeout=60)
    assert (command.returncode, stdout, stderr) == (130, "", "kimera-sql: interrupted\n")
    assert node(conn, "idx_geoid_vector") == before
    conn.execute("SELECT pg_stat_clear_snapshot()")
    assert conn.execute("SELECT max(vacuum_count) FROM pg_stat_user_tables").fetchone() == (0,)


def test_a_role_that_may_not_gets_one_line(stranger: str) -> None:
    for command in ("vacuum", "analyze", "reindex", "retrain"):
        ran = run("maintain", command, DATABASE_URL=stranger)
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr.startswith("kimera-sql: role kimera_test_")
        assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("prune",), 2, "--older-than"),
        (("prune", "--older-than", "many"), 2, "'many' is not a number of days"),
        (("prune", "--older-than", "nan"), 2, "not a span of time"),
        (("prune", "--older-than", "1e300"), 2, "not a span of time"),
        (("prune", "--older-than", "9", "--transitions", "keep"), 2, "invalid choice: 'keep'"),
        (("prune", "metrics", "--older-than", "9"), 1, "expected some of geoid_states, semantic_embeddings, system_me"),
        (("prune", "--older-than", "-1"), 1, "kimera-sql: --older-than: -1 day, 0:00:00 is not above zero"),
        (("vacuum", "--lock-timeout", "0"), 1, "kimera-sql: --lock-timeout: 0:00:00 is not within a millisecond"),
        (("retrain", "--growth", "0.5"), 1, "kimera-sql: --growth: 0.5 is below 1"),
        (("reindex", "nothing"), 1, "kimera-sql: no vector index has the name nothing"),
    ],
)
def test_bad_arguments(newest: Server, arguments: tuple[str, ...], code: int, said: str) -> None:
    ran = run("maintain", *arguments, DATABASE_URL=make_conninfo(newest.conninfo, dbname=newest.template))
    assert ran.returncode == code
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr
    assert ran.stdout == ""


def test_on_sqlite_rows_are_pruned_and_the_rest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    variables = {"KIMERA_SQLITE_PATH": str(path), "PYTHONWARNINGS": ""}
    with SqlitePool(path) as pool, pool.connection() as conn:
        migrate(conn)
        metrics.insert(
            conn,
            metrics.NewMetric(
                metric_name="m", metric_value=1, component="c", timestamp=datetime(2020, 1, 1, tzinfo=UTC)
            ),
        )
    ran = run("maintain", "prune", "system_metrics", "--older-than", "30", **variables)
    assert (ran.returncode, ran.stdout) == (0, "system_metrics: 1 rows deleted\n")
    assert run("maintain", "prune", "--older-than", "30", **variables).stdout == (
        "geoid_states: 0 rows deleted\ncognitive_transitions: 0 rows deleted\n"
        "semantic_embeddings: 0 rows deleted\nsystem_metrics: 0 rows deleted\n"
    )
    refused = run("maintain", "vacuum", **variables)
    assert refused.returncode == 1
    assert refused.stderr.startswith("kimera-sql: this command needs a PostgreSQL server")


# The migration


def estimate(conn: Connection, entity: str, name: str, **parameters: Any) -> int:
    """The rows that the planner expects of a scan that a named query makes."""
    statement = getattr(sql.Queries(entity), name).statement(conn)
    text = statement.text if "EXPLAIN" in statement.text else f"EXPLAIN (FORMAT JSON) {statement.text}"
    given = {**dict.fromkeys(statement.parameters), **parameters}
    row = conn.execute(text.encode(), given, prepare=False).fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    while plan["Node Type"] not in ("Index Scan", "Bitmap Heap Scan", "Seq Scan"):
        plan = plan["Plans"][0]
    return int(plan["Plan Rows"])


def off(expected: int, found: int) -> float:
    return abs(math.log2(max(expected, 1) / found))


def test_the_target_of_metadata_makes_its_estimates_better(conn: Connection) -> None:
    conn.execute(
        "INSERT INTO geoid_states (state_vector, entropy, coherence_factor, energy_level, metadata)"
        " SELECT vector, 0, 0, 0, jsonb_build_object('n', n, 'session', abs(hashint4(n)) %% 100)"
        " FROM generate_series(1, 6000) AS n, (SELECT %s::vector AS vector) AS one",
        [unit(0)],
    )

    def error() -> float:
        conn.execute("ANALYZE geoid_states")
        each = [
            off(estimate(conn, "geoids", "matching_plan", metadata=psycopg.types.json.Jsonb({"session": session})), 60)
            for session in range(100)
        ]
        return sum(each) / len(each)

    with_target = error()
    conn.execute("ALTER TABLE geoid_states ALTER COLUMN metadata SET STATISTICS -1")
    assert with_target < 1.5
    assert error() > 1.5 * with_target


def test_the_statistics_of_name_and_component_make_their_estimate_right(conn: Connection) -> None:
    conn.execute(
        "INSERT INTO system_metrics (metric_name, metric_value, component)"
        " SELECT 'm' || n % 50, 1, 'c' || n % 50 / 5 FROM generate_series(1, 5000) AS n"
    )

    def expected() -> int:
        conn.execute("ANALYZE system_metrics")
        return estimate(conn, "metrics", "latest", metric_name="m3", component="c0", limit=10_000)

    assert off(expected(), 100) < 0.5
    conn.execute("DROP STATISTICS kimera_metrics_component")
    assert off(expected(), 100) > 2


def test_vectors_have_no_statistics_whatever_their_target(conn: Connection) -> None:
    fill(conn)
    conn.execute("ALTER TABLE geoid_states ALTER COLUMN state_vector SET STATISTICS 1000")
    conn.execute("ANALYZE geoid_states")
    found = conn.execute(
        "SELECT attname, most_common_vals IS NULL AND histogram_bounds IS NULL FROM pg_stats"
        " WHERE tablename = 'geoid_states' AND attname IN ('state_vector', 'timestamp') ORDER BY attname"
    )
    assert dict(found.fetchall()) == {"state_vector": True, "timestamp": False}


def test_autovacuum_comes_to_each_table_before_the_default(conn: Connection) -> None:
    rows = conn.execute(
        "SELECT relname, option_name, option_value::float FROM pg_class, pg_options_to_table(reloptions)"
        " WHERE relname = ANY(%s)",
        [list(tables.NAMES)],
    ).fetchall()
    found = {(table, option): value for table, option, value in rows}
    for table in tables.NAMES:
        assert found[table, "autovacuum_vacuum_scale_factor"] <= 0.05
        assert found[table, "autovacuum_analyze_scale_factor"] <= 0.05
