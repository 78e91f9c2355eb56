"""What the reports say of states that are made on the servers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from commands import COMMAND, environment, run
from fix_clusters import cluster, standby
from fix_monitoring import connected, extension, fill, grant, only, own_server, until
from fix_servers import programs
from psycopg import sql as composed
from psycopg.conninfo import make_conninfo
from psycopg_pool import PoolTimeout
from strategies import unit

from kimera_sql import Settings, SqlitePool, geoids, metrics, open_pool
from kimera_sql.errors import InvalidValue, UnsupportedByServer
from kimera_sql.ops import monitoring
from kimera_sql.ops.backup import tools
from kimera_sql.ops.monitoring import Sample, Unavailable
from kimera_sql.search import indexes
from kimera_sql.sql.postgres import Connection

pytestmark = pytest.mark.slow


@pytest.fixture
def conn(own_conn: Connection) -> Connection:
    return own_conn


def old(conn: Connection) -> bool:
    return conn.info.server_version < 160000


def value(conn: Connection, query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    assert row
    return row[0]


def unavailable(reports: dict[str, Any]) -> set[str]:
    return {name for name, report in reports.items() if isinstance(report, Unavailable)}


def test_a_superuser_has_every_report(conn: Connection) -> None:
    reports = monitoring.collect(conn)
    assert list(reports) == list(monitoring.REPORTS)
    # What the wheels are built without, and what PostgreSQL 15 does not have yet
    assert unavailable(reports) == {"statements", "queries"} | ({"io"} if old(conn) else set())


def test_the_server_knows_itself(conn: Connection) -> None:
    server = monitoring.server(conn)
    assert server.version == conn.info.parameter_status("server_version")
    assert server.pgvector == extension(conn)
    assert not server.standby
    assert 1 <= server.connections <= server.max_connections
    assert server.uptime_seconds > 0
    assert server.started_at.utcoffset() is not None


def test_what_has_never_been_asked_for_is_refused(conn: Connection) -> None:
    with pytest.raises(InvalidValue, match=r"^names: there is no report 'nothing'; there are server, databases"):
        monitoring.collect(conn, ["server", "nothing"])
    assert list(monitoring.collect(conn, ["wal", "server", "wal"])) == ["wal", "server"]
    for seconds in (-1, 1e10, float("nan"), "60", None):
        with pytest.raises(InvalidValue, match="longer_than"):
            monitoring.transactions(conn, longer_than=seconds)  # type: ignore[arg-type]
    for limit in (0, -1, 1.5, "1", 2**40):
        with pytest.raises(InvalidValue, match="limit"):
            monitoring.statements(conn, limit=limit)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue, match="limit"):
            monitoring.queries(conn, limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", monitoring.REPORTS)
def test_sqlite_has_no_reports(name: str, tmp_path: Path) -> None:
    with SqlitePool(tmp_path / "file.db") as pool, pool.connection() as file:
        with pytest.raises(UnsupportedByServer, match="monitoring needs PostgreSQL"):
            monitoring.REPORTS[name](file)
        with pytest.raises(UnsupportedByServer, match="monitoring needs PostgreSQL"):
            monitoring.collect(file, [name])


def test_tables_and_sizes(conn: Connection) -> None:
    fill(conn, 60)
    conn.execute("DELETE FROM geoid_states WHERE id IN (SELECT id FROM geoid_states LIMIT 10)")
    table = until(lambda: [one for one in monitoring.tables(conn) if (one.live_rows, one.dead_rows) == (50, 10)])[0]
    assert (table.table, table.vacuumed_at, table.analyzed_at) == ("geoid_states", None, None)
    assert table.changed_rows == 70
    conn.execute("VACUUM (ANALYZE) geoid_states")
    table = until(lambda: [one for one in monitoring.tables(conn) if one.table == "geoid_states" and one.analyzed_at])[
        0
    ]
    assert (table.live_rows, table.dead_rows, table.changed_rows) == (50, 0, 0)
    assert table.vacuumed_at is not None
    size = only(monitoring.sizes(conn), table="geoid_states")
    # A row with its vector fills a page.
    assert size.heap_bytes == 60 * 8192
    assert size.total_bytes == size.heap_bytes + size.other_bytes + size.index_bytes
    assert monitoring.sizes(conn)[0].table == "geoid_states"


def test_databases_and_wraparound_name_this_one(conn: Connection) -> None:
    database = only(monitoring.databases(conn), database=conn.info.dbname)
    assert (database.size_bytes or 0) > 5_000_000
    assert database.connections >= 1
    used = only(monitoring.wraparound(conn), database=conn.info.dbname)
    assert used.used_ratio == max(used.transactions, used.multixacts) / 2**31


def test_an_index_that_is_used_and_one_that_is_not(conn: Connection) -> None:
    conn.execute("SET enable_seqscan = off")
    before = only(monitoring.index_use(conn), index="idx_portal_status")
    assert (before.scans, before.scanned_at, before.valid, before.is_unique) == (0, None, True, False)
    for _ in range(3):
        conn.execute("SELECT FROM portal_configurations WHERE status = 'active' ORDER BY status")
        conn.execute("SELECT pg_stat_force_next_flush()")
    used = until(
        lambda: [one for one in monitoring.index_use(conn) if one.table == "portal_configurations" and one.scans]
    )
    assert {one.index for one in used} <= {"idx_portal_status", "idx_portal_active"}
    assert all((one.scanned_at is None) == old(conn) for one in used)
    assert only(monitoring.index_use(conn), index="idx_transitions_type").scans == 0


def test_an_index_whose_build_failed_is_invalid(conn: Connection) -> None:
    metrics.insert_many(conn, [metrics.NewMetric(metric_name="one", metric_value=n, component="c") for n in (1, 2)])
    with pytest.raises(psycopg.errors.UniqueViolation):
        conn.execute("CREATE UNIQUE INDEX CONCURRENTLY broken ON system_metrics (metric_name)")
    assert [one.index for one in monitoring.index_use(conn) if not one.valid] == ["broken"]


def test_cache_counts_what_was_found_in_it(conn: Connection) -> None:
    fill(conn, 20)
    for _ in range(5):
        geoids.latest(conn, 20)
    conn.execute("SELECT pg_stat_force_next_flush()")
    cached = until(lambda: [one for one in monitoring.cache(conn) if one.table == "geoid_states" and one.heap_hit])[0]
    assert cached.hit_ratio is not None
    assert 0.5 < cached.hit_ratio <= 1
    assert only(monitoring.cache(conn), table="kimera_recall_settings").hit_ratio is None


def test_who_is_blocked_and_by_whom(database: str, conn: Connection) -> None:
    with (
        connected(database, application_name="holder") as holder,
        connected(database, application_name="waiter") as waiter,
        ThreadPoolExecutor(1) as executor,
    ):
        assert monitoring.blocked(conn) == []
        with holder.transaction():
            holder.execute("LOCK TABLE portal_configurations IN ACCESS EXCLUSIVE MODE")
            waiting = executor.submit(waiter.execute, "SELECT count(*) FROM portal_configurations")
            (pair,) = until(lambda: monitoring.blocked(conn))
            # Asking for that table's size would wait with it.
            sizes = monitoring.collect(conn, ["sizes", "locks"])
        waiting.result()
        assert (pair.pid, pair.application) == (waiter.info.backend_pid, "waiter")
        assert (pair.blocker_pid, pair.blocker_application) == (holder.info.backend_pid, "holder")
        assert (pair.relation, pair.kind, pair.mode) == ("portal_configurations", "relation", "AccessShareLock")
        assert pair.blocker_state == "idle in transaction"
        assert "LOCK TABLE" in (pair.blocker_query or "")
        assert pair.query == "SELECT count(*) FROM portal_configurations"
        assert pair.waiting_seconds >= 0
        assert sizes["sizes"] == Unavailable("a table was locked for more than 2s; see the report locks")
        assert not isinstance(sizes["locks"], Unavailable)
        assert monitoring.blocked(conn) == []


def test_a_transaction_that_is_idle_is_seen(database: str, conn: Connection) -> None:
    with connected(database, application_name="sleeper") as other, other.transaction():
        other.execute("SELECT txid_current()")
        found = only(monitoring.transactions(conn, longer_than=0), pid=other.info.backend_pid)
        assert (found.state, found.application) == ("idle in transaction", "sleeper")
        assert found.query == "SELECT txid_current()"
        assert found.idle_seconds is not None
        assert 0 <= found.idle_seconds <= found.open_seconds
        counted = only(monitoring.connections(conn), application="sleeper")
        assert (counted.state, counted.connections, counted.database) == ("idle in transaction", 1, conn.info.dbname)
        assert monitoring.transactions(conn, longer_than=3600) == []
    assert [one for one in monitoring.transactions(conn, longer_than=0) if one.application == "sleeper"] == []


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER ROLE {role} PASSWORD 'planted-''secret'",
        "ALTER ROLE {role} WITH ENCRYPTED password E'planted-secret' NOLOGIN",
        "SELECT 'host=a password=planted-secret user=b'",
        "SELECT 'host=a password = ''planted-secret'''",
    ],
)
def test_a_password_in_a_statement_is_masked(database: str, conn: Connection, role: str, statement: str) -> None:
    with connected(database) as other:
        other.execute("BEGIN")
        other.execute(statement.format(role=role).encode())
        found = only(monitoring.transactions(conn, longer_than=0), pid=other.info.backend_pid)
        other.execute("ROLLBACK")
    assert "secret" not in found.query
    assert "password ***" in found.query.lower()
    assert found.query.startswith(statement[:6])


def test_a_vacuum_is_seen_on_its_way(database: str, conn: Connection) -> None:
    metrics.insert_many(
        conn, (metrics.NewMetric(metric_name="m", metric_value=n, component="c") for n in range(20_000))
    )
    with connected(database) as other, ThreadPoolExecutor(1) as executor:
        other.execute("SET vacuum_cost_delay = 100")
        other.execute("SET vacuum_cost_limit = 1")
        pid = other.info.backend_pid
        vacuum = executor.submit(other.execute, "VACUUM system_metrics")
        (seen,) = until(lambda: [one for one in monitoring.progress(conn) if one.total])
        other.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            vacuum.result()
    assert (seen.operation, seen.relation, seen.pid) == ("vacuum", "system_metrics", pid)
    assert 0 <= (seen.done or 0) <= (seen.total or 0)


def test_a_build_is_seen_on_its_way(database: str, conn: Connection) -> None:
    conn.execute(
        "CREATE FUNCTION slow(double precision) RETURNS double precision IMMUTABLE LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM pg_sleep(0.1); RETURN $1; END'"
    )
    metrics.insert_many(conn, (metrics.NewMetric(metric_name="m", metric_value=n, component="c") for n in range(500)))
    with connected(database) as other, ThreadPoolExecutor(1) as executor:
        build = executor.submit(other.execute, "CREATE INDEX crawling ON system_metrics (slow(metric_value))")
        (seen,) = until(lambda: monitoring.progress(conn))
        other.cancel_safe()
        with pytest.raises(psycopg.errors.QueryCanceled):
            build.result()
    assert (seen.operation, seen.relation) == ("create index", "system_metrics")
    assert seen.phase is not None


def test_the_write_ahead_log_grows(conn: Connection) -> None:
    before = monitoring.wal(conn)
    fill(conn, 50)
    conn.execute("SELECT pg_stat_force_next_flush()")
    after = until(lambda: [one for one in [monitoring.wal(conn)] if one.bytes > before.bytes])[0]
    assert after.position != before.position
    files = monitoring.wal_files(conn)
    assert files.bytes == files.files * 16 * 2**20
    assert files.waiting == 0


def test_archiving_and_checkpoints_are_counted(conn: Connection) -> None:
    archiver = monitoring.archiver(conn)
    assert (archiver.mode, archiver.archived, archiver.failed, archiver.failing) == ("off", 0, 0, False)
    before = monitoring.checkpoints(conn)
    conn.execute("CHECKPOINT")
    after = until(lambda: [one for one in [monitoring.checkpoints(conn)] if one.requested > before.requested])[0]
    assert after.write_seconds >= before.write_seconds


def test_input_and_output_are_known_since_16(conn: Connection) -> None:
    if old(conn):
        with pytest.raises(UnsupportedByServer, match="need PostgreSQL 16"):
            monitoring.io(conn)
        return
    clients = only(monitoring.io(conn), process="client backend", object="relation", context="normal")
    assert clients.hits > 0
    assert clients.read_bytes >= clients.reads > 0


def test_a_slot_holds_write_ahead_log(conn: Connection) -> None:
    name = f"kimera_{uuid4().hex}"
    conn.execute("SELECT pg_create_physical_replication_slot(%s, true)", [name])
    try:
        conn.execute("SELECT pg_switch_wal()")
        fill(conn, 5)
        slot = only(monitoring.slots(conn), slot=name)
    finally:
        conn.execute("SELECT pg_drop_replication_slot(%s)", [name])
    assert (slot.kind, slot.active, slot.wal_status) == ("physical", False, "reserved")
    assert (slot.held_bytes or 0) > 0


def test_a_replica_is_seen(conn: Connection, database: str, tmp_path: Path) -> None:
    assert monitoring.standby(conn) == []
    tool = tools.find("pg_receivewal", conn)
    target = make_conninfo(database, dbname="", application_name="receiver")
    with subprocess.Popen([tool, "-D", tmp_path, "-d", target], stderr=subprocess.DEVNULL) as receiver:
        try:
            replica = until(lambda: [one for one in monitoring.replicas(conn) if one.application == "receiver"])[0]
        finally:
            receiver.terminate()
    assert replica.synchrony == "async"
    # It only receives.
    assert replica.behind_bytes is None


def position(lsn: str | None) -> int:
    """Return how many bytes of write-ahead log come before *lsn*."""
    high, low = (lsn or "0/0").split("/")
    return int(high, 16) << 32 | int(low, 16)


def test_a_standby_that_streams_and_one_whose_replay_is_paused() -> None:
    with (
        cluster("postgres18") as primary,
        standby(primary) as conninfo,
        primary.connect() as conn,
        connected(conninfo) as other,
    ):

        def written(statement: str) -> int:
            """Commit *statement*, and return where the write-ahead log then ends."""
            conn.execute(statement.encode())
            return position(str(value(conn, "SELECT pg_current_wal_lsn()::text")))

        def numbers() -> list[int]:
            return [row[0] for row in other.execute("SELECT n FROM notes ORDER BY n")]

        def replica() -> monitoring.Replica:
            return only(monitoring.replicas(conn), application="reader")

        def here() -> monitoring.Standby:
            (state,) = monitoring.standby(other)
            return state

        assert (monitoring.server(conn).standby, monitoring.server(other).standby) == (False, True)
        assert (monitoring.standby(conn), monitoring.replicas(other)) == ([], [])
        began = value(conn, "SELECT clock_timestamp()")
        end = written("CREATE TABLE notes AS SELECT 1 AS n")
        state = until(lambda: [state for state in [here()] if position(state.replayed) >= end])[0]
        since = value(other, "SELECT clock_timestamp()") - began
        assert numbers() == [1]
        assert state.behind_bytes == position(state.received) - position(state.replayed)
        assert state.replayed_seconds_ago is not None
        assert 0 <= state.replayed_seconds_ago <= since.total_seconds()
        seen = until(lambda: [one for one in [replica()] if one.behind_bytes == 0])[0]
        assert (seen.address, seen.state, seen.synchrony) == (None, "streaming", "async")

        other.execute("SELECT pg_wal_replay_pause()")
        until(lambda: value(other, "SELECT pg_get_wal_replay_pause_state() = 'paused'"))
        end = written("INSERT INTO notes VALUES (2)")
        paused = until(lambda: [state for state in [here()] if position(state.received) >= end])[0]
        assert numbers() == [1]
        assert position(paused.replayed) < end
        assert paused.behind_bytes == position(paused.received) - position(paused.replayed)
        assert (here().replayed_seconds_ago or 0) > (paused.replayed_seconds_ago or 0) > 0
        late = until(lambda: [one for one in [replica()] if one.behind_seconds])[0]
        assert late.state == "streaming"
        assert (late.behind_bytes or 0) >= end - position(paused.replayed)
        # It tells with what it receives how long the oldest of it has waited.
        written("INSERT INTO notes VALUES (3)")
        until(lambda: (replica().behind_seconds or 0) > (late.behind_seconds or 0))

        other.execute("SELECT pg_wal_replay_resume()")
        until(lambda: replica().behind_bytes == 0)
        assert here().behind_bytes == 0
        assert numbers() == [1, 2, 3]


BTREES = {
    "uuid": "gen_random_uuid()",
    "timestamptz": "now() + n * interval '1 second'",
    "double precision": "CASE WHEN n % 3 = 0 THEN NULL ELSE random() END",
    "text": "md5(n::text)",
    "varchar": "'group ' || 10 + n % 40",
    "integer": "n % 1000",
}


@pytest.mark.parametrize("kind", BTREES)
def test_a_new_b_tree_has_the_expected_size(conn: Connection, kind: str) -> None:
    conn.execute(f"CREATE TABLE things (number bigint, thing {kind})".encode())
    rows = "INSERT INTO things SELECT n, THING FROM generate_series(1, 30000) AS n"
    conn.execute(rows.replace("THING", BTREES[kind]).encode())
    conn.execute("ANALYZE things")
    conn.execute("CREATE INDEX idx_thing ON things (thing)")
    conn.execute("CREATE INDEX idx_both ON things (thing, number) WITH (fillfactor = 60)")
    for index in ("idx_thing", "idx_both"):
        tree = only(monitoring.bloat(conn), index=index)
        assert tree.expected_bytes == pytest.approx(tree.size_bytes, rel=0.06)
        assert (tree.wasted_ratio or 0) < 0.06


def test_a_bloated_b_tree_is_found_and_a_rebuilt_one_is_not(conn: Connection) -> None:
    conn.execute("CREATE TABLE things (number integer PRIMARY KEY)")
    conn.execute("INSERT INTO things SELECT n FROM generate_series(1, 50000) AS n")
    conn.execute("DELETE FROM things WHERE number % 10 <> 0")
    conn.execute("VACUUM (ANALYZE) things")
    worst = monitoring.bloat(conn)[0]
    assert worst.index == "things_pkey"
    assert worst.wasted_ratio == pytest.approx(0.9, abs=0.02)
    assert worst.wasted_bytes == worst.size_bytes - (worst.expected_bytes or 0)
    conn.execute("REINDEX TABLE things")
    assert (only(monitoring.bloat(conn), index="things_pkey").wasted_ratio or 0) < 0.06


def test_bloat_of_unknown_widths_is_not_guessed(conn: Connection) -> None:
    conn.execute("CREATE TABLE things (thing text)")
    conn.execute("INSERT INTO things SELECT md5(n::text) FROM generate_series(1, 1000) AS n")
    conn.execute("CREATE INDEX idx_thing ON things (thing)")
    tree = only(monitoring.bloat(conn), index="idx_thing")
    assert (tree.expected_bytes, tree.wasted_bytes, tree.wasted_ratio) == (None, None, None)
    assert tree.size_bytes > 8192


def test_the_faults_of_a_vector_index(conn: Connection) -> None:
    assert monitoring.vectors(conn) == []
    fill(conn, 8)
    indexes.build(conn, "geoid_states", method="ivfflat", precision="full", lists=10)
    (young,) = monitoring.vectors(conn)
    assert (young.index, young.rows_at_build) == ("idx_geoid_vector", 8)
    assert young.faults == ("untrained", "unused", "untuned")
    fill(conn, 300)
    conn.execute("ANALYZE geoid_states")
    (grown,) = monitoring.vectors(conn)
    assert grown.faults == ("untrained", "aged", "unused", "untuned")
    assert grown.bytes_a_row == grown.size_bytes / 308
    conn.execute("UPDATE kimera_vector_indexes SET rows_at_build = 308, size_at_build = %s", [grown.size_bytes // 2])
    (swollen,) = monitoring.vectors(conn)
    assert swollen.growth == pytest.approx(2, rel=0.01)
    assert swollen.faults == ("swollen", "unused", "untuned")
    conn.execute(
        "INSERT INTO kimera_recall_settings (index_name, k, target, setting, filenode) "
        "VALUES ('idx_geoid_vector', 10, 0.95, 10, pg_relation_filenode('idx_geoid_vector')::bigint)"
    )
    conn.execute("UPDATE kimera_vector_indexes SET size_at_build = %s", [grown.size_bytes])
    conn.execute("SET enable_seqscan = off")
    geoids.similar(conn, unit(0))
    conn.execute("SELECT pg_stat_force_next_flush()")
    until(lambda: not monitoring.vectors(conn)[0].faults)
    conn.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_geoid_vector'::regclass")
    assert monitoring.vectors(conn)[0].faults == ("invalid",)


def test_an_index_that_was_made_by_hand_on_no_rows_is_untrained(conn: Connection) -> None:
    # The specification's own statement
    conn.execute("CREATE INDEX idx_geoid_vector ON geoid_states USING ivfflat (state_vector vector_cosine_ops)")
    (made,) = monitoring.vectors(conn)
    assert (made.rows_at_build, made.growth, made.bytes_a_row) == (None, None, None)
    assert made.faults == ("untrained", "unused", "untuned")


def test_the_recall_of_an_index_is_the_highest_target_that_it_reaches(conn: Connection) -> None:
    fill(conn, 8)
    indexes.build(conn, "geoid_states", method="ivfflat", precision="full", lists=2)
    assert monitoring.recalls(conn) == []
    conn.execute(
        "INSERT INTO kimera_recall_settings"
        " SELECT 'idx_geoid_vector', k, target, setting, now() - make_interval(days => age),"
        " pg_relation_filenode('idx_geoid_vector')::bigint"
        " FROM (VALUES (10, 0.9, 1, 3), (10, 0.95, 2, 2), (10, 0.99, NULL, 1), (100, 0.9, NULL, 5)) AS"
        " tuned(k, target, setting, age)"
    )
    ten, hundred = monitoring.recalls(conn)
    assert (ten.index, ten.table, ten.k, ten.recall, ten.setting) == ("idx_geoid_vector", "geoid_states", 10, 0.95, 2)
    assert ten.measured_at == value(conn, "SELECT measured_at FROM kimera_recall_settings WHERE k = 10 AND setting = 2")
    assert (hundred.k, hundred.recall, hundred.setting) == (100, 0, None)
    # It was measured in a file that is gone.
    conn.execute("REINDEX INDEX idx_geoid_vector")
    assert monitoring.recalls(conn) == []


def test_a_monitoring_role_sees_what_it_needs(database: str, conn: Connection, role: str) -> None:
    grant(conn, "pg_monitor", role)
    with connected(database, user=role) as plain:
        assert monitoring.visibility(plain) == monitoring.Visibility(role, True)
        reports = monitoring.collect(plain)
        missing = {"statements", "queries", "vectors", "recall", "sampled"} | ({"io"} if old(conn) else set())
        assert unavailable(reports) == missing
        reason = reports["vectors"]
        assert isinstance(reason, Unavailable)
        assert "permission denied for table kimera_" in reason.reason
        assert f"SELECT on that table, to {role}" in reason.reason
        grant(conn, "SELECT ON kimera_vector_indexes, kimera_recall_settings, kimera_sampled_recalls", role)
        grant(conn, "SELECT (table_name, sampled_at) ON kimera_sampled_searches", role)
        nothing: dict[str, Any] = {"vectors": [], "recall": [], "sampled": []}
        assert monitoring.collect(plain, nothing) == nothing
        with connected(database, application_name="seen") as other:
            other.execute("SELECT 'what it did'")
            assert "hidden" not in {one.state for one in monitoring.connections(plain)}
            assert only(monitoring.connections(plain), application="seen").state == "idle"


def test_a_role_with_nothing_is_told_so(database: str, conn: Connection, role: str) -> None:
    with connected(database, user=role) as plain, connected(database, application_name="unseen") as other:
        other.execute("SELECT 'what it did'")
        assert monitoring.visibility(plain) == monitoring.Visibility(role, False)
        reports = monitoring.collect(plain)
        missing = {"statements", "queries", "vectors", "recall", "sampled", "wal-files"} | (
            {"io"} if old(conn) else set()
        )
        assert unavailable(reports) == missing
        reason = reports["wal-files"]
        assert isinstance(reason, Unavailable)
        assert reason.reason.startswith("permission denied for function pg_ls_")
        assert reason.reason.endswith(f"to {role}")
        assert only(monitoring.connections(plain), application="unseen").state == "hidden"
        # A width that its statistics would tell is not known to it.
        assert only(monitoring.bloat(plain), index="idx_metrics_name").expected_bytes is None
    said = run("monitor", "connections", DATABASE_URL=make_conninfo(database, user=role))
    assert said.returncode == 0
    assert said.stderr == (
        f"kimera-sql: role {role} is not shown what other roles' sessions do: GRANT pg_monitor TO {role}\n"
    )


def test_the_callers_transaction_goes_on(database: str, role: str) -> None:
    with psycopg.connect(make_conninfo(database, user=role)) as plain:
        plain.execute("SET LOCAL lock_timeout = '7s'")
        plain.execute("CREATE TEMP TABLE mine (n integer)")
        assert isinstance(monitoring.collect(plain, ["wal-files"])["wal-files"], Unavailable)
        assert not isinstance(monitoring.collect(plain, ["server"])["server"], Unavailable)
        assert plain.execute("SELECT count(*), current_setting('lock_timeout') FROM mine").fetchone() == (0, "7s")
        plain.rollback()


def test_a_database_without_schema_or_pgvector_is_told_apart(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        for _ in range(2):
            reports = monitoring.collect(conn, ["server", "vectors"])
            reason = reports["vectors"]
            assert isinstance(reason, Unavailable)
            assert reason.reason.endswith("run kimera-sql init")
            conn.execute("CREATE EXTENSION IF NOT EXISTS vector")


def test_statements_are_asked_for_with_what_to_do(conn: Connection) -> None:
    for report in (monitoring.statements, monitoring.queries):
        with pytest.raises(UnsupportedByServer, match=r"^pg_stat_statements is not installed: put .* CREATE EXTENSION"):
            report(conn)


@pytest.fixture
def contrib(open_folder: Path) -> Iterator[Callable[..., str]]:
    """What starts a server that has the contrib modules."""
    with own_server(programs("postgres18"), open_folder) as start:
        yield start


def test_the_longest_statements_and_prepared_transactions(contrib: Callable[..., str]) -> None:
    conninfo = contrib(shared_preload_libraries="pg_stat_statements", max_prepared_transactions="2")
    with psycopg.connect(conninfo, autocommit=True) as conn:
        conn.execute("CREATE EXTENSION pg_stat_statements")
        conn.execute("SELECT pg_sleep(0.2)")
        for number in range(3):
            conn.execute(composed.SQL("SELECT n FROM generate_series(1, 10) AS n WHERE n <> {}").format(number))
        slowest, *_ = found = monitoring.statements(conn)
        assert slowest.query == "SELECT pg_sleep($1)"
        assert (slowest.calls, slowest.rows) == (1, 1)
        assert slowest.total_seconds == slowest.mean_seconds == slowest.max_seconds >= 0.2
        assert slowest.read_seconds == 0
        series = only(found, query="SELECT n FROM generate_series($1, $2) AS n WHERE n <> $3")
        assert (series.calls, series.rows) == (3, 28)
        assert len(monitoring.statements(conn, limit=1)) == 1
        # It is not a query of ours.
        assert {one.query for one in monitoring.queries(conn)} <= {
            "types.find",
            "monitoring.has_statements",
            "monitoring.statements",
        }
        conn.execute("BEGIN")
        conn.execute("CREATE TABLE half (n integer)")
        conn.execute("PREPARE TRANSACTION 'forgotten'")
        (prepared,) = monitoring.transactions(conn, longer_than=0)
        assert (prepared.pid, prepared.state, prepared.query) == (None, "prepared", "forgotten")
        conn.execute("ROLLBACK PREPARED 'forgotten'")
    with psycopg.connect(contrib()) as conn:
        for report in (monitoring.statements, monitoring.queries):
            with pytest.raises(UnsupportedByServer, match=r"^the server has not loaded pg_stat_statements: put"):
                report(conn)
        # The transaction is still good.
        assert not isinstance(monitoring.collect(conn, ["wal"])["wal"], Unavailable)


def test_a_pool_counts(database: str) -> None:
    settings = Settings(pool_size=1, pool_overflow=1)
    with open_pool(database, settings=settings) as pool:
        with pool.connection(), pool.connection():
            with pytest.raises(PoolTimeout), pool.connection(timeout=0.1):
                pass
            use = monitoring.pool(pool)
            assert (use.pool, use.size, use.idle, use.max_size) == ("kimera_sql", 2, 0, 2)
            assert (use.requests, use.errors) == (3, 1)
            assert use.waited >= 1
        assert monitoring.pool(pool).idle == 2
        assert monitoring.pool(pool).used_seconds > 0
        numbers = monitoring.samples({"pool": [monitoring.pool(pool)]})
        assert Sample("kimera_pool_max_connections", 2, {"pool": "kimera_sql"}) in numbers


@pytest.mark.parametrize("wrong", [None, "pool", 5])
def test_only_a_pool_of_psycopg_counts(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedByServer, match="keeps no statistics"):
        monitoring.pool(wrong)
    with SqlitePool(tmp_path / "file.db") as pool, pytest.raises(UnsupportedByServer, match="a SqlitePool keeps no"):
        monitoring.pool(pool)  # type: ignore[arg-type]


def test_numbers_are_recorded(conn: Connection) -> None:
    samples = monitoring.samples(monitoring.collect(conn, ["sizes", "tables"]))
    assert monitoring.store_samples(conn, samples) == len(samples) > 0
    (size,) = metrics.latest(conn, "kimera_table_size_bytes", component="database")
    stored = metrics.latest(conn, "kimera_table_size_bytes", component="database", limit=100)
    assert {one.timestamp for one in stored} == {size.timestamp}
    assert only(stored, context={"table": "geoid_states"}).metric_value == 65536.0
    assert metrics.count(conn) == len(samples)


def test_monitor_prints_tables(database: str) -> None:
    ran = run("monitor", "tables", "statements", "locks", DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (0, "")
    tables, statements, locks = ran.stdout.split("\n\n")
    assert tables.startswith("TABLES\ntable  ")
    assert "\ngeoid_states " in tables
    assert statements.startswith("STATEMENTS\nnot available: pg_stat_statements is not installed: ")
    assert locks == "LOCKS\nnothing\n"
    everything = run("monitor", DATABASE_URL=database)
    assert everything.returncode == 0
    headings = re.findall("^[A-Z-]+$", everything.stdout, re.MULTILINE)
    assert [heading.lower() for heading in headings] == list(monitoring.REPORTS)


def test_monitor_prints_json(database: str) -> None:
    ran = run("monitor", "server", "statements", "--json", DATABASE_URL=database)
    assert (ran.returncode, ran.stderr) == (0, "")
    printed = json.loads(ran.stdout)
    assert printed["server"][0]["standby"] is False
    assert printed["statements"]["unavailable"].startswith("pg_stat_statements is not installed")


def test_monitor_records(database: str, conn: Connection) -> None:
    ran = run("monitor", "sizes", "--record", DATABASE_URL=database)
    assert ran.returncode == 0
    assert ran.stderr == f"kimera-sql: {metrics.count(conn)} numbers recorded\n"
    assert metrics.names(conn) == ["kimera_report_available", "kimera_table_size_bytes"]


def test_a_role_that_may_not_record_is_told(database: str, role: str) -> None:
    ran = run("monitor", "sizes", "--record", DATABASE_URL=make_conninfo(database, user=role))
    assert ran.returncode == 1
    assert "permission denied for table system_metrics" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_monitor_watches_until_it_is_interrupted(database: str) -> None:
    with subprocess.Popen(
        [*COMMAND, "monitor", "locks", "--watch", "0.1"],
        env=environment(DATABASE_URL=database),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        assert [watching.stdout.readline() for _ in range(6)] == ["LOCKS\n", "nothing\n"] * 3
        watching.send_signal(signal.SIGINT)
        _, stderr = watching.communicate()
    assert (watching.returncode, stderr) == (130, "kimera-sql: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "there is no report 'nothing'; there are server, databases"),
        (("--watch", "0"), "'0' is not a number of seconds from 0.1 to 86400"),
        (("--watch", "nan"), "'nan' is not a number of seconds"),
        (("--watch", "locks"), "'locks' is not a number of seconds"),
        (("--json", "--prometheus"), "not allowed with argument --json"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], said: str) -> None:
    ran = run("monitor", *arguments)
    assert ran.returncode == 2
    assert said in ran.stderr


def test_monitoring_no_server_is_an_error() -> None:
    for command in ("monitor", "doctor"):
        gone = run(command, KIMERA_DB_HOST="localhost", KIMERA_DB_PORT="1", KIMERA_DB_PASSWORD="planted-secret")
        assert gone.returncode == 1
        assert gone.stderr.startswith("kimera-sql: no database could be reached")
        assert "planted-secret" not in gone.stdout + gone.stderr
